//! What a program needs of a machine beside columns, colours and SRAM: threads, switch positions, filters. Counted in the program itself.

use crate::CompileError;
use meshloom_simulator::Machine;
use meshloom_simulator::program::{Instr, Program};

/// Refuses a program that needs more threads, switch positions or filters than a PE has.
pub fn run(program: &Program, machine: &Machine) -> Result<(), CompileError> {
    let thread = |i: &Instr| match i {
        Instr::Async(t, ..) | Instr::Wait(t, _) => *t as usize + 1,
        _ => 1,
    };
    for r in program.regions() {
        let threads = r
            .blocks
            .iter()
            .flat_map(|b| &b.code)
            .map(thread)
            .max()
            .unwrap_or(1);
        let positions = r.routes.iter().map(|r| r.positions.len()).max().unwrap_or(1);
        let filters = r.routes.iter().map(|r| r.filters.len()).max().unwrap_or(0);
        for (needed, has, what, field) in [
            (
                threads,
                machine.pe.threads,
                "threads on its PEs, the main one included",
                "pe.threads",
            ),
            (
                positions,
                machine.router.switch_positions,
                "switch positions of a colour in its routers",
                "router.switch_positions",
            ),
            (
                filters,
                machine.router.filters,
                "filters in its routers",
                "router.filters",
            ),
        ] {
            if needed > has as usize {
                let border = matches!(r.name.as_str(), "enter" | "leave" | "through");
                return Err(CompileError::DoesNotFit {
                    what: if border {
                        "the way of inputs and outputs along the border".into()
                    } else {
                        format!("kernel {}", r.name)
                    },
                    needs: format!("{needed} {what}"),
                    has: format!("{has} on {}", machine.name),
                    helps: format!("--set {field}={needed}"),
                });
            }
        }
    }
    Ok(())
}
