//! Rows of a table, chosen by ids: the rows lie over the columns of the rectangle, their features over its rows.
//!
//! Every PE gets all ids; for each that is one of its own rows it copies that row's part to the token's place, for the others there are
//! zeros. The parts are added along the row from west to east (one of them is not zero), and leave from the last column. What is added to
//! each position lies over the columns too: each begins its sums of some positions with it, and those of all others with zeros.

use super::streams::{Role, alike, by_output_lane, role, sums_along_rows};
use super::*;
use std::sync::Arc;

pub(super) struct EmbeddingKernel<'a>(pub &'a Arc<Table>);

/// Added to an id, it leaves the id as the low bits of the sum: 2^23, and its bits.
const INTEGER: (f32, i64) = (8_388_608.0, 0x4b00_0000);

/// How the table is cut in a rectangle.
struct Cut {
    /// First row of each column, and the end.
    rows: Vec<usize>,
    /// Features of each row: first, and last + 1.
    features: Vec<(usize, usize)>,
}

impl EmbeddingKernel<'_> {
    fn cut(&self, c: &Context, width: u32, height: u32) -> Cut {
        let lanes = c.output.lanes;
        let of = |lane: usize| {
            let rows = lane_row(lane + 1, lanes, height) - lane_row(lane, lanes, height);
            let (first, last) = c.output.lane(lane);
            let starts = balanced(last - first, rows as usize);
            (0..rows as usize).map(move |r| (first + starts[r], first + starts[r + 1]))
        };
        Cut {
            rows: balanced(self.0.rows, width as usize),
            features: (0..lanes).flat_map(of).collect(),
        }
    }

    /// Features of the rows that have most.
    fn widest(&self, c: &Context, height: u32) -> usize {
        let lanes = c.output.lanes;
        (self.0.width / lanes).div_ceil((height as usize / lanes).max(1))
    }

    /// Bytes between two features of what a PE adds to its share of the positions.
    fn start_pitch(&self, c: &Context, width: usize) -> usize {
        match self.0.start.is_some() {
            true => Context::pitch(c.ty, c.output.length().div_ceil(width)) as usize,
            false => 0,
        }
    }

    /// Items after which what is added repeats.
    fn starts(&self) -> usize {
        self.0.starts.max(1)
    }

    fn cost(&self, c: &Context, width: u32, height: u32) -> (u64, u64) {
        let n = c.output.length() as u64;
        let rows = self.0.rows.div_ceil(width as usize) as u64;
        let features = self.widest(c, height) as u64;
        let cost = &c.machine.pe.cost;
        let skip = (cost.load + 4 * cost.add + 2 * cost.branch) as u64;
        let copy = (cost.multiply + 3 * cost.add + cost.branch + cost.issue) as u64 + features;
        let sums = c.move_slots(features as usize, n as usize);
        let cycles = n * (2 + skip) + n.div_ceil(width as u64) * copy + 2 * sums + 60;
        let y = features * Context::pitch(Ty::F32, n as usize) as u64;
        let words = (rows * features * c.ty.bytes() as u64).next_multiple_of(4);
        let starts = features * (self.starts() * self.start_pitch(c, width as usize)) as u64;
        let bytes = words + starts + y + 4 * n + 64 + code_bytes(c.machine, 56);
        (cycles.max(c.stream_cycles()), bytes)
    }

    /// Weights of a PE: what it adds to its positions, once for each item until that repeats, then its part of the table.
    fn image(&self, c: &Context, cut: &Cut, x: usize, y: usize) -> Vec<u32> {
        let (table, n) = (self.0, c.output.length());
        let order = c.output.order.as_deref();
        let features: Vec<usize> = (cut.features[y].0..cut.features[y].1)
            .map(|f| order.map_or(f, |o| o[f]))
            .collect();
        let mut words = Vec::new();
        if let Some(start) = &table.start {
            let width = cut.rows.len() - 1;
            let own = balanced(n, width);
            for item in 0..self.starts() {
                for f in &features {
                    let at = |p: usize| start[(item * n + p) * table.width + f];
                    let end = words.len() + self.start_pitch(c, width) / 4;
                    words.extend(pack(c.ty, &(own[x]..own[x + 1]).map(at).collect::<Vec<f32>>()));
                    words.resize(end, 0);
                }
            }
        }
        let rows = cut.rows[x]..cut.rows[x + 1];
        let values: Vec<f32> = rows
            .flat_map(|r| features.iter().map(move |f| table.values[r * table.width + f]))
            .collect();
        words.extend(pack(c.ty, &values));
        words
    }

    /// The code of the columns with one part in the sums, in rows of one lane where that matters.
    #[allow(clippy::too_many_arguments)] // what distinguishes blocks
    fn block(
        &self,
        name: &str,
        c: &Context,
        cut: &Cut,
        role: Role,
        lane: usize,
        at: Lattice,
        images: &[Vec<u32>],
    ) -> Block {
        let n = c.output.length() as i64;
        let width = cut.rows.len() - 1;
        let most = cut.features.iter().map(|(from, to)| to - from).max().unwrap_or(0);
        let ends = matches!(role, Role::Only | Role::Last(_));
        // the last column adds up, in f32
        let ty = if ends { Ty::F32 } else { c.ty };
        let pitch = Context::pitch(ty, n as usize);
        let mut a = c.assembler();
        let ids = a.buffer("ids", n as u32 * 4, 0);
        let y = a.buffer("y", most as u32 * pitch as u32, 16);
        let bytes = at
            .places()
            .map(|(x, y)| images[y as usize * width + x as usize].len() * 4)
            .max();
        let weights = a.buffer("table", bytes.unwrap_or(0) as u32, 0);
        let number = |what: &str, f: &dyn Fn(usize, usize) -> i64| {
            let label = format!("{name}.{}.{}.{what}", at.x, at.y);
            table(&label, at, |x, y| f(x as usize, y as usize))
        };
        let words = a.param(
            "words",
            number("words", &|x, y| images[y * width + x].len() as i64),
        );
        let share = |y: usize| (cut.features[y].1 - cut.features[y].0) as i64;
        let features = a.param("features", number("features", &|_, y| share(y)));
        let rows = a.param(
            "rows",
            number("rows", &|x, _| (cut.rows[x + 1] - cut.rows[x]) as i64),
        );
        let first = a.param("first", number("first", &|x, _| INTEGER.1 + cut.rows[x] as i64));
        let row_bytes = a.param(
            "row.bytes",
            number("row.bytes", &|_, y| share(y) * c.ty.bytes() as i64),
        );
        let start_pitch = self.start_pitch(c, width) as i64;
        let starts = self.starts() as i64;
        let rows_at = a.param(
            "rows.at",
            number("rows.at", &|_, y| weights + share(y) * starts * start_pitch),
        );
        let (imm, reg) = (Val::Imm, Val::Reg);
        a.task("main", Trigger::Start);
        load_weights(&mut a, words, weights);
        // d0, d1: ids; d2: results; d3, d8: what some of them start from, and these; d4, d5: a token's, and its row; d6, d7: sums
        a.memory(0, Ty::F32, imm(ids), &[imm(1), imm(n)], &[0, 1], true);
        a.input(1, c.input_colors[0][0], Ty::F32, &[imm(1), imm(n)]);
        let all = [features, imm(n)];
        a.memory(2, ty, imm(y), &all, &[pitch / ty.bytes() as i64, 1], true);
        let started = self.0.start.is_some();
        let mut step = imm(0);
        if started {
            let own = balanced(n as usize, width);
            let length = number("positions", &|x, _| (own[x + 1] - own[x]) as i64);
            let positions = [features, a.param("positions", length)];
            let first = number("position", &|x, _| y + own[x] as i64 * ty.bytes() as i64);
            let at = a.param("position", first);
            a.memory(
                3,
                c.ty,
                imm(weights),
                &positions,
                &[start_pitch / c.ty.bytes() as i64, 1],
                true,
            );
            a.memory(8, ty, at, &positions, &[pitch / ty.bytes() as i64, 1], true);
            if starts > 1 {
                step = a.param(
                    "start.bytes",
                    number("start.bytes", &|_, y| share(y) * start_pitch),
                );
                // r5: items until what is added repeats
                a.emit(Instr::Set(5, imm(starts)));
            }
        }
        a.memory(4, ty, imm(y), &[features], &[pitch / ty.bytes() as i64], true);
        a.memory(5, c.ty, rows_at, &[features], &[1], true);
        if let Role::Middle(parity) | Role::Last(parity) = role {
            a.input(6, colors::REDUCE[1 - parity], c.ty, &all);
        }
        match role {
            Role::First => a.output(7, colors::REDUCE[0], c.ty, &all, false),
            Role::Middle(parity) => a.output(7, colors::REDUCE[parity], c.ty, &all, false),
            Role::Only | Role::Last(_) => a.output(7, c.output_colors[lane], c.ty, &all, true),
        }
        let receive = |a: &mut Assembler| a.start(1, Op::Mov, 0, Operand::Desc(1), None, Count::None);
        receive(&mut a);
        a.emit(Instr::Set(0, imm(c.items as i64)));
        let item = a.here("item");
        a.map(Op::Mov, 2, Operand::Imm(0.0), None, Count::None);
        if started {
            a.map(Op::Mov, 8, Operand::Desc(3), None, Count::None);
            if starts > 1 {
                let more = a.label("more");
                a.emit(Instr::Advance(3, step));
                a.emit(Instr::Sub(5, reg(5), imm(1)));
                a.branch(Cond::Ne, reg(5), imm(0), more);
                a.emit(Instr::Base(3, imm(weights)));
                a.emit(Instr::Set(5, imm(starts)));
                a.bind(more);
            }
        }
        a.emit(Instr::Wait(1, None));
        a.map(
            Op::Add,
            0,
            Operand::Desc(0),
            Some(Operand::Imm(INTEGER.0)),
            Count::Other,
        );
        // r1 id, r2 its token's results, r3 tokens left, r4 row
        a.emit(Instr::Set(1, imm(ids)));
        a.emit(Instr::Set(2, imm(y)));
        a.emit(Instr::Set(3, imm(n)));
        let token = a.here("token");
        let skip = a.label("skip");
        a.emit(Instr::Load(Word::I32, 4, reg(1), imm(0)));
        a.emit(Instr::Sub(4, reg(4), first));
        a.branch(Cond::Lt, reg(4), imm(0), skip);
        a.branch(Cond::Ge, reg(4), rows, skip);
        a.emit(Instr::Mul(4, reg(4), row_bytes));
        a.emit(Instr::Add(4, reg(4), rows_at));
        a.emit(Instr::Base(5, reg(4)));
        a.emit(Instr::Base(4, reg(2)));
        if started {
            a.map(Op::Add, 4, Operand::Desc(4), Some(Operand::Desc(5)), Count::Other);
        } else {
            a.map(Op::Mov, 4, Operand::Desc(5), None, Count::None);
        }
        a.bind(skip);
        a.emit(Instr::Add(1, reg(1), imm(4)));
        a.emit(Instr::Add(2, reg(2), imm(ty.bytes() as i64)));
        a.emit(Instr::Sub(3, reg(3), imm(1)));
        a.branch(Cond::Ne, reg(3), imm(0), token);
        let last = a.label("last");
        a.branch(Cond::Eq, reg(0), imm(1), last);
        receive(&mut a);
        a.bind(last);
        match role {
            Role::Only | Role::First => a.map(Op::Mov, 7, Operand::Desc(2), None, Count::None),
            _ => a.map(
                Op::Add,
                7,
                Operand::Desc(6),
                Some(Operand::Desc(2)),
                Count::Reduce,
            ),
        }
        a.emit(Instr::Sub(0, reg(0), imm(1)));
        a.branch(Cond::Ne, reg(0), imm(0), item);
        a.emit(Instr::Halt);
        a.finish(at)
    }
}

impl Implementation for EmbeddingKernel<'_> {
    fn op(&self) -> &'static str {
        "embedding"
    }

    fn about(&self) -> &'static str {
        "rows of a table by id: its rows over columns, their features over rows, the parts added along rows"
    }

    fn fit(&self, c: &Context, width: u32, height: u32) -> (u32, u32) {
        let lanes = c.output.lanes as u32;
        let h = fewest(self.0.width / lanes as usize, height / lanes) * lanes;
        // as few columns as bring no loss
        let widths = (1..=fewest(self.0.rows, width)).filter(|w| fewest(self.0.rows, *w) == *w);
        let costs: Vec<_> = widths.map(|w| (w, self.cost(c, w, h))).collect();
        let fits = |(_, (_, bytes)): &&(u32, (u64, u64))| *bytes <= c.machine.pe.sram_bytes as u64;
        let best = costs
            .iter()
            .filter(fits)
            .min_by_key(|(w, (cycles, _))| (*cycles, *w));
        (best.or(costs.last()).map_or(1, |(w, _)| *w), h)
    }

    fn estimate(&self, c: &Context, width: u32, height: u32) -> Option<Estimate> {
        if width as usize > self.0.rows
            || height as usize > self.0.width
            || (height as usize) < c.output.lanes
        {
            return None;
        }
        let (cycles, bytes) = self.cost(c, width, height);
        Some(Estimate {
            cycles,
            bytes,
            // the first column has as many rows and the first row as many features as any; the last column adds up in f32
            fullest: (if c.ty == Ty::F32 { 0 } else { width - 1 }, 0),
        })
    }

    fn exit(&self, width: u32) -> u32 {
        width - 1
    }

    fn emit(&self, name: &str, c: &Context, width: u32, height: u32) -> Emitted {
        let cut = self.cut(c, width, height);
        let (w, h) = (width as usize, height as usize);
        let mut region = region(name, width, height);
        let images: Vec<Vec<u32>> = (0..h)
            .flat_map(|y| (0..w).map(move |x| (x, y)))
            .map(|(x, y)| self.image(c, &cut, x, y))
            .collect();
        let parts = vec![Some(Part::Features(0, 1)); w * h];
        let stream = format!("{name}: input 0");
        let per = per_wavelet(c.machine, Ty::F32);
        let (layout, color) = (&c.inputs[0], c.input_colors[0][0]);
        let entry = distribute(&mut region, &stream, color, layout, 0, per, (0, 0), &parts);
        sums_along_rows(&mut region, name);
        let stream = format!("{name}: output");
        let lanes = c.output.lanes;
        let rows = |lane: usize| lane_row(lane, lanes, height)..lane_row(lane + 1, lanes, height);
        let sends = |x: u32, _: u32| x + 1 == width;
        let exits = (0..lanes)
            .map(|lane| {
                collect(
                    &mut region,
                    &stream,
                    c.output_colors[lane],
                    rows(lane),
                    width - 1,
                    sends,
                )
            })
            .collect();
        // columns with one part in the sums share their code
        for (role, columns) in alike((0..w).map(|x| role(x, w))) {
            let places = by_output_lane(role, &columns, lanes, height);
            for (part, at) in places.into_iter().enumerate() {
                let block = self.block(name, c, &cut, role, part, at, &images);
                region.blocks.push(block);
            }
        }
        let gives = (0..height)
            .map(|y| Give {
                at: (width - 1, y),
                features: cut.features[y as usize],
                turn: None,
                positions: vec![(0, c.output.length())],
            })
            .collect();
        Emitted {
            region,
            weights: images,
            entries: vec![vec![entry]],
            exits,
            gives,
            streamed: None,
        }
    }
}
