//! The kernels' code and SRAM maps: each kernel emits its region, and what does not fit is refused with the PE and the bytes.

use super::stages::context;
use crate::CompileError;
use crate::kernels;
use crate::plan::*;
use meshloom_simulator::Machine;
use meshloom_simulator::program::Block;

/// SRAM bytes that a block takes: its buffers and its code.
pub fn bytes(block: &Block, machine: &Machine) -> u64 {
    let data = block
        .memory
        .iter()
        .map(|b| b.address as u64 + b.bytes as u64)
        .max()
        .unwrap_or(0);
    data + block.code.len() as u64 * machine.pe.instruction_bytes as u64
}

/// Emits every kernel.
pub fn run(plan: &mut Plan, machine: &Machine) -> Result<(), CompileError> {
    for k in 0..plan.kernels.len() {
        let place = plan.places[k];
        let kernel = kernels::of(&plan.kernels[k].kind);
        let mut emitted = kernel.emit(
            &plan.kernels[k].name,
            &context(plan, machine, k),
            place.width,
            place.height,
        );
        (emitted.region.x, emitted.region.y) = (place.x, place.y);
        for block in &emitted.region.blocks {
            let needs = bytes(block, machine);
            if needs > machine.pe.sram_bytes as u64 {
                return Err(CompileError::DoesNotFit {
                    what: format!(
                        "kernel {} on PE ({}, {})",
                        plan.kernels[k].name,
                        place.x + block.at.x,
                        place.y + block.at.y
                    ),
                    needs: format!("{needs} bytes of SRAM"),
                    has: format!("{} bytes on {}", machine.pe.sram_bytes, machine.name),
                    helps: format!(
                        "{}, a larger mesh, or --set pe.sram_bytes={}",
                        plan.smaller(),
                        needs.next_multiple_of(1024)
                    ),
                });
            }
        }
        plan.regions.push(emitted);
    }
    Ok(())
}

/// Columns or rows of a lattice, as the program's text has them: `3`, `0..15` or `0..15 by 2`, ends exclusive.
fn span(from: u32, n: u32, by: u32) -> String {
    match (n, by) {
        (1, _) => from.to_string(),
        (_, 1) => format!("{from}..{}", from + n),
        _ => format!("{from}..{} by {by}", from + (n - 1) * by + 1),
    }
}

/// Each block's buffers and bytes; its columns and rows count from the kernel's corner.
pub fn show(plan: &Plan, machine: &Machine) -> String {
    let mut out = String::new();
    for e in &plan.regions {
        let r = &e.region;
        out += &format!("{} {}x{} @ ({},{})\n", r.name, r.width, r.height, r.x, r.y);
        for b in &r.blocks {
            let l = b.at;
            let code = b.code.len() as u64 * machine.pe.instruction_bytes as u64;
            out += &format!(
                "  {} x {}: {} of {} bytes, code {code}",
                span(l.x, l.nx, l.dx),
                span(l.y, l.ny, l.dy),
                bytes(b, machine),
                machine.pe.sram_bytes
            );
            for m in &b.memory {
                out += &format!(", {} {} @ {}", m.name, m.bytes, m.address);
            }
            out.push('\n');
        }
    }
    out
}
