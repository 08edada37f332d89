//! Decides whether a generated answer is correct, wrong, or still open.

use unicode_normalization::{UnicodeNormalization, char::canonical_combining_class};

use crate::config::MatchRule;

use super::normalise::{first_line, fold, is_after_answer, is_before_answer, strip};

/// The verdict on an answer that is still being generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerVerdict {
    /// It is correct, or can become correct.
    Undecided,
    /// No continuation is correct: decoding may stop.
    Wrong,
}

/// The kind of a wrong answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WrongKind {
    /// A short answer that names something else.
    OtherEntity,
    /// Empty, a sentence, a question, or rambling.
    OffFormat,
    /// The model declines to answer or says that it doesn't know.
    Refusal,
}

/// Scores answers to one fact. The accepted answers are normalised once.
#[derive(Clone, Debug)]
pub struct AnswerScorer {
    match_rule: MatchRule,
    forms: Vec<Form>,
    max_words: usize,
}

#[derive(Clone, Debug)]
struct Form {
    /// Decomposed and stripped, with case.
    cased: String,
    /// The same without case.
    folded: String,
}

/// Accepted answers of at most this many characters (`US`, `He`) are also English words: inside a sentence their case must match.
const CASE_SENSITIVE_CHARS: usize = 3;

/// An answer with this many more words than the longest accepted answer is still not a sentence.
const MAX_EXTRA_WORDS: usize = 4;

/// Beginnings of a refusal.
const REFUSALS: [&str; 20] = [
    "i don't",
    "i do not",
    "i'm not",
    "i am not",
    "i'm sorry",
    "i am sorry",
    "i cannot",
    "i can't",
    "i'm unable",
    "i am unable",
    "as an ai",
    "unknown",
    "not known",
    "not sure",
    "n/a",
    "none",
    "no information",
    "not available",
    "there is no",
    "it is not",
];

/// Signs of a sentence or another question in place of an answer.
const SENTENCE_MARKERS: [&str; 10] = [
    " is ", " are ", " was ", " were ", " has ", " have ", "?", "q:", "a:", "answer",
];

impl AnswerScorer {
    /// A scorer with these accepted answers.
    pub fn new(accepted: &[String], match_rule: MatchRule) -> Self {
        let mut forms: Vec<Form> = Vec::with_capacity(accepted.len());
        for written in accepted {
            let folded = fold(first_line(written));
            let folded = strip(&folded);
            if folded.is_empty()
                || (match_rule == MatchRule::Exact && forms.iter().any(|f| f.folded == folded))
            {
                continue;
            }
            let cased: String = first_line(written).nfkd().collect();
            forms.push(Form {
                cased: strip(&cased).to_owned(),
                folded: folded.to_owned(),
            });
        }
        let words = |form: &Form| form.folded.split_whitespace().count();
        let longest_words = forms.iter().map(words).max().unwrap_or(1);
        Self {
            match_rule,
            forms,
            max_words: longest_words,
        }
    }

    /// Whether the first line of `text` is a correct answer.
    pub fn is_correct(&self, text: &str) -> bool {
        let line = first_line(text);
        match self.match_rule {
            MatchRule::Exact => {
                let folded = fold(line);
                let answer = strip(&folded);
                self.forms.iter().any(|form| form.folded == answer)
            }
            MatchRule::Contains => {
                let cased: String = line.nfkd().collect();
                let folded = fold(line);
                self.forms.iter().any(|form| {
                    if form.folded.chars().count() <= CASE_SENSITIVE_CHARS {
                        contains_words(&cased, &form.cased)
                    } else {
                        contains_words(&folded, &form.folded)
                    }
                })
            }
        }
    }

    /// Whether `partial`, an answer that is still being generated, can become correct.
    ///
    /// [`AnswerVerdict::Wrong`] is exact: no continuation is correct. A line break ends an answer. Trailing characters that a
    /// continuation may change are ignored: U+FFFD (an incomplete character) and combining marks (a later mark may sort before them).
    pub fn verdict(&self, partial: &str) -> AnswerVerdict {
        if partial.contains('\n') {
            return if self.is_correct(partial) {
                AnswerVerdict::Undecided
            } else {
                AnswerVerdict::Wrong
            };
        }
        if self.match_rule == MatchRule::Contains {
            return AnswerVerdict::Undecided;
        }
        let folded = fold(partial.trim_end_matches('\u{fffd}'));
        let stable = folded.trim_end_matches(|c| canonical_combining_class(c) != 0);
        if self
            .forms
            .iter()
            .any(|form| can_be_completed_to(stable, &form.folded))
        {
            AnswerVerdict::Undecided
        } else {
            AnswerVerdict::Wrong
        }
    }

    /// The kind of the wrong answer `text`, by a heuristic for English.
    ///
    /// A refusal begins like one ("I don't know", "As an AI", "unknown"). Off-format is an answer that is empty, has no letter or
    /// digit, has more than four words beyond the longest accepted answer, or reads as a sentence or a question. Anything else is
    /// another entity.
    pub fn wrong_kind(&self, text: &str) -> WrongKind {
        let folded = fold(first_line(text)).replace('’', "'");
        let answer = strip(&folded);
        if REFUSALS.iter().any(|r| starts_with_words(answer, r)) {
            return WrongKind::Refusal;
        }
        let words = answer.split_whitespace().count();
        let sentence = SENTENCE_MARKERS.iter().any(|mark| folded.contains(mark));
        if !answer.contains(char::is_alphanumeric)
            || words > self.max_words + MAX_EXTRA_WORDS
            || sentence
        {
            WrongKind::OffFormat
        } else {
            WrongKind::OtherEntity
        }
    }
}

/// Whether some text that begins with the folded `stable` may strip to `form`.
///
/// Such a text is `form` between quotes, brackets and punctuation, which it may also begin and end with itself, and behind "the".
fn can_be_completed_to(stable: &str, form: &str) -> bool {
    starts(stable).any(|start| {
        is_prefix_or_padded(start, form)
            || "the ".starts_with(start)
            || start
                .strip_prefix("the ")
                .is_some_and(|rest| starts(rest).any(|start| is_prefix_or_padded(start, form)))
    })
}

/// `text` without none, one, ... all of the characters in front that may be no part of the answer.
fn starts(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let start = rest?;
        let mut chars = start.chars();
        rest = chars
            .next()
            .filter(|c| is_before_answer(*c))
            .map(|_| chars.as_str());
        Some(start)
    })
}

/// Whether `start` is a prefix of `form`, or `form` with characters after it that are no part of the answer.
fn is_prefix_or_padded(start: &str, form: &str) -> bool {
    form.starts_with(start)
        || start
            .strip_prefix(form)
            .is_some_and(|rest| rest.chars().all(is_after_answer))
}

/// Symbols that belong to the word that they touch: `C++`, `50%`, `#1`, `$5`.
const WORD_SYMBOLS: &str = "+#%&$€£¥°‰^=@_~";

/// Whether `text` contains `form` as whole words: with no letter, digit, combining mark or symbol of a word next to it.
fn contains_words(text: &str, form: &str) -> bool {
    let is_word = |c: char| {
        c.is_alphanumeric() || WORD_SYMBOLS.contains(c) || canonical_combining_class(c) != 0
    };
    // `5` is no whole word in `-5`, `5.5` and `1914-18`, and `Guinea` none in `Guinea-Bissau`.
    let joins = |mark: Option<char>, beyond: Option<char>| match mark {
        Some('-') => beyond.is_some_and(char::is_alphanumeric),
        Some('.' | ',') => beyond.is_some_and(|c| c.is_ascii_digit()),
        _ => false,
    };
    let is_number = form.starts_with(|c: char| c.is_ascii_digit());
    text.match_indices(form).any(|(start, _)| {
        let mut before = text[..start].chars().rev();
        let mut after = text[start + form.len()..].chars();
        let (before, beyond_before) = (before.next(), before.next());
        let (after, beyond_after) = (after.next(), after.next());
        let touches = before.is_some_and(is_word) || after.is_some_and(is_word);
        let continues = joins(before, beyond_before) || joins(after, beyond_after);
        let is_negative = is_number && before == Some('-');
        !(touches || continues || is_negative)
    })
}

/// Whether `text` begins with `words` at a word boundary.
fn starts_with_words(text: &str, words: &str) -> bool {
    text.strip_prefix(words)
        .is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scorer(accepted: &[&str], match_rule: MatchRule) -> AnswerScorer {
        let accepted: Vec<String> = accepted.iter().map(|&a| a.into()).collect();
        AnswerScorer::new(&accepted, match_rule)
    }

    #[test]
    fn an_exact_answer_is_the_whole_first_line() {
        let scorer = scorer(&["Italy"], MatchRule::Exact);
        for correct in [" Italy\n", "italy.", "the Italy", "ITALY\nQ: next"] {
            assert!(scorer.is_correct(correct), "{correct:?}");
        }
        for wrong in ["", "\nItaly", "Italy and France", "Italian", "It is Italy"] {
            assert!(!scorer.is_correct(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn a_symbol_belongs_to_the_word_that_it_touches() {
        for (form, wrong, correct) in [
            ("C", "It is C++.", "It is C."),
            ("C++", "It is C.", "It is C++."),
            ("5", "It is -5.", "It is 5."),
            ("5", "It is 5.5", "5, I think"),
            ("50", "50%", "about 50"),
            ("A", "A+", "an **A**"),
            ("1", "#1", "1"),
            ("Guinea", "in Guinea-Bissau", "in Guinea"),
        ] {
            let scorer = scorer(&[form], MatchRule::Contains);
            assert!(!scorer.is_correct(wrong), "{form}: {wrong}");
            assert!(scorer.is_correct(correct), "{form}: {correct}");
        }
    }

    #[test]
    fn a_contained_answer_is_whole_words() {
        let scorer = scorer(&["Niger", "US"], MatchRule::Contains);
        for correct in [
            "It lies in Niger.",
            "in the US, I think",
            "(Niger)",
            "Niger",
        ] {
            assert!(scorer.is_correct(correct), "{correct:?}");
        }
        for wrong in ["It lies in Nigeria.", "let us see", "US2", "Well\nNiger"] {
            assert!(!scorer.is_correct(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn an_answer_is_wrong_once_no_continuation_can_be_correct() {
        let scorer = scorer(&["Netherlands", "Holland"], MatchRule::Exact);
        for open in [
            "",
            " ",
            " \"",
            "T",
            "The",
            " the ",
            "The Neth",
            "Nether",
            "Netherlands",
            "Holland...",
            "Holland \u{fffd}",
            "N\u{fffd}",
        ] {
            assert_eq!(scorer.verdict(open), AnswerVerdict::Undecided, "{open:?}");
        }
        for wrong in [
            " Ger",
            "Hollandia",
            "The Hague",
            "Netherlands and",
            "theN",
            "thee",
            "\n",
            "Holl\n",
        ] {
            assert_eq!(scorer.verdict(wrong), AnswerVerdict::Wrong, "{wrong:?}");
        }
    }

    #[test]
    fn a_letter_that_an_accent_may_still_change_is_undecided() {
        let scorer = scorer(&["Mali\u{301}"], MatchRule::Exact);
        assert_eq!(scorer.verdict("Mali"), AnswerVerdict::Undecided);
        assert!(scorer.is_correct("Malí"));
    }

    #[test]
    fn wrong_answers_are_classified() {
        let scorer = scorer(&["Italy"], MatchRule::Exact);
        for (text, kind) in [
            (" France\n", WrongKind::OtherEntity),
            ("Trinidad and Tobago", WrongKind::OtherEntity),
            ("None", WrongKind::Refusal),
            ("I don’t know.", WrongKind::Refusal),
            ("As an AI language model", WrongKind::Refusal),
            ("\nItaly", WrongKind::OffFormat),
            ("---", WrongKind::OffFormat),
            ("Bergamo is a city in France", WrongKind::OffFormat),
            ("Which country is that?", WrongKind::OffFormat),
            ("one two three four five six", WrongKind::OffFormat),
        ] {
            assert_eq!(scorer.wrong_kind(text), kind, "{text:?}");
        }
    }

    /// Texts close to an accepted answer, from fragments that normalisation changes.
    fn fragments() -> impl Strategy<Value = String> {
        let fragment = prop::sample::select(vec![
            " ", "the", "The ", "THE", "Cafe", "CAFÉ", "e", "\u{301}", "\u{323}", ".", "\"", "!",
            "!!!", "Σ", "ς", "İ", "ﬁ", "fi", "가", "ᆨ", "각", "\u{a0}", "Ａ", "a", "…", "-", "x",
            "´", "(", ")", "C++", "+", "'", "“", "”", "%",
        ]);
        prop::collection::vec(fragment, 0..6).prop_map(|p| p.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_prefix_of_a_correct_answer_is_wrong(
            form in fragments(), before in fragments(), after in fragments(), same in any::<bool>(),
        ) {
            let scorer = scorer(&[&form], MatchRule::Exact);
            let text = if same { format!("{before}{form}{after}") } else { format!("{before}{after}") };
            if scorer.is_correct(&text) {
                for (end, _) in text.char_indices().chain([(text.len(), ' ')]) {
                    prop_assert_eq!(scorer.verdict(&text[..end]), AnswerVerdict::Undecided, "{:?}", &text[..end]);
                }
            }
        }

        #[test]
        fn every_normal_form_is_correct_in_quotes_and_after_the(form in fragments(), marks in "[ .,!]{0,3}") {
            let normal = super::super::normalise(&form);
            if normal.chars().any(char::is_alphabetic) && !normal.starts_with("the") && !normal.contains(['"', '\'']) {
                let text = format!(" \"the {normal}{marks}\"{marks}\n");
                let scorer = scorer(&[&form], MatchRule::Exact);
                prop_assert!(scorer.is_correct(&text), "{text:?}");
                prop_assert_eq!(scorer.verdict(&text), AnswerVerdict::Undecided);
            }
        }

        #[test]
        fn normalising_twice_changes_nothing_without_a_second_the(text in fragments()) {
            let once = super::super::normalise(&text);
            if !once.starts_with("the") {
                prop_assert_eq!(super::super::normalise(&once), once);
            }
        }
    }
}
