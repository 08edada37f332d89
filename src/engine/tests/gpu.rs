//! The engine on a GPU computes what the one on the CPU does.
//!
//! Both are f32 and add in another order. Sums here have up to some 500 terms, and ten products follow one another: differences of 1e-5
//! of the largest element are expected, and 1e-4 is allowed.

use super::*;
use crate::{
    config::Device,
    engine::{GpuArray, GpuEngine, GpuGradients, gpu_array::model_parts},
    gpu::testing::gpu,
    model::Model,
};

/// The golden model of every family, each with its own switches.
const FAMILIES: [&str; 10] = [
    "llama",
    "llama3",
    "mistral",
    "mistral_window",
    "qwen2",
    "qwen3",
    "gemma3",
    "phi3",
    "olmo2",
    "granite",
];

/// Models to compare on: their names, shapes and weights. Where the channels of a head are no multiple of four, as in no real model, the
/// next one is taken, with random weights.
fn models() -> Vec<(String, ModelConfig, Params)> {
    let golden = |name: &str| {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/");
        let Model {
            mut config, params, ..
        } = Model::load(&format!("{dir}{name}")).expect("a golden model");
        if config.head_dim.is_multiple_of(4) {
            return (name.to_owned(), config, params);
        }
        config.head_dim = config.head_dim.next_multiple_of(4);
        let params = self::params(&config, 1);
        (name.to_owned(), config, params)
    };
    let mut models: Vec<_> = FAMILIES.into_iter().map(golden).collect();
    for tied in [true, false] {
        let config = config(tied);
        let params = params(&config, 1);
        models.push((format!("all switches, tied: {tied}"), config, params));
    }
    models
}

/// What is wrong, unless both are equal within 1e-4 of the largest element.
fn difference(got: &[f32], expected: &[f32], what: &str) -> Option<String> {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
    let off = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
    let off = off.fold(
        0f32,
        |m, x| {
            if x.is_nan() { f32::INFINITY } else { m.max(x) }
        },
    );
    (off > 1e-4 * largest + 1e-7).then(|| format!("{what}: {off} of {largest}"))
}

#[test]
fn hidden_states_equal_those_of_the_cpu() {
    let gpu = gpu();
    for (name, config, params) in models() {
        let (batch, targets) = batch(config.vocab_size as u32);
        let positions: Vec<usize> = targets.iter().map(|t| t.position).collect();
        let expected = Engine::new(&config).hidden(&params, &batch, &positions);
        let mut on_gpu = GpuEngine::new(&gpu, &config, &params).expect("a small model fits");
        let got = on_gpu.hidden(&batch, &positions).expect("it runs");
        assert_eq!(difference(&got, &expected, &name), None);
    }
}

#[test]
fn loss_and_gradients_equal_those_of_the_cpu() {
    let gpu = gpu();
    let mut wrong = Vec::new();
    for (name, config, params) in models() {
        for checkpointing in [false, true] {
            let (batch, targets) = batch(config.vocab_size as u32);
            let all = vec![true; params.layout.tensors.len()];
            let mut expected = Gradients::new(&params, &all);
            let mut engine = Engine::new(&config);
            let loss = engine.loss_and_gradients(&params, &batch, &targets, None, &mut expected);

            let on_gpu = GpuEngine::new(&gpu, &config, &params).expect("a small model fits");
            let mut on_gpu = on_gpu.with_gradient_checkpointing(checkpointing);
            let data = GpuArray::zeros(&gpu, model_parts(&params.layout)).expect("it fits");
            let gradients = GpuGradients {
                places: &expected,
                data: &data,
            };
            on_gpu
                .loss_and_gradients(&batch, &targets, None, gradients)
                .expect("it runs");
            let own = on_gpu.take_loss().expect("it runs");
            let off = (own.ce - loss.ce).abs();
            assert!(off < 1e-5 * loss.ce, "{name}: {} of {}", own.ce, loss.ce);
            let mut got = vec![0.0; params.layout.len];
            data.download(&gpu, &mut got).expect("it runs");
            for tensor in &params.layout.tensors {
                let range = tensor.range.clone();
                let what = format!("{name}: {}", tensor.name);
                wrong.extend(difference(
                    &got[range.clone()],
                    &expected.data[range],
                    &what,
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// An engine on the CPU and one on the GPU, of the same shape.
fn both_engines(config: &ModelConfig) -> [Engine; 2] {
    let on_gpu = Engine::on(config, Device::Gpu(0)).expect("a device");
    [Engine::new(config), on_gpu]
}

#[test]
fn decoding_over_a_tree_of_segments_equals_that_of_the_cpu() {
    let _turn = gpu();
    for (name, config, params) in models() {
        let vocab = config.vocab_size as u32;
        let tokens = |n: u32, seed: u32| -> Vec<u32> {
            (0..n).map(|i| (i * i * 7 + i * 3 + seed) % vocab).collect()
        };
        let prefix = tokens(30, 1);
        let (first, second) = (tokens(3, 2), tokens(9, 4));
        let [expected, got] = both_engines(&config).map(|mut engine| {
            let mut cache = KvCache::new(&config);
            let root = cache.open(None, prefix.len());
            let mut out = Vec::new();
            let mut extend = |cache: &mut KvCache, rows: &[(SegmentId, &[u32])], outputs| {
                out.push(engine.extend(&params, cache, rows, outputs));
            };
            extend(&mut cache, &[(root, &prefix[..13])], Outputs::Last);
            extend(&mut cache, &[(root, &prefix[13..])], Outputs::All);
            let mark = cache.mark();
            // The slots of a released segment are used again.
            for round in 0..2 {
                let a = cache.open(Some(root), 40 + round);
                let b = cache.open(Some(root), 12);
                extend(&mut cache, &[(a, &first), (b, &second)], Outputs::Last);
                extend(
                    &mut cache,
                    &[(b, &second[..1]), (a, &first[..1])],
                    Outputs::Last,
                );
                cache.release(mark);
            }
            assert!(engine.take_device_error().is_none());
            out.concat()
        });
        assert_eq!(difference(&got, &expected, &name), None);
    }
}

#[test]
fn hidden_states_and_logits_equal_those_of_the_cpu_also_after_the_weights_change() {
    let _turn = gpu();
    for (name, config, mut params) in models() {
        let mut engines = both_engines(&config);
        let (batch, targets) = batch(config.vocab_size as u32);
        let positions: Vec<usize> = targets.iter().map(|t| t.position).collect();
        let mut before = Vec::new();
        for change in [1.0, 1.01] {
            params.data.iter_mut().for_each(|w| *w *= change);
            let [expected, got] = engines.each_mut().map(|engine| {
                let hidden = engine.hidden(&params, &batch, &positions);
                let middle = engine.residual_after(&params, &batch, 1, &positions);
                let none = engine.residual_after(&params, &batch, 0, &positions);
                let logits = engine.logits(&params, &hidden, |_, logits| logits.to_vec());
                let head = &params.data[params.layout.head.clone()];
                let other: Vec<f32> = head.iter().map(|w| 0.9 * w).collect();
                let kl = engine.kl_divergences(&params, &hidden, &hidden, Some(&other));
                let kl = kl.into_iter().map(|kl| kl as f32).collect();
                [hidden, middle, none, logits.concat(), kl]
            });
            for (got, expected) in got.iter().zip(&expected) {
                assert_eq!(difference(got, expected, &name), None);
            }
            assert_ne!(before, got[0]);
            before = got[0].clone();
        }
    }
}
