//! Greedy answers and the probability of a right sample without drawing one: a walk over the tree of accepted answers.
//!
//! Every few-shot prefix is read once, every question once behind it. From there two kinds of branches grow, token by
//! token and all facts side by side: the beginnings of accepted forms, and the greedy answer. While the greedy answer
//! is itself such a beginning they are one branch, so that a right answer is proved without being generated.

use serde::{Deserialize, Serialize};

use super::{
    AuditSettings,
    forms::{Forms, LineEnds},
};
use crate::{
    engine::{KvCache, SegmentId},
    facts::{Judge, Verdict},
    generate::{Generator, argmax, distribution, runs_within, slots_behind},
};

/// A beginning of an accepted form that a sample takes with a smaller probability is not followed.
///
/// What is cut off is less than this for each branch, far below what tells `WeaklyKnown` from Unknown: 0.002 a sample
/// at 20 prompts of 16 samples.
const NEGLIGIBLE: f64 = 1e-5;

/// Questions that are walked side by side.
const MAX_QUESTIONS: usize = 512;

/// Cache slots beyond its own tokens that a question is given in the estimate of a batch.
const BRANCH_TOKENS: usize = 12;

/// One question behind one few-shot prefix.
pub struct Asked<'a> {
    /// Which of the prefixes.
    pub prefix: usize,
    /// Tokens of the question.
    pub question: &'a [u32],
    /// Accepted answers.
    pub forms: &'a Forms,
    /// What is right.
    pub judge: &'a Judge,
}

/// What the model says to a question.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// The greedy answer is right.
    pub greedy_right: bool,
    /// The greedy answer up to its first line break; with an ellipsis where decoding stopped because it is surely wrong.
    pub greedy: String,
    /// Probability that a sample is right.
    pub p_sampled: f64,
}

/// A branch, read up to its newest token.
struct Branch {
    asked: usize,
    segment: SegmentId,
    /// Where in the forms; none once the greedy answer has left them.
    node: Option<usize>,
    /// Probability that a sample begins like this.
    p: f64,
    /// Tokens so far, where this is the greedy answer.
    greedy: Option<Vec<u32>>,
}

/// What the logits behind a branch say.
struct Seen {
    /// The most likely token.
    best: u32,
    /// Probability that a sample ends the line here, and rightly.
    p_right: f64,
    /// Probability that a sample goes on to a node: its token, the node, the probability.
    children: Vec<(u32, usize, f64)>,
}

/// What all questions of an audit have in common.
pub struct Examiner<'a, 'm> {
    /// Decodes.
    pub generator: Generator<'m>,
    /// Which tokens end a line.
    pub ends: &'a LineEnds,
    /// Temperature, top-k and whether wrong answers are written out.
    pub settings: &'a AuditSettings,
    /// Tokens after which a greedy answer ends at the latest.
    pub max_new_tokens: usize,
}

impl Examiner<'_, '_> {
    /// Asks every question, behind the prefix of `prefixes` (as tokens) that its [`Asked::prefix`] names.
    ///
    /// Questions of one prefix should lie together. `finished` is told how many were finished since the last time.
    pub fn ask(
        &mut self,
        prefixes: &[Vec<u32>],
        asked: &[Asked<'_>],
        finished: &(dyn Fn(usize) + Sync),
    ) -> Vec<Answer> {
        let mut answers = vec![Answer::default(); asked.len()];
        let rows: Vec<(usize, &[u32])> = asked.iter().map(|a| (a.prefix, a.question)).collect();
        let costs = slots_behind(prefixes, &rows, BRANCH_TOKENS);
        let mut cache = KvCache::new(self.generator.config);
        for batch in runs_within(&costs, self.generator.cache_tokens(), MAX_QUESTIONS) {
            cache.release(0);
            let (segments, mut hidden) =
                self.generator
                    .read_behind(&mut cache, prefixes, &rows[batch.clone()]);
            let mut branches: Vec<Branch> = batch
                .clone()
                .zip(segments)
                .map(|(asked, segment)| Branch {
                    asked,
                    segment,
                    node: Some(Forms::ROOT),
                    p: 1.0,
                    greedy: Some(Vec::new()),
                })
                .collect();
            while !branches.is_empty() {
                let engine = &mut *self.generator.engine;
                let seen = engine.logits(self.generator.params, &hidden, |i, logits| {
                    look(logits, &branches[i], asked, self.ends, self.settings)
                });
                let mut grown = Vec::new();
                for (branch, seen) in branches.into_iter().zip(seen) {
                    let (question, answer) = (&asked[branch.asked], &mut answers[branch.asked]);
                    answer.p_sampled += branch.p * seen.p_right;
                    self.grow(branch, seen, question, answer, &mut grown);
                }
                (branches, hidden) = self.read_tokens(&mut cache, grown);
            }
            finished(batch.len());
        }
        answers
    }

    /// Reads the newest token of each branch, in a segment of its own behind the one that the branch has grown from.
    fn read_tokens(
        &mut self,
        cache: &mut KvCache,
        grown: Vec<(u32, Branch)>,
    ) -> (Vec<Branch>, Vec<f32>) {
        let (tokens, mut branches): (Vec<u32>, Vec<Branch>) = grown.into_iter().unzip();
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
    fn grow(
        &self,
        branch: Branch,
        seen: Seen,
        question: &Asked<'_>,
        answer: &mut Answer,
        grown: &mut Vec<(u32, Branch)>,
    ) {
        let mut greedy = branch
            .greedy
            .and_then(|tokens| self.grow_greedy(tokens, seen.best, question, answer));
        for (token, node, p) in seen.children {
            let p = branch.p * p;
            let greedy = greedy.take_if(|_| token == seen.best);
            if greedy.is_some() || p >= NEGLIGIBLE {
                let node = Some(node);
                grown.push((
                    token,
                    Branch {
                        node,
                        p,
                        greedy,
                        ..branch
                    },
                ));
            }
        }
        if greedy.is_some() {
            let (node, p) = (None, 0.0);
            grown.push((
                seen.best,
                Branch {
                    node,
                    p,
                    greedy,
                    ..branch
                },
            ));
        }
    }

    /// The greedy answer with one more token; none once it has ended, when `answer` has it.
    fn grow_greedy(
        &self,
        mut tokens: Vec<u32>,
        best: u32,
        question: &Asked<'_>,
        answer: &mut Answer,
    ) -> Option<Vec<u32>> {
        tokens.push(best);
        let text = self.generator.tokenizer.decode(&tokens);
        let ended = self.ends.contains(best);
        let lost = || question.judge.verdict(&text) == Verdict::Wrong;
        if !ended && tokens.len() < self.max_new_tokens && (self.settings.whole_answers || !lost())
        {
            return Some(tokens);
        }
        answer.greedy_right = question.judge.is_right(&text);
        answer.greedy = written(&text, ended);
        None
    }
}

/// What the logits behind `branch` say of it.
fn look(
    logits: &[f32],
    branch: &Branch,
    asked: &[Asked<'_>],
    ends: &LineEnds,
    settings: &AuditSettings,
) -> Seen {
    let mut seen = Seen {
        best: argmax(logits),
        p_right: 0.0,
        children: Vec::new(),
    };
    let Some(node) = branch.node else {
        return seen;
    };
    let Asked { forms, judge, .. } = asked[branch.asked];
    for (token, p) in distribution(logits, settings.temperature, settings.top_k) {
        if let Some(rest) = ends.before_break(token) {
            if judge.is_right(&format!("{}{rest}", forms.text(node))) {
                seen.p_right += p;
            }
        } else if let Some(child) = forms.child(node, token) {
            seen.children.push((token, child, p));
        }
    }
    seen
}

/// The first line of a greedy answer; with an ellipsis where decoding did not reach its end.
pub fn written(text: &str, ended: bool) -> String {
    let line = text.split('\n').next().unwrap_or_default().trim();
    let ellipsis = if ended || text.contains('\n') {
        ""
    } else {
        "\u{2026}"
    };
    format!("{line}{ellipsis}")
}
