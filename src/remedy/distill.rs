//! Self-distillation (section 4 of the paper): stay near the distribution of an early snapshot of the model itself.

use std::{ops::Range, sync::Arc};

use super::top_logits::TopLogits;
use crate::{
    Result,
    config::{Method, Reduction, TargetToken, Teacher as Source, Tokens},
    engine::{Compared, Engine, TeacherLogits, TeacherSide, likeliest},
    interrupt,
    model::{Buffer, Layout, Params},
    progress::Progress,
    prompt::Row,
    ranks,
    run::RunDir,
    train::batches::{PASS_TOKENS, PackedRows, passes},
};

/// The term's strength.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distillation {
    /// lambda of eq. 1.
    pub lambda: f64,
    /// tau of eq. 2.
    pub temperature: f64,
    /// How it is averaged.
    pub reduction: Reduction,
    /// The tokens over which both sides are compared.
    pub tokens: Tokens,
    /// Whether they include the target.
    pub target_token: TargetToken,
    /// Seed of the tokens drawn at random.
    pub seed: u64,
}

impl Distillation {
    /// The term that `method` asks for; of no weight where the snapshot is asked at rows beside what is learned alone.
    pub fn new(method: &Method, seed: u64) -> Self {
        Self {
            lambda: if method.distills() {
                method.lambda
            } else {
                0.0
            },
            temperature: method.temperature,
            reduction: method.reduction,
            tokens: method.tokens,
            target_token: method.target_token,
            seed,
        }
    }

    /// What the divergence at one target token of a row weighs in the loss (eqs. 1 and 2):
    ///
    /// ```text
    /// L_distill = 1/N sum over examples of tau^2 / |M(y)| sum over j in M(y) of KL(teacher_j || student_j)
    /// weight    = lambda tau^2 / (N |M(y)|), or lambda tau^2 / (all target tokens) under `Reduction::Token`
    /// ```
    ///
    /// `examples` (N) and `all_targets` count the whole accumulated batch, `row_targets` (|M(y)|) the row.
    pub fn weight(&self, examples: usize, row_targets: usize, all_targets: usize) -> f32 {
        let tokens = match self.reduction {
            Reduction::Example => examples * row_targets,
            Reduction::Token => all_targets,
        };
        (self.lambda * self.temperature.powi(2) / tokens as f64) as f32
    }

    /// The term, `factor` times as strong.
    #[must_use]
    pub fn times(self, factor: f64) -> Self {
        Self {
            lambda: factor * self.lambda,
            ..self
        }
    }

    /// The same term over rows beside what is learned, of their strength and as a mean over them. They have no cross-entropy, so
    /// that the target token is compared too.
    #[must_use]
    pub fn beside(self, strength: f64) -> Self {
        Self {
            lambda: strength,
            reduction: Reduction::Example,
            target_token: TargetToken::Kept,
            ..self
        }
    }

    /// The tokens compared in a pass of `step` whose first target is the one numbered `first` of the whole batch.
    ///
    /// Random ones are drawn anew for every target of every step, whatever the passes.
    fn compared(&self, step: usize, first: usize) -> Compared {
        match self.tokens {
            Tokens::Full => Compared::All,
            Tokens::Top(count) => Compared::Likeliest(count),
            Tokens::Random(count) => Compared::Drawn {
                count,
                seed: self.seed,
                stream: ((step as u64) << 32) + first as u64,
            },
        }
    }

    /// The teacher's side of the loss in a pass of `step`, given its `answers` at the pass' targets, of which the first is
    /// the one numbered `first` of the whole batch.
    pub fn side<'a>(&self, answers: &'a Answers<'a>, step: usize, first: usize) -> TeacherSide<'a> {
        TeacherSide {
            logits: match answers {
                Answers::Hidden { head, hidden } => TeacherLogits::Product {
                    head,
                    hidden,
                    compared: self.compared(step, first),
                },
                Answers::Kept {
                    tokens,
                    logits,
                    count,
                } => TeacherLogits::Kept {
                    tokens,
                    logits,
                    count: *count,
                },
            },
            temperature: self.temperature as f32,
            without_target: self.target_token == TargetToken::LeftOut,
        }
    }
}

/// A frozen snapshot of the model.
pub enum Teacher {
    /// All of it.
    Live(Params),
    /// Its last hidden states.
    Hidden(HiddenStates),
    /// Its largest logits.
    TopLogits(TopLogits),
}

/// What a teacher says at the targets of some rows.
pub enum Answers<'a> {
    /// Hidden states (P, D), and the head (V, D) that makes logits of them.
    Hidden {
        /// The head.
        head: &'a [f32],
        /// The states.
        hidden: Vec<f32>,
    },
    /// The largest logits.
    Kept {
        /// The tokens (P, count).
        tokens: Vec<u32>,
        /// Their logits (P, count).
        logits: Vec<f32>,
        /// Tokens a target.
        count: usize,
    },
}

/// The last hidden states of a frozen model at the targets of a fixed set of rows.
pub struct HiddenStates {
    /// LM head (V, D).
    head: Buffer,
    /// Hidden states after the final norm: D a target.
    states: OfRows,
}

/// So many values for each target of each row.
struct OfRows {
    data: Buffer,
    /// Values a target.
    width: usize,
    /// The number of each row's first target, and that of all targets.
    first_targets: Vec<usize>,
}

impl OfRows {
    /// `width` zeros for each target of those of `rows` that are `asked` about.
    fn zeros((rows, asked): (&[Row], Range<usize>), width: usize) -> Self {
        let first_targets = first_targets(rows, &asked);
        Self {
            data: Buffer::zeros(first_targets[rows.len()] * width),
            width,
            first_targets,
        }
    }

    /// The values of the rows numbered `rows`.
    fn of<'a>(&'a self, rows: &'a [usize]) -> impl Iterator<Item = f32> + 'a {
        let at = |row: usize| self.first_targets[row] * self.width;
        let of_row = move |row: &usize| &self.data[at(*row)..at(row + 1)];
        rows.iter().flat_map(of_row).copied()
    }
}

/// The number of each row's first target, and that of all targets, where those of rows that are not `asked` about do not count.
pub(super) fn first_targets(rows: &[Row], asked: &Range<usize>) -> Vec<usize> {
    let mut first = vec![0; asked.start + 1];
    for row in &rows[asked.clone()] {
        first.push(first[first.len() - 1] + row.targets());
    }
    first.resize(rows.len() + 1, first[first.len() - 1]);
    first
}

impl Teacher {
    /// How many logits a teacher of this kind keeps in files of the run; none: it is kept in memory and in checkpoints.
    pub fn logits_in_files(source: Source, tokens: Tokens) -> Option<usize> {
        match (source, tokens) {
            (Source::Topk | Source::Auto, Tokens::Top(count)) => Some(count),
            _ => None,
        }
    }

    /// Room for a snapshot of a model with this layout, to be asked about some of the rows; all zero, and without files.
    pub fn empty(
        (source, tokens): (Source, Tokens),
        layout: &Arc<Layout>,
        rows: (&[Row], Range<usize>),
    ) -> Self {
        if let Some(count) = Self::logits_in_files(source, tokens) {
            let vocabulary = layout.head.len() / layout.norm.len();
            return Self::TopLogits(TopLogits::empty(count.min(vocabulary), rows));
        }
        match source {
            Source::Live => Self::Live(Params::zeros(layout.clone())),
            Source::Hidden | Source::Auto | Source::Topk => Self::Hidden(HiddenStates {
                head: Buffer::zeros(layout.head.len()),
                states: OfRows::zeros(rows, layout.norm.len()),
            }),
        }
    }

    /// Freezes `params` as they are, to be asked about those of `rows` that are `asked`. What is kept in files is kept in `run`.
    ///
    /// # Errors
    /// [`crate::Error::Interrupted`] after Ctrl-C where files are made, which goes on with those that are whole; when one
    /// cannot be written.
    pub fn freeze(
        kind: (Source, Tokens),
        engine: &mut Engine,
        params: &Params,
        (rows, asked): (&[Row], Range<usize>),
        run: &RunDir,
        progress: &Progress,
    ) -> Result<Self> {
        let mut teacher = Self::empty(kind, &params.layout, (rows, asked.clone()));
        match &mut teacher {
            Self::Live(copy) => copy.data.copy_from_slice(&params.data),
            Self::Hidden(HiddenStates { head, states }) => {
                head.copy_from_slice(&params.data[params.layout.head.clone()]);
                let (passes, d) = (
                    passes(&rows[asked], PASS_TOKENS, Row::len),
                    params.layout.norm.len(),
                );
                let mut end = 0;
                let shares: Vec<_> = (0..ranks::size())
                    .map(|owner| {
                        let of_owner = &passes[ranks::share_of(owner, passes.len())];
                        let rows = of_owner.iter().flat_map(|pass| pass.iter());
                        let targets: usize = rows.map(Row::targets).sum();
                        end += targets * d;
                        (of_owner, end - targets * d..end)
                    })
                    .collect();
                let (own, at) = &shares[ranks::rank()];
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
                    ranks::tell(owner, &mut states.data[at]);
                }
            }
            Self::TopLogits(kept) => {
                let count = kept.count();
                kept.make(run, rows, &params.checksum(), progress, |pass| {
                    if interrupt::asked() {
                        return Err(run.interrupted());
                    }
                    let hidden = hidden_states(engine, params, pass);
                    let tops = engine.logits(params, &hidden, |_, logits| likeliest(logits, count));
                    Ok(tops.into_iter().flatten().collect())
                })?;
            }
        }
        Ok(teacher)
    }

    /// Opens what it keeps in files of `run`.
    ///
    /// # Errors
    /// Those of [`TopLogits::open`].
    pub fn open_files(&mut self, run: &RunDir) -> Result<()> {
        match self {
            Self::TopLogits(kept) => kept.open(run),
            Self::Live(_) | Self::Hidden(_) => Ok(()),
        }
    }

    /// Its arrays under the names that a checkpoint gives them; none of what it keeps in files.
    pub fn arrays(&self) -> Vec<(&'static str, &[f32])> {
        match self {
            Self::Live(params) => vec![("params", &params.data)],
            Self::Hidden(teacher) => {
                vec![("head", &teacher.head), ("hidden", &teacher.states.data)]
            }
            Self::TopLogits(_) => Vec::new(),
        }
    }

    /// The same arrays, to be filled from a checkpoint.
    pub fn arrays_mut(&mut self) -> Vec<(&'static str, &mut [f32])> {
        match self {
            Self::Live(params) => vec![("params", &mut params.data)],
            Self::Hidden(teacher) => vec![
                ("head", &mut teacher.head),
                ("hidden", &mut teacher.states.data),
            ],
            Self::TopLogits(_) => Vec::new(),
        }
    }

    /// What it says at the targets of `packed`, whose rows are those numbered `rows`.
    pub fn answers<'a>(
        &'a self,
        engine: &mut Engine,
        packed: &PackedRows,
        rows: &[usize],
    ) -> Answers<'a> {
        match self {
            Self::Live(params) => Answers::Hidden {
                head: &params.data[params.layout.head.clone()],
                hidden: engine.hidden(params, &packed.batch, &packed.positions()),
            },
            Self::Hidden(teacher) => Answers::Hidden {
                head: &teacher.head,
                hidden: teacher.states.of(rows).collect(),
            },
            Self::TopLogits(teacher) => {
                let (tokens, logits) = teacher.of(rows);
                Answers::Kept {
                    tokens,
                    logits,
                    count: teacher.count(),
                }
            }
        }
    }
}

/// The last hidden states (P, D) at the targets of `rows`, in one pass.
fn hidden_states(engine: &mut Engine, params: &Params, rows: &[Row]) -> Vec<f32> {
    let packed = PackedRows::new(rows);
    engine.hidden(params, &packed.batch, &packed.positions())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(reduction: Reduction) -> [u32; 2] {
        let term = Distillation {
            lambda: 3.0,
            temperature: 0.5,
            reduction,
            tokens: Tokens::Full,
            target_token: TargetToken::Kept,
            seed: 0,
        };
        // Two examples, of 1 and 3 target tokens.
        [1, 3].map(|row_targets| term.weight(2, row_targets, 4).to_bits())
    }

    #[test]
    fn every_example_weighs_the_same_under_equation_2() {
        // lambda tau^2 / N = 3 x 0.25 / 2 an example, divided among its tokens; exact in binary.
        assert_eq!(
            weights(Reduction::Example),
            [0.375, 0.125].map(f32::to_bits)
        );
    }

    #[test]
    fn every_token_weighs_the_same_under_token_reduction() {
        assert_eq!(
            weights(Reduction::Token),
            [0.1875, 0.1875].map(f32::to_bits)
        );
    }
}
