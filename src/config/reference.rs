//! The reference of the config, as the book has it: every key with its default and meaning. `tests/it/book.rs` compares it with the
//! program.

/// The chapter of the book.
const CHAPTER: &str = include_str!("../../book/src/config.md");

/// A key of the config.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyReference {
    /// The table that holds it, such as `train.lora`; empty at the top level.
    pub section: &'static str,
    /// Its name in the table.
    pub name: &'static str,
    /// Its default in TOML; `None` where it is absent by default.
    pub default: Option<&'static str>,
    /// What it does, in Markdown.
    pub text: &'static str,
}

impl KeyReference {
    /// The key with its section.
    pub fn path(&self) -> String {
        match self.section {
            "" => self.name.to_owned(),
            section => format!("{section}.{}", self.name),
        }
    }

    /// The first sentence of the text, as plain text.
    pub fn summary(&self) -> String {
        let end = [". ", "; "].iter().filter_map(|end| self.text.find(end));
        self.text[..end.min().unwrap_or(self.text.len())].replace('`', "")
    }
}

/// The keys that take a value, in the order of the book.
pub fn reference() -> Vec<KeyReference> {
    let mut section = "";
    let mut keys = Vec::new();
    for line in CHAPTER.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            section = match title.trim_matches('`') {
                "Top level" => "",
                name => name,
            };
        }
        let cells: Vec<&str> = line.split(" | ").collect();
        let [name, default, text] = cells[..] else {
            continue;
        };
        let Some(name) = name.strip_prefix("| `") else {
            continue;
        };
        let text = text.trim_end_matches('|').trim();
        if default == "see below" && text.is_empty() || text == "a table, see below" {
            continue;
        }
        keys.push(KeyReference {
            section,
            name: name.trim_end_matches('`'),
            default: default.strip_prefix('`').map(|d| d.trim_end_matches('`')),
            text,
        });
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_their_section_default_and_text() {
        let keys = reference();
        let find = |path: &str| *keys.iter().find(|key| key.path() == path).unwrap();
        let key = find("train.lora.target_modules");
        assert_eq!(key.default, Some(r#"["q_proj", "v_proj"]"#));
        assert_eq!(find("data.learn").default, None);
        assert_eq!(find("seed").default, Some("0"));
        assert_eq!(find("train.batch_size").summary(), "rows per batch");
        assert!(keys.len() > 60 && keys.iter().all(|key| !key.text.is_empty()));
    }
}
