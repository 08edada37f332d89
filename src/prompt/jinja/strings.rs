//! Python's operations on texts.

use std::ops::Range;

use super::{
    fault::Result,
    ops::check_len,
    value::{Value, is_printable, is_space},
};
use crate::facts::fold_case;

/// The lines of a text: each without its end, and where the next one begins.
pub(super) fn lines(text: &str) -> Vec<(Range<usize>, usize)> {
    let mut lines = Vec::new();
    let mut start = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((i, c)) = chars.next() {
        let is_break = matches!(
            c,
            '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}'
        );
        if !is_break {
            continue;
        }
        let mut end = i + c.len_utf8();
        if c == '\r' && matches!(chars.peek(), Some((_, '\n'))) {
            chars.next();
            end += 1;
        }
        lines.push((start..i, end));
        start = end;
    }
    if start < text.len() {
        lines.push((start..text.len(), text.len()));
    }
    lines
}

/// `text[start:end]` in characters.
pub(super) fn sub(text: &str, start: i128, end: i128) -> &str {
    let len = text.chars().count() as i128;
    let clamp = |i: i128| (if i < 0 { i + len } else { i }).clamp(0, len) as usize;
    let (start, end) = (clamp(start), clamp(end));
    if start >= end {
        return "";
    }
    let byte = |n: usize| text.char_indices().nth(n).map_or(text.len(), |(i, _)| i);
    &text[byte(start)..byte(end)]
}

pub(super) fn strip<'t>(text: &'t str, chars: Option<&str>, left: bool, right: bool) -> &'t str {
    let removed = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left {
        text.trim_start_matches(removed)
    } else {
        text
    };
    if right {
        text.trim_end_matches(removed)
    } else {
        text
    }
}

/// Words between white space, at most `limit` splits.
pub(super) fn split_space(text: &str, limit: usize) -> Vec<Value> {
    let mut parts = Vec::new();
    let mut rest = text.trim_start_matches(is_space);
    while !rest.is_empty() {
        if parts.len() == limit {
            parts.push(rest.trim_end_matches(is_space).into());
            break;
        }
        let end = rest.find(is_space).unwrap_or(rest.len());
        parts.push(rest[..end].into());
        rest = rest[end..].trim_start_matches(is_space);
    }
    parts
}

pub(super) fn rsplit_space(text: &str, limit: usize) -> Vec<Value> {
    let mut parts = Vec::new();
    let mut rest = text.trim_end_matches(is_space);
    while !rest.is_empty() {
        if parts.len() == limit {
            parts.push(rest.trim_start_matches(is_space).into());
            break;
        }
        let space = rest.char_indices().rev().find(|(_, c)| is_space(*c));
        let start = space.map_or(0, |(i, c)| i + c.len_utf8());
        parts.push(rest[start..].into());
        rest = rest[..start].trim_end_matches(is_space);
    }
    parts.reverse();
    parts
}

pub(super) fn replace(text: &str, old: &str, new: &str, count: i128) -> Result<Value> {
    let count = usize::try_from(count).unwrap_or(usize::MAX);
    let places = if old.is_empty() {
        text.chars().count() + 1
    } else {
        text.matches(old).count()
    };
    check_len(text.len() + places.min(count).saturating_mul(new.len()))?;
    Ok(text.replacen(old, new, count).into())
}

/// Whether Python calls the character cased.
fn is_cased(c: char) -> bool {
    c.is_lowercase() || c.is_uppercase() || is_title(c)
}

/// Letters in title case: `ǅ` and its like.
fn is_title(c: char) -> bool {
    matches!(c, 'ǅ' | 'ǈ' | 'ǋ' | 'ǲ')
        || ('\u{1f88}'..='\u{1faf}').contains(&c) && (c as u32) & 8 != 0
        || matches!(c, '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}')
}

/// One character in title case.
fn push_title(c: char, out: &mut String) {
    match c {
        'Ǆ' | 'ǅ' | 'ǆ' => out.push('ǅ'),
        'Ǉ' | 'ǈ' | 'ǉ' => out.push('ǈ'),
        'Ǌ' | 'ǋ' | 'ǌ' => out.push('ǋ'),
        'Ǳ' | 'ǲ' | 'ǳ' => out.push('ǲ'),
        // Georgian letters have capitals, but no title case.
        '\u{10d0}'..='\u{10ff}' => out.push(c),
        _ => {
            let mut upper = c.to_uppercase();
            out.extend(upper.next());
            out.extend(upper.flat_map(char::to_lowercase));
        }
    }
}

pub(super) fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut after_cased = false;
    for (i, c) in text.char_indices() {
        if after_cased {
            push_lower(text, i, c, &mut out);
        } else {
            push_title(c, &mut out);
        }
        after_cased = is_cased(c);
    }
    out
}

pub(super) fn capitalize(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (i, c) in text.char_indices() {
        if i == 0 {
            push_title(c, &mut out);
        } else {
            push_lower(text, i, c, &mut out);
        }
    }
    out
}

/// The lower case of the character at `i`; a sigma that ends a word has its own form.
fn push_lower(text: &str, i: usize, c: char, out: &mut String) {
    if c == 'Σ' {
        let ends_word = text[..i]
            .chars()
            .next_back()
            .is_some_and(char::is_alphabetic)
            && !text[i + c.len_utf8()..]
                .chars()
                .next()
                .is_some_and(char::is_alphabetic);
        out.push(if ends_word { 'ς' } else { 'σ' });
    } else {
        out.extend(c.to_lowercase());
    }
}

pub(super) fn swapcase(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for (i, c) in text.char_indices() {
        if c.is_uppercase() {
            push_lower(text, i, c, &mut out);
        } else if c.is_lowercase() {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
    }
    out
}

pub(super) fn casefold(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    for c in text.chars() {
        fold_case(c, &mut folded);
    }
    folded
}

pub(super) fn justify(text: &str, name: &str, width: usize, fill: char) -> String {
    let len = text.chars().count();
    let missing = width.saturating_sub(len);
    let fill_text = |n: usize| fill.to_string().repeat(n);
    match name {
        "ljust" => format!("{text}{}", fill_text(missing)),
        "rjust" => format!("{}{text}", fill_text(missing)),
        "zfill" => {
            let (sign, digits) = match text.strip_prefix(['+', '-']) {
                Some(digits) => text.split_at(text.len() - digits.len()),
                None => ("", text),
            };
            format!("{sign}{}{digits}", "0".repeat(missing))
        }
        _ => {
            // CPython puts the odd one on the left where the width is odd.
            let left = missing / 2 + (missing & width & 1);
            format!("{}{text}{}", fill_text(left), fill_text(missing - left))
        }
    }
}

pub(super) fn expand_tabs(text: &str, size: usize) -> String {
    let mut out = String::with_capacity(text.len());
    let mut column = 0;
    for c in text.chars() {
        match c {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                out.push_str(&" ".repeat(spaces));
                column += spaces;
            }
            '\t' => {}
            _ => {
                out.push(c);
                column = if matches!(c, '\n' | '\r') {
                    0
                } else {
                    column + 1
                };
            }
        }
    }
    out
}

/// `text.isalpha()` and the like; `None` for one that is not offered.
pub(super) fn is_kind(text: &str, name: &str) -> Option<bool> {
    let all = |holds: fn(char) -> bool| !text.is_empty() && text.chars().all(holds);
    Some(match name {
        "isascii" => text.is_ascii(),
        "isalpha" => all(is_letter),
        "isalnum" => all(|c| is_letter(c) || c.is_numeric()),
        "isdigit" | "isdecimal" => all(|c| c.is_numeric() && digit_value(c)),
        "isnumeric" => all(char::is_numeric),
        "isspace" => all(is_space),
        "isprintable" => text.chars().all(is_printable),
        "isidentifier" => {
            let mut chars = text.chars();
            chars.next().is_some_and(|c| is_letter(c) || c == '_')
                && chars.all(|c| is_letter(c) || c.is_numeric() || c == '_')
        }
        "islower" => {
            text.chars().any(char::is_lowercase)
                && !text.chars().any(|c| c.is_uppercase() || is_title(c))
        }
        "isupper" => {
            text.chars().any(char::is_uppercase)
                && !text.chars().any(|c| c.is_lowercase() || is_title(c))
        }
        "istitle" => {
            let (mut after_cased, mut any) = (false, false);
            for c in text.chars() {
                let begins = c.is_uppercase() || is_title(c);
                if begins && after_cased || c.is_lowercase() && !after_cased {
                    return Some(false);
                }
                after_cased = is_cased(c);
                any |= after_cased;
            }
            any
        }
        _ => return None,
    })
}

/// A letter, in Python's sense: not a mark, which Rust may call alphabetic.
fn is_letter(c: char) -> bool {
    use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory as _};
    c.general_category_group() == GeneralCategoryGroup::Letter
}

/// A decimal digit of any script.
fn digit_value(c: char) -> bool {
    use unicode_properties::{GeneralCategory, UnicodeGeneralCategory as _};
    c.general_category() == GeneralCategory::DecimalNumber
}
