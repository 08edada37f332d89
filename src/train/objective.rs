//! The objective: cross-entropy on the target tokens, and what holds the model to its snapshot (eqs. 1 and 3).

use super::batches::PackedRows;
use crate::{
    engine::{Engine, Gradients, Loss},
    model::Params,
    prompt::Row,
    remedy::{
        distill::{Distillation, Teacher},
        snapshot::Snapshot,
    },
};

/// The terms of the loss.
#[derive(Default)]
pub struct Objective {
    /// What holds the model; none in plain fine-tuning and before the snapshot.
    pub snapshot: Option<Snapshot>,
}

/// The rows of one step.
#[derive(Clone, Copy)]
pub struct StepRows<'a> {
    /// The step, counted from 1: it decides what is drawn at random.
    pub step: usize,
    /// All rows that are trained on.
    pub rows: &'a [Row],
    /// The numbers of those that this step sees.
    pub batch: &'a [usize],
    /// How many of these pass through the model together.
    pub rows_a_pass: usize,
}

impl Objective {
    /// The loss over the rows of a step, and its gradient, which is added to `gradients`.
    ///
    /// `L = CE + lambda L_distill + penalties`: CE is one mean over all target tokens of the batch, `L_distill` is averaged
    /// as [`Distillation::weight`] says, and the penalties are those of [`Anchor`](crate::remedy::anchor::Anchor). Since every weight counts the
    /// whole batch, the result is that of one pass, to rounding.
    pub fn loss_and_gradients(
        &self,
        engine: &mut Engine,
        params: &Params,
        of: StepRows<'_>,
        gradients: &mut Gradients,
    ) -> Loss {
        let passes: Vec<(&[usize], PackedRows)> = of
            .batch
            .chunks(of.rows_a_pass)
            .map(|pass| (pass, PackedRows::new(pass.iter().map(|&row| &of.rows[row]))))
            .collect();
        let all_targets = passes.iter().map(|(_, packed)| packed.targets.len()).sum();
        let mut loss = Loss::default();
        let mut first_target = 0;
        for (pass, mut packed) in passes {
            self.weigh(&mut packed, of.batch.len(), all_targets);
            let answers = self
                .teacher()
                .map(|(term, teacher)| (term, teacher.answers(engine, &packed, pass)));
            let side = answers
                .as_ref()
                .map(|(term, answers)| term.side(answers, of.step, first_target));
            first_target += packed.targets.len();
            let of_pass =
                engine.loss_and_gradients(params, &packed.batch, &packed.targets, side, gradients);
            loss.ce += of_pass.ce;
            loss.distill += of_pass.distill;
        }
        for anchor in self.snapshot.iter().flat_map(Snapshot::anchors) {
            loss.penalty += anchor.penalty_and_gradient(params, gradients);
        }
        loss
    }

    fn teacher(&self) -> Option<&(Distillation, Teacher)> {
        self.snapshot.as_ref()?.teacher.as_ref()
    }

    /// Sets both weights of every target, given the rows and the targets of the whole batch.
    fn weigh(&self, packed: &mut PackedRows, examples: usize, all_targets: usize) {
        let ce_weight = (1.0 / all_targets as f64) as f32;
        let mut targets = packed.targets.iter_mut();
        for &row_targets in &packed.targets_per_row {
            let distill_weight = self.teacher().map_or(0.0, |(term, _)| {
                term.weight(examples, row_targets, all_targets)
            });
            for target in targets.by_ref().take(row_targets) {
                target.ce_weight = ce_weight;
                target.distill_weight = distill_weight;
            }
        }
    }
}
