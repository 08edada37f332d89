//! The syntax tree of a template.

use std::rc::Rc;

use super::value::Value;

/// A statement and its line.
#[derive(Debug)]
pub(super) struct Stmt {
    pub(super) line: usize,
    pub(super) kind: StmtKind,
}

pub(super) type Body = Vec<Stmt>;

#[derive(Debug)]
pub(super) enum StmtKind {
    Text(Rc<str>),
    Output(Expr),
    For(Rc<For>),
    /// Conditions and bodies, then the body of `else`.
    If(Vec<(Expr, Body)>, Body),
    Set(Target, Expr),
    /// `{% set x | filter %}...{% endset %}`
    SetBlock(Target, Vec<FilterCall>, Body),
    With(Vec<(Target, Expr)>, Body),
    Macro(Rc<Macro>),
    /// `{% call(params) f(args) %}...{% endcall %}`
    Call(Expr, Rc<Macro>),
    Filter(Vec<FilterCall>, Body),
    /// `{% generation %}`, which marks what the assistant says.
    Generation(Body),
    /// `{% block name %}`: without inheritance, its body.
    Block(Body),
    Break,
    Continue,
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) iter: Expr,
    pub(super) filter: Option<Expr>,
    pub(super) recursive: bool,
    pub(super) body: Body,
    pub(super) otherwise: Body,
}

#[derive(Debug)]
pub(super) struct Macro {
    pub(super) name: Rc<str>,
    pub(super) params: Vec<(Rc<str>, Option<Expr>)>,
    pub(super) body: Body,
}

/// What is assigned to.
#[derive(Debug)]
pub(super) enum Target {
    Name(Rc<str>),
    /// An attribute of a namespace.
    Attribute(Rc<str>, Rc<str>),
    Tuple(Vec<Target>),
}

#[derive(Debug)]
pub(super) struct FilterCall {
    pub(super) name: Rc<str>,
    pub(super) args: Args,
}

#[derive(Debug, Default)]
pub(super) struct Args {
    pub(super) positional: Vec<Expr>,
    pub(super) named: Vec<(Rc<str>, Expr)>,
    /// `*args`
    pub(super) spread: Option<Box<Expr>>,
    /// `**kwargs`
    pub(super) spread_named: Option<Box<Expr>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BinaryOp {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CompareOp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

#[derive(Debug)]
pub(super) enum Expr {
    Const(Value),
    Name(Rc<str>),
    Attribute(Box<Expr>, Rc<str>),
    Item(Box<Expr>, Box<Expr>),
    Slice(Box<Expr>, [Option<Box<Expr>>; 3]),
    Call(Box<Expr>, Args),
    Filter(Box<Expr>, FilterCall),
    Test(Box<Expr>, Rc<str>, Args),
    Binary(BinaryOp, Box<Expr>, Box<Expr>),
    Negate(Box<Expr>),
    Plus(Box<Expr>),
    Not(Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Compare(Box<Expr>, Vec<(CompareOp, Expr)>),
    /// `~`
    Concat(Vec<Expr>),
    /// Condition, value, and the value of `else`.
    Conditional(Box<Expr>, Box<Expr>, Option<Box<Expr>>),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
}
