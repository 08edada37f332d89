//! A fact with its label.

use serde::{Deserialize, Serialize};

use crate::{
    audit::{AuditedFact, Label},
    facts::Fact,
    measure,
};

/// A fact with its label by the audit of the base model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LabelledFact {
    /// The fact.
    pub fact: Fact,
    /// The label; `None` without an audit.
    pub label: Option<Label>,
    /// Fraction of few-shot prompts whose greedy answer is correct; `None` without an audit.
    pub few_shot_accuracy: Option<f64>,
    /// A greedy answer under a few-shot prompt: a correct one if the fact counts as known, otherwise a wrong one, which may end in
    /// an ellipsis; `None` without an audit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub few_shot_answer: Option<String>,
    /// Token ids of the base model's own answer in a chat, end token included, which is trained in place of the object; empty where
    /// the object is trained.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own_answer: Vec<u32>,
}

impl LabelledFact {
    /// A fact with its audit, if there is one.
    pub fn new(fact: Fact, audited: Option<&AuditedFact>) -> Self {
        let few_shot_accuracy = audited.and_then(|a| measure::accuracy(&a.greedy_correct));
        let known = measure::known_before(few_shot_accuracy, false, false);
        let few_shot_answer = audited.and_then(|a| {
            let answers = a.answers.iter().zip(&a.greedy_correct);
            let mut with_verdict = answers.filter(|(_, correct)| **correct == known);
            with_verdict.next().map(|(text, _)| text.clone())
        });
        Self {
            fact,
            own_answer: Vec::new(),
            label: audited.map(|a| a.label),
            few_shot_accuracy,
            few_shot_answer,
        }
    }

    /// Whether the audit found the fact known, see [`measure::known_before`]; `None` without an audit.
    pub fn known_at_audit(&self) -> Option<bool> {
        let accuracy = self.few_shot_accuracy?;
        Some(measure::known_before(Some(accuracy), false, false))
    }

    /// The subject as it is compared: two facts about one subject have the same key. A fact without one is about its question.
    pub(super) fn subject_key(&self) -> String {
        if self.fact.subject.is_empty() {
            return self.question_key();
        }
        self.fact.subject.trim().to_lowercase()
    }

    /// The question as it is compared.
    pub(super) fn question_key(&self) -> String {
        self.fact.question.trim().to_lowercase()
    }
}
