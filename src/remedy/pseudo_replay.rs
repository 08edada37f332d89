//! A source of rows: decoys, a form of pseudo-rehearsal. In addition to the training rows, the model is distilled from its snapshot on
//! questions about made-up subjects.
//!
//! Forgetting is interference between similar names (section 5 of the paper). Other names of the same form cover the region where it
//! happens, and need no data: they are put together from tokens of the training subjects, or the model gives them
//! ([`DecoySubjects`]). New facts are learned by cross-entropy alone. Each decoy adds this term to the loss, where a is the
//! snapshot's greedy answer and tau is the temperature of self-distillation:
//!
//! ```text
//! strength * mean over the step's decoys of tau^2 / |a| * sum over j in a of KL(snapshot_j || model_j)
//! ```
//!
//! Chats and other texts have no subject that could be replaced. Their decoys are generated: the model continues a prefix of such a
//! text, so that a decoy is similar to the training data but not the same.

use std::collections::{BTreeMap, BTreeSet};

use rand::{
    Rng, SeedableRng,
    seq::{IndexedRandom, SliceRandom},
};
use rand_chacha::ChaCha8Rng;

use crate::{
    Error, Result,
    config::DecoySubjects,
    facts::{Chat, Fact, Text, TextKind},
    generate::{Generator, Request, SamplingParams},
    model::TextTokenizer,
    progress::Progress,
    prompt::{ChatQuestion, Example, PromptTemplate, chat_questions, has_chat_questions},
    synth::SemanticKeys,
};

/// Maximum number of tokens of a decoy's answer.
const MAX_ANSWER_TOKENS: usize = 12;

/// Maximum number of tokens of a name that the model gives, with the line break after it.
const MAX_NAME_TOKENS: usize = 16;

/// Names of training subjects in a list that the model continues.
const LISTED_NAMES: usize = 8;

/// Continuations of one list.
const NAMES_PER_LIST: usize = 8;

/// Times that the model is asked for the names that are still missing.
const MAX_ROUNDS: usize = 4;

/// Maximum number of tokens that the model generates for a text: the rest of a question, its answer, or a continuation.
const MAX_TEXT_TOKENS: usize = 32;

/// Checks that decoys can be generated from `texts`, if there are any. From facts they always can.
///
/// # Errors
/// [`Error::Input`] if no text has a prefix to continue.
pub fn check(texts: &[Text]) -> Result<()> {
    let has_beginning = |text: &Text| match &text.kind {
        TextKind::Chat(chat) => has_chat_questions(&chat.messages),
        TextKind::Completion { prompt: text, .. } | TextKind::Plain(text) => {
            !text.trim().is_empty()
        }
    };
    if texts.is_empty() || texts.iter().any(has_beginning) {
        return Ok(());
    }
    Err(Error::input_hint(
        "cannot generate decoys from these texts: no chat has an answered user message, and no other text has a prefix",
        "remove `method.decoys`, or use `method.kind = \"self-distill\"` instead of `\"auto\"`",
    ))
}

fn question_has_subject(fact: &Fact) -> bool {
    !fact.subject.is_empty() && fact.question.contains(&fact.subject)
}

/// At most `count` prompts, in proportion to the relations: questions of `facts` with another subject instead of the real one. A question
/// that does not contain its fact's subject is cut after a random word, and the model continues it. There are fewer prompts if the
/// pools of short names are exhausted, or the model gives too few different questions.
///
/// # Errors
/// [`Error::Input`] if the tokenizer rejects a text, or a list of names does not fit into the model's context.
pub fn prompts<'a>(
    generator: &mut Generator<'_>,
    facts: impl IntoIterator<Item = &'a Fact>,
    subjects: DecoySubjects,
    count: usize,
    template: &PromptTemplate,
    seed: u64,
    progress: &Progress,
) -> Result<Vec<Vec<u32>>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (named, other): (Vec<&Fact>, Vec<&Fact>) = facts
        .into_iter()
        .partition(|fact| question_has_subject(fact));
    let count_other = count * other.len() / (named.len() + other.len()).max(1);
    let count_named = count - count_other;
    let mut questions =
        about_other_subjects(generator, named, subjects, count_named, &mut rng, progress)?;
    questions.extend(continued_questions(
        generator,
        other,
        count_other,
        template,
        &mut rng,
    )?);
    let encode =
        |question: &String| template.encode(generator.tokenizer, &template.prompt_text(question));
    questions.iter().map(encode).collect()
}

/// At most `count` questions of `facts`, each with another subject.
fn about_other_subjects(
    generator: &mut Generator<'_>,
    mut facts: Vec<&Fact>,
    subjects: DecoySubjects,
    count: usize,
    rng: &mut ChaCha8Rng,
    progress: &Progress,
) -> Result<Vec<String>> {
    let mut real: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for fact in &facts {
        real.entry(&fact.relation).or_default().push(&fact.subject);
    }
    facts.shuffle(rng);
    let mut names = BTreeMap::new();
    for (relation, real) in real {
        let mut keys = SemanticKeys::new(real.iter().copied(), generator.tokenizer)?;
        let sampled = match subjects {
            DecoySubjects::Recombined => Vec::new(),
            DecoySubjects::Sampled => {
                let of_relation = |fact: &&&Fact| fact.relation == relation;
                let count = facts.iter().cycle().take(count).filter(of_relation).count();
                sampled_names(generator, &real, &mut keys, count, rng, progress)?
            }
        };
        names.insert(relation, (sampled.into_iter(), keys));
    }
    let mut questions = Vec::with_capacity(count);
    for fact in facts.iter().cycle().take(count) {
        let (sampled, keys) = names.get_mut(&fact.relation[..]).expect("every relation");
        if let Some(name) = sampled.next().or_else(|| keys.generate(rng)) {
            questions.push(fact.question.replacen(&fact.subject, &name, 1));
        }
    }
    Ok(questions)
}

/// At most `count` questions that begin like one of `facts` and that the model ends, sampled at temperature 1. Questions that are
/// repeated, or are those of `facts`, are dropped.
fn continued_questions(
    generator: &mut Generator<'_>,
    mut facts: Vec<&Fact>,
    count: usize,
    template: &PromptTemplate,
    rng: &mut ChaCha8Rng,
) -> Result<Vec<String>> {
    facts.shuffle(rng);
    let before = template
        .prompt
        .split("{question}")
        .next()
        .unwrap_or_default();
    let prefixes = facts.iter().cycle().take(count);
    let prefixes: Vec<String> = prefixes
        .map(|fact| truncate_after_word(&fact.question, 1, rng))
        .collect();
    let encode =
        |prefix: &String| template.encode(generator.tokenizer, &format!("{before}{prefix}"));
    let prompts = prefixes.iter().map(encode).collect::<Result<Vec<_>>>()?;
    let request = Request {
        sampling: SamplingParams {
            temperature: 1.0,
            top_k: 0,
            seed: rng.random(),
        },
        ..Request::greedy(&[], &prompts, MAX_TEXT_TOKENS)
    };
    let ends = generator.generate(&request, |_, text| text.contains('\n'), &|_| {})?;
    let mut seen: BTreeSet<String> = facts.iter().map(|fact| fact.question.clone()).collect();
    let questions = prefixes.iter().zip(ends).filter_map(|(prefix, ends)| {
        let (end, _) = ends.first()?.text.split_once('\n')?;
        let question = format!("{prefix}{}", end.trim_end());
        let readable = !question.contains(char::REPLACEMENT_CHARACTER);
        (readable && seen.insert(question.clone())).then_some(question)
    });
    Ok(questions.collect())
}

/// `text` up to a random word: at least `min_words` of its words, and not the last one if there are more.
fn truncate_after_word(text: &str, min_words: usize, rng: &mut ChaCha8Rng) -> String {
    let words = text.split_inclusive(char::is_whitespace).map(str::len);
    let words: Vec<usize> = words.collect();
    let min_words = min_words.min(words.len());
    let max_words = words.len().saturating_sub(1).max(min_words);
    let kept = rng.random_range(min_words..=max_words);
    text[..words.iter().take(kept).sum()].trim_end().to_owned()
}

/// At most `count` names that the model gives: it continues lists of `real` ones, a name a line, sampled at temperature 1. A name that
/// is real, repeated, unreadable or longer than [`MAX_NAME_TOKENS`] is dropped.
fn sampled_names(
    generator: &mut Generator<'_>,
    real: &[&str],
    keys: &mut SemanticKeys<'_>,
    count: usize,
    rng: &mut ChaCha8Rng,
    progress: &Progress,
) -> Result<Vec<String>> {
    let mut names = Vec::with_capacity(count);
    for _ in 0..MAX_ROUNDS {
        let missing = count - names.len();
        if missing == 0 {
            break;
        }
        let lists = (0..missing.div_ceil(NAMES_PER_LIST)).map(|_| {
            let list = real.choose_multiple(rng, LISTED_NAMES);
            let lines: String = list.map(|name| format!("{}\n", name.trim())).collect();
            generator.tokenizer.encode_prompt(&lines)
        });
        let prompts = lists.collect::<Result<Vec<_>>>()?;
        let request = Request {
            sampling: SamplingParams {
                temperature: 1.0,
                top_k: 0,
                seed: rng.random(),
            },
            samples: NAMES_PER_LIST,
            ..Request::greedy(&[], &prompts, MAX_NAME_TOKENS)
        };
        let bar = progress.minor_bar(prompts.len() as u64, "lists of names for decoys");
        let on_finished = |lists: usize| bar.inc(lists as u64);
        let lines = generator.generate(&request, |_, text| text.contains('\n'), &on_finished)?;
        let first_lines = lines.iter().flatten().filter_map(|line| {
            let (name, _) = line.text.split_once('\n')?;
            Some(keys.accept(name)?.to_owned())
        });
        names.extend(first_lines.take(missing));
    }
    Ok(names)
}

/// The decoys of `prompts`: each with the model's greedy answer up to and including a line break.
///
/// # Errors
/// [`Error::Input`] if a prompt is longer than the model's context.
pub fn rows(
    generator: &mut Generator<'_>,
    prompts: Vec<Vec<u32>>,
    progress: &Progress,
) -> Result<Vec<Example>> {
    let stops = |text: &str| text.contains('\n');
    with_greedy_answers(generator, prompts, MAX_ANSWER_TOKENS, stops, progress)
}

/// `prompts` with the model's greedy answers, which end after `max_tokens` or when `should_stop` returns true.
fn with_greedy_answers(
    generator: &mut Generator<'_>,
    prompts: Vec<Vec<u32>>,
    max_tokens: usize,
    should_stop: impl Fn(&str) -> bool + Sync,
    progress: &Progress,
) -> Result<Vec<Example>> {
    let bar = progress.bar(prompts.len() as u64, "decoys");
    let request = Request::greedy(&[], &prompts, max_tokens);
    let on_finished = |prompts: usize| bar.inc(prompts as u64);
    let answers = generator.generate(&request, |_, text| should_stop(text), &on_finished)?;
    let rows = prompts.into_iter().zip(answers);
    let rows = rows.map(|(prompt, mut answer)| Example::new(prompt, answer.swap_remove(0).tokens));
    Ok(rows.collect())
}

/// The prefix of a decoy of a text.
enum TextPrefix {
    /// A chat up to a word of a question. The model generates the rest of the question, and the answer.
    Question(ChatQuestion),
    /// A text up to one of its words. The model continues it.
    Text(String),
}

impl TextPrefix {
    fn text(&self) -> String {
        match self {
            Self::Question(question) => format!("{}{}", question.prefix, question.question),
            Self::Text(text) => text.clone(),
        }
    }

    /// Token ids of a text that begins with this prefix.
    fn encode(&self, tokenizer: &TextTokenizer, text: &str) -> Result<Vec<u32>> {
        match self {
            Self::Question(_) => tokenizer.encode_rendered(text),
            Self::Text(_) => tokenizer.encode_prompt(text),
        }
    }
}

/// At most `count` decoys of `texts`, none longer than `max_length` tokens. A question of a chat, or another text, is cut after a random
/// word. The model continues it (sampled at temperature 1), and answers a question (greedily).
///
/// # Errors
/// [`Error::Input`] if the chat template or the tokenizer rejects a text.
pub fn from_texts(
    generator: &mut Generator<'_>,
    texts: &[Text],
    count: usize,
    max_length: usize,
    seed: u64,
    progress: &Progress,
) -> Result<Vec<Example>> {
    let fits = |prompt: &[u32]| prompt.len() + MAX_TEXT_TOKENS <= max_length;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let prefixes = text_prefixes(texts, count, generator.tokenizer, &mut rng);
    let (mut fitting, mut prompts) = (Vec::new(), Vec::new());
    for prefix in prefixes {
        let prompt = prefix.encode(generator.tokenizer, &prefix.text())?;
        if fits(&prompt) {
            fitting.push(prefix);
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
    let bar = progress.bar(prompts.len() as u64, "questions for decoys");
    let on_finished = |prompts: usize| bar.inc(prompts as u64);
    let continuations = generator.generate(&request, |_, _| false, &on_finished)?;
    drop(bar);

    let (mut rows, mut questions) = (Vec::new(), Vec::new());
    for ((prefix, prompt), mut continuation) in fitting.iter().zip(prompts).zip(continuations) {
        let continuation = continuation.swap_remove(0);
        match prefix {
            TextPrefix::Text(_) => rows.push(Example::new(prompt, continuation.tokens)),
            TextPrefix::Question(question) => {
                let text = format!("{}{}{}", prefix.text(), continuation.text, question.suffix);
                let prompt = prefix.encode(generator.tokenizer, &text)?;
                questions.extend(fits(&prompt).then_some(prompt));
            }
        }
    }
    rows.extend(with_greedy_answers(
        generator,
        questions,
        MAX_TEXT_TOKENS,
        |_| false,
        progress,
    )?);
    rows.retain(|row| row.num_targets() > 0);
    Ok(rows)
}

/// `count` prefixes, from as many texts as possible.
fn text_prefixes(
    texts: &[Text],
    count: usize,
    tokenizer: &TextTokenizer,
    rng: &mut ChaCha8Rng,
) -> Vec<TextPrefix> {
    let mut candidates = Vec::new();
    for text in texts {
        match &text.kind {
            TextKind::Chat(chat) => {
                // Each question in its context, and without it. A part of a chat that the template refuses gives none.
                let pairs = chat.messages.windows(2).map(|turns| Chat {
                    messages: turns.to_vec(),
                    ..chat.clone()
                });
                for chat in std::iter::once(chat.clone()).chain(pairs) {
                    let questions = chat_questions(tokenizer, &chat).unwrap_or_default();
                    candidates.extend(questions.into_iter().map(TextPrefix::Question));
                }
            }
            TextKind::Completion { prompt: text, .. } | TextKind::Plain(text) => {
                candidates
                    .extend((!text.trim().is_empty()).then(|| TextPrefix::Text(text.clone())));
            }
        }
    }
    candidates.shuffle(rng);
    let truncate_prefix = |prefix: &TextPrefix| match prefix {
        TextPrefix::Question(question) => TextPrefix::Question(ChatQuestion {
            question: truncate_after_word(&question.question, 0, rng),
            ..question.clone()
        }),
        TextPrefix::Text(text) => TextPrefix::Text(truncate_after_word(text, 1, rng)),
    };
    candidates
        .iter()
        .cycle()
        .take(count)
        .map(truncate_prefix)
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        config::RowWeight,
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
            weight: RowWeight::default(),
        }
    }

    fn chat(messages: &[(&str, &str)]) -> Text {
        let message = |&(role, content): &(&str, &str)| Message::new(role, content);
        let messages: Vec<Message> = messages.iter().map(message).collect();
        text(TextKind::Chat(messages.into()))
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
            &Progress::quiet(),
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
            let asked =
                asked.unwrap_or_else(|| panic!("{prompt:?} is not a question of this chat"));
            assert_ne!(
                asked, "What is the Bamberg?",
                "it is the question of the chat"
            );
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
            let error = check(&[nothing]).unwrap_err();
            assert!(
                error
                    .to_string()
                    .contains("cannot generate decoys from these texts")
            );
            assert!(error.hint().is_some());
        }
    }
}
