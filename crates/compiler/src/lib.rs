//! From a model graph and a machine description to a program for every PE. [`compile`] runs the passes of [`passes`] in order; kernels
//! are in [`kernels`], one file an operator. This crate knows the machine and the program, never an engine's inside.

pub mod assemble;
pub mod kernels;
pub mod microbenchmarks;
pub mod passes;
pub mod plan;

use meshloom_models::{Graph, TensorId};
use meshloom_simulator::engine::{Landed, Probe};
use meshloom_simulator::numerics::from_bits;
use meshloom_simulator::program::{Program, Ty, Wavelet};
use meshloom_simulator::{Machine, text};
use plan::{Layout, Plan};

/// How to compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Type of activations and weights; sums are f32.
    pub ty: Ty,
    /// Tensors sent through one after another, at least 1.
    pub items: usize,
    /// Zero weights are neither stored nor multiplied (rule M14); otherwise they are treated like all others.
    pub skip_zeros: bool,
}

/// Why a model can't be compiled for a machine.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CompileError {
    /// An operator, or a use of one, that has no kernel.
    #[error("{node}: {message}")]
    Unsupported {
        /// The operator's name.
        node: String,
        /// What is not supported, and what is.
        message: String,
    },
    /// Something needs more than the machine has.
    #[error("does not fit: {what}: needed {needs}; available {has}. What would help: {helps}")]
    DoesNotFit {
        /// What.
        what: String,
        /// What it needs.
        needs: String,
        /// What there is.
        has: String,
        /// What would help.
        helps: String,
    },
    /// The compiler made a program that the machine refuses: a defect of the compiler.
    #[error("the compiled program is not valid (a defect of the compiler): {0}")]
    Invalid(String),
}

/// An output's way out: the drain and the rows whose lanes it carries, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Index of the program's drain.
    pub drain: usize,
    /// First row, and the row after the last.
    pub rows: (u32, u32),
}

/// A graph output.
#[derive(Clone, Debug)]
pub struct OutputPort {
    /// Its name.
    pub name: String,
    /// The edge that carries it.
    pub edge: usize,
    /// How it lies on the lanes.
    pub layout: Layout,
    /// Whether the output is the flattened view of that layout.
    pub flat: bool,
    /// Where it leaves.
    pub ports: Vec<Port>,
}

/// Where to listen for a tensor between kernels: one probe a lane.
#[derive(Clone, Debug)]
pub struct TensorProbe {
    /// The graph's tensor.
    pub tensor: TensorId,
    /// Its name.
    pub name: String,
    /// How it lies on the lanes.
    pub layout: Layout,
    /// The lanes.
    pub at: Vec<Probe>,
}

/// A compiled model.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The program for every PE.
    pub program: Program,
    /// Kernels, edges and places that it came from.
    pub plan: Plan,
    /// The graph's outputs.
    pub outputs: Vec<OutputPort>,
    /// The kernels' results, in the kernels' order.
    pub probes: Vec<TensorProbe>,
}

/// Compiles a graph for a machine. `inputs` holds the items of each graph input, one after another, in the order of `graph.inputs()`.
pub fn compile(
    graph: &Graph,
    machine: &Machine,
    options: &Options,
    inputs: &[(String, Vec<f32>)],
) -> Result<Compiled, CompileError> {
    let plan = passes::rewrite::run(graph, machine, options)?;
    if machine.mesh.width < 3 {
        return Err(CompileError::DoesNotFit {
            what: graph.name.clone(),
            needs: "a mesh of at least 3 columns: one for what enters, one for what leaves".into(),
            has: format!("{} column(s) on {}", machine.mesh.width, machine.name),
            helps: "a wider machine, or --set mesh.width=32".into(),
        });
    }
    finish(plan, machine, options, inputs, None)
}

/// One kernel of a compiled model as a program of its own, at the width that it has there. `inputs` holds, for each of the kernel's
/// inputs, the items of that tensor (see [`Plan::edges`]).
pub fn compile_alone(
    compiled: &Compiled,
    kernel: usize,
    machine: &Machine,
    options: &Options,
    inputs: &[Vec<f32>],
) -> Result<Compiled, CompileError> {
    let whole = &compiled.plan;
    let mut kept = whole.kernels[kernel].clone();
    let mut edges = Vec::new();
    for (i, u) in kept.inputs.iter_mut().enumerate() {
        let old = &whole.edges[u.edge];
        let axes = (0..2 + old.layout.inner.len()).collect();
        edges.push(plan::Edge {
            source: plan::Source::Input(i),
            axes,
            to: vec![0],
            ..old.clone()
        });
        u.edge = i;
    }
    let result = &whole.edges[kept.output];
    kept.output = edges.len();
    let outputs = vec![(
        result.name.clone(),
        plan::Use {
            edge: edges.len(),
            flat: false,
        },
    )];
    edges.push(plan::Edge {
        source: plan::Source::Kernel(0),
        to: Vec::new(),
        ..result.clone()
    });
    let named: Vec<(String, Vec<f32>)> = edges
        .iter()
        .zip(inputs)
        .map(|(e, v)| (e.name.clone(), v.clone()))
        .collect();
    let plan = Plan {
        name: kept.name.clone(),
        ty: whole.ty,
        items: options.items,
        kernels: vec![kept],
        edges,
        outputs,
        places: Vec::new(),
        estimates: Vec::new(),
        regions: Vec::new(),
    };
    finish(plan, machine, options, &named, Some(whole.places[kernel].width))
}

/// The passes after rewriting.
fn finish(
    mut plan: Plan,
    machine: &Machine,
    options: &Options,
    inputs: &[(String, Vec<f32>)],
    width: Option<u32>,
) -> Result<Compiled, CompileError> {
    passes::layout::run(&mut plan, machine.mesh.height as usize);
    let least = match width {
        Some(w) => vec![w],
        None => passes::stages::run(&plan, machine, options)?,
    };
    passes::placement::run(&mut plan, machine, &least, width.is_some())?;
    passes::routes::run(&mut plan, machine)?;
    passes::memory::run(&mut plan, machine)?;
    let compiled = passes::emit::run(plan, machine, inputs)?;
    passes::limits::run(&compiled.program, machine)?;
    meshloom_simulator::verify::verify(&compiled.program, machine).map_err(|all| {
        CompileError::Invalid(all.iter().map(|v| v.to_string()).collect::<Vec<_>>().join("\n"))
    })?;
    Ok(compiled)
}

/// The printed result of a pass of [`passes::PASSES`], or `None` for a name that is not one.
pub fn show(compiled: &Compiled, graph: &Graph, machine: &Machine, pass: &str) -> Option<String> {
    let plan = &compiled.plan;
    Some(match pass {
        "graph" => graph.to_text(),
        "rewritten" => passes::rewrite::show(plan),
        "stages" => passes::stages::show(plan, machine),
        "placement" => passes::placement::show(plan, machine),
        "routes" => passes::routes::show(plan, machine),
        "memory" => passes::memory::show(plan, machine),
        "program" => text::print(&compiled.program),
        _ => return None,
    })
}

/// Unpacks the wavelets of one lane: all items of its features, appended in order.
fn unpack(wavelets: impl Iterator<Item = Wavelet>, ty: Ty, out: &mut Vec<f32>) {
    for w in wavelets {
        out.extend((0..w.elements as u32).map(|i| from_bits(ty, w.bits, i)));
    }
}

impl TensorProbe {
    /// The tensor's items in row-major order, from what the probes recorded (`recorded[i]` for the i-th lane).
    pub fn values(&self, recorded: &[Vec<Wavelet>], ty: Ty, items: usize) -> Vec<f32> {
        let l = &self.layout;
        let mut lanes = Vec::new();
        for r in recorded {
            let mut lane = Vec::new();
            unpack(r.iter().copied(), ty, &mut lane);
            lanes.push(lane);
        }
        let mut out = vec![f32::NAN; items * l.features() * l.length()];
        for (r, lane) in lanes.iter().enumerate() {
            for (at, v) in lane.iter().enumerate() {
                place(l, r, at, *v, &mut out);
            }
        }
        out
    }
}

/// Puts the `at`-th element of lane `r` where it belongs in the tensor [item, n, features, inner].
fn place(l: &Layout, r: usize, at: usize, value: f32, out: &mut [f32]) {
    let (length, features) = (l.length(), l.features());
    let per_item = l.lane(r) * length;
    let (item, rest) = (at / per_item, at % per_item);
    let (f, position) = (l.starts[r] + rest / length, rest % length);
    let inner = length / l.n;
    let (n, p) = (position / inner, position % inner);
    if let Some(slot) = out.get_mut(((item * l.n + n) * features + f) * inner + p) {
        *slot = value;
    }
}

impl OutputPort {
    /// The output's items in row-major order, and the cycle at which each was complete, from what left.
    pub fn values(&self, drains: &[Vec<Landed>], ty: Ty, items: usize) -> (Vec<f32>, Vec<u64>) {
        let l = &self.layout;
        let mut out = vec![f32::NAN; items * l.features() * l.length()];
        let mut done = vec![0; items];
        for port in &self.ports {
            let landed = &drains[port.drain];
            let each = landed.len() / items.max(1);
            for (item, chunk) in landed.chunks(each.max(1)).enumerate().take(items) {
                done[item] = done[item].max(chunk.iter().map(|w| w.cycle).max().unwrap_or(0));
                let mut values = Vec::new();
                unpack(chunk.iter().map(|w| w.wavelet), ty, &mut values);
                let mut values = values.into_iter();
                for r in port.rows.0 as usize..port.rows.1 as usize {
                    let n = l.lane(r) * l.length();
                    for at in 0..n {
                        if let Some(v) = values.next() {
                            place(l, r, item * n + at, v, &mut out);
                        }
                    }
                }
            }
        }
        (out, done)
    }
}
