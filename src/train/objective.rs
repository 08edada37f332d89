//! The objective: cross-entropy on the target tokens, and what holds the model to its snapshot (eqs. 1 and 3).

use super::batches::PackedRows;
use crate::{
    engine::{Engine, Gradients, Loss},
    model::Params,
    prompt::Row,
    remedy::{
        anchor::Anchor,
        distill::{Distillation, Teacher},
        snapshot::Snapshot,
    },
};

/// The terms of the loss.
#[derive(Default)]
pub struct Objective {
    /// What holds the model; none in plain fine-tuning and before the snapshot.
    pub snapshot: Option<Snapshot>,
    /// What holds the weights to those of earlier runs, from the first step on.
    pub earlier: Vec<Anchor>,
    /// What decoys weigh, where there are any.
    pub decoys: f64,
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
    /// The numbers of the decoys that it sees beside them.
    pub decoys: &'a [usize],
    /// What every remedy's weight is multiplied by.
    pub strength: f64,
    /// How many pass through the model together.
    pub rows_a_pass: usize,
}

impl Objective {
    /// The loss over the rows of a step, and its gradient, which is added to `gradients`.
    ///
    /// `L = CE + lambda L_distill + penalties`: CE is one mean over all target tokens of the batch, `L_distill` is averaged
    /// as [`Distillation::weight`] says, and the penalties are those of [`crate::remedy::anchor`] and [`crate::remedy::tasks`]. Since every weight counts
    /// the whole batch, the result is that of one pass, to rounding.
    pub fn loss_and_gradients(
        &self,
        engine: &mut Engine,
        params: &Params,
        of: StepRows<'_>,
        gradients: &mut Gradients,
    ) -> Loss {
        let packed = |rows: &[usize]| PackedRows::new(rows.iter().map(|&row| &of.rows[row]));
        let taught = of.batch.chunks(of.rows_a_pass);
        let decoys = of.decoys.chunks(of.rows_a_pass);
        let mut passes: Vec<(&[usize], PackedRows)> =
            taught.map(|pass| (pass, packed(pass))).collect();
        let all_targets = passes.iter().map(|(_, p)| p.targets.len()).sum();
        let term = self.teacher().map(|(term, _)| term.times(of.strength));
        for (_, packed) in &mut passes {
            let ce_weight = (1.0 / all_targets as f64) as f32;
            packed.weigh(ce_weight, |row_targets| {
                term.map_or(0.0, |t| t.weight(of.batch.len(), row_targets, all_targets))
            });
        }
        passes.extend(decoys.map(|pass| {
            let mut packed = packed(pass);
            let term = term.map(|term| term.over_decoys(of.strength * self.decoys));
            packed.weigh(0.0, |row_targets| {
                term.map_or(0.0, |t| t.weight(of.decoys.len(), row_targets, 0))
            });
            (pass, packed)
        }));

        let mut loss = Loss::default();
        let mut first_target = 0;
        for (pass, packed) in &passes {
            // Where its answers weigh nothing the teacher is not asked.
            let weighs = packed.targets.iter().any(|t| t.distill_weight != 0.0);
            let answers = self
                .teacher()
                .filter(|_| weighs)
                .map(|(term, teacher)| (term, teacher.answers(engine, packed, pass)));
            let side = answers
                .as_ref()
                .map(|(term, answers)| term.side(answers, of.step, first_target));
            first_target += packed.targets.len();
            let of_pass =
                engine.loss_and_gradients(params, &packed.batch, &packed.targets, side, gradients);
            loss.ce += of_pass.ce;
            loss.distill += of_pass.distill;
        }
        let own = self.snapshot.iter().flat_map(Snapshot::anchors);
        for anchor in self.earlier.iter().chain(own) {
            loss.penalty += anchor.penalty_and_gradient(params, gradients, of.strength);
        }
        loss
    }

    fn teacher(&self) -> Option<&(Distillation, Teacher)> {
        self.snapshot.as_ref()?.teacher.as_ref()
    }
}
