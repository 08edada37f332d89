//! The objective: cross-entropy on the target tokens, and the divergence from a frozen teacher (eq. 1).

use super::batches::PackedRows;
use crate::{
    engine::{Engine, Gradients, Loss},
    model::Params,
    prompt::Row,
    remedy::distill::{Distillation, Teacher},
};

/// The terms of the loss.
#[derive(Default)]
pub struct Objective {
    /// Strength of the distillation term and the snapshot that teaches; none in plain fine-tuning and before the snapshot.
    pub teacher: Option<(Distillation, Teacher)>,
}

impl Objective {
    /// The loss over the rows numbered `batch`, and its gradient, which is added to `gradients`.
    ///
    /// `L = CE + lambda L_distill`: CE is one mean over all target tokens of `batch`, `L_distill` is averaged as
    /// [`Distillation::weight`] says. The rows pass through the model `rows_a_pass` at a time; since every weight counts
    /// the whole batch, the result is that of one pass, to rounding.
    pub fn loss_and_gradients(
        &self,
        engine: &mut Engine,
        params: &Params,
        rows: &[Row],
        batch: &[usize],
        rows_a_pass: usize,
        gradients: &mut Gradients,
    ) -> Loss {
        let passes: Vec<(&[usize], PackedRows)> = batch
            .chunks(rows_a_pass)
            .map(|pass| (pass, PackedRows::new(pass.iter().map(|&row| &rows[row]))))
            .collect();
        let all_targets = passes.iter().map(|(_, packed)| packed.targets.len()).sum();
        let mut loss = Loss::default();
        for (pass, mut packed) in passes {
            self.weigh(&mut packed, batch.len(), all_targets);
            let hidden = self
                .teacher
                .as_ref()
                .map(|(_, teacher)| teacher.hidden(engine, &packed, pass));
            let side = self
                .teacher
                .as_ref()
                .zip(hidden.as_ref())
                .map(|((term, teacher), hidden)| teacher.side(hidden, term.temperature));
            let of_pass =
                engine.loss_and_gradients(params, &packed.batch, &packed.targets, side, gradients);
            loss.ce += of_pass.ce;
            loss.distill += of_pass.distill;
        }
        loss
    }

    /// Sets both weights of every target, given the rows and the targets of the whole batch.
    fn weigh(&self, packed: &mut PackedRows, examples: usize, all_targets: usize) {
        let ce_weight = (1.0 / all_targets as f64) as f32;
        let mut targets = packed.targets.iter_mut();
        for &row_targets in &packed.targets_per_row {
            let distill_weight = self.teacher.as_ref().map_or(0.0, |(term, _)| {
                term.weight(examples, row_targets, all_targets)
            });
            for target in targets.by_ref().take(row_targets) {
                target.ce_weight = ce_weight;
                target.distill_weight = distill_weight;
            }
        }
    }
}
