//! Renders a syntax tree.

use std::{
    cell::{Cell, RefCell},
    ops::Range,
    rc::Rc,
};

use super::{
    ast::{Args, Body, Expr, FilterCall, For, Macro, Stmt, StmtKind, Target},
    call::{Call, int_or, required},
    checks, date,
    fault::{Fault, Result},
    filters, lookup, methods,
    objects::{Closure, Cycler, Joiner, Loop, Scope},
    ops,
    value::{Dict, SeqKind, Value},
};

/// Statements and expressions that one rendering may evaluate; real templates need a few thousand.
const FUEL: u64 = 5_000_000;

/// How deep statements, expressions, macros and recursive loops may be nested.
const MAX_DEPTH: usize = 250;

/// The longest `range`, as in Jinja's sandbox.
const MAX_RANGE: i128 = 100_000;

const GLOBALS: [&str; 7] = [
    "cycler",
    "dict",
    "joiner",
    "namespace",
    "raise_exception",
    "range",
    "strftime_now",
];

/// A rendered template.
#[derive(Debug)]
pub(in crate::prompt) struct Rendered {
    pub(in crate::prompt) text: String,
    /// What stands in `{% generation %}` blocks (bytes).
    pub(in crate::prompt) generations: Vec<Range<usize>>,
}

pub(super) fn render(body: &Body, context: Vec<(&str, Value)>) -> Result<Rendered> {
    let scope = Rc::new(Scope::default());
    for (name, value) in context {
        scope.set(&name.into(), value);
    }
    let mut interpreter = Interpreter {
        fuel: FUEL,
        depth: 0,
        line: 1,
        out: vec![String::new()],
        generations: Vec::new(),
    };
    interpreter
        .body(body, &scope)
        .map_err(|fault| fault.at(interpreter.line))?;
    Ok(Rendered {
        text: interpreter.out.swap_remove(0),
        generations: interpreter.generations,
    })
}

/// What follows a statement.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    Normal,
    Break,
    Continue,
}

struct Interpreter {
    fuel: u64,
    depth: usize,
    /// The line of the statement that is executed.
    line: usize,
    /// The text so far; above it, texts of blocks that are not complete.
    out: Vec<String>,
    generations: Vec<Range<usize>>,
}

impl Interpreter {
    fn burn(&mut self, amount: u64) -> Result<()> {
        self.fuel = self
            .fuel
            .checked_sub(amount)
            .ok_or_else(|| Fault::too_large("the template takes too long"))?;
        Ok(())
    }

    /// Pays for the size of a new value.
    fn pay(&mut self, value: Value) -> Result<Value> {
        let len = match &value {
            Value::Str(text) => text.len() / 64,
            Value::Seq(_, items) => items.len(),
            _ => 0,
        };
        self.burn(len as u64)?;
        Ok(value)
    }

    fn deeper<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.depth >= MAX_DEPTH {
            return Err(Fault::too_large("the template is nested too deeply"));
        }
        self.burn(1)?;
        self.depth += 1;
        let result = run(self);
        self.depth -= 1;
        result
    }

    fn write(&mut self, text: &str) -> Result<()> {
        let out = self.out.last_mut().expect("the text of the template");
        ops::check_len(out.len() + text.len())?;
        out.push_str(text);
        Ok(())
    }

    /// The text that `run` writes.
    fn captured(&mut self, run: impl FnOnce(&mut Self) -> Result<()>) -> Result<String> {
        self.out.push(String::new());
        let result = run(self);
        let text = self.out.pop().expect("the text that was begun");
        result.map(|()| text)
    }

    /// A body that is no loop's: nothing is left to break out of.
    fn whole(&mut self, body: &Body, scope: &Rc<Scope>) -> Result<()> {
        self.body(body, scope).map(drop)
    }

    fn body(&mut self, body: &Body, scope: &Rc<Scope>) -> Result<Flow> {
        self.deeper(|this| {
            for statement in body {
                let flow = this.statement(statement, scope)?;
                if flow != Flow::Normal {
                    return Ok(flow);
                }
            }
            Ok(Flow::Normal)
        })
    }

    fn statement(&mut self, statement: &Stmt, scope: &Rc<Scope>) -> Result<Flow> {
        self.burn(1)?;
        self.line = statement.line;
        match &statement.kind {
            StmtKind::Text(text) => self.write(text)?,
            StmtKind::Output(value) => {
                let value = self.eval(value, scope)?;
                self.write(&value.to_text())?;
            }
            StmtKind::For(node) => {
                let items = self.eval(&node.iter, scope)?;
                self.run_loop(node, &items, scope, 0)?;
            }
            StmtKind::If(branches, otherwise) => {
                for (condition, body) in branches {
                    if self.eval(condition, scope)?.is_true() {
                        return self.body(body, scope);
                    }
                }
                return self.body(otherwise, scope);
            }
            StmtKind::Set(target, value) => {
                let value = self.eval(value, scope)?;
                assign(target, value, scope)?;
            }
            StmtKind::SetBlock(target, chain, body) => {
                let text = self.captured(|this| this.whole(body, &Scope::inside(scope)))?;
                let value = self.filtered(text.into(), chain, scope)?;
                assign(target, value, scope)?;
            }
            StmtKind::With(values, body) => {
                let inner = Scope::inside(scope);
                let values = values
                    .iter()
                    .map(|(target, value)| Ok((target, self.eval(value, scope)?)))
                    .collect::<Result<Vec<_>>>()?;
                for (target, value) in values {
                    assign(target, value, &inner)?;
                }
                return self.body(body, &inner);
            }
            StmtKind::Macro(node) => {
                let closure = Closure {
                    node: node.clone(),
                    scope: scope.clone(),
                };
                scope.set(&node.name, Value::Object(Rc::new(closure)));
            }
            StmtKind::Call(call, node) => self.call_block(call, node, scope)?,
            StmtKind::Filter(chain, body) => {
                let text = self.captured(|this| this.whole(body, &Scope::inside(scope)))?;
                let value = self.filtered(text.into(), chain, scope)?;
                self.write(&value.to_text())?;
            }
            StmtKind::Generation(body) => {
                let text = self.captured(|this| this.whole(body, &Scope::inside(scope)))?;
                let start = self.out[0].len();
                self.generations.push(start..start + text.len());
                self.write(&text)?;
            }
            StmtKind::Block(body) => self.whole(body, &Scope::inside(scope))?,
            StmtKind::Break => return Ok(Flow::Break),
            StmtKind::Continue => return Ok(Flow::Continue),
        }
        Ok(Flow::Normal)
    }

    fn run_loop(
        &mut self,
        node: &Rc<For>,
        items: &Value,
        scope: &Rc<Scope>,
        depth: usize,
    ) -> Result<()> {
        let mut items = items.iterate()?;
        if let Some(filter) = &node.filter {
            let mut kept = Vec::new();
            for item in &*items {
                let inner = Scope::inside(scope);
                assign(&node.target, item.clone(), &inner)?;
                if self.eval(filter, &inner)?.is_true() {
                    kept.push(item.clone());
                }
            }
            items = Rc::new(kept);
        }
        if items.is_empty() {
            return self.whole(&node.otherwise, &Scope::inside(scope));
        }
        let state = Rc::new(Loop {
            items: items.clone(),
            index: Cell::new(0),
            depth,
            changed: RefCell::new(None),
            node: node.clone(),
            scope: scope.clone(),
        });
        let name: Rc<str> = "loop".into();
        for (i, item) in items.iter().enumerate() {
            state.index.set(i);
            let inner = Scope::inside(scope);
            inner.set(&name, Value::Object(state.clone()));
            assign(&node.target, item.clone(), &inner)?;
            if self.body(&node.body, &inner)? == Flow::Break {
                break;
            }
        }
        Ok(())
    }

    fn call_block(&mut self, call: &Expr, node: &Rc<Macro>, scope: &Rc<Scope>) -> Result<()> {
        let Expr::Call(function, args) = call else {
            return Err(Fault::types("`call` needs a call"));
        };
        let function = self.eval(function, scope)?;
        let mut call = self.arguments(args, scope)?;
        let caller = Closure {
            node: node.clone(),
            scope: scope.clone(),
        };
        call.named
            .push(("caller".into(), Value::Object(Rc::new(caller))));
        let value = self.call(&function, call)?;
        self.write(&value.to_text())
    }

    fn filtered(&mut self, value: Value, chain: &[FilterCall], scope: &Rc<Scope>) -> Result<Value> {
        let mut value = value;
        for filter in chain {
            let call = self.arguments(&filter.args, scope)?;
            value = filters::apply(&filter.name, &value, &call)?;
        }
        self.pay(value)
    }

    fn arguments(&mut self, args: &Args, scope: &Rc<Scope>) -> Result<Call> {
        let mut call = Call::default();
        for arg in &args.positional {
            call.positional.push(self.eval(arg, scope)?);
        }
        if let Some(spread) = &args.spread {
            let spread = self.eval(spread, scope)?.iterate()?;
            call.positional.extend(spread.iter().cloned());
        }
        for (name, arg) in &args.named {
            call.named.push((name.clone(), self.eval(arg, scope)?));
        }
        if let Some(spread) = &args.spread_named {
            let Value::Dict(dict) = self.eval(spread, scope)? else {
                return Err(Fault::types("argument after ** must be a mapping"));
            };
            for (key, value) in &dict.entries {
                call.named.push((key.to_text(), value.clone()));
            }
        }
        Ok(call)
    }

    fn eval(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        self.deeper(|this| this.eval_inner(expr, scope))
    }

    fn eval_inner(&mut self, expr: &Expr, scope: &Rc<Scope>) -> Result<Value> {
        Ok(match expr {
            Expr::Const(value) => value.clone(),
            Expr::Name(name) => scope.get(name).unwrap_or_else(|| {
                let mut globals = GLOBALS.into_iter();
                globals.find(|g| **g == **name).map_or_else(
                    || Value::undefined(format!("'{name}' is undefined")),
                    Value::Global,
                )
            }),
            Expr::Attribute(value, name) => {
                let value = self.eval(value, scope)?;
                attribute(&value, name)?
            }
            Expr::Item(value, key) => {
                let value = self.eval(value, scope)?;
                let key = self.eval(key, scope)?;
                match (&value, &key) {
                    (Value::Object(_), Value::Str(name)) => attribute(&value, name)?,
                    _ => lookup::item(&value, &key)?,
                }
            }
            Expr::Slice(value, parts) => {
                let value = self.eval(value, scope)?;
                let mut bounds = [const { None }; 3];
                for (bound, part) in bounds.iter_mut().zip(parts) {
                    if let Some(part) = part {
                        *bound = Some(self.eval(part, scope)?);
                    }
                }
                let sliced = lookup::slice(&value, &bounds)?;
                self.pay(sliced)?
            }
            Expr::Call(function, args) => {
                let function = self.eval(function, scope)?;
                let call = self.arguments(args, scope)?;
                let value = self.call(&function, call)?;
                self.pay(value)?
            }
            Expr::Filter(value, filter) => {
                let value = self.eval(value, scope)?;
                self.filtered(value, std::slice::from_ref(filter), scope)?
            }
            Expr::Test(value, name, args) => {
                let value = self.eval(value, scope)?;
                let call = self.arguments(args, scope)?;
                Value::Bool(match &**name {
                    "filter" => filters::is_known(&value.to_text()),
                    "test" => checks::is_known(&value.to_text()),
                    _ => checks::holds(&value, name, &call)?,
                })
            }
            Expr::Binary(op, left, right) => {
                let left = self.eval(left, scope)?;
                let right = self.eval(right, scope)?;
                let value = ops::binary(*op, &left, &right)?;
                self.pay(value)?
            }
            Expr::Negate(value) => ops::negate(&self.eval(value, scope)?)?,
            Expr::Plus(value) => {
                let value = self.eval(value, scope)?;
                match (value.as_int(), value) {
                    (Some(n), _) => Value::Int(n),
                    (None, value @ Value::Float(_)) => value,
                    (None, Value::Undefined(words)) => return Err(Fault::undefined(&words)),
                    (None, other) => {
                        return Err(Fault::types(format!(
                            "bad operand type for unary +: '{}'",
                            other.type_name()
                        )));
                    }
                }
            }
            Expr::Not(value) => Value::Bool(!self.eval(value, scope)?.is_true()),
            Expr::And(left, right) => {
                let left = self.eval(left, scope)?;
                if left.is_true() {
                    self.eval(right, scope)?
                } else {
                    left
                }
            }
            Expr::Or(left, right) => {
                let left = self.eval(left, scope)?;
                if left.is_true() {
                    left
                } else {
                    self.eval(right, scope)?
                }
            }
            Expr::Compare(left, compared) => {
                let mut left = self.eval(left, scope)?;
                for (op, right) in compared {
                    let right = self.eval(right, scope)?;
                    if !ops::compare(*op, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Value::Bool(true)
            }
            Expr::Concat(parts) => {
                let mut text = String::new();
                for part in parts {
                    text.push_str(&self.eval(part, scope)?.to_text());
                    ops::check_len(text.len())?;
                }
                self.pay(text.into())?
            }
            Expr::Conditional(condition, value, otherwise) => {
                if self.eval(condition, scope)?.is_true() {
                    self.eval(value, scope)?
                } else if let Some(otherwise) = otherwise {
                    self.eval(otherwise, scope)?
                } else {
                    Value::undefined(
                        "the inline if-expression evaluated to false and no else section was defined",
                    )
                }
            }
            Expr::List(items) => Value::list(self.eval_all(items, scope)?),
            Expr::Tuple(items) => Value::tuple(self.eval_all(items, scope)?),
            Expr::Dict(entries) => {
                let mut dict = Dict::default();
                for (key, value) in entries {
                    let key = self.eval(key, scope)?;
                    key.check_hashable()?;
                    let value = self.eval(value, scope)?;
                    dict.insert(key, value);
                }
                Value::Dict(Rc::new(dict))
            }
        })
    }

    fn eval_all(&mut self, exprs: &[Expr], scope: &Rc<Scope>) -> Result<Vec<Value>> {
        exprs.iter().map(|expr| self.eval(expr, scope)).collect()
    }

    fn call(&mut self, function: &Value, call: Call) -> Result<Value> {
        match function {
            Value::Undefined(words) => Err(Fault::undefined(words)),
            Value::Global(name) => global(name, &call),
            Value::Method(receiver, name) => match &**receiver {
                Value::Object(object) => {
                    if let Some(state) = object.as_any().downcast_ref::<Loop>() {
                        return loop_method(state, name, call);
                    }
                    let Some(cycler) = object.as_any().downcast_ref::<Cycler>() else {
                        return Err(Fault::types(format!("there is no method `{name}`")));
                    };
                    let at = cycler.at.get();
                    if &**name == "reset" {
                        cycler.at.set(0);
                        return Ok(Value::None);
                    }
                    cycler.at.set((at + 1) % cycler.items.len());
                    Ok(cycler.items[at].clone())
                }
                receiver => methods::call(receiver, name, &call),
            },
            Value::Object(object) => {
                let object = object.as_any();
                if let Some(closure) = object.downcast_ref::<Closure>() {
                    self.call_macro(closure, call)
                } else if let Some(state) = object.downcast_ref::<Loop>() {
                    if !state.node.recursive {
                        return Err(Fault::types(
                            "The loop must have the 'recursive' marker to be called recursively.",
                        ));
                    }
                    let [items] = call.bind("loop", ["iterable"])?;
                    let items = required("loop", "iterable", items)?;
                    let (node, scope) = (state.node.clone(), state.scope.clone());
                    let depth = state.depth + 1;
                    self.captured(|this| this.run_loop(&node, &items, &scope, depth))
                        .map(Value::from)
                } else if let Some(joiner) = object.downcast_ref::<Joiner>() {
                    Ok(if joiner.used.replace(true) {
                        joiner.separator.clone()
                    } else {
                        "".into()
                    })
                } else {
                    Err(Fault::types("'Cycler' object is not callable"))
                }
            }
            other => Err(Fault::types(format!(
                "'{}' object is not callable",
                other.type_name()
            ))),
        }
    }

    fn call_macro(&mut self, closure: &Closure, call: Call) -> Result<Value> {
        let node = &closure.node;
        let scope = Scope::inside(&closure.scope);
        let mut positional = call.positional.into_iter();
        let mut named = call.named;
        let mut take = |name: &str| {
            let at = named.iter().position(|(n, _)| **n == *name)?;
            Some(named.remove(at).1)
        };
        for (name, default) in &node.params {
            let value = match (positional.next().or_else(|| take(name)), default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.eval(default, &scope)?,
                (None, None) => Value::undefined(format!("parameter '{name}' was not provided")),
            };
            scope.set(name, value);
        }
        let caller = take("caller").unwrap_or_else(|| Value::undefined("No caller defined"));
        scope.set(&"caller".into(), caller);
        scope.set(&"varargs".into(), Value::tuple(positional.collect()));
        let rest = named.into_iter().map(|(k, v)| (Value::Str(k), v));
        scope.set(&"kwargs".into(), Value::dict(rest.collect()));
        let line = self.line;
        let text = self.captured(|this| this.whole(&node.body, &scope))?;
        self.line = line;
        Ok(text.into())
    }
}

/// Assigns to a name, to an attribute of a namespace, or item by item.
fn assign(target: &Target, value: Value, scope: &Rc<Scope>) -> Result<()> {
    match target {
        Target::Name(name) => scope.set(name, value),
        Target::Attribute(name, attribute) => {
            let Some(Value::Namespace(namespace)) = scope.get(name) else {
                return Err(Fault::types(
                    "cannot assign attribute on non-namespace object",
                ));
            };
            namespace
                .borrow_mut()
                .insert(Value::Str(attribute.clone()), value);
        }
        Target::Tuple(targets) => {
            let items = value.iterate()?;
            if items.len() != targets.len() {
                let problem = if items.len() > targets.len() {
                    "too many"
                } else {
                    "not enough"
                };
                return Err(Fault::types(format!(
                    "{problem} values to unpack (expected {}, got {})",
                    targets.len(),
                    items.len()
                )));
            }
            for (target, item) in targets.iter().zip(&*items) {
                assign(target, item.clone(), scope)?;
            }
        }
    }
    Ok(())
}

/// `value.name`, also of the evaluator's own objects.
fn attribute(value: &Value, name: &Rc<str>) -> Result<Value> {
    let Value::Object(object) = value else {
        return lookup::attribute(value, name);
    };
    let method = || Value::Method(Box::new(value.clone()), name.clone());
    let object = object.as_any();
    let found = if let Some(state) = object.downcast_ref::<Loop>() {
        match &**name {
            "cycle" | "changed" => Some(method()),
            _ => state.attribute(name),
        }
    } else if let Some(cycler) = object.downcast_ref::<Cycler>() {
        match &**name {
            "next" | "reset" => Some(method()),
            "current" => Some(cycler.items[cycler.at.get()].clone()),
            _ => None,
        }
    } else if let Some(closure) = object.downcast_ref::<Closure>() {
        match &**name {
            "name" => Some(Value::Str(closure.node.name.clone())),
            "arguments" => {
                let names = closure.node.params.iter();
                Some(Value::tuple(
                    names.map(|(n, _)| Value::Str(n.clone())).collect(),
                ))
            }
            _ => None,
        }
    } else {
        None
    };
    Ok(found.unwrap_or_else(|| Value::undefined(format!("there is no attribute '{name}'"))))
}

fn loop_method(state: &Loop, name: &str, call: Call) -> Result<Value> {
    let given = call.positional;
    if name == "changed" {
        let mut last = state.changed.borrow_mut();
        let is_same = last.as_ref().is_some_and(|last| {
            last.len() == given.len() && last.iter().zip(&given).all(|(a, b)| a.equals(b))
        });
        *last = Some(given);
        return Ok(Value::Bool(!is_same));
    }
    if given.is_empty() {
        return Err(Fault::types("no items for cycling given"));
    }
    Ok(given[state.index.get() % given.len()].clone())
}

fn global(name: &str, call: &Call) -> Result<Value> {
    match name {
        "range" => {
            let [first, second, step] = call.bind(name, ["start", "stop", "step"])?;
            let first = required(name, "stop", first)?;
            let first = int_or(name, Some(&first), 0)?;
            let (start, stop) = match &second {
                None => (0, first),
                second => (first, int_or(name, second.as_ref(), 0)?),
            };
            let step = int_or(name, step.as_ref(), 1)?;
            if step == 0 {
                return Err(Fault::types("range() arg 3 must not be zero"));
            }
            let len = if step > 0 {
                (stop - start + step - 1).div_euclid(step)
            } else {
                (start - stop - step - 1).div_euclid(-step)
            }
            .max(0);
            if len > MAX_RANGE {
                return Err(Fault::too_large(format!(
                    "the range has more than {MAX_RANGE} numbers"
                )));
            }
            let numbers = (0..len).map(|i| Value::Int(start + i * step));
            Ok(Value::Seq(
                SeqKind::Range(start, stop, step),
                Rc::new(numbers.collect()),
            ))
        }
        "namespace" | "dict" => {
            let mut dict = Dict::default();
            for given in &call.positional {
                match given {
                    Value::Dict(entries) => {
                        for (key, value) in &entries.entries {
                            dict.insert(key.clone(), value.clone());
                        }
                    }
                    pairs => {
                        for pair in &*pairs.iterate()? {
                            let pair = pair.iterate()?;
                            let [key, value] = &pair[..] else {
                                return Err(Fault::types("dict() needs pairs"));
                            };
                            dict.insert(key.clone(), value.clone());
                        }
                    }
                }
            }
            for (key, value) in &call.named {
                dict.insert(Value::Str(key.clone()), value.clone());
            }
            Ok(if name == "dict" {
                Value::Dict(Rc::new(dict))
            } else {
                Value::Namespace(Rc::new(RefCell::new(dict)))
            })
        }
        "cycler" => {
            if call.positional.is_empty() {
                return Err(Fault::types("at least one item has to be provided"));
            }
            Ok(Value::Object(Rc::new(Cycler {
                items: call.positional.clone(),
                at: Cell::new(0),
            })))
        }
        "joiner" => {
            let [separator] = call.bind(name, ["sep"])?;
            Ok(Value::Object(Rc::new(Joiner {
                separator: separator.unwrap_or_else(|| ", ".into()),
                used: Cell::new(false),
            })))
        }
        "raise_exception" => {
            let [message] = call.bind(name, ["message"])?;
            Err(Fault::raised(&*message.unwrap_or(Value::None).to_text()))
        }
        _ => {
            let [format] = call.bind(name, ["format"])?;
            let format = required(name, "format", format)?;
            let format = super::call::text(name, &format)?;
            Ok(date::formatted(format).into())
        }
    }
}
