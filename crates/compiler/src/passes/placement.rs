//! Rectangles: the mesh is cut in two again and again, in the order of the data, so that the slowest kernel is as fast as can be. For a
//! given pace every kernel has its smallest rectangles; which of them fit together in how much of the mesh is found for all runs of
//! kernels, shorter ones first (the floor plans of Stockmeyer, Information and Control 57, 1983, over all trees of cuts that keep the
//! order). The fastest pace for which the mesh is large enough is found by halving.

use super::stages::context;
use crate::kernels::{self, Context, Implementation};
use crate::plan::*;
use crate::{CompileError, Options, Placement};
use meshloom_simulator::Machine;
use std::collections::HashMap;

/// What a kernel would be in a rectangle: the part that it uses, and its cost.
#[derive(Clone, Copy, Debug)]
struct Choice {
    width: u32,
    height: u32,
    cycles: u64,
    bytes: u64,
}

/// Costs in rectangles that were worked out, for all stages and attempts of a compilation: models repeat their layers, and stages are
/// placed again and again.
#[derive(Default)]
pub struct Known<'m>(Vec<Entry<'m>>);

/// The costs of all kernels that are alike.
struct Entry<'m> {
    kind: Kind,
    context: Context<'m>,
    /// By the part of a rectangle that is used, and by the rectangle.
    used: HashMap<(u32, u32), Option<Choice>>,
    given: HashMap<(u32, u32), Option<Choice>>,
    /// By width, and the step between heights.
    faster: HashMap<(u32, u32), Faster>,
}

/// The heights that make a kernel of some width faster than all lower ones do.
#[derive(Default)]
struct Faster {
    /// Heights that were looked at, in steps.
    tried: u32,
    /// Those that are faster, in steps, and their cycles.
    heights: Vec<(u32, u64)>,
}

impl Known<'_> {
    /// The index of the costs of such kernels.
    fn entry(&mut self, kind: &Kind, context: &Context) -> usize {
        let alike = |e: &Entry| e.context.alike(context) && e.kind.costs_alike(kind);
        self.0.iter().position(alike).unwrap_or(self.0.len())
    }
}

/// Costs of a plan's kernels in rectangles, worked out when asked for.
struct Costs<'a, 'm> {
    kernels: Vec<(&'a Kind, Box<dyn Implementation + 'a>)>,
    contexts: Vec<Context<'m>>,
    /// Of each kernel, where its costs are.
    entries: Vec<usize>,
    known: &'a mut Known<'m>,
}

impl<'a, 'm> Costs<'a, 'm> {
    fn new(plan: &'a Plan, machine: &'m Machine, known: &'a mut Known<'m>) -> Costs<'a, 'm> {
        let mut costs = Costs {
            kernels: plan
                .kernels
                .iter()
                .map(|k| (&k.kind, kernels::of(&k.kind)))
                .collect(),
            contexts: (0..plan.kernels.len())
                .map(|k| context(plan, machine, k))
                .collect(),
            entries: Vec::new(),
            known,
        };
        costs.keep_all(false);
        costs
    }

    /// Whether what has to wait for another path has room for all that comes meanwhile.
    fn keep_all(&mut self, all: bool) {
        self.entries.clear();
        for ((kind, _), c) in self.kernels.iter().zip(&mut self.contexts) {
            c.keep_all = all;
            let entry = self.known.entry(kind, c);
            if entry == self.known.0.len() {
                self.known.0.push(Entry {
                    kind: (*kind).clone(),
                    context: c.clone(),
                    used: HashMap::new(),
                    given: HashMap::new(),
                    faster: HashMap::new(),
                });
            }
            self.entries.push(entry);
        }
    }

    fn of(&mut self, k: usize, width: u32, height: u32) -> Option<Choice> {
        let entry = &mut self.known.0[self.entries[k]];
        if let Some(known) = entry.given.get(&(width, height)) {
            return *known;
        }
        let (kernel, c) = (&self.kernels[k].1, &self.contexts[k]);
        let (w, h) = kernel.fit(c, width, height);
        let choice = match w <= width && h <= height {
            true => *entry.used.entry((w, h)).or_insert_with(|| {
                kernel.estimate(c, w, h).map(|e| Choice {
                    width: w,
                    height: h,
                    cycles: e.cycles,
                    bytes: e.bytes,
                })
            }),
            false => None,
        };
        entry.given.insert((width, height), choice);
        choice
    }

    /// The least height, of those up to `most`, at which a kernel of a width takes no more than `pace` cycles and fits `sram` bytes; heights
    /// are in steps of `unit` PEs.
    fn height(
        &mut self,
        k: usize,
        (width, unit): (u32, u32),
        sram: u64,
        pace: u64,
        most: u32,
    ) -> Option<u32> {
        let (entry, at) = (self.entries[k], (width, unit));
        let mut faster = self.known.0[entry].faster.remove(&at).unwrap_or_default();
        while faster.tried < most && faster.heights.last().is_none_or(|(_, cycles)| *cycles > pace) {
            faster.tried += 1;
            let choice = self.of(k, width, faster.tried * unit).filter(|c| c.bytes <= sram);
            if let Some(c) = choice
                && faster.heights.last().is_none_or(|(_, cycles)| c.cycles < *cycles)
            {
                faster.heights.push((faster.tried, c.cycles));
            }
        }
        let enough = faster.heights.partition_point(|(_, cycles)| *cycles > pace);
        let height = faster.heights.get(enough).map(|(h, _)| *h).filter(|h| *h <= most);
        self.known.0[entry].faster.insert(at, faster);
        height
    }
}

/// No height is enough.
const NONE: u32 = u32::MAX;

/// The best ways of cutting a mesh between kernels in their order, for one pace: with which height the kernels i..j get along in a
/// width. Widths and heights are in units of so many PEs.
struct Cutting {
    n: usize,
    width: u32,
    unit: u32,
    /// At (i * (n + 1) + j) * (width + 1) + w.
    heights: Vec<u32>,
}

/// How a rectangle is cut in two.
#[derive(Clone, Copy)]
enum Cut {
    /// The first kernels get the upper part, of this height.
    Stacked(usize, u32),
    /// The first kernels get the left part, of this width.
    Beside(usize, u32),
}

impl Cutting {
    fn at(&self, i: usize, j: usize, w: u32) -> usize {
        (i * (self.n + 1) + j) * (self.width as usize + 1) + w as usize
    }

    fn height(&self, i: usize, j: usize, w: u32) -> u32 {
        self.heights[self.at(i, j, w)]
    }

    /// All heights at which no kernel takes more than `pace` cycles and all fit their SRAM.
    fn new(costs: &mut Costs, sram: u64, (width, height, unit): (u32, u32, u32), pace: u64) -> Cutting {
        let n = costs.kernels.len();
        let mut all = Cutting {
            n,
            width,
            unit,
            heights: vec![NONE; (n + 1) * (n + 1) * (width as usize + 1)],
        };
        for k in 0..n {
            let mut least = NONE;
            for w in 1..=width {
                // a wider rectangle needs no more rows
                let enough = costs.height(k, (w * unit, unit), sram, pace, height.min(least));
                least = enough.unwrap_or(least);
                let at = all.at(k, k + 1, w);
                all.heights[at] = least;
            }
        }
        for span in 2..=n {
            for i in 0..=n - span {
                let least = all.least(i, i + span);
                let at = all.at(i, i + span, 0);
                for (to, h) in all.heights[at..].iter_mut().zip(least) {
                    *to = if h <= height { h } else { NONE };
                }
            }
        }
        all
    }

    /// For each width, the least height of all ways to cut it between the kernels i..j. A wider part is no higher: so of the two parts
    /// beside each other the first one gets no narrower as both get wider.
    fn least(&self, i: usize, j: usize) -> Vec<u32> {
        let n = self.width as usize;
        let mut least = vec![NONE; n + 1];
        for k in i + 1..j {
            let (a, b) = (
                &self.heights[self.at(i, k, 0)..],
                &self.heights[self.at(k, j, 0)..],
            );
            let mut first = 1;
            for w in 1..=n {
                least[w] = least[w].min(a[w].saturating_add(b[w]));
                while first + 1 < w && a[first] > b[w - first] {
                    first += 1;
                }
                for f in [first - 1, first] {
                    if (1..w).contains(&f) {
                        least[w] = least[w].min(a[f].max(b[w - f]));
                    }
                }
            }
        }
        least
    }

    /// The ways to cut a width between the kernels i..j, each with the height that it needs.
    fn ways(&self, i: usize, j: usize, w: u32) -> impl Iterator<Item = (u32, Cut)> + '_ {
        (i + 1..j).flat_map(move |k| {
            let (a, b) = (self.height(i, k, w), self.height(k, j, w));
            let stacked = (a.saturating_add(b), Cut::Stacked(k, a));
            let beside = (1..w).map(move |first| {
                let h = self.height(i, k, first).max(self.height(k, j, w - first));
                (h, Cut::Beside(k, first))
            });
            std::iter::once(stacked).chain(beside)
        })
    }

    /// Gives a rectangle to the kernels i..j; room that is left goes to the last of them.
    fn give(&self, i: usize, j: usize, at: Rect, rects: &mut [Rect]) {
        if j == i + 1 {
            rects[i] = at;
            return;
        }
        let cut = self.ways(i, j, at.width / self.unit).min_by_key(|(h, _)| *h);
        match cut.map(|(_, cut)| cut) {
            Some(Cut::Stacked(k, h)) => {
                let h = h * self.unit;
                self.give(i, k, Rect { height: h, ..at }, rects);
                let rest = Rect {
                    y: at.y + h,
                    height: at.height - h,
                    ..at
                };
                self.give(k, j, rest, rects);
            }
            Some(Cut::Beside(k, w)) => {
                let w = w * self.unit;
                self.give(i, k, Rect { width: w, ..at }, rects);
                let rest = Rect {
                    x: at.x + w,
                    width: at.width - w,
                    ..at
                };
                self.give(k, j, rest, rects);
            }
            None => {}
        }
    }
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

/// Equal parts of the mesh, in the order of the data, in so many rows of strips.
fn strips(n: u32, rows: u32, machine: &Machine) -> Vec<Rect> {
    let Rect {
        x: x0,
        y: y0,
        width: w,
        height: h,
    } = whole(machine);
    let columns = n.div_ceil(rows);
    let rows = n.div_ceil(columns);
    (0..n)
        .map(|i| {
            let (r, c) = (i / columns, i % columns);
            let edge = |i: u32, n: u32, size: u32| (i as u64 * size as u64 / n as u64) as u32;
            let (x, y) = (edge(c, columns, w), edge(r, rows, h));
            Rect {
                x: x0 + x,
                y: y0 + y,
                width: edge(c + 1, columns, w) - x,
                height: edge(r + 1, rows, h) - y,
            }
        })
        .collect()
}

/// The first division into equal parts in which every kernel fits: upright strips, lying ones, then grids.
fn by_strips(machine: &Machine, costs: &mut Costs) -> Option<Vec<Rect>> {
    let n = costs.kernels.len() as u32;
    let sram = machine.pe.sram_bytes as u64;
    std::iter::once(1)
        .chain([n])
        .chain(2..n)
        .map(|rows| strips(n, rows, machine))
        .find(|rects| {
            rects.iter().enumerate().all(|(k, r)| {
                let choice = costs.of(k, r.width, r.height);
                choice.is_some_and(|c| c.bytes <= sram)
            })
        })
}

/// By how much more than the best pace an attempt accepts.
pub const SLACK: [f64; 5] = [0.0, 0.04, 0.08, 0.28, 0.6];

/// Chooses the rectangles and sets `places` and `estimates`; `fixed` gives each kernel's width and height. Attempt 0 is the best pace
/// that is found; a later one, for streams that found no ways, accepts a slower pace ([`SLACK`]) and so comes to another floor plan.
/// `known` is of the same machine.
pub fn run<'m>(
    plan: &mut Plan,
    machine: &'m Machine,
    known: &mut Known<'m>,
    options: &Options,
    fixed: Option<(u32, u32)>,
    attempt: u32,
) -> Result<(), CompileError> {
    let n = plan.kernels.len();
    let slack = SLACK[attempt as usize];
    let (mesh, sram) = (&machine.mesh, machine.pe.sram_bytes as u64);
    let mut most_pes = None;
    let chosen = {
        let mut costs = Costs::new(plan, machine, known);
        let whole = whole(machine);
        for k in 0..n {
            alone_fits(plan, machine, &mut costs, k, fixed)?;
        }
        // the pipeline keeps its pace if whatever waits for another path has room for it
        let ample = if fixed.is_none() && options.placement == Placement::Work && plan.items > 1 {
            costs.keep_all(true);
            let found = by_work(machine, &mut costs, slack);
            costs.keep_all(false);
            found
        } else {
            None
        };
        match (fixed, options.placement) {
            _ if ample.is_some() => ample,
            (Some((width, height)), _) => Some(vec![
                Rect {
                    width,
                    height,
                    ..whole
                };
                1
            ]),
            (None, Placement::Strips) => by_strips(machine, &mut costs),
            (None, Placement::Work) => by_work(machine, &mut costs, slack),
        }
        .map(|mut rects| {
            // many small items overlap, so a kernel's pace is all that counts
            if plan.tiles > 1 && fixed.is_none() && options.placement == Placement::Work {
                no_larger(&mut costs, sram, &mut rects);
            }
            rects
        })
        .and_then(|rects| {
            let choices: Option<Vec<Choice>> = rects
                .iter()
                .enumerate()
                .map(|(k, r)| costs.of(k, r.width, r.height).filter(|c| c.bytes <= sram))
                .collect();
            Some((rects, choices?))
        })
        .or_else(|| {
            most_pes = least_areas(machine, &mut costs);
            None
        })
    };
    let Some((rects, choices)) = chosen else {
        return Err(CompileError::DoesNotFit {
            what: format!("the model's {n} kernels, all on the mesh at once"),
            needs: match most_pes {
                Some((sum, k, c)) => format!(
                    "about {sum} PEs, if rectangles left no gaps; most needs kernel {} ({}): {}x{} PEs, {} bytes on its fullest",
                    plan.kernels[k].name,
                    kernels::of(&plan.kernels[k].kind).op(),
                    c.width,
                    c.height,
                    c.bytes
                ),
                None => "more PEs or SRAM than there is room for".into(),
            },
            has: format!(
                "{} PEs of {} bytes on {}: {}x{} beside the first column and row, which are left to streams",
                whole(machine).width as u64 * whole(machine).height as u64,
                machine.pe.sram_bytes,
                machine.name,
                whole(machine).width,
                whole(machine).height
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
            let e = costs.kernels[k].1.estimate(&costs.contexts[k], c.width, c.height);
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
            has: match fixed {
                Some(_) => format!("{w}x{h} PEs"),
                None => format!(
                    "{w}x{h} PEs on {}, whose first column and row are left to streams",
                    machine.name
                ),
            },
            helps: format!(
                "--set mesh.width={} --set mesh.height={}",
                (w + 1).max(2) * 2,
                (h + 1) * 2
            ),
        }),
    }
}

/// Parts of the mesh's longer side between which cuts are made.
const GRID: u32 = 64;

/// The fastest pace at which the kernels, in their order, can share the mesh by cutting it in two again and again; `slack` is by how much
/// slower it may be, for another way of cutting.
fn by_work(machine: &Machine, costs: &mut Costs, slack: f64) -> Option<Vec<Rect>> {
    let n = costs.kernels.len();
    let sram = machine.pe.sram_bytes as u64;
    let whole = whole(machine);
    let unit = whole.width.max(whole.height).div_ceil(GRID);
    let grid = (whole.width / unit, whole.height / unit, unit);
    let get = |costs: &mut Costs, pace: u64| {
        let cutting = Cutting::new(costs, sram, grid, pace);
        (cutting.height(0, n, grid.0) != NONE).then_some(cutting)
    };
    // no kernel is faster than on the whole mesh; one that does next to nothing may be expected to take no cycle at all
    let mut least = (0..n)
        .filter_map(|k| costs.of(k, whole.width, whole.height).map(|c| c.cycles))
        .max()?
        .max(1);
    let mut most = least;
    while get(costs, most).is_none() {
        (least, most) = (most, most.saturating_mul(2));
        if most > 1 << 44 {
            return None;
        }
    }
    while most - least > (least / 200).max(1) {
        let middle = least + (most - least) / 2;
        match get(costs, middle) {
            Some(_) => most = middle,
            None => least = middle,
        }
    }
    let cutting = get(costs, most + (most as f64 * slack) as u64)?;
    let mut rects = vec![Rect::default(); n];
    cutting.give(0, n, whole, &mut rects);
    Some(rects)
}

/// Makes rectangles as small as they can be without a slower pace of all kernels together: what is bound by its streams gains nothing from
/// more PEs, but its weights and sums have longer ways.
fn no_larger(costs: &mut Costs, sram: u64, rects: &mut [Rect]) {
    let cycles = |costs: &mut Costs, k: usize, r: Rect| costs.of(k, r.width, r.height).map(|c| c.cycles);
    let Some(pace) = (0..rects.len())
        .map(|k| cycles(costs, k, rects[k]))
        .collect::<Option<Vec<_>>>()
        .and_then(|all| all.into_iter().max())
    else {
        return;
    };
    for (k, rect) in rects.iter_mut().enumerate() {
        let mut least: Option<Rect> = None;
        let step = (rect.width / GRID).max(1);
        for width in (1..=rect.width).step_by(step as usize) {
            // higher rectangles are no slower
            let enough = |costs: &mut Costs, height: u32| {
                let choice = costs.of(k, width, height);
                choice.is_some_and(|c| c.bytes <= sram && c.cycles <= pace)
            };
            let (mut low, mut high) = (0, rect.height);
            if !enough(costs, high) {
                continue;
            }
            while high - low > 1 {
                let middle = low + (high - low) / 2;
                match enough(costs, middle) {
                    true => high = middle,
                    false => low = middle,
                }
            }
            if least.is_none_or(|l| width * high < l.width * l.height) {
                least = Some(Rect {
                    width,
                    height: high,
                    ..*rect
                });
            }
        }
        *rect = least.unwrap_or(*rect);
    }
}

/// The PEs that all kernels need together, each in the smallest rectangle that holds it, and the kernel that needs most of them with that
/// rectangle. Rectangles of twice the width of the one before are tried, each as low as can be.
fn least_areas(machine: &Machine, costs: &mut Costs) -> Option<(u64, usize, Choice)> {
    let sram = machine.pe.sram_bytes as u64;
    let whole = whole(machine);
    let area = |c: &Choice| c.width as u64 * c.height as u64;
    let mut all: Vec<(usize, Choice)> = Vec::new();
    for k in 0..costs.kernels.len() {
        let mut least: Option<Choice> = None;
        let widths = std::iter::successors(Some(1), |w| (*w < whole.width).then(|| (w * 2).min(whole.width)));
        for w in widths {
            let mut fits = |h: u32| costs.of(k, w, h).filter(|c| c.bytes <= sram);
            // a higher rectangle needs no more bytes a PE
            let (mut low, mut high) = (1, whole.height);
            if fits(high).is_none() {
                continue;
            }
            while low < high {
                let middle = low + (high - low) / 2;
                match fits(middle) {
                    Some(_) => high = middle,
                    None => low = middle + 1,
                }
            }
            let here = fits(high);
            if let Some(c) = here
                && least.is_none_or(|l| area(&c) < area(&l))
            {
                least = here;
            }
        }
        all.push((k, least?));
    }
    let sum = all.iter().map(|(_, c)| area(c)).sum();
    let (k, largest) = all.into_iter().max_by_key(|(k, c)| (area(c), usize::MAX - k))?;
    Some((sum, k, largest))
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
            "{}  {:name$}  {:op$}  {:rect$}  about {} cycles {}\n",
            sign(i),
            k.name,
            ops[i],
            rects[i],
            plan.estimates[i],
            plan.turn()
        );
    }
    out
}
