//! The engine compared to `PyTorch`: golden values of tiny models of every family (`tests/golden/gen.py`).
//!
//! Golden values are computed in float64, so differences are rounding errors of the engine. `PyTorch` in float32 differs from them by
//! up to 1.6e-6 (logits), 6e-6 (gradients, relative to the largest of a tensor), 6.1e-5 (losses and norms of ten steps), 2.5e-7 (weights
//! after ten steps, mean) and 1.6e-4 (maximum), as `gen.py` prints. The tolerances are about five times as large, for other orders of
//! summation.

use std::{fs, path::PathBuf};

use serde_json::Value;
use unforget::{
    config::VocabSubset,
    distributed::Comm,
    engine::{
        DistillOptions, Engine, Gradients, KvCache, Loss, Outputs, RngStream, SoftTargets,
        TeacherLogits,
    },
    generate::{Generator, Request},
    model::Model,
    prompt::{Example, PackedExamples},
    train::adamw::{self, AdamW, AdamWSettings},
};

/// The model with every tensor w replaced by 0.9 w + `factor` w', w' being w in the reverse order.
pub fn changed(model: &Model, factor: f32) -> Model {
    let mut after = model.clone();
    let params = &model.params;
    let weights = params.data.to_vec();
    for tensor in &params.layout.tensors {
        let before = &weights[tensor.range.clone()];
        let slot = &mut after.params.data[tensor.range.clone()];
        for (w, (own, other)) in slot.iter_mut().zip(before.iter().zip(before.iter().rev())) {
            *w = 0.9 * own + factor * other;
        }
    }
    after
}

const MODELS: [&str; 12] = [
    "llama",
    "llama3",
    "mistral",
    "qwen2",
    "qwen3",
    "mistral_window",
    "qwen2_window",
    "gemma3",
    "phi3",
    "olmo2",
    "granite",
    "smollm3",
];
const DISTILLED: [&str; 2] = ["llama", "qwen3"];

/// Logits, relative to the largest magnitude.
const LOGITS: f64 = 8e-6;
/// Losses and gradient norm of the first step, relative.
pub const FIRST_STEP: f64 = 1e-5;
/// Losses and gradient norm of later steps, relative: where a gradient is almost zero, `AdamW` takes a full step whose sign is
/// rounding error.
pub const LATER_STEPS: f64 = 3e-4;
/// Gradients, relative to the largest magnitude of a tensor.
pub const GRADIENT: f64 = 3e-5;
/// Weights after ten steps, mean absolute difference; they change by about 5e-3.
pub const WEIGHTS_MEAN: f64 = 1.5e-6;
/// Weights after ten steps, maximum absolute difference; see [`LATER_STEPS`].
pub const WEIGHTS: f64 = 1e-3;
/// Log-probabilities, in nats.
const LOGPROB: f64 = 1e-4;

/// A model and its golden values.
pub struct Golden {
    pub model: Model,
    pub record: Value,
    tensors: Vec<u8>,
}

fn directory(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", name]
        .iter()
        .collect()
}

impl Golden {
    pub fn load(name: &str) -> Self {
        Self::read(name, name, "golden")
    }

    /// The golden values of `remedies.py` for the model of `qwen3`.
    pub fn remedies() -> Self {
        Self::remedy("remedies")
    }

    /// The golden values of a later remedy, in a file of its own.
    pub fn remedy(name: &str) -> Self {
        Self::read("qwen3", "remedies", name)
    }

    /// The golden values of `lora.py` for the model of `qwen3`.
    pub fn lora() -> Self {
        Self::read("qwen3", "lora", "lora")
    }

    /// The golden values of `project.py` for the model of `qwen3`.
    pub fn project() -> Self {
        Self::read("qwen3", "project", "project")
    }

    fn read(model: &str, name: &str, file: &str) -> Self {
        let model = directory(model);
        let directory = directory(name);
        let record = fs::read(directory.join(format!("{file}.json"))).expect("it is committed");
        Self {
            model: Model::load(model.to_str().expect("a path in UTF-8")).expect(name),
            record: serde_json::from_slice(&record).expect("valid JSON"),
            tensors: fs::read(directory.join(format!("{file}.safetensors"))).expect("committed"),
        }
    }

    /// A stored tensor.
    pub fn tensor(&self, name: &str) -> Vec<f32> {
        self.find(name).expect(name)
    }

    /// A tensor, if it is stored.
    pub fn find(&self, name: &str) -> Option<Vec<f32>> {
        let file = safetensors::SafeTensors::deserialize(&self.tensors).expect("a valid file");
        let view = file.tensor(name).ok()?;
        let floats = view.data().chunks_exact(4);
        let floats = floats.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Some(floats.collect())
    }

    /// The names of the stored tensors with this prefix, without the prefix.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        let file = safetensors::SafeTensors::deserialize(&self.tensors).expect("a valid file");
        let names = file.names().into_iter();
        names
            .filter_map(|name| name.strip_prefix(prefix).map(str::to_owned))
            .collect()
    }

    pub fn rows(&self) -> Vec<Example> {
        array(&self.record["rows"])
            .iter()
            .map(|r| Example::new(tokens(&r["prompt"]), tokens(&r["target"])))
            .collect()
    }

    /// The packed examples: cross-entropy as the mean over all target tokens, distillation as a mean over examples (eq. 2).
    fn packed_rows(&self, distilled: bool) -> PackedExamples {
        let rows = self.rows();
        let mut packed = PackedExamples::new(&rows);
        let (all, examples) = (packed.targets.len() as f64, rows.len() as f64);
        let term = distilled.then(|| (self.number("lambda"), self.number("temperature")));
        packed.set_weights(1.0 / all, |count| {
            term.map_or(0.0, |(lambda, tau)| {
                (lambda * tau * tau / (examples * count as f64)) as f32
            })
        });
        packed
    }

    pub fn number(&self, name: &str) -> f64 {
        self.record[name].as_f64().expect(name)
    }

    /// Losses and gradient norms of ten steps, and the gradients of the first; trains `self.model`.
    fn ten_steps(&mut self, trained: &[bool], distilled: bool) -> (Vec<(Loss, f64)>, Vec<f32>) {
        let rows = self.packed_rows(distilled);
        let stored =
            distilled.then(|| (self.tensor("teacher.head"), self.tensor("teacher.hidden")));
        let temperature = if distilled {
            self.number("temperature") as f32
        } else {
            1.0
        };
        let (lr, clip) = (self.number("lr"), self.number("clip"));
        let mut engine = Engine::new(&self.model.config);
        let mut gradients = Gradients::new(&self.model.params, trained);
        let settings = AdamWSettings {
            weight_decay: self.number("weight_decay"),
            ..AdamWSettings::default()
        };
        let mut optimizer = AdamW::new(&gradients, settings);
        let (mut steps, mut first) = (Vec::new(), Vec::new());
        for _ in 0..10 {
            gradients.zero();
            let teacher = stored.as_ref().map(|(head, hidden)| SoftTargets {
                logits: TeacherLogits::Hidden {
                    head: Some(head),
                    hidden,
                    subset: VocabSubset::Full,
                    rng: RngStream { seed: 0, stream: 0 },
                },
                options: DistillOptions {
                    tau: temperature,
                    exclude_target: false,
                },
            });
            let loss = engine.loss_and_gradients(
                &self.model.params,
                &rows.batch,
                &rows.targets,
                teacher,
                &mut gradients,
            );
            if first.is_empty() {
                first = gradients.data.to_vec();
            }
            let norm = adamw::grad_norm(&gradients, Comm::single());
            let scale = adamw::clip_scale(norm, clip);
            optimizer.step(&mut self.model.params, &gradients, lr, scale);
            steps.push((loss, norm));
        }
        (steps, first)
    }

    fn all_trained(&self) -> Vec<bool> {
        vec![true; self.model.params.layout.tensors.len()]
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().expect("an array")
}

fn tokens(value: &Value) -> Vec<u32> {
    array(value)
        .iter()
        .map(|t| t.as_u64().expect("a token") as u32)
        .collect()
}

pub fn numbers(value: &Value) -> Vec<f64> {
    array(value)
        .iter()
        .map(|x| x.as_f64().expect("a number"))
        .collect()
}

pub fn differences(ours: &[f32], theirs: &[f32]) -> Vec<f64> {
    assert_eq!(ours.len(), theirs.len());
    ours.iter()
        .zip(theirs)
        .map(|(a, b)| f64::from((a - b).abs()))
        .collect()
}

pub fn largest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

/// The largest difference, relative to the largest magnitude of `theirs`.
pub fn deviation(ours: &[f32], theirs: &[f32]) -> f64 {
    let scale = theirs.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    largest(&differences(ours, theirs)) / f64::from(scale)
}

/// Log-probability of `token`, in f64.
fn logprob(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|z| f64::from(z - max).exp()).sum();
    f64::from(logits[token as usize] - max) - sum.ln()
}

#[test]
fn logits_equal_those_of_transformers() {
    for name in MODELS {
        let golden = Golden::load(name);
        let rows = golden.packed_rows(false);
        let mut engine = Engine::new(&golden.model.config);
        let params = &golden.model.params;
        let hidden = engine.hidden(params, &rows.batch, &rows.positions());
        let logits = engine
            .logits(params, &hidden, |_, logits| logits.to_vec())
            .concat();
        let apart = deviation(&logits, &golden.tensor("logits"));
        assert!(apart < LOGITS, "{name}: {apart:e}");
    }
}

fn check_ten_steps(name: &str, run: &str) {
    let mut golden = Golden::load(name);
    let (steps, first) = golden.ten_steps(&golden.all_trained(), run == "self_distill");

    let layout = golden.model.params.layout.clone();
    let mut start = 0;
    for tensor in &layout.tensors {
        let gradient = &first[start..start + tensor.range.len()];
        start += tensor.range.len();
        let apart = deviation(
            gradient,
            &golden.tensor(&format!("{run}.gradient.{}", tensor.name)),
        );
        assert!(
            apart < GRADIENT,
            "{name} {run}: gradient of {}: {apart:e}",
            tensor.name
        );
    }

    let expected = &golden.record[run];
    let expected_steps = numbers(&expected["ce"])
        .into_iter()
        .zip(numbers(&expected["distill"]))
        .zip(numbers(&expected["grad_norm"]));
    for (step, ((loss, norm), ((ce, distill), expected_norm))) in
        steps.iter().zip(expected_steps).enumerate()
    {
        let tolerance = if step == 0 { FIRST_STEP } else { LATER_STEPS };
        for (what, ours, theirs) in [
            ("cross-entropy", loss.ce, ce),
            ("distillation", loss.distill, distill),
            ("gradient norm", *norm, expected_norm),
        ] {
            let apart = (ours - theirs).abs();
            assert!(
                apart <= tolerance * theirs,
                "{name} {run} step {step}: {what} {ours} is not {theirs}"
            );
        }
    }

    let mut all = Vec::new();
    for tensor in &layout.tensors {
        let after = golden.tensor(&format!("{run}.after.{}", tensor.name));
        let apart = differences(&golden.model.params.data[tensor.range.clone()], &after);
        assert!(
            largest(&apart) < WEIGHTS,
            "{name} {run}: {} after ten steps: {:e}",
            tensor.name,
            largest(&apart)
        );
        all.extend(apart);
    }
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    assert!(
        mean < WEIGHTS_MEAN,
        "{name} {run}: weights after ten steps: {mean:e}"
    );
}

#[test]
fn losses_gradients_and_ten_steps_of_fine_tuning_equal_those_of_pytorch() {
    for name in MODELS {
        check_ten_steps(name, "sft");
    }
}

#[test]
fn losses_gradients_and_ten_steps_of_self_distillation_equal_those_of_pytorch() {
    for name in DISTILLED {
        check_ten_steps(name, "self_distill");
    }
}

#[test]
fn ten_steps_have_the_same_bits_at_any_number_of_threads_and_leave_frozen_tensors_alone() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .expect("a pool");
        let mut golden = Golden::load("qwen3");
        let layout = golden.model.params.layout.clone();
        let trained: Vec<bool> = layout
            .tensors
            .iter()
            .map(|t| t.name.contains("v_proj"))
            .collect();
        let before = golden.model.params.clone();
        let (steps, _) = pool.install(|| golden.ten_steps(&trained, true));
        for (tensor, trained) in layout.tensors.iter().zip(trained) {
            let now = &golden.model.params.data[tensor.range.clone()];
            assert_eq!(
                now != &before.data[tensor.range.clone()],
                trained,
                "{}",
                tensor.name
            );
        }
        (steps, golden.model.params.data.to_vec())
    };
    assert_eq!(run(1), run(2));
}

#[test]
fn scores_equal_those_of_transformers() {
    for name in MODELS {
        let golden = Golden::load(name);
        let mut engine = Engine::new(&golden.model.config);
        for expected in array(&golden.record["score"]) {
            let text = |key: &str| expected[key].as_str().expect("text");
            let tokenizer = &golden.model.tokenizer;
            let (prompt, completion) = tokenizer
                .encode_joint(text("prompt"), text("completion"), true)
                .expect("tokens");
            assert_eq!(prompt, tokens(&expected["tokens"]), "{name}");
            assert_eq!(completion, tokens(&expected["completion_tokens"]), "{name}");
            let scores = Generator::new(&mut engine, &golden.model)
                .score(&[(prompt, completion)], &|_| {})
                .expect("a short row");
            for (ours, theirs) in scores[0].iter().zip(numbers(&expected["logprobs"])) {
                assert!(
                    (f64::from(*ours) - theirs).abs() < LOGPROB,
                    "{name}: {ours} is not {theirs}"
                );
            }
        }
    }
}

#[test]
fn cached_keys_and_values_cut_anywhere_give_the_log_probabilities_of_transformers() {
    for name in MODELS {
        let golden = Golden::load(name);
        let params = &golden.model.params;
        let mut engine = Engine::new(&golden.model.config);
        for (row, expected) in array(&golden.record["rows"])
            .iter()
            .zip(array(&golden.record["row_logprobs"]))
        {
            let (prompt, target) = (tokens(&row["prompt"]), tokens(&row["target"]));
            let read: Vec<u32> = prompt
                .iter()
                .chain(&target[..target.len() - 1])
                .copied()
                .collect();
            // At once, token by token, and in chunks of odd sizes.
            for piece in [read.len(), 1, 7, 33] {
                let mut cache = KvCache::new(&golden.model.config);
                let mut segment = None;
                let mut hidden = Vec::new();
                for (i, part) in read.chunks(piece).enumerate() {
                    // Some chunks extend their segment, others open a new one.
                    if i % 3 == 0 {
                        segment = Some(cache.open(segment, read.len()));
                    }
                    let segment = segment.expect("opened for the first piece");
                    hidden.extend(engine.extend(
                        params,
                        &mut cache,
                        &[(segment, part)],
                        Outputs::All,
                    ));
                }
                let from = (prompt.len() - 1) * golden.model.config.hidden_size;
                let ours = engine.logits(params, &hidden[from..], |i, logits| {
                    logprob(logits, target[i])
                });
                for (ours, theirs) in ours.iter().zip(numbers(expected)) {
                    assert!(
                        (ours - theirs).abs() < LOGPROB,
                        "{name}, pieces of {piece}: {ours} is not {theirs}"
                    );
                }
            }
        }
    }
}

#[test]
fn greedy_answers_equal_those_of_transformers() {
    for name in MODELS {
        let golden = Golden::load(name);
        let mut engine = Engine::new(&golden.model.config);
        let expected = array(&golden.record["greedy"]);
        let prompts: Vec<Vec<u32>> = expected.iter().map(|e| tokens(&e["tokens"])).collect();
        let answers = Generator::new(&mut engine, &golden.model)
            .generate(&Request::greedy(&[], &prompts, 12), |_, _| false, &|_| {})
            .expect("short prompts");
        for (answer, expected) in answers.iter().zip(expected) {
            assert_eq!(answer[0].tokens, tokens(&expected["new"]), "{name}");
        }
    }
}
