//! \[n, c, p\] to \[n, c * p\] for n > 1 (or several elements a wavelet): a relayout inside each row, as a row keeps its channels.

use super::*;

pub(super) struct FlattenKernel;

impl Implementation for FlattenKernel {
    fn op(&self) -> &'static str {
        "relayout"
    }

    fn about(&self) -> &'static str {
        "flatten: each row turns its features' samples and positions around in SRAM"
    }

    fn layout(&self, inputs: &[Layout], _: usize, _: usize, _: Vec<usize>) -> Layout {
        inputs[0].flattened()
    }

    fn widest(&self, _: &Context) -> u32 {
        1
    }

    fn estimate(&self, c: &Context, _: u32) -> Estimate {
        let elements = (c.inputs[0].widest() * c.inputs[0].length()) as u64;
        let bytes = (c.inputs[0].widest() as i64 * Context::pitch(c.ty, c.inputs[0].length())) as u64
            + (c.output.widest() as i64 * Context::pitch(c.ty, c.output.length())) as u64;
        Estimate {
            cycles: 3 * elements + 60,
            bytes: bytes + code_bytes(c.machine, 16),
            // the first row has as many features as any
            fullest: (0, 0),
        }
    }

    fn emit(&self, name: &str, c: &Context, _: u32) -> Emitted {
        let input = &c.inputs[0];
        let (n, p) = (input.n as i64, input.inner.iter().product::<usize>() as i64);
        let (pitch_x, pitch_y) = (
            Context::pitch(c.ty, input.length()),
            Context::pitch(c.ty, c.output.length()),
        );
        let element = c.ty.bytes() as i64;
        let (ex, ey) = (pitch_x / element, pitch_y / element);
        let mut k = RowLocal::new(c);
        let x = k.a.buffer("x", input.widest() as u32 * pitch_x as u32, 0);
        let y = k.a.buffer("y", c.output.widest() as u32 * pitch_y as u32, 16);
        let channels = k.features(name, "channels", input);
        let features = k.features(name, "features", &c.output);
        let imm = Val::Imm;
        k.a.task("main", Trigger::Start);
        k.a.memory(0, c.ty, imm(x), &[channels, imm(n * p)], &[ex, 1], c.wide());
        k.a.input(1, c.input_colors[0], c.ty, &[channels, imm(n * p)]);
        k.a.memory(2, c.ty, imm(x), &[channels, imm(p), imm(n)], &[ex, 1, p], true);
        k.a.memory(
            3,
            c.ty,
            imm(y),
            &[channels, imm(p), imm(n)],
            &[p * ey, ey, 1],
            true,
        );
        k.a.memory(4, c.ty, imm(y), &[features, imm(n)], &[ey, 1], c.wide());
        k.a.output(5, c.output_color, c.ty, &[features, imm(n)], true);
        let item = k.begin_items();
        k.a.map(Op::Mov, 0, Operand::Desc(1), None, Count::None);
        k.a.map(Op::Mov, 3, Operand::Desc(2), None, Count::None);
        k.a.map(Op::Mov, 5, Operand::Desc(4), None, Count::None);
        k.finish(name, item, vec![Vec::new(); c.lanes()])
    }
}
