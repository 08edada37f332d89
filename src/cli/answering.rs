//! Shared by `ask` and `chat`: how answers are generated, where they end, and how a model is asked.

use clap::Args;
use unforget::{
    Error, Result,
    generate::{Generated, SamplingParams},
    model::TextTokenizer,
    run::{RecordedRun, TrainedPrompt},
};

use super::context::{Context, finished_run_of};

/// How answers are generated.
#[derive(Debug, Args)]
pub struct AnswerArgs {
    /// Softmax temperature; 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f32,
    /// Sample from the K most likely tokens; 0 is all of them
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// End an answer before this text (\n and \t are understood); may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

impl AnswerArgs {
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::input("`--temperature` must be 0 or more"));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::input("`--stop` is empty"));
        }
        Ok(())
    }

    pub fn sampling(&self, context: &Context) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            seed: context.seed.unwrap_or(0),
        }
    }

    /// The texts that end an answer.
    pub fn stops(&self) -> impl Iterator<Item = String> {
        self.stop
            .iter()
            .map(|stop| stop.replace("\\n", "\n").replace("\\t", "\t"))
    }
}

/// How the model of the finished run `spec` was trained to be asked; `None` where `spec` is no such run.
pub fn trained_prompt(spec: &str, tokenizer: &TextTokenizer) -> Result<Option<TrainedPrompt>> {
    let Some(run) = finished_run_of(spec)? else {
        return Ok(None);
    };
    let recorded = RecordedRun::read(run.path())?;
    TrainedPrompt::of_run(&recorded, &run.config()?.data, tokenizer).map(Some)
}

/// The note for an answer that was cut at `max_new_tokens`; `None` where it ended by itself. `answer` is the text that is shown of `text`.
pub fn length_note(text: &Generated, answer: &str, max_new_tokens: usize) -> Option<String> {
    let is_cut = text.tokens.len() >= max_new_tokens && text.text.trim() == answer.trim();
    is_cut.then(|| format!("the answer was cut at {max_new_tokens} tokens (`--max-new-tokens`)"))
}

/// The text before the first stop string in it.
pub fn truncate_at_stop<'a>(text: &'a str, stops: &[String]) -> &'a str {
    let end = stops.iter().filter_map(|stop| text.find(stop)).min();
    &text[..end.unwrap_or(text.len())]
}

/// The part of an unfinished answer that stays, whatever follows: without spaces around it, and without an end that may begin a stop
/// string.
pub fn settled<'a>(text: &'a str, stops: &[String]) -> &'a str {
    let complete = truncate_at_stop(text, stops);
    let may_begin_stop = |start: usize| {
        let end = &text[start..];
        complete.len() == text.len() && stops.iter().any(|stop| stop.starts_with(end))
    };
    let mut starts = text.char_indices().map(|(start, _)| start);
    let end = starts.find(|start| may_begin_stop(*start));
    complete[..end.unwrap_or(complete.len())].trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_cut_before_the_first_stop() {
        let stops = ["\n".to_owned(), "Q:".to_owned()];
        assert_eq!(truncate_at_stop(" Italy Q:\n", &stops), " Italy ");
        assert_eq!(truncate_at_stop(" Italy", &stops), " Italy");
    }

    #[test]
    fn what_is_shown_of_an_unfinished_answer_is_never_taken_back() {
        let stops = ["<end>".to_owned(), "Q:".to_owned()];
        let answer = "  Zürich <is> in\n Q<e nd <end> Q: more";
        let last = settled(answer, &stops);
        assert_eq!(last, "Zürich <is> in\n Q<e nd");
        let mut shown = "";
        for (end, _) in answer.char_indices() {
            let now = settled(&answer[..end], &stops);
            assert!(now.starts_with(shown) && last.starts_with(now), "{now}");
            shown = now;
        }
        assert_eq!(settled("a <en", &stops), "a");
        assert_eq!(settled("a <en", &[]), "a <en");
    }
}
