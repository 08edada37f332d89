//! Accuracy as SVG, over epochs or over what was learned: small panels of a line for each run.
//!
//! Written here rather than with a plotting library: the picture has to follow the reader's colour scheme, so that every colour must be a
//! CSS class (`plotters` writes fixed colours into each element), and it needs direct labels, intervals and a marker as well as a dash
//! for every line (`poloto` themes with CSS, but has none of the three). What is left is scales and text, this one file.

use std::fmt::Write;

/// Lines that differ in colour, dash and marker; a further one repeats.
pub const STYLES: usize = 6;

/// The colours, dashes and type of the charts, for the page that holds them.
pub const CSS: &str = include_str!("chart.css");

const WIDTH: f64 = 380.0;
const HEIGHT: f64 = 214.0;
const LEFT: f64 = 40.0;
const RIGHT: f64 = 128.0;
const TOP: f64 = 32.0;
const BOTTOM: f64 = 30.0;
/// Least distance of two labels' baselines.
const LABEL_GAP: f64 = 13.0;
/// Markers on a line, at most about this many: they tell lines apart and should not hide them.
const MARKS: usize = 8;

/// What the horizontal axis counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Across {
    /// Epochs done, from 0, which is before training.
    Epochs,
    /// A share, from 0 to 1, of what is named.
    Share(&'static str),
}

/// A share right.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Where on the horizontal axis.
    pub at: f64,
    /// Share right, 0 to 1.
    pub share: f64,
    /// Its 95% interval, where it is known.
    pub interval: Option<[f64; 2]>,
}

/// A run's line.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Written at the line's end; empty for a line like another, which is named.
    pub label: String,
    /// Which of the [`STYLES`].
    pub style: usize,
    /// In the order in which they were measured.
    pub points: Vec<Point>,
}

/// One small picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// What is counted.
    pub title: String,
    /// Against what.
    pub across: Across,
    /// Where the vertical axis begins, from 0 to below 1; it ends at 1.
    pub from: f64,
    /// The lines.
    pub series: Vec<Series>,
}

/// A panel as an `<svg>` element for a page that has [`CSS`]; `id` must be unique in the page.
pub fn inline(panel: &Panel, id: &str) -> String {
    let mut out = open(
        WIDTH,
        HEIGHT,
        id,
        &match panel.across {
            Across::Epochs => format!("{} over epochs", panel.title),
            Across::Share(what) => format!("{} over {what}", panel.title),
        },
        &describe(panel),
    );
    draw(&mut out, panel);
    out.push_str("</svg>");
    out
}

/// All panels as one SVG file, `columns` side by side.
pub fn svg(title: &str, panels: &[Panel], columns: usize) -> String {
    let columns = columns.clamp(1, panels.len().max(1));
    let width = WIDTH * columns as f64;
    let height = HEIGHT * panels.len().div_ceil(columns) as f64;
    let descriptions: Vec<String> = panels
        .iter()
        .map(|panel| format!("{}: {}", panel.title, describe(panel)))
        .collect();
    let mut out = open(width, height, "chart", title, &descriptions.join(" "));
    let _ = write!(
        out,
        "<style>{CSS}</style><rect class=\"paper\" width=\"{width}\" height=\"{height}\"/>"
    );
    for (i, panel) in panels.iter().enumerate() {
        let (column, row) = (i % columns, i / columns);
        let _ = write!(
            out,
            "<g transform=\"translate({} {})\">",
            WIDTH * column as f64,
            HEIGHT * row as f64
        );
        draw(&mut out, panel);
        out.push_str("</g>");
    }
    out.push_str("</svg>\n");
    out
}

/// The dash and marker of a style, for a table's row.
pub fn key(style: usize) -> String {
    let mut out = String::from(
        "<svg class=\"chart key\" viewBox=\"0 0 34 12\" width=\"34\" height=\"12\" aria-hidden=\"true\">",
    );
    let _ = write!(
        out,
        "<g class=\"s{}\"><path class=\"line\" d=\"M2 6H32\"/>",
        style % STYLES
    );
    mark(&mut out, style, 17.0, 6.0);
    out.push_str("</g></svg>");
    out
}

/// The 95% Wilson interval of `share` right among `n`: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z = 1.96
/// (Wilson 1927); none of nothing.
pub fn wilson(share: f64, n: usize) -> Option<[f64; 2]> {
    if n == 0 {
        return None;
    }
    let (n, z) = (n as f64, 1.96_f64);
    let middle = share + z * z / (2.0 * n);
    let half = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    Some([
        ((middle - half) / scale).max(0.0),
        ((middle + half) / scale).min(1.0),
    ])
}

fn open(width: f64, height: f64, id: &str, title: &str, description: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"chart\" viewBox=\"0 0 {width} {height}\" role=\"img\" \
         aria-labelledby=\"{id}-title {id}-desc\"><title id=\"{id}-title\">{}</title><desc id=\"{id}-desc\">{}</desc>",
        escape(title),
        escape(description)
    )
}

/// What the lines say, for those who don't see them.
fn describe(panel: &Panel) -> String {
    let place = |at: f64| match panel.across {
        Across::Epochs => format!("epoch {at}"),
        Across::Share(what) => format!("{} {what}", percent(at)),
    };
    let lines: Vec<String> = panel
        .series
        .iter()
        .filter_map(|s| {
            let (first, last) = (s.points.first()?, s.points.last()?);
            Some(format!(
                "{} goes from {} at {} to {} at {}.",
                s.label,
                percent(first.share),
                place(first.at),
                percent(last.share),
                place(last.at)
            ))
        })
        .collect();
    lines.join(" ")
}

fn draw(out: &mut String, panel: &Panel) {
    let places = panel.series.iter().flat_map(|s| &s.points).map(|p| p.at);
    let most = match panel.across {
        Across::Epochs => places.fold(1.0, f64::max),
        Across::Share(_) => 1.0,
    };
    let (plot_width, plot_height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
    let x = |at: f64| LEFT + plot_width * at / most;
    let height = |share: f64| ((1.0 - share) / (1.0 - panel.from)).clamp(0.0, 1.0);
    let y = |share: f64| TOP + plot_height * height(share);
    let _ = write!(
        out,
        "<text class=\"panel-title\" x=\"0\" y=\"14\">{}</text>",
        escape(&panel.title)
    );
    for quarter in 0..=4 {
        let share = panel.from + (1.0 - panel.from) * f64::from(quarter) / 4.0;
        let class = if quarter == 0 { "axis" } else { "grid" };
        let _ = write!(
            out,
            "<path class=\"{class}\" d=\"M{LEFT} {at:.1}H{:.1}\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            y(share) + 4.0,
            percent(share),
            at = y(share),
        );
    }
    for (at, name) in ticks(panel.across, most) {
        let _ = write!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>",
            x(at),
            HEIGHT - BOTTOM + 16.0
        );
    }
    for series in &panel.series {
        if series.points.is_empty() {
            continue;
        }
        let _ = write!(out, "<g class=\"s{}\">", series.style % STYLES);
        band(out, &series.points, x, y);
        let line: Vec<String> = series
            .points
            .iter()
            .map(|p| format!("{:.1} {:.1}", x(p.at), y(p.share)))
            .collect();
        let _ = write!(out, "<path class=\"line\" d=\"M{}\"/>", line.join("L"));
        let every = series.points.len().div_ceil(MARKS);
        for p in series.points.iter().rev().step_by(every) {
            mark(out, series.style, x(p.at), y(p.share));
        }
        out.push_str("</g>");
    }
    labels(out, panel, x, y);
}

/// The area between the intervals' ends, where every point has one.
fn band(out: &mut String, points: &[Point], x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) {
    let Some(ends) = points
        .iter()
        .map(|p| p.interval.map(|i| (x(p.at), y(i[0]), y(i[1]))))
        .collect::<Option<Vec<_>>>()
    else {
        return;
    };
    let upper = ends.iter().map(|(x, _, high)| format!("{x:.1} {high:.1}"));
    let lower = ends
        .iter()
        .rev()
        .map(|(x, low, _)| format!("{x:.1} {low:.1}"));
    let outline: Vec<String> = upper.chain(lower).collect();
    let _ = write!(out, "<path class=\"band\" d=\"M{}Z\"/>", outline.join("L"));
}

/// The lines' names at their ends, moved apart where they would overlap.
fn labels(out: &mut String, panel: &Panel, x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) {
    let named = panel.series.iter().filter(|s| !s.label.is_empty());
    let mut ends: Vec<(&Series, Point)> =
        named.filter_map(|s| Some((s, *s.points.last()?))).collect();
    ends.sort_by(|a, b| b.1.share.total_cmp(&a.1.share));
    let wanted: Vec<f64> = ends.iter().map(|(_, p)| y(p.share)).collect();
    let at = WIDTH - RIGHT + 16.0;
    for ((series, point), baseline) in ends.iter().zip(spread(&wanted, TOP, HEIGHT - BOTTOM)) {
        let _ = write!(
            out,
            "<g class=\"s{}\"><path class=\"leader\" d=\"M{:.1} {:.1}L{:.1} {baseline:.1}\"/>\
             <text class=\"label\" x=\"{at:.1}\" y=\"{:.1}\">{} {}</text></g>",
            series.style % STYLES,
            x(point.at) + 4.0,
            y(point.share),
            at - 3.0,
            baseline + 4.0,
            percent(point.share),
            escape(&series.label),
        );
    }
}

/// Ascending positions moved to at least [`LABEL_GAP`] from each other, within the bounds if they fit at all.
fn spread(wanted: &[f64], low: f64, high: f64) -> Vec<f64> {
    let mut placed = Vec::with_capacity(wanted.len());
    for want in wanted {
        let least = placed.last().map_or(low, |p: &f64| p + LABEL_GAP);
        placed.push(want.max(least));
    }
    let mut most = high;
    for at in placed.iter_mut().rev() {
        *at = at.min(most);
        most = *at - LABEL_GAP;
    }
    placed
}

fn mark(out: &mut String, style: usize, x: f64, y: f64) {
    let path = match style % STYLES {
        0 => format!("M{:.1} {y:.1}a3 3 0 1 0 6 0a3 3 0 1 0 -6 0Z", x - 3.0),
        1 => format!("M{:.1} {:.1}h5.6v5.6h-5.6Z", x - 2.8, y - 2.8),
        2 => format!("M{x:.1} {:.1}l3.4 6h-6.8Z", y - 3.6),
        3 => format!("M{x:.1} {:.1}l3.8 3.8l-3.8 3.8l-3.8 -3.8Z", y - 3.8),
        4 => format!("M{x:.1} {:.1}l3.4 -6h-6.8Z", y + 3.6),
        _ => format!("M{:.1} {:.1}h2v6h-2Z", x - 1.0, y - 3.0),
    };
    let _ = write!(out, "<path class=\"mark\" d=\"{path}\"/>");
}

/// Where the horizontal axis is marked, and with what: the last mark says what is counted.
fn ticks(across: Across, most: f64) -> Vec<(f64, String)> {
    match across {
        Across::Epochs => {
            let last = most as usize;
            let step = tick(last);
            let name = |epoch: usize| {
                let is_last = epoch + step > last;
                format!("{}{epoch}", if is_last { "epoch " } else { "" })
            };
            let epochs = (0..=last).step_by(step);
            epochs.map(|epoch| (epoch as f64, name(epoch))).collect()
        }
        Across::Share(what) => vec![
            (0.0, percent(0.0)),
            (0.5, percent(0.5)),
            (1.0, format!("{} {what}", percent(1.0))),
        ],
    }
}

/// Epochs between two numbers on the axis: 1, 2 or 5 times a power of ten, at most five steps.
fn tick(epochs: usize) -> usize {
    let mut power = 1;
    loop {
        for step in [1, 2, 5] {
            if epochs <= 5 * step * power {
                return step * power;
            }
        }
        power *= 10;
    }
}

fn percent(share: f64) -> String {
    format!("{:.0}%", 100.0 * share)
}

/// Text for XML.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // Not allowed in XML, escaped or not.
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(label: &str) -> Panel {
        let point = |at, share| Point {
            at,
            share,
            interval: wilson(share, 100),
        };
        Panel {
            title: "Held".into(),
            across: Across::Epochs,
            from: 0.0,
            series: vec![
                Series {
                    label: label.into(),
                    style: 0,
                    points: vec![point(0.0, 0.9), point(2.0, 0.85)],
                },
                Series {
                    label: "SFT".into(),
                    style: 1,
                    points: vec![point(0.0, 0.9), point(2.0, 0.84)],
                },
            ],
        }
    }

    #[test]
    fn a_line_goes_through_the_plot_at_its_shares() {
        let svg = inline(&panel("mine"), "held");
        // Plot area: x 40 to 252, y 32 to 184; 90% is 15.2 below the top, 85% 22.8.
        assert!(svg.contains("M40.0 47.2L252.0 54.8"), "{svg}");
        assert!(svg.contains("mine goes from 90% at epoch 0 to 85% at epoch 2."));
    }

    #[test]
    fn a_line_over_a_share_keeps_its_place_and_the_axis_may_begin_above_zero() {
        let mut panel = panel("mine");
        panel.across = Across::Share("learned");
        panel.from = 0.8;
        panel.series.truncate(1);
        for (point, at) in panel.series[0].points.iter_mut().zip([0.0, 0.75]) {
            point.at = at;
        }
        let svg = inline(&panel, "held");
        // 90% is half of the 152 below the top, 85% three quarters; .75 of 212 lies at 199.
        assert!(svg.contains("M40.0 108.0L199.0 146.0"), "{svg}");
        assert!(svg.contains(">100% learned</text>") && svg.contains(">85%</text>"));
        assert!(svg.contains("mine goes from 90% at 0% learned to 85% at 75% learned."));
    }

    #[test]
    fn no_name_becomes_markup() {
        let svg = svg("<b>", &[panel("</text><script>\"&\u{7}")], 3);
        assert!(!svg.contains("<script>") && !svg.contains("<b>"));
        assert!(svg.contains("&lt;/text&gt;&lt;script&gt;&quot;&amp; "));
    }

    #[test]
    fn labels_that_would_overlap_are_moved_apart_and_stay_inside() {
        let placed = spread(&[50.0, 51.0, 100.0, 100.0], 0.0, 100.0);
        assert_eq!(placed, [50.0, 63.0, 87.0, 100.0]);
    }

    #[test]
    fn wilsons_interval_is_the_textbooks() {
        // python: statsmodels.stats.proportion.proportion_confint(81, 263, method="wilson") = (0.25527, 0.36626)
        let [low, high] = wilson(81.0 / 263.0, 263).expect("263 facts");
        assert!(
            (low - 0.2553).abs() < 1e-3 && (high - 0.3662).abs() < 1e-3,
            "{low} {high}"
        );
        assert_eq!(wilson(0.5, 0), None);
        assert!(wilson(1.0, 5).is_some_and(|[low, high]| low < 0.6 && high > 0.999));
    }

    #[test]
    fn an_axis_has_at_most_six_numbers() {
        assert_eq!(
            [1, 5, 6, 20, 50, 51, 1000].map(tick),
            [1, 1, 2, 5, 10, 20, 200]
        );
    }

    #[test]
    fn a_panel_without_points_is_drawn() {
        let empty = Panel {
            title: "x".into(),
            across: Across::Epochs,
            from: 0.0,
            series: vec![Series {
                label: "none".into(),
                style: 9,
                points: Vec::new(),
            }],
        };
        assert!(inline(&empty, "x").ends_with("</svg>"));
    }
}
