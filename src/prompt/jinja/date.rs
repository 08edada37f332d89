//! `strftime_now`, on a fixed day.

/// `strftime` of a fixed day, so that prompts don't depend on the date: 26 July 2024 at noon, which templates use themselves where
/// they have no clock.
pub(super) fn formatted(format: &str) -> String {
    let mut out = String::with_capacity(format.len());
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let unpadded = chars.next_if(|c| matches!(c, '-' | '_' | '0' | '^' | '#'));
        let Some(code) = chars.next() else {
            out.push('%');
            break;
        };
        let text = match code {
            'd' | 'e' => "26",
            'm' => "07",
            'Y' | 'G' => "2024",
            'y' | 'g' => "24",
            'C' => "20",
            'B' => "July",
            'b' | 'h' => "Jul",
            'A' => "Friday",
            'a' => "Fri",
            'H' | 'I' | 'k' | 'l' => "12",
            'M' | 'S' => "00",
            'f' => "000000",
            'p' => "PM",
            'P' => "pm",
            'j' => "208",
            'U' => "29",
            'W' | 'V' => "30",
            'w' | 'u' => "5",
            'F' => "2024-07-26",
            'T' | 'X' => "12:00:00",
            'R' => "12:00",
            'r' => "12:00:00 PM",
            'D' | 'x' => "07/26/24",
            'c' => "Fri Jul 26 12:00:00 2024",
            's' => "1721995200",
            'n' => "\n",
            't' => "\t",
            'Z' | 'z' => "",
            '%' => "%",
            other => {
                out.push('%');
                out.push(other);
                continue;
            }
        };
        match unpadded {
            Some('-') if text.len() == 2 && text.starts_with('0') => out.push_str(&text[1..]),
            Some('^') => out.push_str(&text.to_uppercase()),
            _ => out.push_str(text),
        }
    }
    out
}
