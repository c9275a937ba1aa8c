//! The report as a table for the terminal: plain text, monospaced, one block a machine, one column a run. It shows
//! simulated figures only, so that the same report gives the same text; [`simulation`] tells of the simulation itself.

use crate::format::{
    bytes, clock, error, grouped, grouped_decimal, parameters, percent, percents, quantity, ratio, si,
    sparsity,
};
use crate::gap::{Gap, classes, gap, slowest};
use crate::report::{Comparison, Kernel, Report, Run, RunName, compare};

/// Kernels listed as the slowest.
const SLOWEST: usize = 3;
/// Columns between two columns of numbers, and where there are many.
const SPACE: usize = 3;
const NARROW: usize = 2;
/// Of more runs than this the heads stand in two lines, and remarks below the table, so that it stays readable.
const FEW: usize = 3;
/// Columns at which a sentence is folded, if the table is narrower.
const FOLD: usize = 100;

/// The table, ending in a newline.
pub fn table(report: &Report) -> String {
    let machines = report.machines();
    let blocks: Vec<Block> = machines.iter().map(|runs| Block::new(report, runs)).collect();
    let width = blocks.iter().map(Block::width).max().unwrap_or(0);
    let label = blocks.iter().map(|b| b.label).max().unwrap_or(0);
    let model = &report.model;
    let mut left = model.name.clone();
    if model.source != model.name && !model.source.is_empty() {
        left = format!("{left}  {}", model.source);
    }
    let right = format!("{} parameters", parameters(model.parameters));
    let mut out = both_ends(&left, &right, width);
    for (i, block) in blocks.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        block.write(report, label, width, &mut out);
    }
    out
}

/// One line a run on the simulation itself: engine, seconds, PE-cycles a second. It differs from one time to the next.
pub fn simulation(report: &Report) -> String {
    let mut out = String::new();
    for run in &report.runs {
        out += &format!(
            "simulated {} on {} in {} with the {} engine, {} PE-cycles/s\n",
            title(run),
            run.machine.name,
            si(run.wall_seconds, "s"),
            run.engine,
            quantity(run.pe_cycles_per_second.max(0.0) as u64),
        );
        out += &stages(run);
    }
    out
}

/// Stages of which each took at least this share of the simulation are shown, and only of simulations that took some seconds.
const SHOWN: (f64, f64) = (0.02, 5.0);

/// Where the time of a long simulation of several stages went, one line a stage.
fn stages(run: &Run) -> String {
    let stages = &run.cycles.stages;
    if stages.len() < 2 || run.wall_seconds < SHOWN.1 {
        return String::new();
    }
    let mut out = String::new();
    for (number, s) in stages.iter().enumerate() {
        if s.wall_seconds < SHOWN.0 * run.wall_seconds {
            continue;
        }
        let kernels = run.kernels.iter().filter(|k| k.stage as usize == number);
        let kernels: Vec<&str> = kernels.map(|k| k.name.as_str()).collect();
        out += &format!(
            "  stage {number}: {} for {} cycles of {}\n",
            si(s.wall_seconds, "s"),
            grouped(s.change + s.load + s.total),
            kernels.join(", ")
        );
    }
    out
}

/// A run's name as the head of its column.
pub fn title(run: &Run) -> String {
    match run.name {
        RunName::Dense => "dense".into(),
        RunName::SparseNoSkip => format!("sparse {}, no skip", sparsity(run.sparsity)),
        RunName::Sparse => format!("sparse {}, skip", sparsity(run.sparsity)),
    }
}

/// One row: a label, a cell a run, a remark behind.
struct Row {
    label: &'static str,
    cells: Vec<String>,
    remark: String,
}

/// One machine's part of the table.
struct Block<'a> {
    runs: &'a [&'a Run],
    rows: Vec<Row>,
    /// Width of the labels.
    label: usize,
    /// Width of each column of numbers.
    columns: Vec<usize>,
    /// Blanks between two of them.
    space: usize,
}

impl<'a> Block<'a> {
    fn new(report: &Report, runs: &'a [&'a Run]) -> Block<'a> {
        let many = runs.len() > FEW;
        let mut rows = heads(runs, many);
        rows.extend(figures(report, runs));
        let label = rows.iter().map(|r| r.label.len()).max().unwrap_or(0);
        let width = |i: usize| rows.iter().map(|r| chars(&r.cells[i])).max().unwrap_or(0);
        let columns = (0..runs.len()).map(width).collect();
        Block {
            runs,
            rows,
            label,
            columns,
            space: if many { NARROW } else { SPACE },
        }
    }

    fn width(&self) -> usize {
        self.label + self.columns.iter().map(|c| self.space + c).sum::<usize>()
    }

    /// The rows' remarks, where they stand below them.
    fn notes(&self) -> Option<String> {
        let (mut notes, mut above) = (Vec::new(), "");
        for row in &self.rows {
            let part = row.label.trim_start();
            let name = if part.len() < row.label.len() {
                format!("{above}, {part}")
            } else {
                above = part;
                part.to_string()
            };
            if !row.remark.is_empty() {
                notes.push(format!("{name}: {}", row.remark));
            }
        }
        (self.runs.len() > FEW && !notes.is_empty()).then(|| notes.join("; "))
    }

    fn write(&self, report: &Report, label: usize, width: usize, out: &mut String) {
        let machine = &self.runs[0].machine;
        let on = format!(
            "on  {}  {}x{} PEs, {}",
            machine.name,
            machine.width,
            machine.height,
            clock(machine.clock_hz)
        );
        *out += &both_ends(&on, &setting(report, self.runs), width);
        for row in &self.rows {
            let mut line = format!("{:label$}", row.label);
            for (cell, column) in row.cells.iter().zip(&self.columns) {
                let w = self.space + column;
                line += &format!("{cell:>w$}");
            }
            if self.runs.len() <= FEW && !row.remark.is_empty() {
                line += &format!("   {}", row.remark);
            }
            *out += line.trim_end();
            out.push('\n');
        }
        if let Some(notes) = self.notes() {
            *out += &folded("notes", &notes, label, width);
        }
        let Some(last) = self
            .runs
            .iter()
            .rfind(|r| r.name == RunName::Sparse)
            .or(self.runs.last())
        else {
            return;
        };
        if let Some(gap) = gap(last) {
            let name = if last.name == RunName::Sparse {
                "where the gap went"
            } else {
                "where it went"
            };
            *out += &folded(name, &gap_sentence(&gap, last), label, width);
        }
        for (i, kernel) in slowest(last).into_iter().take(SLOWEST).enumerate() {
            let name = if i == 0 { "slowest kernels" } else { "" };
            *out += &folded(name, &kernel_sentence(kernel), label, width);
        }
    }
}

/// The heads of the columns: a run's title, or where there are many its sparsity and below it whether zeros are skipped.
fn heads(runs: &[&Run], many: bool) -> Vec<Row> {
    let row = |label, cell: &dyn Fn(&Run) -> String| Row {
        label,
        cells: runs.iter().map(|r| cell(r)).collect(),
        remark: String::new(),
    };
    if !many {
        return vec![row("", &title)];
    }
    let zeros = |r: &Run| match r.name {
        RunName::Dense => "",
        RunName::SparseNoSkip => "no skip",
        RunName::Sparse => "skip",
    };
    let share = |r: &Run| match r.name {
        RunName::Dense => "dense".into(),
        _ => sparsity(r.sparsity),
    };
    vec![row("sparsity", &share), row("  zeros", &|r| zeros(r).into())]
}

/// The rows of numbers.
fn figures(report: &Report, runs: &[&Run]) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut row = |label: &'static str, remark: &str, cell: &dyn Fn(&Run) -> String| {
        rows.push(Row {
            label,
            cells: runs.iter().map(|r| cell(r)).collect(),
            remark: remark.into(),
        });
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());

    row("cycles", "", &|r| grouped(r.cycles.total));
    row("  first output", "", &|r| grouped(r.cycles.first_output));
    if report.items > 1 {
        row("  interval", "between items", &|r| {
            or_dash(r.cycles.interval.map(grouped_decimal))
        });
    }
    row("load cycles", "before them", &|r| grouped(r.cycles.load));
    if runs.iter().any(|r| r.cycles.stages.len() > 1) {
        row("  changes", "between stages: code and routes enter", &|r| {
            grouped(r.cycles.stages.iter().map(|s| s.change).sum())
        });
    }
    row("time", "at the machine's clock, without load", &|r| {
        si(r.seconds, "s")
    });

    let owned: Vec<Run> = runs.iter().map(|r| (*r).clone()).collect();
    let comparisons = compare(&owned);
    if let Some(dense) = runs
        .iter()
        .find(|r| r.name == RunName::Dense)
        .filter(|_| runs.len() > 1)
    {
        let over = |a: u64, b: u64| {
            if b == 0 {
                "-".into()
            } else {
                ratio(a as f64 / b as f64)
            }
        };
        let theoretical = |r: &Run| {
            let same = |c: &&Comparison| c.sparsity == r.sparsity && r.name == RunName::Sparse;
            comparisons
                .iter()
                .find(same)
                .map(|c| ratio(c.theoretical_speedup))
        };
        let many = runs.len() > FEW;
        let fills = percent(dense.utilisation);
        let mut remark = match many {
            true => String::new(),
            false => format!("over dense at {fills} utilisation"),
        };
        if let [one] = &comparisons[..] {
            remark += &format!(" (theoretical {})", ratio(one.theoretical_speedup));
        }
        row("speed-up", remark.trim(), &|r| {
            over(dense.cycles.total, r.cycles.total)
        });
        row("  with load", "", &|r| {
            over(
                dense.cycles.load + dense.cycles.total,
                r.cycles.load + r.cycles.total,
            )
        });
        if many {
            row("  dense utilised", "utilisation of the dense run", &|_| {
                fills.clone()
            });
        }
        if comparisons.len() > 1 {
            row("  theoretical", "dense over theoretical multiply-adds", &|r| {
                or_dash(theoretical(r))
            });
        }
    }

    row("multiply-adds", "executed", &|r| {
        quantity(r.flops.executed.multiply_adds())
    });
    row("  theoretical", "nonzero weights only", &|r| {
        quantity(r.flops.theoretical.multiply_adds())
    });
    row("  published", "by papers: dense, with padding", &|r| {
        quantity(r.flops.published)
    });
    row("reductions", "executed because work is split", &|r| {
        quantity(r.flops.executed.reduce)
    });
    row("other operations", "executed", &|r| {
        quantity(r.flops.executed.other)
    });
    row("utilisation", "of the mesh", &|r| percent(r.utilisation));
    row("  in use", "of the PEs that have code", &|r| {
        percent(r.utilisation_in_use)
    });
    row(
        "imbalance",
        "most multiply-adds of a PE over its kernel's mean",
        &|r| ratio(r.imbalance),
    );
    row("memory", "of the fullest PE", &|r| bytes(r.memory.peak_pe_bytes));
    row("off-wafer", "both ways, with load", &|r| {
        bytes(r.traffic.offchip_bytes)
    });
    if runs.iter().any(|r| r.energy_joules.is_some()) {
        row("energy", "uncalibrated, with load", &|r| {
            or_dash(r.energy_joules.map(|e| si(e, "J")))
        });
    }
    if runs.iter().any(|r| r.outputs.is_some()) {
        let against = format!("against the f64 evaluator: {}", verdict(runs));
        row("largest error", &against, &|r| {
            or_dash(r.outputs.as_ref().map(|o| error(o.max_rel_error)))
        });
    }
    rows
}

/// `ok`, or the first run's first tensor that departs.
fn verdict(runs: &[&Run]) -> String {
    let departing = |r: &&Run| {
        let tensor = r.outputs.as_ref()?.first_departing.clone()?;
        Some(format!("DEPARTS, first at `{tensor}` ({})", title(r)))
    };
    runs.iter().find_map(departing).unwrap_or_else(|| "ok".into())
}

/// `f32, batch 32, seed 0, 1 stage, 7 kernels`.
fn setting(report: &Report, runs: &[&Run]) -> String {
    let mut parts = vec![report.dtype.clone(), format!("batch {}", report.batch)];
    if report.items > 1 {
        parts.push(format!("{} items", report.items));
    }
    parts.push(format!("seed {}", report.seed));
    if report.inputs != "seeded" {
        parts.push(format!("inputs {}", report.inputs));
    }
    let stages = |r: &&Run| {
        let mut all: Vec<u32> = r.kernels.iter().map(|k| k.stage).collect();
        all.sort_unstable();
        all.dedup();
        all.len()
    };
    parts.push(counted(runs.iter().map(stages), "stage"));
    parts.push(counted(runs.iter().map(|r| r.kernels.len()), "kernel"));
    parts.join(", ")
}

/// `1 stage`, `7 kernels`, or `7 to 9 kernels` where the runs differ.
fn counted(counts: impl Iterator<Item = usize> + Clone, what: &str) -> String {
    let (low, high) = (counts.clone().min().unwrap_or(0), counts.max().unwrap_or(0));
    let s = if high == 1 { "" } else { "s" };
    if low == high {
        format!("{high} {what}{s}")
    } else {
        format!("{low} to {high} {what}{s}")
    }
}

fn gap_sentence(gap: &Gap, run: &Run) -> String {
    let whole = percents(&gap.shares.iter().map(|s| s.1).collect::<Vec<_>>());
    let parts: Vec<String> = gap
        .shares
        .iter()
        .zip(&whole)
        .map(|((name, _), p)| format!("{name} {}", at_least(*p)))
        .collect();
    format!(
        "{}, the slowest kernel ({}): {} of its PE-cycles are multiply-adds; the rest: {}",
        gap.kernel,
        title(run),
        percent(gap.multiply_adds),
        parts.join(", ")
    )
}

fn at_least(p: u32) -> String {
    if p == 0 { "<1 %".into() } else { format!("{p} %") }
}

fn kernel_sentence(k: &Kernel) -> String {
    let all = k.pe_cycles().max(1) as f64;
    let parts = classes(k);
    let whole = percents(&parts.map(|p| p.1 as f64 / all));
    let mut shown: Vec<_> = parts.iter().zip(whole).filter(|(part, _)| part.1 > 0).collect();
    // busy first, then what it waits for most
    shown[..].sort_by_key(|(part, _)| (part.0 != "busy", std::cmp::Reverse(part.1)));
    let shown: Vec<String> = shown
        .iter()
        .map(|(part, p)| format!("{} {}", part.0, at_least(*p)))
        .collect();
    format!("{}  {}  {}", k.name, k.region, shown.join(", "))
}

fn chars(text: &str) -> usize {
    text.chars().count()
}

/// `left`, then `right` so that it ends at `width`, at least three blanks between.
fn both_ends(left: &str, right: &str, width: usize) -> String {
    let blanks = width.saturating_sub(chars(left) + chars(right)).max(3);
    format!("{left}{:blanks$}{right}\n", "")
}

/// A label and a sentence beside it, folded at commas and blanks.
fn folded(label: &str, text: &str, column: usize, width: usize) -> String {
    let indent = column.max(chars(label)).max(18) + 2;
    let room = width.max(FOLD).saturating_sub(indent).max(30);
    let mut out = format!("{label:indent$}");
    let mut used = 0;
    // split before single blanks; the double ones separate fields and stay
    let words: Vec<&str> = text.split(' ').collect();
    let mut i = 0;
    while i < words.len() {
        // a number stays with its sign
        let mut word = words[i].to_string();
        while words.get(i + 1).is_some_and(|w| w.starts_with('%')) {
            i += 1;
            word = format!("{word} {}", words[i]);
        }
        i += 1;
        let n = chars(&word);
        if used > 0 && used + 1 + n > room {
            out = format!("{}\n{:indent$}", out.trim_end(), "");
            used = 0;
        } else if i > 1 && used > 0 {
            out.push(' ');
            used += 1;
        }
        out += &word;
        used += n;
    }
    out.push('\n');
    out
}
