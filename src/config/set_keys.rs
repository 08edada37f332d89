//! Which keys of a config were set.

use std::collections::BTreeSet;

use toml::{Table, Value};

use super::table::is_within;

/// The keys that were set by the user, even to a default. Ignored by `==`: two configs with the same values are equal.
#[derive(Clone, Debug, Default)]
pub struct SetKeys(BTreeSet<String>);

impl PartialEq for SetKeys {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl SetKeys {
    /// The set of these keys.
    pub(super) fn of(keys: impl IntoIterator<Item = String>) -> Self {
        Self(keys.into_iter().collect())
    }

    /// Whether this key, or one within it, was set.
    pub fn contains(&self, key: &str) -> bool {
        self.0.iter().any(|set| is_within(set, key))
    }

    /// The keys, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Adds every key of `table` that has a value of its own, and sections without keys.
    pub(super) fn add_leaves(&mut self, table: &Table) {
        for (key, value) in table {
            self.add(key, value);
        }
    }

    fn add(&mut self, key: &str, value: &Value) {
        match value {
            Value::Table(table) if !table.is_empty() => {
                for (inner, value) in table {
                    self.add(&format!("{key}.{inner}"), value);
                }
            }
            _ => {
                self.0.insert(key.to_owned());
            }
        }
    }

    /// Records that `value` replaced everything at `key`.
    pub(super) fn replace(&mut self, key: &str, value: &Value) {
        self.0.retain(|known| !is_within(known, key));
        self.add(key, value);
    }
}
