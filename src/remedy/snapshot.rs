//! The snapshot: what is frozen of the model after its first epochs, and holds it from then on.

use std::{ops::Range, sync::Arc};

use super::{
    anchor::{Anchor, fisher},
    distill::{Distillation, Teacher},
    project::Projection,
};
use crate::{
    Result,
    config::{Kind, Method, ReplayTarget},
    engine::{Engine, Gradients},
    model::{Layout, Params},
    progress::Progress,
    prompt::Row,
    run::RunDir,
};

/// The rows of a run: known facts, then what else is learned, then decoys.
#[derive(Clone, Copy)]
pub struct RunRows<'a> {
    /// All of them.
    pub all: &'a [Row],
    /// How many are known facts.
    pub known: usize,
    /// How many are learned: all but the decoys.
    pub learned: usize,
}

impl RunRows<'_> {
    /// The rows between the first and the last at which the teacher is asked: all under self-distillation, else those that are
    /// replayed with its answers, and decoys.
    fn asked(&self, method: &Method) -> Range<usize> {
        let replayed = method.replay.map(|r| r.target) == Some(ReplayTarget::Teacher);
        let first = if replayed { 0 } else { self.learned };
        let last = if method.visits_decoys() {
            self.all.len()
        } else {
            self.known
        };
        if method.distills() {
            0..self.all.len()
        } else {
            first..last.max(first)
        }
    }
}

/// What holds the model, as far as the method asks for it.
pub struct Snapshot {
    /// The teacher, and what its say weighs.
    pub teacher: Option<(Distillation, Teacher)>,
    /// L2 toward the weights.
    l2: Option<Anchor>,
    /// Elastic weight consolidation around them.
    ewc: Option<Anchor>,
    /// What linear layers make of the known facts' inputs.
    pub projection: Option<Projection>,
}

impl Snapshot {
    /// Freezes `params` as they are, for training on `rows`. `gradients` is left cleared, and what is kept in files is kept in
    /// `run`.
    ///
    /// # Errors
    /// Those of [`Teacher::freeze`] and [`Projection::find`].
    pub fn freeze(
        (method, seed): (&Method, u64),
        engine: &mut Engine,
        params: &Params,
        rows: RunRows<'_>,
        gradients: &mut Gradients,
        run: &RunDir,
        progress: &Progress,
    ) -> Result<Self> {
        let known = &rows.all[..rows.known];
        let projection = method.project.map(|project| {
            let held: Vec<&Row> = known.iter().chain(&rows.all[rows.learned..]).collect();
            let energy = project.energy;
            Projection::find(energy, engine, params, &held, seed, gradients, progress)
        });
        let teacher = if method.has_teacher() {
            let kind = (method.teacher, method.tokens);
            let rows = (rows.all, rows.asked(method));
            let teacher = Teacher::freeze(kind, engine, params, rows, run, progress)?;
            Some((Distillation::new(method, seed), teacher))
        } else {
            None
        };
        Ok(Self {
            teacher,
            l2: (method.kind == Kind::L2).then(|| Anchor::l2(method.lambda, params, gradients)),
            ewc: method.ewc.as_ref().map(|ewc| {
                let importance = fisher(engine, params, known, seed, gradients, progress);
                Anchor::ewc(ewc.strength, params, importance, gradients)
            }),
            projection: projection.transpose()?,
        })
    }

    /// Room for what [`Snapshot::freeze`] makes, to be filled from a checkpoint, of which `length` says how long the
    /// array of a name is.
    pub fn empty(
        (method, seed): (&Method, u64),
        layout: &Arc<Layout>,
        rows: RunRows<'_>,
        gradients: &Gradients,
        length: impl Fn(&str) -> usize,
    ) -> Self {
        Self {
            teacher: method.has_teacher().then(|| {
                let kind = (method.teacher, method.tokens);
                let teacher = Teacher::empty(kind, layout, (rows.all, rows.asked(method)));
                (Distillation::new(method, seed), teacher)
            }),
            l2: (method.kind == Kind::L2).then(|| Anchor::empty(method.lambda, false, gradients)),
            ewc: method
                .ewc
                .as_ref()
                .map(|ewc| Anchor::empty(ewc.strength / 2.0, true, gradients)),
            projection: method.project.map(|_| {
                Projection::empty(layout, gradients, |name| length(&format!("project.{name}")))
            }),
        }
    }

    /// Opens what a snapshot made before has kept in files of `run`.
    ///
    /// # Errors
    /// Those of [`Teacher::open_files`].
    pub fn open_files(&mut self, run: &RunDir) -> Result<()> {
        let teacher = self.teacher.iter_mut();
        teacher
            .map(|(_, teacher)| teacher)
            .try_for_each(|teacher| teacher.open_files(run))
    }

    /// Makes one penalty of its own EWC and `earlier` ones, around its own weights.
    pub fn take_over(&mut self, earlier: &[Anchor]) {
        if let Some(ewc) = &mut self.ewc {
            for anchor in earlier {
                ewc.take_over(anchor);
            }
        }
    }

    /// What the weights themselves are held by.
    pub fn anchors(&self) -> impl Iterator<Item = &Anchor> {
        self.l2.iter().chain(&self.ewc)
    }

    /// Every array under the name that a checkpoint gives it.
    pub fn arrays(&self) -> Vec<(String, &[f32])> {
        let teacher = self.teacher.iter().flat_map(|(_, t)| t.arrays());
        let anchors =
            [("l2", &self.l2), ("ewc", &self.ewc)]
                .into_iter()
                .flat_map(|(name, anchor)| {
                    anchor.iter().flat_map(move |anchor| {
                        let named = move |(part, values)| (format!("{name}.{part}"), values);
                        anchor.arrays().into_iter().map(named)
                    })
                });
        let projection = self.projection.iter().flat_map(Projection::arrays);
        teacher
            .map(|(name, values)| (format!("teacher.{name}"), values))
            .chain(anchors)
            .chain(projection.map(|(name, values)| (format!("project.{name}"), values)))
            .collect()
    }

    /// The same arrays, to be filled from a checkpoint.
    pub fn arrays_mut(&mut self) -> Vec<(String, &mut [f32])> {
        let teacher = self.teacher.iter_mut().flat_map(|(_, t)| t.arrays_mut());
        let anchors = [("l2", &mut self.l2), ("ewc", &mut self.ewc)]
            .into_iter()
            .flat_map(|(name, anchor)| {
                anchor.iter_mut().flat_map(move |anchor| {
                    let named = move |(part, values)| (format!("{name}.{part}"), values);
                    anchor.arrays_mut().into_iter().map(named)
                })
            });
        let projection = self.projection.iter_mut().flat_map(Projection::arrays_mut);
        teacher
            .map(|(name, values)| (format!("teacher.{name}"), values))
            .chain(anchors)
            .chain(projection.map(|(name, values)| (format!("project.{name}"), values)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Decoys, Replay};

    #[test]
    fn the_teacher_is_asked_at_the_rows_that_it_holds() {
        let row = Row {
            prompt: vec![1],
            target: vec![2],
        };
        let all = vec![row; 10];
        let (known, learned) = (3, 7);
        let rows = |decoys: bool| RunRows {
            all: &all[..if decoys { 10 } else { 7 }],
            known,
            learned,
        };
        let method = |kind, decoys: bool, target: Option<ReplayTarget>| Method {
            kind,
            decoys: decoys.then(Decoys::default),
            replay: target.map(|target| Replay {
                target,
                ..Replay::default()
            }),
            ..Method::default()
        };
        let teacher = Some(ReplayTarget::Teacher);
        for (kind, decoys, replay, asked) in [
            (Kind::SelfDistill, false, None, 0..7),
            (Kind::SelfDistill, true, teacher, 0..10),
            (Kind::Sft, true, None, 7..10),
            (Kind::Sft, true, Some(ReplayTarget::Label), 7..10),
            (Kind::Sft, false, teacher, 0..3),
            (Kind::Sft, true, teacher, 0..10),
        ] {
            assert_eq!(rows(decoys).asked(&method(kind, decoys, replay)), asked);
        }
    }
}
