//! The snapshot: what is frozen of the model after its first epochs, and holds it from then on.

use std::sync::Arc;

use super::{
    anchor::{Anchor, fisher},
    distill::{Distillation, Teacher},
    project::Projection,
};
use crate::{
    Result,
    config::{Kind, Method},
    engine::{Engine, Gradients},
    model::{Layout, Params},
    progress::Progress,
    prompt::Row,
    run::RunDir,
};

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
    /// Freezes `params` as they are, for training on `rows`, the first `known` of which are known facts. `gradients` is
    /// left cleared, and what is kept in files is kept in `run`.
    ///
    /// # Errors
    /// Those of [`Teacher::freeze`] and [`Projection::find`].
    pub fn freeze(
        (method, seed): (&Method, u64),
        engine: &mut Engine,
        params: &Params,
        (rows, known): (&[Row], usize),
        gradients: &mut Gradients,
        run: &RunDir,
        progress: &Progress,
    ) -> Result<Self> {
        let projection = method.project.map(|project| {
            let known = &rows[..known];
            let energy = project.energy;
            Projection::find(energy, engine, params, known, seed, gradients, progress)
        });
        let teacher = if method.has_teacher() {
            let kind = (method.teacher, method.tokens);
            let teacher = Teacher::freeze(kind, engine, params, rows, run, progress)?;
            Some((Distillation::new(method, seed), teacher))
        } else {
            None
        };
        Ok(Self {
            teacher,
            l2: (method.kind == Kind::L2).then(|| Anchor::l2(method.lambda, params, gradients)),
            ewc: method.ewc.as_ref().map(|ewc| {
                let known = &rows[..known];
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
        rows: &[Row],
        gradients: &Gradients,
        length: impl Fn(&str) -> usize,
    ) -> Self {
        Self {
            teacher: method.has_teacher().then(|| {
                let teacher = Teacher::empty(method.teacher, method.tokens, layout, rows);
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
