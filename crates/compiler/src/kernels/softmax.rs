//! Softmax over the features, which lie in several rows: rows exchange their largest elements, then their sums, up and down the column.

use super::*;

pub(super) struct SoftmaxKernel;

impl Implementation for SoftmaxKernel {
    fn op(&self) -> &'static str {
        "softmax"
    }

    fn about(&self) -> &'static str {
        "softmax over features: rows exchange maxima, then sums, along the column"
    }

    fn layout(&self, inputs: &[Layout], n: usize, _: usize, inner: Vec<usize>) -> Layout {
        Layout {
            n,
            inner,
            starts: inputs[0].starts.clone(),
        }
    }

    fn widest(&self, _: &Context) -> u32 {
        1
    }

    fn estimate(&self, c: &Context, _: u32) -> Estimate {
        let s = &c.machine.pe.special;
        let (f, l, rows) = (
            c.output.widest() as u64,
            c.output.length() as u64,
            c.output.rows() as u64,
        );
        let cycles = f * l * (5 + s.exp as u64 + s.divide as u64) + 4 * rows * l + 300;
        let bytes = (f + rows + 4) * Context::pitch(Ty::F32, c.output.length()) as u64;
        Estimate {
            cycles,
            bytes: bytes + code_bytes(c.machine, 60),
            // the first row has as many features as any
            fullest: (0, 0),
        }
    }

    fn emit(&self, name: &str, c: &Context, _: u32) -> Emitted {
        let l = c.output.length();
        let pitch = Context::pitch(Ty::F32, l);
        let ep = pitch / 4;
        let mut k = RowLocal::new(c);
        let rows = k.rows;
        let x = k.a.buffer("x", c.output.widest() as u32 * pitch as u32, 0);
        let own = k.a.buffer("own", pitch as u32, 16);
        let others = k.a.buffer("others", rows as u32 * pitch as u32, 0);
        let total = k.a.buffer("total", pitch as u32, 16);
        let features = k.features(name, "features", &c.output);
        let imm = |n: usize| Val::Imm(n as i64);
        let length = imm(l);
        let above = k.a.param("above", Expr::Y);
        let below = k.a.param(
            "below",
            Expr::Sub(Box::new(Expr::Const(rows as i64 - 1)), Box::new(Expr::Y)),
        );
        let last = Expr::Min(
            Box::new(Expr::Const(1)),
            Box::new(Expr::Sub(
                Box::new(Expr::Const(rows as i64 - 1)),
                Box::new(Expr::Y),
            )),
        );
        let south = k.a.param("south", last.clone());
        let not_first = Expr::Min(Box::new(Expr::Const(1)), Box::new(Expr::Y));
        let north = k.a.param("north", not_first.clone());
        let after = Expr::Add(
            Box::new(Expr::Const(others)),
            Box::new(Expr::Mul(Box::new(Expr::Y), Box::new(Expr::Const(pitch)))),
        );
        let after = k.a.param("others.below", after);
        k.a.task("main", Trigger::Start);
        let block = [features, length];
        k.a.memory(0, Ty::F32, Val::Imm(x), &block, &[ep, 1], true);
        k.a.input(1, c.input_colors[0], c.ty, &block);
        k.a.output(2, c.output_color, c.ty, &block, true);
        k.a.memory(3, Ty::F32, Val::Imm(own), &block, &[0, 1], true); // accumulates over features
        k.a.memory(4, Ty::F32, Val::Imm(total), &block, &[0, 1], true); // spreads over features
        k.a.memory(5, Ty::F32, Val::Imm(own), &[length], &[1], true);
        k.a.memory(6, Ty::F32, Val::Imm(total), &[length], &[1], true);
        if rows > 1 {
            k.a.memory(7, Ty::F32, Val::Imm(own), &[south, length], &[0, 1], true);
            k.a.output(8, colors::SOUTH, Ty::F32, &[south, length], true);
            k.a.memory(9, Ty::F32, Val::Imm(own), &[north, length], &[0, 1], true);
            k.a.output(10, colors::NORTH, Ty::F32, &[north, length], true);
            k.a.memory(11, Ty::F32, Val::Imm(others), &[above, length], &[ep, 1], true);
            k.a.input(12, colors::SOUTH, Ty::F32, &[above, length]);
            k.a.memory(13, Ty::F32, after, &[below, length], &[ep, 1], true);
            k.a.input(14, colors::NORTH, Ty::F32, &[below, length]);
            k.a.memory(
                15,
                Ty::F32,
                Val::Imm(others),
                &[imm(rows - 1), length],
                &[ep, 1],
                true,
            );
            k.a.memory(
                16,
                Ty::F32,
                Val::Imm(total),
                &[imm(rows - 1), length],
                &[0, 1],
                true,
            );
        }
        let item = k.begin_items();
        k.a.map(Op::Mov, 0, Operand::Desc(1), None, Count::None);
        // own -> total over all rows
        let exchange = |k: &mut RowLocal, op: Op| {
            k.a.map(Op::Mov, 6, Operand::Desc(5), None, Count::None);
            if rows > 1 {
                k.a.start(2, Op::Mov, 8, Operand::Desc(7), None, Count::None);
                k.a.start(3, Op::Mov, 10, Operand::Desc(9), None, Count::None);
                k.a.start(1, Op::Mov, 11, Operand::Desc(12), None, Count::None);
                k.a.start(4, Op::Mov, 13, Operand::Desc(14), None, Count::None);
                for t in [1, 4, 2, 3] {
                    k.a.emit(Instr::Wait(t, None));
                }
                k.a.map(op, 16, Operand::Desc(16), Some(Operand::Desc(15)), Count::Other);
            }
        };
        k.a.map(Op::Mov, 5, Operand::Imm(f32::NEG_INFINITY), None, Count::None);
        k.a.map(Op::Max, 3, Operand::Desc(3), Some(Operand::Desc(0)), Count::Other);
        exchange(&mut k, Op::Max);
        k.a.map(Op::Sub, 0, Operand::Desc(0), Some(Operand::Desc(4)), Count::Other);
        k.a.map(Op::Exp, 0, Operand::Desc(0), None, Count::Other);
        k.a.map(Op::Mov, 5, Operand::Imm(0.0), None, Count::None);
        k.a.map(Op::Add, 3, Operand::Desc(3), Some(Operand::Desc(0)), Count::Other);
        exchange(&mut k, Op::Add);
        k.a.map(Op::Div, 0, Operand::Desc(0), Some(Operand::Desc(4)), Count::Other);
        k.a.map(Op::Mov, 2, Operand::Desc(0), None, Count::None);
        let mut emitted = k.finish(name, item, vec![Vec::new(); c.lanes()]);
        if rows > 1 {
            use Port::*;
            let stream = format!("{name}: maxima and sums");
            let end = rows as u32 - 1;
            let above = Expr::Y;
            let below = Expr::Sub(Box::new(Expr::Const(rows as i64 - 1)), Box::new(Expr::Y));
            let at = |y: u32, n: u32| Lattice::rect(0, y, 1, n);
            let mut add = |color, at: Lattice, positions: Vec<Position>| {
                if at.ny > 0 {
                    emitted.region.routes.push(route(color, &stream, at, positions));
                }
            };
            let (south, north) = (colors::SOUTH, colors::NORTH);
            add(
                south,
                at(0, end),
                vec![
                    position(Ramp, &[South], 1),
                    position(North, &[South, Ramp], above.clone()),
                ],
            );
            add(
                south,
                at(end, 1),
                vec![position(Ramp, &[Ramp], 0), position(North, &[Ramp], above)],
            );
            add(
                north,
                at(0, 1),
                vec![
                    position(Ramp, &[Ramp], 0),
                    position(South, &[Ramp], below.clone()),
                ],
            );
            add(
                north,
                at(1, end),
                vec![
                    position(Ramp, &[North], 1),
                    position(South, &[North, Ramp], below),
                ],
            );
        }
        emitted
    }
}
