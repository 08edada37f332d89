//! What a linear layer makes of chosen directions of its input, and holding it to that.

use super::matmul;

/// `w u (N, R)`: what the linear layer `w` (N, K) makes of R directions of its input, the rows of `basis` (R, K).
pub fn basis_outputs(w: &[f32], basis: &[f32], k: usize) -> Vec<f32> {
    let (n, r) = (w.len() / k, basis.len() / k);
    let mut made = vec![0.0; n * r];
    matmul::forward(&mut made, w, basis, [n, r, k], false);
    made
}

/// Changes `w` (N, K) by as little as makes it respond to the R orthonormal rows of `basis` (R, K) with `held` (N, R):
/// `w += (held - w u) u^T`.
pub fn restore_basis_outputs(w: &mut [f32], basis: &[f32], held: &[f32], k: usize) {
    let (n, r) = (w.len() / k, basis.len() / k);
    let mut missing = basis_outputs(w, basis, k);
    for (made, held) in missing.iter_mut().zip(held) {
        *made = held - *made;
    }
    matmul::input_gradient(w, &missing, basis, [n, r, k], true);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_along_the_basis_are_restored_and_others_kept() {
        // Two outputs, three inputs; held along (0.6, 0.8, 0) alone.
        let basis = [0.6, 0.8, 0.0];
        let before = [1.0, 2.0, 3.0, -1.0, 0.5, 0.0];
        let held = basis_outputs(&before, &basis, 3);
        let close = |got: &[f32], expected: &[f32]| {
            assert_eq!(got.len(), expected.len());
            // A few roundings of numbers near 3.
            let apart = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
            assert!(apart.fold(0.0, f32::max) < 1e-6, "{got:?} {expected:?}");
        };
        close(&held, &[2.2, -0.2]);

        let mut w = before;
        restore_basis_outputs(&mut w, &basis, &held, 3);
        assert_eq!(w.map(f32::to_bits), before.map(f32::to_bits));

        // A step along the direction is taken back, one across it stays.
        for (w, step) in w.iter_mut().zip([0.3, 0.4, 0.0, -0.8, 0.6, 5.0]) {
            *w += step;
        }
        restore_basis_outputs(&mut w, &basis, &held, 3);
        close(&w, &[1.0, 2.0, 3.0, -1.8, 1.1, 5.0]);
        close(&basis_outputs(&w, &basis, 3), &held);
    }

    #[test]
    fn an_empty_basis_changes_nothing() {
        let mut w = [1.0, 2.0];
        assert!(basis_outputs(&w, &[], 2).is_empty());
        restore_basis_outputs(&mut w, &[], &[], 2);
        assert_eq!(w.map(f32::to_bits), [1.0, 2.0f32].map(f32::to_bits));
    }
}
