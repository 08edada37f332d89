//! What goes out: stdout, tables of text, and directories to be written.

use std::{
    error::Error as _,
    fs,
    io::{self, Write},
    path::Path,
};

use serde::Serialize;
use unforget::{Error, Result};

/// Prints text and a line break on stdout.
pub fn line(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .map_err(Error::io("write", Path::new("stdout")))
}

/// Prints a value as one line of JSON on stdout.
pub fn json(value: &impl Serialize) -> Result<()> {
    line(&serde_json::to_string(value).expect("results have string keys and finite numbers"))
}

/// Whether the reader of stdout went away (`| head`), which is no failure.
pub fn is_closed_pipe(error: &Error) -> bool {
    error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Columns under their heads: numbers flush right, text left.
pub fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].as_str())
            .chain([heads[column]])
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let of_numbers = |column: usize| {
        let is_number = |cell: &String| !cell.contains(char::is_alphabetic);
        rows.iter().all(|row| is_number(&row[column]))
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let render = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| {
                if of_numbers(column) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:<width$}")
                }
            })
            .collect();
        padded.join("  ").trim_end().to_owned()
    };
    let mut lines = vec![render(&mut heads.iter().copied())];
    lines.extend(
        rows.iter()
            .map(|row| render(&mut row.iter().map(String::as_str))),
    );
    lines.join("\n")
}

/// Checks before any compute that a directory can be written: it is new or empty, or `force` is given, and the place
/// lets us write. Nothing is left behind.
pub fn check_free_dir(dir: &Path, force: bool) -> Result<()> {
    if dir.exists() && !dir.is_dir() {
        return Err(Error::input_hint(
            format!("`{}` is a file, not a directory", dir.display()),
            "give another `--out`",
        ));
    }
    let mut entries = match fs::read_dir(dir) {
        Ok(entries) => Some(entries),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(unwritable(dir, &e)),
    };
    if !force && entries.as_mut().is_some_and(|e| e.next().is_some()) {
        return Err(Error::input_hint(
            format!("`{}` is there already and not empty", dir.display()),
            "give another `--out`, or `--force` to write into it",
        ));
    }
    check_writable(dir)
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

/// Writes a temporary file into the nearest directory above that exists, and takes it away again.
fn check_writable(dir: &Path) -> Result<()> {
    let there = dir
        .ancestors()
        .find(|above| above.exists())
        .filter(|above| !above.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    match tempfile::Builder::new()
        .prefix(".unforget-")
        .tempfile_in(there)
    {
        Ok(_) => Ok(()),
        Err(e) => Err(unwritable(dir, &e)),
    }
}

fn unwritable(dir: &Path, reason: &io::Error) -> Error {
    Error::input_hint(
        format!("cannot write to `{}`: {}", dir.display(), reason.kind()),
        "give a place where you may write",
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
            table(&["relation", "facts"], &rows),
            "relation  facts\nP17       1,500\ncapital       7"
        );
    }

    #[test]
    fn a_directory_with_something_in_it_is_refused_without_force() {
        let dir = tempfile::tempdir().unwrap();
        check_free_dir(dir.path(), false).unwrap();
        check_free_dir(&dir.path().join("new/deeper"), false).unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(check_free_dir(dir.path(), false).is_err());
        check_free_dir(dir.path(), true).unwrap();
        assert!(check_free_dir(&file, true).is_err());
        assert!(check_free_dir(&file.join("below"), true).is_err());
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "the check leaves nothing behind");
    }
}
