//! Python's two ways of formatting texts: `'%s' % x` and `'{}'.format(x)`.

use super::{
    call::Call,
    fault::{Fault, Result},
    lookup,
    value::{SeqKind, Value, float_repr},
};

/// The widest field.
const MAX_WIDTH: usize = 10_000;

/// How a value is written into a field.
#[derive(Debug, Default)]
struct Spec {
    fill: Option<char>,
    align: Option<char>,
    sign: Option<char>,
    alternate: bool,
    zero: bool,
    width: usize,
    grouping: Option<char>,
    precision: Option<usize>,
    kind: Option<char>,
}

/// `format % values`.
pub(super) fn percent(format: &str, values: &Value) -> Result<String> {
    let mut positional = match values {
        Value::Seq(SeqKind::Tuple, items) => items.to_vec(),
        one => vec![one.clone()],
    }
    .into_iter();
    let mut uses_mapping = false;
    let mut out = String::new();
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut key = None;
        if chars.peek() == Some(&'(') {
            chars.next();
            let name: String = chars.by_ref().take_while(|c| *c != ')').collect();
            let Value::Dict(dict) = values else {
                return Err(Fault::types("format requires a mapping"));
            };
            uses_mapping = true;
            let found = dict.get_str(&name).cloned();
            key = Some(found.ok_or_else(|| Fault::types(format!("KeyError: '{name}'")))?);
        }
        let mut spec = Spec::default();
        while let Some(flag) = chars.peek().copied() {
            match flag {
                '-' => spec.align = Some('<'),
                '0' => spec.zero = true,
                '+' => spec.sign = Some('+'),
                ' ' => spec.sign = spec.sign.or(Some(' ')),
                '#' => spec.alternate = true,
                _ => break,
            }
            chars.next();
        }
        let mut next = || {
            positional
                .next()
                .ok_or_else(|| Fault::types("not enough arguments for format string"))
        };
        if chars.peek() == Some(&'*') {
            chars.next();
            let width = next()?.as_int().unwrap_or(0);
            spec.width = limited(width.unsigned_abs())?;
        } else {
            spec.width = number(&mut chars)?.unwrap_or(0);
        }
        if chars.peek() == Some(&'.') {
            chars.next();
            spec.precision = Some(number(&mut chars)?.unwrap_or(0));
        }
        while matches!(chars.peek(), Some('l' | 'h' | 'L')) {
            chars.next();
        }
        let Some(kind) = chars.next() else {
            return Err(Fault::types("incomplete format"));
        };
        if kind == '%' {
            out.push('%');
            continue;
        }
        let value = match key {
            Some(value) => value,
            None => next()?,
        };
        out.push_str(&percent_field(&value, kind, spec)?);
    }
    // Python takes whatever has items for a mapping, whose entries need not be used.
    let has_items = matches!(values, Value::Dict(_) | Value::Undefined(_))
        || matches!(values, Value::Seq(kind, _) if *kind != SeqKind::Tuple);
    if positional.len() > 0 && !uses_mapping && !has_items {
        return Err(Fault::types(
            "not all arguments converted during string formatting",
        ));
    }
    Ok(out)
}

fn percent_field(value: &Value, kind: char, mut spec: Spec) -> Result<String> {
    // Numbers and texts alike stand on the right.
    spec.align = spec.align.or(Some('>'));
    let needs_number = |wanted: &str| {
        Fault::types(format!(
            "%{kind} format: {wanted} is required, not {}",
            value.type_name()
        ))
    };
    match kind {
        's' | 'r' | 'a' => {
            let text = if kind == 's' {
                value.to_text().to_string()
            } else {
                value.repr()
            };
            spec.zero = false;
            Ok(spec.pad_text(&text))
        }
        'c' => {
            let text = match value {
                Value::Str(text) if text.chars().count() == 1 => text.to_string(),
                other => {
                    let code = other.as_int().and_then(|n| u32::try_from(n).ok());
                    let c = code.and_then(char::from_u32);
                    c.ok_or_else(|| needs_number("an integer or a single character"))?
                        .to_string()
                }
            };
            spec.zero = false;
            Ok(spec.pad_text(&text))
        }
        'd' | 'i' | 'u' | 'x' | 'X' | 'o' => {
            let n = match value {
                Value::Float(x) if matches!(kind, 'd' | 'i' | 'u') => x.trunc() as i128,
                other => other
                    .as_int()
                    .ok_or_else(|| needs_number("a real number"))?,
            };
            spec.kind = Some(if matches!(kind, 'i' | 'u') { 'd' } else { kind });
            spec.integer(n)
        }
        'f' | 'F' | 'e' | 'E' | 'g' | 'G' => {
            let x = value
                .as_float()
                .ok_or_else(|| needs_number("a real number"))?;
            spec.kind = Some(kind);
            spec.float(x)
        }
        _ => Err(Fault::types(format!(
            "unsupported format character '{kind}'"
        ))),
    }
}

/// `format.format(...)`.
pub(super) fn format(format: &str, call: &Call) -> Result<String> {
    let mut automatic = 0;
    format_nested(format, call, &mut automatic, 0)
}

fn format_nested(format: &str, call: &Call, automatic: &mut usize, depth: usize) -> Result<String> {
    let mut out = String::new();
    let mut rest = format;
    while let Some(i) = rest.find(['{', '}']) {
        out.push_str(&rest[..i]);
        let brace = &rest[i..=i];
        let after = &rest[i + 1..];
        if after.starts_with(brace) {
            out.push_str(brace);
            rest = &after[1..];
            continue;
        }
        if brace == "}" {
            return Err(Fault::types("Single '}' encountered in format string"));
        }
        let mut open = 1;
        let end = after.char_indices().find_map(|(i, c)| {
            match c {
                '{' => open += 1,
                '}' => open -= 1,
                _ => {}
            }
            (open == 0).then_some(i)
        });
        let end = end.ok_or_else(|| Fault::types("expected '}' before end of string"))?;
        let field = &after[..end];
        rest = &after[end + 1..];
        let name_end = field.find(['!', ':']).unwrap_or(field.len());
        let (name, tail) = field.split_at(name_end);
        let value = field_value(name, call, automatic)?;
        let (conversion, spec) = match tail.strip_prefix('!') {
            Some(tail) => {
                let (conversion, spec) = tail.split_once(':').unwrap_or((tail, ""));
                (conversion, spec)
            }
            None => ("", tail.strip_prefix(':').unwrap_or("")),
        };
        let value = match conversion {
            "" => value,
            "s" => Value::Str(value.to_text()),
            "r" | "a" => value.repr().into(),
            other => {
                return Err(Fault::types(format!(
                    "Unknown conversion specifier '{other}'"
                )));
            }
        };
        let spec = if spec.contains('{') && depth == 0 {
            format_nested(spec, call, automatic, 1)?
        } else {
            spec.to_owned()
        };
        out.push_str(&formatted(&value, &spec)?);
    }
    out.push_str(rest);
    Ok(out)
}

/// The value of a field: `0`, `name`, `name.attribute`, `name[key]`.
fn field_value(name: &str, call: &Call, automatic: &mut usize) -> Result<Value> {
    let end = name.find(['.', '[']).unwrap_or(name.len());
    let (first, mut path) = name.split_at(end);
    let mut value = if first.is_empty() || first.bytes().all(|b| b.is_ascii_digit()) {
        let index = if first.is_empty() {
            *automatic += 1;
            *automatic - 1
        } else {
            first.parse().unwrap_or(usize::MAX)
        };
        let found = call.positional.get(index).cloned();
        found.ok_or_else(|| {
            Fault::types(format!(
                "Replacement index {index} out of range for positional args tuple"
            ))
        })?
    } else {
        let mut named = call.named.iter();
        let found = named.find(|(n, _)| **n == *first).map(|(_, v)| v.clone());
        found.ok_or_else(|| Fault::types(format!("KeyError: '{first}'")))?
    };
    while !path.is_empty() {
        if let Some(inside) = path.strip_prefix('[') {
            let (key, rest) = inside
                .split_once(']')
                .ok_or_else(|| Fault::types("Missing ']' in format string"))?;
            let key = key.parse().map_or_else(|_| Value::from(key), Value::Int);
            value = lookup::item(&value, &key)?;
            path = rest;
        } else {
            let inside = &path[1..];
            let end = inside.find(['.', '[']).unwrap_or(inside.len());
            value = lookup::attribute(&value, &inside[..end].into())?;
            path = &inside[end..];
        }
    }
    Ok(value)
}

/// `format(value, spec)`.
fn formatted(value: &Value, spec: &str) -> Result<String> {
    if spec.is_empty() {
        return Ok(value.to_text().to_string());
    }
    let spec = Spec::parse(spec)?;
    match value {
        Value::Bool(_) if spec.kind.is_none() => Ok(spec.pad_text(&value.to_text())),
        Value::Int(_) | Value::Bool(_) => {
            let n = value.as_int().unwrap_or(0);
            match spec.kind {
                Some('f' | 'F' | 'e' | 'E' | 'g' | 'G' | '%') => spec.float(n as f64),
                _ => spec.integer(n),
            }
        }
        Value::Float(x) => spec.float(*x),
        Value::Str(text) if matches!(spec.kind, None | Some('s')) && spec.sign.is_none() => {
            Ok(spec.pad_text(text))
        }
        other => Err(Fault::types(format!(
            "unsupported format string passed to {}.__format__",
            other.type_name()
        ))),
    }
}

fn limited(n: u128) -> Result<usize> {
    let width = usize::try_from(n).ok().filter(|n| *n <= MAX_WIDTH);
    width.ok_or_else(|| Fault::too_large("a field of a format is too wide"))
}

fn number(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Option<usize>> {
    let mut found = None;
    while let Some(digit) = chars.peek().and_then(|c| c.to_digit(10)) {
        let n = found.unwrap_or(0_u128) * 10 + u128::from(digit);
        found = Some(limited(n)? as u128);
        chars.next();
    }
    Ok(found.map(|n| n as usize))
}

impl Spec {
    /// `[[fill]align][sign][#][0][width][grouping][.precision][type]`
    fn parse(text: &str) -> Result<Self> {
        let mut spec = Self::default();
        let mut chars = text.chars().peekable();
        let is_align = |c: &char| matches!(c, '<' | '>' | '^' | '=');
        let second = text.chars().nth(1);
        if second.as_ref().is_some_and(is_align) {
            spec.fill = chars.next();
            spec.align = chars.next();
        } else if chars.peek().is_some_and(is_align) {
            spec.align = chars.next();
        }
        if let Some(sign) = chars.next_if(|c| matches!(c, '+' | '-' | ' ')) {
            spec.sign = Some(sign);
        }
        spec.alternate = chars.next_if_eq(&'#').is_some();
        spec.zero = chars.next_if_eq(&'0').is_some();
        spec.width = number(&mut chars)?.unwrap_or(0);
        spec.grouping = chars.next_if(|c| matches!(c, ',' | '_'));
        if chars.next_if_eq(&'.').is_some() {
            let digits = number(&mut chars)?;
            spec.precision =
                Some(digits.ok_or_else(|| Fault::types("Format specifier missing precision"))?);
        }
        spec.kind = chars.next();
        if chars.next().is_some() {
            return Err(Fault::types(format!("Invalid format specifier '{text}'")));
        }
        Ok(spec)
    }

    fn pad_text(&self, text: &str) -> String {
        let kept: String = match self.precision {
            Some(n) => text.chars().take(n).collect(),
            None => text.to_owned(),
        };
        let fill = self.fill.unwrap_or(if self.zero { '0' } else { ' ' });
        pad(&kept, self.width, fill, self.align.unwrap_or('<'))
    }

    fn pad_number(&self, sign: &str, digits: &str) -> String {
        let is_left = self.align == Some('<');
        if self.align == Some('=')
            || self.zero && (self.align.is_none() || self.align == Some('>')) && self.fill.is_none()
        {
            let fill = self.fill.unwrap_or(if self.zero { '0' } else { ' ' });
            let missing = self
                .width
                .saturating_sub(sign.chars().count() + digits.chars().count());
            return format!("{sign}{}{digits}", fill.to_string().repeat(missing));
        }
        let align = if is_left {
            '<'
        } else {
            self.align.unwrap_or('>')
        };
        let text = format!("{sign}{digits}");
        pad(&text, self.width, self.fill.unwrap_or(' '), align)
    }

    fn sign(&self, is_negative: bool) -> &'static str {
        match (is_negative, self.sign) {
            (true, _) => "-",
            (false, Some('+')) => "+",
            (false, Some(' ')) => " ",
            _ => "",
        }
    }

    fn integer(&self, n: i128) -> Result<String> {
        let magnitude = n.unsigned_abs();
        let (prefix, digits) = match self.kind {
            None | Some('d' | 'n') => ("", magnitude.to_string()),
            Some('x') => ("0x", format!("{magnitude:x}")),
            Some('X') => ("0X", format!("{magnitude:X}")),
            Some('o') => ("0o", format!("{magnitude:o}")),
            Some('b') => ("0b", format!("{magnitude:b}")),
            Some('c') => {
                let c = u32::try_from(n).ok().and_then(char::from_u32);
                let c = c.ok_or_else(|| Fault::types("%c arg not in range(0x110000)"))?;
                return Ok(self.pad_text(&c.to_string()));
            }
            Some(other) => {
                return Err(Fault::types(format!(
                    "Unknown format code '{other}' for object of type 'int'"
                )));
            }
        };
        let mut digits = match self.precision {
            Some(least) if digits.len() < least => "0".repeat(least - digits.len()) + &digits,
            _ => digits,
        };
        if let Some(separator) = self.grouping {
            digits = grouped(&digits, separator);
        }
        let sign = self.sign(n < 0).to_owned() + if self.alternate { prefix } else { "" };
        Ok(self.pad_number(&sign, &digits))
    }

    fn float(&self, x: f64) -> Result<String> {
        let magnitude = x.abs();
        let digits = self.precision.unwrap_or(6);
        let text = if magnitude.is_nan() {
            "nan".to_owned()
        } else if magnitude.is_infinite() {
            "inf".into()
        } else {
            match self.kind {
                Some('f' | 'F') => format!("{magnitude:.digits$}"),
                Some('%') => format!("{:.digits$}%", magnitude * 100.0),
                Some('e' | 'E') => scientific(magnitude, digits),
                Some('g' | 'G') => general(magnitude, digits),
                None => match self.precision {
                    None => float_repr(magnitude),
                    Some(digits) => {
                        let text = general(magnitude, digits);
                        if text.contains(['.', 'e']) {
                            text
                        } else {
                            text + ".0"
                        }
                    }
                },
                Some(other) => {
                    return Err(Fault::types(format!(
                        "Unknown format code '{other}' for object of type 'float'"
                    )));
                }
            }
        };
        let mut text = if matches!(self.kind, Some('E' | 'G' | 'F')) {
            text.to_uppercase()
        } else {
            text
        };
        if let Some(separator) = self.grouping {
            let end = text.find(['.', 'e', '%']).unwrap_or(text.len());
            text = grouped(&text[..end], separator) + &text[end..];
        }
        Ok(self.pad_number(self.sign(x.is_sign_negative() && !x.is_nan()), &text))
    }
}

fn pad(text: &str, width: usize, fill: char, align: char) -> String {
    let missing = width.saturating_sub(text.chars().count());
    let before = match align {
        '<' => 0,
        '^' => missing / 2,
        _ => missing,
    };
    let fill = fill.to_string();
    format!(
        "{}{text}{}",
        fill.repeat(before),
        fill.repeat(missing - before)
    )
}

fn grouped(digits: &str, separator: char) -> String {
    let mut text = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(separator);
        }
        text.push(c);
    }
    text
}

fn scientific(x: f64, digits: usize) -> String {
    let text = format!("{x:.digits$e}");
    let (mantissa, exponent) = text.split_once('e').expect("`{:e}` has an exponent");
    let exponent: i32 = exponent.parse().expect("an exponent is a number");
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{mantissa}e{sign}{:02}", exponent.abs())
}

/// C's `%g`.
fn general(x: f64, digits: usize) -> String {
    let digits = digits.max(1);
    let rounded = format!("{x:.*e}", digits - 1);
    let (_, exponent) = rounded.split_once('e').expect("`{:e}` has an exponent");
    let exponent: i32 = exponent.parse().expect("an exponent is a number");
    let trimmed = |text: &str| {
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text.to_owned()
        }
    };
    if exponent < -4 || exponent >= digits as i32 {
        let text = scientific(x, digits - 1);
        let (mantissa, exponent) = text.split_once('e').expect("it has an exponent");
        format!("{}e{exponent}", trimmed(mantissa))
    } else {
        let decimals = (digits as i32 - 1 - exponent).max(0) as usize;
        trimmed(&format!("{x:.decimals$}"))
    }
}
