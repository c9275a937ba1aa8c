//! Maximum and average pooling: each PE has some features.
//!
//! One instruction a window element (all output positions that it hits) or one an output position (its whole window), whichever are fewer.

use super::*;
use crate::passes::rewrite::{Window, taps};

pub(super) struct PoolKernel<'a>(pub &'a Pool);

/// The input range that a window at output position `o` covers.
fn range(p: &Pool, axis: usize, o: usize) -> (usize, usize) {
    let size = if axis == 0 { p.input.0 } else { p.input.1 } as i64;
    let first = (o * p.strides[axis]) as i64 - p.pads[axis] as i64;
    let last = (first + p.kernel[axis] as i64).min(size);
    (first.max(0) as usize, last.max(0) as usize)
}

/// What does not depend on the rectangle.
struct Work {
    /// Where results begin, and cycles of a feature's window elements that hit the input.
    phase: (u32, u64),
    /// Instructions of the window.
    instructions: usize,
    /// Of these, those for which descriptors are set anew.
    set: usize,
    /// Entries of the table of scales.
    scales: usize,
}

/// A vector instruction: results and inputs that it runs over, as elements of a plane.
#[derive(Clone, Copy)]
struct Instruction {
    /// Rows and columns.
    shape: (usize, usize),
    /// First result.
    y: usize,
    /// First input.
    x: usize,
    strides_y: [usize; 2],
    strides_x: [usize; 2],
}

impl Instruction {
    /// Whether only the places where it begins differ.
    fn runs_like(&self, other: &Instruction) -> bool {
        (self.shape, self.strides_y, self.strides_x) == (other.shape, other.strides_y, other.strides_x)
    }
}

/// Planes of one feature, one after another.
fn samples(c: &Context) -> usize {
    c.output.outer
}

impl PoolKernel<'_> {
    fn taps(&self) -> Vec<Tap> {
        let window = Window {
            kernel: self.0.kernel,
            strides: self.0.strides,
            pads: self.0.pads,
            dilations: [1, 1],
            zeros: [1, 1],
        };
        taps(&window, self.0.input, self.0.output)
    }

    /// The instructions of the window, for one sample.
    fn instructions(&self) -> Vec<Instruction> {
        let p = self.0;
        let (wi, wo) = (p.input.1, p.output.1);
        let taps = self.taps();
        if p.output.0 * wo >= taps.len() {
            let by_tap = |t: Tap| Instruction {
                shape: (t.rows, t.columns),
                y: t.y,
                x: t.x,
                strides_y: [wo, 1],
                strides_x: [t.strides[0] * wi, t.strides[1]],
            };
            return taps.into_iter().map(by_tap).collect();
        }
        let positions = (0..p.output.0).flat_map(|i| (0..wo).map(move |j| (i, j)));
        let by_position = |(i, j)| {
            let ((a, b), (d, e)) = (range(p, 0, i), range(p, 1, j));
            Instruction {
                shape: (b.saturating_sub(a), e.saturating_sub(d)),
                y: i * wo + j,
                x: a * wi + d,
                strides_y: [0, 0],
                strides_x: [wi, 1],
            }
        };
        positions
            .map(by_position)
            .filter(|i| i.shape.0 * i.shape.1 > 0)
            .collect()
    }

    /// Work that is the same for all rectangles.
    fn work(&self, c: &Context) -> Work {
        let all = self.instructions();
        let alike = all.windows(2).filter(|w| w[0].runs_like(&w[1])).count();
        let instructions: Vec<_> = all
            .iter()
            .map(|i| {
                let steps = i.shape.0 * i.shape.1 * samples(c);
                (4 * i.y as i64, c.ty.bytes() as i64 * i.x as i64, steps as u64)
            })
            .collect();
        Work {
            phase: phase(c.machine, &instructions),
            instructions: instructions.len(),
            set: instructions.len() - alike,
            scales: if self.0.max {
                0
            } else {
                self.scales().err().map_or(0, |s| s.len())
            },
        }
    }

    fn cost(&self, c: &Context, work: &Work, width: u32, height: u32) -> (u64, u64) {
        let f = local::widest(c, Split::Features, width, height);
        let (li, lo) = (c.inputs[0].length(), c.output.length());
        let cost = &c.machine.pe.cost;
        let (set, moved) = (work.set as u64, (work.instructions - work.set) as u64);
        let mut cycles = f as u64 * work.phase.1 + work.instructions as u64 * cost.issue as u64 + 60;
        cycles += 2 * (set * cost.descriptor as u64 + moved * cost.add as u64);
        cycles += c.move_slots(f, li) + 2 * c.move_slots(f, lo);
        let (x, y) = (
            Context::pitch(c.ty, li) as u64,
            Context::pitch(Ty::F32, lo) as u64,
        );
        let bytes = f as u64 * (x + y) + 4 * work.scales as u64;
        (
            cycles.max(c.stream_cycles()),
            bytes + code_bytes(c.machine, 24 + 3 * work.instructions),
        )
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
        "pooling over windows: each PE works on its own features"
    }

    fn fit(&self, c: &Context, width: u32, height: u32) -> (u32, u32) {
        let work = self.work(c);
        local::fit(c, Split::Features, width, height, |w, h| {
            self.cost(c, &work, w, h)
        })
    }

    fn estimate(&self, c: &Context, width: u32, height: u32) -> Option<Estimate> {
        let (cycles, bytes) = self.cost(c, &self.work(c), width, height);
        Some(Estimate {
            cycles,
            bytes,
            // the first PE has as many features as any
            fullest: (0, 0),
        })
    }

    fn emit(&self, name: &str, c: &Context, width: u32, height: u32) -> Emitted {
        let p = self.0;
        let (li, lo, n) = (c.inputs[0].length(), c.output.length(), samples(c));
        let (pitch_x, pitch_y) = (Context::pitch(c.ty, li), Context::pitch(Ty::F32, lo));
        let element = c.ty.bytes() as i64;
        let (ex, ey) = (pitch_x / element, pitch_y / 4);
        let mut k = Local::new(name, c, Split::Features, width, height);
        let f = k.widest() as u32;
        let x = k.a.buffer("x", f * pitch_x as u32, 0);
        let y = k.a.buffer("y", f * pitch_y as u32, self.work(c).phase.0);
        let scales = if p.max { Ok(1.0) } else { self.scales() };
        let image: Vec<u32> = scales
            .as_ref()
            .err()
            .map_or(Vec::new(), |s| s.iter().map(|s| s.to_bits()).collect());
        let scale_at = k.a.buffer("scales", image.len() as u32 * 4, 0);
        let features = k.share("features");
        let imm = |n: usize| Val::Imm(n as i64);
        k.a.task("main", Trigger::Start);
        if !image.is_empty() {
            load_weights(&mut k.a, imm(image.len()), scale_at);
        }
        k.a.memory(0, c.ty, Val::Imm(x), &[features, imm(li)], &[ex, 1], c.wide());
        k.a.input(1, c.input_colors[0][0], c.ty, &[features, imm(li)]);
        k.a.memory(2, Ty::F32, Val::Imm(y), &[features, imm(lo)], &[ey, 1], true);
        k.a.output(3, c.output_colors[0], c.ty, &[features, imm(lo)], true);
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
        let (sx, sy) = ((p.input.0 * p.input.1) as i64, (p.output.0 * p.output.1) as i64);
        let mut before: Option<Instruction> = None;
        for i in self.instructions() {
            let (y_at, x_at) = (4 * i.y as i64, element * i.x as i64);
            match before.filter(|b| b.runs_like(&i)) {
                // as the one before, from other elements on
                Some(b) => {
                    for (d, by) in [(4, y_at - 4 * b.y as i64), (5, x_at - element * b.x as i64)] {
                        if by != 0 {
                            k.a.emit(Instr::Advance(d, Val::Imm(by)));
                        }
                    }
                }
                None => {
                    let shape = [features, imm(n), imm(i.shape.0), imm(i.shape.1)];
                    let [row_y, column_y] = i.strides_y.map(|s| s as i64);
                    let [row_x, column_x] = i.strides_x.map(|s| s as i64);
                    let (by_y, by_x) = ([ey, sy, row_y, column_y], [ex, sx, row_x, column_x]);
                    k.a.memory(4, Ty::F32, Val::Imm(y + y_at), &shape, &by_y, true);
                    k.a.memory(5, c.ty, Val::Imm(x + x_at), &shape, &by_x, true);
                }
            }
            k.a.map(op, 4, Operand::Desc(4), Some(Operand::Desc(5)), Count::Other);
            before = Some(i);
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
        let weights = k
            .shares
            .iter()
            .map(|(from, to)| if from < to { image.clone() } else { Vec::new() })
            .collect();
        k.finish(item, weights)
    }
}
