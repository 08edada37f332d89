//! Line charts with intervals as bands and labels at the ends of the lines.

use plotters::style::{Color, text_anchor::HPos};

use super::{
    axis::{Axis, Unit, XAxis},
    svg::{
        Area, BOTTOM, LINE_WIDTH, MARKER_RADIUS, Plot, RIGHT, RULE, SOFT, THIN_WIDTH, TOP, WIDTH,
        colour, draw_line, draw_marker, draw_polygon, draw_text, draw_title, drawable_interval,
        is_drawable, max_text_width, truncate_text,
    },
};
use crate::run::EpochRecord;

pub(super) const HEIGHT: i32 = 2140;
const LEFT: i32 = 400;
/// Distance from the plot to the labels.
const LABEL_OFFSET: i32 = 160;
/// Maximum width of the labels.
const MAX_RIGHT: i32 = 1900;
/// Minimum distance between two labels.
const LABEL_GAP: i32 = 130;
/// Length of a dash, and of the gap after it.
const DASH_LENGTH: i32 = 50;
/// Approximate maximum number of markers per line; more would hide the line.
const MAX_MARKERS: usize = 8;

/// A measured value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Position on the horizontal axis.
    pub at: f64,
    /// Value.
    pub value: f64,
    /// Its 95% interval, if known.
    pub interval: Option<[f64; 2]>,
}

/// A line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Label at the end of the line; empty for a line that shares the label of another.
    pub label: String,
    /// Index of one of the [`STYLES`](super::svg::STYLES).
    pub style: usize,
    /// Points in the order of measurement; non-finite ones are not drawn.
    pub points: Vec<Point>,
}

/// One point per epoch of a run: `value` returns the value and its interval.
pub fn points_by_epoch(
    epochs: &[EpochRecord],
    value: impl Fn(&EpochRecord) -> Option<(f64, Option<[f64; 2]>)>,
) -> Vec<Point> {
    let point = |epoch: &EpochRecord| {
        let (value, interval) = value(epoch)?;
        Some(Point {
            at: epoch.epoch as f64,
            value,
            interval,
        })
    };
    epochs.iter().filter_map(point).collect()
}

/// One point per epoch of a run at the new facts that it had learned ([`EpochRecord::curve`]). A run without new facts is a flat line
/// at `level`.
pub fn points_by_learning(epochs: &[EpochRecord], level: Option<f64>) -> Vec<Point> {
    let point = |at, value| Point {
        at,
        value,
        interval: None,
    };
    let curve = EpochRecord::curve(epochs).into_iter();
    let learning: Vec<Point> = curve.map(|p| point(p.learned, p.kept)).collect();
    match level {
        Some(level) if learning.is_empty() => vec![point(0.0, level), point(1.0, level)],
        _ => learning,
    }
}

/// A line chart.
#[derive(Clone, Debug, PartialEq)]
pub struct LineChart {
    /// Title.
    pub title: String,
    /// Horizontal axis.
    pub x_axis: XAxis,
    /// Unit of the values.
    pub unit: Unit,
    /// Start of the vertical axis; by default 0 for fractions and the smallest value for others.
    pub y_min: Option<f64>,
    /// Where on the horizontal axis the lines are compared: a dashed vertical line.
    pub mark: Option<f64>,
    /// The lines.
    pub series: Vec<Series>,
}

impl LineChart {
    /// A chart over epochs; none if no line has a point.
    pub fn over_epochs(
        title: String,
        unit: Unit,
        series: impl Iterator<Item = Series>,
    ) -> Option<Self> {
        let series: Vec<Series> = series.filter(|line| !line.points.is_empty()).collect();
        (!series.is_empty()).then_some(Self {
            title,
            x_axis: XAxis::Epochs,
            unit,
            y_min: None,
            mark: None,
            series,
        })
    }

    pub(super) fn description(&self) -> String {
        let lines = self.drawable_lines().into_iter().filter_map(|line| {
            let (first, last) = (line.points.first()?, line.points.last()?);
            Some(format!(
                "{} goes from {} at {} to {} at {}.",
                line.label,
                self.unit.format(first.value),
                self.x_axis.format(first.at),
                self.unit.format(last.value),
                self.x_axis.format(last.at)
            ))
        });
        lines.collect::<Vec<_>>().join(" ")
    }

    pub(super) fn draw(&self, area: &Area) {
        draw_title(area, &self.title);
        let lines = self.drawable_lines();
        let points = || lines.iter().flat_map(|line| &line.points);
        let values = points().map(|p| p.value);
        let ends = points().filter_map(|p| p.interval).flatten();
        let x = self
            .x_axis
            .axis(points().map(|p| self.x_axis.coordinate(p.at)));
        let y = self.unit.axis(self.y_min, values.chain(ends));

        let named = lines.iter().filter(|line| !line.label.is_empty());
        let mut named: Vec<(&Series, Point)> = named
            .filter_map(|line| Some((line, *line.points.last()?)))
            .collect();
        named.sort_by(|(_, a), (_, b)| b.value.total_cmp(&a.value));
        let label = |(line, end): &(&Series, Point)| {
            format!("{} {}", self.unit.format(end.value), line.label)
        };
        let right = LABEL_OFFSET + max_text_width(named.iter().map(label));
        let across = [LEFT, WIDTH - right.clamp(RIGHT, MAX_RIGHT)];
        let plot = Plot::new(across, [TOP, HEIGHT - BOTTOM], &x, &y);

        draw_axes(area, &plot, &x, &y);
        if let Some(mark) = self
            .mark
            .filter(|at| is_drawable(self.x_axis.coordinate(*at)))
        {
            let (x, _) = plot.position(self.x_axis.coordinate(mark), 0.0);
            let [top, bottom] = plot.y_range;
            for dash in (top..bottom).step_by(2 * DASH_LENGTH as usize) {
                let end = (dash + DASH_LENGTH).min(bottom);
                draw_line(area, vec![(x, dash), (x, end)], SOFT, THIN_WIDTH);
            }
        }
        for line in &lines {
            self.draw_line(area, &plot, line);
        }
        let place = |end: &Point| plot.position(self.x_axis.coordinate(end.at), end.value);
        let wanted: Vec<i32> = named.iter().map(|(_, end)| place(end).1).collect();
        let at = plot.x_range[1] + LABEL_OFFSET;
        for (named, down) in named.iter().zip(spread_labels(&wanted, plot.y_range)) {
            let colour = colour(named.0.style);
            let (x, y) = place(&named.1);
            let leader = vec![(x + 40, y), (at - 30, down)];
            draw_line(area, leader, colour.mix(0.5), THIN_WIDTH);
            let label = truncate_text(&label(named), WIDTH - at);
            draw_text(area, &label, (at, down), colour, HPos::Left);
        }
    }

    /// The lines with finite points, without non-finite intervals.
    fn drawable_lines(&self) -> Vec<Series> {
        let point = |p: &Point| {
            let interval = drawable_interval(p.interval);
            let drawn = is_drawable(self.x_axis.coordinate(p.at)) && is_drawable(p.value);
            drawn.then_some(Point { interval, ..*p })
        };
        let lines = self.series.iter().map(|line| Series {
            points: line.points.iter().filter_map(point).collect(),
            ..line.clone()
        });
        lines.filter(|line| !line.points.is_empty()).collect()
    }

    fn draw_line(&self, area: &Area, plot: &Plot, Series { style, points, .. }: &Series) {
        let place = |at: f64, value: f64| plot.position(self.x_axis.coordinate(at), value);
        let end = |i: usize| move |p: &Point| Some(place(p.at, p.interval?[i]));
        // Draw a band only if every point has an interval.
        let lower: Option<Vec<_>> = points.iter().map(end(0)).collect();
        let upper: Option<Vec<_>> = points.iter().rev().map(end(1)).collect();
        if let (Some(lower), Some(upper)) = (lower, upper) {
            draw_polygon(area, [lower, upper].concat(), colour(*style).mix(0.11));
        }
        let places: Vec<_> = points.iter().map(|p| place(p.at, p.value)).collect();
        draw_line(area, places.clone(), colour(*style), LINE_WIDTH);
        let every = places.len().div_ceil(MAX_MARKERS);
        for at in places.into_iter().rev().step_by(every) {
            draw_marker(area, at, *style, MARKER_RADIUS, 1.0);
        }
    }
}

/// Draws grid lines and the labels of both axes.
fn draw_axes(area: &Area, plot: &Plot, x: &Axis, y: &Axis) {
    let [left, right] = plot.x_range;
    let rule = |y: i32, colour| draw_line(area, vec![(left, y), (right, y)], colour, THIN_WIDTH);
    for (value, number) in &y.ticks {
        let (_, down) = plot.position(0.0, *value);
        rule(down, RULE);
        draw_text(area, number, (left - 60, down), SOFT, HPos::Right);
    }
    rule(plot.y_range[1], SOFT);
    plot.draw_x_ticks(area, x);
}

/// Moves ascending positions at least [`LABEL_GAP`] apart, within the bounds if they fit.
fn spread_labels(desired: &[i32], [low, high]: [i32; 2]) -> Vec<i32> {
    let mut placed = Vec::with_capacity(desired.len());
    for position in desired {
        let min = placed.last().map_or(low, |p: &i32| p + LABEL_GAP);
        placed.push(*position.max(&min));
    }
    let mut max = high;
    for at in placed.iter_mut().rev() {
        *at = (*at).min(max);
        max = *at - LABEL_GAP;
    }
    placed
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::{
        measure::wilson_interval,
        report::chart::{Chart, inline},
    };

    pub(in super::super) fn panel(label: &str) -> LineChart {
        let series = |label: &str, style, last| {
            let point = |(at, value)| Point {
                at,
                value,
                interval: wilson_interval(value, 100),
            };
            Series {
                label: label.into(),
                style,
                points: [(0.0, 0.9), (2.0, last)].map(point).into(),
            }
        };
        LineChart {
            title: "Held".into(),
            x_axis: XAxis::Epochs,
            unit: Unit::Fraction,
            y_min: None,
            mark: None,
            series: vec![series(label, 0, 0.85), series("SFT", 1, 0.84)],
        }
    }

    /// A panel of one line.
    fn over(across: XAxis, unit: Unit, points: &[(f64, f64)]) -> LineChart {
        let mut panel = panel("mine");
        (panel.x_axis, panel.unit) = (across, unit);
        panel.series.truncate(1);
        let point = |&(at, value)| Point {
            at,
            value,
            interval: None,
        };
        panel.series[0].points = points.iter().map(point).collect();
        panel
    }

    fn draw(panel: LineChart) -> String {
        inline(&Chart::Lines(panel), "held")
    }

    #[test]
    fn a_line_is_drawn_at_its_values() {
        let svg = draw(panel("mine"));
        // Plot area: x 40 to 252, y 32 to 184; 90% is 15.2 below the top, 85% 22.8.
        assert!(svg.contains("\"400,472 2520,548 \""), "{svg}");
        assert!(svg.contains(">Held over epochs</title>"));
        assert!(svg.contains("mine goes from 90% at epoch 0 to 85% at epoch 2."));
    }

    #[test]
    fn a_line_over_a_share_keeps_its_place_and_the_axis_may_begin_above_zero() {
        let mut panel = over(
            XAxis::Fraction("learned"),
            Unit::Fraction,
            &[(0.0, 0.9), (0.75, 0.85), (1.0, 0.1)],
        );
        panel.y_min = Some(0.8);
        let svg = draw(panel);
        // 90% is half of the 152 below the top, 85% three quarters; 0.75 of 212 is at 199. Lower values are drawn at the bottom.
        assert!(svg.contains("\"400,1080 1990,1460 2520,1840 \""), "{svg}");
        assert!(svg.contains("\n100% learned\n") && svg.contains("\n85%\n"));
        assert!(svg.contains("mine goes from 90% at 0% learned to 10% at 100% learned."));
    }

    #[test]
    fn between_a_hundred_and_ten_thousand_a_thousand_is_in_the_middle() {
        let points = [(100.0, 0.0), (1000.0, 1.0), (10_000.0, -1.0)];
        let svg = draw(over(XAxis::Count("facts"), Unit::Points, &points));
        assert!(svg.contains("\"400,1080 1460,320 2520,1840 \""), "{svg}");
        assert!(svg.contains("\n1,000\n") && svg.contains("\n10,000 facts\n"));
        assert!(svg.contains("mine goes from 0.0 pp at 100 facts to −1.0 pp at 10,000 facts."));
    }

    #[test]
    fn labels_that_would_overlap_are_moved_apart_and_stay_inside() {
        let placed = spread_labels(&[500, 510, 1000, 1000], [0, 1000]);
        assert_eq!(placed, [500, 630, 870, 1000]);
    }

    #[test]
    fn non_finite_values_are_omitted() {
        let (nan, far) = (f64::NAN, 9e99);
        let points = [
            (1.0, 0.5),
            (nan, 0.1),
            (2.0, nan),
            (4.0, f64::MAX),
            (3.0, 0.7),
        ];
        let clean = [(1.0, 0.5), (3.0, 0.7)];
        for across in [XAxis::Epochs, XAxis::Fraction("x"), XAxis::Count("x")] {
            for unit in [Unit::Fraction, Unit::Points, Unit::Number] {
                let drawn = |points: &[(f64, f64)]| draw(over(across, unit, points));
                assert_eq!(drawn(&points), drawn(&clean));
                for points in [vec![], vec![(1.0, 1.0)], vec![(0.0, far), (far, -far)]] {
                    assert!(drawn(&points).ends_with("</svg>"));
                }
            }
        }
    }

    #[test]
    fn a_non_finite_interval_is_omitted() {
        let mut panel = panel("mine");
        assert_eq!(draw(panel.clone()).matches("opacity=\"0.11\"").count(), 2);
        panel.series[0].points[0].interval = Some([0.1, f64::NAN]);
        assert_eq!(draw(panel).matches("opacity=\"0.11\"").count(), 1);
    }

    #[test]
    fn a_long_name_takes_room_from_the_plot_and_ends_in_the_picture() {
        let svg = draw(panel("a name of a method that would be too long"));
        assert!(svg.contains("\n85% a name of a method…\n"), "{svg}");
    }
}
