//! SVG charts for the page and as files: line, bar and scatter charts.
//!
//! `lines`, `bars` and `scatter` lay out one kind of chart each, `axis` chooses round tick values, and `svg` draws with plotters. The
//! reader's colour scheme sets the colours: plotters writes fixed ones, by which `chart.css` selects the elements.

mod axis;
mod bars;
mod lines;
mod scatter;
mod svg;

use minijinja::HtmlEscape;

pub use axis::{Unit, XAxis};
pub use bars::{Bar, BarChart};
pub use lines::{LineChart, Point, Series, points_by_epoch, points_by_learning};
pub use scatter::{Group, ScatterChart};
pub use svg::STYLES;

use svg::{
    Area, LINE_WIDTH, MARKER_RADIUS, PAPER, WIDTH, colour, draw_line, draw_marker,
    remove_control_chars, render,
};

/// Style sheet of the charts, for the page that contains them.
pub const CSS: &str = include_str!("chart.css");

/// A chart.
#[derive(Clone, Debug, PartialEq)]
pub enum Chart {
    /// Lines over epochs, fractions or counts.
    Lines(LineChart),
    /// Horizontal bars.
    Bars(BarChart),
    /// Dots in the plane.
    Scatter(ScatterChart),
}

impl Chart {
    fn title(&self) -> String {
        match self {
            Self::Lines(panel) => format!("{} over {}", panel.title, panel.x_axis.name()),
            Self::Bars(bars) => bars.title.clone(),
            Self::Scatter(map) => map.title.clone(),
        }
    }

    /// Description for screen readers.
    fn description(&self) -> String {
        match self {
            Self::Lines(panel) => panel.description(),
            Self::Bars(bars) => bars.description(),
            Self::Scatter(map) => map.description(),
        }
    }

    fn height(&self) -> i32 {
        match self {
            Self::Lines(_) => lines::HEIGHT,
            Self::Bars(bars) => bars.height(),
            Self::Scatter(_) => scatter::HEIGHT,
        }
    }

    fn draw(&self, area: &Area) {
        match self {
            Self::Lines(panel) => panel.draw(area),
            Self::Bars(bars) => bars.draw(area),
            Self::Scatter(map) => map.draw(area),
        }
    }
}

/// A chart as an `<svg>` element for a page that has [`CSS`]; `id` must be unique in the page.
pub fn inline(chart: &Chart, id: &str) -> String {
    let size = (WIDTH, chart.height());
    let content = render(size, |area| chart.draw(area));
    svg_element(size, id, &chart.title(), &chart.description(), &content)
}

/// All charts as one SVG file with `columns` columns.
pub fn svg(title: &str, charts: &[Chart], columns: usize) -> String {
    let columns = columns.clamp(1, charts.len().max(1));
    let rows = || {
        let rows = charts.chunks(columns);
        rows.map(|row| (row, row.iter().map(Chart::height).max().unwrap_or(0)))
    };
    let size = (
        WIDTH * columns as i32,
        rows().map(|(_, height)| height).sum(),
    );
    let content = render(size, |area| {
        svg::fill(area, PAPER);
        let mut top = 0;
        for (row, height) in rows() {
            for (chart, left) in row.iter().zip((0..).step_by(WIDTH as usize)) {
                chart.draw(&area.clone().shrink((left, top), (WIDTH, height)));
            }
            top += height;
        }
    });
    let descriptions: Vec<String> = charts
        .iter()
        .map(|chart| format!("{}: {}", chart.title(), chart.description()))
        .collect();
    let content = format!("<style>{CSS}</style>{content}");
    svg_element(size, "chart", title, &descriptions.join(" "), &content) + "\n"
}

/// Line and marker of a style, for a table row.
pub fn legend_key(style: usize) -> String {
    let content = render((340, 120), |area| {
        draw_line(area, vec![(20, 60), (320, 60)], colour(style), LINE_WIDTH);
        draw_marker(area, (170, 60), style, MARKER_RADIUS, 1.0);
    });
    format!(
        "<svg class=\"chart key\" viewBox=\"0 0 34 12\" width=\"34\" height=\"12\" aria-hidden=\"true\">{content}</svg>"
    )
}

fn svg_element(
    (width, height): (i32, i32),
    id: &str,
    title: &str,
    description: &str,
    content: &str,
) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" viewBox=\"0 0 {} {}\" role=\"img\" \
         aria-labelledby=\"{id}-title {id}-desc\"><title id=\"{id}-title\">{}</title><desc id=\"{id}-desc\">{}</desc>{content}</svg>",
        width / 10,
        height / 10,
        HtmlEscape(&remove_control_chars(title)),
        HtmlEscape(&remove_control_chars(description)),
    )
}

#[cfg(test)]
mod tests {
    use plotters::style::RGBColor;

    use super::{
        svg::{INK, RULE, SOFT},
        *,
    };

    #[test]
    fn names_are_escaped() {
        let hostile = "</text><script>\"&\u{7}";
        let (label, style) = (hostile.to_owned(), 0);
        let bar = Bar {
            label: label.clone(),
            style,
            value: 1.0,
            interval: None,
        };
        let group = Group {
            label,
            style,
            dots: vec![[0.0, 1.0]],
        };
        let charts = [
            Chart::Lines(lines::tests::panel(hostile)),
            Chart::Bars(BarChart {
                title: hostile.into(),
                unit: Unit::Points,
                bars: vec![bar],
            }),
            Chart::Scatter(ScatterChart {
                title: hostile.into(),
                groups: vec![group],
            }),
        ];
        let svg = svg("<b>", &charts, 3);
        assert!(!svg.contains("<script>") && !svg.contains("<b>") && !svg.contains('\u{7}'));
        // A line's name, a bar's and two titles; that of the map's key is shortened.
        let text = "\n&lt;/text&gt;&lt;script&gt;&quot;&amp; \n";
        assert_eq!(svg.matches(&text[1..]).count(), 4, "{svg}");
        assert_eq!(svg.matches(text).count(), 3, "{svg}");
    }

    #[test]
    fn rows_of_a_file_are_as_high_as_their_highest_chart() {
        let map = || {
            Chart::Scatter(ScatterChart {
                title: "Map".into(),
                groups: Vec::new(),
            })
        };
        let lines = || Chart::Lines(lines::tests::panel("mine"));
        let svg = svg("All", &[lines(), map(), lines()], 2);
        let height = (lines::HEIGHT + scatter::HEIGHT) / 10;
        assert!(
            svg.contains(&format!("viewBox=\"0 0 760 {height}\"")),
            "{svg}"
        );
    }

    #[test]
    fn no_charts_are_an_empty_file() {
        assert!(svg("None", &[], 3).ends_with("</svg>\n"));
    }

    #[test]
    fn every_colour_is_replaced_by_the_style_sheet() {
        let roles = [
            (INK, "ink"),
            (SOFT, "soft"),
            (RULE, "rule"),
            (PAPER, "paper"),
        ];
        let roles = roles.map(|(colour, name)| (colour, name.to_owned()));
        let styles = (0..STYLES).map(|style| (colour(style), format!("s{style}")));
        for (RGBColor(r, g, b), name) in roles.into_iter().chain(styles) {
            let hex = format!("#{r:02X}{g:02X}{b:02X}");
            let rule = format!("[fill=\"{hex}\"], [stroke=\"{hex}\"]) {{ color: var(--{name}); }}");
            assert!(CSS.contains(&rule), "{rule}");
        }
    }
}
