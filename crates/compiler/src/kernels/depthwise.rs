//! Depthwise convolution: every output feature reads one input feature, so each row works on its own lane.

use super::*;
use std::sync::Arc;

pub(super) struct DepthwiseKernel<'a>(pub &'a Arc<Mix>);

impl DepthwiseKernel<'_> {
    /// Output features an input feature.
    fn multiplier(&self) -> usize {
        self.0.m / self.0.k
    }

    /// Weights of a row: bias, then per tap either all weights or counts, indices and values. Also where values begin, in bytes.
    fn image(&self, c: &Context, row: usize) -> (Vec<u32>, usize) {
        let mix = self.0;
        let (m0, m1) = (c.output.starts[row], c.output.starts[row + 1]);
        let mut words: Vec<u32> = (m0..m1)
            .map(|m| mix.bias.as_ref().map_or(0.0f32, |b| b[m]).to_bits())
            .collect();
        words.resize(self.bias_bytes(c) / 4, 0);
        let (mut counts, mut index, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for tap in &mix.taps {
            let before = values.len();
            for m in m0..m1 {
                let w = mix.weights[m * mix.window + tap.index];
                if !mix.sparse || w != 0.0 {
                    index.push((m - m0) as u16);
                    values.push(w);
                }
            }
            counts.push((values.len() - before) as u16);
        }
        if mix.sparse {
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
}

impl Implementation for DepthwiseKernel<'_> {
    fn op(&self) -> &'static str {
        "depthwise"
    }

    fn about(&self) -> &'static str {
        "depthwise convolution: each row works on its own features, weights resident"
    }

    fn layout(&self, inputs: &[Layout], n: usize, _: usize, inner: Vec<usize>) -> Layout {
        Layout {
            n,
            inner,
            starts: inputs[0].starts.iter().map(|s| s * self.multiplier()).collect(),
        }
    }

    fn widest(&self, _: &Context) -> u32 {
        1
    }

    fn estimate(&self, c: &Context, _: u32) -> Estimate {
        let mix = self.0;
        let lanes = if c.ty == Ty::F32 {
            c.machine.pe.lanes.f32
        } else {
            c.machine.pe.lanes.f16
        } as usize;
        let hits: usize = mix
            .taps
            .iter()
            .map(|t| t.rows * mix.samples * t.columns.div_ceil(lanes) + 40)
            .sum();
        let (li, lo) = (c.inputs[0].length(), c.output.length());
        let (fi, fo) = (c.inputs[0].widest(), c.output.widest());
        let moved = c.move_slots(fi, li) + 2 * c.move_slots(fo, lo);
        let bytes = fi as i64 * Context::pitch(c.ty, li)
            + fo as i64 * Context::pitch(Ty::F32, lo)
            + (fo * (mix.window * (2 + c.ty.bytes() as usize) + 4)) as i64;
        let code = code_bytes(c.machine, 30 + mix.taps.len() * 10 * self.multiplier());
        Estimate {
            cycles: (hits * fo) as u64 + moved,
            bytes: bytes as u64 + code,
            // the first row has as many features as any
            fullest: (0, 0),
        }
    }

    fn emit(&self, name: &str, c: &Context, _: u32) -> Emitted {
        let mix = self.0;
        let (li, lo) = (c.inputs[0].length(), c.output.length());
        let (pitch_x, pitch_y) = (Context::pitch(c.ty, li), Context::pitch(Ty::F32, lo));
        let element = c.ty.bytes() as i64;
        let (ex, ey) = (pitch_x / element, pitch_y / 4);
        let mut k = RowLocal::new(c);
        let images: Vec<_> = (0..k.rows).map(|r| self.image(c, r)).collect();
        let x = k.a.buffer("x", c.inputs[0].widest() as u32 * pitch_x as u32, 0);
        let y = k.a.buffer("y", c.output.widest() as u32 * pitch_y as u32, 16);
        let bytes = images.iter().map(|i| i.0.len() * 4).max().unwrap_or(0);
        let weights = k.a.buffer("weights", bytes as u32, 0);
        let first = weights + self.bias_bytes(c) as i64;
        let inputs = k.features(name, "inputs", &c.inputs[0]);
        let outputs = k.features(name, "outputs", &c.output);
        let words = k.a.param(
            "words",
            by_row(
                format!("{name}.words"),
                images.iter().map(|i| i.0.len() as i64).collect(),
            ),
        );
        let values = k.a.param(
            "values",
            by_row(
                format!("{name}.values"),
                images.iter().map(|i| weights + i.1 as i64).collect(),
            ),
        );
        let imm = |n: usize| Val::Imm(n as i64);
        let reg = Val::Reg;
        k.a.task("main", Trigger::Start);
        load_weights(&mut k.a, words, weights);
        k.a.memory(0, c.ty, Val::Imm(x), &[inputs, imm(li)], &[ex, 1], c.wide());
        k.a.input(1, c.input_colors[0], c.ty, &[inputs, imm(li)]);
        let all = [outputs, imm(lo)];
        k.a.memory(2, Ty::F32, Val::Imm(y), &all, &[ey, 1], true);
        k.a.memory(3, Ty::F32, Val::Imm(weights), &all, &[1, 0], true);
        k.a.output(4, c.output_color, c.ty, &all, true);
        let item = k.begin_items();
        k.a.map(Op::Mov, 2, Operand::Desc(3), None, Count::None);
        k.a.map(Op::Mov, 0, Operand::Desc(1), None, Count::None);
        // a row that has the features of several inputs keeps them in order, so feature f reads input f / multiplier
        let (mi, (wi, wo)) = (
            self.multiplier() as i64,
            (mix.input.1 as i64, mix.output.1 as i64),
        );
        let (sx, sy) = (
            (mix.input.0 * mix.input.1) as i64,
            (mix.output.0 * mix.output.1) as i64,
        );
        k.a.emit(Instr::Set(8, values));
        if mix.sparse {
            let counts = (mix.taps.len().div_ceil(2) * 4) as i64;
            k.a.emit(Instr::Set(10, Val::Imm(first)));
            k.a.emit(Instr::Set(7, Val::Imm(first + counts)));
        }
        for tap in &mix.taps {
            let row = tap.strides[0] as i64 * wi;
            let (y_at, x_at) = (y + 4 * tap.y as i64, x + element * tap.x as i64);
            if mix.sparse {
                let shape = [imm(mix.samples), imm(tap.rows), imm(tap.columns)];
                k.a.memory(5, Ty::F32, Val::Imm(y_at), &shape, &[sy, wo, 1], true);
                k.a.memory(
                    6,
                    c.ty,
                    Val::Imm(x_at),
                    &shape,
                    &[sx, row, tap.strides[1] as i64],
                    true,
                );
                k.a.emit(Instr::Load(Word::U16, 6, reg(10), Val::Imm(0)));
                k.a.emit(Instr::Add(10, reg(10), Val::Imm(2)));
                k.a.emit(Instr::Vector(Vector::Axpy {
                    y: 5,
                    x: 6,
                    list: List::Memory {
                        index: reg(7),
                        value: reg(8),
                        count: reg(6),
                        ty: c.ty,
                    },
                    modulo: Val::Imm(65536),
                    divisor: Val::Imm(mi),
                    y_step: Val::Imm(pitch_y),
                    x_step: Val::Imm(pitch_x),
                    count: Count::Mac,
                }));
                k.a.emit(Instr::Add(7, reg(7), reg(6)));
                k.a.emit(Instr::Add(7, reg(7), reg(6)));
                k.a.emit(Instr::Mul(6, reg(6), Val::Imm(element)));
                k.a.emit(Instr::Add(8, reg(8), reg(6)));
                continue;
            }
            for s in 0..mix.samples as i64 {
                for j in 0..mi {
                    let shape = [inputs, imm(tap.rows), imm(tap.columns)];
                    k.a.memory(
                        5,
                        Ty::F32,
                        Val::Imm(y_at + 4 * s * sy + j * pitch_y),
                        &shape,
                        &[mi * ey, wo, 1],
                        true,
                    );
                    k.a.memory(
                        6,
                        c.ty,
                        Val::Imm(x_at + element * s * sx),
                        &shape,
                        &[ex, row, tap.strides[1] as i64],
                        true,
                    );
                    k.a.emit(Instr::Add(9, reg(8), Val::Imm(j * element)));
                    k.a.memory(7, c.ty, reg(9), &shape, &[mi, 0, 0], true);
                    k.a.map(Op::Mac, 5, Operand::Desc(7), Some(Operand::Desc(6)), Count::Mac);
                }
            }
            k.a.emit(Instr::Mul(9, outputs, Val::Imm(element)));
            k.a.emit(Instr::Add(8, reg(8), reg(9)));
        }
        if mix.relu {
            k.a.map(
                Op::Max,
                4,
                Operand::Desc(2),
                Some(Operand::Imm(0.0)),
                Count::Other,
            );
        } else {
            k.a.map(Op::Mov, 4, Operand::Desc(2), None, Count::None);
        }
        let mut all: Vec<Vec<u32>> = images.into_iter().map(|i| i.0).collect();
        all.resize(c.lanes(), Vec::new());
        k.finish(name, item, all)
    }
}
