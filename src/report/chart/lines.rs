//! Lines, with their intervals as bands and their names at their ends.

use plotters::style::{Color, text_anchor::HPos};

use super::{
    Across, BOTTOM, RIGHT, TOP, Unit, WIDTH,
    axis::Axis,
    drawable, drawable_interval,
    pen::{
        Area, LINE, MARK, Plot, RULE, SOFT, THIN, colour, line, mark, shape, shortened, text,
        title, widest,
    },
};
use crate::run::EpochRecord;

pub(super) const HEIGHT: i32 = 2140;
const LEFT: i32 = 400;
/// From the plot to the names.
const TO_LABEL: i32 = 160;
/// What longer names may have on the right.
const MOST_RIGHT: i32 = 1900;
/// Least distance of two names.
const LABEL_GAP: i32 = 130;
/// Marks on a line, at most about this many: they tell lines apart and should not hide them.
const MARKS: usize = 8;

/// A measured value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Where on the horizontal axis.
    pub at: f64,
    /// What was measured.
    pub value: f64,
    /// Its 95% interval, where it is known.
    pub interval: Option<[f64; 2]>,
}

/// A run's line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Written at the line's end; empty for a line like another, which is named.
    pub label: String,
    /// Which of the [`STYLES`](super::STYLES).
    pub style: usize,
    /// In the order in which they were measured; those without a number are not drawn.
    pub points: Vec<Point>,
}

/// The points of a run's epochs: `value` and its interval, where it has one.
pub fn epoch_by_epoch(
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

/// Lines over one axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// What is counted.
    pub title: String,
    /// Against what.
    pub across: Across,
    /// In what.
    pub unit: Unit,
    /// Where the vertical axis begins; if nothing is said, shares begin at 0 and others where the values do.
    pub from: Option<f64>,
    /// The lines.
    pub series: Vec<Series>,
}

impl Panel {
    /// Lines over epochs; none where none of them has a point.
    pub fn over_epochs(
        title: String,
        unit: Unit,
        series: impl Iterator<Item = Series>,
    ) -> Option<Self> {
        let series: Vec<Series> = series.filter(|line| !line.points.is_empty()).collect();
        (!series.is_empty()).then_some(Self {
            title,
            across: Across::Epochs,
            unit,
            from: None,
            series,
        })
    }

    pub(super) fn description(&self) -> String {
        let lines = self.lines().into_iter().filter_map(|line| {
            let (first, last) = (line.points.first()?, line.points.last()?);
            Some(format!(
                "{} goes from {} at {} to {} at {}.",
                line.label,
                self.unit.words(first.value),
                self.across.words(first.at),
                self.unit.words(last.value),
                self.across.words(last.at)
            ))
        });
        lines.collect::<Vec<_>>().join(" ")
    }

    pub(super) fn draw(&self, area: &Area) {
        title(area, &self.title);
        let lines = self.lines();
        let points = || lines.iter().flat_map(|line| &line.points);
        let values = points().map(|p| p.value);
        let ends = points().filter_map(|p| p.interval).flatten();
        let x = self.across.axis(points().map(|p| self.across.along(p.at)));
        let y = self.unit.axis(self.from, values.chain(ends));

        let named = lines.iter().filter(|line| !line.label.is_empty());
        let mut named: Vec<(&Series, Point)> = named
            .filter_map(|line| Some((line, *line.points.last()?)))
            .collect();
        named.sort_by(|(_, a), (_, b)| b.value.total_cmp(&a.value));
        let label = |(line, end): &(&Series, Point)| {
            format!("{} {}", self.unit.words(end.value), line.label)
        };
        let right = TO_LABEL + widest(named.iter().map(label));
        let across = [LEFT, WIDTH - right.clamp(RIGHT, MOST_RIGHT)];
        let plot = Plot::new(across, [TOP, HEIGHT - BOTTOM], &x, &y);

        frame(area, &plot, &x, &y);
        for line in &lines {
            self.draw_line(area, &plot, line);
        }
        let place = |end: &Point| plot.place(self.across.along(end.at), end.value);
        let wanted: Vec<i32> = named.iter().map(|(_, end)| place(end).1).collect();
        let at = plot.across[1] + TO_LABEL;
        for (named, down) in named.iter().zip(spread(&wanted, plot.down)) {
            let colour = colour(named.0.style);
            let (x, y) = place(&named.1);
            let leader = vec![(x + 40, y), (at - 30, down)];
            line(area, leader, colour.mix(0.5), THIN);
            let label = shortened(&label(named), WIDTH - at);
            text(area, &label, (at, down), colour, HPos::Left);
        }
    }

    /// The lines, with the points and intervals that can be drawn.
    fn lines(&self) -> Vec<Series> {
        let point = |p: &Point| {
            let interval = drawable_interval(p.interval);
            let drawn = drawable(self.across.along(p.at)) && drawable(p.value);
            drawn.then_some(Point { interval, ..*p })
        };
        let lines = self.series.iter().map(|line| Series {
            points: line.points.iter().filter_map(point).collect(),
            ..line.clone()
        });
        lines.filter(|line| !line.points.is_empty()).collect()
    }

    fn draw_line(&self, area: &Area, plot: &Plot, Series { style, points, .. }: &Series) {
        let place = |at: f64, value: f64| plot.place(self.across.along(at), value);
        let end = |i: usize| move |p: &Point| Some(place(p.at, p.interval?[i]));
        // There is a band only where every point has an interval.
        let lower: Option<Vec<_>> = points.iter().map(end(0)).collect();
        let upper: Option<Vec<_>> = points.iter().rev().map(end(1)).collect();
        if let (Some(lower), Some(upper)) = (lower, upper) {
            shape(area, [lower, upper].concat(), colour(*style).mix(0.11));
        }
        let places: Vec<_> = points.iter().map(|p| place(p.at, p.value)).collect();
        line(area, places.clone(), colour(*style), LINE);
        let every = places.len().div_ceil(MARKS);
        for at in places.into_iter().rev().step_by(every) {
            mark(area, at, *style, MARK, 1.0);
        }
    }
}

/// Lines and numbers at the values, numbers below.
fn frame(area: &Area, plot: &Plot, x: &Axis, y: &Axis) {
    let [left, right] = plot.across;
    let rule = |y: i32, colour| line(area, vec![(left, y), (right, y)], colour, THIN);
    for (value, number) in &y.ticks {
        let (_, down) = plot.place(0.0, *value);
        rule(down, RULE);
        text(area, number, (left - 60, down), SOFT, HPos::Right);
    }
    rule(plot.down[1], SOFT);
    plot.numbers_below(area, x);
}

/// Ascending positions moved to at least [`LABEL_GAP`] from each other, within the bounds if they fit at all.
fn spread(wanted: &[i32], [low, high]: [i32; 2]) -> Vec<i32> {
    let mut placed = Vec::with_capacity(wanted.len());
    for want in wanted {
        let least = placed.last().map_or(low, |p: &i32| p + LABEL_GAP);
        placed.push(*want.max(&least));
    }
    let mut most = high;
    for at in placed.iter_mut().rev() {
        *at = (*at).min(most);
        most = *at - LABEL_GAP;
    }
    placed
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::report::chart::{Chart, inline, wilson};

    pub(in super::super) fn panel(label: &str) -> Panel {
        let series = |label: &str, style, last| {
            let point = |(at, value)| Point {
                at,
                value,
                interval: wilson(value, 100),
            };
            Series {
                label: label.into(),
                style,
                points: [(0.0, 0.9), (2.0, last)].map(point).into(),
            }
        };
        Panel {
            title: "Held".into(),
            across: Across::Epochs,
            unit: Unit::Share,
            from: None,
            series: vec![series(label, 0, 0.85), series("SFT", 1, 0.84)],
        }
    }

    /// A panel of one line.
    fn over(across: Across, unit: Unit, points: &[(f64, f64)]) -> Panel {
        let mut panel = panel("mine");
        (panel.across, panel.unit) = (across, unit);
        panel.series.truncate(1);
        let point = |&(at, value)| Point {
            at,
            value,
            interval: None,
        };
        panel.series[0].points = points.iter().map(point).collect();
        panel
    }

    fn draw(panel: Panel) -> String {
        inline(&Chart::Lines(panel), "held")
    }

    #[test]
    fn a_line_goes_through_the_plot_at_its_shares() {
        let svg = draw(panel("mine"));
        // Plot area: x 40 to 252, y 32 to 184; 90% is 15.2 below the top, 85% 22.8.
        assert!(svg.contains("\"400,472 2520,548 \""), "{svg}");
        assert!(svg.contains(">Held over epochs</title>"));
        assert!(svg.contains("mine goes from 90% at epoch 0 to 85% at epoch 2."));
    }

    #[test]
    fn a_line_over_a_share_keeps_its_place_and_the_axis_may_begin_above_zero() {
        let mut panel = over(
            Across::Share("learned"),
            Unit::Share,
            &[(0.0, 0.9), (0.75, 0.85), (1.0, 0.1)],
        );
        panel.from = Some(0.8);
        let svg = draw(panel);
        // 90% is half of the 152 below the top, 85% three quarters; .75 of 212 lies at 199. What lies lower is drawn at the bottom.
        assert!(svg.contains("\"400,1080 1990,1460 2520,1840 \""), "{svg}");
        assert!(svg.contains("\n100% learned\n") && svg.contains("\n85%\n"));
        assert!(svg.contains("mine goes from 90% at 0% learned to 10% at 100% learned."));
    }

    #[test]
    fn between_a_hundred_and_ten_thousand_a_thousand_is_in_the_middle() {
        let points = [(100.0, 0.0), (1000.0, 1.0), (10_000.0, -1.0)];
        let svg = draw(over(Across::Count("facts"), Unit::Points, &points));
        assert!(svg.contains("\"400,1080 1460,320 2520,1840 \""), "{svg}");
        assert!(svg.contains("\n1,000\n") && svg.contains("\n10,000 facts\n"));
        assert!(svg.contains("mine goes from 0.0 pp at 100 facts to −1.0 pp at 10,000 facts."));
    }

    #[test]
    fn labels_that_would_overlap_are_moved_apart_and_stay_inside() {
        let placed = spread(&[500, 510, 1000, 1000], [0, 1000]);
        assert_eq!(placed, [500, 630, 870, 1000]);
    }

    #[test]
    fn what_is_no_number_is_left_out() {
        let (nan, far) = (f64::NAN, 9e99);
        let points = [
            (1.0, 0.5),
            (nan, 0.1),
            (2.0, nan),
            (4.0, f64::MAX),
            (3.0, 0.7),
        ];
        let clean = [(1.0, 0.5), (3.0, 0.7)];
        for across in [Across::Epochs, Across::Share("x"), Across::Count("x")] {
            for unit in [Unit::Share, Unit::Points, Unit::Number] {
                let drawn = |points: &[(f64, f64)]| draw(over(across, unit, points));
                assert_eq!(drawn(&points), drawn(&clean));
                for points in [vec![], vec![(1.0, 1.0)], vec![(0.0, far), (far, -far)]] {
                    assert!(drawn(&points).ends_with("</svg>"));
                }
            }
        }
    }

    #[test]
    fn an_interval_that_is_no_number_is_not_drawn() {
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
