//! Whether a model still knows what a recorded run knew: for a pipeline that must not let a forgetful model through.

use std::fmt::Write as _;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde::Serialize;

use crate::{
    Error, Result,
    export::code,
    facts::Fact,
    measure::{Answered, forgetting_interval, forgetting_pp},
    run::{FactRow, Split},
};

/// Facts of a run, asked of another model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gate {
    /// What may be forgotten, in percentage points.
    pub budget: f64,
    /// The split that decides: `held`, or `known` where a run held nothing out.
    pub decides: Split,
    /// 100 x (share right at the run's end - share right now), over the facts of that split.
    pub forgotten_pp: f64,
    /// Its 95% interval (paired bootstrap over the facts).
    pub interval: [f64; 2],
    /// Every fact of the run, in its order.
    pub facts: Vec<Gated>,
}

/// One fact of the run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gated {
    /// Which part of the run.
    pub split: Split,
    /// Relation.
    pub relation: String,
    /// Question.
    pub question: String,
    /// Right answer, as it is taught.
    pub object: String,
    /// What the run's model said at its end.
    pub before: String,
    /// What this model says.
    pub now: String,
    /// Right at the run's end.
    pub right_before: bool,
    /// Right now.
    pub right_now: bool,
}

impl Gate {
    /// The facts that a run recorded (`rows`) beside what another model answered to the same facts.
    ///
    /// # Errors
    /// [`Error::Input`] where the run held no known fact out and trained none.
    pub fn new(rows: Vec<FactRow>, answers: Vec<Answered>, budget: f64, seed: u64) -> Result<Self> {
        let facts = rows.into_iter().zip(answers).map(|(row, answer)| Gated {
            split: row.split,
            relation: row.relation,
            question: row.question,
            object: row.object,
            before: row.answer_after,
            now: answer.text,
            right_before: row.right_after,
            right_now: answer.right,
        });
        let facts: Vec<Gated> = facts.collect();
        let right = |split: Split| -> (Vec<bool>, Vec<bool>) {
            let of_split = facts.iter().filter(|fact| fact.split == split);
            of_split
                .map(|fact| (fact.right_before, fact.right_now))
                .unzip()
        };
        let (decides, (before, now)) = [Split::Held, Split::Known]
            .into_iter()
            .map(|split| (split, right(split)))
            .find(|(_, (before, _))| !before.is_empty())
            .ok_or_else(|| {
                Error::input_hint(
                    "the baseline has no known fact that could be forgotten",
                    "take a run with `--held` or `--keep` facts",
                )
            })?;
        let forgotten_pp = forgetting_pp(&before, &now).expect("there are facts");
        let interval = forgetting_interval(&before, &now, seed).expect("there are facts");
        Ok(Self {
            budget,
            decides,
            forgotten_pp,
            interval,
            facts,
        })
    }

    /// Whether no more is forgotten than may be.
    pub fn is_passed(&self) -> bool {
        self.forgotten_pp <= self.budget
    }

    /// What decides, in a sentence.
    pub fn sentence(&self) -> String {
        let count = self
            .facts
            .iter()
            .filter(|fact| fact.split == self.decides)
            .count();
        let [low, high] = self.interval;
        format!(
            "{}: forgot {:.1} pp (95%: {low:.1} to {high:.1}) of {count} facts that were known before and {}; budget {}",
            if self.is_passed() { "passed" } else { "failed" },
            self.forgotten_pp,
            if self.decides == Split::Held {
                "not trained"
            } else {
                "trained"
            },
            self.budget,
        )
    }

    /// For a pull request: the sentence, a table of the splits, and what was lost, folded.
    pub fn markdown(&self) -> String {
        let mark = if self.is_passed() { "✅" } else { "❌" };
        let mut text = format!(
            "### {mark} {}\n\n| facts | | right at the baseline | now | lost | gained |\n|---|---|---|---|---|---|\n",
            self.sentence()
        );
        for split in Split::ALL {
            let facts: Vec<&Gated> = self
                .facts
                .iter()
                .filter(|fact| fact.split == split)
                .collect();
            if facts.is_empty() {
                continue;
            }
            let count = |which: fn(&Gated) -> bool| facts.iter().filter(|fact| which(fact)).count();
            let share = |right: usize| 100.0 * right as f64 / facts.len() as f64;
            let _ = writeln!(
                text,
                "| {} | {} | {:.1}% | {:.1}% | {} | {} |",
                split.name().replace('_', " "),
                facts.len(),
                share(count(|fact| fact.right_before)),
                share(count(|fact| fact.right_now)),
                count(Gated::is_lost),
                count(|fact| !fact.right_before && fact.right_now),
            );
        }
        let lost: Vec<&Gated> = self.facts.iter().filter(|fact| fact.is_lost()).collect();
        if !lost.is_empty() {
            let _ = write!(
                text,
                "\n<details><summary>{} lost</summary>\n\n",
                lost.len()
            );
            for fact in lost {
                let _ = writeln!(
                    text,
                    "- {} {}: now {}",
                    code(&fact.question),
                    code(&fact.object),
                    code(&fact.now)
                );
            }
            text += "\n</details>\n";
        }
        text
    }

    /// For what shows tests: a suite a split, a case for every fact that the baseline got right, failed where it is lost.
    pub fn junit(&self) -> String {
        let mut report = Report::new("unforget gate");
        for split in Split::ALL {
            let known = self
                .facts
                .iter()
                .filter(|fact| fact.split == split && fact.right_before);
            let mut suite = TestSuite::new(split.name());
            for fact in known {
                let status = if fact.right_now {
                    TestCaseStatus::success()
                } else {
                    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                    status.set_message(format!(
                        "expected {:?}, the model says {:?}",
                        fact.object, fact.now
                    ));
                    status
                };
                let mut case = TestCase::new(fact.question.as_str(), status);
                case.set_classname(fact.relation.as_str());
                suite.add_test_case(case);
            }
            if suite.tests > 0 {
                report.add_test_suite(suite);
            }
        }
        report.to_string().expect("a report has a form in XML")
    }
}

impl Gated {
    fn is_lost(&self) -> bool {
        self.right_before && !self.right_now
    }
}

/// The recorded rows of facts that `facts` are, in their order.
///
/// # Errors
/// [`Error::Input`] where the two files of a run do not fit together.
pub fn rows_of(facts: &[(Split, Fact)], rows: Vec<FactRow>) -> Result<Vec<FactRow>> {
    let same = |((split, fact), row): (&(Split, Fact), &FactRow)| {
        *split == row.split && fact.relation == row.relation && fact.question == row.question
    };
    if facts.len() == rows.len() && facts.iter().zip(&rows).all(same) {
        Ok(rows)
    } else {
        Err(Error::input_hint(
            "the baseline's splits.jsonl and facts.jsonl are not of the same run",
            "make the baseline again with `unforget tune`",
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(split: &str, question: &str, right: bool) -> FactRow {
        serde_json::from_value(json!({
            "split": split, "relation": "P17", "subject": "x", "question": question, "object": "Italy", "label_before": null,
            "label_after": null, "answer_before": "", "answer_after": if right { "Italy" } else { "?" }, "right_before": right,
            "right_after": right, "state": "kept",
        }))
        .expect("a row")
    }

    fn gate(budget: f64) -> Gate {
        let rows = [
            ("held", "a", true),
            ("held", "`b`", true),
            ("held", "c", false),
            ("held", "d", true),
            ("unknown", "e", true),
        ];
        let now = [true, false, true, false, false];
        let answers = now.map(|right| Answered {
            text: if right { "Italy" } else { "<b>|Spain" }.into(),
            right,
        });
        let rows = rows.map(|(split, question, right)| row(split, question, right));
        Gate::new(rows.into(), answers.into(), budget, 0).expect("a gate")
    }

    #[test]
    fn what_was_held_out_decides_and_the_rest_is_told() {
        assert!(gate(25.0).is_passed());
        let gate = gate(24.9);
        assert!(!gate.is_passed());
        assert_eq!((gate.decides, gate.forgotten_pp), (Split::Held, 25.0));
        insta::assert_snapshot!(gate.markdown(), @r"
        ### ❌ failed: forgot 25.0 pp (95%: -50.0 to 100.0) of 4 facts that were known before and not trained; budget 24.9

        | facts | | right at the baseline | now | lost | gained |
        |---|---|---|---|---|---|
        | unknown | 1 | 100.0% | 0.0% | 1 | 0 |
        | held | 4 | 75.0% | 50.0% | 2 | 1 |

        <details><summary>3 lost</summary>

        - `` `b` `` `Italy`: now `<b>|Spain`
        - `d` `Italy`: now `<b>|Spain`
        - `e` `Italy`: now `<b>|Spain`

        </details>
        ");
    }

    #[test]
    fn a_test_report_has_a_case_for_what_was_known() {
        let junit = gate(1.0).junit();
        assert!(
            junit.contains("<testsuite name=\"held\" tests=\"3\""),
            "{junit}"
        );
        assert!(junit.contains("failures=\"2\""), "{junit}");
        assert!(
            junit.contains("the model says &quot;&lt;b&gt;|Spain&quot;"),
            "{junit}"
        );
    }

    #[test]
    fn a_run_without_known_facts_is_no_baseline() {
        let error = Gate::new(vec![row("unknown", "a", true)], Vec::new(), 1.0, 0).unwrap_err();
        assert!(error.to_string().contains("no known fact"), "{error}");
    }

    #[test]
    fn the_records_of_two_runs_do_not_fit() {
        let fact = Fact::in_test("Rome", "Italy");
        let facts = [(Split::Held, fact)];
        assert!(rows_of(&facts, vec![row("held", "another", true)]).is_err());
        assert!(rows_of(&facts, Vec::new()).is_err());
    }
}
