//! `loop`, macros, cyclers and joiners.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    rc::Rc,
};

use super::{ast, value::Object, value::Value};

/// Variables, and the scope around them.
#[derive(Debug, Default)]
pub(super) struct Scope {
    vars: RefCell<Vec<(Rc<str>, Value)>>,
    parent: Option<Rc<Scope>>,
}

impl Scope {
    pub(super) fn inside(parent: &Rc<Self>) -> Rc<Self> {
        Rc::new(Self {
            vars: RefCell::default(),
            parent: Some(parent.clone()),
        })
    }

    pub(super) fn get(&self, name: &str) -> Option<Value> {
        let mut scope = Some(self);
        while let Some(here) = scope {
            let vars = here.vars.borrow();
            if let Some((_, value)) = vars.iter().find(|(n, _)| **n == *name) {
                return Some(value.clone());
            }
            scope = here.parent.as_deref();
        }
        None
    }

    pub(super) fn set(&self, name: &Rc<str>, value: Value) {
        let mut vars = self.vars.borrow_mut();
        match vars.iter_mut().find(|(n, _)| n == name) {
            Some(var) => var.1 = value,
            None => vars.push((name.clone(), value)),
        }
    }
}

/// A macro, with the scope in which it was defined.
#[derive(Debug)]
pub(super) struct Closure {
    pub(super) node: Rc<ast::Macro>,
    pub(super) scope: Rc<Scope>,
}

/// `loop`
#[derive(Debug)]
pub(super) struct Loop {
    pub(super) items: Rc<Vec<Value>>,
    pub(super) index: Cell<usize>,
    pub(super) depth: usize,
    pub(super) changed: RefCell<Option<Vec<Value>>>,
    /// The loop itself, which `loop(...)` runs again.
    pub(super) node: Rc<ast::For>,
    pub(super) scope: Rc<Scope>,
}

impl Loop {
    pub(super) fn attribute(&self, name: &str) -> Option<Value> {
        let (i, len) = (self.index.get(), self.items.len());
        let neighbour = |at: Option<usize>, word: &str| {
            let found = at.and_then(|at| self.items.get(at)).cloned();
            found.unwrap_or_else(|| Value::undefined(format!("there is no {word} item")))
        };
        Some(match name {
            "index" => (i + 1).into(),
            "index0" => i.into(),
            "revindex" => (len - i).into(),
            "revindex0" => (len - i - 1).into(),
            "first" => (i == 0).into(),
            "last" => (i + 1 == len).into(),
            "length" => len.into(),
            "depth" => (self.depth + 1).into(),
            "depth0" => self.depth.into(),
            "previtem" => neighbour(i.checked_sub(1), "previous"),
            "nextitem" => neighbour(Some(i + 1), "next"),
            _ => return None,
        })
    }
}

/// `cycler(...)`
#[derive(Debug)]
pub(super) struct Cycler {
    pub(super) items: Vec<Value>,
    pub(super) at: Cell<usize>,
}

/// `joiner(separator)`
#[derive(Debug)]
pub(super) struct Joiner {
    pub(super) separator: Value,
    pub(super) used: Cell<bool>,
}

macro_rules! objects {
    ($($name:ty),*) => {
        $(impl Object for $name {
            fn as_any(&self) -> &dyn Any {
                self
            }
        })*
    };
}

objects!(Closure, Loop, Cycler, Joiner);
