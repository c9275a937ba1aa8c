//! ReLU alone, for where nothing before it could take it in: element by element as wavelets pass.

use super::*;

pub(super) struct ReluKernel;

impl Implementation for ReluKernel {
    fn op(&self) -> &'static str {
        "relu"
    }

    fn about(&self) -> &'static str {
        "ReLU on passing wavelets, where no kernel before it could take it in"
    }

    fn layout(&self, inputs: &[Layout], n: usize, _: usize, inner: Vec<usize>) -> Layout {
        Layout { n, inner, starts: inputs[0].starts.clone() }
    }

    fn widest(&self, _: &Context) -> u32 {
        1
    }

    fn estimate(&self, c: &Context, _: u32) -> Estimate {
        Estimate { cycles: c.move_slots(c.output.widest(), c.output.length()) + 20, bytes: code_bytes(c.machine, 8) }
    }

    fn emit(&self, name: &str, c: &Context, _: u32) -> Emitted {
        let mut k = RowLocal::new(c);
        let features = k.features(name, "features", &c.output);
        let shape = [features, Val::Imm(c.output.length() as i64)];
        k.a.task("main", Trigger::Start);
        k.a.input(0, c.input_colors[0], c.ty, &shape);
        k.a.output(1, c.output_color, c.ty, &shape, true);
        let item = k.begin_items();
        k.a.map(Op::Max, 1, Operand::Desc(0), Some(Operand::Imm(0.0)), Count::Other);
        k.finish(name, item, vec![Vec::new(); c.lanes()])
    }
}
