//! Which subjects a model holds near to each other: the cosine of their hidden states.

use super::{NEAREST, Neighbour};
use crate::{
    Result,
    engine::{Engine, matmul},
    facts::Fact,
    measure::{Subjects, middle_layer},
    model::Model,
    progress::Progress,
    prompt::PromptTemplate,
};

/// The facts of `learn` whose subjects lie nearest to that of each fact of `held`, nearest first.
///
/// # Errors
/// When a question is longer than the model's context.
pub fn nearest(
    model: &Model,
    engine: &mut Engine,
    learn: &[&Fact],
    held: &[&Fact],
    template: &PromptTemplate,
    progress: &Progress,
) -> Result<Vec<Vec<Neighbour>>> {
    let subjects = Subjects::find(learn.iter().chain(held).copied(), model, engine, template)?;
    let states = subjects.states(engine, model, middle_layer(model), progress);
    let (new, old) = states.split_at(learn.len() * model.config.hidden_size);
    let shape = [held.len(), learn.len(), model.config.hidden_size];
    let mut cosines = vec![0.0; held.len() * learn.len()];
    matmul::forward(&mut cosines, old, new, shape, false);
    Ok((0..held.len())
        .map(|i| {
            let cosines = &cosines[i * learn.len()..][..learn.len()];
            let mut order: Vec<usize> = (0..learn.len()).collect();
            order.sort_by(|a, b| cosines[*b].total_cmp(&cosines[*a]));
            let of = |j: &usize| Neighbour {
                subject: learn[*j].subject.clone(),
                object: learn[*j].target(),
                cosine: f64::from(cosines[*j]),
            };
            order.iter().take(NEAREST).map(of).collect()
        })
        .collect())
}
