//! Made-up subjects (section 5.1 and appendix E of the paper): names that read like those at hand and name nothing.

use std::collections::HashSet;

use rand::{Rng, seq::IndexedRandom};

use crate::{Result, model::TextTokenizer};

/// Tries for each name that is wanted, before a small pool is taken to be exhausted.
const TRIES: usize = 50;

/// Semantic keys: the tokens of real names, pooled by position and put together anew as `[first, last]` or
/// `[first, middle, last]` (`Berg|amo` and `Pas|adena` make `Bergadena`).
pub struct SemanticKeys<'a> {
    tokenizer: &'a TextTokenizer,
    first: Vec<u32>,
    middle: Vec<u32>,
    last: Vec<u32>,
    /// Names that are real or were made before.
    taken: HashSet<String>,
}

impl<'a> SemanticKeys<'a> {
    /// Pools the tokens of `names` as they are cut in the middle of a text.
    ///
    /// # Errors
    /// When the tokenizer refuses a name.
    pub fn new<'n>(
        names: impl IntoIterator<Item = &'n str>,
        tokenizer: &'a TextTokenizer,
    ) -> Result<Self> {
        let mut keys = Self {
            tokenizer,
            first: Vec::new(),
            middle: Vec::new(),
            last: Vec::new(),
            taken: HashSet::new(),
        };
        for name in names {
            keys.taken.insert(name.trim().to_lowercase());
            let tokens = tokenizer.encode_continuation(&format!(" {}", name.trim()))?;
            if let [first, middle @ .., last] = &tokens[..] {
                keys.first.push(*first);
                keys.middle.extend_from_slice(middle);
                keys.last.push(*last);
            }
        }
        Ok(keys)
    }

    /// A name that is neither real nor was made before; none once the pools hold no more that is soon found.
    pub fn make(&mut self, rng: &mut impl Rng) -> Option<String> {
        for _ in 0..TRIES {
            let (first, last) = (*self.first.choose(rng)?, *self.last.choose(rng)?);
            let middle = self.middle.choose(rng).filter(|_| rng.random());
            let tokens: Vec<u32> = [Some(first), middle.copied(), Some(last)]
                .into_iter()
                .flatten()
                .collect();
            let text = self.tokenizer.decode(&tokens);
            let name = text.trim();
            let readable = |c: char| !c.is_control() && c != char::REPLACEMENT_CHARACTER;
            if name.chars().any(char::is_alphanumeric)
                && name.chars().all(readable)
                && self.taken.insert(name.to_lowercase())
            {
                return Some(name.to_owned());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::model::Model;

    #[test]
    fn names_are_new_distinct_and_made_of_the_pools() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        let tokenizer = Model::load(path).expect("the golden model").tokenizer;
        let real = ["Italy", "Italia", "France", "Brazil", "Bergamo"];
        let mut keys = SemanticKeys::new(real, &tokenizer).expect("plain names");
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let made: Vec<String> = std::iter::from_fn(|| keys.make(&mut rng))
            .take(20)
            .collect();
        assert_eq!(made.len(), 20);
        let distinct: HashSet<&String> = made.iter().collect();
        assert_eq!(distinct.len(), 20);
        assert!(
            made.iter().all(|name| !real.contains(&&name[..])),
            "{made:?}"
        );
        let letters: HashSet<char> = real.concat().chars().collect();
        assert!(
            made.iter()
                .all(|name| name.chars().all(|c| letters.contains(&c) || c == ' '))
        );
    }

    #[test]
    fn an_exhausted_pool_ends() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        let tokenizer = Model::load(path).expect("the golden model").tokenizer;
        let mut keys = SemanticKeys::new([], &tokenizer).expect("nothing to refuse");
        assert_eq!(keys.make(&mut ChaCha8Rng::seed_from_u64(0)), None);
    }
}
