//! Normalisation of answers before they are compared.

use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// Whether `c` is stripped from the ends of an answer: white space, Unicode punctuation, and ASCII symbols such as `` ` `` and `~`.
pub(super) fn is_strippable(c: char) -> bool {
    c.is_whitespace()
        || c.is_ascii_punctuation()
        || c.general_category_group() == GeneralCategoryGroup::Punctuation
}

/// NFKD without case, the form in which texts are compared.
///
/// Two texts are equal in NFKD exactly when they are equal in NFKC. NFKD is used because the decomposition of a prefix is a
/// prefix of the decomposition, apart from trailing combining marks, and a streamed answer is compared prefix by prefix.
/// Case is folded character by character, with one lower-case sigma, so that it doesn't depend on the next character.
pub(super) fn fold(text: &str) -> String {
    text.nfkd()
        .flat_map(char::to_lowercase)
        .map(|c| if c == 'ς' { 'σ' } else { c })
        .collect()
}

/// `text` up to its first line break.
pub(super) fn first_line(text: &str) -> &str {
    text.split('\n').next().unwrap_or_default()
}

/// Strips outer white space and punctuation and one leading "the" from a folded text. A text of punctuation alone (`!!!`, a band)
/// keeps it.
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

/// The normal form of an answer: its first line in NFKC, without case, outer white space and punctuation, and a leading "the".
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
    fn case_outer_punctuation_and_a_leading_the_are_ignored() {
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
    fn inner_punctuation_accents_and_words_that_begin_with_the_are_kept() {
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
    fn final_and_medial_sigma_are_equal() {
        assert_eq!(normalise("ΟΔΥΣΣΕΥΣ"), normalise("Οδυσσευς"));
    }
}
