//! `SLiCK`: how well a model knows each fact (Gekhman et al. 2024; section 2.1 of the paper).
//!
//! Each fact is asked under several random few-shot prompts of its relation. `few_shot` draws the prompts, `queries` tokenizes them,
//! `answer_trie` holds the accepted answers. The model then gives a greedy answer to every query, and the probability that a sample
//! is correct: `analytic` computes it, `sampled` estimates it from samples as the paper does. [`Label`] follows from both.

use std::collections::HashMap;

use rand::{SeedableRng, seq::index};
use rand_chacha::ChaCha8Rng;

use crate::{
    Result,
    engine::Engine,
    facts::{AnswerScorer, Fact, MatchRule},
    generate::Generator,
    model::Model,
    progress::{Progress, WorkKind},
};

mod analytic;
mod answer_trie;
mod cache;
pub(crate) mod few_shot;
mod few_shot_answers;
mod label;
pub(crate) mod queries;
mod result;
mod sampled;
mod settings;

pub use few_shot::FewShotPrompt;
pub use few_shot_answers::{COMPARED_PROMPTS, FewShotQuestions, prompts_for};
pub use label::{AuditAnswer, AuditedFact, Label, LabelFractions};
pub use result::{AuditResult, AuditSummary};
pub use settings::AuditSettings;

use answer_trie::{AnswerTrie, StopTokens};
use queries::{Query, QueryRunner, TokenizedQueries};

/// A larger set of facts is subsampled to this size.
const MAX_FACTS: usize = 20_000;

/// Floating-point operations per weight of one query, about: 15 tokens, since its few-shot prompt is read once for all. The unit of
/// work that [`Progress`] counts.
pub(crate) const FLOPS_PER_QUERY: f64 = 2.0 * 15.0;

/// Tokens of a greedy answer beyond the longest accepted one: the line break, and longer tokenizations.
const EXTRA_TOKENS: usize = 4;

/// The same for [`MatchRule::Contains`], under which the answer may be a sentence.
const EXTRA_TOKENS_CONTAINS: usize = 32;

/// Audits `facts`, or reads the audit from the cache if it was made before.
///
/// The few-shot prompts of a relation are drawn from its `exemplars`, or from the facts themselves if it has none. A question is
/// never its own exemplar: see [`FewShotPrompt::prefix_for`]. More than 20,000 facts are subsampled, with a note.
///
/// Unless [`AuditSettings::sample`] is set, no samples are drawn. The probability of a correct sample is that of an accepted answer
/// in the tokenizer's own tokens followed by the end of the line. This is a lower bound: answers have other spellings and other
/// tokenizations.
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
    let path = cache::path(&cache::key(model, facts, exemplars, settings));
    let cached = match &path {
        Ok(path) => AuditResult::read(path).ok(),
        Err(_) => None,
    };
    // All processes audit unless all have it: a single one would wait for the others.
    let comm = engine.comm();
    let all_cached = !comm.any(cached.is_none());
    if let (Ok(path), Some(audit), true) = (&path, cached, all_cached) {
        progress.note(format!(
            "the same audit was made before and is read from {}",
            path.display()
        ));
        let queries = facts.len() * settings.num_prompts;
        progress.skip(WorkKind::Audit, FLOPS_PER_QUERY * queries as f64);
        return Ok(audit);
    }
    let audit = audit_uncached(model, engine, facts, exemplars, settings, progress)?;
    if comm.is_main()
        && let Err(reason) = path.and_then(|path| audit.write(&path))
    {
        progress.note(format!("the audit could not be cached: {reason}"));
    }
    Ok(audit)
}

/// Audits `facts` without the cache.
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
/// let settings = AuditSettings { num_prompts: 2, ..AuditSettings::default() };
/// let progress = Progress::quiet();
/// let audit = audit::audit_uncached(&model, &mut engine, &facts, None, &settings, &progress)?;
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
    let facts = subsample(facts, settings.seed, &mut notes);
    let prompts = few_shot::draw_all(&facts, exemplars, settings, &mut notes);
    for note in &notes {
        progress.note(note);
    }
    let queries = TokenizedQueries::new(&model.tokenizer, &facts, &prompts, &settings.template)?;
    let accepted = AcceptedAnswers::new(model, &facts, settings)?;
    let generator = Generator::new(engine, model);
    let answers = answer(generator, &queries, &accepted, settings, progress)?;

    let mut by_fact: Vec<Vec<AuditAnswer>> = vec![Vec::new(); facts.len()];
    for (query, answer) in queries.queries.iter().zip(answers) {
        by_fact[query.fact].push(answer);
    }
    Ok(AuditResult {
        model: model.name.clone(),
        settings: settings.clone(),
        facts: facts
            .iter()
            .zip(by_fact)
            .map(|(fact, answers)| label::label_fact(fact, answers, settings))
            .collect(),
        prompts,
        notes,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// At most [`MAX_FACTS`] of `facts`, in their order.
fn subsample<'f>(facts: &'f [Fact], seed: u64, notes: &mut Vec<String>) -> Vec<&'f Fact> {
    if facts.len() <= MAX_FACTS {
        return facts.iter().collect();
    }
    notes.push(format!(
        "{MAX_FACTS} of {} facts are audited: a sample with seed {seed}",
        facts.len()
    ));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut chosen = index::sample(&mut rng, facts.len(), MAX_FACTS).into_vec();
    chosen.sort_unstable();
    chosen.into_iter().map(|i| &facts[i]).collect()
}

/// The accepted answers of every fact, as text and as tokens.
struct AcceptedAnswers {
    scorers: Vec<AnswerScorer>,
    tries: Vec<AnswerTrie>,
    /// The trie of each fact; facts with the same answers share one.
    trie_of_fact: Vec<usize>,
    stop_tokens: StopTokens,
}

impl AcceptedAnswers {
    fn new(model: &Model, facts: &[&Fact], settings: &AuditSettings) -> Result<Self> {
        let tokenizer = &model.tokenizer;
        let stop_tokens = StopTokens::new(tokenizer, model.config.vocab_size);
        let (mut tries, mut trie_of_fact) = (Vec::new(), Vec::with_capacity(facts.len()));
        let mut trie_by_answers: HashMap<Vec<String>, usize> = HashMap::new();
        for fact in facts {
            let accepted = fact.accepted_answers();
            let known = trie_by_answers.get(&accepted).copied();
            let index = known.unwrap_or(tries.len());
            if known.is_none() {
                let template = &settings.template;
                tries.push(AnswerTrie::new(
                    &accepted,
                    template,
                    tokenizer,
                    &stop_tokens,
                )?);
                trie_by_answers.insert(accepted, index);
            }
            trie_of_fact.push(index);
        }
        let scorers = facts.iter().map(|f| f.scorer(settings.match_rule));
        Ok(Self {
            scorers: scorers.collect(),
            tries,
            trie_of_fact,
            stop_tokens,
        })
    }
}

/// The answer to every query.
fn answer(
    generator: Generator<'_>,
    tokenized: &TokenizedQueries,
    accepted: &AcceptedAnswers,
    settings: &AuditSettings,
    progress: &Progress,
) -> Result<Vec<AuditAnswer>> {
    let longest = accepted.tries.iter().map(AnswerTrie::depth).max();
    let max_new_tokens = longest.unwrap_or(0)
        + match settings.match_rule {
            MatchRule::Exact => EXTRA_TOKENS,
            MatchRule::Contains => EXTRA_TOKENS_CONTAINS,
        };
    tokenized.check(&generator, max_new_tokens)?;
    let mut runner = QueryRunner {
        generator,
        stop_tokens: &accepted.stop_tokens,
        settings,
        max_new_tokens,
    };
    let all = &tokenized.queries;
    let comm = runner.generator.comm();
    let own = &all[comm.shard_range(all.len())];
    let queries: Vec<Query<'_>> = own
        .iter()
        .map(|query| Query {
            prefix: query.prefix,
            question: &tokenized.suffixes[query.fact],
            trie: &accepted.tries[accepted.trie_of_fact[query.fact]],
            scorer: &accepted.scorers[query.fact],
        })
        .collect();
    let work = FLOPS_PER_QUERY * all.len() as f64;
    let bar = progress
        .bar(all.len() as u64, "audit")
        .with_work(WorkKind::Audit, work);
    let on_progress = |n: usize| bar.inc(n as u64);
    let answers = if settings.sample {
        runner.answer_by_sampling(&tokenized.prefixes, &queries, &on_progress)?
    } else {
        runner.answer_analytically(&tokenized.prefixes, &queries, &on_progress)?
    };
    Ok(comm.all_gather(answers))
}
