//! The plan of a run: the work of its parts, for the estimate at its start and the time left while it runs.

use std::sync::LazyLock;

use super::{
    data::Data,
    evaluator::Evaluator,
    sampler::Sampler,
    workload::{TOKENS_PER_ROW, Workload, flops_per_second},
};
use crate::{
    audit::Label,
    config::{BehaviourSchedule, Config},
    format,
    progress::{Progress, WorkKind},
    prompt::Example,
};

/// Floating-point operations of a run relative to those of plain matmuls in the same time: attention, norms and small matmuls are
/// slower.
const EFFICIENCY: f64 = 0.8;

/// Floating-point operations per second of a run on this machine.
static FLOPS_PER_SECOND: LazyLock<f64> = LazyLock::new(|| EFFICIENCY * flops_per_second());

/// The work of a run, part by part.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Plan {
    pub audit: Workload,
    pub training: Workload,
    pub evaluations: Workload,
    pub behaviour: Workload,
    pub audit_after: Workload,
    /// Whether training may end before its last epoch.
    may_end_early: bool,
}

impl Plan {
    /// The plan of a run whose audit is still to come, with `given_tokens` in the rows of its files. The audit is expected to find a
    /// sixth of the pool `HighlyKnown`, and every given fact.
    pub fn before_audit(config: &Config, data: &Data, given_tokens: usize) -> Self {
        let new_rows = data.learn.len() + data.texts.len();
        let (mut known_rows, mut tokens) = (data.num_kept(), given_tokens);
        if known_rows == 0 {
            known_rows = new_rows.min(data.expected_in_pool(Label::HighlyKnown));
            tokens += known_rows * TOKENS_PER_ROW as usize;
        }
        let facts = data.learn.len() + known_rows + data.expected_held(known_rows);
        let audited = data.facts_to_audit().len();
        // Of the base model, and of the model as saved.
        let other_evaluations = 2;
        let epochs = config.train.num_epochs;
        let mut plan = Self::new(config, epochs, other_evaluations, tokens, facts, audited);
        if config.measure.behaviour != BehaviourSchedule::Never {
            // The base model's own answers.
            plan.behaviour += Workload::behaviour(1);
        }
        plan
    }

    /// The plan of a run whose facts are split, the base model evaluated, and so many epochs trained. Decoys are expected to be as
    /// long as the other rows.
    pub fn after_audit(
        config: &Config,
        sampler: &Sampler,
        evaluator: &Evaluator,
        epochs_done: usize,
    ) -> Self {
        let tokens = sampler.learned().iter().map(Example::num_tokens).sum();
        let epochs = config.train.num_epochs.saturating_sub(epochs_done);
        // Of the model as saved.
        let other_evaluations = 1;
        let mut plan = Self::new(
            config,
            epochs,
            other_evaluations,
            tokens,
            evaluator.num_questions(),
            0,
        );
        if !evaluator.repeats_audit() {
            plan.audit_after = Workload::default();
        }
        plan
    }

    /// The plan of so many `epochs`, each over `tokens`, and of so many evaluations beside those after epochs.
    fn new(
        config: &Config,
        epochs: usize,
        other_evaluations: usize,
        tokens: usize,
        questions: usize,
        audited: usize,
    ) -> Self {
        let num_prompts = config.data.audit.as_ref().map_or(0, |a| a.num_prompts);
        let decoys = config.method.decoys.map_or(0.0, |decoys| decoys.ratio);
        let epoch_tokens = (tokens as f64 * (1.0 + decoys)) as usize;
        Self {
            audit: Workload::audit(num_prompts * audited),
            training: Workload::training(epochs * epoch_tokens),
            evaluations: Workload::evaluation(
                (config.measure.num_evaluations(epochs) + other_evaluations) * questions,
            ),
            behaviour: Workload::behaviour(config.measure.num_behaviours(epochs)),
            audit_after: Workload::audit(num_prompts * questions),
            may_end_early: epochs > 0 && config.train.early_stopping.is_some(),
        }
    }

    fn total(self) -> Workload {
        let mut total = self.audit;
        total += self.training;
        total += self.evaluations;
        total += self.behaviour;
        total += self.audit_after;
        total
    }

    /// Tells `progress` how much work is left, for a model of `weights` parameters.
    pub fn announce(self, weights: usize, progress: &Progress) {
        let work = [
            (WorkKind::Audit, self.audit),
            (WorkKind::Training, self.training),
            (WorkKind::Evaluation, self.evaluations),
            (WorkKind::Behaviour, self.behaviour),
            (WorkKind::Audit, self.audit_after),
        ];
        let work = work.map(|(kind, work)| (kind, work.flops(1.0)));
        progress.set_work_left(
            &work,
            weights as f64 / *FLOPS_PER_SECOND,
            self.may_end_early,
        );
    }

    /// `estimated time: 6 min (audit 2 min, training 3 min, ...)`, for a model of `weights` parameters on this machine.
    pub fn estimate(self, weights: usize) -> String {
        let time =
            |work: Workload| format::duration(work.flops(weights as f64) / *FLOPS_PER_SECOND);
        let named = [
            ("audit", self.audit),
            ("training", self.training),
            ("evaluations", self.evaluations),
            ("general prompts", self.behaviour),
            ("audit afterwards", self.audit_after),
        ];
        let parts = named.into_iter().filter(|(_, work)| work.flops(1.0) > 0.0);
        let parts: Vec<String> = parts
            .map(|(name, work)| format!("{name} {}", time(work)))
            .collect();
        format!(
            "estimated time: {} at most ({}); audits that were made before take none",
            time(self.total()),
            parts.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_counts_every_part_of_a_run() {
        let mut config = Config::default();
        config.method.decoys = None;
        config.train.num_epochs = 3;
        config.data.audit.as_mut().expect("by default").num_prompts = 5;
        let plan = Plan::new(&config, config.train.num_epochs, 2, 100, 40, 200);
        let flops = |work: Workload| work.flops(1.0);
        assert_eq!(flops(plan.training), 6.0 * 3.0 * 100.0);
        assert_eq!(flops(plan.evaluations), 2.0 * 5.0 * 40.0 * 12.0);
        assert_eq!(flops(plan.audit), flops(plan.audit_after) * 5.0);
        let parts = [
            plan.audit,
            plan.training,
            plan.evaluations,
            plan.behaviour,
            plan.audit_after,
        ];
        assert_eq!(flops(plan.total()), parts.map(flops).iter().sum::<f64>());

        config.measure.every = 2;
        config.measure.behaviour = BehaviourSchedule::Every;
        let seldom = Plan::new(&config, config.train.num_epochs, 2, 100, 40, 200);
        // Before training, after the second and the last epoch, and of the model as saved.
        assert_eq!(flops(seldom.evaluations), 2.0 * 4.0 * 40.0 * 12.0);
        assert_eq!(flops(seldom.behaviour), 3.0 * flops(plan.behaviour));

        let text = plan.estimate(1);
        assert!(text.contains("training"), "{text}");
        config.data.audit = None;
        let text = Plan::new(&config, 3, 2, 100, 40, 0).estimate(1);
        assert!(!text.contains("audit afterwards"), "{text}");
    }
}
