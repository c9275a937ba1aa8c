//! Which kernels are on the mesh together. For now a program is one stage: everything resident, or refused with what would help.

use crate::kernels::{self, Context};
use crate::plan::*;
use crate::{CompileError, Options};
use meshloom_simulator::Machine;

/// The narrowest width of each kernel whose memory fits.
pub fn run(plan: &Plan, machine: &Machine, _: &Options) -> Result<Vec<u32>, CompileError> {
    let mut widths = Vec::new();
    for k in 0..plan.kernels.len() {
        let kernel = kernels::of(&plan.kernels[k].kind);
        let context = context(plan, machine, k);
        let widest = kernel
            .widest(&context)
            .min(machine.mesh.width.saturating_sub(2).max(1));
        let (mut least, mut fullest) = (u64::MAX, (0, 0));
        let fits = (1..=widest).find(|w| {
            let e = kernel.estimate(&context, *w);
            if e.bytes < least {
                (least, fullest) = (e.bytes, e.fullest);
            }
            e.bytes <= machine.pe.sram_bytes as u64
        });
        match fits {
            Some(w) => widths.push(w),
            None => {
                return Err(CompileError::DoesNotFit {
                    what: format!("kernel {} ({})", plan.kernels[k].name, kernel.op()),
                    needs: format!(
                        "at least {least} bytes of SRAM on its fullest PE, column {} and row {} of its rectangle, with its work split over {widest} column(s) and {} row(s)",
                        fullest.0, fullest.1, machine.mesh.height
                    ),
                    has: format!("{} bytes a PE on {}", machine.pe.sram_bytes, machine.name),
                    helps: match least.next_multiple_of(1024) {
                        enough if enough <= 1 << 30 => {
                            format!(
                                "{}, more rows (--set mesh.height=...), or --set pe.sram_bytes={enough}",
                                plan.smaller()
                            )
                        }
                        _ => format!("{} or a smaller model", plan.smaller()),
                    },
                });
            }
        }
    }
    Ok(widths)
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
        input_colors: kernel.inputs.iter().map(|u| plan.edges[u.edge].color).collect(),
        slack: kernel.inputs.iter().map(slack).collect(),
        output: plan.edges[kernel.output].layout.clone(),
        output_color: plan.edges[kernel.output].color,
    }
}

/// One line a kernel: what it needs at the width that it got.
pub fn show(plan: &Plan, machine: &Machine) -> String {
    let mut out = String::from("stage 0: all kernels resident\n");
    for (i, k) in plan.kernels.iter().enumerate() {
        let kernel = kernels::of(&k.kind);
        let width = plan.places.get(i).map_or(1, |r| r.width);
        let e = kernel.estimate(&context(plan, machine, i), width);
        out += &format!(
            "  {:<16} {:<10} {} column(s), about {} cycles an item, {} of {} bytes on the fullest PE\n",
            k.name,
            kernel.op(),
            width,
            e.cycles,
            e.bytes,
            machine.pe.sram_bytes
        );
    }
    out
}
