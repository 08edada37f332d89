//! `environment.json`: on what, with what and from what a run was made.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{model::Model, system};

/// What a run's figures may depend on beside its config.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Environment {
    /// Version of this program.
    pub version: String,
    /// Operating system and architecture.
    pub system: String,
    /// The processor's name.
    pub cpu: String,
    /// Threads that computed.
    pub threads: usize,
    /// Where it was computed.
    pub device: String,
    /// Seed of every draw.
    pub seed: u64,
    /// The base model.
    pub model: ModelRecord,
    /// SHA-256 (hex) of the data's files, by their key in the config.
    pub data: BTreeMap<String, String>,
}

/// Which model it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// What the user called it.
    pub name: String,
    /// Where it was read.
    pub path: String,
    /// SHA-256 (hex) over its files.
    pub checksum: String,
    /// Number of weights.
    pub parameters: usize,
}

impl Environment {
    /// Of a run that starts here and now.
    pub fn capture(model: &Model, seed: u64, data: BTreeMap<String, String>) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").into(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            cpu: system::cpu_name().unwrap_or_else(|| "unknown".into()),
            threads: rayon::current_num_threads(),
            device: "cpu".into(),
            seed,
            model: ModelRecord {
                name: model.name.clone(),
                path: model.path.display().to_string(),
                checksum: model.checksum.clone(),
                parameters: model.params.layout.len,
            },
            data,
        }
    }
}
