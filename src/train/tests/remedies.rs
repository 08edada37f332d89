//! What each remedy holds, alone and with the others, and what is frozen under them.

use super::*;

#[test]
fn the_saved_and_evaluated_weights_are_the_ema() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    config.method.kind = MethodKind::Sft;
    config.train.ema_decay = Some(0.5);
    let progress = Progress::quiet();
    let mut trainer =
        prepare::trainer(&config, KEEP_CHECKPOINTS, &progress).expect("a good config");
    trainer.evaluate_base_model().expect("writable");
    trainer.train().expect("finite");
    let moved = trainer.student.model.params.data.to_vec();
    let average = trainer.student.optimizer.ema.as_ref().expect("asked for");
    let average = average.weights.to_vec();
    assert!(moved != average);
    trainer.finish().expect("writable");
    let saved = Model::load(&config.out.join("model").display().to_string()).expect("saved");
    // All tensors are trained, so that the average lies as the weights do.
    assert!(saved.params.data[..] == average[..]);
}

#[test]
fn every_epoch_draws_its_ratio_from_the_decoy_pool() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    (config.method.kind, config.method.decoys) = (
        MethodKind::Sft,
        Some(DecoysConfig {
            ratio: 0.4,
            pool_ratio: Some(1.0),
            ..DecoysConfig::default()
        }),
    );
    let progress = Progress::quiet();
    let mut trainer =
        prepare::trainer(&config, KEEP_CHECKPOINTS, &progress).expect("a good config");
    trainer.generate_decoys().expect("there are names");
    // Of 11 rows.
    assert_eq!(trainer.sampler.examples().len(), 22);
    let visited = |epoch: usize| {
        let steps = trainer.sampler.epoch(epoch, &[]);
        let decoys = steps.steps().flat_map(|step| step.aux[0].indices.to_vec());
        let mut rows: Vec<usize> = decoys.collect();
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

/// Runs `config` from its snapshot on: the weights then, the weights at the end, and the projection.
fn projected(config: &Config) -> (Params, Params, Snapshot) {
    let progress = Progress::quiet();
    let mut trainer = prepare::trainer(config, KEEP_CHECKPOINTS, &progress).expect("a good config");
    trainer.evaluate_base_model().expect("writable");
    let epochs = trainer.sampler.num_epochs;
    trainer.sampler.num_epochs = config.method.snapshot_epochs;
    trainer.train().expect("the snapshot epochs");
    trainer.take_snapshot().expect("finite");
    let before = trainer.student.model.params.clone();
    trainer.sampler.num_epochs = epochs;
    trainer.train().expect("the rest");
    let snapshot = trainer.objective.snapshot.take().expect("just taken");
    (before, trainer.student.model.params.clone(), snapshot)
}

#[test]
fn projected_updates_keep_outputs_on_known_inputs_and_freeze_tensors_without_a_basis() {
    let place = temporary();
    // After so many steps as there are none in an epoch its end alone is left.
    let cases = [
        (MethodKind::SelfDistill, 1, 1),
        (MethodKind::Sft, 0, 1),
        (MethodKind::Sft, 0, 100),
    ];
    for (i, (kind, snapshot_epoch, every)) in cases.into_iter().enumerate() {
        let mut config = config(place.path(), &format!("run-{i}"));
        (config.method.kind, config.method.snapshot_epochs) = (kind, snapshot_epoch);
        config.method.project = Some(ProjectConfig { energy: 0.9, every });
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
            let Some(tensor) = name.strip_prefix("outputs.") else {
                basis = values;
                continue;
            };
            let tensor = &before.layout.tensors[tensor.parse::<usize>().expect("an index")];
            let width = tensor.row_len();
            free += width - basis.len() / width;
            let made =
                |params: &Params| basis_outputs(&params.data[tensor.range.clone()], basis, width);
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
fn a_projection_covers_decoys_that_no_epoch_visits() {
    let place = temporary();
    let taken = |name: &str, decoys: Option<DecoysConfig>| {
        let mut config = config(place.path(), name);
        config.method.kind = MethodKind::Sft;
        config.method.project = Some(ProjectConfig::default());
        config.method.decoys = decoys;
        config
            .validate()
            .expect("a projection says what decoys are for");
        let (.., snapshot) = projected(&config);
        assert!(snapshot.teacher.is_none(), "nothing is asked of it");
        let projection = snapshot.projection.expect("it was asked for");
        let bases = projection.arrays().into_iter();
        let values = bases.filter(|(name, _)| name.starts_with("basis."));
        values.map(|(_, values)| values.len()).sum::<usize>()
    };
    let unvisited = DecoysConfig {
        ratio: 0.0,
        pool_ratio: Some(4.0),
        ..DecoysConfig::default()
    };
    let (known, with_decoys) = (taken("known", None), taken("decoys", Some(unvisited)));
    assert!(with_decoys > known, "{with_decoys} <= {known}");
}

#[test]
fn all_energy_takes_all_directions_that_known_inputs_have() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    config.method.project = Some(ProjectConfig {
        energy: 1.0,
        every: 1,
    });
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
    config.method.project = Some(ProjectConfig::default());
    let refused = |config: &Config, told: &str| {
        let error =
            tune(config, KEEP_CHECKPOINTS, &Progress::quiet()).expect_err("it makes no sense");
        assert!(error.to_string().contains(told), "{error}");
        assert_eq!(error.exit_code(), 2);
        assert!(!config.out.exists());
    };
    let mut norms = config.clone();
    norms.train.trainable = vec!["model.norm.weight".into()];
    refused(
        &norms,
        "freezes everything but the weights of linear layers",
    );
    config.data.keep = Vec::new();
    config.method.snapshot_epochs = 0;
    refused(&config, "no known fact whose inputs");
}

#[test]
fn control_facts_are_not_reported_and_the_best_model_is_saved() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    config.method.budget = Some(100.0);
    let progress = Progress::quiet();
    let mut trainer =
        prepare::trainer(&config, KEEP_CHECKPOINTS, &progress).expect("a good config");
    assert_eq!(
        (
            trainer.evaluator.splits.control.len(),
            trainer.evaluator.splits.held.len()
        ),
        (2, 2)
    );
    trainer.evaluate_base_model().expect("writable");
    trainer.sampler.num_epochs = 2;
    trainer.train().expect("two epochs");
    let best = trainer.student.model.params.data.to_vec();
    let steering = trainer.state.budget.as_mut().expect("a budget");
    assert_eq!(
        steering.best.map(|b| b.epoch),
        Some(2),
        "nothing is over 100 pp"
    );
    // A third epoch that is worse: the second is taken back.
    steering.best = steering
        .best
        .map(|b| crate::remedy::budget::Best { learned: 2.0, ..b });
    trainer.sampler.num_epochs = 3;
    trainer.train().expect("one more");
    assert!(trainer.student.model.params.data[..] != best[..]);
    trainer.restore_best().expect("it was kept");
    assert!(trainer.student.model.params.data[..] == best[..]);
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
    let error = tune(&config, KEEP_CHECKPOINTS, &Progress::quiet()).expect_err("nothing to watch");
    assert!(error.to_string().contains("held-out"), "{error}");
    assert_eq!(error.exit_code(), 2);
    assert!(!config.out.exists());
}

#[test]
fn a_remedy_of_weight_zero_is_bitwise_plain_fine_tuning() {
    let place = temporary();
    let trained = |name: &str, method: MethodConfig| {
        let mut config = config(place.path(), name);
        config.method = method;
        config.method.snapshot_epochs = 0;
        run(&config);
        weights(&config.out)
    };
    let plain = trained("sft", method(|m| m.kind = MethodKind::Sft));
    for (name, idle) in [
        ("self-distill", method(|m| m.lambda = 0.0)),
        ("l2", method(|m| (m.kind, m.lambda) = (MethodKind::L2, 0.0))),
        (
            "ewc",
            method(|m| (m.kind, m.ewc) = (MethodKind::Sft, Some(ewc(0.0)))),
        ),
        (
            "replay",
            method(|m| {
                let idle = ReplayConfig {
                    strength: 0.0,
                    ..replay(ReplayTarget::Teacher, ReplaySelection::Random)
                };
                (m.kind, m.replay) = (MethodKind::Sft, Some(idle));
            }),
        ),
    ] {
        assert!(trained(name, idle) == plain, "{name}");
    }
}

#[test]
fn a_topk_teacher_matches_a_hidden_one_when_the_target_is_excluded() {
    let place = temporary();
    let trained = |name: &str, teacher, exclude_target| {
        let mut config = config(place.path(), name);
        config.train.learning_rate = 1e-4;
        (config.method.vocab_subset, config.method.teacher) = (VocabSubset::TopK(30), teacher);
        config.method.exclude_target = exclude_target;
        let result = run(&config);
        let left_out = exclude_target;
        assert_eq!(result.method.ends_with("+decoupled"), left_out);
        config.out
    };
    let hidden = trained("hidden", Source::Hidden, true);
    let kept = trained("kept", Source::Topk, true);
    let with = trained("with", Source::Topk, false);
    // Matmuls over differently grouped rows round differently.
    assert!(same_steps(&hidden, &kept, 1e-4));
    assert!(!same_steps(&with, &kept, 1e-4));
}

#[test]
fn random_tokens_of_the_whole_vocabulary_are_all_tokens() {
    let place = temporary();
    let trained = |name: &str, tokens| {
        let mut config = config(place.path(), name);
        config.method.vocab_subset = tokens;
        run(&config);
        weights(&config.out)
    };
    let full = trained("full", VocabSubset::Full);
    assert!(trained("random", VocabSubset::Random(1 << 20)) == full);
    assert!(trained("few", VocabSubset::Random(7)) != full);
}

#[test]
fn every_pair_of_remedies_runs_and_leaves_frozen_tensors_alone() {
    let place = temporary();
    let remedies: [fn(&mut Config); 7] = [
        |c| c.method.decoys = Some(DecoysConfig::default()),
        |c| c.method.ewc = Some(EwcConfig::default()),
        |c| c.method.replay = Some(replay(ReplayTarget::Label, ReplaySelection::Hardest)),
        |c| c.method.replay = Some(replay(ReplayTarget::Teacher, ReplaySelection::Hardest)),
        |c| {
            c.method.project = Some(ProjectConfig {
                energy: 0.9,
                every: 1,
            });
        },
        |c| c.method.interpolate = Some(InterpolateConfig::default()),
        |c| c.train.ema_decay = Some(0.8),
    ];
    for kind in [MethodKind::Sft, MethodKind::L2, MethodKind::SelfDistill] {
        for (i, one) in remedies.iter().enumerate() {
            for (j, other) in remedies.iter().enumerate().skip(i + 1) {
                let mut config = config(place.path(), &format!("{kind:?}-{i}-{j}"));
                config.method.kind = kind;
                one(&mut config);
                other(&mut config);
                // With q, k, v and o of a layer trained, projection has weights to act on.
                config.train.trainable = vec!["attn".into()];
                config.method.snapshot_epochs = 1;
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
fn an_interpolated_run_keeps_what_it_learned_and_resumes_bitwise() {
    let place = temporary();
    let mut config = config(place.path(), "plain");
    config.method.kind = MethodKind::Sft;
    config.train.trainable = vec!["ffn".into()];
    config.train.num_epochs = 12;
    let plain = run(&config);
    assert!(plain.learned > Some(0.5), "or there is nothing to keep");

    config.out = place.path().join("interpolated");
    config.method.interpolate = Some(InterpolateConfig { min_retained: 0.99 });
    let result = run(&config);
    assert_eq!(result.method, "sft+interpolate");
    assert!(result.interpolation < Some(1.0));
    assert!(result.learned >= plain.learned);
    assert_moved(&config, |name| name.contains("mlp."));

    let whole = weights(&config.out);
    unfinish(&config.out);
    resume(&config.out, KEEP_CHECKPOINTS, &Progress::quiet()).expect("it resumes");
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
fn adapters_combine_with_every_remedy_and_leave_other_tensors_alone() {
    let place = temporary();
    let decoys = Some(DecoysConfig::default());
    for (i, (kind, decoys, ewc, budget)) in [
        (MethodKind::Sft, None, None, None),
        (MethodKind::Sft, decoys, Some(ewc(1.0)), None),
        (MethodKind::L2, decoys, None, None),
        (MethodKind::SelfDistill, None, Some(ewc(1.0)), None),
        (MethodKind::SelfDistill, decoys, None, Some(5.0)),
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

/// Loss and divergence of every step.
fn losses(run: &Path) -> Vec<[f64; 2]> {
    let metrics = RunDir::open(run).and_then(|run| run.metrics());
    let metrics = metrics.expect("a finished run").into_iter();
    let losses = metrics.filter_map(|row| match row {
        Metrics::Step { ce, distill, .. } => Some([ce, distill]),
        _ => None,
    });
    losses.collect()
}

#[test]
fn a_teacher_of_adapters_is_the_same_kept_as_states_as_adapters_or_as_nothing() {
    let place = temporary();
    for (snapshot_epochs, teachers) in [
        (0, &[Source::Hidden, Source::Online, Source::Base][..]),
        (1, &[Source::Hidden, Source::Online]),
    ] {
        let losses = teachers.iter().map(|teacher| {
            let mut config = config(place.path(), &format!("{teacher:?}-{snapshot_epochs}"));
            config.method.teacher = *teacher;
            config.method.snapshot_epochs = snapshot_epochs;
            config.train.lora = Some(lora(LoraVariant::Lora));
            run(&config);
            losses(&config.out)
        });
        let losses: Vec<Vec<[f64; 2]>> = losses.collect();
        assert!(losses[0].iter().any(|[_, distill]| *distill > 1e-3));
        for others in &losses[1..] {
            assert_eq!(others.len(), losses[0].len());
            for (own, other) in losses[0].iter().zip(others) {
                // Packed in other batches, the same states differ by f32 rounding.
                let apart = (own[0] - other[0]).abs() + (own[1] - other[1]).abs();
                assert!(apart < 1e-4, "{own:?} {other:?}");
            }
        }
    }
}

#[test]
fn dropout_changes_training_and_not_what_is_saved() {
    let place = temporary();
    let trained = |name: &str, dropout: f64, seed: u64| {
        let mut config = config(place.path(), name);
        config.method.kind = MethodKind::Sft;
        config.seed = seed;
        config.train.lora = Some(LoraConfig {
            dropout,
            ..lora(LoraVariant::Lora)
        });
        run(&config);
        (losses(&config.out), weights(&config.out))
    };
    let plain = trained("plain", 0.0, 0);
    let dropped = trained("dropped", 0.5, 0);
    // B is zero in the first step, so that its loss has no part of the adapters.
    assert_eq!(plain.0[0], dropped.0[0]);
    assert!(plain.0[1] != dropped.0[1] && plain.1 != dropped.1);
    assert!(trained("again", 0.5, 0) == dropped);
}

#[test]
fn the_best_adapters_within_a_budget_are_restored_with_the_merged_model() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    config.method.budget = Some(100.0);
    config.train.lora = Some(lora(LoraVariant::Dora));
    let progress = Progress::quiet();
    let mut trainer =
        prepare::trainer(&config, KEEP_CHECKPOINTS, &progress).expect("a good config");
    trainer.evaluate_base_model().expect("writable");
    trainer.sampler.num_epochs = 2;
    trainer.train().expect("two epochs");
    let both = |trainer: &Trainer| {
        let (adapters, _) = trainer
            .student
            .trainable
            .parameters(&trainer.student.model.params, &trainer.student.gradients);
        (
            adapters.data.to_vec(),
            trainer.student.model.params.data.to_vec(),
        )
    };
    let best = both(&trainer);
    let steering = trainer.state.budget.as_mut().expect("a budget");
    steering.best = steering
        .best
        .map(|b| crate::remedy::budget::Best { learned: 2.0, ..b });
    trainer.sampler.num_epochs = 3;
    trainer.train().expect("one more");
    assert!(both(&trainer).0 != best.0 && both(&trainer).1 != best.1);
    trainer.restore_best().expect("it was kept");
    assert!(both(&trainer) == best);
}

#[test]
fn the_hardest_known_facts_are_those_of_the_largest_cross_entropy() {
    let place = temporary();
    let progress = Progress::quiet();
    let mut config = config(place.path(), "run");
    config.method.kind = MethodKind::Sft;
    config.method.replay = Some(replay(ReplayTarget::Label, ReplaySelection::Hardest));
    let mut trainer =
        prepare::trainer(&config, KEEP_CHECKPOINTS, &progress).expect("a good config");
    trainer.select_replayed(1).expect("known rows");
    let losses: Vec<f64> = (0..6)
        .map(|row| {
            let mut packed = PackedExamples::new([&trainer.sampler.examples()[row]]);
            let weight = 1.0 / packed.targets.len() as f64;
            packed.set_weights(weight, |_| 0.0);
            let targets: &[Target] = &packed.targets;
            let (params, gradients) = (
                &trainer.student.model.params,
                &mut trainer.student.gradients,
            );
            let engine = &mut trainer.student.engine;
            let loss = engine.loss_and_gradients(params, &packed.batch, targets, None, gradients);
            loss.ce
        })
        .collect();
    // 0.4 of eleven rows: four.
    let chosen = &trainer.state.replayed_rows;
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
fn replay_starts_after_the_snapshot_epochs_and_can_ramp_up() {
    let place = temporary();
    let tokens = |name: &str, kind: MethodKind, replay: Option<ReplayConfig>| {
        let mut config = config(place.path(), name);
        (config.method.kind, config.method.replay) = (kind, replay);
        let result = run(&config);
        assert_eq!(result.method.ends_with("+replay"), replay.is_some());
        step_tokens(&config.out)
    };
    let label = replay(ReplayTarget::Label, ReplaySelection::Hardest);
    let plain = tokens("plain", MethodKind::SelfDistill, None);
    let replayed = tokens("replayed", MethodKind::SelfDistill, Some(label));
    // Two steps of the snapshot epoch, then four an epoch with a replayed row each.
    assert_eq!(plain.len(), replayed.len());
    assert_eq!(plain[..2], replayed[..2]);
    assert!((2..10).all(|step| replayed[step] > plain[step]));

    let rising = ReplayConfig {
        schedule: ReplaySchedule::Ramp,
        ..label
    };
    let plain = tokens("sft", MethodKind::Sft, None);
    let rising = tokens("rising", MethodKind::Sft, Some(rising));
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
    (config.method.kind, config.data.keep) = (MethodKind::Sft, Vec::new());
    config.method.replay = Some(ReplayConfig::default());
    let error = tune(&config, KEEP_CHECKPOINTS, &Progress::quiet()).expect_err("nothing to replay");
    assert!(
        error.to_string().contains("no known fact to replay"),
        "{error}"
    );
    assert_eq!(error.exit_code(), 2);
    assert!(!config.out.exists());
}

#[test]
fn a_task_trains_attention_only_without_a_snapshot() {
    let place = temporary();
    let mut task = config(place.path(), "task");
    task.method = MethodConfig {
        goal: Goal::Task,
        ..MethodConfig::default()
    };
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
    attention.method.kind = MethodKind::Sft;
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

#[test]
fn a_hidden_teacher_matches_an_online_one() {
    let place = temporary();
    let mut live = config(place.path(), "live");
    (live.method.teacher, live.train.learning_rate) = (Source::Online, 1e-4);
    let mut hidden = Config {
        out: place.path().join("hidden"),
        ..live.clone()
    };
    hidden.method.teacher = Source::Hidden;
    run(&live);
    run(&hidden);
    // Matmuls over differently grouped rows round differently.
    assert!(same_steps(&live.out, &hidden.out, 1e-4));
}

#[test]
fn a_topk_teacher_matches_a_hidden_one() {
    let place = temporary();
    let mut kept = config(place.path(), "kept");
    (kept.method.vocab_subset, kept.train.learning_rate) = (VocabSubset::TopK(9), 1e-4);
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
fn a_base_model_that_changes_during_the_run_is_not_interpolated_with() {
    let place = temporary();
    let base = place.path().join("base");
    fs::create_dir(&base).expect("writable");
    for entry in fs::read_dir(tiny_model()).expect("the golden model") {
        let entry = entry.expect("readable");
        fs::copy(entry.path(), base.join(entry.file_name())).expect("writable");
    }
    let mut config = config(place.path(), "run");
    config.model = base.to_str().expect("UTF-8").to_owned();
    config.method.kind = MethodKind::Sft;
    config.method.interpolate = Some(InterpolateConfig::default());
    let progress = Progress::quiet();
    let mut trainer =
        prepare::trainer(&config, KEEP_CHECKPOINTS, &progress).expect("a good config");
    trainer.evaluate_base_model().expect("writable");
    trainer.train().expect("finite");
    let file = base.join("model.safetensors");
    let mut bytes = fs::read(&file).expect("a model");
    *bytes.last_mut().expect("not empty") ^= 1;
    fs::write(&file, bytes).expect("writable");
    let error = trainer.finish().expect_err("another model");
    assert!(
        error
            .to_string()
            .contains("has changed since the run started"),
        "{error}"
    );
}
