//! Facts behind the few-shot prompts of their relation, as tokens.

use std::collections::{BTreeMap, HashMap};

use super::FewShotPrompt;
use crate::{
    Result,
    facts::Fact,
    generate::{Generator, common_prefix},
    model::TextTokenizer,
    prompt::PromptTemplate,
};

/// Every fact behind every prompt of its relation.
pub struct TokenizedQueries {
    /// Few-shot texts, each with the beginning that all questions of its relation share.
    pub prefixes: Vec<Vec<u32>>,
    /// The rest of each fact's question.
    pub suffixes: Vec<Vec<u32>>,
    /// What is asked; the pairs of one prefix lie together.
    pub queries: Vec<FactPrompt>,
}

/// One fact behind one prefix.
pub struct FactPrompt {
    /// Which of the facts.
    pub fact: usize,
    /// Which of the prefixes.
    pub prefix: usize,
}

impl TokenizedQueries {
    /// `facts` behind `prompts`, those of a relation together; one without exemplars is the bare question.
    ///
    /// # Errors
    /// When the tokenizer refuses a text.
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
                    tokenizer.encode_prompt(&template.prompt_text(question))?
                } else {
                    tokenizer.encode_continuation(&template.next_prompt_text(question))?
                };
            }
            let shared = common_prefix(members.iter().map(|i| &suffixes[*i][..])).to_vec();
            for prompt in prompts {
                let mut by_prefix: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
                for i in members {
                    let before = prompt.prefix_for(&facts[*i].question);
                    by_prefix.entry(before).or_default().push(*i);
                }
                for (text, members) in by_prefix {
                    let mut tokens = if text.is_empty() {
                        Vec::new()
                    } else {
                        tokenizer.encode_prompt(text)?
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

    /// Refuses what the model cannot read and then write `new_tokens` behind.
    ///
    /// # Errors
    /// [`crate::Error::Input`] when a question is longer than the model's context, or has a token that the model has not.
    pub fn check(&self, generator: &Generator<'_>, new_tokens: usize) -> Result<()> {
        for pair in &self.queries {
            let tokens = [&self.prefixes[pair.prefix][..], &self.suffixes[pair.fact]];
            let length = tokens[0].len() + tokens[1].len() + new_tokens;
            generator.check_row(pair.fact, length, &tokens)?;
        }
        Ok(())
    }
}
