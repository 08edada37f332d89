//! A term of the loss: the teacher of [`super::teacher`] that keeps its largest logits in files. They are computed in one pass, which
//! can be interrupted and continued. The files are memory-mapped, so that the operating system can reclaim their memory.
//!
//! ```text
//! index.json               what the shards were computed from, and the checksum of every complete shard
//! shard-00000.safetensors  `tokens` (P, k) u32, most likely first, and their `logits` (P, k) f32, at the P targets of some examples
//! ```

use std::{collections::BTreeMap, fs, ops::Range, path::Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    Error, Result, atomic_file,
    progress::Progress,
    prompt::{Example, MICRO_BATCH_TOKENS, micro_batches, target_offsets},
    tensor_file::{self, Dtype, TensorFile, TensorView},
};

/// Maximum number of tokens of the examples in a shard, and so of the work that an interrupt loses. Few in tests, so that there are
/// several shards.
const SHARD_TOKENS: usize = if cfg!(test) { 64 } else { 1 << 15 };

/// Bytes of a token id, and of a logit.
const WIDTH: usize = 4;

/// The largest logits of a frozen model at the targets of a fixed set of examples: exact under `vocab_subset = { top = k }`.
pub struct TopkTeacher {
    /// Tokens per target.
    k: usize,
    /// SHA-256 (hex) of the examples.
    examples: String,
    /// See [`target_offsets`].
    target_offsets: Vec<usize>,
    /// The examples of each shard.
    shard_ranges: Vec<Range<usize>>,
    /// Empty until they are built or opened.
    shards: Vec<Shard>,
}

/// `index.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Index {
    /// Tokens per target.
    k: usize,
    /// SHA-256 (hex) of the examples.
    examples: String,
    /// SHA-256 (hex) of the teacher's weights.
    weights: String,
    /// SHA-256 (hex) of every complete shard, by file name.
    shards: BTreeMap<String, String>,
}

/// A memory-mapped shard: the tensors `tokens` and `logits`.
struct Shard(TensorFile);

impl TopkTeacher {
    /// A teacher without shards, of `k` logits per target, for the examples of a run that `covered` selects.
    pub fn empty(k: usize, all: &[Example], covered: Range<usize>) -> Self {
        let (mut end, examples) = (covered.start, &all[covered.clone()]);
        let shards = micro_batches(examples, SHARD_TOKENS, Example::num_tokens);
        let shard_ranges = shards.into_iter().map(|shard| {
            end += shard.len();
            end - shard.len()..end
        });
        Self {
            k,
            shard_ranges: shard_ranges.collect(),
            examples: checksum(examples),
            target_offsets: target_offsets(all, &covered),
            shards: Vec::new(),
        }
    }

    /// Tokens per target.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Computes the shards that are not yet complete in `dir` for the same examples and weights, and opens all of them.
    ///
    /// `weights` is the checksum of the teacher's weights. `compute` returns `k` tokens and logits per target of some of the examples.
    ///
    /// # Errors
    /// Those of `compute`, after which the complete shards remain. [`Error::Io`] if a shard cannot be written.
    pub fn build(
        &mut self,
        dir: &Path,
        all: &[Example],
        weights: &str,
        progress: &Progress,
        mut compute: impl FnMut(&[Example]) -> Result<Vec<(u32, f32)>>,
    ) -> Result<()> {
        let new = Index {
            k: self.k,
            examples: self.examples.clone(),
            weights: weights.to_owned(),
            shards: BTreeMap::new(),
        };
        let mut index = Index::read(dir)
            .filter(|found| found.fingerprint() == new.fingerprint())
            .unwrap_or(new);
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let count = self.shard_ranges.iter().map(|range| range.len() as u64);
        let bar = progress.bar(count.sum(), "teacher forward pass");
        self.shards.clear();
        for (i, range) in self.shard_ranges.clone().into_iter().enumerate() {
            if let Some(shard) = self.open_shard(dir, i, &index) {
                self.shards.push(shard);
                bar.inc(range.len() as u64);
                continue;
            }
            let mut top = Vec::new();
            for micro_batch in micro_batches(&all[range], MICRO_BATCH_TOKENS, Example::num_tokens) {
                top.extend(compute(micro_batch)?);
                bar.inc(micro_batch.len() as u64);
            }
            let name = shard_name(i);
            let bytes = encode_shard(&top, self.k);
            atomic_file::write(&dir.join(&name), &bytes)?;
            index.shards.insert(name, sha256(&bytes));
            index.write(dir)?;
            let shard = self.open_shard(dir, i, &index);
            self.shards
                .push(shard.ok_or_else(|| corrupt_file(dir, &shard_name(i)))?);
        }
        Ok(())
    }

    /// Opens the shards that [`TopkTeacher::build`] wrote into `dir`, and verifies their checksums.
    ///
    /// # Errors
    /// [`Error::Failed`] naming the file that is missing or corrupt: it cannot be computed again from weights that have been trained.
    pub fn open(&mut self, dir: &Path) -> Result<()> {
        let index = Index::read(dir)
            .filter(|index| (index.k, &index.examples) == (self.k, &self.examples))
            .ok_or_else(|| corrupt_file(dir, INDEX))?;
        let open = |i| {
            self.open_shard(dir, i, &index)
                .ok_or_else(|| corrupt_file(dir, &shard_name(i)))
        };
        self.shards = (0..self.shard_ranges.len())
            .map(open)
            .collect::<Result<_>>()?;
        Ok(())
    }

    /// Shard `i`, if it has the checksum that `index` says.
    fn open_shard(&self, dir: &Path, i: usize, index: &Index) -> Option<Shard> {
        let name = shard_name(i);
        let sum = index.shards.get(&name)?;
        let file = TensorFile::open(&dir.join(&name)).ok()?;
        let Range { start, end } = self.shard_ranges[i].clone();
        let targets = self.target_offsets[end] - self.target_offsets[start];
        (sha256(file.bytes()) == *sum)
            .then(|| Shard::new(file, targets * self.k))
            .flatten()
    }

    /// The tokens at the targets of the examples with these indices, and their logits; both (P, k).
    pub fn select(&self, examples: &[usize]) -> (Vec<u32>, Vec<f32>) {
        let (mut tokens, mut logits) = (Vec::new(), Vec::new());
        for &example in examples {
            let i = self
                .shard_ranges
                .partition_point(|range| range.end <= example);
            let first = self.target_offsets[self.shard_ranges[i].start];
            let at = |target: usize| (target - first) * self.k * WIDTH;
            let bytes = at(self.target_offsets[example])..at(self.target_offsets[example + 1]);
            let shard = &self.shards[i];
            let words = |name| shard.bytes(name)[bytes.clone()].as_chunks::<WIDTH>().0;
            tokens.extend(words("tokens").iter().map(|b| u32::from_le_bytes(*b)));
            logits.extend(words("logits").iter().map(|b| f32::from_le_bytes(*b)));
        }
        (tokens, logits)
    }
}

impl Index {
    fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(dir.join(INDEX)).ok()?).ok()
    }

    fn write(&self, dir: &Path) -> Result<()> {
        let mut text = serde_json::to_vec_pretty(self).expect("the index is valid JSON");
        text.push(b'\n');
        atomic_file::write(&dir.join(INDEX), &text)
    }

    /// Key of the stored shards: they are computed again if it differs.
    fn fingerprint(&self) -> (usize, &str, &str) {
        (self.k, &self.examples, &self.weights)
    }
}

impl Shard {
    /// The shard in `file`, if both tensors have this number of values.
    fn new(file: TensorFile, values: usize) -> Option<Self> {
        let is_complete = |(name, dtype)| {
            let tensor = file.get(name);
            tensor.is_some_and(|t| t.dtype == dtype && t.bytes.len() == values * WIDTH)
        };
        [("tokens", Dtype::U32), ("logits", Dtype::F32)]
            .into_iter()
            .all(is_complete)
            .then_some(Self(file))
    }

    /// The values of `tokens` or `logits`.
    fn bytes(&self, name: &str) -> &[u8] {
        let tensor = self.0.get(name);
        tensor.expect("checked when the shard was opened").bytes
    }
}

const INDEX: &str = "index.json";

fn shard_name(i: usize) -> String {
    format!("shard-{i:05}.safetensors")
}

/// The file of a shard, with `k` of `top` per target.
fn encode_shard(top: &[(u32, f32)], k: usize) -> Vec<u8> {
    let tokens: Vec<u8> = top.iter().flat_map(|(id, _)| id.to_le_bytes()).collect();
    let logits: Vec<u8> = top.iter().flat_map(|(_, x)| x.to_le_bytes()).collect();
    let shape = [top.len() / k, k];
    let view = |dtype, bytes| TensorView {
        dtype,
        shape: &shape,
        bytes,
    };
    tensor_file::to_bytes([
        ("tokens", view(Dtype::U32, &tokens)),
        ("logits", view(Dtype::F32, &logits)),
    ])
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// SHA-256 (hex) of the tokens of `examples`.
fn checksum(examples: &[Example]) -> String {
    let mut hasher = Sha256::new();
    for tokens in examples.iter().flat_map(|e| [&e.prompt, &e.target]) {
        hasher.update((tokens.len() as u64).to_le_bytes());
        for id in tokens {
            hasher.update(id.to_le_bytes());
        }
    }
    format!("{:x}", hasher.finalize())
}

fn corrupt_file(dir: &Path, name: &str) -> Error {
    Error::Failed {
        message: format!(
            "{} is missing or corrupt, and cannot be computed again: the weights have been trained since",
            dir.join(name).display()
        ),
        hint: Some("restore the file, or remove `checkpoints` from the run directory and run `unforget resume`, which then starts over".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// Twenty examples of 7 to 13 tokens, 1 to 3 of which are targets.
    fn examples() -> Vec<Example> {
        let example = |i: u32| {
            Example::new(
                (0..6 + i % 5).collect(),
                (0..=i % 3).map(|j| 100 * i + j).collect(),
            )
        };
        (0..20).map(example).collect()
    }

    /// Two tokens per target: the example's own, and the next.
    fn logits_of(examples: &[Example]) -> Vec<(u32, f32)> {
        let targets = examples.iter().flat_map(|example| &example.target);
        targets
            .flat_map(|id| [(*id, 0.1 * *id as f32), (id + 1, -0.0)])
            .collect()
    }

    fn teacher() -> TopkTeacher {
        TopkTeacher::empty(2, &examples(), 0..20)
    }

    /// Builds the teacher in `dir`, interrupted before micro-batch `stop`. Returns the number of examples that were computed.
    fn build(dir: &Path, weights: &str, stop: usize) -> (Result<()>, usize) {
        let (mut micro_batches, mut computed) = (0, 0);
        let quiet = Progress::quiet();
        let built = teacher().build(dir, &examples(), weights, &quiet, |micro_batch| {
            if micro_batches == stop {
                return Err(Error::Interrupted {
                    hint: String::new(),
                });
            }
            micro_batches += 1;
            computed += micro_batch.len();
            Ok(logits_of(micro_batch))
        });
        (built, computed)
    }

    fn place() -> (tempfile::TempDir, PathBuf) {
        let place = tempfile::tempdir().expect("a temporary directory");
        let dir = place.path().join("teacher");
        (place, dir)
    }

    /// The stored tokens, and the bits of their logits.
    fn stored(dir: &Path, of: &[usize]) -> Result<Vec<(u32, u32)>> {
        let mut teacher = teacher();
        teacher.open(dir)?;
        let (tokens, logits) = teacher.select(of);
        let bits = logits.into_iter().map(f32::to_bits);
        Ok(tokens.into_iter().zip(bits).collect())
    }

    #[test]
    fn every_row_returns_the_stored_logits_in_any_order() {
        let (_place, dir) = place();
        let (built, computed) = build(&dir, "w", usize::MAX);
        built.expect("writable");
        assert_eq!(computed, 20);
        assert!(dir.join("shard-00002.safetensors").is_file());
        let order = [19, 3, 7, 0, 3, 12];
        let expected = order.iter().flat_map(|&i| logits_of(&examples()[i..=i]));
        let expected: Vec<(u32, u32)> = expected.map(|(id, x)| (id, x.to_bits())).collect();
        assert_eq!(stored(&dir, &order).expect("as built"), expected);
    }

    #[test]
    fn an_interrupted_build_continues_after_its_last_complete_shard() {
        let ((_a, complete), (_b, interrupted)) = (place(), place());
        build(&complete, "w", usize::MAX).0.expect("writable");
        let (error, first) = build(&interrupted, "w", 1);
        assert!(matches!(error, Err(Error::Interrupted { .. })));
        assert!(first > 0 && stored(&interrupted, &[0]).is_err());
        let (built, rest) = build(&interrupted, "w", usize::MAX);
        built.expect("writable");
        assert_eq!(first + rest, 20);
        for name in [
            "index.json",
            "shard-00000.safetensors",
            "shard-00001.safetensors",
        ] {
            let bytes = |dir: &Path| fs::read(dir.join(name)).expect("it exists");
            assert!(bytes(&interrupted) == bytes(&complete), "{name}");
        }
        // With other weights everything is computed again.
        assert_eq!(build(&interrupted, "others", usize::MAX).1, 20);
    }

    #[test]
    fn a_corrupt_shard_is_rebuilt_during_build_and_refused_by_open() {
        let (_place, dir) = place();
        build(&dir, "w", usize::MAX).0.expect("writable");
        let file = dir.join("shard-00001.safetensors");
        let complete = fs::read(&file).expect("it exists");
        let before = stored(&dir, &[8, 9]).expect("as built");
        for corrupt in [vec![], complete[..complete.len() - 4].to_vec(), {
            let mut other = complete.clone();
            *other.last_mut().expect("not empty") ^= 1;
            other
        }] {
            fs::write(&file, &corrupt).expect("writable");
            let error = stored(&dir, &[0]).expect_err("corrupt");
            assert!(error.to_string().contains("shard-00001"), "{error}");
            assert!(error.hint().is_some_and(|hint| hint.contains("resume")));
            let (built, computed) = build(&dir, "w", usize::MAX);
            built.expect("writable");
            assert!(
                computed > 0 && computed < 20,
                "{computed} examples, not those of the shard"
            );
            assert!(fs::read(&file).expect("it exists") == complete);
            assert_eq!(stored(&dir, &[8, 9]).expect("built again"), before);
        }
        fs::remove_file(dir.join("index.json")).expect("it exists");
        let error = stored(&dir, &[0]).expect_err("no index");
        assert!(error.to_string().contains("index.json"), "{error}");
    }
}
