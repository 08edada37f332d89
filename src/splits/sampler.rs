//! Random samples of facts for the splits.

use std::collections::HashMap;

use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use super::labelled::LabelledFact;
use crate::{audit::Label, facts::Split};

/// Samples facts so that no subject is in two splits.
pub(super) struct SplitSampler {
    rng: ChaCha8Rng,
    /// The split of each subject that has one.
    split_of_subject: HashMap<String, Split>,
}

impl SplitSampler {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            split_of_subject: HashMap::new(),
        }
    }

    /// Assigns the subjects of `facts` to `split`, unless they have a split.
    pub(super) fn assign_subjects(&mut self, facts: &[LabelledFact], split: Split) {
        for fact in facts {
            self.split_of_subject
                .entry(fact.subject_key())
                .or_insert(split);
        }
    }

    /// All of `facts`; their subjects are assigned to `split`.
    pub(super) fn take_all(&mut self, facts: Vec<LabelledFact>, split: Split) -> Vec<LabelledFact> {
        self.assign_subjects(&facts, split);
        facts
    }

    /// Assigns one in `one_in` of the subjects without a split to `split`.
    pub(super) fn reserve_subjects(&mut self, facts: &[LabelledFact], split: Split, one_in: usize) {
        let free = facts
            .iter()
            .map(LabelledFact::subject_key)
            .filter(|subject| !self.split_of_subject.contains_key(subject));
        let mut subjects = shuffled(free, &mut self.rng);
        subjects.truncate(subjects.len().div_ceil(one_in));
        self.split_of_subject
            .extend(subjects.into_iter().map(|subject| (subject, split)));
    }

    /// A random sample of at most `limit` facts with this label whose subject is in no other split.
    pub(super) fn sample(
        &mut self,
        from: &[LabelledFact],
        label: Label,
        split: Split,
        limit: usize,
    ) -> Vec<LabelledFact> {
        let free: Vec<LabelledFact> = from
            .iter()
            .filter(|f| f.label == Some(label))
            .filter(|f| {
                self.split_of_subject
                    .get(&f.subject_key())
                    .is_none_or(|s| *s == split)
            })
            .cloned()
            .collect();
        let picked = self.subsample(&free, limit);
        self.take_all(picked, split)
    }

    /// A random sample of `size` facts, in their order.
    pub(super) fn subsample(&mut self, facts: &[LabelledFact], size: usize) -> Vec<LabelledFact> {
        let mut chosen: Vec<usize> = (0..facts.len()).collect();
        chosen.shuffle(&mut self.rng);
        chosen.truncate(size);
        chosen.sort_unstable();
        chosen.into_iter().map(|i| facts[i].clone()).collect()
    }
}

/// Each subject once, in an order that depends on `rng` and not on the order of the facts.
pub(super) fn shuffled(
    subjects: impl Iterator<Item = String>,
    rng: &mut ChaCha8Rng,
) -> Vec<String> {
    let mut subjects: Vec<String> = subjects.collect();
    subjects.sort_unstable();
    subjects.dedup();
    subjects.shuffle(rng);
    subjects
}
