//! Greedy answers and the probability of a correct sample, computed without sampling by a search of the tries of accepted answers.
//!
//! Every few-shot prefix is prefilled once, and every question once after it. From there branches are extended token by token, in
//! one batch for many queries: the prefixes of accepted answers, and the greedy answer. While the greedy answer is a prefix of an
//! accepted one, the two are one branch.

use super::{
    answer_trie::{AnswerTrie, StopTokens},
    label::AuditAnswer,
    queries::{Query, QueryRunner, first_line_text},
    settings::AuditSettings,
};
use crate::{
    Result,
    engine::{KvCache, SegmentId},
    facts::AnswerVerdict,
    generate::{argmax, cache_slots, distribution, split_by_budget},
};

/// A branch that a sample takes with a smaller probability is not extended.
///
/// The probability mass lost in a branch is far below the threshold between `WeaklyKnown` and Unknown: 0.002 a sample with 20 prompts
/// of 16 samples.
const MIN_BRANCH_PROBABILITY: f64 = 1e-5;

/// Maximum number of queries in a batch.
const MAX_BATCH_QUERIES: usize = 512;

/// KV cache slots that a query is assumed to need beyond its own tokens.
const BRANCH_TOKENS: usize = 12;

/// A branch whose tokens are all in the KV cache.
struct Branch {
    query: usize,
    segment: SegmentId,
    /// Its node in the trie; `None` once the greedy answer has left it.
    node: Option<usize>,
    /// Probability that a sample begins with this branch.
    probability: f64,
    /// Its tokens, if it is the greedy answer.
    greedy_tokens: Option<Vec<u32>>,
}

/// The continuations of a branch, from its logits.
struct NextTokens {
    /// The most likely token.
    argmax: u32,
    /// Probability that a sample ends the line here with a correct answer.
    p_correct: f64,
    /// Children in the trie: token, node and probability.
    children: Vec<(u32, usize, f64)>,
}

impl QueryRunner<'_, '_> {
    /// Answers every query; [`AuditAnswer::p_sampled`] is computed from the logits.
    ///
    /// Queries with the same prefix should be adjacent. `on_progress` receives the number of queries finished since its last call.
    ///
    /// # Errors
    /// [`crate::Error::Failed`] when the model's logits are not finite.
    pub fn answer_analytically(
        &mut self,
        prefixes: &[Vec<u32>],
        queries: &[Query<'_>],
        on_progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Vec<AuditAnswer>> {
        let mut answers = vec![AuditAnswer::default(); queries.len()];
        let rows: Vec<(usize, &[u32])> = queries.iter().map(|a| (a.prefix, a.question)).collect();
        let costs = cache_slots(prefixes, &rows, BRANCH_TOKENS);
        let mut cache = KvCache::new(self.generator.config);
        for batch in split_by_budget(&costs, self.generator.cache_tokens(), MAX_BATCH_QUERIES) {
            cache.release(0);
            let (segments, mut hidden) =
                self.generator
                    .prefill_with_prefix(&mut cache, prefixes, &rows[batch.clone()]);
            let mut branches: Vec<Branch> = batch
                .clone()
                .zip(segments)
                .map(|(query, segment)| Branch {
                    query,
                    segment,
                    node: Some(AnswerTrie::ROOT),
                    probability: 1.0,
                    greedy_tokens: Some(Vec::new()),
                })
                .collect();
            while !branches.is_empty() {
                let (stop_tokens, settings) = (self.stop_tokens, self.settings);
                let next = self.generator.logits(&hidden, |i, logits| {
                    next_tokens(logits, &branches[i], queries, stop_tokens, settings)
                })?;
                let mut extended = Vec::new();
                for (branch, next) in branches.into_iter().zip(next) {
                    let (query, answer) = (&queries[branch.query], &mut answers[branch.query]);
                    answer.p_sampled += branch.probability * next.p_correct;
                    self.extend_branch(branch, next, query, answer, &mut extended);
                }
                (branches, hidden) = self.advance(&mut cache, extended);
            }
            on_progress(batch.len());
        }
        Ok(answers)
    }

    /// Prefills the newest token of each branch in a new segment, and returns the branches with their hidden states.
    fn advance(
        &mut self,
        cache: &mut KvCache,
        extended: Vec<(u32, Branch)>,
    ) -> (Vec<Branch>, Vec<f32>) {
        let (tokens, mut branches): (Vec<u32>, Vec<Branch>) = extended.into_iter().unzip();
        for branch in &mut branches {
            branch.segment = cache.open(Some(branch.segment), 1);
        }
        let rows: Vec<(SegmentId, &[u32])> = branches
            .iter()
            .zip(tokens.chunks(1))
            .map(|(branch, token)| (branch.segment, token))
            .collect();
        let hidden = self.generator.prefill(cache, &rows);
        (branches, hidden)
    }

    /// Adds the continuations of `branch` to `extended`: its likely children in the trie, and the greedy answer until it ends.
    fn extend_branch(
        &self,
        branch: Branch,
        next: NextTokens,
        query: &Query<'_>,
        answer: &mut AuditAnswer,
        extended: &mut Vec<(u32, Branch)>,
    ) {
        let mut greedy = branch
            .greedy_tokens
            .and_then(|tokens| self.extend_greedy(tokens, next.argmax, query, answer));
        for (token, node, p) in next.children {
            let probability = branch.probability * p;
            let greedy = greedy.take_if(|_| token == next.argmax);
            if greedy.is_some() || probability >= MIN_BRANCH_PROBABILITY {
                let child = Branch {
                    node: Some(node),
                    probability,
                    greedy_tokens: greedy,
                    ..branch
                };
                extended.push((token, child));
            }
        }
        if greedy.is_some() {
            let outside = Branch {
                node: None,
                probability: 0.0,
                greedy_tokens: greedy,
                ..branch
            };
            extended.push((next.argmax, outside));
        }
    }

    /// The greedy answer with one more token. Once it has ended it is stored in `answer`, and `None` returned.
    fn extend_greedy(
        &self,
        mut tokens: Vec<u32>,
        token: u32,
        query: &Query<'_>,
        answer: &mut AuditAnswer,
    ) -> Option<Vec<u32>> {
        tokens.push(token);
        let text = self.generator.tokenizer.decode(&tokens);
        let ended = self.stop_tokens.contains(token);
        let wrong = || query.scorer.verdict(&text) == AnswerVerdict::Wrong;
        if !ended && tokens.len() < self.max_new_tokens && (self.settings.full_answers || !wrong())
        {
            return Some(tokens);
        }
        answer.greedy_correct = query.scorer.is_correct(&text);
        answer.greedy = first_line_text(&text, ended);
        None
    }
}

/// The continuations of `branch`, from its `logits`.
fn next_tokens(
    logits: &[f32],
    branch: &Branch,
    queries: &[Query<'_>],
    stop_tokens: &StopTokens,
    settings: &AuditSettings,
) -> NextTokens {
    let mut next = NextTokens {
        argmax: argmax(logits),
        p_correct: 0.0,
        children: Vec::new(),
    };
    let Some(node) = branch.node else {
        return next;
    };
    let Query { trie, scorer, .. } = queries[branch.query];
    for (token, p) in distribution(logits, settings.temperature, settings.top_k) {
        if let Some(rest) = stop_tokens.text_before_break(token) {
            if scorer.is_correct(&format!("{}{rest}", trie.text(node))) {
                next.p_correct += p;
            }
        } else if let Some(child) = trie.child(node, token) {
            next.children.push((token, child, p));
        }
    }
    next
}
