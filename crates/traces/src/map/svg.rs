//! `placement.svg`: the kernels to scale, written by hand; no scripts, no fonts or pictures from elsewhere.

use super::{MeshMap, Placed};

/// Paul Tol's "light" scheme: told apart by the colour-blind, and black text is read on every one. Ordered so that
/// neighbours in the list differ the most.
const COLOURS: [&str; 9] = [
    "#77AADD", "#EE8866", "#EEDD88", "#44BB99", "#FFAABB", "#99DDFF", "#BBCC33", "#DDDDDD", "#AAAA00",
];
/// PEs without a kernel.
const FREE: &str = "#f5f5f5";
/// The mesh is drawn within this many pixels.
const DRAWING: (f64, f64) = (960.0, 720.0);
/// Around everything.
const MARGIN: f64 = 40.0;
/// Height of title and subtitle.
const TITLE: f64 = 64.0;
/// Height of a legend's line.
const LINE: f64 = 20.0;
/// Width of a character over the size of its font: that of a wide sans-serif font, so that labels fit in any.
const ADVANCE: f64 = 0.6;
/// The same for the legend and the titles, whose longer texts need less room for surprises.
const LOOSE: f64 = 0.54;

/// Kernels to scale on the mesh with names and sizes, and a numbered legend below.
pub fn svg(map: &MeshMap) -> String {
    let cell = (DRAWING.0 / map.width.max(1) as f64).min(DRAWING.1 / map.height.max(1) as f64);
    let (mesh_w, mesh_h) = (cell * map.width as f64, cell * map.height as f64);
    let mut entries: Vec<String> = map
        .kernels
        .iter()
        .map(|k| format!("{}  {}  {}", k.name, k.op, k.rect))
        .collect();
    if map.used() < map.width as u64 * map.height as u64 {
        entries.push("no kernel: these PEs only pass data on, or rest".into());
    }
    let numbers = map.kernels.len().to_string().len();
    let longest = entries.iter().map(|e| e.chars().count()).max().unwrap_or(0);
    let entry_w = 44.0 + (longest + numbers) as f64 * 13.0 * LOOSE;
    // a small or narrow mesh is centred; the page is never narrower than its title and one legend entry
    let title = format!("{} on {}", map.model, map.machine);
    let subtitle = format!("{}x{} PEs, {}", map.width, map.height, map.summary());
    let titles =
        (title.chars().count() as f64 * 20.0 * ADVANCE).max(subtitle.chars().count() as f64 * 13.0 * LOOSE);
    let inner = mesh_w.max(titles).max(entry_w).max(560.0);
    let columns = ((inner / entry_w) as usize).clamp(1, entries.len().max(1));
    let rows = entries.len().div_ceil(columns);
    let (left, top) = (MARGIN + (inner - mesh_w) / 2.0, MARGIN + TITLE);
    let legend = top + mesh_h + 44.0;
    let (width, height) = (inner + 2.0 * MARGIN, legend + rows as f64 * LINE + MARGIN - 16.0);

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\" \
         font-family=\"Helvetica, Arial, 'DejaVu Sans', sans-serif\" fill=\"#111111\">\n",
        w = n(width.ceil()),
        h = n(height.ceil())
    );
    out += &format!("<title>{}</title>\n", escape(&title));
    out += "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n";
    out += &text(MARGIN, MARGIN + 16.0, 20.0, "font-weight=\"bold\"", &title);
    out += &text(MARGIN, MARGIN + 38.0, 13.0, "fill=\"#444444\"", &subtitle);
    out += &rect(
        left,
        top,
        mesh_w,
        mesh_h,
        &format!("fill=\"{FREE}\" stroke=\"#444444\""),
    );
    if cell >= 6.0 {
        out += &grid(map, left, top, cell);
    }
    out += &ticks(map, left, top, cell);

    let colours = colours(&map.kernels);
    for (i, k) in map.kernels.iter().enumerate() {
        let (x, y) = (left + k.rect.x as f64 * cell, top + k.rect.y as f64 * cell);
        let (w, h) = (k.rect.width as f64 * cell, k.rect.height as f64 * cell);
        out += "<g>";
        out += &format!("<title>{}</title>", escape(&format!("{}  {}", i + 1, entries[i])));
        // an outline must not hide the colour of a kernel of few pixels
        let outline = n((w.min(h) / 6.0).clamp(0.1, 1.0));
        let style = format!(
            "fill=\"{}\" stroke=\"#222222\" stroke-width=\"{outline}\"",
            COLOURS[colours[i]]
        );
        out += &rect(x, y, w, h, &style);
        out += &label(i + 1, k, x, y, w, h);
        out += "</g>\n";
    }
    for (i, entry) in entries.iter().enumerate() {
        let x = MARGIN + (i / rows) as f64 * (inner / columns as f64);
        let y = legend + (i % rows) as f64 * LINE;
        out += &rect(
            x,
            y - 11.0,
            14.0,
            14.0,
            &format!(
                "fill=\"{}\" stroke=\"#222222\"",
                colours.get(i).map_or(FREE, |c| COLOURS[*c])
            ),
        );
        let number = if i < map.kernels.len() {
            (i + 1).to_string()
        } else {
            String::new()
        };
        let right = x + 22.0 + text_width(numbers, 13.0);
        out += &text(
            right,
            y,
            13.0,
            "text-anchor=\"end\" font-weight=\"bold\"",
            &number,
        );
        out += &text(right + 8.0, y, 13.0, "", entry);
    }
    out += "</svg>\n";
    out
}

/// The number, the name and the size, as much of it as has room: lying, else standing, else smaller, else only the number.
fn label(number: usize, k: &Placed, x: f64, y: f64, w: f64, h: f64) -> String {
    let number = number.to_string();
    let named = format!("{number}  {}", k.name);
    let size = format!("{}x{}", k.rect.width, k.rect.height);
    let one = format!("{named}  {size}");
    let len = |t: &str| t.chars().count();
    let (cx, cy) = (x + w / 2.0, y + h / 2.0);
    for font in [15.0, 13.0, 11.0, 9.5, 8.0] {
        let pad = 4.0;
        let (line, middle) = (font * 1.25, font * 0.35);
        let lying = |t: &str| text_width(len(t), font) + pad <= w;
        let standing = |t: &str| text_width(len(t), font) + pad <= h;
        let stood = format!(
            "text-anchor=\"middle\" transform=\"rotate(-90 {} {})\"",
            n(cx),
            n(cy)
        );
        let centred = "text-anchor=\"middle\"";
        if lying(&named) && 2.0 * line + pad <= h {
            let first = text(cx, cy + middle - line / 2.0, font, centred, &named);
            return first + &text(cx, cy + middle + line / 2.0, font, centred, &size);
        }
        if lying(&one) && line <= h {
            return text(cx, cy + middle, font, centred, &one);
        }
        if standing(&named) && 2.0 * line + pad <= w {
            let first = text(cx, cy + middle - line / 2.0, font, &stood, &named);
            return first + &text(cx, cy + middle + line / 2.0, font, &stood, &size);
        }
        if standing(&one) && line <= w {
            return text(cx, cy + middle, font, &stood, &one);
        }
    }
    for font in [13.0, 11.0, 9.5, 8.0, 6.5] {
        for words in [&named, &number] {
            if text_width(len(words), font) + 2.0 <= w && font * 1.1 <= h {
                return text(cx, cy + font * 0.35, font, "text-anchor=\"middle\"", words);
            }
        }
    }
    String::new()
}

/// A colour for each kernel that no earlier kernel beside it has, if there is one left.
fn colours(kernels: &[Placed]) -> Vec<usize> {
    let mut chosen: Vec<usize> = Vec::with_capacity(kernels.len());
    for (i, k) in kernels.iter().enumerate() {
        let mut taken = [false; COLOURS.len()];
        for (other, &c) in kernels[..i].iter().zip(&chosen) {
            let mut grown = other.rect;
            (grown.x, grown.y) = (grown.x.saturating_sub(1), grown.y.saturating_sub(1));
            grown.width = grown.width.saturating_add(2);
            grown.height = grown.height.saturating_add(2);
            taken[c] |= grown.overlaps(&k.rect);
        }
        let order = (0..COLOURS.len()).map(|c| (i + c) % COLOURS.len());
        chosen.push(order.clone().find(|c| !taken[*c]).unwrap_or(i % COLOURS.len()));
    }
    chosen
}

/// A faint line between PEs.
fn grid(map: &MeshMap, left: f64, top: f64, cell: f64) -> String {
    let (w, h) = (cell * map.width as f64, cell * map.height as f64);
    let mut path = String::new();
    for x in 1..map.width {
        path += &format!("M{} {}v{}", n(left + x as f64 * cell), n(top), n(h));
    }
    for y in 1..map.height {
        path += &format!("M{} {}h{}", n(left), n(top + y as f64 * cell), n(w));
    }
    format!("<path d=\"{path}\" fill=\"none\" stroke=\"#e2e2e2\" stroke-width=\"0.5\"/>\n")
}

/// Numbers of columns above and of rows at the left, at round distances.
fn ticks(map: &MeshMap, left: f64, top: f64, cell: f64) -> String {
    let step = |count: u32| {
        let steps = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
        steps
            .into_iter()
            .find(|s| *s as f64 * cell >= 40.0 || *s >= count)
            .unwrap_or(1024)
    };
    let mut out = String::new();
    for x in (0..map.width).step_by(step(map.width) as usize) {
        let at = left + (x as f64 + 0.5) * cell;
        out += &text(
            at,
            top - 6.0,
            10.0,
            "text-anchor=\"middle\" fill=\"#666666\"",
            &x.to_string(),
        );
    }
    for y in (0..map.height).step_by(step(map.height) as usize) {
        let at = top + (y as f64 + 0.5) * cell + 3.5;
        out += &text(
            left - 6.0,
            at,
            10.0,
            "text-anchor=\"end\" fill=\"#666666\"",
            &y.to_string(),
        );
    }
    out
}

fn rect(x: f64, y: f64, w: f64, h: f64, style: &str) -> String {
    format!(
        "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" {style}/>",
        n(x),
        n(y),
        n(w),
        n(h)
    )
}

fn text(x: f64, y: f64, size: f64, style: &str, words: &str) -> String {
    let style = if style.is_empty() {
        String::new()
    } else {
        format!(" {style}")
    };
    // two blanks in a row would be drawn as one
    let words = escape(words).replace("  ", "\u{a0} ");
    format!(
        "<text x=\"{}\" y=\"{}\" font-size=\"{}\"{style}>{words}</text>\n",
        n(x),
        n(y),
        n(size)
    )
}

fn text_width(chars: usize, size: f64) -> f64 {
    chars as f64 * size * ADVANCE
}

/// A coordinate with at most two decimals.
fn n(x: f64) -> String {
    let text = format!("{x:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            // XML 1.0 has no other control characters
            c if (c as u32) < 32 && !matches!(c, '\t' | '\n' | '\r') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
