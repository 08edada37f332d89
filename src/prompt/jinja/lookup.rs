//! Attributes, items and slices, as Jinja looks them up in Python's values.

use std::rc::Rc;

use super::{
    fault::{Fault, Result},
    value::{SeqKind, Value},
};

/// Methods of texts.
const STR_METHODS: [&str; 46] = [
    "capitalize",
    "casefold",
    "center",
    "count",
    "encode",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "maketrans",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "translate",
    "upper",
];

/// Methods of dicts; those that change it are refused when they are called.
const DICT_METHODS: [&str; 10] = [
    "clear",
    "copy",
    "get",
    "items",
    "keys",
    "pop",
    "popitem",
    "setdefault",
    "update",
    "values",
];

/// Methods of lists; those that change it are refused when they are called.
const LIST_METHODS: [&str; 10] = [
    "append", "clear", "copy", "count", "extend", "index", "insert", "pop", "remove", "reverse",
];

/// Whether Python's type of `value` has the method `name`.
fn has_method(value: &Value, name: &str) -> bool {
    match value {
        Value::Str(_) => STR_METHODS.contains(&name) || name == "zfill",
        Value::Dict(_) => DICT_METHODS.contains(&name),
        Value::Seq(SeqKind::List, _) => LIST_METHODS.contains(&name) || name == "sort",
        Value::Seq(SeqKind::Tuple | SeqKind::Range(..), _) => matches!(name, "count" | "index"),
        Value::Float(_) => name == "is_integer",
        _ => false,
    }
}

/// `value.name`: a method before an entry.
pub(super) fn attribute(value: &Value, name: &Rc<str>) -> Result<Value> {
    match value {
        Value::Undefined(words) => Err(Fault::undefined(words)),
        Value::Namespace(dict) => Ok(dict
            .borrow()
            .get_str(name)
            .cloned()
            .unwrap_or_else(|| missing(value, name))),
        Value::Seq(SeqKind::Tuple, items) if items.len() == 2 && &**name == "grouper" => {
            Ok(items[0].clone())
        }
        Value::Seq(SeqKind::Tuple, items) if items.len() == 2 && &**name == "list" => {
            Ok(items[1].clone())
        }
        _ if has_method(value, name) => Ok(Value::Method(Box::new(value.clone()), name.clone())),
        Value::Dict(dict) => Ok(dict
            .get_str(name)
            .cloned()
            .unwrap_or_else(|| missing(value, name))),
        _ => Ok(missing(value, name)),
    }
}

fn missing(value: &Value, name: &str) -> Value {
    Value::undefined(format!(
        "'{} object' has no attribute '{name}'",
        value.type_name()
    ))
}

/// `value[key]`: an entry before a method.
pub(super) fn item(value: &Value, key: &Value) -> Result<Value> {
    let found = match value {
        Value::Undefined(words) => return Err(Fault::undefined(words)),
        Value::Dict(dict) => dict.get(key).cloned(),
        Value::Seq(SeqKind::List | SeqKind::Tuple | SeqKind::Range(..), items) => key
            .as_int()
            .and_then(|i| index(i, items.len()))
            .map(|i| items[i].clone()),
        Value::Str(text) => key.as_int().and_then(|i| {
            let at = index(i, text.chars().count())?;
            text.chars().nth(at).map(|c| c.to_string().into())
        }),
        _ => None,
    };
    match (found, key) {
        (Some(found), _) => Ok(found),
        (None, Value::Str(name)) => attribute(value, name),
        (None, key) => Ok(Value::undefined(format!(
            "{} object has no element {}",
            value.type_name(),
            key.repr()
        ))),
    }
}

fn index(i: i128, len: usize) -> Option<usize> {
    let at = if i < 0 { i + len as i128 } else { i };
    usize::try_from(at).ok().filter(|at| *at < len)
}

/// `value[start:stop:step]`.
pub(super) fn slice(value: &Value, parts: &[Option<Value>; 3]) -> Result<Value> {
    let mut bounds = [None; 3];
    for (bound, part) in bounds.iter_mut().zip(parts) {
        *bound = match part {
            None | Some(Value::None) => None,
            Some(Value::Undefined(words)) => return Err(Fault::undefined(words)),
            Some(part) => Some(part.as_int().ok_or_else(|| {
                Fault::types("slice indices must be integers or None or have an __index__ method")
            })?),
        };
    }
    let [start, stop, step] = bounds;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(Fault::types("slice step cannot be zero"));
    }
    let selected = |len: usize| -> Vec<usize> {
        let len = len as i128;
        let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
        let clamp = |bound: Option<i128>, default: i128| {
            bound.map_or(default, |b| {
                (if b < 0 { b + len } else { b }).clamp(low, high)
            })
        };
        let (mut at, end) = if step > 0 {
            (clamp(start, 0), clamp(stop, len))
        } else {
            (clamp(start, len - 1), clamp(stop, -1))
        };
        let mut indices = Vec::new();
        while (step > 0 && at < end) || (step < 0 && at > end) {
            indices.push(at as usize);
            at = at.saturating_add(step);
        }
        indices
    };
    match value {
        Value::Str(text) => {
            let chars: Vec<char> = text.chars().collect();
            let kept: String = selected(chars.len())
                .into_iter()
                .map(|i| chars[i])
                .collect();
            Ok(kept.into())
        }
        Value::Seq(kind @ (SeqKind::List | SeqKind::Tuple | SeqKind::Range(..)), items) => {
            let kept = selected(items.len());
            let kind = match (kind, &kept[..]) {
                (SeqKind::Range(start, _, gap), [first, .., last]) => {
                    let gap = gap * step;
                    let number = |i: &usize| items[*i].as_int().unwrap_or(*start);
                    SeqKind::Range(number(first), number(last) + gap, gap)
                }
                (SeqKind::Range(..), _) => SeqKind::List,
                (kind, _) => *kind,
            };
            let kept = kept.into_iter().map(|i| items[i].clone()).collect();
            Ok(Value::Seq(kind, Rc::new(kept)))
        }
        Value::Undefined(words) => Err(Fault::undefined(words)),
        other => Err(Fault::types(format!(
            "'{}' object is not subscriptable",
            other.type_name()
        ))),
    }
}
