//! Maximum and average pooling: each row works on its own lane.
//!
//! One instruction a window element (all output positions that it hits) or one an output position (its whole window), whichever are fewer.

use super::*;

pub(super) struct PoolKernel<'a>(pub &'a Pool);

/// The input range that a window at output position `o` covers.
fn range(p: &Pool, axis: usize, o: usize) -> (usize, usize) {
    let size = if axis == 0 { p.input.0 } else { p.input.1 } as i64;
    let first = (o * p.strides[axis]) as i64 - p.pads[axis] as i64;
    let last = (first + p.kernel[axis] as i64).min(size);
    (first.max(0) as usize, last.max(0) as usize)
}

impl PoolKernel<'_> {
    fn taps(&self) -> Vec<Tap> {
        crate::passes::rewrite::taps(
            self.0.kernel,
            self.0.strides,
            self.0.pads,
            [1, 1],
            self.0.input,
            self.0.output,
        )
    }

    fn by_position(&self) -> bool {
        self.0.output.0 * self.0.output.1 < self.taps().len()
    }

    /// 1 / (elements of the window) at each output position; `None` where all are equal.
    fn scales(&self) -> Result<f32, Vec<f32>> {
        let p = self.0;
        if p.count_padding {
            return Ok(1.0 / (p.kernel[0] * p.kernel[1]) as f32);
        }
        let all: Vec<f32> = (0..p.output.0)
            .flat_map(|i| (0..p.output.1).map(move |j| (i, j)))
            .map(|(i, j)| {
                let ((a, b), (c, d)) = (range(p, 0, i), range(p, 1, j));
                1.0 / ((b - a) * (d - c)) as f32
            })
            .collect();
        if all.iter().all(|s| *s == all[0]) {
            Ok(all[0])
        } else {
            Err(all)
        }
    }
}

impl Implementation for PoolKernel<'_> {
    fn op(&self) -> &'static str {
        if self.0.max { "maxpool" } else { "avgpool" }
    }

    fn about(&self) -> &'static str {
        "pooling over windows: each row works on its own features"
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
        let hits: usize = self.taps().iter().map(|t| t.rows * t.columns).sum::<usize>() * c.output.n;
        let instructions = self.taps().len().min(self.0.output.0 * self.0.output.1);
        let f = c.output.widest();
        let (li, lo) = (c.inputs[0].length(), c.output.length());
        let cycles = (f * hits + instructions * 30) as u64 + c.move_slots(f, li) + 2 * c.move_slots(f, lo);
        let bytes = f as i64 * (Context::pitch(c.ty, li) + Context::pitch(Ty::F32, lo)) + 4 * lo as i64;
        Estimate {
            cycles,
            bytes: bytes as u64 + code_bytes(c.machine, 30 + instructions * 4),
            // the first row has as many features as any
            fullest: (0, 0),
        }
    }

    fn emit(&self, name: &str, c: &Context, _: u32) -> Emitted {
        let p = self.0;
        let (li, lo, n) = (c.inputs[0].length(), c.output.length(), c.output.n);
        let (pitch_x, pitch_y) = (Context::pitch(c.ty, li), Context::pitch(Ty::F32, lo));
        let element = c.ty.bytes() as i64;
        let (ex, ey) = (pitch_x / element, pitch_y / 4);
        let mut k = RowLocal::new(c);
        let f = c.output.widest() as u32;
        let x = k.a.buffer("x", f * pitch_x as u32, 0);
        let y = k.a.buffer("y", f * pitch_y as u32, 16);
        let scales = if p.max { Ok(1.0) } else { self.scales() };
        let image: Vec<u32> = scales
            .as_ref()
            .err()
            .map_or(Vec::new(), |s| s.iter().map(|s| s.to_bits()).collect());
        let scale_at = k.a.buffer("scales", image.len() as u32 * 4, 0);
        let features = k.features(name, "features", &c.output);
        let imm = |n: usize| Val::Imm(n as i64);
        k.a.task("main", Trigger::Start);
        if !image.is_empty() {
            load_weights(&mut k.a, imm(image.len()), scale_at);
        }
        k.a.memory(0, c.ty, Val::Imm(x), &[features, imm(li)], &[ex, 1], c.wide());
        k.a.input(1, c.input_colors[0], c.ty, &[features, imm(li)]);
        k.a.memory(2, Ty::F32, Val::Imm(y), &[features, imm(lo)], &[ey, 1], true);
        k.a.output(3, c.output_color, c.ty, &[features, imm(lo)], true);
        let item = k.begin_items();
        k.a.map(
            Op::Mov,
            2,
            Operand::Imm(if p.max { f32::NEG_INFINITY } else { 0.0 }),
            None,
            Count::None,
        );
        k.a.map(Op::Mov, 0, Operand::Desc(1), None, Count::None);
        let op = if p.max { Op::Max } else { Op::Add };
        let (wi, wo) = (p.input.1 as i64, p.output.1 as i64);
        let (sx, sy) = ((p.input.0 * p.input.1) as i64, (p.output.0 * p.output.1) as i64);
        let mut one = |y_at: i64, x_at: i64, shape: [Val; 4], ys: [i64; 4], xs: [i64; 4]| {
            k.a.memory(4, Ty::F32, Val::Imm(y + 4 * y_at), &shape, &ys, true);
            k.a.memory(5, c.ty, Val::Imm(x + element * x_at), &shape, &xs, true);
            k.a.map(op, 4, Operand::Desc(4), Some(Operand::Desc(5)), Count::Other);
        };
        if self.by_position() {
            for (i, j) in (0..p.output.0).flat_map(|i| (0..p.output.1).map(move |j| (i, j))) {
                let ((a, b), (d, e)) = (range(p, 0, i), range(p, 1, j));
                let shape = [features, imm(n), imm(b - a), imm(e - d)];
                one(
                    (i as i64) * wo + j as i64,
                    a as i64 * wi + d as i64,
                    shape,
                    [ey, sy, 0, 0],
                    [ex, sx, wi, 1],
                );
            }
        } else {
            for t in self.taps() {
                let shape = [features, imm(n), imm(t.rows), imm(t.columns)];
                let row = t.strides[0] as i64 * wi;
                one(
                    t.y as i64,
                    t.x as i64,
                    shape,
                    [ey, sy, wo, 1],
                    [ex, sx, row, t.strides[1] as i64],
                );
            }
        }
        match (p.max, scales) {
            (true, _) => k.a.map(Op::Mov, 3, Operand::Desc(2), None, Count::None),
            (false, Ok(s)) => {
                k.a.map(Op::Mul, 3, Operand::Desc(2), Some(Operand::Imm(s)), Count::Other)
            }
            (false, Err(_)) => {
                let shape = [features, imm(n), imm(p.output.0 * p.output.1)];
                k.a.memory(4, Ty::F32, Val::Imm(y), &shape, &[ey, sy, 1], true);
                k.a.memory(5, Ty::F32, Val::Imm(scale_at), &shape, &[0, 0, 1], true);
                k.a.map(Op::Mul, 4, Operand::Desc(4), Some(Operand::Desc(5)), Count::Other);
                k.a.map(Op::Mov, 3, Operand::Desc(2), None, Count::None);
            }
        }
        let rows = k.rows;
        let weights = (0..c.lanes())
            .map(|r| if r < rows { image.clone() } else { Vec::new() })
            .collect();
        k.finish(name, item, weights)
    }
}
