//! The objective: cross-entropy on the target tokens, the distillation term (eq. 2) and the weight penalties (eq. 3).

use std::convert::Infallible;

use super::activation_cache::ActivationCache;
use crate::{
    distributed::Comm,
    engine::{
        Batch, Engine, GradSink, Gradients, Loss, SoftTargets,
        profile::{Phase, Work, timed},
    },
    model::Params,
    prompt::{Example, PackedExamples, micro_batches},
    remedy::{
        distill::Distillation,
        snapshot::{DistillTeacher, Snapshot},
        teacher::{OnlineTeacher, Teacher, TeacherOutputs},
        weight_penalty::WeightPenalty,
    },
};

/// The terms of the loss.
#[derive(Default)]
pub struct Objective {
    /// The teacher and the penalties from the snapshot on; none in plain fine-tuning and before the snapshot.
    pub snapshot: Option<Snapshot>,
    /// EWC penalties toward the weights of earlier runs, from the first step on.
    pub previous_penalties: Vec<WeightPenalty>,
    /// Activations below all trained layers, where they are computed once.
    pub(super) activation_cache: Option<ActivationCache>,
}

/// The rows of one step.
#[derive(Clone, Copy)]
pub struct StepBatch<'a> {
    /// The step, counted from 1: the seed of what is drawn at random.
    pub step: usize,
    /// All examples of the run.
    pub examples: &'a [Example],
    /// Indices of the examples of this step.
    pub indices: &'a [usize],
    /// Auxiliary examples of this step: decoys and replayed facts.
    pub aux: &'a [AuxBatch<'a>],
    /// The factor on the weight of every remedy.
    pub strength: f64,
    /// Maximum number of examples per micro-batch.
    pub rows_per_micro_batch: usize,
    /// Maximum number of tokens per micro-batch; a longer example has one of its own.
    pub tokens_per_micro_batch: usize,
}

/// Auxiliary examples next to those that are learned: decoys, or replayed known facts.
#[derive(Clone, Copy)]
pub struct AuxBatch<'a> {
    /// Their indices.
    pub indices: &'a [usize],
    /// Their training target.
    pub target: AuxTarget,
}

/// The training target of auxiliary examples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AuxTarget {
    /// Their labels: they are part of the mean of the step's cross-entropy.
    Label,
    /// The teacher's distribution, with this weight, as a mean over these examples; no cross-entropy.
    Snapshot(f64),
}

/// Examples of a step that have the same terms of the loss.
struct ExampleGroup<'a> {
    indices: &'a [usize],
    /// Whether they have a cross-entropy.
    labelled: bool,
    /// Their distillation term.
    term: Option<Distillation>,
    /// Target tokens of all of them.
    targets: usize,
    /// The sum of their weights.
    target_weight: f64,
    /// Target tokens of the examples before this process's shard.
    targets_before: usize,
    /// This process's micro-batches: the indices of their examples, and the packed examples.
    micro_batches: Vec<(&'a [usize], PackedExamples)>,
}

/// Some examples of a step, packed for one pass.
pub struct MicroBatch<'a> {
    /// The examples.
    pub packed: &'a PackedExamples,
    /// Micro-batches that follow in this step.
    pub remaining: usize,
    indices: &'a [usize],
    /// The teacher and its term, where a target has a divergence from it.
    teacher: Option<(&'a Teacher, &'a Distillation)>,
    step: usize,
    /// Index of the first target in the whole step.
    first_target: usize,
}

impl<'a> MicroBatch<'a> {
    /// What the teacher says at the targets; `hidden` computes hidden states for a teacher that does not keep them.
    ///
    /// # Errors
    /// That of `hidden`.
    pub fn teacher_outputs<E>(
        &self,
        hidden: impl FnOnce(&OnlineTeacher, &Batch, &[usize]) -> Result<Vec<f32>, E>,
    ) -> Result<Option<TeacherOutputs<'a>>, E> {
        let teacher = self.teacher.map(|(teacher, _)| teacher);
        let outputs = teacher.map(|teacher| teacher.outputs(hidden, self.packed, self.indices));
        outputs.transpose()
    }

    /// The same as targets of the student.
    pub fn soft_targets<'t>(
        &self,
        outputs: Option<&'t TeacherOutputs<'t>>,
    ) -> Option<SoftTargets<'t>> {
        let ((_, term), outputs) = self.teacher.zip(outputs)?;
        Some(term.soft_targets(outputs, self.step, self.first_target))
    }
}

impl<'a> ExampleGroup<'a> {
    fn new(
        indices: &'a [usize],
        labelled: bool,
        term: Option<Distillation>,
        batch: &StepBatch<'_>,
        objective: &Objective,
        comm: Comm,
    ) -> Self {
        let packed = |micro_batch: &[usize]| {
            let examples = micro_batch.iter().map(|&i| &batch.examples[i]);
            let mut packed = PackedExamples::new(examples);
            if let Some(cache) = &objective.activation_cache {
                cache.attach(&mut packed, micro_batch);
            }
            packed
        };
        let targets = |indices: &[usize]| {
            let indices = indices.iter();
            indices.map(|&i| batch.examples[i].num_targets()).sum()
        };
        let own = comm.shard_range(indices.len());
        let batches = indices[own.clone()].chunks(batch.rows_per_micro_batch);
        let micro_batches = batches.flat_map(|indices| {
            let tokens = batch.tokens_per_micro_batch;
            micro_batches(indices, tokens, |&i| batch.examples[i].num_tokens())
        });
        Self {
            indices,
            labelled,
            term,
            targets: targets(indices),
            target_weight: indices
                .iter()
                .map(|&i| batch.examples[i].target_weight())
                .sum(),
            targets_before: targets(&indices[..own.start]),
            micro_batches: micro_batches
                .map(|indices| (indices, packed(indices)))
                .collect(),
        }
    }

    /// Sets the weight of every target in the loss; the targets of the whole step that have a cross-entropy have the weight
    /// `labelled_weight` together.
    fn set_weights(&mut self, labelled_weight: f64) {
        let ce_weight = if self.labelled {
            1.0 / labelled_weight
        } else {
            0.0
        };
        let (examples, targets, term) = (self.indices.len(), self.targets, self.term);
        for (_, packed) in &mut self.micro_batches {
            packed.set_weights(ce_weight, |example_targets| {
                term.map_or(0.0, |t| t.weight(examples, example_targets, targets))
            });
        }
    }
}

impl Objective {
    /// The loss of a step; its gradient is added to `gradients`.
    ///
    /// ```text
    /// L = CE + lambda L_distill + penalties
    /// ```
    ///
    /// CE is one mean over all target tokens of the batch and of the examples that are replayed with their labels, each weighted as its
    /// example ([`crate::config::RowWeight`]); no other term depends on these weights. `L_distill` is reduced as in [`Distillation::weight`], separately over the batch and over each kind of auxiliary examples that have a
    /// teacher. The penalties are those of [`crate::remedy::weight_penalty`] and [`crate::remedy::continual_ewc`]. Weights
    /// refer to the whole batch, so the result does not depend on the micro-batches, up to rounding. With several processes, each
    /// returns the loss of its shard.
    pub fn loss_and_gradients(
        &self,
        engine: &mut Engine,
        mut sink: impl GradSink,
        batch: StepBatch<'_>,
        gradients: &mut Gradients,
    ) -> Loss {
        let comm = engine.comm();
        let mut loss = Loss::default();
        // The penalties depend on the weights only; with several processes, one adds them.
        if comm.is_main() {
            loss.penalty = self.penalties(sink.params(), gradients, batch.strength);
        }
        let passed: Result<(), Infallible> = self.each_micro_batch(&batch, comm, |micro_batch| {
            sink.begin_micro_batch(micro_batch.remaining);
            let hidden = |teacher: &OnlineTeacher, batch: &Batch, at: &[usize]| {
                let weights = teacher.weights(sink.params());
                Ok::<_, Infallible>(engine.hidden(weights, batch, at))
            };
            let outputs = micro_batch.teacher_outputs(hidden)?;
            let packed = micro_batch.packed;
            let own = engine.loss_and_gradients(
                &mut sink,
                &packed.batch,
                &packed.targets,
                micro_batch.soft_targets(outputs.as_ref()),
                gradients,
            );
            loss.ce += own.ce;
            loss.distill += own.distill;
            Ok(())
        });
        let Ok(()) = passed;
        loss
    }

    /// Calls `pass` for every micro-batch of this process, in order.
    ///
    /// # Errors
    /// The first one of `pass`.
    pub fn each_micro_batch<E>(
        &self,
        batch: &StepBatch<'_>,
        comm: Comm,
        mut pass: impl FnMut(MicroBatch<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut groups = self.groups(batch, comm);
        let labelled = groups.iter().filter(|group| group.labelled);
        let labelled_weight = labelled.map(|group| group.target_weight).sum();
        let mut remaining: usize = groups.iter().map(|group| group.micro_batches.len()).sum();
        let mut targets_before = 0;
        for group in &mut groups {
            group.set_weights(labelled_weight);
            let mut first_target = targets_before + group.targets_before;
            targets_before += group.targets;
            for (indices, packed) in &group.micro_batches {
                remaining -= 1;
                let has_weight = packed.targets.iter().any(|t| t.distill_weight != 0.0);
                let teacher = self.teacher().filter(|_| has_weight);
                pass(MicroBatch {
                    packed,
                    remaining,
                    indices,
                    teacher: teacher.map(|t| &t.teacher).zip(group.term.as_ref()),
                    step: batch.step,
                    first_target,
                })?;
                first_target += packed.targets.len();
            }
        }
        Ok(())
    }

    /// The examples of a step, by the terms of the loss that they have.
    fn groups<'a>(&self, batch: &StepBatch<'a>, comm: Comm) -> Vec<ExampleGroup<'a>> {
        let term = self.teacher().map(|t| t.term.scaled(batch.strength));
        let group =
            |indices, labelled, term| ExampleGroup::new(indices, labelled, term, batch, self, comm);
        let mut groups = vec![group(batch.indices, true, term)];
        groups.extend(batch.aux.iter().map(|aux| match aux.target {
            AuxTarget::Label => group(aux.indices, true, None),
            AuxTarget::Snapshot(weight) => {
                let term = term.map(|term| term.for_aux_examples(batch.strength * weight));
                group(aux.indices, false, term)
            }
        }));
        groups
    }

    /// The weight penalties; their gradient is added to `gradients`.
    fn penalties(&self, params: &Params, gradients: &mut Gradients, strength: f64) -> f64 {
        let mut sum = 0.0;
        for penalty in self.weight_penalties() {
            // Reads weight and center, reads and writes the gradient; EWC reads its importance, too.
            let work = Work::floats(4 * gradients.data.len());
            sum += timed(Phase::Penalties, work, || {
                penalty.penalty_and_gradient(params, gradients, strength)
            });
        }
        sum
    }

    /// The weight penalties of earlier runs and of the snapshot.
    pub fn weight_penalties(&self) -> impl Iterator<Item = &WeightPenalty> {
        let own = self.snapshot.iter().flat_map(Snapshot::weight_penalties);
        self.previous_penalties.iter().chain(own)
    }

    fn teacher(&self) -> Option<&DistillTeacher> {
        self.snapshot.as_ref()?.teacher.as_ref()
    }
}
