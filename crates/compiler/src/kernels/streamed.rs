//! Matrix products whose weights enter as they compute: the activations stay, the weights come by. Input features over the columns of the
//! rectangle, positions over its rows: a PE has some positions of some features, for as long as an item is worked on.
//!
//! Output features are worked on in groups. For each group a column gets a block, its features' weights, broadcast to all its rows: a
//! microthread takes it in while the block before is multiplied, by one instruction. Where zeros are skipped a block is a list of
//! (index, value), each of which does an AXPY; dense weights come without indices. A group's partial sums are then added along the row
//! from west to east by a microthread, out of one of several accumulators, so that columns with more to do in one group may make up for
//! it in the next. The last column has no weights: it takes in a group's sums without a pause, so that the columns before it do not feel how
//! results leave; finishes them, and sends each feature as one flagged block a row.
//!
//! Columns that share an edge channel get their blocks in turn, and none waits for another in a circle: what a column may wait for before
//! it takes a block in, by the time that the channel offers it, are sums of groups whose blocks all columns have got before.
//!
//! Columns take as many neighbouring features as make their weights equally many.

use super::blocks::{self, CHUNK, HEADER, Products, RING, SUMS, TAKE, even, list_words};
use super::streams::{distribute_lanes, sums_along_rows};
use super::*;
use std::cell::OnceCell;
use std::sync::Arc;

/// Instructions of a column with weights, and of the last one with so many lanes.
const CODE: usize = 90;
const LAST: usize = 36;

pub(super) struct StreamedKernel<'a> {
    mix: &'a Arc<Mix>,
    stored: OnceCell<Stored>,
}

/// Weights that enter: sums over the places of the input's stream and over chunks of output features, in the order of the groups.
struct Stored {
    chunks: usize,
    /// Entry `k * (chunks + 1) + i`: weights of inputs before `k` for outputs of chunks before `i`.
    sums: Vec<u32>,
}

impl Stored {
    /// Of the inputs `k` for the chunks `outputs`.
    fn of(&self, k: std::ops::Range<usize>, outputs: std::ops::Range<usize>) -> u64 {
        let sum = |k: usize, i: usize| self.sums[k * (self.chunks + 1) + i] as u64;
        sum(k.end, outputs.end) + sum(k.start, outputs.start)
            - sum(k.end, outputs.start)
            - sum(k.start, outputs.end)
    }

    /// Of the inputs `k` for all outputs.
    fn inputs(&self, k: std::ops::Range<usize>) -> u64 {
        self.of(k, 0..self.chunks)
    }
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

    fn stored(&self, c: &Context) -> &Stored {
        self.stored.get_or_init(|| {
            let linear = self.linear();
            let inputs = c.inputs[0].order.as_deref();
            let order = Self::outputs(c);
            let chunks = order.len().div_ceil(CHUNK);
            let mut sums = vec![0u32; (linear.k + 1) * (chunks + 1)];
            for k in 0..linear.k {
                let feature = inputs.map_or(k, |i| i[k]);
                let (before, own) = sums[k * (chunks + 1)..(k + 2) * (chunks + 1)].split_at_mut(chunks + 1);
                let mut sum = 0;
                for (i, chunk) in order.chunks(CHUNK).enumerate() {
                    let stored = chunk.iter().filter(|m| linear.stored(**m, feature, 0).is_some());
                    sum += stored.count() as u32;
                    own[i + 1] = before[i + 1] + sum;
                }
            }
            Stored { chunks, sums }
        })
    }

    /// Cycles that a weight takes with so many positions.
    fn product(&self, c: &Context, positions: usize) -> u64 {
        let steps = (positions as u64).div_ceil(c.multiply_lanes());
        if self.lists() {
            steps + c.machine.pe.cost.issue as u64
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
                let stored = self.stored(c);
                let costs: Vec<u64> = (first..last)
                    .map(|k| stored.inputs(k..k + 1) * product + rows[1] as u64)
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
        let sizes = blocks::group_sizes(self.linear().m, cut.widest(), self.lists());
        let sram = c.machine.pe.sram_bytes as u64;
        for ahead in [c.items > 1, false] {
            cut.ahead = ahead;
            for group in sizes.clone() {
                cut.group = group;
                if self.fullest(c, &cut).0 <= sram {
                    return Some(cut);
                }
            }
        }
        Some(cut)
    }

    /// Bytes of the buffer for a group's block, as many for all columns.
    fn block_bytes(&self, c: &Context, cut: &Cut) -> u64 {
        let bytes = if self.lists() {
            let stored = self.stored(c);
            // of the chunks that a group has a part of
            let m = self.linear().m;
            let groups = (0..m).step_by(cut.group);
            let chunks = groups.map(|from| from / CHUNK..(from + cut.group).min(m).div_ceil(CHUNK));
            let most = cut.columns.iter().flat_map(|column| {
                let all = (column.features() * cut.group) as u64;
                let of = move |chunks| stored.of(column.from..column.to, chunks).min(all);
                chunks.clone().map(of)
            });
            list_words(c.ty, most.max().unwrap_or(0)) * 4
        } else {
            self.block(cut) as u64 * c.ty.bytes() as u64
        };
        bytes.next_multiple_of(32)
    }

    /// Elements of a block of dense weights: as many for all columns.
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
        let weights = 2 * self.block_bytes(c, cut);
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
        let last =
            2 * y * self.taken(c, cut) as u64 + bias + (LAST + 8 * c.output.lanes) as u64 * instruction + 64;
        if last > working {
            (last, (cut.columns.len() as u32, 0))
        } else {
            (working, (column, 0))
        }
    }

    /// The output features in the order in which they are worked on.
    fn outputs(c: &Context) -> Vec<usize> {
        let order = c.output.order.as_deref();
        let places = Self::order(c).into_iter();
        places.map(|m| order.map_or(m, |o| o[m])).collect()
    }

    /// The same as places of the output's stream: lanes take turns.
    fn order(c: &Context) -> Vec<usize> {
        let (lanes, each) = (c.output.lanes, c.output.features / c.output.lanes);
        (0..c.output.features)
            .map(|s| s % lanes * each + s / lanes)
            .collect()
    }

    /// The blocks of each column.
    fn streams(&self, c: &Context, cut: &Cut) -> Streamed {
        let linear = self.linear();
        let inputs = c.inputs[0].order.as_deref();
        let order = Self::outputs(c);
        // a list's words but for what its header says of the next one
        let list = |column: &Column, group: &[usize]| {
            let weight = |m: usize, k: usize| linear.stored(m, inputs.map_or(k, |i| i[k]), 0);
            blocks::list(c.ty, column.from..column.to, group, cut.group, weight)
        };
        let dense = |column: &Column, group: &[usize]| {
            let weight = |m: usize, k: usize| linear.weight(m, inputs.map_or(k, |i| i[k]), 0).unwrap_or(0.0);
            let length = cut.widest() * group.len();
            let values = blocks::dense(c.ty, column.from..column.to, group, length, weight);
            blocks::wavelets(c.machine, c.ty, &values)
        };
        let of = |column: &Column| -> Vec<Vec<Wavelet>> {
            let groups = order.chunks(cut.group);
            if !self.lists() {
                return groups.map(|group| dense(column, group)).collect();
            }
            let mut all: Vec<Vec<u32>> = groups.map(|group| list(column, group)).collect();
            // behind the last one comes the first of the next item
            for i in 0..all.len() {
                all[i][1] = all[(i + 1) % all.len()].len() as u32;
            }
            all.iter()
                .map(|words| blocks::wavelets(c.machine, Ty::F32, words))
                .collect()
        };
        let mut columns: Vec<Vec<Vec<Wavelet>>> = cut.columns.iter().map(of).collect();
        columns.push(Vec::new());
        Streamed {
            columns,
            lists: self.lists(),
        }
    }

    /// Elements of each column's first block, as they are counted when it is taken in.
    fn first_block(&self, c: &Context, cut: &Cut) -> Vec<i64> {
        let group = cut.group.min(self.linear().m);
        let order = Self::outputs(c);
        let inputs = c.inputs[0].order.as_deref();
        let of = |column: &Column| {
            if !self.lists() {
                return (group * cut.widest()) as i64;
            }
            let stored = (column.from..column.to)
                .flat_map(|k| order[..group].iter().map(move |m| (k, *m)))
                .filter(|(k, m)| {
                    self.linear()
                        .stored(*m, inputs.map_or(*k, |i| i[*k]), 0)
                        .is_some()
                });
            list_words(c.ty, stored.count() as u64) as i64
        };
        cut.columns.iter().map(of).collect()
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
            true => self.stored(c).inputs(column.from..column.to),
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
        let steps = 1 + (self.mix.bias.is_some() && self.mix.relu) as u64;
        let finish = steps * (positions as u64 + cost.issue as u64);
        let last = m * (positions as u64 + finish + (cost.load + 2 * cost.add) as u64);
        // the edge
        let channels = c.machine.channels();
        let gap = channels.first().map_or(1, |channel| channel.gap as u64);
        let ways = channels.len().saturating_sub(c.inputs[0].lanes).max(1);
        let shared = cut.columns.len().div_ceil(ways.min(cut.columns.len()).max(1)) as u64;
        let wavelets = match self.lists() {
            true => list_words(c.ty, most).div_ceil(per_wavelet(c.machine, Ty::F32)) + groups * HEADER as u64,
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
            Some(bias) => Self::outputs(c).into_iter().map(|m| bias[m].to_bits()).collect(),
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
    /// Output features whose sums the last column takes in at once: about a group, and as many for all lanes.
    fn taken(&self, c: &Context, cut: &Cut) -> usize {
        cut.group.next_multiple_of(c.output.lanes).min(self.linear().m)
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
        let (pitch_x, pitch_y) = blocks::pitches(c.ty, cut.positions(0));
        let element = c.ty.bytes() as i64;
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
        let block_bytes = self.block_bytes(c, cut) as u32;
        let weights = a.buffer("weights", block_bytes, 0);
        let weights_next = a.buffer("weights.next", block_bytes, 0);
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
        let blocks = self.first_block(c, cut);
        let first_block = table(&format!("{name}.{}.block", at.x), at, |x, _| blocks[x as usize]);
        let first_block = a.param("block", first_block);
        let ex = pitch_x / element;
        let products = Products {
            ty: c.ty,
            weights: c.ty,
            wide: c.wide(),
            lists: self.lists(),
            color: colors::WEIGHTS,
            m: self.linear().m,
            group: cut.group,
            features,
            each: imm(cut.widest()),
            length,
            pitch_x,
            pitch_y,
            x: reg(13),
            y,
            both: weights + weights_next,
            parity,
            first,
            items: true,
            count: Count::Mac,
            fresh: None,
        };

        a.task("main", Trigger::Start);
        // d0, d1: X; d2 to d5: what is not for this PE; d11: accumulators; d12: X
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
        a.emit(Instr::Set(15, first_block));
        products.fetch(&mut a, reg(3));
        let item = a.here("item");
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
        products.groups(&mut a);
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

    /// The code of the last column.
    fn last(&self, name: &str, c: &Context, cut: &Cut, at: Lattice) -> Block {
        let (imm, reg) = (|n: usize| Val::Imm(n as i64), Val::Reg);
        let (m, lanes, most) = (self.linear().m, c.output.lanes, self.taken(c, cut));
        let pitch = Context::pitch(Ty::F32, cut.positions(0));
        let mut a = c.assembler();
        let bytes = (most as i64 * pitch) as u32;
        let sums = a.buffer("sums", bytes, 0);
        let both = sums + a.buffer("sums.next", bytes, 0);
        let bias = self
            .mix
            .bias
            .as_ref()
            .map(|b| a.buffer("bias", b.len() as u32 * 4, 0));
        let lengths = table(&format!("{name}.last.positions"), at, |_, y| {
            cut.positions(y as usize) as i64
        });
        let length = a.param("positions", lengths);
        a.task("main", Trigger::Start);
        if let Some(bias) = bias {
            load_weights(&mut a, imm(m), bias);
        }
        let parity = (cut.columns.len() - 1) % 2;
        // begins to take in sums of r15 outputs; r14 elements that came, when all that were asked for are there
        let take = |a: &mut Assembler, to: Val| {
            let shape = [reg(15), length];
            a.memory(0, Ty::F32, to, &shape, &[pitch / 4, 1], true);
            a.input(1, colors::REDUCE[parity], Ty::F32, &shape);
            a.start(SUMS, Op::Mov, 0, Operand::Desc(1), None, Count::None);
            a.emit(Instr::Mul(6, reg(15), length));
            a.emit(Instr::Add(14, reg(14), reg(6)));
        };
        a.memory(2, Ty::F32, Val::Imm(sums), &[length], &[1], true);
        for lane in 0..lanes {
            a.output(3 + lane as u8, c.output_colors[lane], c.ty, &[length], true);
        }
        a.emit(Instr::Set(0, imm(c.items)));
        // r3 sums
        a.emit(Instr::Set(3, Val::Imm(sums)));
        a.emit(Instr::Set(15, imm(most)));
        take(&mut a, reg(3));
        let item = a.here("item");
        a.emit(Instr::Set(2, Val::Imm(bias.unwrap_or(0))));
        // r4 outputs left, r1 of those at hand
        a.emit(Instr::Set(4, imm(m)));
        let part = a.here("part");
        let (all, more, none) = (a.label("all"), a.label("more"), a.label("none"));
        a.emit(Instr::Wait(SUMS, Some(reg(14))));
        a.emit(Instr::Set(1, reg(15)));
        a.emit(Instr::Sub(7, Val::Imm(both), reg(3)));
        // r12 outputs after them, of this item or the next
        a.emit(Instr::Sub(12, reg(4), reg(1)));
        a.branch(Cond::Ne, reg(12), imm(0), more);
        a.branch(Cond::Eq, reg(0), imm(1), none);
        a.emit(Instr::Set(12, imm(m)));
        a.bind(more);
        a.emit(Instr::Set(15, imm(most)));
        a.branch(Cond::Ge, reg(12), reg(15), all);
        a.emit(Instr::Set(15, reg(12)));
        a.bind(all);
        take(&mut a, reg(7));
        a.bind(none);
        a.emit(Instr::Base(2, reg(3)));
        a.emit(Instr::Set(3, reg(7)));
        a.emit(Instr::Sub(4, reg(4), reg(1)));
        let feature = a.here("feature");
        for lane in 0..lanes {
            let out = 3 + lane as u8;
            let sum = Operand::Desc(2);
            if bias.is_some() {
                a.emit(Instr::Load(Word::I32, 5, reg(2), imm(0)));
                a.emit(Instr::Add(2, reg(2), imm(4)));
            }
            let added = Some(Operand::Reg(5));
            let zero = Some(Operand::Imm(0.0));
            match (bias.is_some(), self.mix.relu) {
                (false, false) => a.map(Op::Mov, out, sum, None, Count::None),
                (true, false) => a.map(Op::Add, out, sum, added, Count::Other),
                (false, true) => a.map(Op::Max, out, sum, zero, Count::Other),
                (true, true) => {
                    a.map(Op::Add, 2, sum, added, Count::Other);
                    a.map(Op::Max, out, sum, zero, Count::Other);
                }
            }
            a.emit(Instr::Advance(2, Val::Imm(pitch)));
        }
        a.emit(Instr::Sub(1, reg(1), imm(lanes)));
        a.branch(Cond::Ne, reg(1), imm(0), feature);
        a.branch(Cond::Ne, reg(4), imm(0), part);
        a.emit(Instr::Sub(0, reg(0), imm(1)));
        a.branch(Cond::Ne, reg(0), imm(0), item);
        a.emit(Instr::Halt);
        a.finish(at)
    }
}
