//! Output: stdout, text tables, and checks of output paths.

use std::{
    error::Error as _,
    fs,
    io::{self, Write},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, Width, presets};
use console::{Term, measure_text_width, truncate_str};
use serde::Serialize;
use unforget::{Error, Result, distributed::Comm, progress::wrap};

/// Columns between two table columns.
const COLUMN_GAP: usize = 2;

/// Maximum width of fact or model text, in columns.
const MAX_TEXT_WIDTH: usize = 80;

/// Whether this process prints nothing.
static MUTED: AtomicBool = AtomicBool::new(false);

/// Stops this process from printing on stdout. With several processes only the main one prints.
pub fn mute() {
    MUTED.store(true, Ordering::Relaxed);
}

/// Prints text and a line break on stdout.
pub fn line(text: &str) -> Result<()> {
    part(&format!("{text}\n"))
}

/// As [`line`], for sentences: in a terminal, lines are broken between words.
pub fn sentences(text: &str) -> Result<()> {
    match terminal_width() {
        Some(width) => line(&wrap(text, width)),
        None => line(text),
    }
}

/// As [`sentences`], for a long one of several clauses: in a terminal, each clause after the second has a line of its own.
pub fn clauses(text: &str) -> Result<()> {
    match terminal_width() {
        Some(width) => line(&clause_lines(text, width)),
        None => line(text),
    }
}

/// `a; b` on a line, then `  c`, `  d`, each in `width` columns.
fn clause_lines(text: &str, width: usize) -> String {
    let clauses: Vec<&str> = text.split("; ").collect();
    let (first, others) = clauses.split_at(clauses.len().min(2));
    let mut lines = vec![wrap(&first.join("; "), width)];
    for clause in others {
        let wrapped = wrap(clause, width.saturating_sub(2));
        lines.extend(wrapped.lines().map(|line| format!("  {line}")));
    }
    lines.join("\n")
}

/// Prints a part of a line on stdout.
pub fn part(text: &str) -> Result<()> {
    if MUTED.load(Ordering::Relaxed) {
        return Ok(());
    }
    let mut stdout = io::stdout().lock();
    write!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .map_err(Error::io("write", Path::new("stdout")))
}

/// Prints a value as one line of JSON on stdout.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string(value).expect("results have string keys and finite numbers"))
}

/// Whether the reader of stdout has closed it (`| head`), which is not a failure.
pub fn is_closed_pipe(error: &Error) -> bool {
    error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Width of the terminal in columns, if stdout is a terminal.
pub fn terminal_width() -> Option<usize> {
    let (_, columns) = Term::stdout().size_checked()?;
    Some(columns.into())
}

/// A table: numbers right-aligned, text left-aligned, wrapped at word boundaries to `width`.
pub fn table(headers: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(headers)
        .add_rows(rows);
    let widest = usize::from(table.column_max_content_widths().iter().sum::<u16>());
    let gaps = COLUMN_GAP * headers.len().saturating_sub(1);
    let wrap_width = width.filter(|width| *width < widest + gaps);
    if let Some(width) = wrap_width {
        table
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width as u16);
    }
    for (i, column) in table.column_iter_mut().enumerate() {
        let cells = || rows.iter().map(|row| row[i].as_str());
        if !cells().any(|cell| cell.contains(char::is_alphabetic)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let gap = if i == 0 { 0 } else { COLUMN_GAP };
        column.set_padding((gap as u16, 0));
        if wrap_width.is_some() {
            let words = cells().chain([headers[i]]).flat_map(str::split_whitespace);
            let longest = words.map(measure_text_width).max().unwrap_or_default();
            let min_width = Width::Fixed((longest + gap) as u16);
            column.set_constraint(ColumnConstraint::LowerBoundary(min_width));
        }
    }
    table.trim_fmt()
}

/// Fact or model text on one line of at most [`MAX_TEXT_WIDTH`] columns; control characters are replaced.
pub fn single_line(text: &str) -> String {
    let one_line = text.trim().replace(char::is_whitespace, " ");
    truncate_str(&sanitize(&one_line), MAX_TEXT_WIDTH, "…").into_owned()
}

/// Fact or model text over several lines; control characters are replaced.
pub fn sanitize(text: &str) -> String {
    let harmless = |c: char| match c {
        '\n' | '\t' => c,
        // They change the direction of the text after them.
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => char::REPLACEMENT_CHARACTER,
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(harmless).collect()
}

/// Checks before any compute that a directory can be written: it is new or empty, or `force` is given, and it is writable. Nothing is
/// left behind.
pub fn check_output_dir(dir: &Path, force: bool, comm: Comm) -> Result<()> {
    if dir.exists() && !dir.is_dir() {
        return Err(Error::input_hint(
            format!("`{}` is a file, not a directory", dir.display()),
            "give another `--out`",
        ));
    }
    let mut entries = match fs::read_dir(dir) {
        Ok(entries) => Some(entries),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(not_writable(dir, &e)),
    };
    if !force && entries.as_mut().is_some_and(|e| e.next().is_some()) {
        return Err(Error::input_hint(
            format!("`{}` already exists and is not empty", dir.display()),
            "give another `--out`, or `--force` to write into it",
        ));
    }
    // No process writes before all have checked.
    comm.barrier();
    check_writable(dir)?;
    comm.barrier();
    Ok(())
}

/// Checks before any compute that a file can be written there. Nothing is left behind.
pub fn check_writable_file(file: &Path) -> Result<()> {
    if file.is_dir() {
        return Err(Error::input_hint(
            format!("`{}` is a directory, not a file", file.display()),
            "give the name of a file in it",
        ));
    }
    check_writable(file.parent().unwrap_or(Path::new("")))
}

/// Writes a temporary file into the nearest existing directory above, and removes it.
fn check_writable(dir: &Path) -> Result<()> {
    let existing = dir
        .ancestors()
        .find(|above| above.exists())
        .filter(|above| !above.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    match tempfile::Builder::new()
        .prefix(".unforget-")
        .tempfile_in(existing)
    {
        Ok(_) => Ok(()),
        Err(e) => Err(not_writable(dir, &e)),
    }
}

fn not_writable(dir: &Path, reason: &io::Error) -> Error {
    Error::input_hint(
        format!("cannot write to `{}`: {}", dir.display(), reason.kind()),
        "give a path in a writable directory",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_up_its_columns() {
        let rows = [
            vec!["P17".into(), "1,500".into()],
            vec!["capital".into(), "7".into()],
        ];
        assert_eq!(
            table(&["relation", "facts"], &rows, None),
            "relation  facts\nP17       1,500\ncapital       7"
        );
    }

    #[test]
    fn a_table_too_wide_is_broken_between_words() {
        let rows = [vec![
            "is the capital of".into(),
            "1,500".into(),
            "right almost always".into(),
        ]];
        let heads = ["relation", "new facts", "how right"];
        insta::assert_snapshot!(table(&heads, &rows, Some(30)), @r"
        relation       new  how right
                     facts
        is the       1,500  right
        capital of          almost
                            always
        ");
        assert_eq!(table(&heads, &rows, Some(49)), table(&heads, &rows, None));
    }

    #[test]
    fn control_characters_in_model_text_are_replaced() {
        assert_eq!(
            single_line(" It\u{1b}[2Jaly\tis\r\u{9b}1m\u{202e}so\u{7f} "),
            "It\u{fffd}[2Jaly is \u{fffd}1m\u{fffd}so\u{fffd}"
        );
        assert_eq!(single_line("東京 Zürich"), "東京 Zürich");
        assert_eq!(
            measure_text_width(&single_line(&"東京".repeat(40))),
            MAX_TEXT_WIDTH - 1
        );
    }

    #[test]
    fn a_directory_with_something_in_it_is_refused_without_force() {
        let dir = tempfile::tempdir().unwrap();
        check_output_dir(dir.path(), false, Comm::single()).unwrap();
        check_output_dir(&dir.path().join("new/deeper"), false, Comm::single()).unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(check_output_dir(dir.path(), false, Comm::single()).is_err());
        check_output_dir(dir.path(), true, Comm::single()).unwrap();
        assert!(check_output_dir(&file, true, Comm::single()).is_err());
        assert!(check_output_dir(&file.join("below"), true, Comm::single()).is_err());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "the check leaves nothing behind");
    }
}
