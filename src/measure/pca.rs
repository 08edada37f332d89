//! Principal component analysis to two dimensions, for a map of facts.

use super::sample;
use crate::engine::{eigen, matmul};

/// Facts from which the components are computed; of more, a sample.
const MAX_SAMPLES: usize = 512;

/// Coordinates of hidden states along their first two principal components.
///
/// X: the states of at most 512 facts minus their mean. With the eigenvectors u of X X' to the two largest eigenvalues v, the
/// components are X' u / sqrt(v), with the sign that makes the largest entry positive.
///
/// # Shapes
/// `states` (N, D), d: D; returns (N, 2). A coordinate is 0 along a component without variance.
pub fn pca_2d(states: &[f32], d: usize, seed: u64) -> Vec<[f32; 2]> {
    let row = |i: usize| &states[i * d..][..d];
    let chosen = sample(states.len() / d, MAX_SAMPLES, seed);
    let n = chosen.len();
    if n < 2 {
        return vec![[0.0; 2]; n];
    }
    let mut mean = vec![0.0; d];
    for &i in &chosen {
        for (m, x) in mean.iter_mut().zip(row(i)) {
            *m += x / n as f32;
        }
    }
    let minus_mean = |i: usize| row(i).iter().zip(&mean).map(|(x, m)| x - m);
    let centred: Vec<f32> = chosen.iter().flat_map(|&i| minus_mean(i)).collect();
    let mut gram = vec![0.0; n * n];
    matmul::forward(&mut gram, &centred, &centred, [n, n, d], false);
    let gram: Vec<f64> = gram.into_iter().map(f64::from).collect();
    let Some(eigen) = eigen::symmetric(&gram, n) else {
        return vec![[0.0; 2]; states.len() / d];
    };
    let axes = [1, 2].map(|from_last| {
        let mut axis = vec![0.0; d];
        let j = n - from_last;
        // Below rounding error there is no component.
        let rounding = n as f64 * f64::from(f32::EPSILON) * eigen.values[n - 1];
        if eigen.values[j] <= rounding {
            return axis;
        }
        let length = eigen.values[j].sqrt();
        for (u, x) in eigen.vector(j).iter().zip(centred.chunks_exact(d)) {
            for (a, x) in axis.iter_mut().zip(x) {
                *a += u * f64::from(*x) / length;
            }
        }
        let largest = axis
            .iter()
            .copied()
            .max_by(|a, b| a.abs().total_cmp(&b.abs()));
        if largest.is_some_and(|a| a < 0.0) {
            for a in &mut axis {
                *a = -*a;
            }
        }
        axis
    });
    let project = |axis: &[f64], i: usize| {
        let products = axis
            .iter()
            .zip(minus_mean(i))
            .map(|(a, x)| a * f64::from(x));
        products.sum::<f64>() as f32
    };
    (0..states.len() / d)
        .map(|i| [project(&axes[0], i), project(&axes[1], i)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinates_equal_numpys_principal_components() {
        // python: X = np.array([[2, 0, 1], [0, 1, 0], [-1, 2, 3], [4, -2, 1.]]); X -= X.mean(0)
        // u, s, vt = np.linalg.svd(X); vt *= np.sign(vt[np.arange(3), np.abs(vt).argmax(1)])[:, None]; X @ vt[:2].T
        let states = [2.0, 0.0, 1.0, 0.0, 1.0, 0.0, -1.0, 2.0, 3.0, 4.0, -2.0, 1.0];
        let expected = [
            [0.782_648, -0.071_854],
            [-1.149_339, -1.535_814],
            [-3.157_065, 1.103_751],
            [3.523_756, 0.503_917],
        ];
        let coordinates = pca_2d(&states, 3, 0);
        for (place, expected) in coordinates.iter().zip(expected) {
            for (x, expected) in place.iter().zip(expected) {
                // Single precision on numbers of about 3.
                assert!((x - expected).abs() < 1e-5, "{coordinates:?}");
            }
        }
    }

    #[test]
    fn identical_states_map_to_zero() {
        assert_eq!(pca_2d(&[1.0, 2.0, 1.0, 2.0, 1.0, 2.0], 2, 0), [[0.0; 2]; 3]);
        assert_eq!(pca_2d(&[1.0, 2.0], 2, 0), [[0.0; 2]]);
        assert!(pca_2d(&[], 2, 0).is_empty());
    }
}
