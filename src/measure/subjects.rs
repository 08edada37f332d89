//! Hidden states of facts: at the subject, and at the position that predicts the first answer token.

use std::ops::Range;

use crate::{
    Result,
    engine::{Batch, Engine},
    facts::Fact,
    generate::{Generator, MAX_BATCH_TOKENS, batch_by_cost},
    model::Model,
    progress::Progress,
    prompt::PromptTemplate,
};

/// The default layer for subject states: half of the layers (at least 1), as in the paper.
pub fn middle_layer(model: &Model) -> usize {
    (model.config.num_hidden_layers / 2).max(1)
}

/// The training prompts of facts, with the last subject token of each.
pub struct SubjectPrompts {
    /// Prompt tokens, and the position of the last token that overlaps the subject.
    rows: Vec<(Vec<u32>, usize)>,
}

impl SubjectPrompts {
    /// Tokenizes the prompts of `facts`. If a question does not contain its subject verbatim, the last token of the prompt is used.
    ///
    /// # Errors
    /// If a question is longer than the model's context, or the tokenizer does not fit the model.
    pub fn new<'f>(
        facts: impl IntoIterator<Item = &'f Fact>,
        model: &Model,
        engine: &mut Engine,
        template: &PromptTemplate,
    ) -> Result<Self> {
        let mut rows = Vec::new();
        for (i, fact) in facts.into_iter().enumerate() {
            let text = template.prompt_text(&fact.question);
            let (tokens, offsets) = model
                .tokenizer
                .encode_with_offsets(&text, !template.rendered)?;
            Generator::new(engine, model).check_row(i, tokens.len(), &[&tokens])?;
            let of_subject =
                subject_range(&text, fact).and_then(|range| last_token_within(&offsets, &range));
            let position = of_subject.unwrap_or(tokens.len().saturating_sub(1));
            rows.push((tokens, position));
        }
        Ok(Self { rows })
    }

    /// Number of prompts.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are no prompts.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The residual stream after `layer` layers at the last token of each subject, normalized to unit length: (N, D). Zero for an
    /// empty prompt.
    pub fn subject_states(
        &self,
        engine: &mut Engine,
        model: &Model,
        layer: usize,
        progress: &Progress,
    ) -> Vec<f32> {
        let subject_end = |row: usize| self.rows[row].1;
        let mut states = self.forward_at(subject_end, model, progress, |batch, positions| {
            engine.residual_after(&model.params, batch, layer, positions)
        });
        for state in states.chunks_exact_mut(model.config.hidden_size) {
            let length = state.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            let length = length.sqrt().max(f64::MIN_POSITIVE);
            for x in state {
                *x = (f64::from(*x) / length) as f32;
            }
        }
        states
    }

    /// The hidden states after the final norm at the last token of each prompt, which predicts the first answer token: (N, D). Zero
    /// for an empty prompt.
    pub fn answer_states(
        &self,
        engine: &mut Engine,
        model: &Model,
        progress: &Progress,
    ) -> Vec<f32> {
        let last = |row: usize| self.rows[row].0.len() - 1;
        self.forward_at(last, model, progress, |batch, positions| {
            engine.hidden(&model.params, batch, positions)
        })
    }

    /// Runs `forward` on batches of prompts and collects its output at `position` of each: (N, D).
    fn forward_at(
        &self,
        position: impl Fn(usize) -> usize,
        model: &Model,
        progress: &Progress,
        mut forward: impl FnMut(&Batch, &[usize]) -> Vec<f32>,
    ) -> Vec<f32> {
        let d = model.config.hidden_size;
        let mut states = vec![0.0; self.rows.len() * d];
        let lengths: Vec<usize> = self.rows.iter().map(|(tokens, _)| tokens.len()).collect();
        let bar = progress.minor_bar(self.rows.len() as u64, "subject states");
        for part in batch_by_cost(&lengths, MAX_BATCH_TOKENS, usize::MAX) {
            let read = part.iter().copied().filter(|i| lengths[*i] > 0);
            let read: Vec<usize> = read.collect();
            // Later tokens do not affect the state.
            let rows: Vec<(&[u32], usize)> = read
                .iter()
                .map(|i| (&self.rows[*i].0[..=position(*i)], position(*i)))
                .collect();
            let (batch, own) = Batch::with_shared_prefixes(&rows);
            let positions: Vec<usize> = own.iter().map(|own| own.end - 1).collect();
            let hidden = forward(&batch, &positions);
            for (i, found) in read.iter().zip(hidden.chunks_exact(d)) {
                states[i * d..][..d].copy_from_slice(found);
            }
            bar.inc(part.len() as u64);
        }
        states
    }
}

/// The byte range of the subject in the prompt: its last occurrence in the question.
fn subject_range(prompt: &str, fact: &Fact) -> Option<Range<usize>> {
    let subject = fact.subject.trim();
    let question = prompt.rfind(&fact.question)?;
    let start = question + fact.question.rfind(subject)?;
    (!subject.is_empty()).then_some(start..start + subject.len())
}

/// The last of the tokens with these `offsets` that overlaps `range`.
fn last_token_within(offsets: &[Range<usize>], range: &Range<usize>) -> Option<usize> {
    offsets
        .iter()
        .rposition(|token| token.start < range.end && token.end > range.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subject_ends_at_its_last_token() {
        let fact = Fact::for_test("Rome", "Italy");
        let prompt = "Q: Which country is Rome located in?\nA:";
        let range = subject_range(prompt, &fact).expect("it is in the question");
        assert_eq!(&prompt[range.clone()], "Rome");
        // A special token, "Q: Which country is", " Ro", "me" and " located".
        let offsets = [0..0, 0..19, 19..22, 22..24, 24..32];
        assert_eq!(last_token_within(&offsets, &range), Some(3));
    }

    #[test]
    fn a_subject_that_is_not_in_the_question_has_no_range() {
        let mut fact = Fact::for_test("Rome", "Italy");
        fact.question = "Which country is the eternal city in?".into();
        let prompt = PromptTemplate::default().prompt_text(&fact.question);
        assert_eq!(subject_range(&prompt, &fact), None);
        fact.subject = " ".into();
        assert_eq!(subject_range(&prompt, &fact), None);
        assert_eq!(last_token_within(&[], &(3..5)), None);
    }
}
