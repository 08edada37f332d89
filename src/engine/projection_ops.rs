//! The output of a linear layer along given input directions, and restoring it after the weight has changed.

use super::matmul;

/// `w u` (N, R): the output of the linear layer `w` (N, K) for R input directions, the rows of `basis` (R, K).
pub fn basis_outputs(w: &[f32], basis: &[f32], k: usize) -> Vec<f32> {
    let (n, r) = (w.len() / k, basis.len() / k);
    let mut outputs = vec![0.0; n * r];
    matmul::forward(&mut outputs, w, basis, [n, r, k], false);
    outputs
}

/// The smallest change of `w` (N, K) after which the R orthonormal rows of `basis` (R, K) have the outputs `target` (N, R):
/// `w += (target - w u) u^T`.
pub fn restore_basis_outputs(w: &mut [f32], basis: &[f32], target: &[f32], k: usize) {
    let (n, r) = (w.len() / k, basis.len() / k);
    let mut difference = basis_outputs(w, basis, k);
    for (output, target) in difference.iter_mut().zip(target) {
        *output = target - *output;
    }
    matmul::input_gradient(w, &difference, basis, [n, r, k], true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_along_the_basis_are_restored_and_others_kept() {
        // Two outputs, three inputs; the basis is (0.6, 0.8, 0).
        let basis = [0.6, 0.8, 0.0];
        let before = [1.0, 2.0, 3.0, -1.0, 0.5, 0.0];
        let outputs = basis_outputs(&before, &basis, 3);
        let close = |got: &[f32], expected: &[f32]| {
            assert_eq!(got.len(), expected.len());
            // A few rounding errors of numbers near 3.
            let differences = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
            assert!(
                differences.fold(0.0, f32::max) < 1e-6,
                "{got:?} {expected:?}"
            );
        };
        close(&outputs, &[2.2, -0.2]);

        let mut w = before;
        restore_basis_outputs(&mut w, &basis, &outputs, 3);
        assert_eq!(w.map(f32::to_bits), before.map(f32::to_bits));

        // The component of a step along the basis is undone, the component orthogonal to it stays.
        for (w, step) in w.iter_mut().zip([0.3, 0.4, 0.0, -0.8, 0.6, 5.0]) {
            *w += step;
        }
        restore_basis_outputs(&mut w, &basis, &outputs, 3);
        close(&w, &[1.0, 2.0, 3.0, -1.8, 1.1, 5.0]);
        close(&basis_outputs(&w, &basis, 3), &outputs);
    }

    #[test]
    fn an_empty_basis_changes_nothing() {
        let mut w = [1.0, 2.0];
        assert!(basis_outputs(&w, &[], 2).is_empty());
        restore_basis_outputs(&mut w, &[], &[], 2);
        assert_eq!(w.map(f32::to_bits), [1.0, 2.0f32].map(f32::to_bits));
    }
}
