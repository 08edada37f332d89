//! Jinja's tests: what stands behind `is`.

use std::rc::Rc;

use super::{
    ast::{BinaryOp, CompareOp},
    call::{Call, required},
    fault::{Fault, Result},
    ops,
    value::{SeqKind, Value},
};

/// The tests, without `filter` and `test`, which look up names.
const NAMES: [&str; 37] = [
    "!=",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "boolean",
    "callable",
    "defined",
    "divisibleby",
    "eq",
    "equalto",
    "escaped",
    "even",
    "false",
    "float",
    "ge",
    "greaterthan",
    "gt",
    "in",
    "integer",
    "iterable",
    "le",
    "lessthan",
    "lower",
    "lt",
    "mapping",
    "ne",
    "none",
    "number",
    "odd",
    "sameas",
    "sequence",
    "string",
    "true",
    "undefined",
    "upper",
];

pub(super) fn is_known(name: &str) -> bool {
    NAMES.contains(&name)
}

/// Whether `value is name(...)`.
pub(super) fn holds(value: &Value, name: &str, call: &Call) -> Result<bool> {
    let comparison = match name {
        "eq" | "equalto" | "==" => Some(CompareOp::Eq),
        "ne" | "!=" => Some(CompareOp::Ne),
        "lt" | "lessthan" | "<" => Some(CompareOp::Lt),
        "le" | "<=" => Some(CompareOp::Le),
        "gt" | "greaterthan" | ">" => Some(CompareOp::Gt),
        "ge" | ">=" => Some(CompareOp::Ge),
        "in" => Some(CompareOp::In),
        _ => None,
    };
    if comparison.is_some() || matches!(name, "divisibleby" | "sameas") {
        let [other] = call.bind(name, ["other"])?;
        let other = required(name, "other", other)?;
        return match comparison {
            Some(op) => ops::compare(op, value, &other),
            None if name == "sameas" => Ok(is_same(value, &other)),
            None => {
                let rest = ops::binary(BinaryOp::Mod, value, &other)?;
                Ok(rest.equals(&Value::Int(0)))
            }
        };
    }
    call.bind(name, []).map(|[]: [Option<Value>; 0]| ())?;
    let remainder = || ops::binary(BinaryOp::Mod, value, &Value::Int(2));
    Ok(match name {
        "defined" => !value.is_undefined(),
        "undefined" => value.is_undefined(),
        "none" => matches!(value, Value::None),
        "true" => matches!(value, Value::Bool(true)),
        "false" => matches!(value, Value::Bool(false)),
        "boolean" => matches!(value, Value::Bool(_)),
        "integer" => matches!(value, Value::Int(_)),
        "float" => matches!(value, Value::Float(_)),
        "number" => value.as_float().is_some(),
        "string" => matches!(value, Value::Str(_)),
        "mapping" => matches!(value, Value::Dict(_)),
        "sequence" => matches!(
            value,
            Value::Str(_)
                | Value::Dict(_)
                | Value::Undefined(_)
                | Value::Seq(SeqKind::List | SeqKind::Tuple | SeqKind::Range(..), _)
        ),
        "iterable" => value.iterate().is_ok(),
        "callable" => matches!(
            value,
            // An undefined value has a call, which fails.
            Value::Undefined(_) | Value::Global(_) | Value::Method(..) | Value::Object(_)
        ),
        "even" => remainder()?.equals(&Value::Int(0)),
        "odd" => remainder()?.equals(&Value::Int(1)),
        "lower" => super::strings::is_kind(&value.to_text(), "islower").unwrap_or(false),
        "upper" => super::strings::is_kind(&value.to_text(), "isupper").unwrap_or(false),
        "escaped" => false,
        _ => return Err(Fault::syntax(0, format!("No test named '{name}'."))),
    })
}

/// Python's `is`, as far as a template can rely on it.
fn is_same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Seq(_, a), Value::Seq(_, b)) => Rc::ptr_eq(a, b),
        (Value::Dict(a), Value::Dict(b)) => Rc::ptr_eq(a, b),
        _ => a.type_name() == b.type_name() && a.equals(b),
    }
}
