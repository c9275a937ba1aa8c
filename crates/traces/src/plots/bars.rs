//! The bars: where the cycles of each kernel's PEs went, one run beside the other.

use super::*;
use crate::format::{grouped, percent, sparsity};
use crate::gap::slowest;
use crate::report::{Kernel, Run, RunName};
use crate::table::title;

/// Most kernels with bars; of more, those that work longest.
const MOST: usize = 240;
/// Width of the longest bar.
const WIDTH: i32 = 860;
/// Most pixels for a kernel's name.
const NAMES: i32 = 260;

/// What a PE-cycle can be, with its colour (Paul Tol's "bright" scheme, told apart by the colour-blind); idle is the palest.
const CLASSES: [(&str, RGBColor); 6] = [
    ("multiply-adds", RGBColor(0x44, 0x77, 0xaa)),
    (
        "other busy (moves, scalar, reduction, ...)",
        RGBColor(0x66, 0xcc, 0xee),
    ),
    ("launch", RGBColor(0xcc, 0xbb, 0x44)),
    ("waiting for input", RGBColor(0xee, 0x66, 0x77)),
    ("waiting for room", RGBColor(0xaa, 0x33, 0x77)),
    ("idle", RGBColor(0xe4, 0xe4, 0xe4)),
];

/// A kernel's PE-cycles by what they were: multiply-adds, other busy, launch, waiting for input, waiting for room, idle; their sum is [`Kernel::pe_cycles`].
pub fn split(k: &Kernel) -> [u64; 6] {
    let s = &k.slots;
    [
        s.mac + s.mac_act,
        s.reduce + s.other + s.moves + s.scalar,
        k.launch,
        k.wait_input,
        k.wait_room,
        k.idle,
    ]
}

/// A bar for each kernel and run: the cycles of the kernel's mean PE by class. The runs are of one machine, as a rule a dense and a sparse one.
pub fn cycles(model: &str, runs: &[&Run]) -> Result<Plot, PlotError> {
    register()?;
    render(&Bars::new(model, runs))
}

/// Bars of one kernel, one a run that has it.
struct Row<'a> {
    name: &'a str,
    bars: Vec<Option<&'a Kernel>>,
}

struct Bars<'a> {
    title: String,
    below: Vec<String>,
    runs: Vec<&'a Run>,
    rows: Vec<Row<'a>>,
    /// Pixels of a row and of a bar.
    pitch: i32,
    bar: i32,
    /// The longest bar, in cycles.
    top: f64,
    /// Where the bars begin.
    left: i32,
    above: i32,
    width: i32,
    legend: Vec<(i32, i32)>,
}

/// Cycles of the mean PE: PE-cycles over PEs.
fn mean(k: &Kernel, pe_cycles: u64) -> f64 {
    pe_cycles as f64 / k.region.area().max(1) as f64
}

/// A run in one word.
fn short(run: &Run) -> String {
    match run.name {
        RunName::Dense => "dense".into(),
        _ => sparsity(run.sparsity),
    }
}

impl<'a> Bars<'a> {
    fn new(model: &str, runs: &[&'a Run]) -> Bars<'a> {
        let mut names: Vec<&str> = Vec::new();
        for k in runs.iter().flat_map(|r| &r.kernels) {
            if !names.contains(&k.name.as_str()) {
                names.push(&k.name);
            }
        }
        let all = names.len();
        if all > MOST {
            let longest: Vec<&str> = runs
                .iter()
                .take(1)
                .flat_map(|r| slowest(r))
                .take(MOST)
                .map(|k| k.name.as_str())
                .collect();
            names.retain(|n| longest.contains(n));
        }
        let rows: Vec<Row> = names
            .iter()
            .map(|name| Row {
                name,
                bars: runs
                    .iter()
                    .map(|r| r.kernels.iter().find(|k| k.name == *name))
                    .collect(),
            })
            .collect();
        let each = runs.len().max(1) as i32;
        let bar = match rows.len() {
            0..=8 => 22,
            9..=20 => 16,
            21..=60 => 11,
            _ => 8,
        };
        let gap = if rows.len() <= 20 { 14 } else { 8 };
        let kernels = || rows.iter().flat_map(|r| r.bars.iter().flatten());
        let top = kernels().map(|k| mean(k, k.pe_cycles())).fold(0.0, f64::max);
        let style = Style::new(13.0);
        let widest = rows
            .iter()
            .map(|r| style.width(r.name))
            .max()
            .unwrap_or(0)
            .min(NAMES);
        let machine = runs.first().map_or("", |r| r.machine.name.as_str());
        let mut below = vec![
            "cycles of each kernel's mean PE, from the first input on (without load)".to_string(),
            runs.iter()
                .map(|r| {
                    format!(
                        "{} ({} cycles, {} of the mesh)",
                        title(r),
                        grouped(r.cycles.total),
                        percent(r.utilisation)
                    )
                })
                .collect::<Vec<_>>()
                .join("; below it "),
        ];
        if all > rows.len() {
            below[0] += &format!("; the {} of {all} kernels that work longest", rows.len());
        }
        let left = MARGIN + widest + 62;
        let width = left + WIDTH + 40;
        let widths = CLASSES.map(|(name, _)| style.width(name) + 32);
        let legend = flow(&widths, width - 2 * MARGIN);
        let lines = legend.last().map_or(0, |e| e.1 + 1);
        Bars {
            title: format!("{model} on {machine}: where the cycles went"),
            below,
            runs: runs.to_vec(),
            rows,
            pitch: bar * each + gap,
            bar,
            top,
            left,
            above: 96 + 22 * lines + 8,
            width,
            legend,
        }
    }

    fn x(&self, cycles: f64) -> i32 {
        self.left + (cycles / self.top.max(1.0) * WIDTH as f64).round() as i32
    }

    fn bottom(&self) -> i32 {
        self.above + self.pitch * self.rows.len() as i32
    }
}

impl Drawing for Bars<'_> {
    fn size(&self) -> (u32, u32) {
        (self.width as u32, (self.bottom() + 64) as u32)
    }

    fn draw<B: DrawingBackend>(&self, page: &Page<B>) -> Result<(), PlotError> {
        heading(page, self.width, &self.title, &self.below)?;
        let style = Style::new(13.0);
        for ((x, row), (name, colour)) in self.legend.iter().zip(CLASSES) {
            let (x, y) = (MARGIN + x, 100 + 22 * row);
            fill(page, (x, y - 7), (x + 14, y + 7), colour)?;
            write(page, (x + 20, y), style, name)?;
        }
        let (above, bottom) = (self.above, self.bottom());
        let step = round_step(self.top, 8).max(1.0);
        for t in (0..).map(|i| i as f64 * step).take_while(|t| *t <= self.top) {
            let x = self.x(t);
            line(page, &[(x, above), (x, bottom + 4)], GRID)?;
            write(
                page,
                (x, bottom + 15),
                Style::new(12.0).faint().centred(),
                &grouped(t as u64),
            )?;
        }
        for (i, row) in self.rows.iter().enumerate() {
            let y = above + self.pitch * i as i32;
            let inner = self.bar * self.runs.len() as i32;
            let first = y + (self.pitch - inner) / 2;
            let name = style.elided(row.name, NAMES);
            write(page, (self.left - 62, first + inner / 2), style.right(), &name)?;
            for (j, (kernel, run)) in row.bars.iter().zip(&self.runs).enumerate() {
                let Some(k) = kernel else { continue };
                let y = first + self.bar * j as i32;
                let size = (self.bar as f64).clamp(9.0, 11.0);
                write(
                    page,
                    (self.left - 6, y + self.bar / 2),
                    Style::new(size).faint().right(),
                    &short(run),
                )?;
                let mut sum = 0;
                for (n, (_, colour)) in split(k).iter().zip(CLASSES) {
                    let (a, b) = (self.x(mean(k, sum)), self.x(mean(k, sum + n)));
                    sum += n;
                    if b > a {
                        fill(page, (a, y), (b, y + self.bar - 1), colour)?;
                    }
                }
            }
        }
        line(page, &[(self.left, above), (self.left, bottom)], FAINT)?;
        let middle = self.left + WIDTH / 2;
        write(
            page,
            (middle, bottom + 40),
            style.centred(),
            "cycles (PE-cycles of the kernel / its PEs)",
        )
    }
}
