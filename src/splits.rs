//! Splits: the facts that are trained and those that are only measured (section 2.1 of the paper).

mod labelled;
mod sampler;

use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use self::sampler::{SplitSampler, shuffled};
use crate::{
    Error, Result,
    audit::{FewShotPrompt, Label},
    facts::{Fact, PerSplit, Split, relation_name},
    measure,
};

pub use self::labelled::LabelledFact;

/// With fewer control facts a budget of 1 pp cannot be checked reliably: one fact is then a tenth of it or more.
pub const MIN_CONTROL_FACTS: usize = 1_000;

/// Maximum size of `D_Known` if the user gives no `keep`.
const MAX_KNOWN: usize = 8_000;

/// Relations that a line about known facts names.
const MAX_RELATIONS_SHOWN: usize = 6;

/// Maximum size of each held-out split if the user gives no `held`. The standard error of an accuracy of 90% is then 0.95 pp.
const MAX_HELD: usize = 1_000;

/// Facts from the pool that are less than `HighlyKnown` are asked as often as the held-out ones; a run asks for at most so many of each
/// label, or for this number where fewer are held out.
const MIN_LESS_KNOWN: usize = 50;

/// If held-out facts and `D_Known` come from one pool, one subject in this many is held out.
const HELD_ONE_IN: usize = 4;

/// The label of each held-out split.
const HELD_LABELS: [(Split, Label); 3] = [
    (Split::Held, Label::HighlyKnown),
    (Split::MaybeKnown, Label::MaybeKnown),
    (Split::WeaklyKnown, Label::WeaklyKnown),
];

/// The facts of a run in five splits, each in the order of the files.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Splits {
    /// `D_Known`: known before training, trained.
    pub known: Vec<LabelledFact>,
    /// `D_Unk`: new, trained.
    pub unknown: Vec<LabelledFact>,
    /// `D_Held`: known before training, never trained.
    pub held: Vec<LabelledFact>,
    /// `MaybeKnown` before training, never trained.
    pub maybe_known: Vec<LabelledFact>,
    /// `WeaklyKnown` before training, never trained.
    pub weakly_known: Vec<LabelledFact>,
    /// Held out like `held`, but used to control the budget and not reported; not part of [`Splits::iter`].
    pub control: Vec<LabelledFact>,
    /// The few-shot prompts of the audit; empty without one. A run keeps them, so that other models can be evaluated under them.
    pub prompts: Vec<FewShotPrompt>,
    /// Facts that were left out or taken from the pool, one line each.
    pub notes: Vec<String>,
    /// Wall time of the audit; 0 without one, or where its labels came from the cache.
    pub audit_seconds: f64,
}

/// Maximum size of each split, for [`Splits::paper`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitSizes {
    /// `D_Known`.
    pub known: usize,
    /// `D_Unk`.
    pub unknown: usize,
    /// `D_Held`.
    pub held: usize,
    /// Held `MaybeKnown`.
    pub maybe_known: usize,
    /// Held `WeaklyKnown`.
    pub weakly_known: usize,
    /// Reduce the larger of `D_Known` and `D_Unk` to the size of the smaller.
    pub balanced: bool,
}

/// The user's audited files: the input of [`Splits::from_audit`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AuditedFiles {
    /// The facts of `data.learn`.
    pub learn: Vec<LabelledFact>,
    /// Number of chats and texts in `data.learn`. They count when `D_Known` gets as many facts as there are new rows.
    pub texts: usize,
    /// `data.keep`, if given.
    pub keep: Option<Vec<LabelledFact>>,
    /// `data.held`, if given.
    pub held: Option<Vec<LabelledFact>>,
    /// The source of facts that the user doesn't give: the built-in pack.
    pub pool: Vec<LabelledFact>,
}

impl Splits {
    /// The facts of `split`.
    pub fn get(&self, split: Split) -> &[LabelledFact] {
        match split {
            Split::Known => &self.known,
            Split::Unknown => &self.unknown,
            Split::Held => &self.held,
            Split::MaybeKnown => &self.maybe_known,
            Split::WeaklyKnown => &self.weakly_known,
        }
    }

    fn get_mut(&mut self, split: Split) -> &mut Vec<LabelledFact> {
        match split {
            Split::Known => &mut self.known,
            Split::Unknown => &mut self.unknown,
            Split::Held => &mut self.held,
            Split::MaybeKnown => &mut self.maybe_known,
            Split::WeaklyKnown => &mut self.weakly_known,
        }
    }

    /// Appends a fact to `split`.
    pub fn push(&mut self, split: Split, fact: LabelledFact) {
        self.get_mut(split).push(fact);
    }

    /// Every fact with its split, in the order of [`Split::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (Split, &LabelledFact)> {
        Split::ALL
            .into_iter()
            .flat_map(|split| self.get(split).iter().map(move |fact| (split, fact)))
    }

    /// The index range of each split in [`Splits::iter`].
    pub fn ranges(&self) -> impl Iterator<Item = (Split, Range<usize>)> {
        let mut start = 0;
        Split::ALL.into_iter().map(move |split| {
            let range = start..start + self.get(split).len();
            start = range.end;
            (split, range)
        })
    }

    /// The index range of `split` in [`Splits::iter`].
    pub fn range(&self, split: Split) -> Range<usize> {
        let mut ranges = self.ranges();
        let found = ranges.find(|(other, _)| *other == split);
        found.expect("every split has a range").1
    }

    /// The accuracy of each split that has facts. `correct` has one entry per fact of [`Splits::iter`].
    pub fn accuracy(&self, correct: &[bool]) -> PerSplit<f64> {
        let mut accuracy = PerSplit::default();
        for (split, range) in self.ranges() {
            if let Some(value) = measure::accuracy(&correct[range]) {
                accuracy.set(split, value);
            }
        }
        accuracy
    }

    /// Which known facts are trained and which are held out, a line each: how many, and of which relations.
    pub fn known_facts(&self) -> Vec<String> {
        let named = [("trained", &self.known), ("held out", &self.held)];
        let named = named.into_iter().filter(|(_, facts)| !facts.is_empty());
        let line = |(name, facts): (&str, &Vec<LabelledFact>)| {
            let mut counts: Vec<(&str, usize)> = Vec::new();
            for fact in facts {
                let relation = &fact.fact.relation[..];
                match counts.iter_mut().find(|(known, _)| *known == relation) {
                    Some((_, count)) => *count += 1,
                    None => counts.push((relation, 1)),
                }
            }
            counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
            let shown = counts.iter().take(MAX_RELATIONS_SHOWN);
            let mut relations: Vec<String> = shown
                .map(|(relation, count)| format!("{} {count}", relation_name(relation)))
                .collect();
            if counts.len() > MAX_RELATIONS_SHOWN {
                relations.push(format!(
                    "{} more relations",
                    counts.len() - MAX_RELATIONS_SHOWN
                ));
            }
            format!(
                "known facts {name}: {} ({})",
                facts.len(),
                relations.join(", ")
            )
        };
        named.map(line).collect()
    }

    /// The splits without the new facts: the paper's Only Known.
    #[must_use]
    pub fn only_known(&self) -> Self {
        Self {
            unknown: Vec::new(),
            ..self.clone()
        }
    }

    /// Moves the facts of half of the subjects of `held` to `control`.
    ///
    /// # Errors
    /// [`Error::Input`] when fewer than two subjects are held out.
    pub fn reserve_control(&mut self, seed: u64) -> Result<()> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut subjects = shuffled(self.held.iter().map(LabelledFact::subject_key), &mut rng);
        if subjects.len() < 2 {
            return Err(Error::input_hint(
                "a forgetting budget needs held-out facts of at least two subjects: some to control the budget, others to report",
                "give known facts with `--held`, or remove the budget",
            ));
        }
        subjects.truncate(subjects.len() / 2);
        let control: HashSet<String> = subjects.into_iter().collect();
        let (control, held) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|fact| control.contains(&fact.subject_key()));
        (self.control, self.held) = (control, held);
        if self.control.len() < MIN_CONTROL_FACTS {
            self.notes.push(format!(
                "the budget is checked on {} control facts, each worth {:.2} pp: a budget of 1 pp needs {MIN_CONTROL_FACTS}",
                self.control.len(),
                100.0 / self.control.len() as f64
            ));
        }
        Ok(())
    }

    /// The files as given: nothing is filtered, balanced or taken from the pool. A held-out fact that is trained leaves the held-out
    /// ones, with a note.
    pub fn as_given(learn: Vec<Fact>, keep: Vec<Fact>, held: Vec<Fact>) -> Self {
        let unlabelled = |facts: Vec<Fact>| {
            let facts = facts.into_iter();
            facts.map(|fact| LabelledFact::new(fact, None)).collect()
        };
        let mut splits = Self {
            known: unlabelled(keep),
            unknown: unlabelled(learn),
            ..Self::default()
        };
        splits.held = splits.drop_trained(unlabelled(held));
        splits
    }

    /// `held` without the facts that are trained, with a note.
    fn drop_trained(&mut self, held: Vec<LabelledFact>) -> Vec<LabelledFact> {
        let trained = self.known.iter().chain(&self.unknown);
        let trained: HashSet<String> = trained.map(LabelledFact::question_key).collect();
        let given = held.len();
        let is_trained = |f: &LabelledFact| trained.contains(&f.question_key());
        let left: Vec<LabelledFact> = held.into_iter().filter(|f| !is_trained(f)).collect();
        let reason = "trained as well (what is trained is never counted as held out)";
        self.notes
            .extend(left_out_note("held", given - left.len(), given, reason));
        left
    }

    /// The splits of a user's own files.
    ///
    /// Every fact of `learn` is trained, whatever its label. Of `keep` the `HighlyKnown` facts are trained. `held` is divided by label.
    /// Missing sets are sampled from the pool: as many `HighlyKnown` facts as `learn` has, at most 8,000, and held-out facts of
    /// subjects that are not trained, no more `MaybeKnown` and `WeaklyKnown` ones each than `HighlyKnown` ones. Relations with a smaller fraction of `HighlyKnown` facts than `min_highly_known` are left out of
    /// all sets but `learn`.
    ///
    /// # Errors
    /// [`Error::Input`] when there is nothing to train on.
    pub fn from_audit(files: AuditedFiles, min_highly_known: f64, seed: u64) -> Result<Self> {
        let AuditedFiles {
            learn,
            texts,
            mut keep,
            mut held,
            mut pool,
        } = files;
        let mut notes = Vec::new();
        for (name, facts) in [
            ("keep", keep.as_mut()),
            ("held", held.as_mut()),
            ("pack:world", Some(&mut pool)),
        ] {
            if let Some(facts) = facts {
                notes.extend(drop_poorly_known_relations(facts, min_highly_known, name));
            }
        }

        let mut sampler = SplitSampler::new(seed);
        let unknown = sampler.take_all(learn, Split::Unknown);
        match &held {
            // Facts from the pool must not train a subject that the user holds out.
            Some(held) => sampler.assign_subjects(held, Split::Held),
            None if keep.is_none() => sampler.reserve_subjects(&pool, Split::Held, HELD_ONE_IN),
            None => {}
        }
        let known = if let Some(keep) = keep {
            let known = with_label(&keep, Label::HighlyKnown);
            let left_out = keep.len() - known.len();
            notes.extend(left_out_note(
                "keep",
                left_out,
                keep.len(),
                "not HighlyKnown",
            ));
            sampler.take_all(known, Split::Known)
        } else {
            let limit = (unknown.len() + texts).min(MAX_KNOWN);
            let known = sampler.sample(&pool, Label::HighlyKnown, Split::Known, limit);
            if known.len() < limit {
                notes.push(format!(
                    "pack:world: only {} HighlyKnown facts are available to train on; {limit} are needed",
                    known.len()
                ));
            }
            known
        };
        let mut splits = Self {
            known,
            unknown,
            notes,
            ..Self::default()
        };
        if let Some(held) = held {
            splits.hold_out(held);
        } else {
            let mut limit = MAX_HELD;
            for (split, label) in HELD_LABELS {
                *splits.get_mut(split) = sampler.sample(&pool, label, Split::Held, limit);
                limit = splits.held.len().max(MIN_LESS_KNOWN);
            }
        }
        if texts == 0 {
            splits.require_training_rows()?;
        }
        Ok(splits)
    }

    /// Divides the user's held-out facts by label, without those that are trained.
    fn hold_out(&mut self, held: Vec<LabelledFact>) {
        let held = self.drop_trained(held);
        let mut left_out = held.len();
        for (split, label) in HELD_LABELS {
            let facts = with_label(&held, label);
            left_out -= facts.len();
            *self.get_mut(split) = facts;
        }
        self.notes
            .extend(left_out_note("held", left_out, held.len(), "Unknown"));
    }

    /// The paper's splits: `HighlyKnown` and Unknown facts of `train` are trained, facts of `dev` are held out by label, and no subject is
    /// in two splits. Without `dev` a quarter of the subjects of `train` is held out.
    ///
    /// # Errors
    /// [`Error::Input`] when there is nothing to train on.
    pub fn paper(
        mut train: Vec<LabelledFact>,
        mut dev: Vec<LabelledFact>,
        sizes: SplitSizes,
        min_highly_known: f64,
        seed: u64,
    ) -> Result<Self> {
        let mut splits = Self::default();
        for (name, facts) in [("train", &mut train), ("dev", &mut dev)] {
            splits
                .notes
                .extend(drop_poorly_known_relations(facts, min_highly_known, name));
        }
        let mut sampler = SplitSampler::new(seed);
        if dev.is_empty() {
            sampler.reserve_subjects(&train, Split::Held, HELD_ONE_IN);
            dev.clone_from(&train);
        }
        splits.unknown = sampler.sample(&train, Label::Unknown, Split::Unknown, sizes.unknown);
        splits.known = sampler.sample(&train, Label::HighlyKnown, Split::Known, sizes.known);
        if sizes.balanced {
            let size = splits.known.len().min(splits.unknown.len());
            splits.known = sampler.subsample(&splits.known, size);
            splits.unknown = sampler.subsample(&splits.unknown, size);
        }
        let limits = [sizes.held, sizes.maybe_known, sizes.weakly_known];
        for ((split, label), limit) in HELD_LABELS.into_iter().zip(limits) {
            *splits.get_mut(split) = sampler.sample(&dev, label, Split::Held, limit);
        }
        splits.require_training_rows()?;
        Ok(splits)
    }

    fn require_training_rows(&self) -> Result<()> {
        if self.known.is_empty() && self.unknown.is_empty() {
            let mut message =
                "there is nothing to train on: there are no new facts and no known facts"
                    .to_owned();
            for note in &self.notes {
                message += "\n  ";
                message += note;
            }
            return Err(Error::input_hint(
                message,
                "give `data.learn` or `data.keep`, or set `data.audit = false` to use the files without filters",
            ));
        }
        Ok(())
    }
}

fn with_label(facts: &[LabelledFact], label: Label) -> Vec<LabelledFact> {
    let has_label = |f: &&LabelledFact| f.label == Some(label);
    facts.iter().filter(has_label).cloned().collect()
}

fn left_out_note(name: &str, left_out: usize, of: usize, why: &str) -> Option<String> {
    (left_out > 0).then(|| format!("{name}: {left_out} of {of} facts are {why} and are left out"))
}

/// Removes relations with a smaller fraction of `HighlyKnown` facts than `min_fraction`, with a note for each.
fn drop_poorly_known_relations(
    facts: &mut Vec<LabelledFact>,
    min_fraction: f64,
    name: &str,
) -> Vec<String> {
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for f in facts.iter() {
        let (known, all) = counts.entry(f.fact.relation.clone()).or_default();
        *known += usize::from(f.label == Some(Label::HighlyKnown));
        *all += 1;
    }
    counts.retain(|_, (known, all)| (*known as f64) < min_fraction * *all as f64);
    facts.retain(|f| !counts.contains_key(&f.fact.relation));
    counts
        .into_iter()
        .map(|(relation, (known, all))| {
            format!(
                "{name}: {relation} is left out: {known} of {all} facts are HighlyKnown, a smaller fraction than {min_fraction}"
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn fact(subject: &str, relation: &str, label: Label) -> LabelledFact {
        LabelledFact {
            fact: Fact {
                relation: relation.into(),
                question: format!("{relation} of {subject}?"),
                ..Fact::for_test(subject, "Italy")
            },
            label: Some(label),
            own_answer: Vec::new(),
            few_shot_accuracy: Some(0.5),
            few_shot_answer: None,
        }
    }

    /// `count` facts of each label, on subjects of their own.
    fn pool(prefix: &str, relation: &str, count: usize) -> Vec<LabelledFact> {
        [
            Label::HighlyKnown,
            Label::MaybeKnown,
            Label::WeaklyKnown,
            Label::Unknown,
        ]
        .into_iter()
        .flat_map(|label| {
            (0..count).map(move |i| fact(&format!("{prefix}{label:?}{i}"), relation, label))
        })
        .collect()
    }

    #[test]
    fn the_known_facts_of_a_run_are_told_by_relation() {
        let facts = |relation: &str, count| -> Vec<LabelledFact> {
            let fact = |i| fact(&format!("{relation}{i}"), relation, Label::HighlyKnown);
            (0..count).map(fact).collect()
        };
        let splits = Splits {
            known: [facts("P17", 2), facts("P36", 3)].concat(),
            held: (1..=8).flat_map(|i| facts(&format!("R{i}"), i)).collect(),
            ..Splits::default()
        };
        assert_eq!(
            splits.known_facts(),
            [
                "known facts trained: 5 (capital 3, country 2)",
                "known facts held out: 36 (R8 8, R7 7, R6 6, R5 5, R4 4, R3 3, 2 more relations)",
            ]
        );
    }

    const SIZES: SplitSizes = SplitSizes {
        known: 20,
        unknown: 30,
        held: 10,
        maybe_known: 5,
        weakly_known: 5,
        balanced: false,
    };

    fn lens(splits: &Splits) -> [usize; 5] {
        Split::ALL.map(|split| splits.get(split).len())
    }

    fn no_subject_is_in_two_splits(splits: &Splits) -> bool {
        let mut owner = HashMap::new();
        let role = |split| match split {
            Split::Known => 0,
            Split::Unknown => 1,
            _ => 2,
        };
        splits
            .iter()
            .all(|(split, f)| *owner.entry(f.subject_key()).or_insert(role(split)) == role(split))
    }

    #[test]
    fn the_papers_splits_follow_the_labels_and_share_no_subject() {
        let splits =
            Splits::paper(pool("", "P17", 40), pool("", "P17", 40), SIZES, 0.0, 3).expect("enough");
        assert_eq!(lens(&splits), [20, 30, 10, 5, 5]);
        assert!(no_subject_is_in_two_splits(&splits));
        assert!(
            splits
                .held
                .iter()
                .all(|f| f.label == Some(Label::HighlyKnown))
        );
        assert!(
            splits
                .unknown
                .iter()
                .all(|f| f.label == Some(Label::Unknown))
        );
    }

    #[test]
    fn balanced_splits_are_cut_to_the_smaller() {
        let sizes = SplitSizes {
            balanced: true,
            ..SIZES
        };
        let splits = Splits::paper(pool("", "P17", 40), pool("d", "P17", 40), sizes, 0.0, 3);
        assert_eq!(lens(&splits.expect("enough"))[..2], [20, 20]);
    }

    #[test]
    fn without_a_dev_set_a_quarter_of_the_subjects_is_held_out() {
        let splits = Splits::paper(pool("", "P17", 40), Vec::new(), SIZES, 0.0, 3).expect("enough");
        assert!(!splits.held.is_empty());
        assert!(no_subject_is_in_two_splits(&splits));
    }

    #[test]
    fn the_same_seed_gives_the_same_splits() {
        let with = |seed| {
            Splits::paper(pool("", "P17", 60), pool("d", "P17", 60), SIZES, 0.0, seed)
                .expect("enough")
        };
        assert_eq!(with(1), with(1));
        assert_ne!(with(1), with(2));
    }

    #[test]
    fn a_little_known_relation_is_left_out() {
        let mut facts = pool("a", "P17", 10);
        facts.extend((0..10).map(|i| fact(&format!("b{i}"), "P36", Label::HighlyKnown)));
        let splits = Splits::paper(facts.clone(), Vec::new(), SIZES, 0.3, 3).expect("P36 stays");
        assert!(splits.iter().all(|(_, f)| f.fact.relation == "P36"));
        assert_eq!(splits.notes.len(), 1);
    }

    #[test]
    fn every_row_to_learn_is_trained_whatever_its_label() {
        let files = AuditedFiles {
            learn: pool("new", "P17", 5),
            pool: pool("", "P17", 40),
            ..AuditedFiles::default()
        };
        let splits = Splits::from_audit(files, 0.0, 1).expect("something to learn");
        assert_eq!(lens(&splits)[..2], [20, 20]);
        assert!(!splits.held.is_empty() && !splits.maybe_known.is_empty());
        assert!(no_subject_is_in_two_splits(&splits));
    }

    #[test]
    fn files_that_are_given_are_filtered_by_label_and_never_trained_and_held_at_once() {
        let keep = pool("", "P17", 10);
        let files = AuditedFiles {
            learn: pool("new", "P17", 5),
            keep: Some(keep.clone()),
            held: Some([keep, pool("held", "P17", 10)].concat()),
            ..AuditedFiles::default()
        };
        let splits = Splits::from_audit(files, 0.0, 1).expect("something to learn");
        // Of `held` the ten known facts that are in `keep` too are trained; its Unknown ones are in no split.
        assert_eq!(lens(&splits), [10, 20, 10, 20, 20]);
        assert_eq!(splits.notes.len(), 3);
        assert!(splits.notes[1].contains("10 of 80 facts are trained as well"));
    }

    #[test]
    fn nothing_to_train_on_is_an_error() {
        let files = AuditedFiles {
            pool: pool("", "P17", 5),
            ..AuditedFiles::default()
        };
        assert!(Splits::from_audit(files, 0.0, 1).is_err());
    }
}
