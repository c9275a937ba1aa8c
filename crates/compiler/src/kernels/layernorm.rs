//! Layer normalisation over the features: each PE has all features of some positions. Mean and variance are two passes of f32 sums in the
//! order of the features.

use super::positions::{self, FREE, FREE_SCALAR, ITEM, Items};
use super::*;
use std::sync::Arc;

pub(super) struct LayerNormKernel<'a>(pub &'a Arc<Norm>);

/// Bytes of the scales, or shifts.
fn constants(features: usize) -> usize {
    (features * 4).next_multiple_of(32)
}

/// The items of PEs with so many positions: beside them are means and variances, scales and shifts.
fn items(c: &Context, positions: usize) -> Items {
    let other = 2 * Context::pitch(Ty::F32, positions) as u64
        + 2 * constants(c.inputs[0].features) as u64
        + code_bytes(c.machine, positions::CODE + 26);
    Items::new(c, positions, other)
}

fn cost(c: &Context, pes: u32) -> (u64, u64) {
    let positions = local::widest(c, Split::Positions, pes);
    let (f, m) = (c.inputs[0].features as u64, positions as u64);
    let machine = c.machine;
    let port = machine.pe.sram.port_bits / 32;
    let wide = machine.pe.lanes.f32_simple.min(port) as u64;
    // the squares' sum has three sources in SRAM (M9)
    let squares = 2 * m.div_ceil(machine.pe.lanes.f32.min(port) as u64);
    let work = f * (4 * m.div_ceil(wide) + squares)
        + m * machine.pe.special.rsqrt as u64
        + 180;
    let items = items(c, positions);
    (items.cycles(c, positions, work), items.bytes)
}

impl Implementation for LayerNormKernel<'_> {
    fn op(&self) -> &'static str {
        "layernorm"
    }

    fn about(&self) -> &'static str {
        "layer normalisation over features: each PE has all features of its positions"
    }

    fn fit(&self, c: &Context, width: u32, height: u32) -> (u32, u32) {
        local::fit(c, Split::Positions, width, height, |pes| cost(c, pes))
    }

    fn estimate(&self, c: &Context, width: u32, height: u32) -> Option<Estimate> {
        let (cycles, bytes) = cost(c, width * height);
        Some(Estimate {
            cycles,
            bytes,
            // the first PE has as many positions as any
            fullest: (0, 0),
        })
    }

    fn emit(&self, name: &str, c: &Context, width: u32, height: u32) -> Emitted {
        let features = c.inputs[0].features;
        let order = c.inputs[0].order.as_deref();
        let of = |values: &[f32]| -> Vec<u32> {
            let all = (0..features).map(|f| order.map_or(f, |o| o[f]));
            all.map(|f| values[f].to_bits()).collect()
        };
        let mut image = of(&self.0.scale);
        image.resize(constants(features) / 4, 0);
        image.extend(of(&self.0.shift));
        let mut k = Local::new(name, c, Split::Positions, width, height);
        let items = items(c, k.widest());
        let bytes = Context::pitch(Ty::F32, k.widest()) as u32;
        let (mean_at, variance_at) = (k.a.buffer("mean", bytes, 16), k.a.buffer("variance", bytes, 16));
        let scales = k.a.buffer("constants", image.len() as u32 * 4, 0);
        let shifts = scales + constants(features) as i64;
        let [mean, variance, all_means, all_variances, scale] = std::array::from_fn(|i| FREE + i as u8);
        let (shift, next) = (FREE_SCALAR, FREE_SCALAR + 1);
        let imm = Val::Imm;
        k.a.task("main", Trigger::Start);
        load_weights(&mut k.a, imm(image.len() as i64), scales);
        let positions = k.share("positions");
        let block = [imm(features as i64), positions];
        // single rows, and the same over and over for all features
        k.a.memory(mean, Ty::F32, imm(mean_at), &[positions], &[1], true);
        k.a.memory(variance, Ty::F32, imm(variance_at), &[positions], &[1], true);
        k.a.memory(all_means, Ty::F32, imm(mean_at), &block, &[0, 1], true);
        k.a.memory(all_variances, Ty::F32, imm(variance_at), &block, &[0, 1], true);
        k.a.memory(scale, Ty::F32, imm(scales), &block, &[1, 0], true);
        let item = items.begin(&mut k);
        let (x, of) = (Operand::Desc(ITEM), Operand::Desc);
        let part = Some(Operand::Imm((1.0 / features as f64) as f32));
        let a = &mut k.a;
        a.map(Op::Mov, mean, Operand::Imm(0.0), None, Count::None);
        a.map(Op::Add, all_means, of(all_means), Some(x), Count::Other);
        a.map(Op::Mul, mean, of(mean), part, Count::Other);
        a.map(Op::Sub, ITEM, x, Some(of(all_means)), Count::Other);
        a.map(Op::Mov, variance, Operand::Imm(0.0), None, Count::None);
        a.map(Op::Mac, all_variances, x, Some(x), Count::Other);
        a.map(Op::Mul, variance, of(variance), part, Count::Other);
        let epsilon = Some(Operand::Imm(self.0.epsilon));
        a.map(Op::Add, variance, of(variance), epsilon, Count::Other);
        a.map(Op::Rsqrt, variance, of(variance), None, Count::Other);
        a.map(Op::Mul, ITEM, x, Some(of(all_variances)), Count::Other);
        a.map(Op::Mul, ITEM, x, Some(of(scale)), Count::Other);
        a.emit(Instr::Set(next, imm(shifts)));
        let shifted = (Op::Add, Some(Operand::Reg(shift)));
        let before = |a: &mut Assembler| {
            a.emit(Instr::Load(Word::I32, shift, Val::Reg(next), imm(0)));
            a.emit(Instr::Add(next, Val::Reg(next), imm(4)));
        };
        let weights = k
            .shares
            .iter()
            .map(|(from, to)| if from < to { image.clone() } else { Vec::new() })
            .collect();
        items.finish(k, item, shifted, before, weights)
    }
}
