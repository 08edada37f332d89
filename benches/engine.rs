//! The hot paths of the engine, with the shape of SmolLM2-135M, random weights and rows of a fact table:
//! `cargo bench --bench engine`.

use divan::Bencher;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use unforget::{
    config::VocabSubset,
    engine::{
        Batch, DistillOptions, Engine, Gradients, KvCache, Outputs, RngStream, SoftTargets, Target,
        TeacherLogits,
    },
    model::ModelConfig,
};

mod shapes;

fn main() {
    divan::main();
}

fn smollm2() -> ModelConfig {
    shapes::llama(shapes::SMOLLM2)
}

/// 32 rows of 12 to 20 tokens with three targets each. The first five tokens are the same in all rows: shared, or repeated in each
/// row.
fn batch(shared: bool) -> (Batch, Vec<Target>) {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut token = || rng.random_range(0..49_152);
    let rows: Vec<Vec<u32>> = (0..32)
        .map(|i| (0..5).chain((5..12 + i % 9).map(|_| token())).collect())
        .collect();
    let max_shared = if shared { 5 } else { 0 };
    let rows: Vec<(&[u32], usize)> = rows.iter().map(|row| (&row[..], max_shared)).collect();
    let (batch, own) = Batch::with_shared_prefixes(&rows);
    let targets = own.iter().flat_map(|own| own.end - 3..own.end);
    let targets = targets.map(|position| Target {
        position,
        token: token(),
        ce_weight: 0.01,
        distill_weight: 0.01,
    });
    (batch, targets.collect())
}

/// Forward and backward pass of a step, without and with a `hidden` teacher.
#[divan::bench(args = [false, true], sample_count = 10, sample_size = 1)]
fn loss_and_gradients(bencher: Bencher, distill: bool) {
    step(bencher, distill, true);
}

/// The same step without a teacher and without shared prefixes.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn loss_and_gradients_without_sharing(bencher: Bencher) {
    step(bencher, false, false);
}

fn step(bencher: Bencher, distill: bool, shared: bool) {
    let config = smollm2();
    let params = shapes::params(&config);
    let (batch, targets) = batch(shared);
    let mut engine = Engine::new(&config);
    let mut gradients = Gradients::new(&params, &vec![true; params.layout.tensors.len()]);
    let positions: Vec<usize> = targets.iter().map(|t| t.position).collect();
    let hidden = engine.hidden(&params, &batch, &positions);
    let head = &params.data[params.layout.head.clone()];
    let teacher = distill.then_some(SoftTargets {
        logits: TeacherLogits::Hidden {
            head: Some(head),
            hidden: &hidden,
            subset: VocabSubset::Full,
            rng: RngStream { seed: 0, stream: 0 },
        },
        options: DistillOptions {
            tau: 0.5,
            exclude_target: false,
        },
    });
    bencher.bench_local(|| {
        engine.loss_and_gradients(&params, &batch, &targets, teacher, &mut gradients)
    });
}

/// Questions of 14 tokens after a few-shot prefix of 60.
#[divan::bench(args = [1, 32, 256], sample_count = 5, sample_size = 1)]
fn extend(bencher: Bencher, rows: usize) {
    let config = smollm2();
    let params = shapes::params(&config);
    let mut engine = Engine::new(&config);
    let mut cache = KvCache::new(&config);
    let tokens: Vec<u32> = (0..60).collect();
    let prefix = cache.open(None, tokens.len());
    engine.extend(&params, &mut cache, &[(prefix, &tokens)], Outputs::Last);
    let mark = cache.mark();
    bencher.bench_local(|| {
        let rows: Vec<_> = (0..rows)
            .map(|_| (cache.open(Some(prefix), 14), &tokens[..14]))
            .collect();
        let hidden = engine.extend(&params, &mut cache, &rows, Outputs::Last);
        cache.release(mark);
        hidden
    });
}
