//! A guard: the hot kernels take no more instructions than was recorded in `counts.toml`.
//!
//! A test runs itself again under Valgrind's callgrind, which counts instructions: the same ones whatever else the machine does,
//! where times differ by half. Valgrind 3.19 knows no AVX-512, so that it is the AVX2 path that is counted. Write the counts anew
//! with `UNFORGET_COUNTS=record cargo test --release counts`.

use std::{collections::BTreeMap, env, fs, hint::black_box, process::Command};

use super::{
    Batch, Gradients, Target,
    attention::{self, AttentionShape},
    head, matmul,
    rope::Rope,
    tests::{config, params},
};
use crate::{
    model::{ModelConfig, Params},
    train::adamw::{AdamW, AdamWSettings},
};

/// More than this many times what was recorded is too much.
const MAX_RATIO: f64 = 1.1;

const RECORD_PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/engine/counts.toml");

/// Tokens, outputs and inputs of a matrix product; none of them a whole number of tiles.
const SHAPE: [usize; 3] = [70, 200, 136];

const HEADS: AttentionShape = AttentionShape {
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
    dqkv: &mut [f32],
    of: &attention::Backward<'_>,
    rows: &[attention::AttentionSpan],
    positions: &[usize],
    rope: &Rope,
) {
    attention::backward(dqkv, of, rows, positions, rope, &mut Vec::new());
}

#[inline(never)]
fn counted_loss(head: &[f32], hidden: &[f32], targets: &[Target], shape: [usize; 2]) {
    let (mut d_hidden, mut d_head) = (vec![0.0; hidden.len()], vec![0.0; head.len()]);
    let buffers = &mut [Vec::new(), Vec::new()];
    let d_head = Some(&mut d_head[..]);
    black_box(head::loss(
        head,
        hidden,
        targets,
        None,
        &mut d_hidden,
        d_head,
        shape,
        buffers,
    ));
}

#[inline(never)]
fn counted_optimizer(optimiser: &mut AdamW, params: &mut Params, gradients: &Gradients) {
    optimiser.step(params, gradients, 1e-4, 1.0);
}

fn count_matmuls() {
    let [t, n, k] = SHAPE;
    let (mut x, mut y, mut w) = (test_values(t * k), test_values(t * n), test_values(n * k));
    counted_forward(&mut y, &x, &w);
    counted_input_gradient(&mut x, &y, &w);
    counted_weight_gradient(&mut w, &y, &x);
}

fn count_attention() {
    // Three rows that begin alike.
    let long: Vec<u32> = (0..90).collect();
    let rows = [(&long[..], 40), (&long[..57], 40), (&long[..44], 40)];
    let (batch, _) = Batch::with_shared_prefixes(&rows);
    let (t, wide) = (batch.tokens.len(), HEADS.num_heads * HEADS.head_dim);
    let (qkv, reaches) = (test_values(t * HEADS.qkv_width()), batch.attention_spans());
    let (mut o, mut lse) = (vec![0.0; t * wide], vec![0.0; t * HEADS.num_heads]);
    let rows: Vec<_> = reaches.iter().map(|r| r.to_row(&qkv, HEADS)).collect();
    counted_attention(&mut o, &mut lse, &qkv, &rows);
    let of = attention::Backward {
        d_o: &test_values(o.len()),
        o: &o,
        lse: &lse,
        qkv: &qkv,
        heads: HEADS,
    };
    let mut rope = Rope::new(&ModelConfig {
        head_dim: HEADS.head_dim,
        ..config(true)
    });
    rope.extend_to(long.len());
    let mut dqkv = vec![0.0; qkv.len()];
    counted_attention_backward(&mut dqkv, &of, &reaches, &batch.positions(), &rope);
}

fn count_loss() {
    let shape @ [v, d] = [1_000, 72];
    let targets: Vec<_> = (0..40)
        .map(|position| Target {
            position,
            token: position as u32,
            ce_weight: 0.1,
            distill_weight: 0.0,
        })
        .collect();
    let (head, hidden) = (test_values(v * d), test_values(targets.len() * d));
    counted_loss(&head, &hidden, &targets, shape);
}

fn count_optimizer() {
    let mut params = params(&config(true), 1);
    let mut gradients = Gradients::new(&params, &vec![true; params.layout.tensors.len()]);
    let numbers = test_values(gradients.data.len());
    gradients.data.copy_from_slice(&numbers);
    let mut optimiser = AdamW::new(&gradients, AdamWSettings::default());
    counted_optimizer(&mut optimiser, &mut params, &gradients);
}

/// What the guard runs under callgrind, on one thread.
#[test]
#[ignore = "run by the guard"]
fn counted_kernels() {
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

/// Instructions of each `counted_` function and of what it calls, as `callgrind_annotate` tells them: the most of its lines,
/// of which others are what was inlined from other files.
fn counts(told: &str) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in told.lines() {
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
        .args(["engine::counts::counted_kernels", "--exact", "--ignored"])
        .arg("--test-threads=1")
        .output();
    let Ok(counted) = counted else {
        eprintln!("skipped: there is no valgrind");
        return;
    };
    assert!(counted.status.success(), "{counted:?}");
    let told = Command::new("callgrind_annotate")
        .args(["--inclusive=yes", "--threshold=100", "--auto=no"])
        .arg(&out)
        .output()
        .expect("callgrind_annotate is part of valgrind");
    let counts = counts(&String::from_utf8_lossy(&told.stdout));
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
        eprintln!("{name}: {count} instructions, {ratio:.3} of what was recorded");
        assert!(
            ratio <= MAX_RATIO,
            "{name} takes {count} instructions, {ratio:.2} times the {} that were recorded; where the compiler is another one, \
             record them anew (UNFORGET_COUNTS=record)",
            recorded[&name]
        );
    }
}
