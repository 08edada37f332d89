//! Self-distillation (section 4 of the paper): stay near the distribution of an early snapshot of the model itself.

use std::sync::Arc;

use crate::{
    config::{Method, Reduction, TargetToken, Teacher as Source, Tokens},
    engine::{Compared, Engine, TeacherLogits, TeacherSide, likeliest},
    model::{Buffer, Layout, Params},
    prompt::Row,
    train::batches::PackedRows,
};

/// Tokens of a pass that asks the teacher.
const CACHE_PASS_TOKENS: usize = 2048;

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

/// The largest logits of a frozen model at the targets of a fixed set of rows: exact under `tokens = { top = k }`.
pub struct TopLogits {
    /// Tokens a target.
    count: usize,
    /// The tokens' ids, most likely first; exact in f32, as there are far fewer than 2^24.
    tokens: OfRows,
    /// Their logits.
    logits: OfRows,
}

/// So many values for each target of each row.
struct OfRows {
    data: Buffer,
    /// Where each row's values begin in `data`, and the end.
    offsets: Vec<usize>,
}

impl OfRows {
    /// `width` zeros for each target of `rows`.
    fn zeros(rows: &[Row], width: usize) -> Self {
        let mut offsets = vec![0];
        for targets in PackedRows::new(rows).targets_per_row {
            offsets.push(offsets[offsets.len() - 1] + targets * width);
        }
        Self {
            data: Buffer::zeros(offsets[rows.len()]),
            offsets,
        }
    }

    /// The values of the rows numbered `rows`.
    fn of<'a>(&'a self, rows: &'a [usize]) -> impl Iterator<Item = f32> + 'a {
        let of_row = |row: &usize| &self.data[self.offsets[*row]..self.offsets[row + 1]];
        rows.iter().flat_map(of_row).copied()
    }
}

impl Teacher {
    /// Room for a snapshot of a model with this layout, for training on `rows`; all zero.
    pub fn empty(source: Source, tokens: Tokens, layout: &Arc<Layout>, rows: &[Row]) -> Self {
        match (source, tokens) {
            (Source::Live, _) => Self::Live(Params::zeros(layout.clone())),
            (Source::Topk | Source::Auto, Tokens::Top(count)) => {
                let vocabulary = layout.head.len() / layout.norm.len();
                let count = count.min(vocabulary);
                Self::TopLogits(TopLogits {
                    count,
                    tokens: OfRows::zeros(rows, count),
                    logits: OfRows::zeros(rows, count),
                })
            }
            (Source::Hidden | Source::Auto | Source::Topk, _) => Self::Hidden(HiddenStates {
                head: Buffer::zeros(layout.head.len()),
                states: OfRows::zeros(rows, layout.norm.len()),
            }),
        }
    }

    /// Freezes `params` as they are, for training on `rows`.
    pub fn freeze(
        source: Source,
        tokens: Tokens,
        engine: &mut Engine,
        params: &Params,
        rows: &[Row],
    ) -> Self {
        let mut teacher = Self::empty(source, tokens, &params.layout, rows);
        match &mut teacher {
            Self::Live(copy) => copy.data.copy_from_slice(&params.data),
            Self::Hidden(HiddenStates { head, states }) => {
                head.copy_from_slice(&params.data[params.layout.head.clone()]);
                let mut done = 0;
                for_hidden(engine, params, rows, |_, hidden| {
                    states.data[done..done + hidden.len()].copy_from_slice(hidden);
                    done += hidden.len();
                });
            }
            Self::TopLogits(TopLogits {
                count,
                tokens,
                logits,
            }) => {
                let mut done = 0;
                for_hidden(engine, params, rows, |engine, hidden| {
                    let tops = engine.logits(params, hidden, |_, logits| likeliest(logits, *count));
                    for (id, logit) in tops.into_iter().flatten() {
                        (tokens.data[done], logits.data[done]) = (id as f32, logit);
                        done += 1;
                    }
                });
            }
        }
        teacher
    }

    /// Its arrays under the names that a checkpoint gives them.
    pub fn arrays(&self) -> Vec<(&'static str, &[f32])> {
        match self {
            Self::Live(params) => vec![("params", &params.data)],
            Self::Hidden(teacher) => {
                vec![("head", &teacher.head), ("hidden", &teacher.states.data)]
            }
            Self::TopLogits(teacher) => vec![
                ("tokens", &teacher.tokens.data),
                ("logits", &teacher.logits.data),
            ],
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
            Self::TopLogits(teacher) => vec![
                ("tokens", &mut teacher.tokens.data),
                ("logits", &mut teacher.logits.data),
            ],
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
            Self::TopLogits(teacher) => Answers::Kept {
                tokens: teacher.tokens.of(rows).map(|id| id as u32).collect(),
                logits: teacher.logits.of(rows).collect(),
                count: teacher.count,
            },
        }
    }
}

/// Hands the last hidden states at the targets of `rows` to `keep`, a pass at a time.
fn for_hidden(
    engine: &mut Engine,
    params: &Params,
    rows: &[Row],
    mut keep: impl FnMut(&mut Engine, &[f32]),
) {
    for pass in passes(rows, CACHE_PASS_TOKENS) {
        let packed = PackedRows::new(pass);
        let hidden = engine.hidden(params, &packed.batch, &packed.positions());
        keep(engine, &hidden);
    }
}

/// `rows` in order, in stretches of about `tokens` tokens, at least one row each.
pub(super) fn passes(rows: &[Row], tokens: usize) -> Vec<&[Row]> {
    let mut count = 0;
    rows.chunk_by(|_, next| {
        count += next.prompt.len() + next.target.len();
        let fits = count < tokens;
        if !fits {
            count = 0;
        }
        fits
    })
    .collect()
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

    #[test]
    fn passes_keep_every_row_in_order() {
        let rows: Vec<Row> = (0..50)
            .map(|i| Row {
                prompt: vec![i; 1 + i as usize % 7],
                target: vec![i],
            })
            .collect();
        let stretches = passes(&rows, 20);
        assert!(stretches.len() > 5);
        assert_eq!(stretches.concat(), rows);
    }
}
