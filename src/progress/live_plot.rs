//! The share right over the epochs of a run: told in lines, and on a terminal drawn as it grows.

use std::ops::RangeInclusive;

use console::Term;
use indicatif::{ProgressBar, ProgressStyle};
use textplots::{Chart, Plot, Shape};

use super::{Output, Progress};
use crate::run::{PerSplit, Split};

/// The curves that are drawn, and what their labels say.
const PLOTTED: [(Split, &str); 3] = [
    (Split::Known, "known"),
    (Split::Unknown, "new"),
    (Split::Held, "held"),
];

/// Lines that the curves take; the axis below them is one more.
const ROWS: usize = 9;

/// Columns that the curves take: where there are fewer nothing is drawn.
const COLUMNS: RangeInclusive<usize> = 20..=60;

/// Columns that the axis left of the curves takes.
const AXIS: usize = 6;

/// Columns that a label right of the curves takes at most.
const LABEL: usize = " known 100.0%".len();

/// Lines of a terminal that are left to other things.
const OTHER_LINES: usize = 6;

/// The share right in each split over the epochs of one run. Every evaluation is a line; on a terminal the curves stand below
/// the lines and above the bars, and their last picture stays when this is dropped.
#[derive(Debug)]
pub struct LivePlot {
    progress: Progress,
    epochs: usize,
    /// Epochs done, and the share right then.
    evaluations: Vec<(usize, PerSplit<f64>)>,
    plot: Option<ProgressBar>,
}

impl LivePlot {
    pub(super) fn new(progress: Progress, epochs: usize) -> Self {
        Self {
            progress,
            epochs,
            evaluations: Vec::new(),
            plot: None,
        }
    }

    /// Tells and draws the share right after `epoch` epochs.
    pub fn log(&mut self, epoch: usize, accuracy: PerSplit<f64>) {
        let formatted: Vec<String> = Split::ALL
            .into_iter()
            .filter_map(|split| Some((split, accuracy.get(split)?)))
            .map(|(split, share)| format!("{} {:.1}%", split.name(), 100.0 * share))
            .collect();
        self.progress.note(format_args!(
            "epoch {epoch}/{} | right: {}",
            self.epochs,
            formatted.join(", ")
        ));
        self.extend([(epoch, accuracy)]);
    }

    /// Draws on from evaluations that were told before: epochs done, and the share right then.
    pub fn extend(&mut self, evaluations: impl IntoIterator<Item = (usize, PerSplit<f64>)>) {
        self.evaluations.extend(evaluations);
        let Output::Terminal(bars) = &self.progress.output else {
            return;
        };
        let (height, width) = Term::stderr().size();
        match render(&self.evaluations, self.epochs, [height, width]) {
            Some(text) => {
                let picture = self.plot.get_or_insert_with(|| {
                    let style = ProgressStyle::with_template("{msg}").expect("it is well formed");
                    bars.insert(0, ProgressBar::no_length().with_style(style))
                });
                // A `^C` that the terminal writes moves all down by a line: the one that is left over above is empty.
                picture.set_message(format!("\n{text}"));
            }
            None => self.clear(),
        }
    }

    fn clear(&mut self) {
        if let Some(picture) = self.plot.take() {
            picture.finish_and_clear();
        }
    }
}

impl Drop for LivePlot {
    fn drop(&mut self) {
        if let Some(last) = self.plot.as_ref().map(ProgressBar::message) {
            self.clear();
            self.progress.note(last);
        }
    }
}

struct Curve {
    label: String,
    /// Epochs done, and the share right then.
    points: Vec<(f32, f32)>,
    /// The share right at their end.
    last: f64,
}

/// The curves as text that has room in a terminal of that height and width; none where it has not, or where there is no line
/// to draw yet.
fn render(
    evaluations: &[(usize, PerSplit<f64>)],
    epochs: usize,
    [height, width]: [u16; 2],
) -> Option<String> {
    let columns = usize::from(width)
        .saturating_sub(AXIS + LABEL)
        .min(*COLUMNS.end());
    let has_room = COLUMNS.contains(&columns) && usize::from(height) > ROWS + OTHER_LINES;
    let curves = curves(evaluations);
    if !has_room || evaluations.len() < 2 || curves.is_empty() {
        return None;
    }
    // A character is two dots wide and four high.
    let [right, top] = [2 * columns - 1, 4 * ROWS - 1];
    let dots = render_braille(&curves, epochs, [right, top]);

    let (done, _) = evaluations.last()?;
    let end = (*done as f64 / epochs as f64 * right as f64).round() as usize / 2;
    let row_of = |curve: &Curve| (top - (curve.last * top as f64).round() as usize) / 4;
    let label_rows = spread_rows(curves.iter().map(row_of).collect());
    let line = |(row, dots): (usize, &str)| {
        let axis = match row {
            0 => "100% ┤",
            row if row == ROWS / 2 => " 50% ┤",
            row if row == ROWS - 1 => "  0% ┤",
            _ => "     │",
        };
        let dots: String = dots.chars().take(end + 1).collect();
        let label = label_rows.iter().position(|of| *of == row);
        let label = label.map_or("", |curve| &curves[curve].label);
        format!("{axis}{dots} {label}").trim_end().to_owned()
    };
    let mut lines: Vec<String> = dots.lines().enumerate().map(line).collect();
    let first = "epoch 0";
    let last = columns - first.len();
    lines.push(format!("{:AXIS$}{first}{epochs:>last$}", ""));
    Some(lines.join("\n"))
}

/// The curves that there are, from the top down at their ends.
fn curves(evaluations: &[(usize, PerSplit<f64>)]) -> Vec<Curve> {
    let curve = |(split, name): (Split, &str)| {
        let point = |(epoch, shares): &(usize, PerSplit<f64>)| {
            Some((*epoch as f32, *shares.get(split)? as f32))
        };
        let (_, shares) = evaluations.last()?;
        let last = *shares.get(split)?;
        Some(Curve {
            label: format!("{name} {:.1}%", 100.0 * last),
            points: evaluations.iter().filter_map(point).collect(),
            last,
        })
    };
    let mut curves: Vec<Curve> = PLOTTED.into_iter().filter_map(curve).collect();
    curves.sort_by(|a, b| b.last.total_cmp(&a.last));
    curves
}

/// The curves in braille, from dot (0, 0) to dot (`right`, `top`).
fn render_braille(curves: &[Curve], epochs: usize, [right, top]: [usize; 2]) -> String {
    let lines: Vec<Shape> = curves.iter().map(|c| Shape::Lines(&c.points)).collect();
    let mut chart = Chart::new_with_y_range(right as u32, top as u32, 0.0, epochs as f32, 0.0, 1.0);
    let chart = lines
        .iter()
        .fold(&mut chart, |chart, line| chart.lineplot(line));
    chart.figures();
    chart.frame()
}

/// The rows of labels that would stand in `rows`, from the top down: no two in one.
fn spread_rows(mut rows: Vec<usize>) -> Vec<usize> {
    let mut free = 0;
    for row in &mut rows {
        *row = free.max(*row);
        free = *row + 1;
    }
    let mut end = ROWS;
    for row in rows.iter_mut().rev() {
        *row = (end - 1).min(*row);
        end = *row;
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known facts learned at once, new ones slowly, and held ones forgotten from the third epoch on.
    fn evaluations() -> Vec<(usize, PerSplit<f64>)> {
        let known = [0.3, 1.0, 1.0, 1.0, 1.0, 1.0];
        let new = [0.0, 0.02, 0.1, 0.35, 0.7, 0.95];
        let held = [0.28, 0.9, 0.92, 0.85, 0.7, 0.55];
        let shares = |i: usize| PerSplit {
            known: Some(known[i]),
            unknown: Some(new[i]),
            held: Some(held[i]),
            ..PerSplit::default()
        };
        (0..6).map(|epoch| (epoch, shares(epoch))).collect()
    }

    fn render_at(width: u16, evaluations: &[(usize, PerSplit<f64>)]) -> Option<String> {
        render(evaluations, 5, [24, width])
    }

    #[test]
    fn each_curve_ends_in_its_label() {
        insta::assert_snapshot!(render_at(80, &evaluations()).unwrap(), @r"
        100% ┤          ⢀⠔⣉⣉⣉⣉⣉⣉⣉⣉⣉⣉⣉⣉⣉⣉⣉⣉⣉⣉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⠉⣉⡩ known 100.0%
             │        ⢀⠔⡡⠊                  ⠉⠉⠉⠉⠉⠑⠒⠒⠤⠤⢄⣀⣀         ⣀⡠⠤⠒⠊⠉   new 95.0%
             │      ⢀⠔⡡⠊                                 ⠉⠉⠑⠒⡢⠤⢖⣊⡉
             │    ⢀⢔⠥⠊                                   ⣀⠤⠒⠉    ⠈⠉⠑⠒⠢⠤⢄⣀⡀
         50% ┤  ⢀⢔⠕⠁                                 ⢀⡠⠔⠉                ⠈ held 55.0%
             │⢀⢔⠕⠁                               ⢀⡠⠔⠊⠁
             │⠓⠁                            ⣀⡠⠤⠒⠊⠁
             │                        ⣀⡠⠤⠒⠊⠉
          0% ┤⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⣀⠤⠤⠤⠤⠒⠒⠒⠒⠉⠉⠉⠉
              epoch 0                                                    5
        ");
    }

    #[test]
    fn curves_grow_to_the_right_and_labels_grow_with_them() {
        insta::assert_snapshot!(render_at(60, &evaluations()[..3]).unwrap(), @r"
        100% ┤       ⡔⣉⣉⣉⣉⣉⣉⣉⣉⡁ known 100.0%
             │     ⢀⢮⠊          held 92.0%
             │    ⡠⡗⠁
             │   ⣔⠏
         50% ┤ ⢀⡾⠁
             │⣠⠏
             │⠃
             │                ⡀ new 10.0%
          0% ┤⣀⣀⣀⣀⣀⣀⣀⣀⠤⠤⠤⠒⠒⠊⠉⠉
              epoch 0                                 5
        ");
    }

    #[test]
    fn the_plot_is_never_wider_than_the_terminal() {
        for width in 0..100 {
            let Some(text) = render_at(width, &evaluations()) else {
                assert!(width < 39, "{width}");
                continue;
            };
            for line in text.lines() {
                assert!(line.chars().count() <= usize::from(width), "{line}");
            }
        }
    }

    #[test]
    fn nothing_is_drawn_of_one_evaluation_or_of_no_facts_or_where_the_terminal_is_low() {
        let all = evaluations();
        assert_eq!(render_at(80, &all[..1]), None);
        let empty = [(0, PerSplit::default()), (1, PerSplit::default())];
        assert_eq!(render_at(80, &empty), None);
        assert_eq!(render(&all, 5, [12, 80]), None);
    }

    #[test]
    fn labels_do_not_share_a_row() {
        assert_eq!(spread_rows(vec![0, 0, 0]), [0, 1, 2]);
        assert_eq!(spread_rows(vec![3, 5, 8]), [3, 5, 8]);
        assert_eq!(spread_rows(vec![7, 8, 8]), [6, 7, 8]);
    }
}
