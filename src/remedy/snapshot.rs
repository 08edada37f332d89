//! The snapshot: everything that is frozen after the first epochs, on which the remedies of the rest of the run depend.

use std::path::Path;

use super::{
    distill::Distillation,
    null_space::NullSpaceProjection,
    teacher::{Teacher, TeacherExamples, TeacherSpec},
    weight_penalty::{WeightPenalty, fisher},
};
use crate::{
    Result,
    config::{MethodConfig, MethodKind, ReplayTarget},
    engine::{Gradients, TrainingModel},
    model::{Buffer, Params},
    progress::Progress,
    prompt::Example,
};

/// The examples of a run: known facts, then new facts and texts, then decoys.
#[derive(Clone, Copy)]
pub struct RunExamples<'a> {
    /// All of them.
    pub all: &'a [Example],
    /// Number of known facts.
    pub known: usize,
    /// Number of examples without the decoys.
    pub learned: usize,
}

impl<'a> RunExamples<'a> {
    /// The examples that the teacher covers: all of them under self-distillation, else those that are replayed with its outputs, and
    /// decoys.
    fn for_teacher(&self, method: &MethodConfig) -> TeacherExamples<'a> {
        let replayed = method.replay.map(|r| r.target) == Some(ReplayTarget::Teacher);
        let start = if replayed { 0 } else { self.learned };
        let end = if method.trains_decoys() {
            self.all.len()
        } else {
            self.known
        };
        let (start, end) = if method.distills() {
            (0, self.all.len())
        } else {
            (start, end.max(start))
        };
        TeacherExamples {
            all: self.all,
            start,
            end,
        }
    }
}

/// The teacher of a snapshot.
pub struct DistillTeacher {
    /// The distillation term of the training rows.
    pub term: Distillation,
    /// The frozen model, or its outputs.
    pub teacher: Teacher,
}

/// The parts of the snapshot that the method needs.
pub struct Snapshot {
    /// The teacher.
    pub teacher: Option<DistillTeacher>,
    l2: Option<WeightPenalty>,
    ewc: Option<WeightPenalty>,
    /// The outputs of linear layers for known inputs.
    pub projection: Option<NullSpaceProjection>,
}

impl Snapshot {
    /// Freezes the model as it is, for training on `examples`. A teacher on disk writes its files into `teacher_dir`. The gradients are
    /// zero afterwards.
    ///
    /// # Errors
    /// Those of [`Teacher::freeze`] and [`NullSpaceProjection::fit`].
    pub fn freeze(
        method: &MethodConfig,
        seed: u64,
        model: &mut TrainingModel<'_>,
        examples: RunExamples<'_>,
        teacher_dir: &Path,
        progress: &Progress,
    ) -> Result<Self> {
        let known = &examples.all[..examples.known];
        let projection = method.project.map(|project| {
            let decoys = &examples.all[examples.learned..];
            let inputs: Vec<&Example> = known.iter().chain(decoys).collect();
            NullSpaceProjection::fit(project.energy, model, &inputs, seed, progress)
        });
        let teacher = if method.has_teacher() {
            let covered = examples.for_teacher(method);
            let spec = TeacherSpec::of(method);
            let teacher = Teacher::freeze(spec, model, covered, teacher_dir, progress)?;
            Some(DistillTeacher {
                term: Distillation::new(method, seed),
                teacher,
            })
        } else {
            None
        };
        let l2 = (method.kind == MethodKind::L2)
            .then(|| WeightPenalty::l2(method.lambda, model.params, model.gradients));
        let ewc = method.ewc.as_ref().map(|ewc| {
            let importance = fisher(model, known, seed, progress);
            WeightPenalty::ewc(ewc.strength, model.params, importance, model.gradients)
        });
        Ok(Self {
            teacher,
            l2,
            ewc,
            projection: projection.transpose()?,
        })
    }

    /// A snapshot like that of [`Snapshot::freeze`] of a model like `params`, to be filled from a checkpoint; `length` returns the length of
    /// an array there by its name.
    pub fn empty(
        method: &MethodConfig,
        seed: u64,
        params: &Params,
        examples: RunExamples<'_>,
        gradients: &Gradients,
        length: impl Fn(&str) -> usize,
    ) -> Self {
        Self {
            teacher: method.has_teacher().then(|| {
                let covered = examples.for_teacher(method);
                let teacher = Teacher::empty(TeacherSpec::of(method), params, covered);
                DistillTeacher {
                    term: Distillation::new(method, seed),
                    teacher,
                }
            }),
            l2: (method.kind == MethodKind::L2)
                .then(|| WeightPenalty::l2_at_zero(method.lambda, gradients)),
            ewc: method.ewc.as_ref().map(|ewc| {
                let importance = Buffer::zeros(gradients.data.len());
                WeightPenalty::ewc_at_zero(ewc.strength, importance, gradients)
            }),
            projection: method.project.map(|_| {
                NullSpaceProjection::empty(&params.layout, gradients, |name| {
                    length(&format!("project.{name}"))
                })
            }),
        }
    }

    /// Opens the files of an earlier [`Snapshot::freeze`] in `teacher_dir`.
    ///
    /// # Errors
    /// Those of [`Teacher::open_files`].
    pub fn open_files(&mut self, teacher_dir: &Path) -> Result<()> {
        let teacher = self.teacher.iter_mut();
        teacher
            .map(|distill| &mut distill.teacher)
            .try_for_each(|teacher| teacher.open_files(teacher_dir))
    }

    /// Merges `earlier` EWC penalties into its own, around its own weights.
    pub fn merge_penalties(&mut self, earlier: &[WeightPenalty]) {
        if let Some(ewc) = &mut self.ewc {
            for penalty in earlier {
                ewc.add_importance(penalty);
            }
        }
    }

    /// The penalties on the weights.
    pub fn weight_penalties(&self) -> impl Iterator<Item = &WeightPenalty> {
        self.l2.iter().chain(&self.ewc)
    }

    /// Every array, by its name in a checkpoint.
    pub fn arrays(&self) -> Vec<(String, &[f32])> {
        let teacher = self.teacher.iter().flat_map(|t| t.teacher.arrays());
        let penalties =
            [("l2", &self.l2), ("ewc", &self.ewc)]
                .into_iter()
                .flat_map(|(name, penalty)| {
                    penalty.iter().flat_map(move |penalty| {
                        let named = move |(part, values)| (format!("{name}.{part}"), values);
                        penalty.arrays().into_iter().map(named)
                    })
                });
        let projection = self.projection.iter().flat_map(NullSpaceProjection::arrays);
        teacher
            .map(|(name, values)| (format!("teacher.{name}"), values))
            .chain(penalties)
            .chain(projection.map(|(name, values)| (format!("project.{name}"), values)))
            .collect()
    }

    /// The same arrays, to be filled from a checkpoint.
    pub fn arrays_mut(&mut self) -> Vec<(String, &mut [f32])> {
        let teacher = self.teacher.iter_mut().flat_map(|t| t.teacher.arrays_mut());
        let penalties = [("l2", &mut self.l2), ("ewc", &mut self.ewc)]
            .into_iter()
            .flat_map(|(name, penalty)| {
                penalty.iter_mut().flat_map(move |penalty| {
                    let named = move |(part, values)| (format!("{name}.{part}"), values);
                    penalty.arrays_mut().into_iter().map(named)
                })
            });
        let projection = self.projection.iter_mut();
        let projection = projection.flat_map(NullSpaceProjection::arrays_mut);
        teacher
            .map(|(name, values)| (format!("teacher.{name}"), values))
            .chain(penalties)
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
        let example = Example::new(vec![1], vec![2]);
        let all = vec![example; 10];
        let (known, learned) = (3, 7);
        let examples = |decoys: bool| RunExamples {
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
        for (kind, decoys, replay, covered) in [
            (MethodKind::SelfDistill, false, None, 0..7),
            (MethodKind::SelfDistill, true, teacher, 0..10),
            (MethodKind::Sft, true, None, 7..10),
            (MethodKind::Sft, true, Some(ReplayTarget::Label), 7..10),
            (MethodKind::Sft, false, teacher, 0..3),
            (MethodKind::Sft, true, teacher, 0..10),
        ] {
            let of_teacher = examples(decoys).for_teacher(&method(kind, decoys, replay));
            assert_eq!(of_teacher.range(), covered);
        }
    }
}
