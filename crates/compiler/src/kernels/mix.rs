//! Matrix products and convolutions, of one tensor or the sum over several: input features over the columns of the rectangle, output
//! features over its rows, weights resident.
//!
//! Each column belongs to one input and takes some of its features, which come down the column to all rows at once. As features arrive,
//! a chunk at a time, each PE adds their products to its accumulators: dense weights by one instruction a chunk and tap (an outer
//! product), lists of (index, value) by one AXPY a stored weight. At the end the partial sums are added along the row from west to east;
//! the last column adds the bias (it starts from it), applies what is fused, and sends the row's output features.
//!
//! Where several items stream through, operators with one tap work in a *steady* form if SRAM has room for it: all products of an item are
//! one instruction of a microthread, and there are two sets of accumulators. Sums leave at once, by a microthread of higher priority, and
//! do not hold up the next item while they wait for their neighbours; one of lower priority clears accumulators in the slots that lie idle
//! while a stored weight's product is issued. What does not depend on the item is set once.

use super::streams::{Role, role, sums_along_rows};
use super::*;
use std::cell::OnceCell;
use std::sync::Arc;

pub(super) struct MixKernel<'a> {
    mix: &'a Arc<Mix>,
    sums: Vec<OnceCell<Sums>>,
}

/// Sums over the weights [output feature][input feature] before a place, to know any rectangle's work at once.
struct Sums {
    /// (k + 1) entries a row, m + 1 rows: cycles of products.
    cycles: Vec<u64>,
    /// The same for stored weights.
    stored: Vec<u32>,
    /// Entries of a row.
    width: usize,
}

impl Sums {
    fn of<T: Copy + std::ops::Add<Output = T> + std::ops::Sub<Output = T>>(
        all: &[T],
        width: usize,
        (m0, m1): (usize, usize),
        (k0, k1): (usize, usize),
    ) -> T {
        all[m1 * width + k1] + all[m0 * width + k0] - all[m0 * width + k1] - all[m1 * width + k0]
    }
}

/// A column of the rectangle: which lane of which input it takes from, and which features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Column {
    term: usize,
    lane: usize,
    from: usize,
    to: usize,
}

/// How the work is cut in a rectangle.
struct Cut {
    columns: Vec<Column>,
    /// First output feature of each row, and the end.
    rows: Vec<usize>,
    /// Features of a chunk, for each input.
    chunk: Vec<usize>,
    /// Results leave from a buffer of their own, so that the next item can begin.
    staged: bool,
    /// For each input, items whose features have room in its columns: those worked on, and those that come in meanwhile or wait for
    /// another input that takes a longer way.
    slots: Vec<usize>,
    /// The steady form: one chunk an item, and two sets of accumulators; then every input has two slots, and `staged` does not hold.
    steady: bool,
}

/// The microthreads, by priority: what arrives, sums and results, and in the steady form products and the clearing of accumulators.
const RECEIVE: u8 = 1;
const SUMS: u8 = 2;
const PRODUCTS: u8 = 3;
const CLEAR: u8 = 4;

/// What the PEs of a rectangle have of an operator's features.
pub(crate) struct Shares {
    /// Places in the output stream: first one of each row, and the end.
    pub(crate) rows: Vec<usize>,
    /// Of each column, which input it takes from, and its places in that stream: first, and last + 1.
    pub(crate) columns: Vec<(usize, usize, usize)>,
}

/// The shares of a rectangle that [`Implementation::fit`] gave. They do not depend on the order of features in the streams.
pub(crate) fn shares(mix: &Arc<Mix>, c: &Context, width: u32, height: u32) -> Option<Shares> {
    let cut = MixKernel::new(mix).cut(c, width, height)?;
    Some(Shares {
        rows: cut.rows,
        columns: cut.columns.iter().map(|c| (c.term, c.from, c.to)).collect(),
    })
}

impl Cut {
    fn outputs(&self, row: usize) -> usize {
        self.rows[row + 1] - self.rows[row]
    }

    fn widest(&self) -> usize {
        (0..self.rows.len() - 1)
            .map(|r| self.outputs(r))
            .max()
            .unwrap_or(0)
    }

    fn features(&self, column: usize) -> usize {
        self.columns[column].to - self.columns[column].from
    }
}

impl<'a> MixKernel<'a> {
    pub(super) fn new(mix: &'a Arc<Mix>) -> MixKernel<'a> {
        let sums = mix.terms.iter().map(|_| OnceCell::new()).collect();
        MixKernel { mix, sums }
    }
}

impl MixKernel<'_> {
    fn m(&self) -> usize {
        self.mix.terms[0].m
    }

    /// Multiply-adds of one weight at all its positions, over all taps.
    fn work(term: &Linear) -> u64 {
        term.taps.iter().map(|t| term.hits(t) as u64).sum::<u64>().max(1)
    }

    /// Columns for each lane of each input: as many as hold its features in half of their SRAM, and the others to where a column has most
    /// to do.
    fn allot(&self, c: &Context, width: usize) -> Option<Vec<(usize, usize, usize)>> {
        // term, lane, columns
        let features = |t: usize| self.mix.terms[t].k / c.inputs[t].lanes;
        let waiting = self.slots(c, 1);
        let least = |t: usize| {
            let item = features(t) as u64 * Context::pitch(c.ty, c.inputs[t].length()) as u64;
            let bytes = item * waiting[t] as u64;
            (bytes.div_ceil(c.machine.pe.sram_bytes as u64 / 2) as usize).clamp(1, features(t))
        };
        let mut all: Vec<(usize, usize, usize)> = (0..self.mix.terms.len())
            .flat_map(|t| (0..c.inputs[t].lanes).map(move |lane| (t, lane)))
            .map(|(t, lane)| (t, lane, least(t)))
            .collect();
        let needed = all.iter().map(|a| a.2).sum::<usize>();
        if width < needed {
            return None;
        }
        let load = |t: usize, n: usize| features(t).div_ceil(n) as u64 * Self::work(&self.mix.terms[t]);
        for _ in needed..width {
            let open = all
                .iter_mut()
                .enumerate()
                .filter(|(_, (t, _, n))| *n < features(*t));
            match open.max_by_key(|(i, (t, _, n))| (load(*t, *n), usize::MAX - i)) {
                Some((_, lane)) => lane.2 += 1,
                None => break,
            }
        }
        all.iter_mut()
            .for_each(|(t, _, n)| *n = fewest(features(*t), *n as u32) as usize);
        Some(all)
    }

    /// The largest number of rows, at most `height`, that makes a row's share smaller; each lane of the output needs a row.
    fn rows(&self, c: &Context, height: u32) -> u32 {
        let lanes = c.output.lanes as u32;
        fewest(self.m() / lanes as usize, height / lanes) * lanes
    }

    /// Room for `least` items of each input, and for those of a shorter way that wait for the longest one.
    fn slots(&self, c: &Context, least: usize) -> Vec<usize> {
        let longest = c.slack.iter().min().copied().unwrap_or(0);
        let most = c.items.min(c.machine.pe.move_queue as usize).max(1);
        c.slack.iter().map(|s| (least + s - longest).min(most)).collect()
    }

    fn cut(&self, c: &Context, width: u32, height: u32) -> Option<Cut> {
        let allotted = self.allot(c, width as usize)?;
        if allotted.iter().map(|a| a.2).sum::<usize>() != width as usize || self.rows(c, height) != height {
            return None;
        }
        let mut columns = Vec::new();
        for (term, lane, n) in allotted {
            let (first, last) = c.inputs[term].lane(lane);
            let starts = balanced(last - first, n);
            columns.extend(starts.windows(2).map(|s| Column {
                term,
                lane,
                from: first + s[0],
                to: first + s[1],
            }));
        }
        let lanes = c.output.lanes;
        let mut rows = vec![0];
        for lane in 0..lanes {
            let (first, last) = c.output.lane(lane);
            let n = lane_row(lane + 1, lanes, height) - lane_row(lane, lanes, height);
            rows.extend(balanced(last - first, n as usize)[1..].iter().map(|r| first + r));
        }
        let outputs = rows.windows(2).map(|r| r[1] - r[0]).max().unwrap_or(1);
        let chunk = |term: usize| {
            let linear = &self.mix.terms[term];
            // small chunks let work begin early; an instruction of a few hundred steps hides its own cost
            let total = if linear.lists() {
                self.sums(c, term).stored.last().copied().unwrap_or(0) as f64
                    / linear.taps.len().max(1) as f64
            } else {
                (linear.m * linear.k) as f64
            };
            let density = total / (linear.m * linear.k).max(1) as f64;
            let tap = linear.taps.iter().map(|t| linear.hits(t)).max().unwrap_or(1);
            let steps = (outputs * tap) as f64 * density.max(0.02);
            let widest = columns
                .iter()
                .filter(|c| c.term == term)
                .map(|c| c.to - c.from)
                .max();
            ((256.0 / steps).ceil() as usize)
                .clamp(1, widest.unwrap_or(1).max(1))
                .min((65535 / outputs.max(1)).max(1))
        };
        let mut cut = Cut {
            chunk: (0..self.mix.terms.len()).map(chunk).collect(),
            columns,
            rows,
            staged: true,
            slots: Vec::new(),
            steady: false,
        };
        let fits = |cut: &Cut| self.fullest(c, cut).0 <= c.machine.pe.sram_bytes as u64;
        // one that comes in ahead, if there is SRAM; those that wait for another input in any case, if the pace is to be kept
        cut.slots = self.slots(c, 2);
        if let Some(steady) = self.steady(c, &cut).filter(fits) {
            return Some(steady);
        }
        if !fits(&cut) {
            cut.slots = self.slots(c, 1);
        }
        if !fits(&cut) && !c.keep_all {
            cut.slots.fill(1);
            cut.staged = fits(&cut);
        }
        Some(cut)
    }

    /// The steady form of a cut, if the operator and the machine allow it.
    fn steady(&self, c: &Context, cut: &Cut) -> Option<Cut> {
        let widest = |term: usize| {
            let of = cut.columns.iter().filter(|c| c.term == term);
            of.map(|c| c.to - c.from).max().unwrap_or(1)
        };
        // an index of a list has 16 bits; dense products of several samples are several instructions
        let one = |(i, t): (usize, &Linear)| {
            t.taps.len() == 1 && (t.lists() || t.samples == 1) && widest(i) * cut.widest() <= 65535
        };
        let possible = c.items > 1
            && cut.slots.iter().all(|n| *n == 2)
            && c.machine.pe.threads > CLEAR as u32
            && c.machine.pe.move_queue >= 2
            && self.mix.terms.iter().enumerate().all(one);
        possible.then(|| Cut {
            columns: cut.columns.clone(),
            rows: cut.rows.clone(),
            chunk: (0..self.mix.terms.len()).map(widest).collect(),
            slots: cut.slots.clone(),
            staged: false,
            steady: true,
        })
    }

    /// Weights of one PE as words: bias (where the sum ends), then the stored weights. Also where the list's values begin, in bytes.
    fn image(&self, c: &Context, cut: &Cut, column: usize, row: usize) -> (Vec<u32>, usize) {
        let Column { term, from, to, .. } = cut.columns[column];
        let linear = &self.mix.terms[term];
        let order = c.output.order.as_deref();
        let input = c.inputs[term].order.as_deref();
        let outputs: Vec<usize> = (cut.rows[row]..cut.rows[row + 1])
            .map(|m| order.map_or(m, |o| o[m]))
            .collect();
        let features: Vec<usize> = (from..to).map(|k| input.map_or(k, |o| o[k])).collect();
        let mut words = Vec::new();
        if column + 1 == cut.columns.len() {
            let bias = |m: &usize| self.mix.bias.as_ref().map_or(0.0f32, |b| b[*m]).to_bits();
            words.extend(outputs.iter().map(bias));
            words.resize(bias_bytes(cut) / 4, 0);
        }
        let (mut counts, mut index, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for chunk in features.chunks(cut.chunk[term]) {
            for tap in &linear.taps {
                let before = values.len();
                for (i, &k) in chunk.iter().enumerate() {
                    for (j, &m) in outputs.iter().enumerate() {
                        if !linear.lists() {
                            values.push(linear.weight(m, k, tap.index).unwrap_or(0.0));
                        } else if let Some(w) = linear.stored(m, k, tap.index) {
                            index.push((i * outputs.len() + j) as u16);
                            values.push(w);
                        }
                    }
                }
                counts.push((values.len() - before) as u16);
            }
        }
        if linear.lists() {
            words.extend(pack_u16(&counts));
            words.extend(pack_u16(&index));
        }
        let at = words.len() * 4;
        words.extend(pack(c.ty, &values));
        (words, at)
    }

    /// Cycles of a tap's products with one weight.
    fn products(&self, c: &Context, linear: &Linear, tap: &Tap) -> u64 {
        let issue = if linear.lists() {
            c.machine.pe.cost.issue as u64
        } else {
            0
        };
        (tap.rows * linear.samples) as u64 * (tap.columns as u64).div_ceil(c.multiply_lanes()) + issue
    }

    /// Sums over a term's weights in the order of the streams; made once, for all rectangles.
    fn sums(&self, c: &Context, term: usize) -> &Sums {
        self.sums[term].get_or_init(|| {
            let linear = &self.mix.terms[term];
            let taps: Vec<(usize, u64)> = linear
                .taps
                .iter()
                .map(|t| (t.index, self.products(c, linear, t)))
                .collect();
            let width = linear.k + 1;
            let mut cycles = vec![0u64; width * (linear.m + 1)];
            let mut stored = vec![0u32; width * (linear.m + 1)];
            let (outputs, inputs) = (c.output.order.as_deref(), c.inputs[term].order.as_deref());
            for m in 0..linear.m {
                let (mut row_cycles, mut row_stored) = (0, 0);
                for k in 0..linear.k {
                    let (om, ok) = (outputs.map_or(m, |o| o[m]), inputs.map_or(k, |o| o[k]));
                    for (index, products) in &taps {
                        if linear.stored(om, ok, *index).is_some() {
                            row_cycles += products;
                            row_stored += 1;
                        }
                    }
                    let at = (m + 1) * width + k + 1;
                    cycles[at] = cycles[at - width] + row_cycles;
                    stored[at] = stored[at - width] + row_stored;
                }
            }
            Sums {
                cycles,
                stored,
                width,
            }
        })
    }

    /// Multiplication cycles and stored weights of one PE.
    fn load(&self, c: &Context, cut: &Cut, column: usize, row: usize) -> (u64, u64) {
        let Column { term, from, to, .. } = cut.columns[column];
        let linear = &self.mix.terms[term];
        if linear.lists() {
            let sums = self.sums(c, term);
            let rows = (cut.rows[row], cut.rows[row + 1]);
            let cycles = Sums::of(&sums.cycles, sums.width, rows, (from, to));
            let stored = Sums::of(&sums.stored, sums.width, rows, (from, to));
            (cycles, stored as u64)
        } else {
            let weights = (cut.outputs(row) * (to - from)) as u64;
            let products: u64 = linear.taps.iter().map(|t| self.products(c, linear, t)).sum();
            (weights * products, weights * linear.taps.len() as u64)
        }
    }

    /// SRAM bytes of the fullest PE, and which it is.
    fn fullest(&self, c: &Context, cut: &Cut) -> (u64, (u32, u32)) {
        let length_out = c.output.length();
        let outputs = cut.widest() as u64;
        let y = outputs * Context::pitch(Ty::F32, length_out) as u64;
        let mut fullest = (0, (0, 0));
        for column in 0..cut.columns.len() {
            let term = cut.columns[column].term;
            let linear = &self.mix.terms[term];
            let widest = (0..cut.columns.len())
                .filter(|i| cut.columns[*i].term == term)
                .map(|i| cut.features(i))
                .max()
                .unwrap_or(0);
            let x = widest as u64 * Context::pitch(c.ty, c.inputs[term].length()) as u64;
            let (stored, row) = (0..cut.rows.len() - 1)
                .map(|r| (self.load(c, cut, column, r).1, r))
                .max_by_key(|(n, r)| (*n, usize::MAX - r))
                .unwrap_or((0, 0));
            let chunks = (cut.features(column).div_ceil(cut.chunk[term]) * linear.taps.len()) as u64;
            let weights = if linear.lists() {
                stored * (2 + c.ty.bytes() as u64) + chunks * 2 + 8
            } else {
                stored * c.ty.bytes() as u64 + 4
            };
            let mut bytes = x * cut.slots[term] as u64 + y * (1 + cut.steady as u64) + weights;
            if column + 1 == cut.columns.len() {
                bytes += bias_bytes(cut) as u64 + if cut.staged { y } else { 0 };
            }
            let code = (90 + linear.taps.len() as u64 * 12) * c.machine.pe.instruction_bytes as u64;
            bytes += code + 128;
            if bytes > fullest.0 {
                fullest = (bytes, (column as u32, row as u32));
            }
        }
        fullest
    }
}

fn bias_bytes(cut: &Cut) -> usize {
    (cut.widest() * 4).next_multiple_of(32)
}

impl Implementation for MixKernel<'_> {
    fn op(&self) -> &'static str {
        let plain = |t: &Linear| t.window == 1 && t.input.0 == 1;
        if self.mix.terms.iter().all(plain) {
            "matmul"
        } else {
            "conv"
        }
    }

    fn about(&self) -> &'static str {
        "matrix products or convolutions, summed: inputs over columns, outputs over rows, weights resident; dense or as lists of nonzeros"
    }

    fn fit(&self, c: &Context, width: u32, height: u32) -> (u32, u32) {
        let columns = self.allot(c, width as usize);
        let width = columns.map_or(u32::MAX, |a| a.iter().map(|a| a.2 as u32).sum());
        (width, self.rows(c, height.max(c.output.lanes as u32)))
    }

    fn estimate(&self, c: &Context, width: u32, height: u32) -> Option<Estimate> {
        let cut = self.cut(c, width, height)?;
        let cost = &c.machine.pe.cost;
        let length_out = c.output.length() as u64;
        let mut slowest = 0;
        for (i, column) in cut.columns.iter().enumerate() {
            let linear = &self.mix.terms[column.term];
            let features = column.to - column.from;
            let chunks = features.div_ceil(cut.chunk[column.term]) as u64;
            let per_instruction =
                (3 * cost.descriptor + cost.issue + 10 * cost.add) as u64 * linear.samples.max(1) as u64;
            let outputs = cut.widest() as u64;
            let fixed = c.move_slots(features, c.inputs[column.term].length())
                + chunks * linear.taps.len() as u64 * per_instruction
                + outputs * length_out * 3 / 2
                + if i + 1 == cut.columns.len() {
                    outputs * length_out
                } else {
                    0
                };
            let loads = (0..cut.rows.len() - 1).map(|r| self.load(c, &cut, i, r));
            let (busy, stored) = loads.max().unwrap_or_default();
            // accumulators are cleared while products are issued
            let hidden = match cut.steady && linear.lists() {
                true => (stored * cost.issue as u64).min(outputs * length_out / 2),
                false => 0,
            };
            // what can't come in, or leave, meanwhile takes its time between items
            let input = &c.inputs[column.term];
            let between = match c.items > 1 && cut.slots[column.term] == 1 {
                true => c.move_slots(input.features / input.lanes, input.length()),
                false => 0,
            };
            let waits = c.items > 1 && !cut.staged && !cut.steady && i + 1 == cut.columns.len();
            let leaving = match waits {
                true => c.move_slots(c.output.features / c.output.lanes, c.output.length()),
                false => 0,
            };
            slowest = slowest.max(busy + fixed - hidden + between + leaving);
        }
        // partial sums pass the columns one after another
        let hop = (2 * c.machine.router.ramp_cycles + c.machine.router.hop_cycles + 1) as u64;
        let (bytes, fullest) = self.fullest(c, &cut);
        Some(Estimate {
            cycles: (slowest + hop * width as u64).max(c.stream_cycles()),
            bytes,
            fullest,
        })
    }

    fn exit(&self, width: u32) -> u32 {
        width - 1
    }

    fn emit(&self, name: &str, c: &Context, width: u32, height: u32) -> Emitted {
        let cut = self.cut(c, width, height).expect("the rectangle was estimated");
        let w = width as usize;
        let mut region = region(name, width, height);
        let images: Vec<Vec<(Vec<u32>, usize)>> = (0..height as usize)
            .map(|r| (0..w).map(|i| self.image(c, &cut, i, r)).collect())
            .collect();
        let mut entries = Vec::new();
        for (i, layout) in c.inputs.iter().enumerate() {
            let parts: Vec<Option<Part>> = (0..height)
                .flat_map(|_| &cut.columns)
                .map(|column| (column.term == i).then_some(Part::Features(column.from, column.to)))
                .collect();
            let stream = format!("{name}: input {i}");
            let lanes = (0..layout.lanes).map(|lane| {
                let (entry, color) = ((0, lane_row(lane, layout.lanes, height)), c.input_colors[i][lane]);
                distribute(
                    &mut region,
                    &stream,
                    color,
                    layout,
                    lane,
                    c.per_wavelet(),
                    entry,
                    &parts,
                )
            });
            entries.push(lanes.collect());
        }
        sums_along_rows(&mut region, name);
        let stream = format!("{name}: output");
        let lanes = c.output.lanes;
        let exits = (0..lanes)
            .map(|lane| {
                let rows = lane_row(lane, lanes, height)..lane_row(lane + 1, lanes, height);
                collect(
                    &mut region,
                    &stream,
                    c.output_colors[lane],
                    rows,
                    width - 1,
                    |x, _| x + 1 == width,
                )
            })
            .collect();
        // columns of one lane and one part in the sum share their code, in the rows of one lane
        let mut groups: Vec<(usize, usize, Role, Vec<u32>)> = Vec::new();
        for (i, column) in cut.columns.iter().enumerate() {
            let of = (column.term, column.lane, role(i, w));
            match groups.iter_mut().find(|g| (g.0, g.1, g.2) == of) {
                Some(g) => g.3.push(i as u32),
                None => groups.push((of.0, of.1, of.2, vec![i as u32])),
            }
        }
        for (term, lane, role, columns) in groups {
            // only the last column knows lanes of the output
            let parts = if matches!(role, Role::Only | Role::Last(_)) {
                lanes
            } else {
                1
            };
            for part in 0..parts {
                let (from, to) = (lane_row(part, parts, height), lane_row(part + 1, parts, height));
                let at = Lattice {
                    x: columns[0],
                    y: from,
                    nx: columns.len() as u32,
                    ny: to - from,
                    dx: columns.get(1).map_or(1, |second| second - columns[0]),
                    dy: 1,
                };
                let ways = (c.input_colors[term][lane], c.output_colors[part]);
                region
                    .blocks
                    .push(self.block(name, c, &cut, (term, ways), role, at, &images));
            }
        }
        let gives = (0..height)
            .map(|y| Give {
                at: (width - 1, y),
                features: (cut.rows[y as usize], cut.rows[y as usize + 1]),
                turn: None,
                positions: vec![(0, c.output.length())],
            })
            .collect();
        let weights = images.into_iter().flatten().map(|(words, _)| words).collect();
        Emitted {
            region,
            weights,
            entries,
            exits,
            gives,
            streamed: None,
        }
    }
}

impl MixKernel<'_> {
    /// The code of the columns of one input that have the same part in the sum.
    #[allow(clippy::too_many_arguments)] // what distinguishes blocks
    fn block(
        &self,
        name: &str,
        c: &Context,
        cut: &Cut,
        (term, (input_color, output_color)): (usize, (Color, Color)),
        role: Role,
        at: Lattice,
        images: &[Vec<(Vec<u32>, usize)>],
    ) -> Block {
        let linear = &self.mix.terms[term];
        let (length_in, length_out) = (c.inputs[term].length(), c.output.length());
        let (pitch_x, pitch_y) = (
            Context::pitch(c.ty, length_in),
            Context::pitch(Ty::F32, length_out),
        );
        let element = c.ty.bytes() as i64;
        let most = |f: &dyn Fn(usize, usize) -> usize| {
            at.places()
                .map(|(x, y)| f(x as usize, y as usize))
                .max()
                .unwrap_or(0)
        };
        let mut a = c.assembler();
        // memory: X and Y start in different banks (M9)
        let x_bytes = most(&|i, _| cut.features(i)) as u32 * pitch_x as u32;
        let slots = cut.slots[term] as u32;
        let slot_bytes = x_bytes.next_multiple_of(32);
        let x = a.buffer("x", slot_bytes * slots, 0);
        let next = x + if slots > 1 { slot_bytes as i64 } else { 0 };
        let y_bytes = cut.widest() as u32 * pitch_y as u32;
        let y = a.buffer("y", y_bytes, 16);
        let y_next = if cut.steady {
            a.buffer("y.next", y_bytes, 16)
        } else {
            y
        };
        let ends = matches!(role, Role::Only | Role::Last(_));
        let staged = ends && cut.staged;
        let out = if staged { a.buffer("out", y_bytes, 0) } else { 0 };
        let bytes = most(&|i, r| images[r][i].0.len() * 4);
        let weights = a.buffer("weights", bytes as u32, 0);
        let first_weight = weights + if ends { bias_bytes(cut) as i64 } else { 0 };
        let number = |what: &str, f: &dyn Fn(usize, usize) -> i64| {
            let label = format!("{name}.{}.{}.{what}", at.x, at.y);
            table(&label, at, |x, y| f(x as usize, y as usize))
        };
        let words = a.param("words", number("words", &|i, r| images[r][i].0.len() as i64));
        let features = a.param("features", number("features", &|i, _| cut.features(i) as i64));
        let outputs = a.param("outputs", number("outputs", &|_, r| cut.outputs(r) as i64));
        let imm = |n: usize| Val::Imm(n as i64);
        let reg = Val::Reg;
        let (ex, ey) = (pitch_x / element, pitch_y / 4);

        a.task("main", Trigger::Start);
        if bytes > 0 {
            load_weights(&mut a, words, weights);
        }
        // d0, d1: what arrives; d9, d10: accumulators; d14 to d17: sums
        let arriving = [features, imm(length_in)];
        a.memory(0, c.ty, Val::Imm(x), &arriving, &[ex, 1], c.wide());
        a.input(1, input_color, c.ty, &arriving);
        let all = [outputs, imm(length_out)];
        a.memory(9, Ty::F32, Val::Imm(y), &all, &[ey, 1], true);
        if ends {
            a.memory(10, Ty::F32, Val::Imm(weights), &all, &[1, 0], true);
        }
        if let Role::Middle(parity) | Role::Last(parity) = role {
            a.input(14, colors::REDUCE[1 - parity], Ty::F32, &all);
        }
        match role {
            Role::First => a.output(15, colors::REDUCE[0], Ty::F32, &all, false),
            Role::Middle(parity) => a.output(15, colors::REDUCE[parity], Ty::F32, &all, false),
            Role::Only | Role::Last(_) => a.output(16, output_color, c.ty, &all, true),
        }
        if staged {
            a.memory(17, Ty::F32, Val::Imm(out), &all, &[ey, 1], true);
        }
        let start = if ends {
            Operand::Desc(10)
        } else {
            Operand::Imm(0.0)
        };
        if cut.steady {
            let count = a.param("count", number("count", &|i, r| self.load(c, cut, i, r).1 as i64));
            let index = a.param("index", number("index", &|_, _| first_weight + 4));
            let values = a.param(
                "values",
                number("values", &|i, r| weights + images[r][i].1 as i64),
            );
            let tap = &linear.taps[0];
            let product = self.set_up(
                &mut a,
                c,
                linear,
                tap,
                outputs,
                features,
                (ex, ey),
                [y, x, first_weight],
                List::Memory {
                    index,
                    value: values,
                    count,
                    ty: c.ty,
                },
            );
            let bases = [x, next, y, y_next, 4 * tap.y as i64, element * tap.x as i64];
            self.steady_items(&mut a, c, role, product, (features, length_in), start, bases);
            return a.finish(at);
        }
        a.emit(Instr::Set(0, imm(c.items)));
        a.emit(Instr::Set(1, Val::Imm(0)));
        // r13 X of this item, r14 items still to be taken in; each takes the place that was worked on last
        a.emit(Instr::Set(13, Val::Imm(x)));
        a.emit(Instr::Set(14, imm(c.items.saturating_sub(slots as usize))));
        for slot in 0..(slots as usize).min(c.items) {
            if slot > 0 {
                a.emit(Instr::Advance(0, Val::Imm(slot_bytes as i64)));
            }
            a.start(RECEIVE, Op::Mov, 0, Operand::Desc(1), None, Count::None);
        }
        let item = a.here("item");
        a.map(Op::Mov, 9, start, None, Count::None);
        // r1 elements waited for, r2 X, r3 weights, r4 features left, r5 features of this chunk
        a.emit(Instr::Set(2, reg(13)));
        a.emit(Instr::Set(4, features));
        if linear.lists() {
            // r7 indices, r8 values, r10 counts
            let counts = |i: usize| {
                (cut.features(i).div_ceil(cut.chunk[term]) * linear.taps.len()).div_ceil(2) as i64 * 4
            };
            let index = a.param("index", number("index", &|i, _| first_weight + counts(i)));
            let values = a.param(
                "values",
                number("values", &|i, r| weights + images[r][i].1 as i64),
            );
            a.emit(Instr::Set(10, Val::Imm(first_weight)));
            a.emit(Instr::Set(7, index));
            a.emit(Instr::Set(8, values));
        } else {
            a.emit(Instr::Set(3, Val::Imm(first_weight)));
        }
        let chunk = a.here("chunk");
        let full = a.label("full");
        a.emit(Instr::Set(5, imm(cut.chunk[term])));
        a.branch(Cond::Ge, reg(4), reg(5), full);
        a.emit(Instr::Add(5, reg(4), Val::Imm(0)));
        a.bind(full);
        a.emit(Instr::Mul(9, reg(5), imm(length_in)));
        a.emit(Instr::Add(1, reg(1), reg(9)));
        a.emit(Instr::Wait(RECEIVE, Some(reg(1))));
        if !linear.lists() {
            a.emit(Instr::Mul(6, reg(5), outputs));
            a.emit(Instr::Mul(6, reg(6), Val::Imm(element)));
        }
        for tap in &linear.taps {
            self.tap(&mut a, c, linear, tap, y, outputs, (ex, ey));
        }
        a.emit(Instr::Mul(9, reg(5), Val::Imm(pitch_x)));
        a.emit(Instr::Add(2, reg(2), reg(9)));
        a.emit(Instr::Sub(4, reg(4), reg(5)));
        a.branch(Cond::Ne, reg(4), Val::Imm(0), chunk);
        if c.items > slots as usize {
            let none = a.label("none");
            a.branch(Cond::Eq, reg(14), Val::Imm(0), none);
            a.emit(Instr::Base(0, reg(13)));
            a.start(RECEIVE, Op::Mov, 0, Operand::Desc(1), None, Count::None);
            a.emit(Instr::Sub(14, reg(14), Val::Imm(1)));
            a.bind(none);
        }
        if slots > 1 {
            let inside = a.label("inside");
            a.emit(Instr::Add(13, reg(13), Val::Imm(slot_bytes as i64)));
            let end = Val::Imm(x + (slot_bytes * slots) as i64);
            a.branch(Cond::Lt, reg(13), end, inside);
            a.emit(Instr::Set(13, Val::Imm(x)));
            a.bind(inside);
        }
        self.finish_item(&mut a, c, role, None, staged);
        a.emit(Instr::Sub(0, reg(0), Val::Imm(1)));
        a.branch(Cond::Ne, reg(0), Val::Imm(0), item);
        a.emit(Instr::Halt);
        a.finish(at)
    }

    /// The steady form's items, one after another. `bases`: both buffers of features, both of accumulators, and in these the bytes from the
    /// first result and the first feature of the tap on.
    #[allow(clippy::too_many_arguments)] // what the block around it knows
    fn steady_items(
        &self,
        a: &mut Assembler,
        c: &Context,
        role: Role,
        product: Vector,
        (features, length): (Val, usize),
        start: Operand,
        [x, x_next, y, y_next, y_first, x_first]: [i64; 6],
    ) {
        let reg = Val::Reg;
        let swap = |a: &mut Assembler, one: u8, other: u8| {
            a.emit(Instr::Set(15, reg(one)));
            a.emit(Instr::Set(one, reg(other)));
            a.emit(Instr::Set(other, reg(15)));
        };
        let receive = |a: &mut Assembler| a.start(RECEIVE, Op::Mov, 0, Operand::Desc(1), None, Count::None);
        receive(a);
        a.map(Op::Mov, 9, start, None, Count::None);
        // r0 items left, r1 elements waited for, r6 elements an item; this item's and the next one's features r13, r14, and sums r7, r8
        a.emit(Instr::Set(0, Val::Imm(c.items as i64)));
        a.emit(Instr::Mul(6, features, Val::Imm(length as i64)));
        a.emit(Instr::Add(1, reg(6), Val::Imm(0)));
        for (r, base) in [(13, x), (14, x_next), (7, y), (8, y_next)] {
            a.emit(Instr::Set(r, Val::Imm(base)));
        }
        let item = a.here("item");
        a.emit(Instr::Wait(RECEIVE, Some(reg(1))));
        a.emit(Instr::Async(PRODUCTS, product, None));
        let last = a.label("last");
        a.branch(Cond::Eq, reg(0), Val::Imm(1), last);
        a.emit(Instr::Base(0, reg(14)));
        receive(a);
        a.bind(last);
        // the sums of the item before have left their buffer
        a.emit(Instr::Wait(SUMS, None));
        a.emit(Instr::Base(9, reg(8)));
        a.start(CLEAR, Op::Mov, 9, start, None, Count::None);
        // all that the next item needs is ready before this one's sums leave: they have priority over this thread
        a.emit(Instr::Base(9, reg(7)));
        swap(a, 7, 8);
        swap(a, 13, 14);
        a.emit(Instr::Add(15, reg(7), Val::Imm(y_first)));
        a.emit(Instr::Base(11, reg(15)));
        a.emit(Instr::Add(15, reg(13), Val::Imm(x_first)));
        a.emit(Instr::Base(12, reg(15)));
        a.emit(Instr::Add(1, reg(1), reg(6)));
        a.emit(Instr::Sub(0, reg(0), Val::Imm(1)));
        a.emit(Instr::Wait(PRODUCTS, None));
        a.emit(Instr::Wait(CLEAR, None));
        self.finish_item(a, c, role, Some(SUMS), false);
        a.branch(Cond::Ne, reg(0), Val::Imm(0), item);
        a.emit(Instr::Halt);
    }

    /// Hands the partial sums on, or adds them up, applies what is fused and sends the result; by a microthread if one is given.
    fn finish_item(&self, a: &mut Assembler, c: &Context, role: Role, thread: Option<u8>, staged: bool) {
        let sum = Some(Operand::Desc(9));
        let run =
            |a: &mut Assembler, op: Op, dst: u8, from: Operand, other: Option<Operand>, count: Count| {
                match thread {
                    Some(t) => a.start(t, op, dst, from, other, count),
                    None => a.map(op, dst, from, other, count),
                }
            };
        // the result's operation, its second operand and class
        let (op, other, count) = match self.mix.relu {
            true => (Op::Max, Some(Operand::Imm(0.0)), Count::Other),
            false => (Op::Mov, None, Count::None),
        };
        match role {
            Role::First => run(a, Op::Mov, 15, Operand::Desc(9), None, Count::None),
            Role::Middle(_) => run(a, Op::Add, 15, Operand::Desc(14), sum, Count::Reduce),
            Role::Last(_) | Role::Only if staged => {
                // the item before must have left
                a.emit(Instr::Wait(SUMS, None));
                match role {
                    Role::Only => a.map(Op::Mov, 17, Operand::Desc(9), None, Count::None),
                    _ => a.map(Op::Add, 17, Operand::Desc(14), sum, Count::Reduce),
                }
                a.start(SUMS, op, 16, Operand::Desc(17), other, count);
            }
            Role::Last(_) if !self.mix.relu && c.ty == Ty::F32 => {
                run(a, Op::Add, 16, Operand::Desc(14), sum, Count::Reduce);
            }
            Role::Last(_) | Role::Only => {
                if role != Role::Only {
                    run(a, Op::Add, 9, Operand::Desc(14), sum, Count::Reduce);
                }
                run(a, op, 16, Operand::Desc(9), other, count);
            }
        }
    }

    /// Sets the descriptors of all products of one tap with so many features; `bases` are those of the accumulators, the features and, if
    /// they are dense, the weights. Returns the instruction.
    #[allow(clippy::too_many_arguments)] // registers and addresses of the block around it
    fn set_up(
        &self,
        a: &mut Assembler,
        c: &Context,
        linear: &Linear,
        tap: &Tap,
        outputs: Val,
        features: Val,
        (ex, ey): (i64, i64),
        bases: [i64; 3],
        list: List,
    ) -> Vector {
        let element = c.ty.bytes() as i64;
        let imm = |n: usize| Val::Imm(n as i64);
        let ((hi, wi), (ho, wo)) = (linear.input, linear.output);
        let (y, x) = (
            Val::Imm(bases[0] + 4 * tap.y as i64),
            Val::Imm(bases[1] + element * tap.x as i64),
        );
        let (row_y, column_y) = ((tap.steps[0] * wo) as i64, tap.steps[1] as i64);
        let (row, column) = ((tap.strides[0] * wi) as i64, tap.strides[1] as i64);
        if linear.lists() {
            let shape = [imm(linear.samples), imm(tap.rows), imm(tap.columns)];
            a.memory(11, Ty::F32, y, &shape, &[(ho * wo) as i64, row_y, column_y], true);
            a.memory(12, c.ty, x, &shape, &[(hi * wi) as i64, row, column], true);
            return Vector::Axpy {
                y: 11,
                x: 12,
                list,
                modulo: outputs,
                divisor: outputs,
                y_step: Val::Imm(ey * 4),
                x_step: Val::Imm(ex * element),
                count: Count::Mac,
            };
        }
        let shape = [features, outputs, imm(tap.rows), imm(tap.columns)];
        a.memory(11, Ty::F32, y, &shape, &[0, ey, row_y, column_y], true);
        a.memory(12, c.ty, x, &shape, &[ex, 0, row, column], true);
        let strides = vec![outputs, Val::Imm(1), Val::Imm(0), Val::Imm(0)];
        let place = Place::Memory {
            base: Val::Imm(bases[2]),
            strides,
            wide: true,
        };
        a.emit(Instr::Desc(
            13,
            Descriptor {
                ty: c.ty,
                shape: shape.to_vec(),
                place,
            },
        ));
        Vector::Map {
            op: Op::Mac,
            dst: 11,
            a: Operand::Desc(13),
            b: Some(Operand::Desc(12)),
            count: Count::Mac,
        }
    }

    /// The products of one tap with the features of a chunk.
    #[allow(clippy::too_many_arguments)] // registers and addresses of the loop around it
    fn tap(
        &self,
        a: &mut Assembler,
        c: &Context,
        linear: &Linear,
        tap: &Tap,
        y: i64,
        outputs: Val,
        (ex, ey): (i64, i64),
    ) {
        let element = c.ty.bytes() as i64;
        let imm = |n: usize| Val::Imm(n as i64);
        let reg = Val::Reg;
        let ((_, wi), (ho, wo)) = (linear.input, linear.output);
        let row = (tap.strides[0] * wi) as i64;
        let column = tap.strides[1] as i64;
        let (row_y, column_y) = ((tap.steps[0] * wo) as i64, tap.steps[1] as i64);
        let y_at = y + 4 * tap.y as i64;
        if tap.x > 0 {
            a.emit(Instr::Add(11, reg(2), Val::Imm(tap.x as i64 * element)));
        }
        let x_at = reg(if tap.x > 0 { 11 } else { 2 });
        let (sample_x, sample_y) = ((linear.input.0 * wi) as i64, (ho * wo) as i64);
        if linear.lists() {
            let shape = [imm(linear.samples), imm(tap.rows), imm(tap.columns)];
            let strides_y = [sample_y, row_y, column_y];
            a.memory(11, Ty::F32, Val::Imm(y_at), &shape, &strides_y, true);
            a.memory(12, c.ty, x_at, &shape, &[sample_x, row, column], true);
            a.emit(Instr::Load(Word::U16, 6, reg(10), Val::Imm(0)));
            a.emit(Instr::Add(10, reg(10), Val::Imm(2)));
            a.emit(Instr::Vector(Vector::Axpy {
                y: 11,
                x: 12,
                list: List::Memory {
                    index: reg(7),
                    value: reg(8),
                    count: reg(6),
                    ty: c.ty,
                },
                modulo: outputs,
                divisor: outputs,
                y_step: Val::Imm(ey * 4),
                x_step: Val::Imm(ex * element),
                count: Count::Mac,
            }));
            a.emit(Instr::Add(7, reg(7), reg(6)));
            a.emit(Instr::Add(7, reg(7), reg(6)));
            a.emit(Instr::Mul(6, reg(6), Val::Imm(element)));
            a.emit(Instr::Add(8, reg(8), reg(6)));
            return;
        }
        let shape = [reg(5), outputs, imm(tap.rows), imm(tap.columns)];
        a.memory(
            11,
            Ty::F32,
            Val::Imm(y_at),
            &shape,
            &[0, ey, row_y, column_y],
            true,
        );
        a.memory(12, c.ty, x_at, &shape, &[ex, 0, row, column], true);
        let strides = vec![outputs, Val::Imm(1), Val::Imm(0), Val::Imm(0)];
        a.emit(Instr::Desc(
            13,
            Descriptor {
                ty: c.ty,
                shape: shape.to_vec(),
                place: Place::Memory {
                    base: reg(3),
                    strides,
                    wide: true,
                },
            },
        ));
        let mac = |a: &mut Assembler| {
            a.map(
                Op::Mac,
                11,
                Operand::Desc(13),
                Some(Operand::Desc(12)),
                Count::Mac,
            );
        };
        if linear.samples > 1 {
            a.emit(Instr::Set(12, imm(linear.samples)));
            let sample = a.here("sample");
            mac(a);
            a.emit(Instr::Advance(11, Val::Imm(sample_y * 4)));
            a.emit(Instr::Advance(12, Val::Imm(sample_x * element)));
            a.emit(Instr::Sub(12, reg(12), Val::Imm(1)));
            a.branch(Cond::Ne, reg(12), Val::Imm(0), sample);
        } else {
            mac(a);
        }
        a.emit(Instr::Add(3, reg(3), reg(6)));
    }
}
