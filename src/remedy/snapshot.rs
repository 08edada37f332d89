//! The snapshot: what is frozen of the model after its first epochs, and holds it from then on.

use std::{ops::Range, sync::Arc};

use super::{
    distill::{Distillation, Teacher},
    null_space::NullSpaceProjection,
    weight_penalty::{WeightPenalty, fisher},
};
use crate::{
    Result,
    config::{MethodConfig, MethodKind, ReplayTarget},
    engine::{Engine, Gradients},
    model::{Layout, Params},
    progress::Progress,
    prompt::Example,
    run::RunDir,
};

/// The rows of a run: known facts, then what else is learned, then decoys.
#[derive(Clone, Copy)]
pub struct RunExamples<'a> {
    /// All of them.
    pub all: &'a [Example],
    /// How many are known facts.
    pub known: usize,
    /// How many are learned: all but the decoys.
    pub learned: usize,
}

impl RunExamples<'_> {
    /// The rows between the first and the last at which the teacher is asked: all under self-distillation, else those that are
    /// replayed with its answers, and decoys.
    fn teacher_range(&self, method: &MethodConfig) -> Range<usize> {
        let replayed = method.replay.map(|r| r.target) == Some(ReplayTarget::Teacher);
        let first = if replayed { 0 } else { self.learned };
        let last = if method.trains_decoys() {
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
    l2: Option<WeightPenalty>,
    /// Elastic weight consolidation around them.
    ewc: Option<WeightPenalty>,
    /// What linear layers make of the known facts' inputs.
    pub projection: Option<NullSpaceProjection>,
}

impl Snapshot {
    /// Freezes `params` as they are, for training on `rows`. `gradients` is left cleared, and what is kept in files is kept in
    /// `run`.
    ///
    /// # Errors
    /// Those of [`TeacherMode::freeze`] and [`NullSpaceProjection::fit`].
    pub fn freeze(
        (method, seed): (&MethodConfig, u64),
        engine: &mut Engine,
        params: &Params,
        rows: RunExamples<'_>,
        gradients: &mut Gradients,
        run: &RunDir,
        progress: &Progress,
    ) -> Result<Self> {
        let known = &rows.all[..rows.known];
        let projection = method.project.map(|project| {
            let held: Vec<&Example> = known.iter().chain(&rows.all[rows.learned..]).collect();
            let energy = project.energy;
            NullSpaceProjection::fit(energy, engine, params, &held, seed, gradients, progress)
        });
        let teacher = if method.has_teacher() {
            let kind = (method.teacher, method.vocab_subset);
            let rows = (rows.all, rows.teacher_range(method));
            let teacher = Teacher::freeze(kind, engine, params, rows, run, progress)?;
            Some((Distillation::new(method, seed), teacher))
        } else {
            None
        };
        Ok(Self {
            teacher,
            l2: (method.kind == MethodKind::L2)
                .then(|| WeightPenalty::l2(method.lambda, params, gradients)),
            ewc: method.ewc.as_ref().map(|ewc| {
                let importance = fisher(engine, params, known, seed, gradients, progress);
                WeightPenalty::ewc(ewc.strength, params, importance, gradients)
            }),
            projection: projection.transpose()?,
        })
    }

    /// Room for what [`Snapshot::freeze`] makes, to be filled from a checkpoint, of which `length` says how long the
    /// array of a name is.
    pub fn empty(
        (method, seed): (&MethodConfig, u64),
        layout: &Arc<Layout>,
        rows: RunExamples<'_>,
        gradients: &Gradients,
        length: impl Fn(&str) -> usize,
    ) -> Self {
        Self {
            teacher: method.has_teacher().then(|| {
                let kind = (method.teacher, method.vocab_subset);
                let teacher = Teacher::empty(kind, layout, (rows.all, rows.teacher_range(method)));
                (Distillation::new(method, seed), teacher)
            }),
            l2: (method.kind == MethodKind::L2)
                .then(|| WeightPenalty::empty(method.lambda, false, gradients)),
            ewc: method
                .ewc
                .as_ref()
                .map(|ewc| WeightPenalty::empty(ewc.strength / 2.0, true, gradients)),
            projection: method.project.map(|_| {
                NullSpaceProjection::empty(layout, gradients, |name| {
                    length(&format!("project.{name}"))
                })
            }),
        }
    }

    /// Opens what a snapshot made before has kept in files of `run`.
    ///
    /// # Errors
    /// Those of [`TeacherMode::open_files`].
    pub fn open_files(&mut self, run: &RunDir) -> Result<()> {
        let teacher = self.teacher.iter_mut();
        teacher
            .map(|(_, teacher)| teacher)
            .try_for_each(|teacher| teacher.open_files(run))
    }

    /// Makes one penalty of its own EWC and `earlier` ones, around its own weights.
    pub fn merge_penalties(&mut self, earlier: &[WeightPenalty]) {
        if let Some(ewc) = &mut self.ewc {
            for anchor in earlier {
                ewc.add_importance(anchor);
            }
        }
    }

    /// What the weights themselves are held by.
    pub fn weight_penalties(&self) -> impl Iterator<Item = &WeightPenalty> {
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
        let projection = self.projection.iter().flat_map(NullSpaceProjection::arrays);
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
        let projection = self
            .projection
            .iter_mut()
            .flat_map(NullSpaceProjection::arrays_mut);
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
    use crate::config::{DecoysConfig, ReplayConfig};

    #[test]
    fn the_teacher_covers_the_rows_that_it_distills() {
        let row = Example {
            prompt: vec![1],
            target: vec![2],
        };
        let all = vec![row; 10];
        let (known, learned) = (3, 7);
        let rows = |decoys: bool| RunExamples {
            all: &all[..if decoys { 10 } else { 7 }],
            known,
            learned,
        };
        let method = |kind, decoys: bool, target: Option<ReplayTarget>| MethodConfig {
            kind,
            decoys: decoys.then(DecoysConfig::default),
            replay: target.map(|target| ReplayConfig {
                target,
                ..ReplayConfig::default()
            }),
            ..MethodConfig::default()
        };
        let teacher = Some(ReplayTarget::Teacher);
        for (kind, decoys, replay, asked) in [
            (MethodKind::SelfDistill, false, None, 0..7),
            (MethodKind::SelfDistill, true, teacher, 0..10),
            (MethodKind::Sft, true, None, 7..10),
            (MethodKind::Sft, true, Some(ReplayTarget::Label), 7..10),
            (MethodKind::Sft, false, teacher, 0..3),
            (MethodKind::Sft, true, teacher, 0..10),
        ] {
            assert_eq!(
                rows(decoys).teacher_range(&method(kind, decoys, replay)),
                asked
            );
        }
    }
}
