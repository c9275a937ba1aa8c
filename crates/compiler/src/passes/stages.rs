//! Which kernels are on the mesh together. For now a program is one stage: everything resident, or refused with what would help.

use crate::kernels::{self, Context, colors};
use crate::plan::*;
use meshloom_simulator::Machine;
use meshloom_simulator::program::Color;

/// Most lanes of a stream.
pub const LANES: usize = 8;
/// Most inputs of a kernel.
pub const INPUTS: usize = 16;

/// The colour that stands for a lane of a kernel's input until it is routed.
pub fn input_color(input: usize, lane: usize) -> Color {
    (96 + input * LANES + lane) as Color
}

/// The colour that stands for a lane of a kernel's output until it is routed.
pub fn output_color(lane: usize) -> Color {
    (96 + INPUTS * LANES + lane) as Color
}

/// What kernel `k` sees.
pub fn context<'a>(plan: &Plan, machine: &'a Machine, k: usize) -> Context<'a> {
    let kernel = &plan.kernels[k];
    let levels = plan.levels();
    let slack = |u: &Use| match plan.edges[u.edge].source {
        Source::Kernel(p) => levels[k] - levels[p],
        Source::Input(_) => levels[k] + 1,
    };
    Context {
        machine,
        ty: plan.ty,
        items: plan.items,
        inputs: kernel.inputs.iter().map(|u| plan.view(*u)).collect(),
        input_colors: (0..kernel.inputs.len())
            .map(|i| (0..LANES).map(|lane| input_color(i, lane)).collect())
            .collect(),
        slack: kernel.inputs.iter().map(slack).collect(),
        output: plan.edges[kernel.output].layout.clone(),
        output_colors: (0..LANES).map(output_color).collect(),
    }
}

/// One line a kernel: what it needs in the rectangle that it got.
pub fn show(plan: &Plan, machine: &Machine) -> String {
    let mut out = String::from("stage 0: all kernels resident\n");
    for (i, k) in plan.kernels.iter().enumerate() {
        let kernel = kernels::of(&k.kind);
        let r = plan.places.get(i).copied().unwrap_or_default();
        let Some(e) = kernel.estimate(&context(plan, machine, i), r.width, r.height) else {
            continue;
        };
        out += &format!(
            "  {:<16} {:<10} {}x{} PEs, about {} cycles an item, {} of {} bytes on the fullest PE\n",
            k.name,
            kernel.op(),
            r.width,
            r.height,
            e.cycles,
            e.bytes,
            machine.pe.sram_bytes
        );
    }
    out += &format!("colours {} to {} are each kernel's own\n", colors::LOAD, colors::STREAMS - 1);
    out
}
