//! `SLiCK` labels, and how they follow from a model's answers.

use serde::{Deserialize, Serialize};

use super::settings::AuditSettings;
use crate::facts::Fact;

/// How well a model knows a fact (Gekhman et al. 2024; section 2.1 of the paper).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Label {
    /// The greedy answer is correct under every few-shot prompt.
    HighlyKnown,
    /// The greedy answer is correct under some prompts.
    MaybeKnown,
    /// The greedy answer is never correct, a sample sometimes.
    WeaklyKnown,
    /// Never correct.
    Unknown,
}

impl Label {
    /// All four, best known first.
    pub const ALL: [Self; 4] = [
        Self::HighlyKnown,
        Self::MaybeKnown,
        Self::WeaklyKnown,
        Self::Unknown,
    ];

    /// The paper's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::HighlyKnown => "HighlyKnown",
            Self::MaybeKnown => "MaybeKnown",
            Self::WeaklyKnown => "WeaklyKnown",
            Self::Unknown => "Unknown",
        }
    }

    /// The label of a fact, given whether each prompt's greedy answer is correct and whether a sample is.
    pub fn new(greedy_correct: &[bool], sample_correct: bool) -> Self {
        if greedy_correct.iter().all(|correct| *correct) {
            Self::HighlyKnown
        } else if greedy_correct.contains(&true) {
            Self::MaybeKnown
        } else if sample_correct {
            Self::WeaklyKnown
        } else {
            Self::Unknown
        }
    }
}

/// A model's answer under one few-shot prompt.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AuditAnswer {
    /// Whether the greedy answer is correct.
    pub greedy_correct: bool,
    /// The first line of the greedy answer, with an ellipsis if decoding stopped because no continuation is correct.
    pub greedy: String,
    /// Probability that a sample is correct.
    pub p_sampled: f64,
}

/// The audit of one fact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditedFact {
    /// Relation.
    pub relation: String,
    /// Subject.
    pub subject: String,
    /// Question.
    pub question: String,
    /// The correct answer, as the file spells it.
    pub object: String,
    /// Its label.
    pub label: Label,
    /// Whether the greedy answer is correct, for each prompt.
    pub greedy_correct: Vec<bool>,
    /// Probability that a sample is correct, mean over prompts: the fraction of correct samples if samples were drawn, otherwise
    /// a lower bound, the sum over the accepted answers.
    pub p_sampled: f64,
    /// The first line of the greedy answer, for each prompt.
    pub answers: Vec<String>,
}

/// Labels a fact by its answers under all prompts.
///
/// Without drawn samples a fact whose greedy answer is never correct is `WeaklyKnown` if a correct answer among all samples is more
/// likely than not: `1 - prod over prompts (1 - p)^samples >= 0.5`.
pub fn label_fact(fact: &Fact, answers: Vec<AuditAnswer>, settings: &AuditSettings) -> AuditedFact {
    let greedy_correct: Vec<bool> = answers.iter().map(|a| a.greedy_correct).collect();
    let sample_correct = if settings.sample {
        answers.iter().any(|a| a.p_sampled > 0.0)
    } else {
        let samples = settings.samples as i32;
        let p_none_correct: f64 = answers
            .iter()
            .map(|a| (1.0 - a.p_sampled).max(0.0).powi(samples))
            .product();
        1.0 - p_none_correct >= 0.5
    };
    AuditedFact {
        relation: fact.relation.clone(),
        subject: fact.subject.clone(),
        question: fact.question.clone(),
        object: fact.object.clone(),
        label: Label::new(&greedy_correct, sample_correct),
        greedy_correct,
        p_sampled: answers.iter().map(|a| a.p_sampled).sum::<f64>() / answers.len().max(1) as f64,
        answers: answers.into_iter().map(|a| a.greedy).collect(),
    }
}

/// Fraction of each label among some facts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct LabelFractions {
    /// Number of facts.
    #[serde(rename = "facts")]
    pub facts: usize,
    /// Fraction of `HighlyKnown`.
    pub highly_known: f64,
    /// Fraction of `MaybeKnown`.
    pub maybe_known: f64,
    /// Fraction of `WeaklyKnown`.
    pub weakly_known: f64,
    /// Fraction of Unknown.
    pub unknown: f64,
}

impl LabelFractions {
    /// The fractions among `facts`.
    pub fn new<'a>(facts: impl Iterator<Item = &'a AuditedFact>) -> Self {
        let labels: Vec<Label> = facts.map(|f| f.label).collect();
        let fraction = |label| {
            let n = labels.iter().filter(|l| **l == label).count();
            n as f64 / labels.len().max(1) as f64
        };
        Self {
            facts: labels.len(),
            highly_known: fraction(Label::HighlyKnown),
            maybe_known: fraction(Label::MaybeKnown),
            weakly_known: fraction(Label::WeaklyKnown),
            unknown: fraction(Label::Unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_from_greedy_answers_and_samples() {
        use Label::{HighlyKnown, MaybeKnown, Unknown, WeaklyKnown};
        assert_eq!(Label::new(&[true, true], false), HighlyKnown);
        assert_eq!(Label::new(&[true, false], false), MaybeKnown);
        assert_eq!(Label::new(&[false, false], true), WeaklyKnown);
        assert_eq!(Label::new(&[false, false], false), Unknown);
        assert_eq!(
            Label::ALL.map(Label::name),
            ["HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"]
        );
    }

    #[test]
    fn a_fact_is_weakly_known_if_a_correct_sample_is_more_likely_than_not() {
        let fact = Fact::for_test("Rome", "Italy");
        let settings = AuditSettings {
            samples: 2,
            ..AuditSettings::default()
        };
        let label = |p: [f64; 2]| {
            let answers = p.map(|p_sampled| AuditAnswer {
                p_sampled,
                ..AuditAnswer::default()
            });
            label_fact(&fact, answers.into(), &settings).label
        };
        // 1 - (0.8 x 0.9)^2 = 0.48 and 1 - (0.8 x 0.8)^2 = 0.59.
        assert_eq!(label([0.2, 0.1]), Label::Unknown);
        assert_eq!(label([0.2, 0.2]), Label::WeaklyKnown);
    }
}
