//! Steps, stops and results of any method.

use super::*;

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
fn steps_that_are_not_finite_are_passed_over_where_that_is_wanted_and_not_without_end() {
    let place = temporary();
    let progress = Progress::quiet();
    let mut config = config(place.path(), "run");
    config.train.on_nonfinite = OnNonFinite::Skip;
    config.train.epochs = 9;
    config.train.checkpoint_every = Some(100);
    let mut trainer = prepare::trainer(&config, KEEP, &progress).expect("a good config");
    trainer.begin().expect("writable");
    // The first step of the run finds a hole in the weights, which is mended after it.
    let norm = trainer.model.params.layout.norm.start;
    let weight = std::mem::replace(&mut trainer.model.params.data[norm], f32::NAN);
    let bits = |trainer: &Trainer<'_>| -> Vec<u32> {
        let weights = trainer.model.params.data.iter();
        weights.map(|x| x.to_bits()).collect()
    };
    let before = bits(&trainer);
    trainer.step(1, &[0, 1, 2], &[]).expect("it is passed over");
    assert!(bits(&trainer) == before);
    assert!(trainer.optimiser.first.iter().all(|moment| *moment == 0.0));
    trainer.model.params.data[norm] = weight;
    trainer.step(1, &[3, 4, 5], &[]).expect("all is well");
    assert_eq!((trainer.standing.step, trainer.standing.skipped), (2, 1));
    assert_eq!(steps(&config.out).len(), 1);

    trainer.model.params.data[norm] = f32::NAN;
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
            .is_some_and(|hint| hint.contains("10 steps were passed over"))
    );
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
    let told = trainer.what_is_not_finite(Loss::default(), f64::NAN);
    let told = told.expect("a NaN");
    assert!(told.contains("layers.1.mlp.up_proj.lora_"), "{told}");
}

#[test]
fn steps_within_the_backward_pass_have_the_bits_of_those_after_it() {
    let place = temporary();
    let changes: [fn(&mut Config); 8] = [
        |c| c.method.kind = Kind::Sft,
        |c| c.train.clip = 0.5,
        |c| (c.train.weight_decay, c.train.average) = (0.1, Some(0.5)),
        |c| (c.method.teacher, c.method.tokens) = (Source::Topk, Tokens::Top(5)),
        |c| c.train.trainable = vec!["ffn".into(), "model.embed_tokens.weight".into()],
        // Layers that are not trained alike have each their own place.
        |c| c.train.trainable = vec!["attn@0-0".into(), "down".into()],
        |c| c.train.trainable = vec!["model.norm.weight".into()],
        |c| c.method.project = Some(Project::default()),
    ];
    // Tied and untied heads, biases, norms of heads.
    for family in ["llama", "llama3", "qwen2", "qwen3"] {
        for (i, change) in changes.into_iter().enumerate() {
            let run_of = |fused: bool| {
                let mut config = config(place.path(), &format!("{family}-{i}-{fused}"));
                config.model = tiny_model().replace("llama", family);
                config.train.clip = 0.0;
                change(&mut config);
                config.train.fused = fused;
                run(&config);
                weights(&config.out)
            };
            assert!(run_of(true) == run_of(false), "{family}, {i}");
        }
    }
}

#[test]
fn what_is_computed_again_has_the_bits_of_what_was_kept() {
    let place = temporary();
    let changes: [fn(&mut Config); 4] = [
        |_| (),
        |c| (c.train.clip, c.train.fused) = (0.0, true),
        |c| c.train.trainable = vec!["ffn@1-1".into()],
        |c| (c.method.kind, c.method.project) = (Kind::Sft, Some(Project::default())),
    ];
    for family in ["llama", "llama3", "qwen2", "qwen3"] {
        for (i, change) in changes.into_iter().enumerate() {
            let run_of = |recompute: bool| {
                let mut config = config(place.path(), &format!("{family}-{i}-{recompute}"));
                config.model = tiny_model().replace("llama", family);
                change(&mut config);
                config.train.recompute = recompute;
                run(&config);
                weights(&config.out)
            };
            assert!(run_of(true) == run_of(false), "{family}, {i}");
        }
    }
}

#[test]
fn what_lies_below_all_that_is_trained_is_computed_once() {
    let place = temporary();
    let changes: [fn(&mut Config); 4] = [
        |c| c.method.kind = Kind::Sft,
        |c| (c.method.teacher, c.method.decoys) = (Source::Live, Some(Decoys::default())),
        |c| (c.train.clip, c.train.fused, c.train.recompute) = (0.0, true, true),
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
                let mut trainer = prepare::trainer(&config, KEEP, &quiet).expect("a good config");
                assert!(
                    trainer.objective.frozen.is_some(),
                    "the embedding is frozen, too"
                );
                if !once {
                    trainer.objective.frozen = None;
                }
                trainer.run().expect("the run ends well");
                config.out
            };
            // Rows pass in other batches, whose sums are made in another order.
            assert!(
                same_steps(&out_of(true), &out_of(false), 1e-4),
                "{family}, {i}"
            );
        }
    }
}

#[test]
fn a_fused_step_holds_one_layers_gradient_and_names_what_is_not_finite() {
    let place = temporary();
    let mut config = config(place.path(), "run");
    (config.train.clip, config.train.fused) = (0.0, true);
    config.method.kind = Kind::Sft;
    let progress = Progress::quiet();
    let mut trainer = prepare::trainer(&config, KEEP, &progress).expect("a good config");
    let layout = trainer.model.params.layout.clone();
    let layers: Vec<usize> = layout.layers.iter().map(|l| l.range().len()).collect();
    assert_eq!(
        trainer.gradients.data.len(),
        layout.len - layers.iter().sum::<usize>() + layers[0]
    );
    assert_eq!(
        trainer.memory.gradients,
        4 * trainer.gradients.data.len() as u64
    );
    trainer.begin().expect("writable");
    let before = trainer.model.params.data.to_vec();
    let norm = layout.norm.clone();
    trainer.model.params.data[norm.start] = f32::NAN;
    let error = trainer.train_epochs().expect_err("the loss is not finite");
    assert!(
        matches!(&error, Error::NonFinite { step: 1, what, .. } if what == "the loss"),
        "{error}"
    );
    trainer.model.params.data[norm.start] = before[norm.start];
    assert!(
        trainer.model.params.data[..] == before[..],
        "nothing has moved"
    );
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
    // What is right before training is the first peak.
    trainer.standing.right_at_peak = right(&[13, 14]);
    trainer.remember(right(&[0, 1, 6, 11]));
    assert_eq!(trainer.standing.right_at_peak, right(&[0, 1, 6, 13, 14]));
    trainer.standing.right_at_peak = right(&[0, 1, 6, 11]);
    // Known gets worse, new ones better, held ones as many but others: the first epoch's stay.
    trainer.remember(right(&[0, 6, 7, 12]));
    assert_eq!(trainer.standing.right_at_peak, right(&[0, 1, 6, 7, 11]));
    assert_eq!(trainer.standing.right, right(&[0, 6, 7, 12]));
    assert_eq!(trainer.standing.lost_once, right(&[1, 11]));
    // What comes back stays one that was lost.
    trainer.remember(right(&[0, 1, 7, 12]));
    assert_eq!(trainer.standing.lost_once, right(&[1, 6, 11]));
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

#[test]
fn what_pulls_at_the_weights_is_the_gradient_of_each_term() {
    let place = temporary();
    let mut config = config(place.path(), "pulled");
    config.method.kind = Kind::L2;
    config.method.lambda = 0.25;
    config.measure.pulls = true;
    config.train.shuffle = false;
    // One step an epoch, so that its rows are those of the evaluation before.
    (config.train.epochs, config.train.batch_size) = (4, 16);
    run(&config);
    let metrics = RunDir::open(&config.out).and_then(|dir| dir.metrics());
    let (mut pulled, mut stepped) = (Vec::new(), Vec::new());
    for row in metrics.expect("a run has metrics") {
        match row {
            Metrics::Eval { epoch, pulls, .. } => {
                assert_eq!(pulls.is_some(), epoch > 0);
                pulled.extend(pulls);
            }
            Metrics::Step {
                penalty, grad_norm, ..
            } => stepped.push((penalty, grad_norm)),
            _ => {}
        }
    }
    assert_eq!((pulled.len(), stepped.len()), (4, 4));
    // At first nothing is held; from the second epoch on at the weights after the first.
    assert_eq!(pulled[0].held, 0.0);
    for (pulls, (penalty, grad_norm)) in pulled[1..].iter().zip(&stepped[2..]) {
        // |gradient of lambda sum (w - w0)^2| = 2 lambda |w - w0| = 2 sqrt(lambda penalty).
        let expected = 2.0 * (config.method.lambda * penalty).sqrt();
        // The gradient is a difference of two in f32.
        assert!((pulls.held - expected).abs() < 1e-4 * expected, "{pulls:?}");
        assert!(expected > 0.0 && pulls.learned > 0.0);
        let [low, high] = [pulls.learned - pulls.held, pulls.learned + pulls.held];
        assert!(*grad_norm >= low.abs() * 0.999 && *grad_norm <= high * 1.001);
    }
}
