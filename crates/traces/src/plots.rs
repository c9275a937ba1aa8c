//! Plots of what was measured: [`utilisation`] (a heat map of the mesh), [`cycles`] (bars of where each kernel's cycles went) and
//! [`speedup`] (against sparsity). Each is drawn twice by the same code, as SVG and as PNG. The PNG's letters come from a font that is
//! compiled in, so that it needs none on the machine; the SVG asks its reader for any sans-serif font.

mod bars;
mod heat;
mod speedup;

pub use bars::{cycles, split};
pub use heat::{Grid, MeshUse, utilisation};
pub use speedup::{speedup, theoretical_curve};

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontTransform, register_font};
use std::sync::LazyLock;

/// One picture in both forms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plot {
    /// The text of an .svg file.
    pub svg: String,
    /// The bytes of a .png file.
    pub png: Vec<u8>,
}

/// A plot that can't be drawn: a defect of this crate, not of the data.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("can't draw the plot: {0}")]
pub struct PlotError(String);

impl PlotError {
    fn new(e: impl std::fmt::Display) -> PlotError {
        PlotError(e.to_string())
    }
}

/// The family of all text. In an SVG it is the generic name that every reader knows; for a PNG it is registered below.
const FONT: &str = "sans-serif";
/// A font's size in plotters is that of its line: this many times what SVG calls its size.
const LINE: f64 = 1.24;
/// An SVG's reader may have a wider font than the one that texts are measured with.
const WIDER: f64 = 1.12;
/// A PNG has this many times the pixels of the SVG's page, across and down: letters of few pixels are hard to read.
const PNG_SCALE: u32 = 2;
/// Left and right of everything.
const MARGIN: i32 = 24;
/// Text.
const INK: RGBColor = RGBColor(0x11, 0x11, 0x11);
/// Text of less weight, and axes.
const FAINT: RGBColor = RGBColor(0x44, 0x44, 0x44);
/// Lines behind the data.
const GRID: RGBColor = RGBColor(0xdd, 0xdd, 0xdd);

/// A picture of a size, on whatever it is drawn.
trait Drawing {
    /// Width and height in pixels.
    fn size(&self) -> (u32, u32);
    /// Draws it on a white page.
    fn draw<B: DrawingBackend>(&self, page: &Page<B>) -> Result<(), PlotError>;
}

/// What a picture is drawn on.
struct Page<B: DrawingBackend> {
    area: DrawingArea<B, Shift>,
    /// Pixels of the file for one of the picture.
    scale: i32,
    /// How much lower a line of text must be drawn for its small letters to be half above the point, in sizes of the font: an SVG's
    /// reader does that itself, plotters' pixels sit on a baseline that is too high.
    lower: f64,
}

impl<B: DrawingBackend> Page<B> {
    fn at(&self, (x, y): (i32, i32)) -> (i32, i32) {
        (x * self.scale, y * self.scale)
    }

    fn style(&self, style: impl Into<ShapeStyle>) -> ShapeStyle {
        let style = style.into();
        style.stroke_width(style.stroke_width * self.scale as u32)
    }
}

/// The picture in both forms.
fn render(drawing: &impl Drawing) -> Result<Plot, PlotError> {
    register()?;
    let (width, height) = drawing.size();
    let mut svg = String::new();
    draw_on(
        drawing,
        SVGBackend::with_string(&mut svg, (width, height)),
        1,
        0.0,
    )?;
    let (width, height) = (width * PNG_SCALE, height * PNG_SCALE);
    let mut pixels = vec![255; width as usize * height as usize * 3];
    let backend = BitMapBackend::with_buffer(&mut pixels, (width, height));
    draw_on(drawing, backend, PNG_SCALE as i32, 0.14)?;
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header().map_err(PlotError::new)?;
    writer.write_image_data(&pixels).map_err(PlotError::new)?;
    writer.finish().map_err(PlotError::new)?;
    Ok(Plot { svg, png })
}

fn draw_on<B: DrawingBackend>(
    drawing: &impl Drawing,
    backend: B,
    scale: i32,
    lower: f64,
) -> Result<(), PlotError> {
    let area = backend.into_drawing_area();
    area.fill(&WHITE).map_err(PlotError::new)?;
    let page = Page { area, scale, lower };
    drawing.draw(&page)?;
    page.area.present().map_err(PlotError::new)
}

/// Makes the font known to plotters, once.
fn register() -> Result<(), PlotError> {
    static DONE: LazyLock<bool> =
        LazyLock::new(|| register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT).is_ok());
    match *DONE {
        true => Ok(()),
        false => Err(PlotError::new("the font that is compiled in is not readable")),
    }
}

/// How a line of text stands.
#[derive(Clone, Copy)]
struct Style {
    size: f64,
    colour: RGBColor,
    across: HPos,
    down: VPos,
    /// Read from below to above.
    standing: bool,
}

impl Style {
    /// Text of a size as in SVG, whose left end is at the given point, half of it above.
    fn new(size: f64) -> Style {
        Style {
            size,
            colour: INK,
            across: HPos::Left,
            down: VPos::Center,
            standing: false,
        }
    }

    fn faint(self) -> Style {
        Style {
            colour: FAINT,
            ..self
        }
    }

    fn centred(self) -> Style {
        Style {
            across: HPos::Center,
            ..self
        }
    }

    fn right(self) -> Style {
        Style {
            across: HPos::Right,
            ..self
        }
    }

    fn standing(self) -> Style {
        Style {
            standing: true,
            ..self
        }
    }

    fn font(&self) -> FontDesc<'static> {
        (FONT, self.size * LINE).into_font()
    }

    /// Pixels that the words take, with what a wider font would need.
    fn width(&self, words: &str) -> i32 {
        // the font is there: it was registered before anything is measured
        let width = self.font().box_size(words).map_or(0, |b| b.0);
        (width as f64 * WIDER).ceil() as i32
    }

    /// The words, or as many of their first and last letters as have room.
    fn elided(&self, words: &str, room: i32) -> String {
        let letters: Vec<char> = words.chars().collect();
        let mut kept = letters.len();
        let mut text = words.to_string();
        while kept > 2 && self.width(&text) > room {
            kept -= 1;
            let head: String = letters[..kept.div_ceil(2)].iter().collect();
            let tail: String = letters[letters.len() - kept / 2..].iter().collect();
            text = format!("{head}…{tail}");
        }
        text
    }
}

fn write<B: DrawingBackend>(
    page: &Page<B>,
    at: (i32, i32),
    style: Style,
    words: &str,
) -> Result<(), PlotError> {
    let font = (FONT, style.size * LINE * page.scale as f64).into_font();
    let font = match style.standing {
        true => font.transform(FontTransform::Rotate270),
        false => font,
    };
    let text = TextStyle::from(font)
        .color(&style.colour)
        .pos(Pos::new(style.across, style.down));
    // XML 1.0 has no control characters, and a font no letters for them
    let words = words.replace(char::is_control, "\u{fffd}");
    let (x, y) = page.at(at);
    let lower = (style.size * page.scale as f64 * page.lower).round() as i32;
    let at = match style.standing {
        true => (x + lower, y),
        false => (x, y + lower),
    };
    page.area.draw_text(&words, &text, at).map_err(PlotError::new)
}

fn fill<B: DrawingBackend>(
    page: &Page<B>,
    from: (i32, i32),
    to: (i32, i32),
    colour: impl Color,
) -> Result<(), PlotError> {
    rectangle(page, from, to, colour.filled())
}

fn frame<B: DrawingBackend>(
    page: &Page<B>,
    from: (i32, i32),
    to: (i32, i32),
    colour: impl Color,
) -> Result<(), PlotError> {
    rectangle(page, from, to, colour.stroke_width(1))
}

fn rectangle<B: DrawingBackend>(
    page: &Page<B>,
    from: (i32, i32),
    to: (i32, i32),
    style: ShapeStyle,
) -> Result<(), PlotError> {
    let corners = [page.at(from), page.at(to)];
    page.area
        .draw(&Rectangle::new(corners, page.style(style)))
        .map_err(PlotError::new)
}

fn line<B: DrawingBackend>(
    page: &Page<B>,
    points: &[(i32, i32)],
    style: impl Into<ShapeStyle>,
) -> Result<(), PlotError> {
    let points: Vec<_> = points.iter().map(|p| page.at(*p)).collect();
    page.area
        .draw(&PathElement::new(points, page.style(style)))
        .map_err(PlotError::new)
}

/// The title and up to two lines below it, on a page of this width.
fn heading<B: DrawingBackend>(
    page: &Page<B>,
    width: i32,
    title: &str,
    below: &[String],
) -> Result<(), PlotError> {
    let room = width - 2 * MARGIN;
    let style = Style::new(20.0);
    write(page, (MARGIN, 26), style, &style.elided(title, room))?;
    let style = Style::new(14.0).faint();
    for (i, words) in below.iter().enumerate() {
        write(
            page,
            (MARGIN, 52 + 20 * i as i32),
            style,
            &style.elided(words, room),
        )?;
    }
    Ok(())
}

/// Where entries of these widths go, one after another, in lines that end before `room`: the offset to the right, and the line.
fn flow(widths: &[i32], room: i32) -> Vec<(i32, i32)> {
    let (mut x, mut row) = (0, 0);
    widths
        .iter()
        .map(|w| {
            if x > 0 && x + w > room {
                (x, row) = (0, row + 1);
            }
            x += w;
            (x - w, row)
        })
        .collect()
}

/// A round step, 1, 2 or 5 times a power of ten, of which at most `most` go into `span`.
fn round_step(span: f64, most: usize) -> f64 {
    let least = span / most.max(1) as f64;
    if !(least > 0.0 && least.is_finite()) {
        return 1.0;
    }
    let power = 10f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0]
        .iter()
        .find(|s| *s * power >= least * (1.0 - 1e-9));
    step.unwrap_or(&10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_round_and_few() {
        assert_eq!(round_step(83_007.0, 8), 20_000.0);
        assert_eq!(round_step(10.0, 10), 1.0);
        assert_eq!(round_step(0.31, 5), 0.1);
        assert_eq!(round_step(0.0, 5), 1.0);
        for span in 1..2000 {
            assert!(span as f64 / round_step(span as f64, 7) <= 7.0 + 1e-6);
        }
    }

    #[test]
    fn entries_flow_into_lines() {
        assert_eq!(flow(&[40, 40, 40], 100), [(0, 0), (40, 0), (0, 1)]);
        assert_eq!(flow(&[400], 100), [(0, 0)]);
        assert!(flow(&[], 100).is_empty());
    }

    #[test]
    fn long_names_lose_their_middle() {
        register().unwrap();
        let style = Style::new(13.0);
        let name = "layer4.1.conv2.weight.quantized.relu";
        assert_eq!(style.elided(name, 10_000), name);
        let short = style.elided(name, 120);
        assert!(short.contains('…') && style.width(&short) <= 120, "{short}");
        assert!(short.starts_with("layer") && short.ends_with("relu"), "{short}");
    }
}
