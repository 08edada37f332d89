//! Jinja's filters.

use std::{cmp::Ordering, rc::Rc};

use super::{
    ast::BinaryOp,
    call::{Call, int_or, required, text},
    checks,
    fault::{Fault, Result},
    json, lookup, methods, ops, strings, text_format,
    value::{SeqKind, Value, is_space},
};

/// The filters of this file.
const NAMES: [&str; 50] = [
    "abs",
    "attr",
    "batch",
    "capitalize",
    "center",
    "count",
    "d",
    "default",
    "dictsort",
    "e",
    "escape",
    "first",
    "float",
    "forceescape",
    "format",
    "groupby",
    "indent",
    "int",
    "items",
    "join",
    "last",
    "length",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "slice",
    "sort",
    "string",
    "sum",
    "title",
    "tojson",
    "trim",
    "truncate",
    "unique",
    "upper",
    "urlencode",
    "wordcount",
    "filesizeformat",
    "pprint",
    "striptags",
];

/// Filters of Jinja that are not offered.
const NOT_OFFERED: [&str; 4] = ["random", "urlize", "wordwrap", "xmlattr"];

pub(super) fn is_known(name: &str) -> bool {
    NAMES.contains(&name)
}

/// Applies a filter.
pub(super) fn apply(name: &str, value: &Value, call: &Call) -> Result<Value> {
    match name {
        "tojson" => json::to_json(value, call),
        "safe" | "string" | "e" | "escape" | "forceescape" | "upper" | "lower" | "capitalize"
        | "title" | "wordcount" | "trim" | "center" | "replace" | "indent" | "truncate"
        | "format" | "urlencode" | "striptags" => of_text(name, value, call),
        "abs" | "int" | "float" | "round" | "filesizeformat" => of_number(name, value, call),
        "default" | "d" => {
            let [default, boolean] = call.bind("default", ["default_value", "boolean"])?;
            let is_missing =
                value.is_undefined() || boolean.is_some_and(|v| v.is_true()) && !value.is_true();
            Ok(if is_missing {
                default.unwrap_or_else(|| "".into())
            } else {
                value.clone()
            })
        }
        "attr" => {
            let [name] = call.bind("attr", ["name"])?;
            let name = required("attr", "name", name)?.to_text();
            match value {
                // Only attributes, not entries.
                Value::Dict(_) => Ok(Value::undefined(format!(
                    "'dict object' has no attribute '{name}'"
                ))),
                other => lookup::attribute(other, &name),
            }
        }
        "length" | "count" => Ok(length_of(value)?.into()),
        "list" => {
            no_arguments(name, call)?;
            Ok(Value::Seq(SeqKind::List, value.iterate()?))
        }
        "items" => methods::items(value),
        "first" => Ok(value.iterate()?.first().cloned().unwrap_or_else(empty)),
        "last" => Ok(value.iterate()?.last().cloned().unwrap_or_else(empty)),
        "reverse" => match value {
            Value::Str(text) => Ok(text.chars().rev().collect::<String>().into()),
            other => Ok(Value::list(
                other.iterate()?.iter().rev().cloned().collect(),
            )),
        },
        // Python's `pprint` sorts keys, and breaks lines of more than 80 characters.
        "pprint" => {
            let text = value.repr();
            let is_nested = !matches!(value, Value::Str(_)) && text.contains('{');
            if is_nested || text.chars().count() > 80 {
                return Err(Fault::not_offered("`pprint` of mappings and long values"));
            }
            Ok(text.into())
        }
        "join" | "sum" | "min" | "max" | "batch" | "slice" => of_sequence(name, value, call),
        "sort" | "unique" | "groupby" | "dictsort" => ordered(name, value, call),
        "map" => map(value, call),
        "select" | "reject" | "selectattr" | "rejectattr" => select(name, value, call),
        _ if NOT_OFFERED.contains(&name) => Err(Fault::not_offered(format!("filter `{name}`"))),
        _ => Err(Fault::syntax(0, format!("No filter named '{name}'."))),
    }
}

fn no_arguments(name: &str, call: &Call) -> Result<()> {
    call.bind(name, []).map(|[]: [Option<Value>; 0]| ())
}

fn empty() -> Value {
    Value::undefined("No item, the sequence was empty.")
}

fn length_of(value: &Value) -> Result<usize> {
    Ok(match value {
        Value::Undefined(_) => 0,
        Value::Str(text) => text.chars().count(),
        Value::Seq(_, items) => items.len(),
        Value::Dict(dict) => dict.entries.len(),
        other => {
            return Err(Fault::types(format!(
                "object of type '{}' has no len()",
                other.type_name()
            )));
        }
    })
}

fn of_text(name: &str, value: &Value, call: &Call) -> Result<Value> {
    let s = value.to_text();
    match name {
        "trim" => {
            let [chars] = call.bind(name, ["chars"])?;
            let chars = match &chars {
                None | Some(Value::None) => None,
                Some(chars) => Some(text(name, chars)?),
            };
            return Ok(strings::strip(&s, chars, true, true).into());
        }
        "center" => {
            let [width] = call.bind(name, ["width"])?;
            let width = usize::try_from(int_or(name, width.as_ref(), 80)?).unwrap_or(0);
            ops::check_len(width)?;
            return Ok(strings::justify(&s, "center", width, ' ').into());
        }
        "replace" => {
            let [old, new, count] = call.bind(name, ["old", "new", "count"])?;
            let (old, new) = (required(name, "old", old)?, required(name, "new", new)?);
            let count = match &count {
                Some(Value::None) => None,
                other => other.as_ref(),
            };
            let count = int_or(name, count, -1)?;
            return strings::replace(&s, &old.to_text(), &new.to_text(), count);
        }
        "format" => {
            if !call.named.is_empty() && !call.positional.is_empty() {
                return Err(Fault::types(
                    "can't handle positional and keyword arguments at the same time",
                ));
            }
            let values = if call.named.is_empty() {
                Value::tuple(call.positional.clone())
            } else {
                let named = call.named.iter();
                Value::dict(
                    named
                        .map(|(k, v)| (Value::Str(k.clone()), v.clone()))
                        .collect(),
                )
            };
            return Ok(text_format::percent(&s, &values)?.into());
        }
        // A short list is returned as it is.
        "truncate" if matches!(value, Value::Undefined(_) | Value::Seq(..) | Value::Dict(_)) => {
            let [length, _, _, leeway] =
                call.bind(name, ["length", "killwords", "end", "leeway"])?;
            let longest = int_or(name, length.as_ref(), 255)? + int_or(name, leeway.as_ref(), 5)?;
            if length_of(value)? as i128 > longest {
                return Err(Fault::types("truncate shortens texts alone"));
            }
            return Ok(value.clone());
        }
        "indent" | "truncate" if value.as_str().is_none() => {
            return Err(Fault::types(format!(
                "object of type '{}' has no len()",
                value.type_name()
            )));
        }
        "indent" => return indent(&s, call),
        "truncate" => return truncate(&s, call),
        _ => no_arguments(name, call)?,
    }
    Ok(match name {
        "upper" => s.to_uppercase().into(),
        "lower" => s.to_lowercase().into(),
        "capitalize" => strings::capitalize(&s).into(),
        "title" => title(&s).into(),
        "e" | "escape" | "forceescape" => escape(&s).into(),
        "urlencode" => url_encode(value)?.into(),
        "striptags" => strip_tags(&s).into(),
        "wordcount" => s
            .split(|c: char| !(c.is_alphanumeric() || c == '_'))
            .filter(|word| !word.is_empty())
            .count()
            .into(),
        _ => Value::Str(s),
    })
}

/// Words in title case; a word begins behind white space and behind `-({[<`.
fn title(text: &str) -> String {
    let is_break = |c: char| is_space(c) || "-({[<".contains(c);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let breaks = rest.find(|c| !is_break(c)).unwrap_or(rest.len());
        out.push_str(&rest[..breaks]);
        rest = &rest[breaks..];
        let end = rest.find(is_break).unwrap_or(rest.len());
        let mut chars = rest[..end].chars();
        if let Some(first) = chars.next() {
            out.extend(first.to_uppercase());
            out.push_str(&chars.as_str().to_lowercase());
        }
        rest = &rest[end..];
    }
    out
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// A text without tags and with single spaces.
fn strip_tags(text: &str) -> String {
    let mut kept = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        let Some(end) = rest[start..].find('>') else {
            break;
        };
        kept.push_str(&rest[..start]);
        rest = &rest[start + end + 1..];
    }
    kept.push_str(rest);
    let words: Vec<&str> = kept.split(is_space).filter(|w| !w.is_empty()).collect();
    let joined = words.join(" ");
    [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&#34;", "\""),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&amp;", "&"),
    ]
    .into_iter()
    .fold(joined, |text, (entity, c)| text.replace(entity, c))
}

fn url_quote(text: &str, safe: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric()
            || b"_.-~".contains(&byte)
            || safe.as_bytes().contains(&byte)
        {
            out.push(byte as char);
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn url_encode(value: &Value) -> Result<String> {
    let pairs = match value {
        Value::Dict(_) => methods::items(value)?,
        Value::Seq(..) => value.clone(),
        other => return Ok(url_quote(&other.to_text(), "/")),
    };
    let mut parts = Vec::new();
    for pair in &*pairs.iterate()? {
        let pair = pair.iterate()?;
        let [key, value] = &pair[..] else {
            return Err(Fault::types("urlencode needs pairs"));
        };
        let quoted = |v: &Value| url_quote(&v.to_text(), "").replace("%20", "+");
        parts.push(format!("{}={}", quoted(key), quoted(value)));
    }
    Ok(parts.join("&"))
}

fn indent(s: &str, call: &Call) -> Result<Value> {
    let [width, first, blank] = call.bind("indent", ["width", "first", "blank"])?;
    let indention = match &width {
        Some(Value::Str(text)) => text.to_string(),
        width => {
            let spaces = int_or("indent", width.as_ref(), 4)?.clamp(0, 1000);
            " ".repeat(spaces as usize)
        }
    };
    let whole = format!("{s}\n");
    let lines = strings::lines(&whole);
    ops::check_len(s.len() + lines.len() * indention.len())?;
    let keeps_blank = blank.is_some_and(|v| v.is_true());
    let mut out = String::new();
    if first.is_some_and(|v| v.is_true()) {
        out.push_str(&indention);
    }
    for (i, (line, _)) in lines.into_iter().enumerate() {
        if i > 0 {
            out.push('\n');
            if keeps_blank || !line.is_empty() {
                out.push_str(&indention);
            }
        }
        out.push_str(&whole[line]);
    }
    Ok(out.into())
}

fn truncate(s: &str, call: &Call) -> Result<Value> {
    let [length, kill_words, end, leeway] =
        call.bind("truncate", ["length", "killwords", "end", "leeway"])?;
    let length = int_or("truncate", length.as_ref(), 255)?;
    let end = end.map_or_else(|| "...".into(), |v| v.to_text());
    let leeway = match &leeway {
        Some(Value::None) => None,
        other => other.as_ref(),
    };
    let leeway = int_or("truncate", leeway, 5)?;
    let count = |text: &str| text.chars().count() as i128;
    if length < count(&end) || leeway < 0 {
        return Err(Fault::types("truncate: the length is too small"));
    }
    if count(s) <= length + leeway {
        return Ok(s.into());
    }
    let kept = strings::sub(s, 0, length - count(&end));
    if kill_words.is_some_and(|v| v.is_true()) {
        return Ok(format!("{kept}{end}").into());
    }
    let kept = kept.rsplit_once(' ').map_or(kept, |(words, _)| words);
    Ok(format!("{kept}{end}").into())
}

fn of_number(name: &str, value: &Value, call: &Call) -> Result<Value> {
    if let Value::Undefined(words) = value {
        return Err(Fault::undefined(words));
    }
    match name {
        "abs" => {
            no_arguments(name, call)?;
            match value {
                Value::Float(x) => Ok(Value::Float(x.abs())),
                other => other.as_int().map(|n| Value::Int(n.abs())).ok_or_else(|| {
                    Fault::types(format!(
                        "bad operand type for abs(): '{}'",
                        other.type_name()
                    ))
                }),
            }
        }
        "int" => {
            let [default, base] = call.bind(name, ["default", "base"])?;
            let base = int_or(name, base.as_ref(), 10)?;
            let parsed = match value {
                Value::Str(text) => parse_int(text, base),
                Value::Float(x) if x.is_finite() => Some(x.trunc() as i128),
                other => other.as_int(),
            };
            Ok(parsed.map_or_else(|| default.unwrap_or(Value::Int(0)), Value::Int))
        }
        "float" => {
            let [default] = call.bind(name, ["default"])?;
            let parsed = match value {
                Value::Str(text) => parse_float(text),
                other => other.as_float(),
            };
            Ok(parsed.map_or_else(|| default.unwrap_or(Value::Float(0.0)), Value::Float))
        }
        "round" => {
            let [precision, method] = call.bind(name, ["precision", "method"])?;
            let precision = int_or(name, precision.as_ref(), 0)?.clamp(-300, 300) as i32;
            let method = method.map_or_else(|| "common".into(), |v| v.to_text());
            if let (Some(n), "common", 0..) = (value.as_int(), &*method, precision) {
                return Ok(Value::Int(n));
            }
            let x = value.as_float().ok_or_else(|| {
                Fault::types(format!(
                    "type {} doesn't define __round__ method",
                    value.type_name()
                ))
            })?;
            let scale = 10_f64.powi(precision);
            Ok(Value::Float(match &*method {
                "common" if precision >= 0 => {
                    format!("{x:.*}", precision as usize).parse().unwrap_or(x)
                }
                "common" => (x * scale).round_ties_even() / scale,
                "ceil" => (x * scale).ceil() / scale,
                "floor" => (x * scale).floor() / scale,
                _ => return Err(Fault::types("method must be common, ceil or floor")),
            }))
        }
        _ => {
            let [binary] = call.bind(name, ["binary"])?;
            let bytes = match value {
                Value::Str(text) => parse_float(text),
                other => other.as_float(),
            };
            let bytes = bytes.ok_or_else(|| Fault::types("filesizeformat needs a number"))?;
            Ok(file_size(bytes, binary.is_some_and(|v| v.is_true())).into())
        }
    }
}

/// Python's `int(text, base)`, or the whole part of a decimal number.
fn parse_int(text: &str, base: i128) -> Option<i128> {
    let trimmed = text.trim_matches(is_space);
    let (negative, digits) = match trimmed.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, trimmed.strip_prefix('+').unwrap_or(trimmed)),
    };
    let is_grouped = !digits.starts_with('_') && !digits.ends_with('_') && !digits.contains("__");
    let digits = digits.replace('_', "").to_lowercase();
    let radix = u32::try_from(base).ok().filter(|b| (2..=36).contains(b))?;
    let digits = match (radix, digits.get(..2)) {
        (16, Some("0x")) | (8, Some("0o")) | (2, Some("0b")) => &digits[2..],
        _ => &digits[..],
    };
    let is_plain = is_grouped && digits.chars().all(|c| c.is_digit(radix));
    let parsed = i128::from_str_radix(digits, radix)
        .ok()
        .filter(|_| is_plain);
    match parsed {
        Some(n) => Some(if negative { -n } else { n }),
        None => parse_float(text)
            .filter(|x| x.is_finite())
            .map(|x| x.trunc() as i128),
    }
}

fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_matches(is_space);
    let is_number = text
        .chars()
        .all(|c| c.is_ascii_digit() || "+-.eE".contains(c))
        || matches!(
            text.trim_start_matches(['+', '-'])
                .to_ascii_lowercase()
                .as_str(),
            "inf" | "infinity" | "nan"
        );
    text.parse().ok().filter(|_| is_number)
}

fn file_size(bytes: f64, binary: bool) -> String {
    let (base, units): (f64, [&str; 8]) = if binary {
        (
            1024.0,
            ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"],
        )
    } else {
        (1000.0, ["kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"])
    };
    if bytes == 1.0 {
        return "1 Byte".into();
    }
    if bytes < base {
        return format!("{} Bytes", bytes.trunc());
    }
    let mut unit = base;
    for (i, name) in units.iter().enumerate() {
        unit *= base;
        if bytes < unit || i + 1 == units.len() {
            return format!("{:.1} {name}", base * bytes / unit);
        }
    }
    String::new()
}

/// The value behind a dotted path of attributes; a number in it is an index.
fn by_path(value: &Value, path: &Value) -> Result<Value> {
    let Value::Str(path) = path else {
        return lookup::item(value, path);
    };
    let mut found = value.clone();
    for part in path.split('.') {
        let key = match part.parse::<i128>() {
            Ok(n) if part.bytes().all(|b| b.is_ascii_digit()) => Value::Int(n),
            _ => part.into(),
        };
        found = lookup::item(&found, &key)?;
    }
    Ok(found)
}

/// The form in which texts are compared: without case, unless it counts.
fn without_case(value: Value, case_sensitive: bool) -> Value {
    match value {
        Value::Str(text) if !case_sensitive => text.to_lowercase().into(),
        other => other,
    }
}

fn of_sequence(name: &str, value: &Value, call: &Call) -> Result<Value> {
    let items = value.iterate()?;
    let attribute = |item: &Value, path: &Option<Value>| match path {
        None | Some(Value::None) => Ok(item.clone()),
        Some(path) => by_path(item, path),
    };
    match name {
        "join" => {
            let [separator, path] = call.bind(name, ["d", "attribute"])?;
            let separator = separator.map_or_else(|| "".into(), |v| v.to_text());
            let mut out = String::new();
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push_str(&separator);
                }
                out.push_str(&attribute(item, &path)?.to_text());
                ops::check_len(out.len())?;
            }
            Ok(out.into())
        }
        "sum" => {
            let [path, start] = call.bind(name, ["attribute", "start"])?;
            let mut total = start.unwrap_or(Value::Int(0));
            for item in &*items {
                total = ops::binary(BinaryOp::Add, &total, &attribute(item, &path)?)?;
            }
            Ok(total)
        }
        "min" | "max" => {
            let [case_sensitive, path] = call.bind(name, ["case_sensitive", "attribute"])?;
            let case_sensitive = case_sensitive.is_some_and(|v| v.is_true());
            let key = |item: &Value| -> Result<Value> {
                Ok(without_case(attribute(item, &path)?, case_sensitive))
            };
            let Some(mut best) = items.first() else {
                return Ok(Value::undefined("No aggregated item, sequence was empty."));
            };
            let better = if name == "min" {
                Ordering::Less
            } else {
                Ordering::Greater
            };
            for item in &items[1..] {
                if key(item)?.compare(&key(best)?, "<")? == better {
                    best = item;
                }
            }
            Ok(best.clone())
        }
        "batch" => {
            let [size, fill] = call.bind(name, ["linecount", "fill_with"])?;
            let size = int_or(name, required(name, "linecount", size).as_ref().ok(), 1)?;
            let size = usize::try_from(size).unwrap_or(0).max(1);
            let batches = items.chunks(size).map(|chunk| {
                let mut chunk = chunk.to_vec();
                if let Some(fill) = fill.as_ref().filter(|v| !matches!(v, Value::None)) {
                    chunk.resize(size.min(ops::MAX_LEN), fill.clone());
                }
                Value::list(chunk)
            });
            Ok(Value::list(batches.collect()))
        }
        _ => {
            let [slices, fill] = call.bind(name, ["slices", "fill_with"])?;
            let slices = int_or(name, required(name, "slices", slices).as_ref().ok(), 1)?;
            let slices = usize::try_from(slices).unwrap_or(0).clamp(1, 100_000);
            let (each, extra) = (items.len() / slices, items.len() % slices);
            let mut at = 0;
            let mut sliced = Vec::with_capacity(slices);
            for i in 0..slices {
                let len = each + usize::from(i < extra);
                let mut part = items[at..at + len].to_vec();
                at += len;
                if let Some(fill) = fill
                    .as_ref()
                    .filter(|v| !matches!(v, Value::None) && i >= extra)
                {
                    part.push(fill.clone());
                }
                sliced.push(Value::list(part));
            }
            Ok(Value::list(sliced))
        }
    }
}

/// Sorts by keys, stably, and fails where Python cannot compare two of them.
fn sort_by_key(mut keyed: Vec<(Value, Value)>, reverse: bool) -> Result<Vec<(Value, Value)>> {
    let mut failed = None;
    keyed.sort_by(|(a, _), (b, _)| {
        let order = a.compare(b, "<").unwrap_or_else(|fault| {
            failed.get_or_insert(fault);
            Ordering::Equal
        });
        if reverse { order.reverse() } else { order }
    });
    failed.map_or(Ok(keyed), Err)
}

fn ordered(name: &str, value: &Value, call: &Call) -> Result<Value> {
    let (case_sensitive, path, reverse, by, default) = match name {
        "sort" => {
            let [reverse, case, path] =
                call.bind(name, ["reverse", "case_sensitive", "attribute"])?;
            (case, path, reverse, None, None)
        }
        "unique" => {
            let [case, path] = call.bind(name, ["case_sensitive", "attribute"])?;
            (case, path, None, None, None)
        }
        "groupby" => {
            let [path, default, case] =
                call.bind(name, ["attribute", "default", "case_sensitive"])?;
            (case, path, None, None, default)
        }
        _ => {
            let [case, by, reverse] = call.bind(name, ["case_sensitive", "by", "reverse"])?;
            (case, None, reverse, by, None)
        }
    };
    let case_sensitive = case_sensitive.is_some_and(|v| v.is_true());
    let reverse = reverse.is_some_and(|v| v.is_true());
    let items = if name == "dictsort" {
        if !matches!(value, Value::Dict(_)) {
            return Err(Fault::types("dictsort sorts a mapping"));
        }
        methods::items(value)?.iterate()?
    } else {
        value.iterate()?
    };
    let one_key = |item: &Value, path: &Value| -> Result<Value> {
        let key = by_path(item, path)?;
        let key = match &default {
            Some(default) if key.is_undefined() => default.clone(),
            _ => key,
        };
        Ok(without_case(key, case_sensitive))
    };
    let key = |item: &Value| -> Result<Value> {
        match &path {
            _ if name == "dictsort" => {
                let by_value = by.as_ref().is_some_and(|by| &*by.to_text() == "value");
                let part = lookup::item(item, &Value::Int(i128::from(by_value)))?;
                Ok(without_case(part, case_sensitive))
            }
            None | Some(Value::None) => Ok(without_case(item.clone(), case_sensitive)),
            Some(Value::Str(paths)) if name == "sort" && paths.contains(',') => {
                let keys = paths
                    .split(',')
                    .map(|path| one_key(item, &path.trim().into()));
                Ok(Value::tuple(keys.collect::<Result<_>>()?))
            }
            Some(path) => one_key(item, path),
        }
    };
    let keyed = items
        .iter()
        .map(|item| Ok((key(item)?, item.clone())))
        .collect::<Result<Vec<_>>>()?;
    if name == "unique" {
        let mut seen: Vec<Value> = Vec::new();
        let mut kept = Vec::new();
        for (key, item) in keyed {
            key.check_hashable()?;
            if !seen.iter().any(|k| k.equals(&key)) {
                seen.push(key);
                kept.push(item);
            }
        }
        return Ok(Value::list(kept));
    }
    let sorted = sort_by_key(keyed, reverse)?;
    if name != "groupby" {
        return Ok(Value::list(
            sorted.into_iter().map(|(_, item)| item).collect(),
        ));
    }
    let mut groups: Vec<(Value, Value, Vec<Value>)> = Vec::new();
    for (key, item) in sorted {
        match groups.last_mut() {
            Some((last, _, members)) if last.equals(&key) => members.push(item),
            _ => {
                // The name of a group has the case of its first member.
                let shown = match &path {
                    Some(path) => {
                        let found = by_path(&item, path)?;
                        match &default {
                            Some(default) if found.is_undefined() => default.clone(),
                            _ => found,
                        }
                    }
                    None => key.clone(),
                };
                groups.push((key, shown, vec![item]));
            }
        }
    }
    let groups = groups
        .into_iter()
        .map(|(_, shown, members)| Value::tuple(vec![shown, Value::list(members)]));
    Ok(Value::list(groups.collect()))
}

/// The items of a value; none of one that is false, whatever it is.
fn items_if_true(value: &Value) -> Result<Rc<Vec<Value>>> {
    if value.is_true() {
        value.iterate()
    } else {
        Ok(Rc::default())
    }
}

fn map(value: &Value, call: &Call) -> Result<Value> {
    let items = items_if_true(value)?;
    let mapped: Result<Vec<Value>> = if call.positional.is_empty() {
        let named = |name: &str| {
            let mut named = call.named.iter();
            named.find(|(n, _)| **n == *name).map(|(_, v)| v.clone())
        };
        let path = required("map", "attribute", named("attribute"))?;
        let default = named("default");
        let attribute = |item: &Value| {
            let found = by_path(item, &path)?;
            Ok(match &default {
                Some(default) if found.is_undefined() => default.clone(),
                _ => found,
            })
        };
        items.iter().map(attribute).collect()
    } else {
        let (filter, rest) = filter_of(call)?;
        items
            .iter()
            .map(|item| apply(&filter, item, &rest))
            .collect()
    };
    Ok(Value::list(mapped?))
}

/// The name in the first argument, and the other arguments.
fn filter_of(call: &Call) -> Result<(Rc<str>, Call)> {
    let (name, rest) = call
        .positional
        .split_first()
        .ok_or_else(|| Fault::types("map requires a filter argument"))?;
    let Value::Str(name) = name else {
        return Err(Fault::types("the name of a filter or test is a text"));
    };
    let rest = Call {
        positional: rest.to_vec(),
        named: call.named.clone(),
    };
    Ok((name.clone(), rest))
}

fn select(name: &str, value: &Value, call: &Call) -> Result<Value> {
    let mut rest = call.clone();
    let path = if name.ends_with("attr") {
        if rest.positional.is_empty() {
            return Err(Fault::types("Missing parameter for attribute name"));
        }
        Some(rest.positional.remove(0))
    } else {
        None
    };
    let test = if rest.positional.is_empty() {
        None
    } else {
        Some(filter_of(&rest)?)
    };
    let keeps = name.starts_with("select");
    let mut kept = Vec::new();
    for item in &*items_if_true(value)? {
        let tested = match &path {
            Some(path) => by_path(item, path)?,
            None => item.clone(),
        };
        let holds = match &test {
            None => tested.is_true(),
            Some((test, rest)) => checks::holds(&tested, test, rest)?,
        };
        if holds == keeps {
            kept.push(item.clone());
        }
    }
    Ok(Value::list(kept))
}
