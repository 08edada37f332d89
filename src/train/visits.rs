//! Which rows an epoch visits: what is learned, and decoys and replayed rows beside it.

use super::{
    DECOYS, Trainer,
    batches::{epoch_order, longest_row},
    objective::{Beside, HeldTo},
};
use crate::{
    Error, Result,
    config::{ReplayOrder, ReplayTarget},
    generate::Generator,
    remedy::{decoys, replay},
};

impl Trainer<'_> {
    /// Makes the decoys that the method asks for, answered by the model as it stands, and keeps them in the run.
    pub(super) fn make_decoys(&mut self) -> Result<()> {
        let Some(method) = self.config.method.decoys else {
            return Ok(());
        };
        let pool = method.pool.unwrap_or(method.share);
        let count = |rows: usize| (pool * rows as f64).round() as usize;
        let (seed, tokenizer) = (self.config.seed, &self.model.tokenizer);
        let facts = self.splits.known.iter().chain(&self.splits.unknown);
        let of_facts = self.splits.known.len() + self.splits.unknown.len();
        let of_texts = self.learned_rows - of_facts;
        let mut generator = Generator::new(&mut self.engine, &self.model);
        let facts = facts.map(|f| &f.fact);
        let prompts = decoys::prompts(facts, count(of_facts), &self.template, tokenizer, seed)?;
        let mut rows = decoys::rows(&mut generator, prompts)?;
        let longest = longest_row(&self.model, &self.config.train);
        rows.extend(decoys::of_texts(
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
    pub(super) fn beside(&self, epoch: usize) -> Vec<(HeldTo, Vec<usize>)> {
        let train = &self.config.train;
        let in_order = |rows: &[usize]| -> Vec<usize> {
            let order = epoch_order(rows.len(), self.config.seed, epoch, train.shuffle);
            order.into_iter().map(|i| rows[i]).collect()
        };
        let mut beside = Vec::new();
        if let Some(decoys) = self.config.method.decoys {
            let count = (decoys.share * self.learned_rows as f64).round() as usize;
            let made = self.rows.len() - self.learned_rows;
            let mut rows = replay::drawn(made, count.min(made), self.config.seed, epoch);
            rows.sort_unstable();
            let rows: Vec<usize> = rows.iter().map(|row| self.learned_rows + row).collect();
            beside.push((HeldTo::Snapshot(decoys.strength), in_order(&rows)));
        }
        if let Some(replay) = self.config.method.replay {
            let held_to = match replay.target {
                ReplayTarget::Label => HeldTo::Target,
                ReplayTarget::Teacher => HeldTo::Snapshot(replay.strength),
            };
            beside.push((held_to, in_order(&self.standing.replayed)));
        }
        beside
    }

    /// At the beginning of an epoch: chooses the known rows that it replays. Within one the choice stands: the weights that it
    /// was made by are gone.
    pub(super) fn choose_replayed(&mut self, epoch: usize) -> Result<()> {
        let (method, known) = (&self.config.method, self.splits.known.len());
        let Some(replay) = method.replay.filter(|_| self.standing.step_in_epoch == 0) else {
            return Ok(());
        };
        let before = method.snapshot_epochs();
        if epoch <= before {
            return Ok(());
        }
        let epochs = self.config.train.epochs - before;
        let count = replay.count(self.learned_rows, epoch - before - 1, epochs);
        self.standing.replayed = match replay.order {
            ReplayOrder::Random => replay::drawn(known, count, self.config.seed, epoch),
            ReplayOrder::Hardest => {
                let mut generator = Generator::new(&mut self.engine, &self.model);
                let losses = replay::losses(&mut generator, &self.rows[..known])?;
                replay::hardest(&losses, count)
            }
        };
        Ok(())
    }

    /// Rows of an epoch (counted from 1): `D_Known` alone until the snapshot, then all.
    pub(super) fn rows_of(&self, epoch: usize) -> usize {
        if epoch <= self.config.method.snapshot_epochs() {
            self.splits.known.len()
        } else {
            self.learned_rows
        }
    }

    pub(super) fn rows_a_step(&self) -> usize {
        self.config.train.batch_size * self.config.train.accumulate
    }

    pub(super) fn steps_in_all(&self) -> usize {
        (1..=self.config.train.epochs)
            .map(|epoch| self.rows_of(epoch).div_ceil(self.rows_a_step()))
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
            Some(_) => decoys::check(facts.map(|f| &f.fact), &self.texts),
            None => Ok(()),
        }
    }

    pub(super) fn require_rows_in_every_epoch(&self) -> Result<()> {
        if (1..=self.config.train.epochs).all(|epoch| self.rows_of(epoch) > 0) {
            return Ok(());
        }
        Err(Error::input_hint(
            "there is no known fact to train on before the snapshot",
            "give known facts with `data.keep`, or set `method.snapshot_epoch = 0`, which holds the model to the base model itself",
        ))
    }
}

/// What is dealt to the step numbered `step` (from 0) of `steps` of what [`Trainer::beside`] says.
pub(super) fn dealt(beside: &[(HeldTo, Vec<usize>)], step: usize, steps: usize) -> Vec<Beside<'_>> {
    let dealt = beside.iter().map(|(held_to, rows)| {
        let (rows, held_to) = (&rows[..], *held_to);
        Beside { rows, held_to }.dealt(step, steps)
    });
    dealt.collect()
}
