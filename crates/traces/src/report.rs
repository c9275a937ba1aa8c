//! `report.json`: its structures, in the order in which the file has them, and the comparisons drawn from its runs.
//! `docs/report.md` defines every figure; the comments here give the unit.

use crate::validate::{Violation, validate};
use serde::{Deserialize, Deserializer, Serialize};

/// The value of [`Report::schema`]; it changes with every incompatible change of the file.
pub const SCHEMA: &str = "meshloom.report/1";

/// All that one command measured: one model, some machines, on each a few runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// What was run.
    pub model: Model,
    /// Element type of weights and activations: `f32` or `f16`.
    pub dtype: String,
    /// Samples in one item.
    pub batch: u64,
    /// Items (batches) streamed through the mesh one after another.
    pub items: u64,
    /// Seed of everything drawn at random.
    pub seed: u64,
    /// `seeded`, or the file that the inputs came from.
    pub inputs: String,
    /// Every run, machine by machine; on each machine the dense one first.
    pub runs: Vec<Run>,
    /// The first of `comparisons` whose sparsity is above 0.
    pub comparison: Option<Comparison>,
    /// Sparse against dense: one a machine and sparsity.
    pub comparisons: Vec<Comparison>,
}

/// The model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// Its name.
    pub name: String,
    /// The builder's arguments, or the file it was read from.
    pub source: String,
    /// Weights, zero or not.
    pub parameters: u64,
    /// Weights that are not zero, before any run's `sparsity` is applied.
    pub nonzeros: u64,
}

/// Which of the three comparable runs it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunName {
    /// All weights, with the best dense kernels.
    Dense,
    /// The sparse model on the same machine with skipping off.
    SparseNoSkip,
    /// The sparse model; zero weights are neither sent nor multiplied.
    Sparse,
}

impl std::fmt::Display for RunName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            RunName::Dense => "dense",
            RunName::SparseNoSkip => "sparse-no-skip",
            RunName::Sparse => "sparse",
        })
    }
}

/// One run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Which one.
    pub name: RunName,
    /// On what.
    pub machine: MachineSummary,
    /// Share of the weights of the layers made sparse that are zero, 0 to 1.
    pub sparsity: f64,
    /// The engine: `reference` or `fast`.
    pub engine: String,
    /// Cycles of the machine's clock.
    pub cycles: Cycles,
    /// Seconds of simulated time: `cycles.total` at the machine's clock.
    pub seconds: f64,
    /// Operations by class.
    pub flops: Flops,
    /// Executed multiply-adds over (PEs of the mesh x lanes x `cycles.total`), 0 to 1.
    pub utilisation: f64,
    /// The same over the PEs that have code, 0 to 1.
    pub utilisation_in_use: f64,
    /// Multiply-adds of the PE with the most over the mean of its kernel's PEs with any; 1 where none has any.
    pub imbalance: f64,
    /// What moved.
    pub traffic: Traffic,
    /// SRAM.
    pub memory: Memory,
    /// Joules from the machine's energy values, loading included; absent if it has none.
    pub energy_joules: Option<f64>,
    /// Against the f64 evaluator; absent if the outputs were not compared.
    pub outputs: Option<Outputs>,
    /// Seconds that the simulation took.
    pub wall_seconds: f64,
    /// PE-cycles simulated (mesh x (load + total)) a second of `wall_seconds`; 0 if the time is 0.
    pub pe_cycles_per_second: f64,
    /// Most memory that the process had in use up to the end of the simulation; absent where the system does not tell.
    pub peak_memory_bytes: Option<u64>,
    /// Which share of the simulation's work took which form.
    pub paths: Paths,
    /// One a kernel, in the order of the program.
    pub kernels: Vec<Kernel>,
}

/// Shares of the simulation's work by form, 0 to 1 (docs/fast-engine.md); 0 where there was none. The first four are of the PE-cycles in
/// which a core issued, launched or used its slot, the others of the link traversals.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Paths {
    /// Executed one by one.
    pub cycles_single: f64,
    /// Many cycles of one instruction in one go.
    pub cycles_leap: f64,
    /// Many cycles over several instructions in one go.
    pub cycles_ahead: f64,
    /// In columns that do what another one does, which alone was timed.
    pub cycles_columns: f64,
    /// Looked at one by one.
    pub hops_single: f64,
    /// Many wavelets of one stream in one go.
    pub hops_flow: f64,
    /// In and to such columns.
    pub hops_columns: f64,
}

/// The machine, as far as the report needs it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineSummary {
    /// Name.
    pub name: String,
    /// Columns of PEs.
    pub width: u32,
    /// Rows of PEs.
    pub height: u32,
    /// Cycles a second.
    pub clock_hz: f64,
}

/// Cycles of one run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cycles {
    /// In every stage before its first input wavelet may enter, and changes of stages: weights and code enter, no kernel computes.
    pub load: u64,
    /// From the first input wavelet to the first output wavelet's arrival outside.
    pub first_output: u64,
    /// Mean between the completions of two items in steady state; absent for one item.
    pub interval: Option<f64>,
    /// From the first input wavelet to the last event; `load` is not part of it.
    pub total: u64,
    /// Stage by stage; absent in files written before there were stages.
    #[serde(default)]
    pub stages: Vec<StageCycles>,
}

impl Cycles {
    /// Cycles that are not load, of the stage of this number.
    pub fn of_stage(&self, stage: u32) -> Option<u64> {
        match (self.stages.get(stage as usize), stage) {
            (Some(s), _) => Some(s.total),
            (None, 0) if self.stages.is_empty() => Some(self.total),
            _ => None,
        }
    }
}

/// Cycles of one stage.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageCycles {
    /// The change before it: barrier, code, route words.
    pub change: u64,
    /// From its begin to its epoch 1: weights enter.
    pub load: u64,
    /// From its epoch 1 to its end.
    pub total: u64,
    /// Seconds that its simulation took; 0 in files written before that was kept.
    #[serde(default)]
    pub wall_seconds: f64,
}

/// Operations by class: multiply-adds for `mac` and `mac_act`, single operations for the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operations {
    /// Multiply-adds with weights.
    pub mac: u64,
    /// Multiply-adds of activations with activations.
    pub mac_act: u64,
    /// Additions that exist only because work was split.
    pub reduce: u64,
    /// All other arithmetic.
    pub other: u64,
}

impl Operations {
    /// `mac + mac_act`, in multiply-adds.
    pub fn multiply_adds(&self) -> u64 {
        self.mac + self.mac_act
    }

    /// FLOPs: two a multiply-add, one for every other operation.
    pub fn flops(&self) -> u64 {
        2 * self.multiply_adds() + self.reduce + self.other
    }
}

/// Operations of a run, counted three ways, and the published convention.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flops {
    /// Without any sparsity; taps that hit padding or an inserted zero are not counted.
    pub dense: Operations,
    /// With the weights of this run that are not zero; else like `dense`.
    pub theoretical: Operations,
    /// Counted by the engine on the datapaths.
    pub executed: Operations,
    /// Multiply-adds with weights as papers count them: dense, padding and inserted zeros included.
    pub published: u64,
}

/// What moved, loading included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Wavelets sent by cores and entered at the edge.
    pub wavelets: u64,
    /// Link traversals between routers.
    pub hops: u64,
    /// Bytes over edge channels, both ways.
    pub offchip_bytes: u64,
}

/// SRAM of one run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// Bytes of data and code in the fullest PE.
    pub peak_pe_bytes: u64,
}

/// Outputs against the f64 evaluator.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outputs {
    /// Largest absolute difference of an element; not finite (`null` in the file) if an output is not.
    #[serde(deserialize_with = "null_is_nan")]
    pub max_abs_error: f64,
    /// Largest difference relative to its tensor's standard deviation; not finite (`null` in the file) if an output is not.
    #[serde(deserialize_with = "null_is_nan")]
    pub max_rel_error: f64,
    /// The output in which `max_rel_error` is.
    pub worst_tensor: String,
    /// The first tensor, in the order of the graph, beyond the tolerance.
    pub first_departing: Option<String>,
}

/// JSON has no number that is not finite: such a one is written as null.
fn null_is_nan<'de, D: Deserializer<'de>>(d: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(d)?.unwrap_or(f64::NAN))
}

/// One kernel in one run. `busy` to `idle` are PE-cycles over its region in its stage, from its first input wavelet on; their
/// sum is the region's area x the stage's cycles without load (`cycles.total` in a run of one stage).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kernel {
    /// Name of the graph's node.
    pub name: String,
    /// Operator.
    pub op: String,
    /// Stage, from 0.
    pub stage: u32,
    /// Its PEs.
    pub region: Rect,
    /// From the first to the last cycle in which one of its PEs was busy, both included; 0 if none was.
    pub cycles: u64,
    /// What the compiler's cost formula expected.
    pub estimated_cycles: u64,
    /// Multiply-adds of its PE with the most over the mean of its PEs with any; 1 where none has any.
    pub imbalance: f64,
    /// Operations executed on its PEs.
    pub executed: Operations,
    /// PE-cycles in which the step slot was used.
    pub busy: u64,
    /// `busy` by what used the slot.
    pub slots: Slots,
    /// PE-cycles in which a thread waited for a wavelet.
    pub wait_input: u64,
    /// PE-cycles in which a thread waited for credit.
    pub wait_room: u64,
    /// PE-cycles in which a thread was issuing or launching.
    pub launch: u64,
    /// PE-cycles with none of these.
    pub idle: u64,
}

/// Step slots by what used them, in PE-cycles from the first input wavelet on; their sum is the kernel's `busy`. A bank conflict's
/// second slot counts with its step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slots {
    /// Multiply-adds with weights.
    pub mac: u64,
    /// Multiply-adds of activations.
    pub mac_act: u64,
    /// Additions that exist because work was split.
    pub reduce: u64,
    /// Other arithmetic.
    pub other: u64,
    /// Moves, and elements fetched from a sparse stream.
    pub moves: u64,
    /// Scalar code: loads, additions, branches, descriptors.
    pub scalar: u64,
}

impl Slots {
    /// Their sum.
    pub fn total(&self) -> u64 {
        self.mac + self.mac_act + self.reduce + self.other + self.moves + self.scalar
    }
}

impl Kernel {
    /// The five classes' sum, in PE-cycles.
    pub fn pe_cycles(&self) -> u64 {
        self.busy + self.wait_input + self.wait_room + self.launch + self.idle
    }
}

/// A rectangle of PEs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Rect {
    /// Left column.
    pub x: u32,
    /// Top row.
    pub y: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Rect {
    /// PEs in it.
    pub fn area(&self) -> u64 {
        self.width as u64 * self.height as u64
    }

    /// Whether a PE is in both.
    pub fn overlaps(&self, other: &Rect) -> bool {
        let apart = |a: u32, n: u32, b: u32, m: u32| {
            a as u64 + n as u64 <= b as u64 || b as u64 + m as u64 <= a as u64
        };
        !apart(self.x, self.width, other.x, other.width) && !apart(self.y, self.height, other.y, other.height)
    }

    /// Whether all of it is on a mesh of this size, and it is not empty.
    pub fn fits(&self, width: u32, height: u32) -> bool {
        self.width > 0
            && self.height > 0
            && self.x as u64 + self.width as u64 <= width as u64
            && self.y as u64 + self.height as u64 <= height as u64
    }
}

impl std::fmt::Display for Rect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&format!(
            "{}x{} @ ({},{})",
            self.width, self.height, self.x, self.y
        ))
    }
}

/// Sparse against dense on one machine; all quotients of cycles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The machine's name.
    pub machine: String,
    /// Sparsity of the sparse run, 0 to 1.
    pub sparsity: f64,
    /// `cycles.total` of the dense run over that of the sparse one.
    pub speedup: f64,
    /// The same of `cycles.load + cycles.total`.
    pub speedup_with_load: f64,
    /// `cycles.total` of the dense run over that of the run without skipping; absent without such a run.
    pub speedup_no_skip: Option<f64>,
    /// Dense over theoretical multiply-adds (`mac + mac_act`) of the sparse run.
    pub theoretical_speedup: f64,
}

/// Why a text is not a report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// Not JSON, or not of this form.
    #[error("{file}: not a report: {message}")]
    Syntax {
        /// Path or name of the text.
        file: String,
        /// The JSON reader's message, with line and column.
        message: String,
    },
    /// Another version of the form.
    #[error("{file}: the schema is `{found}`, expected `{SCHEMA}`")]
    Schema {
        /// Path or name of the text.
        file: String,
        /// The schema found.
        found: String,
    },
}

impl Report {
    /// A report of these runs, with `comparison` and `comparisons` drawn from them.
    pub fn new(
        model: Model,
        dtype: impl Into<String>,
        batch: u64,
        items: u64,
        seed: u64,
        inputs: impl Into<String>,
        runs: Vec<Run>,
    ) -> Report {
        let comparisons = compare(&runs);
        Report {
            schema: SCHEMA.into(),
            model,
            dtype: dtype.into(),
            batch,
            items,
            seed,
            inputs: inputs.into(),
            runs,
            comparison: headline(&comparisons),
            comparisons,
        }
    }

    /// Reads `report.json`; `file` is only for messages. Nothing but the schema is checked; see [`Report::validate`].
    pub fn from_json(file: &str, text: &str) -> Result<Report, ReportError> {
        #[derive(Deserialize)]
        struct Head {
            schema: String,
        }
        let syntax = |e: serde_json::Error| ReportError::Syntax {
            file: file.into(),
            message: e.to_string(),
        };
        let head: Head = serde_json::from_str(text).map_err(syntax)?;
        if head.schema != SCHEMA {
            return Err(ReportError::Schema {
                file: file.into(),
                found: head.schema,
            });
        }
        serde_json::from_str(text).map_err(syntax)
    }

    /// The text of `report.json`, indented, ending in a newline.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("plain structs with text keys");
        text.push('\n');
        text
    }

    /// Checks every sum and quotient that `docs/report.md` promises; the first one that does not hold is the error.
    pub fn validate(&self) -> Result<(), Violation> {
        validate(self)
    }

    /// The runs machine by machine, in the order in which the machines first appear.
    pub fn machines(&self) -> Vec<Vec<&Run>> {
        by_machine(&self.runs)
    }
}

/// The runs machine by machine, in the order in which the machines first appear.
pub(crate) fn by_machine(runs: &[Run]) -> Vec<Vec<&Run>> {
    let mut groups: Vec<Vec<&Run>> = Vec::new();
    for run in runs {
        match groups.iter_mut().find(|g| g[0].machine == run.machine) {
            Some(group) => group.push(run),
            None => groups.push(vec![run]),
        }
    }
    groups
}

/// Every sparse run that has a dense run on its machine, against it: machine by machine, in the order of the runs. A
/// quotient whose divisor is 0 is 1 (there was nothing to speed up).
pub fn compare(runs: &[Run]) -> Vec<Comparison> {
    let quotient = |a: u64, b: u64| if b == 0 { 1.0 } else { a as f64 / b as f64 };
    let mut all = Vec::new();
    for group in by_machine(runs) {
        let Some(dense) = group.iter().find(|r| r.name == RunName::Dense) else {
            continue;
        };
        for sparse in group.iter().filter(|r| r.name == RunName::Sparse) {
            let no_skip = group
                .iter()
                .find(|r| r.name == RunName::SparseNoSkip && r.sparsity == sparse.sparsity);
            all.push(Comparison {
                machine: sparse.machine.name.clone(),
                sparsity: sparse.sparsity,
                speedup: quotient(dense.cycles.total, sparse.cycles.total),
                speedup_with_load: quotient(
                    dense.cycles.load + dense.cycles.total,
                    sparse.cycles.load + sparse.cycles.total,
                ),
                speedup_no_skip: no_skip.map(|n| quotient(dense.cycles.total, n.cycles.total)),
                theoretical_speedup: quotient(
                    sparse.flops.dense.multiply_adds(),
                    sparse.flops.theoretical.multiply_adds(),
                ),
            });
        }
    }
    all
}

/// The one comparison that stands for the report.
pub(crate) fn headline(comparisons: &[Comparison]) -> Option<Comparison> {
    let machine = &comparisons.first()?.machine;
    comparisons
        .iter()
        .find(|c| c.machine == *machine && c.sparsity > 0.0)
        .cloned()
}
