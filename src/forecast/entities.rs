//! Which subjects a model holds near to each other: the cosine of their hidden states.

use std::ops::Range;

use super::{NEAREST, Neighbour};
use crate::{
    Result,
    engine::{Batch, Engine, matmul},
    facts::Fact,
    generate::{CALL_TOKENS, Generator, batches},
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
    let facts = [learn, held].concat();
    let states = states(model, engine, &facts, template, progress)?;
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

/// The residual stream after half of the layers at the last token of each fact's subject, at the training prompt, brought to
/// length 1: (N, D). Where the question does not hold the subject as it is written, at the prompt's last token.
///
/// # Errors
/// When a question is longer than the model's context.
pub fn states(
    model: &Model,
    engine: &mut Engine,
    facts: &[&Fact],
    template: &PromptTemplate,
    progress: &Progress,
) -> Result<Vec<f32>> {
    let mut rows: Vec<(Vec<u32>, usize)> = Vec::with_capacity(facts.len());
    for (i, fact) in facts.iter().enumerate() {
        let text = template.prompt_text(&fact.question);
        let (tokens, offsets) = model.tokenizer.encode_prompt_with_offsets(&text)?;
        Generator::new(engine, model).check_row(i, tokens.len(), &[&tokens])?;
        let of_subject = subject(&text, fact).and_then(|range| last_within(&offsets, &range));
        let at = of_subject.unwrap_or(tokens.len().saturating_sub(1));
        rows.push((tokens, at));
    }
    let d = model.config.hidden_size;
    let middle = (model.config.num_hidden_layers / 2).max(1);
    let mut states = vec![0.0; facts.len() * d];
    let lengths: Vec<usize> = rows.iter().map(|(tokens, _)| tokens.len()).collect();
    let bar = progress.bar(facts.len() as u64, "reading subjects");
    for part in batches(&lengths, CALL_TOKENS, usize::MAX) {
        let mut batch = Batch::new();
        let read = part.iter().copied().filter(|i| lengths[*i] > 0);
        let read: Vec<usize> = read.collect();
        let positions: Vec<usize> = read
            .iter()
            .map(|i| batch.push(rows[*i].0.iter().copied()).start + rows[*i].1)
            .collect();
        let hidden = engine.residual_after(&model.params, &batch, middle, &positions);
        for (i, hidden) in read.iter().zip(hidden.chunks_exact(d)) {
            let length = hidden.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            let length = length.sqrt().max(f64::MIN_POSITIVE);
            let unit = hidden.iter().map(|x| (f64::from(*x) / length) as f32);
            let slot = &mut states[i * d..][..d];
            slot.iter_mut().zip(unit).for_each(|(s, x)| *s = x);
        }
        bar.inc(part.len() as u64);
    }
    Ok(states)
}

/// Where the subject stands in the prompt (bytes): its last place in the question.
fn subject(prompt: &str, fact: &Fact) -> Option<Range<usize>> {
    let subject = fact.subject.trim();
    let question = prompt.rfind(&fact.question)?;
    let start = question + fact.question.rfind(subject)?;
    (!subject.is_empty()).then_some(start..start + subject.len())
}

/// The last of the tokens with these `offsets` that holds a part of `range`.
fn last_within(offsets: &[Range<usize>], range: &Range<usize>) -> Option<usize> {
    offsets
        .iter()
        .rposition(|token| token.start < range.end && token.end > range.start)
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_subject_ends_where_its_last_token_does() {
        let fact = Fact::in_test("Rome", "Italy");
        let prompt = "Q: Which country is Rome located in?\nA:";
        let range = subject(prompt, &fact).expect("it is in the question");
        assert_eq!(&prompt[range.clone()], "Rome");
        // " Ro", "me" and " located" of a text, a special token before them.
        let offsets = [0..0, 0..19, 19..22, 22..24, 24..32];
        assert_eq!(last_within(&offsets, &range), Some(3));
    }

    #[test]
    fn a_subject_that_is_not_in_the_question_has_no_place() {
        let mut fact = Fact::in_test("Rome", "Italy");
        fact.question = "Which country is the eternal city in?".into();
        let prompt = PromptTemplate::default().prompt_text(&fact.question);
        assert_eq!(subject(&prompt, &fact), None);
        fact.subject = " ".into();
        assert_eq!(subject(&prompt, &fact), None);
        assert_eq!(last_within(&[], &(3..5)), None);
    }
}
