//! Methods of Python's texts, dicts and lists.

use std::rc::Rc;

use super::{
    call::{Call, int_or, required, text},
    fault::{Fault, Result},
    ops::check_len,
    strings, text_format,
    value::{SeqKind, Value},
};

/// Calls a method.
///
/// # Errors
/// As Python; when the method would change its value, which the sandbox of `transformers` refuses; when it is not offered.
pub(super) fn call(receiver: &Value, name: &str, call: &Call) -> Result<Value> {
    match receiver {
        Value::Str(text) => str_method(text, name, call),
        Value::Dict(dict) => match name {
            "keys" | "values" | "items" | "copy" => {
                call.bind(name, [])?;
                let entries = dict.entries.iter();
                Ok(match name {
                    "keys" => Value::Seq(
                        SeqKind::Keys,
                        Rc::new(entries.map(|e| e.0.clone()).collect()),
                    ),
                    "values" => Value::Seq(
                        SeqKind::Values,
                        Rc::new(entries.map(|e| e.1.clone()).collect()),
                    ),
                    "items" => items(receiver)?,
                    _ => receiver.clone(),
                })
            }
            "get" => {
                let [key, default] = call.bind("get", ["key", "default"])?;
                let key = required("get", "key", key)?;
                let found = dict.get(&key).cloned();
                Ok(found.or(default).unwrap_or(Value::None))
            }
            _ => Err(unsafe_method(receiver, name)),
        },
        Value::Seq(_, items) => match name {
            "count" => {
                let [wanted] = call.bind("count", ["value"])?;
                let wanted = required("count", "value", wanted)?;
                Ok(items.iter().filter(|i| i.equals(&wanted)).count().into())
            }
            "index" => {
                let [wanted] = call.bind("index", ["value"])?;
                let wanted = required("index", "value", wanted)?;
                let found = items.iter().position(|i| i.equals(&wanted));
                found
                    .map(Value::from)
                    .ok_or_else(|| Fault::types(format!("{} is not in list", wanted.repr())))
            }
            "copy" => Ok(receiver.clone()),
            _ => Err(unsafe_method(receiver, name)),
        },
        Value::Float(x) if name == "is_integer" => Ok(Value::Bool(x.fract() == 0.0)),
        other => Err(Fault::not_offered(format!(
            "method `{name}` of `{}`",
            other.type_name()
        ))),
    }
}

fn unsafe_method(receiver: &Value, name: &str) -> Fault {
    Fault::types(format!(
        "access to attribute '{name}' of '{}' object is unsafe",
        receiver.type_name()
    ))
}

/// The pairs of a dict.
pub(super) fn items(value: &Value) -> Result<Value> {
    match value {
        Value::Dict(dict) => {
            let pairs = dict.entries.iter();
            let pairs = pairs.map(|(k, v)| Value::tuple(vec![k.clone(), v.clone()]));
            Ok(Value::Seq(SeqKind::Items, Rc::new(pairs.collect())))
        }
        Value::Undefined(_) => Ok(Value::list(Vec::new())),
        _ => Err(Fault::types("Can only get item pairs from a mapping.")),
    }
}

fn str_method(s: &str, name: &str, call: &Call) -> Result<Value> {
    let none = || call.bind(name, []).map(|[]: [Option<Value>; 0]| ());
    match name {
        "lower" | "upper" | "title" | "capitalize" | "swapcase" | "casefold" => {
            none()?;
            Ok(match name {
                "lower" => s.to_lowercase(),
                "upper" => s.to_uppercase(),
                "title" => strings::title(s),
                "capitalize" => strings::capitalize(s),
                "casefold" => strings::casefold(s),
                _ => strings::swapcase(s),
            }
            .into())
        }
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = call.bind(name, ["chars"])?;
            let chars = match &chars {
                None | Some(Value::None) => None,
                Some(chars) => Some(text(name, chars)?),
            };
            Ok(strings::strip(s, chars, name != "rstrip", name != "lstrip").into())
        }
        "split" | "rsplit" => {
            let [separator, limit] = call.bind(name, ["sep", "maxsplit"])?;
            let separator = match &separator {
                None | Some(Value::None) => None,
                Some(separator) => Some(text(name, separator)?),
            };
            if separator == Some("") {
                return Err(Fault::types("empty separator"));
            }
            let limit = usize::try_from(int_or(name, limit.as_ref(), -1)?).unwrap_or(usize::MAX);
            let parts = match (separator, name) {
                (Some(separator), "split") => s
                    .splitn(limit.saturating_add(1), separator)
                    .map(Value::from)
                    .collect(),
                (Some(separator), _) => {
                    let mut parts: Vec<Value> = s
                        .rsplitn(limit.saturating_add(1), separator)
                        .map(Value::from)
                        .collect();
                    parts.reverse();
                    parts
                }
                (None, "split") => strings::split_space(s, limit),
                (None, _) => strings::rsplit_space(s, limit),
            };
            Ok(Value::list(parts))
        }
        "splitlines" => {
            let [keep] = call.bind(name, ["keepends"])?;
            let keep = keep.is_some_and(|v| v.is_true());
            let lines = strings::lines(s)
                .into_iter()
                .map(|(line, end)| Value::from(if keep { &s[line.start..end] } else { &s[line] }));
            Ok(Value::list(lines.collect()))
        }
        "partition" | "rpartition" => {
            let [separator] = call.bind(name, ["sep"])?;
            let separator = required(name, "sep", separator)?;
            let separator = text(name, &separator)?;
            if separator.is_empty() {
                return Err(Fault::types("empty separator"));
            }
            let parts = match name {
                "partition" => s.split_once(separator).map(|(a, b)| [a, separator, b]),
                _ => s.rsplit_once(separator).map(|(a, b)| [a, separator, b]),
            };
            let parts = parts.unwrap_or(if name == "partition" {
                [s, "", ""]
            } else {
                ["", "", s]
            });
            Ok(Value::tuple(parts.map(Value::from).to_vec()))
        }
        "startswith" | "endswith" => {
            let [affix, start, end] = call.bind(name, ["prefix", "start", "end"])?;
            let affix = required(name, "prefix", affix)?;
            let part = strings::sub(
                s,
                int_or(name, start.as_ref(), 0)?,
                int_or(name, end.as_ref(), i128::MAX)?,
            );
            let fits = |affix: &Value| -> Result<bool> {
                let affix = text(name, affix)?;
                Ok(if name == "startswith" {
                    part.starts_with(affix)
                } else {
                    part.ends_with(affix)
                })
            };
            let found = match &affix {
                Value::Seq(SeqKind::Tuple, affixes) => {
                    let mut found = false;
                    for affix in &**affixes {
                        found |= fits(affix)?;
                    }
                    found
                }
                one => fits(one)?,
            };
            Ok(Value::Bool(found))
        }
        "removeprefix" | "removesuffix" => {
            let [affix] = call.bind(name, ["affix"])?;
            let affix = required(name, "affix", affix)?;
            let affix = text(name, &affix)?;
            let kept = match name {
                "removeprefix" => s.strip_prefix(affix),
                _ => s.strip_suffix(affix),
            };
            Ok(kept.unwrap_or(s).into())
        }
        "replace" => {
            let [old, new, count] = call.bind(name, ["old", "new", "count"])?;
            let (old, new) = (required(name, "old", old)?, required(name, "new", new)?);
            let count = int_or(name, count.as_ref(), -1)?;
            strings::replace(s, text(name, &old)?, text(name, &new)?, count)
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let [wanted, start, end] = call.bind(name, ["sub", "start", "end"])?;
            let wanted = required(name, "sub", wanted)?;
            let wanted = text(name, &wanted)?;
            let start = int_or(name, start.as_ref(), 0)?;
            let part = strings::sub(s, start, int_or(name, end.as_ref(), i128::MAX)?);
            if name == "count" {
                let n = if wanted.is_empty() {
                    part.chars().count() + 1
                } else {
                    part.matches(wanted).count()
                };
                return Ok(n.into());
            }
            let found = match name {
                "find" | "index" => part.find(wanted),
                _ => part.rfind(wanted),
            };
            // Positions count characters from the beginning of the whole text.
            let len = s.chars().count() as i128;
            let start = if start < 0 {
                (start + len).max(0)
            } else {
                start
            };
            match found {
                Some(at) => Ok(Value::Int(start + part[..at].chars().count() as i128)),
                None if name.ends_with("index") => Err(Fault::types("substring not found")),
                None => Ok(Value::Int(-1)),
            }
        }
        "join" => {
            let [parts] = call.bind(name, ["iterable"])?;
            let parts = required(name, "iterable", parts)?.iterate()?;
            let mut texts = Vec::with_capacity(parts.len());
            for (i, part) in parts.iter().enumerate() {
                texts.push(part.as_str().ok_or_else(|| {
                    Fault::types(format!(
                        "sequence item {i}: expected str instance, {} found",
                        part.type_name()
                    ))
                })?);
            }
            let total: usize = texts.iter().map(|t| t.len() + s.len()).sum();
            check_len(total)?;
            Ok(texts.join(s).into())
        }
        "center" | "ljust" | "rjust" | "zfill" => {
            let [width, fill] = call.bind(name, ["width", "fillchar"])?;
            let width = int_or(name, required(name, "width", width).as_ref().ok(), 0)?;
            let fill = match &fill {
                None => " ",
                Some(fill) => text(name, fill)?,
            };
            let mut chars = fill.chars();
            let (Some(fill), None) = (chars.next(), chars.next()) else {
                return Err(Fault::types(
                    "The fill character must be exactly one character long",
                ));
            };
            let width = usize::try_from(width).unwrap_or(0);
            check_len(width)?;
            Ok(strings::justify(s, name, width, fill).into())
        }
        "expandtabs" => {
            let [size] = call.bind(name, ["tabsize"])?;
            let size = int_or(name, size.as_ref(), 8)?.clamp(0, 1000);
            Ok(strings::expand_tabs(s, size as usize).into())
        }
        "format" => Ok(text_format::format(s, call)?.into()),
        "format_map" => {
            let [mapping] = call.bind(name, ["mapping"])?;
            let Value::Dict(dict) = required(name, "mapping", mapping)? else {
                return Err(Fault::types("format_map() needs a mapping"));
            };
            let named = dict.entries.iter();
            let named = named.filter_map(|(k, v)| Some((k.as_str()?.into(), v.clone())));
            let call = Call {
                positional: Vec::new(),
                named: named.collect(),
            };
            Ok(text_format::format(s, &call)?.into())
        }
        _ if name.starts_with("is") => {
            none()?;
            strings::is_kind(s, name)
                .map(Value::Bool)
                .ok_or_else(|| Fault::not_offered(format!("method `{name}` of `str`")))
        }
        _ => Err(Fault::not_offered(format!("method `{name}` of `str`"))),
    }
}
