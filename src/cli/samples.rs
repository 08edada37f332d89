//! `unforget compare` of two files of lm-evaluation-harness: `samples_TASK_DATE.jsonl`, which `lm_eval --log_samples` writes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write},
    path::Path,
};

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use unforget::{
    Error, Result,
    measure::{FactOutcome, PairedScores, paired_outcome},
};

use super::rows;

/// Documents listed of each outcome.
const MAX_LISTED: usize = 20;

/// The form of a row, for messages.
const EXAMPLE: &str = r#"{"doc_id": 0, "filter": "none", "doc_hash": "...", "prompt_hash": "...", "target_hash": "...", "acc": 1.0, ...}, as `lm_eval --log_samples` writes it (0.4.3 or newer)"#;

/// Fields of a row that are texts, but no scores.
const TEXTS: [&str; 5] = ["doc", "target", "arguments", "resps", "filtered_resps"];

/// Whether this is a file of samples: models are directories, `.gguf` files or names.
pub fn is_samples_file(spec: &str) -> bool {
    let path = Path::new(spec);
    path.extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("jsonl"))
        && path.is_file()
}

/// What of the files is compared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice<'a> {
    pub metric: Option<&'a str>,
    pub filter: Option<&'a str>,
}

/// The scores of two models on the documents of a task.
#[derive(Debug, Serialize)]
pub struct SamplesComparison {
    /// Null where the files' names do not tell it.
    task: Option<String>,
    metric: String,
    filter: String,
    #[serde(flatten)]
    scores: PairedScores,
    rows: Vec<ComparedDocument>,
}

/// The scores of one document.
#[derive(Debug, Serialize)]
struct ComparedDocument {
    doc_id: u64,
    before: f64,
    after: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<FactOutcome>,
}

/// A row of a file.
#[derive(Deserialize)]
struct Sample {
    doc_id: u64,
    #[serde(default = "no_filter")]
    filter: String,
    doc_hash: String,
    prompt_hash: String,
    target_hash: String,
    /// Absent in files of older versions.
    metrics: Option<Vec<String>>,
    #[serde(flatten)]
    fields: BTreeMap<String, Score>,
}

fn no_filter() -> String {
    "none".to_owned()
}

impl Sample {
    /// Its metrics that are numbers.
    fn metrics(&self) -> BTreeSet<&str> {
        let is_listed = |name: &str| match &self.metrics {
            Some(metrics) => metrics.iter().any(|metric| metric == name),
            None => !TEXTS.contains(&name),
        };
        let fields = self.fields.iter().filter(|(_, score)| score.0.is_some());
        let names = fields.map(|(name, _)| name.as_str());
        names.filter(|name| is_listed(name)).collect()
    }
}

/// The value of a field, if it is a number: 1.0, true, or their text, as which Python's JSON writes numbers of numpy.
struct Score(Option<f64>);

impl<'de> Deserialize<'de> for Score {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct AnyValue;
        impl<'de> Visitor<'de> for AnyValue {
            type Value = Score;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_bool<E>(self, right: bool) -> Result<Score, E> {
                Ok(Score(Some(f64::from(u8::from(right)))))
            }
            fn visit_i64<E>(self, n: i64) -> Result<Score, E> {
                Ok(Score(Some(n as f64)))
            }
            fn visit_u64<E>(self, n: u64) -> Result<Score, E> {
                Ok(Score(Some(n as f64)))
            }
            fn visit_f64<E>(self, x: f64) -> Result<Score, E> {
                Ok(Score(Some(x)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Score, E> {
                Ok(Score(match text {
                    "True" => Some(1.0),
                    "False" => Some(0.0),
                    number => number.parse().ok().filter(|x: &f64| x.is_finite()),
                }))
            }
            fn visit_unit<E>(self) -> Result<Score, E> {
                Ok(Score(None))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Score, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Score(None))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Score, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Score(None))
            }
        }
        deserializer.deserialize_any(AnyValue)
    }
}

/// The rows of a file, each with its line.
struct SamplesFile<'a> {
    path: &'a str,
    rows: Vec<(usize, Sample)>,
}

impl<'a> SamplesFile<'a> {
    fn read(path: &'a str) -> Result<Self> {
        let rows = rows::read(Path::new(path), EXAMPLE)?;
        Ok(Self { path, rows })
    }

    /// The task in the name `samples_TASK_DATE.jsonl`.
    fn task(&self) -> Option<&'a str> {
        let stem = Path::new(self.path).file_stem()?.to_str()?;
        let (task, date) = stem.strip_prefix("samples_")?.rsplit_once('_')?;
        (date.starts_with(|c: char| c.is_ascii_digit()) && date.contains('T')).then_some(task)
    }

    /// The names of its filters.
    fn filters(&self) -> BTreeSet<&str> {
        self.rows.iter().map(|(_, row)| &row.filter[..]).collect()
    }

    /// Keeps the rows of this filter.
    fn retain_filter(&mut self, filter: &str) {
        self.rows.retain(|(_, row)| row.filter == filter);
    }

    /// The metrics of all rows.
    fn metrics(&self) -> BTreeSet<&str> {
        let mut rows = self.rows.iter().map(|(_, row)| row.metrics());
        let first = rows.next().unwrap_or_default();
        rows.fold(first, |common, row| {
            common.intersection(&row).copied().collect()
        })
    }

    /// The rows by document.
    fn by_document(&self) -> Result<BTreeMap<u64, &(usize, Sample)>> {
        let mut documents: BTreeMap<u64, &(usize, Sample)> = BTreeMap::new();
        for row in &self.rows {
            if let Some((line, _)) = documents.insert(row.1.doc_id, row) {
                return Err(Error::input_hint(
                    format!(
                        "`{}` has document {} twice: lines {line} and {}",
                        self.path, row.1.doc_id, row.0
                    ),
                    "lm-evaluation-harness appends to a file that exists: keep the rows of one evaluation",
                ));
            }
        }
        Ok(documents)
    }
}

/// The name that both files have; of several the one that is `given` by `flag`.
fn choose(
    [what, flag]: [&str; 2],
    given: Option<&str>,
    [before, after]: [&BTreeSet<&str>; 2],
    files: [&str; 2],
) -> Result<String> {
    let list = |names: &BTreeSet<&str>| {
        let names: Vec<&str> = names.iter().copied().collect();
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    };
    let common: BTreeSet<&str> = before.intersection(after).copied().collect();
    let of_files = || {
        format!(
            "`{}` has {}, `{}` has {}",
            files[0],
            list(before),
            files[1],
            list(after)
        )
    };
    match (given, common.first()) {
        (Some(name), _) if common.contains(name) => Ok(name.to_owned()),
        (Some(name), _) => Err(Error::input_hint(
            format!("`{flag} {name}`: not both files have this {what} in every row"),
            of_files(),
        )),
        (None, None) => Err(Error::input_hint(
            format!("there is no {what} that every row of both files has"),
            of_files(),
        )),
        (None, Some(name)) if common.len() == 1 => Ok((*name).to_owned()),
        (None, Some(name)) => Err(Error::input_hint(
            format!("the files have several {what}s: {}", list(&common)),
            format!("name one, such as `{flag} {name}`"),
        )),
    }
}

/// Compares the scores in two files, document by document.
///
/// # Errors
/// [`Error::Input`] naming file and line where the files are not of the same documents, prompts and targets.
pub fn compare(files: [&str; 2], choice: Choice<'_>) -> Result<SamplesComparison> {
    let [mut before, mut after] = [SamplesFile::read(files[0])?, SamplesFile::read(files[1])?];
    if let (Some(one), Some(other)) = (before.task(), after.task())
        && one != other
    {
        return Err(Error::input_hint(
            format!(
                "`{}` is of the task {one}, `{}` of {other}",
                before.path, after.path
            ),
            "give the samples of one task for both models",
        ));
    }
    let filter = choose(
        ["filter", "--filter"],
        choice.filter,
        [&before.filters(), &after.filters()],
        files,
    )?;
    before.retain_filter(&filter);
    after.retain_filter(&filter);
    let metric = choose(
        ["metric", "--metric"],
        choice.metric,
        [&before.metrics(), &after.metrics()],
        files,
    )?;
    let pairs = pairs(&before, &after)?;
    let score = |row: &Sample| row.fields[&metric].0.expect("a metric of every row");
    let scores: Vec<[f64; 2]> = pairs.iter().map(|pair| pair.map(score)).collect();
    let rows = pairs
        .iter()
        .zip(&scores)
        .map(|(pair, scores)| ComparedDocument {
            doc_id: pair[0].doc_id,
            before: scores[0],
            after: scores[1],
            outcome: paired_outcome(scores),
        });
    let mut rows: Vec<ComparedDocument> = rows.collect();
    let scores = PairedScores::new(&scores).expect("a file has rows");
    if scores.outcomes.is_none() {
        for row in &mut rows {
            row.outcome = None;
        }
    }
    Ok(SamplesComparison {
        task: before.task().or(after.task()).map(str::to_owned),
        metric,
        filter,
        scores,
        rows,
    })
}

/// The rows of each document in both files.
fn pairs<'f>(
    before: &'f SamplesFile<'_>,
    after: &'f SamplesFile<'_>,
) -> Result<Vec<[&'f Sample; 2]>> {
    let [rows_before, rows_after] = [before.by_document()?, after.by_document()?];
    for (here, there, file) in [
        (&rows_before, &rows_after, [before.path, after.path]),
        (&rows_after, &rows_before, [after.path, before.path]),
    ] {
        if let Some((document, (line, _))) = here.iter().find(|(id, _)| !there.contains_key(id)) {
            return Err(Error::input_hint(
                format!(
                    "`{}` line {line}: `{}` has no row for document {document}",
                    file[0], file[1]
                ),
                "evaluate both models on the same documents (`--limit`, `--samples`)",
            ));
        }
    }
    let pairs = rows_before.values().zip(rows_after.values());
    pairs
        .map(|((line_before, one), (line, other))| {
            let same_task = "the files are of different tasks, or of different versions of a task";
            let same_prompt = "evaluate both models with the same few-shot examples, seed and chat template";
            for (field, [hash, other_hash], hint) in [
                ("doc_hash", [&one.doc_hash, &other.doc_hash], same_task),
                ("target_hash", [&one.target_hash, &other.target_hash], same_task),
                ("prompt_hash", [&one.prompt_hash, &other.prompt_hash], same_prompt),
            ] {
                if hash != other_hash {
                    return Err(Error::input_hint(
                        format!(
                            "`{}` line {line}: document {} has another `{field}` than in `{}` line {line_before}",
                            after.path, one.doc_id, before.path
                        ),
                        hint,
                    ));
                }
            }
            Ok([one, other])
        })
        .collect()
}

impl SamplesComparison {
    /// Means, difference, counts and tests, and some documents of each outcome.
    pub fn text(&self) -> String {
        let scores = &self.scores;
        let number: fn(f64) -> String = match scores.outcomes {
            Some(_) => |share| format!("{:.1}%", 100.0 * share),
            None => |mean| format!("{mean:.4}"),
        };
        let signed: fn(f64) -> String = match scores.outcomes {
            Some(_) => |share| format!("{:+.1}", 100.0 * share),
            None => |mean| format!("{mean:+.4}"),
        };
        let unit = if scores.outcomes.is_some() { " pp" } else { "" };
        let task = self.task.as_deref().unwrap_or("samples");
        let documents = match scores.documents {
            1 => "1 document".to_owned(),
            n => format!("{n} documents"),
        };
        let mut text = format!(
            "{task}: {} (filter {}), {documents}\nbefore {}, after {}: difference {}{unit}",
            self.metric,
            self.filter,
            number(scores.before),
            number(scores.after),
            signed(scores.difference)
        );
        if let (Some(error), Some([low, high])) = (scores.standard_error, scores.interval) {
            let error = signed(error).replacen('+', "", 1);
            // Writing to a text does not fail.
            let _ = write!(
                text,
                " (95%: {} to {}), paired standard error {error}{unit}",
                signed(low),
                signed(high)
            );
        }
        if let Some(outcomes) = &scores.outcomes {
            let counts = &outcomes.counts;
            let p = match outcomes.mcnemar_p {
                p if p < 0.0001 => "p < 0.0001".to_owned(),
                p => format!("p = {p:.4}"),
            };
            let _ = write!(
                text,
                "\nlearned {}, kept {}, forgotten {}, never knew {}\nMcNemar's exact test, {} forgotten against {} learned: {p}",
                counts.learned,
                counts.kept,
                counts.forgotten,
                counts.never_knew,
                counts.forgotten,
                counts.learned
            );
            for (name, outcome) in [
                ("forgotten", FactOutcome::Forgotten),
                ("learned", FactOutcome::Learned),
            ] {
                text += &self.documents(name, outcome);
            }
        }
        text
    }

    /// The documents of an outcome, on a line; nothing of none.
    fn documents(&self, name: &str, outcome: FactOutcome) -> String {
        let rows = self.rows.iter().filter(|row| row.outcome == Some(outcome));
        let ids: Vec<String> = rows.map(|row| row.doc_id.to_string()).collect();
        let shown = ids.iter().take(MAX_LISTED).cloned().collect::<Vec<_>>();
        match ids.len() {
            0 => String::new(),
            n if n > MAX_LISTED => format!(
                "\n{name} ({MAX_LISTED} of {n}; all with --json): documents {}",
                shown.join(", ")
            ),
            1 => format!("\n{name}: document {}", ids[0]),
            _ => format!("\n{name}: documents {}", shown.join(", ")),
        }
    }
}
