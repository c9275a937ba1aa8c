//! Rectangles: the mesh is cut in two again and again, in the order of the data, so that each kernel gets an area in proportion to its
//! work; what each rectangle is expected to take then corrects the proportions, until the slowest kernel gains no more. Of the cuts
//! tried the one with the shortest interval wins, then the one with the shortest wires. Deterministic for a seed.

use super::stages::context;
use crate::kernels::{self, Context, Implementation};
use crate::plan::*;
use crate::{CompileError, Options, Placement};
use meshloom_simulator::Machine;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;

/// What a kernel would be in a rectangle: the part that it uses, and its cost.
#[derive(Clone, Copy, Debug)]
struct Choice {
    width: u32,
    height: u32,
    cycles: u64,
    bytes: u64,
}

/// Costs of all kernels in rectangles, worked out when asked for.
struct Costs<'a> {
    kernels: Vec<Box<dyn Implementation + 'a>>,
    contexts: Vec<Context<'a>>,
    known: HashMap<(usize, u32, u32), Option<Choice>>,
}

impl Costs<'_> {
    fn of(&mut self, k: usize, width: u32, height: u32) -> Option<Choice> {
        let (kernel, c) = (&self.kernels[k], &self.contexts[k]);
        let (w, h) = kernel.fit(c, width, height);
        if w > width || h > height {
            return None;
        }
        *self.known.entry((k, w, h)).or_insert_with(|| {
            kernel.estimate(c, w, h).map(|e| Choice {
                width: w,
                height: h,
                cycles: e.cycles,
                bytes: e.bytes,
            })
        })
    }
}

/// A way of cutting the mesh: what each kernel's share is, and how much chance may disturb the cuts.
struct Cutter<'c, 'a> {
    costs: &'c mut Costs<'a>,
    share: Vec<f64>,
    rng: ChaCha8Rng,
    disturb: f64,
    rects: Vec<Rect>,
    sram: u64,
}

impl Cutter<'_, '_> {
    fn chance(&mut self) -> f64 {
        self.rng.random_range(-1.0..1.0) * self.disturb
    }

    /// Gives the rectangle to two kernels, by the cut after which the slower one is fastest, then the other.
    fn pair(&mut self, from: usize, at: Rect) -> bool {
        let sides = (1..at.width).map(|size| {
            let (a, b) = (
                Rect { width: size, ..at },
                Rect {
                    x: at.x + size,
                    width: at.width - size,
                    ..at
                },
            );
            (a, b)
        });
        let stacked = (1..at.height).map(|size| {
            let (a, b) = (
                Rect { height: size, ..at },
                Rect {
                    y: at.y + size,
                    height: at.height - size,
                    ..at
                },
            );
            (a, b)
        });
        let sram = self.sram;
        let best = sides.chain(stacked).min_by_key(|(a, b)| {
            let mut cost = |k: usize, r: &Rect| match self.costs.of(k, r.width, r.height) {
                Some(c) if c.bytes <= sram => c.cycles,
                _ => u64::MAX,
            };
            let (a, b) = (cost(from, a), cost(from + 1, b));
            (a.max(b), a.min(b))
        });
        match best {
            Some((a, b)) => {
                (self.rects[from], self.rects[from + 1]) = (a, b);
                true
            }
            None => false,
        }
    }

    /// Gives the rectangle to the kernels from..to.
    fn cut(&mut self, from: usize, to: usize, at: Rect) -> bool {
        if to - from == 1 {
            self.rects[from] = at;
            return at.width > 0 && at.height > 0;
        }
        if at.width as usize * (at.height as usize) < to - from {
            return false;
        }
        if to - from == 2 {
            return self.pair(from, at);
        }
        let total: f64 = self.share[from..to].iter().sum();
        // where the order is cut: near the middle of the work
        let aim = total * (0.5 + 0.3 * self.chance());
        let (mut before, mut middle) = (self.share[from], from + 1);
        while middle + 1 < to && before + self.share[middle] / 2.0 < aim {
            before += self.share[middle];
            middle += 1;
        }
        let wide = at.width as f64 * (1.0 + 0.7 * self.chance()) >= at.height as f64;
        let long = if wide { at.width } else { at.height };
        let (cross, sides) = if wide {
            (at.height, (middle - from, to - middle))
        } else {
            (at.width, (middle - from, to - middle))
        };
        if long < 2 {
            return false;
        }
        let least = (sides.0 as u32).div_ceil(cross).max(1);
        let most = long.saturating_sub((sides.1 as u32).div_ceil(cross).max(1));
        if least > most {
            return false;
        }
        let size = ((long as f64 * before / total).round() as u32).clamp(least, most);
        let (a, b) = if wide {
            (
                Rect { width: size, ..at },
                Rect {
                    x: at.x + size,
                    width: at.width - size,
                    ..at
                },
            )
        } else {
            (
                Rect { height: size, ..at },
                Rect {
                    y: at.y + size,
                    height: at.height - size,
                    ..at
                },
            )
        };
        self.cut(from, middle, a) && self.cut(middle, to, b)
    }
}

/// Words times hops of all streams.
fn wires(plan: &Plan, rects: &[Rect], exits: &[u32]) -> u64 {
    let mut sum = 0;
    for e in &plan.edges {
        let volume = (e.layout.features * e.layout.length()) as u64;
        let from = match e.source {
            Source::Kernel(k) => (rects[k].x + exits[k], rects[k].y),
            Source::Input(_) | Source::Stored(..) => (0, e.to.first().map_or(0, |k| rects[*k].y)),
        };
        for &k in &e.to {
            sum += volume * (from.0.abs_diff(rects[k].x) + from.1.abs_diff(rects[k].y)) as u64;
        }
    }
    sum
}

/// Where kernels may lie: all but the first row and column, which are left to streams, so that no entry or exit is shut in.
fn whole(machine: &Machine) -> Rect {
    Rect {
        x: 1,
        y: 1,
        width: machine.mesh.width.saturating_sub(1),
        height: machine.mesh.height.saturating_sub(1),
    }
}

/// Equal parts of the mesh, in the order of the data: vertical strips, in as few rows of them as it takes.
fn strips(n: u32, machine: &Machine) -> Vec<Rect> {
    let Rect {
        x: x0,
        y: y0,
        width: w,
        height: h,
    } = whole(machine);
    let rows = n.div_ceil(w).max(1);
    let columns = n.div_ceil(rows);
    (0..n)
        .map(|i| {
            let (r, c) = (i / columns, i % columns);
            let here = columns.min(n - r * columns);
            let edge = |i: u32, n: u32, size: u32| (i as u64 * size as u64 / n as u64) as u32;
            let (x, y) = (edge(c, here, w), edge(r, rows, h));
            Rect {
                x: x0 + x,
                y: y0 + y,
                width: edge(c + 1, here, w) - x,
                height: edge(r + 1, rows, h) - y,
            }
        })
        .collect()
}

/// How many ways of cutting are tried.
const TRIES: u32 = 3000;

/// Chooses the rectangles and sets `places` and `estimates`; `fixed` gives each kernel's width and height.
pub fn run(
    plan: &mut Plan,
    machine: &Machine,
    options: &Options,
    fixed: Option<(u32, u32)>,
) -> Result<(), CompileError> {
    let n = plan.kernels.len();
    let (mesh, sram) = (&machine.mesh, machine.pe.sram_bytes as u64);
    let chosen = {
        let mut costs = Costs {
            kernels: plan.kernels.iter().map(|k| kernels::of(&k.kind)).collect(),
            contexts: (0..n).map(|k| context(plan, machine, k)).collect(),
            known: HashMap::new(),
        };
        let whole = whole(machine);
        for k in 0..n {
            alone_fits(plan, machine, &mut costs, k, fixed)?;
        }
        // the pipeline keeps its pace if whatever waits for another path has room for it
        let ample = if fixed.is_none() && options.placement == Placement::Work && plan.items > 1 {
            costs.contexts.iter_mut().for_each(|c| c.keep_all = true);
            let found = by_work(plan, machine, &mut costs, options.seed);
            costs.contexts.iter_mut().for_each(|c| c.keep_all = false);
            costs.known.clear();
            found
        } else {
            None
        };
        match (fixed, options.placement) {
            _ if ample.is_some() => ample,
            (Some((width, height)), _) => Some(vec![Rect { width, height, ..whole }; 1]),
            (None, Placement::Strips) => Some(strips(n as u32, machine)),
            (None, Placement::Work) => by_work(plan, machine, &mut costs, options.seed),
        }
        .and_then(|rects| {
            let choices: Option<Vec<Choice>> = rects
                .iter()
                .enumerate()
                .map(|(k, r)| costs.of(k, r.width, r.height).filter(|c| c.bytes <= sram))
                .collect();
            Some((rects, choices?))
        })
    };
    let Some((rects, choices)) = chosen else {
        return Err(CompileError::DoesNotFit {
            what: format!("the model's {n} kernels, all on the mesh at once"),
            needs: "more PEs or SRAM than there is room for".into(),
            has: format!(
                "{}x{} PEs of {} bytes on {}",
                mesh.width, mesh.height, machine.pe.sram_bytes, machine.name
            ),
            helps: format!(
                "{}, several stages (--stages auto), or a larger machine (--machine wse2, or --set mesh.width={})",
                plan.smaller(),
                mesh.width * 2
            ),
        });
    };
    plan.places = rects
        .iter()
        .zip(&choices)
        .map(|(r, c)| Rect {
            width: c.width,
            height: c.height,
            ..*r
        })
        .collect();
    plan.estimates = choices.iter().map(|c| c.cycles).collect();
    Ok(())
}

/// Refuses a kernel that does not even fit when it has the whole mesh.
fn alone_fits(
    plan: &Plan,
    machine: &Machine,
    costs: &mut Costs,
    k: usize,
    fixed: Option<(u32, u32)>,
) -> Result<(), CompileError> {
    let (w, h) = fixed.unwrap_or((whole(machine).width, whole(machine).height));
    let kernel = &plan.kernels[k];
    let op = kernels::of(&kernel.kind).op();
    let sram = machine.pe.sram_bytes as u64;
    match costs.of(k, w, h) {
        Some(c) if c.bytes <= sram => Ok(()),
        Some(c) => {
            let e = costs.kernels[k].estimate(&costs.contexts[k], c.width, c.height);
            let (x, y) = e.map_or((0, 0), |e| e.fullest);
            Err(CompileError::DoesNotFit {
                what: format!("kernel {} ({op})", kernel.name),
                needs: format!(
                    "at least {} bytes of SRAM on its fullest PE, column {x} and row {y} of its rectangle, with its work split over {}x{} PEs",
                    c.bytes, c.width, c.height
                ),
                has: format!("{} bytes a PE on {}", machine.pe.sram_bytes, machine.name),
                helps: format!(
                    "{}, a larger mesh (--set mesh.height=...), or --set pe.sram_bytes={}",
                    plan.smaller(),
                    c.bytes.next_multiple_of(1024)
                ),
            })
        }
        None => Err(CompileError::DoesNotFit {
            what: format!("kernel {} ({op})", kernel.name),
            needs: "a rectangle with more columns or rows".into(),
            has: format!("{w}x{h} PEs on {}", machine.name),
            helps: format!("--set mesh.width={} --set mesh.height={}", (w + 1) * 2, (h + 1) * 2),
        }),
    }
}

/// The best of many ways of cutting.
fn by_work(plan: &Plan, machine: &Machine, costs: &mut Costs, seed: u64) -> Option<Vec<Rect>> {
    let n = plan.kernels.len();
    let sram = machine.pe.sram_bytes as u64;
    let whole = whole(machine);
    // shares to begin with: what a kernel would take in an equal part
    let side = ((whole.width as f64 * whole.height as f64 / n as f64).sqrt().floor() as u32).max(1);
    let share: Vec<f64> = (0..n)
        .map(|k| {
            let c = (0..whole.width.max(whole.height))
                .map(|i| (side + i).min(whole.width.max(whole.height)))
                .find_map(|s| {
                    costs
                        .of(k, s.min(whole.width), s.min(whole.height))
                        .map(|c| c.cycles as f64 * (c.width * c.height) as f64)
                });
            c.unwrap_or(1.0).max(1.0)
        })
        .collect();
    let mut cutter = Cutter {
        costs,
        share: share.clone(),
        rng: ChaCha8Rng::seed_from_u64(seed),
        disturb: 0.0,
        rects: vec![Rect::default(); n],
        sram,
    };
    let mut best: Option<((u64, u64), Vec<Rect>)> = None;
    for attempt in 0..TRIES {
        if attempt % 60 == 59 {
            cutter.share.clone_from(&share);
        }
        cutter.disturb = match attempt {
            0..20 => 0.0,
            _ => [0.1, 0.3, 0.6, 1.0][(attempt / 10 % 4) as usize],
        };
        if !cutter.cut(0, n, whole) {
            // too small for someone: evener shares
            cutter.share.iter_mut().for_each(|s| *s = s.powf(0.8));
            continue;
        }
        let choices: Vec<Option<Choice>> = (0..n)
            .map(|k| {
                let r = cutter.rects[k];
                cutter.costs.of(k, r.width, r.height)
            })
            .collect();
        let fits = choices.iter().all(|c| c.is_some_and(|c| c.bytes <= sram));
        let slowest = choices.iter().flatten().map(|c| c.cycles).max().unwrap_or(1);
        if fits {
            let exits: Vec<u32> = choices
                .iter()
                .zip(&cutter.costs.kernels)
                .map(|(c, k)| k.exit(c.expect("it fits").width))
                .collect();
            // within two percent of the interval shorter wires count more
            let steps = ((slowest as f64).ln() * 50.0) as u64;
            let score = (steps, wires(plan, &cutter.rects, &exits));
            if best.as_ref().is_none_or(|(s, _)| score < *s) {
                best = Some((score, cutter.rects.clone()));
            }
        }
        for (k, choice) in choices.iter().enumerate() {
            let factor = match choice {
                None => 1.5,
                Some(c) if c.bytes > sram => (c.bytes as f64 / sram as f64).clamp(1.05, 2.0),
                Some(c) => (c.cycles as f64 / slowest as f64).powf(0.4).max(0.8),
            };
            cutter.share[k] *= factor;
        }
    }
    best.map(|(_, rects)| rects)
}
/// The mesh in characters, at most 80 columns x 40 rows, with a scale and a legend. The traces crate draws a run's kernels in the same
/// way; this map also shows where data enters and leaves, and which rows only pass it on. A character that stands for several PEs shows
/// the kernel that has the most of them.
pub fn show(plan: &Plan, machine: &Machine) -> String {
    const SIGNS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let sign = |i: usize| SIGNS[i % SIGNS.len()] as char;
    let (w, h) = (machine.mesh.width, machine.mesh.height);
    let (sx, sy) = (w.div_ceil(80), h.div_ceil(40));
    let scale = if (sx, sy) == (1, 1) {
        "one character is one PE".into()
    } else {
        format!("one character is {sx}x{sy} PEs")
    };
    let mut out = format!("{} on {}: {w}x{h} PEs, {scale}\n", plan.name, machine.name);
    let rows: Vec<u32> = (0..h).step_by(sy as usize).collect();
    let gutter = rows.last().map_or(1, |y| y.to_string().len());
    let edge = format!("{:gutter$} +{}+\n", "", "-".repeat(w.div_ceil(sx) as usize));
    out += &edge;
    for (line, &y) in rows.iter().enumerate() {
        let number = if line % 8 == 0 || (line + 1 == rows.len() && line % 8 > 2) {
            y.to_string()
        } else {
            String::new()
        };
        out += &format!("{number:>gutter$} |");
        for x in (0..w).step_by(sx as usize) {
            let overlap = |at: u32, size: u32, from: u32, step: u32| {
                (at + size).min(from + step).saturating_sub(at.max(from))
            };
            let share = |r: &Rect| overlap(r.x, r.width, x, sx) * overlap(r.y, r.height, y, sy);
            let most = (0..plan.places.len()).max_by_key(|i| (share(&plan.places[*i]), usize::MAX - i));
            out.push(match most.filter(|i| share(&plan.places[*i]) > 0) {
                Some(i) => sign(i),
                None => '.',
            });
        }
        out += "|\n";
    }
    out += &edge;
    let used: u64 = plan.places.iter().map(|r| r.width as u64 * r.height as u64).sum();
    let (n, s) = (plan.kernels.len(), if plan.kernels.len() == 1 { "" } else { "s" });
    out += &format!(
        "{n} kernel{s} on {used} of {} PEs; . is a PE without a kernel\n",
        w as u64 * h as u64
    );
    if n > SIGNS.len() {
        out += &format!("letters repeat every {} kernels\n", SIGNS.len());
    }
    let ops: Vec<&str> = plan.kernels.iter().map(|k| kernels::of(&k.kind).op()).collect();
    let rects: Vec<String> = plan
        .places
        .iter()
        .map(|r| format!("{}x{} @ ({},{})", r.width, r.height, r.x, r.y))
        .collect();
    let wide = |all: &mut dyn Iterator<Item = usize>| all.max().unwrap_or(0);
    let (name, op) = (
        wide(&mut plan.kernels.iter().map(|k| k.name.chars().count())),
        wide(&mut ops.iter().map(|o| o.len())),
    );
    let rect = wide(&mut rects.iter().map(String::len));
    for (i, k) in plan.kernels.iter().enumerate() {
        out += &format!(
            "{}  {:name$}  {:op$}  {:rect$}  about {} cycles an item\n",
            sign(i),
            k.name,
            ops[i],
            rects[i],
            plan.estimates[i]
        );
    }
    out
}
