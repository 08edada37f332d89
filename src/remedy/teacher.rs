//! A term of the loss: the frozen teacher of [`super::distill`], and where its logits come from.
//!
//! | `method.teacher` | what is kept | cost per step |
//! |---|---|---|
//! | `online` | all weights, or the adapters where these lie beside the weights | a forward pass |
//! | `base` | nothing: it is the model without its adapters | a forward pass |
//! | `hidden` | the last hidden states at all targets, and the LM head unless it is that of the student | a matmul with the head |
//! | `topk` | the k largest logits at all targets, on disk | reading them |
//!
//! `hidden` is exact. `topk` is exact under `vocab_subset = { top = k }`, the only setting that allows it.

use std::{ops::Range, path::Path};

use super::topk_teacher::TopkTeacher;
use crate::{
    Error, Result,
    config::{MethodConfig, TeacherMode, VocabSubset},
    distributed::Comm,
    engine::{Batch, Engine, TrainingModel, topk},
    interrupt,
    model::{Buffer, LowRank, Params, Weights},
    progress::Progress,
    prompt::{Example, MICRO_BATCH_TOKENS, PackedExamples, micro_batches, target_offsets},
};

/// Which teacher a method asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TeacherSpec {
    /// Where its logits come from.
    pub mode: TeacherMode,
    /// The tokens over which it is compared with the student.
    pub vocab_subset: VocabSubset,
}

impl TeacherSpec {
    /// The teacher of `method`.
    pub fn of(method: &MethodConfig) -> Self {
        Self {
            mode: method.teacher,
            vocab_subset: method.vocab_subset,
        }
    }

    /// The number of logits per target that this teacher keeps on disk; `None` if it is kept in memory and in checkpoints.
    pub fn topk_on_disk(self) -> Option<usize> {
        match (self.mode, self.vocab_subset) {
            (TeacherMode::Topk | TeacherMode::Auto, VocabSubset::TopK(k)) => Some(k),
            _ => None,
        }
    }
}

/// The examples of a run, and which of them the teacher covers.
#[derive(Clone, Copy)]
pub struct TeacherExamples<'a> {
    /// All examples of the run.
    pub all: &'a [Example],
    /// Index of the first example that the teacher covers.
    pub start: usize,
    /// Index after the last one.
    pub end: usize,
}

impl<'a> TeacherExamples<'a> {
    /// The indices of the covered examples.
    pub fn range(&self) -> Range<usize> {
        self.start..self.end
    }

    /// The covered examples.
    pub fn covered(&self) -> &'a [Example] {
        &self.all[self.range()]
    }
}

/// A frozen snapshot of the model.
pub enum Teacher {
    /// Its weights, with a forward pass in every step.
    Online(OnlineTeacher),
    /// Its last hidden states.
    Hidden(HiddenStates),
    /// Its largest logits.
    TopK(TopkTeacher),
}

/// The weights of a teacher that is evaluated in every step.
pub enum OnlineTeacher {
    /// A copy of all of them.
    Weights(Params),
    /// Those of the student, with adapters of its own.
    Adapters(LowRank),
    /// Those of the student, without adapters.
    Base,
}

impl OnlineTeacher {
    fn new(params: &Params, mode: TeacherMode) -> Self {
        match &params.low_rank {
            Some(_) if mode == TeacherMode::Base => Self::Base,
            Some(low_rank) => Self::Adapters(low_rank.clone()),
            None => Self::Weights(params.clone()),
        }
    }

    /// What the engine reads, given the student's weights.
    pub fn weights<'a>(&'a self, student: &'a Params) -> Weights<'a> {
        match self {
            Self::Weights(params) => params.into(),
            Self::Adapters(low_rank) => student.with_adapters(low_rank),
            Self::Base => student.without_adapters(),
        }
    }
}

/// The teacher's outputs at the targets of some examples.
pub enum TeacherOutputs<'a> {
    /// Hidden states, from which the LM head computes logits.
    Hidden {
        /// The head (V, D); `None`: that of the student.
        head: Option<&'a [f32]>,
        /// The hidden states (P, D).
        hidden: Vec<f32>,
    },
    /// The largest logits.
    TopK {
        /// The tokens (P, k).
        tokens: Vec<u32>,
        /// Their logits (P, k).
        logits: Vec<f32>,
        /// Tokens per target.
        k: usize,
    },
}

/// The last hidden states of a frozen model at the targets of a fixed set of examples.
pub struct HiddenStates {
    head: Option<Buffer>,       // (V, D); none where the student's is not trained
    states: Buffer,             // (P, D), after the final norm
    target_offsets: Vec<usize>, // see [`target_offsets`]
}

impl HiddenStates {
    fn empty(params: &Params, examples: TeacherExamples<'_>) -> Self {
        let layout = &params.layout;
        let target_offsets = target_offsets(examples.all, &examples.range());
        let targets = target_offsets[examples.all.len()];
        Self {
            head: params
                .low_rank
                .is_none()
                .then(|| Buffer::zeros(layout.head.len())),
            states: Buffer::zeros(targets * layout.norm.len()),
            target_offsets,
        }
    }

    /// Computes the hidden states. Each process computes its shard of the micro-batches.
    fn fill(
        &mut self,
        engine: &mut Engine,
        params: &Params,
        examples: &[Example],
        comm: Comm,
        progress: &Progress,
    ) {
        if let Some(head) = &mut self.head {
            head.copy_from_slice(&params.data[params.layout.head.clone()]);
        }
        let d = params.layout.norm.len();
        let micro_batches = micro_batches(examples, MICRO_BATCH_TOKENS, Example::num_tokens);
        let mut end = 0;
        let shares: Vec<_> = (0..comm.world_size())
            .map(|owner| {
                let of_owner = &micro_batches[comm.shard_range_of(owner, micro_batches.len())];
                let examples = of_owner.iter().flat_map(|micro_batch| micro_batch.iter());
                let targets: usize = examples.map(Example::num_targets).sum();
                end += targets * d;
                (of_owner, end - targets * d..end)
            })
            .collect();
        let (own, at) = &shares[comm.rank()];
        let count: usize = own.iter().map(|micro_batch| micro_batch.len()).sum();
        let bar = progress.bar(count as u64, "teacher forward pass");
        let mut done = at.start;
        for micro_batch in *own {
            let hidden = hidden_states(engine, params, micro_batch);
            self.states[done..done + hidden.len()].copy_from_slice(&hidden);
            done += hidden.len();
            bar.inc(micro_batch.len() as u64);
        }
        for (owner, (_, at)) in shares.into_iter().enumerate() {
            comm.broadcast(owner, &mut self.states[at]);
        }
    }

    /// The hidden states at the targets of the examples with these indices.
    fn select(&self, examples: &[usize]) -> Vec<f32> {
        let d = self.states.len() / self.target_offsets.last().copied().unwrap_or(0).max(1);
        let at = |example: usize| self.target_offsets[example] * d;
        let of_example = |example: &usize| &self.states[at(*example)..at(example + 1)];
        examples.iter().flat_map(of_example).copied().collect()
    }
}

impl Teacher {
    /// A teacher whose arrays are still to be filled, and whose files are not open, for the covered `examples` of a model like
    /// `params`.
    pub fn empty(spec: TeacherSpec, params: &Params, examples: TeacherExamples<'_>) -> Self {
        if let Some(k) = spec.topk_on_disk() {
            let layout = &params.layout;
            let vocab_size = layout.head.len() / layout.norm.len();
            return Self::TopK(TopkTeacher::empty(
                k.min(vocab_size),
                examples.all,
                examples.range(),
            ));
        }
        match spec.mode {
            TeacherMode::Online | TeacherMode::Base => {
                Self::Online(OnlineTeacher::new(params, spec.mode))
            }
            TeacherMode::Hidden | TeacherMode::Auto | TeacherMode::Topk => {
                Self::Hidden(HiddenStates::empty(params, examples))
            }
        }
    }

    /// Freezes the model as it is, for the covered `examples`. A `topk` teacher writes its files into `dir`.
    ///
    /// # Errors
    /// [`Error::Interrupted`] if the user interrupts while files are written; a second call continues with the complete ones.
    /// [`Error::Io`] if a file cannot be written.
    pub fn freeze(
        spec: TeacherSpec,
        model: &mut TrainingModel<'_>,
        examples: TeacherExamples<'_>,
        dir: &Path,
        progress: &Progress,
    ) -> Result<Self> {
        let comm = model.engine.comm();
        let TrainingModel { engine, params, .. } = model;
        let mut teacher = Self::empty(spec, params, examples);
        match &mut teacher {
            // It is a copy of the model as it is.
            Self::Online(_) => {}
            Self::Hidden(hidden) => {
                hidden.fill(engine, params, examples.covered(), comm, progress);
            }
            Self::TopK(topk_teacher) if !comm.is_main() => {
                // The main process writes the files for all.
                comm.barrier();
                topk_teacher.open(dir)?;
            }
            Self::TopK(topk_teacher) => {
                let k = topk_teacher.k();
                let (all, weights) = (examples.all, params.checksum());
                topk_teacher.build(dir, all, &weights, progress, |micro_batch| {
                    if interrupt::is_requested() {
                        return Err(Error::Interrupted {
                            hint: "run the same command again".into(),
                        });
                    }
                    let hidden = hidden_states(engine, params, micro_batch);
                    let top = engine.logits(params, &hidden, |_, logits| topk(logits, k));
                    Ok(top.into_iter().flatten().collect())
                })?;
                comm.barrier();
            }
        }
        Ok(teacher)
    }

    /// Opens the files in `dir`, if this teacher has any.
    ///
    /// # Errors
    /// Those of [`TopkTeacher::open`].
    pub fn open_files(&mut self, dir: &Path) -> Result<()> {
        match self {
            Self::TopK(teacher) => teacher.open(dir),
            Self::Online(_) | Self::Hidden(_) => Ok(()),
        }
    }

    /// Its arrays, by their names in a checkpoint. A teacher on disk has none.
    pub fn arrays(&self) -> Vec<(&'static str, &[f32])> {
        match self {
            Self::Online(OnlineTeacher::Weights(params)) => vec![("params", &params.data)],
            Self::Online(OnlineTeacher::Adapters(own)) => vec![("adapters", &own.params.data)],
            Self::Hidden(teacher) => {
                let head = teacher.head.iter().map(|head| ("head", &head[..]));
                head.chain([("hidden", &teacher.states[..])]).collect()
            }
            Self::Online(OnlineTeacher::Base) | Self::TopK(_) => Vec::new(),
        }
    }

    /// The same arrays, to be filled from a checkpoint.
    pub fn arrays_mut(&mut self) -> Vec<(&'static str, &mut [f32])> {
        match self {
            Self::Online(OnlineTeacher::Weights(params)) => vec![("params", &mut params.data)],
            Self::Online(OnlineTeacher::Adapters(own)) => vec![("adapters", &mut own.params.data)],
            Self::Hidden(teacher) => {
                let head = teacher.head.iter_mut().map(|head| ("head", &mut head[..]));
                head.chain([("hidden", &mut teacher.states[..])]).collect()
            }
            Self::Online(OnlineTeacher::Base) | Self::TopK(_) => Vec::new(),
        }
    }

    /// Its outputs at the targets of `packed`, which holds the examples with these indices. `hidden` computes the hidden states of
    /// its weights at positions of a batch, for a teacher that is evaluated in every step.
    ///
    /// # Errors
    /// That of `hidden`.
    pub fn outputs<'a, E>(
        &'a self,
        hidden: impl FnOnce(&OnlineTeacher, &Batch, &[usize]) -> Result<Vec<f32>, E>,
        packed: &PackedExamples,
        examples: &[usize],
    ) -> Result<TeacherOutputs<'a>, E> {
        Ok(match self {
            Self::Online(weights) => TeacherOutputs::Hidden {
                head: match weights {
                    OnlineTeacher::Weights(own) => Some(&own.data[own.layout.head.clone()]),
                    OnlineTeacher::Adapters(_) | OnlineTeacher::Base => None,
                },
                hidden: hidden(weights, &packed.batch, &packed.positions())?,
            },
            Self::Hidden(teacher) => TeacherOutputs::Hidden {
                head: teacher.head.as_deref(),
                hidden: teacher.select(examples),
            },
            Self::TopK(teacher) => {
                let (tokens, logits) = teacher.select(examples);
                TeacherOutputs::TopK {
                    tokens,
                    logits,
                    k: teacher.k(),
                }
            }
        })
    }
}

/// The last hidden states (P, D) at the targets of `examples`, in one micro-batch.
fn hidden_states(engine: &mut Engine, params: &Params, examples: &[Example]) -> Vec<f32> {
    let packed = PackedExamples::new(examples);
    engine.hidden(params, &packed.batch, &packed.positions())
}
