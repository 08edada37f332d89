//! Projection: what the linear layers make of the inputs of known facts, and of decoys where there are any, stays as the
//! snapshot had it, and new facts are learned in the directions that are left. After GPM (Saha et al. 2021, arXiv 2103.09762), whose space this is, and
//! `AlphaEdit` (Fang et al. 2024, arXiv 2410.02355), which projects the update and not the gradient.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::{
    Error, Result,
    engine::{
        Batch, Engine, Gradients, SecondMoments, basis_outputs, eigen, restore_basis_outputs,
    },
    model::{Buffer, Layout, LinearInput, Params},
    progress::Progress,
    prompt::{Example, micro_batches},
};

/// Rows that the spaces are found from, at most.
const MAX_ROWS: usize = 1024;

/// Tokens of a pass over them: no more than a training step has, whose memory it uses.
const PASS_TOKENS: usize = 512;

/// Bytes of moments that are summed up in the same passes, about; a wider model is passed through in several turns.
const MOMENT_BYTES: usize = 1 << 29;

/// The spaces of the inputs of known facts and decoys, and what the trained linear layers made of them at the snapshot.
///
/// For a linear layer with weight W (out, in), let x (in) be what it reads at each token of their rows,
/// `C = sum x x^T` (in, in; not centred), and U (in, r) the fewest leading eigenvectors of C whose eigenvalues sum up to at
/// least `energy` of its trace. Every step is followed by
///
/// ```text
/// W <- W - (W U - K) U^T,    K = W* U (out, r), W* the weight at the snapshot
/// ```
///
/// after which `W U = K`. Since W U = K before the step too, this projects the step's update, whole as `AdamW` (and its
/// weight decay) made it, onto the null space of U^T: `dW <- dW (I - U U^T)`. It
/// needs no copy of the weights, and it takes rounding back instead of gathering it. q, k and v read one input and share
/// one U, gate and up another.
///
/// With `every` = n this follows every n-th step and the last of an epoch alone, and takes back what all of them changed within the
/// spaces; gradients in between are those of weights that have left them by so many steps.
///
/// It costs `2 out in r` multiplications a weight, beside the `3 T out in` that a step has at T tokens.
pub struct NullSpaceProjection {
    spaces: Vec<InputSpace>,
}

/// The space of one input.
struct InputSpace {
    layer: usize,
    input: LinearInput,
    /// in.
    width: usize,
    /// U^T (r, in).
    basis: Vec<f32>,
    weights: Vec<ProjectedWeight>,
}

/// A trained weight that reads it.
struct ProjectedWeight {
    /// Its index in the layout.
    tensor: usize,
    /// K (out, r).
    outputs: Vec<f32>,
}

impl NullSpaceProjection {
    /// The linear layers of `layout` of which weights are trained (by index in the layout), and no directions yet.
    fn new(layout: &Layout, trained: impl Fn(usize) -> bool) -> Self {
        let mut spaces = Vec::new();
        for (layer, within) in layout.layers.iter().enumerate() {
            for input in LinearInput::ALL {
                let group = within.weight_range(input);
                let readers: Vec<ProjectedWeight> = (0..layout.tensors.len())
                    .filter(|i| group.contains(&layout.tensors[*i].range.start) && trained(*i))
                    .map(|tensor| ProjectedWeight {
                        tensor,
                        outputs: Vec::new(),
                    })
                    .collect();
                if let Some(first) = readers.first() {
                    spaces.push(InputSpace {
                        layer,
                        input,
                        width: layout.tensors[first.tensor].row_len(),
                        basis: Vec::new(),
                        weights: readers,
                    });
                }
            }
        }
        Self { spaces }
    }

    /// Finds the spaces of the inputs of `held` in `params` as they are.
    ///
    /// 1,024 rows at most are read, drawn at random, each as training reads it: without its last token, after which nothing
    /// is predicted. C is summed in f32, whose rounding (1e-6 of its largest eigenvalue or so) is far below the eigenvalues
    /// that decide at any `energy` but 1; eigenvalues that are no larger than `in * 1.2e-7` of the largest are taken for
    /// rounding, so that at 1 the space is all that the inputs span. Decomposed in f64, an input a thread.
    ///
    /// # Errors
    /// When an input is not finite.
    pub fn fit(
        energy: f64,
        engine: &mut Engine,
        params: &Params,
        held: &[&Example],
        seed: u64,
        gradients: &Gradients,
        progress: &Progress,
    ) -> Result<Self> {
        let mut projection = Self::new(&params.layout, |i| gradients.contains(i));
        let count = held.len().min(MAX_ROWS);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let rows: Vec<Example> = rand::seq::index::sample(&mut rng, held.len(), count)
            .into_iter()
            .map(|row| held[row].clone())
            .collect();
        let spaces = projection.spaces.len();
        let turns = split_by_memory(&mut projection.spaces);
        let bar = progress.bar(
            (turns.len() * rows.len() + spaces) as u64,
            "the space of what is held",
        );
        for turn in turns {
            let mut moments: Vec<SecondMoments> = turn.iter().map(InputSpace::moments).collect();
            for pass in micro_batches(&rows, PASS_TOKENS, Example::len) {
                // Each row counts with all of its tokens, those that others begin with too.
                let mut batch = Batch::new();
                for row in pass {
                    batch.push(row.input_ids());
                }
                engine.second_moments(params, &batch, &mut moments);
                bar.inc(pass.len() as u64);
            }
            turn.par_iter_mut()
                .zip(moments)
                .try_for_each(|(space, moments)| {
                    space.basis = leading_directions(&moments, space.width, energy)?;
                    bar.inc(1);
                    Ok::<_, Error>(())
                })?;
        }
        drop(bar);
        for space in &mut projection.spaces {
            for reader in &mut space.weights {
                let weight = &params.layout.tensors[reader.tensor];
                let weight = &params.data[weight.range.clone()];
                reader.outputs = basis_outputs(weight, &space.basis, space.width);
            }
        }
        progress.note(projection.free_dimensions());
        Ok(projection)
    }

    /// Room for what [`NullSpaceProjection::fit`] finds, to be filled from a checkpoint, of which `length` says how long the array
    /// of a name is.
    pub fn empty(layout: &Layout, gradients: &Gradients, length: impl Fn(&str) -> usize) -> Self {
        let mut projection = Self::new(layout, |i| gradients.contains(i));
        for space in &mut projection.spaces {
            space.basis = vec![0.0; length(&space.name())];
            let rank = space.rank();
            for reader in &mut space.weights {
                reader.outputs = vec![0.0; layout.tensors[reader.tensor].shape[0] * rank];
            }
        }
        projection
    }

    /// Whether the tensor (by index in the layout) has a space, so that it may move outside of it.
    pub fn covers(&self, tensor: usize) -> bool {
        self.weights().any(|reader| reader.tensor == tensor)
    }

    /// Takes back what the last step changed within the spaces.
    pub fn apply(&self, params: &mut Params) {
        for space in &self.spaces {
            for reader in &space.weights {
                let weight = params.layout.tensors[reader.tensor].range.clone();
                let weight = &mut params.data[weight];
                restore_basis_outputs(weight, &space.basis, &reader.outputs, space.width);
            }
        }
    }

    /// How many dimensions are left to learn in, for people.
    fn free_dimensions(&self) -> String {
        let told = LinearInput::ALL.into_iter().filter_map(|input| {
            let of_input = || self.spaces.iter().filter(move |s| s.input == input);
            let width = of_input().next()?.width;
            let free: usize = of_input().map(|s| width - s.rank()).sum();
            let mean = free as f64 / of_input().count() as f64;
            Some(format!("{mean:.1} of {width} ({})", input.name()))
        });
        format!(
            "input dimensions that what is held leaves free, mean over layers: {}",
            told.collect::<Vec<_>>().join(", ")
        )
    }

    fn weights(&self) -> impl Iterator<Item = &ProjectedWeight> {
        self.spaces.iter().flat_map(|space| &space.weights)
    }

    /// Its arrays under the names that a checkpoint gives them.
    pub fn arrays(&self) -> Vec<(String, &[f32])> {
        let mut arrays = Vec::new();
        for space in &self.spaces {
            arrays.push((space.name(), &space.basis[..]));
            let held = space.weights.iter().map(|r| (r.name(), &r.outputs[..]));
            arrays.extend(held);
        }
        arrays
    }

    /// The same arrays, to be filled from a checkpoint.
    pub fn arrays_mut(&mut self) -> Vec<(String, &mut [f32])> {
        let mut arrays = Vec::new();
        for space in &mut self.spaces {
            arrays.push((space.name(), &mut space.basis[..]));
            let held = space.weights.iter_mut();
            arrays.extend(held.map(|r| (r.name(), &mut r.outputs[..])));
        }
        arrays
    }
}

/// Whether any of the tensors that are trained (by index in the layout) is a linear layer's weight: the others are frozen from
/// the snapshot on.
pub fn has_projected_weights(layout: &Layout, trained: &[bool]) -> bool {
    !NullSpaceProjection::new(layout, |i| trained[i])
        .spaces
        .is_empty()
}

impl InputSpace {
    fn name(&self) -> String {
        format!("basis.{}.{}", self.layer, self.input.name())
    }

    /// r.
    fn rank(&self) -> usize {
        self.basis.len() / self.width
    }

    /// No moments yet.
    fn moments(&self) -> SecondMoments {
        SecondMoments {
            layer: self.layer,
            input: self.input,
            sum: Buffer::zeros(self.width * self.width),
        }
    }
}

impl ProjectedWeight {
    fn name(&self) -> String {
        format!("held.{}", self.tensor)
    }
}

/// `spaces` in order, in stretches whose moments have about [`MOMENT_BYTES`], at least one each.
fn split_by_memory(spaces: &mut [InputSpace]) -> Vec<&mut [InputSpace]> {
    let bytes = |space: &InputSpace| space.width * space.width * size_of::<f32>();
    let mut sum = 0;
    spaces
        .chunk_by_mut(|space, next| {
            sum += bytes(space);
            let fits = sum + bytes(next) <= MOMENT_BYTES;
            if !fits {
                sum = 0;
            }
            fits
        })
        .collect()
}

/// U^T (r, n): the leading eigenvectors of the moments (n, n) that hold at least `energy` of their trace.
///
/// # Errors
/// When the moments are not finite.
fn leading_directions(moments: &SecondMoments, n: usize, energy: f64) -> Result<Vec<f32>> {
    let sum: Vec<f64> = moments.sum.iter().map(|x| f64::from(*x)).collect();
    let eigen = eigen::symmetric(&sum, n).ok_or_else(|| Error::Failed {
        message: format!(
            "what known facts put into {} of layer {} is not finite",
            moments.input.name(),
            moments.layer
        ),
        hint: Some("lower `train.learning_rate`, or check the model".into()),
    })?;
    let leading = (n - rank(&eigen.values, energy)..n).rev();
    Ok(leading
        .flat_map(|j| eigen.vector(j).iter().map(|x| *x as f32))
        .collect())
}

/// How many of the largest of these eigenvalues sum up to at least `energy` of all; those that are rounding count as 0.
fn rank(ascending: &[f64], energy: f64) -> usize {
    let largest = ascending.last().copied().unwrap_or_default();
    let rounding = ascending.len() as f64 * f64::from(f32::EPSILON) * largest;
    let descending = ascending.iter().rev().take_while(|v| **v > rounding);
    let enough = energy * descending.clone().sum::<f64>();
    let mut held = 0.0;
    descending
        .take_while(|value| {
            let is_needed = held < enough;
            held += **value;
            is_needed
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_is_the_smallest_that_reaches_the_energy() {
        // Of a trace of 16: 8, 12, 14, 15, 16.
        let values = [1.0, 1.0, 2.0, 4.0, 8.0];
        for (energy, expected) in [(0.1, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.9, 4), (1.0, 5)] {
            assert_eq!(rank(&values, energy), expected, "{energy}");
        }
    }

    #[test]
    fn rounding_eigenvalues_are_ignored() {
        assert_eq!(rank(&[-1e-7, 1e-7, 1.0, 3.0], 1.0), 2);
        assert_eq!(rank(&[0.0, 0.0], 1.0), 0);
        assert_eq!(rank(&[], 1.0), 0);
    }

    #[test]
    fn directions_are_orthonormal_and_the_strongest_come_first() {
        // 9 a a^T + 4 b b^T for a = (0.6, 0.8, 0), b = (0, 0, 1), below the diagonal; the third direction has nothing.
        let sum = [3.24, 77.0, 77.0, 4.32, 5.76, 77.0, 0.0, 0.0, 4.0];
        let mut moments = SecondMoments {
            layer: 0,
            input: LinearInput::O,
            sum: Buffer::zeros(9),
        };
        moments.sum.copy_from_slice(&sum);
        let directions = leading_directions(&moments, 3, 1.0).expect("finite");
        // A direction has no sign; f32.
        for (got, expected) in directions.iter().zip([0.6, 0.8, 0.0, 0.0, 0.0, 1.0f32]) {
            assert!((got.abs() - expected).abs() < 1e-6, "{directions:?}");
        }
        assert_eq!(directions.len(), 6);
        assert_eq!(
            leading_directions(&moments, 3, 0.6).expect("finite").len(),
            3
        );

        moments.sum[4] = f32::NAN;
        let error = leading_directions(&moments, 3, 0.6).expect_err("not finite");
        assert!(error.to_string().contains("o of layer 0"), "{error}");
    }

    #[test]
    fn wide_models_are_read_in_several_turns() {
        let space = |width| InputSpace {
            layer: 0,
            input: LinearInput::Down,
            width,
            basis: Vec::new(),
            weights: Vec::new(),
        };
        let lengths = |widths: &[usize]| -> Vec<usize> {
            let mut spaces: Vec<InputSpace> = widths.iter().map(|w| space(*w)).collect();
            split_by_memory(&mut spaces)
                .iter()
                .map(|turn| turn.len())
                .collect()
        };
        // 256 MiB of moments each, of 512; then one that is wider than a turn.
        assert_eq!(lengths(&[8192; 5]), [2, 2, 1]);
        assert_eq!(lengths(&[64, 20_000, 64, 64]), [1, 1, 2]);
        assert!(lengths(&[]).is_empty());
    }
}
