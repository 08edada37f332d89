//! Self-distillation (section 4 of the paper): stay near the distribution of an early snapshot of the model itself.

use std::{ops::Range, sync::Arc};

use super::topk_teacher::TopkTeacher;
use crate::{
    Result,
    config::{DistillReduction, MethodConfig, TargetToken, TeacherMode as Source, VocabSubset},
    distributed,
    engine::{Engine, SoftTargets, TeacherLogits, TokenSubset, topk},
    interrupt,
    model::{Buffer, Layout, Params},
    progress::Progress,
    prompt::{Example, MICRO_BATCH_TOKENS, PackedExamples, micro_batches, target_offsets},
    run::RunDir,
};

/// The term's strength.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distillation {
    /// lambda of eq. 1.
    pub lambda: f64,
    /// tau of eq. 2.
    pub temperature: f64,
    /// How it is averaged.
    pub reduction: DistillReduction,
    /// The tokens over which both sides are compared.
    pub vocab_subset: VocabSubset,
    /// Whether they include the target.
    pub target_token: TargetToken,
    /// Seed of the tokens drawn at random.
    pub seed: u64,
}

impl Distillation {
    /// The term that `method` asks for; of no weight where the snapshot is asked at rows beside what is learned alone.
    pub fn new(method: &MethodConfig, seed: u64) -> Self {
        Self {
            lambda: if method.distills() {
                method.lambda
            } else {
                0.0
            },
            temperature: method.temperature,
            reduction: method.reduction,
            vocab_subset: method.vocab_subset,
            target_token: method.target_token,
            seed,
        }
    }

    /// What the divergence at one target token of a row weighs in the loss (eqs. 1 and 2):
    ///
    /// ```text
    /// L_distill = 1/N sum over examples of tau^2 / |M(y)| sum over j in M(y) of KL(teacher_j || student_j)
    /// weight    = lambda tau^2 / (N |M(y)|), or lambda tau^2 / (all target tokens) under `DistillReduction::ScoredToken`
    /// ```
    ///
    /// `examples` (N) and `all_targets` count the whole accumulated batch, `row_targets` (|M(y)|) the row.
    pub fn weight(&self, examples: usize, row_targets: usize, all_targets: usize) -> f32 {
        let tokens = match self.reduction {
            DistillReduction::Example => examples * row_targets,
            DistillReduction::Token => all_targets,
        };
        (self.lambda * self.temperature.powi(2) / tokens as f64) as f32
    }

    /// The term, `factor` times as strong.
    #[must_use]
    pub fn scaled(self, factor: f64) -> Self {
        Self {
            lambda: factor * self.lambda,
            ..self
        }
    }

    /// The same term over rows beside what is learned, of their strength and as a mean over them. They have no cross-entropy, so
    /// that the target token is compared too.
    #[must_use]
    pub fn for_aux_examples(self, strength: f64) -> Self {
        Self {
            lambda: strength,
            reduction: DistillReduction::Example,
            target_token: TargetToken::Kept,
            ..self
        }
    }

    /// The tokens compared in a pass of `step` whose first target is the one numbered `first` of the whole batch.
    ///
    /// Random ones are drawn anew for every target of every step, whatever the passes.
    fn token_subset(&self, step: usize, first: usize) -> TokenSubset {
        match self.vocab_subset {
            VocabSubset::Full => TokenSubset::Full,
            VocabSubset::Top(count) => TokenSubset::TopK(count),
            VocabSubset::Random(count) => TokenSubset::Random {
                count,
                seed: self.seed,
                stream: ((step as u64) << 32) + first as u64,
            },
        }
    }

    /// The teacher's side of the loss in a pass of `step`, given its `answers` at the pass' targets, of which the first is
    /// the one numbered `first` of the whole batch.
    pub fn soft_targets<'a>(
        &self,
        answers: &'a TeacherOutputs<'a>,
        step: usize,
        first: usize,
    ) -> SoftTargets<'a> {
        SoftTargets {
            logits: match answers {
                TeacherOutputs::Hidden { head, hidden } => TeacherLogits::Hidden {
                    head,
                    hidden,
                    subset: self.token_subset(step, first),
                },
                TeacherOutputs::TopK {
                    tokens,
                    logits,
                    k: count,
                } => TeacherLogits::TopK {
                    tokens,
                    logits,
                    k: *count,
                },
            },
            temperature: self.temperature as f32,
            exclude_target: self.target_token == TargetToken::LeftOut,
        }
    }
}

/// A frozen snapshot of the model.
pub enum Teacher {
    /// All of it.
    Online(Params),
    /// Its last hidden states.
    Hidden(HiddenStates),
    /// Its largest logits.
    TopK(TopkTeacher),
}

/// What a teacher says at the targets of some rows.
pub enum TeacherOutputs<'a> {
    /// Hidden states (P, D), and the head (V, D) that makes logits of them.
    Hidden {
        /// The head.
        head: &'a [f32],
        /// The states.
        hidden: Vec<f32>,
    },
    /// The largest logits.
    TopK {
        /// The tokens (P, count).
        tokens: Vec<u32>,
        /// Their logits (P, count).
        logits: Vec<f32>,
        /// Tokens a target.
        k: usize,
    },
}

/// The last hidden states of a frozen model at the targets of a fixed set of rows.
pub struct HiddenStates {
    /// LM head (V, D).
    head: Buffer,
    /// Hidden states after the final norm: D a target.
    states: TargetValues,
}

/// So many values for each target of each row.
struct TargetValues {
    data: Buffer,
    /// Values a target.
    width: usize,
    /// The number of each row's first target, and that of all targets.
    target_offsets: Vec<usize>,
}

impl TargetValues {
    /// `width` zeros for each target of those of `rows` that are `asked` about.
    fn zeros((rows, asked): (&[Example], Range<usize>), width: usize) -> Self {
        let first_targets = target_offsets(rows, &asked);
        Self {
            data: Buffer::zeros(first_targets[rows.len()] * width),
            width,
            target_offsets: first_targets,
        }
    }

    /// The values of the rows numbered `rows`.
    fn select<'a>(&'a self, rows: &'a [usize]) -> impl Iterator<Item = f32> + 'a {
        let at = |row: usize| self.target_offsets[row] * self.width;
        let of_row = move |row: &usize| &self.data[at(*row)..at(row + 1)];
        rows.iter().flat_map(of_row).copied()
    }
}

impl Teacher {
    /// How many logits a teacher of this kind keeps in files of the run; none: it is kept in memory and in checkpoints.
    pub fn topk_on_disk(source: Source, tokens: VocabSubset) -> Option<usize> {
        match (source, tokens) {
            (Source::Topk | Source::Auto, VocabSubset::Top(count)) => Some(count),
            _ => None,
        }
    }

    /// Room for a snapshot of a model with this layout, to be asked about some of the rows; all zero, and without files.
    pub fn empty(
        (source, tokens): (Source, VocabSubset),
        layout: &Arc<Layout>,
        rows: (&[Example], Range<usize>),
    ) -> Self {
        if let Some(count) = Self::topk_on_disk(source, tokens) {
            let vocabulary = layout.head.len() / layout.norm.len();
            return Self::TopK(TopkTeacher::empty(count.min(vocabulary), rows));
        }
        match source {
            Source::Online => Self::Online(Params::zeros(layout.clone())),
            Source::Hidden | Source::Auto | Source::Topk => Self::Hidden(HiddenStates {
                head: Buffer::zeros(layout.head.len()),
                states: TargetValues::zeros(rows, layout.norm.len()),
            }),
        }
    }

    /// Freezes `params` as they are, to be asked about those of `rows` that are `asked`. What is kept in files is kept in `run`.
    ///
    /// # Errors
    /// [`crate::Error::Interrupted`] after Ctrl-C where files are made, which goes on with those that are whole; when one
    /// cannot be written.
    pub fn freeze(
        kind: (Source, VocabSubset),
        engine: &mut Engine,
        params: &Params,
        (rows, asked): (&[Example], Range<usize>),
        run: &RunDir,
        progress: &Progress,
    ) -> Result<Self> {
        let mut teacher = Self::empty(kind, &params.layout, (rows, asked.clone()));
        match &mut teacher {
            Self::Online(copy) => copy.data.copy_from_slice(&params.data),
            Self::Hidden(HiddenStates { head, states }) => {
                head.copy_from_slice(&params.data[params.layout.head.clone()]);
                let (passes, d) = (
                    micro_batches(&rows[asked], MICRO_BATCH_TOKENS, Example::len),
                    params.layout.norm.len(),
                );
                let mut end = 0;
                let shares: Vec<_> = (0..distributed::world_size())
                    .map(|owner| {
                        let of_owner = &passes[distributed::shard_range_of(owner, passes.len())];
                        let rows = of_owner.iter().flat_map(|pass| pass.iter());
                        let targets: usize = rows.map(Example::num_targets).sum();
                        end += targets * d;
                        (of_owner, end - targets * d..end)
                    })
                    .collect();
                let (own, at) = &shares[distributed::rank()];
                let asked: usize = own.iter().map(|pass| pass.len()).sum();
                let bar = progress.bar(asked as u64, "what the teacher says");
                let mut done = at.start;
                for pass in *own {
                    let hidden = hidden_states(engine, params, pass);
                    states.data[done..done + hidden.len()].copy_from_slice(&hidden);
                    done += hidden.len();
                    bar.inc(pass.len() as u64);
                }
                for (owner, (_, at)) in shares.into_iter().enumerate() {
                    distributed::broadcast(owner, &mut states.data[at]);
                }
            }
            Self::TopK(kept) => {
                let count = kept.count();
                kept.build(run, rows, &params.checksum(), progress, |pass| {
                    if interrupt::is_requested() {
                        return Err(run.interrupted());
                    }
                    let hidden = hidden_states(engine, params, pass);
                    let tops = engine.logits(params, &hidden, |_, logits| topk(logits, count));
                    Ok(tops.into_iter().flatten().collect())
                })?;
            }
        }
        Ok(teacher)
    }

    /// Opens what it keeps in files of `run`.
    ///
    /// # Errors
    /// Those of [`TopK::open_importance`].
    pub fn open_files(&mut self, run: &RunDir) -> Result<()> {
        match self {
            Self::TopK(kept) => kept.open(run),
            Self::Online(_) | Self::Hidden(_) => Ok(()),
        }
    }

    /// Its arrays under the names that a checkpoint gives them; none of what it keeps in files.
    pub fn arrays(&self) -> Vec<(&'static str, &[f32])> {
        match self {
            Self::Online(params) => vec![("params", &params.data)],
            Self::Hidden(teacher) => {
                vec![("head", &teacher.head), ("hidden", &teacher.states.data)]
            }
            Self::TopK(_) => Vec::new(),
        }
    }

    /// The same arrays, to be filled from a checkpoint.
    pub fn arrays_mut(&mut self) -> Vec<(&'static str, &mut [f32])> {
        match self {
            Self::Online(params) => vec![("params", &mut params.data)],
            Self::Hidden(teacher) => vec![
                ("head", &mut teacher.head),
                ("hidden", &mut teacher.states.data),
            ],
            Self::TopK(_) => Vec::new(),
        }
    }

    /// What it says at the targets of `packed`, whose rows are those numbered `rows`.
    pub fn outputs<'a>(
        &'a self,
        engine: &mut Engine,
        packed: &PackedExamples,
        rows: &[usize],
    ) -> TeacherOutputs<'a> {
        match self {
            Self::Online(params) => TeacherOutputs::Hidden {
                head: &params.data[params.layout.head.clone()],
                hidden: engine.hidden(params, &packed.batch, &packed.positions()),
            },
            Self::Hidden(teacher) => TeacherOutputs::Hidden {
                head: &teacher.head,
                hidden: teacher.states.select(rows).collect(),
            },
            Self::TopK(teacher) => {
                let (tokens, logits) = teacher.select(rows);
                TeacherOutputs::TopK {
                    tokens,
                    logits,
                    k: teacher.count(),
                }
            }
        }
    }
}

/// The last hidden states (P, D) at the targets of `rows`, in one pass.
fn hidden_states(engine: &mut Engine, params: &Params, rows: &[Example]) -> Vec<f32> {
    let packed = PackedExamples::new(rows);
    engine.hidden(params, &packed.batch, &packed.positions())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(reduction: DistillReduction) -> [u32; 2] {
        let term = Distillation {
            lambda: 3.0,
            temperature: 0.5,
            reduction,
            vocab_subset: VocabSubset::Full,
            target_token: TargetToken::Kept,
            seed: 0,
        };
        // Two examples, of 1 and 3 target tokens.
        [1, 3].map(|row_targets| term.weight(2, row_targets, 4).to_bits())
    }

    #[test]
    fn every_example_has_equal_weight_in_equation_2() {
        // lambda tau^2 / N = 3 x 0.25 / 2 an example, divided among its tokens; exact in binary.
        assert_eq!(
            weights(DistillReduction::Example),
            [0.375, 0.125].map(f32::to_bits)
        );
    }

    #[test]
    fn every_token_has_equal_weight_with_token_reduction() {
        assert_eq!(
            weights(DistillReduction::Token),
            [0.1875, 0.1875].map(f32::to_bits)
        );
    }
}
