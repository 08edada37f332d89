//! Drift of a model at held-out facts, compared to new facts (section 5.2 and appendix F of the paper).
//!
//! H(x): the residual stream after l layers at the last token of the subject of x, at the training prompt; `cos` is the cosine
//! similarity of two of them. z(x), p(x): logits and probabilities of the first answer token. `T_k(x)`: its k most likely tokens.
//! Subscript 0: the reference model. P: the pairs of a new fact u and a held-out fact h with the same answer; `I`: `T_k(h)` of the
//! reference model.
//!
//! ```text
//! RD       = mean over h of 1 - cos(H_0(h), H(h))                                                  (eq. 4)
//! NS       = mean over all ordered pairs (h, h') of |cos(H(h), H(h')) - cos(H_0(h), H_0(h'))|      (eq. 6)
//! MTD      = mean over all pairs (h, u) of cos(H(h), H(u)) - cos(H_0(h), H_0(u))                   (eq. 7)
//! Rank-rho = mean over P of Spearman's rho of z(u) and z_0(h), both over I                         (eq. 8)
//! NTR      = mean over P of |intersection of T_k(u), T_k(h)| / k                                     (eq. 9)
//! JSD      = mean over P of JSD(p(u) || p_0(h)), both renormalised over I, in nats                 (eq. 10)
//! ```

use std::{collections::HashMap, fmt};

use serde::{Deserialize, Serialize};

use super::{
    sample,
    subjects::{SubjectPrompts, middle_layer},
};
use crate::{
    Error, Result,
    engine::{Engine, matmul, topk},
    facts::Fact,
    model::Model,
    progress::Progress,
    prompt::PromptTemplate,
};

/// Pairs of facts to average over; of more, a seeded sample.
const MAX_PAIRS: usize = 1_000_000;

/// Default of k, as in the paper.
const DEFAULT_TOKENS: usize = 76;

/// Settings of the drift measures.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DriftSettings {
    /// l; default: half of the layers.
    pub layer: Option<usize>,
    /// k; default: 76, or the vocabulary size if that is smaller.
    pub tokens: Option<usize>,
    /// Seed of the samples of pairs.
    pub seed: u64,
    /// Prompt template.
    pub template: PromptTemplate,
}

/// The drift of a model from a reference, at all held-out facts or at one; a measure is `None` where no fact or pair defines it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// Representational drift of held-out subjects: 0 to 2 (eq. 4).
    pub rd: Option<f64>,
    /// Neighbourhood shift among held-out subjects: 0 to 2 (eq. 6).
    pub ns: Option<f64>,
    /// Drift of held-out subjects toward new ones (negative: away from them): -2 to 2 (eq. 7).
    pub mtd: Option<f64>,
    /// Rank correlation of a new fact's logits with a held-out fact's logits before: -1 to 1 (eq. 8).
    pub rank_rho: Option<f64>,
    /// Fraction of top tokens that a new and a held-out fact share: 0 to 1 (eq. 9).
    pub ntr: Option<f64>,
    /// Jensen-Shannon divergence of a new fact's distribution from a held-out fact's before, in nats: 0 to ln 2 (eq. 10).
    pub jsd: Option<f64>,
    /// Number of pairs of a new and a held-out fact with the same answer, over which the last three are averaged.
    pub pairs: usize,
}

impl Drift {
    /// Each measure with its name in the paper, in the paper's order.
    pub fn named(&self) -> [(&'static str, Option<f64>); 6] {
        [
            ("RD", self.rd),
            ("NS", self.ns),
            ("MTD", self.mtd),
            ("Rank-rho", self.rank_rho),
            ("NTR", self.ntr),
            ("JSD", self.jsd),
        ]
    }
}

impl fmt::Display for Drift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let formatted = self
            .named()
            .into_iter()
            .filter_map(|(name, value)| Some(format!("{name} {:.4}", value?)));
        f.write_str(&formatted.collect::<Vec<_>>().join(", "))
    }
}

/// Tokenized new and held-out facts, to measure the drift of several models.
pub struct DriftProbe {
    new: SubjectPrompts,
    held: SubjectPrompts,
    layer: usize,
    tokens: usize,
    /// P: for each new fact the indices of the held-out facts paired with it.
    pairs: Vec<Vec<usize>>,
    /// The held-out facts that NS compares with each other.
    ns_sample: Vec<usize>,
}

/// States and top tokens of the reference model.
pub struct DriftReference {
    /// H of the new facts, unit vectors: (U, D).
    new: Vec<f32>,
    /// H of the held-out facts, unit vectors: (N, D).
    held: Vec<f32>,
    /// I of every held-out fact.
    top_tokens: Vec<TopTokens>,
}

/// The k most likely tokens of one prompt.
struct TopTokens {
    /// In descending order of logits.
    tokens: Vec<u32>,
    /// Ranks of their logits.
    ranks: Vec<f64>,
    /// Their probabilities, renormalized.
    probabilities: Vec<f64>,
}

impl DriftProbe {
    /// Tokenizes the facts and selects pairs.
    ///
    /// # Errors
    /// [`Error::Input`] for a layer or number of tokens out of range, or a question longer than the model's context.
    pub fn new(
        model: &Model,
        engine: &mut Engine,
        [new, held]: [&[Fact]; 2],
        settings: &DriftSettings,
    ) -> Result<Self> {
        let (layers, vocabulary) = (model.config.num_hidden_layers, model.config.vocab_size);
        let layer = settings.layer.unwrap_or_else(|| middle_layer(model));
        if layer > layers {
            return Err(Error::input_hint(
                format!(
                    "layer {layer} is out of range: {} has {layers} layers",
                    model.name
                ),
                format!("use 0 (embeddings) to {layers}; the default is half of the layers"),
            ));
        }
        let tokens = settings.tokens.unwrap_or(DEFAULT_TOKENS.min(vocabulary));
        if !(1..=vocabulary).contains(&tokens) {
            return Err(Error::input_hint(
                format!(
                    "cannot compare the top {tokens} tokens: {} has {vocabulary}",
                    model.name
                ),
                format!("use 1 to {vocabulary}; the default is {DEFAULT_TOKENS}"),
            ));
        }
        settings.template.validate()?;
        Ok(Self {
            pairs: same_answer_pairs(new, held, MAX_PAIRS, settings.seed),
            ns_sample: sample(held.len(), MAX_PAIRS.isqrt(), settings.seed),
            new: SubjectPrompts::new(new, model, engine, &settings.template)?,
            held: SubjectPrompts::new(held, model, engine, &settings.template)?,
            layer,
            tokens,
        })
    }

    /// Computes the states of the reference model.
    pub fn reference(
        &self,
        engine: &mut Engine,
        model: &Model,
        progress: &Progress,
    ) -> DriftReference {
        let answers = self.held.answer_states(engine, model, progress);
        let top_tokens = engine.logits(&model.params, &answers, |_, logits| {
            let top = topk(logits, self.tokens);
            let z: Vec<f32> = top.iter().map(|(_, z)| *z).collect();
            TopTokens {
                tokens: top.iter().map(|(id, _)| *id).collect(),
                ranks: ranks(&z),
                probabilities: softmax(&z),
            }
        });
        DriftReference {
            new: self.new.subject_states(engine, model, self.layer, progress),
            held: self
                .held
                .subject_states(engine, model, self.layer, progress),
            top_tokens,
        }
    }

    /// The drift of `model` from the reference model, which must have the same shapes.
    pub fn drift(
        &self,
        engine: &mut Engine,
        model: &Model,
        before: &DriftReference,
        progress: &Progress,
    ) -> Drift {
        let facts = self.fact_drifts(engine, model, before, progress);
        let pairs = PairSums::total(facts.iter().map(|fact| fact.pairs));
        Drift {
            rd: mean(facts.iter().map(|fact| fact.rd)),
            ns: mean(facts.iter().filter_map(|fact| fact.ns)),
            mtd: mean(facts.iter().filter_map(|fact| fact.mtd)),
            ..pairs.means(self.tokens)
        }
    }

    /// The drift at each held-out fact. [`Self::drift`] is the mean over facts for RD, NS and MTD, and the mean over all pairs for
    /// Rank-rho, NTR and JSD.
    pub fn drift_per_fact(
        &self,
        engine: &mut Engine,
        model: &Model,
        before: &DriftReference,
        progress: &Progress,
    ) -> Vec<Drift> {
        let facts = self
            .fact_drifts(engine, model, before, progress)
            .into_iter();
        let drift = |fact: FactDrift| Drift {
            rd: Some(fact.rd),
            ns: fact.ns,
            mtd: fact.mtd,
            ..fact.pairs.means(self.tokens)
        };
        facts.map(drift).collect()
    }

    fn fact_drifts(
        &self,
        engine: &mut Engine,
        model: &Model,
        before: &DriftReference,
        progress: &Progress,
    ) -> Vec<FactDrift> {
        let d = model.config.hidden_size;
        let new = self.new.subject_states(engine, model, self.layer, progress);
        let held = self
            .held
            .subject_states(engine, model, self.layer, progress);
        let ns = self.ns_per_fact(&held, &before.held, d);
        let pairs = self.pair_sums(engine, model, before, progress);
        // The mean cosine with all new facts (unit vectors) is the product with their mean.
        let centres = mean_row(&new, d).zip(mean_row(&before.new, d));
        let rows = held.chunks_exact(d).zip(before.held.chunks_exact(d));
        rows.zip(ns.into_iter().zip(pairs))
            .map(|((now, then), (ns, pairs))| FactDrift {
                rd: 1.0 - dot(now, then) / (dot(now, now) * dot(then, then)).sqrt(),
                ns,
                mtd: centres
                    .as_ref()
                    .map(|(new, before)| dot_mean(now, new) - dot_mean(then, before)),
                pairs,
            })
            .collect()
    }

    /// NS at each held-out fact: the mean over those it is compared with; `None` for a fact outside the sample.
    fn ns_per_fact(&self, held: &[f32], before: &[f32], d: usize) -> Vec<Option<f64>> {
        let n = self.ns_sample.len();
        let cosines = |states: &[f32]| {
            let rows: Vec<f32> = self
                .ns_sample
                .iter()
                .flat_map(|row| &states[row * d..][..d])
                .copied()
                .collect();
            let mut cosines = vec![0.0; n * n];
            matmul::forward(&mut cosines, &rows, &rows, [n, n, d], false);
            cosines
        };
        let (now, then) = (cosines(held), cosines(before));
        let mut ns = vec![None; self.held.len()];
        let rows = now.chunks_exact(n.max(1)).zip(then.chunks_exact(n.max(1)));
        for (row, (now, then)) in self.ns_sample.iter().zip(rows) {
            ns[*row] = mean(now.iter().zip(then).map(|(a, b)| f64::from((a - b).abs())));
        }
        ns
    }

    /// The sums of Rank-rho, NTR and JSD over the pairs of each held-out fact.
    fn pair_sums(
        &self,
        engine: &mut Engine,
        model: &Model,
        before: &DriftReference,
        progress: &Progress,
    ) -> Vec<PairSums> {
        let mut sums = vec![PairSums::default(); self.held.len()];
        if self.pairs.iter().all(Vec::is_empty) {
            return sums;
        }
        let top = |logits: &[f32]| {
            let top = topk(logits, self.tokens).into_iter();
            let mut ids: Vec<u32> = top.map(|(id, _)| id).collect();
            ids.sort_unstable();
            ids
        };
        let held = self.held.answer_states(engine, model, progress);
        let held = engine.logits(&model.params, &held, |_, logits| top(logits));
        let new = self.new.answer_states(engine, model, progress);
        let new_sums = engine.logits(&model.params, &new, |u, logits| {
            if self.pairs[u].is_empty() {
                return Vec::new();
            }
            let own = top(logits);
            let with =
                |h: &usize| PairSums::from_pair(logits, &own, &held[*h], &before.top_tokens[*h]);
            self.pairs[u].iter().map(with).collect()
        });
        for (pairs, found) in self.pairs.iter().zip(&new_sums) {
            for (h, pair) in pairs.iter().zip(found) {
                sums[*h].add(*pair);
            }
        }
        sums
    }
}

/// Drift at one held-out fact.
struct FactDrift {
    /// 1 - cos(`H_0`, H).
    rd: f64,
    /// See [`DriftProbe::ns_per_fact`].
    ns: Option<f64>,
    /// The mean over all new facts of cos(H, H(u)) - cos(`H_0`, `H_0(u)`); `None` without new facts.
    mtd: Option<f64>,
    pairs: PairSums,
}

/// Sums over pairs.
#[derive(Clone, Copy, Default)]
struct PairSums {
    rho: f64,
    /// Pairs that have a rank correlation; it is undefined if all logits are equal.
    num_ranked: usize,
    num_shared: f64,
    jsd: f64,
    pairs: usize,
}

impl PairSums {
    /// The sums of one pair: a new fact with its `logits` (V) and top tokens `new`, and a held-out fact with its top tokens now
    /// (`held`) and in the reference model (`before`). `new` and `held` are ascending.
    fn from_pair(logits: &[f32], new: &[u32], held: &[u32], before: &TopTokens) -> Self {
        let tokens = before.tokens.iter();
        let z: Vec<f32> = tokens.map(|id| logits[*id as usize]).collect();
        let rho = pearson(&ranks(&z), &before.ranks);
        let in_common = new.iter().filter(|id| held.binary_search(id).is_ok());
        Self {
            rho: rho.unwrap_or_default(),
            num_ranked: usize::from(rho.is_some()),
            num_shared: in_common.count() as f64,
            jsd: jensen_shannon(&softmax(&z), &before.probabilities),
            pairs: 1,
        }
    }

    fn add(&mut self, other: Self) {
        self.rho += other.rho;
        self.num_ranked += other.num_ranked;
        self.num_shared += other.num_shared;
        self.jsd += other.jsd;
        self.pairs += other.pairs;
    }

    fn total(parts: impl Iterator<Item = Self>) -> Self {
        let mut all = Self::default();
        for part in parts {
            all.add(part);
        }
        all
    }

    /// Rank-rho, NTR (k being `tokens`) and JSD.
    fn means(&self, tokens: usize) -> Drift {
        let over = |sum: f64, count: usize| (count > 0).then(|| sum / count as f64);
        Drift {
            rank_rho: over(self.rho, self.num_ranked),
            ntr: over(self.num_shared, self.pairs).map(|n| n / tokens as f64),
            jsd: over(self.jsd, self.pairs),
            pairs: self.pairs,
            ..Drift::default()
        }
    }
}

/// For each new fact the held-out facts with the same answer; of more than `max` pairs in total, a seeded sample.
fn same_answer_pairs(new: &[Fact], held: &[Fact], max: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut by_answer: HashMap<String, Vec<usize>> = HashMap::new();
    for (i, fact) in held.iter().enumerate() {
        by_answer.entry(fact.target()).or_default().push(i);
    }
    let partners: Vec<&[usize]> = new
        .iter()
        .map(|fact| by_answer.get(&fact.target()).map_or(&[][..], |held| held))
        .collect();
    // Pairs are numbered in the order of the new facts.
    let all: usize = partners.iter().map(|held| held.len()).sum();
    let mut chosen = sample(all, max, seed).into_iter().peekable();
    let mut first = 0;
    partners
        .into_iter()
        .map(|held| {
            let own = std::iter::from_fn(|| chosen.next_if(|pair| *pair < first + held.len()));
            let own = own.map(|pair| held[pair - first]).collect();
            first += held.len();
            own
        })
        .collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum()
}

/// The dot product of a row and a mean of rows.
fn dot_mean(row: &[f32], mean: &[f64]) -> f64 {
    row.iter().zip(mean).map(|(a, b)| f64::from(*a) * b).sum()
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0);
    for value in values {
        sum += value;
        count += 1;
    }
    (count > 0).then(|| sum / f64::from(count))
}

/// The mean of rows (N, D); `None` of no rows.
fn mean_row(rows: &[f32], d: usize) -> Option<Vec<f64>> {
    let mut sum = vec![0.0; d];
    for row in rows.chunks_exact(d) {
        sum.iter_mut()
            .zip(row)
            .for_each(|(s, x)| *s += f64::from(*x));
    }
    let n = (rows.len() / d) as f64;
    (n > 0.0).then(|| sum.into_iter().map(|s| s / n).collect())
}

/// Ranks from 1 in ascending order; ties get the mean of their ranks, as in `scipy.stats.rankdata`.
fn ranks(values: &[f32]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for equal in order.chunk_by(|a, b| values[*a] == values[*b]) {
        let rank = before as f64 + f64::midpoint(1.0, equal.len() as f64);
        for i in equal {
            ranks[*i] = rank;
        }
        before += equal.len();
    }
    ranks
}

/// Pearson correlation; of ranks, it is Spearman's rho. `None` if one side is constant.
fn pearson(a: &[f64], b: &[f64]) -> Option<f64> {
    let n = a.len() as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a - mean_a, b - mean_b);
        ab += a * b;
        aa += a * a;
        bb += b * b;
    }
    (aa > 0.0 && bb > 0.0).then(|| ab / (aa * bb).sqrt())
}

fn softmax(logits: &[f32]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f64> = logits.iter().map(|z| f64::from(z - top).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|w| w / sum).collect()
}

/// JSD(p || q) = (KL(p || m) + KL(q || m)) / 2 with m = (p + q) / 2, in nats (Lin 1991).
fn jensen_shannon(p: &[f64], q: &[f64]) -> f64 {
    let kl = |p: f64, m: f64| if p > 0.0 { p * (p / m).ln() } else { 0.0 };
    let terms = p.iter().zip(q).map(|(&p, &q)| {
        let m = f64::midpoint(p, q);
        f64::midpoint(kl(p, m), kl(q, m))
    });
    terms.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_correlation_with_ties_equals_scipys() {
        let json = include_str!("../../tests/golden/drift/drift.json");
        let golden: serde_json::Value = serde_json::from_str(json).expect("it is committed");
        for case in golden["ties"].as_array().expect("a list") {
            let values = |of: &str| -> Vec<f32> {
                let values = case[of].as_array().expect("a list").iter();
                values
                    .map(|x| x.as_f64().expect("a number") as f32)
                    .collect()
            };
            let rho = pearson(&ranks(&values("a")), &ranks(&values("b")));
            let theirs = case["rho"].as_f64().expect("a number");
            assert!((rho.expect("not constant") - theirs).abs() < 1e-12);
        }
        assert_eq!(pearson(&ranks(&[2.0, 2.0]), &ranks(&[1.0, 2.0])), None);
    }

    #[test]
    fn pairs_have_the_same_answer_and_are_sampled() {
        let facts = |objects: &[&str]| -> Vec<Fact> {
            let facts = objects.iter().enumerate();
            facts
                .map(|(i, o)| Fact::for_test(&format!("{o}{i}"), o))
                .collect()
        };
        let (new, held) = (
            facts(&["Italy", "Peru", "USA"]),
            facts(&["Peru", "Italy", "Italy", "United States"]),
        );
        assert_eq!(
            same_answer_pairs(&new, &held, 100, 0),
            [vec![1, 2], vec![0], vec![3]]
        );
        let some = same_answer_pairs(&new, &held, 2, 0);
        assert_eq!(some.iter().map(Vec::len).sum::<usize>(), 2);
        assert_eq!(some, same_answer_pairs(&new, &held, 2, 0));
        assert!(
            some.iter()
                .zip(same_answer_pairs(&new, &held, 100, 0))
                .all(|(some, all)| some.iter().all(|h| all.contains(h)))
        );
    }
}
