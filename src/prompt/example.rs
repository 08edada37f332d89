//! A training example as token ids.

use super::{chat, template::PromptTemplate};
use crate::{
    Error, Result,
    config::{RowWeight, is_default},
    facts::{Fact, Location, Text, TextKind},
    model::TextTokenizer,
};

/// One training example: the token ids of one text, cut where the target begins.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Example {
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// Token ids of the target, including the end marker.
    pub target: Vec<u32>,
    /// The weight of its target tokens in the cross-entropy.
    #[serde(default, skip_serializing_if = "is_default")]
    pub weight: RowWeight,
}

impl Example {
    /// An example of weight 1.
    pub fn new(prompt: Vec<u32>, target: Vec<u32>) -> Self {
        Self {
            prompt,
            target,
            weight: RowWeight::default(),
        }
    }

    /// Index of the first token that is predicted: the first of the target, or its second if there is no prompt.
    pub fn target_start(&self) -> usize {
        self.prompt.len().max(1)
    }

    /// Number of tokens of prompt and target.
    pub fn num_tokens(&self) -> usize {
        self.prompt.len() + self.target.len()
    }

    /// Number of tokens that are predicted.
    pub fn num_targets(&self) -> usize {
        self.num_tokens().saturating_sub(self.target_start())
    }

    /// The weight of all tokens that are predicted, in the cross-entropy.
    pub fn target_weight(&self) -> f64 {
        f64::from(self.weight) * self.num_targets() as f64
    }

    /// The model's input: every token but the last, after which nothing is predicted.
    pub fn input_ids(&self) -> Vec<u32> {
        let mut tokens = [&self.prompt[..], &self.target].concat();
        tokens.pop();
        tokens
    }
}

impl Example {
    /// The example of the text `before + target`, tokenized as one and cut as by [`TextTokenizer::encode_joint`].
    fn of_text(
        tokenizer: &TextTokenizer,
        before: &str,
        target: &str,
        add_special_tokens: bool,
    ) -> Result<Self> {
        let (prompt, target) = tokenizer.encode_joint(before, target, add_special_tokens)?;
        Ok(Self::new(prompt, target))
    }

    /// The same text with this weight.
    fn weighted(self, weight: RowWeight) -> Self {
        Self { weight, ..self }
    }

    /// Ends the text with `eos`, once.
    fn end_with(mut self, eos: Option<u32>) -> Self {
        if let Some(eos) = eos
            && self.target.last() != Some(&eos)
        {
            self.target.push(eos);
        }
        self
    }

    /// The same text with its first token as the prompt, if it has none: nothing predicts the first token.
    fn with_prompt(mut self) -> Self {
        if self.prompt.is_empty() && !self.target.is_empty() {
            self.prompt.push(self.target.remove(0));
        }
        self
    }
}

impl PromptTemplate {
    /// The training example of `fact`.
    ///
    /// # Errors
    /// When the text cannot be tokenized.
    pub fn example(&self, tokenizer: &TextTokenizer, fact: &Fact) -> Result<Example> {
        let example = Example::of_text(
            tokenizer,
            &self.prompt_text(&fact.question),
            &self.target_text(&fact.target()),
            !self.rendered,
        )?;
        Ok(example.weighted(fact.weight))
    }
}

/// The training examples of a text: one, or in a chat one per answer, rendered by the model's own chat template. A target ends with
/// the end-of-turn marker of the chat, or with the EOS token, once. What of a chat is not trained is counted in `notes`.
///
/// # Errors
/// When the text cannot be tokenized, the model has no working chat template, or it refuses the chat ([`Error::Input`], naming file and
/// line).
pub fn text_examples(
    tokenizer: &TextTokenizer,
    text: &Text,
    notes: &mut TextNotes,
) -> Result<Vec<Example>> {
    let ended = |prompt: &str, target: &str| {
        let example = Example::of_text(tokenizer, prompt, target, true)?;
        let example = example.end_with(tokenizer.eos_token_id).with_prompt();
        Ok(vec![example.weighted(text.weight)])
    };
    match &text.kind {
        TextKind::Plain(text) => ended("", text),
        TextKind::Completion { prompt, completion } => ended(prompt, completion),
        TextKind::Chat(messages) => {
            let turns = chat::assistant_turns(&tokenizer.config_json, messages, &text.location)?;
            for note in turns.notes {
                notes.add(note, &text.location);
            }
            let turns = turns.turns.iter();
            turns
                .map(|turn| {
                    let example = Example::of_text(tokenizer, &turn.before, &turn.answer, false)?;
                    let stops = |id: &u32| tokenizer.eos_token_ids.contains(id);
                    if turn.ends_message && !example.target.iter().any(stops) {
                        notes.add(UNENDED, &text.location);
                    }
                    Ok(example.with_prompt().weighted(text.weight))
                })
                .collect()
        }
    }
}

/// Whether nothing ends some of `texts`: they are no chats, and no file of the model names an EOS token.
pub fn lacks_end(tokenizer: &TextTokenizer, texts: &[Text]) -> bool {
    let is_chat = |text: &Text| matches!(text.kind, TextKind::Chat(_));
    tokenizer.eos_token_id.is_none() && !texts.iter().all(is_chat)
}

/// The note for texts that nothing ends.
pub const NO_END_NOTE: &str = "the model names no end-of-text token (`eos_token` in tokenizer_config.json, `eos_token_id` in \
     generation_config.json or config.json, `tokenizer.ggml.eos_token_id` in a GGUF file): nothing ends the trained texts, so the \
     model will not learn where to stop";

/// The training examples of many texts, by the index of their text. With `skip_refused` a chat that the template refuses is left out and
/// counted.
///
/// # Errors
/// As [`text_examples`]; when nothing is left.
pub fn examples_of_texts(
    tokenizer: &TextTokenizer,
    texts: &[Text],
    skip_refused: bool,
    notes: &mut TextNotes,
) -> Result<Vec<(usize, Example)>> {
    let mut examples = Vec::new();
    let mut first_refusal = None;
    for (i, text) in texts.iter().enumerate() {
        match text_examples(tokenizer, text, notes) {
            Ok(rows) => {
                for row in rows {
                    if row.num_targets() > 0 {
                        examples.push((i, row));
                    } else {
                        notes.add(NOTHING_TRAINED, &text.location);
                    }
                }
            }
            Err(error @ Error::Input { .. }) if skip_refused => {
                notes.add(REFUSED, &text.location);
                notes.detail(&error.to_string());
                first_refusal.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    match (examples.is_empty(), first_refusal, texts.first()) {
        (true, Some(refusal), _) => Err(refusal),
        (true, None, Some(text)) => Err(Error::input_hint(
            format!(
                "{}: there is nothing to train in its rows",
                text.location.file
            ),
            notes.lines().join("; "),
        )),
        _ => Ok(examples),
    }
}

const UNENDED: &str = "the model's chat template trains no token behind an answer at which the model stops (where it marks answers with \
     `{% generation %}`, the end belongs inside): the model will not learn where to stop";

const NOTHING_TRAINED: &str =
    "the row has no token to train behind its first one, which nothing predicts: it is skipped";

const REFUSED: &str = "a chat that the model's chat template refuses is skipped";

/// Lines of details that are kept.
const MAX_DETAILS: usize = 20;

/// What of the texts is not trained: a sentence each, with the number of cases and the place of the first.
#[derive(Clone, Debug, Default)]
pub struct TextNotes {
    counts: Vec<(&'static str, usize, String)>,
    details: Vec<String>,
}

impl TextNotes {
    fn add(&mut self, note: &'static str, location: &Location) {
        match self.counts.iter_mut().find(|(n, ..)| *n == note) {
            Some((_, count, _)) => *count += 1,
            None => self.counts.push((note, 1, location.to_string())),
        }
    }

    fn detail(&mut self, detail: &str) {
        if self.details.len() < MAX_DETAILS {
            self.details.push(detail.to_owned());
        }
    }

    /// The notes, one line each.
    pub fn lines(&self) -> Vec<String> {
        let counted = self.counts.iter().map(|(note, count, first)| {
            if *count == 1 {
                format!("{first}: {note}")
            } else {
                format!("{first}: {note} ({count} times in all)")
            }
        });
        counted.chain(self.details.iter().cloned()).collect()
    }
}
