//! Properties of the engine: gradients equal finite differences, and packing, caching and threads do not change results. (The
//! comparison with `transformers` is in `tests/it/golden.rs`.)

#[cfg(all(target_os = "linux", target_arch = "x86_64", not(debug_assertions)))]
mod counts;
#[cfg(feature = "gpu")]
mod gpu;

use std::{ops::Range, sync::Arc};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::{
    config::VocabSubset,
    model::{
        Dropout, Family, Layout, LowRank, LowRankTarget,
        config::{LayerPattern, Llama3Scaling, NormPlacement, RopeScaling, Switches},
    },
};

/// A tiny model with every switch on: biases, per-head norms, grouped heads, an explicit head width.
pub(super) fn config(tied: bool) -> ModelConfig {
    ModelConfig {
        family: Family::Qwen3,
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 8,
        vocab_size: 50,
        rms_norm_eps: 1e-5,
        rope_theta: 100.0,
        rope_scaling: RopeScaling::Llama3(Llama3Scaling {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 32.0,
        }),
        max_position_embeddings: 256,
        layers: LayerPattern::default(),
        switches: Switches::default(),
        tie_word_embeddings: tied,
        qkv_bias: true,
        qk_norm: true,
    }
}

pub(super) fn params(config: &ModelConfig, seed: u64) -> Params {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut params = Params::zeros(Arc::new(Layout::new(config)));
    for tensor in &params.layout.clone().tensors {
        let center = if tensor.name.contains("norm") {
            1.0
        } else {
            0.0
        };
        for w in &mut params.data[tensor.range.clone()] {
            *w = center + rng.random_range(-0.3..0.3);
        }
    }
    params
}

/// Rows of different lengths with common prefixes, one of them longer than two blocks of keys and one a prefix of another, with the
/// number of tokens that each may share. The last row is empty.
fn token_rows(v: u32) -> Vec<(Vec<u32>, usize)> {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut tokens =
        |len: usize| -> Vec<u32> { (0..len).map(|_| rng.random_range(0..v)).collect() };
    let (long, short) = (tokens(80), tokens(5));
    [
        (&[][..], &[][..], 5),
        (&[], &[], 1),
        (&long, &short, 60),
        (&long, &[], 33),
        (&short, &[], 3),
        (&long, &short, 3),
        (&short, &[], 40),
        (&[], &[], 0),
    ]
    .into_iter()
    .map(|(first, second, rest)| {
        let row = [first, second, &tokens(rest)].concat();
        let may = row.len().saturating_sub(3);
        (row, may)
    })
    .collect()
}

/// Targets at the last three tokens of each row, whose own tokens are `own`.
fn targets(own: &[Range<usize>], v: u32) -> Vec<Target> {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let positions = own
        .iter()
        .flat_map(|own| own.end.saturating_sub(3).max(own.start)..own.end);
    positions
        .map(|position| Target {
            position,
            token: rng.random_range(0..v),
            ce_weight: rng.random_range(0.0..0.3),
            distill_weight: rng.random_range(0.0..0.3),
        })
        .collect()
}

/// The rows with shared prefixes.
fn batch(v: u32) -> (Batch, Vec<Target>) {
    let rows = token_rows(v);
    let rows: Vec<(&[u32], usize)> = rows.iter().map(|(row, may)| (&row[..], *may)).collect();
    let (batch, own) = Batch::with_shared_prefixes(&rows);
    let all: usize = rows.iter().map(|(row, _)| row.len()).sum();
    assert_eq!(
        all - batch.tokens.len(),
        80 + 80 + 5 + 5,
        "[long] [long short] [short]"
    );
    (batch, targets(&own, v))
}

/// The same rows without sharing.
fn batch_without_sharing(v: u32) -> (Batch, Vec<Target>) {
    let mut batch = Batch::new();
    let rows = token_rows(v).into_iter();
    let own: Vec<_> = rows.map(|(row, _)| batch.push(row)).collect();
    (batch, targets(&own, v))
}

fn loss_and_gradients(
    params: &Params,
    config: &ModelConfig,
    trained: &[bool],
) -> (Loss, Gradients) {
    loss_and_gradients_with(params, config, trained, false)
}

fn loss_and_gradients_with(
    params: &Params,
    config: &ModelConfig,
    trained: &[bool],
    exclude_target: bool,
) -> (Loss, Gradients) {
    let mut gradients = Gradients::new(params, trained);
    let (batch, targets) = batch(config.vocab_size as u32);
    let loss = add_gradients(
        params,
        config,
        exclude_target,
        &batch,
        &targets,
        &mut gradients,
    );
    (loss, gradients)
}

fn add_gradients(
    params: &Params,
    config: &ModelConfig,
    exclude_target: bool,
    batch: &Batch,
    targets: &[Target],
    gradients: &mut Gradients,
) -> Loss {
    let teacher = self::params(config, 99);
    let mut engine = Engine::new(config);
    let positions: Vec<usize> = targets.iter().map(|t| t.position).collect();
    let hidden = engine.hidden(&teacher, batch, &positions);
    let soft_targets = SoftTargets {
        logits: TeacherLogits::Hidden {
            head: Some(&teacher.data[teacher.layout.head.clone()]),
            hidden: &hidden,
            subset: VocabSubset::Full,
            rng: RngStream { seed: 0, stream: 0 },
        },
        options: DistillOptions {
            tau: 0.5,
            exclude_target,
        },
    };
    engine.loss_and_gradients(params, batch, targets, Some(soft_targets), gradients)
}

#[test]
fn gradients_equal_finite_differences() {
    for (tied, exclude_target) in [(true, false), (false, false), (true, true)] {
        let config = config(tied);
        let params = params(&config, 1);
        let all = vec![true; params.layout.tensors.len()];
        let loss_at = |params: &Params, trained: &[bool]| {
            loss_and_gradients_with(params, &config, trained, exclude_target)
        };
        let (_, gradients) = loss_at(&params, &all);
        for (tensor, range) in &gradients.tensors {
            let tensor = &params.layout.tensors[*tensor];
            // Along the gradient itself, where the derivative is its norm.
            let gradient = &gradients.data[range.clone()];
            let norm = gradient
                .iter()
                .map(|g| f64::from(*g).powi(2))
                .sum::<f64>()
                .sqrt();
            let step = 3e-3;
            let at = |sign: f64| {
                let mut moved = params.clone();
                for (w, g) in moved.data[tensor.range.clone()].iter_mut().zip(gradient) {
                    *w += (sign * step * f64::from(*g) / norm) as f32;
                }
                let (loss, _) = loss_at(&moved, &vec![false; all.len()]);
                loss.ce + loss.distill
            };
            let difference = (at(1.0) - at(-1.0)) / (2.0 * step);
            // Central differences: error of order step^2 and of 1e-6 / step from f32 rounding of the loss.
            let tolerance = 0.01 * norm + 1e-3;
            assert!(
                (difference - norm).abs() < tolerance,
                "{}: {difference} {norm}",
                tensor.name
            );
        }
    }
}

#[test]
fn gradients_with_checkpointing_have_the_same_bits_for_every_placement_of_norms() {
    for norms in [
        NormPlacement::Before,
        NormPlacement::Both,
        NormPlacement::After,
    ] {
        let mut config = config(true);
        config.num_hidden_layers = 3;
        config.switches.norms = norms;
        let params = params(&config, 1);
        let (batch, targets) = batch(config.vocab_size as u32);
        let gradients = |checkpointing| {
            let mut gradients = Gradients::new(&params, &vec![true; params.layout.tensors.len()]);
            Engine::new(&config)
                .with_gradient_checkpointing(checkpointing)
                .loss_and_gradients(&params, &batch, &targets, None, &mut gradients);
            gradients.data
        };
        assert!(gradients(false)[..] == gradients(true)[..], "{norms:?}");
    }
}

#[test]
fn gradients_of_some_tensors_equal_those_of_a_full_pass() {
    let config = config(true);
    let params = params(&config, 1);
    let tensors = &params.layout.tensors;
    let (_, whole) = loss_and_gradients(&params, &config, &vec![true; tensors.len()]);
    for pattern in [
        "k_proj",
        "v_proj.weight",
        "up_proj",
        "norm",
        "embed",
        "bias",
        "layers.1.",
        "model.norm",
    ] {
        let trained: Vec<bool> = tensors.iter().map(|t| t.name.contains(pattern)).collect();
        let (_, part) = loss_and_gradients(&params, &config, &trained);
        assert_eq!(part.tensors.len(), trained.iter().filter(|t| **t).count());
        for (tensor, range) in &part.tensors {
            let (_, expected) = &whole.tensors[*tensor];
            let close = part.data[range.clone()]
                .iter()
                .zip(&whole.data[expected.clone()]);
            // A fused matmul of other rows may have other tiles: only rounding differs.
            assert!(
                close.clone().all(|(a, b)| (a - b).abs() < 1e-5),
                "{}",
                tensors[*tensor].name
            );
        }
    }
}

#[test]
fn set_trainable_keeps_the_offsets_of_the_remaining_gradients() {
    let config = config(true);
    let params = params(&config, 1);
    let tensors = &params.layout.tensors;
    let all = vec![true; tensors.len()];
    let (_, whole) = loss_and_gradients(&params, &config, &all);
    let mut partial = Gradients::new(&params, &all);
    // Values from before are discarded.
    partial.data.fill(1.0);
    let stays = |i: usize| tensors[i].name.ends_with("proj.weight");
    partial.set_trainable(&params.layout, stays);
    let (batch, targets) = batch(50);
    add_gradients(&params, &config, false, &batch, &targets, &mut partial);
    for (tensor, range) in &partial.tensors {
        let (got, of_whole) = (&partial.data[range.clone()], &whole.data[range.clone()]);
        if stays(*tensor) {
            assert_eq!(got, of_whole, "{}", tensors[*tensor].name);
        } else {
            assert!(got.iter().all(|g| *g == 0.0), "{}", tensors[*tensor].name);
        }
    }
    let left: usize = partial
        .segments()
        .map(|(weights, at)| {
            assert_eq!(
                weights, at,
                "all were trained: offsets equal the weights' indices"
            );
            weights.len()
        })
        .sum();
    let expected = tensors.iter().enumerate().filter(|(i, _)| stays(*i));
    assert_eq!(left, expected.map(|(_, t)| t.range.len()).sum::<usize>());
}

#[test]
fn the_loss_and_gradients_have_the_same_bits_at_any_number_of_threads() {
    let config = config(false);
    let params = params(&config, 1);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a pool");
        pool.install(|| {
            loss_and_gradients(&params, &config, &vec![true; params.layout.tensors.len()])
        })
    };
    let (loss, gradients) = run(1);
    for threads in [2, 5] {
        let (other_loss, other) = run(threads);
        assert_eq!(loss, other_loss);
        assert_eq!(gradients.data[..], other.data[..]);
    }
}

#[test]
fn a_row_alone_equals_the_row_in_a_batch() {
    let config = config(true);
    let params = params(&config, 1);
    let (batch, targets) = batch(50);
    let mut engine = Engine::new(&config);
    let positions: Vec<usize> = targets.iter().map(|t| t.position).collect();
    let packed = engine.hidden(&params, &batch, &positions);
    let mut packed = packed.chunks_exact(24);
    for (row, _) in token_rows(50) {
        let mut alone = Batch::new();
        let last: Vec<usize> = (row.len().saturating_sub(3)..row.len()).collect();
        alone.push(row);
        let hidden = engine.hidden(&params, &alone, &last);
        for (alone, packed) in hidden.chunks_exact(24).zip(packed.by_ref()) {
            // Only rounding differs: other tiles.
            let close = alone.iter().zip(packed).all(|(a, b)| (a - b).abs() < 1e-5);
            assert!(close, "{alone:?} {packed:?}");
        }
    }
    assert!(packed.next().is_none());
}

#[test]
fn gradients_with_shared_prefixes_equal_those_without() {
    for tied in [true, false] {
        let config = config(tied);
        let params = params(&config, 1);
        let all = vec![true; params.layout.tensors.len()];
        let (loss, shared) = loss_and_gradients(&params, &config, &all);
        let mut separate = Gradients::new(&params, &all);
        let (batch, targets) = batch_without_sharing(50);
        let separate_loss = add_gradients(&params, &config, false, &batch, &targets, &mut separate);
        assert!((loss.total() - separate_loss.total()).abs() < 1e-5 * loss.total());
        for (tensor, range) in &shared.tensors {
            let (shared, separate) = (&shared.data[range.clone()], &separate.data[range.clone()]);
            let largest = separate.iter().fold(0f32, |m, g| m.max(g.abs()));
            let off = shared.iter().zip(separate).map(|(a, b)| (a - b).abs());
            let off = off.fold(0f32, f32::max);
            // The same sums in another order: f32 rounding over 500 tokens.
            let name = &params.layout.tensors[*tensor].name;
            assert!(off < 1e-5 * largest + 1e-7, "{name}: {off} of {largest}");
        }
    }
}

#[test]
fn a_cached_prefix_gives_the_same_hidden_states_as_the_whole_row() {
    let config = config(false);
    let params = params(&config, 1);
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut tokens = |n: usize| {
        (0..n)
            .map(|_| rng.random_range(0..50))
            .collect::<Vec<u32>>()
    };
    let (prefix, questions) = (tokens(70), [tokens(3), tokens(9)]);
    let answers = [tokens(2), tokens(5)];
    let mut engine = Engine::new(&config);
    let mut cache = KvCache::new(&config);

    let root = cache.open(None, prefix.len());
    // The prefix in two parts.
    engine.extend(&params, &mut cache, &[(root, &prefix[..13])], Outputs::Last);
    engine.extend(&params, &mut cache, &[(root, &prefix[13..])], Outputs::Last);
    let mark = cache.mark();
    for _ in 0..2 {
        let rows: Vec<_> = questions
            .iter()
            .map(|q| (cache.open(Some(root), q.len()), q.as_slice()))
            .collect();
        engine.extend(&params, &mut cache, &rows, Outputs::All);
        let rows: Vec<_> = rows
            .iter()
            .zip(&answers)
            .map(|((question, _), a)| (cache.open(Some(*question), a.len()), a.as_slice()))
            .collect();
        let cached = engine.extend(&params, &mut cache, &rows, Outputs::All);

        let (mut batch, mut output_positions) = (Batch::new(), Vec::new());
        for (question, answer) in questions.iter().zip(&answers) {
            let row = batch.push(prefix.iter().chain(question).chain(answer).copied());
            output_positions.extend(row.end - answer.len()..row.end);
        }
        let whole = engine.hidden(&params, &batch, &output_positions);
        assert!(whole.iter().zip(&cached).all(|(a, b)| (a - b).abs() < 1e-5));
        cache.release(mark);
    }
}

/// `config` with adapters of different ranks beside every linear layer but k, with random A and B.
fn adapted(config: &ModelConfig) -> Params {
    let mut params = params(config, 1);
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (mut targets, mut tensors, mut len) = (Vec::new(), Vec::new(), 0);
    for (i, tensor) in params.layout.tensors.iter().enumerate() {
        if tensor.shape.len() != 2 || !tensor.name.contains("_proj") || tensor.name.contains("k_") {
            continue;
        }
        let ([out, inputs], rank) = ([tensor.shape[0], tensor.shape[1]], 1 + i % 4);
        let mut add = |part: &str, shape: [usize; 2]| {
            tensors.push((format!("{}.{part}", tensor.name), shape.to_vec()));
            len += shape[0] * shape[1];
            len - shape[0] * shape[1]..len
        };
        targets.push(LowRankTarget {
            weight: tensor.range.clone(),
            shape: [out, inputs],
            rank,
            scale: 0.5 + i as f32 / 20.0,
            a: add("a", [rank, inputs]),
            b: add("b", [out, rank]),
        });
    }
    let mut own = Params::zeros(Arc::new(Layout::of_tensors(tensors)));
    own.data.fill_with(|| rng.random_range(-0.3..0.3));
    params.low_rank = Some(LowRank {
        params: Box::new(own),
        targets,
        dropout: None,
    });
    params
}

#[test]
fn adapters_beside_the_weights_equal_those_written_into_them() {
    for norms in [
        NormPlacement::Before,
        NormPlacement::Both,
        NormPlacement::After,
    ] {
        let mut config = config(norms == NormPlacement::Before);
        config.switches.norms = norms;
        let beside = adapted(&config);
        let low_rank = beside.low_rank.clone().expect("it has adapters");
        let mut written = beside.clone();
        written.low_rank = None;
        for target in &low_rank.targets {
            let [out, inputs] = target.shape;
            let (a, b) = (low_rank.a(target), low_rank.b(target));
            let w = &mut written.data[target.weight.clone()];
            for (i, w) in (0..out * inputs).zip(w) {
                let (row, column) = (i / inputs, i % inputs);
                let product = |k| b[row * target.rank + k] * a[k * inputs + column];
                *w += target.scale * (0..target.rank).map(product).sum::<f32>();
            }
        }
        let (batch, targets) = batch(config.vocab_size as u32);
        let trained = vec![true; written.layout.tensors.len()];
        let mut whole = Gradients::new(&written, &trained);
        let mut own = Gradients::of_adapters(&beside);
        let losses = [(&written, &mut whole), (&beside, &mut own)].map(|(params, gradients)| {
            add_gradients(params, &config, false, &batch, &targets, gradients)
        });
        // f32 rounding of sums of some hundred terms.
        assert!((losses[0].total() - losses[1].total()).abs() < 1e-4 * losses[0].total());

        let own = own.low_rank.expect("gradients of adapters");
        for target in &low_rank.targets {
            let [out, inputs] = target.shape;
            let (a, b) = (low_rank.a(target), low_rank.b(target));
            let tensor = written
                .layout
                .tensors
                .iter()
                .position(|t| t.range == target.weight);
            let (_, at) = &whole.tensors[tensor.expect("it is there")];
            let dw = &whole.data[at.clone()];
            let (rank, scale) = (target.rank, f64::from(target.scale));
            let sum = |len: usize, f: &dyn Fn(usize) -> f32| -> f64 {
                scale * (0..len).map(|i| f64::from(f(i))).sum::<f64>()
            };
            let da = (0..rank * inputs).map(|i| {
                let (k, column) = (i / inputs, i % inputs);
                sum(out, &|row| b[row * rank + k] * dw[row * inputs + column])
            });
            let db = (0..out * rank).map(|i| {
                let (row, k) = (i / rank, i % rank);
                sum(inputs, &|column| {
                    dw[row * inputs + column] * a[k * inputs + column]
                })
            });
            for (expected, at) in [
                (da.collect::<Vec<_>>(), &target.a),
                (db.collect(), &target.b),
            ] {
                let largest = expected.iter().fold(0f64, |most, g| most.max(g.abs()));
                for (got, expected) in own.data[at.clone()].iter().zip(&expected) {
                    let apart = (f64::from(*got) - expected).abs();
                    assert!(apart < 1e-4 * largest, "{norms:?}: {got} {expected}");
                }
            }
        }
    }
}

#[test]
fn gradients_of_adapters_with_dropout_equal_finite_differences() {
    let config = config(true);
    let mut beside = adapted(&config);
    let dropout = Some(Dropout { p: 0.4, key: 11 });
    let low_rank = beside.low_rank.as_mut().expect("it has adapters");
    low_rank.dropout = dropout;
    let (batch, targets) = batch(config.vocab_size as u32);
    let at = |params: &Params| {
        let mut gradients = Gradients::of_adapters(params);
        let loss = add_gradients(params, &config, false, &batch, &targets, &mut gradients);
        (loss.total(), gradients.low_rank.expect("gradients"))
    };
    let (loss, gradients) = at(&beside);
    let tensors = beside
        .low_rank
        .as_ref()
        .map(|own| own.params.layout.tensors.clone());
    for tensor in tensors.expect("it has adapters") {
        let gradient = &gradients.data[tensor.range.clone()];
        let norm = gradient
            .iter()
            .map(|g| f64::from(*g).powi(2))
            .sum::<f64>()
            .sqrt();
        let step = 3e-3;
        let moved = |sign: f64| {
            let mut moved = beside.clone();
            let own = moved.low_rank.as_mut().expect("it has adapters");
            for (w, g) in own.params.data[tensor.range.clone()]
                .iter_mut()
                .zip(gradient)
            {
                *w += (sign * step * f64::from(*g) / norm) as f32;
            }
            at(&moved).0
        };
        let difference = (moved(1.0) - moved(-1.0)) / (2.0 * step);
        // As in `gradients_equal_finite_differences`.
        let tolerance = 0.01 * norm + 1e-3;
        let name = &tensor.name;
        assert!(
            (difference - norm).abs() < tolerance,
            "{name}: {difference} {norm}"
        );
    }
    beside.low_rank.as_mut().expect("it has adapters").dropout = None;
    assert!(
        (at(&beside).0 - loss).abs() > 1e-3,
        "dropout changes the loss"
    );
}
