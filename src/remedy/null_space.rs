//! A change of a tensor's step: updates are projected onto the null space of known inputs. The outputs of linear layers for the inputs
//! of known facts (and of decoys, if there are any) stay those of the snapshot, and new facts are learned in the remaining directions.
//!
//! The subspace of known inputs is that of GPM (Saha et al. 2021, arXiv 2103.09762). As in `AlphaEdit` (Fang et al. 2024, arXiv
//! 2410.02355), the update is projected and not the gradient.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::{
    Error, Result,
    engine::{
        Batch, Gradients, SecondMoments, TrainingModel, basis_outputs, eigen, restore_basis_outputs,
    },
    model::{Buffer, Layout, LinearInput, Params},
    progress::Progress,
    prompt::{Example, micro_batches},
};

/// Maximum number of examples from which the subspaces are computed.
const MAX_ROWS: usize = 1024;

/// Tokens per micro-batch: no more than a training step has, whose memory is reused.
const MICRO_BATCH_TOKENS: usize = 512;

/// Approximate bytes of second moments that are summed in one pass over the examples. A wider model takes several passes.
const MOMENT_BYTES: usize = 1 << 29;

/// The subspaces spanned by known inputs, and the outputs of the trained linear layers for them at the snapshot.
///
/// Take a linear layer with weight W (out, in), whose input at each token of the known examples is x (in). Let C be the sum of x x^T
/// (in, in; not centred), and U (in, r) the fewest leading eigenvectors of C whose eigenvalues sum to at least `energy` of its trace.
/// Every step is followed by
///
/// ```text
/// W <- W - (W U - K) U^T,    K = W* U (out, r), W* the weight at the snapshot
/// ```
///
/// after which `W U = K`. Since W U = K held before the step, this projects the update that `AdamW` made, with its weight decay, onto
/// the null space of U^T: `dW <- dW (I - U U^T)`. It needs no copy of the weights, and rounding errors do not accumulate. q, k and v
/// have the same input and share one U; so do gate and up.
///
/// With `every` = n this follows every n-th step and the last step of an epoch. Between projections the weights may leave the
/// constraint.
///
/// The cost is `2 r` multiplications per weight, compared with `3 T` for a training step with T tokens.
pub struct NullSpaceProjection {
    spaces: Vec<InputSpace>,
}

/// The subspace of one input.
struct InputSpace {
    layer: usize,
    input: LinearInput,
    /// in.
    width: usize,
    /// U^T (r, in).
    basis: Vec<f32>,
    weights: Vec<ProjectedWeight>,
}

/// A trained weight with this input.
struct ProjectedWeight {
    /// Its index in the layout.
    tensor: usize,
    /// K (out, r).
    outputs: Vec<f32>,
}

impl NullSpaceProjection {
    /// An empty subspace for every linear layer of `layout` with a trained weight (by index in the layout).
    fn new(layout: &Layout, trained: impl Fn(usize) -> bool) -> Self {
        let mut spaces = Vec::new();
        for (layer, of_layer) in layout.layers.iter().enumerate() {
            for input in LinearInput::ALL {
                let group = of_layer.weight_range(input);
                let weights: Vec<ProjectedWeight> = (0..layout.tensors.len())
                    .filter(|i| group.contains(&layout.tensors[*i].range.start) && trained(*i))
                    .map(|tensor| ProjectedWeight {
                        tensor,
                        outputs: Vec::new(),
                    })
                    .collect();
                if let Some(first) = weights.first() {
                    spaces.push(InputSpace {
                        layer,
                        input,
                        width: layout.tensors[first.tensor].row_len(),
                        basis: Vec::new(),
                        weights,
                    });
                }
            }
        }
        Self { spaces }
    }

    /// Computes the subspaces of the inputs of `known` for the current weights.
    ///
    /// At most 1,024 examples, drawn at random, are used, each as in training: without its last token, after which nothing is
    /// predicted. C is summed in f32; the rounding error (about 1e-6 of its largest eigenvalue) is far below the eigenvalues that matter
    /// for any `energy` below 1. Eigenvalues up to `in * 1.2e-7` of the largest count as rounding, so that the subspace for `energy` = 1
    /// is the span of the inputs. The decomposition is in f64, one input per thread.
    ///
    /// # Errors
    /// [`Error::Failed`] if an input is not finite.
    pub fn fit(
        energy: f64,
        model: &mut TrainingModel<'_>,
        known: &[&Example],
        seed: u64,
        progress: &Progress,
    ) -> Result<Self> {
        let TrainingModel {
            engine,
            params,
            gradients,
            ..
        } = model;
        let mut projection = Self::new(&params.layout, |i| gradients.contains(i));
        let count = known.len().min(MAX_ROWS);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let examples: Vec<Example> = rand::seq::index::sample(&mut rng, known.len(), count)
            .into_iter()
            .map(|example| known[example].clone())
            .collect();
        let spaces = projection.spaces.len();
        let turns = split_by_memory(&mut projection.spaces);
        let bar = progress.bar(
            (turns.len() * examples.len() + spaces) as u64,
            "space of known inputs",
        );
        for turn in turns {
            let mut moments: Vec<SecondMoments> =
                turn.iter().map(InputSpace::second_moments).collect();
            for micro_batch in micro_batches(&examples, MICRO_BATCH_TOKENS, Example::num_tokens) {
                // No shared prefixes: each example counts with all of its tokens.
                let mut batch = Batch::new();
                for example in micro_batch {
                    batch.push(example.input_ids());
                }
                engine.second_moments(params, &batch, &mut moments);
                bar.inc(micro_batch.len() as u64);
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
            for weight in &mut space.weights {
                let range = params.layout.tensors[weight.tensor].range.clone();
                weight.outputs = basis_outputs(&params.data[range], &space.basis, space.width);
            }
        }
        progress.note(projection.free_dimensions());
        Ok(projection)
    }

    /// A projection whose arrays are zero, to be filled from a checkpoint; `length` returns the length of an array there by its name.
    pub fn empty(layout: &Layout, gradients: &Gradients, length: impl Fn(&str) -> usize) -> Self {
        let mut projection = Self::new(layout, |i| gradients.contains(i));
        for space in &mut projection.spaces {
            space.basis = vec![0.0; length(&space.name())];
            let rank = space.rank();
            for weight in &mut space.weights {
                weight.outputs = vec![0.0; layout.tensors[weight.tensor].shape[0] * rank];
            }
        }
        projection
    }

    /// Floats of a projection of these tensors (by index in `layout`) for the inputs of `examples`, at most: bases, outputs, and the
    /// second moments that are held at a time while it is fitted.
    pub fn max_floats(layout: &Layout, trained: &[bool], examples: &[Example]) -> usize {
        let projection = Self::new(layout, |i| trained[i]);
        let tokens = examples.iter().take(MAX_ROWS).map(Example::num_tokens);
        let tokens: usize = tokens.sum();
        let mut floats = 0;
        let (mut moments, mut largest) = (0, 0);
        for space in &projection.spaces {
            let outputs = space.weights.iter();
            let outputs: usize = outputs.map(|w| layout.tensors[w.tensor].shape[0]).sum();
            floats += space.width.min(tokens) * (space.width + outputs);
            moments += space.width * space.width;
            largest = largest.max(space.width * space.width);
        }
        floats + moments.min((MOMENT_BYTES / size_of::<f32>()).max(largest))
    }

    /// Whether the tensor (by index in the layout) is projected. The others must be frozen.
    pub fn covers(&self, tensor: usize) -> bool {
        self.weights().any(|weight| weight.tensor == tensor)
    }

    /// Undoes the changes within the subspaces since the last call.
    pub fn apply(&self, params: &mut Params) {
        for space in &self.spaces {
            for weight in &space.weights {
                let range = params.layout.tensors[weight.tensor].range.clone();
                let w = &mut params.data[range];
                restore_basis_outputs(w, &space.basis, &weight.outputs, space.width);
            }
        }
    }

    /// A note with the number of dimensions that remain to learn in.
    fn free_dimensions(&self) -> String {
        let of_inputs = LinearInput::ALL.into_iter().filter_map(|input| {
            let of_input = || self.spaces.iter().filter(move |s| s.input == input);
            let width = of_input().next()?.width;
            let free: usize = of_input().map(|s| width - s.rank()).sum();
            let mean = free as f64 / of_input().count() as f64;
            Some(format!("{mean:.1} of {width} ({})", input.name()))
        });
        format!(
            "free input dimensions, mean over layers: {}",
            of_inputs.collect::<Vec<_>>().join(", ")
        )
    }

    fn weights(&self) -> impl Iterator<Item = &ProjectedWeight> {
        self.spaces.iter().flat_map(|space| &space.weights)
    }

    /// Its arrays, by their names in a checkpoint.
    pub fn arrays(&self) -> Vec<(String, &[f32])> {
        let mut arrays = Vec::new();
        for space in &self.spaces {
            arrays.push((space.name(), &space.basis[..]));
            let outputs = space.weights.iter().map(|w| (w.name(), &w.outputs[..]));
            arrays.extend(outputs);
        }
        arrays
    }

    /// The same arrays, to be filled from a checkpoint.
    pub fn arrays_mut(&mut self) -> Vec<(String, &mut [f32])> {
        let mut arrays = Vec::new();
        for space in &mut self.spaces {
            arrays.push((space.name(), &mut space.basis[..]));
            let weights = space.weights.iter_mut();
            arrays.extend(weights.map(|w| (w.name(), &mut w.outputs[..])));
        }
        arrays
    }
}

/// Whether any trained tensor (by index in the layout) is the weight of a linear layer. The projection freezes all others.
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

    /// Zero second moments of this input.
    fn second_moments(&self) -> SecondMoments {
        SecondMoments {
            layer: self.layer,
            input: self.input,
            sum: Buffer::zeros(self.width * self.width),
        }
    }
}

impl ProjectedWeight {
    fn name(&self) -> String {
        format!("outputs.{}", self.tensor)
    }
}

/// Splits `spaces` into consecutive parts whose second moments take about [`MOMENT_BYTES`], but at least one space each.
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

/// U^T (r, n): the fewest leading eigenvectors of the second moments (n, n) with at least `energy` of their trace.
///
/// # Errors
/// [`Error::Failed`] if the moments are not finite.
fn leading_directions(moments: &SecondMoments, n: usize, energy: f64) -> Result<Vec<f32>> {
    let sum: Vec<f64> = moments.sum.iter().map(|x| f64::from(*x)).collect();
    let eigen = eigen::symmetric(&sum, n).ok_or_else(|| Error::Failed {
        message: format!(
            "the inputs of {} in layer {} are not finite for known facts",
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

/// The smallest number of the largest eigenvalues whose sum is at least `energy` of the total. Values at the level of rounding count as 0.
fn rank(ascending: &[f64], energy: f64) -> usize {
    let largest = ascending.last().copied().unwrap_or_default();
    let rounding = ascending.len() as f64 * f64::from(f32::EPSILON) * largest;
    let descending = ascending.iter().rev().take_while(|v| **v > rounding);
    let enough = energy * descending.clone().sum::<f64>();
    let mut sum = 0.0;
    descending
        .take_while(|value| {
            let is_needed = sum < enough;
            sum += **value;
            is_needed
        })
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rank_is_the_smallest_that_reaches_the_energy() {
        // Cumulative sums of a trace of 16: 8, 12, 14, 15, 16.
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
        // 9 a a^T + 4 b b^T for a = (0.6, 0.8, 0), b = (0, 0, 1), lower triangle; the third direction has eigenvalue 0.
        let sum = [3.24, 77.0, 77.0, 4.32, 5.76, 77.0, 0.0, 0.0, 4.0];
        let mut moments = SecondMoments {
            layer: 0,
            input: LinearInput::O,
            sum: Buffer::zeros(9),
        };
        moments.sum.copy_from_slice(&sum);
        let directions = leading_directions(&moments, 3, 1.0).expect("finite");
        // The sign of a direction is arbitrary; f32.
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
        assert!(error.to_string().contains("o in layer 0"), "{error}");
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
        // 256 MiB of moments each, of 512 MiB; then one that is wider than a turn.
        assert_eq!(lengths(&[8192; 5]), [2, 2, 1]);
        assert_eq!(lengths(&[64, 20_000, 64, 64]), [1, 1, 2]);
        assert!(lengths(&[]).is_empty());
    }
}
