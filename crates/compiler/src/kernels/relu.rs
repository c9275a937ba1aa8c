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
        let (f, l) = (c.output.widest(), c.output.length());
        let (passes, data) = if c.wide() {
            (1, 0)
        } else {
            (2, f as u64 * Context::pitch(c.ty, l) as u64)
        };
        Estimate {
            cycles: passes * c.move_slots(f, l) + 20,
            bytes: data + code_bytes(c.machine, 10),
            // the first row has as many features as any
            fullest: (0, 0),
        }
    }

    fn emit(&self, name: &str, c: &Context, _: u32) -> Emitted {
        let mut k = RowLocal::new(c);
        let features = k.features(name, "features", &c.output);
        let shape = [features, Val::Imm(c.output.length() as i64)];
        k.a.task("main", Trigger::Start);
        k.a.input(0, c.input_colors[0], c.ty, &shape);
        k.a.output(1, c.output_color, c.ty, &shape, true);
        if !c.wide() {
            let pitch = Context::pitch(c.ty, c.output.length());
            let x = k.a.buffer("x", c.output.widest() as u32 * pitch as u32, 0);
            k.a.memory(
                2,
                c.ty,
                Val::Imm(x),
                &shape,
                &[pitch / c.ty.bytes() as i64, 1],
                false,
            );
        }
        let item = k.begin_items();
        if c.wide() {
            k.a.map(
                Op::Max,
                1,
                Operand::Desc(0),
                Some(Operand::Imm(0.0)),
                Count::Other,
            );
        } else {
            // a step between two lanes would take a whole link's elements; SRAM in between takes what wavelets carry
            k.a.map(Op::Mov, 2, Operand::Desc(0), None, Count::None);
            k.a.map(
                Op::Max,
                1,
                Operand::Desc(2),
                Some(Operand::Imm(0.0)),
                Count::Other,
            );
        }
        k.finish(name, item, vec![Vec::new(); c.lanes()])
    }
}
