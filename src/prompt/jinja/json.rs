//! Python's `json.dumps`, as `tojson` of `transformers` calls it.

use std::fmt::Write as _;

use super::{
    call::Call,
    fault::{Fault, Result},
    value::{SeqKind, Value, float_repr},
};

/// How JSON is written.
struct Style {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// The filter `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn to_json(value: &Value, call: &Call) -> Result<Value> {
    let [ensure_ascii, indent, separators, sort_keys] = call.bind(
        "tojson",
        ["ensure_ascii", "indent", "separators", "sort_keys"],
    )?;
    let indent = match indent {
        None | Some(Value::None) => None,
        Some(Value::Str(text)) => Some(text.to_string()),
        Some(other) => {
            let spaces = other.as_int().ok_or_else(|| {
                Fault::types(format!(
                    "tojson: `indent` is a number or a text, not {}",
                    other.type_name()
                ))
            })?;
            Some(" ".repeat(usize::try_from(spaces).unwrap_or(0).min(64)))
        }
    };
    let (item_separator, key_separator) = match separators {
        None | Some(Value::None) if indent.is_some() => (",".into(), ": ".into()),
        None | Some(Value::None) => (", ".into(), ": ".into()),
        Some(given) => {
            let parts = given.iterate()?;
            match &parts[..] {
                [Value::Str(item), Value::Str(key)] => (item.to_string(), key.to_string()),
                _ => return Err(Fault::types("tojson: `separators` are two texts")),
            }
        }
    };
    let style = Style {
        ensure_ascii: ensure_ascii.is_some_and(|v| v.is_true()),
        indent,
        item_separator,
        key_separator,
        sort_keys: sort_keys.is_some_and(|v| v.is_true()),
    };
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out.into())
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<()> {
        if depth > 200 {
            return Err(Fault::too_large("tojson: the value is nested too deeply"));
        }
        match value {
            Value::None => out.push_str("null"),
            Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Value::Int(n) => _ = write!(out, "{n}"),
            Value::Float(x) => out.push_str(&float(*x)),
            Value::Str(text) => self.write_str(text, out),
            Value::Seq(SeqKind::List | SeqKind::Tuple, items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    self.before_item(i, depth + 1, out);
                    self.write(item, depth + 1, out)?;
                }
                self.close(']', items.is_empty(), depth, out);
            }
            Value::Dict(dict) => {
                let mut entries: Vec<&(Value, Value)> = dict.entries.iter().collect();
                if self.sort_keys {
                    let mut failed = None;
                    entries.sort_by(|a, b| {
                        a.0.compare(&b.0, "<").unwrap_or_else(|fault| {
                            failed = Some(fault);
                            std::cmp::Ordering::Equal
                        })
                    });
                    if let Some(fault) = failed {
                        return Err(fault);
                    }
                }
                out.push('{');
                for (i, (key, value)) in entries.into_iter().enumerate() {
                    self.before_item(i, depth + 1, out);
                    let key = match key {
                        Value::Str(text) => text.to_string(),
                        Value::None => "null".into(),
                        Value::Bool(b) => b.to_string(),
                        Value::Int(n) => n.to_string(),
                        Value::Float(x) => float(*x),
                        other => {
                            return Err(Fault::types(format!(
                                "keys must be str, int, float, bool or None, not {}",
                                other.type_name()
                            )));
                        }
                    };
                    self.write_str(&key, out);
                    out.push_str(&self.key_separator);
                    self.write(value, depth + 1, out)?;
                }
                self.close('}', dict.entries.is_empty(), depth, out);
            }
            other => {
                return Err(Fault::types(format!(
                    "Object of type {} is not JSON serializable",
                    other.type_name()
                )));
            }
        }
        Ok(())
    }

    fn before_item(&self, index: usize, depth: usize, out: &mut String) {
        if index > 0 {
            out.push_str(&self.item_separator);
        }
        self.line_break(depth, out);
    }

    fn close(&self, bracket: char, is_empty: bool, depth: usize, out: &mut String) {
        if !is_empty {
            self.line_break(depth, out);
        }
        out.push(bracket);
    }

    fn line_break(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            for _ in 0..depth {
                out.push_str(indent);
            }
        }
    }

    fn write_str(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\x08' => out.push_str("\\b"),
                '\x0c' => out.push_str("\\f"),
                c if (c as u32) < 0x20 => _ = write!(out, "\\u{:04x}", c as u32),
                c if self.ensure_ascii && !(' '..='~').contains(&c) => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        _ = write!(out, "\\u{unit:04x}");
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }
}

fn float(x: f64) -> String {
    if x.is_nan() {
        "NaN".into()
    } else if x.is_infinite() {
        if x > 0.0 { "Infinity" } else { "-Infinity" }.into()
    } else {
        float_repr(x)
    }
}
