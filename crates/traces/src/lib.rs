//! What happened in a run. An engine's counters become the figures of a [`Report`] ([`count`]), whose sums are checked
//! ([`report`]); the report is shown as a table ([`table`]), and the mesh as a picture ([`map`]). `docs/report.md` gives
//! every figure its one definition and its unit. This crate does no input or output.

pub mod count;
pub mod format;
pub mod gap;
pub mod map;
pub mod report;
pub mod table;

mod validate;

pub use count::{CountError, KernelRegion, RunInput, count_run, multiply_add_lanes};
pub use gap::{Gap, gap};
pub use map::{MeshMap, Placed};
pub use report::{
    Comparison, Cycles, Flops, Kernel, MachineSummary, Memory, Model, Operations, Outputs, Rect, Report,
    ReportError, Run, RunName, SCHEMA, StageCycles, Traffic, compare,
};
pub use validate::Violation;
