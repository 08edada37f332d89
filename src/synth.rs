//! Made-up facts (section 5.1 and appendix E of the paper): names that read like those at hand and name nothing, or that read
//! like nothing, with answers of the one kind or the other.

use std::{
    collections::{BTreeSet, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use rand::{
    Rng, SeedableRng,
    seq::{IndexedRandom, SliceRandom},
};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    facts::{Fact, Location},
    model::TextTokenizer,
};

/// Tries for each name that is wanted, before a small pool is taken to be exhausted.
const MAX_TRIES: usize = 50;

/// Semantic keys: the tokens of real names, pooled by position and put together anew as `[first, last]` or
/// `[first, middle, last]` (`Berg|amo` and `Pas|adena` make `Bergadena`).
pub struct SemanticKeys<'a> {
    tokenizer: &'a TextTokenizer,
    first: Vec<u32>,
    middle: Vec<u32>,
    last: Vec<u32>,
    used: UsedNames,
}

/// Names that are real or were made before, in any case: a hash of each, so that a million take little. Where two hashes
/// agree a name is passed over that could have been taken.
#[derive(Default)]
struct UsedNames(HashSet<u64>);

impl UsedNames {
    /// Takes a name; whether it was free.
    fn insert(&mut self, name: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        name.to_lowercase().hash(&mut hasher);
        self.0.insert(hasher.finish())
    }
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
            used: UsedNames::default(),
        };
        for name in names {
            keys.used.insert(name.trim());
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
    pub fn generate(&mut self, rng: &mut impl Rng) -> Option<String> {
        for _ in 0..MAX_TRIES {
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
                && self.used.insert(name)
            {
                return Some(name.to_owned());
            }
        }
        None
    }
}

/// What a made-up name is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NameKind {
    /// Those at hand: as they are. Of values alone: a made-up subject that is real would be none.
    Real,
    /// [`SemanticKeys`] of those at hand.
    Semantic,
    /// Eight random hexadecimal digits behind `Loc_`, or behind `Val_` where it is an answer.
    Uuid,
}

/// Made-up facts of one relation, without an end but that of the names: subjects that no fact at hand has and no two share, and as
/// many answers as the facts at hand have, each as often as any other, to one.
pub struct SyntheticFacts<'a> {
    rng: ChaCha8Rng,
    keys: Keys<'a>,
    relation: String,
    values: Vec<String>,
    /// Numbers of the values that are still to be dealt before each has come once more.
    remaining: Vec<usize>,
    /// A question, before and after the subject.
    question: (String, String),
    generated: usize,
}

enum Keys<'a> {
    Semantic(SemanticKeys<'a>),
    Uuid(UsedNames),
}

impl<'a> SyntheticFacts<'a> {
    /// Facts like `facts`, which are of one relation.
    ///
    /// ```
    /// use unforget::{
    ///     facts::{self, ReadOptions},
    ///     model::Model,
    ///     synth::{Names, SyntheticFacts},
    /// };
    ///
    /// let model = Model::load("tests/golden/llama")?;
    /// let mut facts = facts::read(&["pack:world".into()], ReadOptions::default())?.facts;
    /// facts.retain(|fact| fact.relation == "P17");
    /// let kinds = (Names::Uuid, Names::Real);
    /// for fact in SyntheticFacts::new(&facts, kinds, &model.tokenizer, 0)?.take(3) {
    ///     assert!(fact?.subject.starts_with("Loc_"));
    /// }
    /// # Ok::<(), unforget::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Input`] when no question names its subject, when the subjects are to be real, or when there are too few names to
    /// make the answers of; when the tokenizer refuses a name.
    pub fn new(
        facts: &[Fact],
        (keys, values): (NameKind, NameKind),
        tokenizer: &'a TextTokenizer,
        seed: u64,
    ) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let template = facts.iter().find_map(|fact| {
            let (before, after) = fact.question.split_once(fact.subject.trim())?;
            (!fact.subject.trim().is_empty()).then(|| (before.to_owned(), after.to_owned()))
        });
        let question = template.ok_or_else(|| {
            Error::input_hint(
                "no question has its fact's subject in it, so that none can be asked about another",
                "give facts whose `question` names the subject as it is written",
            )
        })?;
        let subjects = facts.iter().map(|fact| &fact.subject[..]);
        let keys = match keys {
            NameKind::Semantic => Keys::Semantic(SemanticKeys::new(subjects, tokenizer)?),
            NameKind::Uuid => Keys::Uuid(UsedNames::default()),
            NameKind::Real => {
                return Err(Error::input(
                    "the subjects of made-up facts cannot be real ones",
                ));
            }
        };
        let real: BTreeSet<String> = facts.iter().map(Fact::target).collect();
        let values = match values {
            NameKind::Real => real.into_iter().collect(),
            NameKind::Semantic => {
                let mut names = SemanticKeys::new(real.iter().map(|o| &o[..]), tokenizer)?;
                let made = std::iter::from_fn(|| names.generate(&mut rng)).take(real.len());
                let made: Vec<String> = made.collect();
                if made.len() < real.len() {
                    return Err(Error::input_hint(
                        format!(
                            "the tokens of {} answers make {} new ones, and not as many as there are",
                            real.len(),
                            made.len()
                        ),
                        "give more facts, or take real answers",
                    ));
                }
                made
            }
            NameKind::Uuid => {
                let mut used = UsedNames::default();
                let one = || uuid("Val_", &mut rng, &mut used);
                std::iter::repeat_with(one).take(real.len()).collect()
            }
        };
        Ok(Self {
            rng,
            keys,
            relation: facts[0].relation.clone(),
            values,
            remaining: Vec::new(),
            question,
            generated: 0,
        })
    }

    fn next_value(&mut self) -> String {
        if self.remaining.is_empty() {
            self.remaining = (0..self.values.len()).collect();
            self.remaining.shuffle(&mut self.rng);
        }
        let next = self
            .remaining
            .pop()
            .expect("there is a fact, and it has an answer");
        self.values[next].clone()
    }
}

impl Iterator for SyntheticFacts<'_> {
    type Item = Result<Fact>;

    fn next(&mut self) -> Option<Self::Item> {
        let key = match &mut self.keys {
            Keys::Semantic(keys) => keys.generate(&mut self.rng),
            Keys::Uuid(used) => Some(uuid("Loc_", &mut self.rng, used)),
        };
        let Some(subject) = key else {
            return Some(Err(Error::input_hint(
                format!(
                    "after {} made-up names the tokens of those at hand soon make no other",
                    self.generated
                ),
                "give more facts to make names of, or ask for fewer",
            )));
        };
        self.generated += 1;
        let (before, after) = &self.question;
        let question = format!("{before}{subject}{after}");
        let object = self.next_value();
        Some(Ok(Fact {
            subject,
            relation: self.relation.clone(),
            object,
            aliases: Vec::new(),
            question,
            paraphrases: Vec::new(),
            split: None,
            location: Location {
                file: "made-up facts".into(),
                line: self.generated,
            },
        }))
    }
}

/// A random identifier that is not taken.
fn uuid(prefix: &str, rng: &mut impl Rng, used: &mut UsedNames) -> String {
    loop {
        let name = format!("{prefix}{:08x}", rng.random::<u32>());
        if used.insert(&name) {
            return name;
        }
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
        let made: Vec<String> = std::iter::from_fn(|| keys.generate(&mut rng))
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
        assert_eq!(keys.generate(&mut ChaCha8Rng::seed_from_u64(0)), None);
    }

    fn facts() -> Vec<Fact> {
        let places = [
            ("Bergamo", "Italy"),
            ("Pasadena", "United States"),
            ("Gdansk", "Poland"),
            ("Boston", "USA"),
            ("Torino", "Italy"),
        ];
        let fact = |(subject, object)| Fact {
            question: format!("Where is {subject}?"),
            ..Fact::for_test(subject, object)
        };
        places.map(fact).to_vec()
    }

    #[test]
    fn synthetic_facts_are_new_distinct_balanced_and_reproducible() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        let tokenizer = Model::load(path).expect("the golden model").tokenizer;
        let facts = facts();
        for keys in [NameKind::Semantic, NameKind::Uuid] {
            for values in [NameKind::Real, NameKind::Semantic, NameKind::Uuid] {
                let made = || -> Vec<Fact> {
                    let made = SyntheticFacts::new(&facts, (keys, values), &tokenizer, 3);
                    let made = made.expect("names enough").take(100);
                    made.collect::<Result<_>>().expect("tokens enough")
                };
                let rows = made();
                assert_eq!(rows, made());
                let subjects: HashSet<&str> = rows.iter().map(|row| &row.subject[..]).collect();
                assert_eq!(subjects.len(), 100);
                assert!(
                    facts
                        .iter()
                        .all(|fact| !subjects.contains(&fact.subject[..]))
                );
                let mut counts = std::collections::BTreeMap::<&str, usize>::new();
                for row in &rows {
                    *counts.entry(&row.object).or_default() += 1;
                    assert_eq!(row.question, format!("Where is {}?", row.subject));
                }
                let mut counts: Vec<usize> = counts.into_values().collect();
                counts.sort_unstable();
                // Two spellings of one country are one answer.
                assert_eq!(counts, [33, 33, 34], "{keys:?} {values:?}");
                let real = |row: &Fact| facts.iter().any(|f| f.target() == row.object);
                assert_eq!(rows.iter().all(real), values == NameKind::Real);
            }
        }
    }

    #[test]
    fn too_few_names_are_an_error() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/llama");
        let tokenizer = Model::load(path).expect("the golden model").tokenizer;
        let few = &facts()[..1];
        let made = SyntheticFacts::new(few, (NameKind::Semantic, NameKind::Real), &tokenizer, 0);
        let made: Result<Vec<Fact>> = made.expect("a question").take(10_000).collect();
        let message = made.expect_err("one name alone").to_string();
        assert!(message.contains("made-up names"), "{message}");
        assert!(SyntheticFacts::new(few, (NameKind::Real, NameKind::Real), &tokenizer, 0).is_err());
    }
}
