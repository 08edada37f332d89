//! Python's operators.

use std::rc::Rc;

use super::{
    ast::{BinaryOp, CompareOp},
    fault::{Fault, Result},
    text_format,
    value::{SeqKind, Value},
};

/// The longest text or list that an operation may make.
pub(super) const MAX_LEN: usize = 1 << 24;

pub(super) fn binary(op: BinaryOp, left: &Value, right: &Value) -> Result<Value> {
    for value in [left, right] {
        if let Value::Undefined(words) = value
            && !(op == BinaryOp::Mod && left.as_str().is_some())
        {
            return Err(Fault::undefined(words));
        }
    }
    if let (Some(a), Some(b)) = (left.as_int(), right.as_int()) {
        return integers(op, a, b);
    }
    if let (Some(a), Some(b)) = (left.as_float(), right.as_float()) {
        return floats(op, a, b);
    }
    match (op, left, right) {
        (BinaryOp::Add, Value::Str(a), Value::Str(b)) => {
            check_len(a.len() + b.len())?;
            Ok(format!("{a}{b}").into())
        }
        (BinaryOp::Add, Value::Str(_), other) => Err(Fault::types(format!(
            "can only concatenate str (not \"{}\") to str",
            other.type_name()
        ))),
        (
            BinaryOp::Add,
            Value::Seq(ka @ (SeqKind::List | SeqKind::Tuple), a),
            Value::Seq(kb, b),
        ) if ka == kb => {
            check_len(a.len() + b.len())?;
            let joined = a.iter().chain(&**b).cloned().collect();
            Ok(Value::Seq(*ka, Rc::new(joined)))
        }
        (BinaryOp::Mul, Value::Str(_) | Value::Seq(..), n) if n.as_int().is_some() => {
            repeat(left, n.as_int().unwrap_or(0))
        }
        (BinaryOp::Mul, n, Value::Str(_) | Value::Seq(..)) if n.as_int().is_some() => {
            repeat(right, n.as_int().unwrap_or(0))
        }
        (BinaryOp::Mod, Value::Str(format), values) => {
            Ok(text_format::percent(format, values)?.into())
        }
        _ => Err(Fault::types(format!(
            "unsupported operand type(s) for {}: '{}' and '{}'",
            symbol(op),
            left.type_name(),
            right.type_name()
        ))),
    }
}

const fn symbol(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::Add => "+",
        BinaryOp::Sub => "-",
        BinaryOp::Mul => "*",
        BinaryOp::Div => "/",
        BinaryOp::FloorDiv => "//",
        BinaryOp::Mod => "%",
        BinaryOp::Pow => "** or pow()",
    }
}

/// Refuses a text or list that is too long.
pub(super) fn check_len(len: usize) -> Result<()> {
    if len > MAX_LEN {
        return Err(Fault::too_large("the template makes too long a text"));
    }
    Ok(())
}

fn repeat(value: &Value, times: i128) -> Result<Value> {
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    match value {
        Value::Str(text) => {
            check_len(text.len().saturating_mul(times))?;
            Ok(text.repeat(times).into())
        }
        Value::Seq(kind @ (SeqKind::List | SeqKind::Tuple), items) => {
            check_len(items.len().saturating_mul(times))?;
            let repeated = (0..times).flat_map(|_| items.iter().cloned()).collect();
            Ok(Value::Seq(*kind, Rc::new(repeated)))
        }
        other => Err(Fault::types(format!(
            "unsupported operand type(s) for *: '{}' and 'int'",
            other.type_name()
        ))),
    }
}

fn integers(op: BinaryOp, a: i128, b: i128) -> Result<Value> {
    let zero = || Fault::types("division by zero");
    let result = match op {
        BinaryOp::Add => a.checked_add(b),
        BinaryOp::Sub => a.checked_sub(b),
        BinaryOp::Mul => a.checked_mul(b),
        BinaryOp::Div => {
            if b == 0 {
                return Err(zero());
            }
            return Ok(Value::Float(a as f64 / b as f64));
        }
        BinaryOp::FloorDiv | BinaryOp::Mod if b == 0 => return Err(zero()),
        BinaryOp::FloorDiv => a
            .checked_rem(b)
            .map(|rest| a / b - i128::from(rest != 0 && (rest < 0) != (b < 0))),
        BinaryOp::Mod => a.checked_rem(b).map(|rest| {
            if rest != 0 && (rest < 0) != (b < 0) {
                rest + b
            } else {
                rest
            }
        }),
        BinaryOp::Pow if b < 0 => {
            if a == 0 {
                return Err(zero());
            }
            return Ok(Value::Float((a as f64).powf(b as f64)));
        }
        BinaryOp::Pow => u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
    };
    result
        .map(Value::Int)
        .ok_or_else(|| Fault::too_large("a number has more than 127 bits"))
}

fn floats(op: BinaryOp, a: f64, b: f64) -> Result<Value> {
    if b == 0.0 && matches!(op, BinaryOp::Div | BinaryOp::FloorDiv | BinaryOp::Mod) {
        return Err(Fault::types("division by zero"));
    }
    Ok(Value::Float(match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::FloorDiv => {
            // As CPython: from the exact remainder.
            let rest = a % b;
            let quotient = (a - rest) / b;
            let quotient = if rest != 0.0 && (rest < 0.0) != (b < 0.0) {
                quotient - 1.0
            } else {
                quotient
            };
            let floor = quotient.floor();
            if quotient - floor > 0.5 {
                floor + 1.0
            } else {
                floor
            }
        }
        BinaryOp::Mod => {
            let rest = a % b;
            if rest != 0.0 && (rest < 0.0) != (b < 0.0) {
                rest + b
            } else if rest == 0.0 {
                0.0_f64.copysign(b)
            } else {
                rest
            }
        }
        BinaryOp::Pow => a.powf(b),
    }))
}

pub(super) fn negate(value: &Value) -> Result<Value> {
    match value {
        Value::Undefined(words) => Err(Fault::undefined(words)),
        Value::Float(x) => Ok(Value::Float(-x)),
        other => other.as_int().map(|n| Value::Int(-n)).ok_or_else(|| {
            Fault::types(format!(
                "bad operand type for unary -: '{}'",
                other.type_name()
            ))
        }),
    }
}

pub(super) fn compare(op: CompareOp, left: &Value, right: &Value) -> Result<bool> {
    Ok(match op {
        CompareOp::Eq => left.equals(right),
        CompareOp::Ne => !left.equals(right),
        CompareOp::In => contains(right, left)?,
        CompareOp::NotIn => !contains(right, left)?,
        CompareOp::Lt | CompareOp::Le | CompareOp::Gt | CompareOp::Ge => {
            let is_nan = |v: &Value| v.as_float().is_some_and(f64::is_nan);
            let (symbol, holds): (_, fn(std::cmp::Ordering) -> bool) = match op {
                CompareOp::Lt => ("<", std::cmp::Ordering::is_lt),
                CompareOp::Le => ("<=", std::cmp::Ordering::is_le),
                CompareOp::Gt => (">", std::cmp::Ordering::is_gt),
                _ => (">=", std::cmp::Ordering::is_ge),
            };
            let order = left.compare(right, symbol)?;
            !is_nan(left) && !is_nan(right) && holds(order)
        }
    })
}

/// `item in container`.
fn contains(container: &Value, item: &Value) -> Result<bool> {
    match (container, item) {
        (Value::Str(text), Value::Str(part)) => Ok(text.contains(&**part)),
        (Value::Str(_), Value::Undefined(_)) => Err(Fault::types(
            "'in <string>' requires string as left operand, not Undefined",
        )),
        (Value::Str(_), other) => Err(Fault::types(format!(
            "'in <string>' requires string as left operand, not {}",
            other.type_name()
        ))),
        (Value::Dict(dict), key) => {
            key.check_hashable()?;
            Ok(dict.get(key).is_some())
        }
        (Value::Seq(_, items), item) => Ok(items.iter().any(|i| i.equals(item))),
        (Value::Undefined(_), _) => Ok(false),
        (other, _) => Err(Fault::types(format!(
            "argument of type '{}' is not a container or iterable",
            other.type_name()
        ))),
    }
}
