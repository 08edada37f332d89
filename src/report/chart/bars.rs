//! Horizontal bar charts with labels on the left and values at the ends.

use plotters::style::{Color, text_anchor::HPos};

use super::{
    axis::{Axis, Unit},
    svg::{
        Area, BOTTOM, INK, Plot, RULE, SOFT, THIN_WIDTH, TOP, WIDTH, colour, draw_line,
        draw_polygon, draw_text, draw_title, drawable_interval, is_drawable, max_text_width,
        truncate_text,
    },
};

/// Distance between bars.
const ROW_HEIGHT: i32 = 220;
/// Half the height of a bar.
const HALF_BAR: i32 = 65;
/// Half the height of an interval's cap.
const CAP: i32 = 30;
/// Maximum width of the labels.
const MAX_LABEL: i32 = 1700;
/// Space next to labels and values.
const GAP: i32 = 60;

/// A bar, drawn from zero.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// Label on the left.
    pub label: String,
    /// Index of one of the [`STYLES`](super::svg::STYLES).
    pub style: usize,
    /// Its length; a bar with a non-finite value is not drawn.
    pub value: f64,
    /// Its 95% interval, if known.
    pub interval: Option<[f64; 2]>,
}

/// A bar chart.
#[derive(Clone, Debug, PartialEq)]
pub struct BarChart {
    /// Title.
    pub title: String,
    /// Unit of the values.
    pub unit: Unit,
    /// The bars from top to bottom.
    pub bars: Vec<Bar>,
}

impl BarChart {
    pub(super) fn description(&self) -> String {
        let format = |value| self.unit.format(value);
        let bars = self.drawable_bars().into_iter().map(|bar| {
            let (label, value) = (&bar.label, format(bar.value));
            match bar.interval.map(|ends| ends.map(format)) {
                Some([low, high]) => format!("{label}: {value} ({low} to {high})."),
                None => format!("{label}: {value}."),
            }
        });
        bars.collect::<Vec<_>>().join(" ")
    }

    pub(super) fn height(&self) -> i32 {
        TOP + ROW_HEIGHT * self.drawable_bars().len() as i32 + BOTTOM
    }

    pub(super) fn draw(&self, area: &Area) {
        draw_title(area, &self.title);
        let bars = self.drawable_bars();
        let format = |bar: &Bar| self.unit.format(bar.value);
        let left = GAP + max_text_width(bars.iter().map(|bar| &bar.label)).min(MAX_LABEL);
        let right = WIDTH - 2 * GAP - max_text_width(bars.iter().map(format));
        let values = bars.iter().map(|bar| bar.value).chain([0.0]);
        let ends = bars.iter().filter_map(|bar| bar.interval).flatten();
        let x = self.unit.axis(None, values.chain(ends));
        let down = [TOP, self.height() - BOTTOM];
        let plot = Plot::new([left, right], down, &x, &Axis::without_ticks(0.0, 1.0));
        let at = |value: f64| plot.position(value, 0.0).0;
        for (value, _) in &x.ticks {
            let colour = if *value == 0.0 { SOFT } else { RULE };
            draw_line(
                area,
                down.map(|y| (at(*value), y)).into(),
                colour,
                THIN_WIDTH,
            );
        }
        plot.draw_x_ticks(area, &x);
        for (bar, y) in bars
            .iter()
            .zip((TOP + ROW_HEIGHT / 2..).step_by(ROW_HEIGHT as usize))
        {
            let label = truncate_text(&bar.label, MAX_LABEL);
            draw_text(area, &label, (left - GAP, y), SOFT, HPos::Right);
            let colour = colour(bar.style);
            let (zero, end) = (at(0.0), at(bar.value));
            let side = |x, half: i32| [(x, y - half), (x, y + half)];
            let [above, below] = side(zero, HALF_BAR);
            let corners = [[below, above], side(end, HALF_BAR)].concat();
            draw_polygon(area, corners, colour.mix(0.5));
            let mut rightmost = end.max(zero);
            if let Some([low, high]) = bar.interval.map(|ends| ends.map(at)) {
                let middle = [(low, y), (high, y)];
                for whisker in [side(low, CAP), middle, side(high, CAP)] {
                    draw_line(area, whisker.into(), INK, THIN_WIDTH);
                }
                rightmost = rightmost.max(high);
            }
            draw_text(area, &format(bar), (rightmost + GAP, y), colour, HPos::Left);
        }
    }

    /// The bars with finite values, without non-finite intervals.
    fn drawable_bars(&self) -> Vec<Bar> {
        let bars = self.bars.iter().filter(|bar| is_drawable(bar.value));
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

    fn bars(values: &[(f64, Option<[f64; 2]>)]) -> BarChart {
        let bar = |&(value, interval)| Bar {
            label: "mine".into(),
            style: 3,
            value,
            interval,
        };
        BarChart {
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
    fn non_finite_values_are_omitted() {
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
