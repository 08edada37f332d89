//! The cache of audits. The key is a checksum of everything that an audit depends on.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::settings::AuditSettings;
use crate::{Result, facts::Fact, hub::cache_dir, model::Model};

/// Incremented when the same input gives another audit.
const VERSION: u32 = 1;

/// SHA-256 (hex) of the weights in memory, the model's files, facts, exemplars and settings.
pub fn key(
    model: &Model,
    facts: &[Fact],
    exemplars: Option<&[Fact]>,
    settings: &AuditSettings,
) -> String {
    let mut hash = Sha256::new();
    let row = |f: &Fact| {
        let texts = (&f.relation, &f.subject, &f.question, &f.object);
        serde_json::to_vec(&(texts, f.accepted_answers())).expect("plain data is JSON")
    };
    hash.update(format!("{VERSION} {}\n", model.checksum));
    hash.update(bytemuck::cast_slice::<f32, u8>(&model.params.data));
    if let Some(adapters) = &model.params.low_rank {
        hash.update(bytemuck::cast_slice::<f32, u8>(&adapters.params.data));
    }
    hash.update(serde_json::to_vec(settings).expect("plain data is JSON"));
    for set in [Some(facts), exemplars] {
        hash.update(format!("\n{:?}\n", set.map(<[Fact]>::len)));
        set.into_iter().flatten().for_each(|f| hash.update(row(f)));
    }
    format!("{:x}", hash.finalize())
}

/// The directory of the audit with this key.
///
/// # Errors
/// When there is no cache directory.
pub fn path(key: &str) -> Result<PathBuf> {
    Ok(cache_dir()?.join("audits").join(&key[..32]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_weight_fact_or_setting_changes_the_key() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        let mut model = Model::load(path).expect("the golden model is there");
        let fact = Fact::for_test("Rome", "Italy");
        let facts = [fact];
        let settings = AuditSettings::default();
        let first = key(&model, &facts, None, &settings);
        assert_eq!(first, key(&model, &facts, None, &settings));
        assert_ne!(first, key(&model, &facts, Some(&facts), &settings));
        assert_ne!(first, key(&model, &[], None, &settings));
        let other = AuditSettings {
            seed: 1,
            ..settings.clone()
        };
        assert_ne!(first, key(&model, &facts, None, &other));
        model.params.data[7] += 1e-3;
        assert_ne!(first, key(&model, &facts, None, &settings));
    }
}
