//! Synthetic facts (section 5.1 and appendix E of the paper): subjects and answers that don't exist, with names similar to real ones
//! or random identifiers.

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
    config::RowWeight,
    facts::{Fact, Location},
    model::TextTokenizer,
};

/// Attempts per name before the pools count as exhausted.
const MAX_TRIES: usize = 50;

/// Semantic keys: tokens of real names, pooled by position and recombined as `[first, last]` or `[first, middle, last]` (`Berg|amo`
/// and `Pas|adena` make `Bergadena`).
pub struct SemanticKeys<'a> {
    tokenizer: &'a TextTokenizer,
    first: Vec<u32>,
    middle: Vec<u32>,
    last: Vec<u32>,
    used: UsedNames,
}

/// Names that are real or already generated, in any case, as hashes to save memory. A hash collision rejects an unused name.
#[derive(Default)]
struct UsedNames(HashSet<u64>);

impl UsedNames {
    /// Inserts a name; returns whether it was unused.
    fn insert(&mut self, name: &str) -> bool {
        let mut hasher = DefaultHasher::new();
        name.to_lowercase().hash(&mut hasher);
        self.0.insert(hasher.finish())
    }
}

impl<'a> SemanticKeys<'a> {
    /// Pools the tokens of `names`, tokenized as inside a text.
    ///
    /// # Errors
    /// When a name cannot be tokenized.
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
            let tokens = tokenizer.encode_after(":", &format!(" {}", name.trim()))?;
            if let [first, middle @ .., last] = &tokens[..] {
                keys.first.push(*first);
                keys.middle.extend_from_slice(middle);
                keys.last.push(*last);
            }
        }
        Ok(keys)
    }

    /// A new name; `None` after 50 attempts that gave real or used names.
    pub fn generate(&mut self, rng: &mut impl Rng) -> Option<String> {
        for _ in 0..MAX_TRIES {
            let (first, last) = (*self.first.choose(rng)?, *self.last.choose(rng)?);
            let middle = self.middle.choose(rng).filter(|_| rng.random());
            let tokens: Vec<u32> = [Some(first), middle.copied(), Some(last)]
                .into_iter()
                .flatten()
                .collect();
            let text = self.tokenizer.decode(&tokens);
            if let Some(name) = self.accept(&text) {
                return Some(name.to_owned());
            }
        }
        None
    }

    /// `text` without surrounding white space if it is a readable name that is neither real nor accepted before.
    pub fn accept<'t>(&mut self, text: &'t str) -> Option<&'t str> {
        let name = text.trim();
        let readable = |c: char| !c.is_control() && c != char::REPLACEMENT_CHARACTER;
        let is_name = name.chars().any(char::is_alphanumeric) && name.chars().all(readable);
        (is_name && self.used.insert(name)).then_some(name)
    }
}

/// A kind of names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NameKind {
    /// Those of the given facts, for answers only.
    Real,
    /// [`SemanticKeys`] from the names of the given facts.
    Semantic,
    /// `Loc_` and eight random hexadecimal digits; `Val_` for an answer.
    Uuid,
}

/// An iterator of synthetic facts of one relation. Subjects are new and distinct. There are as many different answers as in the given
/// facts, and their counts differ by at most one.
pub struct SyntheticFacts<'a> {
    rng: ChaCha8Rng,
    keys: Keys<'a>,
    relation: String,
    values: Vec<String>,
    /// Indices of the values not used in this round, shuffled.
    remaining: Vec<usize>,
    /// The question before and after the subject.
    question: (String, String),
    generated: usize,
}

enum Keys<'a> {
    Semantic(SemanticKeys<'a>),
    Uuid(UsedNames),
}

impl<'a> SyntheticFacts<'a> {
    /// Synthetic facts like `facts`, which must have one relation.
    ///
    /// ```
    /// use unforget::{
    ///     facts::{self, ReadOptions},
    ///     model::Model,
    ///     synth::{NameKind, SyntheticFacts},
    /// };
    ///
    /// let model = Model::load("tests/golden/llama")?;
    /// let mut facts = facts::read(&["pack:world".into()], ReadOptions::default())?.facts;
    /// facts.retain(|fact| fact.relation == "P17");
    /// let (keys, values) = (NameKind::Uuid, NameKind::Real);
    /// for fact in SyntheticFacts::new(&facts, keys, values, &model.tokenizer, 0)?.take(3) {
    ///     assert!(fact?.subject.starts_with("Loc_"));
    /// }
    /// # Ok::<(), unforget::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Input`] when no question contains its subject, when `keys` is [`NameKind::Real`], or when there are too few names to
    /// generate the answers; or when a name cannot be tokenized.
    pub fn new(
        facts: &[Fact],
        keys: NameKind,
        values: NameKind,
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
                "no question contains the subject of its fact",
                "give facts whose `question` contains the subject exactly",
            )
        })?;
        let subjects = facts.iter().map(|fact| &fact.subject[..]);
        let keys = match keys {
            NameKind::Semantic => Keys::Semantic(SemanticKeys::new(subjects, tokenizer)?),
            NameKind::Uuid => Keys::Uuid(UsedNames::default()),
            NameKind::Real => {
                return Err(Error::input(
                    "the subjects of synthetic facts can't be real names",
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
                            "the tokens of {} answers make only {} new ones",
                            real.len(),
                            made.len()
                        ),
                        "give more facts, or use `--values real`",
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
                    "cannot make more than {} distinct names from these facts",
                    self.generated
                ),
                "give more facts, or generate fewer",
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
                file: "synthetic facts".into(),
                line: self.generated,
            },
            weight: RowWeight::default(),
        }))
    }
}

/// A new random identifier.
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
    fn names_are_new_distinct_and_made_from_the_pools() {
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
                    let made = SyntheticFacts::new(&facts, keys, values, &tokenizer, 3);
                    let made = made.expect("enough names").take(100);
                    made.collect::<Result<_>>().expect("enough tokens")
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
        let made = SyntheticFacts::new(few, NameKind::Semantic, NameKind::Real, &tokenizer, 0);
        let made: Result<Vec<Fact>> = made.expect("a question").take(10_000).collect();
        let message = made.expect_err("only one name").to_string();
        assert!(message.contains("distinct names"), "{message}");
        assert!(SyntheticFacts::new(few, NameKind::Real, NameKind::Real, &tokenizer, 0).is_err());
    }
}
