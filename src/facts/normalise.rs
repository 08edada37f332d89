//! Normalisation of answers before they are compared.

use unicode_normalization::UnicodeNormalization;

/// Quotes, which may surround an answer.
const QUOTES: &str = "\"'`‘’‚‛“”„‟«»‹›「」『』〝〞";

/// Brackets, which may surround an answer.
const BRACKETS: [(char, char); 6] = [
    ('(', ')'),
    ('[', ']'),
    ('{', '}'),
    ('〈', '〉'),
    ('《', '》'),
    ('【', '】'),
];

/// Punctuation that may end an answer.
const END_MARKS: &str = ".,;:!?";

/// Whether `c` can stand in front of an answer and be no part of it.
pub(super) fn is_before_answer(c: char) -> bool {
    c.is_whitespace() || QUOTES.contains(c) || BRACKETS.iter().any(|(open, _)| *open == c)
}

/// Whether `c` can stand behind an answer and be no part of it.
pub(super) fn is_after_answer(c: char) -> bool {
    c.is_whitespace()
        || QUOTES.contains(c)
        || END_MARKS.contains(c)
        || BRACKETS.iter().any(|(_, close)| *close == c)
}

/// NFKD without case and with single spaces, the form in which texts are compared.
///
/// Two texts are equal in NFKD exactly when they are equal in NFKC. NFKD is used because the decomposition of a prefix is a
/// prefix of the decomposition, apart from trailing combining marks, and a streamed answer is compared prefix by prefix.
/// Case is folded character by character, so that it doesn't depend on the next one.
pub(super) fn fold(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    for c in text.nfkd() {
        if !c.is_whitespace() {
            fold_case(c, &mut folded);
        } else if !folded.ends_with(' ') {
            folded.push(' ');
        }
    }
    folded
}

/// Unicode's full case folding of one character (`ß` is `ss`), as Python's `casefold`.
pub(crate) fn fold_case(c: char, folded: &mut String) {
    match c {
        // The capital of the first is that of `i`; Cherokee folds to capitals.
        'ı' | 'Ꭰ'..='Ᏽ' => folded.push(c),
        'ꭰ'..='ꮿ' | 'ᏸ'..='ᏽ' => folded.extend(c.to_uppercase()),
        _ => {
            let upper = c.to_lowercase().flat_map(char::to_uppercase);
            let lower = upper.flat_map(char::to_lowercase);
            folded.extend(lower.map(|c| if c == 'ς' { 'σ' } else { c }));
        }
    }
}

/// `text` up to its first line break.
pub(super) fn first_line(text: &str) -> &str {
    text.split('\n').next().unwrap_or_default()
}

/// Removes from a folded text what surrounds an answer: white space, quotes and brackets around all of it, sentence punctuation at its
/// end, and one leading "the". Symbols stay. A text of these marks alone (`!!!`, a band) keeps them.
pub(super) fn strip(folded: &str) -> &str {
    let mut text = bare(folded);
    if let Some(rest) = text.strip_prefix("the ") {
        text = bare(rest);
    }
    text
}

/// The text within what surrounds it.
fn bare(text: &str) -> &str {
    let mut text = text.trim();
    loop {
        let unpunctuated = text.trim_end_matches(|c| END_MARKS.contains(c)).trim_end();
        let inner = enclosed(unpunctuated).unwrap_or(unpunctuated).trim();
        if inner.is_empty() || inner.len() == text.len() {
            return text;
        }
        text = inner;
    }
}

/// The text inside one pair of quotes or brackets that encloses all of `text`.
fn enclosed(text: &str) -> Option<&str> {
    let (open, close) = (text.chars().next()?, text.chars().next_back()?);
    let inner = text.get(open.len_utf8()..text.len() - close.len_utf8())?;
    if QUOTES.contains(open) && QUOTES.contains(close) {
        // An apostrophe stands between letters, a quote does not.
        let is_quote = |(i, c): (usize, char)| {
            let before = inner[..i].chars().next_back();
            let after = inner[i + c.len_utf8()..].chars().next();
            let in_word = before.is_some_and(char::is_alphanumeric)
                && after.is_some_and(char::is_alphanumeric);
            (c == open || c == close) && !in_word
        };
        return (!inner.char_indices().any(is_quote)).then_some(inner);
    }
    let pair = BRACKETS.iter().find(|pair| **pair == (open, close))?;
    let mut depth = 0_usize;
    for c in inner.chars() {
        if c == pair.0 {
            depth += 1;
        } else if c == pair.1 {
            depth = depth.checked_sub(1)?;
        }
    }
    (depth == 0).then_some(inner)
}

/// The normal form of an answer: its first line in NFKC, case folded, with single spaces, without quotes and brackets around it,
/// sentence punctuation at its end, and a leading "the".
///
/// ```
/// use unforget::facts::normalise;
///
/// assert_eq!(normalise(" The Netherlands.\nQ:"), "netherlands");
/// assert_eq!(normalise("\"C++\""), "c++");
/// ```
pub fn normalise(text: &str) -> String {
    strip(&fold(first_line(text))).nfc().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_quotes_end_marks_and_a_leading_the_are_ignored() {
        for text in [
            "Gambia",
            " gambia\n",
            "The Gambia.",
            "«the  GAMBIA»",
            "\u{a0}Ｇａｍｂｉａ!",
            "\"The\u{a0}Gambia\"\nQ: more",
            "`Gambia`",
            "\t(Gambia)\r\n",
            "“Gambia”.",
            "\"Gambia.\"",
            "[The 'Gambia']",
            "Gambia ...",
        ] {
            assert_eq!(normalise(text), "gambia", "{text:?}");
        }
    }

    /// Normal forms by `tests/golden/answers.py`.
    #[test]
    fn normal_forms_are_those_of_a_second_writing_of_the_rule() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/answers.json");
        let golden: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let pairs: Vec<(String, String)> =
            serde_json::from_value(golden["answers"].clone()).unwrap();
        let wrong: Vec<_> = pairs
            .iter()
            .filter(|(text, normal)| normalise(text) != *normal)
            .map(|(text, normal)| format!("{text:?}: {:?}, not {normal:?}", normalise(text)))
            .collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        let folds = golden["folds"].as_object().unwrap();
        assert!(pairs.len() > 500 && folds.len() > 800);
        for (c, folded) in folds {
            let mut ours = String::new();
            c.chars().for_each(|c| fold_case(c, &mut ours));
            assert_eq!(ours, folded.as_str().unwrap(), "{c:?}");
        }
    }

    #[test]
    fn symbols_tell_answers_apart() {
        let answers = [
            "C", "C++", "C#", "F#", "F", "A+", "A", "A-", "-5", "5", "50%", "50", "#1", "1", "$5",
            "5°", "*", "**", ".NET", "NET", "@home", "home", "5'", "a/b", "<b>", "b", "~x", "x",
            "&c", "_x", "C*", "^", "=", "+",
        ];
        let normal: std::collections::HashSet<String> =
            answers.iter().map(|a| normalise(a)).collect();
        assert_eq!(normal.len(), answers.len());
    }

    #[test]
    fn inner_punctuation_accents_and_words_that_begin_with_the_are_kept() {
        for (text, normal) in [
            ("Guinea-Bissau", "guinea-bissau"),
            ("Côte d'Ivoire", "côte d'ivoire"),
            ("Co\u{302}te d'Ivoire", "côte d'ivoire"),
            ("Thebes", "thebes"),
            ("The", "the"),
            ("the the band", "the band"),
            ("Paris (France)", "paris (france)"),
            ("(a) or (b)", "(a) or (b)"),
            ("\"a\" or \"b\"", "\"a\" or \"b\""),
            ("'Rock 'n' Roll'", "'rock 'n' roll'"),
            ("'don't'", "don't"),
            ("Yahoo!", "yahoo"),
            ("U.S.", "u.s"),
            ("Straße", "strasse"),
        ] {
            assert_eq!(normalise(text), normal, "{text:?}");
        }
    }

    #[test]
    fn only_the_first_line_counts() {
        assert_eq!(normalise("\nItaly"), "");
        assert_eq!(normalise("Italy\nFrance"), "italy");
    }

    #[test]
    fn an_answer_of_punctuation_alone_keeps_it() {
        assert_eq!(normalise(" !!! "), "!!!");
        assert_eq!(normalise("\"\""), "\"\"");
    }

    #[test]
    fn final_and_medial_sigma_are_equal() {
        assert_eq!(normalise("ΟΔΥΣΣΕΥΣ"), normalise("Οδυσσευς"));
    }
}
