//! Depthwise convolution: every output feature reads one input feature, so each PE works on its own features.

use super::*;
use std::sync::Arc;

pub(super) struct DepthwiseKernel<'a>(pub &'a Arc<Linear>);

impl DepthwiseKernel<'_> {
    /// Output features an input feature.
    fn multiplier(&self) -> usize {
        self.0.m / self.0.k
    }

    /// Weights of the PE that has the input features from..to: biases, then per tap either all weights or counts, indices and values.
    /// Also where values begin, in bytes.
    fn image(&self, c: &Context, bias_bytes: usize, (from, to): (usize, usize)) -> (Vec<u32>, usize) {
        let linear = self.0;
        let order = c.output.order.as_deref();
        let outputs: Vec<usize> = (from * self.multiplier()..to * self.multiplier())
            .map(|m| order.map_or(m, |o| o[m]))
            .collect();
        if outputs.is_empty() {
            return (Vec::new(), 0);
        }
        let bias = |m: &usize| linear.bias.as_ref().map_or(0.0f32, |b| b[*m]).to_bits();
        let mut words: Vec<u32> = outputs.iter().map(bias).collect();
        words.resize(bias_bytes / 4, 0);
        let (mut counts, mut index, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for tap in &linear.taps {
            let before = values.len();
            for (i, m) in outputs.iter().enumerate() {
                let w = linear.weights[m * linear.window + tap.index];
                if !linear.sparse || w != 0.0 {
                    index.push(i as u16);
                    values.push(w);
                }
            }
            counts.push((values.len() - before) as u16);
        }
        if linear.sparse {
            words.extend(pack_u16(&counts));
            words.extend(pack_u16(&index));
        }
        let at = words.len() * 4;
        words.extend(pack(c.ty, &values));
        (words, at)
    }

    /// Where results begin, and the cycles of an output feature's products.
    fn phase(&self, c: &Context) -> (u32, u64) {
        let products = |t: &Tap| {
            let lanes = if t.strides[1] * t.steps[1] == 1 {
                c.multiply_lanes() as usize
            } else {
                1
            };
            let steps = t.rows * self.0.samples * t.columns.div_ceil(lanes);
            (4 * t.y as i64, c.ty.bytes() as i64 * t.x as i64, steps as u64)
        };
        phase(c.machine, &self.0.taps.iter().map(products).collect::<Vec<_>>())
    }

    fn cost(&self, c: &Context, width: u32, height: u32) -> (u64, u64) {
        let linear = self.0;
        let cost = &c.machine.pe.cost;
        let fi = local::widest(c, Split::Features, width, height);
        let fo = fi * self.multiplier();
        let (li, lo) = (c.inputs[0].length(), c.output.length());
        // instructions of a tap, and products of all its features
        let (instructions, lists) = if linear.sparse {
            (1, cost.issue as usize * fo)
        } else {
            (linear.samples * self.multiplier(), 0)
        };
        let fixed = (3 * cost.descriptor + 2 * cost.multiply + cost.issue + 6) as usize * instructions;
        let each = linear.taps.len() * (lists + fixed);
        let products = fo as u64 * self.phase(c).1 + each as u64;
        let moved = c.move_slots(fi, li) + 2 * c.move_slots(fo, lo);
        let data =
            fi as u64 * Context::pitch(c.ty, li) as u64 + fo as u64 * Context::pitch(Ty::F32, lo) as u64;
        let entry = c.ty.bytes() as usize + if linear.sparse { 2 } else { 0 };
        let weights = bias_bytes(fo) + fo * linear.taps.len() * entry;
        let lists = if linear.sparse {
            2 * linear.taps.len() + 8
        } else {
            4
        };
        let code = 24 + linear.variants() * if linear.sparse { 9 } else { 5 * instructions + 2 };
        (
            (products + moved + 60).max(c.stream_cycles()),
            data + (weights + lists) as u64 + code_bytes(c.machine, code),
        )
    }
}

/// Bytes of the biases of so many features, up to where weights begin.
fn bias_bytes(features: usize) -> usize {
    (features * 4).next_multiple_of(32)
}

impl Implementation for DepthwiseKernel<'_> {
    fn op(&self) -> &'static str {
        "depthwise"
    }

    fn about(&self) -> &'static str {
        "depthwise convolution: each PE works on its own features, weights resident"
    }

    fn fit(&self, c: &Context, width: u32, height: u32) -> (u32, u32) {
        local::fit(c, Split::Features, width, height, |w, h| self.cost(c, w, h))
    }

    fn estimate(&self, c: &Context, width: u32, height: u32) -> Option<Estimate> {
        let (cycles, bytes) = self.cost(c, width, height);
        Some(Estimate {
            cycles,
            bytes,
            // the first PE has as many features as any
            fullest: (0, 0),
        })
    }

    fn emit(&self, name: &str, c: &Context, width: u32, height: u32) -> Emitted {
        let linear = self.0;
        let (li, lo) = (c.inputs[0].length(), c.output.length());
        let (pitch_x, pitch_y) = (Context::pitch(c.ty, li), Context::pitch(Ty::F32, lo));
        let element = c.ty.bytes() as i64;
        let (ex, ey) = (pitch_x / element, pitch_y / 4);
        let mut k = Local::new(name, c, Split::Features, width, height);
        let mi = self.multiplier() as i64;
        let most = k.widest();
        let bias = bias_bytes(most * mi as usize);
        let images: Vec<_> = k.shares.iter().map(|share| self.image(c, bias, *share)).collect();
        let x = k.a.buffer("x", most as u32 * pitch_x as u32, 0);
        let y =
            k.a.buffer("y", (most as i64 * mi * pitch_y) as u32, self.phase(c).0);
        let bytes = images.iter().map(|i| i.0.len() * 4).max().unwrap_or(0);
        let weights = k.a.buffer("weights", bytes as u32, 0);
        let first = weights + bias as i64;
        let inputs = k.share("inputs");
        let outputs = k.number("outputs", |from, to| (to - from) as i64 * mi);
        let words: Vec<i64> = images.iter().map(|i| i.0.len() as i64).collect();
        let values: Vec<i64> = images.iter().map(|i| weights + i.1 as i64).collect();
        let (words, values) = (k.each("words", &words), k.each("values", &values));
        let imm = |n: usize| Val::Imm(n as i64);
        let reg = Val::Reg;
        k.a.task("main", Trigger::Start);
        load_weights(&mut k.a, words, weights);
        k.a.memory(0, c.ty, Val::Imm(x), &[inputs, imm(li)], &[ex, 1], c.wide());
        k.a.input(1, c.input_colors[0][0], c.ty, &[inputs, imm(li)]);
        let all = [outputs, imm(lo)];
        k.a.memory(2, Ty::F32, Val::Imm(y), &all, &[ey, 1], true);
        k.a.memory(3, Ty::F32, Val::Imm(weights), &all, &[1, 0], true);
        k.a.output(4, c.output_colors[0], c.ty, &all, true);
        bands::begin(&mut k.a, linear);
        let item = k.begin_items();
        k.a.map(Op::Mov, 2, Operand::Desc(3), None, Count::None);
        k.a.map(Op::Mov, 0, Operand::Desc(1), None, Count::None);
        // input features are kept in order, so output feature f reads input f / multiplier
        let (wi, wo) = (linear.input.1 as i64, linear.output.1 as i64);
        let (sx, sy) = (
            (linear.input.0 * linear.input.1) as i64,
            (linear.output.0 * linear.output.1) as i64,
        );
        k.a.emit(Instr::Set(8, values));
        if linear.sparse {
            let counts = (linear.taps.len().div_ceil(2) * 4) as i64;
            k.a.emit(Instr::Set(10, Val::Imm(first)));
            k.a.emit(Instr::Set(7, Val::Imm(first + counts)));
        }
        bands::taps(&mut k.a, linear, |a, _, tap| {
            let (row, column) = (tap.strides[0] as i64 * wi, tap.strides[1] as i64);
            let (row_y, column_y) = (tap.steps[0] as i64 * wo, tap.steps[1] as i64);
            let (y_at, x_at) = (y + 4 * tap.y as i64, x + element * tap.x as i64);
            if linear.sparse {
                let shape = [imm(linear.samples), imm(tap.rows), imm(tap.columns)];
                a.memory(5, Ty::F32, Val::Imm(y_at), &shape, &[sy, row_y, column_y], true);
                a.memory(6, c.ty, Val::Imm(x_at), &shape, &[sx, row, column], true);
                a.emit(Instr::Load(Word::U16, 6, reg(10), Val::Imm(0)));
                a.emit(Instr::Add(10, reg(10), Val::Imm(2)));
                if tap.rows > 0 {
                    a.emit(Instr::Vector(Vector::Axpy {
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
                }
                a.emit(Instr::Add(7, reg(7), reg(6)));
                a.emit(Instr::Add(7, reg(7), reg(6)));
                a.emit(Instr::Mul(6, reg(6), Val::Imm(element)));
                a.emit(Instr::Add(8, reg(8), reg(6)));
                return;
            }
            for s in (0..linear.samples as i64).filter(|_| tap.rows > 0) {
                for j in 0..mi {
                    let shape = [inputs, imm(tap.rows), imm(tap.columns)];
                    a.memory(
                        5,
                        Ty::F32,
                        Val::Imm(y_at + 4 * s * sy + j * pitch_y),
                        &shape,
                        &[mi * ey, row_y, column_y],
                        true,
                    );
                    a.memory(
                        6,
                        c.ty,
                        Val::Imm(x_at + element * s * sx),
                        &shape,
                        &[ex, row, column],
                        true,
                    );
                    a.emit(Instr::Add(9, reg(8), Val::Imm(j * element)));
                    a.memory(7, c.ty, reg(9), &shape, &[mi, 0, 0], true);
                    a.map(Op::Mac, 5, Operand::Desc(7), Some(Operand::Desc(6)), Count::Mac);
                }
            }
            a.emit(Instr::Mul(9, outputs, Val::Imm(element)));
            a.emit(Instr::Add(8, reg(8), reg(9)));
        });
        if linear.relu {
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
        bands::next(&mut k.a, linear);
        k.finish(item, images.into_iter().map(|i| i.0).collect())
    }
}
