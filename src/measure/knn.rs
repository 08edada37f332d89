//! Which subjects a model holds near to each other: the cosine of their hidden states.

use serde::{Deserialize, Serialize};

use crate::{engine::matmul, facts::Fact};

/// New facts that are told beside another one.
const NUM_NEIGHBOURS: usize = 3;

/// Facts that are compared with the new ones at a time: the cosines of more would not fit into memory.
const CHUNK_SIZE: usize = 512;

/// A new fact beside another one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Subject.
    pub subject: String,
    /// Answer that is taught.
    pub object: String,
    /// Cosine of the hidden states of the two subjects' last tokens, after half of the layers, at the training prompt.
    pub cosine: f64,
}

/// The new facts whose subjects lie nearest to each of the others', nearest first.
///
/// # Shapes
/// `new_states` (U, D) of the facts `new`, `states` (N, D), each of length 1, as [`super::SubjectPrompts::outcomes`] gives them; d: D.
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
