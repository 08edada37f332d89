//! Figures as people write them.

/// A share, in percent.
pub(crate) fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

/// Percentage points to one digit.
pub(crate) fn pp(value: f64) -> String {
    rounded(value, 1)
}

/// A number with `digits` after the point; never "-0".
pub(crate) fn rounded(value: f64, digits: usize) -> String {
    let scale = 10_f64.powi(digits as i32);
    let rounded = (scale * value).round() / scale + 0.0;
    format!("{rounded:.digits$}").replace('-', "−")
}

/// A count, its thousands apart.
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

/// Memory, in units of a thousand.
pub(crate) fn memory(bytes: u64) -> String {
    let megabytes = bytes as f64 / 1e6;
    if megabytes < 1000.0 {
        format!("{megabytes:.0} MB")
    } else {
        format!("{:.2} GB", megabytes / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_as_people_write_them() {
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
}
