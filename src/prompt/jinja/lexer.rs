//! A template as tokens, with Jinja's rules for white space around tags (`trim_blocks` and `lstrip_blocks` are on).

use super::{
    fault::{Fault, Result},
    value::is_space,
};

/// A token.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// Text outside of tags.
    Text(String),
    /// `{{`
    VariableBegin,
    /// `}}`
    VariableEnd,
    /// `{%`
    BlockBegin,
    /// `%}`
    BlockEnd,
    Name(String),
    Str(String),
    Int(i128),
    Float(f64),
    /// An operator or a bracket.
    Op(&'static str),
    End,
}

/// Operators, those that begin like another one first.
const OPERATORS: [&str; 27] = [
    "**", "//", "==", "!=", ">=", "<=", "+", "-", "*", "/", "%", "~", "[", "]", "(", ")", "{", "}",
    ">", "<", "=", ".", ":", "|", ",", ";", "!",
];

/// The tokens of a template with their lines.
pub(super) fn tokens(source: &str) -> Result<Vec<(Token, usize)>> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    // As `keep_trailing_newline = False`.
    let source = source.strip_suffix('\n').unwrap_or(&source);
    let mut lexer = Lexer {
        source,
        at: 0,
        line: 1,
        starts_line: true,
        tokens: Vec::new(),
    };
    lexer.run()?;
    let line = lexer.line;
    lexer.tokens.push((Token::End, line));
    Ok(lexer.tokens)
}

struct Lexer<'s> {
    source: &'s str,
    at: usize,
    line: usize,
    /// Whether the text before `at` ends a line.
    starts_line: bool,
    tokens: Vec<(Token, usize)>,
}

impl Lexer<'_> {
    fn rest(&self) -> &str {
        &self.source[self.at..]
    }

    fn push(&mut self, token: Token) {
        self.tokens.push((token, self.line));
    }

    /// Moves on by `bytes`, counting lines.
    fn skip(&mut self, bytes: usize) {
        let skipped = &self.source[self.at..self.at + bytes];
        self.line += skipped.matches('\n').count();
        if bytes > 0 {
            self.starts_line = skipped.ends_with('\n');
        }
        self.at += bytes;
    }

    fn run(&mut self) -> Result<()> {
        while self.at < self.source.len() {
            let rest = self.rest();
            let tag = ["{{", "{%", "{#"]
                .into_iter()
                .filter_map(|tag| rest.find(tag).map(|at| (at, tag)))
                .min();
            let Some((at, tag)) = tag else {
                let text = rest.to_owned();
                let bytes = text.len();
                self.push(Token::Text(text));
                self.skip(bytes);
                return Ok(());
            };
            self.text_before_tag(at, tag);
            let sign = usize::from(self.rest()[2..].starts_with(['-', '+']));
            match tag {
                "{#" => self.comment(sign)?,
                "{%" if self.raw_begin(sign).is_some() => self.raw(sign)?,
                "{%" => {
                    self.push(Token::BlockBegin);
                    self.skip(2 + sign);
                    self.expression("%}", Token::BlockEnd)?;
                }
                _ => {
                    self.push(Token::VariableBegin);
                    self.skip(2 + sign);
                    self.expression("}}", Token::VariableEnd)?;
                }
            }
        }
        Ok(())
    }

    /// Emits the text before a tag, without the white space that the tag removes.
    fn text_before_tag(&mut self, bytes: usize, tag: &str) {
        let text = &self.rest()[..bytes];
        let sign = self.rest()[bytes + tag.len()..].chars().next();
        let kept = self.strip_before(text, sign, tag != "{{").to_owned();
        if !kept.is_empty() {
            self.push(Token::Text(kept));
        }
        self.skip(bytes);
    }

    fn strip_before<'t>(&self, text: &'t str, sign: Option<char>, lstrip: bool) -> &'t str {
        match sign {
            Some('-') => text.trim_end_matches(is_space),
            Some('+') => text,
            _ if lstrip => {
                let line_start = text.rfind('\n').map_or(0, |i| i + 1);
                let is_blank = text[line_start..].chars().all(is_space);
                if is_blank && (line_start > 0 || self.starts_line) {
                    &text[..line_start]
                } else {
                    text
                }
            }
            _ => text,
        }
    }

    /// Moves past the end of a tag that begins at `at`, and past the white space that it removes.
    fn skip_end(&mut self, end: &str, trims_line: bool) {
        let rest = self.rest();
        let (sign, after) = match rest.as_bytes()[0] {
            b'-' | b'+' => (Some(rest.as_bytes()[0]), &rest[1 + end.len()..]),
            _ => (None, &rest[end.len()..]),
        };
        let removed = match sign {
            Some(b'-') => after.len() - after.trim_start_matches(is_space).len(),
            None if trims_line && after.starts_with('\n') => 1,
            _ => 0,
        };
        let bytes = rest.len() - after.len() + removed;
        self.skip(bytes);
    }

    fn comment(&mut self, sign: usize) -> Result<()> {
        let line = self.line;
        let body = &self.rest()[2 + sign..];
        let Some(end) = body.find("#}") else {
            return Err(Fault::syntax(line, "Missing end of comment tag"));
        };
        let end = end - usize::from(body[..end].ends_with(['-', '+']));
        self.skip(2 + sign + end);
        self.skip_end("#}", true);
        Ok(())
    }

    /// The length of `{% raw %}` from here; `None` if this is another tag.
    fn raw_begin(&self, sign: usize) -> Option<usize> {
        let rest = self.rest();
        let after = rest[2 + sign..].trim_start_matches(is_space);
        let after = after.strip_prefix("raw")?.trim_start_matches(is_space);
        let after = match after.strip_prefix("-%}") {
            Some(after) => after.trim_start_matches(is_space),
            None => after.strip_prefix("%}")?,
        };
        Some(rest.len() - after.len())
    }

    fn raw(&mut self, sign: usize) -> Result<()> {
        let line = self.line;
        let begin = self.raw_begin(sign).expect("the caller has looked");
        self.skip(begin);
        let body = self.rest().to_owned();
        let mut from = 0;
        while let Some(at) = body[from..].find("{%").map(|i| from + i) {
            let inner = &body[at + 2..];
            let sign = inner.chars().next().filter(|c| matches!(c, '-' | '+'));
            let name = inner[sign.map_or(0, char::len_utf8)..].trim_start_matches(is_space);
            let end = name
                .strip_prefix("endraw")
                .map(|after| after.trim_start_matches(is_space));
            if let Some(after) =
                end.filter(|e| ["%}", "-%}", "+%}"].iter().any(|x| e.starts_with(x)))
            {
                let kept = self.strip_before(&body[..at], sign, true).to_owned();
                if !kept.is_empty() {
                    self.push(Token::Text(kept));
                }
                self.skip(body.len() - after.len());
                self.skip_end("%}", true);
                return Ok(());
            }
            from = at + 2;
        }
        Err(Fault::syntax(line, "Missing end of raw directive"))
    }

    /// Emits the tokens up to the end of a tag.
    fn expression(&mut self, end: &'static str, end_token: Token) -> Result<()> {
        let opening_line = self.line;
        let mut open: Vec<char> = Vec::new();
        loop {
            let space = self.rest().len() - self.rest().trim_start_matches(is_space).len();
            self.skip(space);
            let rest = self.rest();
            let Some(c) = rest.chars().next() else {
                let words = format!("the tag has no `{end}`");
                return Err(Fault::syntax(opening_line, words));
            };
            let is_block = end == "%}";
            if open.is_empty() {
                let signed = rest.strip_prefix('-').is_some_and(|r| r.starts_with(end))
                    || is_block && rest.strip_prefix('+').is_some_and(|r| r.starts_with(end));
                if signed || rest.starts_with(end) {
                    self.push(end_token);
                    self.skip_end(end, is_block);
                    return Ok(());
                }
            }
            if c.is_ascii_digit() {
                self.number()?;
            } else if c.is_alphanumeric() || c == '_' {
                let name: String = rest
                    .chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect();
                let bytes = name.len();
                self.push(Token::Name(name));
                self.skip(bytes);
            } else if c == '"' || c == '\'' {
                self.string(c)?;
            } else {
                self.operator(&mut open)?;
            }
        }
    }

    fn operator(&mut self, open: &mut Vec<char>) -> Result<()> {
        let rest = self.rest();
        let Some(operator) = OPERATORS.into_iter().find(|o| rest.starts_with(o)) else {
            let c = rest.chars().next().unwrap_or(' ');
            return Err(Fault::syntax(self.line, format!("unexpected char {c:?}")));
        };
        let closes = |open: &mut Vec<char>, bracket| open.pop() == Some(bracket);
        let balanced = match operator {
            "(" | "[" | "{" => {
                open.extend(operator.chars());
                true
            }
            ")" => closes(open, '('),
            "]" => closes(open, '['),
            "}" => closes(open, '{'),
            _ => true,
        };
        if !balanced {
            return Err(Fault::syntax(self.line, format!("unexpected '{operator}'")));
        }
        self.push(Token::Op(operator));
        self.skip(operator.len());
        Ok(())
    }

    fn number(&mut self) -> Result<()> {
        let rest = self.rest();
        let digits = |text: &str| {
            text.bytes()
                .take_while(|b| b.is_ascii_digit() || *b == b'_')
                .count()
        };
        let radix = match rest.get(..2).map(str::to_ascii_lowercase).as_deref() {
            Some("0x") => Some(16),
            Some("0o") => Some(8),
            Some("0b") => Some(2),
            _ => None,
        };
        if let Some(radix) = radix {
            let bytes = rest[2..]
                .chars()
                .take_while(|c| c.is_digit(radix) || *c == '_')
                .count();
            let text = rest[2..2 + bytes].replace('_', "");
            let value = i128::from_str_radix(&text, radix)
                .map_err(|e| Fault::syntax(self.line, format!("the number is not valid: {e}")))?;
            self.push(Token::Int(value));
            self.skip(2 + bytes);
            return Ok(());
        }
        let mut bytes = digits(rest);
        let mut is_float = false;
        let fraction = rest[bytes..].strip_prefix('.').map_or(0, digits);
        if fraction > 0 {
            is_float = true;
            bytes += 1 + fraction;
        }
        if let Some(exponent) = rest[bytes..].strip_prefix(['e', 'E']) {
            let sign = usize::from(exponent.starts_with(['+', '-']));
            let count = digits(&exponent[sign..]);
            if count > 0 {
                is_float = true;
                bytes += 1 + sign + count;
            }
        }
        let text = rest[..bytes].replace('_', "");
        let token = if is_float {
            text.parse().ok().map(Token::Float)
        } else {
            text.parse().ok().map(Token::Int)
        };
        let too_long = || Fault::syntax(self.line, format!("the number {text} is too large"));
        let token = token.ok_or_else(too_long)?;
        self.push(token);
        self.skip(bytes);
        Ok(())
    }

    fn string(&mut self, quote: char) -> Result<()> {
        let line = self.line;
        let mut text = String::new();
        let rest = self.rest().to_owned();
        let mut chars = rest.char_indices().skip(1).peekable();
        while let Some((i, c)) = chars.next() {
            if c == quote {
                self.push(Token::Str(text));
                self.skip(i + 1);
                return Ok(());
            }
            if c != '\\' {
                text.push(c);
                continue;
            }
            let Some((_, escaped)) = chars.next() else {
                break;
            };
            let hex_digits = match escaped {
                'x' => 2,
                'u' => 4,
                'U' => 8,
                _ => 0,
            };
            match escaped {
                '\n' => {}
                'n' => text.push('\n'),
                't' => text.push('\t'),
                'r' => text.push('\r'),
                'a' => text.push('\x07'),
                'b' => text.push('\x08'),
                'f' => text.push('\x0c'),
                'v' => text.push('\x0b'),
                '\\' | '\'' | '"' => text.push(escaped),
                'x' | 'u' | 'U' => {
                    let digits: String = chars.by_ref().take(hex_digits).map(|(_, c)| c).collect();
                    let code = u32::from_str_radix(&digits, 16).ok();
                    let code = code.filter(|_| digits.len() == hex_digits);
                    let Some(c) = code.and_then(char::from_u32) else {
                        let words = format!("a text has the escape \\{escaped}{digits}");
                        return Err(Fault::syntax(line, words));
                    };
                    text.push(c);
                }
                'N' if chars.peek().is_some_and(|(_, c)| *c == '{') => {
                    let fault = Fault::not_offered("`\\N{...}`, a character by its name");
                    return Err(fault.at(line));
                }
                '0'..='7' => {
                    let mut code = escaped.to_digit(8).unwrap_or(0);
                    for _ in 0..2 {
                        let digit = chars.peek().and_then(|(_, c)| c.to_digit(8));
                        let Some(digit) = digit else { break };
                        code = code * 8 + digit;
                        chars.next();
                    }
                    text.push(char::from_u32(code).unwrap_or('\u{fffd}'));
                }
                other => {
                    text.push('\\');
                    text.push(other);
                }
            }
        }
        Err(Fault::syntax(line, "a text has no closing quote"))
    }
}
