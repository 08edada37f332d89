//! A resumed run is bitwise identical to an uninterrupted one.

use super::*;

pub(super) fn checkpoints(run: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(run.join("checkpoints"))
        .expect("checkpoints were kept")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
}

fn resumed_equals_uninterrupted(method: MethodConfig) {
    resumed_on_adapters_equals_uninterrupted(method, None);
}

/// On these adapters, or on whole tensors.
fn resumed_on_adapters_equals_uninterrupted(method: MethodConfig, lora: Option<LoraConfig>) {
    changed_and_resumed_equals_uninterrupted(|config, _| {
        (config.method, config.train.lora) = (method, lora);
    });
}

/// Of a config that is changed so; files that it needs are written into the folder.
pub(super) fn changed_and_resumed_equals_uninterrupted(change: impl FnOnce(&mut Config, &Path)) {
    let place = temporary();
    let mut whole = config(place.path(), "whole");
    change(&mut whole, place.path());
    run(&whole);
    let stopped = Config {
        out: place.path().join("stopped"),
        ..whole.clone()
    };
    run(&stopped);
    unfinish(&stopped.out);
    let last = checkpoints(&stopped.out).pop().expect("two were kept");
    fs::remove_dir_all(last).expect("removable");

    resume(&stopped.out, KEEP_CHECKPOINTS, &Progress::quiet()).expect("it resumes");
    assert_eq!(steps(&stopped.out), steps(&whole.out));
    assert!(weights(&stopped.out) == weights(&whole.out));
    if whole.train.lora.is_some() {
        assert!(adapter(&stopped.out) == adapter(&whole.out));
    }
}

fn adapter(run: &Path) -> Vec<u8> {
    fs::read(run.join("adapter/adapter_model.safetensors")).expect("the run saved its adapter")
}

#[test]
fn resumed_equals_uninterrupted_with_every_teacher() {
    for teacher in [Source::Hidden, Source::Online] {
        resumed_equals_uninterrupted(method(|m| m.teacher = teacher));
    }
    resumed_equals_uninterrupted(method(|m| {
        (m.teacher, m.vocab_subset) = (Source::Topk, VocabSubset::TopK(9));
    }));
    resumed_equals_uninterrupted(method(|m| m.vocab_subset = VocabSubset::Random(9)));
    resumed_equals_uninterrupted(method(|m| m.exclude_target = true));
}

#[test]
fn resumed_equals_uninterrupted_with_an_activation_cache() {
    changed_and_resumed_equals_uninterrupted(|config, _| {
        config.train.trainable = vec!["ffn@1-1".into()];
        config.train.batch_size = 4;
        config.method.decoys = Some(DecoysConfig::default());
    });
}

#[test]
fn runs_with_an_identical_prefix_share_it_and_end_bitwise_as_alone() {
    let place = temporary();
    let with = |out: &str, method: MethodConfig, shared: Option<&str>| {
        let config = Config {
            method,
            ..config(place.path(), out)
        };
        let quiet = Progress::quiet();
        let mut trainer =
            prepare::trainer(&config, KEEP_CHECKPOINTS, &quiet).expect("a whole config");
        if let Some(name) = shared {
            trainer.start = Start::SharedPrefix(place.path().join(name));
        }
        trainer.run().expect("the run ends well");
        RunDir::open(&config.out).expect("a run")
    };
    let weaker = || method(|m| m.lambda = 0.5);
    let first = with("first", method(|_| ()), Some("shared"));
    let second = with("second", weaker(), Some("shared"));
    let alone = with("alone", weaker(), None);
    assert_eq!(steps(second.path()), steps(alone.path()));
    assert!(weights(second.path()) == weights(alone.path()));
    // An evaluation, two steps and another one, their seconds included, were the first run's.
    let beginning = |run: &RunDir| run.metrics().expect("a run has metrics")[..4].to_vec();
    assert_eq!(beginning(&second), beginning(&first));
    assert_ne!(beginning(&alone), beginning(&first));
    assert!(steps(second.path()) != steps(first.path()));
}

/// Self-distillation from the top-k tokens, with decoys. The only checkpoint is the one before its teacher is computed.
fn topk_config(place: &Path, out: &str) -> Config {
    let mut config = config(place, out);
    config.method.vocab_subset = VocabSubset::TopK(9);
    config.method.decoys = Some(DecoysConfig::default());
    config.train.save_every = Some(100);
    config
}

/// When each part of the run's teacher was written, and what it holds.
fn teacher_shards(run: &Path) -> Vec<(std::time::SystemTime, Vec<u8>)> {
    let part = |i: usize| run.join(format!("teacher/shard-{i:05}.safetensors"));
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
fn a_run_stopped_while_computing_teacher_logits_reuses_complete_parts() {
    let place = temporary();
    let config = topk_config(place.path(), "run");
    run(&config);
    let (weights_before, steps_before) = (weights(&config.out), steps(&config.out));
    let before = teacher_shards(&config.out);
    assert!(before.len() > 2, "{} parts", before.len());

    // As after a kill in the middle of the pass: the first part alone is there, and no checkpoint has the snapshot.
    unfinish(&config.out);
    assert_eq!(checkpoints(&config.out).len(), 1);
    assert!(!config.out.join("checkpoints/snapshot.safetensors").exists());
    let dir = RunDir::open(&config.out).expect("a run");
    let mut index: serde_json::Value = dir.read_json("teacher/index.json").expect("written");
    let listed = index["shards"].as_object_mut().expect("shards");
    listed.retain(|name, _| name.contains("00000"));
    dir.write_json("teacher/index.json", &index)
        .expect("writable");
    for i in 1..before.len() {
        fs::remove_file(config.out.join(format!("teacher/shard-{i:05}.safetensors")))
            .expect("it was made");
    }

    resume(&config.out, KEEP_CHECKPOINTS, &Progress::quiet()).expect("it resumes");
    let after = teacher_shards(&config.out);
    assert_eq!(after[0].0, before[0].0, "the whole part was not made again");
    for ((_, after), (_, before)) in after.iter().zip(&before) {
        assert!(after == before);
    }
    assert_eq!(after.len(), before.len());
    assert_eq!(steps(&config.out), steps_before);
    assert!(weights(&config.out) == weights_before);
}

#[test]
fn a_corrupt_teacher_part_is_detected_and_the_run_can_start_over() {
    let place = temporary();
    let mut config = topk_config(place.path(), "run");
    config.train.save_every = Some(1);
    run(&config);
    let weights_before = weights(&config.out);
    unfinish(&config.out);
    let file = config.out.join("teacher/shard-00001.safetensors");
    let mut bytes = fs::read(&file).expect("it was made");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(&file, bytes).expect("writable");

    let error =
        resume(&config.out, KEEP_CHECKPOINTS, &Progress::quiet()).expect_err("a broken part");
    assert!(error.to_string().contains("shard-00001"), "{error}");
    assert_eq!(error.exit_code(), 1);
    fs::remove_dir_all(config.out.join("checkpoints")).expect("as the error's hint says");
    resume(&config.out, Options::default(), &Progress::quiet()).expect("it starts over");
    assert!(weights(&config.out) == weights_before);
    assert!(!config.out.join("teacher").exists(), "not kept at the end");
}

#[test]
fn resumed_equals_uninterrupted_with_weight_penalties() {
    resumed_equals_uninterrupted(method(|m| m.kind = MethodKind::L2));
    resumed_equals_uninterrupted(method(|m| {
        (m.kind, m.ewc) = (MethodKind::Sft, Some(ewc(3.0)));
    }));
}

#[test]
fn resumed_equals_uninterrupted_with_decoys() {
    for kind in [MethodKind::Sft, MethodKind::SelfDistill] {
        resumed_equals_uninterrupted(method(|m| {
            (m.kind, m.decoys) = (kind, Some(DecoysConfig::default()));
        }));
    }
}

#[test]
fn resumed_equals_uninterrupted_with_decoys_of_texts() {
    changed_and_resumed_equals_uninterrupted(|config, place| {
        let texts = place.join("texts.jsonl");
        let rows = [
            r#"{"prompt": "Q: Who is there?\nA:", "completion": " Nobody\n"}"#,
            r#"{"text": "Never and nowhere"}"#,
        ];
        fs::write(&texts, rows.join("\n")).expect("writable");
        config.data.learn.push(texts.into());
        (config.method.kind, config.method.decoys) = (
            MethodKind::Sft,
            Some(DecoysConfig {
                ratio: 1.0,
                ..DecoysConfig::default()
            }),
        );
    });
}

#[test]
fn resumed_equals_uninterrupted_with_weights_of_files() {
    changed_and_resumed_equals_uninterrupted(|config, place| {
        let texts = place.join("texts.jsonl");
        fs::write(
            &texts,
            r#"{"prompt": "Q: Who is there?\nA:", "completion": " Nobody\n"}"#,
        )
        .expect("writable");
        config.data.learn.push(weighted(texts, 0.25));
        config.data.learn[0].weight = weight(3.0);
        config.data.keep[0].weight = weight(1.5);
    });
}

#[test]
fn resumed_equals_uninterrupted_under_auto() {
    resumed_equals_uninterrupted(method(|m| m.kind = MethodKind::Auto));
    // A budget's best model is kept and taken back as the average.
    resumed_equals_uninterrupted(method(|m| {
        (m.kind, m.budget) = (MethodKind::Auto, Some(5.0));
    }));
}

#[test]
fn resumed_equals_uninterrupted_where_the_goal_is_the_task() {
    resumed_equals_uninterrupted(method(|m| m.goal = Goal::Task));
}

#[test]
fn resumed_equals_uninterrupted_with_replay() {
    for (kind, target, order) in [
        (
            MethodKind::Sft,
            ReplayTarget::Label,
            ReplaySelection::Hardest,
        ),
        (
            MethodKind::SelfDistill,
            ReplayTarget::Label,
            ReplaySelection::Random,
        ),
        (
            MethodKind::SelfDistill,
            ReplayTarget::Teacher,
            ReplaySelection::Hardest,
        ),
    ] {
        resumed_equals_uninterrupted(method(|m| {
            (m.kind, m.replay) = (kind, Some(replay(target, order)));
        }));
    }
}

#[test]
fn resumed_equals_uninterrupted_with_projected_updates() {
    let project = Some(ProjectConfig {
        energy: 0.9,
        every: 1,
    });
    for kind in [MethodKind::Sft, MethodKind::SelfDistill] {
        resumed_equals_uninterrupted(method(|m| (m.kind, m.project) = (kind, project)));
    }
    resumed_equals_uninterrupted(method(|m| {
        (m.kind, m.project, m.budget) = (MethodKind::L2, project, Some(5.0));
    }));
}

#[test]
fn resumed_equals_uninterrupted_under_a_budget() {
    resumed_equals_uninterrupted(method(|m| m.budget = Some(5.0)));
}

#[test]
fn resumed_equals_uninterrupted_on_adapters() {
    for variant in VARIANTS {
        resumed_on_adapters_equals_uninterrupted(method(|_| ()), Some(lora(variant)));
    }
    for method in [
        method(|m| m.kind = MethodKind::Sft),
        method(|m| m.kind = MethodKind::L2),
        method(|m| (m.kind, m.ewc) = (MethodKind::Sft, Some(EwcConfig::default()))),
        method(|m| m.decoys = Some(DecoysConfig::default())),
        method(|m| m.teacher = Source::Online),
        method(|m| m.vocab_subset = VocabSubset::TopK(9)),
        method(|m| m.budget = Some(5.0)),
    ] {
        resumed_on_adapters_equals_uninterrupted(method, Some(lora(LoraVariant::Dora)));
    }
    let with_dropout = LoraConfig {
        dropout: 0.2,
        ..lora(LoraVariant::Lora)
    };
    for method in [
        method(|m| m.teacher = Source::Online),
        method(|m| (m.teacher, m.snapshot_epochs) = (Source::Base, 0)),
        method(|m| m.vocab_subset = VocabSubset::TopK(9)),
        method(|m| m.decoys = Some(DecoysConfig::default())),
    ] {
        resumed_on_adapters_equals_uninterrupted(method, Some(with_dropout.clone()));
    }
}

/// A run that stops after the first step of its second epoch, against one that does not.
fn stopped_within_an_epoch(method: MethodConfig, lr: f64) {
    let place = temporary();
    let mut whole = config(place.path(), "whole");
    (whole.method, whole.train.learning_rate) = (method, lr);
    run(&whole);

    let stopped = Config {
        out: place.path().join("stopped"),
        ..whole.clone()
    };
    let progress = Progress::quiet();
    let mut trainer =
        prepare::trainer(&stopped, KEEP_CHECKPOINTS, &progress).expect("a good config");
    trainer.evaluate_base_model().expect("writable");
    // The snapshot epoch has two steps of three rows, the next epoch four; one of these is done when the run stops.
    trainer.sampler.num_epochs = 1;
    trainer.train().expect("one epoch");
    trainer.take_snapshot().expect("a row can be written");
    trainer.sampler.num_epochs = 3;
    trainer.select_replayed(2).expect("known rows");
    let epoch = trainer
        .sampler
        .epoch(2, &trainer.state.replayed_rows.clone());
    let rows: Vec<StepRows<'_>> = epoch.steps().collect();
    take_step(&mut trainer, 2, &rows[0]);
    trainer.checkpoint().expect("writable");
    // The weights that the choice of the epoch depends on are gone.
    let chosen = trainer.state.replayed_rows.clone();
    trainer.state.step_in_epoch = 0;
    trainer.select_replayed(2).expect("known rows");
    assert!(chosen.is_empty() || trainer.state.replayed_rows != chosen);
    // A step after the last checkpoint is taken again.
    take_step(&mut trainer, 2, &rows[1]);
    drop(trainer);

    resume(&stopped.out, KEEP_CHECKPOINTS, &progress).expect("it resumes");
    assert_eq!(steps(&stopped.out).len(), 10);
    assert_eq!(steps(&stopped.out), steps(&whole.out));
    assert!(weights(&stopped.out) == weights(&whole.out));
}

#[test]
fn a_run_stopped_within_an_epoch_resumes_within_it() {
    stopped_within_an_epoch(MethodConfig::default(), 1e-2);
}

#[test]
fn a_run_stopped_within_an_epoch_keeps_the_replayed_rows_of_that_epoch() {
    for target in [ReplayTarget::Label, ReplayTarget::Teacher] {
        let replay = replay(target, ReplaySelection::Hardest);
        // A step long enough to change which facts are hardest.
        stopped_within_an_epoch(method(|m| m.replay = Some(replay)), 5e-2);
    }
}

#[test]
fn a_corrupt_checkpoint_is_skipped() {
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
    resume(&config.out, KEEP_CHECKPOINTS, &Progress::quiet()).expect("it resumes");
    assert!(weights(&config.out) == weights_before);
}

#[test]
fn a_run_without_a_checkpoint_starts_over_and_a_finished_one_is_left_alone() {
    let place = temporary();
    let config = config(place.path(), "run");
    let result = run(&config);
    let finished = resume(&config.out, KEEP_CHECKPOINTS, &Progress::quiet()).expect("readable");
    assert_eq!(finished.counts, result.counts);

    let weights_before = weights(&config.out);
    unfinish(&config.out);
    fs::remove_dir_all(config.out.join("checkpoints")).expect("removable");
    resume(&config.out, KEEP_CHECKPOINTS, &Progress::quiet()).expect("it starts over");
    assert!(weights(&config.out) == weights_before);
}

#[test]
fn a_run_resumed_after_a_skipped_step_has_the_optimizer_steps_of_an_uninterrupted_one() {
    let place = temporary();
    let progress = Progress::quiet();
    // The first step of the run is not finite and skipped. Step count and moving average depend on the steps taken.
    let started = |out: &str| {
        let mut config = config(place.path(), out);
        config.method.kind = MethodKind::Sft;
        config.train.on_nonfinite = OnNonFinite::Skip;
        config.train.ema_decay = Some(0.9);
        let mut trainer =
            prepare::trainer(&config, KEEP_CHECKPOINTS, &progress).expect("a good config");
        trainer.evaluate_base_model().expect("writable");
        let epoch = trainer.sampler.epoch(1, &[]);
        let rows: Vec<StepRows<'_>> = epoch.steps().collect();
        let norm = trainer.student.model.params.layout.norm.start;
        let weight = trainer.student.model.params.data[norm];
        trainer.student.model.params.data[norm] = f32::NAN;
        take_step(&mut trainer, 1, &rows[0]);
        trainer.student.model.params.data[norm] = weight;
        take_step(&mut trainer, 1, &rows[1]);
        assert_eq!((trainer.state.step, trainer.state.skipped_steps), (2, 1));
        assert_eq!(trainer.student.optimizer.steps, 1);
        (config, trainer)
    };
    let (whole, mut trainer) = started("whole");
    trainer.train().expect("the rest");
    trainer.finish().expect("writable");
    let (stopped, mut trainer) = started("stopped");
    trainer.checkpoint().expect("writable");
    drop(trainer);
    resume(&stopped.out, KEEP_CHECKPOINTS, &progress).expect("it continues");
    assert_eq!(steps(&stopped.out), steps(&whole.out));
    assert!(weights(&stopped.out) == weights(&whole.out));
}
