//! Self-distillation (section 4 of the paper): stay near the distribution of an early snapshot of the model itself.

use std::sync::Arc;

use crate::{
    config::{Reduction, Teacher as Source},
    engine::{Engine, TeacherSide},
    model::{Buffer, Layout, Params},
    prompt::Row,
    train::batches::PackedRows,
};

/// Tokens of a pass that fills a hidden-state cache.
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
}

impl Distillation {
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
}

/// A frozen snapshot of the model.
pub enum Teacher {
    /// All of it.
    Live(Params),
    /// What the loss needs of it.
    Hidden(HiddenStates),
}

/// The last hidden states of a frozen model at the targets of a fixed set of rows.
pub struct HiddenStates {
    /// LM head (V, D).
    pub head: Buffer,
    /// Hidden states after the final norm, row after row: (all targets, D).
    pub hidden: Buffer,
    /// Where each row's states begin in `hidden`, and its end.
    offsets: Vec<usize>,
}

impl Teacher {
    /// Room for a snapshot of a model with this layout, for training on `rows`; all zero.
    pub fn empty(source: Source, layout: &Arc<Layout>, rows: &[Row]) -> Self {
        match source {
            Source::Live => Self::Live(Params::zeros(layout.clone())),
            Source::Hidden | Source::Auto | Source::Topk => {
                Self::Hidden(HiddenStates::zeros(layout, rows))
            }
        }
    }

    /// Freezes `params` as they are, for training on `rows`.
    pub fn freeze(source: Source, engine: &mut Engine, params: &Params, rows: &[Row]) -> Self {
        let mut teacher = Self::empty(source, &params.layout, rows);
        match &mut teacher {
            Self::Live(copy) => copy.data.copy_from_slice(&params.data),
            Self::Hidden(states) => states.fill(engine, params, rows),
        }
        teacher
    }

    /// Its arrays under the names that a checkpoint gives them.
    pub fn arrays(&self) -> Vec<(&'static str, &[f32])> {
        match self {
            Self::Live(params) => vec![("params", &params.data)],
            Self::Hidden(states) => vec![("head", &states.head), ("hidden", &states.hidden)],
        }
    }

    /// The same arrays, to be filled from a checkpoint.
    pub fn arrays_mut(&mut self) -> Vec<(&'static str, &mut [f32])> {
        match self {
            Self::Live(params) => vec![("params", &mut params.data)],
            Self::Hidden(states) => {
                vec![("head", &mut states.head), ("hidden", &mut states.hidden)]
            }
        }
    }

    /// The LM head (V, D).
    pub fn head(&self) -> &[f32] {
        match self {
            Self::Live(params) => &params.data[params.layout.head.clone()],
            Self::Hidden(states) => &states.head,
        }
    }

    /// Hidden states at the targets of `packed`, whose rows are those numbered `rows`: (P, D).
    pub fn hidden(&self, engine: &mut Engine, packed: &PackedRows, rows: &[usize]) -> Vec<f32> {
        match self {
            Self::Live(params) => engine.hidden(params, &packed.batch, &packed.positions()),
            Self::Hidden(states) => rows
                .iter()
                .flat_map(|&row| states.of_row(row))
                .copied()
                .collect(),
        }
    }

    /// The teacher's side of the loss, given its `hidden` states.
    pub fn side<'a>(&'a self, hidden: &'a [f32], temperature: f64) -> TeacherSide<'a> {
        TeacherSide {
            head: self.head(),
            hidden,
            temperature: temperature as f32,
        }
    }
}

impl HiddenStates {
    /// Room for the states of `rows`, all zero.
    fn zeros(layout: &Layout, rows: &[Row]) -> Self {
        let width = layout.norm.len();
        let mut offsets = vec![0];
        for count in PackedRows::new(rows).targets_per_row {
            offsets.push(offsets[offsets.len() - 1] + count * width);
        }
        Self {
            head: Buffer::zeros(layout.head.len()),
            hidden: Buffer::zeros(offsets[rows.len()]),
            offsets,
        }
    }

    fn fill(&mut self, engine: &mut Engine, params: &Params, rows: &[Row]) {
        self.head
            .copy_from_slice(&params.data[params.layout.head.clone()]);
        let mut done = 0;
        for pass in passes(rows, CACHE_PASS_TOKENS) {
            let packed = PackedRows::new(pass);
            let states = engine.hidden(params, &packed.batch, &packed.positions());
            self.hidden[done..done + states.len()].copy_from_slice(&states);
            done += states.len();
        }
    }

    fn of_row(&self, row: usize) -> &[f32] {
        &self.hidden[self.offsets[row]..self.offsets[row + 1]]
    }
}

/// `rows` in order, in stretches of about `tokens` tokens, at least one row each.
fn passes(rows: &[Row], tokens: usize) -> Vec<&[Row]> {
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
