//! Nearest neighbours among subjects by cosine similarity of hidden states.

use serde::{Deserialize, Serialize};

use crate::{engine::matmul, facts::Fact};

/// Neighbours per fact.
const NUM_NEIGHBOURS: usize = 3;

/// Facts per similarity matrix, to bound memory.
const CHUNK_SIZE: usize = 512;

/// A new fact near another fact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Subject.
    pub subject: String,
    /// Target answer.
    pub object: String,
    /// Cosine similarity of the hidden states at the last tokens of the two subjects, after half of the layers, at the training prompt.
    pub cosine: f64,
}

/// The nearest new facts of each other fact by cosine similarity of subjects, nearest first.
///
/// # Shapes
/// `new_states` (U, D) of the facts `new`, `states` (N, D): unit vectors, see [`super::SubjectPrompts::subject_states`]. d: D.
pub fn nearest(new: &[&Fact], new_states: &[f32], states: &[f32], d: usize) -> Vec<Vec<Neighbour>> {
    let mut neighbours = Vec::new();
    for chunk in states.chunks(CHUNK_SIZE * d) {
        let shape = [chunk.len() / d, new.len(), d];
        let mut cosines = vec![0.0; shape[0] * new.len()];
        matmul::forward(&mut cosines, chunk, new_states, shape, false);
        neighbours.extend((0..shape[0]).map(|i| {
            let cosines = &cosines[i * new.len()..][..new.len()];
            let mut order: Vec<usize> = (0..new.len()).collect();
            order.sort_by(|a, b| cosines[*b].total_cmp(&cosines[*a]));
            let of = |j: &usize| Neighbour {
                subject: new[*j].subject.clone(),
                object: new[*j].target(),
                cosine: f64::from(cosines[*j]),
            };
            order.iter().take(NUM_NEIGHBOURS).map(of).collect()
        }));
    }
    neighbours
}
