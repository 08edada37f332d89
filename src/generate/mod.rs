//! Batched decoding over the engine: prompts of different lengths, a shared prefix that is computed once, stop rules, greedy and
//! sampled.
//!
//! Results do not depend on batching (up to rounding): every row and sample has its own random stream.

use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::{
    Error, Result,
    distributed::Comm,
    engine::{Batch, Engine, KvCache, Outputs, SegmentId, topk},
    interrupt,
    model::{Model, ModelConfig, Params, TextTokenizer},
};

mod sampling;

pub use sampling::{argmax, distribution, log_sum_exp, sample_at_quantile};

/// New tokens per call of the engine: enough for efficient matmuls, few enough to bound its memory.
pub const MAX_BATCH_TOKENS: usize = 2048;

/// Size of the KV cache.
pub const KV_CACHE_BYTES: usize = 256 << 20;

/// Sequences that are decoded together.
const MAX_SEQUENCES: usize = 512;

/// Tokens at the end of a row that a message quotes.
const QUOTED_TOKENS: usize = 16;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 means greedy.
    pub temperature: f32,
    /// 0 means the whole vocabulary.
    pub top_k: usize,
    /// Random seed.
    pub seed: u64,
}

impl SamplingParams {
    /// The most likely token at every step (ties: the lowest id).
    pub const GREEDY: Self = Self {
        temperature: 0.0,
        top_k: 0,
        seed: 0,
    };
}

/// Prompts, and how to continue them.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Tokens before every prompt. Their keys and values are computed once.
    pub prefix: &'a [u32],
    /// Token ids of the prompts.
    pub prompts: &'a [Vec<u32>],
    /// Maximum number of new tokens per row.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Continuations per prompt.
    pub samples: usize,
    /// If set: return log-probabilities, and this many of the most likely tokens at each position.
    pub logprobs: Option<usize>,
}

impl<'a> Request<'a> {
    /// One greedy continuation of each prompt.
    pub fn greedy(prefix: &'a [u32], prompts: &'a [Vec<u32>], max_new_tokens: usize) -> Self {
        Self {
            prefix,
            prompts,
            max_new_tokens,
            sampling: SamplingParams::GREEDY,
            samples: 1,
            logprobs: None,
        }
    }
}

/// A token of a continuation, with log-probabilities (nats) at temperature 1 over the whole vocabulary.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// The token.
    pub id: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// The most likely tokens at this position with their log-probabilities, most likely first.
    pub top: Vec<(u32, f32)>,
}

/// One generated continuation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Generated {
    /// Its tokens, including an end token.
    pub tokens: Vec<u32>,
    /// Its text, without the end token.
    pub text: String,
    /// One entry per token if log-probabilities were requested, else empty.
    pub logprobs: Vec<TokenLogprob>,
}

/// The parts of a model that decoding needs.
pub struct Generator<'a> {
    /// The engine.
    pub engine: &'a mut Engine,
    /// Shape.
    pub config: &'a ModelConfig,
    /// Weights.
    pub params: &'a Params,
    /// Tokenizer.
    pub tokenizer: &'a TextTokenizer,
}

/// A continuation that is being decoded.
struct Sequence {
    row: usize,
    sample: usize,
    segment: SegmentId,
    max_tokens: usize,
    rng: ChaCha8Rng,
    out: Generated,
}

/// Continuations that are decoded together.
struct DecodingBatch {
    sequences: Vec<Sequence>,
    /// The hidden state of the last token of each sequence: (sequences, D).
    hidden: Vec<f32>,
}

impl<'a> Generator<'a> {
    /// Decoding with `model`.
    pub fn new(engine: &'a mut Engine, model: &'a Model) -> Self {
        Self {
            engine,
            config: &model.config,
            params: &model.params,
            tokenizer: &model.tokenizer,
        }
    }

    /// The processes that share the work.
    pub fn comm(&self) -> Comm {
        self.engine.comm()
    }

    /// Continues every prompt, `samples` times each. Results are in the order of the prompts.
    ///
    /// A row ends at an end token, at the end of the model's context, or when `should_stop(row, text so far)` returns true; an
    /// incomplete character at the end of the text is withheld. `on_finished` receives the number of prompts that were finished since
    /// its last call.
    ///
    /// ```
    /// use unforget::{engine::Engine, generate::{Generator, Request}, model::Model};
    ///
    /// let model = Model::load("tests/golden/llama")?;
    /// let mut engine = Engine::new(&model.config);
    /// let prompts = [model.tokenizer.encode_prompt("Q: Where is Oslo?\nA:")?];
    /// let answers = Generator::new(&mut engine, &model).generate(
    ///     &Request::greedy(&[], &prompts, 8),
    ///     |_, text| text.contains('\n'),
    ///     &|_| {},
    /// )?;
    /// assert!(answers[0][0].tokens.len() <= 8);
    /// # Ok::<(), unforget::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Input`] if a prompt does not fit into the model's context, or is empty and the tokenizer has no beginning-of-text token;
    /// [`Error::Failed`] if the model's logits are not finite; [`Error::Interrupted`] if the user interrupts.
    pub fn generate(
        &mut self,
        request: &Request<'_>,
        should_stop: impl Fn(usize, &str) -> bool + Sync,
        on_finished: &(dyn Fn(usize) + Sync),
    ) -> Result<Vec<Vec<Generated>>> {
        let (prefix, prompts) = self.nonempty_prompts(request.prefix, request.prompts)?;
        let mut results: Vec<_> = prompts
            .iter()
            .map(|_| vec![Generated::default(); request.samples])
            .collect();
        for (row, prompt) in prompts.iter().enumerate() {
            self.check_row(row, prefix.len() + prompt.len() + 1, &[&prefix, prompt])?;
        }
        if request.max_new_tokens == 0 || request.samples == 0 {
            return Ok(results);
        }

        let request = &Request {
            prefix: &prefix,
            prompts: &prompts,
            ..*request
        };
        let mut cache = KvCache::new(self.config);
        let prefix = (!prefix.is_empty()).then(|| {
            let segment = cache.open(None, prefix.len());
            self.prefill(&mut cache, &[(segment, &prefix)]);
            segment
        });
        let mark = cache.mark();
        // A continuation needs a slot for every token but the last.
        let costs: Vec<usize> = prompts
            .iter()
            .flat_map(|p| std::iter::repeat_n(p.len() + request.max_new_tokens, request.samples))
            .collect();
        for batch in batch_by_cost(&costs, self.cache_tokens(), MAX_SEQUENCES) {
            interrupt::check(self.comm())?;
            cache.release(mark);
            let sequences = self.open_sequences(&mut cache, prefix, request, &batch);
            for sequence in self.decode(&mut cache, sequences, request, &should_stop)? {
                results[sequence.row][sequence.sample] = sequence.out;
            }
            let last = request.samples - 1;
            on_finished(
                batch
                    .iter()
                    .filter(|i| *i % request.samples == last)
                    .count(),
            );
        }
        Ok(results)
    }

    /// Prefills the prompts of a batch of continuations, each given as row * samples + sample. The samples of a row share its prompt.
    fn open_sequences(
        &mut self,
        cache: &mut KvCache,
        prefix: Option<SegmentId>,
        request: &Request<'_>,
        batch: &[usize],
    ) -> DecodingBatch {
        let prompts = request.prompts;
        let mut rows: Vec<usize> = batch.iter().map(|i| i / request.samples).collect();
        rows.sort_unstable();
        rows.dedup();
        let segments: Vec<(SegmentId, &[u32])> = rows
            .iter()
            .map(|r| (cache.open(prefix, prompts[*r].len()), &prompts[*r][..]))
            .collect();
        let row_hidden = self.prefill(cache, &segments);

        let d = self.config.hidden_size;
        let mut hidden = Vec::with_capacity(batch.len() * d);
        let mut sequences = Vec::with_capacity(batch.len());
        for pair in batch {
            let (row, sample) = (pair / request.samples, pair % request.samples);
            let i = rows.partition_point(|r| *r < row);
            let used = request.prefix.len() + prompts[row].len();
            let left = self.config.max_position_embeddings - used;
            let max_tokens = request.max_new_tokens.min(left);
            let mut rng = ChaCha8Rng::seed_from_u64(request.sampling.seed);
            rng.set_stream(((row as u64) << 24) + sample as u64);
            hidden.extend_from_slice(&row_hidden[i * d..][..d]);
            sequences.push(Sequence {
                row,
                sample,
                segment: cache.open(Some(segments[i].0), max_tokens),
                max_tokens,
                rng,
                out: Generated::default(),
            });
        }
        DecodingBatch { sequences, hidden }
    }

    /// Decodes token by token until all sequences have ended. Returns them in the order in which they ended.
    fn decode(
        &mut self,
        cache: &mut KvCache,
        batch: DecodingBatch,
        request: &Request<'_>,
        should_stop: &impl Fn(usize, &str) -> bool,
    ) -> Result<Vec<Sequence>> {
        let DecodingBatch {
            mut sequences,
            mut hidden,
        } = batch;
        let mut ended = Vec::with_capacity(sequences.len());
        loop {
            let quantiles: Vec<f64> = sequences.iter_mut().map(|s| s.rng.random()).collect();
            let tokens = self.logits(&hidden, |i, logits| {
                next_token(logits, request, quantiles[i])
            })?;
            let mut unfinished = Vec::with_capacity(sequences.len());
            for (mut sequence, token) in sequences.into_iter().zip(tokens) {
                let newest = token.id;
                sequence.out.tokens.push(newest);
                if request.logprobs.is_some() {
                    sequence.out.logprobs.push(token);
                }
                if self.ends(&mut sequence, newest, should_stop) {
                    ended.push(sequence);
                } else {
                    unfinished.push(sequence);
                }
            }
            sequences = unfinished;
            if sequences.is_empty() {
                return Ok(ended);
            }
            let new: Vec<(SegmentId, &[u32])> = sequences
                .iter()
                .map(|s| (s.segment, &s.out.tokens[s.out.tokens.len() - 1..]))
                .collect();
            hidden = self.engine.extend(self.params, cache, &new, Outputs::Last);
        }
    }

    /// Updates the text of a sequence, and returns whether it ends with its newest token.
    fn ends(
        &self,
        sequence: &mut Sequence,
        newest: u32,
        should_stop: &impl Fn(usize, &str) -> bool,
    ) -> bool {
        if self.tokenizer.eos_token_ids.contains(&newest) {
            return true;
        }
        sequence.out.text = self.tokenizer.decode(&sequence.out.tokens);
        let complete = sequence
            .out
            .text
            .trim_end_matches(char::REPLACEMENT_CHARACTER);
        should_stop(sequence.row, complete) || sequence.out.tokens.len() == sequence.max_tokens
    }

    /// Log-probability (nats, temperature 1) of every completion token given its prompt, in one teacher-forced pass.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub fn score(
        &mut self,
        rows: &[(Vec<u32>, Vec<u32>)],
        on_finished: &(dyn Fn(usize) + Sync),
    ) -> Result<Vec<Vec<f32>>> {
        let prompts: Vec<Vec<u32>> = rows.iter().map(|(p, _)| p.clone()).collect();
        let (_, prompts) = self.nonempty_prompts(&[], &prompts)?;
        let mut lengths = Vec::with_capacity(rows.len());
        for (row, (prompt, (_, completion))) in prompts.iter().zip(rows).enumerate() {
            lengths.push(prompt.len() + completion.len());
            self.check_row(row, prompt.len() + completion.len(), &[prompt, completion])?;
        }
        let mut results: Vec<Vec<f32>> = rows.iter().map(|_| Vec::new()).collect();
        for rows_of_batch in batch_by_cost(&lengths, MAX_BATCH_TOKENS, usize::MAX) {
            let mut batch = Batch::new();
            let (mut positions, mut targets) = (Vec::new(), Vec::new());
            for row in rows_of_batch
                .iter()
                .copied()
                .filter(|r| !rows[*r].1.is_empty())
            {
                let (prompt, completion) = (&prompts[row], &rows[row].1);
                // The prediction after the last token is not needed.
                let input = &completion[..completion.len() - 1];
                let at = batch.push(prompt.iter().chain(input).copied());
                positions.extend(at.start + prompt.len() - 1..at.end);
                targets.extend(completion.iter().map(|token| (row, *token)));
            }
            let hidden = self.engine.hidden(self.params, &batch, &positions);
            let logprobs = self.logits(&hidden, |i, logits| {
                logits[targets[i].1 as usize] - log_sum_exp(logits)
            })?;
            for ((row, _), logprob) in targets.iter().zip(logprobs) {
                results[*row].push(logprob);
            }
            on_finished(rows_of_batch.len());
        }
        Ok(results)
    }

    /// As [`Engine::logits`], of a model whose logits must be finite: nothing can be said about any other.
    ///
    /// # Errors
    /// [`Error::Failed`] if one of them is not.
    pub(crate) fn logits<R: Send>(
        &mut self,
        hidden: &[f32],
        f: impl Fn(usize, &mut [f32]) -> R + Sync,
    ) -> Result<Vec<R>> {
        let results = self.engine.logits(self.params, hidden, |i, logits| {
            // Without a branch per value.
            let is_finite = logits.iter().fold(true, |all, x| all & x.is_finite());
            is_finite.then(|| f(i, logits))
        });
        if let Some(error) = self.engine.take_device_error() {
            return Err(error);
        }
        let results: Option<Vec<R>> = results.into_iter().collect();
        results.ok_or_else(|| Error::Failed {
            message: "the model's logits are not finite".into(),
            hint: Some(
                "its weights are too large or broken: check where it is from; a model that was just trained has diverged: lower `train.learning_rate`".into(),
            ),
        })
    }

    /// Appends tokens to segments, at most [`MAX_BATCH_TOKENS`] per call, and returns the hidden state of the last token of each row:
    /// (rows, D).
    pub fn prefill(&mut self, cache: &mut KvCache, rows: &[(SegmentId, &[u32])]) -> Vec<f32> {
        let mut tails = Vec::with_capacity(rows.len());
        for (segment, tokens) in rows {
            let tail = (tokens.len() - 1) / MAX_BATCH_TOKENS * MAX_BATCH_TOKENS;
            for chunk in tokens[..tail].chunks(MAX_BATCH_TOKENS) {
                let _ = self
                    .engine
                    .extend(self.params, cache, &[(*segment, chunk)], Outputs::Last);
            }
            tails.push((*segment, &tokens[tail..]));
        }
        let lengths: Vec<usize> = tails.iter().map(|(_, tokens)| tokens.len()).collect();
        split_by_budget(&lengths, MAX_BATCH_TOKENS, usize::MAX)
            .flat_map(|call| {
                self.engine
                    .extend(self.params, cache, &tails[call], Outputs::Last)
            })
            .collect()
    }

    /// Prefills `rows`, each given as the index of its prefix and its tokens (rows of one prefix are adjacent). Each prefix is computed
    /// once. Returns the segments of the rows, and the hidden states of their last tokens: (rows, D).
    pub fn prefill_with_prefix(
        &mut self,
        cache: &mut KvCache,
        prefixes: &[Vec<u32>],
        rows: &[(usize, &[u32])],
    ) -> (Vec<SegmentId>, Vec<f32>) {
        let mut used: Vec<usize> = rows.iter().map(|(prefix, _)| *prefix).collect();
        used.dedup();
        let opened: Vec<Option<SegmentId>> = used
            .iter()
            .map(|p| (!prefixes[*p].is_empty()).then(|| cache.open(None, prefixes[*p].len())))
            .collect();
        let prefix_rows: Vec<(SegmentId, &[u32])> = opened
            .iter()
            .zip(&used)
            .filter_map(|(segment, p)| Some(((*segment)?, &prefixes[*p][..])))
            .collect();
        self.prefill(cache, &prefix_rows);

        let mut at = 0;
        let opened_rows: Vec<(SegmentId, &[u32])> = rows
            .iter()
            .map(|(prefix, tokens)| {
                at += usize::from(*prefix != used[at]);
                (cache.open(opened[at], tokens.len()), *tokens)
            })
            .collect();
        let hidden = self.prefill(cache, &opened_rows);
        (
            opened_rows.iter().map(|(segment, _)| *segment).collect(),
            hidden,
        )
    }

    /// Capacity of the KV cache, in tokens.
    pub fn cache_tokens(&self) -> usize {
        let c = self.config;
        let bytes = c.num_hidden_layers * c.num_key_value_heads * c.head_dim * 2 * size_of::<f32>();
        (KV_CACHE_BYTES / bytes).max(1)
    }

    /// The prefix and the prompts, changed so that every prompt has at least one token. An empty prompt takes the last token of the prefix
    /// (as do all others then), or the beginning-of-text token if there is no prefix.
    fn nonempty_prompts(
        &self,
        prefix: &[u32],
        prompts: &[Vec<u32>],
    ) -> Result<(Vec<u32>, Vec<Vec<u32>>)> {
        let Some(empty) = prompts.iter().position(Vec::is_empty) else {
            return Ok((prefix.to_vec(), prompts.to_vec()));
        };
        if let [rest @ .., last] = prefix {
            let prompts = prompts.iter().map(|p| [&[*last], &p[..]].concat());
            return Ok((rest.to_vec(), prompts.collect()));
        }
        let bos = self.bos_token().ok_or_else(|| {
            Error::input_hint(
                format!(
                    "prompt {} is empty, and this model's tokenizer has no beginning-of-text token",
                    empty + 1
                ),
                "give a prompt with at least one character",
            )
        })?;
        let prompts = prompts.iter().map(|p| match &p[..] {
            [] => vec![bos],
            tokens => tokens.to_vec(),
        });
        Ok((Vec::new(), prompts.collect()))
    }

    /// `bos_token` of the tokenizer's configuration.
    fn bos_token(&self) -> Option<u32> {
        let token = self.tokenizer.config_json.get("bos_token")?;
        let text = token.get("content").unwrap_or(token).as_str()?;
        self.tokenizer.inner.token_to_id(text)
    }

    /// The end of a row's text, for messages.
    fn quoted_end(&self, parts: &[&[u32]]) -> String {
        let tokens = parts.concat();
        let end = &tokens[tokens.len().saturating_sub(QUOTED_TOKENS)..];
        self.tokenizer.decode(end).trim().escape_debug().to_string()
    }

    /// Returns an error if a row does not fit into the context, or has a token that is not in the vocabulary.
    pub(crate) fn check_row(&self, row: usize, length: usize, parts: &[&[u32]]) -> Result<()> {
        let context = self.config.max_position_embeddings;
        if length > context {
            return Err(Error::input_hint(
                format!(
                    "row {} needs {length} tokens, but the model's context is {context}; it ends with `{}`",
                    row + 1,
                    self.quoted_end(parts)
                ),
                "shorten the text, or use a model with a longer context; the prompts of an audit have examples before the question (`data.audit.shots`)",
            ));
        }
        let beyond = |id: &&u32| **id as usize >= self.config.vocab_size;
        match parts.iter().copied().flatten().find(beyond) {
            None => Ok(()),
            Some(id) => {
                let place = format_args!("row {}", row + 1);
                let vocab_size = self.config.vocab_size;
                Err(self.tokenizer.beyond_vocabulary(*id, vocab_size, &place))
            }
        }
    }
}

/// The next token of a sequence, sampled at `quantile`.
fn next_token(logits: &[f32], request: &Request<'_>, quantile: f64) -> TokenLogprob {
    let SamplingParams {
        temperature, top_k, ..
    } = request.sampling;
    let id = if temperature == 0.0 {
        argmax(logits)
    } else {
        sampling::sample_at_quantile(&distribution(logits, temperature, top_k), quantile)
    };
    let (logprob, top) = request.logprobs.map_or((0.0, Vec::new()), |n| {
        let z = log_sum_exp(logits);
        let top = topk(logits, n).into_iter().map(|(id, x)| (id, x - z));
        (logits[id as usize] - z, top.collect())
    });
    TokenLogprob { id, logprob, top }
}

/// Cache slots that each row of [`Generator::prefill_with_prefix`] takes, plus `more`. A prefix is counted with its first row.
pub fn cache_slots(prefixes: &[Vec<u32>], rows: &[(usize, &[u32])], more: usize) -> Vec<usize> {
    rows.iter()
        .enumerate()
        .map(|(i, (prefix, tokens))| {
            let first = i == 0 || rows[i - 1].0 != *prefix;
            let before = if first { prefixes[*prefix].len() } else { 0 };
            before + tokens.len() + more
        })
        .collect()
}

/// Splits a list into consecutive ranges with a total cost of at most `budget` and at most `max_len` members, but at least one member.
pub fn split_by_budget(
    costs: &[usize],
    budget: usize,
    max_len: usize,
) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    std::iter::from_fn(move || {
        let mut sum = *costs.get(start)?;
        let mut end = start + 1;
        while end < costs.len() && end - start < max_len && sum + costs[end] <= budget {
            sum += costs[end];
            end += 1;
        }
        Some(std::mem::replace(&mut start, end)..end)
    })
}

/// Batches of row indices with similar costs, the most expensive first, within the limits of [`split_by_budget`].
pub fn batch_by_cost(costs: &[usize], budget: usize, max_len: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(costs[*i]));
    let sorted: Vec<usize> = order.iter().map(|i| costs[*i]).collect();
    split_by_budget(&sorted, budget, max_len)
        .map(|run| order[run].to_vec())
        .collect()
}

/// The longest common prefix of all rows that leaves each row at least one token.
pub fn common_prefix<'a>(mut rows: impl Iterator<Item = &'a [u32]>) -> &'a [u32] {
    let Some(first) = rows.next() else {
        return &[];
    };
    let longest = &first[..first.len().saturating_sub(1)];
    rows.fold(longest, |shared, row| {
        let same = shared.iter().zip(row).take_while(|(a, b)| a == b).count();
        &shared[..same.min(row.len().saturating_sub(1))]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_row_once_within_the_budget() {
        let costs = [5, 9, 1, 1, 30, 4, 4];
        let parts = batch_by_cost(&costs, 10, 2);
        assert_eq!(parts, [vec![4], vec![1], vec![0, 5], vec![6, 2], vec![3]]);
        assert!(batch_by_cost(&[], 10, 2).is_empty());
    }

    #[test]
    fn rows_share_a_prefix_but_keep_a_token_each() {
        let rows: [&[u32]; 3] = [&[1, 2, 3, 4], &[1, 2, 9], &[1, 2, 3]];
        assert_eq!(common_prefix(rows.into_iter()), [1, 2]);
        assert_eq!(common_prefix([&[7u32, 8][..]].into_iter()), [7]);
        assert_eq!(common_prefix([&[7u32][..], &[7]].into_iter()), [0u32; 0]);
    }
}
