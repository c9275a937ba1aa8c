//! How much memory a simulation needs, predicted from the program before it runs.

use super::{Landed, PeCounters};
use crate::machine::Machine;
use crate::program::{FeedData, Program, Stage, Wavelet};

/// Bytes that a simulation needs beyond the program itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryNeed {
    /// Cores, routers, queues, and each stage's counters.
    pub pes: u64,
    /// Contents of SRAM.
    pub sram: u64,
    /// Wavelets that left at the edge, and those fed again to a later stage.
    pub streams: u64,
}

/// Bytes of a core's state beside its SRAM: its registers, descriptors and threads. Assumed, as the two below: generous, not measured.
const CORE: u64 = 3 << 10;
/// Bytes of a PE's router and its place in tables, without its colours.
const ROUTER: u64 = 512;
/// Bytes of a colour in a router: its queues, positions and stream.
const COLOR: u64 = 768;

impl MemoryNeed {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.pes + self.sram + self.streams
    }
}

/// Predicts what [`super::run`] needs with the fast engine.
pub fn memory(program: &Program, machine: &Machine) -> MemoryNeed {
    let pes = machine.mesh.width as u64 * machine.mesh.height as u64;
    let mut need = MemoryNeed::default();
    for stage in &program.stages {
        let (cores, colors, sram) = of_stage(stage);
        need.pes = need.pes.max(pes * ROUTER + cores * CORE + colors * COLOR);
        need.sram = need.sram.max(sram);
        let drained: u64 = stage.drains.iter().map(|d| d.wavelets).sum();
        let again = stage.feeds.iter().map(|f| match &f.data {
            FeedData::Host(_) => 0,
            FeedData::Drained(spans) => spans.iter().map(|s| s.count).sum(),
            FeedData::Cut(cut) => cut.wavelets(),
        });
        need.streams +=
            drained * size_of::<Landed>() as u64 + again.sum::<u64>() * size_of::<Wavelet>() as u64;
    }
    // the run's own counters, and each stage's
    need.pes += (1 + program.stages.len() as u64) * pes * size_of::<PeCounters>() as u64;
    need
}

/// Its PEs with code, colours of all their routers, and bytes of SRAM.
fn of_stage(stage: &Stage) -> (u64, u64, u64) {
    let mut all = (0, 0, 0);
    for block in stage.regions.iter().flat_map(|r| &r.blocks) {
        let places = block.at.places().count() as u64;
        let bytes = block
            .memory
            .iter()
            .map(|b| b.address as u64 + b.bytes as u64)
            .max();
        all.0 += places;
        all.2 += places * bytes.unwrap_or(0);
    }
    let routes = stage.regions.iter().flat_map(|r| &r.routes);
    all.1 = routes.map(|r| r.at.places().count() as u64).sum();
    all
}
