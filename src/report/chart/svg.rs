//! Drawing primitives of the charts, on top of plotters, and a plot with its axes. `chart.css` selects shapes by their colour, width and
//! opacity. Lengths are tenths of a pixel, since plotters uses integer coordinates.

use std::ops::Range;

use plotters::{
    coord::{CoordTranslate, Shift, types::RangedCoordf64},
    element::{Drawable, PointCollection},
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::axis::Axis;

/// Drawing area of a chart; (0, 0) is the upper left corner.
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// (x, y) in tenths of a pixel, y downwards.
type Position = (i32, i32);

/// Number of styles, which differ in colour, dash and marker. Larger indices wrap around.
pub const STYLES: usize = 6;

pub(super) const INK: RGBColor = RGBColor(0x1d, 0x1c, 0x1a);
pub(super) const SOFT: RGBColor = RGBColor(0x5d, 0x5b, 0x56);
pub(super) const RULE: RGBColor = RGBColor(0xde, 0xdb, 0xd3);
pub(super) const PAPER: RGBColor = RGBColor(0xfd, 0xfc, 0xfa);
const COLOURS: [RGBColor; STYLES] = [
    RGBColor(0x1f, 0x5f, 0xa8),
    RGBColor(0xb2, 0x3c, 0x0c),
    RGBColor(0x5f, 0x5d, 0x58),
    RGBColor(0x1c, 0x6e, 0x43),
    RGBColor(0x7a, 0x3e, 0x9d),
    RGBColor(0x7d, 0x5a, 0x00),
];
/// Corners of each style's marker, about 2 units wide; the first marker is a circle.
const MARKERS: [&[(f64, f64)]; STYLES] = [
    &[],
    &[(-0.93, -0.93), (0.93, -0.93), (0.93, 0.93), (-0.93, 0.93)],
    &[(0.0, -1.2), (1.13, 0.8), (-1.13, 0.8)],
    &[(0.0, -1.27), (1.27, 0.0), (0.0, 1.27), (-1.27, 0.0)],
    &[(0.0, 1.2), (1.13, -0.8), (-1.13, -0.8)],
    &[(-0.33, -1.0), (0.33, -1.0), (0.33, 1.0), (-0.33, 1.0)],
];

/// Width of every chart in tenths of a pixel, the unit of all lengths here.
pub(super) const WIDTH: i32 = 3800;
/// Space above the plot for the title.
pub(super) const TOP: i32 = 320;
/// Space below the plot for the axis.
pub(super) const BOTTOM: i32 = 300;
/// Space on the right for labels.
pub(super) const RIGHT: i32 = 1280;

/// Width of a data line; `chart.css` dashes only lines of this width.
pub(super) const LINE_WIDTH: u32 = 20;
/// Width of all other lines.
pub(super) const THIN_WIDTH: u32 = 10;
/// Radius of a marker.
pub(super) const MARKER_RADIUS: f64 = 30.0;
/// Approximate width of a bold character.
const CHAR_WIDTH: i32 = 70;

/// The SVG elements drawn by `draw` on an area of this size, scaled to pixels.
pub(super) fn render((width, height): (i32, i32), draw: impl FnOnce(&Area)) -> String {
    let mut file = String::new();
    let backend = SVGBackend::with_string(&mut file, (width as u32, height as u32));
    draw(&backend.into_drawing_area());
    let elements = file.trim_end().trim_end_matches("</svg>");
    let elements = elements.split_once('>').map_or("", |(_, inner)| inner);
    format!("<g transform=\"scale(0.1)\">{elements}</g>")
}

fn draw_element<'a, 'e, E>(area: &Area<'a>, element: &'e E)
where
    E: Drawable<SVGBackend<'a>>,
    &'e E: PointCollection<'e, Position>,
{
    area.draw(element).expect("writing to a string cannot fail");
}

/// Fills `area` with one colour.
pub(super) fn fill(area: &Area, colour: RGBColor) {
    area.fill(&colour).expect("writing to a string cannot fail");
}

/// The colour of a style.
pub(super) fn colour(style: usize) -> RGBColor {
    COLOURS[style % STYLES]
}

/// Draws a line through points.
pub(super) fn draw_line(area: &Area, points: Vec<Position>, colour: impl Color, width: u32) {
    draw_element(area, &PathElement::new(points, colour.stroke_width(width)));
}

/// Draws a filled polygon.
pub(super) fn draw_polygon(area: &Area, corners: Vec<Position>, colour: impl Color) {
    draw_element(area, &Polygon::new(corners, colour.filled()));
}

/// Draws the marker of a style, which identifies it without colour. `chart.css` draws opaque markers open.
pub(super) fn draw_marker(area: &Area, (x, y): Position, style: usize, size: f64, opacity: f64) {
    let colour = colour(style).mix(opacity);
    let corner = |(right, down): &(f64, f64)| (x + (size * right) as i32, y + (size * down) as i32);
    match MARKERS[style % STYLES] {
        [] => draw_element(area, &Circle::new((x, y), size, colour.filled())),
        corners => draw_polygon(area, corners.iter().map(corner).collect(), colour),
    }
}

/// Draws text, vertically centred at the position and horizontally anchored to it.
pub(super) fn draw_text(
    area: &Area,
    text: &str,
    position: Position,
    colour: RGBColor,
    anchor: HPos,
) {
    // plotters divides the size by 1.24.
    let font = ("sans-serif", 1.24 * 110.0).into_font();
    let style = font.color(&colour).pos(Pos::new(anchor, VPos::Center));
    draw_element(
        area,
        &Text::new(remove_control_chars(text), position, style),
    );
}

/// Draws the title of a chart.
pub(super) fn draw_title(area: &Area, text: &str) {
    draw_text(area, text, (0, 95), INK, HPos::Left);
}

/// Replaces control characters, which XML does not allow. plotters escapes the rest.
pub(super) fn remove_control_chars(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Approximate width of a text.
fn text_width(text: &str) -> i32 {
    CHAR_WIDTH * text.chars().count() as i32
}

/// Approximate width of the longest text.
pub(super) fn max_text_width(texts: impl Iterator<Item = impl AsRef<str>>) -> i32 {
    texts
        .map(|words| text_width(words.as_ref()))
        .max()
        .unwrap_or(0)
}

/// Truncates `text` with an ellipsis to fit into `width`.
pub(super) fn truncate_text(text: &str, width: i32) -> String {
    let letters = (width / CHAR_WIDTH) as usize;
    if text.chars().nth(letters).is_none() {
        return text.to_owned();
    }
    let start: String = text.chars().take(letters - 1).collect();
    start.trim_end().to_owned() + "…"
}

/// Whether a number is finite and small enough that sums stay finite.
pub(super) fn is_drawable(number: f64) -> bool {
    number.abs() < 1e100
}

/// The interval, if both ends can be drawn.
pub(super) fn drawable_interval(interval: Option<[f64; 2]>) -> Option<[f64; 2]> {
    interval.filter(|ends| ends.iter().all(|end| is_drawable(*end)))
}

/// The plot area of a chart and its scales.
pub(super) struct Plot {
    /// Left and right end.
    pub x_range: [i32; 2],
    /// Top and bottom.
    pub y_range: [i32; 2],
    scale: Cartesian2d<RangedCoordf64, RangedCoordf64>,
}

impl Plot {
    pub fn new(x_range: [i32; 2], y_range: [i32; 2], x: &Axis, y: &Axis) -> Self {
        let ([left, right], [top, bottom]) = (x_range, y_range);
        Self {
            x_range,
            y_range,
            scale: Cartesian2d::new(x.low..x.high, y.low..y.high, (left..right, bottom..top)),
        }
    }

    /// The position of a point, clamped to the plot.
    pub fn position(&self, x: f64, y: f64) -> Position {
        let inside = |at: f64, range: Range<f64>| at.max(range.start).min(range.end);
        let x = inside(x, self.scale.get_x_range());
        let y = inside(y, self.scale.get_y_range());
        self.scale.translate(&(x, y))
    }

    /// Draws the tick labels of the horizontal axis.
    pub fn draw_x_ticks(&self, area: &Area, axis: &Axis) {
        let y = self.y_range[1] + 120;
        for (at, words) in &axis.ticks {
            let (x, _) = self.position(*at, 0.0);
            match words.split_once(' ') {
                // Centre the number alone.
                Some((number, _)) => draw_text(
                    area,
                    words,
                    (x - text_width(number) / 2, y),
                    SOFT,
                    HPos::Left,
                ),
                None => draw_text(area, words, (x, y), SOFT, HPos::Center),
            }
        }
    }
}
