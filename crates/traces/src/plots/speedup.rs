//! Speed-up against sparsity: what was simulated, and what the multiply-adds alone would allow.

use super::*;
use crate::format::{percent, sparsity};
use crate::report::{Comparison, Report, RunName};
use plotters::element::DashedPathElement;

const SIZE: (i32, i32) = (900, 640);
/// Where the axes are.
const LEFT: i32 = 84;
const RIGHT: i32 = 36;
const BOTTOM: i32 = 72;
/// A machine a colour, Paul Tol's "bright" scheme without its yellow, which is pale on white.
const COLOURS: [RGBColor; 5] = [
    RGBColor(0x44, 0x77, 0xaa),
    RGBColor(0xee, 0x66, 0x77),
    RGBColor(0x22, 0x88, 0x33),
    RGBColor(0xaa, 0x33, 0x77),
    RGBColor(0x66, 0xcc, 0xee),
];
/// Points of the theoretical line between two sparsities.
const STEPS: u32 = 24;

/// The plot of a report's comparisons; absent if none of its machines has two sparsities.
pub fn speedup(report: &Report) -> Result<Option<Plot>, PlotError> {
    register()?;
    let lines = by_machine(&report.comparisons);
    if lines.iter().all(|l| l.len() < 2) {
        return Ok(None);
    }
    render(&Chart::new(report, lines)).map(Some)
}

/// The comparisons machine by machine, each in the order of sparsity.
fn by_machine(all: &[Comparison]) -> Vec<Vec<&Comparison>> {
    let mut lines: Vec<Vec<&Comparison>> = Vec::new();
    for c in all {
        match lines.iter_mut().find(|l| l[0].machine == c.machine) {
            Some(line) => line.push(c),
            None => lines.push(vec![c]),
        }
    }
    for line in &mut lines {
        line.sort_by(|a, b| a.sparsity.total_cmp(&b.sparsity));
    }
    lines
}

/// The theoretical speed-up through the points (sparsity, speed-up), in the order of sparsity. Multiply-adds that are left fall in proportion to
/// sparsity, and so the inverse of the speed-up is a straight line between two points.
pub fn theoretical_curve(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut curve: Vec<(f64, f64)> = points.first().copied().into_iter().collect();
    for pair in points.windows(2) {
        let ((s0, y0), (s1, y1)) = (pair[0], pair[1]);
        curve.extend((1..=STEPS).map(|i| {
            let t = i as f64 / STEPS as f64;
            (s0 + t * (s1 - s0), 1.0 / ((1.0 - t) / y0 + t / y1))
        }));
    }
    curve
}

#[derive(Clone, Copy)]
enum Mark {
    /// Without load: a full line and discs.
    Total(RGBColor),
    /// With load: a thin line and hollow squares.
    WithLoad(RGBColor),
    /// A line of dashes.
    Theory,
}

struct Chart<'a> {
    title: String,
    below: Vec<String>,
    lines: Vec<Vec<&'a Comparison>>,
    entries: Vec<(Mark, String)>,
    legend: Vec<(i32, i32)>,
    above: i32,
    /// Upper end of each axis, sparsity in per cent.
    most: (f64, f64),
}

impl<'a> Chart<'a> {
    fn new(report: &Report, lines: Vec<Vec<&'a Comparison>>) -> Chart<'a> {
        let machines: Vec<&str> = lines.iter().map(|l| l[0].machine.as_str()).collect();
        let dense = report.runs.iter().filter(|r| r.name == RunName::Dense);
        let dense: Vec<String> = dense
            .filter(|r| machines.contains(&r.machine.name.as_str()))
            .map(|r| match machines.len() {
                1 => percent(r.utilisation),
                _ => format!("{} on {}", percent(r.utilisation), r.machine.name),
            })
            .collect();
        let mut entries = Vec::new();
        for (i, m) in machines.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let on = if machines.len() > 1 {
                format!("{m}: ")
            } else {
                String::new()
            };
            entries.push((Mark::Total(colour), format!("{on}simulated, without load")));
            entries.push((Mark::WithLoad(colour), format!("{on}simulated, with load")));
        }
        entries.push((
            Mark::Theory,
            "theoretical: dense multiply-adds / those of nonzero weights".into(),
        ));
        let widths: Vec<i32> = entries
            .iter()
            .map(|e| Style::new(13.0).width(&e.1) + 72)
            .collect();
        let legend = flow(&widths, SIZE.0 - 2 * MARGIN);
        let rows = legend.last().map_or(0, |e| e.1 + 1);
        let all = || lines.iter().flatten();
        let top = all()
            .flat_map(|c| [c.speedup, c.speedup_with_load, c.theoretical_speedup])
            .filter(|y| y.is_finite())
            .fold(1.0, f64::max);
        let right = all().map(|c| c.sparsity * 100.0).fold(0.0, f64::max);
        Chart {
            title: format!(
                "{} on {}: speed-up against sparsity",
                report.model.name,
                machines.join(", ")
            ),
            below: vec![format!(
                "over the dense run, whose utilisation is {}",
                dense.join(", ")
            )],
            lines,
            entries,
            legend,
            above: 84 + 22 * rows + 14,
            most: ((right + 5.0).min(100.0), top * 1.06),
        }
    }

    fn at(&self, sparsity: f64, speedup: f64) -> (i32, i32) {
        let (w, h) = (SIZE.0 - LEFT - RIGHT - 16, SIZE.1 - self.above - BOTTOM);
        (
            LEFT + 16 + (sparsity * 100.0 / self.most.0 * w as f64).round() as i32,
            SIZE.1 - BOTTOM - (speedup / self.most.1 * h as f64).round() as i32,
        )
    }
}

fn mark<B: DrawingBackend>(page: &Page<B>, mark: Mark, points: &[(i32, i32)]) -> Result<(), PlotError> {
    match mark {
        Mark::Total(colour) => {
            line(page, points, colour.stroke_width(2))?;
            points.iter().try_for_each(|p| {
                let disc = Circle::new(page.at(*p), 4 * page.scale, colour.filled());
                page.area.draw(&disc).map_err(PlotError::new)
            })
        }
        Mark::WithLoad(colour) => {
            line(page, points, colour.stroke_width(1))?;
            // around a disc, not on it, where both are at one place
            points
                .iter()
                .try_for_each(|(x, y)| frame(page, (x - 6, y - 6), (x + 6, y + 6), colour))
        }
        Mark::Theory => dashes(page, points),
    }
}

/// A line of dashes through the points.
fn dashes<B: DrawingBackend>(page: &Page<B>, points: &[(i32, i32)]) -> Result<(), PlotError> {
    let points: Vec<_> = points.iter().map(|p| page.at(*p)).collect();
    let (dash, gap) = (7 * page.scale, 5 * page.scale);
    let element = DashedPathElement::new(points, dash, gap, page.style(INK.stroke_width(2)));
    page.area.draw(&element).map_err(PlotError::new)
}

impl Drawing for Chart<'_> {
    fn size(&self) -> (u32, u32) {
        (SIZE.0 as u32, SIZE.1 as u32)
    }

    fn draw<B: DrawingBackend>(&self, page: &Page<B>) -> Result<(), PlotError> {
        heading(page, SIZE.0, &self.title, &self.below)?;
        for ((x, row), (kind, words)) in self.legend.iter().zip(&self.entries) {
            let (x, y) = (MARGIN + x, 84 + 22 * row);
            mark(page, *kind, &[(x, y), (x + 36, y)])?;
            write(page, (x + 52, y), Style::new(13.0), words)?;
        }
        let (right, bottom) = (SIZE.0 - RIGHT, SIZE.1 - BOTTOM);
        let small = Style::new(12.0).faint();
        let step = round_step(self.most.1, 10);
        for y in (0..).map(|i| i as f64 * step).take_while(|y| *y <= self.most.1) {
            let at = self.at(0.0, y).1;
            line(page, &[(LEFT, at), (right, at)], GRID)?;
            let decimals = (-step.log10().floor()).max(0.0) as usize;
            write(page, (LEFT - 8, at), small.right(), &format!("{y:.decimals$}"))?;
        }
        let one = self.at(0.0, 1.0).1;
        line(page, &[(LEFT, one), (right, one)], FAINT)?;
        // the sparsities that were run, as far as their numbers have room
        let mut shown: Vec<f64> = self.lines.iter().flatten().map(|c| c.sparsity).collect();
        shown.sort_by(f64::total_cmp);
        let mut last = i32::MIN;
        for s in shown {
            let x = self.at(s, 0.0).0;
            if x < last {
                continue;
            }
            let words = sparsity(s);
            last = x + small.width(&words) + 6;
            line(page, &[(x, bottom), (x, bottom + 5)], FAINT)?;
            write(page, (x, bottom + 16), small.centred(), &words)?;
        }
        line(
            page,
            &[(LEFT, self.above), (LEFT, bottom), (right, bottom)],
            FAINT,
        )?;
        let style = Style::new(13.0).centred();
        let across = "sparsity (share of zeros asked for in the layers that are made sparse)";
        write(page, ((LEFT + right) / 2, bottom + 44), style, across)?;
        let down = "speed-up (dense cycles / sparse cycles)";
        write(page, (30, (self.above + bottom) / 2), style.standing(), down)?;
        // the work left is the model's: machines may differ in nothing but rounding, and one line stands for all
        if let Some(line) = self.lines.iter().max_by_key(|l| l.len()) {
            let points: Vec<(f64, f64)> = line.iter().map(|c| (c.sparsity, c.theoretical_speedup)).collect();
            let pixels: Vec<_> = theoretical_curve(&points)
                .iter()
                .map(|p| self.at(p.0, p.1))
                .collect();
            dashes(page, &pixels)?;
        }
        for (i, line) in self.lines.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let loaded: Vec<_> = line
                .iter()
                .map(|c| self.at(c.sparsity, c.speedup_with_load))
                .collect();
            let total: Vec<_> = line.iter().map(|c| self.at(c.sparsity, c.speedup)).collect();
            mark(page, Mark::WithLoad(colour), &loaded)?;
            mark(page, Mark::Total(colour), &total)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_theoretical_line_is_exact_where_all_weights_are_masked() {
        let at = |s: f64| (s, 1.0 / (1.0 - s));
        let curve = theoretical_curve(&[at(0.0), at(0.5), at(0.75), at(0.9)]);
        assert_eq!(curve.len(), 1 + 3 * STEPS as usize);
        for (s, y) in curve {
            assert!((y * (1.0 - s) - 1.0).abs() < 1e-12, "{s} {y}");
        }
        assert_eq!(theoretical_curve(&[(0.5, 2.0)]), [(0.5, 2.0)]);
        assert!(theoretical_curve(&[]).is_empty());
    }
}
