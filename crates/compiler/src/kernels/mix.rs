//! Matrix product and convolution: input features over the columns of the rectangle, output features over its rows.
//!
//! Column c holds the input features `cut[c] .. cut[c + 1]`. Each arrives in the row whose lane carries it; that PE keeps it and sends it
//! down and up its column, so that all rows of the column have all its features. As features arrive, a chunk at a time, each PE adds
//! their products to its accumulators: dense weights by one instruction a chunk and tap (an outer product), lists of (index, value) by
//! one AXPY a stored weight. At the end the partial sums are added along the row from west to east; the last column adds the bias
//! (it starts from it), applies what is fused, and sends the row's output features on its lane.

use super::*;
use std::cell::OnceCell;
use std::sync::Arc;

pub(super) struct MixKernel<'a>(&'a Arc<Mix>, OnceCell<Lists>);

/// Multiplication cycles and stored weights of the features before k in each row, `[k * rows + row]` with k up to their number.
struct Lists {
    cycles: Vec<u64>,
    stored: Vec<u32>,
    /// Weights that are stored, where every tap hits something.
    total: usize,
}

/// How the work is cut at a width.
struct Cut {
    /// First feature of each column, and the end.
    columns: Vec<usize>,
    /// Features of a chunk.
    chunk: usize,
    /// Rows with output features.
    active: usize,
    /// Rows with lanes.
    lanes: usize,
}

/// Which columns share a block of code.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Column {
    Only,
    First,
    Middle(usize),
    Last(usize),
}

impl<'a> MixKernel<'a> {
    pub(super) fn new(mix: &'a Arc<Mix>) -> MixKernel<'a> {
        MixKernel(mix, OnceCell::new())
    }
}

impl MixKernel<'_> {
    fn cut(&self, c: &Context, width: u32) -> Cut {
        let (k, w) = (self.0.k, width as usize);
        let columns: Vec<usize> = (0..=w).map(|i| i * k / w).collect();
        let input = &c.inputs[0];
        let rows = c.output.widest();
        // small chunks let work begin early; an instruction of a few hundred steps hides its own cost
        let total = if self.0.lists() {
            self.lists(c).total
        } else {
            self.0.weights.len()
        };
        let stored = total as f64 / (self.0.m * self.0.k * self.0.window).max(1) as f64;
        let tap = self.0.taps.iter().map(|t| self.0.hits(t)).max().unwrap_or(1);
        let steps = (rows * tap) as f64 * stored.max(0.02);
        let widest = (0..w).map(|i| columns[i + 1] - columns[i]).max().unwrap_or(1);
        let chunk = ((256.0 / steps).ceil() as usize)
            .clamp(1, widest)
            .min((65535 / rows.max(1)).max(1));
        Cut {
            columns,
            chunk,
            active: c.output.rows(),
            lanes: input.rows(),
        }
    }

    /// Own features of (column, row): first and number.
    fn own(&self, c: &Context, cut: &Cut, column: usize, row: usize) -> (usize, usize) {
        let lane = &c.inputs[0].starts;
        let (from, to) = (
            lane[row].max(cut.columns[column]),
            lane[row + 1].min(cut.columns[column + 1]),
        );
        (from, to.saturating_sub(from))
    }

    /// The order in which a PE gets its column's features: its own, then from the rows above, nearest first, then from below.
    fn order(&self, c: &Context, cut: &Cut, column: usize, row: usize) -> Vec<usize> {
        let rows = std::iter::once(row)
            .chain((0..row).rev())
            .chain(row + 1..cut.lanes.max(row + 1));
        rows.flat_map(|r| {
            let (from, n) = self.own(c, cut, column, r);
            from..from + n
        })
        .collect()
    }

    /// Weights of one PE as words: bias (where the sum ends), then the stored weights. Also where the list's values begin, in bytes.
    fn image(&self, c: &Context, cut: &Cut, column: usize, row: usize) -> (Vec<u32>, usize) {
        let mix = self.0;
        let (m0, m1) = (c.output.starts[row], c.output.starts[row + 1]);
        let mut words = Vec::new();
        if column + 2 == cut.columns.len() {
            words.extend((m0..m1).map(|m| mix.bias.as_ref().map_or(0.0f32, |b| b[m]).to_bits()));
            words.resize(self.bias_bytes(c) / 4, 0);
        }
        let order = self.order(c, cut, column, row);
        let (mut counts, mut index, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for chunk in order.chunks(cut.chunk) {
            for tap in &mix.taps {
                let before = values.len();
                for (i, &k) in chunk.iter().enumerate() {
                    for m in m0..m1 {
                        if !mix.lists() {
                            values.push(mix.weight(m, k, tap.index).unwrap_or(0.0));
                        } else if let Some(w) = mix.stored(m, k, tap.index) {
                            index.push((i * (m1 - m0) + m - m0) as u16);
                            values.push(w);
                        }
                    }
                }
                counts.push((values.len() - before) as u16);
            }
        }
        if mix.lists() {
            words.extend(pack_u16(&counts));
            words.extend(pack_u16(&index));
        }
        let at = words.len() * 4;
        words.extend(pack(c.ty, &values));
        (words, at)
    }

    fn bias_bytes(&self, c: &Context) -> usize {
        (c.output.widest() * 4).next_multiple_of(32)
    }

    /// Cycles of a tap's products with one weight.
    fn products(&self, c: &Context, tap: &Tap) -> u64 {
        let lanes = if c.ty == Ty::F32 {
            c.machine.pe.lanes.f32
        } else {
            c.machine.pe.lanes.f16
        } as u64;
        let issue = if self.0.lists() {
            c.machine.pe.cost.issue as u64
        } else {
            0
        };
        (tap.rows * self.0.samples) as u64 * (tap.columns as u64).div_ceil(lanes) + issue
    }

    /// Running sums over the features, for lists; made once, for all widths.
    fn lists(&self, c: &Context) -> &Lists {
        self.1.get_or_init(|| {
            let mix = self.0;
            let rows = c.output.rows();
            let taps: Vec<(usize, u64)> = mix.taps.iter().map(|t| (t.index, self.products(c, t))).collect();
            let total = if mix.sparse {
                mix.weights.iter().filter(|w| **w != 0.0).count()
            } else {
                mix.weights.len()
            };
            let mut lists = Lists {
                cycles: vec![0; rows],
                stored: vec![0; rows],
                total,
            };
            for k in 0..mix.k {
                for r in 0..rows {
                    let (mut cycles, mut stored) = (lists.cycles[k * rows + r], lists.stored[k * rows + r]);
                    for m in c.output.starts[r]..c.output.starts[r + 1] {
                        for (_, products) in taps.iter().filter(|(i, _)| mix.stored(m, k, *i).is_some()) {
                            cycles += products;
                            stored += 1;
                        }
                    }
                    lists.cycles.push(cycles);
                    lists.stored.push(stored);
                }
            }
            lists
        })
    }

    /// Multiplication cycles of the busiest row, stored weights of the fullest and which row that is, for the features of one column.
    fn column(&self, c: &Context, cut: &Cut, column: usize) -> (u64, u64, usize) {
        let (from, to) = (cut.columns[column], cut.columns[column + 1]);
        if !self.0.lists() {
            let weights = (c.output.widest() * (to - from)) as u64;
            return (
                weights * self.0.taps.iter().map(|t| self.products(c, t)).sum::<u64>(),
                weights * self.0.taps.len() as u64,
                0,
            );
        }
        let lists = self.lists(c);
        let (from, to) = (from * cut.active, to * cut.active);
        let busy = (0..cut.active)
            .map(|r| lists.cycles[to + r] - lists.cycles[from + r])
            .max();
        let stored = |r: usize| (lists.stored[to + r] - lists.stored[from + r]) as u64;
        let fullest = (0..cut.active).rev().max_by_key(|r| stored(*r)).unwrap_or(0);
        (busy.unwrap_or(0), stored(fullest), fullest)
    }
}

impl Implementation for MixKernel<'_> {
    fn op(&self) -> &'static str {
        if self.0.window == 1 && self.0.input.0 == 1 {
            "matmul"
        } else {
            "conv"
        }
    }

    fn about(&self) -> &'static str {
        "matrix product or convolution: inputs over columns, outputs over rows, weights resident; dense or as lists of nonzeros"
    }

    fn layout(&self, inputs: &[Layout], n: usize, features: usize, inner: Vec<usize>) -> Layout {
        Layout::balanced(n, features, inner, inputs[0].starts.len() - 1)
    }

    fn widest(&self, _: &Context) -> u32 {
        self.0.k as u32
    }

    fn estimate(&self, c: &Context, width: u32) -> Estimate {
        let cut = self.cut(c, width);
        let cost = &c.machine.pe.cost;
        let (length_in, length_out) = (c.inputs[0].length(), c.output.length());
        let per_instruction =
            (3 * cost.descriptor + cost.issue + 10 * cost.add) as u64 * self.0.samples.max(1) as u64;
        let (mut slowest, mut fullest) = (0, (0, (0, 0)));
        for i in 0..width as usize {
            let features = cut.columns[i + 1] - cut.columns[i];
            let chunks = features.div_ceil(cut.chunk) as u64;
            let outputs = c.output.widest();
            let fixed = c.move_slots(features + 2 * features.div_ceil(cut.lanes), length_in)
                + chunks * self.0.taps.len() as u64 * per_instruction
                + (outputs * length_out) as u64 * 2;
            let (busy, most, row) = self.column(c, &cut, i);
            slowest = slowest.max(busy + fixed);
            let stored = match self.0.lists() {
                true => most * (2 + c.ty.bytes() as u64) + chunks * self.0.taps.len() as u64 * 2,
                false => most * c.ty.bytes() as u64,
            };
            let x = features as u64 * Context::pitch(c.ty, length_in) as u64;
            let y = outputs as u64 * Context::pitch(Ty::F32, length_out) as u64;
            let code = (60 + self.0.taps.len() as u64 * 12) * c.machine.pe.instruction_bytes as u64;
            let bytes = x + y + stored + self.bias_bytes(c) as u64 + code + 128;
            if bytes > fullest.0 {
                fullest = (bytes, (i as u32, row as u32));
            }
        }
        // partial sums pass the columns one after another
        let hop = (2 * c.machine.router.ramp_cycles + c.machine.router.hop_cycles + 1) as u64;
        Estimate {
            cycles: slowest + hop * width as u64,
            bytes: fullest.0,
            fullest: fullest.1,
        }
    }

    fn emit(&self, name: &str, c: &Context, width: u32) -> Emitted {
        let w = width as usize;
        let cut = self.cut(c, width);
        let height = c.lanes();
        let mut region = region(name, width, height);
        let images: Vec<Vec<(Vec<u32>, usize)>> = (0..cut.active.max(cut.lanes))
            .map(|r| {
                (0..w)
                    .map(|i| {
                        if r < cut.active {
                            self.image(c, &cut, i, r)
                        } else {
                            (Vec::new(), 0)
                        }
                    })
                    .collect()
            })
            .collect();
        self.routes(&mut region, name, c, &cut);
        let columns: Vec<(Column, Lattice)> = match w {
            1 => vec![(Column::Only, Lattice::rect(0, 0, 1, 1))],
            _ => {
                let mut all = vec![(Column::First, Lattice::rect(0, 0, 1, 1))];
                for parity in [1, 0] {
                    let first = 2 - parity;
                    if first + 1 < w {
                        let n = (w - 1 - first).div_ceil(2) as u32;
                        all.push((
                            Column::Middle(parity),
                            Lattice {
                                x: first as u32,
                                y: 0,
                                nx: n,
                                ny: 1,
                                dx: 2,
                                dy: 1,
                            },
                        ));
                    }
                }
                all.push((Column::Last((w - 1) % 2), Lattice::rect(width - 1, 0, 1, 1)));
                all
            }
        };
        let both = cut.active.min(cut.lanes);
        for (column, at) in columns {
            for (from, to) in [(0, both), (both, cut.active)] {
                if from < to {
                    let at = Lattice {
                        y: from as u32,
                        ny: (to - from) as u32,
                        ..at
                    };
                    region.blocks.push(self.block(name, c, &cut, column, at, &images));
                }
            }
        }
        if cut.active < cut.lanes {
            let at = Lattice::rect(0, cut.active as u32, width, (cut.lanes - cut.active) as u32);
            region.blocks.push(self.relay(name, c, &cut, at));
        }
        let wavelets = (c.inputs[0].length() as u64).div_ceil(c.per_wavelet());
        let mut parts = Vec::new();
        if w > 1 {
            for r in 0..height {
                for i in 0..w {
                    let (from, n) = if r < cut.lanes {
                        self.own(c, &cut, i, r)
                    } else {
                        (0, 0)
                    };
                    let skip = if n > 0 { from - c.inputs[0].starts[r] } else { 0 };
                    parts.push((skip as u64 * wavelets, n as u64 * wavelets));
                }
            }
        }
        let mut weights = vec![Vec::new(); w * height];
        for (r, row) in images.into_iter().enumerate() {
            for (i, (words, _)) in row.into_iter().enumerate() {
                weights[r * w + i] = words;
            }
        }
        Emitted {
            region,
            weights,
            taps: vec![LaneTap {
                parts,
                columns: width,
            }],
        }
    }
}

impl MixKernel<'_> {
    /// A table over all PEs of the region.
    fn table(&self, name: String, c: &Context, cut: &Cut, value: impl Fn(usize, usize) -> i64) -> Expr {
        let w = cut.columns.len() - 1;
        let values: Vec<i64> = (0..c.lanes())
            .flat_map(|r| (0..w).map(move |i| (i, r)))
            .map(|(i, r)| value(i, r))
            .collect();
        Expr::table(&name, Axes::XY, w as u32, values)
    }

    /// The exchange inside columns, and the way of partial sums along rows. Positions that lead nowhere have a hold of 0: they keep the
    /// code of all rows alike.
    fn routes(&self, region: &mut Region, name: &str, c: &Context, cut: &Cut) {
        let w = region.width;
        let (active, lanes) = (cut.active, cut.lanes);
        let has = |i: usize, r: usize| (r < lanes && self.own(c, cut, i, r).1 > 0) as i64;
        let table =
            |what: &str, f: &dyn Fn(usize, usize) -> i64| self.table(format!("{name}.{what}"), c, cut, f);
        let own_south = table("sends-south", &|i, r| if r + 1 < active { has(i, r) } else { 0 });
        let above = table("blocks-above", &|i, r| {
            if r < active {
                (0..r).map(|q| has(i, q)).sum()
            } else {
                0
            }
        });
        let own_north = table("sends-north", &|i, r| if r > 0 { has(i, r) } else { 0 });
        let below = table("blocks-below", &|i, r| (r + 1..lanes).map(|q| has(i, q)).sum());
        let south = format!("{name}: features down the column");
        let north = format!("{name}: features up the column");
        use Port::*;
        let mut rows = |color, stream: &str, from: usize, to: usize, positions: Vec<Position>| {
            if from < to {
                region.routes.push(route(
                    color,
                    stream,
                    Lattice::rect(0, from as u32, w, (to - from) as u32),
                    positions,
                ));
            }
        };
        let last = active - 1;
        rows(
            colors::SOUTH,
            &south,
            0,
            last,
            vec![
                position(Ramp, &[South], own_south.clone()),
                position(North, &[South, Ramp], above.clone()),
            ],
        );
        rows(
            colors::SOUTH,
            &south,
            last,
            active,
            vec![position(Ramp, &[Ramp], 0), position(North, &[Ramp], above)],
        );
        rows(
            colors::NORTH,
            &north,
            0,
            1,
            vec![
                position(Ramp, &[Ramp], 0),
                position(South, &[Ramp], below.clone()),
            ],
        );
        rows(
            colors::NORTH,
            &north,
            1,
            active,
            vec![
                position(Ramp, &[North], own_north.clone()),
                position(South, &[North, Ramp], below.clone()),
            ],
        );
        rows(
            colors::NORTH,
            &north,
            active,
            lanes,
            vec![
                position(Ramp, &[North], own_north),
                position(South, &[North], below),
            ],
        );
        // partial sums: column i sends on the colour of its parity, its neighbour receives that
        let sums = format!("{name}: partial sums");
        let rows = active as u32;
        for parity in 0..2u32 {
            let color = colors::REDUCE[parity as usize];
            let senders = (w - 1).saturating_sub(parity).div_ceil(2);
            if senders > 0 {
                let at = |x| Lattice {
                    x,
                    y: 0,
                    nx: senders,
                    ny: rows,
                    dx: 2,
                    dy: 1,
                };
                region
                    .routes
                    .push(route(color, &sums, at(parity), vec![position(Ramp, &[East], 1)]));
                region.routes.push(route(
                    color,
                    &sums,
                    at(parity + 1),
                    vec![position(West, &[Ramp], 1)],
                ));
            }
        }
    }

    /// Rows that have a lane but no outputs: they pass their features up the column.
    fn relay(&self, name: &str, c: &Context, cut: &Cut, at: Lattice) -> Block {
        let mut a = Assembler::new();
        let length = c.inputs[0].length();
        let pitch = Context::pitch(c.ty, length);
        let own = self.table(format!("{name}.own"), c, cut, |i, r| {
            if r < cut.lanes {
                self.own(c, cut, i, r).1 as i64
            } else {
                0
            }
        });
        let most = (0..cut.columns.len() - 1)
            .flat_map(|i| (0..cut.lanes).map(move |r| (i, r)))
            .map(|(i, r)| self.own(c, cut, i, r).1);
        let buffer = a.buffer("own", most.max().unwrap_or(0) as u32 * pitch as u32, 0);
        let own = a.param("own", own);
        let element = pitch / c.ty.bytes() as i64;
        a.task("main", Trigger::Start);
        let shape = [own, Val::Imm(length as i64)];
        a.memory(0, c.ty, Val::Imm(buffer), &shape, &[element, 1], c.wide());
        a.input(1, c.input_colors[0], c.ty, &shape);
        a.output(2, colors::NORTH, c.ty, &shape, true);
        a.emit(Instr::Set(0, Val::Imm(c.items as i64)));
        let item = a.here("item");
        a.map(Op::Mov, 0, Operand::Desc(1), None, Count::None);
        a.map(Op::Mov, 2, Operand::Desc(0), None, Count::None);
        a.emit(Instr::Sub(0, Val::Reg(0), Val::Imm(1)));
        a.branch(Cond::Ne, Val::Reg(0), Val::Imm(0), item);
        a.emit(Instr::Halt);
        a.finish(at)
    }

    /// The code of rows with outputs.
    fn block(
        &self,
        name: &str,
        c: &Context,
        cut: &Cut,
        column: Column,
        at: Lattice,
        images: &[Vec<(Vec<u32>, usize)>],
    ) -> Block {
        let mix = self.0;
        let places: Vec<(usize, usize)> = at.places().map(|(x, y)| (x as usize, y as usize)).collect();
        let (length_in, length_out) = (c.inputs[0].length(), c.output.length());
        let (pitch_x, pitch_y) = (
            Context::pitch(c.ty, length_in),
            Context::pitch(Ty::F32, length_out),
        );
        let element = c.ty.bytes() as i64;
        let has_lane = (at.y as usize) < cut.lanes;
        let own_of = |i: usize, r: usize| {
            if r < cut.lanes {
                self.own(c, cut, i, r).1
            } else {
                0
            }
        };
        let above_of = |i: usize, r: usize| {
            if r < cut.active {
                (0..r).map(|q| own_of(i, q)).sum()
            } else {
                0usize
            }
        };
        let features_of = |i: usize| cut.columns[i + 1] - cut.columns[i];
        let most =
            |f: &dyn Fn(usize, usize) -> usize| places.iter().map(|&(i, r)| f(i, r)).max().unwrap_or(0);
        let mut a = Assembler::new();
        // memory: X and Y start in different banks (M9)
        let x = a.buffer("x", most(&|i, _| features_of(i)) as u32 * pitch_x as u32, 0);
        let y = a.buffer("y", most(&|_, r| c.output.lane(r)) as u32 * pitch_y as u32, 16);
        let bytes = most(&|i, r| images[r][i].0.len() * 4);
        let weights = a.buffer("weights", bytes as u32, 0);
        let bias = matches!(column, Column::Only | Column::Last(_));
        let first_weight = weights + if bias { self.bias_bytes(c) as i64 } else { 0 };
        let table =
            |what: &str, f: &dyn Fn(usize, usize) -> i64| self.table(format!("{name}.{what}"), c, cut, f);
        let inside = |r: usize| r < cut.active;
        let words = a.param(
            "words",
            table("words", &|i, r| {
                if inside(r) { images[r][i].0.len() as i64 } else { 0 }
            }),
        );
        let own = if has_lane {
            a.param("own", table("own", &|i, r| own_of(i, r) as i64))
        } else {
            Val::Imm(0)
        };
        let above = a.param("above", table("above", &|i, r| above_of(i, r) as i64));
        let below = a.param(
            "below",
            table("below", &|i, r| {
                if inside(r) {
                    (features_of(i) - own_of(i, r) - above_of(i, r)) as i64
                } else {
                    0
                }
            }),
        );
        let above_at = a.param(
            "above.at",
            table("above.at", &|i, r| x + own_of(i, r) as i64 * pitch_x),
        );
        let below_at = a.param(
            "below.at",
            table("below.at", &|i, r| {
                x + (own_of(i, r) + above_of(i, r)) as i64 * pitch_x
            }),
        );
        let features = a.param(
            "features",
            Expr::table(
                &format!("{name}.features"),
                Axes::X,
                0,
                (0..cut.columns.len() - 1)
                    .map(|i| features_of(i) as i64)
                    .collect(),
            ),
        );
        let outputs = a.param("outputs", by_row(format!("{name}.outputs"), c.output.counts()));
        let south = if has_lane {
            a.param(
                "south",
                table("south", &|i, r| {
                    if r + 1 < cut.active {
                        own_of(i, r) as i64
                    } else {
                        0
                    }
                }),
            )
        } else {
            Val::Imm(0)
        };
        let north = if has_lane {
            a.param(
                "north",
                table("north", &|i, r| if r > 0 { own_of(i, r) as i64 } else { 0 }),
            )
        } else {
            Val::Imm(0)
        };
        let imm = |n: usize| Val::Imm(n as i64);
        let reg = Val::Reg;
        let (ex, ey) = (pitch_x / element, pitch_y / 4);

        a.task("main", Trigger::Start);
        if bytes > 0 {
            load_weights(&mut a, words, weights);
        }
        // d0..d5: what arrives; d6..d8: what is passed on; d9, d10: accumulators; d14..d16: sums
        if has_lane {
            a.memory(0, c.ty, Val::Imm(x), &[own, imm(length_in)], &[ex, 1], c.wide());
            a.input(1, c.input_colors[0], c.ty, &[own, imm(length_in)]);
            a.memory(6, c.ty, Val::Imm(x), &[south, imm(length_in)], &[ex, 1], c.wide());
            a.output(7, colors::SOUTH, c.ty, &[south, imm(length_in)], true);
            a.memory(
                17,
                c.ty,
                Val::Imm(x),
                &[north, imm(length_in)],
                &[ex, 1],
                c.wide(),
            );
            a.output(8, colors::NORTH, c.ty, &[north, imm(length_in)], true);
        }
        a.memory(2, c.ty, above_at, &[above, imm(length_in)], &[ex, 1], c.wide());
        a.input(3, colors::SOUTH, c.ty, &[above, imm(length_in)]);
        if has_lane {
            a.memory(4, c.ty, below_at, &[below, imm(length_in)], &[ex, 1], c.wide());
            a.input(5, colors::NORTH, c.ty, &[below, imm(length_in)]);
        }
        let all = [outputs, imm(length_out)];
        a.memory(9, Ty::F32, Val::Imm(y), &all, &[ey, 1], true);
        if bias {
            a.memory(10, Ty::F32, Val::Imm(weights), &all, &[1, 0], true);
        }
        if let Column::Middle(parity) | Column::Last(parity) = column {
            a.input(14, colors::REDUCE[1 - parity], Ty::F32, &all);
        }
        match column {
            Column::First => a.output(15, colors::REDUCE[0], Ty::F32, &all, false),
            Column::Middle(parity) => a.output(15, colors::REDUCE[parity], Ty::F32, &all, false),
            Column::Only | Column::Last(_) => a.output(16, c.output_color, c.ty, &all, true),
        }
        a.emit(Instr::Set(0, imm(c.items)));
        let item = a.here("item");
        if has_lane {
            a.start(1, Op::Mov, 0, Operand::Desc(1), None, Count::None);
        }
        // a queue too short for all three would hold the main thread back from sending what the other rows wait for
        let queued = !has_lane || c.machine.pe.move_queue >= 3;
        let receive = |a: &mut Assembler| {
            a.start(1, Op::Mov, 2, Operand::Desc(3), None, Count::None);
            if has_lane {
                a.start(1, Op::Mov, 4, Operand::Desc(5), None, Count::None);
            }
        };
        if queued {
            receive(&mut a);
        }
        a.map(
            Op::Mov,
            9,
            if bias {
                Operand::Desc(10)
            } else {
                Operand::Imm(0.0)
            },
            None,
            Count::None,
        );
        if has_lane {
            a.emit(Instr::Mul(9, own, imm(length_in)));
            a.emit(Instr::Add(9, reg(9), reg(1)));
            a.emit(Instr::Wait(1, Some(reg(9))));
            a.start(2, Op::Mov, 7, Operand::Desc(6), None, Count::None);
            a.start(3, Op::Mov, 8, Operand::Desc(17), None, Count::None);
        }
        if !queued {
            receive(&mut a);
        }
        // r1 elements waited for, r2 X, r3 weights, r4 features left, r5 features of this chunk
        a.emit(Instr::Set(2, Val::Imm(x)));
        a.emit(Instr::Set(4, features));
        if mix.lists() {
            // r7 indices, r8 values, r10 counts
            let counts =
                |i: usize| (features_of(i).div_ceil(cut.chunk) * mix.taps.len()).div_ceil(2) as i64 * 4;
            let after = |base: i64, table: Expr| Expr::Add(Box::new(Expr::Const(base)), Box::new(table));
            let index = a.param(
                "index",
                after(first_weight, table("counts.bytes", &|i, _| counts(i))),
            );
            let values = a.param(
                "values",
                after(
                    weights,
                    table("values.offset", &|i, r| {
                        if inside(r) { images[r][i].1 as i64 } else { 0 }
                    }),
                ),
            );
            a.emit(Instr::Set(10, Val::Imm(first_weight)));
            a.emit(Instr::Set(7, index));
            a.emit(Instr::Set(8, values));
        } else {
            a.emit(Instr::Set(3, Val::Imm(first_weight)));
        }
        let chunk = a.here("chunk");
        let full = a.label("full");
        a.emit(Instr::Set(5, imm(cut.chunk)));
        a.branch(Cond::Ge, reg(4), reg(5), full);
        a.emit(Instr::Add(5, reg(4), Val::Imm(0)));
        a.bind(full);
        a.emit(Instr::Mul(9, reg(5), imm(length_in)));
        a.emit(Instr::Add(1, reg(1), reg(9)));
        a.emit(Instr::Wait(1, Some(reg(1))));
        if !mix.lists() {
            a.emit(Instr::Mul(6, reg(5), outputs));
            a.emit(Instr::Mul(6, reg(6), Val::Imm(element)));
        }
        for tap in &mix.taps {
            self.tap(&mut a, c, tap, y, outputs, (ex, ey));
        }
        a.emit(Instr::Mul(9, reg(5), Val::Imm(pitch_x)));
        a.emit(Instr::Add(2, reg(2), reg(9)));
        a.emit(Instr::Sub(4, reg(4), reg(5)));
        a.branch(Cond::Ne, reg(4), Val::Imm(0), chunk);
        if has_lane {
            a.emit(Instr::Wait(2, None));
            a.emit(Instr::Wait(3, None));
        }
        match column {
            Column::First => a.map(Op::Mov, 15, Operand::Desc(9), None, Count::None),
            Column::Middle(_) => a.map(
                Op::Add,
                15,
                Operand::Desc(14),
                Some(Operand::Desc(9)),
                Count::Reduce,
            ),
            Column::Last(_) if !mix.relu && c.ty == Ty::F32 => {
                a.map(
                    Op::Add,
                    16,
                    Operand::Desc(14),
                    Some(Operand::Desc(9)),
                    Count::Reduce,
                );
            }
            Column::Last(_) | Column::Only => {
                if column != Column::Only {
                    a.map(
                        Op::Add,
                        9,
                        Operand::Desc(14),
                        Some(Operand::Desc(9)),
                        Count::Reduce,
                    );
                }
                if mix.relu {
                    a.map(
                        Op::Max,
                        16,
                        Operand::Desc(9),
                        Some(Operand::Imm(0.0)),
                        Count::Other,
                    );
                } else {
                    a.map(Op::Mov, 16, Operand::Desc(9), None, Count::None);
                }
            }
        }
        a.emit(Instr::Sub(0, reg(0), Val::Imm(1)));
        a.branch(Cond::Ne, reg(0), Val::Imm(0), item);
        a.emit(Instr::Halt);
        a.finish(at)
    }

    /// The products of one tap with the features of a chunk.
    fn tap(&self, a: &mut Assembler, c: &Context, tap: &Tap, y: i64, outputs: Val, (ex, ey): (i64, i64)) {
        let mix = self.0;
        let element = c.ty.bytes() as i64;
        let imm = |n: usize| Val::Imm(n as i64);
        let reg = Val::Reg;
        let ((_, wi), (ho, wo)) = (mix.input, mix.output);
        let row = (tap.strides[0] * wi) as i64;
        let y_at = y + 4 * tap.y as i64;
        if tap.x > 0 {
            a.emit(Instr::Add(11, reg(2), Val::Imm(tap.x as i64 * element)));
        }
        let x_at = reg(if tap.x > 0 { 11 } else { 2 });
        let (sample_x, sample_y) = ((mix.input.0 * wi) as i64, (ho * wo) as i64);
        if mix.lists() {
            let shape = [imm(mix.samples), imm(tap.rows), imm(tap.columns)];
            a.memory(
                11,
                Ty::F32,
                Val::Imm(y_at),
                &shape,
                &[sample_y, wo as i64, 1],
                true,
            );
            a.memory(
                12,
                c.ty,
                x_at,
                &shape,
                &[sample_x, row, tap.strides[1] as i64],
                true,
            );
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
        a.memory(11, Ty::F32, Val::Imm(y_at), &shape, &[0, ey, wo as i64, 1], true);
        a.memory(12, c.ty, x_at, &shape, &[ex, 0, row, tap.strides[1] as i64], true);
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
        if mix.samples > 1 {
            a.emit(Instr::Set(12, imm(mix.samples)));
            let sample = a.here("sample");
            a.map(
                Op::Mac,
                11,
                Operand::Desc(13),
                Some(Operand::Desc(12)),
                Count::Mac,
            );
            a.emit(Instr::Advance(11, Val::Imm(sample_y * 4)));
            a.emit(Instr::Advance(12, Val::Imm(sample_x * element)));
            a.emit(Instr::Sub(12, reg(12), Val::Imm(1)));
            a.branch(Cond::Ne, reg(12), Val::Imm(0), sample);
        } else {
            a.map(
                Op::Mac,
                11,
                Operand::Desc(13),
                Some(Operand::Desc(12)),
                Count::Mac,
            );
        }
        a.emit(Instr::Add(3, reg(3), reg(6)));
    }
}
