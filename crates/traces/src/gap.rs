//! Where the gap went: what the slowest kernel's PEs did in the cycles in which they did no multiply-adds.

use crate::report::{Kernel, Run};

/// The PE-cycles of one kernel, split into multiply-adds and all else (`docs/report.md`, "Where the gap went").
#[derive(Clone, Debug, PartialEq)]
pub struct Gap {
    /// The kernel.
    pub kernel: String,
    /// Share of its PE-cycles that its multiply-adds fill, 0 to 1.
    pub multiply_adds: f64,
    /// Shares of all its other PE-cycles by class, largest first; they add up to 1.
    pub shares: Vec<(&'static str, f64)>,
}

/// The classes of a kernel with the names that are shown, and their PE-cycles.
pub(crate) fn classes(k: &Kernel) -> [(&'static str, u64); 5] {
    [
        ("busy", k.busy),
        ("launch", k.launch),
        ("waiting for input", k.wait_input),
        ("waiting for room", k.wait_room),
        ("idle", k.idle),
    ]
}

/// The kernels from the slowest on: by the PE-cycles that they are busy or launching, a PE of the region; equal ones in
/// the order of the program.
pub fn slowest(run: &Run) -> Vec<&Kernel> {
    let mut all: Vec<&Kernel> = run.kernels.iter().collect();
    all.sort_by(|a, b| run.work(b).total_cmp(&run.work(a)));
    all
}

/// The split for the slowest kernel of a run; absent if it has no kernels, or its PEs did nothing but multiply-adds.
pub fn gap(run: &Run) -> Option<Gap> {
    let kernel = *slowest(run).first()?;
    let all = kernel.pe_cycles() as f64;
    let slots = &kernel.slots;
    let ideal = (slots.mac + slots.mac_act) as f64;
    let parts: [(&'static str, u64); 8] = [
        ("reduction", slots.reduce),
        ("other arithmetic", slots.other),
        ("moves", slots.moves),
        ("scalar code", slots.scalar),
        ("launch", kernel.launch),
        ("waiting for input", kernel.wait_input),
        ("waiting for room", kernel.wait_room),
        ("idle", kernel.idle),
    ];
    let parts = parts.map(|(name, cycles)| (name, cycles as f64));
    let rest: f64 = parts.iter().map(|p| p.1).sum();
    if all == 0.0 || rest <= 0.0 {
        return None;
    }
    let mut shares: Vec<_> = parts
        .iter()
        .filter(|p| p.1 > 0.0)
        .map(|p| (p.0, p.1 / rest))
        .collect();
    shares.sort_by(|a, b| b.1.total_cmp(&a.1));
    Some(Gap {
        kernel: kernel.name.clone(),
        multiply_adds: ideal / all,
        shares,
    })
}
