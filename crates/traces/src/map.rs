//! Pictures of the mesh: which kernel has which PEs. [`ascii`] for the terminal, [`svg`] for `placement.svg`.

mod svg;

pub use svg::svg;

use crate::format::grouped;
use crate::report::Rect;

/// The most columns of characters that [`ascii`] uses for the mesh.
const COLUMNS: u32 = 80;
/// The most rows.
const ROWS: u32 = 40;
/// A kernel a sign; they repeat after the last.
const SIGNS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// One stage's kernels on a mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshMap {
    /// Name of the model.
    pub model: String,
    /// Name of the machine.
    pub machine: String,
    /// Columns of PEs.
    pub width: u32,
    /// Rows of PEs.
    pub height: u32,
    /// The kernels; those of one stage do not overlap.
    pub kernels: Vec<Placed>,
}

/// A kernel and its PEs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Name of the graph's node.
    pub name: String,
    /// Operator.
    pub op: String,
    /// Its PEs.
    pub rect: Rect,
}

impl Placed {
    /// PEs of it in the window from (x0, y0) to before (x1, y1).
    fn inside(&self, x0: u32, y0: u32, x1: u32, y1: u32) -> u64 {
        let r = &self.rect;
        let length = |a: u32, n: u32, from: u32, to: u32| {
            (a as u64 + n as u64)
                .min(to as u64)
                .saturating_sub(a.max(from) as u64)
        };
        length(r.x, r.width, x0, x1) * length(r.y, r.height, y0, y1)
    }
}

impl MeshMap {
    /// PEs of kernels.
    fn used(&self) -> u64 {
        self.kernels
            .iter()
            .map(|k| k.inside(0, 0, self.width, self.height))
            .sum()
    }

    /// `7 kernels on 640 of 1 024 PEs (62 %)`; kernels that overlap count their PEs twice.
    fn summary(&self) -> String {
        let used = self.used();
        let all = self.width as u64 * self.height as u64;
        let (n, s) = (self.kernels.len(), if self.kernels.len() == 1 { "" } else { "s" });
        let share = crate::format::percent(if all == 0 { 0.0 } else { used as f64 / all as f64 });
        format!(
            "{n} kernel{s} on {} of {} PEs ({share})",
            grouped(used),
            grouped(all)
        )
    }
}

/// The mesh in characters, one letter a kernel, at most 80 columns x 40 rows, with a scale and a legend. A character that
/// stands for several PEs shows the kernel that has the most of them.
pub fn ascii(map: &MeshMap) -> String {
    let (sx, sy) = (
        map.width.div_ceil(COLUMNS).max(1),
        map.height.div_ceil(ROWS).max(1),
    );
    let scale = match (sx, sy) {
        (1, 1) => "one character is one PE".into(),
        _ => format!("one character is {sx}x{sy} PEs"),
    };
    let mut out = format!(
        "{} on {}: {}x{} PEs, {scale}\n",
        map.model, map.machine, map.width, map.height
    );
    let sign = |i: usize| SIGNS[i % SIGNS.len()] as char;
    let mut shown = vec![false; map.kernels.len()];
    let rows: Vec<u32> = (0..map.height).step_by(sy as usize).collect();
    let gutter = rows.last().map_or(1, |y| y.to_string().len());
    let edge = format!(
        "{:gutter$} +{}+\n",
        "",
        "-".repeat(map.width.div_ceil(sx) as usize)
    );
    out += &edge;
    for (line, &y) in rows.iter().enumerate() {
        // rows are numbered now and then, the last one too
        let number = line % 8 == 0 || (line + 1 == rows.len() && line % 8 > 2);
        let number = if number { y.to_string() } else { String::new() };
        out += &format!("{number:>gutter$} |");
        for x in (0..map.width).step_by(sx as usize) {
            let mut best = (0u64, None);
            for (i, k) in map.kernels.iter().enumerate() {
                let n = k.inside(x, y, map.width.min(x + sx), map.height.min(y + sy));
                if n > best.0 {
                    best = (n, Some(i));
                }
            }
            match best.1 {
                Some(i) => {
                    shown[i] = true;
                    out.push(sign(i));
                }
                None => out.push('.'),
            }
        }
        out += "|\n";
    }
    out += &edge;
    out += &format!("{}; . is a PE without a kernel\n", map.summary());
    if map.kernels.len() > SIGNS.len() {
        out += &format!("letters repeat every {} kernels\n", SIGNS.len());
    }
    let wide = |text: &dyn Fn(&Placed) -> String| {
        map.kernels
            .iter()
            .map(|k| text(k).chars().count())
            .max()
            .unwrap_or(0)
    };
    let (name, op) = (wide(&|k| k.name.clone()), wide(&|k| k.op.clone()));
    for (i, k) in map.kernels.iter().enumerate() {
        let hidden = if shown[i] { "" } else { "  (too small to show)" };
        out += &format!(
            "{}  {:name$}  {:op$}  {}{hidden}\n",
            sign(i),
            k.name,
            k.op,
            k.rect
        );
    }
    out
}
