//! In a chat, known facts are trained on the base model's own full answers: a target of one word would teach it to answer everything
//! in one word.

use super::{batches::max_row_len, evaluator::template};
use crate::{
    Result,
    config::{Config, MatchRule},
    engine::Engine,
    generate::{Generator, Request, common_prefix},
    model::Model,
    progress::Progress,
    splits::Splits,
};

/// Maximum length of an answer, in tokens. A longer one is cut, and its end is not trained.
const MAX_ANSWER_TOKENS: usize = 64;

/// Makes the base model's greedy answer the target of every known fact, where it contains the correct one.
///
/// Other known facts are not trained, with a note; without an audit nothing is filtered, and they are trained as the files have
/// them.
///
/// # Errors
/// When the tokenizer refuses a question, or a question is longer than the model's context;
/// [`crate::Error::Interrupted`] if the user interrupts.
pub(super) fn set_own_answers(
    config: &Config,
    model: &Model,
    engine: &mut Engine,
    splits: &mut Splits,
    progress: &Progress,
) -> Result<()> {
    if !config.data.chat || splits.known.is_empty() {
        return Ok(());
    }
    let template = template(config, model)?;
    let mut prompts = Vec::with_capacity(splits.known.len());
    for known in &splits.known {
        let text = template.prompt_text(&known.fact.question);
        prompts.push(template.encode(&model.tokenizer, &text)?);
    }
    let answers = greedy_answers(model, engine, &prompts, progress)?;
    let max_len = max_row_len(model, &config.train);
    let mut correct = 0;
    for ((known, prompt), mut answer) in splits.known.iter_mut().zip(&prompts).zip(answers) {
        answer.truncate(max_len.saturating_sub(prompt.len()));
        let text = model.tokenizer.decode(&answer);
        let scorer = known.fact.scorer(MatchRule::Contains);
        if scorer.is_correct(&text) {
            known.own_answer = answer;
            correct += 1;
        }
    }
    let all = splits.known.len();
    let others = match all - correct {
        0 => "",
        _ if config.data.audit.is_some() && correct > 0 => {
            splits.known.retain(|known| !known.own_answer.is_empty());
            "; the others are not trained: the answer in the chat does not contain the correct one"
        }
        _ => "; the others are trained on the answer of the file",
    };
    progress.note(format_args!(
        "{correct} of {all} known facts are trained on the base model's own answers in the chat{others}"
    ));
    Ok(())
}

/// The tokens of the greedy answer to each prompt. With several processes, each answers a share.
fn greedy_answers(
    model: &Model,
    engine: &mut Engine,
    prompts: &[Vec<u32>],
    progress: &Progress,
) -> Result<Vec<Vec<u32>>> {
    let comm = engine.comm();
    let own = &prompts[comm.shard_range(prompts.len())];
    let shared = common_prefix(own.iter().map(|prompt| &prompt[..]));
    let rest: Vec<Vec<u32>> = own.iter().map(|p| p[shared.len()..].to_vec()).collect();
    let request = Request::greedy(shared, &rest, MAX_ANSWER_TOKENS);
    let bar = progress.bar(own.len() as u64, "own answers");
    let answers = Generator::new(engine, model)
        .generate(&request, |_, _| false, &|finished| bar.inc(finished as u64))?;
    let own = answers.into_iter();
    let own = own.map(|mut answer| answer.swap_remove(0).tokens);
    Ok(comm.all_gather(own.collect()))
}
