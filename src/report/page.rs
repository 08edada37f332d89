//! Recorded runs -> the numbers, rows and sentences of the page template.

use std::collections::{BTreeSet, HashMap};

use base64::{Engine, prelude::BASE64_STANDARD};
use minijinja::{Environment, context};
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    chart::{self, Chart},
    plots::{self, split_label},
    run_labels::{RunLabel, main_and_sft, run_labels},
    settings::{differences, flatten_json, report_command, shell_word},
};
use crate::{
    Error, Result,
    config::Goal,
    facts::relation_name,
    format::{capitalised, duration, memory, percent, pp, thousands},
    measure::Forgotten,
    run::{EqualLearning, FactOutcome, FactResult, RecordedRun, Split},
};

const TEMPLATE: &str = include_str!("page.html.j2");
const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("page.js");
/// Maximum number of rows in a table of examples. The full table has all facts.
const EXAMPLES: usize = 12;

/// The page of `runs`, in the order given.
///
/// # Errors
/// [`Error::Input`] without a run.
pub fn render(runs: &[RecordedRun]) -> Result<String> {
    if runs.is_empty() {
        return Err(Error::input("a report needs at least one run"));
    }
    let labels = run_labels(runs);
    let facts = join_facts(runs);
    let (main, sft) = main_and_sft(runs);
    let compared = equal_learning(runs, main, sft);
    let style = format!("{}\n{STYLE}", chart::CSS);
    let inline = |name: &str, charts: Vec<Chart>| -> Vec<String> {
        let drawn = charts.iter().enumerate();
        let drawn = drawn.map(|(i, chart)| chart::inline(chart, &format!("{name}-{i}")));
        drawn.collect()
    };
    let mut engine = Environment::new();
    engine.set_keep_trailing_newline(true);
    let page = engine
        .add_template("page.html", TEMPLATE)
        .and_then(|()| engine.get_template("page.html"))
        .and_then(|template| {
            template.render(context! {
                style_checksum => csp_hash(&style),
                script_checksum => csp_hash(SCRIPT),
                style,
                script => SCRIPT,
                headline => headline(runs, &labels, main, sft),
                subtitle => subtitle(runs),
                runs => runs.iter().zip(&labels).map(|(r, i)| RunView::new(r, i)).collect::<Vec<_>>(),
                has_behaviour => runs.iter().any(|run| run.result.behaviour.is_some()),
                missing_gap => runs.iter().any(|run| run.result.gap_to_only_known_pp.is_none()),
                missing_paraphrases => runs.iter().any(|run| run.result.learned_paraphrased.is_none()),
                notes => notes(runs),
                trade => inline("trade", plots::trade(runs, compared.as_ref()).into_iter().collect()),
                equal_learning => compared.as_ref().map(|c| equal_learning_sentence(c, &labels, main, sft)),
                charts => inline("panel", plots::accuracy(runs)),
                bars => inline("bars", plots::bars(runs)),
                forgetting_by_count => inline("count", plots::forgetting_by_count(runs)),
                maps => inline("map", plots::maps(runs)),
                drift => inline("drift", plots::drift(runs)),
                forgotten => forgotten_examples(&labels, &facts, main, sft),
                new_facts => new_facts(&facts),
                fact_count => match facts.len() {
                    1 => "1 fact".to_owned(),
                    count => format!("All {} facts", thousands(count)),
                },
                facts_json => escape_for_script(&facts_json(&labels, &facts)),
                differences => differences(runs),
                report_command => report_command(runs),
            })
        });
    page.map_err(|e| Error::Failed {
        message: format!("cannot render the page: {e:#}"),
        hint: None,
    })
}

/// A fact with its result in every run.
struct JoinedFact<'a> {
    first: &'a FactResult,
    rows: Vec<Option<&'a FactResult>>,
}

/// The facts of all runs, in the order in which they first appear. A fact evaluated on two base models is two rows, since its
/// answers before training differ.
fn join_facts(runs: &[RecordedRun]) -> Vec<JoinedFact<'_>> {
    let mut facts: Vec<JoinedFact> = Vec::new();
    let mut indices = HashMap::new();
    for (i, run) in runs.iter().enumerate() {
        for row in &run.facts {
            let key = (
                &run.result.model,
                row.split,
                &row.relation,
                &row.subject,
                &row.question,
                &row.object,
            );
            let index = match indices.get(&key) {
                // A duplicate within one run stays two rows.
                Some(&place)
                    if facts
                        .get(place)
                        .is_some_and(|f: &JoinedFact| f.rows[i].is_none()) =>
                {
                    place
                }
                _ => {
                    facts.push(JoinedFact {
                        first: row,
                        rows: vec![None; runs.len()],
                    });
                    indices.insert(key, facts.len() - 1);
                    facts.len() - 1
                }
            };
            facts[index].rows[i] = Some(row);
        }
    }
    facts
}

/// The main run and plain fine-tuning, where both had learned as much.
fn equal_learning(runs: &[RecordedRun], main: usize, sft: Option<usize>) -> Option<EqualLearning> {
    EqualLearning::between(&[&runs[main].epochs, &runs[sft?].epochs])
}

/// `With 78.0% of the new facts learned, auto keeps 80.1% and plain fine-tuning 68.0% of the held-out known facts.`
fn equal_learning_sentence(
    compared: &EqualLearning,
    labels: &[RunLabel],
    main: usize,
    sft: Option<usize>,
) -> String {
    let runs = [Some(main), sft].into_iter().flatten();
    let kept: Vec<String> = runs
        .zip(&compared.kept)
        .map(|(run, kept)| format!("{} {}", labels[run].name, percent(*kept)))
        .collect();
    format!(
        "With {} of the new facts learned, held-out known facts kept: {}.",
        percent(compared.learned),
        kept.join(", ")
    )
}

fn headline(runs: &[RecordedRun], labels: &[RunLabel], main: usize, sft: Option<usize>) -> String {
    let clause = |i: usize, is_main: bool| {
        let result = &runs[i].result;
        let new = result.counts.learned + result.counts.not_learned;
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let mut parts = Vec::new();
        if new > 0 {
            let learned = thousands(result.counts.learned);
            let (verb, note) = match result.goal {
                Goal::Facts => ("learned", ""),
                Goal::Task => ("absorbed", " (should be few)"),
            };
            parts.push(if is_main {
                format!(
                    "{verb} {learned} of {} new fact{}{note}",
                    thousands(new),
                    plural(new)
                )
            } else {
                format!("{verb} {learned}{note}")
            });
        }
        if let Some(Forgotten { count, of, .. }) = result.forgotten {
            let count = thousands(count);
            parts.push(if is_main {
                let of_all = thousands(of);
                format!("forgot {count} of {of_all} known fact{}", plural(of))
            } else {
                format!("forgot {count}")
            });
        }
        if parts.is_empty() {
            parts.push(format!("trained for {} epochs", result.epochs));
        }
        format!("{} {}", labels[i].name, parts.join(" and "))
    };
    let mut headline = capitalised(&clause(main, true));
    if let Some(plain) = sft {
        headline += "; ";
        headline += &clause(plain, false);
    }
    headline + "."
}

/// Model, number of runs and epochs.
fn subtitle(runs: &[RecordedRun]) -> String {
    let mut models: Vec<&str> = Vec::new();
    for run in runs {
        if !models.contains(&run.result.model.as_str()) {
            models.push(&run.result.model);
        }
    }
    let epochs = runs.iter().map(|r| r.result.epochs);
    let epochs = match (epochs.clone().min(), epochs.max()) {
        (Some(1), Some(1)) => "1 epoch".to_owned(),
        (Some(low), Some(high)) if low < high => format!("{low} to {high} epochs"),
        (_, high) => format!("{} epochs", high.unwrap_or(0)),
    };
    let runs = match runs.len() {
        1 => "one run".to_owned(),
        n => format!("{n} runs"),
    };
    format!("{} · {runs} · {epochs}", models.join(", "))
}

/// Warnings about runs that cannot be compared fact by fact.
fn notes(runs: &[RecordedRun]) -> Vec<String> {
    let mut notes = Vec::new();
    let differ = |value: &dyn Fn(&RecordedRun) -> String| {
        let values: BTreeSet<String> = runs.iter().map(value).collect();
        values.len() > 1
    };
    if differ(&|run| run.environment.model.checksum.clone()) {
        notes.push("These runs start from different base models. Their facts are listed separately, and their numbers do not compare methods.".into());
    }
    // Only Known has no new facts, so only the held-out facts have to agree.
    let held = |run: &RecordedRun| -> String {
        let held = run.facts.iter().filter(|f| f.split == Split::Held);
        let mut questions: Vec<&str> = held.map(|f| &f.question[..]).collect();
        questions.sort_unstable();
        questions.join("\n")
    };
    if differ(&held) {
        notes.push(
            "These runs hold out different facts. The forgetting of each run is measured on its own facts.".into(),
        );
    }
    notes
}

/// A run as a table row.
#[derive(Serialize)]
struct RunView {
    name: String,
    short: String,
    style: usize,
    key: String,
    dir: String,
    learned: Option<String>,
    learned_percent: Option<String>,
    paraphrased: Option<String>,
    forgotten: Option<String>,
    forgotten_share: Option<String>,
    gap_to_only_known: Option<String>,
    gap_interval: Option<String>,
    since_best: Option<String>,
    behaviour: Option<String>,
    behaviour_length: Option<String>,
    budget: Option<String>,
    seconds: String,
    audit_seconds: Option<String>,
    memory: String,
    config: String,
    environment: Vec<(String, String)>,
    command: String,
}

impl RunView {
    fn new(run: &RecordedRun, label: &RunLabel) -> Self {
        let r = &run.result;
        let new = r.counts.learned + r.counts.not_learned;
        let some = |n: usize, text: String| (n > 0).then_some(text);
        let dir = run.dir.display().to_string();
        Self {
            name: capitalised(&label.name),
            short: label.short.clone(),
            style: label.style,
            key: chart::legend_key(label.style),
            learned: some(
                new,
                format!(
                    "{} of {}{}",
                    thousands(r.counts.learned),
                    thousands(new),
                    match r.goal {
                        Goal::Facts => "",
                        Goal::Task => " (should be few)",
                    }
                ),
            ),
            learned_percent: r.learned.map(percent),
            paraphrased: r.learned_paraphrased.map(percent),
            forgotten: r
                .forgotten
                .map(|f| format!("{} of {}", thousands(f.count), thousands(f.of))),
            forgotten_share: r.forgotten.and_then(|f| f.interval.map(|i| (f, i))).map(
                |(f, [low, high])| match f.count {
                    0 => format!("up to {}", percent(f.rule_of_three())),
                    _ => format!("{}% ({} to {})", pp(f.pp), pp(low), pp(high)),
                },
            ),
            gap_to_only_known: r.gap_to_only_known_pp.map(pp),
            gap_interval: r
                .gap_to_only_known_interval
                .map(|[low, high]| format!("({} to {})", pp(low), pp(high))),
            since_best: r.forgetting_pp.map(pp),
            behaviour: r.behaviour.map(|b| format!("{:.2}", b.kl)),
            behaviour_length: r
                .behaviour
                .map(|b| format!("answers {:.2}x as long", b.length_ratio)),
            budget: r.budget.map(|budget| {
                let verdict = match r.within_budget {
                    Some(true) => "within",
                    Some(false) => "over",
                    None => "not compared with",
                };
                format!("{verdict} its budget of {budget} pp")
            }),
            seconds: duration(r.seconds),
            audit_seconds: (r.audit_seconds > 0.0).then(|| duration(r.audit_seconds)),
            memory: memory(r.peak_memory_bytes),
            config: run.config_text.clone(),
            environment: flatten_json(
                &serde_json::to_value(&run.environment).expect("records serialize to JSON"),
            ),
            command: format!(
                "unforget tune {} --set {}",
                shell_word(&run.dir.join("config.toml").display().to_string()),
                shell_word(&format!("out={dir}-again"))
            ),
            dir,
        }
    }
}

/// Facts that one run forgot, with the answers of all runs.
#[derive(Serialize)]
struct ForgottenExamples<'a> {
    /// The run that forgot them.
    forgotten_by: usize,
    /// The run that kept them; none without a run to compare with.
    kept_by: Option<usize>,
    count: String,
    /// Number of them that were held out.
    held: String,
    examples: Vec<FactExample<'a>>,
    /// Whether there are more than the examples.
    has_more: bool,
    /// Number of facts that the second run forgot and the first kept.
    reverse_count: String,
    names: (String, String),
}

#[derive(Serialize)]
struct FactExample<'a> {
    fact: &'a FactResult,
    runs: &'a [Option<&'a FactResult>],
}

fn forgotten_examples<'a>(
    labels: &[RunLabel],
    facts: &'a [JoinedFact<'a>],
    main: usize,
    sft: Option<usize>,
) -> ForgottenExamples<'a> {
    let (forgotten_by, kept_by) = sft.map_or((main, None), |plain| (plain, Some(main)));
    let outcome = |fact: &JoinedFact, run: usize| fact.rows[run].map(|row| row.outcome);
    let is_forgotten = |fact: &&JoinedFact, forgotten_by: usize, kept_by: Option<usize>| {
        outcome(fact, forgotten_by) == Some(FactOutcome::Forgotten)
            && kept_by.is_none_or(|kept_by| outcome(fact, kept_by) == Some(FactOutcome::Kept))
    };
    let mut found: Vec<&JoinedFact> = facts
        .iter()
        .filter(|f| is_forgotten(f, forgotten_by, kept_by))
        .collect();
    // The clearest examples first: held out, and correct at the training prompt before training.
    found.sort_by_key(|f| (f.first.split != Split::Held, !f.first.correct_before));
    let reverse = kept_by.map_or(0, |kept_by| {
        facts
            .iter()
            .filter(|f| is_forgotten(f, kept_by, Some(forgotten_by)))
            .count()
    });
    let held = found.iter().filter(|f| f.first.split == Split::Held);
    let held = held.count();
    ForgottenExamples {
        forgotten_by,
        kept_by,
        count: thousands(found.len()),
        held: thousands(held),
        examples: examples(&found),
        has_more: found.len() > EXAMPLES,
        reverse_count: thousands(reverse),
        names: (labels[forgotten_by].name.clone(), labels[main].name.clone()),
    }
}

/// New facts with paraphrased questions: the count of all, and examples.
#[derive(Serialize)]
struct NewFacts<'a> {
    count: String,
    examples: Vec<FactExample<'a>>,
}

fn new_facts<'a>(facts: &'a [JoinedFact<'a>]) -> NewFacts<'a> {
    let has_paraphrases = |f: &&JoinedFact| {
        f.rows
            .iter()
            .flatten()
            .any(|row| !row.paraphrases.is_empty())
    };
    let found: Vec<&JoinedFact> = facts
        .iter()
        .filter(|f| f.first.split == Split::Unknown)
        .filter(has_paraphrases)
        .collect();
    NewFacts {
        count: thousands(found.len()),
        examples: examples(&found),
    }
}

fn examples<'a>(facts: &[&'a JoinedFact<'a>]) -> Vec<FactExample<'a>> {
    let shown = facts.iter().take(EXAMPLES);
    shown
        .map(|f| FactExample {
            fact: f.first,
            runs: &f.rows,
        })
        .collect()
}

/// The rows of the full table, for the page's script.
fn facts_json(labels: &[RunLabel], facts: &[JoinedFact]) -> serde_json::Value {
    let runs: Vec<_> = labels
        .iter()
        .map(|i| serde_json::json!({"name": capitalised(&i.name), "short": i.short, "style": i.style}))
        .collect();
    let rows: Vec<_> = facts
        .iter()
        .map(|f| {
            let after: Vec<_> = f
                .rows
                .iter()
                .map(|row| {
                    row.map(|row| {
                        serde_json::json!({
                            "answer": row.answer_after,
                            "correct": row.correct_after,
                            "p": row.p_after,
                            "forgotten_once": row.forgotten_once,
                            "outcome": row.outcome,
                            "label": row.label_after,
                            "paraphrases": row.paraphrases,
                        })
                    })
                })
                .collect();
            serde_json::json!({
                "split": split_label(f.first.split),
                "relation": relation_name(&f.first.relation),
                "subject": f.first.subject,
                "question": f.first.question,
                "object": f.first.object,
                "label": f.first.label_before,
                "before": {
                    "answer": f.first.answer_before,
                    "correct": f.first.correct_before,
                    "p": f.first.p_before,
                },
                "few_shot": f.first.few_shot_accuracy.is_some(),
                "nearest": nearest(f),
                "after": after,
            })
        })
        .collect();
    serde_json::json!({"runs": runs, "facts": rows})
}

/// Subject, answer and cosine of the nearest new facts, from the first run that has them.
fn nearest<'a>(fact: &'a JoinedFact) -> Vec<(&'a str, &'a str, f64)> {
    let rows = fact.rows.iter().flatten();
    let found = rows.map(|row| &row.nearest).find(|near| !near.is_empty());
    let near = found.into_iter().flatten();
    near.map(|n| (&n.subject[..], &n.object[..], n.cosine))
        .collect()
}

/// JSON escaped for an HTML script element. `<`, `>` and `&` occur only inside strings, where the escapes are equivalent.
fn escape_for_script(json: &serde_json::Value) -> String {
    json.to_string()
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

fn csp_hash(text: &str) -> String {
    BASE64_STANDARD.encode(Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_cannot_close_its_script_element() {
        let hostile = serde_json::json!(["</script><!--&\u{2028}"]);
        let text = escape_for_script(&hostile);
        assert!(!text.contains(['<', '>', '&', '\u{2028}']), "{text}");
        let back: serde_json::Value = serde_json::from_str(&text).expect("still JSON");
        assert_eq!(back, hostile);
    }
}
