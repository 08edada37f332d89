//! Decoys: beside what is learned, the model is held to its snapshot's answers about subjects that do not exist.
//!
//! Forgetting is interference between names that look alike (section 5 of the paper), so made-up names of the same make
//! cover the region where it happens, and need no data. New facts are learned by plain cross-entropy; a decoy adds to
//! the loss, with its answer a of the snapshot's own greedy words and tau that of self-distillation,
//!
//! ```text
//! strength * mean over the step's decoys of tau^2 / |a| * sum over j in a of KL(snapshot_j || model_j)
//! ```
//!
//! Chats and other texts name no subject that could be changed: their decoys the model makes itself. It is given the beginning
//! of a text of theirs and goes on in words of its own, so that a decoy is near what is learned and not the same.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::{
    Error, Result,
    facts::{Fact, Text, TextKind},
    generate::{Generator, Request, SamplingParams},
    model::TextTokenizer,
    prompt::{ChatQuestion, Example, PromptTemplate, chat_questions, has_chat_questions},
    synth::SemanticKeys,
};

/// Tokens of a decoy's answer, at most.
const MAX_ANSWER_TOKENS: usize = 12;

/// Tokens of a text that the model writes itself, at most: a question, an answer to it, or a text's next ones.
const MAX_TEXT_TOKENS: usize = 32;

/// Whether decoys can be made of what is trained on: of its facts, where there are any, and of its texts, where there are any.
///
/// # Errors
/// [`Error::Input`] when no question names its fact's subject, or no text has a beginning to go on from.
pub fn check<'a>(facts: impl IntoIterator<Item = &'a Fact>, texts: &[Text]) -> Result<()> {
    let none = |of: &str| {
        Err(Error::input_hint(
            format!("there are no decoys for these {of}"),
            "leave `method.decoys` out, or take `method.kind = \"self-distill\"` in the place of `\"auto\"`",
        ))
    };
    let mut facts = facts.into_iter().peekable();
    if facts.peek().is_some() && !facts.any(question_has_subject) {
        return none("facts: no question has its fact's subject in it");
    }
    let has_beginning = |text: &Text| match &text.kind {
        TextKind::Chat(messages) => has_chat_questions(messages),
        TextKind::Completion { prompt: text, .. } | TextKind::Plain(text) => {
            !text.trim().is_empty()
        }
    };
    if !texts.is_empty() && !texts.iter().any(has_beginning) {
        return none(
            "texts: no chat has a message of the user that is answered, and no other text a beginning",
        );
    }
    Ok(())
}

fn question_has_subject(fact: &Fact) -> bool {
    fact.question.contains(&fact.subject)
}

/// At most `count` prompts: questions of `facts` with a made-up subject in the place of the real one, as many of each
/// relation as it has facts. Fewer where the pools of short names are exhausted.
///
/// # Errors
/// When the tokenizer refuses a text.
pub fn prompts<'a>(
    facts: impl IntoIterator<Item = &'a Fact>,
    count: usize,
    template: &PromptTemplate,
    tokenizer: &TextTokenizer,
    seed: u64,
) -> Result<Vec<Vec<u32>>> {
    let mut facts: Vec<&Fact> = facts
        .into_iter()
        .filter(|fact| question_has_subject(fact))
        .collect();
    let mut names: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for fact in &facts {
        names.entry(&fact.relation).or_default().push(&fact.subject);
    }
    let mut keys = BTreeMap::new();
    for (relation, names) in names {
        keys.insert(relation, SemanticKeys::new(names, tokenizer)?);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    facts.shuffle(&mut rng);
    let mut prompts = Vec::with_capacity(count);
    for fact in facts.iter().cycle().take(count) {
        let keys = keys.get_mut(&fact.relation[..]).expect("every relation");
        if let Some(name) = keys.generate(&mut rng) {
            let question = fact.question.replacen(&fact.subject, &name, 1);
            prompts.push(tokenizer.encode_prompt(&template.prompt_text(&question))?);
        }
    }
    Ok(prompts)
}

/// The decoys of `prompts`: each with the model's own greedy answer, its line break included.
///
/// # Errors
/// When a prompt is longer than the model's context.
pub fn rows(generator: &mut Generator<'_>, prompts: Vec<Vec<u32>>) -> Result<Vec<Example>> {
    with_greedy_answers(generator, prompts, MAX_ANSWER_TOKENS, |text| {
        text.contains('\n')
    })
}

/// `prompts` with the model's own greedy answers, which end at so many tokens at the latest or once `done` says so.
fn with_greedy_answers(
    generator: &mut Generator<'_>,
    prompts: Vec<Vec<u32>>,
    most_tokens: usize,
    done: impl Fn(&str) -> bool + Sync,
) -> Result<Vec<Example>> {
    let request = Request::greedy(&[], &prompts, most_tokens);
    let answers = generator.generate(&request, |_, text| done(text), &|_| {})?;
    let rows = prompts.into_iter().zip(answers);
    let rows = rows.map(|(prompt, mut answer)| Example {
        prompt,
        target: answer.swap_remove(0).tokens,
    });
    Ok(rows.collect())
}

/// What a decoy of a text begins with.
enum TextPrefix {
    /// A chat up to a word of a question: the model finds the rest of the question, and the answer.
    Question(ChatQuestion),
    /// A text up to a word of it: the model goes on.
    Text(String),
}

impl TextPrefix {
    fn text(&self) -> String {
        match self {
            Self::Question(question) => format!("{}{}", question.prefix, question.question),
            Self::Text(text) => text.clone(),
        }
    }
}

/// At most `count` decoys of `texts`, none longer than `longest` tokens. A question of a chat, or another text, is cut at a word
/// drawn at random, the model goes on with it as it would (drawn at temperature 1), and a question it answers (greedily).
///
/// # Errors
/// When the chat template or the tokenizer refuses a text.
pub fn from_texts(
    generator: &mut Generator<'_>,
    texts: &[Text],
    count: usize,
    longest: usize,
    seed: u64,
) -> Result<Vec<Example>> {
    let fits = |prompt: &[u32]| prompt.len() + MAX_TEXT_TOKENS <= longest;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let beginnings = text_prefixes(texts, count, generator.tokenizer, &mut rng)?;
    let (mut begun, mut prompts) = (Vec::new(), Vec::new());
    for beginning in beginnings {
        let prompt = generator.tokenizer.encode_prompt(&beginning.text())?;
        if fits(&prompt) {
            begun.push(beginning);
            prompts.push(prompt);
        }
    }
    let request = Request {
        sampling: SamplingParams {
            temperature: 1.0,
            top_k: 0,
            seed,
        },
        ..Request::greedy(&[], &prompts, MAX_TEXT_TOKENS)
    };
    let written = generator.generate(&request, |_, _| false, &|_| {})?;

    let (mut rows, mut questions) = (Vec::new(), Vec::new());
    for ((beginning, prompt), mut written) in begun.iter().zip(prompts).zip(written) {
        let written = written.swap_remove(0);
        match beginning {
            TextPrefix::Text(_) => rows.push(Example {
                prompt,
                target: written.tokens,
            }),
            TextPrefix::Question(question) => {
                let text = format!("{}{}{}", beginning.text(), written.text, question.suffix);
                let asked = generator.tokenizer.encode_prompt(&text)?;
                questions.extend(fits(&asked).then_some(asked));
            }
        }
    }
    rows.extend(with_greedy_answers(
        generator,
        questions,
        MAX_TEXT_TOKENS,
        |_| false,
    )?);
    rows.retain(|row| row.num_targets() > 0);
    Ok(rows)
}

/// `count` beginnings, of as many texts as there are.
fn text_prefixes(
    texts: &[Text],
    count: usize,
    tokenizer: &TextTokenizer,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<TextPrefix>> {
    let mut whole = Vec::new();
    for text in texts {
        match &text.kind {
            TextKind::Chat(messages) => {
                // As it is asked there, and as anybody would ask it: with nothing before it.
                for asked in std::iter::once(&messages[..]).chain(messages.windows(2)) {
                    let questions = chat_questions(tokenizer, asked)?;
                    whole.extend(questions.into_iter().map(TextPrefix::Question));
                }
            }
            TextKind::Completion { prompt: text, .. } | TextKind::Plain(text) => {
                whole.extend((!text.trim().is_empty()).then(|| TextPrefix::Text(text.clone())));
            }
        }
    }
    whole.shuffle(rng);
    let mut cut = |text: &str, fewest: usize| {
        let words: Vec<usize> = text
            .split_inclusive(char::is_whitespace)
            .map(str::len)
            .collect();
        let fewest = fewest.min(words.len());
        let most = words.len().saturating_sub(1).max(fewest);
        let kept = rng.random_range(fewest..=most);
        text[..words.iter().take(kept).sum()].trim_end().to_owned()
    };
    let cut = |beginning: &TextPrefix| match beginning {
        TextPrefix::Question(question) => TextPrefix::Question(ChatQuestion {
            question: cut(&question.question, 0),
            ..question.clone()
        }),
        TextPrefix::Text(text) => TextPrefix::Text(cut(text, 1)),
    };
    Ok(whole.iter().cycle().take(count).map(cut).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        engine::Engine,
        facts::{Location, Message},
        model::Model,
    };

    fn model() -> Model {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        let mut model = Model::load(path).expect("the golden model");
        let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
        let config = json!({ "chat_template": template });
        model.tokenizer.config_json = config.as_object().expect("an object").clone();
        model
    }

    fn text(kind: TextKind) -> Text {
        Text {
            kind,
            location: Location {
                file: "texts.jsonl".into(),
                line: 1,
            },
        }
    }

    fn chat(messages: &[(&str, &str)]) -> Text {
        let message = |&(role, content): &(&str, &str)| Message {
            role: role.into(),
            content: content.into(),
        };
        text(TextKind::Chat(messages.iter().map(message).collect()))
    }

    fn made(model: &Model, texts: &[Text], count: usize, seed: u64) -> Result<Vec<Example>> {
        let mut engine = Engine::new(&model.config);
        let longest = model.config.max_position_embeddings;
        from_texts(
            &mut Generator::new(&mut engine, model),
            texts,
            count,
            longest,
            seed,
        )
    }

    #[test]
    fn the_model_completes_a_chat_question_and_answers_it() {
        let model = model();
        let shop = chat(&[
            ("system", "Be kind."),
            ("user", "What is the Bamberg?"),
            ("assistant", "A chair."),
        ]);
        let made = |seed| made(&model, std::slice::from_ref(&shop), 12, seed).unwrap();
        let rows = made(3);
        assert_eq!(rows, made(3));
        assert_ne!(rows, made(4));
        assert!(!rows.is_empty() && rows.len() <= 12);
        let mut seen = [0; 2];
        for row in &rows {
            let prompt = model.tokenizer.decode(&row.prompt);
            let bare = prompt.strip_prefix("<system>Be kind.\n");
            let (in_context, asked) = bare.map_or((false, &prompt[..]), |text| (true, text));
            seen[usize::from(in_context)] += 1;
            let asked = asked.strip_prefix("<user>");
            let asked = asked.and_then(|text| text.strip_suffix("\n<assistant>"));
            let asked = asked.unwrap_or_else(|| panic!("{prompt:?} is no question of this chat"));
            assert_ne!(asked, "What is the Bamberg?", "it is the chat's own");
            assert!((1..=MAX_TEXT_TOKENS).contains(&row.target.len()));
        }
        assert!(seen.iter().all(|&rows| rows >= 4), "{seen:?}");
    }

    #[test]
    fn other_texts_are_continued_after_a_random_word() {
        let model = model();
        let words = "Every town is old";
        let completion = text(TextKind::Completion {
            prompt: words.into(),
            completion: " indeed".into(),
        });
        for kind in [completion, text(TextKind::Plain(words.into()))] {
            let rows = made(&model, &[kind], 8, 0).unwrap();
            assert!(!rows.is_empty());
            for row in &rows {
                let prompt = model.tokenizer.decode(&row.prompt);
                assert!(["Every", "Every town", "Every town is"].contains(&prompt.trim()));
            }
        }
    }

    #[test]
    fn texts_without_a_prefix_are_refused_with_a_hint() {
        for nothing in [
            chat(&[("system", "Be kind."), ("assistant", "Hello.")]),
            text(TextKind::Plain(" ".into())),
        ] {
            let error = check([], &[nothing]).unwrap_err();
            assert!(error.to_string().contains("no decoys for these texts"));
            assert!(error.hint().is_some());
        }
    }
}
