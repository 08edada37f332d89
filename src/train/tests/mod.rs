//! Whole runs of a tiny model: what is frozen stays, what is resumed is the same, what is split up adds up.

mod continual_ewc;
mod evaluation;
#[cfg(feature = "gpu")]
mod gpu;
mod remedies;
mod resume;
mod steps;

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    time::Instant,
};

use super::{
    job::{Options, Start},
    prepare,
    prepare::{resume, tune},
    sampler::StepRows,
    step::StepError,
    trainer::Trainer,
};
use crate::{
    Error,
    config::{
        BehaviourSchedule, Config, DataFile, DecoysConfig, EwcConfig, Goal, InterpolateConfig,
        LoraConfig, LoraVariant, MethodConfig, MethodKind, OnNonFinite, ProjectConfig,
        ReplayConfig, ReplaySchedule, ReplaySelection, ReplayTarget, RowWeight,
        TeacherMode as Source, VocabSubset,
    },
    distributed::Comm,
    engine::{Gradients, Target, basis_outputs},
    model::{Model, Params},
    progress::Progress,
    prompt::{Example, PackedExamples},
    remedy::{snapshot::Snapshot, weight_penalty::WeightPenalty},
    run::{Metrics, RunDir, RunResult, Split},
};

/// Objects that the tiny model is taught.
const OBJECTS: [&str; 3] = ["Italy", "Japan", "Peru"];

fn tiny_model() -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "golden", "llama"]
        .iter()
        .collect();
    path.to_str().expect("a path in UTF-8").to_owned()
}

/// A file of `count` facts whose subjects begin with `prefix`.
fn facts_file(place: &Path, prefix: &str, count: usize) -> PathBuf {
    let path = place.join(format!("{prefix}.tsv"));
    let mut rows = vec!["subject\trelation\tobject".to_owned()];
    rows.extend((0..count).map(|i| format!("{prefix}{i}\tP17\t{}", OBJECTS[i % OBJECTS.len()])));
    fs::write(&path, rows.join("\n")).expect("writable");
    path
}

/// Three epochs of self-distillation on six known and five new facts, three rows a step.
fn config(place: &Path, out: &str) -> Config {
    let mut config = Config {
        model: tiny_model(),
        out: place.join(out),
        ..Config::default()
    };
    config.method.kind = MethodKind::SelfDistill;
    config.data.audit = None;
    config.measure.behaviour = BehaviourSchedule::Never;
    config.data.keep = vec![facts_file(place, "Ber", 6).into()];
    config.data.learn = vec![facts_file(place, "Pas", 5).into()];
    config.data.held = vec![facts_file(place, "Tor", 4)];
    config.train.num_epochs = 3;
    config.train.batch_size = 3;
    config.train.learning_rate = 1e-2;
    config.train.save_every = Some(1);
    config
}

fn weight(weight: f64) -> RowWeight {
    RowWeight::try_from(weight).expect("a good weight")
}

/// A file whose rows have this weight.
fn weighted(path: PathBuf, of_rows: f64) -> DataFile {
    DataFile {
        path,
        weight: weight(of_rows),
    }
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

const KEEP_CHECKPOINTS: Options = Options {
    device: None,
    comm: Comm::single(),
    keep_checkpoints: true,
    metrics_only: false,
    profile: false,
};

fn run(config: &Config) -> RunResult {
    tune(config, KEEP_CHECKPOINTS, &Progress::quiet()).expect("the run ends well")
}

fn weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("model/model.safetensors")).expect("the run saved its model")
}

/// The steps of a run: loss, gradient norm and learning rate, as exact bits.
fn steps(run: &Path) -> Vec<[u64; 3]> {
    let metrics = RunDir::open(run).and_then(|dir| dir.metrics());
    metrics
        .expect("a run has metrics")
        .into_iter()
        .filter_map(|row| match row {
            Metrics::Step {
                loss,
                grad_norm,
                learning_rate: lr,
                ..
            } => Some([loss, grad_norm, lr].map(f64::to_bits)),
            _ => None,
        })
        .collect()
}

/// Takes the end of a run away, as if the machine had stopped before.
fn unfinish(run: &Path) {
    for name in ["result.json", "facts.jsonl"] {
        fs::remove_file(run.join(name)).expect("the run was finished");
    }
    fs::remove_dir_all(run.join("model")).expect("the run was finished");
}

/// EWC of this strength, after no other run.
fn ewc(strength: f64) -> EwcConfig {
    EwcConfig {
        strength,
        ..EwcConfig::default()
    }
}

/// Adapters of a few linear layers.
fn lora(variant: LoraVariant) -> LoraConfig {
    LoraConfig {
        r: 3,
        target_modules: ["q_proj", "mlp.up_proj"].map(String::from).to_vec(),
        variant,
        ..LoraConfig::default()
    }
}

const VARIANTS: [LoraVariant; 3] = [LoraVariant::Lora, LoraVariant::RsLora, LoraVariant::Dora];

/// Self-distillation, changed.
fn method(change: impl FnOnce(&mut MethodConfig)) -> MethodConfig {
    let mut method = MethodConfig {
        kind: MethodKind::SelfDistill,
        ..MethodConfig::default()
    };
    change(&mut method);
    method
}

/// Four or five of six known rows an epoch, replayed.
fn replay(target: ReplayTarget, order: ReplaySelection) -> ReplayConfig {
    ReplayConfig {
        ratio: 0.4,
        target,
        selection: order,
        ..ReplayConfig::default()
    }
}

/// The rows of a step on these examples only.
fn on(rows: &[usize]) -> StepRows<'_> {
    StepRows {
        indices: rows,
        aux: Vec::new(),
    }
}

/// Takes a step as the loop does.
fn take_step(trainer: &mut Trainer, epoch: usize, rows: &StepRows<'_>) {
    let (step, strength) = (trainer.state.step + 1, trainer.state.strength());
    let learning_rate = trainer.learning_rate(step);
    let batch = trainer.sampler.batch(step, rows, strength);
    match trainer
        .student
        .step(&trainer.objective, batch, learning_rate)
    {
        Ok(outcome) => trainer
            .log_step(epoch, rows, outcome, Instant::now())
            .map(drop),
        Err(StepError::NonFinite(non_finite)) => trainer.skip_step(epoch, non_finite),
        Err(StepError::Device(error)) => Err(error),
    }
    .expect("finite, or skipped");
    trainer.state.end_step();
}

/// The tensors that a run has moved.
fn moved(config: &Config) -> Vec<String> {
    let before = Model::load(&config.model).expect("the golden model");
    let after = Model::load(config.out.join("model").to_str().expect("UTF-8")).expect("as saved");
    let bits = |model: &Model, range: Range<usize>| -> Vec<u32> {
        let values = &model.params.data[range];
        values.iter().map(|w| w.to_bits()).collect()
    };
    let tensors = before.params.layout.tensors.iter();
    let moved = tensors.filter(|t| bits(&before, t.range.clone()) != bits(&after, t.range.clone()));
    moved.map(|t| t.name.clone()).collect()
}

/// Whether two runs took the same steps within `tolerance`, relative to the larger.
fn same_steps(a: &Path, b: &Path, tolerance: f64) -> bool {
    let (a, b) = (steps(a), steps(b));
    a.len() == b.len()
        && a.iter().flatten().zip(b.iter().flatten()).all(|(a, b)| {
            let (a, b) = (f64::from_bits(*a), f64::from_bits(*b));
            (a - b).abs() <= tolerance * a.abs().max(b.abs())
        })
}
