//! Checks that a model has not forgotten more than a budget of what a recorded run knew, for continuous integration.

use std::fmt::Write as _;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde::Serialize;

use crate::{
    Error, Result,
    facts::Fact,
    format::inline_code,
    measure::{Behaviour, EvalAnswer, forgetting_interval, forgetting_pp},
    run::{FactResult, Split},
};

/// Another model's answers to the facts of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gate {
    /// Allowed forgetting in percentage points.
    pub budget: f64,
    /// The split that is compared: `held`, or `known` if the run has no held-out facts.
    pub split: Split,
    /// `100 * (accuracy at the end of the run - accuracy now)` on that split.
    pub forgotten_pp: f64,
    /// Its 95% interval (paired bootstrap over the facts).
    pub interval: [f64; 2],
    /// Distance of the behaviour on general prompts from that of the run's base model; null if not measured.
    pub behaviour: Option<Behaviour>,
    /// Allowed KL divergence from the base model in nats per token; null without a limit.
    pub max_kl: Option<f64>,
    /// Every fact of the run, in its order.
    pub facts: Vec<GatedFact>,
}

/// A fact of the run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GatedFact {
    /// Split.
    pub split: Split,
    /// Relation.
    pub relation: String,
    /// Question.
    pub question: String,
    /// Correct answer, as trained.
    pub object: String,
    /// Answer at the end of the run.
    pub before: String,
    /// Answer of this model.
    pub now: String,
    /// Whether `before` is correct.
    pub correct_before: bool,
    /// Whether `now` is correct.
    pub correct_now: bool,
}

impl Gate {
    /// Compares the recorded results of a run (`rows`) with another model's answers to the same facts.
    ///
    /// # Errors
    /// [`Error::Input`] if the run has neither held-out nor trained known facts.
    pub fn new(
        rows: Vec<FactResult>,
        answers: Vec<EvalAnswer>,
        budget: f64,
        seed: u64,
    ) -> Result<Self> {
        let facts = rows
            .into_iter()
            .zip(answers)
            .map(|(row, answer)| GatedFact {
                split: row.split,
                relation: row.relation,
                question: row.question,
                object: row.object,
                before: row.answer_after,
                now: answer.text,
                correct_before: row.correct_after,
                correct_now: answer.correct,
            });
        let facts: Vec<GatedFact> = facts.collect();
        let correct = |split: Split| -> (Vec<bool>, Vec<bool>) {
            let of_split = facts.iter().filter(|fact| fact.split == split);
            of_split
                .map(|fact| (fact.correct_before, fact.correct_now))
                .unzip()
        };
        let (split, (before, now)) = [Split::Held, Split::Known]
            .into_iter()
            .map(|split| (split, correct(split)))
            .find(|(_, (before, _))| !before.is_empty())
            .ok_or_else(|| {
                Error::input_hint(
                    "the baseline has no known facts that could be forgotten",
                    "use a run with `--held` or `--keep` facts",
                )
            })?;
        let forgotten_pp = forgetting_pp(&before, &now).expect("there are facts");
        let interval = forgetting_interval(&before, &now, seed).expect("there are facts");
        Ok(Self {
            budget,
            split,
            forgotten_pp,
            interval,
            behaviour: None,
            max_kl: None,
            facts,
        })
    }

    /// Adds what was measured of the behaviour, and the KL divergence that is allowed.
    #[must_use]
    pub fn with_behaviour(self, behaviour: Option<Behaviour>, max_kl: Option<f64>) -> Self {
        Self {
            behaviour,
            max_kl,
            ..self
        }
    }

    /// Whether the forgetting is within the budget, and the behaviour within its limit.
    pub fn passed(&self) -> bool {
        self.forgotten_pp <= self.budget && self.changed_behaviour().is_none()
    }

    /// The KL divergence and its limit, if it is over the limit.
    pub fn changed_behaviour(&self) -> Option<(f64, f64)> {
        let kl = self.behaviour.map(|behaviour| behaviour.kl);
        kl.zip(self.max_kl).filter(|(kl, max_kl)| kl > max_kl)
    }

    /// What is said of the behaviour, if it was measured.
    fn behaviour_text(&self) -> Option<String> {
        let limit = self.max_kl.map(|max_kl| format!("; KL limit {max_kl}"));
        self.behaviour
            .map(|behaviour| format!("{behaviour}{}", limit.unwrap_or_default()))
    }

    /// The result in one sentence.
    pub fn summary(&self) -> String {
        let count = self
            .facts
            .iter()
            .filter(|fact| fact.split == self.split)
            .count();
        let [low, high] = self.interval;
        format!(
            "{}: forgot {:.1} pp (95%: {low:.1} to {high:.1}) of {count} known, {} facts; budget {} pp",
            if self.passed() { "passed" } else { "failed" },
            self.forgotten_pp,
            if self.split == Split::Held {
                "held-out"
            } else {
                "trained"
            },
            self.budget,
        )
    }

    /// A comment for a pull request in Markdown: the summary, a table of the splits, and the forgotten facts, folded.
    pub fn markdown(&self) -> String {
        let mark = if self.passed() { "✅" } else { "❌" };
        let mut text = format!(
            "### {mark} {}\n\n| split | facts | accuracy of baseline | now | forgotten | gained |\n|---|---|---|---|---|---|\n",
            self.summary()
        );
        if let Some(behaviour) = self.behaviour_text() {
            let mark = match self.changed_behaviour() {
                Some(_) => "❌ ",
                None => "",
            };
            text = text.replacen("\n\n", &format!("\n\n{mark}Behaviour: {behaviour}.\n\n"), 1);
        }
        for split in Split::ALL {
            let facts: Vec<&GatedFact> = self
                .facts
                .iter()
                .filter(|fact| fact.split == split)
                .collect();
            if facts.is_empty() {
                continue;
            }
            let count = |predicate: fn(&GatedFact) -> bool| {
                facts.iter().filter(|fact| predicate(fact)).count()
            };
            let percent_of = |correct: usize| 100.0 * correct as f64 / facts.len() as f64;
            let _ = writeln!(
                text,
                "| {} | {} | {:.1}% | {:.1}% | {} | {} |",
                split.name().replace('_', " "),
                facts.len(),
                percent_of(count(|fact| fact.correct_before)),
                percent_of(count(|fact| fact.correct_now)),
                count(GatedFact::is_forgotten),
                count(|fact| !fact.correct_before && fact.correct_now),
            );
        }
        let forgotten: Vec<&GatedFact> = self
            .facts
            .iter()
            .filter(|fact| fact.is_forgotten())
            .collect();
        if !forgotten.is_empty() {
            let _ = write!(
                text,
                "\n<details><summary>{} forgotten</summary>\n\n",
                forgotten.len()
            );
            for fact in forgotten {
                let _ = writeln!(
                    text,
                    "- {} {}: now {}",
                    inline_code(&fact.question),
                    inline_code(&fact.object),
                    inline_code(&fact.now)
                );
            }
            text += "\n</details>\n";
        }
        text
    }

    /// A `JUnit` report: one suite per split, one case per fact that the baseline answered correctly, failed if it is forgotten.
    pub fn junit(&self) -> String {
        let mut report = Report::new("unforget gate");
        for split in Split::ALL {
            let known = self
                .facts
                .iter()
                .filter(|fact| fact.split == split && fact.correct_before);
            let mut suite = TestSuite::new(split.name());
            for fact in known {
                let status = if fact.correct_now {
                    TestCaseStatus::success()
                } else {
                    let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                    status.set_message(format!("expected {:?}, got {:?}", fact.object, fact.now));
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
        if let Some(behaviour) = self.behaviour_text() {
            let status = if self.changed_behaviour().is_some() {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status.set_message(behaviour);
                status
            } else {
                TestCaseStatus::success()
            };
            let mut suite = TestSuite::new("behaviour");
            let mut case = TestCase::new("general prompts", status);
            case.set_classname("behaviour");
            suite.add_test_case(case);
            report.add_test_suite(suite);
        }
        report.to_string().expect("a report serializes to XML")
    }
}

impl GatedFact {
    fn is_forgotten(&self) -> bool {
        self.correct_before && !self.correct_now
    }
}

/// Checks that `rows` are the results of `facts`, in their order, and returns them.
///
/// # Errors
/// [`Error::Input`] if the two files of the run do not match.
pub fn check_rows(facts: &[(Split, Fact)], rows: Vec<FactResult>) -> Result<Vec<FactResult>> {
    let is_same_fact = |((split, fact), row): (&(Split, Fact), &FactResult)| {
        *split == row.split && fact.relation == row.relation && fact.question == row.question
    };
    if facts.len() == rows.len() && facts.iter().zip(&rows).all(is_same_fact) {
        Ok(rows)
    } else {
        Err(Error::input_hint(
            "the baseline's splits.jsonl and facts.jsonl are from different runs",
            "repeat the baseline with `unforget tune`",
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(split: &str, question: &str, correct: bool) -> FactResult {
        serde_json::from_value(json!({
            "split": split, "relation": "P17", "subject": "x", "question": question, "object": "Italy", "label_before": null,
            "label_after": null, "answer_before": "", "answer_after": if correct { "Italy" } else { "?" }, "correct_before": correct,
            "correct_after": correct, "outcome": "kept",
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
        let answers = now.map(|correct| EvalAnswer {
            text: if correct { "Italy" } else { "<b>|Spain" }.into(),
            correct,
        });
        let rows = rows.map(|(split, question, correct)| row(split, question, correct));
        Gate::new(rows.into(), answers.into(), budget, 0).expect("a gate")
    }

    #[test]
    fn the_held_out_facts_decide() {
        assert!(gate(25.0).passed());
        let gate = gate(24.9);
        assert!(!gate.passed());
        assert_eq!((gate.split, gate.forgotten_pp), (Split::Held, 25.0));
        insta::assert_snapshot!(gate.markdown(), @r"
        ### ❌ failed: forgot 25.0 pp (95%: -50.0 to 100.0) of 4 known, held-out facts; budget 24.9 pp

        | split | facts | accuracy of baseline | now | forgotten | gained |
        |---|---|---|---|---|---|
        | unknown | 1 | 100.0% | 0.0% | 1 | 0 |
        | held | 4 | 75.0% | 50.0% | 2 | 1 |

        <details><summary>3 forgotten</summary>

        - `` `b` `` `Italy`: now `<b>|Spain`
        - `d` `Italy`: now `<b>|Spain`
        - `e` `Italy`: now `<b>|Spain`

        </details>
        ");
    }

    #[test]
    fn junit_has_a_case_for_each_known_fact() {
        let junit = gate(1.0).junit();
        assert!(
            junit.contains("<testsuite name=\"held\" tests=\"3\""),
            "{junit}"
        );
        assert!(junit.contains("failures=\"2\""), "{junit}");
        assert!(junit.contains("got &quot;&lt;b&gt;|Spain&quot;"), "{junit}");
    }

    #[test]
    fn a_behaviour_over_its_limit_fails_the_gate_and_is_told() {
        let behaviour = Behaviour {
            kl: 0.75,
            length_ratio: 0.06,
        };
        let within = gate(25.0).with_behaviour(Some(behaviour), Some(0.8));
        assert!(within.passed());
        assert!(gate(25.0).with_behaviour(Some(behaviour), None).passed());
        let over = gate(25.0).with_behaviour(Some(behaviour), Some(0.5));
        assert!(!over.passed());
        assert_eq!(over.changed_behaviour(), Some((0.75, 0.5)));
        let markdown = over.markdown();
        let line = "❌ Behaviour: on general prompts KL 0.750 nats per token from the base model, \
                    answers are now 0.06x as long as the base model's; KL limit 0.5.";
        assert_eq!(markdown.lines().nth(2), Some(line), "{markdown}");
        let failed = |gate: &Gate| gate.junit().matches("<failure").count();
        assert_eq!((failed(&within), failed(&over)), (3, 4));
    }

    #[test]
    fn a_run_without_known_facts_cannot_be_a_baseline() {
        let error = Gate::new(vec![row("unknown", "a", true)], Vec::new(), 1.0, 0).unwrap_err();
        assert!(error.to_string().contains("no known fact"), "{error}");
    }

    #[test]
    fn rows_of_another_run_are_refused() {
        let fact = Fact::for_test("Rome", "Italy");
        let facts = [(Split::Held, fact)];
        assert!(check_rows(&facts, vec![row("held", "another", true)]).is_err());
        assert!(check_rows(&facts, Vec::new()).is_err());
    }
}
