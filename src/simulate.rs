//! One run: compile a graph for a machine, simulate it, hold its tensors against the evaluator, count.

use crate::error::Error;
use crate::memory;
use meshloom_compiler::{Compiled, Options, compile, compile_alone, kernels, passes};
use meshloom_models::{Graph, TensorId, evaluate, flops};
use meshloom_simulator::engine::{self, Engine, Outcome, RunError};
use meshloom_simulator::program::Ty;
use meshloom_simulator::{Machine, edge};
use meshloom_traces::count::{KernelRegion, RunInput, count_run, multiply_add_lanes};
use meshloom_traces::report::{Operations, Outputs, Rect, Run, RunName};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What to run.
pub struct Job<'a> {
    /// Which of the comparable runs.
    pub name: RunName,
    /// The graph, its weights already sparse.
    pub graph: &'a Graph,
    /// The machine.
    pub machine: &'a Machine,
    /// Sparsity as asked for.
    pub sparsity: f64,
    /// How to compile; whether zeros are skipped follows from the name.
    pub options: Options,
    /// The items of each input.
    pub inputs: &'a [(String, Vec<f32>)],
    /// All tensors by the evaluator, item by item; none if nothing is to be checked.
    pub expected: Option<&'a Expected>,
    /// For a progress bar.
    pub progress: Option<Arc<AtomicU64>>,
    /// The run is refused if it is sure to take more cycles, and stopped if it does.
    pub max_cycles: Option<u64>,
    /// Which engine simulates it.
    pub engine: Engine,
}

/// All tensors of the graph, for each item, as the evaluator has them.
pub type Expected = Vec<Vec<Option<Vec<f64>>>>;

/// A finished run.
pub struct Finished {
    /// Its figures.
    pub run: Run,
    /// Executed multiply-adds of each PE, row by row; too many for a report, but a plot shows them.
    pub multiply_adds: Vec<u64>,
    /// Multiply-adds that one step can do for the type of the run.
    pub lanes: u32,
    /// The outputs: name, shape of one item, all items.
    pub outputs: Vec<(String, Vec<usize>, Vec<f32>)>,
    /// The program that ran.
    pub compiled: Compiled,
    /// Every tensor that was compared: its name and largest relative error.
    pub errors: Vec<(String, f64)>,
}

impl Finished {
    /// Every tensor that was compared, with its name and largest relative error; `graph` is the job's.
    pub fn compared<'a>(&'a self, graph: &'a Graph) -> impl Iterator<Item = (TensorId, &'a str, f64)> {
        let probes = self.compiled.probes.iter().map(|p| p.tensor);
        let tensors = probes.chain(graph.outputs().iter().copied());
        tensors
            .zip(&self.errors)
            .map(|(t, (name, error))| (t, name.as_str(), *error))
    }
}

/// Largest relative error that is taken as agreement, end to end.
pub fn tolerance(ty: Ty) -> f64 {
    match ty {
        Ty::F32 => 1e-4,
        Ty::F16 => 2e-2,
    }
}

/// The inputs of every item, by name.
pub fn items_of(
    inputs: &[(String, Vec<f32>)],
    items: usize,
) -> impl Iterator<Item = BTreeMap<String, Vec<f64>>> {
    (0..items).map(move |i| {
        let one = inputs.iter().map(|(name, v)| {
            let n = v.len() / items;
            let item = v[i * n..(i + 1) * n].iter().map(|x| f64::from(*x));
            (name.clone(), item.collect())
        });
        one.collect()
    })
}

/// The evaluator's tensors for every item.
pub fn expected(graph: &Graph, inputs: &[(String, Vec<f32>)], items: usize) -> Result<Expected, Error> {
    items_of(inputs, items)
        .map(|one| evaluate::evaluate(graph, &one).map_err(Error::input))
        .collect()
}

/// What a tensor's errors are measured by: its standard deviation, or its root mean square where it has under 16 elements or no spread.
pub fn scale(want: &[f64]) -> f64 {
    let n = want.len().max(1) as f64;
    let mean = want.iter().sum::<f64>() / n;
    let deviation = (want.iter().map(|w| (w - mean).powi(2)).sum::<f64>() / n).sqrt();
    let rms = (want.iter().map(|w| w * w).sum::<f64>() / n).sqrt();
    if want.len() < 16 || deviation <= 1e-12 * rms {
        rms
    } else {
        deviation
    }
}

/// Largest absolute difference, and that relative to the expected tensor's [`scale`] (absolute where that is 0). Anything not finite
/// counts as infinite.
pub fn difference(got: &[f32], want: &[f64]) -> (f64, f64) {
    let scale = scale(want);
    let mut worst = if got.len() == want.len() {
        0.0f64
    } else {
        f64::INFINITY
    };
    for (g, w) in got.iter().zip(want) {
        let d = (*g as f64 - w).abs();
        worst = if d.is_finite() {
            worst.max(d)
        } else {
            f64::INFINITY
        };
    }
    (worst, if scale > 0.0 { worst / scale } else { worst })
}

/// The expected tensor, all items after one another.
pub fn all_items(expected: &Expected, tensor: TensorId) -> Vec<f64> {
    expected
        .iter()
        .flat_map(|item| item[tensor.0 as usize].as_deref().unwrap_or(&[]).iter().copied())
        .collect()
}

/// How a job is compiled.
pub fn options(job: &Job) -> Options {
    Options {
        skip_zeros: job.name == RunName::Sparse && job.machine.skip.zero_weights,
        ..job.options.clone()
    }
}

/// Compiles and simulates.
pub fn run(job: &Job) -> Result<Finished, Error> {
    simulate(job, compile(job.graph, job.machine, &options(job), job.inputs)?)
}

/// Simulates what was compiled for the job.
pub fn simulate(job: &Job, compiled: Compiled) -> Result<Finished, Error> {
    let check = job.expected.is_some();
    let probes = if check {
        compiled
            .probes
            .iter()
            .flat_map(|p| p.at.iter().copied())
            .collect()
    } else {
        Vec::new()
    };
    let times = Arc::new(Mutex::new(Vec::new()));
    let engine_options = engine::Options {
        probes,
        progress: job.progress.clone(),
        max_cycles: job.max_cycles,
        engine: job.engine,
        times: Some(times.clone()),
        ..Default::default()
    };
    refuse_long(job, &compiled)?;
    memory::refuse_large(&compiled.program, job.machine, memory::available())?;
    let start = Instant::now();
    let outcome = engine::run(&compiled.program, job.machine, &engine_options).map_err(|e| match e {
        RunError::TooLong { cycles } => Error::Run(format!(
            "run {} on {} is not finished after {cycles} cycles; --max-cycles {} gives it more",
            job.name,
            job.machine.name,
            cycles.saturating_mul(10)
        )),
        e => e.into(),
    })?;
    let wall_seconds = start.elapsed().as_secs_f64();
    let times = times.lock().unwrap_or_else(PoisonError::into_inner);
    let stage_seconds: Vec<f64> = times.iter().map(Duration::as_secs_f64).collect();

    let outputs: Vec<_> = compiled
        .outputs
        .iter()
        .zip(job.graph.outputs())
        .map(|(o, id)| {
            let (values, _) = o.values(&compiled.program, &outcome.drains, job.options.items);
            (o.name.clone(), job.graph.tensor(*id).shape.clone(), values)
        })
        .collect();
    let mut errors = Vec::new();
    let comparison = job
        .expected
        .map(|expected| compare(job, &compiled, &outcome, expected, &outputs, &mut errors));
    let run = figures(
        job,
        &compiled,
        &outcome,
        comparison,
        (wall_seconds, &stage_seconds),
    )?;
    let multiply_adds = outcome
        .pes
        .iter()
        .map(|pe| pe.operations[0] + pe.operations[1])
        .collect();
    Ok(Finished {
        run,
        multiply_adds,
        lanes: lanes(job),
        outputs,
        compiled,
        errors,
    })
}

/// Refuses a run of which what enters at the edge alone takes longer than it may.
fn refuse_long(job: &Job, compiled: &Compiled) -> Result<(), Error> {
    let (Some(most), machine) = (job.max_cycles, job.machine) else {
        return Ok(());
    };
    let least = edge::entering(&compiled.program, machine);
    if least <= most {
        return Ok(());
    }
    let channels = machine.channels();
    let gap = channels.first().map_or(1, |c| c.gap);
    // the gap, or below one cycle the number of channels, with which they enter in time
    let wanted = gap as f64 * most as f64 / least as f64;
    let more = match wanted >= 1.0 {
        true => machine.link.bits as f64 * machine.clock_hz / wanted.floor(),
        false => machine.edge.bits_per_second / wanted,
    };
    // rounded up to two digits
    let unit = 10f64.powf(more.log10().floor() - 1.0);
    let more = (more / unit).ceil() * unit;
    Err(Error::Input(format!(
        "run {} on {}: weights and inputs alone take {least} cycles to enter, by {} edge channel(s) with a wavelet every {gap} cycle(s) each; \
         more than {most} are not simulated. What would help: --set edge.bits_per_second={more:.1e}, or --max-cycles {}",
        job.name,
        machine.name,
        channels.len(),
        least.saturating_mul(2)
    )))
}

/// Holds every kernel's result and every output against the evaluator.
fn compare(
    job: &Job,
    compiled: &Compiled,
    outcome: &Outcome,
    expected: &Expected,
    outputs: &[(String, Vec<usize>, Vec<f32>)],
    errors: &mut Vec<(String, f64)>,
) -> Outputs {
    let mut result = Outputs {
        max_abs_error: 0.0,
        max_rel_error: 0.0,
        worst_tensor: String::new(),
        first_departing: None,
    };
    let mut note = |name: &str, got: &[f32], tensor: TensorId| {
        let (absolute, relative) = difference(got, &all_items(expected, tensor));
        errors.push((name.to_string(), relative));
        result.max_abs_error = result.max_abs_error.max(absolute);
        if relative >= result.max_rel_error {
            result.max_rel_error = relative;
            result.worst_tensor = name.to_string();
        }
        if relative > tolerance(job.options.ty) && result.first_departing.is_none() {
            result.first_departing = Some(name.to_string());
        }
    };
    let mut at = 0;
    for p in &compiled.probes {
        let recorded = &outcome.probes[at..at + p.at.len()];
        at += p.at.len();
        note(&p.name, &p.values(recorded, job.options.items), p.tensor);
    }
    for ((name, _, values), id) in outputs.iter().zip(job.graph.outputs()) {
        note(name, values, *id);
    }
    result
}

/// Runs every kernel of a compiled model alone, in the width that it has there, on the evaluator's tensors. Returns each kernel's name and
/// the largest error relative to its tensor's standard deviation.
pub fn kernels_alone(
    compiled: &Compiled,
    machine: &Machine,
    options: &Options,
    expected: &Expected,
) -> Result<Vec<(String, f64)>, Error> {
    let mut all = Vec::new();
    let kernels = compiled.plans.iter().enumerate().flat_map(|(stage, plan)| {
        let kernels = plan.kernels.iter().enumerate();
        kernels.map(move |(i, kernel)| (stage, plan, i, kernel))
    });
    for (stage, plan, i, kernel) in kernels {
        let inputs: Vec<Vec<f32>> = kernel
            .inputs
            .iter()
            .map(|u| {
                all_items(expected, plan.edges[u.edge].tensor)
                    .into_iter()
                    .map(|v| v as f32)
                    .collect()
            })
            .collect();
        let alone = compile_alone(compiled, stage, i, machine, options, &inputs)?;
        let outcome = engine::run(&alone.program, machine, &engine::Options::default())?;
        let (got, _) = alone.outputs[0].values(&alone.program, &outcome.drains, options.items);
        let (_, relative) = difference(&got, &all_items(expected, plan.edges[kernel.output].tensor));
        all.push((kernel.name.clone(), relative));
    }
    Ok(all)
}

/// Multiply-adds that one step can do.
fn lanes(job: &Job) -> u32 {
    let dtype = if job.options.ty == Ty::F32 { "f32" } else { "f16" };
    multiply_add_lanes(job.machine, dtype, false).unwrap_or(1)
}

fn figures(
    job: &Job,
    compiled: &Compiled,
    outcome: &Outcome,
    outputs: Option<Outputs>,
    (wall_seconds, stage_seconds): (f64, &[f64]),
) -> Result<Run, Error> {
    let placed = compiled.plans.iter().enumerate().flat_map(|(stage, plan)| {
        let kernels = plan.kernels.iter().zip(&plan.places).zip(&plan.estimates);
        kernels.map(move |((k, r), estimate)| (stage, k, r, estimate * plan.tiles as u64))
    });
    let kernels: Vec<KernelRegion> = placed
        .map(|(stage, k, r, estimate)| KernelRegion {
            name: k.name.clone(),
            op: kernels::of(&k.kind).op().into(),
            stage: stage as u32,
            rect: Rect {
                x: r.x,
                y: r.y,
                width: r.width,
                height: r.height,
            },
            estimated_cycles: estimate,
        })
        .collect();
    let counts = flops::total(job.graph);
    let items = job.options.items as u64;
    let operations = |mac: u64| Operations {
        mac: mac * items,
        mac_act: counts.mac_act * items,
        reduce: 0,
        other: counts.other * items,
    };
    let blocks = || compiled.program.regions().flat_map(|r| &r.blocks);
    // a PE that has code in several stages is one
    let pes: HashSet<(u32, u32)> = compiled
        .program
        .regions()
        .flat_map(|r| r.blocks.iter().map(move |b| (r, b)))
        .flat_map(|(r, b)| b.at.places().map(move |(x, y)| (r.x + x, r.y + y)))
        .collect();
    let drains: Vec<usize> = compiled
        .outputs
        .iter()
        .flat_map(|o| o.drains.iter().map(|d| compiled.program.drain_index(o.stage, *d)))
        .collect();
    let input = RunInput {
        name: job.name,
        machine: job.machine,
        engine: match outcome.engine {
            Engine::Reference => "reference",
            Engine::Fast => "fast",
        },
        sparsity: job.sparsity,
        lanes: lanes(job),
        pes_in_use: pes.len() as u64,
        kernels: &kernels,
        output_drains: &drains,
        items,
        dense: operations(counts.mac_dense),
        // the dense run takes every weight as it is, zeros that the file may have included
        theoretical: operations(if job.name == RunName::Dense {
            counts.mac_dense
        } else {
            counts.mac_theoretical
        }),
        published: (counts.mac_published + counts.mac_act_published) * items,
        peak_pe_bytes: blocks()
            .map(|b| passes::memory::bytes(b, job.machine))
            .max()
            .unwrap_or(0),
        outputs,
        wall_seconds,
        peak_memory_bytes: memory::peak(),
        stage_seconds,
    };
    count_run(outcome, input).map_err(|e| Error::Internal(e.to_string()))
}
