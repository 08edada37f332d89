//! How far a model's behaviour on general prompts is from that of the model before training.
//!
//! x: a prompt of `data/general_prompts.txt` in the model's chat template, or as it stands where the model has none. a(x): the base
//! model's greedy answer, of at most [`MAX_ANSWER_TOKENS`] tokens, its end token included. `p_j`, `q_j`: the distributions of the next
//! token by the base model and by the model that is measured, after x and the first j - 1 tokens of a(x), over the whole vocabulary.
//! a'(x): the greedy answer of the model that is measured.
//!
//! ```text
//! KL           = sum over x and j of KL(p_j || q_j) / sum over x of |a(x)|        (nats per token)
//! length ratio = sum over x of |a'(x)| / sum over x of |a(x)|
//! ```

use std::{fmt, io, path::Path};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    Error, Result, atomic_file,
    engine::Engine,
    generate::{Generated, Generator, Request, common_prefix},
    hub::cache_dir,
    model::{Layout, Model, Params},
    progress::{Bar, Progress, WorkKind},
    prompt::{Example, MICRO_BATCH_TOKENS, PackedExamples, PromptTemplate, micro_batches},
    tensor_file::{self, Dtype, TensorFile, TensorView},
};

/// Maximum length of an answer, in tokens.
pub const MAX_ANSWER_TOKENS: usize = 32;

/// The prompts, one per line.
const PROMPTS: &str = include_str!("../../data/general_prompts.txt");

/// Incremented when the cached values are others for the same model.
const CACHE_VERSION: u32 = 1;

/// The distance of a model's behaviour from that of the base model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Behaviour {
    /// Mean KL divergence from the base model per token of its own answers, in nats.
    pub kl: f64,
    /// Mean length of this model's answers divided by that of the base model's.
    pub length_ratio: f64,
}

impl Behaviour {
    /// That of the base model itself.
    pub const UNCHANGED: Self = Self {
        kl: 0.0,
        length_ratio: 1.0,
    };
}

impl fmt::Display for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "on general prompts KL {:.3} nats per token from the base model, answers are now {:.2}x as long as the base model's",
            self.kl, self.length_ratio
        )
    }
}

/// A row of `behaviour.jsonl`: one prompt with both answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BehaviourAnswer {
    /// The prompt, without the chat template.
    pub prompt: String,
    /// The base model's answer.
    pub before: String,
    /// The answer of the model that is measured.
    pub after: String,
    /// Tokens of `before`, its end token included.
    pub tokens_before: usize,
    /// Tokens of `after`, its end token included.
    pub tokens_after: usize,
    /// Mean KL divergence per token of `before`, in nats.
    pub kl: f64,
}

/// A model's behaviour with the answers that it follows from.
#[derive(Clone, Debug, PartialEq)]
pub struct BehaviourReport {
    /// Over all prompts.
    pub behaviour: Behaviour,
    /// Every prompt.
    pub answers: Vec<BehaviourAnswer>,
}

/// The base model's answers, and what its distributions at their tokens are computed from. Of several processes each has a share of
/// the prompts.
pub struct BehaviourReference {
    prompts: Vec<&'static str>,
    /// Each prompt with the base model's answer, as tokens.
    rows: Vec<Example>,
    /// The base model's hidden states after the final norm at the positions that predict the answers: (P, D).
    hidden: Vec<f32>,
    /// The base model's LM head (V, D), where that of the models that are measured may differ.
    head: Option<Vec<f32>>,
}

impl BehaviourReference {
    /// The reference of `base`. `keep_head`: the models that are measured may have another LM head. Answers and hidden states are
    /// cached by the checksum of the model's files, from which its weights must not differ.
    ///
    /// `None` if no prompt fits into the model's context.
    ///
    /// # Errors
    /// When the tokenizer refuses a prompt; [`Error::Interrupted`] if the user interrupts.
    pub fn new(
        base: &Model,
        engine: &mut Engine,
        keep_head: bool,
        progress: &Progress,
    ) -> Result<Option<Self>> {
        let (prompts, tokens) = fitting_prompts(base)?;
        if prompts.is_empty() {
            return Ok(None);
        }
        let comm = engine.comm();
        let own = comm.shard_range(prompts.len());
        let (prompts, tokens) = (prompts[own.clone()].to_vec(), tokens[own].to_vec());
        let is_alone = comm.world_size() == 1;
        // With several processes nobody has all of it.
        let cache = if is_alone {
            cache_dir().ok().map(|dir| {
                let name = cache_key(&base.checksum, &tokens) + ".safetensors";
                dir.join("behaviour").join(name)
            })
        } else {
            None
        };
        let cached = cache.as_deref().and_then(read_cache);
        let width = base.config.hidden_size;
        let fits = |(answers, hidden): &(Vec<Vec<u32>>, Vec<f32>)| {
            let targets: usize = answers.iter().map(Vec::len).sum();
            answers.len() == tokens.len() && hidden.len() == targets * width
        };
        let (rows, hidden) = if let Some((answers, hidden)) = cached.filter(fits) {
            progress.skip(WorkKind::Behaviour, Self::FLOPS);
            (examples(tokens, answers), hidden)
        } else {
            let answers = greedy_answers(&mut Generator::new(engine, base), &tokens, progress)?;
            let answers = answers.into_iter().map(|answer| answer.tokens).collect();
            let rows = examples(tokens, answers);
            let bar = comparison_bar(&rows, progress);
            let hidden: Vec<f32> = micro_batches(&rows, MICRO_BATCH_TOKENS, Example::num_tokens)
                .into_iter()
                .flat_map(|rows| {
                    let hidden = hidden_states(engine, &base.params, rows);
                    bar.inc(rows.len() as u64);
                    hidden
                })
                .collect();
            drop(bar);
            if let Some(path) = &cache {
                // Without the cache the next run takes longer, and nothing else.
                let _ = write_cache(path, &rows, &hidden);
            }
            (rows, hidden)
        };
        let head = keep_head.then(|| base.params.data[base.params.layout.head.clone()].to_vec());
        Ok(Some(Self {
            prompts,
            rows,
            hidden,
            head,
        }))
    }

    /// Floating-point operations per weight of one measurement, about, and of a reference: prompts and answers twice, once to compare
    /// and once to generate.
    pub const FLOPS: f64 = 2.0 * 20_000.0;

    /// Maximum number of floats of a reference for models with this layout.
    pub fn max_floats(layout: &Layout, keep_head: bool) -> usize {
        let head = if keep_head { layout.head.len() } else { 0 };
        PROMPTS.lines().count() * MAX_ANSWER_TOKENS * layout.norm.len() + head
    }

    /// The behaviour of a model, which has the shape of the base model.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if the user interrupts.
    pub fn measure(
        &self,
        generator: &mut Generator<'_>,
        progress: &Progress,
    ) -> Result<BehaviourReport> {
        let divergences = self.divergences(generator.engine, generator.params, progress);
        let prompts: Vec<Vec<u32>> = self.rows.iter().map(|row| row.prompt.clone()).collect();
        let answers = greedy_answers(generator, &prompts, progress)?;
        let own = self.rows.iter().zip(&self.prompts).zip(answers);
        let own = own.zip(divergences).map(|(((row, prompt), after), kl)| {
            let tokens_before = row.target.len();
            BehaviourAnswer {
                prompt: (*prompt).to_owned(),
                before: generator.tokenizer.decode(&row.target),
                after: generator.tokenizer.decode(&after.tokens),
                tokens_before,
                tokens_after: after.tokens.len(),
                kl: kl / tokens_before as f64,
            }
        });
        let answers = generator.comm().all_gather(own.collect());
        let sum = |of: fn(&BehaviourAnswer) -> f64| answers.iter().map(of).sum::<f64>();
        let before = sum(|answer| answer.tokens_before as f64);
        Ok(BehaviourReport {
            behaviour: Behaviour {
                kl: sum(|answer| answer.kl * answer.tokens_before as f64) / before,
                length_ratio: sum(|answer| answer.tokens_after as f64) / before,
            },
            answers,
        })
    }

    /// For each row, the sum of the KL divergences at its answer's tokens, in nats.
    fn divergences(&self, engine: &mut Engine, params: &Params, progress: &Progress) -> Vec<f64> {
        let bar = comparison_bar(&self.rows, progress);
        let width = params.layout.norm.len();
        let mut sums = Vec::with_capacity(self.rows.len());
        let mut done = 0;
        for rows in micro_batches(&self.rows, MICRO_BATCH_TOKENS, Example::num_tokens) {
            let hidden = hidden_states(engine, params, rows);
            let reference = &self.hidden[done..done + hidden.len()];
            done += hidden.len();
            debug_assert_eq!(hidden.len() % width, 0);
            let head = self.head.as_deref();
            let divergences = engine.kl_divergences(params, &hidden, reference, head);
            let mut divergences = divergences.into_iter();
            sums.extend(
                rows.iter()
                    .map(|row| divergences.by_ref().take(row.num_targets()).sum::<f64>()),
            );
            bar.inc(rows.len() as u64);
        }
        sums
    }
}

/// The prompts that fit into the model's context with an answer, as text and as tokens.
fn fitting_prompts(model: &Model) -> Result<(Vec<&'static str>, Vec<Vec<u32>>)> {
    // A model without a chat template, or with one that does not work, is asked without.
    let template = PromptTemplate::default()
        .for_model(true, &model.tokenizer)
        .ok();
    let context = model.config.max_position_embeddings;
    let (mut prompts, mut tokens) = (Vec::new(), Vec::new());
    for prompt in PROMPTS.lines() {
        let ids = match &template {
            Some(template) => template.encode(&model.tokenizer, &template.prompt_text(prompt))?,
            None => model.tokenizer.encode_prompt(prompt)?,
        };
        if !ids.is_empty() && ids.len() + MAX_ANSWER_TOKENS <= context {
            prompts.push(prompt);
            tokens.push(ids);
        }
    }
    Ok((prompts, tokens))
}

fn examples(prompts: Vec<Vec<u32>>, answers: Vec<Vec<u32>>) -> Vec<Example> {
    let rows = prompts.into_iter().zip(answers);
    rows.map(|(prompt, target)| Example::new(prompt, target))
        .collect()
}

/// The greedy answer to each prompt.
fn greedy_answers(
    generator: &mut Generator<'_>,
    prompts: &[Vec<u32>],
    progress: &Progress,
) -> Result<Vec<Generated>> {
    let bar = progress
        .bar(prompts.len() as u64, "general prompts")
        .with_work(WorkKind::Behaviour, BehaviourReference::FLOPS / 2.0);
    let shared = common_prefix(prompts.iter().map(|prompt| &prompt[..]));
    let rest = prompts.iter().map(|prompt| prompt[shared.len()..].to_vec());
    let rest: Vec<Vec<u32>> = rest.collect();
    let request = Request::greedy(shared, &rest, MAX_ANSWER_TOKENS);
    let answers = generator.generate(&request, |_, _| false, &|finished| {
        bar.inc(finished as u64);
    })?;
    let only = |mut answers: Vec<Generated>| answers.swap_remove(0);
    Ok(answers.into_iter().map(only).collect())
}

/// A bar over the `rows` whose distributions are computed.
fn comparison_bar(rows: &[Example], progress: &Progress) -> Bar {
    progress
        .minor_bar(rows.len() as u64, "general prompts, KL")
        .with_work(WorkKind::Behaviour, BehaviourReference::FLOPS / 2.0)
}

/// The hidden states that predict the targets of `rows`: (P, D).
fn hidden_states(engine: &mut Engine, params: &Params, rows: &[Example]) -> Vec<f32> {
    let packed = PackedExamples::new(rows);
    engine.hidden(params, &packed.batch, &packed.positions())
}

/// SHA-256 (hex) of everything that a reference depends on: the model's files, its template and the prompts.
fn cache_key(checksum: &str, prompts: &[Vec<u32>]) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("{CACHE_VERSION} {MAX_ANSWER_TOKENS} {checksum}\n"));
    for prompt in prompts {
        hash.update(format!("{}\n", prompt.len()));
        hash.update(bytemuck::cast_slice::<u32, u8>(prompt));
    }
    let mut key = format!("{:x}", hash.finalize());
    key.truncate(32);
    key
}

/// The answers and hidden states in a file; `None` if there is none, or it is broken.
fn read_cache(path: &Path) -> Option<(Vec<Vec<u32>>, Vec<f32>)> {
    let file = TensorFile::open(path).ok()?;
    let numbers = |name: &str| -> Option<Vec<u32>> {
        let tensor = file.get(name).filter(|t| t.dtype == Dtype::U32)?;
        let (numbers, _) = tensor.bytes.as_chunks::<4>();
        Some(numbers.iter().map(|n| u32::from_le_bytes(*n)).collect())
    };
    let (lengths, tokens) = (numbers("lengths")?, numbers("tokens")?);
    let mut rest = &tokens[..];
    let mut answers = Vec::with_capacity(lengths.len());
    for length in lengths {
        let (answer, behind) = rest.split_at_checked(length as usize)?;
        answers.push(answer.to_vec());
        rest = behind;
    }
    let hidden = file.get("hidden").filter(|t| t.dtype == Dtype::F32)?;
    let (hidden, _) = hidden.bytes.as_chunks::<4>();
    let hidden = hidden.iter().map(|x| f32::from_le_bytes(*x)).collect();
    Some((answers, hidden))
}

fn write_cache(path: &Path, rows: &[Example], hidden: &[f32]) -> Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
    }
    let lengths: Vec<u32> = rows.iter().map(|row| row.target.len() as u32).collect();
    let tokens: Vec<u32> = rows.iter().flat_map(|row| &row.target).copied().collect();
    let shapes = [[lengths.len()], [tokens.len()], [hidden.len()]];
    let numbers = |shape, values| TensorView {
        dtype: Dtype::U32,
        shape,
        bytes: bytemuck::cast_slice::<u32, u8>(values),
    };
    let tensors = [
        ("lengths", numbers(&shapes[0], &lengths)),
        ("tokens", numbers(&shapes[1], &tokens)),
        ("hidden", TensorView::f32(&shapes[2], hidden)),
    ];
    let file = atomic_file::temp_file(path)?;
    let failed = |e: io::Error| Error::io("write", path)(e);
    tensor_file::write(file.path(), tensors, &[]).map_err(failed)?;
    atomic_file::persist(file, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> Model {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        Model::load(path).expect("the golden model")
    }

    #[test]
    fn there_are_200_different_prompts() {
        let mut prompts: Vec<&str> = PROMPTS.lines().collect();
        assert!(prompts.iter().all(|prompt| !prompt.trim().is_empty()));
        prompts.sort_unstable();
        prompts.dedup();
        assert_eq!(prompts.len(), 200);
    }

    #[test]
    fn a_model_behaves_as_itself_and_not_as_a_changed_one() {
        let base = model();
        let mut engine = Engine::new(&base.config);
        let quiet = Progress::quiet();
        let reference = BehaviourReference::new(&base, &mut engine, true, &quiet);
        let reference = reference.expect("no fault").expect("prompts fit");
        let same = reference.measure(&mut Generator::new(&mut engine, &base), &quiet);
        assert_eq!(same.expect("no fault").behaviour, Behaviour::UNCHANGED);

        let mut changed = model();
        changed.params.data.iter_mut().for_each(|w| *w *= 1.2);
        let report = reference.measure(&mut Generator::new(&mut engine, &changed), &quiet);
        let report = report.expect("no fault");
        assert!(report.behaviour.kl > 1e-3, "{report:?}");
        let rows = report.answers.iter();
        let kl: f64 = rows.clone().map(|r| r.kl * r.tokens_before as f64).sum();
        let tokens: usize = rows.map(|r| r.tokens_before).sum();
        assert!((kl / tokens as f64 - report.behaviour.kl).abs() < 1e-12);
    }

    #[test]
    fn a_reference_is_read_from_the_cache_as_it_was_written() {
        let place = tempfile::tempdir().expect("a temporary directory");
        let path = place.path().join("deeper/reference.safetensors");
        let rows = examples(vec![vec![1], vec![2, 3]], vec![vec![7, 8, 9], vec![4]]);
        let hidden = vec![0.5f32, -1.25, 3.0, 0.1];
        write_cache(&path, &rows, &hidden).expect("writable");
        let read = read_cache(&path).expect("as written");
        assert_eq!(read, (vec![vec![7, 8, 9], vec![4]], hidden));
        std::fs::write(&path, b"broken").expect("writable");
        assert_eq!(read_cache(&path), None);
        let key = cache_key("a", &[vec![1, 2]]);
        assert_ne!(key, cache_key("b", &[vec![1, 2]]));
        assert_ne!(key, cache_key("a", &[vec![1], vec![2]]));
    }
}
