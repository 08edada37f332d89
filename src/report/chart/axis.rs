//! Axes with round tick values.

use crate::format::{rounded, thousands};

/// Maximum number of steps between the ticks of an axis.
const MAX_STEPS: f64 = 5.0;

/// Unit of the values of a chart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Fractions from 0 to 1, shown in percent.
    Fraction,
    /// Percentage points.
    Points,
    /// Plain numbers.
    Number,
}

/// The horizontal axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XAxis {
    /// Epochs; 0 is before training.
    Epochs,
    /// The epochs of a run that has so many, of which it may have done fewer.
    EpochsOf(usize),
    /// A fraction from 0 to 1 of the named quantity.
    Fraction(&'static str),
    /// A count of the named quantity, 1 or more, on a logarithmic scale.
    Count(&'static str),
}

/// A range with ticks and their labels.
pub(super) struct Axis {
    pub low: f64,
    pub high: f64,
    pub ticks: Vec<(f64, String)>,
}

impl Unit {
    /// A value with its unit.
    pub(super) fn format(self, value: f64) -> String {
        match self {
            Self::Fraction => percent(value),
            Self::Points => format!("{} pp", rounded(value, 1)),
            Self::Number => {
                let number = rounded(value, decimals(value, 3.0));
                match number.split_once('.') {
                    Some(_) => number
                        .trim_end_matches('0')
                        .trim_end_matches('.')
                        .to_owned(),
                    None => number,
                }
            }
        }
    }

    /// An axis for `values` that starts at `min` or at a round number. The axis of fractions ends at 1.
    pub(super) fn axis(self, min: Option<f64>, values: impl Iterator<Item = f64>) -> Axis {
        let [low, high] = match self {
            Self::Fraction => [0.0, 1.0],
            Self::Points => axis_range(values.chain([0.0])),
            Self::Number => axis_range(values),
        };
        let step = tick_step(high - min.unwrap_or(low));
        let low = min.unwrap_or((low / step + 1e-9).floor() * step);
        let high = (high / step - 1e-9).ceil() * step;
        let number = |value: f64| match self {
            Self::Fraction => rounded(100.0 * value, decimals(100.0 * step, 1.0)) + "%",
            Self::Points | Self::Number => rounded(value, decimals(step, 1.0)),
        };
        let name = if self == Self::Points { "pp" } else { "" };
        Axis::new([low, high], step, name, number)
    }
}

impl XAxis {
    /// The named quantity.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Epochs | Self::EpochsOf(_) => "epochs",
            Self::Fraction(name) | Self::Count(name) => name,
        }
    }

    /// A position on the axis with its quantity.
    pub(super) fn format(self, at: f64) -> String {
        match self {
            Self::Epochs | Self::EpochsOf(_) => format!("epoch {at}"),
            Self::Fraction(name) => format!("{} {name}", percent(at)),
            Self::Count(name) => format!("{} {name}", thousands(at.round() as usize)),
        }
    }

    /// The coordinate of `at`: its logarithm for counts.
    pub(super) fn coordinate(self, at: f64) -> f64 {
        match self {
            Self::Epochs | Self::EpochsOf(_) | Self::Fraction(_) => at,
            Self::Count(_) => at.log10(),
        }
    }

    /// An axis for `coordinates`.
    pub(super) fn axis(self, coordinates: impl Iterator<Item = f64>) -> Axis {
        let [low, high] = match self {
            Self::Epochs => [0.0, coordinates.fold(1.0, f64::max)],
            Self::EpochsOf(epochs) => [0.0, epochs.max(1) as f64],
            Self::Fraction(_) => [0.0, 1.0],
            // At least two powers of ten, to show that the scale is logarithmic.
            Self::Count(_) => match axis_range(coordinates) {
                [low, high] if low.ceil() < high.floor() => [low, high],
                [low, high] => [low.floor().max(0.0), high.ceil()],
            },
        };
        let min_step = if matches!(self, Self::Fraction(_)) {
            0.0
        } else {
            1.0
        };
        let number = |at: f64| match self {
            Self::Epochs | Self::EpochsOf(_) => at.to_string(),
            Self::Fraction(_) => percent(at),
            Self::Count(_) => thousands(10_f64.powf(at).round() as usize),
        };
        let step = tick_step(high - low).max(min_step);
        Axis::new([low, high], step, self.name(), number)
    }
}

impl Axis {
    /// An axis with a tick at every multiple of `step`; the last label includes `name`.
    fn new([low, high]: [f64; 2], step: f64, name: &str, number: impl Fn(f64) -> String) -> Self {
        let first = (low / step - 1e-9).ceil() as i64;
        let last = (high / step + 1e-9).floor() as i64;
        let multiples = (first..=last).map(|times| times as f64 * step);
        let mut ticks: Vec<_> = multiples.map(|at| (at, number(at))).collect();
        if let Some((_, last)) = ticks.last_mut()
            && !name.is_empty()
        {
            last.extend([" ", name]);
        }
        Self { low, high, ticks }
    }

    /// An axis without ticks.
    pub fn without_ticks(low: f64, high: f64) -> Self {
        Self {
            low,
            high,
            ticks: Vec::new(),
        }
    }
}

fn percent(fraction: f64) -> String {
    rounded(100.0 * fraction, 0) + "%"
}

/// The minimum and the maximum; infinite and reversed for no values.
pub(super) fn extent(values: impl Iterator<Item = f64>) -> [f64; 2] {
    let none = [f64::INFINITY, f64::NEG_INFINITY];
    values.fold(none, |[low, high], v| [low.min(v), high.max(v)])
}

/// The ends of an axis for `values`, of which there may be one or none.
fn axis_range(values: impl Iterator<Item = f64>) -> [f64; 2] {
    match extent(values) {
        [low, high] if low < high => [low, high],
        [0.0, 0.0] => [-1.0, 1.0],
        [only, high] if only == high => [only - only.abs() / 2.0, only + only.abs() / 2.0],
        _ => [0.0, 1.0],
    }
}

/// The smallest of 1, 2 or 5 times a power of ten that gives at most [`MAX_STEPS`] steps; 1 for an empty range.
fn tick_step(length: f64) -> f64 {
    if length.is_nan() || length <= 0.0 {
        return 1.0;
    }
    let min_step = length / MAX_STEPS;
    let power = 10_f64.powf(min_step.log10().floor());
    let steps = [1.0, 2.0, 5.0].map(|step| step * power);
    let is_wide_enough = |step: &f64| *step >= min_step * (1.0 - 1e-9);
    steps
        .into_iter()
        .find(is_wide_enough)
        .unwrap_or(10.0 * power)
}

/// The number of decimals that shows `value` with `digits` significant digits.
fn decimals(value: f64, digits: f64) -> usize {
    let before = 1.0 + value.abs().log10().floor();
    (digits - before).clamp(0.0, 6.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(axis: &Axis) -> Vec<&str> {
        axis.ticks
            .iter()
            .map(|(_, number)| number.as_str())
            .collect()
    }

    #[test]
    fn an_axis_has_at_most_six_numbers() {
        let step = |epochs: f64| XAxis::Epochs.axis([epochs].into_iter()).ticks[1].0;
        assert_eq!(
            [1.0, 5.0, 6.0, 20.0, 50.0, 51.0, 1000.0].map(step),
            [1.0, 1.0, 2.0, 5.0, 10.0, 20.0, 200.0]
        );
    }

    #[test]
    fn counts_are_marked_at_powers_of_ten() {
        let axis = |counts: &[f64]| {
            let across = XAxis::Count("facts");
            across.axis(counts.iter().map(|n| across.coordinate(*n)))
        };
        assert_eq!(
            numbers(&axis(&[100.0, 316.0, 3162.0, 1e4])),
            ["100", "1,000", "10,000 facts"]
        );
        assert_eq!(
            numbers(&axis(&[50.0, 20_000.0])),
            ["100", "1,000", "10,000 facts"]
        );
        assert_eq!(numbers(&axis(&[1000.0])), ["100", "1,000", "10,000 facts"]);
        assert_eq!(numbers(&axis(&[300.0, 500.0])), ["100", "1,000 facts"]);
    }

    #[test]
    fn values_have_round_ends() {
        let axis = |unit: Unit, values: &[f64]| unit.axis(None, values.iter().copied());
        assert_eq!(
            numbers(&axis(Unit::Points, &[2.3, 8.9])),
            ["0", "2", "4", "6", "8", "10 pp"]
        );
        assert_eq!(
            numbers(&axis(Unit::Points, &[-1.2, 3.0])),
            ["−2", "−1", "0", "1", "2", "3 pp"]
        );
        assert_eq!(
            numbers(&axis(Unit::Number, &[0.013, 0.052])),
            ["0.01", "0.02", "0.03", "0.04", "0.05", "0.06"]
        );
        assert_eq!(
            numbers(&axis(Unit::Number, &[])),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
        );
        let high = Unit::Fraction.axis(Some(0.98), [0.99].into_iter());
        assert_eq!(
            numbers(&high),
            ["98.0%", "98.5%", "99.0%", "99.5%", "100.0%"]
        );
    }

    #[test]
    fn values_are_rounded_for_reading() {
        assert_eq!(Unit::Fraction.format(0.854), "85%");
        assert_eq!(Unit::Points.format(-0.04), "0.0 pp");
        assert_eq!(
            [0.0, 0.053_21, -0.98, 12.34, 1200.0].map(|v| Unit::Number.format(v)),
            ["0", "0.0532", "−0.98", "12.3", "1200"]
        );
    }
}
