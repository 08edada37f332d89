//! The beginning and the end of a run: what the model says before and after, and what follows from it.

use std::{collections::HashMap, time::Instant};

use serde::{Deserialize, Serialize};

use super::{SPLITS, Trainer, previous_runs::previous_runs};
use crate::{
    Result, audit,
    config::{Goal, MethodKind},
    engine::TrainingModel,
    facts::Fact,
    generate::Generator,
    measure::{
        self, EvalAnswer, EvalSet, Neighbour, SubjectPrompts, middle_layer, nearest, pca_2d,
    },
    model::{Dtype, Model},
    remedy::{
        budget::is_within,
        continual_ewc,
        interpolate::{interpolate, smallest_factor},
        weight_penalty::fisher,
    },
    run::{
        ADAPTER_DIR, AccuracyStages, Counts, Drift, EWC_FILE, FactOutcome, FactResult, Metrics,
        ParaphraseResult, PerSplit, RunDir, RunResult, Split, TEACHER_DIR,
    },
    splits::{LabelledFact, Splits},
    system,
};

/// A row of `splits.jsonl`: a fact of the run, and what the base model said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SplitRecord {
    split: Split,
    #[serde(flatten)]
    fact: LabelledFact,
    #[serde(flatten)]
    baseline: Baseline,
    /// Watched, not reported.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    control: bool,
}

/// What the base model showed of a fact.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Baseline {
    answer_before: String,
    correct_before: bool,
    /// See [`FactResult`], which these become a part of.
    #[serde(flatten)]
    display: FactDisplay,
}

/// What a report shows of a fact beside its answers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct FactDisplay {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    p_before: Option<f64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    nearest: Vec<Neighbour>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    place: Option<[f32; 2]>,
}

/// The splits that `splits.jsonl` holds.
pub(super) fn splits_from_records(rows: &[SplitRecord]) -> Splits {
    let mut splits = Splits::default();
    for row in rows {
        if row.control {
            splits.control.push(row.fact.clone());
        } else {
            splits.push(row.split, row.fact.clone());
        }
    }
    splits
}

/// What the base model showed, as `splits.jsonl` holds it.
pub(super) fn baseline_from_records(rows: Vec<SplitRecord>) -> Vec<Baseline> {
    let reported = rows.into_iter().filter(|row| !row.control);
    reported.map(|row| row.baseline).collect()
}

/// The facts of a run with the part that each was, as its records have them; those that were watched are left out.
///
/// # Errors
/// When `splits.jsonl` cannot be read.
pub fn recorded_facts(run: &RunDir) -> Result<Vec<(Split, Fact)>> {
    let splits = splits_from_records(&run.read_rows(SPLITS)?);
    let facts = splits
        .iter()
        .map(|(split, fact)| (split, fact.fact.clone()));
    Ok(facts.collect())
}

impl Trainer<'_> {
    /// Asks the base model every fact and records the splits: from here on the run can be resumed.
    pub(super) fn begin(&mut self) -> Result<()> {
        self.run.remove("metrics.jsonl")?;
        if self.config.measure.tensorboard {
            self.run.enable_tensorboard()?;
        }
        let (answers, seconds) = self.timed_answers()?;
        let right: Vec<bool> = answers.iter().map(|a| a.correct).collect();
        let looks = self.fact_display()?;
        self.baseline = answers
            .into_iter()
            .zip(looks)
            .map(|(answered, looks)| Baseline {
                answer_before: answered.text,
                correct_before: answered.correct,
                display: looks,
            })
            .collect();
        let rows = self.splits.iter().zip(&self.baseline);
        let rows = rows.map(|((split, fact), before)| SplitRecord {
            split,
            fact: fact.clone(),
            baseline: before.clone(),
            control: false,
        });
        let watched = self.splits.control.iter().map(|fact| SplitRecord {
            split: Split::Held,
            fact: fact.clone(),
            baseline: Baseline::default(),
            control: true,
        });
        self.run.write_rows(SPLITS, rows.chain(watched))?;
        let watched = self.control_accuracy()?;
        if let (Some(steering), Some(watched)) = (&mut self.state.budget, watched) {
            steering.set_baseline(watched);
        }
        self.record_evaluation(self.splits.accuracy(&right), seconds)?;
        self.state.correct_at_peak = right;
        Ok(())
    }

    /// The answer to every fact, and the seconds that this took; where answers are not shown, only whether they are right, which
    /// is known sooner.
    fn timed_answers(&mut self) -> Result<(Vec<EvalAnswer>, f64)> {
        if !self.options.metrics_only {
            return self.timed_evaluation(EvalSet::answers);
        }
        let (right, seconds) = self.timed_evaluation(EvalSet::correct)?;
        let answered = right.into_iter().map(|right| EvalAnswer {
            text: String::new(),
            correct: right,
        });
        Ok((answered.collect(), seconds))
    }

    /// What a report shows of every fact beside the base model's answer, unless that is not wanted.
    fn fact_display(&mut self) -> Result<Vec<FactDisplay>> {
        if self.options.metrics_only {
            return Ok(vec![FactDisplay::default(); self.eval_set.len()]);
        }
        let (probabilities, _) = self.timed_evaluation(EvalSet::probabilities)?;
        let facts: Vec<&Fact> = self.splits.iter().map(|(_, f)| &f.fact).collect();
        let subjects = facts.iter().copied();
        let subjects =
            SubjectPrompts::new(subjects, &self.model, &mut self.engine, &self.template)?;
        let layer = middle_layer(&self.model);
        let states = subjects.subject_states(&mut self.engine, &self.model, layer, self.progress);
        let d = self.model.config.hidden_size;
        let new = self.splits.range(Split::Unknown);
        let (before, rest) = states.split_at(new.start * d);
        let (of_new, behind) = rest.split_at(new.len() * d);
        let near = |states| nearest(&facts[new.clone()], of_new, states, d);
        let of_none = vec![Vec::new(); new.len()];
        let nearest = [near(before), of_none, near(behind)].concat();
        let places = pca_2d(&states, d, self.config.seed);
        Ok(probabilities
            .into_iter()
            .zip(nearest)
            .zip(places)
            .map(|((p, nearest), place)| FactDisplay {
                p_before: Some(p),
                nearest,
                place: Some(place),
            })
            .collect())
    }

    /// Saves the model, asks everything again of the weights as saved, and writes what became of each fact.
    pub(super) fn finish(mut self) -> Result<RunResult> {
        self.swap_ema();
        self.restore_best()?;
        let interpolation = self.interpolate()?;
        self.check_finite_weights()?;
        let dtype = self.model.dtype;
        round_to(&mut self.model.params.data, dtype);
        self.model.save(&self.run.file("model"), dtype)?;
        self.trainable
            .save_adapters(&self.run.file(ADAPTER_DIR), &self.model.name)?;
        self.save_fisher()?;
        let (after, _) = self.timed_answers()?;
        self.update_peaks(after.iter().map(|a| a.correct).collect());
        let paraphrased = self.answer_paraphrases()?;
        let mut probabilities = vec![None; after.len()];
        if !self.options.metrics_only {
            let (p_after, _) = self.timed_evaluation(EvalSet::probabilities)?;
            probabilities = p_after.into_iter().map(Some).collect();
        }
        let drift = self.held_drift();
        self.update_clock();
        let labels_after = self.labels_after()?;

        let rows = self.fact_results(&after, &probabilities, paraphrased, &drift, &labels_after);
        let result = self.result(&rows, &after, interpolation)?;
        self.run.write_rows("facts.jsonl", &rows)?;
        // Before the checkpoints go: without either a run that is killed here would have to start over.
        self.run.write_json("result.json", &result)?;
        if !self.options.keep_checkpoints {
            self.checkpoints.remove()?;
            // Not every system removes a file that is mapped.
            self.objective.snapshot = None;
            self.run.remove(TEACHER_DIR)?;
        }
        Ok(result)
    }

    /// Leaves what EWC holds later runs by: the Fisher information of all that was learned, at the weights as saved, and what
    /// the run before left where there is one penalty for both.
    fn save_fisher(&mut self) -> Result<()> {
        let Some(ewc) = &self.config.method.ewc else {
            return Ok(());
        };
        let mut model = TrainingModel {
            engine: &mut self.engine,
            params: &self.model.params,
            gradients: &mut self.gradients,
        };
        let rows = &self.rows[..self.learned_rows];
        let mut importance = fisher(&mut model, rows, self.config.seed, self.progress);
        let layout = &self.model.params.layout;
        if let Some(decay) = ewc.gamma {
            for run in previous_runs(ewc) {
                continual_ewc::add_importance(
                    &run.importance,
                    decay,
                    layout,
                    &self.gradients,
                    &mut importance,
                )?;
            }
        }
        let base = &self.model.checksum;
        let path = self.run.file(EWC_FILE);
        continual_ewc::save_importance(&path, &importance, layout, &self.gradients, base)
    }

    /// Scales the change of the weights down as far as the new facts allow, where the method asks for it; by how much.
    fn interpolate(&mut self) -> Result<Option<f64>> {
        let Some(method) = self.config.method.interpolate else {
            return Ok(None);
        };
        if self.splits.unknown.is_empty() {
            self.progress.note("there is no new fact to tell how far the change of the weights may be scaled down: it stays");
            return Ok(None);
        }
        let started = Instant::now();
        let rule = self.config.data.match_rule;
        let new = self.splits.unknown.iter().map(|f| &f.fact);
        let exam = EvalSet::new(new, &self.template, &self.model.tokenizer, rule)?;
        let base = Model::load(&self.config.model)?.params;
        let trained = self.model.params.clone();
        let (engine, model) = (&mut self.engine, &mut self.model);
        let mut right_with = |a: f32| -> Result<usize> {
            interpolate(&mut model.params.data, &base.data, &trained.data, a);
            let right = exam.correct(&mut Generator::new(engine, model))?;
            Ok(right.iter().filter(|right| **right).count())
        };
        let enough = method.min_retained * right_with(1.0)? as f64;
        let factor = smallest_factor(|a| Ok(right_with(a)? as f64 >= enough))?;
        interpolate(
            &mut self.model.params.data,
            &base.data,
            &trained.data,
            factor,
        );
        self.progress.note(format_args!(
            "the change of the weights is scaled by {factor:.2}: {:.1}% and more of what was learned stays",
            100.0 * method.min_retained
        ));
        let factor = f64::from(factor);
        self.run.append_metrics(&Metrics::Interpolation {
            factor,
            seconds: started.elapsed().as_secs_f64(),
        })?;
        Ok(Some(factor))
    }

    /// The new facts asked in other words: for each, its questions and answers.
    fn answer_paraphrases(&mut self) -> Result<Vec<Vec<ParaphraseResult>>> {
        let unknown = &self.splits.unknown;
        if !self.config.measure.paraphrase {
            return Ok(vec![Vec::new(); unknown.len()]);
        }
        let asked: Vec<Fact> = unknown
            .iter()
            .flat_map(|f| {
                f.fact.paraphrases.iter().map(|question| Fact {
                    question: question.clone(),
                    ..f.fact.clone()
                })
            })
            .collect();
        let rule = self.config.data.match_rule;
        let exam = EvalSet::new(&asked, &self.template, &self.model.tokenizer, rule)?;
        let answers = exam.answers(&mut Generator::new(&mut self.engine, &self.model))?;
        let mut answered = asked
            .into_iter()
            .zip(answers)
            .map(|(fact, answer)| ParaphraseResult {
                question: fact.question,
                answer: answer.text,
                correct: answer.correct,
            });
        Ok(self
            .splits
            .unknown
            .iter()
            .map(|f| answered.by_ref().take(f.fact.paraphrases.len()).collect())
            .collect())
    }

    /// The labels of all facts of the run after training, by relation and question, under the same few-shot prompts.
    fn labels_after(&mut self) -> Result<HashMap<(String, String), String>> {
        let Some(again) = &self.audit_after else {
            return Ok(HashMap::new());
        };
        let facts: Vec<Fact> = self.splits.iter().map(|(_, f)| f.fact.clone()).collect();
        let audit = audit::audit_uncached(
            &self.model,
            &mut self.engine,
            &facts,
            Some(&again.exemplars),
            &again.settings,
            self.progress,
        )?;
        Ok(audit
            .facts
            .into_iter()
            .map(|f| ((f.relation, f.question), f.label.name().to_owned()))
            .collect())
    }

    fn fact_results(
        &self,
        after: &[EvalAnswer],
        probabilities: &[Option<f64>],
        paraphrased: Vec<Vec<ParaphraseResult>>,
        drift: &[Drift],
        labels_after: &HashMap<(String, String), String>,
    ) -> Vec<FactResult> {
        let (mut paraphrased, mut drift) = (paraphrased.into_iter(), drift.iter().copied());
        self.splits
            .iter()
            .zip(self.baseline.iter().zip(after))
            .enumerate()
            .map(|(i, ((split, f), (before, after)))| {
                let right_at_peak = self.state.correct_at_peak[i];
                let known = measure::known_at_audit(
                    f.few_shot_accuracy,
                    before.correct_before,
                    right_at_peak,
                );
                let key = (f.fact.relation.clone(), f.fact.question.clone());
                FactResult {
                    split,
                    subject: f.fact.subject.clone(),
                    object: f.fact.target(),
                    label_before: f.label.map(|label| label.name().to_owned()),
                    label_after: labels_after.get(&key).cloned(),
                    relation: key.0,
                    question: key.1,
                    answer_before: before.answer_before.clone(),
                    answer_after: after.text.clone(),
                    correct_before: before.correct_before,
                    correct_at_peak: right_at_peak,
                    correct_after: after.correct,
                    forgotten_once: self.state.lost_once[i],
                    p_before: before.display.p_before,
                    p_after: probabilities[i],
                    nearest: before.display.nearest.clone(),
                    pca: before.display.place,
                    drift: match split {
                        Split::Held => drift.next(),
                        _ => None,
                    },
                    paraphrases: match split {
                        Split::Unknown => paraphrased.next().unwrap_or_default(),
                        _ => Vec::new(),
                    },
                    outcome: FactOutcome::in_run(split, known, after.correct),
                }
            })
            .collect()
    }

    fn result(
        &self,
        rows: &[FactResult],
        after: &[EvalAnswer],
        interpolation: Option<f64>,
    ) -> Result<RunResult> {
        let after: Vec<bool> = after.iter().map(|a| a.correct).collect();
        let accuracy = self.accuracy_stages(&after);
        let held = self.splits.range(Split::Held);
        let (held_at_peak, held_after) = (&self.state.correct_at_peak[held.clone()], &after[held]);
        let in_other_words: Vec<bool> = rows
            .iter()
            .flat_map(|row| &row.paraphrases)
            .map(|p| p.correct)
            .collect();
        let forgetting_pp = measure::forgetting_pp(held_at_peak, held_after);
        let budget = self.config.method.budget;
        let goal = self.config.method.goal;
        Ok(RunResult {
            method: self.method_name(),
            model: self.model.name.clone(),
            goal,
            forgetting_pp,
            forgetting_interval: measure::forgetting_interval(
                held_at_peak,
                held_after,
                self.config.seed,
            ),
            gap_to_only_known_pp: self
                .only_known_held_accuracy()?
                .zip(accuracy.held)
                .map(|(only_known, held)| 100.0 * (only_known - held.after)),
            learned: accuracy.unknown.map(|moments| moments.after),
            learned_paraphrased: measure::accuracy(&in_other_words),
            not_absorbed: accuracy
                .unknown
                .filter(|_| goal == Goal::Task)
                .map(|moments| 1.0 - moments.after),
            accuracy,
            counts: Counts::count(rows.iter().map(|row| row.outcome)),
            budget,
            within_budget: budget
                .zip(forgetting_pp)
                .map(|(budget, pp)| is_within(pp, budget)),
            interpolation,
            epochs: self.state.epoch,
            steps: self.state.step,
            seconds: self.state.seconds,
            eval_seconds: self.state.eval_seconds,
            peak_memory_bytes: system::peak_memory_bytes(),
        })
    }

    fn accuracy_stages(&self, after: &[bool]) -> PerSplit<AccuracyStages> {
        let right_before: Vec<bool> = self.baseline.iter().map(|b| b.correct_before).collect();
        let [start, peak, after] = [&right_before[..], &self.state.correct_at_peak, after]
            .map(|right| self.splits.accuracy(right));
        let mut moments = PerSplit::default();
        for split in Split::ALL {
            let shares = (start.get(split), peak.get(split), after.get(split));
            if let (Some(&start), Some(&peak), Some(&after)) = shares {
                let of_split = AccuracyStages {
                    audit: mean_few_shot(self.splits.get(split)),
                    start,
                    peak,
                    after,
                };
                moments.set(split, of_split);
            }
        }
        moments
    }

    /// The method's kind, and what is combined with it: `self-distill+decoys+ewc+lora`; `only-known` where nothing is new.
    pub(super) fn method_name(&self) -> String {
        let method = &self.config.method;
        if self.learned_rows == self.splits.known.len() {
            return "only-known".into();
        }
        let kind = match method.kind {
            MethodKind::L2 => "l2",
            _ if method.distills() => "self-distill",
            MethodKind::Sft | MethodKind::SelfDistill | MethodKind::Auto => "sft",
        };
        let beside = [
            ("+decoupled", method.exclude_target),
            ("+decoys", method.decoys.is_some()),
            ("+average", self.config.train.ema_decay.is_some()),
            ("+replay", method.replay.is_some()),
            ("+ewc", method.ewc.is_some()),
            ("+project", method.project.is_some()),
            ("+interpolate", method.interpolate.is_some()),
            ("+lora", self.config.train.lora.is_some()),
            ("+task", method.goal == Goal::Task),
        ];
        let beside = beside.into_iter().filter(|(_, given)| *given);
        kind.to_owned() + &beside.map(|(name, _)| name).collect::<String>()
    }

    /// The share of held facts right at the end of the Only Known run that the config names.
    fn only_known_held_accuracy(&self) -> Result<Option<f64>> {
        let Some(baseline) = &self.config.baseline else {
            return Ok(None);
        };
        let result = RunDir::open(baseline)?.result()?;
        Ok(result.and_then(|r| r.accuracy.held).map(|held| held.after))
    }
}

/// Mean share of few-shot prompts answered right; none where some fact was not audited.
fn mean_few_shot(facts: &[LabelledFact]) -> Option<f64> {
    let shares: Option<Vec<f64>> = facts.iter().map(|f| f.few_shot_accuracy).collect();
    shares
        .filter(|shares| !shares.is_empty())
        .map(|shares| shares.iter().sum::<f64>() / shares.len() as f64)
}

/// Rounds weights to what `dtype` can hold.
fn round_to(weights: &mut [f32], dtype: Dtype) {
    match dtype {
        Dtype::F32 => {}
        Dtype::F16 => weights
            .iter_mut()
            .for_each(|w| *w = half::f16::from_f32(*w).to_f32()),
        Dtype::Bf16 => weights
            .iter_mut()
            .for_each(|w| *w = half::bf16::from_f32(*w).to_f32()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_keeps_what_the_type_can_hold() {
        let mut weights = [1.0f32, 0.1, -3.5];
        round_to(&mut weights, Dtype::Bf16);
        assert_eq!(
            weights.map(f32::to_bits),
            [1.0f32, 0.100_097_656, -3.5].map(f32::to_bits)
        );
        let once = weights;
        round_to(&mut weights, Dtype::Bf16);
        assert_eq!(weights.map(f32::to_bits), once.map(f32::to_bits));
    }
}
