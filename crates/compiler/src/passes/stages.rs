//! Which kernels are on the mesh together. What does not fit at once is cut into stages, one after another: what a later stage reads
//! leaves at the edge, memory outside keeps it, and it enters again.

use super::placement::Known;
use super::routes::NoWay;
use super::{balance, lanes, memory, placement, routes, tiles, weights};
use crate::kernels::{self, Context};
use crate::plan::*;
use crate::{CompileError, Options, Stages, Weights};
use meshloom_simulator::Machine;
use meshloom_simulator::program::Color;

/// Most lanes of a stream.
pub const LANES: usize = 8;
/// Most inputs of a kernel.
pub const INPUTS: usize = 16;

/// The colour that stands for a lane of a kernel's input until it is routed.
pub fn input_color(input: usize, lane: usize) -> Color {
    (96 + input * LANES + lane) as Color
}

/// The colour that stands for a lane of a kernel's output until it is routed.
pub fn output_color(lane: usize) -> Color {
    (96 + INPUTS * LANES + lane) as Color
}

/// What kernel `k` sees.
pub fn context<'a>(plan: &Plan, machine: &'a Machine, k: usize) -> Context<'a> {
    let kernel = &plan.kernels[k];
    let levels = plan.levels();
    let slack = |u: &Use| match plan.edges[u.edge].source {
        Source::Kernel(p) => levels[k] - levels[p],
        Source::Input(_) | Source::Stored(..) => levels[k] + 1,
    };
    Context {
        machine,
        ty: plan.ty,
        items: plan.items,
        inputs: kernel.inputs.iter().map(|u| plan.view(*u)).collect(),
        input_colors: (0..kernel.inputs.len())
            .map(|i| (0..LANES).map(|lane| input_color(i, lane)).collect())
            .collect(),
        slack: kernel.inputs.iter().map(slack).collect(),
        keep_all: false,
        output: plan.edges[kernel.output].layout.clone(),
        output_colors: (0..LANES).map(output_color).collect(),
        base: 0,
    }
}

/// Cuts the model into stages and places each: the kernels from `cuts[i]` to `cuts[i + 1]` are one.
fn split(plan: &Plan, cuts: &[usize]) -> Vec<Plan> {
    let stage_of = |kernel: usize| cuts.iter().rposition(|c| *c <= kernel).unwrap_or(0);
    let mut stages: Vec<Plan> = Vec::new();
    for (s, range) in cuts.windows(2).map(|c| c[0]..c[1]).enumerate() {
        let mut stage = Plan {
            stage_name: if cuts.len() > 2 {
                format!("stage{s}")
            } else {
                String::new()
            },
            kernels: plan.kernels[range.clone()].to_vec(),
            edges: Vec::new(),
            outputs: Vec::new(),
            ..plan.clone()
        };
        // the edges that the stage's kernels read or make
        let mut local: Vec<Option<usize>> = vec![None; plan.edges.len()];
        for (e, edge) in plan.edges.iter().enumerate() {
            let to: Vec<usize> = edge
                .to
                .iter()
                .filter(|k| range.contains(k))
                .map(|k| k - range.start)
                .collect();
            let source = match edge.source {
                Source::Kernel(k) if range.contains(&k) => Source::Kernel(k - range.start),
                Source::Kernel(k) => {
                    let from = stage_of(k);
                    // it is among the outputs of the stage that makes it
                    let made = stages.get(from).map_or(&[][..], |p| &p.outputs);
                    let output = made.iter().position(|(name, _)| *name == edge.name).unwrap_or(0);
                    Source::Stored(from, output)
                }
                other => other,
            };
            if to.is_empty() && !matches!(source, Source::Kernel(_)) {
                continue;
            }
            local[e] = Some(stage.edges.len());
            let read_later = matches!(source, Source::Kernel(_)) && edge.to.iter().any(|k| *k >= range.end);
            let leaves = plan.outputs.iter().any(|(_, u)| u.edge == e);
            if matches!(source, Source::Kernel(_)) && (read_later || leaves) {
                let here = Use {
                    edge: stage.edges.len(),
                    flat: false,
                };
                stage.outputs.push((edge.name.clone(), here));
            }
            stage.edges.push(Edge {
                source,
                to,
                axes: (0..edge.shape.len()).collect(),
                ..edge.clone()
            });
            if matches!(edge.source, Source::Input(_)) {
                stage
                    .edges
                    .last_mut()
                    .expect("just added")
                    .axes
                    .clone_from(&edge.axes);
            }
        }
        for kernel in &mut stage.kernels {
            kernel.output = local[kernel.output].expect("a kernel's output is an edge of its stage");
            for u in &mut kernel.inputs {
                u.edge = local[u.edge].expect("a kernel's input is an edge of its stage");
            }
        }
        stages.push(stage);
    }
    stages
}

/// Placements that are tried until streams find ways.
const PLACEMENTS: u32 = 3;

/// Tensors that then get half as many lanes, one after another, before all do.
const FEWER: u32 = 4;

/// Cycles that a placed stage is expected to take for all items: one after another through all kernels, then at the pace of the slowest.
fn expected(plan: &Plan, machine: &Machine) -> u64 {
    let streams = plan.edges.iter().map(|e| {
        let per = kernels::per_wavelet(machine, e.ty);
        (e.layout.features / e.layout.lanes) as u64 * (e.layout.length() as u64).div_ceil(per)
    });
    let pace = plan.estimates.iter().max().copied().unwrap_or(0);
    plan.estimates.iter().sum::<u64>() + streams.sum::<u64>() + (plan.items as u64 - 1) * pace
}

/// Places one stage: with as many lanes as make it fastest. If its streams find no colours, other placements are tried.
pub fn place<'m>(
    plan: &Plan,
    machine: &'m Machine,
    known: &mut Known<'m>,
    options: &Options,
    fixed: Option<(u32, u32)>,
) -> Result<Plan, CompileError> {
    let mut problem = None;
    let mut placed: Vec<(u64, usize, Plan)> = Vec::new();
    for most in [4, 2, 1].into_iter().filter(|n| *n <= options.lanes.max(1)) {
        let mut plan = plan.clone();
        if fixed.is_none() {
            lanes::run(&mut plan, machine, most);
        }
        match placement::run(&mut plan, machine, known, options, fixed, 0) {
            Ok(()) => placed.push((expected(&plan, machine), most, plan)),
            Err(e @ CompileError::DoesNotFit { .. }) => problem = Some(e),
            Err(e) => return Err(e),
        }
        if fixed.is_some() {
            break;
        }
    }
    placed.sort_by_key(|(cycles, most, _)| (*cycles, *most));
    let mut complete = |mut plan: Plan| -> Result<Result<Plan, Option<usize>>, CompileError> {
        // a kernel of its own keeps the orders that it has among the others
        if fixed.is_none() {
            balance::run(&mut plan, machine, options);
        }
        let routed = memory::run(&mut plan, machine)
            .and_then(|()| weights::run(&mut plan, machine))
            .map_err(NoWay::from)
            .and_then(|()| routes::run(&mut plan, machine));
        match routed {
            Ok(()) => Ok(Ok(plan)),
            Err(NoWay { edge, error }) if matches!(error, CompileError::DoesNotFit { .. }) => {
                problem = Some(error);
                Ok(Err(edge))
            }
            Err(NoWay { error, .. }) => Err(error),
        }
    };
    for (_, _, first) in &placed {
        let mut first = first.clone();
        let mut stuck = None;
        for attempt in 0..PLACEMENTS + FEWER {
            if attempt >= PLACEMENTS {
                // fewer lanes for the tensor that found no way are better than fewer for all
                let fewer = stuck.is_some_and(|e| fixed.is_none() && lanes::halve(&mut first, e));
                if !fewer || placement::run(&mut first, machine, known, options, fixed, 0).is_err() {
                    break;
                }
            }
            let mut plan = first.clone();
            if (1..PLACEMENTS).contains(&attempt) && fixed.is_none() {
                placement::run(&mut plan, machine, known, options, fixed, attempt)?;
            }
            match complete(plan)? {
                Ok(plan) => return Ok(plan),
                Err(edge) => stuck = edge,
            }
        }
    }
    // a consumer may stand before another's door: a much slower pace is still better than a second stage
    if let (Some((_, _, last)), None) = (placed.last(), fixed) {
        for attempt in PLACEMENTS..placement::SLACK.len() as u32 {
            let mut plan = last.clone();
            placement::run(&mut plan, machine, known, options, fixed, attempt)?;
            if let Ok(plan) = complete(plan)? {
                return Ok(plan);
            }
        }
    }
    Err(problem.expect("a stage is placed or refused"))
}

/// The kernel with its weights streamed, if it can.
fn streamed(plan: &mut Plan, kernel: usize) -> bool {
    match &plan.kernels[kernel].kind {
        Kind::Mix(mix) if mix.streams() => {
            plan.kernels[kernel].kind = Kind::Streamed(mix.clone());
            true
        }
        _ => false,
    }
}

/// A way to place a stage.
type Fit = for<'m> fn(&Plan, &'m Machine, &mut Known<'m>, &Options) -> Result<Plan, CompileError>;

/// Numbers of tiles that are tried beyond the first with which a stage fits.
const MORE: usize = 2;

/// A stage in as few tiles as it takes to fit, or in a few more if that is expected to be faster.
fn in_tiles<'m>(
    stage: &Plan,
    machine: &'m Machine,
    known: &mut Known<'m>,
    options: &Options,
) -> Result<Plan, CompileError> {
    let whole = match place_whole(stage, machine, known, options) {
        Err(e @ CompileError::DoesNotFit { .. }) => e,
        result => return result,
    };
    let numbers = tiles::numbers(stage).map_err(|why| whole.clone().but(&format!("not in tiles: {why}")))?;
    let mut error = whole.clone();
    let mut placed: Vec<Plan> = Vec::new();
    for n in numbers {
        if placed.len() > MORE {
            break;
        }
        let Ok(stage) = tiles::cut(stage, n) else { continue };
        match place_whole(&stage, machine, known, options) {
            Ok(plan) => placed.push(plan),
            // what is not a matter of tiles stays as it is
            Err(e @ CompileError::DoesNotFit { .. }) if e == whole => {}
            Err(e @ CompileError::DoesNotFit { .. }) => {
                error = e.but(&format!("in {n} tiles, the most there can be"));
            }
            Err(e) => return Err(e),
        }
    }
    let fastest = placed.into_iter().min_by_key(|p| (expected(p, machine), p.tiles));
    fastest.ok_or(error)
}

/// A stage of a single kernel, its weights resident or streamed: as asked for, or if need be the other way; and in tiles if it fits in
/// neither.
fn alone<'m>(
    plan: &mut Plan,
    kernel: usize,
    stage: &Plan,
    machine: &'m Machine,
    known: &mut Known<'m>,
    options: &Options,
) -> Result<Plan, CompileError> {
    let mut other = stage.clone();
    if options.weights == Weights::Resident || !streamed(&mut other, 0) {
        return in_tiles(stage, machine, known, options);
    }
    let first_streamed = options.weights == Weights::Streamed || options.stages == Stages::Layer;
    let order = if first_streamed {
        [&other, stage]
    } else {
        [stage, &other]
    };
    let ways = match options.weights {
        Weights::Auto => &order[..],
        _ => &order[..1],
    };
    let mut error = None;
    for fit in [place_whole as Fit, in_tiles] {
        for way in ways {
            match fit(way, machine, known, options) {
                Err(e @ CompileError::DoesNotFit { .. }) => error = error.or(Some(e)),
                Err(e) => return Err(e),
                Ok(placed) => {
                    plan.kernels[kernel].kind.clone_from(&way.kernels[0].kind);
                    return Ok(placed);
                }
            }
        }
    }
    Err(error.expect("a stage is placed or refused"))
}

/// A stage without tiles.
fn place_whole<'m>(
    stage: &Plan,
    machine: &'m Machine,
    known: &mut Known<'m>,
    options: &Options,
) -> Result<Plan, CompileError> {
    place(stage, machine, known, options, None)
}

/// The model in stages, each placed.
pub fn run(plan: &Plan, machine: &Machine, options: &Options) -> Result<Vec<Plan>, CompileError> {
    let n = plan.kernels.len();
    let known = &mut Known::default();
    let whole = [0, n];
    let mut plan = plan.clone();
    if options.weights == Weights::Streamed {
        (0..n).for_each(|k| {
            streamed(&mut plan, k);
        });
    }
    match options.stages {
        Stages::One => Ok(vec![place(
            &split(&plan, &whole)[0],
            machine,
            known,
            options,
            None,
        )?]),
        Stages::Layer => {
            let cuts: Vec<usize> = (0..=n).collect();
            let stages = split(&plan, &cuts);
            let each = stages.iter().enumerate();
            each.map(|(k, stage)| alone(&mut plan, k, stage, machine, known, options))
                .collect()
        }
        Stages::Auto => {
            match place(&split(&plan, &whole)[0], machine, known, options, None) {
                Ok(placed) => return Ok(vec![placed]),
                Err(CompileError::DoesNotFit { .. }) if n < 2 => {
                    let stage = split(&plan, &whole).remove(0);
                    return Ok(vec![alone(&mut plan, 0, &stage, machine, known, options)?]);
                }
                Err(CompileError::DoesNotFit { .. }) => {}
                Err(e) => return Err(e),
            }
            // as many kernels a stage as fit, from the first on
            let mut cuts = vec![0];
            while let Some(&from) = cuts.last().filter(|c| **c < n) {
                let stage = |plan: &Plan, to: usize| {
                    let mut all = cuts.clone();
                    all.push(to);
                    split(plan, &all).pop().expect("it has stages")
                };
                let (mut good, mut bad) = (from, n + 1);
                let mut step = 1;
                let mut fit: Fit = place_whole;
                let mut tiled = false;
                // every token looks at all others, so what shares a stage with attention can't be in tiles
                if n > 1 && matches!(plan.kernels[from].kind, Kind::Attention(_)) {
                    bad = from + 2;
                }
                loop {
                    if good + step >= bad {
                        // a kernel that needs tiles anyway: those before it may work on the same ones, if that costs nothing
                        if tiled || good == from || good >= n || !tiles::free(&stage(&plan, good + 1)) {
                            break;
                        }
                        tiled = true;
                        let mut all = cuts.clone();
                        all.extend([good, good + 1]);
                        let next = split(&plan, &all).pop().expect("it has stages");
                        match place_whole(&next, machine, known, options) {
                            Err(CompileError::DoesNotFit { .. }) => (fit, bad, step) = (in_tiles, n + 1, 1),
                            Err(e) => return Err(e),
                            Ok(_) => break,
                        }
                    }
                    match fit(&stage(&plan, good + step), machine, known, options) {
                        Ok(_) => {
                            good += step;
                            step *= 2;
                        }
                        // not even alone, unless its weights are streamed
                        Err(CompileError::DoesNotFit { .. }) if good == from && step == 1 => {
                            let single = stage(&plan, from + 1);
                            let placed = alone(&mut plan, from, &single, machine, known, options)?;
                            good = from + 1;
                            // others may work on the same tiles
                            tiled = true;
                            match placed.tiles > 1 {
                                true => fit = in_tiles,
                                false => bad = good + 1,
                            }
                        }
                        Err(CompileError::DoesNotFit { .. }) => {
                            bad = good + step;
                            step = 1;
                        }
                        Err(e) => return Err(e),
                    }
                    step = step.min((bad - good).saturating_sub(1).max(1));
                }
                cuts.push(good);
            }
            split(&plan, &cuts)
                .iter()
                .map(|p| in_tiles(p, machine, known, options))
                .collect()
        }
    }
}

/// One line a kernel: what it needs in the rectangle that it got.
pub fn show(plan: &Plan, machine: &Machine) -> String {
    let mut out = String::new();
    for (i, k) in plan.kernels.iter().enumerate() {
        let kernel = kernels::of(&k.kind);
        let r = plan.places.get(i).copied().unwrap_or_default();
        let Some(e) = kernel.estimate(&context(plan, machine, i), r.width, r.height) else {
            continue;
        };
        out += &format!(
            "  {:<16} {:<10} {}x{} PEs, about {} cycles {}, {} of {} bytes on the fullest PE\n",
            k.name,
            kernel.op(),
            r.width,
            r.height,
            e.cycles,
            plan.turn(),
            e.bytes,
            machine.pe.sram_bytes
        );
    }
    if let Some(early) = &plan.early {
        let why = early
            .why
            .as_ref()
            .map_or(String::new(), |why| format!("; no more: {why}"));
        out += &format!(
            "  weights          {} words, {} of them arrive in the stage before{why}\n",
            early.words, early.arrived
        );
    }
    out
}
