//! What an experiment will need, told before it is begun.
//!
//! An estimate: tokens and weights are counted, and this machine is asked how fast it multiplies. A token costs 2 operations a weight
//! forward and 4 backward; `AdamW` in f32 holds 16 bytes a weight (itself, its gradient, two moments).

use std::{
    collections::BTreeSet,
    fmt,
    ops::AddAssign,
    path::{Path, PathBuf},
    time::Instant,
};

use super::{
    file::{Arm, Experiment, ExperimentScale, FigureKind, ONLY_KNOWN},
    source::relations,
};
use crate::{Result, engine::matmul, format, model::Model, system::total_memory_bytes};

/// Tokens of a row, about: a question and its answer, less what it begins with like others.
const TOKENS_A_ROW: f64 = 15.0;
/// Tokens that asking one question reads and writes, about.
const TOKENS_ASKED: f64 = 12.0;
/// Tokens that asking it behind a few-shot prompt costs, about: the prompt is read once for all.
const TOKENS_AUDITED: f64 = 15.0;
/// Operations a weight and token: forward, and with it backward.
const ASKING: f64 = 2.0;
/// See [`ASKING`].
const TRAINING: f64 = 6.0;
/// Bytes a weight while asking.
const ASKING_BYTES: f64 = 4.0;
/// Bytes a weight while training.
const TRAINING_BYTES: f64 = 16.0;
/// Bytes a weight on disk: two checkpoints of weights and moments, and the model that is saved.
const DISK_BYTES: f64 = 28.0;

/// What is left to be run of an experiment, and what that takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Runs that are not recorded yet.
    pub runs: usize,
    /// Memory of the largest, in bytes.
    pub memory_bytes: f64,
    /// Disk of the largest, in bytes.
    pub disk_bytes: f64,
    /// Time of all on this machine, in seconds.
    pub seconds: f64,
    /// Whether that is the most it can be: some runs stop once enough is learned.
    pub is_most: bool,
}

impl Cost {
    /// Whether this machine has the memory; yes where it does not say how much it has.
    pub fn fits(&self) -> bool {
        total_memory_bytes().is_none_or(|bytes| self.memory_bytes <= bytes as f64)
    }
}

impl AddAssign for Cost {
    /// One after the other.
    fn add_assign(&mut self, other: Self) {
        self.runs += other.runs;
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.disk_bytes = self.disk_bytes.max(other.disk_bytes);
        self.seconds += other.seconds;
        self.is_most |= other.is_most;
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.runs == 0 {
            return f.write_str("nothing is left to be run");
        }
        let (memory, disk) = (self.memory_bytes as u64, self.disk_bytes as u64);
        write!(
            f,
            "{} {} to do: about {} of memory, {} of disk and {}{} of time on this machine",
            self.runs,
            if self.runs == 1 { "run" } else { "runs" },
            format::memory(memory),
            format::memory(disk),
            if self.is_most { "at most " } else { "" },
            format::duration(self.seconds)
        )
    }
}

/// What is neither recorded in `out` yet of an experiment at a scale nor among those `told` before, and about what it takes. Their
/// paths are told from now on.
///
/// # Errors
/// Where a model whose size the scale does not tell cannot be loaded.
pub fn foretold(
    experiment: &Experiment,
    scale: &ExperimentScale,
    out: &Path,
    told: &mut BTreeSet<PathBuf>,
) -> Result<Cost> {
    let mut cost = Cost::default();
    let mut operations = 0.0;
    for name in experiment.models(scale) {
        // Operations a weight; whether anything is trained, and anything to be run at all.
        let (mut a_weight, mut trained, mut any) = (0.0, false, false);
        for relation in &scale.relations {
            let mut is_left = |rest: &str| {
                let path = out.join(experiment.record_file_name(scale, name, relation, rest));
                !path.exists() && told.insert(path)
            };
            let mut left: Vec<&Arm> = Vec::new();
            for seed in &scale.seeds {
                let arms = experiment.arms.iter();
                let arms = arms.filter(|arm| arm.runs_on(relation, *seed));
                left.extend(arms.filter(|arm| is_left(&format!("{seed}-{}", arm.name))));
            }
            let audit = experiment.figure == FigureKind::Labels && is_left("audit");
            if !audit && left.is_empty() {
                continue;
            }
            // One audit serves all experiments of a setup.
            if is_left("audited") {
                let facts = relations(relation).count() * (scale.train_facts + scale.held_facts);
                let audited = (facts * experiment.audit_num_prompts(scale)) as f64;
                a_weight += ASKING * audited * TOKENS_AUDITED;
            }
            for arm in &left {
                let config = experiment.config(name, scale, arm, 0)?;
                let new = match arm.synthetic {
                    _ if arm.name == ONLY_KNOWN => 0,
                    Some(synthetic) => scale.num_synthetic(synthetic),
                    None => scale.unknown,
                };
                let rows = (scale.known + new) as f64;
                let decoys = config.method.decoys.as_ref().map_or(0.0, |d| d.ratio);
                let asked = rows + (scale.held + scale.maybe_known + scale.weakly_known) as f64;
                let epochs = config.train.num_epochs as f64;
                a_weight += TRAINING * epochs * rows * (1.0 + decoys) * TOKENS_A_ROW;
                a_weight += ASKING * (epochs + 1.0) * asked * TOKENS_ASKED;
                if config.measure.drift {
                    // Each subject's state, and each answer's beginning.
                    let looked_at = (new + scale.held) as f64;
                    a_weight += ASKING * (epochs + 1.0) * 1.5 * looked_at * TOKENS_ASKED;
                }
                cost.is_most |= config.train.early_stopping.is_some();
            }
            cost.runs += left.len() + usize::from(audit);
            trained |= !left.is_empty();
            any = true;
        }
        if !any {
            continue;
        }
        let weights = match scale.num_parameters.get(name) {
            Some(weights) => *weights as f64,
            None => Model::load(name)?.params.layout.len as f64,
        };
        operations += a_weight * weights;
        let [memory, disk] = if trained {
            [TRAINING_BYTES, DISK_BYTES]
        } else {
            [ASKING_BYTES, 0.0]
        };
        cost.memory_bytes = cost.memory_bytes.max(memory * weights);
        cost.disk_bytes = cost.disk_bytes.max(disk * weights);
    }
    if operations > 0.0 {
        cost.seconds = operations / operations_a_second();
    }
    Ok(cost)
}

/// Operations a second of this machine's matrix products, a multiplication and an addition each counted.
fn operations_a_second() -> f64 {
    const N: usize = 512;
    let (x, w) = (vec![1.0; N * N], vec![0.5; N * N]);
    let mut y = vec![0.0; N * N];
    let mut fastest = f64::INFINITY;
    for _ in 0..64 {
        let started = Instant::now();
        matmul::forward(&mut y, &x, &w, [N; 3], false);
        fastest = fastest.min(started.elapsed().as_secs_f64());
    }
    2.0 * (N * N * N) as f64 / fastest
}
