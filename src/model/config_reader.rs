//! Typed access to a `config.json`, with errors that name the key.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Upper limit of a dimension, far above that of any model, so that no product of two overflows.
pub(super) const MAX_DIMENSION: usize = 1 << 22;

/// An object of a `config.json`.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    /// The object.
    pub(super) config: &'a Map<String, Value>,
    /// The file, for messages.
    pub(super) path: &'a Path,
    /// The key of the object, with a dot behind it; empty for the whole file.
    pub(super) prefix: &'a str,
}

impl<'a> Reader<'a> {
    pub(super) fn broken(&self, message: String) -> Error {
        Error::broken(self.path, message)
    }

    /// The error for a value that is valid but not supported.
    pub(super) fn unsupported(&self, what: &str) -> Error {
        Error::input(format!("{}: {what} is not supported", self.path.display()))
    }

    /// A present, non-null value.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.config.get(key).filter(|v| !v.is_null())
    }

    pub(super) fn integer(&self, key: &str, default: Option<usize>) -> Result<usize> {
        let prefix = self.prefix;
        let value = match (self.get(key), default) {
            (None, Some(default)) => return Ok(default),
            (None, None) => return Err(self.broken(format!("`{prefix}{key}` is missing"))),
            (Some(value), _) => value,
        };
        match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if n > 0 => Ok(n),
            _ => Err(self.broken(format!(
                "`{prefix}{key}` is {value}, not a positive integer"
            ))),
        }
    }

    pub(super) fn dimension(&self, key: &str, default: Option<usize>) -> Result<usize> {
        match self.integer(key, default)? {
            n @ 1..=MAX_DIMENSION => Ok(n),
            n => Err(self.broken(format!("`{key}` is {n}; the limit is {MAX_DIMENSION}"))),
        }
    }

    pub(super) fn number(&self, key: &str, default: Option<f64>) -> Result<f64> {
        let prefix = self.prefix;
        match (self.get(key), default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(self.broken(format!("`{prefix}{key}` is missing"))),
            (Some(value), _) => value
                .as_f64()
                .ok_or_else(|| self.broken(format!("`{prefix}{key}` is {value}, not a number"))),
        }
    }

    /// A finite number above 0.
    pub(super) fn positive(&self, key: &str, default: Option<f64>) -> Result<f64> {
        match self.number(key, default)? {
            n if n.is_finite() && n > 0.0 => Ok(n),
            n => Err(self.broken(format!("`{}{key}` is {n}", self.prefix))),
        }
    }

    /// A switch; missing means false.
    pub(super) fn flag(&self, key: &str) -> Result<bool> {
        self.flag_or(key, false)
    }

    /// A switch with a default.
    pub(super) fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        self.get(key).map_or(Ok(default), |value| {
            value
                .as_bool()
                .ok_or_else(|| self.broken(format!("`{key}` is {value}, not true or false")))
        })
    }

    /// The object at `key`.
    pub(super) fn section(&self, key: &str, prefix: &'a str) -> Result<Option<Self>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(config)) => Ok(Some(Self {
                config,
                path: self.path,
                prefix,
            })),
            Some(other) => Err(self.broken(format!("`{key}` is {other}, not an object"))),
        }
    }

    /// The list of numbers at `key`.
    pub(super) fn numbers(&self, key: &str) -> Result<Vec<f64>> {
        let value = self.get(key);
        value
            .and_then(Value::as_array)
            .and_then(|list| list.iter().map(Value::as_f64).collect())
            .ok_or_else(|| {
                self.broken(format!(
                    "`{}{key}` is missing or not a list of numbers",
                    self.prefix
                ))
            })
    }
}
