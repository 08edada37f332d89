//! Runs on a GPU follow those on the CPU, and resume bitwise.

use super::{
    resume::{changed_and_resumed_equals_uninterrupted, checkpoints},
    *,
};
use crate::{
    config::Device,
    gpu::testing::gpu,
    train::{
        objective::{Objective, StepBatch},
        student::Student,
    },
};

/// A model whose heads have a multiple of four channels, which the kernels need.
fn golden() -> String {
    concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/mistral").into()
}

/// As [`super::config`], of that model.
fn config(place: &Path, out: &str) -> Config {
    Config {
        model: golden(),
        ..super::config(place, out)
    }
}

/// The same run on the first GPU.
fn on_gpu(config: &Config, out: &str) -> Config {
    Config {
        device: Device::Gpu(0),
        out: config.out.with_file_name(out),
        ..config.clone()
    }
}

/// Losses of all steps, and the weights at the end.
fn losses_and_weights(config: &Config) -> (Vec<f64>, Vec<f32>) {
    run(config);
    let losses = steps(&config.out).into_iter();
    let model = config.out.join("model");
    let model = Model::load(model.to_str().expect("UTF-8")).expect("the run saved its model");
    (
        losses.map(|[loss, ..]| f64::from_bits(loss)).collect(),
        model.params.data.to_vec(),
    )
}

/// Losses stay within 1e-4 of each other, relative to their size: both devices compute in f32 and add in another order. `AdamW` divides
/// by the root of the second moment, which magnifies differences of gradients near zero, so that single weights move apart by up to a
/// tenth of what they move in all.
fn follows_the_cpu(change: impl FnOnce(&mut Config)) {
    let _turn = gpu();
    let place = temporary();
    let mut config = config(place.path(), "cpu");
    config.train.learning_rate = 1e-3;
    config.train.num_epochs = 4;
    change(&mut config);
    config.device = Device::Cpu;
    let (expected, weights) = losses_and_weights(&config);
    let (losses, own) = losses_and_weights(&on_gpu(&config, "gpu"));
    assert_eq!(losses.len(), expected.len());
    for (step, (loss, expected)) in losses.iter().zip(&expected).enumerate() {
        let off = (loss - expected).abs() / expected.abs().max(1e-3);
        assert!(off < 1e-4, "step {step}: {loss} of {expected}");
    }
    let start = Model::load(&config.model).expect("a golden model").params;
    let distance = |a: &[f32], b: &[f32]| -> f32 {
        a.iter()
            .zip(b)
            .map(|(a, b)| (a - b).powi(2))
            .sum::<f32>()
            .sqrt()
    };
    let moved = distance(&weights, &start.data);
    let apart = distance(&own, &weights);
    assert!(moved > 0.0 && apart < 0.1 * moved, "{apart} of {moved}");
}

#[test]
fn every_teacher_and_source_of_rows_follows_the_cpu() {
    follows_the_cpu(|config| config.method = MethodConfig::default());
    for teacher in [Source::Hidden, Source::Online] {
        follows_the_cpu(|config| config.method = method(|m| m.teacher = teacher));
    }
    follows_the_cpu(|config| {
        config.method = method(|m| {
            (m.teacher, m.vocab_subset) = (Source::Topk, VocabSubset::TopK(9));
        });
    });
    follows_the_cpu(|config| {
        config.method =
            method(|m| (m.teacher, m.vocab_subset) = (Source::Hidden, VocabSubset::Random(9)));
    });
    follows_the_cpu(|config| config.method = method(|m| m.exclude_target = true));
    follows_the_cpu(|config| {
        config.method = method(|m| {
            m.kind = MethodKind::Sft;
            m.decoys = Some(DecoysConfig::default());
            m.replay = Some(replay(ReplayTarget::Teacher, ReplaySelection::Random));
        });
        config.train.ema_decay = Some(0.9);
    });
}

#[test]
fn every_change_of_the_gradient_follows_the_cpu() {
    follows_the_cpu(|config| {
        config.method = method(|m| (m.kind, m.lambda) = (MethodKind::L2, 0.5));
    });
    follows_the_cpu(|config| {
        config.method = method(|m| (m.kind, m.ewc) = (MethodKind::Sft, Some(ewc(10.0))));
    });
    follows_the_cpu(|config| {
        config.method = method(|m| {
            m.kind = MethodKind::Sft;
            m.project = Some(ProjectConfig {
                every: 2,
                ..ProjectConfig::default()
            });
        });
    });
}

#[test]
fn every_way_to_train_follows_the_cpu() {
    follows_the_cpu(|config| config.train.trainable = vec!["ffn@0-0".into()]);
    follows_the_cpu(|config| config.train.gradient_checkpointing = true);
    follows_the_cpu(|config| {
        config.train.batch_size = 1;
        config.train.gradient_accumulation_steps = 3;
        config.train.weight_decay = 0.1;
        config.train.max_grad_norm = 0.0;
    });
}

#[test]
fn a_resumed_run_is_bitwise_the_same() {
    let _turn = gpu();
    changed_and_resumed_equals_uninterrupted(|config, _| {
        config.model = golden();
        config.train.ema_decay = Some(0.9);
        config.device = Device::Gpu(0);
    });
}

#[test]
fn a_checkpoint_moves_to_another_device() {
    let _turn = gpu();
    let place = temporary();
    let config = on_gpu(&config(place.path(), "x"), "moved");
    let expected = run(&config);
    unfinish(&config.out);
    let last = checkpoints(&config.out).pop().expect("two were kept");
    fs::remove_dir_all(last).expect("removable");
    let to_cpu = Options {
        device: Some(Device::Cpu),
        ..KEEP_CHECKPOINTS
    };
    let moved = resume(&config.out, to_cpu, &Progress::quiet()).expect("it resumes");
    assert_eq!(moved.steps, expected.steps);
}

#[test]
fn what_the_kernels_do_not_do_is_refused_before_compute() {
    let _turn = gpu();
    let place = temporary();
    let config = on_gpu(&config(place.path(), "x"), "refused");
    let refused = |change: &dyn Fn(&mut Config)| {
        let mut config = config.clone();
        change(&mut config);
        let error = tune(&config, KEEP_CHECKPOINTS, &Progress::quiet()).expect_err("refused");
        assert_eq!(error.exit_code(), 2, "{error}");
        assert!(!config.out.exists());
        error.to_string()
    };
    let message = refused(&|config| config.train.lora = Some(lora(LoraVariant::Lora)));
    assert_eq!(
        message,
        "`train.lora` is not supported on a GPU (`device = \"gpu\"`)"
    );
    refused(&|config| config.train.optimizer_in_backward = true);
    let message = refused(&|config| config.device = Device::Gpu(99));
    assert!(message.contains("no GPU 99"), "{message}");
}

#[test]
fn a_loss_that_is_not_finite_is_named_and_changes_no_moment() {
    let _turn = gpu();
    let place = temporary();
    let config = on_gpu(&config(place.path(), "x"), "nan");
    let mut model = Model::load(&config.model).expect("a golden model");
    let norm = model.params.layout.norm.start;
    model.params.data[norm] = f32::INFINITY;
    let mut student = Student::new(&config, model, Comm::single()).expect("it fits");
    let rows = [Example::new(vec![5, 9, 11], vec![4, 2])];
    let batch = StepBatch {
        step: 1,
        examples: &rows,
        indices: &[0],
        aux: &[],
        strength: 1.0,
        rows_per_micro_batch: 1,
        tokens_per_micro_batch: 100,
    };
    let stepped = student.step(&Objective::default(), batch, 1e-3);
    let named = |error: &StepError| match error {
        StepError::NonFinite(non_finite) => non_finite.quantity.clone(),
        StepError::Device(error) => error.to_string(),
    };
    assert_eq!(
        stepped.as_ref().map_err(named).err().as_deref(),
        Some("the loss")
    );
    student.sync_host().expect("the device is there");
    assert_eq!(student.optimizer.steps, 0);
    assert!(student.optimizer.exp_avg.iter().all(|m| *m == 0.0));
}
