//! `splits.jsonl`: the facts of a run and the base model's answers, from which a resumed run starts.

use serde::{Deserialize, Serialize};

use crate::{
    Result,
    facts::Fact,
    measure::Neighbour,
    run::{RunDir, Split},
    splits::{LabelledFact, Splits},
};

/// The file of the facts of a run and of the base model's answers.
pub(crate) const SPLITS: &str = "splits.jsonl";

/// A row of `splits.jsonl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SplitRecord {
    split: Split,
    #[serde(flatten)]
    fact: LabelledFact,
    #[serde(flatten)]
    baseline: Baseline,
    /// A control fact: evaluated for the budget, not reported.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    control: bool,
}

/// What the base model knows of a fact.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Baseline {
    /// The answer under a few-shot prompt; without an audit at the training prompt.
    pub answer_before: String,
    /// Whether the audit found the fact known; without an audit whether the answer is correct.
    pub correct_before: bool,
    /// Whether the answer at the training prompt is correct.
    pub correct_at_start: bool,
    /// Fields of [`crate::run::FactResult`].
    #[serde(flatten)]
    pub display: FactDisplay,
}

/// Data about a fact that a report shows in addition to its answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct FactDisplay {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p_before: Option<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nearest: Vec<Neighbour>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pca: Option<[f32; 2]>,
}

/// The rows of `splits.jsonl` for these facts; `baseline` is in the order of [`Splits::iter`].
pub(super) fn split_records(
    splits: &Splits,
    baseline: &[Baseline],
) -> impl Iterator<Item = SplitRecord> {
    let facts = splits.iter().zip(baseline);
    let facts = facts.map(|((split, fact), baseline)| SplitRecord {
        split,
        fact: fact.clone(),
        baseline: baseline.clone(),
        control: false,
    });
    let control = splits.control.iter().map(|fact| SplitRecord {
        split: Split::Held,
        fact: fact.clone(),
        baseline: Baseline::default(),
        control: true,
    });
    facts.chain(control)
}

/// The splits of these rows, and the base model's answers.
pub(super) fn splits_and_baseline(records: Vec<SplitRecord>) -> (Splits, Vec<Baseline>) {
    let mut splits = Splits::default();
    let mut baseline = Vec::new();
    for record in records {
        if record.control {
            splits.control.push(record.fact);
        } else {
            splits.push(record.split, record.fact);
            baseline.push(record.baseline);
        }
    }
    (splits, baseline)
}

/// The facts of a run with their splits, without control facts.
///
/// # Errors
/// When `splits.jsonl` cannot be read.
pub fn recorded_facts(run: &RunDir) -> Result<Vec<(Split, Fact)>> {
    let (splits, _) = splits_and_baseline(run.read_rows(SPLITS)?);
    let facts = splits.iter();
    Ok(facts
        .map(|(split, fact)| (split, fact.fact.clone()))
        .collect())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{config::RowWeight, facts::Location};

    /// A fact without an audit.
    pub fn fact(subject: &str) -> LabelledFact {
        let fact = Fact {
            subject: subject.into(),
            relation: "P17".into(),
            object: "Peru".into(),
            aliases: Vec::new(),
            question: format!("Where is {subject}?"),
            paraphrases: Vec::new(),
            split: None,
            location: Location {
                file: "facts.tsv".into(),
                line: 2,
            },
            weight: RowWeight::default(),
        };
        LabelledFact::new(fact, None)
    }

    #[test]
    fn splits_and_answers_are_read_as_they_were_written() {
        let splits = Splits {
            known: vec![fact("a")],
            held: vec![fact("b"), fact("c")],
            control: vec![fact("d")],
            ..Splits::default()
        };
        let baseline: Vec<Baseline> = (0..3)
            .map(|i| Baseline {
                answer_before: format!("answer {i}"),
                correct_before: i == 1,
                correct_at_start: i == 2,
                display: FactDisplay::default(),
            })
            .collect();
        let records: Vec<SplitRecord> = split_records(&splits, &baseline).collect();
        let text = serde_json::to_string(&records).expect("plain data");
        let records = serde_json::from_str(&text).expect("as written");
        assert_eq!(splits_and_baseline(records), (splits, baseline));
    }
}
