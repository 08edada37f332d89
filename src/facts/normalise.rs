//! The form in which two answers are compared.

use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// Whether `c` is stripped at the ends of an answer: white space, any Unicode punctuation, and ASCII's symbols such as
/// `` ` `` and `~`, which models put around answers too.
pub(super) fn is_strippable(c: char) -> bool {
    c.is_whitespace()
        || c.is_ascii_punctuation()
        || c.general_category_group() == GeneralCategoryGroup::Punctuation
}

/// Compatibility-decomposed and without case: what all comparisons are made on.
///
/// Decomposed (NFKD) rather than composed: two texts are equal under one exactly when they are equal under the other, and
/// a decomposed text only grows at its end when the text does, which an answer that is still being written needs.
/// Case is folded character by character, both lower-case sigmas being one, so that it doesn't depend on what follows.
pub(super) fn fold(text: &str) -> String {
    text.nfkd()
        .flat_map(char::to_lowercase)
        .map(|c| if c == 'ς' { 'σ' } else { c })
        .collect()
}

/// The first line of `text`: all before its first line break.
pub(super) fn first_line(text: &str) -> &str {
    text.split('\n').next().unwrap_or_default()
}

/// Strips outer white space and punctuation and one leading "the" from a folded text. A text of nothing but punctuation
/// (`!!!`, a band) keeps it.
pub(super) fn strip(folded: &str) -> &str {
    let trimmed = folded.trim_matches(is_strippable);
    if trimmed.is_empty() {
        return folded.trim();
    }
    match trimmed.strip_prefix("the") {
        Some(rest) if rest.starts_with(char::is_whitespace) => {
            rest.trim_start_matches(is_strippable)
        }
        _ => trimmed,
    }
}

/// The normal form of an answer: its first line in Unicode NFKC, without case, outer white space and punctuation, and
/// without a leading "the".
///
/// ```
/// assert_eq!(unforget::facts::normalise(" The Netherlands.\nQ:"), "netherlands");
/// ```
pub fn normalise(text: &str) -> String {
    strip(&fold(first_line(text))).nfc().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_outer_marks_and_a_leading_the_do_not_count() {
        for text in [
            "Gambia",
            " gambia\n",
            "The Gambia.",
            "«the  GAMBIA»",
            "**Gambia**",
            "\u{a0}Ｇａｍｂｉａ!",
            "\"The\u{a0}Gambia\"\nQ: more",
            "`Gambia`",
            "\t(Gambia)\r\n",
        ] {
            assert_eq!(normalise(text), "gambia", "{text:?}");
        }
    }

    #[test]
    fn inner_marks_accents_and_words_that_begin_with_the_count() {
        assert_eq!(normalise("Guinea-Bissau"), "guinea-bissau");
        assert_eq!(normalise("Côte d'Ivoire"), "côte d'ivoire");
        assert_eq!(normalise("Co\u{302}te d'Ivoire"), "côte d'ivoire");
        assert_eq!(normalise("Thebes"), "thebes");
        assert_eq!(normalise("The"), "the");
        assert_eq!(normalise("the the band"), "the band");
    }

    #[test]
    fn only_the_first_line_counts() {
        assert_eq!(normalise("\nItaly"), "");
        assert_eq!(normalise("Italy\nFrance"), "italy");
    }

    #[test]
    fn an_answer_of_punctuation_alone_keeps_it() {
        assert_eq!(normalise(" !!! "), "!!!");
    }

    #[test]
    fn sigma_is_one_letter_wherever_it_stands() {
        assert_eq!(normalise("ΟΔΥΣΣΕΥΣ"), normalise("Οδυσσευς"));
    }
}
