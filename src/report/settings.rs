//! Settings and environments as table rows, and shell commands.

use crate::run::RecordedRun;

/// Settings that differ between the runs: the key, and the value of each run.
pub(super) fn differences(runs: &[RecordedRun]) -> Vec<(String, Vec<String>)> {
    let settings: Vec<Vec<(String, String)>> =
        runs.iter().map(|run| flatten_toml(&run.config)).collect();
    let mut keys: Vec<&String> = Vec::new();
    for (key, _) in settings.iter().flatten() {
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    let value = |settings: &[(String, String)], key: &str| {
        let found = settings.iter().find(|(k, _)| k == key);
        found.map_or_else(|| "–".to_owned(), |(_, value)| value.clone())
    };
    keys.into_iter()
        .map(|key| {
            (
                key.clone(),
                settings.iter().map(|s| value(s, key)).collect(),
            )
        })
        .filter(|(_, values): &(_, Vec<String>)| values.iter().any(|v| *v != values[0]))
        .collect()
}

/// All values with their dotted keys.
fn flatten_toml(table: &toml::Table) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => {
                rows.extend(
                    flatten_toml(inner)
                        .into_iter()
                        .map(|(k, v)| (format!("{key}.{k}"), v)),
                );
            }
            toml::Value::String(text) => rows.push((key.clone(), text.clone())),
            other => rows.push((key.clone(), other.to_string())),
        }
    }
    rows
}

/// All values with their dotted keys.
pub(super) fn flatten_json(value: &serde_json::Value) -> Vec<(String, String)> {
    let named = |name: String, inner: &serde_json::Value| match inner {
        serde_json::Value::String(text) => vec![(name, text.clone())],
        serde_json::Value::Object(_) | serde_json::Value::Array(_) => flatten_json(inner)
            .into_iter()
            .map(|(k, v)| (format!("{name}.{k}"), v))
            .collect(),
        plain => vec![(name, plain.to_string())],
    };
    match value {
        serde_json::Value::Object(map) => {
            map.iter().flat_map(|(k, v)| named(k.clone(), v)).collect()
        }
        serde_json::Value::Array(list) => list
            .iter()
            .enumerate()
            .flat_map(|(i, v)| named(i.to_string(), v))
            .collect(),
        plain => vec![(String::new(), plain.to_string())],
    }
}

/// The command that writes the page of `runs`.
pub(super) fn report_command(runs: &[RecordedRun]) -> String {
    let dirs: Vec<String> = runs
        .iter()
        .map(|run| shell_word(&run.dir.display().to_string()))
        .collect();
    format!("unforget report {} --out report.html", dirs.join(" "))
}

/// `text` quoted as one word for a POSIX shell.
pub(super) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_one_shell_word() {
        assert_eq!(shell_word("runs/p17"), "runs/p17");
        assert_eq!(shell_word("my run's"), r"'my run'\''s'");
    }

    #[test]
    fn nested_settings_get_dotted_names() {
        let table = toml::from_str(
            "seed = 1\n[train]\nlearning_rate = 5e-5\n[data.audit]\nnum_prompts = 20",
        )
        .expect("toml");
        let rows = flatten_toml(&table);
        assert!(
            rows.contains(&("data.audit.num_prompts".into(), "20".into())),
            "{rows:?}"
        );
        let json = serde_json::json!({"data": {"learn": ["a", 2]}, "seed": 0});
        assert_eq!(
            flatten_json(&json),
            [("data.learn.0", "a"), ("data.learn.1", "2"), ("seed", "0")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
        );
    }
}
