//! `environment.json` of a run.

use std::{fs, path::Path, process::Command};

use assert_cmd::cargo::cargo_bin;
use serde_json::Value;

use crate::{cli::MODEL, tools::require};

/// Trains one epoch in `dir` and returns the `environment.json`.
fn environment(dir: &Path) -> Value {
    let facts = "subject\trelation\tobject\nRome\tP17\tItaly\nOslo\tP17\tNorway\n";
    fs::write(dir.join("learn.tsv"), facts).unwrap();
    let output = Command::new(cargo_bin("unforget"))
        .current_dir(dir)
        .args([
            "tune",
            MODEL,
            "--learn",
            "learn.tsv",
            "--out",
            "run",
            "--force",
        ])
        .args([
            "--method",
            "sft",
            "--set",
            "data.audit=false",
            "--set",
            "train.num_epochs=1",
        ])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&fs::read(dir.join("run/environment.json")).unwrap()).unwrap()
}

fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(dir)
        .args(["-c", "user.name=test", "-c", "user.email=test@localhost"])
        .args(args)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn the_environment_names_device_model_format_and_git_revision() {
    let dir = tempfile::tempdir().unwrap();
    let outside = environment(dir.path());
    assert_eq!(outside["device"], "cpu");
    assert_eq!(outside["model"]["quantization"], "f32");
    assert_eq!(outside["model"]["hub_id"], Value::Null);
    assert_eq!(outside["git_revision"], Value::Null);
    let version = Command::new("git").arg("--version").output();
    if require(version.ok(), "git").is_none() {
        return;
    }

    git(dir.path(), &["init", "--quiet"]);
    git(dir.path(), &["add", "learn.tsv"]);
    git(dir.path(), &["commit", "--quiet", "--message", "facts"]);
    let commit = git(dir.path(), &["rev-parse", "HEAD"]);
    assert_eq!(environment(dir.path())["git_revision"], commit);

    git(dir.path(), &["rm", "--quiet", "--cached", "learn.tsv"]);
    assert_eq!(
        environment(dir.path())["git_revision"],
        format!("{commit}-dirty")
    );
}
