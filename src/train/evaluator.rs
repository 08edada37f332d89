//! The evaluator: asks the student every fact of the run, before training, after every epoch and at the end.

use std::{collections::HashMap, time::Instant};

use super::{
    records::{Baseline, FactDisplay},
    workload::Workload,
};
use crate::{
    Result,
    audit::{self, AuditSettings, FewShotQuestions},
    config::{BehaviourSchedule, Config},
    facts::{Fact, MatchRule},
    measure::{
        self, Behaviour, BehaviourReference, BehaviourReport, DriftProbe, DriftReference,
        DriftSettings, EvalAnswer, EvalSet, SubjectPrompts, mean_token_loss, middle_layer, nearest,
        pca_2d,
    },
    model::Model,
    progress::{Bar, Progress, WorkKind},
    prompt::{Example, PromptTemplate},
    run::{Drift, ParaphraseResult, PerSplit, Split},
    splits::{LabelledFact, Splits},
    train::student::Student,
};

/// Share of the work of an evaluation of all facts that the answers take; the probabilities of the correct ones take the rest.
const ANSWERS_SHARE: f64 = 0.75;

/// The audit before training, to be repeated after it.
pub(super) struct AuditAfter {
    pub settings: AuditSettings,
    /// The facts of the first audit. The few-shot prompts are drawn from them, and so are the same.
    pub exemplars: Vec<Fact>,
}

/// What an evaluator needs to know of the run beside its config.
pub(super) struct EvaluatorOptions {
    /// How the facts are audited again after training; none: labels after training are null.
    pub audit_after: Option<AuditAfter>,
    /// Measure accuracies only, and nothing that only a report shows.
    pub metrics_only: bool,
    /// Rows whose loss is measured at every evaluation.
    pub validation: Vec<Example>,
    /// Rows of chats and texts that are trained; their loss is measured before training and at the end.
    pub trained_texts: Vec<Example>,
    pub progress: Progress,
}

/// All facts of a run, and how they are asked.
pub(super) struct Evaluator {
    /// The facts, by split.
    pub splits: Splits,
    /// Every fact of the splits.
    facts: EvalSet,
    /// The facts that every evaluation asks.
    pub sample: SplitSample,
    /// The same, where they are not all facts.
    sampled_facts: Option<EvalSet>,
    /// The control facts, where a budget is set.
    control: Option<EvalSet>,
    /// Where drift is measured, and the base model's values there.
    drift: Option<(DriftProbe, DriftReference)>,
    /// The base model's behaviour, where that of the student is measured.
    behaviour: Option<BehaviourReference>,
    behaviour_schedule: BehaviourSchedule,
    /// The base model's answers.
    pub baseline: Vec<Baseline>,
    template: PromptTemplate,
    match_rule: MatchRule,
    seed: u64,
    paraphrases: bool,
    options: EvaluatorOptions,
}

/// One evaluation of all facts.
pub(super) struct Evaluation {
    /// Whether each fact of [`Evaluator::sample`] is answered correctly, in its order.
    pub correct: Vec<bool>,
    /// Accuracy of each split.
    pub accuracy: PerSplit<f64>,
    /// Accuracy on the control facts, where a budget is set.
    pub control: Option<f64>,
    /// Drift from the base model, where it is measured.
    pub drift: Option<Drift>,
    /// Distance of the behaviour from the base model's, where it is measured.
    pub behaviour: Option<Behaviour>,
    /// Mean loss per token of the validation rows, where there are any.
    pub validation_loss: Option<f64>,
    /// Mean loss per token of the trained chats and texts, before training, where there are any.
    pub trained_texts_loss: Option<f64>,
    /// Seconds that asking the facts took.
    pub seconds: f64,
    /// Seconds of all of it.
    pub total_seconds: f64,
}

/// The evaluation of the weights as saved.
pub(super) struct FinalEvaluation {
    /// The answer to every fact, in the order of [`Splits::iter`].
    pub answers: Vec<EvalAnswer>,
    /// The probability of each correct answer.
    pub probabilities: Vec<Option<f64>>,
    /// For every new fact, its paraphrased questions.
    pub paraphrases: Vec<Vec<ParaphraseResult>>,
    /// Drift at every held-out fact; empty where it is not measured.
    pub drift: Vec<Drift>,
    /// Behaviour on general prompts, where it is measured.
    pub behaviour: Option<BehaviourReport>,
    /// Mean loss per token of the validation rows and the number of these tokens, where there are any.
    pub validation: Option<(f64, usize)>,
    /// Mean loss per token of the trained chats and texts, where there are any.
    pub trained_texts_loss: Option<f64>,
    /// Seconds of all of it.
    pub seconds: f64,
}

/// The facts that every evaluation asks: all of a split, or a seeded sample of it.
pub(super) struct SplitSample {
    /// Their indices in [`Splits::iter`], ascending.
    indices: Vec<usize>,
    /// The facts.
    pub splits: Splits,
}

impl SplitSample {
    /// At most `max_facts` of each split.
    fn new(splits: &Splits, max_facts: usize, seed: u64) -> Self {
        let mut sample = Self {
            indices: Vec::new(),
            splits: Splits::default(),
        };
        for (split, range) in splits.ranges() {
            for i in measure::sample(range.len(), max_facts, seed) {
                sample.indices.push(range.start + i);
                sample.splits.push(split, splits.get(split)[i].clone());
            }
        }
        sample
    }

    /// The entries of the sampled facts, of one entry per fact of all splits.
    pub fn select<T: Copy>(&self, of_all: &[T]) -> Vec<T> {
        self.indices.iter().map(|i| of_all[*i]).collect()
    }

    /// The index in the sample of the fact with this index among all facts; `None` if it is not sampled.
    pub fn position(&self, fact: usize) -> Option<usize> {
        self.indices.binary_search(&fact).ok()
    }

    /// Says which splits are sampled.
    fn note(&self, all: &Splits, progress: &Progress) {
        for (split, range) in all.ranges() {
            let sampled = self.splits.get(split).len();
            if sampled < range.len() {
                progress.note(format_args!(
                    "{}: {sampled} of {} facts are asked at each evaluation, a seeded sample (`measure.max_facts`); all are asked before and after training",
                    split.name(),
                    range.len()
                ));
            }
        }
    }
}

impl Evaluator {
    /// An evaluator of the facts in `splits`. Drift is measured from the student as it is now.
    ///
    /// # Errors
    /// When a question cannot be tokenized or is too long.
    pub fn new(
        config: &Config,
        splits: Splits,
        student: &mut Student,
        options: EvaluatorOptions,
    ) -> Result<Self> {
        let template = template(config, &student.model)?;
        let match_rule = config.data.match_rule;
        let tokenizer = &student.model.tokenizer;
        let eval_set = |facts: Vec<&Fact>| EvalSet::new(facts, &template, tokenizer, match_rule);
        let facts = eval_set(splits.iter().map(|(_, f)| &f.fact).collect())?;
        let sample = SplitSample::new(&splits, config.measure.max_facts, config.seed);
        sample.note(&splits, &options.progress);
        let sampled_facts = if sample.indices.len() < facts.len() {
            let sampled = sample.splits.iter().map(|(_, f)| &f.fact);
            Some(eval_set(sampled.collect())?)
        } else {
            None
        };
        let control = eval_set(splits.control.iter().map(|f| &f.fact).collect())?;
        let drift = if config.measure.drift {
            let settings = DriftSettings {
                seed: config.seed,
                template: template.clone(),
                ..DriftSettings::default()
            };
            Some(drift_probe(student, &splits, &settings, &options.progress)?)
        } else {
            None
        };
        let behaviour_schedule = if options.metrics_only {
            BehaviourSchedule::Never
        } else {
            config.measure.behaviour
        };
        let behaviour = match behaviour_schedule {
            BehaviourSchedule::Never => None,
            BehaviourSchedule::End | BehaviourSchedule::Every => {
                behaviour_reference(student, &options.progress)?
            }
        };
        Ok(Self {
            splits,
            facts,
            sample,
            sampled_facts,
            behaviour,
            behaviour_schedule,
            control: config.method.budget.map(|_| control),
            drift,
            baseline: Vec::new(),
            template,
            match_rule,
            seed: config.seed,
            paraphrases: config.measure.paraphrase,
            options,
        })
    }

    /// The number of questions of one evaluation.
    pub fn num_questions(&self) -> usize {
        self.epoch_facts().len() + self.control.as_ref().map_or(0, EvalSet::len)
    }

    /// Whether the audit is repeated after training.
    pub fn repeats_audit(&self) -> bool {
        self.options.audit_after.is_some()
    }

    /// The facts that every evaluation asks.
    fn epoch_facts(&self) -> &EvalSet {
        self.sampled_facts.as_ref().unwrap_or(&self.facts)
    }

    /// Evaluates the student. When it is interrupted nothing has changed.
    pub fn evaluate(&self, student: &mut Student) -> Result<Evaluation> {
        let started = Instant::now();
        let facts = self.epoch_facts();
        let bar = self.bar(facts.len(), "evaluation", facts.len() as f64);
        let correct = facts.correct(&mut student.generator(), &|n| bar.inc(n as u64))?;
        drop(bar);
        let evaluation = self.evaluation(student, correct, [started, Instant::now()])?;
        let behaviour = match (&self.behaviour, self.behaviour_schedule) {
            (Some(reference), BehaviourSchedule::Every) => {
                let progress = &self.options.progress;
                let report = reference.measure(&mut student.generator(), progress)?;
                Some(report.behaviour)
            }
            _ => None,
        };
        if let Some(behaviour) = behaviour {
            self.options
                .progress
                .note(format_args!("    behaviour: {behaviour}"));
        }
        Ok(Evaluation {
            behaviour,
            total_seconds: started.elapsed().as_secs_f64(),
            ..evaluation
        })
    }

    /// Evaluates the base model and stores its answers in [`Evaluator::baseline`].
    pub fn evaluate_baseline(&mut self, student: &mut Student) -> Result<Evaluation> {
        let started = Instant::now();
        let answers = self.answers(student)?;
        let answered = Instant::now();
        let correct: Vec<bool> = answers.iter().map(|a| a.correct).collect();
        let trained_texts_loss = self.trained_texts_loss(student)?;
        let displays = self.fact_displays(student)?;
        let before = self.few_shot_answers(student, answers)?;
        let baseline = before.into_iter().zip(&correct).zip(displays);
        self.baseline = baseline
            .map(|((before, correct_at_start), display)| Baseline {
                answer_before: before.text,
                correct_before: before.correct,
                correct_at_start: *correct_at_start,
                display,
            })
            .collect();
        let correct = self.sample.select(&correct);
        Ok(Evaluation {
            behaviour: self.behaviour.as_ref().map(|_| Behaviour::UNCHANGED),
            trained_texts_loss,
            ..self.evaluation(student, correct, [started, answered])?
        })
    }

    fn evaluation(
        &self,
        student: &mut Student,
        correct: Vec<bool>,
        [started, answered]: [Instant; 2],
    ) -> Result<Evaluation> {
        let control = self.control_accuracy(student)?;
        let drift = self.drift(student);
        let validation = self.validation_loss(student)?;
        if let Some((loss, _)) = validation {
            self.options.progress.note(format_args!(
                "    validation loss {loss:.4} (perplexity {:.2})",
                loss.exp()
            ));
        }
        Ok(Evaluation {
            accuracy: self.sample.splits.accuracy(&correct),
            correct,
            control,
            drift,
            behaviour: None,
            validation_loss: validation.map(|(loss, _)| loss),
            trained_texts_loss: None,
            seconds: (answered - started).as_secs_f64(),
            total_seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// The student's answer to every fact. Where answers are not shown, only whether they are correct, which takes less.
    fn answers(&self, student: &mut Student) -> Result<Vec<EvalAnswer>> {
        let mut generator = student.generator();
        let questions = self.facts.len() as f64 * ANSWERS_SHARE;
        let bar = self.bar(self.facts.len(), "evaluation", questions);
        let on_finished = |n| bar.inc(n as u64);
        if !self.options.metrics_only {
            return self.facts.answers(&mut generator, &on_finished);
        }
        let correct = self
            .facts
            .correct(&mut generator, &on_finished)?
            .into_iter();
        let answers = correct.map(|correct| EvalAnswer {
            text: String::new(),
            correct,
        });
        Ok(answers.collect())
    }

    /// What the base model knows of every fact: the answers of the audit, and where it stopped decoding a wrong one, the model is
    /// asked again. A fact that was not audited keeps its answer at the training prompt, one of `at_start`.
    fn few_shot_answers(
        &self,
        student: &mut Student,
        at_start: Vec<EvalAnswer>,
    ) -> Result<Vec<EvalAnswer>> {
        let facts: Vec<&LabelledFact> = self.splits.iter().map(|(_, f)| f).collect();
        let audited = |(fact, at_start): (&&LabelledFact, EvalAnswer)| match fact.known_at_audit() {
            Some(correct) => EvalAnswer {
                text: fact.few_shot_answer.clone().unwrap_or_default(),
                correct,
            },
            None => at_start,
        };
        let mut answers: Vec<EvalAnswer> = facts.iter().zip(at_start).map(audited).collect();
        if self.options.metrics_only || self.splits.prompts.is_empty() {
            return Ok(answers);
        }
        let questions = FewShotQuestions {
            prompts: &self.splits.prompts,
            template: &self.template,
            match_rule: self.match_rule,
        };
        let mut cut: Vec<usize> = (0..answers.len())
            .filter(|i| answers[*i].text.ends_with('\u{2026}'))
            .collect();
        // Most wrong answers are wrong under the first prompt. Under some prompt each of them is.
        for max_prompts in [1, usize::MAX] {
            let asked: Vec<&Fact> = cut.iter().map(|i| &facts[*i].fact).collect();
            let generator = &mut student.generator();
            let progress = &self.options.progress;
            let full = questions.answers_under(&asked, max_prompts, generator, progress)?;
            let mut still_cut = Vec::new();
            for (i, full) in cut.into_iter().zip(full) {
                match full.into_iter().find(|answer| !answer.correct) {
                    Some(wrong) => answers[i].text = wrong.text,
                    None => still_cut.push(i),
                }
            }
            cut = still_cut;
        }
        Ok(answers)
    }

    /// The probability of each correct answer.
    fn probabilities(&self, student: &mut Student) -> Result<Vec<f64>> {
        let questions = self.facts.len() as f64 * (1.0 - ANSWERS_SHARE);
        let bar = self.bar(self.facts.len(), "probabilities", questions);
        self.facts
            .probabilities(&mut student.generator(), &|n| bar.inc(n as u64))
    }

    /// A bar over a part of an evaluation, which is as much work as so many `questions`.
    fn bar(&self, total: usize, label: &str, questions: f64) -> Bar {
        let work = questions * Workload::evaluation(1).flops(1.0);
        self.options
            .progress
            .minor_bar(total as u64, label)
            .with_work(WorkKind::Evaluation, work)
    }

    /// Accuracy on the control facts, where a budget is set.
    fn control_accuracy(&self, student: &mut Student) -> Result<Option<f64>> {
        let Some(control) = &self.control else {
            return Ok(None);
        };
        let bar = self.bar(control.len(), "control facts", control.len() as f64);
        let correct = control.correct(&mut student.generator(), &|n| bar.inc(n as u64))?;
        Ok(Some(measure::accuracy(&correct).unwrap_or_default()))
    }

    /// Mean loss per token of the validation rows and the number of these tokens, where there are any.
    fn validation_loss(&self, student: &mut Student) -> Result<Option<(f64, usize)>> {
        let rows = &self.options.validation;
        let bar = self.bar(rows.len(), "validation loss", 0.0);
        mean_token_loss(&mut student.generator(), rows, &|n| bar.inc(n as u64))
    }

    /// Mean loss per token of the trained chats and texts, where there are any.
    fn trained_texts_loss(&self, student: &mut Student) -> Result<Option<f64>> {
        let rows = &self.options.trained_texts;
        let bar = self.bar(rows.len(), "loss of the trained texts", 0.0);
        let loss = mean_token_loss(&mut student.generator(), rows, &|n| bar.inc(n as u64))?;
        Ok(loss.map(|(loss, _)| loss))
    }

    /// Drift of the student from the base model, where it is measured.
    fn drift(&self, student: &mut Student) -> Option<Drift> {
        let (probe, base) = self.drift.as_ref()?;
        let progress = &self.options.progress;
        let drift = probe.drift(&mut student.engine, &student.model, base, progress);
        progress.note(format_args!("    drift: {drift}"));
        Some(drift)
    }

    /// What a report shows of every fact beside the base model's answer.
    fn fact_displays(&self, student: &mut Student) -> Result<Vec<FactDisplay>> {
        if self.options.metrics_only {
            return Ok(vec![FactDisplay::default(); self.facts.len()]);
        }
        let probabilities = self.probabilities(student)?;
        let facts: Vec<&Fact> = self.splits.iter().map(|(_, f)| &f.fact).collect();
        let (model, engine) = (&student.model, &mut student.engine);
        let subjects = SubjectPrompts::new(facts.iter().copied(), model, engine, &self.template)?;
        let layer = middle_layer(model);
        let states = subjects.subject_states(engine, model, layer, &self.options.progress);
        let d = model.config.hidden_size;
        let new = self.splits.range(Split::Unknown);
        let (before, rest) = states.split_at(new.start * d);
        let (of_new, after) = rest.split_at(new.len() * d);
        let near = |states| nearest(&facts[new.clone()], of_new, states, d);
        let of_new_facts = vec![Vec::new(); new.len()];
        let neighbours = [near(before), of_new_facts, near(after)].concat();
        let coordinates = pca_2d(&states, d, self.seed);
        Ok(probabilities
            .into_iter()
            .zip(neighbours)
            .zip(coordinates)
            .map(|((p, nearest), pca)| FactDisplay {
                p_before: Some(p),
                nearest,
                pca: Some(pca),
            })
            .collect())
    }

    /// Evaluates the weights as saved.
    pub fn evaluate_final(&self, student: &mut Student) -> Result<FinalEvaluation> {
        let started = Instant::now();
        let answers = self.answers(student)?;
        let paraphrases = self.answer_paraphrases(student)?;
        let mut probabilities = vec![None; answers.len()];
        if !self.options.metrics_only {
            let after = self.probabilities(student)?;
            probabilities = after.into_iter().map(Some).collect();
        }
        let drift = self.held_drift(student);
        let validation = self.validation_loss(student)?;
        let trained_texts_loss = self.trained_texts_loss(student)?;
        let behaviour = match &self.behaviour {
            Some(reference) => {
                let progress = &self.options.progress;
                let report = reference.measure(&mut student.generator(), progress)?;
                Some(report)
            }
            None => None,
        };
        Ok(FinalEvaluation {
            behaviour,
            validation,
            trained_texts_loss,
            answers,
            probabilities,
            paraphrases,
            drift,
            seconds: started.elapsed().as_secs_f64(),
        })
    }

    /// For every new fact, its paraphrased questions with the student's answers.
    fn answer_paraphrases(&self, student: &mut Student) -> Result<Vec<Vec<ParaphraseResult>>> {
        let new = &self.splits.unknown;
        if !self.paraphrases {
            return Ok(vec![Vec::new(); new.len()]);
        }
        let paraphrased = |f: &LabelledFact| -> Vec<Fact> {
            let questions = f.fact.paraphrases.iter();
            let ask = |question: &String| Fact {
                question: question.clone(),
                ..f.fact.clone()
            };
            questions.map(ask).collect()
        };
        let facts: Vec<Fact> = new.iter().flat_map(paraphrased).collect();
        let bar = self.bar(facts.len(), "paraphrased questions", 0.0);
        let answers = self
            .eval_set(&facts, student)?
            .answers(&mut student.generator(), &|n| bar.inc(n as u64))?;
        let mut results = facts
            .into_iter()
            .zip(answers)
            .map(|(fact, answer)| ParaphraseResult {
                question: fact.question,
                answer: answer.text,
                correct: answer.correct,
            });
        let of_fact = |f: &LabelledFact| -> Vec<ParaphraseResult> {
            results.by_ref().take(f.fact.paraphrases.len()).collect()
        };
        Ok(new.iter().map(of_fact).collect())
    }

    /// An evaluation set of other facts, asked as those of the run.
    pub fn eval_set<'a>(
        &self,
        facts: impl IntoIterator<Item = &'a Fact>,
        student: &Student,
    ) -> Result<EvalSet> {
        let tokenizer = &student.model.tokenizer;
        EvalSet::new(facts, &self.template, tokenizer, self.match_rule)
    }

    /// Drift at every held-out fact; empty where it is not measured.
    fn held_drift(&self, student: &mut Student) -> Vec<Drift> {
        let Some((probe, base)) = &self.drift else {
            return Vec::new();
        };
        let progress = &self.options.progress;
        probe.drift_per_fact(&mut student.engine, &student.model, base, progress)
    }

    /// Labels of all facts after training, by relation and question, under the same few-shot prompts as before; empty where the base
    /// model was not audited.
    pub fn labels_after(&self, student: &mut Student) -> Result<HashMap<(String, String), String>> {
        let Some(again) = &self.options.audit_after else {
            return Ok(HashMap::new());
        };
        let facts: Vec<Fact> = self.splits.iter().map(|(_, f)| f.fact.clone()).collect();
        let audit = audit::audit_uncached(
            &student.model,
            &mut student.engine,
            &facts,
            Some(&again.exemplars),
            &again.settings,
            &self.options.progress,
        )?;
        let facts = audit.facts.into_iter();
        Ok(facts
            .map(|f| ((f.relation, f.question), f.label.name().to_owned()))
            .collect())
    }
}

/// The base model's behaviour, which `student` has as it is now; `None` if no general prompt fits into its context.
fn behaviour_reference(
    student: &mut Student,
    progress: &Progress,
) -> Result<Option<BehaviourReference>> {
    let layout = &student.model.params.layout;
    let tensors = layout.tensors.iter().enumerate();
    let head = tensors
        .filter(|(_, tensor)| tensor.range == layout.head)
        .map(|(i, _)| i)
        .next();
    let trains_head = head.is_some_and(|i| student.gradients.contains(i));
    let (base, engine) = (&student.model, &mut student.engine);
    let reference = BehaviourReference::new(base, engine, trains_head, progress)?;
    if reference.is_none() {
        progress.note(
            "the behaviour on general prompts is not measured: they do not fit into the model's context",
        );
    }
    Ok(reference)
}

/// The states and answers of `student` at the new and the held-out facts, and how to measure them again.
fn drift_probe(
    student: &mut Student,
    splits: &Splits,
    settings: &DriftSettings,
    progress: &Progress,
) -> Result<(DriftProbe, DriftReference)> {
    let facts = |of: &[LabelledFact]| of.iter().map(|f| f.fact.clone()).collect::<Vec<Fact>>();
    let (new, held) = (facts(&splits.unknown), facts(&splits.held));
    let (base, engine) = (&student.model, &mut student.engine);
    let probe = DriftProbe::new(base, engine, [&new, &held], settings)?;
    let reference = probe.reference(engine, base, progress);
    Ok((probe, reference))
}

/// How facts are asked and answered.
pub(super) fn template(config: &Config, model: &Model) -> Result<PromptTemplate> {
    PromptTemplate::from_config(&config.data).for_model(config.data.chat, &model.tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distributed::Comm;

    fn splits() -> Splits {
        let facts = |subjects: &[&str]| {
            let facts = subjects.iter().map(|s| Fact::for_test(s, "Italy"));
            facts.collect::<Vec<_>>()
        };
        Splits::as_given(
            facts(&["Bergamo"]),
            facts(&["Rome", "Milan"]),
            facts(&["Turin"]),
        )
    }

    #[test]
    fn an_evaluation_asks_every_fact_and_leaves_the_student_as_it_is() {
        let mut config = Config::default();
        config.measure.behaviour = BehaviourSchedule::Never;
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        let model = Model::load(path).expect("the golden model is there");
        let mut student = Student::new(&config, model, Comm::single()).expect("it is trainable");
        let options = EvaluatorOptions {
            audit_after: None,
            metrics_only: false,
            validation: Vec::new(),
            trained_texts: Vec::new(),
            progress: Progress::quiet(),
        };
        let mut evaluator =
            Evaluator::new(&config, splits(), &mut student, options).expect("questions");
        assert_eq!(evaluator.num_questions(), 4);
        assert!(!evaluator.repeats_audit());

        let weights = student.model.params.data.to_vec();
        let before = evaluator.evaluate_baseline(&mut student).expect("answers");
        assert_eq!(before.correct.len(), 4);
        let stored: Vec<bool> = evaluator
            .baseline
            .iter()
            .map(|b| b.correct_before)
            .collect();
        assert_eq!(stored, before.correct);
        let again = evaluator.evaluate(&mut student).expect("answers");
        assert_eq!(again.correct, before.correct);
        assert_eq!(again.accuracy, evaluator.splits.accuracy(&before.correct));
        assert!(again.control.is_none() && again.drift.is_none());
        assert_eq!(student.model.params.data[..], weights[..]);
    }
}
