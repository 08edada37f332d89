//! Formats numbers, sizes and Markdown for people.

use std::time::Duration;

/// A fraction in percent.
pub(crate) fn percent(fraction: f64) -> String {
    format!("{:.1}%", 100.0 * fraction)
}

/// Percentage points with one decimal.
pub(crate) fn pp(value: f64) -> String {
    rounded(value, 1)
}

/// A number with `digits` decimals; never "-0".
pub(crate) fn rounded(value: f64, digits: usize) -> String {
    let scale = 10_f64.powi(digits as i32);
    let rounded = (scale * value).round() / scale + 0.0;
    format!("{rounded:.digits$}").replace('-', "−")
}

/// A count with thousands separators.
pub(crate) fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Wall time.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..172_800 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} days", whole / 86_400),
    }
}

/// A time that is left: whole seconds, from a minute on whole minutes.
pub(crate) fn time_left(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    match seconds {
        0..60 => format!("{} s", seconds.max(1)),
        60..7200 => format!("{} min", (seconds + 30) / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// Items per second, with two significant digits; below one a second, the seconds that one takes.
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        r if r >= 99.5 => format!("{}/s", thousands(r.round() as usize)),
        r if r >= 9.95 => format!("{r:.0}/s"),
        r if r >= 1.0 => format!("{r:.1}/s"),
        r if r > 0.0 => format!("{:.1} s each", 1.0 / r),
        _ => "0/s".into(),
    }
}

/// A size in bytes as MB or GB (powers of 1,000).
pub(crate) fn memory(bytes: u64) -> String {
    let megabytes = bytes as f64 / 1e6;
    if megabytes < 1000.0 {
        format!("{megabytes:.0} MB")
    } else {
        format!("{:.2} GB", megabytes / 1000.0)
    }
}

/// `text` with its first letter in upper case.
pub(crate) fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_uppercase().chain(chars).collect())
        .unwrap_or_default()
}

/// `text` as inline code in Markdown.
pub(crate) fn inline_code(text: &str) -> String {
    let fence = backticks(text, 1);
    let line = text.replace(['\n', '\r'], " ");
    // Markdown strips one space on both sides.
    let pad = if line.starts_with('`') || line.ends_with('`') || line.trim().is_empty() {
        " "
    } else {
        ""
    };
    format!("{fence}{pad}{line}{pad}{fence}")
}

/// `text` as a fenced code block in Markdown.
pub(crate) fn code_block(language: &str, text: &str) -> String {
    let fence = backticks(text, 3);
    format!("{fence}{language}\n{}\n{fence}\n", text.trim_end())
}

/// A fence longer than any run of backticks in `text`.
fn backticks(text: &str, min: usize) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    "`".repeat(min.max(longest + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_formatted_for_people() {
        assert_eq!(
            [999, 1000, 1_234_567].map(thousands),
            ["999", "1,000", "1,234,567"]
        );
        assert_eq!(
            [0.04, 59.4, 133.0, 3900.0, 2e5].map(duration),
            ["0.0 s", "59.4 s", "2 min 13 s", "1 h 5 min", "2 days"]
        );
        assert_eq!(
            [250_000_000, 1_310_000_000].map(memory),
            ["250 MB", "1.31 GB"]
        );
        assert_eq!([-0.04, -1.25, 14.06].map(pp), ["0.0", "−1.3", "14.1"]);
    }

    #[test]
    fn rates_and_times_left_are_short() {
        assert_eq!(
            [0.0, 0.4, 3.44, 85.2, 99.9, 1234.5].map(rate),
            ["0/s", "2.5 s each", "3.4/s", "85/s", "100/s", "1,235/s"]
        );
        let left = |seconds| time_left(Duration::from_secs_f64(seconds));
        assert_eq!(
            [0.2, 10.3, 119.0, 170.0, 7300.0].map(left),
            ["1 s", "10 s", "2 min", "3 min", "2 h 1 min"]
        );
    }

    #[test]
    fn user_text_is_escaped_as_code() {
        assert_eq!(inline_code("a`b\n# c"), "``a`b # c``");
        assert_eq!(inline_code("`b`"), "`` `b` ``");
        assert_eq!(inline_code(""), "`  `");
        assert_eq!(
            code_block("toml", "x = '```'\n"),
            "````toml\nx = '```'\n````\n"
        );
    }
}
