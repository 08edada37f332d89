//! The end of a run: the model is saved, evaluated as saved, and every fact gets its outcome.

use std::{collections::HashMap, time::Instant};

use super::{
    data::check_base_model,
    evaluator::{Evaluator, FinalEvaluation},
    previous_runs::previous_runs,
    state::TrainState,
    trainer::Trainer,
};
use crate::{
    Result,
    config::{Config, Goal, MethodKind},
    measure::{self, Behaviour, Forgotten},
    model::Model,
    remedy::{
        budget::is_within,
        continual_ewc,
        interpolate::{interpolate, smallest_factor},
        weight_penalty::fisher,
    },
    run::{
        AccuracyStages, Counts, EWC_FILE, Environment, FactOutcome, FactResult, Metrics, PerSplit,
        RunDir, RunResult, Split, ValidationResult,
    },
    splits::LabelledFact,
    system,
};

impl Trainer {
    /// Saves the model, evaluates the weights as saved, and writes the result.
    pub(super) fn finish(mut self) -> Result<RunResult> {
        self.student.sync_host()?;
        self.student.swap_ema();
        self.restore_best()?;
        let interpolation = self.interpolate()?;
        self.check_finite_weights()?;
        self.student.check_model_files()?;
        let [model, adapter] = self.writer.model_dirs();
        let saving = self.progress.busy("saving the model");
        self.student.save(&model, &adapter)?;
        drop(saving);
        self.save_fisher()?;

        let evaluation = self.evaluator.evaluate_final(&mut self.student)?;
        self.state.eval_seconds += evaluation.seconds;
        self.state.seconds += self.stopwatch.lap();
        let sample = &self.evaluator.sample;
        let correct: Vec<bool> = evaluation.answers.iter().map(|a| a.correct).collect();
        self.state
            .update_peaks(&sample.splits, sample.select(&correct));
        let beside_facts = self.log_final(&evaluation)?;

        let labels = self.evaluator.labels_after(&mut self.student)?;
        if self.evaluator.repeats_audit() {
            self.state.audit_seconds += self.stopwatch.lap();
        }
        if let Some(report) = &evaluation.behaviour {
            self.writer.write_behaviour(&report.answers)?;
        }
        let facts = fact_results(&self.evaluator, evaluation, &labels, &self.state);
        let result = RunResult {
            interpolation,
            behaviour: beside_facts.behaviour,
            validation_loss: beside_facts.validation.map(|v| v.after),
            validation: beside_facts.validation,
            texts_loss: beside_facts.texts_loss,
            ..self.result(&facts)?
        };
        self.writer.write_result(&facts, &result)?;
        if !self.options.keep_checkpoints {
            // Some systems cannot remove a file that is mapped.
            self.objective.snapshot = None;
            self.writer.remove_checkpoints()?;
        }
        Ok(result)
    }

    /// Adds what was measured of the weights as saved to the metrics.
    fn log_final(&self, evaluation: &FinalEvaluation) -> Result<BesideFacts> {
        let TrainState { epoch, step, .. } = self.state;
        let behaviour = evaluation.behaviour.as_ref().map(|r| r.behaviour);
        let validation = evaluation.validation.zip(self.state.validation);
        let validation = validation.map(|((after, tokens), state)| {
            let (best, best_epoch) = state.best.unwrap_or((after, epoch));
            ValidationResult {
                start: state.start,
                best,
                best_epoch,
                after,
                tokens,
            }
        });
        self.writer.log(&Metrics::Final {
            epoch,
            step,
            behaviour,
            validation_loss: validation.map(|v| v.after),
            seconds: evaluation.seconds,
        })?;
        let texts_loss = self
            .state
            .trained_texts_loss
            .zip(evaluation.trained_texts_loss);
        Ok(BesideFacts {
            behaviour,
            validation,
            texts_loss: texts_loss.map(<[f64; 2]>::from),
        })
    }

    /// Restores the best weights, where these are not the last ones: those that had learned most within the budget, or those with
    /// the smallest validation loss.
    pub(super) fn restore_best(&mut self) -> Result<()> {
        let budget = self.state.budget.as_ref().and_then(|budget| budget.best);
        let validation = self.state.validation.and_then(|v| v.best);
        let best = match (budget, validation.filter(|_| self.patience().is_some())) {
            (Some(best), _) => Some((best.epoch, "had learned most within the budget")),
            (None, Some((_, epoch))) => Some((epoch, "had the smallest validation loss")),
            (None, None) => None,
        };
        let Some((epoch, reason)) = best.filter(|(epoch, _)| *epoch < self.state.epoch) else {
            return Ok(());
        };
        self.progress.note(format_args!(
            "restoring the weights after epoch {epoch}, which {reason}"
        ));
        self.writer.restore_best(&mut self.student.view())?;
        self.student.merge();
        Ok(())
    }

    /// Scales the change of the weights down as far as the new facts allow, where the method says so; returns the factor.
    fn interpolate(&mut self) -> Result<Option<f64>> {
        let Some(method) = self.config.method.interpolate else {
            return Ok(None);
        };
        let new = &self.evaluator.splits.unknown;
        if new.is_empty() {
            self.progress.note(
                "there is no new fact to measure how far the change of the weights can be scaled down: it stays",
            );
            return Ok(None);
        }
        let started = Instant::now();
        let new = new.iter().map(|f| &f.fact);
        let eval_set = self.evaluator.eval_set(new, &self.student)?;
        let base = load_base(&self.config, &self.student.model)?.params;
        let trained = self.student.model.params.clone();
        let student = &mut self.student;
        let mut correct_with = |a: f32| -> Result<usize> {
            interpolate(&mut student.model.params.data, &base.data, &trained.data, a);
            let correct = eval_set.correct(&mut student.generator(), &|_| {})?;
            Ok(correct.iter().filter(|correct| **correct).count())
        };
        let enough = method.min_retained * correct_with(1.0)? as f64;
        let factor = smallest_factor(|a| Ok(correct_with(a)? as f64 >= enough))?;
        let weights = &mut self.student.model.params.data;
        interpolate(weights, &base.data, &trained.data, factor);
        self.progress.note(format_args!(
            "the change of the weights is scaled by {factor:.2}, which retains at least {:.1}% of what was learned",
            100.0 * method.min_retained
        ));
        let factor = f64::from(factor);
        self.writer.log(&Metrics::Interpolation {
            factor,
            seconds: started.elapsed().as_secs_f64(),
        })?;
        Ok(Some(factor))
    }

    /// Saves the Fisher information that EWC in later runs needs: of all learned examples, at the weights as saved, plus that of
    /// earlier runs where all have one penalty.
    fn save_fisher(&mut self) -> Result<()> {
        let Some(ewc) = &self.config.method.ewc else {
            return Ok(());
        };
        let rows = self.sampler.learned();
        let mut model = self.student.training_model();
        let mut importance = fisher(&mut model, rows, self.config.seed, &self.progress);
        let (layout, gradients) = (&model.params.layout, &*model.gradients);
        if let Some(gamma) = ewc.gamma {
            for run in previous_runs(ewc) {
                let path = &run.importance;
                continual_ewc::add_importance(path, gamma, layout, gradients, &mut importance)?;
            }
        }
        if !self.student.engine.comm().is_main() {
            return Ok(());
        }
        let path = self.writer.run_dir().file(EWC_FILE);
        let base = &self.student.model.checksum;
        let (layout, gradients) = (&self.student.model.params.layout, &self.student.gradients);
        continual_ewc::save_importance(&path, &importance, layout, gradients, base)
    }

    fn result(&self, facts: &[FactResult]) -> Result<RunResult> {
        let config = &self.config;
        let sample = &self.evaluator.sample;
        let all: Vec<bool> = facts.iter().map(|fact| fact.correct_after).collect();
        let after = sample.select(&all);
        let accuracy = accuracy_stages(&self.evaluator, &self.state, &after);
        let learned = measure::accuracy(&all[self.evaluator.splits.range(Split::Unknown)]);
        let held = sample.splits.range(Split::Held);
        let held_at_peak = &self.state.correct_at_peak[held.clone()];
        let held_after = &after[held];
        let paraphrases = facts.iter().flat_map(|fact| &fact.paraphrases);
        let paraphrased: Vec<bool> = paraphrases.map(|p| p.correct).collect();
        let forgetting_pp = measure::forgetting_pp(held_at_peak, held_after);
        let control = self.only_known(facts)?;
        let (budget, goal) = (config.method.budget, config.method.goal);
        Ok(RunResult {
            method: self.method_name(),
            preset: self.preset()?,
            model: self.student.model.name.clone(),
            goal,
            forgotten: Forgotten::count(held_known(facts).map(|fact| fact.correct_after)),
            only_known_forgotten: control.forgotten,
            gap_to_only_known_pp: control.gap_pp,
            gap_to_only_known_interval: control.gap_interval,
            forgetting_pp,
            forgetting_interval: measure::forgetting_interval(held_at_peak, held_after),
            learned,
            learned_paraphrased: measure::accuracy(&paraphrased),
            not_absorbed: learned
                .filter(|_| goal == Goal::Task)
                .map(|learned| 1.0 - learned),
            behaviour: None,
            validation_loss: None,
            validation: None,
            texts_loss: None,
            accuracy,
            counts: Counts::count(facts.iter().map(|fact| fact.outcome)),
            budget,
            within_budget: budget
                .zip(forgetting_pp)
                .map(|(budget, pp)| is_within(pp, budget)),
            interpolation: None,
            epochs: self.state.epoch,
            steps: self.state.step,
            seconds: self.state.seconds,
            eval_seconds: self.state.eval_seconds,
            audit_seconds: self.state.audit_seconds,
            peak_memory_bytes: system::peak_memory_bytes(),
        })
    }

    /// The held-out facts at the end of the Only Known run that the config names.
    fn only_known(&self, facts: &[FactResult]) -> Result<ControlFigures> {
        let Some(baseline) = &self.config.baseline else {
            return Ok(ControlFigures::default());
        };
        let rows = RunDir::open(baseline)?.facts()?;
        let figures = ControlFigures::new(facts, &rows);
        let held = facts.iter().filter(|f| f.split == Split::Held).count();
        if figures.num_facts < held {
            self.progress.note(format_args!(
                "{} held out {} of the {held} held-out facts of this run: the gap to it is over these",
                baseline.display(),
                figures.num_facts
            ));
        }
        Ok(figures)
    }

    /// The preset that the run was resolved from; none where nothing is new.
    pub(super) fn preset(&self) -> Result<Option<String>> {
        if self.sampler.num_new() == 0 {
            return Ok(None);
        }
        let environment: Environment = self.writer.run_dir().read_json("environment.json")?;
        Ok(environment.preset)
    }

    /// The method's kind and the remedies that are combined with it: `self-distill+decoys+ewc+lora`; `only-known` where nothing is
    /// new.
    pub(super) fn method_name(&self) -> String {
        if self.sampler.num_new() == 0 {
            return "only-known".into();
        }
        let (method, train) = (&self.config.method, &self.config.train);
        let kind = match method.kind {
            MethodKind::L2 => "l2",
            _ if method.distills() => "self-distill",
            MethodKind::Sft | MethodKind::SelfDistill | MethodKind::Auto => "sft",
        };
        let remedies = [
            ("+decoupled", method.exclude_target),
            ("+decoys", method.decoys.is_some()),
            ("+ema", train.ema_decay.is_some()),
            ("+replay", method.replay.is_some()),
            ("+ewc", method.ewc.is_some()),
            ("+project", method.project.is_some()),
            ("+interpolate", method.interpolate.is_some()),
            ("+lora", train.lora.is_some()),
            ("+task", method.goal == Goal::Task),
        ];
        let remedies = remedies.into_iter().filter(|(_, set)| *set);
        kind.to_owned() + &remedies.map(|(name, _)| name).collect::<String>()
    }
}

/// The base model, read again.
///
/// # Errors
/// [`Error::Input`] if its files have changed since the run started.
fn load_base(config: &Config, started_with: &Model) -> Result<Model> {
    let base = Model::load(&config.model)?;
    check_base_model(config, &base, &started_with.checksum)?;
    Ok(base)
}

/// Every fact with its answers and its outcome.
fn fact_results(
    evaluator: &Evaluator,
    evaluation: FinalEvaluation,
    labels: &HashMap<(String, String), String>,
    state: &TrainState,
) -> Vec<FactResult> {
    let FinalEvaluation {
        answers,
        probabilities,
        paraphrases,
        drift,
        ..
    } = evaluation;
    let (mut paraphrases, mut drift) = (paraphrases.into_iter(), drift.into_iter());
    let facts = evaluator.splits.iter().zip(&evaluator.baseline);
    facts
        .zip(answers.into_iter().zip(probabilities))
        .enumerate()
        .map(|(i, (((split, f), before), (after, p_after)))| {
            // The peak of a fact that was not sampled is unknown: what was known before training counts.
            let sampled = evaluator.sample.position(i);
            let correct_at_peak =
                sampled.map_or(before.correct_before, |i| state.correct_at_peak[i]);
            let known = measure::known_before(
                f.few_shot_accuracy,
                before.correct_at_start,
                correct_at_peak,
            );
            let key = (f.fact.relation.clone(), f.fact.question.clone());
            FactResult {
                split,
                subject: f.fact.subject.clone(),
                object: f.fact.target(),
                label_before: f.label.map(|label| label.name().to_owned()),
                label_after: labels.get(&key).cloned(),
                relation: key.0,
                question: key.1,
                few_shot_accuracy: f.few_shot_accuracy,
                answer_before: before.answer_before.clone(),
                answer_after: after.text,
                correct_before: before.correct_before,
                correct_at_start: before.correct_at_start,
                correct_at_peak,
                correct_after: after.correct,
                forgotten_once: sampled.is_some_and(|i| state.forgotten_once[i]),
                p_before: before.display.p_before,
                p_after,
                nearest: before.display.nearest.clone(),
                pca: before.display.pca,
                drift: match split {
                    Split::Held => drift.next(),
                    _ => None,
                },
                paraphrases: match split {
                    Split::Unknown => paraphrases.next().unwrap_or_default(),
                    _ => Vec::new(),
                },
                outcome: FactOutcome::in_run(split, known, after.correct),
            }
        })
        .collect()
}

/// What is measured at the end beside facts.
struct BesideFacts {
    behaviour: Option<Behaviour>,
    validation: Option<ValidationResult>,
    texts_loss: Option<[f64; 2]>,
}

/// Accuracy of every split at the audit, before training, at its peak and after training, on the facts that every evaluation asks.
fn accuracy_stages(
    evaluator: &Evaluator,
    state: &TrainState,
    after: &[bool],
) -> PerSplit<AccuracyStages> {
    let splits = &evaluator.sample.splits;
    let baseline = evaluator.baseline.iter();
    let before: Vec<bool> = baseline.map(|b| b.correct_at_start).collect();
    let before = evaluator.sample.select(&before);
    let [start, peak, after] =
        [&before[..], &state.correct_at_peak, after].map(|correct| splits.accuracy(correct));
    let mut stages = PerSplit::default();
    for split in Split::ALL {
        let accuracies = (start.get(split), peak.get(split), after.get(split));
        if let (Some(&start), Some(&peak), Some(&after)) = accuracies {
            let of_split = AccuracyStages {
                audit: mean_few_shot_accuracy(splits.get(split)),
                start,
                peak,
                after,
            };
            stages.set(split, of_split);
        }
    }
    stages
}

/// Mean few-shot accuracy; none where some fact was not audited.
fn mean_few_shot_accuracy(facts: &[LabelledFact]) -> Option<f64> {
    let accuracies: Option<Vec<f64>> = facts.iter().map(|f| f.few_shot_accuracy).collect();
    accuracies
        .filter(|accuracies| !accuracies.is_empty())
        .map(|accuracies| accuracies.iter().sum::<f64>() / accuracies.len() as f64)
}

/// The held-out facts that were known before training.
fn held_known(facts: &[FactResult]) -> impl Iterator<Item = &FactResult> {
    let held = facts.iter().filter(|fact| fact.split == Split::Held);
    held.filter(|fact| fact.is_known())
}

/// The held-out facts of a run after Only Known.
#[derive(Debug, Default, PartialEq)]
struct ControlFigures {
    /// Of the known ones, those that are wrong after Only Known.
    forgotten: Option<Forgotten>,
    /// 100 x (accuracy after Only Known - accuracy after this run).
    gap_pp: Option<f64>,
    /// Its 95% interval (paired).
    gap_interval: Option<[f64; 2]>,
    /// The held-out facts that both runs evaluated; all figures are over these.
    num_facts: usize,
}

impl ControlFigures {
    /// Compares `facts` of a run with those of an Only Known run.
    fn new(facts: &[FactResult], only_known: &[FactResult]) -> Self {
        let recorded: HashMap<(&str, &str), bool> = only_known
            .iter()
            .filter(|row| row.split == Split::Held)
            .map(|row| ((&row.relation[..], &row.question[..]), row.correct_after))
            .collect();
        let of_control = |fact: &FactResult| {
            let key = (&fact.relation[..], &fact.question[..]);
            recorded.get(&key).copied()
        };
        let held = facts.iter().filter(|fact| fact.split == Split::Held);
        let pairs = held.filter_map(|fact| Some((of_control(fact)?, fact.correct_after)));
        let (control, own): (Vec<bool>, Vec<bool>) = pairs.unzip();
        Self {
            forgotten: Forgotten::count(held_known(facts).filter_map(of_control)),
            gap_pp: measure::forgetting_pp(&control, &own),
            gap_interval: measure::forgetting_interval(&control, &own),
            num_facts: own.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row(split: &str, question: &str, known: bool, correct: bool) -> FactResult {
        let outcome = match (known, correct) {
            (true, true) => "kept",
            (true, false) => "forgotten",
            (false, true) => "gained",
            (false, false) => "never_knew",
        };
        serde_json::from_value(json!({
            "split": split, "relation": "P17", "subject": "x", "question": question, "object": "Italy", "label_before": null,
            "label_after": null, "answer_before": "", "answer_after": "", "correct_before": known, "correct_after": correct,
            "outcome": outcome,
        }))
        .expect("a row")
    }

    #[test]
    fn forgetting_stands_beside_that_of_only_known_over_the_same_facts() {
        let own = [
            row("held", "a", true, false),
            row("held", "b", true, false),
            row("held", "c", true, true),
            row("held", "d", true, true),
            row("maybe_known", "e", true, false),
            row("held", "f", false, true),
        ];
        let control = [
            row("held", "a", true, true),
            row("held", "b", true, false),
            row("held", "c", true, true),
            row("held", "d", true, false),
            row("held", "f", false, false),
            row("held", "another", true, false),
            row("maybe_known", "e", true, true),
        ];
        let forgotten = Forgotten::count(held_known(&own).map(|fact| fact.correct_after));
        assert_eq!(forgotten, Forgotten::new(2, 4));
        let figures = ControlFigures::new(&own, &control);
        assert_eq!(figures.forgotten, Forgotten::new(2, 4));
        assert_eq!(figures.num_facts, 5);
        // Only "a" is correct after Only Known alone, "d" and "f" after this run alone.
        assert_eq!(figures.gap_pp, Some(-20.0));
        assert_eq!(
            figures.gap_interval,
            measure::paired_interval(1, 2, 5).map(|i| i.map(|end| 100.0 * end))
        );
        assert_eq!(
            ControlFigures::new(&own, &[]),
            ControlFigures::default(),
            "no fact in common"
        );
    }
}
