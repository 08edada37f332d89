//! `environment.json`: the program, machine, model and data of a run.

use std::{collections::BTreeMap, process::Command};

use serde::{Deserialize, Serialize};

use crate::{config::Config, devices, model::Model, system};

/// Everything besides the config that the results of a run may depend on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of this program.
    pub version: String,
    /// Commit of the git checkout that contains the working directory, with `-dirty` if tracked files were changed; null outside a
    /// checkout or without `git`.
    #[serde(default)]
    pub git_revision: Option<String>,
    /// Operating system and architecture.
    pub system: String,
    /// Name of the processor.
    pub cpu: String,
    /// Number of threads.
    pub threads: usize,
    /// Device that the run was computed on: `cpu`.
    pub device: String,
    /// Seed of all random draws.
    pub seed: u64,
    /// The base model.
    pub model: ModelRecord,
    /// SHA-256 (hex) of the data files, by their key in the config.
    pub data: BTreeMap<String, String>,
    /// What is learned beside facts.
    #[serde(default)]
    pub texts: TextKinds,
    /// The preset that the config was resolved from, such as `auto`; null if it named a method.
    #[serde(default)]
    pub preset: Option<String>,
}

/// The kinds of texts that a run learns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextKinds {
    /// Chats, in the model's chat template.
    pub chats: bool,
    /// Completions or plain texts.
    pub other: bool,
}

/// The base model of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// Name or path that the user gave.
    pub name: String,
    /// File or directory that it was read from.
    pub path: String,
    /// Its id on the Hugging Face hub, if known.
    #[serde(default)]
    pub hub_id: Option<String>,
    /// Format of its weights as stored: a quantised format such as `Q4_1`, or a float type such as `bf16`.
    #[serde(default)]
    pub quantization: Option<String>,
    /// SHA-256 (hex) over its files.
    pub checksum: String,
    /// Number of parameters.
    pub parameters: usize,
}

/// Where the data and the settings of a run come from.
#[derive(Clone, Debug, Default)]
pub struct RunData {
    /// SHA-256 (hex), by their key in the config.
    pub checksums: BTreeMap<String, String>,
    /// What is learned beside facts.
    pub texts: TextKinds,
    /// The preset that the user named.
    pub preset: Option<String>,
}

impl Environment {
    /// The environment of a run that starts now, in this process.
    pub fn capture(model: &Model, config: &Config, data: RunData) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            git_revision: git_revision(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: system::cpu_name().unwrap_or_else(|| "unknown".into()),
            threads: rayon::current_num_threads(),
            device: devices::record_name(config.device),
            seed: config.seed,
            model: ModelRecord {
                name: model.name.clone(),
                path: model.path.display().to_string(),
                hub_id: model.hub_id.clone(),
                quantization: Some(model.quantization.to_owned()),
                checksum: model.checksum.clone(),
                parameters: model.params.layout.len,
            },
            data: data.checksums,
            texts: data.texts,
            preset: data.preset,
        }
    }
}

/// The commit of the checkout around the working directory; `None` outside a checkout.
fn git_revision() -> Option<String> {
    let output = Command::new("git")
        .args([
            "describe",
            "--always",
            "--dirty",
            "--abbrev=40",
            "--exclude=*",
        ])
        .env("GIT_OPTIONAL_LOCKS", "0")
        .output()
        .ok()?;
    let revision = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| revision.trim().to_owned())
}
