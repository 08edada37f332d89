//! Tries of accepted answers as tokens, and the tokens that end a line.

use rayon::prelude::*;

use crate::{Result, model::TextTokenizer, prompt::PromptTemplate};

/// The trie of the tokenized accepted answers of a fact.
pub struct AnswerTrie {
    nodes: Vec<Node>,
}

/// A prefix of an accepted answer.
#[derive(Default)]
struct Node {
    text: String,
    children: Vec<(u32, usize)>,
}

impl AnswerTrie {
    /// The node of the empty prefix.
    pub const ROOT: usize = 0;

    /// The trie of `accepted`. Each answer is tokenized alone, and with the end of the target, since its last token may merge with the
    /// line break.
    ///
    /// # Errors
    /// When an answer cannot be tokenized.
    pub fn new(
        accepted: &[String],
        template: &PromptTemplate,
        tokenizer: &TextTokenizer,
        stop_tokens: &StopTokens,
    ) -> Result<Self> {
        let mut trie = Self {
            nodes: vec![Node::default()],
        };
        for form in accepted {
            let target = template.target_text(form);
            for text in [target.trim_end_matches('\n'), &target] {
                let mut tokens = template.encode_target(tokenizer, text)?;
                let line = tokens.iter().position(|t| stop_tokens.contains(*t));
                tokens.truncate(line.unwrap_or(tokens.len()));
                trie.insert(&tokens, tokenizer);
            }
        }
        Ok(trie)
    }

    fn insert(&mut self, tokens: &[u32], tokenizer: &TextTokenizer) {
        let mut node = Self::ROOT;
        for (i, token) in tokens.iter().enumerate() {
            node = self.child(node, *token).unwrap_or_else(|| {
                self.nodes.push(Node {
                    text: tokenizer.decode(&tokens[..=i]),
                    children: Vec::new(),
                });
                let new = self.nodes.len() - 1;
                self.nodes[node].children.push((*token, new));
                new
            });
        }
    }

    /// The child of `node` by `token`.
    pub fn child(&self, node: usize, token: u32) -> Option<usize> {
        let children = &self.nodes[node].children;
        children
            .iter()
            .find(|(t, _)| *t == token)
            .map(|(_, child)| *child)
    }

    /// The text of the prefix at `node`.
    pub fn text(&self, node: usize) -> &str {
        &self.nodes[node].text
    }

    /// Tokens of the longest answer.
    pub fn depth(&self) -> usize {
        let mut depths = vec![0; self.nodes.len()];
        // A child has a larger index than its parent.
        for (i, node) in self.nodes.iter().enumerate() {
            for (_, child) in &node.children {
                depths[*child] = depths[i] + 1;
            }
        }
        depths.into_iter().max().unwrap_or(0)
    }
}

/// The tokens that end a line: end-of-text tokens, and every token that contains a line break.
pub struct StopTokens {
    /// By token id: the text before the line break; `None` for other tokens.
    text_before_break: Vec<Option<String>>,
}

impl StopTokens {
    /// The stop tokens of `tokenizer` among the first `vocab_size` ids.
    pub fn new(tokenizer: &TextTokenizer, vocab_size: usize) -> Self {
        let text_before_break = (0..vocab_size as u32).into_par_iter().map(|id| {
            if tokenizer.eos_token_ids.contains(&id) {
                return Some(String::new());
            }
            let text = tokenizer.token_text(id);
            text.split_once('\n').map(|(before, _)| before.to_owned())
        });
        Self {
            text_before_break: text_before_break.collect(),
        }
    }

    /// Whether `token` ends a line.
    pub fn contains(&self, token: u32) -> bool {
        self.text_before_break(token).is_some()
    }

    /// The text of `token` before its line break; `None` if it doesn't end a line.
    pub fn text_before_break(&self, token: u32) -> Option<&str> {
        self.text_before_break.get(token as usize)?.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;

    #[test]
    fn answers_share_prefixes_and_end_before_the_line_break() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        let model = Model::load(path).expect("the golden model is there");
        let tokenizer = &model.tokenizer;
        let stop_tokens = StopTokens::new(tokenizer, model.config.vocab_size);
        let accepted = ["Italy".to_owned(), "Italia".to_owned()];
        let template = PromptTemplate::default();
        let trie =
            AnswerTrie::new(&accepted, &template, tokenizer, &stop_tokens).expect("plain text");
        for form in &accepted {
            let tokens = tokenizer
                .encode_after("A:", &format!(" {form}"))
                .expect("plain text");
            let node = tokens
                .iter()
                .try_fold(AnswerTrie::ROOT, |node, t| trie.child(node, *t));
            assert_eq!(trie.text(node.expect("a path")), format!(" {form}"));
        }
        let breaks = tokenizer.encode_after("a", "\n").expect("plain text");
        assert_eq!(stop_tokens.text_before_break(breaks[0]), Some(""));
        assert_eq!(
            stop_tokens.text_before_break(tokenizer.eos_token_ids[0]),
            Some("")
        );
        assert!((0..trie.nodes.len()).all(|node| trie.child(node, breaks[0]).is_none()));
        let letter = tokenizer.encode_after("\n", "a").expect("plain text");
        assert!(!stop_tokens.contains(letter[0]));
    }
}
