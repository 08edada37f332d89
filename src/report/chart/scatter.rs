//! Scatter charts with a legend of their groups.

use std::cmp::Reverse;

use plotters::style::text_anchor::HPos;

use super::{
    axis::{Axis, extent},
    svg::{
        Area, MARKER_RADIUS, Plot, RIGHT, RULE, THIN_WIDTH, TOP, WIDTH, colour, draw_line,
        draw_marker, draw_text, draw_title, is_drawable, truncate_text,
    },
};
use crate::format::thousands;

/// Side of the plot, which is square.
const SIDE: i32 = WIDTH - RIGHT - EDGE;
/// Margin around it.
const EDGE: i32 = 10;
pub(super) const HEIGHT: i32 = TOP + SIDE + EDGE;
/// Radius of a dot.
const DOT_RADIUS: f64 = 22.0;
/// Opacity of a dot; `chart.css` selects dots by it.
const OPACITY: f64 = 0.8;
/// Half the range of an axis, as a fraction of the range of the dots.
const MARGIN: f64 = 0.53;
/// Line height of the legend.
const LEGEND_ROW: i32 = 160;

/// A group of dots.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// Label in the legend.
    pub label: String,
    /// Index of one of the [`STYLES`](super::svg::STYLES).
    pub style: usize,
    /// Coordinates (x, y); non-finite ones are not drawn.
    pub dots: Vec<[f64; 2]>,
}

/// A scatter chart in which only distances matter: both axes have the same scale and no ticks.
#[derive(Clone, Debug, PartialEq)]
pub struct ScatterChart {
    /// Title.
    pub title: String,
    /// The groups in the order of the legend; smaller groups are drawn over larger ones.
    pub groups: Vec<Group>,
}

impl ScatterChart {
    pub(super) fn description(&self) -> String {
        let groups: Vec<String> = self.groups.iter().map(Group::legend).collect();
        groups.join(", ") + "."
    }

    pub(super) fn draw(&self, area: &Area) {
        draw_title(area, &self.title);
        let dots = || self.groups.iter().flat_map(Group::drawable_dots);
        let [x, y] = [0, 1].map(|i| extent(dots().map(|dot| dot[i])));
        let longest = (x[1] - x[0]).max(y[1] - y[0]);
        let half = if longest > 0.0 { MARGIN * longest } else { 1.0 };
        let around = |[low, high]: [f64; 2]| {
            let middle = low.midpoint(high);
            Axis::without_ticks(middle - half, middle + half)
        };
        let (left, right, top, bottom) = (EDGE, EDGE + SIDE, TOP, TOP + SIDE);
        let plot = Plot::new([left, right], [top, bottom], &around(x), &around(y));
        let border = [
            (left, top),
            (right, top),
            (right, bottom),
            (left, bottom),
            (left, top),
        ];
        draw_line(area, border.into(), RULE, THIN_WIDTH);
        let mut groups: Vec<&Group> = self.groups.iter().collect();
        groups.sort_by_key(|group| Reverse(group.dots.len()));
        for group in groups {
            for [x, y] in group.drawable_dots() {
                draw_marker(
                    area,
                    plot.position(*x, *y),
                    group.style,
                    DOT_RADIUS,
                    OPACITY,
                );
            }
        }
        let rows = (TOP + LEGEND_ROW / 2..).step_by(LEGEND_ROW as usize);
        for (group, y) in self.groups.iter().zip(rows) {
            let x = right + 200;
            let label = truncate_text(&group.legend(), WIDTH - x);
            draw_marker(area, (right + 120, y), group.style, MARKER_RADIUS, OPACITY);
            draw_text(area, &label, (x, y), colour(group.style), HPos::Left);
        }
    }
}

impl Group {
    /// Number of dots and label.
    fn legend(&self) -> String {
        format!("{} {}", thousands(self.drawable_dots().count()), self.label)
    }

    /// The dots with finite coordinates.
    fn drawable_dots(&self) -> impl Iterator<Item = &[f64; 2]> {
        self.dots
            .iter()
            .filter(|dot| dot.iter().all(|at| is_drawable(*at)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::chart::{Chart, inline};

    fn map(groups: &[&[[f64; 2]]]) -> String {
        let group = |(style, dots): (usize, &&[[f64; 2]])| Group {
            label: format!("group {style}"),
            style,
            dots: dots.to_vec(),
        };
        let map = ScatterChart {
            title: "Facts".into(),
            groups: groups.iter().enumerate().map(group).collect(),
        };
        inline(&Chart::Scatter(map), "map")
    }

    #[test]
    fn both_axes_have_one_scale() {
        let svg = map(&[&[[0.0, 0.0], [4.0, 0.0], [2.0, 1.0]]]);
        // 4 are 251 / 1.06 wide, 236.8; 1 is a quarter of that.
        for centre in [
            "cx=\"81\" cy=\"1871\"",
            "cx=\"2448\" cy=\"1871\"",
            "cx=\"1265\" cy=\"1280\"",
        ] {
            assert!(svg.contains(centre), "{centre} {svg}");
        }
    }

    #[test]
    fn small_groups_are_drawn_over_large_ones() {
        let spiral = |i: i32| [f64::from(i).sin(), f64::from(i).cos()].map(|x| x * f64::from(i));
        let many: Vec<[f64; 2]> = (0..3000).map(spiral).collect();
        let svg = map(&[&[[0.0, 0.0]], &many]);
        // A circle and 3,000 squares, one more of each in the key.
        assert_eq!(svg.matches("<circle").count(), 2);
        assert_eq!(svg.matches("<polygon").count(), 3001);
        assert!(svg.find("<circle") > svg.find("<polygon"));
        assert!(svg.contains("1 group 0, 3,000 group 1."));
    }

    #[test]
    fn non_finite_values_are_omitted() {
        let nan = f64::NAN;
        assert_eq!(
            map(&[&[[0.0, 1.0], [nan, 0.0], [0.0, nan]]]),
            map(&[&[[0.0, 1.0]]])
        );
        let far = [[9e99, 0.0], [-9e99, 0.0]];
        for groups in [vec![], vec![&[][..]], vec![&far]] {
            assert!(map(&groups).ends_with("</svg>"));
        }
    }
}
