//! The time, memory and disk of an experiment, estimated before it starts.
//!
//! Tokens and weights are counted, and the speed of this machine's matmul is measured.

use std::{
    collections::BTreeSet,
    fmt,
    ops::AddAssign,
    path::{Path, PathBuf},
};

use super::{
    file::{Arm, Experiment, ExperimentScale, FigureKind, ONLY_KNOWN},
    source::relations,
};
use crate::{
    Result,
    config::Config,
    format,
    model::Model,
    system::total_memory_bytes,
    train::{MemoryEstimate, Workload, flops_per_second},
};

/// Bytes of a weight in memory when a model is only evaluated.
const WEIGHT_BYTES: f64 = 4.0;
/// Bytes per weight on disk: two checkpoints of weights and moments, and the saved model.
const DISK_BYTES: f64 = 28.0;

/// The runs that are not recorded yet, and their cost.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Runs that are not recorded yet.
    pub runs: usize,
    /// Memory of the largest, in bytes.
    pub memory_bytes: f64,
    /// Disk space of the largest, in bytes.
    pub disk_bytes: f64,
    /// Time of all on this machine, in seconds.
    pub seconds: f64,
    /// Whether the time is an upper bound: some runs stop once enough is learned.
    pub is_upper_bound: bool,
}

impl Cost {
    /// Whether this machine has enough memory; true where its size is unknown.
    pub fn fits(&self) -> bool {
        total_memory_bytes().is_none_or(|bytes| self.memory_bytes <= bytes as f64)
    }
}

impl AddAssign for Cost {
    /// Runs one after the other.
    fn add_assign(&mut self, other: Self) {
        self.runs += other.runs;
        self.memory_bytes = self.memory_bytes.max(other.memory_bytes);
        self.disk_bytes = self.disk_bytes.max(other.disk_bytes);
        self.seconds += other.seconds;
        self.is_upper_bound |= other.is_upper_bound;
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
            if self.is_upper_bound { "at most " } else { "" },
            format::duration(self.seconds)
        )
    }
}

/// The cost of the runs of an experiment that are neither recorded in `out` nor in `counted`, to which their paths are added.
///
/// # Errors
/// When a model whose size the scale does not give cannot be loaded.
pub fn estimate(
    experiment: &Experiment,
    scale: &ExperimentScale,
    out: &Path,
    counted: &mut BTreeSet<PathBuf>,
) -> Result<Cost> {
    let mut cost = Cost::default();
    let mut flops = 0.0;
    for name in experiment.models(scale) {
        let mut workload = Workload::default();
        let mut configs: Vec<Config> = Vec::new();
        let mut any = false;
        for relation in &scale.relations {
            let mut is_pending = |rest: &str| {
                let path = out.join(experiment.record_file_name(scale, name, relation, rest));
                !path.exists() && counted.insert(path)
            };
            let mut pending: Vec<&Arm> = Vec::new();
            for seed in &scale.seeds {
                let arms = experiment.arms.iter();
                let arms = arms.filter(|arm| arm.runs_on(relation, *seed));
                pending.extend(arms.filter(|arm| is_pending(&format!("{seed}-{}", arm.name))));
            }
            let audit = experiment.figure == FigureKind::Labels && is_pending("audit");
            if !audit && pending.is_empty() {
                continue;
            }
            // One audit serves all experiments of a setup.
            if is_pending("audited") {
                let facts = relations(relation).count() * (scale.train_facts + scale.held_facts);
                workload += Workload::audit(facts * experiment.audit_num_prompts(scale));
            }
            for arm in &pending {
                let config = experiment.config(name, scale, arm, 0)?;
                let new = match arm.synthetic {
                    _ if arm.name == ONLY_KNOWN => 0,
                    Some(synthetic) => scale.num_synthetic(synthetic),
                    None => scale.unknown,
                };
                let rows = scale.known + new;
                let questions = rows + scale.held + scale.maybe_known + scale.weakly_known;
                workload += Workload::run(&config, rows, questions, new + scale.held);
                cost.is_upper_bound |= config.train.early_stopping.is_some();
                configs.push(config);
            }
            cost.runs += pending.len() + usize::from(audit);
            any = true;
        }
        if !any {
            continue;
        }
        let weights = match scale.num_parameters.get(name) {
            Some(weights) => *weights as f64,
            None => Model::load(name)?.params.layout.len as f64,
        };
        flops += workload.flops(weights);
        let memory = configs.iter().map(|config| {
            let memory = MemoryEstimate::of_weights(config, weights as u64);
            memory.total() as f64
        });
        let memory = memory.fold(WEIGHT_BYTES * weights, f64::max);
        cost.memory_bytes = cost.memory_bytes.max(memory);
        if !configs.is_empty() {
            cost.disk_bytes = cost.disk_bytes.max(DISK_BYTES * weights);
        }
    }
    if flops > 0.0 {
        cost.seconds = flops / flops_per_second();
    }
    Ok(cost)
}
