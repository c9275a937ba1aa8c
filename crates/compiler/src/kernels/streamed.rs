//! Matrix products whose weights enter as they compute: the activations stay, the weights come by. Input features over the columns of the
//! rectangle, positions over its rows: a PE has some positions of some features, for as long as an item is worked on.
//!
//! Output features are worked on in groups. For each group a column gets its features' weights, broadcast to all its rows. Where zeros
//! are skipped these are lists of (index, value), and each element does an AXPY as it arrives; dense weights come without indices, a
//! block ahead, and a group's block is one instruction. A group's partial sums are then added along the row from west to east by a
//! microthread, out of one of several accumulators, so that columns with more to do in one group may make up for it in the next. The
//! last column has no weights: it finishes the sums and sends them, each feature as one flagged block a row.
//!
//! Columns take as many neighbouring features as make their weights equally many.

use super::streams::{distribute_lanes, sums_along_rows};
use super::*;
use std::cell::OnceCell;
use std::sync::Arc;

/// Groups whose partial sums a PE can hold at once.
const RING: usize = 4;

/// Most output features of a group: of lists, whose header is dear for small ones; and of dense weights, whose blocks take SRAM.
const LISTED: usize = 16;
const DENSE: usize = 16;

/// Instructions of a column with weights, and of the last one with so many lanes.
const CODE: usize = 90;
const LAST: usize = 24;

pub(super) struct StreamedKernel<'a> {
    mix: &'a Arc<Mix>,
    stored: OnceCell<Vec<u64>>,
}

/// A column with weights: its lane of the input, and which features of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Column {
    lane: usize,
    from: usize,
    to: usize,
}

impl Column {
    fn features(&self) -> usize {
        self.to - self.from
    }
}

/// How the work is cut in a rectangle.
struct Cut {
    /// All but the last column.
    columns: Vec<Column>,
    /// First position of each row, and the end.
    rows: Vec<usize>,
    /// Output features of a group.
    group: usize,
    /// The next item's features come in while this one's are worked on.
    ahead: bool,
}

impl Cut {
    fn positions(&self, row: usize) -> usize {
        self.rows[row + 1] - self.rows[row]
    }

    fn widest(&self) -> usize {
        self.columns.iter().map(Column::features).max().unwrap_or(0)
    }
}

/// Cuts costs in `parts` consecutive shares, none empty and none with many more entries than the others, whose largest is as small as can
/// be; returns their starts and the end.
fn even(costs: &[u64], parts: usize) -> Vec<usize> {
    let n = costs.len();
    let most = (n.div_ceil(parts) * 5).div_ceil(4);
    let cut = |limit: u64| -> Option<Vec<usize>> {
        let mut starts = vec![0];
        let (mut sum, mut count) = (0, 0);
        for (i, cost) in costs.iter().enumerate() {
            // each share after this one needs an entry
            let later = parts - starts.len();
            if count > 0 && (sum + cost > limit || count == most || n - i <= later) {
                if later == 0 {
                    return None;
                }
                starts.push(i);
                (sum, count) = (0, 0);
            }
            sum += cost;
            count += 1;
        }
        starts.push(n);
        Some(starts)
    };
    let (mut low, mut high) = (costs.iter().max().copied().unwrap_or(0), costs.iter().sum());
    while low < high {
        let middle = low + (high - low) / 2;
        if cut(middle).is_some() {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    cut(high).unwrap_or_else(|| balanced(n, parts))
}

impl<'a> StreamedKernel<'a> {
    pub(super) fn new(mix: &'a Arc<Mix>) -> StreamedKernel<'a> {
        StreamedKernel {
            mix,
            stored: OnceCell::new(),
        }
    }

    fn linear(&self) -> &'a Linear {
        &self.mix.terms[0]
    }

    fn lists(&self) -> bool {
        self.linear().sparse
    }

    /// Weights that enter for each input feature, in the order of its stream.
    fn stored(&self, c: &Context) -> &[u64] {
        self.stored.get_or_init(|| {
            let linear = self.linear();
            let order = c.inputs[0].order.as_deref();
            let of = |k: usize| {
                (0..linear.m)
                    .filter(|m| linear.stored(*m, k, 0).is_some())
                    .count()
            };
            (0..linear.k)
                .map(|k| of(order.map_or(k, |o| o[k])) as u64)
                .collect()
        })
    }

    /// Wavelets of a list's element (rule M13).
    fn unit(c: &Context) -> usize {
        if c.ty == Ty::F32 && c.machine.link.bits == 32 {
            2
        } else {
            1
        }
    }

    /// Cycles that a weight takes with so many positions.
    fn product(&self, c: &Context, positions: usize) -> u64 {
        let steps = (positions as u64).div_ceil(c.multiply_lanes());
        if self.lists() {
            steps + Self::unit(c) as u64 + c.machine.pe.cost.issue as u64
        } else {
            steps + 1
        }
    }

    /// Columns with weights in a rectangle of so many.
    fn columns(&self, c: &Context, width: u32) -> Option<u32> {
        let lanes = c.inputs[0].lanes as u32;
        let each = fewest(
            self.linear().k / lanes as usize,
            (width.saturating_sub(1)) / lanes,
        );
        (width > lanes).then_some(each * lanes)
    }

    fn rows(&self, c: &Context, height: u32) -> u32 {
        fewest(c.inputs[0].length().div_ceil(c.per_wavelet() as usize), height)
    }

    fn cut(&self, c: &Context, width: u32, height: u32) -> Option<Cut> {
        if self.columns(c, width)? + 1 != width || self.rows(c, height) != height {
            return None;
        }
        let (lanes, length, per) = (c.inputs[0].lanes, c.inputs[0].length(), c.per_wavelet() as usize);
        let starts = balanced(length.div_ceil(per), height as usize);
        let rows: Vec<usize> = starts.into_iter().map(|s| (s * per).min(length)).collect();
        let product = self.product(c, rows[1]);
        let mut columns = Vec::new();
        for lane in 0..lanes {
            let (first, last) = c.inputs[0].lane(lane);
            let parts = (width as usize - 1) / lanes;
            let shares = if self.lists() {
                let costs: Vec<u64> = self.stored(c)[first..last]
                    .iter()
                    .map(|n| n * product + rows[1] as u64)
                    .collect();
                even(&costs, parts)
            } else {
                balanced(last - first, parts)
            };
            columns.extend(shares.windows(2).map(|s| Column {
                lane,
                from: first + s[0],
                to: first + s[1],
            }));
        }
        let mut cut = Cut {
            columns,
            rows,
            group: 1,
            ahead: c.items > 1,
        };
        let most = if self.lists() { LISTED } else { DENSE };
        // several groups, so that their sums are added while others are worked on
        let most = most
            .min(self.linear().m.div_ceil(RING))
            .min(65535 / cut.widest().max(1))
            .max(1);
        let sram = c.machine.pe.sram_bytes as u64;
        for ahead in [c.items > 1, false] {
            cut.ahead = ahead;
            for group in (1..=most).rev() {
                cut.group = group;
                if self.fullest(c, &cut).0 <= sram {
                    return Some(cut);
                }
            }
        }
        Some(cut)
    }

    /// Elements of a group's block of dense weights: as many for all columns.
    fn block(&self, cut: &Cut) -> usize {
        cut.widest() * cut.group
    }

    /// SRAM bytes of the fullest PE, and which it is.
    fn fullest(&self, c: &Context, cut: &Cut) -> (u64, (u32, u32)) {
        let x = Context::pitch(c.ty, cut.positions(0)) as u64;
        let y = Context::pitch(Ty::F32, cut.positions(0)) as u64;
        let instruction = c.machine.pe.instruction_bytes as u64;
        let (column, widest) = (0u32..)
            .zip(&cut.columns)
            .map(|(i, column)| (i, column.features() as u64))
            .max_by_key(|(i, n)| (*n, u32::MAX - i))
            .unwrap_or((0, 0));
        let weights = if self.lists() {
            32
        } else {
            2 * (self.block(cut) as u64 * c.ty.bytes() as u64).next_multiple_of(32)
        };
        // features, and one that is not its own
        let working = x * (widest * (1 + cut.ahead as u64) + 1)
            + y * (RING * cut.group) as u64
            + weights
            + CODE as u64 * instruction
            + 64;
        let bias = if self.mix.bias.is_some() {
            self.linear().m as u64 * 4
        } else {
            0
        };
        let last = y + bias + (LAST + 8 * c.output.lanes) as u64 * instruction + 64;
        if last > working {
            (last, (cut.columns.len() as u32, 0))
        } else {
            (working, (column, 0))
        }
    }

    /// The output features in the order in which they are worked on, as places of the output's stream: lanes take turns.
    fn order(c: &Context) -> Vec<usize> {
        let (lanes, each) = (c.output.lanes, c.output.features / c.output.lanes);
        (0..c.output.features)
            .map(|s| s % lanes * each + s / lanes)
            .collect()
    }

    /// The groups of each column.
    fn streams(&self, c: &Context, cut: &Cut) -> Streamed {
        let linear = self.linear();
        let (outputs, inputs) = (c.output.order.as_deref(), c.inputs[0].order.as_deref());
        let order: Vec<usize> = Self::order(c)
            .into_iter()
            .map(|m| outputs.map_or(m, |o| o[m]))
            .collect();
        let bits = |w: f32| match c.ty {
            Ty::F32 => w.to_bits() as u64,
            Ty::F16 => half::f16::from_f32(w).to_bits() as u64,
        };
        let one = |bits: u64, flag: bool| Wavelet {
            bits,
            elements: 1,
            flag,
        };
        let unit = Self::unit(c);
        let list = |column: &Column, group: &[usize]| {
            let mut all = vec![one(0, false), one(0, false)];
            for k in column.from..column.to {
                for (o, &m) in group.iter().enumerate() {
                    let Some(w) = linear.stored(m, inputs.map_or(k, |i| i[k]), 0) else {
                        continue;
                    };
                    let index = ((k - column.from) * cut.group + o) as u64;
                    match (c.ty, unit) {
                        (Ty::F16, _) => all.push(one(index << 16 | bits(w), false)),
                        (Ty::F32, 1) => all.push(one(index << 32 | bits(w), false)),
                        (Ty::F32, _) => all.extend([one(index, false), one(bits(w), false)]),
                    }
                }
            }
            all[0].bits = ((all.len() - 2) / unit) as u64;
            if all.len() > 2 {
                all.last_mut().expect("it has elements").flag = true;
            }
            all
        };
        let widest = cut.widest();
        let per = c.per_wavelet() as usize;
        let dense = |column: &Column, group: &[usize]| {
            let mut values: Vec<u64> = (column.from..column.to)
                .flat_map(|k| group.iter().map(move |m| (k, *m)))
                .map(|(k, m)| bits(linear.weight(m, inputs.map_or(k, |i| i[k]), 0).unwrap_or(0.0)))
                .collect();
            values.resize(widest * group.len(), 0);
            let wavelet = |chunk: &[u64]| Wavelet {
                bits: chunk.iter().rev().fold(0, |all, b| all << c.ty.bits() | b),
                elements: chunk.len() as u8,
                flag: false,
            };
            values.chunks(per).map(wavelet).collect()
        };
        let of = |column: &Column| {
            let groups = order.chunks(cut.group);
            groups
                .map(|group| {
                    if self.lists() {
                        list(column, group)
                    } else {
                        dense(column, group)
                    }
                })
                .collect()
        };
        let mut columns: Vec<Vec<Vec<Wavelet>>> = cut.columns.iter().map(of).collect();
        columns.push(Vec::new());
        Streamed {
            columns,
            unit: if self.lists() { unit } else { 1 },
            headed: self.lists(),
            slack: RING - 1,
        }
    }
}

impl Implementation for StreamedKernel<'_> {
    fn op(&self) -> &'static str {
        "streamed matmul"
    }

    fn about(&self) -> &'static str {
        "matrix products: inputs over columns, positions over rows, weights streamed from the edge; dense or as lists of nonzeros"
    }

    fn fit(&self, c: &Context, width: u32, height: u32) -> (u32, u32) {
        let columns = self.columns(c, width).map_or(u32::MAX, |n| n + 1);
        (columns, self.rows(c, height))
    }

    fn estimate(&self, c: &Context, width: u32, height: u32) -> Option<Estimate> {
        let cut = self.cut(c, width, height)?;
        let cost = &c.machine.pe.cost;
        let positions = cut.positions(0);
        let m = self.linear().m as u64;
        let product = self.product(c, positions);
        let most = cut.columns.iter().map(|column| match self.lists() {
            true => self.stored(c)[column.from..column.to].iter().sum::<u64>(),
            false => column.features() as u64 * m,
        });
        let most = most.max().unwrap_or(0);
        // sums: cleared two at a time, handed on one by one
        let sums = m * (positions as u64 * 3).div_ceil(2);
        let groups = m.div_ceil(cut.group as u64);
        let group =
            (4 * cost.descriptor + 3 * cost.issue + 4 * cost.load + 8 * cost.branch + 20 * cost.add) as u64;
        let working = most * product + sums + groups * group;
        // the last column: each feature comes, and goes
        let steps = if self.direct(c) { 1 } else { 2 };
        let last = m * (steps * (positions as u64 + cost.issue as u64) + (cost.load + cost.add) as u64);
        // the edge
        let channels = c.machine.channels();
        let gap = channels.first().map_or(1, |channel| channel.gap as u64);
        let ways = channels.len().saturating_sub(c.inputs[0].lanes).max(1);
        let shared = cut.columns.len().div_ceil(ways.min(cut.columns.len()).max(1)) as u64;
        let wavelets = match self.lists() {
            true => most * Self::unit(c) as u64 + groups * 2,
            false => most.div_ceil(c.per_wavelet()),
        };
        let output = c.move_slots(c.output.features / c.output.lanes, c.output.length());
        let input = c.move_slots(c.inputs[0].features / c.inputs[0].lanes, c.inputs[0].length());
        let busy = working.max(last).max(wavelets * shared * gap).max(output);
        // partial sums pass the columns one after another
        let hop = (2 * c.machine.router.ramp_cycles + c.machine.router.hop_cycles + 1) as u64;
        let (bytes, fullest) = self.fullest(c, &cut);
        Some(Estimate {
            cycles: if cut.ahead { busy.max(input) } else { busy + input } + hop * width as u64,
            bytes,
            fullest,
        })
    }

    fn exit(&self, width: u32) -> u32 {
        width - 1
    }

    fn emit(&self, name: &str, c: &Context, width: u32, height: u32) -> Emitted {
        let cut = self.cut(c, width, height).expect("the rectangle was estimated");
        let mut region = region(name, width, height);
        let parts: Vec<Option<Part>> = (0..height as usize)
            .flat_map(|row| {
                let rows = (cut.rows[row], cut.rows[row + 1]);
                let columns = cut
                    .columns
                    .iter()
                    .map(move |k| Some(Part::Block((k.from, k.to), rows)));
                columns.chain([None])
            })
            .collect();
        let entries = vec![distribute_lanes(&mut region, name, c, 0, &parts)];
        sums_along_rows(&mut region, name);
        let lanes = c.output.lanes;
        let exits = (0..lanes)
            .map(|lane| {
                gather(
                    &mut region,
                    &format!("{name}: output"),
                    c.output_colors[lane],
                    lane_row(lane, lanes, height),
                )
            })
            .collect();
        // columns of one lane and one way of sending share their code
        let mut groups: Vec<((usize, usize, bool), Vec<u32>)> = Vec::new();
        for (i, column) in cut.columns.iter().enumerate() {
            let key = (column.lane, i % 2, i == 0);
            match groups.iter_mut().find(|g| g.0 == key) {
                Some(g) => g.1.push(i as u32),
                None => groups.push((key, vec![i as u32])),
            }
        }
        for ((lane, parity, first), columns) in groups {
            let at = Lattice {
                x: columns[0],
                y: 0,
                nx: columns.len() as u32,
                ny: height,
                dx: if columns.len() > 1 { 2 } else { 1 },
                dy: 1,
            };
            region
                .blocks
                .push(self.working(name, c, &cut, (lane, entries[0][lane].1), (parity, first), at));
        }
        region
            .blocks
            .push(self.last(name, c, &cut, Lattice::rect(width - 1, 0, 1, height)));
        let bias: Vec<u32> = match &self.mix.bias {
            Some(bias) => {
                let outputs = c.output.order.as_deref();
                let order = Self::order(c).into_iter().map(|m| outputs.map_or(m, |o| o[m]));
                order.map(|m| bias[m].to_bits()).collect()
            }
            None => Vec::new(),
        };
        let weights = (0..width * height)
            .map(|pe| {
                if (pe + 1) % width == 0 {
                    bias.clone()
                } else {
                    Vec::new()
                }
            })
            .collect();
        let gives = (0..height as usize)
            .flat_map(|row| {
                let positions = vec![(cut.rows[row], cut.rows[row + 1])];
                (0..lanes).map(move |lane| Give {
                    at: (width - 1, row as u32),
                    features: c.output.lane(lane),
                    turn: None,
                    positions: positions.clone(),
                })
            })
            .collect();
        Emitted {
            region,
            weights,
            entries,
            exits,
            gives,
            streamed: Some(self.streams(c, &cut)),
        }
    }
}

/// Adds the routes that gather what the PEs of the last column send on `color` at an exit in one of its rows: of each feature one flagged
/// block a row, from north to south.
fn gather(region: &mut Region, stream: &str, color: Color, exit: u32) -> Exit {
    let (x, h) = (region.width - 1, region.height);
    let own = (Port::Ramp, Expr::Const(1));
    // what is above comes down after what is above it
    let mut add = |y: u32, from: [(Port, Expr); 2], out: Port| {
        let positions = from.into_iter().filter(|(_, n)| *n != Expr::Const(0));
        let positions = positions
            .map(|(input, hold)| position(input, &[out], hold))
            .collect();
        region
            .routes
            .push(route(color, stream, Lattice::rect(x, y, 1, 1), positions));
    };
    for y in 0..exit {
        add(
            y,
            [(Port::North, Expr::Const(y as i64)), own.clone()],
            Port::South,
        );
    }
    for y in exit + 1..h {
        add(
            y,
            [own.clone(), (Port::South, Expr::Const((h - 1 - y) as i64))],
            Port::North,
        );
    }
    let from = [
        (Port::North, Expr::Const(exit as i64)),
        own,
        (Port::South, Expr::Const((h - 1 - exit) as i64)),
    ];
    Exit {
        at: (x, exit),
        from: from.into_iter().filter(|(_, n)| *n != Expr::Const(0)).collect(),
    }
}

impl StreamedKernel<'_> {
    /// The last column sends what arrives in one step.
    fn direct(&self, c: &Context) -> bool {
        c.ty == Ty::F32 && !(self.mix.bias.is_some() && self.mix.relu)
    }

    /// The code of columns with weights that take one lane, which enters in row `entry`.
    fn working(
        &self,
        name: &str,
        c: &Context,
        cut: &Cut,
        (lane, entry): (usize, u32),
        (parity, first): (usize, bool),
        at: Lattice,
    ) -> Block {
        let (imm, reg, of) = (|n: usize| Val::Imm(n as i64), Val::Reg, Operand::Desc);
        let (pitch_x, pitch_y) = (
            Context::pitch(c.ty, cut.positions(0)),
            Context::pitch(Ty::F32, cut.positions(0)),
        );
        let element = c.ty.bytes() as i64;
        let m = self.linear().m;
        let color = c.input_colors[0][lane];
        let most = at
            .places()
            .map(|(x, _)| cut.columns[x as usize].features())
            .max()
            .unwrap_or(0);
        let mut a = c.assembler();
        // memory: X and Y start in different banks (M9)
        let x = a.buffer("x", most as u32 * pitch_x as u32, 0);
        let next = if cut.ahead {
            a.buffer("x.next", most as u32 * pitch_x as u32, 0)
        } else {
            x
        };
        let other = a.buffer("others", pitch_x as u32, 0);
        let group_bytes = cut.group as i64 * pitch_y;
        let y = a.buffer("y", (RING as i64 * group_bytes) as u32, 16);
        let block_bytes = (self.block(cut) as u32 * c.ty.bytes()).next_multiple_of(32);
        let (header, weights, weights_next) = if self.lists() {
            (a.buffer("header", 8, 0), 0, 0)
        } else {
            (
                0,
                a.buffer("weights", block_bytes, 0),
                a.buffer("weights.next", block_bytes, 0),
            )
        };
        let number = |what: &str, f: &dyn Fn(&Column, usize) -> i64| {
            let label = format!("{name}.{}.{what}", at.x);
            table(&label, at, |x, y| f(&cut.columns[x as usize], y as usize))
        };
        let positions = |row: usize| cut.positions(row) as i64;
        let start = c.inputs[0].lane(lane);
        // other columns' features pass by where the lane enters
        let passing = |row: usize, n: usize| if row as u32 == entry { n as i64 } else { 0 };
        let length = a.param("positions", number("positions", &|_, row| positions(row)));
        let features = a.param("features", number("features", &|k, _| k.features() as i64));
        let before = a.param(
            "before",
            number("before", &|k, row| passing(row, k.from - start.0)),
        );
        let after = a.param("after", number("after", &|k, row| passing(row, start.1 - k.to)));
        let own = a.param(
            "own",
            number("own", &|k, row| {
                (k.features() as i64 + passing(row, k.from - start.0)) * positions(row)
            }),
        );
        let all = a.param(
            "all",
            number("all", &|k, row| {
                (k.features() as i64 + passing(row, start.1 - start.0 - k.features())) * positions(row)
            }),
        );
        let (ex, ey) = (pitch_x / element, pitch_y / 4);

        a.task("main", Trigger::Start);
        // d0, d1: X; d2 to d5: what is not for this PE; d9, d11: accumulators; d12: X; d14, d15: partial sums
        a.memory(0, c.ty, Val::Imm(x), &[features, length], &[ex, 1], c.wide());
        a.input(1, color, c.ty, &[features, length]);
        for (d, n) in [(2, before), (4, after)] {
            a.memory(d, c.ty, Val::Imm(other), &[n, length], &[0, 1], c.wide());
            a.input(d + 1, color, c.ty, &[n, length]);
        }
        let receive = |a: &mut Assembler| {
            for d in [2, 0, 4] {
                a.start(TAKE, Op::Mov, d, of(d + 1), None, Count::None);
            }
        };
        if self.lists() {
            // one wavelet a row
            let shape = [imm(2), imm(1)];
            a.memory(6, Ty::F32, Val::Imm(header), &shape, &[1, 1], false);
            a.input(7, colors::WEIGHTS, Ty::F32, &shape);
            a.memory(11, Ty::F32, Val::Imm(y), &[length], &[1], true);
            a.memory(12, c.ty, Val::Imm(x), &[length], &[1], true);
        }
        a.emit(Instr::Set(0, imm(c.items)));
        a.emit(Instr::Set(1, own));
        a.emit(Instr::Set(6, Val::Imm(y)));
        // r13 X; r3 weights
        a.emit(Instr::Set(13, Val::Imm(x)));
        a.emit(Instr::Set(3, Val::Imm(weights)));
        receive(&mut a);
        let item = a.here("item");
        if !self.lists() {
            a.emit(Instr::Set(15, imm(cut.group.min(m) * cut.widest())));
            self.fetch(&mut a, c, reg(3));
        }
        a.emit(Instr::Wait(TAKE, Some(reg(1))));
        a.emit(Instr::Add(1, reg(1), all));
        if cut.ahead {
            let none = a.label("none");
            a.branch(Cond::Eq, reg(0), imm(1), none);
            a.emit(Instr::Sub(7, Val::Imm(x + next), reg(13)));
            a.emit(Instr::Base(0, reg(7)));
            receive(&mut a);
            a.bind(none);
        }
        if self.lists() {
            a.emit(Instr::Base(12, reg(13)));
        }
        // d9 accumulators, d14 and d15 partial sums, all of r5 outputs
        let shape = [reg(5), length];
        let describe = |a: &mut Assembler| {
            a.memory(9, Ty::F32, reg(6), &shape, &[ey, 1], true);
            if !first {
                a.input(14, colors::REDUCE[1 - parity], Ty::F32, &shape);
            }
            a.output(15, colors::REDUCE[parity], Ty::F32, &shape, false);
        };
        a.emit(Instr::Set(4, imm(m)));
        a.emit(Instr::Set(5, imm(cut.group)));
        describe(&mut a);
        // r4 outputs left, r5 outputs of this group, r6 Y
        let group = a.here("group");
        let full = a.label("full");
        a.branch(Cond::Ge, reg(4), reg(5), full);
        a.emit(Instr::Set(5, reg(4)));
        describe(&mut a);
        a.bind(full);
        // r2 sums handed on so far, r8 to r11 up to the groups before
        a.emit(Instr::Wait(SUMS, Some(reg(8 + RING as u8 - 1))));
        a.emit(Instr::Base(9, reg(6)));
        a.map(Op::Mov, 9, Operand::Imm(0.0), None, Count::None);
        if self.lists() {
            self.list(&mut a, c, cut, header, other, (pitch_x, pitch_y));
        } else {
            self.dense(
                &mut a,
                c,
                cut,
                (features, length),
                (ex, ey),
                weights + weights_next,
            );
        }
        if first {
            a.start(SUMS, Op::Mov, 15, of(9), None, Count::None);
        } else {
            a.start(SUMS, Op::Add, 15, of(14), Some(of(9)), Count::Reduce);
        }
        for i in (1..RING as u8).rev() {
            a.emit(Instr::Set(8 + i, reg(8 + i - 1)));
        }
        a.emit(Instr::Mul(7, reg(5), length));
        a.emit(Instr::Add(2, reg(2), reg(7)));
        a.emit(Instr::Set(8, reg(2)));
        let within = a.label("within");
        a.emit(Instr::Add(6, reg(6), Val::Imm(group_bytes)));
        a.branch(Cond::Lt, reg(6), Val::Imm(y + RING as i64 * group_bytes), within);
        a.emit(Instr::Set(6, Val::Imm(y)));
        a.bind(within);
        a.emit(Instr::Sub(4, reg(4), reg(5)));
        a.branch(Cond::Ne, reg(4), imm(0), group);
        if cut.ahead {
            a.emit(Instr::Sub(13, Val::Imm(x + next), reg(13)));
        } else if c.items > 1 {
            let none = a.label("none");
            a.branch(Cond::Eq, reg(0), imm(1), none);
            receive(&mut a);
            a.bind(none);
        }
        a.emit(Instr::Sub(0, reg(0), imm(1)));
        a.branch(Cond::Ne, reg(0), imm(0), item);
        a.emit(Instr::Halt);
        a.finish(at)
    }

    /// The products of a group's list.
    fn list(
        &self,
        a: &mut Assembler,
        c: &Context,
        cut: &Cut,
        header: i64,
        other: i64,
        (pitch_x, pitch_y): (i64, i64),
    ) {
        let (imm, reg) = (|n: usize| Val::Imm(n as i64), Val::Reg);
        let (empty, follows) = (a.label("empty"), a.label("follows"));
        a.map(Op::Mov, 6, Operand::Desc(7), None, Count::None);
        a.emit(Instr::Base(11, reg(6)));
        a.emit(Instr::Load(Word::I32, 7, Val::Imm(header), imm(0)));
        a.branch(Cond::Eq, reg(7), imm(0), empty);
        a.emit(Instr::Vector(Vector::Axpy {
            y: 11,
            x: 12,
            list: List::Fabric {
                color: colors::WEIGHTS,
                ty: c.ty,
            },
            modulo: imm(cut.group),
            divisor: imm(cut.group),
            y_step: Val::Imm(pitch_y),
            x_step: Val::Imm(pitch_x),
            count: Count::Mac,
        }));
        a.bind(empty);
        // other columns have more: so many wavelets are for nobody
        a.emit(Instr::Load(Word::I32, 7, Val::Imm(header), imm(4)));
        a.branch(Cond::Eq, reg(7), imm(0), follows);
        a.memory(16, Ty::F32, Val::Imm(other), &[reg(7), imm(1)], &[0, 1], false);
        a.input(17, colors::WEIGHTS, Ty::F32, &[reg(7), imm(1)]);
        a.map(Op::Mov, 16, Operand::Desc(17), None, Count::None);
        a.bind(follows);
    }

    /// Begins to take in a block of r15 dense weights.
    fn fetch(&self, a: &mut Assembler, c: &Context, to: Val) {
        a.memory(18, c.ty, to, &[Val::Reg(15)], &[1], c.wide());
        a.input(19, colors::WEIGHTS, c.ty, &[Val::Reg(15)]);
        a.start(FETCH, Op::Mov, 18, Operand::Desc(19), None, Count::None);
        // r14 weights that came, when all that were asked for are there
        a.emit(Instr::Add(14, Val::Reg(14), Val::Reg(15)));
    }

    /// The products of a group's block; the next one is on its way meanwhile. `both` is the sum of the two blocks' addresses.
    fn dense(
        &self,
        a: &mut Assembler,
        c: &Context,
        cut: &Cut,
        (features, length): (Val, Val),
        (ex, ey): (i64, i64),
        both: i64,
    ) {
        let (imm, reg) = (|n: usize| Val::Imm(n as i64), Val::Reg);
        let (none, full) = (a.label("none"), a.label("full"));
        a.emit(Instr::Wait(FETCH, Some(reg(14))));
        a.emit(Instr::Sub(7, Val::Imm(both), reg(3)));
        a.emit(Instr::Sub(12, reg(4), reg(5)));
        a.branch(Cond::Eq, reg(12), imm(0), none);
        a.emit(Instr::Set(15, imm(cut.group)));
        a.branch(Cond::Ge, reg(12), reg(15), full);
        a.emit(Instr::Add(15, reg(12), imm(0)));
        a.bind(full);
        a.emit(Instr::Mul(15, reg(15), imm(cut.widest())));
        self.fetch(a, c, reg(7));
        a.bind(none);
        let shape = [features, reg(5), length];
        a.memory(11, Ty::F32, reg(6), &shape, &[0, ey, 1], true);
        a.memory(12, c.ty, reg(13), &shape, &[ex, 0, 1], true);
        a.emit(Instr::Desc(
            13,
            Descriptor {
                ty: c.ty,
                shape: shape.to_vec(),
                place: Place::Memory {
                    base: reg(3),
                    strides: vec![reg(5), imm(1), imm(0)],
                    wide: true,
                },
            },
        ));
        a.map(
            Op::Mac,
            11,
            Operand::Desc(13),
            Some(Operand::Desc(12)),
            Count::Mac,
        );
        a.emit(Instr::Set(3, reg(7)));
    }

    /// The code of the last column.
    fn last(&self, name: &str, c: &Context, cut: &Cut, at: Lattice) -> Block {
        let (imm, reg) = (|n: usize| Val::Imm(n as i64), Val::Reg);
        let m = self.linear().m;
        let mut a = c.assembler();
        let sum = a.buffer("sum", Context::pitch(Ty::F32, cut.positions(0)) as u32, 0);
        let bias = self
            .mix
            .bias
            .as_ref()
            .map(|b| a.buffer("bias", b.len() as u32 * 4, 0));
        let lengths = table(&format!("{name}.last.positions"), at, |_, y| {
            cut.positions(y as usize) as i64
        });
        let length = [a.param("positions", lengths)];
        a.task("main", Trigger::Start);
        if let Some(bias) = bias {
            load_weights(&mut a, imm(m), bias);
        }
        let parity = (cut.columns.len() - 1) % 2;
        a.input(0, colors::REDUCE[parity], Ty::F32, &length);
        a.memory(1, Ty::F32, Val::Imm(sum), &length, &[1], true);
        for lane in 0..c.output.lanes {
            a.output(2 + lane as u8, c.output_colors[lane], c.ty, &length, true);
        }
        a.emit(Instr::Set(0, imm(c.items)));
        let item = a.here("item");
        a.emit(Instr::Set(1, imm(m / c.output.lanes)));
        a.emit(Instr::Set(2, Val::Imm(bias.unwrap_or(0))));
        let feature = a.here("feature");
        // r3 bias
        let biased = |dst: u8, a: &mut Assembler| match bias {
            Some(_) => a.map(
                Op::Add,
                dst,
                Operand::Desc(0),
                Some(Operand::Reg(3)),
                Count::Other,
            ),
            None => a.map(Op::Mov, dst, Operand::Desc(0), None, Count::None),
        };
        let zero = Some(Operand::Imm(0.0));
        for lane in 0..c.output.lanes {
            let out = 2 + lane as u8;
            if bias.is_some() {
                a.emit(Instr::Load(Word::I32, 3, reg(2), imm(0)));
                a.emit(Instr::Add(2, reg(2), imm(4)));
            }
            match (self.direct(c), self.mix.relu) {
                (true, true) => a.map(Op::Max, out, Operand::Desc(0), zero, Count::Other),
                (true, false) => biased(out, &mut a),
                (false, relu) => {
                    biased(1, &mut a);
                    let (op, b, count) = match relu {
                        true => (Op::Max, zero, Count::Other),
                        false => (Op::Mov, None, Count::None),
                    };
                    a.map(op, out, Operand::Desc(1), b, count);
                }
            }
        }
        a.emit(Instr::Sub(1, reg(1), imm(1)));
        a.branch(Cond::Ne, reg(1), imm(0), feature);
        a.emit(Instr::Sub(0, reg(0), imm(1)));
        a.branch(Cond::Ne, reg(0), imm(0), item);
        a.emit(Instr::Halt);
        a.finish(at)
    }
}

/// The microthread that hands partial sums on comes first: the columns after this one wait for it.
const SUMS: u8 = 1;
/// The microthread that takes in the next block of dense weights.
const FETCH: u8 = 2;
/// The microthread that takes in the next item.
const TAKE: u8 = 3;
