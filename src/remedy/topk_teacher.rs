//! A teacher's largest logits, in files of the run: made in one pass that can be stopped and gone on with, then mapped, so that
//! the memory they take is the system's to take back.
//!
//! ```text
//! teacher/index.json               what they were made from, and the checksum of every part that is whole
//! teacher/part-00000.safetensors   `tokens` (P, k) u32, most likely first, and their `logits` (P, k) f32, at the P targets of some rows
//! ```

use std::{collections::BTreeMap, fs, ops::Range};

use ::safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    Error, Result, distributed,
    model::FileMap,
    progress::Progress,
    prompt::{Example, MICRO_BATCH_TOKENS, micro_batches, target_offsets},
    run::{RunDir, TEACHER_DIR},
};

/// Tokens whose rows make a part: what is lost at most when the pass is stopped. Few in tests, so that there are several.
const SHARD_TOKENS: usize = if cfg!(test) { 64 } else { 1 << 15 };

/// Bytes of a token's id, and of a logit.
const WIDTH: usize = 4;

/// The largest logits of a frozen model at the targets of a fixed set of rows: exact under `tokens = { top = k }`.
pub struct TopkTeacher {
    /// Tokens a target.
    count: usize,
    /// SHA-256 (hex) of the rows.
    rows: String,
    /// The number of each row's first target, and that of all targets.
    target_offsets: Vec<usize>,
    /// The rows of each part.
    shard_rows: Vec<Range<usize>>,
    /// None until they are made or opened.
    shards: Vec<Shard>,
}

/// `index.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Index {
    /// Tokens a target.
    count: usize,
    /// SHA-256 (hex) of the rows.
    rows: String,
    /// SHA-256 (hex) of the teacher's weights.
    weights: String,
    /// SHA-256 (hex) of every part that is whole, under its name.
    shards: BTreeMap<String, String>,
}

/// A part, mapped.
struct Shard {
    map: FileMap,
    /// Where the tokens lie in the file.
    tokens: Range<usize>,
    /// Where their logits do.
    logits: Range<usize>,
}

impl TopkTeacher {
    /// A teacher that has said nothing yet, of `count` logits at each target of those of `rows` that are `asked` about.
    pub fn empty(count: usize, (rows, asked): (&[Example], Range<usize>)) -> Self {
        let (mut end, of) = (asked.start, &rows[asked.clone()]);
        let stretches = micro_batches(of, SHARD_TOKENS, Example::len)
            .into_iter()
            .map(|part| {
                end += part.len();
                end - part.len()..end
            });
        Self {
            count,
            shard_rows: stretches.collect(),
            rows: checksum(of),
            target_offsets: target_offsets(rows, &asked),
            shards: Vec::new(),
        }
    }

    /// Tokens a target.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Makes the parts that `run` does not hold whole already, of the same rows and weights, and maps all of them. Of several processes
    /// the first makes them for all.
    ///
    /// `weights` is the checksum of the teacher's; `ask` answers stretches of rows, with `count` tokens and logits a target.
    ///
    /// # Errors
    /// Those of `ask`, after which what was made before stays; when a part cannot be written.
    pub fn build(
        &mut self,
        run: &RunDir,
        rows: &[Example],
        weights: &str,
        progress: &Progress,
        mut ask: impl FnMut(&[Example]) -> Result<Vec<(u32, f32)>>,
    ) -> Result<()> {
        if !distributed::is_main() {
            distributed::barrier();
            return self.open(run);
        }
        let fresh = Index {
            count: self.count,
            rows: self.rows.clone(),
            weights: weights.to_owned(),
            shards: BTreeMap::new(),
        };
        let mut index = run
            .read_json::<Index>(&teacher_path(INDEX))
            .ok()
            .filter(|found| found.fingerprint() == fresh.fingerprint())
            .unwrap_or(fresh);
        let folder = run.file(TEACHER_DIR);
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let asked = self.shard_rows.iter().map(|stretch| stretch.len() as u64);
        let bar = progress.bar(asked.sum(), "what the teacher says");
        self.shards.clear();
        for (i, stretch) in self.shard_rows.clone().into_iter().enumerate() {
            if let Some(part) = self.open_shard(run, i, &index) {
                self.shards.push(part);
                bar.inc(stretch.len() as u64);
                continue;
            }
            let mut tops = Vec::new();
            for pass in micro_batches(&rows[stretch], MICRO_BATCH_TOKENS, Example::len) {
                tops.extend(ask(pass)?);
                bar.inc(pass.len() as u64);
            }
            let name = shard_name(i);
            let bytes = encode_shard(&tops, self.count);
            run.write(&teacher_path(&name), &bytes)?;
            index.shards.insert(name, sha256(&bytes));
            run.write_json(&teacher_path(INDEX), &index)?;
            let part = self.open_shard(run, i, &index);
            self.shards
                .push(part.ok_or_else(|| corrupt_file(run, &shard_name(i)))?);
        }
        distributed::barrier();
        Ok(())
    }

    /// Maps the parts that [`TopkTeacher::build`] has made in `run`, each as it was written.
    ///
    /// # Errors
    /// [`Error::Failed`] naming the file that is missing or broken: from trained weights it cannot be made again.
    pub fn open(&mut self, run: &RunDir) -> Result<()> {
        let index = run
            .read_json::<Index>(&teacher_path(INDEX))
            .ok()
            .filter(|index| (index.count, &index.rows) == (self.count, &self.rows))
            .ok_or_else(|| corrupt_file(run, INDEX))?;
        let open = |i| {
            self.open_shard(run, i, &index)
                .ok_or_else(|| corrupt_file(run, &shard_name(i)))
        };
        self.shards = (0..self.shard_rows.len())
            .map(open)
            .collect::<Result<_>>()?;
        Ok(())
    }

    /// The part numbered `i`, if it is what `index` says.
    fn open_shard(&self, run: &RunDir, i: usize, index: &Index) -> Option<Shard> {
        let name = shard_name(i);
        let sum = index.shards.get(&name)?;
        let map = FileMap::open(&run.file(&teacher_path(&name))).ok()?;
        let Range { start, end } = self.shard_rows[i].clone();
        let targets = self.target_offsets[end] - self.target_offsets[start];
        (sha256(&map) == *sum)
            .then(|| Shard::new(map, targets * self.count))
            .flatten()
    }

    /// The tokens at the targets of the rows numbered `rows`, and their logits; both (P, count).
    pub fn select(&self, rows: &[usize]) -> (Vec<u32>, Vec<f32>) {
        let (mut tokens, mut logits) = (Vec::new(), Vec::new());
        for &row in rows {
            let i = self.shard_rows.partition_point(|part| part.end <= row);
            let first = self.target_offsets[self.shard_rows[i].start];
            let at = |target: usize| (target - first) * self.count * WIDTH;
            let place = at(self.target_offsets[row])..at(self.target_offsets[row + 1]);
            let part = &self.shards[i];
            let words = |of: &Range<usize>| {
                let bytes = &part.map[of.clone()][place.clone()];
                bytes.as_chunks::<WIDTH>().0
            };
            tokens.extend(words(&part.tokens).iter().map(|b| u32::from_le_bytes(*b)));
            logits.extend(words(&part.logits).iter().map(|b| f32::from_le_bytes(*b)));
        }
        (tokens, logits)
    }
}

impl Index {
    /// What decides every bit of the parts.
    fn fingerprint(&self) -> (usize, &str, &str) {
        (self.count, &self.rows, &self.weights)
    }
}

impl Shard {
    /// The part in `map`, if it holds so many values of both kinds.
    fn new(map: FileMap, values: usize) -> Option<Self> {
        let (head, contents) = SafeTensors::read_metadata(&map).ok()?;
        // The length of the head comes before it.
        let data = size_of::<u64>() + head;
        let place = |name: &str, dtype: Dtype| {
            let info = contents.info(name).filter(|info| info.dtype == dtype)?;
            let (start, end) = info.data_offsets;
            (end - start == values * WIDTH).then_some(data + start..data + end)
        };
        Some(Self {
            tokens: place("tokens", Dtype::U32)?,
            logits: place("logits", Dtype::F32)?,
            map,
        })
    }
}

const INDEX: &str = "index.json";

fn shard_name(i: usize) -> String {
    format!("part-{i:05}.safetensors")
}

/// Where the teacher's file called `name` is in a run.
fn teacher_path(name: &str) -> String {
    format!("{TEACHER_DIR}/{name}")
}

/// The file of a part in which each target has `count` of `tops`.
fn encode_shard(tops: &[(u32, f32)], count: usize) -> Vec<u8> {
    let tokens: Vec<u8> = tops.iter().flat_map(|(id, _)| id.to_le_bytes()).collect();
    let logits: Vec<u8> = tops.iter().flat_map(|(_, x)| x.to_le_bytes()).collect();
    let view = |dtype, bytes| {
        let shape = vec![tops.len() / count, count];
        TensorView::new(dtype, shape, bytes).expect("every target has as many")
    };
    let views = [
        ("tokens", view(Dtype::U32, &tokens)),
        ("logits", view(Dtype::F32, &logits)),
    ];
    ::safetensors::serialize(views, None).expect("two tensors with a name each")
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// SHA-256 (hex) of the tokens of `rows`.
fn checksum(rows: &[Example]) -> String {
    let mut hasher = Sha256::new();
    for tokens in rows.iter().flat_map(|row| [&row.prompt, &row.target]) {
        hasher.update((tokens.len() as u64).to_le_bytes());
        for id in tokens {
            hasher.update(id.to_le_bytes());
        }
    }
    format!("{:x}", hasher.finalize())
}

fn corrupt_file(run: &RunDir, name: &str) -> Error {
    Error::Failed {
        message: format!(
            "{} is not what the run wrote, and cannot be made again: the weights have been trained since",
            run.file(&teacher_path(name)).display()
        ),
        hint: Some(format!(
            "bring the file back, or remove {} and call `unforget resume {}`: the run then starts over",
            run.file("checkpoints").display(),
            run.path().display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Twenty rows of 7 to 13 tokens, of which 1 to 3 are targets.
    fn rows() -> Vec<Example> {
        let row = |i: u32| Example {
            prompt: (0..6 + i % 5).collect(),
            target: (0..=i % 3).map(|j| 100 * i + j).collect(),
        };
        (0..20).map(row).collect()
    }

    /// Two tokens a target, the row's own and the next.
    fn answer(rows: &[Example]) -> Vec<(u32, f32)> {
        let targets = rows.iter().flat_map(|row| &row.target);
        targets
            .flat_map(|id| [(*id, 0.1 * *id as f32), (id + 1, -0.0)])
            .collect()
    }

    /// Makes the teacher in `run`, stopped before the pass numbered `stop`; the rows that were asked about.
    fn make(run: &RunDir, weights: &str, stop: usize) -> (Result<()>, usize) {
        let (mut passes, mut asked) = (0, 0);
        let mut teacher = TopkTeacher::empty(2, (&rows(), 0..rows().len()));
        let quiet = Progress::quiet();
        let made = teacher.build(run, &rows(), weights, &quiet, |pass| {
            if passes == stop {
                return Err(run.interrupted());
            }
            passes += 1;
            asked += pass.len();
            Ok(answer(pass))
        });
        (made, asked)
    }

    fn run_in(place: &tempfile::TempDir) -> RunDir {
        RunDir::create(&place.path().join("run")).expect("writable")
    }

    /// What the teacher in `run` says, to the bit.
    fn said(run: &RunDir, of: &[usize]) -> Result<Vec<(u32, u32)>> {
        let mut teacher = TopkTeacher::empty(2, (&rows(), 0..rows().len()));
        teacher.open(run)?;
        let (tokens, logits) = teacher.select(of);
        let bits = logits.into_iter().map(f32::to_bits);
        Ok(tokens.into_iter().zip(bits).collect())
    }

    #[test]
    fn every_row_returns_the_stored_logits_in_any_order() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let run = run_in(&place);
        let (made, asked) = make(&run, "w", usize::MAX);
        made.expect("writable");
        assert_eq!(asked, 20);
        assert!(run.file("teacher/part-00002.safetensors").is_file());
        let order = [19, 3, 7, 0, 3, 12];
        let theirs = order.iter().flat_map(|&i| answer(&rows()[i..=i]));
        let theirs: Vec<(u32, u32)> = theirs.map(|(id, x)| (id, x.to_bits())).collect();
        assert_eq!(said(&run, &order).expect("as made"), theirs);
    }

    #[test]
    fn an_interrupted_build_continues_after_its_last_complete_shard() {
        let (whole, stopped) = (tempfile::tempdir(), tempfile::tempdir());
        let whole = whole.expect("a temporary directory");
        let stopped = stopped.expect("a temporary directory");
        let (whole, stopped) = (run_in(&whole), run_in(&stopped));
        make(&whole, "w", usize::MAX).0.expect("writable");
        let (interrupted, first) = make(&stopped, "w", 1);
        assert!(matches!(interrupted, Err(Error::Interrupted { .. })));
        assert!(first > 0 && said(&stopped, &[0]).is_err());
        let (made, rest) = make(&stopped, "w", usize::MAX);
        made.expect("writable");
        assert_eq!(first + rest, 20);
        for name in [
            "index.json",
            "part-00000.safetensors",
            "part-00001.safetensors",
        ] {
            let bytes = |run: &RunDir| fs::read(run.file(&teacher_path(name))).expect("there");
            assert!(bytes(&stopped) == bytes(&whole), "{name}");
        }
        // Of other weights nothing is taken over.
        assert_eq!(make(&stopped, "others", usize::MAX).1, 20);
    }

    #[test]
    fn a_corrupt_shard_is_rebuilt_during_build_and_refused_by_open() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let run = run_in(&place);
        make(&run, "w", usize::MAX).0.expect("writable");
        let file = run.file("teacher/part-00001.safetensors");
        let whole = fs::read(&file).expect("there");
        let before = said(&run, &[8, 9]).expect("as made");
        for broken in [vec![], whole[..whole.len() - 4].to_vec(), {
            let mut other = whole.clone();
            *other.last_mut().expect("not empty") ^= 1;
            other
        }] {
            fs::write(&file, &broken).expect("writable");
            let error = said(&run, &[0]).expect_err("not as written");
            assert!(error.to_string().contains("part-00001"), "{error}");
            assert!(error.hint().is_some_and(|hint| hint.contains("resume")));
            let (made, asked) = make(&run, "w", usize::MAX);
            made.expect("writable");
            assert!(
                asked > 0 && asked < 20,
                "{asked} rows, not those of the part"
            );
            assert!(fs::read(&file).expect("there") == whole);
            assert_eq!(said(&run, &[8, 9]).expect("made again"), before);
        }
        fs::remove_file(run.file("teacher/index.json")).expect("there");
        let error = said(&run, &[0]).expect_err("no index");
        assert!(error.to_string().contains("index.json"), "{error}");
    }
}
