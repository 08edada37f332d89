//! TOML tables by dotted key.

use toml::{Table, Value};

/// Whether `key` is `section` or lies in it.
pub(super) fn is_within(key: &str, section: &str) -> bool {
    key.strip_prefix(section)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Puts `value` at the dotted `key`, creating sections as needed. `Err`: a parent that is not a table.
pub(super) fn insert(root: &mut Table, key: &str, value: Value) -> Result<(), String> {
    match key.split_once('.') {
        None => {
            root.insert(key.to_owned(), value);
            Ok(())
        }
        Some((section, rest)) => match root.entry(section).or_insert_with(|| Table::new().into()) {
            Value::Table(table) => insert(table, rest, value),
            _ => Err(section.to_owned()),
        },
    }
}

/// The value at the dotted `key`.
pub(super) fn get<'a>(root: &'a Table, key: &str) -> Option<&'a Value> {
    match key.split_once('.') {
        None => root.get(key),
        Some((section, rest)) => get(root.get(section)?.as_table()?, rest),
    }
}

/// Removes the value at the dotted `key`; returns whether there was one.
pub(super) fn remove(root: &mut Table, key: &str) -> bool {
    match key.split_once('.') {
        None => root.remove(key).is_some(),
        Some((section, rest)) => match root.get_mut(section) {
            Some(Value::Table(table)) => remove(table, rest),
            _ => false,
        },
    }
}

/// Merges `over` into `under`; `over` wins.
pub(super) fn merge(under: &mut Table, over: Table) {
    for (key, value) in over {
        match (under.get_mut(&key), value) {
            (Some(Value::Table(under)), Value::Table(over)) => merge(under, over),
            (_, value) => {
                under.insert(key, value);
            }
        }
    }
}
