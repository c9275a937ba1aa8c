//! The whole program: kernels' regions with the colours that their streams got, the streams' ways between them, how weights and inputs
//! enter and outputs leave.

use super::load;
use super::stages::{input_color, output_color};
use crate::kernels::{colors, per_wavelet};
use crate::plan::*;
use crate::{OutputPort, TensorProbe};
use meshloom_simulator::engine::Probe;
use meshloom_simulator::program::*;
use meshloom_simulator::{Expr, Machine};
use std::collections::BTreeMap;

/// Appends values as wavelets of `per` elements.
fn wavelets(values: impl Iterator<Item = f32>, ty: Ty, per: u64, out: &mut Vec<Wavelet>) {
    let mut w = Wavelet::default();
    for v in values {
        w.bits |= (bits(v, ty) as u64) << (w.elements as u32 * ty.bits());
        w.elements += 1;
        if w.elements as u64 == per {
            out.push(std::mem::take(&mut w));
        }
    }
    if w.elements > 0 {
        out.push(w);
    }
}

/// Where each axis of the host's array lies in the tensor: index in the array of the tensor's element at `index`.
fn host_index(shape: &[usize], axes: &[usize], index: usize) -> usize {
    let mut at = vec![0; shape.len()];
    let mut rest = index;
    for i in (0..shape.len()).rev() {
        at[i] = rest % shape[i];
        rest /= shape[i];
    }
    let (mut host_shape, mut host) = (vec![0; shape.len()], vec![0; shape.len()]);
    for (i, &a) in axes.iter().enumerate() {
        (host_shape[a], host[a]) = (shape[i], at[i]);
    }
    host.iter()
        .zip(&host_shape)
        .fold(0, |index, (i, n)| index * n + i)
}

/// The kernels' regions with the colours that their streams got, their entries and exits.
fn kernels(plan: &Plan) -> Vec<Region> {
    let mut all = Vec::new();
    for (k, kernel) in plan.kernels.iter().enumerate() {
        let emitted = &plan.regions[k];
        let mut region = emitted.region.clone();
        let mut colors: BTreeMap<Color, Color> = BTreeMap::new();
        for (i, u) in kernel.inputs.iter().enumerate() {
            let edge = &plan.edges[u.edge];
            let which = edge.to.iter().position(|to| *to == k).unwrap_or(0);
            for (lane, way) in edge.ways.iter().enumerate() {
                colors.insert(input_color(i, lane), way.color);
                let at = emitted.entries[i][lane];
                let entry = region
                    .routes
                    .iter_mut()
                    .find(|r| r.color == input_color(i, lane) && r.at.places().eq([at]));
                if let Some(entry) = entry {
                    entry.positions[0].input = way.entries[which];
                }
            }
        }
        let output = &plan.edges[kernel.output];
        for (lane, way) in output.ways.iter().enumerate() {
            colors.insert(output_color(lane), way.color);
            let (_, _, outputs) = &way.routers[0];
            let exit = &emitted.exits[lane];
            let position = |(input, hold): &(Port, Expr)| Position {
                input: *input,
                outputs: outputs.clone(),
                hold: hold.clone(),
            };
            region.routes.push(Route {
                color: output_color(lane),
                stream: format!("{}: exit", kernel.name),
                at: Lattice::rect(exit.at.0, exit.at.1, 1, 1),
                positions: exit.from.iter().map(position).collect(),
                filters: Vec::new(),
            });
        }
        let color = |c: Color| colors.get(&c).copied().unwrap_or(c);
        region.routes.iter_mut().for_each(|r| r.color = color(r.color));
        region.blocks.iter_mut().for_each(|b| b.recolor(color));
        if emitted.streamed.is_some() {
            let blocks = std::mem::take(&mut region.blocks);
            region.blocks = blocks.into_iter().flat_map(|b| by_weights(b, plan, k)).collect();
        }
        all.push(region);
    }
    all
}

/// The block once for each colour on which its columns get streamed weights.
fn by_weights(block: Block, plan: &Plan, kernel: usize) -> Vec<Block> {
    let l = block.at;
    let color = |x: u32| {
        let own = plan.weights.iter().filter(|w| w.kernel == kernel);
        own.clone().find(|w| w.columns.contains(&x)).map(|w| w.color)
    };
    let mut all: Vec<Block> = Vec::new();
    let mut before = None;
    for i in 0..l.nx {
        let x = l.x + i * l.dx;
        let own = color(x);
        match all.last_mut() {
            Some(last) if before == own => last.at.nx += 1,
            _ => {
                let at = Lattice { x, nx: 1, ..l };
                let mut block = Block { at, ..block.clone() };
                block.recolor(|c| own.filter(|_| c == colors::WEIGHTS).unwrap_or(c));
                all.push(block);
            }
        }
        before = own;
    }
    all.iter_mut().filter(|b| b.at.nx == 1).for_each(|b| b.at.dx = 1);
    all
}

/// The routers of ways between kernels as few lattices: runs along rows and columns.
fn between(plan: &Plan, machine: &Machine) -> Region {
    let mut region = Region {
        name: "streams".into(),
        x: 0,
        y: 0,
        width: machine.mesh.width,
        height: machine.mesh.height,
        routes: Vec::new(),
        blocks: Vec::new(),
    };
    for (e, way) in plan.edges.iter().flat_map(|e| e.ways.iter().map(move |w| (e, w))) {
        let to: Vec<&str> = e.to.iter().map(|k| plan.kernels[*k].name.as_str()).collect();
        let stream = format!(
            "{} -> {}",
            e.name,
            if to.is_empty() {
                "out".into()
            } else {
                to.join(", ")
            }
        );
        let from_kernel = matches!(e.source, Source::Kernel(_)) as usize;
        let mut left: Vec<_> = way.routers[from_kernel..].to_vec();
        while let Some(((x, y), input, outputs)) = left.first().cloned() {
            let run = |dx: u32, dy: u32| {
                (1u32..)
                    .take_while(|i| left.contains(&((x + i * dx, y + i * dy), input, outputs.clone())))
                    .count() as u32
                    + 1
            };
            let (across, down) = (run(1, 0), run(0, 1));
            let (nx, ny) = if across >= down { (across, 1) } else { (1, down) };
            let at = Lattice::rect(x, y, nx, ny);
            left.retain(|(p, i, o)| !(at.places().any(|q| q == *p) && *i == input && *o == outputs));
            region.routes.push(Route {
                color: way.color,
                stream: stream.clone(),
                at,
                positions: vec![Position {
                    input,
                    outputs,
                    hold: Expr::Const(1),
                }],
                filters: Vec::new(),
            });
        }
    }
    region
}

/// A stage of the program, and where its results are found.
pub struct Emission {
    /// The stage.
    pub stage: Stage,
    /// What leaves, in the order of the plan's outputs.
    pub outputs: Vec<OutputPort>,
    /// The kernels' results.
    pub probes: Vec<TensorProbe>,
}

/// Bits of an element.
fn bits(value: f32, ty: Ty) -> u32 {
    match ty {
        Ty::F32 => value.to_bits(),
        Ty::F16 => half::f16::from_f32(value).to_bits() as u32,
    }
}

/// What a lane of a stored tensor consists of, for one item of the stage: parts of the lanes on which it left.
fn stored(edge: &Edge, lane: usize, port: &OutputPort, per: u64, item: usize) -> Vec<FeedData> {
    let (here, left) = (&edge.layout, &port.layout);
    let each = (left.length() as u64).div_ceil(per);
    let (from, to) = here.lane(lane);
    // the lanes on which it left: drain, places of the stream, place in the lane
    let drains = port.drains.iter().enumerate().filter_map(|(k, drain)| {
        let (first, last) = left.lane(k);
        let (a, b) = (from.max(first), to.min(last));
        (a < b).then_some((*drain as u32, b - a, a - first, last - first))
    });
    if here.bands.is_none() && left.bands.is_none() {
        let spans = drains.map(|(drain, features, before, all)| Span {
            stage: port.stage as u32,
            drain,
            first: ((item * all + before) as u64) * each,
            count: features as u64 * each,
            flag_every: 0,
        });
        return vec![FeedData::Drained(spans.collect())];
    }
    let whole = |l: &Layout| Band {
        before: 0,
        from: 0,
        to: l.size() / l.features,
        after: 0,
    };
    let (tiles, item) = (left.tiles(), (item / here.tiles(), item % here.tiles()));
    let band = here.bands.as_ref().map_or(whole(here), |b| b.parts[item.1]);
    let parts = match &left.bands {
        Some(bands) => bands.parts.clone(),
        None => vec![whole(left)],
    };
    let fill = here.bands.as_ref().map_or(Fill::Zero, |b| b.fill);
    let beyond = |count: usize| {
        (count > 0).then_some(Piece::Fill {
            bits: bits(fill.value(), edge.ty),
            count: count as u64,
        })
    };
    drains
        .map(|(drain, features, before, all)| {
            let kept = parts.iter().enumerate().filter_map(|(tile, part)| {
                let (a, b) = (band.from.max(part.from), band.to.min(part.to));
                (a < b).then(|| Piece::Kept {
                    stage: port.stage as u32,
                    drain,
                    first: (((item.0 * tiles + tile) * all + before) as u64) * each,
                    skip: (a - part.from) as u64,
                    count: (b - a) as u64,
                    step: each,
                })
            });
            let pieces = beyond(band.before)
                .into_iter()
                .chain(kept)
                .chain(beyond(band.after));
            FeedData::Cut(Cut {
                ty: edge.ty,
                per: per as u32,
                rows: features as u64,
                pieces: pieces.collect(),
            })
        })
        .collect()
}

/// Puts a stage together. `inputs` holds, by name, the items of each graph input one after another; `before` what left in the stages
/// before it.
pub fn run(
    plan: &Plan,
    number: usize,
    machine: &Machine,
    inputs: &[(String, Vec<f32>)],
    before: &[Vec<OutputPort>],
) -> Emission {
    let width = machine.mesh.width;
    let mut regions = kernels(plan);
    regions.push(between(plan, machine));
    if !plan.weights.is_empty() {
        regions.push(Region {
            name: "streamed weights".into(),
            x: 0,
            y: 0,
            width,
            height: machine.mesh.height,
            routes: plan
                .weights
                .iter()
                .flat_map(|w| w.routes.iter().cloned())
                .collect(),
            blocks: Vec::new(),
        });
    }
    let mut feeds = Vec::new();
    let mut words: Vec<&[u32]> = vec![&[]; machine.mesh.width as usize * machine.mesh.height as usize];
    for e in &plan.regions {
        for (i, w) in e.weights.iter().enumerate() {
            let (x, y) = (i as u32 % e.region.width, i as u32 / e.region.width);
            words[((e.region.y + y) * width + e.region.x + x) as usize] = w;
        }
    }
    let prefix = match plan.stage_name.as_str() {
        "" => String::new(),
        name => format!("{name}."),
    };
    let cargo = load::Cargo {
        name: "weights",
        words: &words,
        idle: &[],
        rounds: 1,
        color: colors::LOAD,
        epoch: 0,
        channels: &machine.channels(),
        prefix: &prefix,
    };
    let mut way = load::run(&cargo, machine);
    regions.push(way.region);
    feeds.append(&mut way.feeds);

    // what enters: item by item, so that inputs of one channel take turns
    for item in 0..plan.items {
        for e in &plan.edges {
            let per = per_wavelet(machine, e.ty);
            for (lane, way) in e.ways.iter().enumerate() {
                let Some((side, row)) = way.enters else { continue };
                let (name, parts) = match e.source {
                    Source::Kernel(_) => continue,
                    Source::Stored(stage, output) => {
                        (&e.name, stored(e, lane, &before[stage][output], per, item))
                    }
                    Source::Input(index) => {
                        let (name, array) = &inputs[index];
                        let tiles = e.layout.tiles();
                        let (item, tile) = (item / tiles, item % tiles);
                        let size = e.layout.size();
                        let fill = e.layout.bands.as_ref().map_or(Fill::Zero, |b| b.fill).value();
                        let mut data = Vec::new();
                        let (from, to) = e.layout.lane(lane);
                        for place in from..to {
                            let values = (0..e.layout.length()).map(|p| {
                                e.layout
                                    .element(tile, place, p)
                                    .map_or(fill, |at| array[item * size + host_index(&e.shape, &e.axes, at)])
                            });
                            wavelets(values, e.ty, per, &mut data);
                        }
                        (name, vec![data.into()])
                    }
                };
                feeds.extend(parts.into_iter().map(|data| Feed {
                    name: name.clone(),
                    side,
                    row,
                    color: way.color,
                    epoch: 1,
                    data,
                }));
            }
        }
        for way in &plan.weights {
            feeds.push(Feed {
                name: "streamed weights".into(),
                side: way.enters.0,
                row: way.enters.1,
                color: way.color,
                epoch: 1,
                data: FeedData::Host(way.data.clone()),
            });
        }
    }
    // what the next stage will need, behind all else
    if let Some(next) = &plan.next {
        let words: Vec<&[u32]> = next.words.iter().map(|w| &w[..]).collect();
        let cargo = load::Cargo {
            name: "next weights",
            words: &words,
            idle: &next.idle,
            rounds: next.rounds,
            color: next.color,
            epoch: 1,
            channels: &next.channels,
            prefix: &prefix,
        };
        let mut way = load::run(&cargo, machine);
        way.region.blocks.clone_from(&next.blocks);
        regions.push(way.region);
        feeds.append(&mut way.feeds);
    }

    // what leaves
    let mut drains: Vec<Drain> = Vec::new();
    let mut outputs: Vec<OutputPort> = Vec::new();
    for (name, u) in &plan.outputs {
        let e = &plan.edges[u.edge];
        let each = (e.layout.length() as u64).div_ceil(per_wavelet(machine, e.ty));
        let same = outputs
            .iter()
            .find(|o| o.edge == u.edge)
            .map(|o| o.drains.clone());
        let own = same.unwrap_or_else(|| {
            e.ways
                .iter()
                .filter_map(|way| way.leaves.map(|l| (way, l)))
                .map(|(way, (side, row))| {
                    drains.push(Drain {
                        name: name.clone(),
                        side,
                        row,
                        color: way.color,
                        wavelets: (e.layout.features / e.layout.lanes) as u64 * each * plan.items as u64,
                    });
                    drains.len() - 1
                })
                .collect()
        });
        outputs.push(OutputPort {
            name: name.clone(),
            stage: number,
            edge: u.edge,
            layout: e.layout.clone(),
            ty: e.ty,
            drains: own,
        });
    }

    let mut probes = Vec::new();
    for (k, kernel) in plan.kernels.iter().enumerate() {
        let e = &plan.edges[kernel.output];
        let (region, gives) = (&plan.regions[k].region, plan.regions[k].gives.clone());
        let color = |g: &Give| {
            let each = e.layout.features / e.layout.lanes;
            e.ways[(g.features.0 / each).min(e.layout.lanes - 1)].color
        };
        let at = gives
            .iter()
            .map(|g| Probe {
                stage: number as u32,
                x: region.x + g.at.0,
                y: region.y + g.at.1,
                color: color(g),
            })
            .collect();
        probes.push(TensorProbe {
            tensor: e.tensor,
            name: e.name.clone(),
            layout: e.layout.clone(),
            ty: e.ty,
            at,
            gives,
        });
    }
    // streams first: one that enters a kernel goes to all its PEs, and sums that its row's PEs send beside it would tear it to pieces for
    // all of them; then sums. What has no room does not use its link, so nobody waits for ever
    let mut priority: Vec<Color> = plan
        .edges
        .iter()
        .flat_map(|e| e.ways.iter().map(|w| w.color))
        .collect();
    priority.sort_unstable();
    priority.dedup();
    priority.extend(colors::REDUCE);
    let stage = Stage {
        name: plan.stage_name.clone(),
        priority,
        regions,
        feeds,
        drains,
    };
    Emission {
        stage,
        outputs,
        probes,
    }
}
