//! The whole program: kernels' regions, the lanes' ways between them, how weights and inputs enter and outputs leave.
//!
//! Column 0 takes what enters: a channel's wavelets run down the column, each row takes its block (switches counting flags) and sends it
//! east. The last column does the reverse. Weights use one colour over the whole mesh: along a row each PE takes its block, then passes on.

use super::routes::span;
use crate::kernels::{colors, per_wavelet};
use crate::plan::*;
use crate::{CompileError, Compiled, OutputPort, Port as Boundary, TensorProbe};
use meshloom_simulator::engine::Probe;
use meshloom_simulator::program::*;
use meshloom_simulator::{Axes, Expr, Machine, Side};
use std::collections::BTreeMap;

/// Rows of the mesh that a channel on `side` serves: from its own row to the next channel's.
fn groups(machine: &Machine, side: Side) -> Vec<(u32, u32)> {
    let rows: Vec<u32> = machine
        .channels()
        .iter()
        .filter(|c| c.side == side)
        .map(|c| c.row)
        .collect();
    let ends = rows.iter().skip(1).copied().chain([machine.mesh.height]);
    rows.iter().copied().zip(ends).collect()
}

/// The rows as few lattices: runs at equal distances.
fn lattices(rows: &[u32]) -> Vec<Lattice> {
    let mut all = Vec::new();
    let mut i = 0;
    while i < rows.len() {
        let step = rows.get(i + 1).map_or(1, |n| n - rows[i]);
        let mut n = 1;
        while i + n < rows.len() && rows[i + n] == rows[i] + step * n as u32 {
            n += 1;
        }
        all.push(Lattice {
            x: 0,
            y: rows[i],
            nx: 1,
            ny: n as u32,
            dx: 1,
            dy: if n > 1 { step } else { 1 },
        });
        i += n;
    }
    all
}

/// Routes of the border columns: `flags[row]` flagged blocks belong to a row; inwards from the channels, or outwards to them.
fn border(
    color: Color,
    stream: &str,
    name: &str,
    groups: &[(u32, u32)],
    flags: &[i64],
    inward: bool,
) -> Vec<Route> {
    let mut later = vec![0; flags.len()];
    let mut head = vec![false; flags.len()];
    for &(from, to) in groups {
        head[from as usize] = true;
        for r in (from..to.saturating_sub(1)).rev() {
            later[r as usize] = later[r as usize + 1] + flags[r as usize + 1];
        }
    }
    let own = Expr::table(&format!("{name}.own"), Axes::Y, 0, flags.to_vec());
    let rest = Expr::table(&format!("{name}.later"), Axes::Y, 0, later.clone());
    let mut roles: BTreeMap<(bool, bool, bool), Vec<u32>> = BTreeMap::new();
    for r in 0..flags.len() {
        let role = (head[r], flags[r] > 0, later[r] > 0);
        if role.1 || role.2 {
            roles.entry(role).or_default().push(r as u32);
        }
    }
    let mut routes = Vec::new();
    for ((head, some, more), rows) in roles {
        let mut positions = Vec::new();
        let (outer, inner) = if inward {
            (Port::West, Port::East)
        } else {
            (Port::East, Port::West)
        };
        let near = if head { outer } else { Port::North };
        let mut add = |far: Port, hold: &Expr| {
            let (input, output) = if inward { (near, far) } else { (far, near) };
            positions.push(Position {
                input,
                outputs: vec![output],
                hold: hold.clone(),
            });
        };
        if some {
            add(inner, &own);
        }
        if more {
            add(Port::South, &rest);
        }
        for at in lattices(&rows) {
            routes.push(Route {
                color,
                stream: stream.into(),
                at,
                positions: positions.clone(),
                filters: Vec::new(),
            });
        }
    }
    routes
}

/// Packs one feature's elements into wavelets.
fn wavelets(values: impl Iterator<Item = f32>, ty: Ty, per: u64, out: &mut Vec<Wavelet>) {
    let mut w = Wavelet::default();
    for v in values {
        w.bits |= meshloom_simulator::numerics::to_bits(ty, v) << (ty.bits() * w.elements as u32);
        w.elements += 1;
        if w.elements as u64 == per {
            out.push(std::mem::take(&mut w));
        }
    }
    if w.elements > 0 {
        out.push(w);
    }
}

/// Where element (feature, position in the feature) of the stream is in the host's array.
fn host_index(layout: &Layout, axes: &[usize], feature: usize, position: usize) -> usize {
    let mut extents = vec![layout.n, layout.features()];
    extents.extend(&layout.inner);
    let mut at = vec![0; extents.len()];
    let mut rest = position;
    for i in (2..extents.len()).rev() {
        at[i] = rest % extents[i];
        rest /= extents[i];
    }
    (at[0], at[1]) = (rest, feature);
    let mut shape = vec![0; extents.len()];
    let mut host = vec![0; extents.len()];
    for (i, &a) in axes.iter().enumerate() {
        (shape[a], host[a]) = (extents[i], at[i]);
    }
    host.iter().zip(&shape).fold(0, |index, (i, n)| index * n + i)
}

/// Puts everything together. `inputs` holds, by name, the items of each graph input one after another.
pub fn run(plan: Plan, machine: &Machine, inputs: &[(String, Vec<f32>)]) -> Result<Compiled, CompileError> {
    let (width, height) = (machine.mesh.width, machine.mesh.height);
    let lanes = height as usize;
    let (west, east) = (groups(machine, Side::West), groups(machine, Side::East));
    if east.is_empty() {
        return Err(CompileError::DoesNotFit {
            what: "the model's inputs and outputs".into(),
            needs: "an edge channel on the west side and one on the east side".into(),
            has: format!("{} channel(s) on {}", west.len(), machine.name),
            helps: format!(
                "--set edge.bits_per_second={}",
                2.0 * machine.link.bits as f64 * machine.clock_hz
            ),
        });
    }
    let per = per_wavelet(machine, plan.ty);
    let per_word = per_wavelet(machine, Ty::F32);
    let empty = |name: &str, x: u32, width: u32| Region {
        name: name.into(),
        x,
        y: 0,
        width,
        height,
        routes: Vec::new(),
        blocks: Vec::new(),
    };
    let mut regions = vec![empty("enter", 0, 1)];
    regions.extend(plan.regions.iter().map(|e| e.region.clone()));
    let used = plan.places.iter().map(|r| r.x + r.width).max().unwrap_or(1);
    if used < width - 1 {
        regions.push(empty("through", used, width - 1 - used));
    }
    regions.push(empty("leave", width - 1, 1));

    // lanes
    for (i, e) in plan.edges.iter().enumerate() {
        let (first, last) = span(&plan, i, machine);
        let rows = e.layout.rows() as u32;
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
        let flags: Vec<i64> = (0..lanes).map(|r| (e.layout.lane(r) > 0) as i64).collect();
        let leaves = plan.outputs.iter().any(|(_, u)| u.edge == i);
        if first == last && !leaves {
            return Err(CompileError::Unsupported {
                node: e.name.clone(),
                message: "nothing takes its result".into(),
            });
        }
        for (ri, region) in regions.iter_mut().enumerate() {
            let (from, to) = (region.x.max(first), (region.x + region.width - 1).min(last));
            if from > to {
                continue;
            }
            let name = format!("{}.lanes", e.name);
            if region.x == 0 {
                region
                    .routes
                    .extend(border(e.color, &stream, &name, &west, &flags, true));
                continue;
            }
            if region.x == width - 1 {
                region
                    .routes
                    .extend(border(e.color, &stream, &name, &east, &flags, false));
                continue;
            }
            let mut columns = |x: u32, n: u32, positions: Vec<Position>, filters: Vec<Filter>| {
                if n > 0 {
                    let at = Lattice::rect(x - region.x, 0, n, rows);
                    region.routes.push(Route {
                        color: e.color,
                        stream: stream.clone(),
                        at,
                        positions,
                        filters,
                    });
                }
            };
            let way = |input: Port, outputs: &[Port]| {
                vec![Position {
                    input,
                    outputs: outputs.to_vec(),
                    hold: Expr::Const(1),
                }]
            };
            let kernel = ri - 1;
            if matches!(e.source, Source::Kernel(k) if k == kernel) && kernel < plan.kernels.len() {
                columns(from, 1, way(Port::Ramp, &[Port::East]), Vec::new());
                continue;
            }
            let tap = (kernel < plan.kernels.len())
                .then(|| plan.kernels[kernel].inputs.iter().position(|u| u.edge == i))
                .flatten();
            let Some(input) = tap else {
                columns(from, to - from + 1, way(Port::West, &[Port::East]), Vec::new());
                continue;
            };
            let view = plan.view(plan.kernels[kernel].inputs[input]);
            let tap = &plan.regions[kernel].taps[input];
            let filters = if tap.parts.is_empty() {
                Vec::new()
            } else {
                let table = |what: &str, f: &dyn Fn(&(u64, u64)) -> u64| {
                    let values = tap.parts.iter().map(|p| f(p) as i64).collect();
                    Expr::table(
                        &format!("{}.{what}", plan.kernels[kernel].name),
                        Axes::XY,
                        tap.columns,
                        values,
                    )
                };
                let each = (view.length() as u64).div_ceil(per) as i64;
                let period = view.counts().iter().map(|n| n * each).collect();
                vec![Filter {
                    output: Port::Ramp,
                    first: table("lane.first", &|p| p.0),
                    count: table("lane.count", &|p| p.1),
                    period: Expr::table(
                        &format!("{}.lane.period", plan.kernels[kernel].name),
                        Axes::Y,
                        0,
                        period,
                    ),
                }]
            };
            if to == last {
                columns(
                    from,
                    to - from,
                    way(Port::West, &[Port::Ramp, Port::East]),
                    filters.clone(),
                );
                columns(to, 1, way(Port::West, &[Port::Ramp]), filters);
            } else {
                columns(
                    from,
                    to - from + 1,
                    way(Port::West, &[Port::Ramp, Port::East]),
                    filters,
                );
            }
        }
    }

    // weights: blocks[row] = (column, words) from west to east
    let mut blocks: Vec<Vec<(u32, &[u32])>> = vec![Vec::new(); lanes];
    for e in &plan.regions {
        for (i, words) in e.weights.iter().enumerate().filter(|(_, w)| !w.is_empty()) {
            let (x, y) = (i as u32 % e.region.width, i as u32 / e.region.width);
            blocks[(e.region.y + y) as usize].push((e.region.x + x, words));
        }
    }
    blocks.iter_mut().for_each(|b| b.sort_by_key(|(x, _)| *x));
    let last_loaded = blocks.iter().flatten().map(|(x, _)| *x).max();
    if let Some(last) = last_loaded {
        let stream = "weights";
        let count: Vec<i64> = blocks.iter().map(|b| b.len() as i64).collect();
        let rows = blocks.iter().rposition(|b| !b.is_empty()).map_or(0, |r| r + 1) as u32;
        for region in &mut regions {
            if region.x == 0 {
                region
                    .routes
                    .extend(border(colors::LOAD, stream, "weights", &west, &count, true));
                continue;
            }
            let to = (region.x + region.width - 1).min(last);
            if region.x > to {
                continue;
            }
            let table = |what: &str, f: &dyn Fn(u32, usize) -> i64| {
                let values = (0..rows as usize)
                    .flat_map(|r| (0..region.width).map(move |x| (x, r)))
                    .map(|(x, r)| f(region.x + x, r))
                    .collect();
                Expr::table(
                    &format!("{}.weights.{what}", region.name),
                    Axes::XY,
                    region.width,
                    values,
                )
            };
            let here = table("here", &|x, r| blocks[r].iter().any(|b| b.0 == x) as i64);
            let beyond = table("beyond", &|x, r| {
                blocks[r].iter().filter(|b| b.0 > x).count() as i64
            });
            let mut routes = Vec::new();
            let position = |outputs: &[Port], hold: &Expr| Position {
                input: Port::West,
                outputs: outputs.to_vec(),
                hold: hold.clone(),
            };
            let mut columns = |x: u32, n: u32, positions: Vec<Position>| {
                if n > 0 {
                    let at = Lattice::rect(x - region.x, 0, n, rows);
                    routes.push(Route {
                        color: colors::LOAD,
                        stream: stream.into(),
                        at,
                        positions,
                        filters: Vec::new(),
                    });
                }
            };
            let through = vec![position(&[Port::Ramp], &here), position(&[Port::East], &beyond)];
            if to == last {
                columns(region.x, to - region.x, through);
                columns(to, 1, vec![position(&[Port::Ramp], &here)]);
            } else {
                columns(region.x, to - region.x + 1, through);
            }
            region.routes.extend(routes);
        }
    }

    // what enters
    let mut feeds = Vec::new();
    for &(from, to) in &west {
        let mut data = Vec::new();
        for (_, words) in blocks[from as usize..to as usize].iter().flatten() {
            for chunk in words.chunks(per_word as usize) {
                let bits = chunk
                    .iter()
                    .enumerate()
                    .fold(0, |b, (i, w)| b | (*w as u64) << (32 * i));
                data.push(Wavelet {
                    bits,
                    elements: chunk.len() as u8,
                    flag: false,
                });
            }
            data.last_mut().expect("blocks have words").flag = true;
        }
        if !data.is_empty() {
            feeds.push(Feed {
                name: "weights".into(),
                side: Side::West,
                row: from,
                color: colors::LOAD,
                epoch: 0,
                data: data.into(),
            });
        }
    }
    let entering: Vec<&Edge> = plan
        .edges
        .iter()
        .filter(|e| matches!(e.source, Source::Input(_)))
        .collect();
    let rounds = if entering.len() == 1 { 1 } else { plan.items };
    for &(from, to) in &west {
        for round in 0..rounds {
            for e in &entering {
                let Source::Input(index) = e.source else { continue };
                let array = &inputs[index].1;
                let size = array.len() / plan.items;
                let items = if rounds == 1 {
                    0..plan.items
                } else {
                    round..round + 1
                };
                let mut data = Vec::new();
                for item in items {
                    for r in from as usize..to as usize {
                        for f in e.layout.starts[r]..e.layout.starts[r + 1] {
                            let values = (0..e.layout.length())
                                .map(|p| array[item * size + host_index(&e.layout, &e.axes, f, p)]);
                            wavelets(values, plan.ty, per, &mut data);
                        }
                        if e.layout.lane(r) > 0 {
                            data.last_mut().expect("a lane has wavelets").flag = true;
                        }
                    }
                }
                if !data.is_empty() {
                    let name = inputs[index].0.clone();
                    feeds.push(Feed {
                        name,
                        side: Side::West,
                        row: from,
                        color: e.color,
                        epoch: 1,
                        data: data.into(),
                    });
                }
            }
        }
    }

    // what leaves
    let mut drains = Vec::new();
    let mut outputs = Vec::new();
    for (name, u) in &plan.outputs {
        let layout = &plan.edges[u.edge].layout;
        let each = (layout.length() as u64).div_ceil(per);
        let mut ports = Vec::new();
        for &(from, to) in &east {
            let n: u64 = (from..to).map(|r| layout.lane(r as usize) as u64 * each).sum();
            if n > 0 && outputs.iter().all(|o: &OutputPort| o.edge != u.edge) {
                ports.push(Boundary {
                    drain: drains.len(),
                    rows: (from, to),
                });
                let (color, wavelets) = (plan.edges[u.edge].color, n * plan.items as u64);
                drains.push(Drain {
                    name: name.clone(),
                    side: Side::East,
                    row: from,
                    color,
                    wavelets,
                });
            }
        }
        if ports.is_empty()
            && let Some(same) = outputs.iter().find(|o| o.edge == u.edge)
        {
            ports = same.ports.clone();
        }
        outputs.push(OutputPort {
            name: name.clone(),
            edge: u.edge,
            layout: layout.clone(),
            flat: u.flat,
            ports,
        });
    }

    let mut probes = Vec::new();
    for k in &plan.kernels {
        let e = &plan.edges[k.output];
        let (x, _) = span(&plan, k.output, machine);
        let at = (0..e.layout.rows() as u32)
            .map(|y| Probe {
                stage: 0,
                x,
                y,
                color: e.color,
            })
            .collect();
        probes.push(TensorProbe {
            tensor: e.tensor,
            name: e.name.clone(),
            layout: e.layout.clone(),
            at,
        });
    }
    // partial sums first: what is nearer to its end never waits for what is farther
    let mut priority = colors::REDUCE.to_vec();
    priority.extend([colors::SOUTH, colors::NORTH]);
    let stage = Stage {
        name: String::new(),
        priority,
        regions,
        feeds,
        drains,
    };
    let program = Program::single(plan.name.clone(), stage);
    Ok(Compiled {
        program,
        plan,
        outputs,
        probes,
    })
}
