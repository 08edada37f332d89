//! From TOML text and single values to [`Config`], with errors that name the file, the line, the key and the nearest known key.

use std::path::Path;

use serde::Deserialize;
use toml::{Table, Value};

use super::{
    check::ConfigError,
    deserialize::{Problem, ProblemKind, TomlValue},
    key_names::{FOREIGN_VALUES, hint},
    schema::Config,
    table::{insert, is_within, remove},
};
use crate::{Error, Result, error::closest_match};

/// An override: one key and its value.
#[derive(Clone, Debug)]
pub struct Override {
    /// Where it comes from, as a message names it: `--set train.learning_rate=1e-4`, `--epochs`.
    pub source: String,
    /// The dotted key.
    pub key: String,
    /// The value.
    pub value: Value,
}

impl Override {
    /// The value of `key` that `source` gives.
    pub fn new(source: impl Into<String>, key: &str, value: impl Into<Value>) -> Self {
        Self {
            source: source.into(),
            key: key.to_owned(),
            value: value.into(),
        }
    }

    /// The value that `key=value` gives, in TOML's syntax or as a bare string.
    ///
    /// # Errors
    /// [`Error::Input`] where there is no `=`.
    pub fn parse(set: &str) -> Result<Self> {
        let (key, value) = set.split_once('=').ok_or_else(|| {
            Error::input_hint(
                format!("`--set {set}` has no `=`"),
                "write it as `--set train.learning_rate=5e-5`",
            )
        })?;
        let source = format!("--set {set}");
        Ok(Self::new(source, key.trim(), value_of(value.trim())))
    }

    /// Whether it sets `key`, a part of it or its section.
    fn touches(&self, key: &str) -> bool {
        is_within(key, &self.key) || is_within(&self.key, key)
    }
}

/// Where a config comes from, for messages.
struct Source<'a> {
    /// The file's name in backquotes, or `the config`.
    name: String,
    text: &'a str,
    overrides: &'a [Override],
}

impl Source<'_> {
    /// Where `key` was given its value.
    fn place(&self, key: &str) -> String {
        match self.overrides.iter().rfind(|o| o.touches(key)) {
            Some(given) => format!("`{}`", given.source),
            None => self.line(line_of_key(self.text, key)),
        }
    }

    fn line(&self, line: Option<usize>) -> String {
        line.map_or_else(|| self.name.clone(), |n| format!("{} line {n}", self.name))
    }

    fn report(&self, errors: &[ConfigError]) -> Result<()> {
        let lines = errors
            .iter()
            .map(|e| ErrorLine::new(format!("{}: `{}` {}", self.place(e.key), e.key, e.message)));
        report(&self.name, lines.collect())
    }
}

/// One line of an error, and its hint.
struct ErrorLine {
    message: String,
    hint: Option<String>,
}

impl ErrorLine {
    fn new(message: String) -> Self {
        Self {
            message,
            hint: None,
        }
    }
}

/// Returns one error that lists all `errors` of the config called `name`, if there are any.
fn report(name: &str, mut errors: Vec<ErrorLine>) -> Result<()> {
    match errors.len() {
        0 => Ok(()),
        1 => {
            let ErrorLine { message, hint } = errors.remove(0);
            Err(Error::Input { message, hint })
        }
        n => {
            let lines = errors.into_iter().map(|line| match line.hint {
                Some(hint) => format!("\n  {} ({hint})", line.message),
                None => format!("\n  {}", line.message),
            });
            Err(Error::input(format!(
                "{name} has {n} errors{}",
                lines.collect::<String>()
            )))
        }
    }
}

impl Config {
    /// Reads an experiment file, applies `sets` (`train.learning_rate=5e-5`) and validates the result.
    ///
    /// # Errors
    /// [`Error::Input`] that lists every error with file, line and key.
    pub fn read(path: &Path, sets: &[String]) -> Result<Self> {
        Self::build(Some(path), &parse_sets(sets)?)
    }

    /// Applies the experiment file at `path`, if given, and then `overrides` to the defaults, and validates the result.
    ///
    /// # Errors
    /// [`Error::Input`] that lists every error with its key, and the line or override that set it.
    pub fn build(path: Option<&Path>, overrides: &[Override]) -> Result<Self> {
        let text = path.map(read_text).transpose()?.unwrap_or_default();
        let source = Source {
            name: path.map_or_else(
                || "the config".into(),
                |path| format!("`{}`", path.display()),
            ),
            text: text.strip_prefix('\u{feff}').unwrap_or(&text),
            overrides,
        };
        let config = match path {
            Some(_) => parse(&source)?,
            None => Self::default(),
        };
        let config = overlay(&config, overrides)?;
        source.report(&config.errors())?;
        Ok(config)
    }

    /// This config with `sets` applied (`train.learning_rate=5e-5`, the value in TOML's syntax or a bare string). Nothing is
    /// validated.
    ///
    /// # Errors
    /// [`Error::Input`] for a set without `=`, an unknown key or a value of another type.
    pub fn with_sets(&self, sets: &[String]) -> Result<Self> {
        overlay(self, &parse_sets(sets)?)
    }

    /// Checks every value and every combination of the resolved config.
    ///
    /// # Errors
    /// One [`Error::Input`] that lists all errors.
    pub fn validate(&self) -> Result<()> {
        let source = Source {
            name: "the config".into(),
            text: "",
            overrides: &[],
        };
        source.report(&self.errors())
    }
}

fn parse_sets(sets: &[String]) -> Result<Vec<Override>> {
    sets.iter().map(|set| Override::parse(set)).collect()
}

fn read_text(path: &Path) -> Result<String> {
    let name = format!("`{}`", path.display());
    let bytes = std::fs::read(path).map_err(|reason| {
        Error::input_hint(
            format!("cannot read {name}: {reason}"),
            "give the path of an experiment file (TOML)",
        )
    })?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = line_of(e.as_bytes(), e.utf8_error().valid_up_to());
        Error::input_hint(
            format!("{name} line {line}: not UTF-8 text"),
            "an experiment file is TOML, which is UTF-8",
        )
    })?;
    if text.trim_start_matches('\u{feff}').trim().is_empty() {
        return Err(Error::input_hint(
            format!("{name} is empty"),
            "an experiment names at least a `model` and an `out` directory",
        ));
    }
    Ok(text)
}

/// The config that a file's text describes.
fn parse(source: &Source<'_>) -> Result<Config> {
    let table: Table = toml::from_str(source.text).map_err(|e| {
        let line = e
            .span()
            .map(|span| line_of(source.text.as_bytes(), span.start));
        let message = e.message().replace('\n', ", ");
        Error::input(format!("{}: not TOML: {message}", source.line(line)))
    })?;
    let (config, problems) = deserialize(table.clone());
    let mut problems: Vec<(Option<usize>, Problem)> = problems
        .into_iter()
        .map(|problem| (line_of_key(source.text, &key_of(&problem)), problem))
        .collect();
    problems.sort_by_key(|(line, _)| *line);
    let errors = problems
        .iter()
        .map(|(line, p)| describe(p, &source.line(*line)));
    report(&source.name, errors.collect())?;
    let mut config = config.expect("a table without a problem is a config");
    config.set_keys.add_leaves(&table);
    Ok(config)
}

/// Applies overrides in order.
fn overlay(config: &Config, overrides: &[Override]) -> Result<Config> {
    let mut config = config.clone();
    for given in overrides {
        let place = format!("`{}`", given.source);
        let mut root = Table::try_from(&config).map_err(|reason| {
            Error::input(format!("the config cannot be written as TOML: {reason}"))
        })?;
        insert(&mut root, &given.key, given.value.clone())
            .map_err(|part| Error::input(format!("{place}: `{part}` is not a section")))?;
        let (changed, problems) = deserialize(root);
        report(
            &place,
            problems.iter().map(|p| describe(p, &place)).collect(),
        )?;
        let mut set_keys = config.set_keys;
        set_keys.replace(&given.key, &given.value);
        config = changed.expect("a table without a problem is a config");
        config.set_keys = set_keys;
    }
    Ok(config)
}

/// The config that `table` describes, or every problem with it. Values with a problem are removed and the rest is tried again.
fn deserialize(mut table: Table) -> (Option<Config>, Vec<Problem>) {
    let mut problems: Vec<Problem> = Vec::new();
    loop {
        match Config::deserialize(TomlValue(Value::Table(table.clone()))) {
            Ok(config) if problems.is_empty() => return (Some(config), problems),
            Ok(_) => return (None, problems),
            Err(problem) => {
                let key = key_of(&problem);
                let taken_out = remove_or_parent(&mut table, &key);
                // A section from which something was taken out may lack it.
                let follows = problems.iter().any(|known| is_within(&key_of(known), &key));
                if !follows {
                    problems.push(problem);
                }
                if !taken_out {
                    return (None, problems);
                }
            }
        }
    }
}

/// Removes the value at the dotted `key`, or where it lies in a list, the list; returns whether there was one.
fn remove_or_parent(table: &mut Table, key: &str) -> bool {
    remove(table, key)
        || key
            .rsplit_once('.')
            .is_some_and(|(parent, _)| remove_or_parent(table, parent))
}

/// The dotted key that a problem is about.
fn key_of(problem: &Problem) -> String {
    let mut path = problem.path.clone();
    if let ProblemKind::UnknownKey { key, .. } = &problem.kind {
        path.push(key.clone());
    }
    path.join(".")
}

/// The error line of a problem at `place`.
fn describe(problem: &Problem, place: &str) -> ErrorLine {
    let path = problem.path.join(".");
    let line = |message: String, hint: Option<String>| ErrorLine { message, hint };
    match &problem.kind {
        ProblemKind::UnknownKey { key, known } => {
            let section = match &path[..] {
                "" => "at the top level".to_owned(),
                section => format!("in [{section}]"),
            };
            line(
                format!("{place}: unknown key `{key}` {section}"),
                Some(hint(key, &path, known)),
            )
        }
        ProblemKind::UnknownValue { value, known } => {
            let ours = FOREIGN_VALUES
                .iter()
                .find(|(key, foreign, _)| *key == path && foreign == value)
                .map(|(_, _, ours)| *ours)
                .or_else(|| closest_match(value, known.iter().copied()));
            let hint = match ours {
                Some(ours) => format!("did you mean `{ours}`?"),
                None => format!("it is one of {}", known.join(", ")),
            };
            line(format!("{place}: `{path}` is `{value}`"), Some(hint))
        }
        ProblemKind::MissingKey(key) => {
            line(format!("{place}: `{path}` needs the key `{key}`"), None)
        }
        ProblemKind::WrongType { found, expected } => line(
            format!("{place}: `{path}`: expected {expected}, found {found}"),
            None,
        ),
        ProblemKind::Other(message) => line(format!("{place}: `{path}`: {message}"), None),
    }
}

/// A value in TOML's syntax, or a bare string.
fn value_of(text: &str) -> Value {
    toml::from_str::<Table>(&format!("value = {text}"))
        .ok()
        .and_then(|mut table| table.remove("value").filter(|_| table.is_empty()))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

/// The line, from 1, of a byte offset.
fn line_of(text: &[u8], offset: usize) -> usize {
    text[..offset.min(text.len())]
        .split(|b| *b == b'\n')
        .count()
}

/// The line on which the dotted `key` gets its value in `text`; of its section, where the key itself is a default.
fn line_of_key(text: &str, key: &str) -> Option<usize> {
    let document = toml::de::DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut line = None;
    for part in key.split('.') {
        let Some((name, value)) = table.iter().find(|(name, _)| name.get_ref() == part) else {
            break;
        };
        line = Some(line_of(text.as_bytes(), name.span().start));
        match value.get_ref() {
            toml::de::DeValue::Table(inner) => table = inner,
            _ => break,
        }
    }
    line
}
