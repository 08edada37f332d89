//! Steps, stops and results of any method.

use super::*;

#[test]
fn accumulated_batches_equal_the_big_batch() {
    let place = temporary();
    let mut big = config(place.path(), "big");
    // Small steps: what is compared is the sum, not how training carries rounding on.
    (big.train.batch_size, big.train.learning_rate) = (6, 1e-4);
    let mut accumulated = Config {
        out: place.path().join("accumulated"),
        ..big.clone()
    };
    (
        accumulated.train.batch_size,
        accumulated.train.gradient_accumulation_steps,
    ) = (2, 3);
    run(&big);
    run(&accumulated);
    // Sums in f32 in another order.
    assert!(same_steps(&big.out, &accumulated.out, 1e-4));
}

#[test]
fn the_first_epoch_of_self_distillation_is_on_known_facts_alone_and_sft_has_no_such_epoch() {
    let place = temporary();
    let distilled = config(place.path(), "distilled");
    let mut sft = config(place.path(), "sft");
    sft.method.kind = MethodKind::Sft;
    run(&distilled);
    run(&sft);
    // Three rows a step: two steps of six known rows, then four of eleven, twice; or four, three times.
    assert_eq!(steps(&distilled.out).len(), 10);
    assert_eq!(steps(&sft.out).len(), 12);
}

#[test]
fn diverging_training_stops_before_it_touches_the_weights() {
    let place = temporary();
    let progress = Progress::quiet();
    for (name, lora) in [("whole", None), ("lora", Some(lora(LoraVariant::Dora)))] {
        let mut config = config(place.path(), name);
        config.train.lora = lora;
        let mut trainer =
            prepare::trainer(&config, KEEP_CHECKPOINTS, &progress).expect("a good config");
        trainer.evaluate_base_model().expect("writable");
        let norm = trainer.student.model.params.layout.norm.start;
        trainer.student.model.params.data[norm] = f32::INFINITY;
        let bits = |trainer: &Trainer| -> Vec<u32> {
            let params = &trainer.student.model.params;
            let (trained, _) = trainer
                .student
                .trainable
                .parameters(params, &trainer.student.gradients);
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
fn non_finite_steps_are_skipped_up_to_a_limit() {
    let place = temporary();
    let progress = Progress::quiet();
    let mut config = config(place.path(), "run");
    config.train.on_nonfinite = OnNonFinite::Skip;
    config.train.num_epochs = 9;
    config.train.save_every = Some(100);
    // Nothing can be said of such a model.
    config.measure.every = 100;
    let mut trainer =
        prepare::trainer(&config, KEEP_CHECKPOINTS, &progress).expect("a good config");
    trainer.evaluate_base_model().expect("writable");
    // The weights contain a NaN in the first step of the run, and are repaired after it.
    let norm = trainer.student.model.params.layout.norm.start;
    let weight = std::mem::replace(&mut trainer.student.model.params.data[norm], f32::NAN);
    let bits = |trainer: &Trainer| -> Vec<u32> {
        let weights = trainer.student.model.params.data.iter();
        weights.map(|x| x.to_bits()).collect()
    };
    let before = bits(&trainer);
    take_step(&mut trainer, 1, &on(&[0, 1, 2]));
    assert!(bits(&trainer) == before);
    assert!(
        trainer
            .student
            .optimizer
            .exp_avg
            .iter()
            .all(|moment| *moment == 0.0)
    );
    trainer.student.model.params.data[norm] = weight;
    take_step(&mut trainer, 1, &on(&[3, 4, 5]));
    assert_eq!((trainer.state.step, trainer.state.skipped_steps), (2, 1));
    assert_eq!(steps(&config.out).len(), 1);

    trainer.student.model.params.data[norm] = f32::NAN;
    let error = trainer
        .checkpoint()
        .expect_err("such weights are written nowhere");
    assert!(
        error
            .to_string()
            .contains("model.norm.weight is not finite"),
        "{error}"
    );
    let error = trainer.train_epochs().expect_err("it does not end");
    assert!(
        matches!(error, Error::NonFinite { step: 12, .. }),
        "{error}"
    );
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("10 steps were skipped"))
    );
}

#[test]
fn an_adapters_gradient_that_is_not_finite_is_named() {
    let place = temporary();
    let progress = Progress::quiet();
    // Beside the weights, and merged into them.
    for variant in [LoraVariant::Lora, LoraVariant::Dora] {
        let mut config = config(place.path(), &format!("{variant:?}"));
        config.train.lora = Some(lora(variant));
        let mut trainer =
            prepare::trainer(&config, KEEP_CHECKPOINTS, &progress).expect("a good config");
        let gradients = &mut trainer.student.gradients;
        let data = match &mut gradients.low_rank {
            Some(own) => &mut own.data,
            None => &mut gradients.data,
        };
        // The last target's: the up projection of the last layer.
        *data.last_mut().expect("something is trained") = f32::NAN;
        let told = trainer.student.gradient_norm().expect_err("a NaN");
        assert!(told.contains("layers.1.mlp.up_proj.lora_"), "{told}");
    }
}

#[test]
fn an_optimizer_in_backward_is_bitwise_equal_to_one_after_it() {
    let place = temporary();
    let changes: [fn(&mut Config); 8] = [
        |c| c.method.kind = MethodKind::Sft,
        |c| c.train.max_grad_norm = 0.5,
        |c| (c.train.weight_decay, c.train.ema_decay) = (0.1, Some(0.5)),
        |c| (c.method.teacher, c.method.vocab_subset) = (Source::Topk, VocabSubset::TopK(5)),
        |c| c.train.trainable = vec!["ffn".into(), "model.embed_tokens.weight".into()],
        // Layers that are not trained alike have each their own place.
        |c| c.train.trainable = vec!["attn@0-0".into(), "down".into()],
        |c| c.train.trainable = vec!["model.norm.weight".into()],
        |c| c.method.project = Some(ProjectConfig::default()),
    ];
    // Tied and untied heads, biases, norms of heads.
    for family in ["llama", "llama3", "qwen2", "qwen3"] {
        for (i, change) in changes.into_iter().enumerate() {
            let run_of = |fused: bool| {
                let mut config = config(place.path(), &format!("{family}-{i}-{fused}"));
                config.model = tiny_model().replace("llama", family);
                config.train.max_grad_norm = 0.0;
                change(&mut config);
                config.train.optimizer_in_backward = fused;
                run(&config);
                weights(&config.out)
            };
            assert!(run_of(true) == run_of(false), "{family}, {i}");
        }
    }
}

#[test]
fn gradient_checkpointing_is_bitwise_equal_to_none() {
    let place = temporary();
    let changes: [fn(&mut Config); 4] = [
        |_| (),
        |c| (c.train.max_grad_norm, c.train.optimizer_in_backward) = (0.0, true),
        |c| c.train.trainable = vec!["ffn@1-1".into()],
        |c| (c.method.kind, c.method.project) = (MethodKind::Sft, Some(ProjectConfig::default())),
    ];
    for family in ["llama", "llama3", "qwen2", "qwen3"] {
        for (i, change) in changes.into_iter().enumerate() {
            let run_of = |recompute: bool| {
                let mut config = config(place.path(), &format!("{family}-{i}-{recompute}"));
                config.model = tiny_model().replace("llama", family);
                change(&mut config);
                config.train.gradient_checkpointing = recompute;
                run(&config);
                weights(&config.out)
            };
            assert!(run_of(true) == run_of(false), "{family}, {i}");
        }
    }
}

#[test]
fn activations_below_the_lowest_trained_layer_are_computed_once() {
    let place = temporary();
    let changes: [fn(&mut Config); 4] = [
        |c| c.method.kind = MethodKind::Sft,
        |c| (c.method.teacher, c.method.decoys) = (Source::Online, Some(DecoysConfig::default())),
        |c| {
            (
                c.train.max_grad_norm,
                c.train.optimizer_in_backward,
                c.train.gradient_checkpointing,
            ) = (0.0, true, true);
        },
        |c| c.train.trainable = vec!["model.norm.weight".into()],
    ];
    for family in ["llama", "llama3", "qwen2", "qwen3"] {
        for (i, change) in changes.into_iter().enumerate() {
            let out_of = |once: bool| {
                let mut config = config(place.path(), &format!("{family}-{i}-{once}"));
                config.model = tiny_model().replace("llama", family);
                config.train.trainable = vec!["ffn@1-1".into()];
                change(&mut config);
                let quiet = Progress::quiet();
                let mut trainer =
                    prepare::trainer(&config, KEEP_CHECKPOINTS, &quiet).expect("a good config");
                assert!(
                    trainer.objective.activation_cache.is_some(),
                    "the embedding is frozen, too"
                );
                if !once {
                    trainer.objective.activation_cache = None;
                }
                trainer.run().expect("the run ends well");
                config.out
            };
            // Rows are in different micro-batches, whose sums have a different order.
            assert!(
                same_steps(&out_of(true), &out_of(false), 1e-4),
                "{family}, {i}"
            );
        }
    }
}

#[test]
fn optimizer_in_backward_holds_the_gradient_of_one_layer_and_names_non_finite_tensors() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    (
        config.train.max_grad_norm,
        config.train.optimizer_in_backward,
    ) = (0.0, true);
    config.method.kind = MethodKind::Sft;
    let progress = Progress::quiet();
    let mut trainer =
        prepare::trainer(&config, KEEP_CHECKPOINTS, &progress).expect("a good config");
    let layout = trainer.student.model.params.layout.clone();
    let layers: Vec<usize> = layout.layers.iter().map(|l| l.range().len()).collect();
    assert_eq!(
        trainer.student.gradients.data.len(),
        layout.len - layers.iter().sum::<usize>() + layers[0]
    );
    assert_eq!(
        trainer.memory.gradients,
        4 * trainer.student.gradients.data.len() as u64
    );
    trainer.evaluate_base_model().expect("writable");
    let before = trainer.student.model.params.data.to_vec();
    let norm = layout.norm.clone();
    trainer.student.model.params.data[norm.start] = f32::NAN;
    let error = trainer.train_epochs().expect_err("the loss is not finite");
    assert!(
        matches!(&error, Error::NonFinite { step: 1, quantity, .. } if quantity == "the loss"),
        "{error}"
    );
    trainer.student.model.params.data[norm.start] = before[norm.start];
    assert!(
        trainer.student.model.params.data[..] == before[..],
        "nothing has moved"
    );
}

#[test]
fn rows_that_are_too_long_name_their_line_and_nothing_is_written() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    config.train.max_length = 3;
    let error = tune(&config, KEEP_CHECKPOINTS, &Progress::quiet()).expect_err("rows are longer");
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
    config.train.early_stopping = Some(crate::config::EarlyStoppingConfig {
        accuracy: Some(0.8),
        patience: None,
    });
    let mut trainer =
        prepare::trainer(&config, KEEP_CHECKPOINTS, &progress).expect("a good config");
    trainer.evaluate_base_model().expect("writable");
    // Six known facts, five new ones, four held out: four of the new ones are correct, then three.
    let correct = |new: usize| (0..15).map(|i| (6..6 + new).contains(&i)).collect();
    trainer.state.correct = correct(4);
    trainer.train().expect("nothing is left to do");
    assert_eq!(trainer.state.epoch, 0);
    trainer.state.correct = correct(3);
    trainer.train().expect("it resumes");
    assert!(trainer.state.epoch > 0);
}

#[test]
fn a_result_counts_every_fact_once_and_its_figures_follow_from_the_rows() {
    let place = temporary();
    let config = config(place.path(), "run");
    let result = run(&config);
    let rows = RunDir::open(&config.out).and_then(|dir| dir.facts());
    let rows = rows.expect("a run has facts");
    assert_eq!(rows.len(), 15);
    let accuracy = |split| {
        let of_split: Vec<bool> = rows
            .iter()
            .filter(|row| row.split == split)
            .map(|row| row.correct_after)
            .collect();
        crate::measure::accuracy(&of_split)
    };
    for split in [Split::Known, Split::Unknown, Split::Held] {
        assert_eq!(result.accuracy.get(split).map(|m| m.after), accuracy(split));
    }
    assert_eq!(result.learned, accuracy(Split::Unknown));
    assert_eq!((result.epochs, result.steps), (3, 10));
    assert!(result.peak_memory_bytes > 0 || !cfg!(target_os = "linux"));
}

#[test]
fn texts_are_trained_with_facts() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    let texts = place.path().join("texts.jsonl");
    let rows = [
        r#"{"prompt": "Q: Who?\nA:", "completion": " Nobody\n"}"#,
        r#"{"prompt": "Q: When?\nA:", "completion": " Never\n"}"#,
    ];
    fs::write(&texts, rows.join("\n")).expect("writable");
    config.data.learn = vec![texts.into()];
    let result = run(&config);
    // Two steps of six known rows, then three of eight, twice.
    assert_eq!(steps(&config.out).len(), 8);
    assert_eq!(
        (result.method.as_str(), result.learned),
        ("self-distill", None)
    );
}

#[test]
fn a_row_of_weight_two_counts_as_two_rows() {
    let place = temporary();
    let file = |name: &str, answer: &str| {
        let path = place.path().join(name);
        let row = format!(r#"{{"prompt": "Q: Who?\nA:", "completion": " {answer}\n"}}"#);
        fs::write(&path, row).expect("writable");
        path
    };
    let (once, again) = (file("a.jsonl", "Nobody"), file("b.jsonl", "Nobody"));
    let other = file("c.jsonl", "Somebody in Peru");
    // One batch an epoch, so that both runs see the same rows in every step.
    let run = |name: &str, learn: Vec<DataFile>, kept: f64| {
        let mut config = config(place.path(), name);
        (config.method.kind, config.train.batch_size) = (MethodKind::Sft, 60);
        config.train.learning_rate = 1e-3;
        config.data.learn.extend(learn);
        config.data.keep[0].weight = weight(kept);
        run(&config);
        config.out
    };
    let other = DataFile::from(other);
    let copies = run(
        "copies",
        vec![once.clone().into(), again.into(), other.clone()],
        1.0,
    );
    let double = run(
        "double",
        vec![weighted(once.clone(), 2.0), other.clone()],
        1.0,
    );
    let plain = run("plain", vec![once.clone().into(), other.clone()], 1.0);
    // Sums in f32 in another order.
    assert!(same_steps(&copies, &double, 1e-4));
    assert!(!same_steps(&copies, &plain, 1e-2));
    // Known facts have weights, too.
    let light = run("light", vec![weighted(once, 2.0), other], 0.5);
    assert!(!same_steps(&light, &double, 1e-2));
}

#[test]
fn weights_that_are_all_equal_change_nothing() {
    let place = temporary();
    let run = |name: &str, of_rows: f64| {
        let mut config = config(place.path(), name);
        config.data.learn[0].weight = weight(of_rows);
        config.data.keep[0].weight = weight(of_rows);
        run(&config);
        (steps(&config.out), weights(&config.out))
    };
    // A power of two, which rounds nothing.
    assert!(run("plain", 1.0) == run("weighted", 4.0));
}

#[test]
fn grad_norms_are_those_of_each_loss_term() {
    let place = temporary();
    let mut config = config(place.path(), "measured");
    config.method.kind = MethodKind::L2;
    config.method.lambda = 0.25;
    config.measure.grad_norms = true;
    config.train.shuffle = false;
    // One step per epoch, so that its rows are those of the evaluation before.
    (config.train.num_epochs, config.train.batch_size) = (4, 16);
    run(&config);
    let metrics = RunDir::open(&config.out).and_then(|dir| dir.metrics());
    let (mut measured, mut stepped) = (Vec::new(), Vec::new());
    for row in metrics.expect("a run has metrics") {
        match row {
            Metrics::Eval {
                epoch,
                grad_norms: norms,
                ..
            } => {
                assert_eq!(norms.is_some(), epoch > 0);
                measured.extend(norms);
            }
            Metrics::Step {
                penalty, grad_norm, ..
            } => stepped.push((penalty, grad_norm)),
            _ => {}
        }
    }
    assert_eq!((measured.len(), stepped.len()), (4, 4));
    // There is no penalty in the first epoch; later its center is the weights after it.
    assert_eq!(measured[0].retention, 0.0);
    for (norms, (penalty, grad_norm)) in measured[1..].iter().zip(&stepped[2..]) {
        // |gradient of lambda sum (w - w0)^2| = 2 lambda |w - w0| = 2 sqrt(lambda penalty).
        let expected = 2.0 * (config.method.lambda * penalty).sqrt();
        // The gradient is a difference of two in f32.
        assert!(
            (norms.retention - expected).abs() < 1e-4 * expected,
            "{norms:?}"
        );
        assert!(expected > 0.0 && norms.ce > 0.0);
        let [low, high] = [norms.ce - norms.retention, norms.ce + norms.retention];
        assert!(*grad_norm >= low.abs() * 0.999 && *grad_norm <= high * 1.001);
    }
}
