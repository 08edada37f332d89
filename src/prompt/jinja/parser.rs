//! Parses a template.

use std::rc::Rc;

use super::{
    ast::{Args, BinaryOp, Body, CompareOp, Expr, FilterCall, For, Macro, Stmt, StmtKind, Target},
    fault::{Fault, FaultKind, Result},
    lexer::{self, Token},
    value::Value,
};

/// How deep expressions and blocks may be nested.
const MAX_DEPTH: usize = 100;

/// Names that cannot be assigned to.
const RESERVED: [&str; 6] = ["true", "false", "none", "True", "False", "None"];

pub(super) fn parse(source: &str) -> Result<Body> {
    let mut parser = Parser {
        tokens: lexer::tokens(source)?,
        at: 0,
        depth: 0,
    };
    let (body, _) = parser.body(&[])?;
    Ok(body)
}

struct Parser {
    tokens: Vec<(Token, usize)>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn token(&self) -> &Token {
        &self.tokens[self.at].0
    }

    fn line(&self) -> usize {
        self.tokens[self.at].1
    }

    fn next(&mut self) -> Token {
        let token = self.token().clone();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    fn is_op(&self, op: &str) -> bool {
        matches!(self.token(), Token::Op(found) if *found == op)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.token(), Token::Name(found) if found == name)
    }

    fn skip_op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        if found {
            self.next();
        }
        found
    }

    fn skip_name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        if found {
            self.next();
        }
        found
    }

    fn unexpected(&self, expected: &str) -> Fault {
        let found = match self.token() {
            Token::Text(_) => "text".to_owned(),
            Token::VariableBegin => "`{{`".into(),
            Token::VariableEnd => "`}}`".into(),
            Token::BlockBegin => "`{%`".into(),
            Token::BlockEnd => "`%}`".into(),
            Token::Name(name) => format!("`{name}`"),
            Token::Str(text) => format!("{text:?}"),
            Token::Int(n) => n.to_string(),
            Token::Float(x) => x.to_string(),
            Token::Op(op) => format!("`{op}`"),
            Token::End => "the end of the template".into(),
        };
        Fault::syntax(self.line(), format!("expected {expected}, found {found}"))
    }

    fn expect_op(&mut self, op: &str) -> Result<()> {
        if self.skip_op(op) {
            Ok(())
        } else {
            Err(self.unexpected(&format!("`{op}`")))
        }
    }

    fn expect_name(&mut self) -> Result<Rc<str>> {
        if let Token::Name(name) = self.token() {
            let name = name.as_str().into();
            self.next();
            Ok(name)
        } else {
            Err(self.unexpected("a name"))
        }
    }

    fn expect_block_end(&mut self) -> Result<()> {
        if *self.token() == Token::BlockEnd {
            self.next();
            Ok(())
        } else {
            Err(self.unexpected("`%}`"))
        }
    }

    /// Runs `parse` one level deeper.
    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_DEPTH {
            let mut fault = Fault::syntax(self.line(), "it is nested too deeply");
            fault.kind = FaultKind::TooLarge;
            return Err(fault);
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// Statements up to a tag with a name in `ends`, whose name is given back; its tag is not closed yet. Without `ends`, all.
    fn body(&mut self, ends: &[&str]) -> Result<(Body, String)> {
        let mut body = Vec::new();
        loop {
            let line = self.line();
            match self.next() {
                Token::Text(text) => body.push(Stmt {
                    line,
                    kind: StmtKind::Text(text.into()),
                }),
                Token::VariableBegin => {
                    let value = self.tuple(true, &[])?;
                    if *self.token() != Token::VariableEnd {
                        return Err(self.unexpected("`}}`"));
                    }
                    self.next();
                    body.push(Stmt {
                        line,
                        kind: StmtKind::Output(value),
                    });
                }
                Token::BlockBegin => {
                    let Token::Name(name) = self.token().clone() else {
                        return Err(self.unexpected("the name of a tag"));
                    };
                    self.next();
                    if ends.contains(&&*name) {
                        return Ok((body, name));
                    }
                    let kind = self.nested(|parser| parser.statement(&name, line, ends))?;
                    body.push(Stmt { line, kind });
                }
                Token::End if ends.is_empty() => return Ok((body, String::new())),
                _ => {
                    let words = format!("the template ends without `{}`", ends.join("` or `"));
                    return Err(Fault::syntax(line, words));
                }
            }
        }
    }

    /// The statements of a block that `end` closes.
    fn block(&mut self, end: &str) -> Result<Body> {
        self.expect_block_end()?;
        let (body, _) = self.body(&[end])?;
        self.expect_block_end()?;
        Ok(body)
    }

    fn statement(&mut self, name: &str, line: usize, ends: &[&str]) -> Result<StmtKind> {
        match name {
            "for" => self.for_loop(),
            "if" => self.condition(),
            "set" => self.set(),
            "with" => self.with(),
            "macro" => {
                let name = self.expect_name()?;
                let params = self.parameters()?;
                let body = self.block("endmacro")?;
                Ok(StmtKind::Macro(Rc::new(Macro { name, params, body })))
            }
            "call" => {
                let params = if self.is_op("(") {
                    self.parameters()?
                } else {
                    Vec::new()
                };
                let call = self.expression()?;
                let body = self.block("endcall")?;
                let caller = Macro {
                    name: "caller".into(),
                    params,
                    body,
                };
                Ok(StmtKind::Call(call, Rc::new(caller)))
            }
            "filter" => {
                let filters = self.filter_chain(true)?;
                Ok(StmtKind::Filter(filters, self.block("endfilter")?))
            }
            "generation" => Ok(StmtKind::Generation(self.block("endgeneration")?)),
            "block" => {
                self.expect_name()?;
                self.skip_name("scoped");
                self.expect_block_end()?;
                let (body, _) = self.body(&["endblock"])?;
                if let Token::Name(_) = self.token() {
                    self.next();
                }
                self.expect_block_end()?;
                Ok(StmtKind::Block(body))
            }
            "break" | "continue" => {
                self.expect_block_end()?;
                Ok(if name == "break" {
                    StmtKind::Break
                } else {
                    StmtKind::Continue
                })
            }
            "autoescape" | "include" | "extends" | "import" | "from" => {
                Err(Fault::not_offered(format!("tag `{name}`")).at(line))
            }
            _ => {
                let open = match ends {
                    [] => String::new(),
                    _ => format!(" (the open block needs `{}`)", ends.join("` or `")),
                };
                let words = format!("Encountered unknown tag '{name}'{open}");
                Err(Fault::syntax(line, words))
            }
        }
    }

    fn for_loop(&mut self) -> Result<StmtKind> {
        let target = self.target(&["in"], false)?;
        if !self.skip_name("in") {
            return Err(self.unexpected("`in`"));
        }
        let iter = self.tuple(false, &["recursive"])?;
        let filter = if self.skip_name("if") {
            Some(self.expression()?)
        } else {
            None
        };
        let recursive = self.skip_name("recursive");
        self.expect_block_end()?;
        let (body, end) = self.body(&["endfor", "else"])?;
        self.expect_block_end()?;
        let mut otherwise = Vec::new();
        if end == "else" {
            (otherwise, _) = self.body(&["endfor"])?;
            self.expect_block_end()?;
        }
        Ok(StmtKind::For(Rc::new(For {
            target,
            iter,
            filter,
            recursive,
            body,
            otherwise,
        })))
    }

    fn condition(&mut self) -> Result<StmtKind> {
        let mut branches = Vec::new();
        let mut otherwise = Vec::new();
        loop {
            let condition = self.tuple(false, &[])?;
            self.expect_block_end()?;
            let (body, end) = self.body(&["elif", "else", "endif"])?;
            branches.push((condition, body));
            if end == "elif" {
                continue;
            }
            self.expect_block_end()?;
            if end == "else" {
                (otherwise, _) = self.body(&["endif"])?;
                self.expect_block_end()?;
            }
            return Ok(StmtKind::If(branches, otherwise));
        }
    }

    fn set(&mut self) -> Result<StmtKind> {
        let target = self.target(&[], true)?;
        if self.skip_op("=") {
            let value = self.tuple(true, &[])?;
            self.expect_block_end()?;
            return Ok(StmtKind::Set(target, value));
        }
        let filters = self.filter_chain(false)?;
        Ok(StmtKind::SetBlock(target, filters, self.block("endset")?))
    }

    fn with(&mut self) -> Result<StmtKind> {
        let mut values = Vec::new();
        while *self.token() != Token::BlockEnd {
            if !values.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target(&[], false)?;
            self.expect_op("=")?;
            values.push((target, self.expression()?));
        }
        Ok(StmtKind::With(values, self.block("endwith")?))
    }

    /// What is assigned to: a name, an attribute of a namespace, or several.
    fn target(&mut self, ends: &[&str], attributes: bool) -> Result<Target> {
        let mut targets = Vec::new();
        let mut is_tuple = false;
        loop {
            let is_end = *self.token() == Token::BlockEnd
                || self.is_op(")")
                || self.is_op("=")
                || ends.iter().any(|end| self.is_name(end));
            if is_end {
                break;
            }
            targets.push(self.single_target(attributes)?);
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        match targets.len() {
            0 => Err(self.unexpected("a name to assign to")),
            1 if !is_tuple => Ok(targets.remove(0)),
            _ => Ok(Target::Tuple(targets)),
        }
    }

    fn single_target(&mut self, attributes: bool) -> Result<Target> {
        if self.skip_op("(") {
            let inner = self.nested(|parser| parser.target(&[], attributes))?;
            self.expect_op(")")?;
            return Ok(inner);
        }
        let line = self.line();
        let name = self.expect_name()?;
        if RESERVED.contains(&&*name) {
            return Err(Fault::syntax(line, format!("cannot assign to `{name}`")));
        }
        if attributes && self.skip_op(".") {
            return Ok(Target::Attribute(name, self.expect_name()?));
        }
        Ok(Target::Name(name))
    }

    /// The parameters of a macro, in parentheses.
    fn parameters(&mut self) -> Result<Vec<(Rc<str>, Option<Expr>)>> {
        self.expect_op("(")?;
        let mut params: Vec<(Rc<str>, Option<Expr>)> = Vec::new();
        while !self.is_op(")") {
            if !params.is_empty() {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            let name = self.expect_name()?;
            let default = if self.skip_op("=") {
                Some(self.expression()?)
            } else {
                None
            };
            params.push((name, default));
        }
        self.expect_op(")")?;
        Ok(params)
    }

    /// `|`-separated filters; with `inline` the first one has no `|`.
    fn filter_chain(&mut self, inline: bool) -> Result<Vec<FilterCall>> {
        let mut filters = Vec::new();
        let mut first = inline;
        while first || self.skip_op("|") {
            first = false;
            filters.push(self.filter_call()?);
        }
        Ok(filters)
    }

    fn filter_call(&mut self) -> Result<FilterCall> {
        let name = self.expect_name()?;
        let args = if self.is_op("(") {
            self.arguments()?
        } else {
            Args::default()
        };
        Ok(FilterCall { name, args })
    }

    fn expression(&mut self) -> Result<Expr> {
        self.nested(Self::conditional)
    }

    fn conditional(&mut self) -> Result<Expr> {
        let mut value = self.or()?;
        while self.skip_name("if") {
            let condition = self.or()?;
            let otherwise = if self.skip_name("else") {
                Some(Box::new(self.expression()?))
            } else {
                None
            };
            value = Expr::Conditional(Box::new(condition), Box::new(value), otherwise);
        }
        Ok(value)
    }

    fn or(&mut self) -> Result<Expr> {
        let mut left = self.and()?;
        while self.skip_name("or") {
            left = Expr::Or(Box::new(left), Box::new(self.and()?));
        }
        Ok(left)
    }

    fn and(&mut self) -> Result<Expr> {
        let mut left = self.not()?;
        while self.skip_name("and") {
            left = Expr::And(Box::new(left), Box::new(self.not()?));
        }
        Ok(left)
    }

    fn not(&mut self) -> Result<Expr> {
        if self.skip_name("not") {
            return Ok(Expr::Not(Box::new(self.nested(Self::not)?)));
        }
        self.comparison()
    }

    fn comparison(&mut self) -> Result<Expr> {
        let left = self.sum()?;
        let mut compared = Vec::new();
        loop {
            let op = match self.token() {
                Token::Op("==") => CompareOp::Eq,
                Token::Op("!=") => CompareOp::Ne,
                Token::Op("<") => CompareOp::Lt,
                Token::Op("<=") => CompareOp::Le,
                Token::Op(">") => CompareOp::Gt,
                Token::Op(">=") => CompareOp::Ge,
                Token::Name(name) if name == "in" => CompareOp::In,
                Token::Name(name) if name == "not" && self.next_is_in() => {
                    self.next();
                    CompareOp::NotIn
                }
                _ => break,
            };
            self.next();
            compared.push((op, self.sum()?));
        }
        Ok(if compared.is_empty() {
            left
        } else {
            Expr::Compare(Box::new(left), compared)
        })
    }

    fn next_is_in(&self) -> bool {
        matches!(self.tokens.get(self.at + 1), Some((Token::Name(name), _)) if name == "in")
    }

    fn sum(&mut self) -> Result<Expr> {
        let mut left = self.concat()?;
        loop {
            let op = match self.token() {
                Token::Op("+") => BinaryOp::Add,
                Token::Op("-") => BinaryOp::Sub,
                _ => return Ok(left),
            };
            self.next();
            left = Expr::Binary(op, Box::new(left), Box::new(self.concat()?));
        }
    }

    fn concat(&mut self) -> Result<Expr> {
        let first = self.product()?;
        if !self.is_op("~") {
            return Ok(first);
        }
        let mut parts = vec![first];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }
        Ok(Expr::Concat(parts))
    }

    fn product(&mut self) -> Result<Expr> {
        let mut left = self.power()?;
        loop {
            let op = match self.token() {
                Token::Op("*") => BinaryOp::Mul,
                Token::Op("/") => BinaryOp::Div,
                Token::Op("//") => BinaryOp::FloorDiv,
                Token::Op("%") => BinaryOp::Mod,
                _ => return Ok(left),
            };
            self.next();
            left = Expr::Binary(op, Box::new(left), Box::new(self.power()?));
        }
    }

    fn power(&mut self) -> Result<Expr> {
        let mut left = self.unary(true)?;
        while self.skip_op("**") {
            left = Expr::Binary(BinaryOp::Pow, Box::new(left), Box::new(self.unary(true)?));
        }
        Ok(left)
    }

    fn unary(&mut self, with_filters: bool) -> Result<Expr> {
        let node = if self.skip_op("-") {
            Expr::Negate(Box::new(self.nested(|parser| parser.unary(false))?))
        } else if self.skip_op("+") {
            Expr::Plus(Box::new(self.nested(|parser| parser.unary(false))?))
        } else {
            self.primary()?
        };
        let node = self.postfix(node)?;
        if with_filters {
            self.filters(node)
        } else {
            Ok(node)
        }
    }

    fn primary(&mut self) -> Result<Expr> {
        match self.token().clone() {
            Token::Name(name) => {
                self.next();
                Ok(match &*name {
                    "true" | "True" => Expr::Const(Value::Bool(true)),
                    "false" | "False" => Expr::Const(Value::Bool(false)),
                    "none" | "None" => Expr::Const(Value::None),
                    _ => Expr::Name(name.into()),
                })
            }
            Token::Str(mut text) => {
                self.next();
                while let Token::Str(more) = self.token() {
                    text.push_str(more);
                    self.next();
                }
                Ok(Expr::Const(text.into()))
            }
            Token::Int(n) => {
                self.next();
                Ok(Expr::Const(Value::Int(n)))
            }
            Token::Float(x) => {
                self.next();
                Ok(Expr::Const(Value::Float(x)))
            }
            Token::Op("(") => {
                self.next();
                let inner = if self.is_op(")") {
                    Expr::Tuple(Vec::new())
                } else {
                    self.tuple(true, &[])?
                };
                self.expect_op(")")?;
                Ok(inner)
            }
            Token::Op("[") => {
                self.next();
                let items = self.separated("]", Self::expression)?;
                Ok(Expr::List(items))
            }
            Token::Op("{") => {
                self.next();
                let entries = self.separated("}", |parser| {
                    let key = parser.expression()?;
                    parser.expect_op(":")?;
                    Ok((key, parser.expression()?))
                })?;
                Ok(Expr::Dict(entries))
            }
            _ => Err(self.unexpected("an expression")),
        }
    }

    /// Items between commas, up to the bracket `close`.
    fn separated<T>(
        &mut self,
        close: &str,
        mut item: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<Vec<T>> {
        let mut items = Vec::new();
        while !self.is_op(close) {
            if !items.is_empty() {
                self.expect_op(",")?;
                if self.is_op(close) {
                    break;
                }
            }
            items.push(item(self)?);
        }
        self.expect_op(close)?;
        Ok(items)
    }

    /// An expression, or several with commas between them: a tuple.
    fn tuple(&mut self, conditional: bool, ends: &[&str]) -> Result<Expr> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            let is_end = matches!(self.token(), Token::VariableEnd | Token::BlockEnd)
                || self.is_op(")")
                || ends.iter().any(|end| self.is_name(end));
            if is_end {
                break;
            }
            items.push(if conditional {
                self.expression()?
            } else {
                self.nested(Self::or)?
            });
            if !self.skip_op(",") {
                break;
            }
            is_tuple = true;
        }
        match items.len() {
            0 => Err(self.unexpected("an expression")),
            1 if !is_tuple => Ok(items.remove(0)),
            _ => Ok(Expr::Tuple(items)),
        }
    }

    fn postfix(&mut self, mut node: Expr) -> Result<Expr> {
        loop {
            if self.skip_op(".") {
                node = match self.next() {
                    Token::Name(name) => Expr::Attribute(Box::new(node), name.into()),
                    Token::Int(n) => {
                        Expr::Item(Box::new(node), Box::new(Expr::Const(Value::Int(n))))
                    }
                    _ => return Err(self.unexpected("a name or a number behind `.`")),
                };
            } else if self.skip_op("[") {
                node = self.nested(|parser| parser.subscript(node))?;
            } else if self.is_op("(") {
                node = Expr::Call(Box::new(node), self.arguments()?);
            } else {
                return Ok(node);
            }
        }
    }

    /// What stands behind `[`.
    fn subscript(&mut self, node: Expr) -> Result<Expr> {
        let part = |parser: &mut Self| -> Result<Option<Box<Expr>>> {
            if parser.is_op(":") || parser.is_op("]") {
                Ok(None)
            } else {
                Ok(Some(Box::new(parser.expression()?)))
            }
        };
        let first = part(self)?;
        if self.skip_op(":") {
            let stop = part(self)?;
            let step = if self.skip_op(":") { part(self)? } else { None };
            self.expect_op("]")?;
            return Ok(Expr::Slice(Box::new(node), [first, stop, step]));
        }
        let Some(first) = first else {
            return Err(self.unexpected("an index"));
        };
        if self.is_op(",") {
            let mut items = vec![*first];
            while self.skip_op(",") && !self.is_op("]") {
                items.push(self.expression()?);
            }
            self.expect_op("]")?;
            return Ok(Expr::Item(Box::new(node), Box::new(Expr::Tuple(items))));
        }
        self.expect_op("]")?;
        Ok(Expr::Item(Box::new(node), first))
    }

    /// Filters, tests and calls behind an expression.
    fn filters(&mut self, mut node: Expr) -> Result<Expr> {
        loop {
            if self.skip_op("|") {
                node = Expr::Filter(Box::new(node), self.filter_call()?);
            } else if self.skip_name("is") {
                node = self.test(node)?;
            } else if self.is_op("(") {
                node = Expr::Call(Box::new(node), self.arguments()?);
            } else {
                return Ok(node);
            }
        }
    }

    fn test(&mut self, node: Expr) -> Result<Expr> {
        let negated = self.skip_name("not");
        let name = self.expect_name()?;
        let takes_argument = match self.token() {
            Token::Name(name) => !matches!(&**name, "else" | "or" | "and"),
            Token::Str(_) | Token::Int(_) | Token::Float(_) => true,
            _ => self.is_op("[") || self.is_op("{"),
        };
        let args = if self.is_op("(") {
            self.arguments()?
        } else if self.is_name("is") {
            return Err(Fault::syntax(
                self.line(),
                "You cannot chain multiple tests with is",
            ));
        } else if takes_argument {
            let argument = self.primary()?;
            Args {
                positional: vec![self.postfix(argument)?],
                ..Args::default()
            }
        } else {
            Args::default()
        };
        let test = Expr::Test(Box::new(node), name, args);
        Ok(if negated {
            Expr::Not(Box::new(test))
        } else {
            test
        })
    }

    /// The arguments of a call, in parentheses.
    fn arguments(&mut self) -> Result<Args> {
        self.expect_op("(")?;
        let mut args = Args::default();
        let mut is_first = true;
        while !self.is_op(")") {
            if !is_first {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            is_first = false;
            let is_named = matches!(self.token(), Token::Name(_))
                && matches!(self.tokens.get(self.at + 1), Some((Token::Op("="), _)));
            if self.skip_op("**") {
                args.spread_named = Some(Box::new(self.expression()?));
            } else if self.skip_op("*") {
                args.spread = Some(Box::new(self.expression()?));
            } else if is_named {
                let name = self.expect_name()?;
                self.next();
                args.named.push((name, self.expression()?));
            } else if args.named.is_empty() && args.spread.is_none() {
                args.positional.push(self.expression()?);
            } else {
                return Err(self.unexpected("a named argument"));
            }
        }
        self.expect_op(")")?;
        Ok(args)
    }
}
