//! Horizontal bars, with their names on the left and their values at their ends.

use plotters::style::{Color, text_anchor::HPos};

use super::{
    BOTTOM, TOP, Unit, WIDTH,
    axis::Axis,
    drawable, drawable_interval,
    pen::{Area, INK, Plot, RULE, SOFT, THIN, colour, line, shape, shortened, text, title, widest},
};

/// From bar to bar.
const ROW: i32 = 220;
/// Half a bar.
const HALF: i32 = 65;
/// Half of what ends an interval.
const CAP: i32 = 30;
/// What names may have on the left.
const MOST_LABEL: i32 = 1700;
/// Beside names and values.
const GAP: i32 = 60;

/// A value, drawn from zero.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// On the left.
    pub label: String,
    /// Which of the [`STYLES`](super::STYLES).
    pub style: usize,
    /// Its length; a bar without a number is not drawn.
    pub value: f64,
    /// Its 95% interval, where it is known.
    pub interval: Option<[f64; 2]>,
}

/// Values side by side.
#[derive(Clone, Debug, PartialEq)]
pub struct Bars {
    /// What is compared.
    pub title: String,
    /// In what.
    pub unit: Unit,
    /// From the top down.
    pub bars: Vec<Bar>,
}

impl Bars {
    pub(super) fn description(&self) -> String {
        let words = |value| self.unit.words(value);
        let bars = self.bars().into_iter().map(|bar| {
            let (label, value) = (&bar.label, words(bar.value));
            match bar.interval.map(|ends| ends.map(words)) {
                Some([low, high]) => format!("{label}: {value} ({low} to {high})."),
                None => format!("{label}: {value}."),
            }
        });
        bars.collect::<Vec<_>>().join(" ")
    }

    pub(super) fn height(&self) -> i32 {
        TOP + ROW * self.bars().len() as i32 + BOTTOM
    }

    pub(super) fn draw(&self, area: &Area) {
        title(area, &self.title);
        let bars = self.bars();
        let words = |bar: &Bar| self.unit.words(bar.value);
        let left = GAP + widest(bars.iter().map(|bar| &bar.label)).min(MOST_LABEL);
        let right = WIDTH - 2 * GAP - widest(bars.iter().map(words));
        let values = bars.iter().map(|bar| bar.value).chain([0.0]);
        let ends = bars.iter().filter_map(|bar| bar.interval).flatten();
        let x = self.unit.axis(None, values.chain(ends));
        let down = [TOP, self.height() - BOTTOM];
        let plot = Plot::new([left, right], down, &x, &Axis::bare(0.0, 1.0));
        let at = |value: f64| plot.place(value, 0.0).0;
        for (value, _) in &x.ticks {
            let colour = if *value == 0.0 { SOFT } else { RULE };
            line(area, down.map(|y| (at(*value), y)).into(), colour, THIN);
        }
        plot.numbers_below(area, &x);
        for (bar, y) in bars.iter().zip((TOP + ROW / 2..).step_by(ROW as usize)) {
            let label = shortened(&bar.label, MOST_LABEL);
            text(area, &label, (left - GAP, y), SOFT, HPos::Right);
            let colour = colour(bar.style);
            let (zero, end) = (at(0.0), at(bar.value));
            let side = |x, half: i32| [(x, y - half), (x, y + half)];
            let [above, below] = side(zero, HALF);
            let corners = [[below, above], side(end, HALF)].concat();
            shape(area, corners, colour.mix(0.5));
            let mut most = end.max(zero);
            if let Some([low, high]) = bar.interval.map(|ends| ends.map(at)) {
                let middle = [(low, y), (high, y)];
                for whisker in [side(low, CAP), middle, side(high, CAP)] {
                    line(area, whisker.into(), INK, THIN);
                }
                most = most.max(high);
            }
            text(area, &words(bar), (most + GAP, y), colour, HPos::Left);
        }
    }

    /// The bars and intervals that can be drawn.
    fn bars(&self) -> Vec<Bar> {
        let bars = self.bars.iter().filter(|bar| drawable(bar.value));
        let bars = bars.map(|bar| Bar {
            interval: drawable_interval(bar.interval),
            ..bar.clone()
        });
        bars.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::chart::{Chart, inline};

    fn bars(values: &[(f64, Option<[f64; 2]>)]) -> Bars {
        let bar = |&(value, interval)| Bar {
            label: "mine".into(),
            style: 3,
            value,
            interval,
        };
        Bars {
            title: "Forgotten".into(),
            unit: Unit::Points,
            bars: values.iter().map(bar).collect(),
        }
    }

    #[test]
    fn a_bar_goes_from_zero_to_its_value_and_a_whisker_over_its_interval() {
        let svg = inline(
            &Chart::Bars(bars(&[(-1.0, None), (4.0, Some([3.0, 5.0]))])),
            "bars",
        );
        // Plot area: x 34 to 319 for -2 to 6, so that 0 is at 105.2; the rows' middles are 43 and 65.
        let drawn = |places| assert!(svg.contains(places), "{places} {svg}");
        drawn("\"1052,495 1052,365 696,365 696,495 \"");
        drawn("\"1052,715 1052,585 2477,585 2477,715 \"");
        drawn("\"2121,650 2833,650 \"");
        drawn("mine: −1.0 pp. mine: 4.0 pp (3.0 pp to 5.0 pp).");
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        let nan = f64::NAN;
        let drawn = |values: &[_]| inline(&Chart::Bars(bars(values)), "bars");
        assert_eq!(
            drawn(&[(1.0, Some([nan, 2.0])), (nan, None)]),
            drawn(&[(1.0, None)])
        );
        for values in [vec![], vec![(0.0, None)], vec![(9e99, Some([-9e99, 0.0]))]] {
            assert!(drawn(&values).ends_with("</svg>"));
        }
    }
}
