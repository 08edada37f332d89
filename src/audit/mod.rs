//! `SLiCK`: what does the model know?
//!
//! Each fact is asked under several random few-shot prompts of its relation (Gekhman et al. 2024; section 2.1 of the
//! paper): the greedy answer, and samples at a temperature above 0. [`Label`] says what follows from them.

use std::collections::{BTreeMap, HashMap};

use rand::{SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Result,
    engine::Engine,
    facts::{Fact, Judge, Match},
    generate::Generator,
    model::Model,
    progress::Progress,
    prompt::PromptTemplate,
    ranks,
};

mod cache;
mod exact;
mod files;
mod forms;
pub(crate) mod prompts;
pub(crate) mod questions;
mod sampled;

pub use exact::Answer;
pub use prompts::FewShot;

use exact::{Asked, Examiner};
use forms::{Forms, LineEnds};
use questions::Questions;

/// More facts than these are sampled.
const MOST_FACTS: usize = 20_000;

/// Tokens of a greedy answer beyond the longest accepted form: the end of the line, and a form's other spellings.
const SLACK_TOKENS: usize = 4;

/// Tokens of a greedy answer of which a part may be right.
const VERBOSE_TOKENS: usize = 32;

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
    pub fn new(greedy_right: &[bool], sometimes: bool) -> Self {
        if greedy_right.iter().all(|right| *right) {
            Self::HighlyKnown
        } else if greedy_right.contains(&true) {
            Self::MaybeKnown
        } else if sometimes {
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
    pub runs: usize,
    /// Exemplars in each.
    pub shots: usize,
    /// Samples under each prompt, drawn or reckoned with.
    pub samples: usize,
    /// Temperature of the samples.
    pub temperature: f32,
    /// Tokens that a sample chooses from; 0 is the whole vocabulary.
    pub top_k: usize,
    /// Draw the samples, as the paper did, instead of computing the probability that one is right.
    pub sampled: bool,
    /// Write wrong greedy answers out to the end of their line, instead of stopping once they are surely wrong.
    pub whole_answers: bool,
    /// Seed of the exemplars and of the samples.
    pub seed: u64,
    /// How a question is put.
    pub template: PromptTemplate,
    /// When an answer is right.
    pub rule: Match,
}

impl Default for AuditSettings {
    fn default() -> Self {
        Self {
            runs: 20,
            shots: 3,
            samples: 16,
            temperature: 0.5,
            top_k: 40,
            sampled: false,
            whole_answers: false,
            seed: 0,
            template: PromptTemplate::default(),
            rule: Match::Exact,
        }
    }
}

impl AuditSettings {
    /// Checks that the settings ask something.
    ///
    /// # Errors
    /// [`Error::Input`] naming the setting that does not.
    pub fn validate(&self) -> Result<()> {
        if self.runs == 0 || self.samples == 0 {
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
pub struct Audited {
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
    pub greedy_right: Vec<bool>,
    /// Probability that a sample is right, mean over the prompts: the share of right ones where samples were drawn, else
    /// a lower bound, the sum over the accepted forms.
    pub p_sampled: f64,
    /// The greedy answer under each prompt, up to its first line break.
    pub answers: Vec<String>,
}

/// What an audit found out.
#[derive(Clone, Debug, PartialEq)]
pub struct Audit {
    /// What the user called the model.
    pub model: String,
    /// How it was asked.
    pub settings: AuditSettings,
    /// A row a fact, in the order of the facts.
    pub facts: Vec<Audited>,
    /// The few-shot prompts, relation by relation.
    pub prompts: Vec<FewShot>,
    /// What the user should know about it.
    pub notes: Vec<String>,
    /// Seconds that it took.
    pub seconds: f64,
}

/// Share of each label among some facts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Shares {
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

impl Shares {
    fn of<'a>(facts: impl Iterator<Item = &'a Audited>) -> Self {
        let labels: Vec<Label> = facts.map(|f| f.label).collect();
        let share = |label| {
            let n = labels.iter().filter(|l| **l == label).count();
            n as f64 / labels.len().max(1) as f64
        };
        Self {
            facts: labels.len(),
            highly_known: share(Label::HighlyKnown),
            maybe_known: share(Label::MaybeKnown),
            weakly_known: share(Label::WeaklyKnown),
            unknown: share(Label::Unknown),
        }
    }
}

impl Audit {
    /// Shares of the labels in each relation.
    pub fn by_relation(&self) -> BTreeMap<&str, Shares> {
        let mut relations: BTreeMap<&str, Vec<&Audited>> = BTreeMap::new();
        for fact in &self.facts {
            relations.entry(&fact.relation).or_default().push(fact);
        }
        relations
            .into_iter()
            .map(|(relation, facts)| (relation, Shares::of(facts.into_iter())))
            .collect()
    }

    /// Shares of the labels in all.
    pub fn overall(&self) -> Shares {
        Shares::of(self.facts.iter())
    }

    /// The audited facts by relation and question.
    pub fn by_question(&self) -> HashMap<(&str, &str), &Audited> {
        self.facts
            .iter()
            .map(|f| ((&f.relation[..], &f.question[..]), f))
            .collect()
    }
}

/// Audits `facts`, or takes the audit from the cache if the same was asked before.
///
/// The few-shot prompts of a relation are drawn from the `exemplars` of that relation where there are any, else from the
/// facts themselves. The question itself is never an exemplar: see [`FewShot::before`]. More than 20,000 facts are
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
) -> Result<Audit> {
    settings.validate()?;
    let place = cache::place(&cache::key(model, facts, exemplars, settings));
    let kept = place
        .as_ref()
        .ok()
        .and_then(|place| Audit::read(place).ok());
    // One process alone that had to ask would wait for the others.
    let all_have = !ranks::any(kept.is_none());
    if let (Ok(place), Some(audit), true) = (&place, kept, all_have) {
        progress.note(format!(
            "the same audit was made before and is taken from {}",
            place.display()
        ));
        return Ok(audit);
    }
    let audit = ask(model, engine, facts, exemplars, settings, progress)?;
    if let Err(reason) = place.and_then(|place| audit.write(&place)) {
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
pub fn ask(
    model: &Model,
    engine: &mut Engine,
    facts: &[Fact],
    exemplars: Option<&[Fact]>,
    settings: &AuditSettings,
    progress: &Progress,
) -> Result<Audit> {
    settings.validate()?;
    let started = std::time::Instant::now();
    let mut notes = Vec::new();
    let facts: Vec<&Fact> = if facts.len() > MOST_FACTS {
        notes.push(format!(
            "{MOST_FACTS} of {} facts are audited: a sample with seed {}",
            facts.len(),
            settings.seed
        ));
        let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
        let mut chosen = index::sample(&mut rng, facts.len(), MOST_FACTS).into_vec();
        chosen.sort_unstable();
        chosen.into_iter().map(|i| &facts[i]).collect()
    } else {
        facts.iter().collect()
    };

    let prompts = draw_prompts(&facts, exemplars, settings, &mut notes);
    for note in &notes {
        progress.note(note);
    }
    let plan = Plan::new(model, &facts, &prompts, settings)?;
    let bar = progress.bar(plan.questions.asked.len() as u64, "audit");
    let finished = |n: usize| bar.inc(n as u64);
    let answers = plan.ask(model, engine, settings, &finished)?;
    drop(bar);

    let mut by_fact: Vec<Vec<Answer>> = vec![Vec::new(); facts.len()];
    for (asked, answer) in plan.questions.asked.iter().zip(answers) {
        by_fact[asked.fact].push(answer);
    }
    Ok(Audit {
        model: model.name.clone(),
        settings: settings.clone(),
        facts: facts
            .iter()
            .zip(by_fact)
            .map(|(fact, answers)| conclude(fact, answers, settings))
            .collect(),
        prompts,
        notes,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The label that follows from the answers under every prompt.
fn conclude(fact: &Fact, answers: Vec<Answer>, settings: &AuditSettings) -> Audited {
    let greedy_right: Vec<bool> = answers.iter().map(|a| a.greedy_right).collect();
    let sometimes = if settings.sampled {
        answers.iter().any(|a| a.p_sampled > 0.0)
    } else {
        let samples = settings.samples as i32;
        let p_never: f64 = answers
            .iter()
            .map(|a| (1.0 - a.p_sampled).max(0.0).powi(samples))
            .product();
        1.0 - p_never >= 0.5
    };
    Audited {
        relation: fact.relation.clone(),
        subject: fact.subject.clone(),
        question: fact.question.clone(),
        object: fact.object.clone(),
        label: Label::new(&greedy_right, sometimes),
        greedy_right,
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
) -> Vec<FewShot> {
    let mut prompts = Vec::new();
    for (relation, members) in prompts::by_relation(facts) {
        let apart: Vec<&Fact> = exemplars
            .into_iter()
            .flatten()
            .filter(|f| f.relation == relation)
            .collect();
        let pool = if apart.is_empty() { &members } else { &apart };
        if exemplars.is_some() && apart.is_empty() {
            notes.push(format!("the exemplars have no {relation}: its few-shot prompts are drawn from the facts themselves"));
        }
        let questions: Vec<&str> = members.iter().map(|f| &f.question[..]).collect();
        let counts = (settings.runs, settings.shots);
        let (drawn, note) = prompts::draw(
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
struct Plan {
    questions: Questions,
    judges: Vec<Judge>,
    forms: Vec<Forms>,
    /// Which of the forms are a fact's.
    forms_of: Vec<usize>,
    ends: LineEnds,
}

impl Plan {
    fn new(
        model: &Model,
        facts: &[&Fact],
        prompts: &[FewShot],
        settings: &AuditSettings,
    ) -> Result<Self> {
        let tokenizer = &model.tokenizer;
        let ends = LineEnds::new(tokenizer, model.config.vocab_size);
        let (mut forms, mut forms_of) = (Vec::new(), Vec::with_capacity(facts.len()));
        let mut known_forms: HashMap<Vec<String>, usize> = HashMap::new();
        for fact in facts {
            let accepted = fact.accepted();
            forms_of.push(if let Some(index) = known_forms.get(&accepted) {
                *index
            } else {
                forms.push(Forms::new(&accepted, &settings.template, tokenizer, &ends)?);
                known_forms.insert(accepted, forms.len() - 1);
                forms.len() - 1
            });
        }
        Ok(Self {
            questions: Questions::new(tokenizer, facts, prompts, &settings.template)?,
            judges: facts.iter().map(|f| f.judge(settings.rule)).collect(),
            forms,
            forms_of,
            ends,
        })
    }

    /// The answer to every pair.
    fn ask(
        &self,
        model: &Model,
        engine: &mut Engine,
        settings: &AuditSettings,
        finished: &(dyn Fn(usize) + Sync),
    ) -> Result<Vec<Answer>> {
        let longest = self.forms.iter().map(Forms::depth).max().unwrap_or(0);
        let max_new_tokens = match settings.rule {
            Match::Exact => longest + SLACK_TOKENS,
            Match::Contains => longest + VERBOSE_TOKENS,
        };
        let mut examiner = Examiner {
            generator: Generator::new(engine, model),
            ends: &self.ends,
            settings,
            max_new_tokens,
        };
        self.questions.check(&examiner.generator, max_new_tokens)?;
        let all = &self.questions.asked;
        let asked: Vec<Asked<'_>> = all[ranks::share(all.len())]
            .iter()
            .map(|pair| Asked {
                prefix: pair.prefix,
                question: &self.questions.rests[pair.fact],
                forms: &self.forms[self.forms_of[pair.fact]],
                judge: &self.judges[pair.fact],
            })
            .collect();
        let prefixes = &self.questions.prefixes;
        let own = if settings.sampled {
            examiner.ask_by_sampling(prefixes, &asked, finished)?
        } else {
            examiner.ask(prefixes, &asked, finished)
        };
        Ok(ranks::join(own))
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
        let fact = Fact::in_test("Rome", "Italy");
        let settings = AuditSettings {
            samples: 2,
            ..AuditSettings::default()
        };
        let label = |p: [f64; 2]| {
            let answers = p.map(|p_sampled| Answer {
                p_sampled,
                ..Answer::default()
            });
            conclude(&fact, answers.into(), &settings).label
        };
        // 1 - (0.8 x 0.9)^2 = 0.48 and 1 - (0.8 x 0.8)^2 = 0.59.
        assert_eq!(label([0.2, 0.1]), Label::Unknown);
        assert_eq!(label([0.2, 0.2]), Label::WeaklyKnown);
    }
}
