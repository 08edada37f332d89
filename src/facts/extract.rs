//! Extracts facts from documents by patterns, as proposals for the user to review.
//!
//! In a table the first column is the subject and each other cell an object. In a text, "Key: value" lines are about the heading
//! above them, and sentences must match one of a few patterns ("X was founded in 1999."). Everything else is skipped: a missing fact
//! costs a line of typing, a wrong one that is trained costs more.

use std::{collections::HashMap, path::Path, sync::LazyLock};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use regex::{Captures, Regex};

use super::read::{Cells, has_fact_columns, table_rows};
use crate::{Error, Result};

/// A fact found in a document.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ExtractedFact {
    /// Subject.
    pub subject: String,
    /// Relation, in a few words.
    pub relation: String,
    /// Object: the answer.
    pub object: String,
    /// The question.
    pub question: String,
}

/// The facts found, each question once.
#[derive(Clone, Debug, Default)]
pub struct Extraction {
    /// The facts, in the order of the documents.
    pub facts: Vec<ExtractedFact>,
    /// Facts that were skipped, and why.
    pub notes: Vec<String>,
}

/// The longest answer in words; a longer one is prose.
const MAX_ANSWER_WORDS: usize = 8;

/// Extracts facts from Markdown, plain text, and tables (CSV, TSV, JSONL, JSON) whose first column is the subject.
///
/// # Errors
/// [`Error::Input`] when a file cannot be read, or is not text.
pub fn extract(files: &[std::path::PathBuf]) -> Result<Extraction> {
    let mut found = Vec::new();
    for file in files {
        found.extend(match table_rows(file)? {
            Some(rows) => extract_table(file, &rows)?,
            None => extract_text(&read_document(file)?),
        });
    }
    Ok(dedup_questions(found))
}

fn read_document(file: &Path) -> Result<String> {
    let name = file.display();
    let bytes = std::fs::read(file)
        .map_err(|reason| Error::input(format!("cannot read the document `{name}`: {reason}")))?;
    String::from_utf8(bytes).map_err(|_| {
        Error::input_hint(
            format!("`{name}` is not UTF-8 text"),
            "save the document as Markdown or plain text",
        )
    })
}

/// Keeps the first fact of each question, and notes different answers.
fn dedup_questions(found: Vec<ExtractedFact>) -> Extraction {
    let mut extraction = Extraction::default();
    let mut answers: HashMap<String, String> = HashMap::new();
    for fact in found {
        match answers.get(&fact.question) {
            None => {
                answers.insert(fact.question.clone(), fact.object.clone());
                extraction.facts.push(fact);
            }
            Some(first) if *first != fact.object => extraction.notes.push(format!(
                "\"{}\" has two answers: \"{first}\", and \"{}\", which is skipped",
                fact.question, fact.object
            )),
            Some(_) => {}
        }
    }
    extraction
}

/// One fact for each cell after the first of each row.
fn extract_table(file: &Path, rows: &[Cells]) -> Result<Vec<ExtractedFact>> {
    if rows.first().is_some_and(|row| has_fact_columns(row)) {
        return Err(Error::input_hint(
            format!(
                "{} already has facts: subject, relation and object, or question and answer",
                file.display()
            ),
            "use it with `unforget audit` or `unforget tune` directly",
        ));
    }
    let cells = rows.iter().flat_map(|row| {
        let subject = row.first().map(|(_, subject)| subject.as_str());
        let others = row.iter().skip(1);
        others.filter_map(move |(column, cell)| extract_cell(subject?, column, cell))
    });
    Ok(cells.collect())
}

fn extract_cell(subject: &str, column: &str, cell: &str) -> Option<ExtractedFact> {
    let (subject, relation, object) = (
        collapse_whitespace(subject),
        collapse_whitespace(column).to_lowercase(),
        collapse_whitespace(cell),
    );
    let has_word = |text: &str| text.chars().any(char::is_alphanumeric);
    if !has_word(&subject)
        || !has_word(&relation)
        || !has_word(&object)
        || object.split(' ').count() > MAX_ANSWER_WORDS
    {
        return None;
    }
    Some(ExtractedFact {
        question: format!("What is the {relation} of {subject}?"),
        subject,
        relation,
        object,
    })
}

/// `text` with each run of white space replaced by one space.
fn collapse_whitespace(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Facts in the tables, lists and paragraphs of a Markdown text.
fn extract_text(text: &str) -> Vec<ExtractedFact> {
    let mut found = Vec::new();
    let (mut heading, mut block) = (String::new(), String::new());
    let (mut headers, mut row): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Text(text) | Event::Code(text) => block += &text,
            Event::SoftBreak | Event::HardBreak => block.push('\n'),
            Event::Start(
                Tag::Heading { .. }
                | Tag::Paragraph
                | Tag::Item
                | Tag::TableCell
                | Tag::CodeBlock(_),
            ) => {
                // The text of a list item before a nested list.
                found.extend(extract_block(&heading, &block));
                block.clear();
            }
            Event::End(TagEnd::Heading(_)) => {
                heading = collapse_whitespace(&std::mem::take(&mut block));
            }
            Event::End(TagEnd::Paragraph | TagEnd::Item) => {
                found.extend(extract_block(&heading, &std::mem::take(&mut block)));
            }
            Event::End(TagEnd::CodeBlock) => block.clear(),
            Event::End(TagEnd::TableCell) => row.push(std::mem::take(&mut block)),
            Event::End(TagEnd::TableHead) => headers = std::mem::take(&mut row),
            Event::End(TagEnd::TableRow) => {
                let cells = std::mem::take(&mut row);
                let others = headers.iter().zip(&cells).skip(1);
                found.extend(
                    others.filter_map(|(head, cell)| extract_cell(cells.first()?, head, cell)),
                );
            }
            _ => {}
        }
    }
    found
}

/// Facts in a paragraph or list item: "Key: value" lines about the heading, or sentences.
fn extract_block(heading: &str, block: &str) -> Vec<ExtractedFact> {
    static PAIR: LazyLock<Regex> =
        LazyLock::new(|| regex(r"^\s*(\p{L}[\p{L}\d /-]{0,40}?)\s*:\s+(\S.*?[^.!?\s]|\S)\s*$"));
    let pairs: Vec<Option<ExtractedFact>> = block
        .lines()
        .map(|line| {
            let pair = PAIR.captures(line)?;
            extract_cell(heading, &pair[1], &pair[2])
        })
        .collect();
    if !heading.is_empty() && !pairs.is_empty() && pairs.iter().all(Option::is_some) {
        return pairs.into_iter().flatten().collect();
    }
    sentences(&collapse_whitespace(block))
        .filter_map(extract_sentence)
        .collect()
}

/// The sentences of a text, without their full stops.
fn sentences(text: &str) -> impl Iterator<Item = &str> {
    static END: LazyLock<Regex> = LazyLock::new(|| regex(r"[.!?](?:\s+|$)"));
    let mut starts = 0;
    let mut ends: Vec<(usize, usize)> = Vec::new();
    for end in END.find_iter(text) {
        // An initial or a short title doesn't end a sentence: "J. K. Rowling", "St. Gallen".
        let before = &text[starts..end.start()];
        let word = before.rsplit(' ').next().unwrap_or_default();
        let short = word.chars().count() <= 2 && word.starts_with(char::is_uppercase);
        if !short || end.end() == text.len() {
            ends.push((starts, end.start()));
            starts = end.end();
        }
    }
    if starts < text.len() {
        ends.push((starts, text.len()));
    }
    ends.into_iter().map(|(start, end)| text[start..end].trim())
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the pattern is well formed")
}

/// A sentence pattern with its relation and question. Groups: `s` subject, `o` object, `v` verb, `r` relation.
struct SentencePattern {
    pattern: Regex,
    relation: fn(&Captures) -> String,
    question: fn(&Captures) -> String,
}

/// A name: words that begin with a capital or a digit, and the small words between them.
const NAME: &str = r"[\p{Lu}\d][\w'’&+.-]*(?:,? (?:(?:of|the|de|la|le|von|van|der|den|and|du|da|del|di) )*[\p{Lu}\d][\w'’&+.-]*)*";

/// Pronouns, which can't be the subject of a fact.
const PRONOUNS: [&str; 11] = [
    "It", "He", "She", "They", "This", "That", "There", "These", "We", "I", "You",
];

static SENTENCE_PATTERNS: LazyLock<Vec<SentencePattern>> = LazyLock::new(|| {
    let pattern_for = |pattern: &str, relation, question| SentencePattern {
        pattern: regex(&format!("^{}$", pattern.replace("NAME", NAME))),
        relation,
        question,
    };
    vec![
        pattern_for(
            r"(?:The )?(?<s>NAME) (?:is|was|lies) (?:located |situated |based |headquartered )?in (?<o>NAME)",
            |_| "located in".into(),
            |c| format!("Where is {} located?", &c["s"]),
        ),
        pattern_for(
            r"(?<s>NAME) is the (?<r>[\p{Ll}-]+(?: [\p{Ll}-]+){0,3}) of (?<o>NAME)",
            |c| format!("{} of", &c["r"]),
            |c| format!("What is {} the {} of?", &c["s"], &c["r"]),
        ),
        pattern_for(
            r"The (?<r>[\p{Ll}-]+(?: [\p{Ll}-]+){0,3}) of (?:the )?(?<s>NAME) (?:is|was) (?<o>.+)",
            |c| c["r"].to_owned(),
            |c| format!("What is the {} of {}?", &c["r"], &c["s"]),
        ),
        pattern_for(
            r"(?<s>NAME)['’]s (?<r>[\p{Ll}-]+(?: [\p{Ll}-]+){0,3}) (?:is|was) (?<o>.+)",
            |c| c["r"].to_owned(),
            |c| format!("What is the {} of {}?", &c["r"], &c["s"]),
        ),
        pattern_for(
            r"(?:The )?(?<s>NAME) was (?<v>founded|established|built|released|published|launched|opened|introduced|discovered|invented|signed|born) (?:in|on) (?<o>(?:\d{1,2} )?(?:\p{Lu}\p{Ll}+ )?(?:\d{1,2}, )?\d{3,4})",
            |c| format!("when {}", &c["v"]),
            |c| format!("When was {} {}?", &c["s"], &c["v"]),
        ),
        pattern_for(
            r"(?<s>NAME) was born in (?<o>NAME)",
            |_| "place of birth".into(),
            |c| format!("Where was {} born?", &c["s"]),
        ),
        pattern_for(
            r"(?:The )?(?<s>NAME) (?:is|was) (?<v>founded|established|built|written|published|designed|directed|invented|created|composed|developed|painted|discovered|made|owned|led) by (?<o>NAME)",
            |c| format!("{} by", &c["v"]),
            |c| format!("Who was {} {} by?", &c["s"], &c["v"]),
        ),
        pattern_for(
            r"(?:The )?(?<s>NAME) (?<v>costs|weighs|measures) (?<o>\S+(?: \S+){0,3})",
            |c| c["v"].to_owned(),
            |c| {
                let verb = c["v"].trim_end_matches('s');
                format!("How much does {} {verb}?", &c["s"])
            },
        ),
    ]
});

fn extract_sentence(sentence: &str) -> Option<ExtractedFact> {
    SENTENCE_PATTERNS.iter().find_map(|pattern| {
        let found = pattern.pattern.captures(sentence)?;
        if PRONOUNS.contains(&&found["s"]) {
            return None;
        }
        let object = found["o"].trim_end_matches([',', ';']).to_owned();
        (object.split(' ').count() <= MAX_ANSWER_WORDS).then(|| ExtractedFact {
            subject: found["s"].to_owned(),
            relation: (pattern.relation)(&found),
            question: (pattern.question)(&found),
            object,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extracted(text: &str) -> Vec<String> {
        let found = dedup_questions(extract_text(text)).facts.into_iter();
        found
            .map(|f| format!("{} {}", f.question, f.object))
            .collect()
    }

    #[test]
    fn simple_sentences_become_questions() {
        assert_eq!(
            extracted(
                "Acme Cloud was founded in 1999. It is nice. Acme Cloud was founded by J. K. Miller. The capital of Freedonia is Glueck.\n\
                 Glueck is the capital of Freedonia. The Rufus T. Tower is located in New Glueck! Rufus Firefly was born in Brno.\n\
                 The Widget costs 12 euros. Acme's slogan is We build it. Nothing follows from this"
            ),
            [
                "When was Acme Cloud founded? 1999",
                "Who was Acme Cloud founded by? J. K. Miller",
                "What is the capital of Freedonia? Glueck",
                "What is Glueck the capital of? Freedonia",
                "Where is Rufus T. Tower located? New Glueck",
                "Where was Rufus Firefly born? Brno",
                "How much does Widget cost? 12 euros",
                "What is the slogan of Acme? We build it",
            ]
        );
    }

    #[test]
    fn tables_and_pairs_below_a_heading_are_about_their_subject() {
        let text = "# Pump 7\n\n- Max pressure: 12 bar\n- Colour: **red**\n\nA pump: it pumps.\n\n\
            | Model | Weight | Voltage |\n|---|---|---|\n| P7 | 3 kg | 230 V |\n| P8 | | 110 V |\n\n```\nKey: value\n```\n";
        assert_eq!(
            extracted(text),
            [
                "What is the max pressure of Pump 7? 12 bar",
                "What is the colour of Pump 7? red",
                "What is the weight of P7? 3 kg",
                "What is the voltage of P7? 230 V",
                "What is the voltage of P8? 110 V",
            ]
        );
    }

    #[test]
    fn a_second_answer_is_noted_and_left_out() {
        let found = dedup_questions(extract_text(
            "Rome is in Italy. Rome is in Italy. Rome is in Georgia.",
        ));
        assert_eq!(found.facts.len(), 1);
        assert_eq!(
            found.notes,
            [
                "\"Where is Rome located?\" has two answers: \"Italy\", and \"Georgia\", which is skipped"
            ]
        );
    }
}
