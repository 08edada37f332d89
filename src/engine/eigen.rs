//! Eigendecomposition of a symmetric matrix.

use faer::{
    Mat, MatRef, Par,
    diag::Diag,
    dyn_stack::{MemBuffer, MemStack},
    linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch},
};

/// Eigenvalues and their eigenvectors.
pub struct Eigen {
    /// Ascending.
    pub values: Vec<f64>,
    /// In the order of the values, each of length 1.
    vectors: Vec<f64>,
}

impl Eigen {
    /// The eigenvector of the value at index `j`.
    pub fn vector(&self, j: usize) -> &[f64] {
        let n = self.values.len();
        &self.vectors[j * n..][..n]
    }
}

/// Decomposes a symmetric matrix (n, n), of which the lower triangle is read. None if an element is not finite.
pub fn symmetric(matrix: &[f64], n: usize) -> Option<Eigen> {
    if !matrix.iter().all(|x| x.is_finite()) {
        return None;
    }
    let (mut vectors, mut values) = (Mat::<f64>::zeros(n, n), Diag::<f64>::zeros(n));
    // On one thread: the order of sums must not depend on the number of threads.
    let par = Par::Seq;
    let both = ComputeEigenvectors::Yes;
    let room = self_adjoint_evd_scratch::<f64>(n, both, par, faer::Spec::default());
    self_adjoint_evd(
        MatRef::from_row_major_slice(matrix, n, n),
        values.as_mut(),
        Some(vectors.as_mut()),
        par,
        MemStack::new(&mut MemBuffer::new(room)),
        faer::Spec::default(),
    )
    .ok()?;
    Some(Eigen {
        values: values.column_vector().iter().copied().collect(),
        vectors: (0..n)
            .flat_map(|j| vectors.col(j).iter().copied().collect::<Vec<_>>())
            .collect(),
    })
}
