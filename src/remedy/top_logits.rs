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

use super::distill::first_targets;
use crate::{
    Error, Result,
    model::FileMap,
    progress::Progress,
    prompt::Row,
    ranks,
    run::{RunDir, TEACHER},
    train::batches::{PASS_TOKENS, passes},
};

/// Tokens whose rows make a part: what is lost at most when the pass is stopped. Few in tests, so that there are several.
const PART_TOKENS: usize = if cfg!(test) { 64 } else { 1 << 15 };

/// Bytes of a token's id, and of a logit.
const WIDTH: usize = 4;

/// The largest logits of a frozen model at the targets of a fixed set of rows: exact under `tokens = { top = k }`.
pub struct TopLogits {
    /// Tokens a target.
    count: usize,
    /// SHA-256 (hex) of the rows.
    rows: String,
    /// The number of each row's first target, and that of all targets.
    first_targets: Vec<usize>,
    /// The rows of each part.
    stretches: Vec<Range<usize>>,
    /// None until they are made or opened.
    parts: Vec<Part>,
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
    parts: BTreeMap<String, String>,
}

/// A part, mapped.
struct Part {
    map: FileMap,
    /// Where the tokens lie in the file.
    tokens: Range<usize>,
    /// Where their logits do.
    logits: Range<usize>,
}

impl TopLogits {
    /// A teacher that has said nothing yet, of `count` logits at each target of those of `rows` that are `asked` about.
    pub fn empty(count: usize, (rows, asked): (&[Row], Range<usize>)) -> Self {
        let (mut end, of) = (asked.start, &rows[asked.clone()]);
        let stretches = passes(of, PART_TOKENS, Row::len).into_iter().map(|part| {
            end += part.len();
            end - part.len()..end
        });
        Self {
            count,
            stretches: stretches.collect(),
            rows: checksum(of),
            first_targets: first_targets(rows, &asked),
            parts: Vec::new(),
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
    pub fn make(
        &mut self,
        run: &RunDir,
        rows: &[Row],
        weights: &str,
        progress: &Progress,
        mut ask: impl FnMut(&[Row]) -> Result<Vec<(u32, f32)>>,
    ) -> Result<()> {
        if !ranks::is_first() {
            ranks::wait();
            return self.open(run);
        }
        let fresh = Index {
            count: self.count,
            rows: self.rows.clone(),
            weights: weights.to_owned(),
            parts: BTreeMap::new(),
        };
        let mut index = run
            .read_json::<Index>(&in_folder(INDEX))
            .ok()
            .filter(|found| found.made_of() == fresh.made_of())
            .unwrap_or(fresh);
        let folder = run.file(TEACHER);
        fs::create_dir_all(&folder).map_err(Error::io("create", &folder))?;
        let asked = self.stretches.iter().map(|stretch| stretch.len() as u64);
        let bar = progress.bar(asked.sum(), "what the teacher says");
        self.parts.clear();
        for (i, stretch) in self.stretches.clone().into_iter().enumerate() {
            if let Some(part) = self.open_part(run, i, &index) {
                self.parts.push(part);
                bar.inc(stretch.len() as u64);
                continue;
            }
            let mut tops = Vec::new();
            for pass in passes(&rows[stretch], PASS_TOKENS, Row::len) {
                tops.extend(ask(pass)?);
                bar.inc(pass.len() as u64);
            }
            let name = part_name(i);
            let bytes = part_bytes(&tops, self.count);
            run.write(&in_folder(&name), &bytes)?;
            index.parts.insert(name, sha256(&bytes));
            run.write_json(&in_folder(INDEX), &index)?;
            let part = self.open_part(run, i, &index);
            self.parts
                .push(part.ok_or_else(|| not_as_written(run, &part_name(i)))?);
        }
        ranks::wait();
        Ok(())
    }

    /// Maps the parts that [`TopLogits::make`] has made in `run`, each as it was written.
    ///
    /// # Errors
    /// [`Error::Failed`] naming the file that is missing or broken: from trained weights it cannot be made again.
    pub fn open(&mut self, run: &RunDir) -> Result<()> {
        let index = run
            .read_json::<Index>(&in_folder(INDEX))
            .ok()
            .filter(|index| (index.count, &index.rows) == (self.count, &self.rows))
            .ok_or_else(|| not_as_written(run, INDEX))?;
        let open = |i| {
            self.open_part(run, i, &index)
                .ok_or_else(|| not_as_written(run, &part_name(i)))
        };
        self.parts = (0..self.stretches.len()).map(open).collect::<Result<_>>()?;
        Ok(())
    }

    /// The part numbered `i`, if it is what `index` says.
    fn open_part(&self, run: &RunDir, i: usize, index: &Index) -> Option<Part> {
        let name = part_name(i);
        let sum = index.parts.get(&name)?;
        let map = FileMap::open(&run.file(&in_folder(&name))).ok()?;
        let Range { start, end } = self.stretches[i].clone();
        let targets = self.first_targets[end] - self.first_targets[start];
        (sha256(&map) == *sum)
            .then(|| Part::new(map, targets * self.count))
            .flatten()
    }

    /// The tokens at the targets of the rows numbered `rows`, and their logits; both (P, count).
    pub fn of(&self, rows: &[usize]) -> (Vec<u32>, Vec<f32>) {
        let (mut tokens, mut logits) = (Vec::new(), Vec::new());
        for &row in rows {
            let i = self.stretches.partition_point(|part| part.end <= row);
            let first = self.first_targets[self.stretches[i].start];
            let at = |target: usize| (target - first) * self.count * WIDTH;
            let place = at(self.first_targets[row])..at(self.first_targets[row + 1]);
            let part = &self.parts[i];
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
    fn made_of(&self) -> (usize, &str, &str) {
        (self.count, &self.rows, &self.weights)
    }
}

impl Part {
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

fn part_name(i: usize) -> String {
    format!("part-{i:05}.safetensors")
}

/// Where the teacher's file called `name` is in a run.
fn in_folder(name: &str) -> String {
    format!("{TEACHER}/{name}")
}

/// The file of a part in which each target has `count` of `tops`.
fn part_bytes(tops: &[(u32, f32)], count: usize) -> Vec<u8> {
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
fn checksum(rows: &[Row]) -> String {
    let mut hasher = Sha256::new();
    for tokens in rows.iter().flat_map(|row| [&row.prompt, &row.target]) {
        hasher.update((tokens.len() as u64).to_le_bytes());
        for id in tokens {
            hasher.update(id.to_le_bytes());
        }
    }
    format!("{:x}", hasher.finalize())
}

fn not_as_written(run: &RunDir, name: &str) -> Error {
    Error::Failed {
        message: format!(
            "{} is not what the run wrote, and cannot be made again: the weights have been trained since",
            run.file(&in_folder(name)).display()
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
    fn rows() -> Vec<Row> {
        let row = |i: u32| Row {
            prompt: (0..6 + i % 5).collect(),
            target: (0..=i % 3).map(|j| 100 * i + j).collect(),
        };
        (0..20).map(row).collect()
    }

    /// Two tokens a target, the row's own and the next.
    fn answer(rows: &[Row]) -> Vec<(u32, f32)> {
        let targets = rows.iter().flat_map(|row| &row.target);
        targets
            .flat_map(|id| [(*id, 0.1 * *id as f32), (id + 1, -0.0)])
            .collect()
    }

    /// Makes the teacher in `run`, stopped before the pass numbered `stop`; the rows that were asked about.
    fn make(run: &RunDir, weights: &str, stop: usize) -> (Result<()>, usize) {
        let (mut passes, mut asked) = (0, 0);
        let mut teacher = TopLogits::empty(2, (&rows(), 0..rows().len()));
        let quiet = Progress::quiet();
        let made = teacher.make(run, &rows(), weights, &quiet, |pass| {
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
        let mut teacher = TopLogits::empty(2, (&rows(), 0..rows().len()));
        teacher.open(run)?;
        let (tokens, logits) = teacher.of(of);
        let bits = logits.into_iter().map(f32::to_bits);
        Ok(tokens.into_iter().zip(bits).collect())
    }

    #[test]
    fn every_row_is_answered_as_the_teacher_said_in_any_order() {
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
    fn a_pass_that_was_stopped_goes_on_after_its_last_whole_part() {
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
            let bytes = |run: &RunDir| fs::read(run.file(&in_folder(name))).expect("there");
            assert!(bytes(&stopped) == bytes(&whole), "{name}");
        }
        // Of other weights nothing is taken over.
        assert_eq!(make(&stopped, "others", usize::MAX).1, 20);
    }

    #[test]
    fn a_broken_part_is_made_again_while_that_can_be_and_refused_by_name_afterwards() {
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
