//! Records of CSV and TSV: fields between separators, in quotes where they contain separators, quotes or line breaks.
//!
//! What pandas and Python's `csv` would read is read in the same way, or refused: an open quote would swallow the rows behind it, and
//! text behind a closing quote is joined to the field by some readers and dropped by others.

use super::{
    bad_row::BadRow,
    source::{BYTE_ORDER_MARK, Separator},
};

/// A record and the line on which it begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) line: usize,
    pub(super) fields: Vec<Vec<u8>>,
}

/// The records of a table. A record that is broken ends with its line.
pub(super) struct Records<'b> {
    bytes: &'b [u8],
    at: usize,
    line: usize,
    separator: u8,
}

impl<'b> Records<'b> {
    pub(super) const fn new(bytes: &'b [u8], separator: Separator) -> Self {
        Self {
            bytes,
            at: 0,
            line: 1,
            separator: separator.byte(),
        }
    }

    fn byte(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// Moves past a line break, if one stands here: `\n`, `\r\n` or `\r`.
    fn skip_line_break(&mut self) -> bool {
        match self.byte() {
            Some(b'\r') => {
                self.at += 1 + usize::from(self.bytes.get(self.at + 1) == Some(&b'\n'));
            }
            Some(b'\n') => self.at += 1,
            _ => return false,
        }
        self.line += 1;
        true
    }

    /// Skips lines without anything but white space.
    fn skip_blank_lines(&mut self) {
        loop {
            let rest = &self.bytes[self.at..];
            let is_blank = |b: &&u8| **b != self.separator && matches!(**b, b' ' | b'\t');
            let blank = rest.iter().take_while(is_blank).count();
            match rest.get(blank) {
                Some(b'\r' | b'\n') => {
                    self.at += blank;
                    self.skip_line_break();
                }
                None => {
                    self.at = self.bytes.len();
                    return;
                }
                Some(_) => return,
            }
        }
    }

    fn skip_line(&mut self) {
        while !matches!(self.byte(), None | Some(b'\r' | b'\n')) {
            self.at += 1;
        }
        self.skip_line_break();
    }

    fn record(&mut self) -> Result<Record, BadRow> {
        let line = self.line;
        if self.bytes[self.at..].starts_with(BYTE_ORDER_MARK) {
            let reason = "a byte order mark (U+FEFF) stands here: two files were joined; remove it, and the column names behind it";
            return Err(BadRow::row(line, reason));
        }
        let mut fields = Vec::new();
        loop {
            fields.push(self.field()?);
            match self.byte() {
                Some(b) if b == self.separator => self.at += 1,
                _ => {
                    self.skip_line_break();
                    return Ok(Record { line, fields });
                }
            }
        }
    }

    fn field(&mut self) -> Result<Vec<u8>, BadRow> {
        if self.byte() != Some(b'"') {
            let rest = &self.bytes[self.at..];
            let is_inside = |b: &&u8| **b != self.separator && !matches!(**b, b'\r' | b'\n');
            let field: Vec<u8> = rest.iter().take_while(is_inside).copied().collect();
            self.at += field.len();
            return Ok(field);
        }
        let opened = self.line;
        self.at += 1;
        let mut field = Vec::new();
        loop {
            match self.byte() {
                None => {
                    let reason = "a quote opens here and is not closed; a quote that belongs to the text is doubled, in a field in quotes";
                    return Err(BadRow::row(opened, reason));
                }
                Some(b'"') if self.bytes.get(self.at + 1) == Some(&b'"') => {
                    field.push(b'"');
                    self.at += 2;
                }
                Some(b'"') => {
                    self.at += 1;
                    break;
                }
                Some(b @ (b'\r' | b'\n')) => {
                    field.push(b);
                    if b == b'\r' && self.bytes.get(self.at + 1) == Some(&b'\n') {
                        field.push(b'\n');
                    }
                    self.skip_line_break();
                }
                Some(b) => {
                    field.push(b);
                    self.at += 1;
                }
            }
        }
        match self.byte() {
            None | Some(b'\r' | b'\n') => Ok(field),
            Some(b) if b == self.separator => Ok(field),
            Some(_) => {
                let place = if self.line == opened {
                    "text stands behind a closing quote".to_owned()
                } else {
                    format!(
                        "a quote opens here and closes in line {}, where text stands behind it",
                        self.line
                    )
                };
                let reason = format!(
                    "{place}; a quote that belongs to the text is doubled, in a field in quotes"
                );
                Err(BadRow::row(opened, reason))
            }
        }
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Record, BadRow>;

    fn next(&mut self) -> Option<Self::Item> {
        self.skip_blank_lines();
        if self.at >= self.bytes.len() {
            return None;
        }
        let (at, line) = (self.at, self.line);
        let record = self.record();
        if record.is_err() {
            (self.at, self.line) = (at, line);
            self.skip_line();
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, separator: Separator) -> Vec<Result<(usize, Vec<String>), usize>> {
        let records = Records::new(text.as_bytes(), separator);
        let record = |record: Result<Record, BadRow>| match record {
            Ok(record) => {
                let fields = record.fields.into_iter();
                let fields = fields.map(|field| String::from_utf8(field).unwrap());
                Ok((record.line, fields.collect()))
            }
            Err(bad) => Err(bad.line),
        };
        records.map(record).collect()
    }

    fn fields(fields: &[&str]) -> Vec<String> {
        fields.iter().map(|&f| f.to_owned()).collect()
    }

    #[test]
    fn quotes_line_breaks_and_blank_lines_are_read_as_by_pandas() {
        let text = "a,\"b, \"\"c\"\"\"\r\n\n  \n\"d\ne\",f\"g\rh,\n";
        assert_eq!(
            read(text, Separator::Comma),
            [
                Ok((1, fields(&["a", "b, \"c\""]))),
                Ok((4, fields(&["d\ne", "f\"g"]))),
                Ok((6, fields(&["h", ""]))),
            ]
        );
        assert_eq!(
            read("a\t\"b\tc\"\n\t\n", Separator::Tab),
            [Ok((1, fields(&["a", "b\tc"]))), Ok((2, fields(&["", ""])))]
        );
    }

    #[test]
    fn an_open_quote_and_text_behind_a_quote_are_refused_on_their_line() {
        assert_eq!(
            read("a,b\nc,\"d\ne,f\n", Separator::Comma),
            [
                Ok((1, fields(&["a", "b"]))),
                Err(2),
                Ok((3, fields(&["e", "f"]))),
            ]
        );
        assert_eq!(
            read("\"a\" b,c\nd,e\n", Separator::Comma),
            [Err(1), Ok((2, fields(&["d", "e"])))]
        );
        // The quote that is not closed is on the second line, not where the next one stands.
        assert_eq!(
            read("a,b\nc,\"d\n\"e\" f,g\n", Separator::Comma),
            [Ok((1, fields(&["a", "b"]))), Err(2), Err(3)]
        );
    }
}
