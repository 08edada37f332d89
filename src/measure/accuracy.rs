//! Evaluation of facts at the training prompt: greedy answers and whether they are correct.

use std::collections::BTreeMap;

use crate::{
    Result,
    facts::{AnswerScorer, AnswerVerdict, Fact, MatchRule},
    generate::{Generator, Request, common_prefix},
    model::TextTokenizer,
    prompt::PromptTemplate,
};

/// Tokens of an answer beyond the longest target, for other spellings.
const SLACK_TOKENS: usize = 4;

/// Minimum length of an answer in tokens, so that wrong answers can be read.
const MIN_ANSWER_TOKENS: usize = 16;

/// Tokens of an answer beyond the longest target under [`MatchRule::Contains`].
const VERBOSE_TOKENS: usize = 32;

/// Maximum length of a greedy answer in tokens, given the `longest` target.
pub(crate) fn max_answer_tokens(longest: usize, match_rule: MatchRule) -> usize {
    match match_rule {
        MatchRule::Exact => MIN_ANSWER_TOKENS.max(longest + SLACK_TOKENS),
        MatchRule::Contains => longest + VERBOSE_TOKENS,
    }
}

/// Tokenized facts of one split, for repeated evaluation.
pub struct EvalSet {
    prompts: Vec<Vec<u32>>,
    /// The targets, as trained.
    targets: Vec<Vec<u32>>,
    scorers: Vec<AnswerScorer>,
    /// Indices of the facts of each relation, whose prompts share a prefix.
    relations: Vec<Vec<usize>>,
    /// Maximum length of an answer in tokens.
    max_new_tokens: usize,
}

/// A greedy answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EvalAnswer {
    /// The first line.
    pub text: String,
    /// Whether it is correct.
    pub correct: bool,
}

impl EvalSet {
    /// Tokenizes `facts` with `template`.
    ///
    /// # Errors
    /// If the tokenizer refuses a text.
    pub fn new<'a>(
        facts: impl IntoIterator<Item = &'a Fact>,
        template: &PromptTemplate,
        tokenizer: &TextTokenizer,
        match_rule: MatchRule,
    ) -> Result<Self> {
        let (mut prompts, mut targets, mut scorers) = (Vec::new(), Vec::new(), Vec::new());
        let mut relations: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        let mut longest = 0;
        for (i, fact) in facts.into_iter().enumerate() {
            let row = template.example(tokenizer, fact)?;
            longest = longest.max(row.target.len());
            prompts.push(row.prompt);
            targets.push(row.target);
            scorers.push(fact.scorer(match_rule));
            relations.entry(&fact.relation).or_default().push(i);
        }
        Ok(Self {
            prompts,
            targets,
            scorers,
            relations: relations.into_values().collect(),
            max_new_tokens: max_answer_tokens(longest, match_rule),
        })
    }

    /// Number of facts.
    pub fn len(&self) -> usize {
        self.prompts.len()
    }

    /// Whether there is no fact.
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty()
    }

    /// Whether the greedy answer to each fact is correct.
    ///
    /// Decoding of an answer stops once it cannot become correct, so that most facts cost their prompt and one or two tokens.
    /// `on_finished` receives the number of facts that were finished since its last call.
    ///
    /// # Errors
    /// If a prompt is longer than the model's context.
    pub fn correct(
        &self,
        generator: &mut Generator<'_>,
        on_finished: &(dyn Fn(usize) + Sync),
    ) -> Result<Vec<bool>> {
        let is_wrong =
            |judge: &AnswerScorer, text: &str| judge.verdict(text) == AnswerVerdict::Wrong;
        let texts = self.generate_texts(generator, is_wrong, on_finished)?;
        Ok(self
            .scorers
            .iter()
            .zip(texts)
            .map(|(judge, text)| judge.is_correct(&text))
            .collect())
    }

    /// The probability of each target, including its end marker: `exp(sum of log p)`. `on_finished`: as for [`Self::correct`].
    ///
    /// # Errors
    /// If a prompt and target are longer than the model's context.
    pub fn probabilities(
        &self,
        generator: &mut Generator<'_>,
        on_finished: &(dyn Fn(usize) + Sync),
    ) -> Result<Vec<f64>> {
        let comm = generator.comm();
        let own = comm.shard_range(self.len());
        let prompts = self.prompts[own.clone()].iter().cloned();
        let rows = prompts.zip(self.targets[own].iter().cloned());
        let logprobs = generator.score(&rows.collect::<Vec<_>>(), on_finished)?;
        let of_row = |row: Vec<f32>| row.into_iter().map(f64::from).sum::<f64>().exp();
        Ok(comm.all_gather(logprobs.into_iter().map(of_row).collect()))
    }

    /// The greedy answer to each fact, up to its first line break. `on_finished`: as for [`Self::correct`].
    ///
    /// # Errors
    /// If a prompt is longer than the model's context.
    pub fn answers(
        &self,
        generator: &mut Generator<'_>,
        on_finished: &(dyn Fn(usize) + Sync),
    ) -> Result<Vec<EvalAnswer>> {
        let texts = self.generate_texts(generator, |_, _| false, on_finished)?;
        let answered = self
            .scorers
            .iter()
            .zip(texts)
            .map(|(judge, text)| EvalAnswer {
                correct: judge.is_correct(&text),
                text: text.lines().next().unwrap_or_default().trim().to_owned(),
            });
        Ok(answered.collect())
    }

    /// Greedy decoding of each fact until the first line break or `stop`. With several processes, each decodes a shard of every
    /// relation.
    fn generate_texts(
        &self,
        generator: &mut Generator<'_>,
        stop: impl Fn(&AnswerScorer, &str) -> bool + Sync,
        on_finished: &(dyn Fn(usize) + Sync),
    ) -> Result<Vec<String>> {
        let comm = generator.comm();
        let mut texts = vec![String::new(); self.len()];
        for all in &self.relations {
            let facts = &all[comm.shard_range(all.len())];
            let shared = common_prefix(facts.iter().map(|i| &self.prompts[*i][..]));
            let rest = |i: &usize| self.prompts[*i][shared.len()..].to_vec();
            let prompts: Vec<Vec<u32>> = facts.iter().map(rest).collect();
            let request = Request::greedy(shared, &prompts, self.max_new_tokens);
            let done = |row: usize, text: &str| {
                text.contains('\n') || stop(&self.scorers[facts[row]], text)
            };
            let generated = generator.generate(&request, done, on_finished)?;
            let own = generated.into_iter();
            let own = own.map(|mut answers| answers.swap_remove(0).text);
            for (i, text) in all.iter().zip(comm.all_gather(own.collect())) {
                texts[*i] = text;
            }
        }
        Ok(texts)
    }
}
