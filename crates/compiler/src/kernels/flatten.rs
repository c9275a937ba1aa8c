//! \[n, c, p\] to \[n, c * p\] for n > 1 (or several elements a wavelet): a relayout inside each PE, as a PE keeps its channels.

use super::*;

pub(super) struct FlattenKernel;

/// Whether the turned rows can leave as they are read: one element a step is what a wavelet of them carries.
fn direct(c: &Context) -> bool {
    c.per_wavelet() == 1 || c.output.length() == 1
}

fn cost(c: &Context, pes: u32) -> (u64, u64) {
    let (input, output) = (&c.inputs[0], &c.output);
    let channels = local::widest(c, Split::Features, pes);
    let times = output.features / input.features.max(1);
    let turned = (channels * input.length()) as u64;
    let mut cycles = c.move_slots(channels, input.length()) + turned + 60;
    let mut bytes = channels as u64 * Context::pitch(c.ty, input.length()) as u64;
    if !direct(c) {
        cycles += c.move_slots(channels * times, output.length());
        bytes += (channels * times) as u64 * Context::pitch(c.ty, output.length()) as u64;
    }
    (cycles.max(c.stream_cycles()), bytes + code_bytes(c.machine, 18))
}

impl Implementation for FlattenKernel {
    fn op(&self) -> &'static str {
        "relayout"
    }

    fn about(&self) -> &'static str {
        "flatten: each PE turns its features' samples and positions around in SRAM"
    }

    fn fit(&self, c: &Context, width: u32, height: u32) -> (u32, u32) {
        local::fit(c, Split::Features, width, height, |pes| cost(c, pes))
    }

    fn estimate(&self, c: &Context, width: u32, height: u32) -> Option<Estimate> {
        let (cycles, bytes) = cost(c, width * height);
        Some(Estimate {
            cycles,
            bytes,
            // the first PE has as many features as any
            fullest: (0, 0),
        })
    }

    fn emit(&self, name: &str, c: &Context, width: u32, height: u32) -> Emitted {
        let input = &c.inputs[0];
        let (n, p) = (input.outer as i64, input.inner as i64);
        let (pitch_x, pitch_y) = (
            Context::pitch(c.ty, input.length()),
            Context::pitch(c.ty, c.output.length()),
        );
        let element = c.ty.bytes() as i64;
        let (ex, ey) = (pitch_x / element, pitch_y / element);
        let mut k = Local::new(name, c, Split::Features, width, height);
        let most = k.widest() as u32;
        let x = k.a.buffer("x", most * pitch_x as u32, 0);
        let channels = k.share("channels");
        let imm = Val::Imm;
        let turned = [channels, imm(p), imm(n)];
        k.a.task("main", Trigger::Start);
        k.a.memory(0, c.ty, imm(x), &[channels, imm(n * p)], &[ex, 1], c.wide());
        k.a.input(1, c.input_colors[0][0], c.ty, &[channels, imm(n * p)]);
        k.a.memory(2, c.ty, imm(x), &turned, &[ex, 1, p], true);
        if direct(c) {
            k.a.output(3, c.output_colors[0], c.ty, &turned, true);
        } else {
            let y = k.a.buffer("y", most * (p * pitch_y) as u32, 16);
            let features = k.number("features", |from, to| (to - from) as i64 * p);
            k.a.memory(3, c.ty, imm(y), &turned, &[p * ey, ey, 1], true);
            k.a.memory(4, c.ty, imm(y), &[features, imm(n)], &[ey, 1], c.wide());
            k.a.output(5, c.output_colors[0], c.ty, &[features, imm(n)], true);
        }
        let item = k.begin_items();
        k.a.map(Op::Mov, 0, Operand::Desc(1), None, Count::None);
        k.a.map(Op::Mov, 3, Operand::Desc(2), None, Count::None);
        if !direct(c) {
            k.a.map(Op::Mov, 5, Operand::Desc(4), None, Count::None);
        }
        k.finish(item, vec![Vec::new(); (width * height) as usize])
    }
}
