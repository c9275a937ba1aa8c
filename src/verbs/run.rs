//! `meshloom run`: compile, simulate, check, report.

use super::{Common, Inputs, print};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use meshloom::error::Error;
use meshloom::rounding::Rounding;
use meshloom::simulate::{self, Expected, Finished, Job};
use meshloom::{arrays, machines};
use meshloom_compiler::{CompileError, Compiled, compile};
use meshloom_models::{Graph, TensorId};
use meshloom_simulator::Machine;
use meshloom_simulator::engine::Engine;
use meshloom_simulator::program::Ty;
use meshloom_traces::map::{MeshMap, Placed, svg};
use meshloom_traces::report::{Model as ReportModel, Report, RunName};
use meshloom_traces::{plots, table};
use rayon::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Arguments of `run`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  meshloom run mlp --sparsity 0.75 --batch 32
  meshloom run model.onnx --input images.npz --out report/
  meshloom run mlp --machine small --set link.bits=64 --json

Exit codes: 0 done; 2 bad input or does not fit; 3 deadlock or outputs beyond tolerance; 1 internal.")]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    /// Runs that are simulated at the same time (default: all cores).
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Refuse a run that is sure to take more simulated cycles than this, and stop one that does.
    #[arg(long, value_name = "N", default_value_t = 1_000_000_000)]
    max_cycles: u64,
    /// Which engine simulates: both give the same, cycle for cycle and bit for bit.
    #[arg(long, value_enum, default_value = "fast")]
    engine: EngineName,
    /// Do not compare tensors with the f64 evaluator.
    #[arg(long)]
    no_check: bool,
    /// Also run every kernel alone on the evaluator's inputs, and list the largest error of each.
    #[arg(long, conflicts_with = "no_check")]
    check_kernels: bool,
    /// Write report.json, outputs.npz, placement.svg and plots (utilisation, cycles, and with several sparsities speedup; .svg and
    /// .png) to this folder.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print the report as JSON instead of the table.
    #[arg(long)]
    json: bool,
}

/// An engine, as `--engine` names it.
#[derive(Clone, Copy, clap::ValueEnum)]
enum EngineName {
    /// Streams that flow and cores that repeat themselves are taken many cycles at a time.
    Fast,
    /// Every router and core that can change, every cycle: the oracle.
    Reference,
}

impl From<EngineName> for Engine {
    fn from(name: EngineName) -> Engine {
        match name {
            EngineName::Fast => Engine::Fast,
            EngineName::Reference => Engine::Reference,
        }
    }
}

/// One run of the table, before it has run.
struct Planned<'a> {
    name: RunName,
    sparsity: f64,
    machine: &'a Machine,
    graph: &'a Graph,
    /// Which of the graphs: 0 is the dense one.
    index: usize,
}

impl<'a> Planned<'a> {
    fn job(
        &self,
        a: &Arguments,
        inputs: &'a Inputs,
        expected: Option<&'a Expected>,
        progress: Option<Arc<AtomicU64>>,
    ) -> Job<'a> {
        Job {
            name: self.name,
            graph: self.graph,
            machine: self.machine,
            sparsity: self.sparsity,
            options: a.common.options(inputs.items),
            inputs: &inputs.arrays,
            expected,
            progress,
            max_cycles: Some(a.max_cycles),
            engine: a.engine.into(),
        }
    }
}

/// Runs the verb.
pub fn run(a: Arguments) -> Result<(), Error> {
    let common = &a.common;
    if a.threads == Some(0) {
        return Err(Error::Input("--threads 0: at least one".into()));
    }
    if let Some(out) = &a.out {
        refuse_out(out)?;
    }
    let machines: Vec<Machine> = common
        .machine
        .iter()
        .map(|m| machines::load(m, &common.set))
        .collect::<Result<_, _>>()?;
    for (i, m) in machines.iter().enumerate() {
        if machines[..i].iter().any(|other| other.name == m.name) {
            return Err(Error::Input(format!(
                "--machine {}: a machine named {} is there twice; one table has each once (--set applies to all; give a variant a .toml file and a name of its own)",
                common.machine[i], m.name
            )));
        }
    }
    let model = common.load()?;
    let inputs = common.inputs(&model)?;
    let sparse = common.sparse(&model)?;
    let sparsities: Vec<f64> = sparse.iter().map(|s| s.sparsity).collect();
    let graphs: Vec<Graph> = sparse.into_iter().map(|s| s.graph).collect();
    let mut planned = Vec::new();
    for machine in &machines {
        planned.push(Planned {
            name: RunName::Dense,
            sparsity: 0.0,
            machine,
            graph: &model.graph,
            index: 0,
        });
        for (index, (sparsity, graph)) in sparsities.iter().zip(&graphs).enumerate() {
            // at 0 % there is nothing to skip: without skipping it is the dense run, with it the sparse kernels at their worst
            if *sparsity > 0.0 {
                planned.push(Planned {
                    name: RunName::SparseNoSkip,
                    sparsity: *sparsity,
                    machine,
                    graph,
                    index: index + 1,
                });
            }
            // a machine that does not skip zero weights has no run in which they are skipped
            if machine.skip.zero_weights {
                planned.push(Planned {
                    name: RunName::Sparse,
                    sparsity: *sparsity,
                    machine,
                    graph,
                    index: index + 1,
                });
            }
        }
    }
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(a.threads.unwrap_or(0))
        .build()
        .map_err(|e| Error::Internal(e.to_string()))?;
    // all are compiled before anything long begins: what does not fit is told at once
    let compile_one = |p: &Planned| {
        compile(
            p.graph,
            p.machine,
            &simulate::options(&p.job(&a, &inputs, None, None)),
            &inputs.arrays,
        )
    };
    let compiled: Vec<Result<Compiled, CompileError>> =
        pool.install(|| planned.par_iter().map(compile_one).collect());
    let compiled: Vec<Compiled> = compiled.into_iter().collect::<Result<_, _>>()?;
    let all: Vec<&Graph> = std::iter::once(&model.graph).chain(&graphs).collect();
    let expected: Vec<Expected> = match a.no_check {
        true => Vec::new(),
        false => all
            .iter()
            .map(|g| simulate::expected(g, &inputs.arrays, inputs.items))
            .collect::<Result<_, _>>()?,
    };
    let finished = simulate_all(&a, &pool, &planned, compiled, &inputs, &expected)?;

    let first = &model.graph.inputs()[0];
    let batch = model.graph.tensor(*first).shape.first().copied().unwrap_or(1);
    let report = Report::new(
        ReportModel {
            name: model.name.clone(),
            source: model.source.clone(),
            parameters: model.graph.parameters(),
            nonzeros: model.graph.nonzeros(),
        },
        if common.dtype == super::Dtype::F32 {
            "f32"
        } else {
            "f16"
        },
        batch as u64,
        inputs.items as u64,
        common.seed,
        inputs.source.clone(),
        finished.iter().map(|f| f.run.clone()).collect(),
    );
    report.validate().map_err(|v| {
        Error::Internal(format!(
            "the report contradicts itself: {}: {}",
            v.place, v.message
        ))
    })?;
    if let Some(out) = &a.out {
        write_all(out, &report, &finished, &planned, inputs.items)?;
    }
    print(&if a.json {
        report.to_json()
    } else {
        table::table(&report)
    })?;
    if !a.json {
        eprint!("{}", table::simulation(&report));
    }
    if a.check_kernels {
        check_kernels(&a, &planned, &finished, &inputs, &expected)?;
    }
    departures(&planned, &finished, &inputs, &expected, common.dtype.ty())
}

/// Runs everything, several at a time, with a line of progress for what takes over a second.
fn simulate_all(
    a: &Arguments,
    pool: &rayon::ThreadPool,
    planned: &[Planned],
    compiled: Vec<Compiled>,
    inputs: &Inputs,
    expected: &[Expected],
) -> Result<Vec<Finished>, Error> {
    let bars = MultiProgress::new();
    let results: Vec<Result<Finished, Error>> = pool.install(|| {
        planned
            .par_iter()
            .zip(compiled)
            .map(|(p, compiled)| {
                let progress = Arc::new(AtomicU64::new(0));
                let done = Arc::new(AtomicBool::new(false));
                let watcher = watch(
                    &bars,
                    format!("{} on {}", p.name, p.machine.name),
                    progress.clone(),
                    done.clone(),
                );
                let job = p.job(a, inputs, expected.get(p.index), Some(progress));
                let result = simulate::simulate(&job, compiled);
                done.store(true, Ordering::Relaxed);
                watcher.thread().unpark();
                let _ = watcher.join();
                result
            })
            .collect()
    });
    results.into_iter().collect()
}

/// Shows a run's cycle count once it has taken a second.
fn watch(
    bars: &MultiProgress,
    what: String,
    cycle: Arc<AtomicU64>,
    done: Arc<AtomicBool>,
) -> std::thread::JoinHandle<()> {
    let bars = bars.clone();
    std::thread::spawn(move || {
        std::thread::park_timeout(Duration::from_secs(1));
        if done.load(Ordering::Relaxed) {
            return;
        }
        let bar = bars.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
            bar.set_style(style);
        }
        while !done.load(Ordering::Relaxed) {
            bar.set_message(format!(
                "simulating {what}: cycle {}",
                cycle.load(Ordering::Relaxed)
            ));
            bar.tick();
            std::thread::park_timeout(Duration::from_millis(200));
        }
        bar.finish_and_clear();
    })
}

/// Every kernel of every run alone, fed with what the evaluator has.
fn check_kernels(
    a: &Arguments,
    planned: &[Planned],
    finished: &[Finished],
    inputs: &Inputs,
    expected: &[Expected],
) -> Result<(), Error> {
    let mut text = String::new();
    for (p, f) in planned.iter().zip(finished) {
        let Some(expected) = expected.get(p.index) else {
            continue;
        };
        let options = simulate::options(&p.job(a, inputs, None, None));
        for (name, error) in simulate::kernels_alone(&f.compiled, p.machine, &options, expected)? {
            text += &format!(
                "{} on {}, kernel {name} alone: largest error {error:.1e}\n",
                p.name, p.machine.name
            );
        }
    }
    print(&text)
}

/// An error if any run's tensors are beyond the tolerance; in f16 with what rounding alone does to the first of them.
fn departures(
    planned: &[Planned],
    finished: &[Finished],
    inputs: &Inputs,
    expected: &[Expected],
    ty: Ty,
) -> Result<(), Error> {
    let tolerance = simulate::tolerance(ty);
    for (p, f) in planned.iter().zip(finished) {
        let Some(outputs) = &f.run.outputs else { continue };
        let Some(first) = &outputs.first_departing else {
            continue;
        };
        let mut message = format!(
            "run {} on {}: tensor `{first}` is the first beyond {tolerance:.0e} of its standard deviation; the worst is `{}` with {:.1e}",
            f.run.name, f.run.machine.name, outputs.worst_tensor, outputs.max_rel_error
        );
        if ty == Ty::F16
            && let Some(exact) = expected.get(p.index)
        {
            let rounding = Rounding::of(p.graph, &f.compiled, &inputs.arrays, inputs.items, exact)?;
            message += &blame(f, p.graph, &rounding);
        }
        return Err(Error::Wrong(message));
    }
    Ok(())
}

/// Whether the departures of an f16 run are those of the type: what rounding alone makes of the tensor that is furthest beyond it.
fn blame(f: &Finished, graph: &Graph, rounding: &Rounding) -> String {
    let tolerance = simulate::tolerance(Ty::F16);
    let departing = f.compared(graph).filter(|(_, _, error)| *error > tolerance);
    let beyond = |(tensor, _, error): &(TensorId, &str, f64)| error / rounding.most(*tensor);
    let Some(worst) = departing.max_by(|a, b| beyond(a).total_cmp(&beyond(b))) else {
        return String::new();
    };
    let (tensor, name, error) = worst;
    let cause = if beyond(&worst) <= 1.0 {
        "so f16 is too narrow for this model, and no kernel adds to it; --dtype f32 has no such error"
    } else {
        "so a kernel rounds more often than it must: a defect of meshloom, please report it"
    };
    let alone = rounding.error(tensor);
    format!(
        ". Evaluated in f64 and rounded to f16 only where the mesh keeps or sends it, `{name}` is off by {alone:.1e}, on the mesh by {error:.1e}: {cause}"
    )
}

/// The files of `--out`. Those of a plot that the runs give no points for are not written, and one left from before is removed.
const FILES: [&str; 9] = [
    "report.json",
    "outputs.npz",
    "placement.svg",
    "utilisation.svg",
    "utilisation.png",
    "cycles.svg",
    "cycles.png",
    "speedup.svg",
    "speedup.png",
];

/// Refuses a folder that can't be made or written to, before anything long begins.
fn refuse_out(out: &Path) -> Result<(), Error> {
    let bad = |message: String| Err(Error::Input(format!("--out {}: {message}", out.display())));
    for place in out.ancestors().filter(|p| !p.as_os_str().is_empty()) {
        if place.is_dir() {
            break;
        }
        if place.exists() {
            return bad(format!(
                "{} is a file; expected a folder, or none yet",
                if place == out {
                    "that".into()
                } else {
                    place.display().to_string()
                }
            ));
        }
    }
    match FILES.iter().find(|f| out.join(f).is_dir()) {
        Some(f) => bad(format!(
            "there is a folder named {f} in it, where a file is to be written"
        )),
        None => Ok(()),
    }
}

/// Writes the files of `--out`: all aside first, then each takes its name, so that a failure leaves what was there.
fn write_all(
    out: &Path,
    report: &Report,
    finished: &[Finished],
    planned: &[Planned],
    items: usize,
) -> Result<(), Error> {
    let bad = |e: std::io::Error| Error::Input(format!("--out {}: can't write: {e}", out.display()));
    std::fs::create_dir_all(out).map_err(bad)?;
    let aside = |name: &str| out.join(format!(".{name}.partial"));
    // the outputs of the last run: the sparse one if there is one
    let (last, p) = finished.last().zip(planned.last()).expect("at least one run");
    let outputs: arrays::Arrays = last
        .outputs
        .iter()
        .map(|(name, shape, values)| {
            let mut shape = shape.clone();
            if items > 1 {
                shape.insert(0, items);
            }
            (name.clone(), shape, values.clone())
        })
        .collect();
    let map = MeshMap {
        model: report.model.name.clone(),
        machine: p.machine.name.clone(),
        width: p.machine.mesh.width,
        height: p.machine.mesh.height,
        kernels: last
            .run
            .kernels
            .iter()
            .map(|k| Placed {
                name: k.name.clone(),
                op: k.op.clone(),
                rect: k.region,
            })
            .collect(),
    };
    let mut texts = vec![
        ("report.json", report.to_json().into_bytes()),
        ("placement.svg", svg(&map).into_bytes()),
    ];
    for (svg, png, plot) in draw(report, finished)? {
        texts.push((svg, plot.svg.into_bytes()));
        texts.push((png, plot.png));
    }
    let written = texts
        .iter()
        .try_for_each(|(name, bytes)| std::fs::write(aside(name), bytes).map_err(bad))
        .and_then(|()| arrays::write(&aside("outputs.npz"), &outputs))
        .and_then(|()| {
            FILES.iter().try_for_each(|f| {
                let to = out.join(f);
                if *f == "outputs.npz" || texts.iter().any(|(name, _)| name == f) {
                    std::fs::rename(aside(f), to).map_err(bad)
                } else if to.exists() {
                    // of another command's runs: it would contradict the report beside it
                    std::fs::remove_file(to).map_err(bad)
                } else {
                    Ok(())
                }
            })
        });
    if written.is_err() {
        FILES.iter().for_each(|f| drop(std::fs::remove_file(aside(f))));
    }
    written
}

/// The plots of a report, each with the names of its files. Those of the mesh and of the kernels show the last machine, as
/// placement.svg does: its dense run beside the last one with sparse weights.
fn draw(
    report: &Report,
    finished: &[Finished],
) -> Result<Vec<(&'static str, &'static str, plots::Plot)>, Error> {
    let internal = |e: plots::PlotError| Error::Internal(e.to_string());
    let last = finished.last().expect("at least one run");
    let same = finished.iter().filter(|f| f.run.machine == last.run.machine);
    let mut shown: Vec<&Finished> = same.filter(|f| f.run.name == RunName::Dense).take(1).collect();
    if last.run.name != RunName::Dense {
        shown.push(last);
    }
    let uses: Vec<plots::MeshUse> = shown
        .iter()
        .map(|f| plots::MeshUse {
            run: &f.run,
            multiply_adds: &f.multiply_adds,
            lanes: f.lanes,
        })
        .collect();
    let runs: Vec<_> = shown.iter().map(|f| &f.run).collect();
    let mut all = vec![
        (
            "utilisation.svg",
            "utilisation.png",
            plots::utilisation(&report.model.name, &uses).map_err(internal)?,
        ),
        (
            "cycles.svg",
            "cycles.png",
            plots::cycles(&report.model.name, &runs).map_err(internal)?,
        ),
    ];
    if let Some(plot) = plots::speedup(report).map_err(internal)? {
        all.push(("speedup.svg", "speedup.png", plot));
    }
    Ok(all)
}
