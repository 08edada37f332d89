//! A page as a real browser sees it.

use std::{path::Path, process::Command};

/// Opens `page` from disk in headless Chromium; the document once its script has run. A complaint on the console fails
/// the test. None, and a note, where there is no browser: `.ci/run` installs one.
#[track_caller]
pub fn open(page: &Path) -> Option<String> {
    let browser = ["chromium", "chromium-browser", "google-chrome"]
        .into_iter()
        .find(|name| Command::new(name).arg("--version").output().is_ok());
    let Some(browser) = browser else {
        eprintln!("skipped: no Chromium on the PATH (Debian: apt-get install chromium)");
        return None;
    };
    let profile = tempfile::tempdir().expect("a temporary directory");
    let result = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ])
        .args([
            "--disable-dev-shm-usage",
            "--enable-logging=stderr",
            "--v=0",
            "--dump-dom",
        ])
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("the browser starts");
    let log = String::from_utf8_lossy(&result.stderr);
    let complaints: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("CONSOLE"))
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    Some(String::from_utf8_lossy(&result.stdout).into_owned())
}
