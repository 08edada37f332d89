//! EWC over several runs, against its equations.

use super::*;

/// A run with SFT and EWC, and one after it that starts from its model; `gamma` is that of the second.
fn two_runs(place: &Path, gamma: Option<f64>) -> (Config, Config) {
    let mut first = config(place, "first");
    (first.method.kind, first.method.ewc) = (MethodKind::Sft, Some(ewc(3.0)));
    first.method.snapshot_epochs = 0;
    run(&first);
    let mut second = Config {
        model: first.out.join("model").to_str().expect("UTF-8").to_owned(),
        out: place.join("second"),
        seed: 1,
        ..first.clone()
    };
    second.method.snapshot_epochs = 1;
    second.method.ewc = Some(EwcConfig {
        strength: 3.0,
        previous_runs: vec![first.out.clone()],
        gamma,
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
fn fisher_of(config: &Config, params: &[f32], rows: impl Fn(&Trainer) -> Vec<Example>) -> Vec<f64> {
    let progress = Progress::quiet();
    let elsewhere = Config {
        out: config.out.with_extension("again"),
        ..config.clone()
    };
    let mut trainer =
        prepare::trainer(&elsewhere, KEEP_CHECKPOINTS, &progress).expect("a good config");
    trainer.student.model.params.data.copy_from_slice(params);
    let rows = rows(&trainer);
    let mut model = trainer.student.training_model();
    let fisher = crate::remedy::weight_penalty::fisher(&mut model, &rows, config.seed, &progress);
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

/// `strength / 2 * sum F (w - center)^2` and its gradient, in f64.
fn penalty(strength: f64, fisher: &[f64], w: &[f64], center: &[f64]) -> (f64, Vec<f64>) {
    let weighted = fisher.iter().zip(w.iter().zip(center));
    let gradient: Vec<f64> = weighted.map(|(f, (w, a))| strength * f * (w - a)).collect();
    let halves = gradient.iter().zip(w.iter().zip(center));
    (halves.map(|(g, (w, a))| 0.5 * g * (w - a)).sum(), gradient)
}

/// Moves each weight of `trainer` by a different small amount; returns them as f64.
fn moved_weights(trainer: &mut Trainer) -> Vec<f64> {
    let weights = trainer.student.model.params.data.iter_mut().enumerate();
    weights
        .map(|(i, w)| {
            *w += 1e-3 * ((i * 7919) % 101) as f32 - 0.05;
            f64::from(*w)
        })
        .collect()
}

/// The penalty of `penalties` at the weights of `trainer`, and its gradient.
fn penalty_of<'t>(
    penalties: impl IntoIterator<Item = &'t WeightPenalty>,
    trainer: &Trainer,
) -> (f64, Vec<f64>) {
    let params = &trainer.student.model.params;
    let mut gradients = Gradients::new(params, &vec![true; params.layout.tensors.len()]);
    let penalties = penalties.into_iter();
    let sum = penalties.map(|a| a.penalty_and_gradient(params, &mut gradients, 1.0));
    let sum = sum.sum();
    (sum, gradients.data.iter().map(|g| f64::from(*g)).collect())
}

#[test]
fn every_previous_run_has_its_own_penalty_around_the_weights_that_it_saved() {
    let place = temporary();
    let (first, second) = two_runs(place.path(), None);
    run(&second);
    let mut third = Config {
        model: second.out.join("model").to_str().expect("UTF-8").to_owned(),
        out: place.path().join("third"),
        ..second.clone()
    };
    third.method.ewc = Some(EwcConfig {
        strength: 3.0,
        previous_runs: vec![first.out.clone(), second.out.clone()],
        gamma: None,
    });
    let progress = Progress::quiet();
    let mut trainer = prepare::trainer(&third, KEEP_CHECKPOINTS, &progress).expect("a good config");
    let w = moved_weights(&mut trainer);
    let mut expected = (0.0, vec![0.0; w.len()]);
    for previous in [&first, &second] {
        let importance = values(
            &previous.out.join("ewc.safetensors"),
            &trainer.student.model,
        );
        let saved = values(
            &previous.out.join("model/model.safetensors"),
            &trainer.student.model,
        );
        let of_run = penalty(3.0, &importance, &w, &saved);
        expected.0 += of_run.0;
        for (sum, g) in expected.1.iter_mut().zip(of_run.1) {
            *sum += g;
        }
    }
    let (sum, gradient) = penalty_of(&trainer.objective.previous_penalties, &trainer);
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
    // A run saves the Fisher information of all its learned examples, at the weights that it saved.
    let saved = Model::load(&third.model).expect("as saved");
    let again = fisher_of(&second, &saved.params.data, |t| {
        t.sampler.examples().to_vec()
    });
    let importance = values(&second.out.join("ewc.safetensors"), &saved);
    assert!(near(&importance, &again));
}

#[test]
fn online_ewc_multiplies_the_importance_of_earlier_runs_by_gamma() {
    let place = temporary();
    let (first, second) = two_runs(place.path(), Some(0.5));
    let progress = Progress::quiet();
    let mut trainer =
        prepare::trainer(&second, KEEP_CHECKPOINTS, &progress).expect("a good config");
    let first_importance = values(&first.out.join("ewc.safetensors"), &trainer.student.model);
    let saved = values(
        &first.out.join("model/model.safetensors"),
        &trainer.student.model,
    );
    let with_half_of_the_first = |own: &[f64]| -> Vec<f64> {
        own.iter()
            .zip(&first_importance)
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

    // Before the snapshot: half of the importance of the first run, around its weights.
    trainer.evaluate_base_model().expect("writable");
    trainer.sampler.num_epochs = 1;
    trainer.train().expect("one epoch");
    let base = trainer.student.model.params.data.to_vec();
    let w = moved_weights(&mut trainer);
    let half: Vec<f64> = first_importance.iter().map(|f| 0.5 * f).collect();
    let got = penalty_of(&trainer.objective.previous_penalties, &trainer);
    agrees(got, penalty(3.0, &half, &w, &saved));
    // From the snapshot on: that and the snapshot's own importance, both around the snapshot's weights.
    trainer.student.model.params.data.copy_from_slice(&base);
    trainer.take_snapshot().expect("writable");
    assert!(trainer.objective.previous_penalties.is_empty());
    let w = moved_weights(&mut trainer);
    let known = |t: &Trainer| t.sampler.known().to_vec();
    let merged = with_half_of_the_first(&fisher_of(&second, &base, known));
    let snapshot: Vec<f64> = base.iter().map(|w| f64::from(*w)).collect();
    let penalties = trainer
        .objective
        .snapshot
        .iter()
        .flat_map(Snapshot::weight_penalties);
    agrees(
        penalty_of(penalties, &trainer),
        penalty(3.0, &merged, &w, &snapshot),
    );
    drop(trainer);

    // At the end: half of the importance of the first run and that of all learned examples, at the weights as saved.
    run(&second);
    let tuned = Model::load(second.out.join("model").to_str().expect("UTF-8")).expect("as saved");
    let again = fisher_of(&second, &tuned.params.data, |t| {
        t.sampler.examples().to_vec()
    });
    let importance = values(&second.out.join("ewc.safetensors"), &tuned);
    assert!(near(&importance, &with_half_of_the_first(&again)));
}

#[test]
fn a_run_after_another_resumes_bitwise_before_and_after_its_snapshot() {
    for gamma in [None, Some(0.5)] {
        let place = temporary();
        let (_, mut second) = two_runs(place.path(), gamma);
        second.train.num_epochs = 4;
        second.method.snapshot_epochs = 2;
        run(&second);
        let whole = (steps(&second.out), weights(&second.out));
        let importance = fs::read(second.out.join("ewc.safetensors")).expect("it was saved");
        for epochs in [1, 3] {
            let stopped = Config {
                out: place.path().join(format!("stopped-{epochs}")),
                ..second.clone()
            };
            let progress = Progress::quiet();
            let mut trainer =
                prepare::trainer(&stopped, KEEP_CHECKPOINTS, &progress).expect("a good config");
            trainer.evaluate_base_model().expect("writable");
            trainer.sampler.num_epochs = epochs;
            trainer.train().expect("some epochs");
            drop(trainer);
            resume(&stopped.out, KEEP_CHECKPOINTS, &progress).expect("it resumes");
            assert_eq!(steps(&stopped.out), whole.0);
            assert!(weights(&stopped.out) == whole.1);
            assert!(
                fs::read(stopped.out.join("ewc.safetensors")).expect("it was saved") == importance
            );
        }
    }
}

#[test]
fn a_run_that_cannot_follow_another_is_refused_before_anything_is_written() {
    let place = temporary();
    let (first, second) = two_runs(place.path(), None);
    let refused = |change: &dyn Fn(&mut Config), message: &str| {
        let mut config = second.clone();
        change(&mut config);
        let error = tune(&config, KEEP_CHECKPOINTS, &Progress::quiet()).expect_err(message);
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(!config.out.exists());
    };
    let after = |run: &Path| {
        let run = run.to_owned();
        move |config: &mut Config| {
            config.method.ewc.as_mut().expect("given").previous_runs = vec![run.clone()];
        }
    };
    refused(
        &after(&place.path().join("nowhere")),
        "nowhere: there is no such run directory",
    );
    refused(&|c| c.model.clone_from(&first.model), "the run starts from");
    let replaced = Config {
        out: first.out.clone(),
        ..second.clone()
    };
    let error = tune(&replaced, KEEP_CHECKPOINTS, &Progress::quiet()).expect_err("it is needed");
    assert!(error.to_string().contains("would replace"), "{error}");
    assert!(first.out.join("ewc.safetensors").exists());
    let mut plain = config(place.path(), "plain");
    plain.method.kind = MethodKind::Sft;
    run(&plain);
    refused(&after(&plain.out), "plain/ewc.safetensors");
    let few = Config {
        out: place.path().join("few"),
        train: crate::config::TrainConfig {
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
        "are different models",
    );
    fs::write(first.out.join("ewc.safetensors"), b"broken").expect("writable");
    refused(&|_| (), "ewc.safetensors is corrupt");
    fs::remove_file(first.out.join("result.json")).expect("there");
    refused(&|_| (), "is not finished");
}
