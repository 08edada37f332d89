//! The engine on a GPU: products, training steps, decoding and an audit's questions, at the shapes of real models with random weights.
//!
//! ```text
//! cargo bench --features gpu --bench gpu -- [--device N] [--small] [--json FILE]
//! ```
//!
//! `benches/gpu/run.sh` runs it beside `PyTorch` on the same card and draws a table. `--small` is for software devices: tiny shapes, so
//! that the program keeps working.

use std::{
    env, fs,
    io::{self, Write},
    time::Instant,
};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use unforget::{
    config::{Device, VocabSubset},
    engine::{
        Batch, DistillOptions, Engine, GpuArray, GpuEngine, GpuGradients, Gradients, KvCache,
        Outputs, RngStream, SoftTargets, Target, TeacherLogits, trained_ranges,
    },
    gpu::{
        Gpu,
        matmul::{Form, Matrix, matmul},
    },
    model::{ModelConfig, Params},
    train::{adamw::AdamWSettings, gpu_adamw::GpuAdamW},
};

#[path = "../shapes/mod.rs"]
mod shapes;

use shapes::{SMOLLM2, Shape, llama, params};

/// What is asked for on the command line.
struct Options {
    device: u32,
    small: bool,
    json: Option<String>,
}

impl Options {
    fn from_args() -> Result<Self, String> {
        let mut options = Self {
            device: 0,
            small: false,
            json: None,
        };
        let mut args = env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--device" => options.device = value()?.parse().map_err(|_| "--device N")?,
                "--small" => options.small = true,
                "--json" => options.json = Some(value()?),
                // Cargo adds it.
                "--bench" => {}
                other => return Err(format!("unknown argument {other}")),
            }
        }
        Ok(options)
    }
}

const SHAPES: [(&str, Shape); 3] = [
    ("SmolLM2-135M", SMOLLM2),
    ("0.5 B", [896, 4864, 24, 14, 2, 64, 151_936]),
    ("1.5 B", [1536, 8960, 28, 12, 2, 128, 151_936]),
];
const SMALL: [(&str, Shape); 1] = [("tiny", [64, 128, 2, 4, 2, 16, 500])];

/// So many rows of so many tokens, with four targets each.
fn batch(rows: usize, tokens: usize, vocab: usize) -> (Batch, Vec<Target>) {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let (mut batch, mut targets) = (Batch::new(), Vec::new());
    for _ in 0..rows {
        let row: Vec<u32> = (0..tokens)
            .map(|_| rng.random_range(0..vocab as u32))
            .collect();
        let own = batch.push(row);
        targets.extend((own.end - 4..own.end).map(|position| Target {
            position,
            token: rng.random_range(0..vocab as u32),
            ce_weight: 1.0 / (4 * rows) as f32,
            distill_weight: 0.25 / (4 * rows) as f32,
        }));
    }
    (batch, targets)
}

/// The median seconds of `run`, which waits for the device, after two runs that warm up.
fn median(repeats: usize, mut run: impl FnMut()) -> f64 {
    (0..2).for_each(|_| run());
    let mut seconds: Vec<f64> = (0..repeats)
        .map(|_| {
            let started = Instant::now();
            run();
            started.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    seconds[repeats / 2]
}

const WORKS: &str = "the device works";

fn products(gpu: &Gpu, small: bool) -> Vec<Value> {
    let sizes: &[[usize; 3]] = if small {
        &[[32, 64, 64]]
    } else {
        // Rows, outputs, inputs: of SmolLM2, the 0.5 B and the 1.5 B shape; few rows as in decoding, many as in training.
        &[
            [32, 3072, 576],
            [1024, 3072, 576],
            [1024, 9728, 896],
            [1024, 17_920, 1536],
            [4096, 17_920, 1536],
        ]
    };
    let mut rows = Vec::new();
    for &[m, n, k] in sizes {
        let buffer = |len| gpu.zeros(len).expect(WORKS);
        let [x, w, y] = [m * k, n * k, m * n].map(buffer);
        let [x, w, y] = [
            Matrix::new(x.all(), m, k),
            Matrix::new(w.all(), n, k),
            Matrix::new(y.all(), m, n),
        ];
        for (form, out, a, b) in [
            (Form::NT, y, x, w),
            (Form::NN, x, y, w),
            (Form::TN, w, y, x),
        ] {
            const REPEATS: usize = 10;

            let seconds = median(10, || {
                for _ in 0..REPEATS {
                    matmul(gpu, form, out, a, b, 1.0, 0.0).expect(WORKS);
                }
                gpu.submit().and_then(|()| gpu.wait()).expect(WORKS);
            });
            let flops = (2 * m * n * k * REPEATS) as f64 / seconds;
            rows.push(json!({
                "form": format!("{form:?}"), "shape": [m, n, k], "gflops": flops / 1e9,
            }));
        }
    }
    rows
}

/// A training step on so many rows of so many tokens: seconds, and dispatches.
fn step(
    gpu: &Gpu,
    config: &ModelConfig,
    params: &Params,
    (rows, tokens): (usize, usize),
    distills: bool,
) -> Value {
    let layout = params.layout.clone();
    let mut engine = GpuEngine::new(gpu, config, params).expect(WORKS);
    let places = Gradients::new(params, &vec![true; layout.tensors.len()]);
    let ranges = trained_ranges(&places, &layout).into_iter();
    let data = GpuArray::zeros(gpu, ranges.map(|(_, _, at)| at)).expect(WORKS);
    let gradients = GpuGradients {
        places: &places,
        data: &data,
    };
    let settings = AdamWSettings::default();
    let mut adamw =
        GpuAdamW::new(gpu, &layout, engine.weights(), gradients, settings, None).expect(WORKS);
    let (batch, targets) = batch(rows, tokens, config.vocab_size);
    let hidden = vec![0.1; targets.len() * config.hidden_size];
    let teacher = distills.then(|| SoftTargets {
        logits: TeacherLogits::Hidden {
            head: Some(&params.data[layout.head.clone()]),
            hidden: &hidden,
            subset: VocabSubset::Full,
            rng: RngStream { seed: 0, stream: 0 },
        },
        options: DistillOptions {
            tau: 0.5,
            exclude_target: false,
        },
    });
    let mut dispatches = 0;
    let seconds = median(10, || {
        let before = gpu.dispatches();
        data.clear(gpu).expect(WORKS);
        engine
            .loss_and_gradients(&batch, &targets, teacher, gradients)
            .expect(WORKS);
        adamw
            .step(gpu, &layout, engine.weights(), gradients, 1e-6, 1.0)
            .expect(WORKS);
        engine.take_loss().expect(WORKS);
        adamw.grad_norm(gpu).expect(WORKS);
        dispatches = gpu.dispatches() - before;
    });
    json!({
        "rows": rows, "tokens": tokens, "distills": distills, "seconds": seconds,
        "tokens_per_second": (rows * tokens) as f64 / seconds, "dispatches": dispatches,
    })
}

/// Decoding of so many rows after a common prefix: tokens per second.
fn decoding(device: u32, config: &ModelConfig, params: &Params, rows: usize) -> Value {
    const PREFIX: usize = 40;
    const NEW: usize = 16;

    let mut engine = Engine::on(config, Device::Gpu(device)).expect(WORKS);
    let vocab = config.vocab_size as u32;
    let prefix: Vec<u32> = (0..PREFIX as u32).map(|i| i % vocab).collect();
    let seconds = median(3, || {
        let mut cache = KvCache::new(config);
        let root = cache.open(None, PREFIX);
        engine.extend(params, &mut cache, &[(root, &prefix)], Outputs::Last);
        let segments: Vec<_> = (0..rows).map(|_| cache.open(Some(root), NEW)).collect();
        for token in 0..NEW as u32 {
            let token = [token % vocab];
            let new: Vec<_> = segments
                .iter()
                .map(|segment| (*segment, &token[..]))
                .collect();
            let hidden = engine.extend(params, &mut cache, &new, Outputs::Last);
            engine.logits(params, &hidden, |_, logits| logits[0]);
        }
    });
    assert!(engine.take_device_error().is_none(), "the device failed");
    json!({ "rows": rows, "new_tokens": NEW, "tokens_per_second": (rows * NEW) as f64 / seconds })
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let options = Options::from_args()?;
    let gpu = Gpu::shared(options.device as usize)?;
    let report = gpu.report();
    eprintln!("{} ({}, {})", report.name, report.backend, report.driver);
    let products = products(&gpu, options.small);
    let shapes: &[(&str, Shape)] = if options.small { &SMALL } else { &SHAPES };
    let workloads: &[(usize, usize)] = if options.small {
        &[(4, 8)]
    } else {
        &[(32, 24), (2, 1024)]
    };
    let mut models = Vec::new();
    for (name, shape) in shapes {
        eprintln!("{name}");
        let config = llama(*shape);
        let params = params(&config);
        let mut steps = Vec::new();
        for workload in workloads {
            for distills in [false, true] {
                steps.push(step(&gpu, &config, &params, *workload, distills));
            }
        }
        let rows: &[usize] = if options.small { &[2] } else { &[1, 64, 256] };
        let decoding = rows
            .iter()
            .map(|rows| decoding(options.device, &config, &params, *rows));
        models.push(json!({
            "model": name, "parameters": params.layout.len, "steps": steps,
            "decoding": decoding.collect::<Vec<_>>(),
        }));
    }
    let measured = json!({
        "program": "unforget", "device": report.name, "backend": report.backend, "driver": report.driver,
        "products": products, "models": models,
    });
    let text = serde_json::to_string_pretty(&measured)?;
    match options.json {
        Some(path) => fs::write(path, text)?,
        None => io::stdout().write_all(text.as_bytes())?,
    }
    Ok(())
}
