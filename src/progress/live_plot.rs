//! Accuracies over the epochs of a run: one line per evaluation, and in a terminal a plot.

use std::ops::RangeInclusive;

use console::Term;
use indicatif::{ProgressBar, ProgressStyle};
use textplots::{Chart, Plot, Shape};

use super::{Output, Progress};

/// The splits that are plotted, and their labels.
const PLOTTED: [(&str, &str); 3] = [("known", "known"), ("unknown", "new"), ("held", "held")];

/// Accuracy (0 to 1) by split name.
type Accuracies = Vec<(&'static str, f64)>;

/// Height of the curves in lines, without the axis.
const ROWS: usize = 9;

/// Width of the curves in columns; a narrower terminal gets no plot.
const COLUMNS: RangeInclusive<usize> = 20..=60;

/// Width of the axis on the left in columns.
const AXIS: usize = 6;

/// Maximum width of a label on the right in columns.
const LABEL: usize = " known 100.0%".len();

/// Lines of the terminal that the plot leaves free.
const OTHER_LINES: usize = 6;

/// The accuracies of one run over its epochs. Every evaluation is printed as a line. In a terminal a plot is drawn below the lines
/// and above the bars; its last state stays when this is dropped.
#[derive(Debug)]
pub struct LivePlot {
    progress: Progress,
    epochs: usize,
    /// Epochs done, and the accuracy (0 to 1) of each split by name.
    evaluations: Vec<(usize, Accuracies)>,
    plot: Option<ProgressBar>,
}

impl LivePlot {
    /// A plot of a run of `epochs` epochs, printed by `progress`.
    pub fn new(progress: &Progress, epochs: usize) -> Self {
        Self {
            progress: progress.clone(),
            epochs,
            evaluations: Vec::new(),
            plot: None,
        }
    }

    /// Prints and plots the accuracies (0 to 1), by split name, after `epoch` epochs.
    pub fn log(&mut self, epoch: usize, accuracies: Accuracies) {
        let formatted: Vec<String> = accuracies
            .iter()
            .map(|(name, accuracy)| format!("{name} {:.1}%", 100.0 * accuracy))
            .collect();
        self.progress.note(format_args!(
            "epoch {epoch}/{} | accuracy: {}",
            self.epochs,
            formatted.join(", ")
        ));
        self.extend([(epoch, accuracies)]);
    }

    /// Adds evaluations to the plot without printing them: those of a resumed run.
    pub fn extend(&mut self, evaluations: impl IntoIterator<Item = (usize, Accuracies)>) {
        self.evaluations.extend(evaluations);
        let Output::Terminal(bars) = &self.progress.output else {
            return;
        };
        let (height, width) = Term::stderr().size();
        match render(&self.evaluations, self.epochs, [height, width]) {
            Some(text) => {
                let plot = self.plot.get_or_insert_with(|| {
                    let style = ProgressStyle::with_template("{msg}").expect("a valid template");
                    bars.insert(0, ProgressBar::no_length().with_style(style))
                });
                // The terminal echoes `^C`, which moves the plot down by a line. An empty first line hides the rest of it.
                plot.set_message(format!("\n{text}"));
            }
            None => self.clear(),
        }
    }

    fn clear(&mut self) {
        if let Some(plot) = self.plot.take() {
            plot.finish_and_clear();
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
    /// Epochs done and accuracy.
    points: Vec<(f32, f32)>,
    /// The last accuracy.
    last: f64,
}

/// The plot as text for a terminal of this height and width; `None` if it does not fit, or if there are fewer than two evaluations.
fn render(
    evaluations: &[(usize, Accuracies)],
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

/// The curves, sorted by their last value, highest first.
fn curves(evaluations: &[(usize, Accuracies)]) -> Vec<Curve> {
    let curve = |(split, name): (&str, &str)| {
        let point = |(epoch, accuracies): &(usize, Accuracies)| {
            Some((*epoch as f32, find(accuracies, split)? as f32))
        };
        let (_, accuracies) = evaluations.last()?;
        let last = find(accuracies, split)?;
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

/// The accuracy of `split`.
fn find(accuracies: &Accuracies, split: &str) -> Option<f64> {
    let found = accuracies.iter().find(|(name, _)| *name == split);
    found.map(|(_, accuracy)| *accuracy)
}

/// The curves in braille characters, from dot (0, 0) to dot (`right`, `top`).
fn render_braille(curves: &[Curve], epochs: usize, [right, top]: [usize; 2]) -> String {
    let lines: Vec<Shape> = curves.iter().map(|c| Shape::Lines(&c.points)).collect();
    let mut chart = Chart::new_with_y_range(right as u32, top as u32, 0.0, epochs as f32, 0.0, 1.0);
    let chart = lines
        .iter()
        .fold(&mut chart, |chart, line| chart.lineplot(line));
    chart.figures();
    chart.frame()
}

/// Moves ascending label rows apart so that no two labels share a row.
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

    /// Known facts are learned at once, new ones slowly, and held ones are forgotten from the third epoch on.
    fn evaluations() -> Vec<(usize, Accuracies)> {
        let known = [0.3, 1.0, 1.0, 1.0, 1.0, 1.0];
        let new = [0.0, 0.02, 0.1, 0.35, 0.7, 0.95];
        let held = [0.28, 0.9, 0.92, 0.85, 0.7, 0.55];
        let accuracies =
            |i: usize| vec![("known", known[i]), ("unknown", new[i]), ("held", held[i])];
        (0..6).map(|epoch| (epoch, accuracies(epoch))).collect()
    }

    fn render_at(width: u16, evaluations: &[(usize, Accuracies)]) -> Option<String> {
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
        let empty = [(0, Vec::new()), (1, Vec::new())];
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
