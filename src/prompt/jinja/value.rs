//! The values of a template, with Python's truth, equality, order and text.

use std::{any::Any, cell::RefCell, cmp::Ordering, fmt::Write as _, rc::Rc};

use serde_json::Value as Json;
use unicode_properties::{GeneralCategory, UnicodeGeneralCategory};

use super::fault::{Fault, Result};

/// A value.
#[derive(Clone, Debug)]
pub(in crate::prompt) enum Value {
    /// Jinja's `Undefined`, with the words that an error uses for it.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Rc<str>),
    Seq(SeqKind, Rc<Vec<Value>>),
    Dict(Rc<Dict>),
    /// `namespace()`: the one value that a template can change.
    Namespace(Rc<RefCell<Dict>>),
    /// A global function, by name.
    Global(&'static str),
    /// A method that is bound to its value.
    Method(Box<Value>, Rc<str>),
    /// A macro, `loop`, a cycler or a joiner.
    Object(Rc<dyn Object>),
}

/// A value that only the evaluator knows.
pub(in crate::prompt) trait Object: std::fmt::Debug {
    fn as_any(&self) -> &dyn Any;
}

/// The kinds of sequences, which differ in their text and in equality.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::prompt) enum SeqKind {
    List,
    Tuple,
    /// Start, stop and step.
    Range(i128, i128, i128),
    Keys,
    Values,
    Items,
}

/// A dict: entries in the order in which they were added.
#[derive(Clone, Debug, Default)]
pub(in crate::prompt) struct Dict {
    pub(super) entries: Vec<(Value, Value)>,
}

impl Dict {
    pub(super) fn get(&self, key: &Value) -> Option<&Value> {
        let mut entries = self.entries.iter();
        entries.find(|(k, _)| k.equals(key)).map(|(_, v)| v)
    }

    pub(super) fn get_str(&self, key: &str) -> Option<&Value> {
        let is_key = |k: &Value| matches!(k, Value::Str(text) if **text == *key);
        let mut entries = self.entries.iter();
        entries.find(|(k, _)| is_key(k)).map(|(_, v)| v)
    }

    pub(super) fn insert(&mut self, key: Value, value: Value) {
        match self.entries.iter_mut().find(|(k, _)| k.equals(&key)) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((key, value)),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Str(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Str(text.into())
    }
}

impl From<usize> for Value {
    fn from(n: usize) -> Self {
        Self::Int(n as i128)
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Self::Bool(b)
    }
}

impl From<&Json> for Value {
    fn from(json: &Json) -> Self {
        match json {
            Json::Null => Self::None,
            Json::Bool(b) => Self::Bool(*b),
            Json::Number(n) => n
                .as_i64()
                .map(i128::from)
                .or_else(|| n.as_u64().map(i128::from))
                .map_or_else(|| Self::Float(n.as_f64().unwrap_or(f64::NAN)), Self::Int),
            Json::String(text) => text.as_str().into(),
            Json::Array(items) => Self::list(items.iter().map(Self::from).collect()),
            Json::Object(fields) => Self::dict(
                fields
                    .iter()
                    .map(|(k, v)| (Self::from(k.as_str()), v.into()))
                    .collect(),
            ),
        }
    }
}

impl Value {
    pub(in crate::prompt) fn list(items: Vec<Self>) -> Self {
        Self::Seq(SeqKind::List, Rc::new(items))
    }

    pub(super) fn tuple(items: Vec<Self>) -> Self {
        Self::Seq(SeqKind::Tuple, Rc::new(items))
    }

    pub(in crate::prompt) fn dict(entries: Vec<(Self, Self)>) -> Self {
        Self::Dict(Rc::new(Dict { entries }))
    }

    pub(super) fn undefined(words: impl Into<Rc<str>>) -> Self {
        Self::Undefined(words.into())
    }

    pub(super) const fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    /// Python's `bool(x)`.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(b) => *b,
            Self::Int(n) => *n != 0,
            Self::Float(x) => *x != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::Seq(_, items) => !items.is_empty(),
            Self::Dict(dict) => !dict.entries.is_empty(),
            _ => true,
        }
    }

    /// Fails for a value that Python can neither use as a key nor put into a set.
    pub(super) fn check_hashable(&self) -> Result<()> {
        match self {
            Self::Dict(_) | Self::Seq(SeqKind::List, _) => Err(Fault::types(format!(
                "unhashable type: '{}'",
                self.type_name()
            ))),
            Self::Seq(SeqKind::Tuple, items) => items.iter().try_for_each(Self::check_hashable),
            _ => Ok(()),
        }
    }

    /// Python's name of the type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::Seq(SeqKind::List, _) => "list",
            Self::Seq(SeqKind::Tuple, _) => "tuple",
            Self::Seq(SeqKind::Range(..), _) => "range",
            Self::Seq(SeqKind::Keys, _) => "dict_keys",
            Self::Seq(SeqKind::Values, _) => "dict_values",
            Self::Seq(SeqKind::Items, _) => "dict_items",
            Self::Dict(_) => "dict",
            Self::Namespace(_) => "Namespace",
            Self::Global(_) | Self::Method(..) => "function",
            Self::Object(_) => "object",
        }
    }

    /// The number of a value that Python counts with: `True` is 1.
    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Bool(b) => Some(i128::from(*b)),
            Self::Int(n) => Some(*n),
            _ => None,
        }
    }

    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(x) => Some(*x),
            other => other.as_int().map(|n| n as f64),
        }
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// Python's `==`.
    pub(super) fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::Str(a), Self::Str(b)) => a == b,
            (Self::Seq(ka, a), Self::Seq(kb, b)) => {
                let same = std::mem::discriminant(ka) == std::mem::discriminant(kb);
                same && a.len() == b.len() && a.iter().zip(&**b).all(|(a, b)| a.equals(b))
            }
            (Self::Dict(a), Self::Dict(b)) => {
                let same = |(k, v): &(Self, Self)| b.get(k).is_some_and(|w| v.equals(w));
                a.entries.len() == b.entries.len() && a.entries.iter().all(same)
            }
            (Self::Namespace(a), Self::Namespace(b)) => Rc::ptr_eq(a, b),
            (Self::Global(a), Self::Global(b)) => a == b,
            (Self::Object(a), Self::Object(b)) => Rc::ptr_eq(a, b),
            _ => match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => a == b,
                _ => match (self.as_float(), other.as_float()) {
                    (Some(a), Some(b)) => a == b,
                    _ => false,
                },
            },
        }
    }

    /// Python's order, for `<` and for sorting.
    ///
    /// # Errors
    /// When Python raises a `TypeError`. NaN compares as equal.
    pub(super) fn compare(&self, other: &Self, operator: &str) -> Result<Ordering> {
        match (self, other) {
            (Self::Str(a), Self::Str(b)) => Ok(a.chars().cmp(b.chars())),
            (Self::Seq(ka, a), Self::Seq(kb, b)) if ka == kb => {
                for (a, b) in a.iter().zip(&**b) {
                    if !a.equals(b) {
                        return a.compare(b, operator);
                    }
                }
                Ok(a.len().cmp(&b.len()))
            }
            (Self::Undefined(words), _) | (_, Self::Undefined(words)) => {
                Err(Fault::undefined(words))
            }
            _ => match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => Ok(a.cmp(&b)),
                _ => match (self.as_float(), other.as_float()) {
                    (Some(a), Some(b)) => Ok(a.partial_cmp(&b).unwrap_or(Ordering::Equal)),
                    _ => Err(Fault::types(format!(
                        "'{operator}' not supported between instances of '{}' and '{}'",
                        self.type_name(),
                        other.type_name()
                    ))),
                },
            },
        }
    }

    /// The items of a `for` loop.
    ///
    /// # Errors
    /// When the value cannot be iterated over.
    pub(super) fn iterate(&self) -> Result<Rc<Vec<Self>>> {
        match self {
            Self::Undefined(_) => Ok(Rc::default()),
            Self::Seq(_, items) => Ok(items.clone()),
            Self::Str(text) => {
                let mut buffer = [0; 4];
                let chars = text.chars().map(|c| (&*c.encode_utf8(&mut buffer)).into());
                Ok(Rc::new(chars.collect()))
            }
            Self::Dict(dict) => Ok(Rc::new(
                dict.entries.iter().map(|(k, _)| k.clone()).collect(),
            )),
            other => Err(Fault::types(format!(
                "'{}' object is not iterable",
                other.type_name()
            ))),
        }
    }

    /// Python's `str(x)`; an undefined value is empty.
    pub(super) fn to_text(&self) -> Rc<str> {
        match self {
            Self::Undefined(_) => "".into(),
            Self::Str(text) => text.clone(),
            other => other.repr().into(),
        }
    }

    /// Python's `repr(x)`.
    pub(super) fn repr(&self) -> String {
        let mut text = String::new();
        self.write_repr(&mut text, 0);
        text
    }

    fn write_repr(&self, out: &mut String, depth: usize) {
        // Deeper values cannot be read from JSON and are not made by templates that end.
        if depth > 200 {
            out.push_str("...");
            return;
        }
        match self {
            Self::Undefined(_) => out.push_str("Undefined"),
            Self::None => out.push_str("None"),
            Self::Bool(true) => out.push_str("True"),
            Self::Bool(false) => out.push_str("False"),
            Self::Int(n) => _ = write!(out, "{n}"),
            Self::Float(x) => out.push_str(&float_repr(*x)),
            Self::Str(text) => write_str_repr(text, out),
            Self::Seq(SeqKind::Range(start, stop, 1), _) => {
                _ = write!(out, "range({start}, {stop})");
            }
            Self::Seq(SeqKind::Range(start, stop, step), _) => {
                _ = write!(out, "range({start}, {stop}, {step})");
            }
            Self::Seq(kind, items) => {
                let (open, close) = match kind {
                    SeqKind::Tuple => ("(", ")"),
                    SeqKind::Keys => ("dict_keys([", "])"),
                    SeqKind::Values => ("dict_values([", "])"),
                    SeqKind::Items => ("dict_items([", "])"),
                    SeqKind::List | SeqKind::Range(..) => ("[", "]"),
                };
                out.push_str(open);
                for (i, item) in items.iter().enumerate() {
                    if i > 0 {
                        out.push_str(", ");
                    }
                    item.write_repr(out, depth + 1);
                }
                if *kind == SeqKind::Tuple && items.len() == 1 {
                    out.push(',');
                }
                out.push_str(close);
            }
            Self::Dict(dict) => dict.write_repr(out, depth),
            Self::Namespace(dict) => {
                out.push_str("<Namespace ");
                dict.borrow().write_repr(out, depth);
                out.push('>');
            }
            Self::Global(name) => _ = write!(out, "<function {name}>"),
            Self::Method(_, name) => _ = write!(out, "<built-in method {name}>"),
            Self::Object(_) => out.push_str("<object>"),
        }
    }
}

impl Dict {
    fn write_repr(&self, out: &mut String, depth: usize) {
        out.push('{');
        for (i, (key, value)) in self.entries.iter().enumerate() {
            if i > 0 {
                out.push_str(", ");
            }
            key.write_repr(out, depth + 1);
            out.push_str(": ");
            value.write_repr(out, depth + 1);
        }
        out.push('}');
    }
}

/// Python's `repr` of a float: the shortest digits that give it back, with an exponent below 1e-4 and from 1e16 on.
pub(super) fn float_repr(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{x:e}");
    let (digits, exponent) = scientific.split_once('e').expect("`{:e}` has an exponent");
    let exponent: i32 = exponent.parse().expect("an exponent is a number");
    if (-4..16).contains(&exponent) {
        let text = format!("{x}");
        if text.contains('.') {
            text
        } else {
            text + ".0"
        }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        format!("{digits}e{sign}{:02}", exponent.abs())
    }
}

/// Python's `repr` of a text.
fn write_str_repr(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => {
                out.push('\\');
                out.push(c);
            }
            c if is_printable(c) => out.push(c),
            c => {
                let code = c as u32;
                _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
        }
    }
    out.push(quote);
}

/// Python's `str.isprintable` of one character.
pub(super) fn is_printable(c: char) -> bool {
    c == ' '
        || !matches!(
            c.general_category(),
            GeneralCategory::Control
                | GeneralCategory::Format
                | GeneralCategory::Surrogate
                | GeneralCategory::PrivateUse
                | GeneralCategory::Unassigned
                | GeneralCategory::LineSeparator
                | GeneralCategory::ParagraphSeparator
                | GeneralCategory::SpaceSeparator
        )
}

/// Python's `str.isspace` of one character.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}
