//! Queries: every fact under every few-shot prompt of its relation, as tokens.

use std::collections::{BTreeMap, HashMap};

use super::{
    answer_trie::{AnswerTrie, StopTokens},
    few_shot::FewShotPrompt,
    settings::AuditSettings,
};
use crate::{
    Result,
    facts::{AnswerScorer, Fact},
    generate::{Generator, common_prefix},
    model::TextTokenizer,
    prompt::PromptTemplate,
};

/// Every fact under every prompt of its relation.
pub struct TokenizedQueries {
    /// Few-shot texts, each followed by the tokens that all questions of its relation share.
    pub prefixes: Vec<Vec<u32>>,
    /// The other tokens of each fact's question.
    pub suffixes: Vec<Vec<u32>>,
    /// All queries, grouped by prefix.
    pub queries: Vec<FactPrompt>,
}

/// One fact under one prefix.
pub struct FactPrompt {
    /// Index of the fact.
    pub fact: usize,
    /// Index of the prefix.
    pub prefix: usize,
}

impl TokenizedQueries {
    /// Tokenizes `facts` under `prompts`, which are grouped by relation. A prompt without exemplars is the question alone.
    ///
    /// # Errors
    /// When a text cannot be tokenized.
    pub fn new(
        tokenizer: &TextTokenizer,
        facts: &[&Fact],
        prompts: &[FewShotPrompt],
        template: &PromptTemplate,
    ) -> Result<Self> {
        let mut by_relation: HashMap<&str, Vec<usize>> = HashMap::new();
        for (i, fact) in facts.iter().enumerate() {
            by_relation.entry(&fact.relation).or_default().push(i);
        }
        let mut suffixes: Vec<Vec<u32>> = vec![Vec::new(); facts.len()];
        let (mut prefixes, mut queries) = (Vec::new(), Vec::new());
        for prompts in prompts.chunk_by(|a, b| a.relation == b.relation) {
            let members = &by_relation[&prompts[0].relation[..]];
            let zero_shot = prompts.iter().all(|prompt| prompt.prefix.is_empty());
            for i in members {
                let question = &facts[*i].question;
                suffixes[*i] = if zero_shot {
                    template.encode(tokenizer, &template.prompt_text(question))?
                } else {
                    let before = &prompts[0].prefix;
                    tokenizer.encode_after(before, &template.next_prompt_text(question))?
                };
            }
            let shared = common_prefix(members.iter().map(|i| &suffixes[*i][..])).to_vec();
            for prompt in prompts {
                let mut by_prefix: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
                for i in members {
                    let prefix = prompt.prefix_for(&facts[*i].question);
                    by_prefix.entry(prefix).or_default().push(*i);
                }
                for (text, members) in by_prefix {
                    let mut tokens = if text.is_empty() {
                        Vec::new()
                    } else {
                        template.encode(tokenizer, text)?
                    };
                    tokens.extend_from_slice(&shared);
                    prefixes.push(tokens);
                    queries.extend(members.into_iter().map(|fact| FactPrompt {
                        fact,
                        prefix: prefixes.len() - 1,
                    }));
                }
            }
            for i in members {
                suffixes[*i].drain(..shared.len());
            }
        }
        Ok(Self {
            prefixes,
            suffixes,
            queries,
        })
    }

    /// Checks that every query and `new_tokens` more fit the model's context.
    ///
    /// # Errors
    /// [`crate::Error::Input`] when a query is too long, or has a token outside the model's vocabulary.
    pub fn check(&self, generator: &Generator<'_>, new_tokens: usize) -> Result<()> {
        for query in &self.queries {
            let tokens = [&self.prefixes[query.prefix][..], &self.suffixes[query.fact]];
            let length = tokens[0].len() + tokens[1].len() + new_tokens;
            generator.check_row(query.fact, length, &tokens)?;
        }
        Ok(())
    }
}

/// A question after a few-shot prefix, and its accepted answers.
pub struct Query<'a> {
    /// Index of the prefix.
    pub prefix: usize,
    /// Tokens of the question after the prefix.
    pub question: &'a [u32],
    /// The accepted answers as tokens.
    pub trie: &'a AnswerTrie,
    /// The accepted answers as text.
    pub scorer: &'a AnswerScorer,
}

/// Answers queries: see [`Self::answer_analytically`] and [`Self::answer_by_sampling`].
pub struct QueryRunner<'a, 'm> {
    /// Engine, weights and tokenizer.
    pub generator: Generator<'m>,
    /// The tokens that end a line.
    pub stop_tokens: &'a StopTokens,
    /// Temperature, top-k, samples, seed, and whether wrong answers are decoded to the end.
    pub settings: &'a AuditSettings,
    /// Maximum length of a greedy answer.
    pub max_new_tokens: usize,
}

/// The first line of a greedy answer, with an ellipsis if decoding did not reach its end.
pub fn first_line_text(text: &str, ended: bool) -> String {
    let line = text.split('\n').next().unwrap_or_default().trim();
    let ellipsis = if ended || text.contains('\n') {
        ""
    } else {
        "\u{2026}"
    };
    format!("{line}{ellipsis}")
}
