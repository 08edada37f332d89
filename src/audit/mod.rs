//! `SLiCK`: what does the model know?
//!
//! Each fact is asked under several random few-shot prompts of its relation (Gekhman et al. 2024; section 2.1 of the
//! paper): the greedy answer, and samples at a temperature above 0. [`Label`] says what follows from them.

use std::collections::{BTreeMap, HashMap};

use rand::{SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result, distributed,
    engine::Engine,
    facts::{AnswerScorer, Fact, MatchRule},
    generate::Generator,
    model::Model,
    progress::Progress,
    prompt::PromptTemplate,
};

mod analytic;
mod answer_trie;
mod cache;
pub(crate) mod few_shot;
mod files;
pub(crate) mod queries;
mod sampled;

pub use analytic::AuditAnswer;
pub use few_shot::FewShotPrompt;

use analytic::{Query, QueryRunner};
use answer_trie::{AnswerTrie, StopTokens};
use queries::TokenizedQueries;

/// More facts than these are sampled.
const MAX_FACTS: usize = 20_000;

/// Tokens of a greedy answer beyond the longest accepted form: the end of the line, and a form's other spellings.
const EXTRA_TOKENS: usize = 4;

/// Tokens of a greedy answer of which a part may be right.
const EXTRA_TOKENS_CONTAINS: usize = 32;

/// How well a model knows a fact (Gekhman et al. 2024; section 2.1 of the paper).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Label {
    /// Greedy right under every few-shot prompt.
    HighlyKnown,
    /// Greedy right under some.
    MaybeKnown,
    /// Greedy never right, a sample sometimes.
    WeaklyKnown,
    /// Never right.
    Unknown,
}

impl Label {
    /// All four, best known first.
    pub const ALL: [Self; 4] = [
        Self::HighlyKnown,
        Self::MaybeKnown,
        Self::WeaklyKnown,
        Self::Unknown,
    ];

    /// The name that the paper gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::HighlyKnown => "HighlyKnown",
            Self::MaybeKnown => "MaybeKnown",
            Self::WeaklyKnown => "WeaklyKnown",
            Self::Unknown => "Unknown",
        }
    }

    /// The label of a fact whose greedy answers were right as `greedy_right` says, a sample being right `sometimes`.
    pub fn new(greedy_correct: &[bool], sample_correct: bool) -> Self {
        if greedy_correct.iter().all(|right| *right) {
            Self::HighlyKnown
        } else if greedy_correct.contains(&true) {
            Self::MaybeKnown
        } else if sample_correct {
            Self::WeaklyKnown
        } else {
            Self::Unknown
        }
    }
}

/// How an audit asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditSettings {
    /// Few-shot prompts of each relation.
    pub num_prompts: usize,
    /// Exemplars in each.
    pub shots: usize,
    /// Samples under each prompt, drawn or reckoned with.
    pub samples: usize,
    /// Temperature of the samples.
    pub temperature: f32,
    /// Tokens that a sample chooses from; 0 is the whole vocabulary.
    pub top_k: usize,
    /// Draw the samples, as the paper did, instead of computing the probability that one is right.
    pub sample: bool,
    /// Write wrong greedy answers out to the end of their line, instead of stopping once they are surely wrong.
    pub full_answers: bool,
    /// Seed of the exemplars and of the samples.
    pub seed: u64,
    /// How a question is put.
    pub template: PromptTemplate,
    /// When an answer is right.
    pub match_rule: MatchRule,
}

impl Default for AuditSettings {
    fn default() -> Self {
        Self {
            num_prompts: 20,
            shots: 3,
            samples: 16,
            temperature: 0.5,
            top_k: 40,
            sample: false,
            full_answers: false,
            seed: 0,
            template: PromptTemplate::default(),
            match_rule: MatchRule::Exact,
        }
    }
}

impl AuditSettings {
    /// Checks that the settings ask something.
    ///
    /// # Errors
    /// [`Error::Input`] naming the setting that does not.
    pub fn validate(&self) -> Result<()> {
        if self.num_prompts == 0 || self.samples == 0 {
            return Err(Error::input_hint(
                "an audit needs at least one prompt and one sample",
                "set `runs` and `samples` to 1 or more; the paper has 20 and 16",
            ));
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return Err(Error::input_hint(
                format!(
                    "samples cannot be drawn at a temperature of {}",
                    self.temperature
                ),
                "set a temperature above 0, such as 0.5",
            ));
        }
        self.template.validate()
    }
}

/// What an audit found out about one fact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditedFact {
    /// Relation.
    pub relation: String,
    /// Subject.
    pub subject: String,
    /// Question.
    pub question: String,
    /// Right answer, as the file spells it.
    pub object: String,
    /// Its label.
    pub label: Label,
    /// Under each prompt: whether the greedy answer is right.
    pub greedy_correct: Vec<bool>,
    /// Probability that a sample is right, mean over the prompts: the share of right ones where samples were drawn, else
    /// a lower bound, the sum over the accepted forms.
    pub p_sampled: f64,
    /// The greedy answer under each prompt, up to its first line break.
    pub answers: Vec<String>,
}

/// What an audit found out.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditResult {
    /// What the user called the model.
    pub model: String,
    /// How it was asked.
    pub settings: AuditSettings,
    /// A row a fact, in the order of the facts.
    pub facts: Vec<AuditedFact>,
    /// The few-shot prompts, relation by relation.
    pub prompts: Vec<FewShotPrompt>,
    /// What the user should know about it.
    pub notes: Vec<String>,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Share of each label among some facts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct LabelFractions {
    /// Number of facts.
    #[serde(rename = "facts")]
    pub facts: usize,
    /// Share of `HighlyKnown`.
    pub highly_known: f64,
    /// Share of `MaybeKnown`.
    pub maybe_known: f64,
    /// Share of `WeaklyKnown`.
    pub weakly_known: f64,
    /// Share of Unknown.
    pub unknown: f64,
}

impl LabelFractions {
    fn new<'a>(facts: impl Iterator<Item = &'a AuditedFact>) -> Self {
        let labels: Vec<Label> = facts.map(|f| f.label).collect();
        let fraction = |label| {
            let n = labels.iter().filter(|l| **l == label).count();
            n as f64 / labels.len().max(1) as f64
        };
        Self {
            facts: labels.len(),
            highly_known: fraction(Label::HighlyKnown),
            maybe_known: fraction(Label::MaybeKnown),
            weakly_known: fraction(Label::WeaklyKnown),
            unknown: fraction(Label::Unknown),
        }
    }
}

impl AuditResult {
    /// Shares of the labels in each relation.
    pub fn by_relation(&self) -> BTreeMap<&str, LabelFractions> {
        let mut relations: BTreeMap<&str, Vec<&AuditedFact>> = BTreeMap::new();
        for fact in &self.facts {
            relations.entry(&fact.relation).or_default().push(fact);
        }
        relations
            .into_iter()
            .map(|(relation, facts)| (relation, LabelFractions::new(facts.into_iter())))
            .collect()
    }

    /// Shares of the labels in all.
    pub fn overall(&self) -> LabelFractions {
        LabelFractions::new(self.facts.iter())
    }

    /// The audited facts by relation and question.
    pub fn by_question(&self) -> HashMap<(&str, &str), &AuditedFact> {
        self.facts
            .iter()
            .map(|f| ((&f.relation[..], &f.question[..]), f))
            .collect()
    }
}

/// Audits `facts`, or takes the audit from the cache if the same was asked before.
///
/// The few-shot prompts of a relation are drawn from the `exemplars` of that relation where there are any, else from the
/// facts themselves. The question itself is never an exemplar: see [`FewShotPrompt::prefix_for`]. More than 20,000 facts are
/// sampled, which a note tells.
///
/// Without `sampled` no sample is drawn: a fact whose greedy answer is never right is `WeaklyKnown` where a right one among
/// all samples is likelier than not, `1 - prod over runs (1 - p)^samples >= 0.5`, p being the probability that the
/// line sampled is an accepted form in the tokenizer's own tokens: a lower bound, since there are other spellings and other
/// ways to cut them into tokens.
///
/// # Errors
/// [`crate::Error::Input`] when a question is longer than the model's context.
pub fn audit(
    model: &Model,
    engine: &mut Engine,
    facts: &[Fact],
    exemplars: Option<&[Fact]>,
    settings: &AuditSettings,
    progress: &Progress,
) -> Result<AuditResult> {
    settings.validate()?;
    let cache_path = cache::path(&cache::key(model, facts, exemplars, settings));
    let cached = cache_path
        .as_ref()
        .ok()
        .and_then(|path| AuditResult::read(path).ok());
    // One process alone that had to ask would wait for the others.
    let all_cached = !distributed::any(cached.is_none());
    if let (Ok(place), Some(audit), true) = (&cache_path, cached, all_cached) {
        progress.note(format!(
            "the same audit was made before and is taken from {}",
            place.display()
        ));
        return Ok(audit);
    }
    let audit = audit_uncached(model, engine, facts, exemplars, settings, progress)?;
    if let Err(reason) = cache_path.and_then(|place| audit.write(&place)) {
        progress.note(format!(
            "the audit could not be kept for the next time: {reason}"
        ));
    }
    Ok(audit)
}

/// Audits `facts`, cache or not.
///
/// ```
/// use unforget::{
///     audit::{self, AuditSettings},
///     engine::Engine,
///     facts::{self, ReadOptions},
///     model::Model,
///     progress::Progress,
/// };
///
/// let model = Model::load("tests/golden/llama")?;
/// let mut engine = Engine::new(&model.config);
/// let mut facts = facts::read(&["pack:world".into()], ReadOptions::default())?.facts;
/// facts.retain(|fact| fact.relation == "P17");
/// facts.truncate(20);
/// let settings = AuditSettings { runs: 2, ..AuditSettings::default() };
/// let audit = audit::ask(&model, &mut engine, &facts, None, &settings, &Progress::quiet())?;
/// assert_eq!(audit.facts.len(), 20);
/// assert_eq!(audit.by_relation().len(), 1);
/// # Ok::<(), unforget::Error>(())
/// ```
///
/// # Errors
/// As [`audit`].
pub fn audit_uncached(
    model: &Model,
    engine: &mut Engine,
    facts: &[Fact],
    exemplars: Option<&[Fact]>,
    settings: &AuditSettings,
    progress: &Progress,
) -> Result<AuditResult> {
    settings.validate()?;
    let started = std::time::Instant::now();
    let mut notes = Vec::new();
    let facts: Vec<&Fact> = if facts.len() > MAX_FACTS {
        notes.push(format!(
            "{MAX_FACTS} of {} facts are audited: a sample with seed {}",
            facts.len(),
            settings.seed
        ));
        let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
        let mut chosen = index::sample(&mut rng, facts.len(), MAX_FACTS).into_vec();
        chosen.sort_unstable();
        chosen.into_iter().map(|i| &facts[i]).collect()
    } else {
        facts.iter().collect()
    };

    let prompts = draw_prompts(&facts, exemplars, settings, &mut notes);
    for note in &notes {
        progress.note(note);
    }
    let plan = AuditPlan::new(model, &facts, &prompts, settings)?;
    let bar = progress.bar(plan.questions.queries.len() as u64, "audit");
    let on_progress = |n: usize| bar.inc(n as u64);
    let answers = plan.answers(model, engine, settings, &on_progress)?;
    drop(bar);

    let mut by_fact: Vec<Vec<AuditAnswer>> = vec![Vec::new(); facts.len()];
    for (asked, answer) in plan.questions.queries.iter().zip(answers) {
        by_fact[asked.fact].push(answer);
    }
    Ok(AuditResult {
        model: model.name.clone(),
        settings: settings.clone(),
        facts: facts
            .iter()
            .zip(by_fact)
            .map(|(fact, answers)| label_fact(fact, answers, settings))
            .collect(),
        prompts,
        notes,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The label that follows from the answers under every prompt.
fn label_fact(fact: &Fact, answers: Vec<AuditAnswer>, settings: &AuditSettings) -> AuditedFact {
    let greedy_correct: Vec<bool> = answers.iter().map(|a| a.greedy_correct).collect();
    let sample_correct = if settings.sample {
        answers.iter().any(|a| a.p_sampled > 0.0)
    } else {
        let samples = settings.samples as i32;
        let p_none_correct: f64 = answers
            .iter()
            .map(|a| (1.0 - a.p_sampled).max(0.0).powi(samples))
            .product();
        1.0 - p_none_correct >= 0.5
    };
    AuditedFact {
        relation: fact.relation.clone(),
        subject: fact.subject.clone(),
        question: fact.question.clone(),
        object: fact.object.clone(),
        label: Label::new(&greedy_correct, sample_correct),
        greedy_correct,
        p_sampled: answers.iter().map(|a| a.p_sampled).sum::<f64>() / answers.len().max(1) as f64,
        answers: answers.into_iter().map(|a| a.greedy).collect(),
    }
}

/// The few-shot prompts of every relation, in the order in which the relations come.
fn draw_prompts(
    facts: &[&Fact],
    exemplars: Option<&[Fact]>,
    settings: &AuditSettings,
    notes: &mut Vec<String>,
) -> Vec<FewShotPrompt> {
    let mut prompts = Vec::new();
    for (relation, members) in few_shot::by_relation(facts) {
        let relation_exemplars: Vec<&Fact> = exemplars
            .into_iter()
            .flatten()
            .filter(|f| f.relation == relation)
            .collect();
        let pool = if relation_exemplars.is_empty() {
            &members
        } else {
            &relation_exemplars
        };
        if exemplars.is_some() && relation_exemplars.is_empty() {
            notes.push(format!("the exemplars have no {relation}: its few-shot prompts are drawn from the facts themselves"));
        }
        let questions: Vec<&str> = members.iter().map(|f| &f.question[..]).collect();
        let counts = (settings.num_prompts, settings.shots);
        let (drawn, note) = few_shot::draw(
            relation,
            &questions,
            pool,
            counts,
            settings.seed,
            &settings.template,
        );
        prompts.extend(drawn);
        notes.extend(note);
    }
    prompts
}

/// Everything that is asked, and what is right.
struct AuditPlan {
    questions: TokenizedQueries,
    scorers: Vec<AnswerScorer>,
    tries: Vec<AnswerTrie>,
    /// Which of the forms are a fact's.
    trie_of_fact: Vec<usize>,
    stop_tokens: StopTokens,
}

impl AuditPlan {
    fn new(
        model: &Model,
        facts: &[&Fact],
        prompts: &[FewShotPrompt],
        settings: &AuditSettings,
    ) -> Result<Self> {
        let tokenizer = &model.tokenizer;
        let stop_tokens = StopTokens::new(tokenizer, model.config.vocab_size);
        let (mut tries, mut trie_of_fact) = (Vec::new(), Vec::with_capacity(facts.len()));
        let mut trie_by_answers: HashMap<Vec<String>, usize> = HashMap::new();
        for fact in facts {
            let accepted = fact.accepted_answers();
            trie_of_fact.push(if let Some(index) = trie_by_answers.get(&accepted) {
                *index
            } else {
                tries.push(AnswerTrie::new(
                    &accepted,
                    &settings.template,
                    tokenizer,
                    &stop_tokens,
                )?);
                trie_by_answers.insert(accepted, tries.len() - 1);
                tries.len() - 1
            });
        }
        Ok(Self {
            questions: TokenizedQueries::new(tokenizer, facts, prompts, &settings.template)?,
            scorers: facts
                .iter()
                .map(|f| f.scorer(settings.match_rule))
                .collect(),
            tries,
            trie_of_fact,
            stop_tokens,
        })
    }

    /// The answer to every pair.
    fn answers(
        &self,
        model: &Model,
        engine: &mut Engine,
        settings: &AuditSettings,
        on_progress: &(dyn Fn(usize) + Sync),
    ) -> Result<Vec<AuditAnswer>> {
        let longest = self.tries.iter().map(AnswerTrie::depth).max().unwrap_or(0);
        let max_new_tokens = match settings.match_rule {
            MatchRule::Exact => longest + EXTRA_TOKENS,
            MatchRule::Contains => longest + EXTRA_TOKENS_CONTAINS,
        };
        let mut runner = QueryRunner {
            generator: Generator::new(engine, model),
            stop_tokens: &self.stop_tokens,
            settings,
            max_new_tokens,
        };
        self.questions.check(&runner.generator, max_new_tokens)?;
        let all = &self.questions.queries;
        let queries: Vec<Query<'_>> = all[distributed::shard_range(all.len())]
            .iter()
            .map(|pair| Query {
                prefix: pair.prefix,
                question: &self.questions.suffixes[pair.fact],
                trie: &self.tries[self.trie_of_fact[pair.fact]],
                scorer: &self.scorers[pair.fact],
            })
            .collect();
        let prefixes = &self.questions.prefixes;
        let local_answers = if settings.sample {
            runner.answer_by_sampling(prefixes, &queries, on_progress)?
        } else {
            runner.answer_analytically(prefixes, &queries, on_progress)
        };
        Ok(distributed::all_gather(local_answers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_from_greedy_answers_and_samples() {
        use Label::{HighlyKnown, MaybeKnown, Unknown, WeaklyKnown};
        assert_eq!(Label::new(&[true, true], false), HighlyKnown);
        assert_eq!(Label::new(&[true, false], false), MaybeKnown);
        assert_eq!(Label::new(&[false, false], true), WeaklyKnown);
        assert_eq!(Label::new(&[false, false], false), Unknown);
        assert_eq!(
            Label::ALL.map(Label::name),
            ["HighlyKnown", "MaybeKnown", "WeaklyKnown", "Unknown"]
        );
    }

    #[test]
    fn a_fact_is_weakly_known_where_a_right_sample_is_likelier_than_not() {
        let fact = Fact::for_test("Rome", "Italy");
        let settings = AuditSettings {
            samples: 2,
            ..AuditSettings::default()
        };
        let label = |p: [f64; 2]| {
            let answers = p.map(|p_sampled| AuditAnswer {
                p_sampled,
                ..AuditAnswer::default()
            });
            label_fact(&fact, answers.into(), &settings).label
        };
        // 1 - (0.8 x 0.9)^2 = 0.48 and 1 - (0.8 x 0.8)^2 = 0.59.
        assert_eq!(label([0.2, 0.1]), Label::Unknown);
        assert_eq!(label([0.2, 0.2]), Label::WeaklyKnown);
    }
}
