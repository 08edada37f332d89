//! Which rows an epoch visits: what is learned, and decoys and replayed rows beside it.

use super::{
    DECOYS, Trainer,
    batches::{epoch_order, max_row_len},
    objective::{AuxBatch, AuxTarget},
};
use crate::{
    Error, Result,
    config::{ReplaySelection, ReplayTarget},
    generate::Generator,
    remedy::{pseudo_replay, replay},
};

impl Trainer<'_> {
    /// Makes the decoys that the method asks for, answered by the model as it stands, and keeps them in the run.
    pub(super) fn generate_decoys(&mut self) -> Result<()> {
        let Some(method) = self.config.method.decoys else {
            return Ok(());
        };
        let pool = method.pool_ratio.unwrap_or(method.ratio);
        let count = |rows: usize| (pool * rows as f64).round() as usize;
        let (seed, tokenizer) = (self.config.seed, &self.model.tokenizer);
        let facts = self.splits.known.iter().chain(&self.splits.unknown);
        let of_facts = self.splits.known.len() + self.splits.unknown.len();
        let of_texts = self.learned_rows - of_facts;
        let mut generator = Generator::new(&mut self.engine, &self.model);
        let facts = facts.map(|f| &f.fact);
        let prompts =
            pseudo_replay::prompts(facts, count(of_facts), &self.template, tokenizer, seed)?;
        let mut rows = pseudo_replay::rows(&mut generator, prompts)?;
        let longest = max_row_len(&self.model, &self.config.train);
        rows.extend(pseudo_replay::from_texts(
            &mut generator,
            &self.texts,
            count(of_texts),
            longest,
            seed,
        )?);
        self.run.write_rows(DECOYS, &rows)?;
        self.rows.truncate(self.learned_rows);
        self.rows.extend(rows);
        Ok(())
    }

    /// The rows that an epoch visits beside what is learned, in the order in which they are dealt out over its steps. Before the
    /// snapshot there are no decoys; then every epoch draws its share of them.
    pub(super) fn aux_rows(&self, epoch: usize) -> Vec<(AuxTarget, Vec<usize>)> {
        let train = &self.config.train;
        let in_order = |rows: &[usize]| -> Vec<usize> {
            let order = epoch_order(rows.len(), self.config.seed, epoch, train.shuffle);
            order.into_iter().map(|i| rows[i]).collect()
        };
        let mut beside = Vec::new();
        if let Some(decoys) = self.config.method.decoys {
            let count = (decoys.ratio * self.learned_rows as f64).round() as usize;
            let made = self.rows.len() - self.learned_rows;
            let mut rows = replay::sample_uniform(made, count.min(made), self.config.seed, epoch);
            rows.sort_unstable();
            let rows: Vec<usize> = rows.iter().map(|row| self.learned_rows + row).collect();
            beside.push((AuxTarget::Snapshot(decoys.strength), in_order(&rows)));
        }
        if let Some(replay) = self.config.method.replay {
            let held_to = match replay.target {
                ReplayTarget::Label => AuxTarget::Label,
                ReplayTarget::Teacher => AuxTarget::Snapshot(replay.strength),
            };
            beside.push((held_to, in_order(&self.state.replayed_rows)));
        }
        beside
    }

    /// At the beginning of an epoch: chooses the known rows that it replays. Within one the choice stands: the weights that it
    /// was made by are gone.
    pub(super) fn select_replayed(&mut self, epoch: usize) -> Result<()> {
        let (method, known) = (&self.config.method, self.splits.known.len());
        let Some(replay) = method.replay.filter(|_| self.state.step_in_epoch == 0) else {
            return Ok(());
        };
        let before = method.effective_snapshot_epochs();
        if epoch <= before {
            return Ok(());
        }
        let epochs = self.config.train.num_epochs - before;
        let count = replay.count(self.learned_rows, epoch - before - 1, epochs);
        self.state.replayed_rows = match replay.selection {
            ReplaySelection::Random => {
                replay::sample_uniform(known, count, self.config.seed, epoch)
            }
            ReplaySelection::Hardest => {
                let mut generator = Generator::new(&mut self.engine, &self.model);
                let losses = replay::example_losses(&mut generator, &self.rows[..known])?;
                replay::hardest(&losses, count)
            }
        };
        Ok(())
    }

    /// Rows of an epoch (counted from 1): `D_Known` alone until the snapshot, then all.
    pub(super) fn rows_in_epoch(&self, epoch: usize) -> usize {
        if epoch <= self.config.method.effective_snapshot_epochs() {
            self.splits.known.len()
        } else {
            self.learned_rows
        }
    }

    pub(super) fn rows_per_step(&self) -> usize {
        self.config.train.batch_size * self.config.train.gradient_accumulation_steps
    }

    pub(super) fn total_steps(&self) -> usize {
        (1..=self.config.train.num_epochs)
            .map(|epoch| self.rows_in_epoch(epoch).div_ceil(self.rows_per_step()))
            .sum()
    }

    pub(super) fn require_known_facts(&self) -> Result<()> {
        let method = &self.config.method;
        for (given, key, message) in [
            (
                method.replay.is_some(),
                "method.replay",
                "there is no known fact to replay",
            ),
            (
                method.project.is_some(),
                "method.project",
                "there is no known fact whose inputs `method.project` could keep new facts from",
            ),
        ] {
            if given && self.splits.known.is_empty() {
                return Err(Error::input_hint(
                    message,
                    format!("give known facts with `data.keep`, or leave `{key}` out"),
                ));
            }
        }
        Ok(())
    }

    pub(super) fn require_decoys(&self) -> Result<()> {
        let facts = self.splits.known.iter().chain(&self.splits.unknown);
        match self.config.method.decoys {
            Some(_) => pseudo_replay::check(facts.map(|f| &f.fact), &self.texts),
            None => Ok(()),
        }
    }

    pub(super) fn require_rows_in_every_epoch(&self) -> Result<()> {
        if (1..=self.config.train.num_epochs).all(|epoch| self.rows_in_epoch(epoch) > 0) {
            return Ok(());
        }
        Err(Error::input_hint(
            "there is no known fact to train on before the snapshot",
            "give known facts with `data.keep`, or set `method.snapshot_epochs = 0`, which holds the model to the base model itself",
        ))
    }
}

/// What is dealt to the step numbered `step` (from 0) of `steps` of what [`Trainer::aux`] says.
pub(super) fn aux_for_step(
    beside: &[(AuxTarget, Vec<usize>)],
    step: usize,
    steps: usize,
) -> Vec<AuxBatch<'_>> {
    let dealt = beside.iter().map(|(held_to, rows)| {
        let (rows, held_to) = (&rows[..], *held_to);
        AuxBatch {
            rows,
            target: held_to,
        }
        .for_step(step, steps)
    });
    dealt.collect()
}
