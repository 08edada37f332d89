//! Whole runs of a tiny model: what is frozen stays, what is resumed is the same, what is split up adds up.

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
};

use super::*;
use crate::{
    config::{
        Decoys, Ewc, Goal, Interpolate, Kind, Lora, LoraVariant, Method, Project, Replay,
        ReplaySchedule, TargetToken, Teacher as Source, Tokens,
    },
    engine::{Target, responses},
    model::Params,
    train::batches::PackedRows,
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
    config.data.audit = None;
    config.data.keep = vec![facts_file(place, "Ber", 6)];
    config.data.learn = vec![facts_file(place, "Pas", 5)];
    config.data.held = vec![facts_file(place, "Tor", 4)];
    config.train.epochs = 3;
    config.train.batch_size = 3;
    config.train.lr = 1e-2;
    config.train.checkpoint_every = Some(1);
    config
}

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

const KEEP: Options = Options {
    keep_checkpoints: true,
};

fn run(config: &Config) -> RunResult {
    tune(config, KEEP, &Progress::quiet()).expect("the run ends well")
}

fn weights(run: &Path) -> Vec<u8> {
    fs::read(run.join("model/model.safetensors")).expect("the run saved its model")
}

/// The steps of a run: loss, gradient norm and learning rate, to the bit.
fn steps(run: &Path) -> Vec<[u64; 3]> {
    let metrics = RunDir::open(run).and_then(|dir| dir.metrics());
    metrics
        .expect("a run has metrics")
        .into_iter()
        .filter_map(|row| match row {
            Metrics::Step {
                loss,
                grad_norm,
                lr,
                ..
            } => Some([loss, grad_norm, lr].map(f64::to_bits)),
            _ => None,
        })
        .collect()
}

fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(run.join("checkpoints"))
        .expect("checkpoints were kept")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
}

/// Takes the end of a run away, as if the machine had stopped before.
fn unfinish(run: &Path) {
    for name in ["result.json", "facts.jsonl"] {
        fs::remove_file(run.join(name)).expect("the run was finished");
    }
    fs::remove_dir_all(run.join("model")).expect("the run was finished");
}

fn resumed_equals_uninterrupted(method: Method) {
    resumed_on_adapters_equals_uninterrupted(method, None);
}

/// On these adapters, or on whole tensors.
fn resumed_on_adapters_equals_uninterrupted(method: Method, lora: Option<Lora>) {
    let place = temporary();
    let mut whole = config(place.path(), "whole");
    (whole.method, whole.train.lora) = (method, lora);
    run(&whole);
    let stopped = Config {
        out: place.path().join("stopped"),
        ..whole.clone()
    };
    run(&stopped);
    unfinish(&stopped.out);
    let last = checkpoints(&stopped.out).pop().expect("two were kept");
    fs::remove_dir_all(last).expect("removable");

    resume(&stopped.out, KEEP, &Progress::quiet()).expect("it goes on");
    assert_eq!(steps(&stopped.out), steps(&whole.out));
    assert!(weights(&stopped.out) == weights(&whole.out));
    if whole.train.lora.is_some() {
        assert!(adapter(&stopped.out) == adapter(&whole.out));
    }
}

fn adapter(run: &Path) -> Vec<u8> {
    fs::read(run.join("adapter/adapter_model.safetensors")).expect("the run saved its adapter")
}

/// EWC of this strength, after no other run.
fn ewc(strength: f64) -> Ewc {
    Ewc {
        strength,
        ..Ewc::default()
    }
}

/// Adapters of a few linear layers.
fn lora(variant: LoraVariant) -> Lora {
    Lora {
        rank: 3,
        targets: ["q_proj", "mlp.up_proj"].map(String::from).to_vec(),
        variant,
        ..Lora::default()
    }
}

const VARIANTS: [LoraVariant; 3] = [LoraVariant::Lora, LoraVariant::RsLora, LoraVariant::Dora];

/// Self-distillation, changed.
fn method(change: impl FnOnce(&mut Method)) -> Method {
    let mut method = Method::default();
    change(&mut method);
    method
}

#[test]
fn resumed_equals_uninterrupted_with_every_teacher() {
    for teacher in [Source::Hidden, Source::Live] {
        resumed_equals_uninterrupted(method(|m| m.teacher = teacher));
    }
    resumed_equals_uninterrupted(method(|m| {
        (m.teacher, m.tokens) = (Source::Topk, Tokens::Top(9));
    }));
    resumed_equals_uninterrupted(method(|m| m.tokens = Tokens::Random(9)));
    resumed_equals_uninterrupted(method(|m| m.target_token = TargetToken::LeftOut));
}

/// Self-distillation from the likeliest tokens, with decoys, and no checkpoint but the one before its teacher is made.
fn kept_in_files(place: &Path, out: &str) -> Config {
    let mut config = config(place, out);
    config.method.tokens = Tokens::Top(9);
    config.method.decoys = Some(Decoys::default());
    config.train.checkpoint_every = Some(100);
    config
}

/// When each part of the run's teacher was written, and what it holds.
fn parts(run: &Path) -> Vec<(std::time::SystemTime, Vec<u8>)> {
    let part = |i: usize| run.join(format!("teacher/part-{i:05}.safetensors"));
    let found = (0..).map(part).take_while(|path| path.is_file());
    found
        .map(|path| {
            let written = fs::metadata(&path).and_then(|m| m.modified());
            let bytes = fs::read(&path).expect("readable");
            (written.expect("known"), bytes)
        })
        .collect()
}

#[test]
fn a_run_stopped_while_its_teacher_is_made_goes_on_with_the_parts_that_are_whole() {
    let place = temporary();
    let config = kept_in_files(place.path(), "run");
    run(&config);
    let (weights_before, steps_before) = (weights(&config.out), steps(&config.out));
    let before = parts(&config.out);
    assert!(before.len() > 2, "{} parts", before.len());

    // As after a kill in the middle of the pass: the first part alone is there, and no checkpoint has the snapshot.
    unfinish(&config.out);
    assert_eq!(checkpoints(&config.out).len(), 1);
    assert!(!config.out.join("checkpoints/snapshot.safetensors").exists());
    let dir = RunDir::open(&config.out).expect("a run");
    let mut index: serde_json::Value = dir.read_json("teacher/index.json").expect("written");
    let listed = index["parts"].as_object_mut().expect("parts");
    listed.retain(|name, _| name.contains("00000"));
    dir.write_json("teacher/index.json", &index)
        .expect("writable");
    for i in 1..before.len() {
        fs::remove_file(config.out.join(format!("teacher/part-{i:05}.safetensors")))
            .expect("it was made");
    }

    resume(&config.out, KEEP, &Progress::quiet()).expect("it goes on");
    let after = parts(&config.out);
    assert_eq!(after[0].0, before[0].0, "the whole part was not made again");
    for ((_, after), (_, before)) in after.iter().zip(&before) {
        assert!(after == before);
    }
    assert_eq!(after.len(), before.len());
    assert_eq!(steps(&config.out), steps_before);
    assert!(weights(&config.out) == weights_before);
}

#[test]
fn a_broken_part_of_a_teacher_is_noticed_and_the_run_can_start_over() {
    let place = temporary();
    let mut config = kept_in_files(place.path(), "run");
    config.train.checkpoint_every = Some(1);
    run(&config);
    let weights_before = weights(&config.out);
    unfinish(&config.out);
    let file = config.out.join("teacher/part-00001.safetensors");
    let mut bytes = fs::read(&file).expect("it was made");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(&file, bytes).expect("writable");

    let error = resume(&config.out, KEEP, &Progress::quiet()).expect_err("a broken part");
    assert!(error.to_string().contains("part-00001"), "{error}");
    assert_eq!(error.exit_code(), 1);
    fs::remove_dir_all(config.out.join("checkpoints")).expect("as the error's hint says");
    resume(&config.out, Options::default(), &Progress::quiet()).expect("it starts over");
    assert!(weights(&config.out) == weights_before);
    assert!(!config.out.join("teacher").exists(), "not kept at the end");
}

#[test]
fn resumed_equals_uninterrupted_with_anchored_weights() {
    resumed_equals_uninterrupted(method(|m| m.kind = Kind::L2));
    resumed_equals_uninterrupted(method(|m| {
        (m.kind, m.ewc) = (Kind::Sft, Some(ewc(3.0)));
    }));
}

#[test]
fn resumed_equals_uninterrupted_with_decoys() {
    for kind in [Kind::Sft, Kind::SelfDistill] {
        resumed_equals_uninterrupted(method(|m| {
            (m.kind, m.decoys) = (kind, Some(Decoys::default()));
        }));
    }
}

#[test]
fn resumed_equals_uninterrupted_under_auto() {
    resumed_equals_uninterrupted(method(|m| m.kind = Kind::Auto));
    // A budget's best model is kept and taken back as the average.
    resumed_equals_uninterrupted(method(|m| (m.kind, m.budget) = (Kind::Auto, Some(5.0))));
}

#[test]
fn what_is_saved_and_asked_is_the_average_of_the_weights_after_each_step() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    config.method.kind = Kind::Sft;
    config.train.average = Some(0.5);
    let progress = Progress::quiet();
    let mut trainer = prepare::trainer(&config, KEEP, &progress).expect("a good config");
    trainer.begin().expect("writable");
    trainer.train().expect("finite");
    let moved = trainer.model.params.data.to_vec();
    let average = trainer.optimiser.average.as_ref().expect("asked for");
    let average = average.weights.to_vec();
    assert!(moved != average);
    trainer.finish().expect("writable");
    let saved = Model::load(&config.out.join("model").display().to_string()).expect("saved");
    // All tensors are trained, so that the average lies as the weights do.
    assert!(saved.params.data[..] == average[..]);
}

#[test]
fn every_epoch_visits_its_share_of_a_pool_of_decoys() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    (config.method.kind, config.method.decoys) = (
        Kind::Sft,
        Some(Decoys {
            share: 0.4,
            pool: Some(1.0),
            ..Decoys::default()
        }),
    );
    let progress = Progress::quiet();
    let mut trainer = prepare::trainer(&config, KEEP, &progress).expect("a good config");
    trainer.make_decoys().expect("there are names");
    // Of 11 rows.
    assert_eq!(trainer.rows.len(), 22);
    let visited = |epoch: usize| {
        let mut rows = trainer.beside(epoch).remove(0).1;
        rows.sort_unstable();
        rows
    };
    let epochs: Vec<Vec<usize>> = (2..12).map(visited).collect();
    for rows in &epochs {
        assert_eq!(rows.len(), 4);
        assert!(rows.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(rows.iter().all(|row| (11..22).contains(row)));
    }
    let mut all = epochs.concat();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), 11, "in ten epochs each is seen");
}

/// Four or five of six known rows an epoch, replayed.
fn replay(target: ReplayTarget, order: ReplayOrder) -> Replay {
    Replay {
        share: 0.4,
        target,
        order,
        ..Replay::default()
    }
}

#[test]
fn resumed_equals_uninterrupted_with_replay() {
    for (kind, target, order) in [
        (Kind::Sft, ReplayTarget::Label, ReplayOrder::Hardest),
        (Kind::SelfDistill, ReplayTarget::Label, ReplayOrder::Random),
        (
            Kind::SelfDistill,
            ReplayTarget::Teacher,
            ReplayOrder::Hardest,
        ),
    ] {
        resumed_equals_uninterrupted(method(|m| {
            (m.kind, m.replay) = (kind, Some(replay(target, order)));
        }));
    }
}

#[test]
fn resumed_equals_uninterrupted_with_projected_updates() {
    let project = Some(Project { energy: 0.9 });
    for kind in [Kind::Sft, Kind::SelfDistill] {
        resumed_equals_uninterrupted(method(|m| (m.kind, m.project) = (kind, project)));
    }
    resumed_equals_uninterrupted(method(|m| {
        (m.kind, m.project, m.budget) = (Kind::L2, project, Some(5.0));
    }));
}

/// Runs `config` from its snapshot on: the weights then, the weights at the end, and the projection.
fn projected(config: &Config) -> (Params, Params, Snapshot) {
    let progress = Progress::quiet();
    let mut trainer = prepare::trainer(config, KEEP, &progress).expect("a good config");
    trainer.begin().expect("writable");
    let epochs = trainer.config.train.epochs;
    trainer.config.train.epochs = config.method.snapshot_epoch;
    trainer.train().expect("the snapshot epochs");
    trainer.take_snapshot().expect("finite");
    let before = trainer.model.params.clone();
    trainer.config.train.epochs = epochs;
    trainer.train().expect("the rest");
    let snapshot = trainer.objective.snapshot.take().expect("just taken");
    (before, trainer.model.params.clone(), snapshot)
}

#[test]
fn projected_updates_leave_known_inputs_alone_and_what_has_no_space_frozen() {
    let place = temporary();
    for (i, (kind, snapshot_epoch)) in [(Kind::SelfDistill, 1), (Kind::Sft, 0)]
        .into_iter()
        .enumerate()
    {
        let mut config = config(place.path(), &format!("run-{i}"));
        (config.method.kind, config.method.snapshot_epoch) = (kind, snapshot_epoch);
        config.method.project = Some(Project { energy: 0.9 });
        config.train.weight_decay = 0.1;
        let (before, after, snapshot) = projected(&config);
        for tensor in &before.layout.tensors {
            let (then, now) = (
                &before.data[tensor.range.clone()],
                &after.data[tensor.range.clone()],
            );
            let moved = then
                .iter()
                .zip(now)
                .any(|(a, b)| a.to_bits() != b.to_bits());
            assert_eq!(
                moved,
                tensor.name.contains("_proj.weight"),
                "{}",
                tensor.name
            );
        }

        let arrays = snapshot
            .projection
            .as_ref()
            .expect("it was asked for")
            .arrays();
        let mut basis: &[f32] = &[];
        let mut free = 0;
        for (name, values) in &arrays {
            let Some(tensor) = name.strip_prefix("held.") else {
                basis = values;
                continue;
            };
            let tensor = &before.layout.tensors[tensor.parse::<usize>().expect("an index")];
            let width = tensor.row_len();
            free += width - basis.len() / width;
            let made =
                |params: &Params| responses(&params.data[tensor.range.clone()], basis, width);
            assert!(
                made(&before)[..] == **values,
                "{name}: those of the snapshot"
            );
            let largest = |a: &[f32], b: &[f32]| {
                let apart = a.iter().zip(b).map(|(a, b)| (a - b).abs());
                apart.fold(0.0f32, f32::max)
            };
            // Steps of 1e-2 moved the weights, and the last correction is exact to the rounding of sums of 40 terms near 1.
            let (then, now) = (
                &before.data[tensor.range.clone()],
                &after.data[tensor.range.clone()],
            );
            assert!(largest(then, now) > 5e-3, "{}", tensor.name);
            assert!(largest(&made(&after), values) < 2e-6, "{}", tensor.name);
        }
        assert!(free > 0 && arrays.len() > 8);
    }
}

#[test]
fn all_energy_takes_all_directions_that_known_inputs_have() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    config.method.project = Some(Project { energy: 1.0 });
    let (_, _, snapshot) = projected(&config);
    for (name, values) in snapshot.projection.expect("it was asked for").arrays() {
        // There are more tokens than the 24 channels of the residual stream.
        if name.ends_with("qkv") {
            assert_eq!(values.len(), 24 * 24, "{name}");
        }
    }
}

#[test]
fn a_projection_without_known_facts_or_linear_weights_is_refused_and_nothing_is_written() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    config.method.project = Some(Project::default());
    let refused = |config: &Config, told: &str| {
        let error = tune(config, KEEP, &Progress::quiet()).expect_err("it makes no sense");
        assert!(error.to_string().contains(told), "{error}");
        assert_eq!(error.exit_code(), 2);
        assert!(!config.out.exists());
    };
    let mut norms = config.clone();
    norms.train.trainable = vec!["model.norm.weight".into()];
    refused(&norms, "freezes all but the weights of linear layers");
    config.data.keep = Vec::new();
    config.method.snapshot_epoch = 0;
    refused(&config, "no known fact whose inputs");
}

#[test]
fn resumed_equals_uninterrupted_under_a_budget() {
    resumed_equals_uninterrupted(method(|m| m.budget = Some(5.0)));
}

#[test]
fn the_watched_facts_are_not_reported_and_the_best_model_is_the_one_saved() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    config.method.budget = Some(100.0);
    let progress = Progress::quiet();
    let mut trainer = prepare::trainer(&config, KEEP, &progress).expect("a good config");
    assert_eq!(
        (trainer.splits.watched.len(), trainer.splits.held.len()),
        (2, 2)
    );
    trainer.begin().expect("writable");
    trainer.config.train.epochs = 2;
    trainer.train().expect("two epochs");
    let best = trainer.model.params.data.to_vec();
    let steering = trainer.standing.steering.as_mut().expect("a budget");
    assert_eq!(
        steering.best.map(|b| b.epoch),
        Some(2),
        "nothing is over 100 pp"
    );
    // A third epoch that is worse: the second is taken back.
    steering.best = steering
        .best
        .map(|b| crate::remedy::budget::Best { learned: 2.0, ..b });
    trainer.config.train.epochs = 3;
    trainer.train().expect("one more");
    assert!(trainer.model.params.data[..] != best[..]);
    trainer.go_back_to_the_best().expect("it was kept");
    assert!(trainer.model.params.data[..] == best[..]);
    let result = trainer.finish().expect("writable");
    assert_eq!(
        (result.budget, result.within_budget),
        (Some(100.0), Some(true))
    );
    let rows = RunDir::open(&config.out).and_then(|dir| dir.facts());
    assert_eq!(rows.expect("a run has facts").len(), 13);
}

#[test]
fn a_budget_without_held_facts_is_refused_and_nothing_is_written() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    (config.method.budget, config.data.held) = (Some(1.0), Vec::new());
    let error = tune(&config, KEEP, &Progress::quiet()).expect_err("nothing to watch");
    assert!(error.to_string().contains("held-out"), "{error}");
    assert_eq!(error.exit_code(), 2);
    assert!(!config.out.exists());
}

#[test]
fn a_remedy_without_weight_is_plain_fine_tuning_to_the_bit() {
    let place = temporary();
    let trained = |name: &str, method: Method| {
        let mut config = config(place.path(), name);
        config.method = method;
        config.method.snapshot_epoch = 0;
        run(&config);
        weights(&config.out)
    };
    let plain = trained("sft", method(|m| m.kind = Kind::Sft));
    for (name, idle) in [
        ("self-distill", method(|m| m.lambda = 0.0)),
        ("l2", method(|m| (m.kind, m.lambda) = (Kind::L2, 0.0))),
        (
            "ewc",
            method(|m| (m.kind, m.ewc) = (Kind::Sft, Some(ewc(0.0)))),
        ),
        (
            "replay",
            method(|m| {
                let idle = Replay {
                    strength: 0.0,
                    ..replay(ReplayTarget::Teacher, ReplayOrder::Random)
                };
                (m.kind, m.replay) = (Kind::Sft, Some(idle));
            }),
        ),
    ] {
        assert!(trained(name, idle) == plain, "{name}");
    }
}

#[test]
fn a_teacher_whose_likeliest_tokens_are_kept_is_exact_without_the_target_too() {
    let place = temporary();
    let trained = |name: &str, teacher, target_token| {
        let mut config = config(place.path(), name);
        config.train.lr = 1e-4;
        (config.method.tokens, config.method.teacher) = (Tokens::Top(30), teacher);
        config.method.target_token = target_token;
        let result = run(&config);
        let left_out = target_token == TargetToken::LeftOut;
        assert_eq!(result.method.ends_with("+decoupled"), left_out);
        config.out
    };
    let hidden = trained("hidden", Source::Hidden, TargetToken::LeftOut);
    let kept = trained("kept", Source::Topk, TargetToken::LeftOut);
    let with = trained("with", Source::Topk, TargetToken::Kept);
    // Products over other stretches of rows round otherwise.
    assert!(same_steps(&hidden, &kept, 1e-4));
    assert!(!same_steps(&with, &kept, 1e-4));
}

#[test]
fn random_tokens_of_the_whole_vocabulary_are_all_tokens() {
    let place = temporary();
    let trained = |name: &str, tokens| {
        let mut config = config(place.path(), name);
        config.method.tokens = tokens;
        run(&config);
        weights(&config.out)
    };
    let full = trained("full", Tokens::Full);
    assert!(trained("random", Tokens::Random(1 << 20)) == full);
    assert!(trained("few", Tokens::Random(7)) != full);
}

#[test]
fn every_pair_of_remedies_runs_and_leaves_frozen_tensors_alone() {
    let place = temporary();
    let remedies: [fn(&mut Method); 6] = [
        |m| m.decoys = Some(Decoys::default()),
        |m| m.ewc = Some(Ewc::default()),
        |m| m.replay = Some(replay(ReplayTarget::Label, ReplayOrder::Hardest)),
        |m| m.replay = Some(replay(ReplayTarget::Teacher, ReplayOrder::Hardest)),
        |m| m.project = Some(Project { energy: 0.9 }),
        |m| m.interpolate = Some(Interpolate::default()),
    ];
    for kind in [Kind::Sft, Kind::L2, Kind::SelfDistill] {
        for (i, one) in remedies.iter().enumerate() {
            for (j, other) in remedies.iter().enumerate().skip(i + 1) {
                let mut config = config(place.path(), &format!("{kind:?}-{i}-{j}"));
                config.method.kind = kind;
                one(&mut config.method);
                other(&mut config.method);
                // With q, k, v and o of a layer trained, projection has weights to act on.
                config.train.trainable = vec!["attn".into()];
                config.method.snapshot_epoch = 1;
                let result = run(&config);
                assert!(result.steps > 0, "{}", result.method);
                let moved = moved(&config);
                assert!(!moved.is_empty(), "{}", result.method);
                assert!(
                    moved.iter().all(|name| name.contains("self_attn")),
                    "{}",
                    result.method
                );
            }
        }
    }
}

#[test]
fn an_interpolated_run_keeps_what_it_learned_and_is_resumed_to_the_bit() {
    let place = temporary();
    let mut config = config(place.path(), "plain");
    config.method.kind = Kind::Sft;
    config.train.trainable = vec!["ffn".into()];
    config.train.epochs = 12;
    let plain = run(&config);
    assert!(plain.learned > Some(0.5), "or there is nothing to keep");

    config.out = place.path().join("interpolated");
    config.method.interpolate = Some(Interpolate { keep: 0.99 });
    let result = run(&config);
    assert_eq!(result.method, "sft+interpolate");
    assert!(result.interpolation < Some(1.0));
    assert!(result.learned >= plain.learned);
    assert_moved(&config, |name| name.contains("mlp."));

    let whole = weights(&config.out);
    unfinish(&config.out);
    resume(&config.out, KEEP, &Progress::quiet()).expect("it goes on");
    assert!(weights(&config.out) == whole);
}

/// The tensors of the run's model that differ from the base model's, in any bit, are those that `trained` names.
fn assert_moved(config: &Config, trained: impl Fn(&str) -> bool) {
    let moved = moved(config);
    let base = Model::load(&config.model).expect("the golden model");
    for tensor in &base.params.layout.tensors {
        let name = &tensor.name;
        assert_eq!(moved.contains(name), trained(name), "{name}");
    }
}

#[test]
fn resumed_equals_uninterrupted_on_adapters() {
    for variant in VARIANTS {
        resumed_on_adapters_equals_uninterrupted(Method::default(), Some(lora(variant)));
    }
    for method in [
        method(|m| m.kind = Kind::Sft),
        method(|m| m.kind = Kind::L2),
        method(|m| (m.kind, m.ewc) = (Kind::Sft, Some(Ewc::default()))),
        method(|m| m.decoys = Some(Decoys::default())),
        method(|m| m.teacher = Source::Live),
        method(|m| m.tokens = Tokens::Top(9)),
        method(|m| m.budget = Some(5.0)),
    ] {
        resumed_on_adapters_equals_uninterrupted(method, Some(lora(LoraVariant::Dora)));
    }
}

#[test]
fn adapters_go_with_every_remedy_and_leave_what_is_no_target_alone() {
    let place = temporary();
    let decoys = Some(Decoys::default());
    for (i, (kind, decoys, ewc, budget)) in [
        (Kind::Sft, None, None, None),
        (Kind::Sft, decoys, Some(ewc(1.0)), None),
        (Kind::L2, decoys, None, None),
        (Kind::SelfDistill, None, Some(ewc(1.0)), None),
        (Kind::SelfDistill, decoys, None, Some(5.0)),
    ]
    .into_iter()
    .enumerate()
    {
        for variant in VARIANTS {
            let mut config = config(place.path(), &format!("run-{i}-{variant:?}"));
            (config.method.kind, config.method.budget) = (kind, budget);
            (config.method.decoys, config.method.ewc) = (decoys, ewc.clone());
            config.train.lora = Some(lora(variant));
            let result = run(&config);
            assert!(result.method.ends_with("+lora"), "{}", result.method);
            assert_moved(&config, |name| {
                name.ends_with("q_proj.weight") || name.ends_with("up_proj.weight")
            });
        }
    }
}

#[test]
fn the_best_adapters_within_a_budget_are_taken_back_and_the_model_with_them() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    config.method.budget = Some(100.0);
    config.train.lora = Some(lora(LoraVariant::Dora));
    let progress = Progress::quiet();
    let mut trainer = prepare::trainer(&config, KEEP, &progress).expect("a good config");
    trainer.begin().expect("writable");
    trainer.config.train.epochs = 2;
    trainer.train().expect("two epochs");
    let both = |trainer: &Trainer<'_>| {
        let (adapters, _) = trainer
            .trained
            .parameters(&trainer.model.params, &trainer.gradients);
        (adapters.data.to_vec(), trainer.model.params.data.to_vec())
    };
    let best = both(&trainer);
    let steering = trainer.standing.steering.as_mut().expect("a budget");
    steering.best = steering
        .best
        .map(|b| crate::remedy::budget::Best { learned: 2.0, ..b });
    trainer.config.train.epochs = 3;
    trainer.train().expect("one more");
    assert!(both(&trainer).0 != best.0 && both(&trainer).1 != best.1);
    trainer.go_back_to_the_best().expect("it was kept");
    assert!(both(&trainer) == best);
}

/// A run that stops after the first step of its second epoch, against one that does not.
fn stopped_within_an_epoch(method: Method, lr: f64) {
    let place = temporary();
    let mut whole = config(place.path(), "whole");
    (whole.method, whole.train.lr) = (method, lr);
    run(&whole);

    let stopped = Config {
        out: place.path().join("stopped"),
        ..whole.clone()
    };
    let progress = Progress::quiet();
    let mut trainer = prepare::trainer(&stopped, KEEP, &progress).expect("a good config");
    trainer.begin().expect("writable");
    // The snapshot epoch has two steps of three rows, the next epoch four; one of these is done when the run stops.
    trainer.config.train.epochs = 1;
    trainer.train().expect("one epoch");
    trainer.take_snapshot().expect("a row can be written");
    trainer.config.train.epochs = 3;
    trainer.choose_replayed(2).expect("known rows");
    let beside = trainer.beside(2);
    let dealt = |step: usize| -> Vec<Beside<'_>> {
        let beside = beside.iter().map(|(held_to, rows)| Beside {
            rows,
            held_to: *held_to,
        });
        beside.map(|beside| beside.dealt(step, 4)).collect()
    };
    let order = epoch_order(11, 0, 2, true);
    trainer.step(2, &order[..3], &dealt(0)).expect("a step");
    trainer.checkpoint().expect("writable");
    // What the epoch replays no longer follows from the weights.
    let chosen = trainer.standing.replayed.clone();
    trainer.standing.step_in_epoch = 0;
    trainer.choose_replayed(2).expect("known rows");
    assert!(chosen.is_empty() || trainer.standing.replayed != chosen);
    // A step that no checkpoint holds is done again.
    trainer.step(2, &order[3..6], &dealt(1)).expect("a step");
    drop(trainer);

    resume(&stopped.out, KEEP, &progress).expect("it goes on");
    assert_eq!(steps(&stopped.out).len(), 10);
    assert_eq!(steps(&stopped.out), steps(&whole.out));
    assert!(weights(&stopped.out) == weights(&whole.out));
}

#[test]
fn a_run_stopped_within_an_epoch_goes_on_within_it() {
    stopped_within_an_epoch(Method::default(), 1e-2);
}

#[test]
fn a_run_stopped_within_an_epoch_replays_on_what_the_epoch_chose() {
    for target in [ReplayTarget::Label, ReplayTarget::Teacher] {
        let replay = replay(target, ReplayOrder::Hardest);
        // A step long enough to change which facts are hardest.
        stopped_within_an_epoch(method(|m| m.replay = Some(replay)), 5e-2);
    }
}

#[test]
fn the_hardest_known_facts_are_those_of_the_largest_cross_entropy() {
    let place = temporary();
    let progress = Progress::quiet();
    let mut config = config(place.path(), "run");
    config.method.kind = Kind::Sft;
    config.method.replay = Some(replay(ReplayTarget::Label, ReplayOrder::Hardest));
    let mut trainer = prepare::trainer(&config, KEEP, &progress).expect("a good config");
    trainer.choose_replayed(1).expect("known rows");
    let losses: Vec<f64> = (0..6)
        .map(|row| {
            let mut packed = PackedRows::new([&trainer.rows[row]]);
            let weight = 1.0 / packed.targets.len() as f32;
            packed.weigh(weight, |_| 0.0);
            let targets: &[Target] = &packed.targets;
            let (params, gradients) = (&trainer.model.params, &mut trainer.gradients);
            let engine = &mut trainer.engine;
            let loss = engine.loss_and_gradients(params, &packed.batch, targets, None, gradients);
            loss.ce
        })
        .collect();
    // 0.4 of eleven rows: four.
    let chosen = &trainer.standing.replayed;
    let easiest_chosen = chosen
        .iter()
        .map(|row| losses[*row])
        .fold(f64::MAX, f64::min);
    assert_eq!(chosen.len(), 4);
    for row in (0..6).filter(|row| !chosen.contains(row)) {
        assert!(losses[row] < easiest_chosen, "{losses:?} {chosen:?}");
    }
}

/// Tokens of every step of a run.
fn step_tokens(run: &Path) -> Vec<usize> {
    let metrics = RunDir::open(run).and_then(|dir| dir.metrics());
    let metrics = metrics.expect("a run has metrics").into_iter();
    let tokens = metrics.filter_map(|row| match row {
        Metrics::Step { tokens, .. } => Some(tokens),
        _ => None,
    });
    tokens.collect()
}

#[test]
fn replay_begins_after_the_snapshot_epochs_and_rises_where_it_is_asked_to() {
    let place = temporary();
    let tokens = |name: &str, kind: Kind, replay: Option<Replay>| {
        let mut config = config(place.path(), name);
        (config.method.kind, config.method.replay) = (kind, replay);
        let result = run(&config);
        assert_eq!(result.method.ends_with("+replay"), replay.is_some());
        step_tokens(&config.out)
    };
    let label = replay(ReplayTarget::Label, ReplayOrder::Hardest);
    let plain = tokens("plain", Kind::SelfDistill, None);
    let replayed = tokens("replayed", Kind::SelfDistill, Some(label));
    // Two steps of the snapshot epoch, then four an epoch with a replayed row each.
    assert_eq!(plain.len(), replayed.len());
    assert_eq!(plain[..2], replayed[..2]);
    assert!((2..10).all(|step| replayed[step] > plain[step]));

    let rising = Replay {
        schedule: ReplaySchedule::End,
        ..label
    };
    let plain = tokens("sft", Kind::Sft, None);
    let rising = tokens("rising", Kind::Sft, Some(rising));
    let more = |epoch: usize| -> usize {
        let steps = 4 * epoch..4 * epoch + 4;
        steps.map(|step| rising[step] - plain[step]).sum()
    };
    assert_eq!(more(0), 0);
    assert!(more(1) > 0 && more(2) > more(1));
}

#[test]
fn replay_without_known_facts_is_refused() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    (config.method.kind, config.data.keep) = (Kind::Sft, Vec::new());
    config.method.replay = Some(Replay::default());
    let error = tune(&config, KEEP, &Progress::quiet()).expect_err("nothing to replay");
    assert!(
        error.to_string().contains("no known fact to replay"),
        "{error}"
    );
    assert_eq!(error.exit_code(), 2);
    assert!(!config.out.exists());
}

#[test]
fn a_broken_checkpoint_is_passed_over() {
    let place = temporary();
    let config = config(place.path(), "run");
    run(&config);
    let weights_before = weights(&config.out);
    unfinish(&config.out);
    let last = checkpoints(&config.out).pop().expect("two were kept");
    let file = last.join("weights.safetensors");
    let mut bytes = fs::read(&file).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&file, bytes).expect("writable");
    resume(&config.out, KEEP, &Progress::quiet()).expect("it goes on");
    assert!(weights(&config.out) == weights_before);
}

#[test]
fn without_a_checkpoint_a_run_starts_over_and_a_finished_one_is_left_alone() {
    let place = temporary();
    let config = config(place.path(), "run");
    let result = run(&config);
    let finished = resume(&config.out, KEEP, &Progress::quiet()).expect("readable");
    assert_eq!(finished.counts, result.counts);

    let weights_before = weights(&config.out);
    unfinish(&config.out);
    fs::remove_dir_all(config.out.join("checkpoints")).expect("removable");
    resume(&config.out, KEEP, &Progress::quiet()).expect("it starts over");
    assert!(weights(&config.out) == weights_before);
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

#[test]
fn a_task_is_learned_by_attention_alone_and_without_a_snapshot() {
    let place = temporary();
    let mut task = config(place.path(), "task");
    task.method.goal = Goal::Task;
    let result = run(&task);
    assert_eq!((&result.method[..], result.goal), ("sft+task", Goal::Task));
    let absorbed = result.learned.expect("there are new facts");
    assert_eq!(result.not_absorbed, Some(1.0 - absorbed));
    assert!(moved(&task).iter().all(|name| name.contains("self_attn")));
    assert!(!moved(&task).is_empty());
    // Four steps of eleven rows in each of three epochs: no epoch is on known facts alone.
    assert_eq!(result.steps, 12);

    // It is plain fine-tuning of attention, and the run's own config says so.
    let mut attention = config(place.path(), "attention");
    attention.method.kind = Kind::Sft;
    attention.train.trainable = vec!["attn".into()];
    let plain = run(&attention);
    assert_eq!((plain.goal, plain.not_absorbed), (Goal::Facts, None));
    assert!(weights(&task.out) == weights(&attention.out));
    let recorded = RunDir::open(&task.out).and_then(|dir| dir.config());
    let recorded = recorded.expect("a run has its config");
    assert_eq!(recorded.train.trainable, ["attn"]);
    assert!(recorded.validate().is_ok());

    // Weights that the user chose are the ones that are trained.
    let mut chosen = config(place.path(), "chosen");
    (chosen.method.goal, chosen.train.trainable) = (Goal::Task, vec!["down".into()]);
    run(&chosen);
    assert!(moved(&chosen).iter().all(|name| name.contains("down_proj")));

    resumed_equals_uninterrupted(method(|m| m.goal = Goal::Task));
}

#[test]
fn frozen_parameters_do_not_move() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    config.train.trainable = vec!["down".into()];
    config.train.weight_decay = 0.1;
    run(&config);
    assert_moved(&config, |name| name.contains("down_proj"));
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

#[test]
fn accumulated_batches_equal_the_big_batch() {
    let place = temporary();
    let mut big = config(place.path(), "big");
    // Small steps: what is compared is the sum, not how training carries rounding on.
    (big.train.batch_size, big.train.lr) = (6, 1e-4);
    let mut accumulated = Config {
        out: place.path().join("accumulated"),
        ..big.clone()
    };
    (accumulated.train.batch_size, accumulated.train.accumulate) = (2, 3);
    run(&big);
    run(&accumulated);
    // Sums in f32 in another order.
    assert!(same_steps(&big.out, &accumulated.out, 1e-4));
}

#[test]
fn a_hidden_teacher_says_what_a_live_one_says() {
    let place = temporary();
    let mut live = config(place.path(), "live");
    (live.method.teacher, live.train.lr) = (Source::Live, 1e-4);
    let mut hidden = Config {
        out: place.path().join("hidden"),
        ..live.clone()
    };
    hidden.method.teacher = Source::Hidden;
    run(&live);
    run(&hidden);
    // Products over other stretches of rows round otherwise.
    assert!(same_steps(&live.out, &hidden.out, 1e-4));
}

#[test]
fn a_teacher_kept_in_files_says_what_a_hidden_one_says() {
    let place = temporary();
    let mut kept = config(place.path(), "kept");
    (kept.method.tokens, kept.train.lr) = (Tokens::Top(9), 1e-4);
    let mut hidden = Config {
        out: place.path().join("hidden"),
        ..kept.clone()
    };
    hidden.method.teacher = Source::Hidden;
    run(&kept);
    run(&hidden);
    assert!(kept.out.join("teacher").exists() && !hidden.out.join("teacher").exists());
    // As above.
    assert!(same_steps(&kept.out, &hidden.out, 1e-4));
}

#[test]
fn the_first_epoch_of_self_distillation_is_on_known_facts_alone_and_sft_has_no_such_epoch() {
    let place = temporary();
    let distilled = config(place.path(), "distilled");
    let mut sft = config(place.path(), "sft");
    sft.method.kind = Kind::Sft;
    run(&distilled);
    run(&sft);
    // Three rows a step: two steps of six known rows, then four of eleven, twice; or four, three times.
    assert_eq!(steps(&distilled.out).len(), 10);
    assert_eq!(steps(&sft.out).len(), 12);
}

#[test]
fn training_that_diverges_stops_before_it_touches_the_weights() {
    let place = temporary();
    let progress = Progress::quiet();
    for (name, lora) in [("whole", None), ("lora", Some(lora(LoraVariant::Dora)))] {
        let mut config = config(place.path(), name);
        config.train.lora = lora;
        let mut trainer = prepare::trainer(&config, KEEP, &progress).expect("a good config");
        trainer.begin().expect("writable");
        let norm = trainer.model.params.layout.norm.start;
        trainer.model.params.data[norm] = f32::INFINITY;
        let bits = |trainer: &Trainer<'_>| -> Vec<u32> {
            let params = &trainer.model.params;
            let (trained, _) = trainer.trained.parameters(params, &trainer.gradients);
            let both = params.data.iter().chain(trained.data.iter());
            both.map(|x| x.to_bits()).collect()
        };
        let before = bits(&trainer);
        let error = trainer.train().expect_err("the loss is not finite");
        assert!(matches!(error, Error::NonFinite { step: 1, .. }), "{error}");
        assert_eq!(error.exit_code(), 1);
        assert!(bits(&trainer) == before);
        assert!(steps(&config.out).is_empty());
    }
}

#[test]
fn an_adapters_gradient_that_is_not_finite_is_named() {
    let place = temporary();
    let progress = Progress::quiet();
    let mut config = config(place.path(), "run");
    config.train.lora = Some(lora(LoraVariant::Lora));
    let mut trainer = prepare::trainer(&config, KEEP, &progress).expect("a good config");
    // The last target's: the up projection of the last layer.
    let last = trainer.gradients.data.len() - 1;
    trainer.gradients.data[last] = f32::NAN;
    trainer.trained.pull_back(&trainer.gradients);
    let error = trainer.require_finite(7, Loss::default(), f64::NAN);
    let told = error.expect_err("a NaN").to_string();
    assert!(told.contains("layers.1.mlp.up_proj.lora_"), "{told}");
}

#[test]
fn rows_that_are_too_long_name_their_line_and_nothing_is_written() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    config.train.max_tokens = 3;
    let error = tune(&config, KEEP, &Progress::quiet()).expect_err("rows are longer");
    assert!(error.to_string().contains("Pas.tsv"), "{error}");
    assert!(error.to_string().contains("line 2"), "{error}");
    assert_eq!(error.exit_code(), 2);
    assert!(!config.out.exists());
}

#[test]
fn training_stops_once_enough_is_learned() {
    let place = temporary();
    let progress = Progress::quiet();
    let mut config = config(place.path(), "run");
    config.train.stop = Some(crate::config::Stop { learned: 0.8 });
    let mut trainer = prepare::trainer(&config, KEEP, &progress).expect("a good config");
    trainer.begin().expect("writable");
    // Six known facts, five new ones, four held out: four of the new ones are right, then three.
    let right = |new: usize| (0..15).map(|i| (6..6 + new).contains(&i)).collect();
    trainer.standing.right = right(4);
    trainer.train().expect("nothing is left to do");
    assert_eq!(trainer.standing.epoch, 0);
    trainer.standing.right = right(3);
    trainer.train().expect("it goes on");
    assert!(trainer.standing.epoch > 0);
}

#[test]
fn the_peak_is_that_of_each_split() {
    let place = temporary();
    let progress = Progress::quiet();
    let config = config(place.path(), "run");
    let mut trainer = prepare::trainer(&config, KEEP, &progress).expect("a good config");
    let right = |facts: &[usize]| (0..15).map(|i| facts.contains(&i)).collect::<Vec<bool>>();
    trainer.remember(right(&[0, 1, 6, 11]));
    // Known gets worse, new ones better, held ones as many but others: the first epoch's stay.
    trainer.remember(right(&[0, 6, 7, 12]));
    assert_eq!(trainer.standing.right_at_peak, right(&[0, 1, 6, 7, 11]));
    assert_eq!(trainer.standing.right, right(&[0, 6, 7, 12]));
}

#[test]
fn a_result_counts_every_fact_once_and_its_figures_follow_from_the_rows() {
    let place = temporary();
    let config = config(place.path(), "run");
    let result = run(&config);
    let rows = RunDir::open(&config.out).and_then(|dir| dir.facts());
    let rows = rows.expect("a run has facts");
    assert_eq!(rows.len(), 15);
    let right = |split| {
        let of_split: Vec<bool> = rows
            .iter()
            .filter(|row| row.split == split)
            .map(|row| row.right_after)
            .collect();
        crate::measure::share(&of_split)
    };
    for split in [Split::Known, Split::Unknown, Split::Held] {
        assert_eq!(result.accuracy.get(split).map(|m| m.after), right(split));
    }
    assert_eq!(result.learned, right(Split::Unknown));
    assert_eq!((result.epochs, result.steps), (3, 10));
    assert!(result.peak_memory_bytes > 0 || !cfg!(target_os = "linux"));
}

#[test]
fn texts_are_learned_beside_facts() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    let texts = place.path().join("texts.jsonl");
    let rows = [
        r#"{"prompt": "Q: Who?\nA:", "completion": " Nobody\n"}"#,
        r#"{"prompt": "Q: When?\nA:", "completion": " Never\n"}"#,
    ];
    fs::write(&texts, rows.join("\n")).expect("writable");
    config.data.learn = vec![texts];
    let result = run(&config);
    // Two steps of six known rows, then three of eight, twice.
    assert_eq!(steps(&config.out).len(), 8);
    assert_eq!(
        (result.method.as_str(), result.learned),
        ("self-distill", None)
    );
}

/// A run under plain EWC, and one after it that starts from its model; `decay` is the second's.
fn two_in_a_row(place: &Path, decay: Option<f64>) -> (Config, Config) {
    let mut first = config(place, "first");
    (first.method.kind, first.method.ewc) = (Kind::Sft, Some(ewc(3.0)));
    first.method.snapshot_epoch = 0;
    run(&first);
    let mut second = Config {
        model: first.out.join("model").to_str().expect("UTF-8").to_owned(),
        out: place.join("second"),
        seed: 1,
        ..first.clone()
    };
    second.method.snapshot_epoch = 1;
    second.method.ewc = Some(Ewc {
        strength: 3.0,
        after: vec![first.out.clone()],
        decay,
    });
    (first, second)
}

/// A tensor file's values in the order of `model`'s tensors, under the names of a saved model.
fn values(file: &Path, model: &Model) -> Vec<f64> {
    let bytes = fs::read(file).expect("it was written");
    let tensors = safetensors::SafeTensors::deserialize(&bytes).expect("as written");
    let names = model.params.layout.tensors.iter().map(|t| &t.name);
    let of = |name: &String| -> Vec<f64> {
        let view = tensors.tensor(name).expect("every tensor is trained");
        assert_eq!(view.dtype(), safetensors::Dtype::F32);
        let words = view.data().as_chunks::<4>().0;
        words
            .iter()
            .map(|b| f64::from(f32::from_le_bytes(*b)))
            .collect()
    };
    names.flat_map(of).collect()
}

/// The Fisher information of what `config` trains on at the weights in `params`.
fn fisher_of(config: &Config, params: &[f32], rows: impl Fn(&Trainer<'_>) -> Vec<Row>) -> Vec<f64> {
    let progress = Progress::quiet();
    let elsewhere = Config {
        out: config.out.with_extension("again"),
        ..config.clone()
    };
    let mut trainer = prepare::trainer(&elsewhere, KEEP, &progress).expect("a good config");
    trainer.model.params.data.copy_from_slice(params);
    let rows = rows(&trainer);
    let fisher = crate::remedy::anchor::fisher(
        &mut trainer.engine,
        &trainer.model.params,
        &rows,
        config.seed,
        &mut trainer.gradients,
        &progress,
    );
    fisher.iter().map(|f| f64::from(*f)).collect()
}

/// Whether both are the same to rounding in f32, relative to the largest.
fn near(a: &[f64], b: &[f64]) -> bool {
    let largest = b.iter().fold(0f64, |max, x| max.max(x.abs()));
    largest > 0.0
        && a.len() == b.len()
        && a.iter()
            .zip(b)
            .all(|(a, b)| (a - b).abs() <= 1e-6 * largest)
}

/// `strength / 2 * sum F (w - anchor)^2` and its gradient, in f64.
fn penalty(strength: f64, fisher: &[f64], w: &[f64], anchor: &[f64]) -> (f64, Vec<f64>) {
    let pulls = fisher.iter().zip(w.iter().zip(anchor));
    let gradient: Vec<f64> = pulls.map(|(f, (w, a))| strength * f * (w - a)).collect();
    let halves = gradient.iter().zip(w.iter().zip(anchor));
    (halves.map(|(g, (w, a))| 0.5 * g * (w - a)).sum(), gradient)
}

/// Moves the weights of `trainer` a little, each otherwise; as f64.
fn moved_weights(trainer: &mut Trainer<'_>) -> Vec<f64> {
    let weights = trainer.model.params.data.iter_mut().enumerate();
    weights
        .map(|(i, w)| {
            *w += 1e-3 * ((i * 7919) % 101) as f32 - 0.05;
            f64::from(*w)
        })
        .collect()
}

/// The penalty of `anchors` at the weights of `trainer`, and its gradient.
fn penalty_of<'t>(
    anchors: impl IntoIterator<Item = &'t Anchor>,
    trainer: &Trainer<'_>,
) -> (f64, Vec<f64>) {
    let params = &trainer.model.params;
    let mut gradients = Gradients::new(params, &vec![true; params.layout.tensors.len()]);
    let anchors = anchors.into_iter();
    let sum = anchors.map(|a| a.penalty_and_gradient(params, &mut gradients, 1.0));
    let sum = sum.sum();
    (sum, gradients.data.iter().map(|g| f64::from(*g)).collect())
}

#[test]
fn every_task_has_its_own_penalty_around_the_weights_that_it_saved() {
    let place = temporary();
    let (first, second) = two_in_a_row(place.path(), None);
    run(&second);
    let mut third = Config {
        model: second.out.join("model").to_str().expect("UTF-8").to_owned(),
        out: place.path().join("third"),
        ..second.clone()
    };
    third.method.ewc = Some(Ewc {
        strength: 3.0,
        after: vec![first.out.clone(), second.out.clone()],
        decay: None,
    });
    let progress = Progress::quiet();
    let mut trainer = prepare::trainer(&third, KEEP, &progress).expect("a good config");
    let w = moved_weights(&mut trainer);
    let mut expected = (0.0, vec![0.0; w.len()]);
    for task in [&first, &second] {
        let left = values(&task.out.join("ewc.safetensors"), &trainer.model);
        let saved = values(&task.out.join("model/model.safetensors"), &trainer.model);
        let of_task = penalty(3.0, &left, &w, &saved);
        expected.0 += of_task.0;
        for (sum, g) in expected.1.iter_mut().zip(of_task.1) {
            *sum += g;
        }
    }
    let (sum, gradient) = penalty_of(&trainer.objective.earlier, &trainer);
    assert!(
        (sum - expected.0).abs() <= 1e-5 * expected.0,
        "{sum} is not {}",
        expected.0
    );
    assert!(near(&gradient, &expected.1));
    // It is part of the loss as soon as the weights have moved, before there is a snapshot.
    let metrics = RunDir::open(&second.out).and_then(|dir| dir.metrics());
    let mut penalties = metrics.expect("a run has metrics").into_iter();
    let mut next_penalty = || {
        penalties.find_map(|row| match row {
            Metrics::Step { epoch, penalty, .. } => Some((epoch, penalty > 0.0)),
            _ => None,
        })
    };
    assert_eq!(next_penalty(), Some((1, false)));
    assert_eq!(next_penalty(), Some((1, true)));
    // What a run leaves is the Fisher information of all that it learned, at the weights that it saved.
    let saved = Model::load(&third.model).expect("as saved");
    let again = fisher_of(&second, &saved.params.data, |t| t.rows.clone());
    let left = values(&second.out.join("ewc.safetensors"), &saved);
    assert!(near(&left, &again));
}

#[test]
fn one_penalty_for_all_tasks_has_the_decayed_importance_of_those_before() {
    let place = temporary();
    let (first, second) = two_in_a_row(place.path(), Some(0.5));
    let progress = Progress::quiet();
    let mut trainer = prepare::trainer(&second, KEEP, &progress).expect("a good config");
    let of_first = values(&first.out.join("ewc.safetensors"), &trainer.model);
    let saved = values(&first.out.join("model/model.safetensors"), &trainer.model);
    let with_half_of_first = |own: &[f64]| -> Vec<f64> {
        own.iter()
            .zip(&of_first)
            .map(|(own, first)| 0.5 * first + own)
            .collect()
    };
    let agrees = |(sum, gradient): (f64, Vec<f64>), expected: (f64, Vec<f64>)| {
        assert!(
            (sum - expected.0).abs() <= 1e-5 * expected.0,
            "{sum} is not {}",
            expected.0
        );
        assert!(near(&gradient, &expected.1));
    };

    // Before the snapshot: half of the first run's importance, around its weights.
    trainer.begin().expect("writable");
    trainer.config.train.epochs = 1;
    trainer.train().expect("one epoch");
    let base = trainer.model.params.data.to_vec();
    let w = moved_weights(&mut trainer);
    let half: Vec<f64> = of_first.iter().map(|f| 0.5 * f).collect();
    let got = penalty_of(&trainer.objective.earlier, &trainer);
    agrees(got, penalty(3.0, &half, &w, &saved));
    // From the snapshot on: this and the snapshot's own, both around the snapshot.
    trainer.model.params.data.copy_from_slice(&base);
    trainer.take_snapshot().expect("writable");
    assert!(trainer.objective.earlier.is_empty());
    let w = moved_weights(&mut trainer);
    let known = |t: &Trainer<'_>| t.rows[..t.splits.known.len()].to_vec();
    let together = with_half_of_first(&fisher_of(&second, &base, known));
    let snapshot: Vec<f64> = base.iter().map(|w| f64::from(*w)).collect();
    let anchors = trainer
        .objective
        .snapshot
        .iter()
        .flat_map(Snapshot::anchors);
    agrees(
        penalty_of(anchors, &trainer),
        penalty(3.0, &together, &w, &snapshot),
    );
    drop(trainer);

    // At the end: half of the first run's and that of what was learned, at the weights as saved.
    run(&second);
    let tuned = Model::load(second.out.join("model").to_str().expect("UTF-8")).expect("as saved");
    let again = fisher_of(&second, &tuned.params.data, |t| t.rows.clone());
    let left = values(&second.out.join("ewc.safetensors"), &tuned);
    assert!(near(&left, &with_half_of_first(&again)));
}

#[test]
fn a_run_after_another_is_resumed_to_the_bit_before_and_after_its_snapshot() {
    for decay in [None, Some(0.5)] {
        let place = temporary();
        let (_, mut second) = two_in_a_row(place.path(), decay);
        second.train.epochs = 4;
        second.method.snapshot_epoch = 2;
        run(&second);
        let whole = (steps(&second.out), weights(&second.out));
        let left = fs::read(second.out.join("ewc.safetensors")).expect("left");
        for epochs in [1, 3] {
            let stopped = Config {
                out: place.path().join(format!("stopped-{epochs}")),
                ..second.clone()
            };
            let progress = Progress::quiet();
            let mut trainer = prepare::trainer(&stopped, KEEP, &progress).expect("a good config");
            trainer.begin().expect("writable");
            trainer.config.train.epochs = epochs;
            trainer.train().expect("some epochs");
            drop(trainer);
            resume(&stopped.out, KEEP, &progress).expect("it goes on");
            assert_eq!(steps(&stopped.out), whole.0);
            assert!(weights(&stopped.out) == whole.1);
            assert!(fs::read(stopped.out.join("ewc.safetensors")).expect("left") == left);
        }
    }
}

#[test]
fn a_run_that_cannot_go_on_after_another_is_refused_before_anything_is_written() {
    let place = temporary();
    let (first, second) = two_in_a_row(place.path(), None);
    let refused = |change: &dyn Fn(&mut Config), told: &str| {
        let mut config = second.clone();
        change(&mut config);
        let error = tune(&config, KEEP, &Progress::quiet()).expect_err(told);
        assert!(error.to_string().contains(told), "{error}");
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(!config.out.exists());
    };
    let after = |run: &Path| {
        let run = run.to_owned();
        move |config: &mut Config| {
            config.method.ewc.as_mut().expect("given").after = vec![run.clone()];
        }
    };
    refused(
        &after(&place.path().join("nowhere")),
        "nowhere is not a run directory",
    );
    refused(&|c| c.model.clone_from(&first.model), "the run starts from");
    let replaced = Config {
        out: first.out.clone(),
        ..second.clone()
    };
    let error = tune(&replaced, KEEP, &Progress::quiet()).expect_err("it is needed");
    assert!(error.to_string().contains("would replace"), "{error}");
    assert!(first.out.join("ewc.safetensors").exists());
    let mut plain = config(place.path(), "plain");
    plain.method.kind = Kind::Sft;
    run(&plain);
    refused(&after(&plain.out), "plain/ewc.safetensors");
    let few = Config {
        out: place.path().join("few"),
        train: crate::config::Train {
            trainable: vec!["q".into()],
            ..first.train.clone()
        },
        ..first.clone()
    };
    run(&few);
    let after_few = |config: &mut Config| {
        after(&few.out)(config);
        config.model = few.out.join("model").to_str().expect("UTF-8").to_owned();
    };
    refused(&after_few, "which this run trains");
    refused(
        &|c| c.model = tiny_model().replace("llama", "qwen3"),
        "of another model",
    );
    fs::write(first.out.join("ewc.safetensors"), b"broken").expect("writable");
    refused(&|_| (), "ewc.safetensors is broken");
    fs::remove_file(first.out.join("result.json")).expect("there");
    refused(&|_| (), "is not finished");
}
