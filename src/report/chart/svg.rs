//! What every chart is drawn with: plotters' shapes in the light colours of `chart.css`, and a plot with its axes. `chart.css` knows
//! shapes by their colour, width and opacity. Lengths are tenths of a pixel, since plotters draws at whole numbers.

use std::ops::Range;

use plotters::{
    coord::{CoordTranslate, Shift, types::RangedCoordf64},
    element::{Drawable, PointCollection},
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::axis::Axis;

/// Where a chart is drawn; its left upper corner is (0, 0).
pub(super) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
/// Right and down, in tenths of a pixel.
type Position = (i32, i32);

/// Styles that differ in colour, dash and mark; a further one repeats.
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
/// The corners of each style's mark, which is about 2 wide; the first is a circle.
const MARKERS: [&[(f64, f64)]; STYLES] = [
    &[],
    &[(-0.93, -0.93), (0.93, -0.93), (0.93, 0.93), (-0.93, 0.93)],
    &[(0.0, -1.2), (1.13, 0.8), (-1.13, 0.8)],
    &[(0.0, -1.27), (1.27, 0.0), (0.0, 1.27), (-1.27, 0.0)],
    &[(0.0, 1.2), (1.13, -0.8), (-1.13, -0.8)],
    &[(-0.33, -1.0), (0.33, -1.0), (0.33, 1.0), (-0.33, 1.0)],
];

/// Width of a line that shows data: `chart.css` gives dashes to these alone.
pub(super) const LINE_WIDTH: u32 = 20;
/// Width of every other.
pub(super) const THIN_WIDTH: u32 = 10;
/// Half the width of a mark on a line.
pub(super) const MARKER_RADIUS: f64 = 30.0;
/// About the width of a bold letter.
const CHAR_WIDTH: i32 = 70;

/// The elements that `draw` makes, for an `<svg>` of `size`, tenths of pixels turned into pixels.
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
    area.draw(element).expect("a string takes what is written");
}

/// The whole of `area` in one colour.
pub(super) fn fill(area: &Area, colour: RGBColor) {
    area.fill(&colour).expect("a string takes what is written");
}

/// A style's colour.
pub(super) fn colour(style: usize) -> RGBColor {
    COLOURS[style % STYLES]
}

/// A line through `places`.
pub(super) fn draw_line(area: &Area, points: Vec<Position>, colour: impl Color, width: u32) {
    draw_element(area, &PathElement::new(points, colour.stroke_width(width)));
}

/// A filled shape.
pub(super) fn draw_polygon(area: &Area, corners: Vec<Position>, colour: impl Color) {
    draw_element(area, &Polygon::new(corners, colour.filled()));
}

/// The mark of a style, by which it is known where colours are not seen; `chart.css` opens opaque ones.
pub(super) fn draw_marker(area: &Area, (x, y): Position, style: usize, size: f64, opacity: f64) {
    let colour = colour(style).mix(opacity);
    let corner = |(right, down): &(f64, f64)| (x + (size * right) as i32, y + (size * down) as i32);
    match MARKERS[style % STYLES] {
        [] => draw_element(area, &Circle::new((x, y), size, colour.filled())),
        corners => draw_polygon(area, corners.iter().map(corner).collect(), colour),
    }
}

/// Text in the middle of `y`, from `x` on, up to it or around it.
pub(super) fn draw_text(
    area: &Area,
    text: &str,
    position: Position,
    colour: RGBColor,
    anchor: HPos,
) {
    // plotters divides by 1.24 what the style sheet sets anyway.
    let font = ("sans-serif", 1.24 * 110.0).into_font();
    let style = font.color(&colour).pos(Pos::new(anchor, VPos::Center));
    draw_element(
        area,
        &Text::new(remove_control_chars(text), position, style),
    );
}

/// A chart's title.
pub(super) fn draw_title(area: &Area, text: &str) {
    draw_text(area, text, (0, 95), INK, HPos::Left);
}

/// Text without what XML does not allow, escaped or not; plotters escapes the rest.
pub(super) fn remove_control_chars(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Room for `words`.
fn text_width(text: &str) -> i32 {
    CHAR_WIDTH * text.chars().count() as i32
}

/// Room for the longest of `words`.
pub(super) fn max_text_width(texts: impl Iterator<Item = impl AsRef<str>>) -> i32 {
    texts
        .map(|words| text_width(words.as_ref()))
        .max()
        .unwrap_or(0)
}

/// As much of `words` as there is `room` for.
pub(super) fn truncate_text(text: &str, width: i32) -> String {
    let letters = (width / CHAR_WIDTH) as usize;
    if text.chars().nth(letters).is_none() {
        return text.to_owned();
    }
    let start: String = text.chars().take(letters - 1).collect();
    start.trim_end().to_owned() + "…"
}

/// Where numbers lie in a chart.
pub(super) struct Plot {
    /// Its left and right end.
    pub x_range: [i32; 2],
    /// Its top and bottom.
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

    /// The place of two numbers, or the nearest in the plot.
    pub fn position(&self, x: f64, y: f64) -> Position {
        let inside = |at: f64, range: Range<f64>| at.max(range.start).min(range.end);
        let x = inside(x, self.scale.get_x_range());
        let y = inside(y, self.scale.get_y_range());
        self.scale.translate(&(x, y))
    }

    /// The numbers of the horizontal axis, under the plot.
    pub fn draw_x_ticks(&self, area: &Area, axis: &Axis) {
        let y = self.y_range[1] + 120;
        for (at, words) in &axis.ticks {
            let (x, _) = self.position(*at, 0.0);
            match words.split_once(' ') {
                // The number stays in the middle.
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
