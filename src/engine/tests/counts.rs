//! A performance test: the hot kernels execute no more instructions than recorded in `src/engine/counts.toml`.
//!
//! The test runs itself under Valgrind's callgrind, which counts instructions. Counts are reproducible on a busy machine, where times
//! vary by half. Valgrind 3.19 does not support AVX-512, so that the AVX2 code is counted. Record new counts with
//! `UNFORGET_COUNTS=record cargo test --release counts`.

use std::{
    collections::BTreeMap,
    env, fs,
    hint::black_box,
    io::{self, Write as _},
    process::Command,
};

use super::{config, params};
use crate::{
    engine::{
        Batch, Gradients, Target,
        attention::{self, AttentionShape},
        head::{self, HeadGradients, LmHead},
        matmul,
        matrix::Matrix,
        rope::Rope,
    },
    model::{ModelConfig, Params},
    train::adamw::{AdamW, AdamWSettings},
};

/// The largest allowed ratio to the recorded count.
const MAX_RATIO: f64 = 1.1;

const RECORD_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/engine/counts.toml");

/// Tokens, outputs and inputs of a matrix product, none of them a multiple of the tile size.
const SHAPE: [usize; 3] = [70, 200, 136];

const HEADS: AttentionShape = AttentionShape {
    window: usize::MAX,
    scale: 0.25,
    num_heads: 6,
    num_kv_heads: 2,
    head_dim: 16,
};

fn test_values(len: usize) -> Vec<f32> {
    (0..len)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0)
        .collect()
}

#[inline(never)]
fn counted_forward(y: &mut [f32], x: &[f32], w: &[f32]) {
    matmul::forward(y, x, w, SHAPE, false);
}

#[inline(never)]
fn counted_input_gradient(dx: &mut [f32], dy: &[f32], w: &[f32]) {
    matmul::input_gradient(dx, dy, w, SHAPE, false);
}

#[inline(never)]
fn counted_weight_gradient(dw: &mut [f32], dy: &[f32], x: &[f32]) {
    matmul::weight_gradient(dw, dy, 0, x, SHAPE);
}

#[inline(never)]
fn counted_attention(
    o: &mut [f32],
    lse: &mut [f32],
    qkv: &[f32],
    rows: &[attention::AttentionRow<'_>],
) {
    attention::forward(o, lse, qkv, rows, HEADS);
}

#[inline(never)]
fn counted_attention_backward(
    d_qkv: &mut [f32],
    saved: &attention::SavedForward<'_>,
    rows: &[attention::AttentionSpan],
    positions: &[usize],
    rope: &Rope,
) {
    attention::backward(d_qkv, saved, rows, positions, Some(rope), &mut Vec::new());
}

#[inline(never)]
fn counted_loss(head: LmHead<'_>, hidden: &[f32], targets: &[Target]) {
    let mut d_hidden = vec![0.0; hidden.len()];
    let mut d_weight = vec![0.0; head.vocab_size * head.hidden_size];
    let gradients = HeadGradients {
        hidden: &mut d_hidden,
        weight: Some(&mut d_weight),
    };
    let buffers = &mut [Vec::new(), Vec::new()];
    black_box(head::loss_and_gradients(
        head, hidden, targets, None, gradients, buffers,
    ));
}

#[inline(never)]
fn counted_optimizer(optimizer: &mut AdamW, params: &mut Params, gradients: &Gradients) {
    optimizer.step(params, gradients, 1e-4, 1.0);
}

fn count_matmuls() {
    let [t, n, k] = SHAPE;
    let (mut x, mut y, mut w) = (test_values(t * k), test_values(t * n), test_values(n * k));
    counted_forward(&mut y, &x, &w);
    counted_input_gradient(&mut x, &y, &w);
    counted_weight_gradient(&mut w, &y, &x);
}

fn count_attention() {
    // Three rows with common prefixes.
    let long: Vec<u32> = (0..90).collect();
    let rows = [(&long[..], 40), (&long[..57], 40), (&long[..44], 40)];
    let (batch, _) = Batch::with_shared_prefixes(&rows);
    let (t, q_width) = (batch.tokens.len(), HEADS.q_width());
    let (qkv, spans) = (test_values(t * HEADS.qkv_width()), batch.attention_spans());
    let (mut o, mut lse) = (vec![0.0; t * q_width], vec![0.0; t * HEADS.num_heads]);
    let rows: Vec<_> = spans.iter().map(|span| span.to_row(&qkv, HEADS)).collect();
    counted_attention(&mut o, &mut lse, &qkv, &rows);
    let saved = attention::SavedForward {
        d_o: &test_values(o.len()),
        o: &o,
        lse: &lse,
        qkv: &qkv,
        shape: HEADS,
    };
    let mut rope = Rope::new(&ModelConfig {
        head_dim: HEADS.head_dim,
        ..config(true)
    });
    rope.extend_to(long.len());
    let mut d_qkv = vec![0.0; qkv.len()];
    counted_attention_backward(&mut d_qkv, &saved, &spans, &batch.positions(), &rope);
}

fn count_loss() {
    let (v, d) = (1_000, 72);
    let targets: Vec<_> = (0..40)
        .map(|position| Target {
            position,
            token: position as u32,
            ce_weight: 0.1,
            distill_weight: 0.0,
        })
        .collect();
    let (weight, hidden) = (test_values(v * d), test_values(targets.len() * d));
    let head = LmHead {
        weight: Matrix::Dense(&weight),
        vocab_size: v,
        hidden_size: d,
    };
    counted_loss(head, &hidden, &targets);
}

fn count_optimizer() {
    let mut params = params(&config(true), 1);
    let mut gradients = Gradients::new(&params, &vec![true; params.layout.tensors.len()]);
    let values = test_values(gradients.data.len());
    gradients.data.copy_from_slice(&values);
    let mut optimizer = AdamW::new(&gradients, AdamWSettings::default());
    counted_optimizer(&mut optimizer, &mut params, &gradients);
}

/// Runs the kernels on one thread; the test below runs it under callgrind.
#[test]
#[ignore = "run by hot_kernels_take_no_more_instructions_than_recorded"]
fn run_kernels() {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .use_current_thread();
    pool.build().expect("a pool").install(|| {
        count_matmuls();
        count_attention();
        count_loss();
        count_optimizer();
    });
}

/// Instructions of each `counted_` function including its callees, from the output of `callgrind_annotate`: the largest number of its
/// lines, since the others are code that was inlined from other files.
fn counts(annotated: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in annotated.lines() {
        let Some((_, after)) = line.split_once("counts::counted_") else {
            continue;
        };
        let end = after.find(|c: char| !c.is_ascii_lowercase() && c != '_');
        let number = line.split_whitespace().next().unwrap_or_default();
        if let Ok(count) = number.replace(',', "").parse::<u64>() {
            let name = after[..end.unwrap_or(after.len())].to_owned();
            let most: &mut u64 = counts.entry(name).or_default();
            *most = count.max(*most);
        }
    }
    counts
}

#[test]
fn hot_kernels_take_no_more_instructions_than_recorded() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("counts.out");
    let counted = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no"])
        .arg("--toggle-collect=*counts::counted_*")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(env::current_exe().expect("this program"))
        .args(["engine::tests::counts::run_kernels", "--exact", "--ignored"])
        .arg("--test-threads=1")
        .output();
    let Ok(counted) = counted else {
        assert!(env::var_os("CI").is_none(), "valgrind is missing");
        // Not captured, unlike `eprintln!`.
        let _ = writeln!(io::stderr(), "skipped: valgrind is not installed");
        return;
    };
    assert!(counted.status.success(), "{counted:?}");
    let annotated = Command::new("callgrind_annotate")
        .args(["--inclusive=yes", "--threshold=100", "--auto=no"])
        .arg(&out)
        .output()
        .expect("callgrind_annotate is part of valgrind");
    let counts = counts(&String::from_utf8_lossy(&annotated.stdout));
    if env::var("UNFORGET_COUNTS").is_ok_and(|what| what == "record") {
        let table = toml::to_string(&counts).expect("a table");
        fs::write(RECORD_PATH, table).expect("written");
        return;
    }
    let recorded = fs::read_to_string(RECORD_PATH).expect("counts.toml");
    let recorded: BTreeMap<String, u64> = toml::from_str(&recorded).expect("a table of counts");
    let names = |of: &BTreeMap<String, u64>| of.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&counts), names(&recorded), "other kernels");
    for (name, count) in counts {
        let ratio = count as f64 / recorded[&name] as f64;
        eprintln!("{name}: {count} instructions, {ratio:.3} times the recorded count");
        assert!(
            ratio <= MAX_RATIO,
            "{name} takes {count} instructions, {ratio:.2} times the recorded {}; after a change of compiler, record new counts \
             (UNFORGET_COUNTS=record)",
            recorded[&name]
        );
    }
}
