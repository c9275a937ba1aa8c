//! From a model graph and a machine description to a program for every PE. [`compile`] runs the passes of [`passes`] in order; kernels
//! are in [`kernels`], one file an operator. This crate knows the machine and the program, never an engine's inside.

pub mod assemble;
pub mod in_place;
pub mod kernels;
pub mod microbenchmarks;
pub mod passes;
pub mod plan;

use meshloom_models::{Graph, TensorId};
use meshloom_simulator::engine::{Landed, Probe};
use meshloom_simulator::numerics::from_bits;
use meshloom_simulator::program::{Program, Ty, Wavelet};
use meshloom_simulator::{Machine, text};
use plan::{Give, Layout, Plan};

/// How rectangles are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Placement {
    /// Areas in proportion to the work that sparsity leaves.
    #[default]
    Work,
    /// Equal strips, whatever the work: what placement by work is compared with.
    Strips,
}

/// How a model is cut into stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Stages {
    /// One if everything fits, else as few as it takes.
    #[default]
    Auto,
    /// One, or an error.
    One,
    /// A stage for each kernel, which has the whole mesh.
    Layer,
}

/// Where weights are while they are multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Weights {
    /// Streamed where each kernel has a stage of its own, or where they do not fit; else resident.
    #[default]
    Auto,
    /// In SRAM before the kernel begins.
    Resident,
    /// Entering from the edge as the kernel computes, for all kernels that can.
    Streamed,
}

/// How to compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Type of activations and weights; sums are f32.
    pub ty: Ty,
    /// Tensors sent through one after another, at least 1.
    pub items: usize,
    /// Zero weights are neither stored nor multiplied (rule M14); otherwise they are treated like all others.
    pub skip_zeros: bool,
    /// How the model is cut into stages.
    pub stages: Stages,
    /// Where weights are.
    pub weights: Weights,
    /// How rectangles are chosen.
    pub placement: Placement,
    /// Features are put in an order that evens out the PEs' nonzeros.
    pub balance: bool,
    /// Most parallel streams between two kernels: 1, 2 or 4.
    pub lanes: usize,
    /// Seed of the balance pass's search for orders.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            ty: Ty::F32,
            items: 1,
            skip_zeros: true,
            stages: Stages::Auto,
            weights: Weights::Auto,
            placement: Placement::Work,
            balance: true,
            lanes: 4,
            seed: 0,
        }
    }
}

/// Why a model can't be compiled for a machine.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
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

impl CompileError {
    /// The same, with more about what does not fit.
    fn but(self, more: &str) -> CompileError {
        match self {
            CompileError::DoesNotFit {
                what,
                needs,
                has,
                helps,
            } => CompileError::DoesNotFit {
                what: format!("{what} ({more})"),
                needs,
                has,
                helps,
            },
            other => other,
        }
    }
}

/// A graph output.
#[derive(Clone, Debug)]
pub struct OutputPort {
    /// Its name.
    pub name: String,
    /// The stage that makes it.
    pub stage: usize,
    /// The edge of that stage's plan that carries it.
    pub edge: usize,
    /// How it travels.
    pub layout: Layout,
    /// Type of its elements.
    pub ty: Ty,
    /// The drain of each lane, among those of its stage.
    pub drains: Vec<usize>,
}

/// Where to listen for a tensor between kernels: the PEs that send it, and what each sends.
#[derive(Clone, Debug)]
pub struct TensorProbe {
    /// The graph's tensor.
    pub tensor: TensorId,
    /// Its name.
    pub name: String,
    /// How it travels.
    pub layout: Layout,
    /// Type of its elements.
    pub ty: Ty,
    /// The PEs.
    pub at: Vec<Probe>,
    /// What each sends.
    pub gives: Vec<Give>,
}

/// A compiled model.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The program for every PE.
    pub program: Program,
    /// Kernels, edges and places that it came from, stage by stage.
    pub plans: Vec<Plan>,
    /// The graph's outputs.
    pub outputs: Vec<OutputPort>,
    /// The kernels' results, stage by stage in the kernels' order.
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
    let mut plans = passes::stages::run(&plan, machine, options)?;
    passes::early::run(&mut plans, machine);
    finish(plans, &plan.outputs, &plan, machine, inputs)
}

/// One kernel of a compiled model as a program of its own, in a rectangle of the size that it has there. `inputs` holds, for each of the kernel's
/// inputs, the items of that tensor (see [`Plan::edges`]).
pub fn compile_alone(
    compiled: &Compiled,
    stage: usize,
    kernel: usize,
    machine: &Machine,
    options: &Options,
    inputs: &[Vec<f32>],
) -> Result<Compiled, CompileError> {
    let whole = &compiled.plans[stage];
    let mut kept = whole.kernels[kernel].clone();
    let mut edges = Vec::new();
    for (i, u) in kept.inputs.iter_mut().enumerate() {
        let old = &whole.edges[u.edge];
        let axes = (0..old.shape.len()).collect();
        edges.push(plan::Edge {
            source: plan::Source::Input(i),
            axes,
            to: vec![0],
            ways: Vec::new(),
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
        ways: Vec::new(),
        ..result.clone()
    });
    let named: Vec<(String, Vec<f32>)> = edges
        .iter()
        .zip(inputs)
        .map(|(e, v)| (e.name.clone(), v.clone()))
        .collect();
    let plan = Plan {
        name: kept.name.clone(),
        stage_name: String::new(),
        ty: whole.ty,
        items: whole.items,
        tiles: whole.tiles,
        kernels: vec![kept],
        edges,
        outputs,
        places: Vec::new(),
        estimates: Vec::new(),
        balance: Vec::new(),
        regions: Vec::new(),
        weights: Vec::new(),
        early: None,
        next: None,
    };
    let size = (whole.places[kernel].width, whole.places[kernel].height);
    let placed = passes::stages::place(&plan, machine, &mut Default::default(), options, Some(size))?;
    finish(vec![placed], &plan.outputs, &plan, machine, &named)
}

/// The passes after placement. `outputs` are those of the whole model, `plan` before it was cut into stages.
fn finish(
    plans: Vec<Plan>,
    outputs: &[(String, plan::Use)],
    plan: &Plan,
    machine: &Machine,
    inputs: &[(String, Vec<f32>)],
) -> Result<Compiled, CompileError> {
    let mut program = Program {
        name: plan.name.clone(),
        stages: Vec::new(),
    };
    let (mut ports, mut probes) = (Vec::new(), Vec::new());
    for (number, stage) in plans.iter().enumerate() {
        let emission = passes::emit::run(stage, number, machine, inputs, &ports);
        program.stages.push(emission.stage);
        ports.push(emission.outputs);
        probes.extend(emission.probes);
    }
    let found = |(name, u): &(String, plan::Use)| {
        let edge = &plan.edges[u.edge].name;
        let port = ports
            .iter()
            .flatten()
            .find(|p| p.name == *edge || p.name == *name);
        port.map(|p| OutputPort {
            name: name.clone(),
            ..p.clone()
        })
    };
    let outputs = outputs.iter().filter_map(found).collect();
    passes::limits::run(&program, machine)?;
    meshloom_simulator::verify::verify(&program, machine).map_err(|all| {
        CompileError::Invalid(all.iter().map(|v| v.to_string()).collect::<Vec<_>>().join("\n"))
    })?;
    Ok(Compiled {
        program,
        plans,
        outputs,
        probes,
    })
}

/// The printed result of a pass of [`passes::PASSES`], or `None` for a name that is not one.
pub fn show(compiled: &Compiled, graph: &Graph, machine: &Machine, pass: &str) -> Option<String> {
    let each = |show: &dyn Fn(&Plan) -> String| {
        let several = compiled.plans.len() > 1 || pass == "stages";
        let stages = compiled.plans.iter().enumerate().map(|(i, plan)| match several {
            true if plan.tiles > 1 => format!(
                "stage {i}: {} kernels, {} tiles an item\n{}",
                plan.kernels.len(),
                plan.tiles,
                show(plan)
            ),
            true => format!("stage {i}: {} kernels\n{}", plan.kernels.len(), show(plan)),
            false => show(plan),
        });
        stages.collect::<String>()
    };
    Some(match pass {
        "graph" => graph.to_text(),
        "rewritten" => each(&passes::rewrite::show),
        "stages" => each(&|p| passes::stages::show(p, machine)),
        "placement" => each(&|p| passes::placement::show(p, machine)),
        "balance" => each(&passes::balance::show),
        "routes" => each(&|p| passes::routes::show(p, machine)),
        "memory" => each(&|p| passes::memory::show(p, machine)),
        "program" => text::print(&compiled.program),
        _ => return None,
    })
}

/// Unpacks wavelets into their elements.
fn unpack(wavelets: impl Iterator<Item = Wavelet>, ty: Ty) -> impl Iterator<Item = f32> {
    wavelets.flat_map(move |w| (0..w.elements as u32).map(move |i| from_bits(ty, w.bits, i)))
}

impl TensorProbe {
    /// The tensor's items in row-major order, from what the probes recorded (`recorded[i]` for the i-th PE).
    pub fn values(&self, recorded: &[Vec<Wavelet>], items: usize) -> Vec<f32> {
        let l = &self.layout;
        let (size, tiles) = (l.size(), l.tiles());
        let mut out = vec![f32::NAN; items * size];
        for (give, wavelets) in self.gives.iter().zip(recorded) {
            let mut values = unpack(wavelets.iter().copied(), self.ty);
            for (item, tile) in (0..items).flat_map(|item| (0..tiles).map(move |tile| (item, tile))) {
                for place in give.places() {
                    for position in give.positions.iter().flat_map(|(from, to)| *from..*to) {
                        let Some(v) = values.next() else { return out };
                        if let Some(at) = l.element(tile, place, position) {
                            out[item * size + at] = v;
                        }
                    }
                }
            }
        }
        out
    }
}

impl OutputPort {
    /// The output's items in row-major order, and the cycle at which each was complete, from what left.
    pub fn values(&self, program: &Program, drains: &[Vec<Landed>], items: usize) -> (Vec<f32>, Vec<u64>) {
        let l = &self.layout;
        let (size, tiles) = (l.size(), l.tiles());
        let mut out = vec![f32::NAN; items * size];
        let mut done = vec![0; items];
        for (lane, drain) in self.drains.iter().enumerate() {
            let landed = &drains[program.drain_index(self.stage, *drain)];
            let each = (landed.len() / (items * tiles).max(1)).max(1);
            let (from, to) = l.lane(lane);
            for (n, chunk) in landed.chunks(each).enumerate().take(items * tiles) {
                let (item, tile) = (n / tiles, n % tiles);
                done[item] = done[item].max(chunk.iter().map(|w| w.cycle).max().unwrap_or(0));
                let values = unpack(chunk.iter().map(|w| w.wavelet), self.ty);
                let places = (from..to).flat_map(|f| (0..l.length()).map(move |p| (f, p)));
                for ((place, position), v) in places.zip(values) {
                    if let Some(at) = l.element(tile, place, position) {
                        out[item * size + at] = v;
                    }
                }
            }
        }
        (out, done)
    }
}
