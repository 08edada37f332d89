//! The objective: cross-entropy on the target tokens, and what holds the model to its snapshot (eqs. 1 and 3).

use super::activation_cache::ActivationCache;
use crate::{
    distributed,
    engine::{
        Engine, GradSink, Gradients, Loss,
        profile::{Phase, Work, timed},
    },
    model::Params,
    prompt::{Example, PackedExamples, micro_batches},
    remedy::{
        distill::Distillation, snapshot::Snapshot, teacher::Teacher, weight_penalty::WeightPenalty,
    },
};

/// The terms of the loss.
#[derive(Default)]
pub struct Objective {
    /// What holds the model; none in plain fine-tuning and before the snapshot.
    pub snapshot: Option<Snapshot>,
    /// What holds the weights to those of earlier runs, from the first step on.
    pub previous_penalties: Vec<WeightPenalty>,
    /// What rows come to below all that is trained, where that is computed once.
    pub(super) activation_cache: Option<ActivationCache>,
}

/// The rows of one step.
#[derive(Clone, Copy)]
pub struct StepBatch<'a> {
    /// The step, counted from 1: it decides what is drawn at random.
    pub step: usize,
    /// All rows that are trained on.
    pub rows: &'a [Example],
    /// The numbers of those that this step sees.
    pub batch: &'a [usize],
    /// The rows that it sees beside them.
    pub aux: &'a [AuxBatch<'a>],
    /// What every remedy's weight is multiplied by.
    pub strength: f64,
    /// At most as many pass through the model together.
    pub rows_per_micro_batch: usize,
    /// And so many tokens, or one row.
    pub tokens_per_micro_batch: usize,
}

/// Rows beside what is learned: decoys, or known facts replayed.
#[derive(Clone, Copy)]
pub struct AuxBatch<'a> {
    /// Their numbers.
    pub rows: &'a [usize],
    /// What they are held to.
    pub target: AuxTarget,
}

/// What rows beside what is learned are held to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AuxTarget {
    /// Their targets: they join the mean of the step's cross-entropy.
    Label,
    /// The snapshot's answers, so strongly, as a mean over these rows; without cross-entropy.
    Snapshot(f64),
}

impl AuxBatch<'_> {
    /// Those of an epoch's rows that are dealt to its step numbered `step` (from 0) of `steps`: evenly, in order.
    #[must_use]
    pub fn for_step(self, step: usize, steps: usize) -> Self {
        let dealt = self.rows.len() * step / steps..self.rows.len() * (step + 1) / steps;
        Self {
            rows: &self.rows[dealt],
            ..self
        }
    }
}

/// Rows of a step that count alike.
struct RowGroup<'a> {
    rows: &'a [usize],
    /// Whether they have a cross-entropy.
    labelled: bool,
    /// The divergence that they have.
    term: Option<Distillation>,
    /// Targets of all of them.
    targets: usize,
    /// Of them, those before the ones that this process passes.
    targets_before: usize,
    /// The rows of each of this process's passes, and the same packed.
    micro_batches: Vec<(&'a [usize], PackedExamples)>,
}

impl<'a> RowGroup<'a> {
    fn new(
        rows: &'a [usize],
        labelled: bool,
        term: Option<Distillation>,
        of: &StepBatch<'_>,
        frozen: Option<&ActivationCache>,
    ) -> Self {
        let packed = |pass: &[usize]| {
            let mut packed = PackedExamples::new(pass.iter().map(|&row| &of.rows[row]));
            if let Some(frozen) = frozen {
                frozen.attach(&mut packed, pass);
            }
            packed
        };
        let targets = |rows: &[usize]| rows.iter().map(|&row| of.rows[row].num_targets()).sum();
        let own = distributed::shard_range(rows.len());
        let batches = rows[own.clone()].chunks(of.rows_per_micro_batch);
        let passes = batches.flat_map(|rows| {
            micro_batches(rows, of.tokens_per_micro_batch, |&row| {
                of.rows[row].num_tokens()
            })
        });
        Self {
            rows,
            labelled,
            term,
            targets: targets(rows),
            targets_before: targets(&rows[..own.start]),
            micro_batches: passes.map(|pass| (pass, packed(pass))).collect(),
        }
    }

    /// Gives every target its weights, `labelled_targets` having a cross-entropy in the whole step.
    fn set_weights(&mut self, labelled_targets: usize) {
        let ce_weight = if self.labelled {
            (1.0 / labelled_targets as f64) as f32
        } else {
            0.0
        };
        let (rows, targets, term) = (self.rows.len(), self.targets, self.term);
        for (_, packed) in &mut self.micro_batches {
            packed.set_weights(ce_weight, |row_targets| {
                term.map_or(0.0, |t| t.weight(rows, row_targets, targets))
            });
        }
    }
}

impl Objective {
    /// The loss over the rows of a step, and its gradient, which is added to `gradients`.
    ///
    /// `L = CE + lambda L_distill + penalties`: CE is one mean over all target tokens of the batch and of what is replayed with
    /// its labels, `L_distill` is averaged as [`Distillation::weight`] says, over the batch and over each kind of rows beside it
    /// that the snapshot is asked about, and the penalties are those of [`crate::remedy::weight_penalty`] and [`crate::remedy::continual_ewc`]. Since every weight counts
    /// the whole batch, the result is that of one pass, to rounding; of several processes each adds its share, and the sum is that.
    pub fn loss_and_gradients(
        &self,
        engine: &mut Engine,
        mut weights: impl GradSink,
        of: StepBatch<'_>,
        gradients: &mut Gradients,
    ) -> Loss {
        let term = self.teacher().map(|(term, _)| term.scaled(of.strength));
        let group = |rows, labelled, term| {
            RowGroup::new(rows, labelled, term, &of, self.activation_cache.as_ref())
        };
        let mut groups = vec![group(of.batch, true, term)];
        groups.extend(of.aux.iter().map(|beside| match beside.target {
            AuxTarget::Label => group(beside.rows, true, None),
            AuxTarget::Snapshot(strength) => {
                let term = term.map(|term| term.for_aux_examples(of.strength * strength));
                group(beside.rows, false, term)
            }
        }));
        let labelled = groups.iter().filter(|group| group.labelled);
        let labelled_targets = labelled.map(|group| group.targets).sum();

        let mut loss = Loss::default();
        // Of several processes one adds what is about the weights and not about rows.
        if distributed::is_main() {
            loss.penalty = self.penalties(weights.params(), gradients, of.strength);
        }
        let mut passes_left: usize = groups.iter().map(|group| group.micro_batches.len()).sum();
        let mut targets_before = 0;
        for group in &mut groups {
            group.set_weights(labelled_targets);
            let mut first_target = targets_before + group.targets_before;
            targets_before += group.targets;
            for (pass, packed) in &group.micro_batches {
                passes_left -= 1;
                weights.begin_micro_batch(passes_left);
                // Where its answers weigh nothing the teacher is not asked.
                let weighs = packed.targets.iter().any(|t| t.distill_weight != 0.0);
                let asked = self.teacher().filter(|_| weighs);
                let answers = asked.map(|(_, teacher)| teacher.outputs(engine, packed, pass));
                let side = group.term.as_ref().zip(answers.as_ref());
                let side =
                    side.map(|(term, answers)| term.soft_targets(answers, of.step, first_target));
                first_target += packed.targets.len();
                let of_pass = engine.loss_and_gradients(
                    &mut weights,
                    &packed.batch,
                    &packed.targets,
                    side,
                    gradients,
                );
                loss.ce += of_pass.ce;
                loss.distill += of_pass.distill;
            }
        }
        loss
    }

    /// What holds the weights themselves; its gradient is added to `gradients`.
    fn penalties(&self, params: &Params, gradients: &mut Gradients, strength: f64) -> f64 {
        let own = self.snapshot.iter().flat_map(Snapshot::weight_penalties);
        let anchors = self.previous_penalties.iter().chain(own);
        let mut penalty = 0.0;
        for anchor in anchors {
            // Weight, where it is held, gradient read and written; EWC's importance more.
            let work = Work::floats(4 * gradients.data.len());
            penalty += timed(Phase::Penalties, work, || {
                anchor.penalty_and_gradient(params, gradients, strength)
            });
        }
        penalty
    }

    fn teacher(&self) -> Option<&(Distillation, Teacher)> {
        self.snapshot.as_ref()?.teacher.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_an_epoch_is_dealt_once_and_steps_differ_by_one_row_at_most() {
        let rows: Vec<usize> = (40..57).collect();
        let beside = AuxBatch {
            rows: &rows,
            target: AuxTarget::Label,
        };
        let dealt: Vec<&[usize]> = (0..5).map(|step| beside.for_step(step, 5).rows).collect();
        assert_eq!(dealt.concat(), rows);
        assert!(dealt.iter().all(|d| (3..=4).contains(&d.len())));
    }
}
