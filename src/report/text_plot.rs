//! The trade between learning and keeping as text, for a terminal.

use crate::run::{CurvePoint, EpochRecord};

/// Size of the plot in characters, without axes.
const COLUMNS: usize = 50;
/// See [`COLUMNS`].
const ROWS: usize = 10;

/// A run in the plot.
pub struct TextCurve<'a> {
    /// Its name; the first letter, in lower case, marks its points.
    pub name: &'a str,
    /// Its evaluations.
    pub epochs: &'a [EpochRecord],
    /// Accuracy on held-out facts at the end (0 to 1): the level of a run without new facts.
    pub level: Option<f64>,
}

impl TextCurve<'_> {
    fn mark(&self) -> char {
        let first = self.name.chars().next().unwrap_or('*');
        first.to_lowercase().next().unwrap_or(first)
    }
}

/// Held-out known facts kept over new facts learned: a letter for each evaluation, dots between them, dashes at the level of a run
/// without new facts. `None` if no run learned anything new.
pub fn trade_as_text(curves: &[TextCurve<'_>]) -> Option<String> {
    let points: Vec<Vec<CurvePoint>> = curves
        .iter()
        .map(|curve| EpochRecord::curve(curve.epochs))
        .collect();
    let values = points.iter().flatten().map(|point| point.kept);
    let levels = curves.iter().filter_map(|curve| curve.level);
    values.clone().next()?;
    let lowest = values.chain(levels).fold(1.0, f64::min);
    // The axis begins at a multiple of 20% below the lowest value, so that its middle is round, too.
    let bottom = (lowest * 5.0 - 0.25).floor().clamp(0.0, 4.0) / 5.0;
    let cell = |learned: f64, kept: f64| {
        let at = |fraction: f64, cells: usize| {
            (fraction.clamp(0.0, 1.0) * (cells - 1) as f64).round() as usize
        };
        (
            ROWS - 1 - at((kept - bottom) / (1.0 - bottom), ROWS),
            at(learned, COLUMNS),
        )
    };
    let mut grid = vec![[' '; COLUMNS]; ROWS];
    for (curve, points) in curves.iter().zip(&points) {
        if let (Some(level), true) = (curve.level, points.is_empty()) {
            let (row, _) = cell(0.0, level);
            grid[row] = std::array::from_fn(|column| if column % 2 == 0 { '-' } else { ' ' });
        }
    }
    for points in &points {
        for pair in points.windows(2) {
            for step in 1..COLUMNS {
                let share = step as f64 / COLUMNS as f64;
                let between = |from: f64, to: f64| from + share * (to - from);
                let (row, column) = cell(
                    between(pair[0].learned, pair[1].learned),
                    between(pair[0].kept, pair[1].kept),
                );
                grid[row][column] = '·';
            }
        }
    }
    for (curve, points) in curves.iter().zip(&points) {
        for point in points {
            let (row, column) = cell(point.learned, point.kept);
            grid[row][column] = curve.mark();
        }
    }
    let mut text = String::from("held-out known facts kept\n");
    for (row, cells) in grid.iter().enumerate() {
        let label = |value: f64| format!("{:3.0}% ┤", 100.0 * value);
        text += &match row {
            0 => label(1.0),
            row if row == ROWS - 1 => label(bottom),
            _ => "     │".into(),
        };
        let cells: String = cells.iter().collect();
        text += cells.trim_end();
        text.push('\n');
    }
    text += &format!("     └{}\n", "─".repeat(COLUMNS));
    text += &format!(
        "      0%{:>width$} new facts learned\n",
        "100%",
        width = COLUMNS - 2
    );
    let named = curves.iter().zip(&points).map(|(curve, points)| {
        let mark = if points.is_empty() { '-' } else { curve.mark() };
        format!("{mark} {}", curve.name)
    });
    text += &format!("      {}", named.collect::<Vec<_>>().join("   "));
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::PerSplit;

    fn epochs(points: &[(Option<f64>, f64)]) -> Vec<EpochRecord> {
        let record = |(epoch, &(unknown, held)): (usize, &(Option<f64>, f64))| EpochRecord {
            epoch,
            steps: epoch,
            seconds: 0.0,
            tokens: 0,
            accuracy: PerSplit {
                unknown,
                held: Some(held),
                ..PerSplit::default()
            },
            drift: None,
            behaviour: None,
            validation_loss: None,
            grad_norms: None,
        };
        points.iter().enumerate().map(record).collect()
    }

    #[test]
    fn letters_stand_at_the_evaluations_and_dashes_at_the_level_of_only_known() {
        let plain = epochs(&[(Some(0.0), 0.1), (Some(0.5), 0.8), (Some(1.0), 0.6)]);
        let control = epochs(&[(None, 0.1), (None, 0.9)]);
        let curves = [
            TextCurve {
                name: "Only Known",
                epochs: &control,
                level: Some(1.0),
            },
            TextCurve {
                name: "plain fine-tuning",
                epochs: &plain,
                level: Some(0.6),
            },
        ];
        let text = trade_as_text(&curves).expect("something was learned");
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].starts_with("100% ┤- - - "), "{text}");
        assert!(lines[ROWS].starts_with(" 40% ┤"), "{text}");
        // 80% is a third of the way down from 100% to 40%, half of the facts are in the middle.
        assert_eq!(
            lines[4].find('p').map(|at| lines[4][..at].chars().count()),
            Some(6 + 25)
        );
        assert!(lines[7].ends_with("·p"), "{text}");
        assert_eq!(lines[ROWS + 3], "      - Only Known   p plain fine-tuning");
        assert_eq!(trade_as_text(&curves[..1]), None);
    }
}
