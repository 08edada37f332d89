//! `unforget compare`.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use clap::Args;
use console::measure_text_width;
use unforget::{
    Error, Result,
    audit::{self, FewShotPrompt, FewShotQuestions},
    config::DataConfig,
    facts::{Fact, MatchRule, normalise},
    generate::Generator,
    measure::{ComparedFact, Comparison, EvalAnswer},
    model,
    prompt::PromptTemplate,
    run::{Counts, FactOutcome, RunDir, Split},
};

use super::{
    context::{Context, finished_run, load_model, model_spec},
    fact_args::FactArgs,
    output,
    samples::{self, SamplesComparison, is_samples_file},
};

/// Facts listed in each group.
const MAX_LISTED: usize = 10;

/// Columns of a table without a terminal.
const DEFAULT_WIDTH: usize = 80;

/// Columns of a bar; with fewer there is none.
const BAR_WIDTHS: RangeInclusive<usize> = 5..=30;

/// Compare before and after, fact by fact: what was learned, kept and forgotten
#[derive(Debug, Args)]
#[command(
    after_help = "With a run, reads its records; a fact counts as known before if the run's audit found it known. With two models, evaluates both under the \
    same few-shot prompts (those of the run's audit if one of them is a run), so that a different answer format does not \
    count as forgetting. A fact that only AFTER answers correctly counts as learned. With --json:\n  \
    {\"learned\", \"not_learned\", \"kept\", \"forgotten\", \"gained\", \"never_knew\", \"facts\": [{..., \"before\", \"after\", \"outcome\"}]}\n\n\
    With two files that `lm_eval --log_samples` wrote, compares the scores document by document: the difference with its paired \
    standard error and interval, and for scores of 0 and 1 the counts and McNemar's test.\n\n\
    Examples:\n  unforget compare runs/p17\n  \
    unforget compare smollm2-135m runs/p17 --facts held.tsv\n  \
    unforget compare base/samples_arc_easy_DATE.jsonl \\\n      tuned/samples_arc_easy_DATE.jsonl --metric acc"
)]
pub struct CompareArgs {
    /// A finished run, or the model before training or its file of samples
    #[arg(value_name = "RUN|BEFORE")]
    before: String,
    /// The model after training or its file of samples
    after: Option<String>,
    /// Facts to evaluate both models on
    #[arg(long, value_name = "FACTS", num_args = 1.., requires = "after")]
    facts: Vec<PathBuf>,
    /// The metric of two files of samples, such as acc, if they have several
    #[arg(long, value_name = "NAME", requires = "after")]
    metric: Option<String>,
    /// The filter of two files of samples, such as strict-match, if they have several
    #[arg(long, value_name = "NAME", requires = "after")]
    filter: Option<String>,
    #[command(flatten)]
    fact_args: FactArgs,
}

impl CompareArgs {
    pub fn run(self, context: &Context) -> Result<()> {
        if let Some(comparison) = self.compare_samples()? {
            return if context.json {
                output::json(&comparison)
            } else {
                output::line(&output::sanitize(&comparison.text()))
            };
        }
        let comparison = match &self.after {
            Some(after) => self.compare_models(after, context)?,
            None => compare_run(Path::new(&self.before))?,
        };
        if context.json {
            output::json(&comparison)
        } else {
            let width = output::terminal_width().unwrap_or(DEFAULT_WIDTH);
            let prompts = match self.after {
                None => Some(prompts_of_run(Path::new(&self.before))?),
                Some(_) => None,
            };
            output::line(&format_comparison(&comparison, prompts, width))
        }
    }

    /// Compares two files of samples; `None` if models or runs are named.
    fn compare_samples(&self) -> Result<Option<SamplesComparison>> {
        let after = self.after.as_deref();
        let are_files =
            [Some(&self.before[..]), after].map(|spec| spec.is_some_and(is_samples_file));
        match (after, are_files) {
            (Some(after), [true, true]) if self.facts.is_empty() => {
                let choice = samples::Choice {
                    metric: self.metric.as_deref(),
                    filter: self.filter.as_deref(),
                };
                samples::compare([&self.before, after], choice).map(Some)
            }
            (_, [true, true]) => Err(Error::input_hint(
                "`--facts` is for two models, and two files of samples are given",
                "leave out `--facts`",
            )),
            (_, [false, false]) if self.metric.is_some() || self.filter.is_some() => {
                Err(Error::input_hint(
                    "`--metric` and `--filter` are for two files of samples (`lm_eval --log_samples`)",
                    "name two files that end in .jsonl",
                ))
            }
            (Some(_), [false, false]) if self.facts.is_empty() => Err(Error::input_hint(
                "to compare two models, `--facts` is needed: the facts that both are asked",
                "add `--facts FACTS`, such as `--facts held.tsv`; `unforget report RUN RUN` has two runs side by side",
            )),
            (_, [false, false]) => Ok(None),
            (_, [first, _]) => {
                let other = if first { after } else { Some(&self.before[..]) };
                Err(Error::input_hint(
                    match other {
                        Some(other) => {
                            format!("one of the two is a file of samples, and `{other}` is not")
                        }
                        None => format!(
                            "`{}` is a file of samples, and there is no other",
                            self.before
                        ),
                    },
                    "name the files that `lm_eval --log_samples` wrote of both models",
                ))
            }
        }
    }

    /// Asks both models every fact under the same few-shot prompts: those of the audit that a run keeps, or new ones.
    fn compare_models(&self, after: &str, context: &Context) -> Result<Comparison> {
        let facts = self.fact_args.facts(&self.facts, context)?;
        // A missing model is an error before the other is evaluated.
        model::pull(&model_spec(after)?)?;
        let run = [after, &self.before]
            .into_iter()
            .find_map(|spec| RunDir::open(Path::new(spec)).ok());
        let asked = match run {
            Some(run) => AskedAs::in_run(&run)?,
            None => AskedAs::default(),
        };
        let before = self.answers(&self.before, &facts, &asked, context)?;
        let after = self.answers(after, &facts, &asked, context)?;
        Ok(Comparison::between(&facts, before, after))
    }

    /// A model's answer to every fact under few-shot prompts.
    fn answers(
        &self,
        spec: &str,
        facts: &[Fact],
        asked: &AskedAs,
        context: &Context,
    ) -> Result<Vec<EvalAnswer>> {
        let model = load_model(spec)?;
        let template = match &asked.data {
            Some(data) => {
                PromptTemplate::from_config(data).for_model(data.chat, &model.tokenizer)?
            }
            None => self.fact_args.template(&model.tokenizer)?,
        };
        let of_run = asked.data.as_ref().map(|data| data.match_rule);
        let match_rule = match (of_run, self.fact_args.match_rule()) {
            (Some(MatchRule::Contains), _) | (_, MatchRule::Contains) => MatchRule::Contains,
            _ => MatchRule::Exact,
        };
        let facts: Vec<&Fact> = facts.iter().collect();
        let seed = context.seed.unwrap_or(0);
        let (prompts, notes) = audit::prompts_for(&facts, &asked.prompts, &template, seed);
        for note in notes {
            context.progress.note(note);
        }
        let questions = FewShotQuestions {
            prompts: &prompts,
            template: &template,
            match_rule,
        };
        let mut engine = context.engine(&model.config)?;
        let mut generator = Generator::new(&mut engine, &model);
        context.progress.note(format!("evaluating {spec}"));
        questions.answers(&facts, &mut generator, &context.progress)
    }
}

/// How the facts of a run were asked in its audit; empty between two other models.
#[derive(Default)]
struct AskedAs {
    /// The run's template and match rule.
    data: Option<DataConfig>,
    prompts: Vec<FewShotPrompt>,
}

impl AskedAs {
    fn in_run(run: &RunDir) -> Result<Self> {
        Ok(Self {
            data: Some(run.config()?.data),
            prompts: run.prompts()?,
        })
    }
}

/// The recorded outcomes of a finished run.
fn compare_run(dir: &Path) -> Result<Comparison> {
    let rows = finished_run(dir)?.facts()?.into_iter();
    Ok(Comparison::new(rows.map(ComparedFact::from)))
}

/// Which prompts the answers of a run belong to.
fn prompts_of_run(dir: &Path) -> Result<&'static str> {
    let config = finished_run(dir)?.config()?;
    Ok(match config.data.audit {
        Some(_) => {
            "before: asked with the audit's few-shot examples; after: at the prompt that was trained"
        }
        None => "before and after: asked at the prompt that was trained",
    })
}

/// The counts, the `prompts` that the answers belong to, a table, and some facts of each outcome, in `width` columns.
fn format_comparison(comparison: &Comparison, prompts: Option<&str>, width: usize) -> String {
    let counts = &comparison.counts;
    let outcomes = [
        ("learned", FactOutcome::Learned, counts.learned),
        ("not learned", FactOutcome::NotLearned, counts.not_learned),
        ("kept", FactOutcome::Kept, counts.kept),
        ("forgotten", FactOutcome::Forgotten, counts.forgotten),
        ("gained", FactOutcome::Gained, counts.gained),
        ("never known", FactOutcome::NeverKnew, counts.never_knew),
    ];
    // These two are told where there are some; a model that has lost nothing still says so.
    let is_told = |outcome, count| {
        count > 0 || !matches!(outcome, FactOutcome::NotLearned | FactOutcome::NeverKnew)
    };
    let parts: Vec<String> = outcomes
        .iter()
        .filter(|(_, outcome, count)| is_told(*outcome, *count))
        .map(|(name, outcome, count)| match outcome {
            FactOutcome::Forgotten => format!("{name} {count}{}", by_split(comparison)),
            _ => format!("{name} {count}"),
        })
        .collect();
    let mut text = format!("{} of {} facts", parts.join(", "), comparison.facts.len());
    if let Some(prompts) = prompts {
        text += &format!("\n{prompts}");
    }
    text += &format!("\n\n{}", table(comparison, width));
    for (name, listed, count) in outcomes {
        if count == 0 || listed == FactOutcome::NeverKnew {
            continue;
        }
        text += &format!("\n\n{name}");
        if count > MAX_LISTED {
            text += &format!(" ({MAX_LISTED} of {count}; all with --json)");
        }
        let members = comparison
            .facts
            .iter()
            .filter(|fact| fact.outcome == listed);
        for fact in members.take(MAX_LISTED) {
            let [question, object, before, after] =
                [&fact.question, &fact.object, &fact.before, &fact.after]
                    .map(|said| output::single_line(said));
            let other = match (fact.correct_before, fact.correct_after) {
                (true, _) if is_other_name(fact, &fact.before) => format!(" (also {before})"),
                (_, true) if is_other_name(fact, &fact.after) => format!(" (also {after})"),
                _ => String::new(),
            };
            text += &format!("\n  {question} {object}{other}: \"{before}\" -> \"{after}\"");
        }
    }
    text
}

/// Whether a correct answer is another accepted name than the one that is trained.
fn is_other_name(fact: &ComparedFact, answer: &str) -> bool {
    let names = [answer, &fact.object].map(normalise);
    !names[0].contains(&names[1])
}

/// ` (11 held out, 20 maybe known)`, where facts of other splits than the held-out one are forgotten, too: the forgetting of a run
/// counts the held-out ones alone.
fn by_split(comparison: &Comparison) -> String {
    let mut splits: BTreeMap<Split, usize> = BTreeMap::new();
    let facts = comparison.facts.iter();
    let forgotten = facts.filter(|fact| fact.outcome == FactOutcome::Forgotten);
    for split in forgotten.filter_map(|fact| fact.split) {
        *splits.entry(split).or_default() += 1;
    }
    if splits.keys().all(|split| *split == Split::Held) {
        return String::new();
    }
    let held = splits.remove(&Split::Held).unwrap_or_default();
    let others = splits
        .iter()
        .map(|(split, count)| format!(", {count} {}", split_name(*split)));
    format!(" ({held} held out{})", others.collect::<String>())
}

/// The split in words.
fn split_name(split: Split) -> String {
    split.name().replace('_', " ")
}

/// Accuracy and outcomes, by split of a run or by relation of two models.
fn table(comparison: &Comparison, width: usize) -> String {
    let mut groups: BTreeMap<(Option<Split>, String), Vec<&ComparedFact>> = BTreeMap::new();
    for fact in &comparison.facts {
        let name = match fact.split {
            Some(split) => split_name(split),
            None => output::single_line(&fact.relation),
        };
        groups.entry((fact.split, name)).or_default().push(fact);
    }
    let is_run = groups.keys().any(|(split, _)| split.is_some());
    let headers = [
        if is_run { "split" } else { "relation" },
        "facts",
        "correct",
        "learned",
        "kept",
        "forgotten",
        "gained",
    ];
    let with_bars = |bar: usize| {
        let rows: Vec<Vec<String>> = groups
            .iter()
            .map(|((_, name), facts)| {
                let counts = Counts::count(facts.iter().map(|fact| fact.outcome));
                vec![
                    name.clone(),
                    facts.len().to_string(),
                    accuracy_bars(facts, bar),
                    counts.learned.to_string(),
                    counts.kept.to_string(),
                    counts.forgotten.to_string(),
                    counts.gained.to_string(),
                ]
            })
            .collect();
        output::table(&headers, &rows, Some(width))
    };
    let without = with_bars(0);
    let widest = without.lines().map(measure_text_width).max();
    let bar = width.saturating_sub(widest.unwrap_or_default());
    if bar < *BAR_WIDTHS.start() {
        without
    } else {
        with_bars(bar.min(*BAR_WIDTHS.end()))
    }
}

/// Accuracy before and after, each as a number with a bar of `bar` columns.
fn accuracy_bars(facts: &[&ComparedFact], bar: usize) -> String {
    let line = |label: &str, is_correct: fn(&ComparedFact) -> bool| {
        let correct = facts.iter().filter(|fact| is_correct(fact)).count();
        let share = correct as f64 / facts.len() as f64;
        let full = (share * bar as f64).round() as usize;
        let (full, rest) = ("█".repeat(full), "░".repeat(bar - full));
        format!("{label:<7}{full}{rest} {:>5.1}%", 100.0 * share)
    };
    let before = line("before", |fact| fact.correct_before);
    let after = line("after", |fact| fact.correct_after);
    format!("{before}\n{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fact(split: Option<Split>, relation: &str, correct: [bool; 2]) -> ComparedFact {
        let [correct_before, correct_after] = correct;
        ComparedFact {
            split,
            relation: relation.into(),
            subject: "Paris".into(),
            question: "Which country is Paris in?".into(),
            object: "France".into(),
            before: if correct_before { "France" } else { "Texas" }.into(),
            after: if correct_after {
                "France"
            } else {
                "Te\u{1b}[31mxas"
            }
            .into(),
            correct_before,
            correct_after,
            outcome: match split {
                Some(split) => FactOutcome::in_run(split, correct_before, correct_after),
                None => FactOutcome::between_models(correct_before, correct_after),
            },
        }
    }

    /// One fact of each kind in each group, and in some one more.
    fn comparison(parts: &[(Option<Split>, &str)]) -> Comparison {
        let kinds = [[false, true], [true, true], [true, false], [false, false]];
        let facts: Vec<ComparedFact> = parts
            .iter()
            .enumerate()
            .flat_map(|(i, (split, relation))| {
                let more = kinds.into_iter().take(i);
                let all = kinds.into_iter().chain(more);
                all.map(|right| fact(*split, relation, right))
            })
            .collect();
        Comparison {
            counts: Counts::count(facts.iter().map(|fact| fact.outcome)),
            facts,
        }
    }

    #[test]
    fn a_run_is_compared_by_split() {
        let run = comparison(&[
            (Some(Split::Held), "P17"),
            (Some(Split::WeaklyKnown), "P17"),
            (Some(Split::Unknown), "P17"),
        ]);
        insta::assert_snapshot!(format_comparison(&run, Some("before: few-shot; after: trained"), 80), @r#"
        learned 4, not learned 2, kept 2, forgotten 2 (1 held out, 1 weakly known), gained 3, never known 2 of 15 facts
        before: few-shot; after: trained

        split         facts  correct                    learned  kept  forgotten  gained
        unknown           6  before ██████░░░░░  50.0%        4     0          0       0
                             after  ███████░░░░  66.7%
        held              4  before ██████░░░░░  50.0%        0     1          1       1
                             after  ██████░░░░░  50.0%
        weakly known      5  before ████░░░░░░░  40.0%        0     1          1       2
                             after  ███████░░░░  60.0%

        learned
          Which country is Paris in? France: "Texas" -> "France"
          Which country is Paris in? France: "France" -> "France"
          Which country is Paris in? France: "Texas" -> "France"
          Which country is Paris in? France: "France" -> "France"

        not learned
          Which country is Paris in? France: "France" -> "Te�[31mxas"
          Which country is Paris in? France: "Texas" -> "Te�[31mxas"

        kept
          Which country is Paris in? France: "France" -> "France"
          Which country is Paris in? France: "France" -> "France"

        forgotten
          Which country is Paris in? France: "France" -> "Te�[31mxas"
          Which country is Paris in? France: "France" -> "Te�[31mxas"

        gained
          Which country is Paris in? France: "Texas" -> "France"
          Which country is Paris in? France: "Texas" -> "France"
          Which country is Paris in? France: "Texas" -> "France"
        "#);
    }

    #[test]
    fn another_name_of_the_answer_is_told_as_one() {
        let mut kept = fact(Some(Split::Held), "P17", [true, true]);
        assert!(!is_other_name(&kept, &kept.before));
        kept.object = "French Republic".into();
        let run = Comparison::new([kept]);
        let told = format_comparison(&run, None, 80);
        let line = "French Republic (also France): \"France\" -> \"France\"";
        assert!(told.contains(line), "{told}");
    }

    #[test]
    fn two_models_are_compared_by_relation() {
        let models = comparison(&[(None, "is the capital of"), (None, "P17")]);
        insta::assert_snapshot!(table(&models, 80), @r"
        relation           facts  correct               learned  kept  forgotten  gained
        P17                    5  before ██░░░░  40.0%        2     1          1       0
                                  after  ████░░  60.0%
        is the capital of      4  before ███░░░  50.0%        1     1          1       0
                                  after  ███░░░  50.0%
        ");
    }

    #[test]
    fn narrow_terminals_get_no_bars() {
        let run = comparison(&[
            (Some(Split::Known), "P17"),
            (Some(Split::WeaklyKnown), "P17"),
        ]);
        insta::assert_snapshot!(table(&run, 60), @r"
        split   facts  correct  learned  kept  forgotten  gained
        known       4  before         0     1          1       1
                       50.0%
                       after
                       50.0%
        weakly      5  before         0     1          1       2
        known          40.0%
                       after
                       60.0%
        ");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let run = comparison(&[
            (Some(Split::WeaklyKnown), "P17"),
            (Some(Split::Held), "P17"),
        ]);
        for width in 57..200 {
            for line in table(&run, width).lines() {
                assert!(measure_text_width(line) <= width, "{width}: {line}");
            }
        }
    }
}
