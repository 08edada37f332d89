//! Greedy answers and the probability of a right sample without drawing one: a walk over the tree of accepted answers.
//!
//! Every few-shot prefix is read once, every question once behind it. From there two kinds of branches grow, token by
//! token and all facts side by side: the beginnings of accepted forms, and the greedy answer. While the greedy answer
//! is itself such a beginning they are one branch, so that a right answer is proved without being generated.

use serde::{Deserialize, Serialize};

use super::{
    AuditSettings,
    answer_trie::{AnswerTrie, StopTokens},
};
use crate::{
    engine::{KvCache, SegmentId},
    facts::{AnswerScorer, AnswerVerdict},
    generate::{Generator, argmax, cache_slots, distribution, split_by_budget},
};

/// A beginning of an accepted form that a sample takes with a smaller probability is not followed.
///
/// What is cut off is less than this for each branch, far below what tells `WeaklyKnown` from Unknown: 0.002 a sample
/// at 20 prompts of 16 samples.
const MIN_BRANCH_PROBABILITY: f64 = 1e-5;

/// Questions that are walked side by side.
const MAX_BATCH_QUERIES: usize = 512;

/// Cache slots beyond its own tokens that a question is given in the estimate of a batch.
const BRANCH_TOKENS: usize = 12;

/// One question behind one few-shot prefix.
pub struct Query<'a> {
    /// Which of the prefixes.
    pub prefix: usize,
    /// Tokens of the question.
    pub question: &'a [u32],
    /// Accepted answers.
    pub trie: &'a AnswerTrie,
    /// What is right.
    pub scorer: &'a AnswerScorer,
}

/// What the model says to a question.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AuditAnswer {
    /// The greedy answer is right.
    pub greedy_correct: bool,
    /// The greedy answer up to its first line break; with an ellipsis where decoding stopped because it is surely wrong.
    pub greedy: String,
    /// Probability that a sample is right.
    pub p_sampled: f64,
}

/// A branch, read up to its newest token.
struct Branch {
    query: usize,
    segment: SegmentId,
    /// Where in the forms; none once the greedy answer has left them.
    node: Option<usize>,
    /// Probability that a sample begins like this.
    probability: f64,
    /// Tokens so far, where this is the greedy answer.
    greedy_tokens: Option<Vec<u32>>,
}

/// What the logits behind a branch say.
struct NextTokens {
    /// The most likely token.
    argmax: u32,
    /// Probability that a sample ends the line here, and rightly.
    p_correct: f64,
    /// Probability that a sample goes on to a node: its token, the node, the probability.
    children: Vec<(u32, usize, f64)>,
}

/// What all questions of an audit have in common.
pub struct QueryRunner<'a, 'm> {
    /// Decodes.
    pub generator: Generator<'m>,
    /// Which tokens end a line.
    pub stop_tokens: &'a StopTokens,
    /// Temperature, top-k and whether wrong answers are written out.
    pub settings: &'a AuditSettings,
    /// Tokens after which a greedy answer ends at the latest.
    pub max_new_tokens: usize,
}

impl QueryRunner<'_, '_> {
    /// Asks every question, behind the prefix of `prefixes` (as tokens) that its [`Query::prefix`] names.
    ///
    /// Questions of one prefix should lie together. `finished` is told how many were finished since the last time.
    pub fn answer_analytically(
        &mut self,
        prefixes: &[Vec<u32>],
        queries: &[Query<'_>],
        on_progress: &(dyn Fn(usize) + Sync),
    ) -> Vec<AuditAnswer> {
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
                .map(|(asked, segment)| Branch {
                    query: asked,
                    segment,
                    node: Some(AnswerTrie::ROOT),
                    probability: 1.0,
                    greedy_tokens: Some(Vec::new()),
                })
                .collect();
            while !branches.is_empty() {
                let engine = &mut *self.generator.engine;
                let seen = engine.logits(self.generator.params, &hidden, |i, logits| {
                    next_tokens(
                        logits,
                        &branches[i],
                        queries,
                        self.stop_tokens,
                        self.settings,
                    )
                });
                let mut extended = Vec::new();
                for (branch, seen) in branches.into_iter().zip(seen) {
                    let (question, answer) = (&queries[branch.query], &mut answers[branch.query]);
                    answer.p_sampled += branch.probability * seen.p_correct;
                    self.extend_branch(branch, seen, question, answer, &mut extended);
                }
                (branches, hidden) = self.advance(&mut cache, extended);
            }
            on_progress(batch.len());
        }
        answers
    }

    /// Reads the newest token of each branch, in a segment of its own behind the one that the branch has grown from.
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

    /// The branches that go on from `branch`: its likely enough forms, and the greedy answer while it is open.
    fn extend_branch(
        &self,
        branch: Branch,
        next: NextTokens,
        question: &Query<'_>,
        answer: &mut AuditAnswer,
        extended: &mut Vec<(u32, Branch)>,
    ) {
        let mut greedy = branch
            .greedy_tokens
            .and_then(|tokens| self.extend_greedy(tokens, next.argmax, question, answer));
        for (token, node, p) in next.children {
            let p = branch.probability * p;
            let greedy = greedy.take_if(|_| token == next.argmax);
            if greedy.is_some() || p >= MIN_BRANCH_PROBABILITY {
                let node = Some(node);
                extended.push((
                    token,
                    Branch {
                        node,
                        probability: p,
                        greedy_tokens: greedy,
                        ..branch
                    },
                ));
            }
        }
        if greedy.is_some() {
            let (node, p) = (None, 0.0);
            extended.push((
                next.argmax,
                Branch {
                    node,
                    probability: p,
                    greedy_tokens: greedy,
                    ..branch
                },
            ));
        }
    }

    /// The greedy answer with one more token; none once it has ended, when `answer` has it.
    fn extend_greedy(
        &self,
        mut tokens: Vec<u32>,
        best: u32,
        question: &Query<'_>,
        answer: &mut AuditAnswer,
    ) -> Option<Vec<u32>> {
        tokens.push(best);
        let text = self.generator.tokenizer.decode(&tokens);
        let ended = self.stop_tokens.contains(best);
        let wrong = || question.scorer.verdict(&text) == AnswerVerdict::Wrong;
        if !ended && tokens.len() < self.max_new_tokens && (self.settings.full_answers || !wrong())
        {
            return Some(tokens);
        }
        answer.greedy_correct = question.scorer.is_correct(&text);
        answer.greedy = first_line_text(&text, ended);
        None
    }
}

/// What the logits behind `branch` say of it.
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
    let Query {
        trie: forms,
        scorer: judge,
        ..
    } = queries[branch.query];
    for (token, p) in distribution(logits, settings.temperature, settings.top_k) {
        if let Some(rest) = stop_tokens.text_before_break(token) {
            if judge.is_correct(&format!("{}{rest}", forms.text(node))) {
                next.p_correct += p;
            }
        } else if let Some(child) = forms.child(node, token) {
            next.children.push((token, child, p));
        }
    }
    next
}

/// The first line of a greedy answer; with an ellipsis where decoding did not reach its end.
pub fn first_line_text(text: &str, ended: bool) -> String {
    let line = text.split('\n').next().unwrap_or_default().trim();
    let ellipsis = if ended || text.contains('\n') {
        ""
    } else {
        "\u{2026}"
    };
    format!("{line}{ellipsis}")
}
