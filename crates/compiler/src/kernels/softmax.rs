//! Softmax over the features: each PE has all features of some positions, so nothing is exchanged.

use super::positions::{self, FREE, ITEM, Items};
use super::*;

pub(super) struct SoftmaxKernel;

/// The items of PEs with so many positions: beside them are the largest elements and the sums.
fn items(c: &Context, positions: usize) -> Items {
    let other = 2 * Context::pitch(Ty::F32, positions) as u64 + code_bytes(c.machine, positions::CODE + 14);
    Items::new(c, positions, other)
}

fn cost(c: &Context, pes: u32) -> (u64, u64) {
    let positions = local::widest(c, Split::Positions, pes);
    let (f, m) = (c.inputs[0].features as u64, positions as u64);
    let machine = c.machine;
    let wide = (machine.pe.lanes.f32_simple).min(machine.pe.sram.port_bits / 32) as u64;
    let work = f * (3 * m.div_ceil(wide) + m * machine.pe.special.exp as u64)
        + m * machine.pe.special.divide as u64
        + 120;
    let items = items(c, positions);
    (items.cycles(c, positions, work), items.bytes)
}

impl Implementation for SoftmaxKernel {
    fn op(&self) -> &'static str {
        "softmax"
    }

    fn about(&self) -> &'static str {
        "softmax over features: each PE has all features of its positions"
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
        let mut k = Local::new(name, c, Split::Positions, width, height);
        let items = items(c, k.widest());
        let bytes = Context::pitch(Ty::F32, k.widest()) as u32;
        let [largest, sum, all_largest, all_sum] = [FREE, FREE + 1, FREE + 2, FREE + 3];
        k.a.task("main", Trigger::Start);
        let item = items.begin(&mut k);
        let positions = k.share("positions");
        let own = k.a.buffer("largest", bytes, 16);
        let total = k.a.buffer("sum", bytes, 16);
        // single rows, and the same over and over for all features
        let block = [Val::Imm(c.inputs[0].features as i64), positions];
        k.a.memory(largest, Ty::F32, Val::Imm(own), &[positions], &[1], true);
        k.a.memory(sum, Ty::F32, Val::Imm(total), &[positions], &[1], true);
        k.a.memory(all_largest, Ty::F32, Val::Imm(own), &block, &[0, 1], true);
        k.a.memory(all_sum, Ty::F32, Val::Imm(total), &block, &[0, 1], true);
        let (x, of) = (Operand::Desc(ITEM), Operand::Desc);
        let a = &mut k.a;
        a.map(Op::Mov, largest, Operand::Imm(f32::NEG_INFINITY), None, Count::None);
        a.map(Op::Max, all_largest, of(all_largest), Some(x), Count::Other);
        a.map(Op::Sub, ITEM, x, Some(of(all_largest)), Count::Other);
        a.map(Op::Exp, ITEM, x, None, Count::Other);
        a.map(Op::Mov, sum, Operand::Imm(0.0), None, Count::None);
        a.map(Op::Add, all_sum, of(all_sum), Some(x), Count::Other);
        a.map(Op::Div, sum, Operand::Imm(1.0), Some(of(sum)), Count::Other);
        let scaled = (Op::Mul, Some(of(sum)));
        items.finish(k, item, scaled, |_| {}, vec![Vec::new(); (width * height) as usize])
    }
}
