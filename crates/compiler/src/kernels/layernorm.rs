//! Layer normalisation over the features: each PE has some features of all positions. It adds up its features, partial sums go from PE
//! to PE, and the result comes back to all; so for the mean, and once more for the variance.

use super::*;
use std::sync::Arc;

pub(super) struct LayerNormKernel<'a>(pub &'a Arc<Norm>);

/// Bytes of the scales, or shifts, of so many features.
fn constants(features: usize) -> usize {
    (features * 4).next_multiple_of(32)
}

/// SRAM bytes, and whether the next item comes in while this one is worked on.
fn memory(c: &Context, features: usize) -> (u64, bool) {
    let pitch = Context::pitch(Ty::F32, c.output.length()) as u64;
    let x = features as u64 * pitch;
    let other = pitch + 2 * constants(features) as u64 + code_bytes(c.machine, 75) + 64;
    let double = c.items > 1 && 2 * x + other <= c.machine.pe.sram_bytes as u64;
    (x * (1 + double as u64) + other, double)
}

impl Implementation for LayerNormKernel<'_> {
    fn op(&self) -> &'static str {
        "layernorm"
    }

    fn about(&self) -> &'static str {
        "layer normalisation over features, which lie in several PEs: sums go from PE to PE and come back"
    }

    fn fit(&self, c: &Context, width: u32, height: u32) -> (u32, u32) {
        let lanes = c.inputs[0].lanes.max(c.output.lanes) as u32;
        let each = c.inputs[0].features as u32 / lanes;
        // whole rows of PEs that all have features, and a row for each lane
        let rows = (height / lanes).max(1);
        let w = fewest(each as usize, width.min(each));
        (w, (each / w).min(rows).max(1) * lanes)
    }

    fn estimate(&self, c: &Context, width: u32, height: u32) -> Option<Estimate> {
        let features = local::widest(c, Split::Features, width, height);
        let (l, machine) = (c.output.length() as u64, c.machine);
        let wide = machine.pe.lanes.f32_simple.min(machine.pe.sram.port_bits / 32) as u64;
        let pass = (features as u64 * l).div_ceil(wide);
        let moves = 2 * c.move_slots(features, c.output.length());
        // two sums, squares (three sources in SRAM, M9), differences, and two products
        let work = 4 * pass + 2 * features as u64 * l + moves + l * machine.pe.special.rsqrt as u64;
        let hop = (2 * machine.router.ramp_cycles + machine.router.hop_cycles + 1) as u64;
        let chain = 2 * (2 * l + (width * height) as u64 * (hop + 1));
        let (bytes, double) = memory(c, features);
        let streams = c.stream_cycles() * if double { 1 } else { 2 };
        Some(Estimate {
            // the sums have to wait for the last feature, and results for the sums
            cycles: (work + 250).max(work - moves + chain + 250 + streams),
            bytes,
            // the first PE has as many features as any
            fullest: (0, 0),
        })
    }

    fn emit(&self, name: &str, c: &Context, width: u32, height: u32) -> Emitted {
        let l = c.output.length();
        let pitch = Context::pitch(Ty::F32, l);
        let ep = pitch / 4;
        let mut k = Local::new(name, c, Split::Features, width, height);
        k.exchange = true;
        let most = k.widest();
        let double = memory(c, most).1;
        let order = c.inputs[0].order.as_deref();
        let images: Vec<Vec<u32>> = k
            .shares
            .iter()
            .map(|&(from, to)| {
                let of = |values: &[f32]| -> Vec<u32> {
                    let all = (from..to).map(|f| order.map_or(f, |o| o[f]));
                    all.map(|f| values[f].to_bits()).collect()
                };
                let mut image = of(&self.0.scale);
                image.resize(constants(most) / 4, 0);
                image.extend(of(&self.0.shift));
                image
            })
            .collect();
        let x = k.a.buffer("x", most as u32 * pitch as u32, 0);
        let next = if double {
            k.a.buffer("x.next", most as u32 * pitch as u32, 0)
        } else {
            x
        };
        let sum = k.a.buffer("sum", pitch as u32, 16);
        let scales = k.a.buffer("constants", 2 * constants(most) as u32, 0);
        let shifts = scales + constants(most) as i64;
        let features = k.share("features");
        let pes = width * height;
        let (imm, reg) = (|n: usize| Val::Imm(n as i64), Val::Reg);
        let length = imm(l);
        // how many elements a PE handles as the snake's end, inside, and as its beginning
        let part = |of: &dyn Fn(u32) -> bool| -> Vec<i64> {
            let places = (0..pes).map(|pe| snake(pe % width, pe / width, width));
            places.map(|n| if of(n) { l as i64 } else { 0 }).collect()
        };
        let several = pes > 1;
        let end = k.each("end", &part(&|n| several && n + 1 == pes));
        let inside = k.each("inside", &part(&|n| n > 0 && n + 1 < pes));
        let begin = k.each("begin", &part(&|n| several && n == 0));
        let root = k.each("root", &part(&|n| n == 0));
        let others = k.each("others", &part(&|n| n > 0));
        let words = k.number("words", |from, to| ((constants(most) / 4) + to - from) as i64);
        let [give, take] = colors::REDUCE;
        let a = &mut k.a;
        a.task("main", Trigger::Start);
        load_weights(a, words, scales);
        let block = [features, length];
        a.memory(2, Ty::F32, Val::Imm(x), &block, &[ep, 1], true); // as it comes in
        a.input(3, c.input_colors[0][0], c.ty, &block);
        a.memory(4, Ty::F32, Val::Imm(x), &block, &[ep, 1], true); // as it is worked on
        a.memory(5, Ty::F32, Val::Imm(sum), &block, &[0, 1], true); // the sum, for every feature
        a.memory(6, Ty::F32, Val::Imm(scales), &block, &[1, 0], true);
        a.memory(7, Ty::F32, Val::Imm(shifts), &block, &[1, 0], true);
        a.output(8, c.output_colors[0], c.ty, &block, true);
        a.memory(9, Ty::F32, Val::Imm(sum), &[length], &[1], true);
        a.memory(10, Ty::F32, Val::Imm(sum), &[end], &[1], true);
        a.output(11, give, Ty::F32, &[end], false);
        a.memory(12, Ty::F32, Val::Imm(sum), &[inside], &[1], true);
        a.input(13, take, Ty::F32, &[inside]);
        a.output(14, give, Ty::F32, &[inside], false);
        a.memory(15, Ty::F32, Val::Imm(sum), &[begin], &[1], true);
        a.input(16, take, Ty::F32, &[begin]);
        a.memory(17, Ty::F32, Val::Imm(sum), &[root], &[1], true);
        a.output(18, colors::SPREAD, Ty::F32, &[begin], false);
        a.memory(19, Ty::F32, Val::Imm(sum), &[others], &[1], true);
        a.input(20, colors::SPREAD, Ty::F32, &[others]);
        if double {
            // r1 where this item is, r2 the next one, r3 elements waited for
            a.emit(Instr::Set(1, Val::Imm(x)));
            a.emit(Instr::Set(2, Val::Imm(next)));
            a.start(1, Op::Mov, 2, Operand::Desc(3), None, Count::None);
        }
        a.emit(Instr::Set(3, Val::Imm(0)));
        a.emit(Instr::Mul(4, features, length));
        let item = k.begin_items();
        let a = &mut k.a;
        let of = Operand::Desc;
        // what was sent from the place that is filled next must have left
        a.emit(Instr::Wait(2, None));
        if double {
            let last = a.label("last");
            a.branch(Cond::Eq, reg(0), Val::Imm(1), last);
            a.emit(Instr::Base(2, reg(2)));
            a.start(1, Op::Mov, 2, of(3), None, Count::None);
            a.bind(last);
            a.emit(Instr::Base(4, reg(1)));
        } else {
            a.start(1, Op::Mov, 2, of(3), None, Count::None);
        }
        a.emit(Instr::Add(3, reg(3), reg(4)));
        a.emit(Instr::Wait(1, Some(reg(3))));
        // the sum of all PEs' sums to all of them; the first one works on it in between
        let exchange = |a: &mut Assembler, work: &[(Op, Option<Operand>)]| {
            a.map(Op::Mov, 11, of(10), None, Count::None);
            a.map(Op::Add, 14, of(13), Some(of(12)), Count::Reduce);
            a.map(Op::Add, 15, of(16), Some(of(15)), Count::Reduce);
            for (op, operand) in work {
                a.map(*op, 17, of(17), *operand, Count::Other);
            }
            a.map(Op::Mov, 18, of(15), None, Count::None);
            a.map(Op::Mov, 19, of(20), None, Count::None);
        };
        let share = Some(Operand::Imm((1.0 / c.inputs[0].features as f64) as f32));
        a.map(Op::Mov, 9, Operand::Imm(0.0), None, Count::None);
        a.map(Op::Add, 5, of(5), Some(of(4)), Count::Other);
        exchange(a, &[(Op::Mul, share)]);
        a.map(Op::Sub, 4, of(4), Some(of(5)), Count::Other);
        a.map(Op::Mov, 9, Operand::Imm(0.0), None, Count::None);
        a.map(Op::Mac, 5, of(4), Some(of(4)), Count::Other);
        let epsilon = Some(Operand::Imm(self.0.epsilon));
        exchange(a, &[(Op::Mul, share), (Op::Add, epsilon), (Op::Rsqrt, None)]);
        a.map(Op::Mul, 4, of(4), Some(of(5)), Count::Other);
        a.map(Op::Mul, 4, of(4), Some(of(6)), Count::Other);
        a.start(2, Op::Add, 8, of(4), Some(of(7)), Count::Other);
        if double {
            a.emit(Instr::Set(5, reg(1)));
            a.emit(Instr::Set(1, reg(2)));
            a.emit(Instr::Set(2, reg(5)));
        }
        let weights = images
            .into_iter()
            .zip(&k.shares)
            .map(|(image, (from, to))| if from < to { image } else { Vec::new() })
            .collect();
        let mut emitted = k.finish(item, weights);
        sum_along_snake(&mut emitted.region, name);
        emitted
    }
}
