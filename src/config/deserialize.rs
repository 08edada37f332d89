//! Deserializes a config from TOML values. Errors are data (which key, what was found, what is allowed), so that the messages
//! of `read` do not depend on the wording of a library.

use std::fmt;

use serde::{
    Deserializer,
    de::{
        self, DeserializeSeed, Expected, IntoDeserializer, MapAccess, SeqAccess, Unexpected,
        Visitor, value::MapAccessDeserializer,
    },
    forward_to_deserialize_any,
};
use toml::Value;

/// Why a value is not a config.
#[derive(Debug)]
pub(super) struct Problem {
    /// The keys that lead to the value, outermost first; of an unknown or missing key, those of its section.
    pub path: Vec<String>,
    /// What is wrong there.
    pub kind: ProblemKind,
}

/// The kinds of [`Problem`].
#[derive(Debug)]
pub(super) enum ProblemKind {
    /// A key that the section does not have.
    UnknownKey {
        key: String,
        known: &'static [&'static str],
    },
    /// A word that is not among those that the key takes.
    UnknownValue {
        value: String,
        known: &'static [&'static str],
    },
    /// A section without a key that it needs.
    MissingKey(&'static str),
    /// A value of another type.
    WrongType { found: String, expected: String },
    /// Anything else.
    Other(String),
}

impl Problem {
    fn new(kind: ProblemKind) -> Self {
        Self {
            path: Vec::new(),
            kind,
        }
    }

    fn wrong_type(found: impl fmt::Display, expected: impl fmt::Display) -> Self {
        Self::new(ProblemKind::WrongType {
            found: found.to_string(),
            expected: expected.to_string(),
        })
    }

    /// The same problem, seen from the section that has `key`.
    fn within(mut self, key: String) -> Self {
        self.path.insert(0, key);
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at `{}`", self.kind, self.path.join("."))
    }
}

impl std::error::Error for Problem {}

impl de::Error for Problem {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(ProblemKind::Other(message.to_string()))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(ProblemKind::UnknownKey {
            key: field.to_owned(),
            known: expected,
        })
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(ProblemKind::UnknownValue {
            value: variant.to_owned(),
            known: expected,
        })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(ProblemKind::MissingKey(field))
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match unexpected {
            Unexpected::Bool(value) => value.to_string(),
            Unexpected::Signed(value) => value.to_string(),
            Unexpected::Unsigned(value) => value.to_string(),
            Unexpected::Float(value) => format!("{value:?}"),
            Unexpected::Str(text) => format!("{text:?}"),
            Unexpected::Seq => "a list".into(),
            Unexpected::Map => "a table".into(),
            other => other.to_string(),
        };
        Self::wrong_type(found, expected)
    }
}

/// A TOML value to be deserialized.
pub(super) struct TomlValue(pub Value);

impl TomlValue {
    /// The value as a message names it.
    fn describe(&self) -> String {
        match &self.0 {
            Value::String(text) => format!("{text:?}"),
            Value::Integer(n) => n.to_string(),
            Value::Float(x) => format!("{x:?}"),
            Value::Boolean(b) => b.to_string(),
            Value::Datetime(_) => "a date".into(),
            Value::Array(_) => "a list".into(),
            Value::Table(_) => "a table".into(),
        }
    }
}

impl<'de> Deserializer<'de> for TomlValue {
    type Error = Problem;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.0 {
            Value::String(text) => visitor.visit_string(text),
            Value::Integer(n) => visitor.visit_i64(n),
            Value::Float(x) => visitor.visit_f64(x),
            Value::Boolean(b) => visitor.visit_bool(b),
            Value::Datetime(_) => Err(Problem::wrong_type("a date", &visitor as &dyn Expected)),
            Value::Array(items) => visitor.visit_seq(Items(items.into_iter())),
            Value::Table(table) => visitor.visit_map(Entries {
                entries: table.into_iter(),
                current: None,
            }),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.0 {
            Value::Boolean(b) => visitor.visit_bool(b),
            _ => Err(Problem::wrong_type(self.describe(), "`true` or `false`")),
        }
    }

    fn deserialize_u64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.0 {
            Value::Integer(n) if n >= 0 => visitor.visit_u64(n.unsigned_abs()),
            _ => Err(Problem::wrong_type(
                self.describe(),
                "a whole number, 0 or more",
            )),
        }
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.0 {
            Value::Float(x) => visitor.visit_f64(x),
            Value::Integer(n) => visitor.visit_f64(n as f64),
            _ => Err(Problem::wrong_type(self.describe(), "a number")),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.0 {
            Value::String(text) => visitor.visit_string(text),
            _ => Err(Problem::wrong_type(self.describe(), "a string")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        self.deserialize_string(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.0 {
            Value::Array(_) => self.deserialize_any(visitor),
            _ => Err(Problem::wrong_type(self.describe(), "a list")),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> Result<V::Value, Problem> {
        let expected = format!("a list of {len}");
        match &self.0 {
            Value::Array(items) if items.len() == len => self.deserialize_any(visitor),
            Value::Array(items) => Err(Problem::wrong_type(
                format!("a list of {}", items.len()),
                expected,
            )),
            _ => Err(Problem::wrong_type(self.describe(), expected)),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        match self.0 {
            Value::Table(_) => self.deserialize_any(visitor),
            _ => Err(Problem::wrong_type(self.describe(), "a table")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Problem> {
        let found = self.describe();
        let value = match self.0 {
            Value::String(word) => visitor.visit_enum(word.into_deserializer()),
            Value::Table(table) if table.len() == 1 => {
                let entries = Entries {
                    entries: table.into_iter(),
                    current: None,
                };
                visitor.visit_enum(MapAccessDeserializer::new(entries))
            }
            _ => Err(Problem::wrong_type(&found, "")),
        };
        value.map_err(|problem| match problem.kind {
            // A word that takes a number, or a number for a word that takes none.
            ProblemKind::WrongType { .. } if problem.path.is_empty() => {
                Problem::wrong_type(found, format!("one of {}", variants.join(", ")))
            }
            _ => problem,
        })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Problem> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Problem> {
        visitor.visit_newtype_struct(self)
    }

    forward_to_deserialize_any! {
        i8 i16 i32 i64 i128 u8 u16 u32 u128 f32 char bytes byte_buf unit unit_struct tuple_struct identifier ignored_any
    }
}

/// The entries of a table; a problem in one is reported with its key.
struct Entries {
    entries: toml::map::IntoIter<String, Value>,
    current: Option<(String, Value)>,
}

impl<'de> MapAccess<'de> for Entries {
    type Error = Problem;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Problem> {
        self.current = self.entries.next();
        match &self.current {
            Some((key, _)) => seed.deserialize(key.clone().into_deserializer()).map(Some),
            None => Ok(None),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Problem> {
        let (key, value) = self.current.take().expect("a value follows its key");
        seed.deserialize(TomlValue(value))
            .map_err(|problem| problem.within(key))
    }
}

/// The values of a list.
struct Items(std::vec::IntoIter<Value>);

impl<'de> SeqAccess<'de> for Items {
    type Error = Problem;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Problem> {
        match self.0.next() {
            Some(value) => seed.deserialize(TomlValue(value)).map(Some),
            None => Ok(None),
        }
    }
}
