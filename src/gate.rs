//! Checks that a model has not forgotten more than a budget of what a recorded run's base model knew, for continuous integration.

use std::fmt::Write as _;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};
use serde::Serialize;

use crate::{
    Error, Result,
    facts::Fact,
    format::inline_code,
    measure::{Behaviour, EvalAnswer, Forgotten},
    run::{FactResult, Split},
};

/// Another model's answers to the facts of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Gate {
    /// Allowed forgetting in percentage points.
    pub budget: f64,
    /// The split that decides: `held`, or `known` if the run held out no known fact.
    pub split: Split,
    /// The known facts of that split that the model answers wrongly.
    pub forgotten: Forgotten,
    /// `forgotten.pp`, which the budget bounds.
    pub forgotten_pp: f64,
    /// `forgotten.interval`: 95%, Wilson.
    pub interval: Option<[f64; 2]>,
    /// Whether the model was asked under the few-shot prompts of the run's audit; otherwise at the run's training prompt.
    pub few_shot: bool,
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
    /// The recorded answer: before training, under a few-shot prompt; without an audit at the end of the run.
    pub before: String,
    /// Answer of this model.
    pub now: String,
    /// Whether the fact was known before, see [`Gate::new`].
    pub correct_before: bool,
    /// Whether `now` is correct.
    pub correct_now: bool,
}

impl Gate {
    /// Compares what a run recorded (`rows`) with another model's `answers` to the same facts, evaluated under the `few_shot` prompts
    /// of the run's audit or, without an audit, at its training prompt.
    ///
    /// Known before are the facts that the audit found known; without an audit, those that the run answered correctly at its end,
    /// at the same prompt.
    ///
    /// # Errors
    /// [`Error::Input`] if the run has no facts that could be known, neither held out nor trained.
    pub fn new(
        rows: Vec<FactResult>,
        answers: Vec<EvalAnswer>,
        budget: f64,
        few_shot: bool,
    ) -> Result<Self> {
        let fact = |(row, answer): (FactResult, EvalAnswer)| {
            let (before, correct_before) = if few_shot {
                (row.answer_before, row.correct_before)
            } else {
                (row.answer_after, row.correct_after)
            };
            GatedFact {
                split: row.split,
                relation: row.relation,
                question: row.question,
                object: row.object,
                before,
                now: answer.text,
                correct_before,
                correct_now: answer.correct,
            }
        };
        let facts: Vec<GatedFact> = rows.into_iter().zip(answers).map(fact).collect();
        let splits = [Split::Held, Split::Known];
        let forgotten = |split: Split| {
            let known = facts
                .iter()
                .filter(|f| f.split == split && f.correct_before);
            Forgotten::count(known.map(|fact| fact.correct_now))
        };
        let of_known = splits
            .into_iter()
            .find_map(|split| Some((split, forgotten(split)?)));
        let has_facts = |split: &Split| facts.iter().any(|fact| fact.split == *split);
        let none_known = || Some((splits.into_iter().find(has_facts)?, Forgotten::NONE_KNOWN));
        let (split, forgotten) = of_known.or_else(none_known).ok_or_else(|| {
            Error::input_hint(
                "the baseline has no known facts that could be forgotten",
                "use a run with `--held` or `--keep` facts",
            )
        })?;
        Ok(Self {
            budget,
            split,
            forgotten,
            forgotten_pp: forgotten.pp,
            interval: forgotten.interval,
            few_shot,
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
        let adjective = if self.split == Split::Held {
            "known held-out"
        } else {
            "known trained"
        };
        let result = if self.passed() { "passed" } else { "failed" };
        if self.forgotten.of == 0 {
            return format!(
                "{result}: none of the {} facts was known before, so none could be forgotten",
                adjective.trim_start_matches("known ")
            );
        }
        format!(
            "{result}: forgot {}; budget {} pp",
            self.forgotten.of_facts(adjective),
            self.budget,
        )
    }

    /// A comment for a pull request in Markdown: the summary, a table of the splits, and the forgotten facts, folded.
    pub fn markdown(&self) -> String {
        let mark = if self.passed() { "✅" } else { "❌" };
        let asked = if self.few_shot {
            "Evaluated under the few-shot prompts of the baseline's audit. A tuned model may answer its new facts only at the prompt that it was trained with."
        } else {
            "Asked at the baseline's training prompt and compared with its end, since it has no prompts of an audit (`prompts.jsonl`): a model that was not trained on \
             this prompt seems to have forgotten what it answers in other words."
        };
        let mut text = format!(
            "### {mark} {}\n\n{asked}\n\n| split | facts | known before | known now | forgotten | gained |\n|---|---|---|---|---|---|\n",
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
            let of_split = self.facts.iter().filter(|fact| fact.split == split);
            let facts: Vec<&GatedFact> = of_split.collect();
            if facts.is_empty() {
                continue;
            }
            let count = |predicate: fn(&GatedFact) -> bool| {
                facts.iter().filter(|fact| predicate(fact)).count()
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} |",
                split.name().replace('_', " "),
                facts.len(),
                count(|fact| fact.correct_before),
                count(|fact| fact.correct_now),
                count(GatedFact::is_forgotten),
                count(|fact| !fact.correct_before && fact.correct_now),
            );
        }
        let forgotten = self.facts.iter().filter(|fact| fact.is_forgotten());
        let forgotten: Vec<&GatedFact> = forgotten.collect();
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

    /// A `JUnit` report: one suite per split, one case per fact that the baseline's base model knew. A forgotten fact is a failure in the
    /// split that decides, where the forgetting is over the budget. Elsewhere it is skipped, with a message: a gate that passes has no
    /// failure.
    pub fn junit(&self) -> String {
        let mut report = Report::new("unforget gate");
        let is_over_budget = self.forgotten_pp > self.budget;
        for split in Split::ALL {
            let fails = is_over_budget && split == self.split;
            let known = self
                .facts
                .iter()
                .filter(|fact| fact.split == split && fact.correct_before);
            let mut suite = TestSuite::new(split.name());
            for fact in known {
                let status = if fact.correct_now {
                    TestCaseStatus::success()
                } else {
                    let mut status = if fails {
                        TestCaseStatus::non_success(NonSuccessKind::Failure)
                    } else {
                        TestCaseStatus::skipped()
                    };
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
    use crate::run::FactOutcome;

    fn row(split: &str, question: &str, correct: bool) -> FactResult {
        serde_json::from_value(json!({
            "split": split, "relation": "P17", "subject": "x", "question": question, "object": "Italy", "label_before": null,
            "label_after": null, "answer_before": "", "answer_after": if correct { "Italy" } else { "?" }, "correct_before": correct,
            "correct_after": correct, "outcome": if correct { "kept" } else { "gained" },
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
        let now = [true, false, true, true, false];
        let answers = now.map(|correct| EvalAnswer {
            text: if correct { "Italy" } else { "<b>|Spain" }.into(),
            correct,
        });
        let rows = rows.map(|(split, question, known)| row(split, question, known));
        Gate::new(rows.into(), answers.into(), budget, true).expect("a gate")
    }

    #[test]
    fn the_known_held_out_facts_decide() {
        // One of three known facts; the fact that is gained does not make up for it.
        assert!(gate(34.0).passed());
        let gate = gate(33.0);
        assert!(!gate.passed());
        assert_eq!(gate.split, Split::Held);
        assert_eq!((gate.forgotten.count, gate.forgotten.of), (1, 3));
        insta::assert_snapshot!(gate.markdown(), @r"
        ### ❌ failed: forgot 1 of 3 known held-out facts, 33.3% (95%: 6.1 to 79.2); budget 33 pp

        Evaluated under the few-shot prompts of the baseline's audit. A tuned model may answer its new facts only at the prompt that it was trained with.

        | split | facts | known before | known now | forgotten | gained |
        |---|---|---|---|---|---|
        | unknown | 1 | 1 | 0 | 1 | 0 |
        | held | 4 | 3 | 3 | 1 | 1 |

        <details><summary>2 forgotten</summary>

        - `` `b` `` `Italy`: now `<b>|Spain`
        - `e` `Italy`: now `<b>|Spain`

        </details>
        ");
    }

    #[test]
    fn what_a_run_itself_forgot_is_forgotten_in_its_gate() {
        // Known at the audit, wrong at the end of the run, and wrong now.
        let row = FactResult {
            correct_after: false,
            outcome: FactOutcome::Forgotten,
            ..row("held", "a", true)
        };
        let wrong = EvalAnswer {
            text: "Spain".into(),
            correct: false,
        };
        let gate = Gate::new(vec![row], vec![wrong], 1.0, true).expect("a gate");
        assert!(!gate.passed());
        assert_eq!(gate.interval, None, "a single fact has no interval");
    }

    #[test]
    fn junit_has_a_case_for_each_known_fact() {
        let junit = gate(1.0).junit();
        assert!(
            junit.contains("<testsuite name=\"held\" tests=\"3\""),
            "{junit}"
        );
        assert!(junit.contains("failures=\"1\""), "{junit}");
        assert!(junit.contains("got &quot;&lt;b&gt;|Spain&quot;"), "{junit}");
        // The forgotten fact of the other split, and all of a gate that passes, are skipped.
        assert_eq!(junit.matches("<skipped").count(), 1, "{junit}");
        let passed = gate(34.0).junit();
        assert_eq!(passed.matches("<failure").count(), 0, "{passed}");
        assert_eq!(passed.matches("<skipped").count(), 2, "{passed}");
    }

    #[test]
    fn a_behaviour_over_its_limit_fails_the_gate_and_is_told() {
        let behaviour = Behaviour {
            kl: 0.75,
            length_ratio: 0.06,
        };
        let within = gate(34.0).with_behaviour(Some(behaviour), Some(0.8));
        assert!(within.passed());
        assert!(gate(34.0).with_behaviour(Some(behaviour), None).passed());
        let over = gate(34.0).with_behaviour(Some(behaviour), Some(0.5));
        assert!(!over.passed());
        assert_eq!(over.changed_behaviour(), Some((0.75, 0.5)));
        let markdown = over.markdown();
        let line = "❌ Behaviour: on general prompts KL 0.750 nats per token from the base model, \
                    answers are now 0.06x as long as the base model's; KL limit 0.5.";
        assert_eq!(markdown.lines().nth(2), Some(line), "{markdown}");
        let failed = |gate: &Gate| gate.junit().matches("<failure").count();
        assert_eq!((failed(&within), failed(&over)), (0, 1));
    }

    #[test]
    fn a_run_without_known_facts_cannot_be_a_baseline() {
        let rows = vec![row("unknown", "a", true)];
        let error = Gate::new(rows, vec![EvalAnswer::default()], 1.0, true).unwrap_err();
        assert!(error.to_string().contains("no known fact"), "{error}");
    }

    #[test]
    fn without_an_audit_the_end_of_the_run_is_compared() {
        let rows = vec![row("held", "a", true), row("held", "b", false)];
        let now = vec![EvalAnswer::default(); 2];
        let gate = Gate::new(rows, now.clone(), 1.0, false).expect("a gate");
        assert_eq!((gate.forgotten.count, gate.forgotten.of), (1, 1));
        let none = Gate::new(vec![row("held", "b", false)], now, 0.0, false).expect("a gate");
        assert!(none.passed());
        assert_eq!(
            none.summary(),
            "passed: none of the held-out facts was known before, so none could be forgotten"
        );
    }

    #[test]
    fn rows_of_another_run_are_refused() {
        let fact = Fact::for_test("Rome", "Italy");
        let facts = [(Split::Held, fact)];
        assert!(check_rows(&facts, vec![row("held", "another", true)]).is_err());
        assert!(check_rows(&facts, Vec::new()).is_err());
    }
}
