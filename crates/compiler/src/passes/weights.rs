//! The ways of streamed weights: from edge channels to the columns of kernels. A channel's stream runs along a row, past all columns that
//! it serves, and up and down in each of them. Where it serves several, they get whole blocks in turn: a switch lets a column's own block
//! turn off, then those of the columns behind it pass. Channels in the west serve the columns in the west. Graph inputs keep channels of
//! their own as long as there are enough.

use crate::CompileError;
use crate::plan::*;
use meshloom_simulator::program::*;
use meshloom_simulator::{Channel, Expr, Machine, Side};
use std::sync::Arc;

/// Balanced shares of `0..total`.
fn shares(total: usize, parts: usize) -> Vec<std::ops::Range<usize>> {
    let starts = crate::kernels::balanced(total, parts);
    starts.windows(2).map(|s| s[0]..s[1]).collect()
}

/// The stream of columns that share a channel: a block for each in turn, in this order, flagged at its end.
fn in_turn(streamed: &Streamed, columns: &[u32]) -> Vec<Wavelet> {
    let all: Vec<&Vec<Vec<Wavelet>>> = columns.iter().map(|c| &streamed.columns[*c as usize]).collect();
    let wavelets = all.iter().flat_map(|column| column.iter().map(Vec::len)).sum();
    let mut out = Vec::with_capacity(wavelets);
    for block in 0..all.first().map_or(0, |column| column.len()) {
        for column in &all {
            out.extend_from_slice(&column[block]);
            if let Some(last) = out.last_mut() {
                last.flag = true;
            }
        }
    }
    out
}

/// The routers of the way from a channel to neighbouring columns of the mesh that a kernel in `rect` has.
fn routes(
    rect: Rect,
    mesh_width: u32,
    channel: Channel,
    columns: std::ops::Range<u32>,
    color: Color,
    stream: &str,
) -> Vec<Route> {
    let (row, n) = (channel.row, columns.len() as u32);
    let (top, bottom) = (rect.y, rect.y + rect.height);
    let mut all = Vec::new();
    let mut add = |x: std::ops::Range<u32>, y: std::ops::Range<u32>, positions: Vec<Position>| {
        if !x.is_empty() && !y.is_empty() {
            all.push(Route {
                color,
                stream: stream.into(),
                at: Lattice::rect(x.start, y.start, x.len() as u32, y.len() as u32),
                positions,
                filters: Vec::new(),
            });
        }
    };
    let position = |input: Port, outputs: Vec<Port>, hold: Expr| Position { input, outputs, hold };
    let once = |input: Port, outputs: Vec<Port>| vec![position(input, outputs, Expr::Const(1))];
    // along the row: past others, and where the columns are, of which the farthest is the last
    let (onwards, before, near, far) = match channel.side {
        Side::West => (Port::East, 0..columns.start, 0..n - 1, n - 1..n),
        Side::East => (Port::West, columns.end..mesh_width, 1..n, 0..1),
    };
    let from = onwards.opposite();
    add(before, row..row + 1, once(from, vec![onwards]));
    let turns = [
        (Port::North, row > top),
        (Port::South, row + 1 < bottom),
        (Port::Ramp, (top..bottom).contains(&row)),
    ];
    let turns: Vec<Port> = turns
        .into_iter()
        .filter(|(_, there)| *there)
        .map(|(port, _)| port)
        .collect();
    let x = |places: std::ops::Range<u32>| columns.start + places.start..columns.start + places.end;
    // its own block, then those of the columns behind it
    let behind = match channel.side {
        Side::West => Expr::Sub(Box::new(Expr::Const(columns.end as i64 - 1)), Box::new(Expr::X)),
        Side::East => Expr::Sub(Box::new(Expr::X), Box::new(Expr::Const(columns.start as i64))),
    };
    add(
        x(near),
        row..row + 1,
        vec![
            position(from, turns.clone(), Expr::Const(1)),
            position(from, vec![onwards], behind),
        ],
    );
    add(x(far), row..row + 1, once(from, turns));
    // up: what lies below the rectangle, what lies in it, its end; and down
    let end = top..top + 1;
    add(
        columns.clone(),
        bottom.max(top + 1)..row,
        once(Port::South, vec![Port::North]),
    );
    add(
        columns.clone(),
        top + 1..row.min(bottom),
        once(Port::South, vec![Port::Ramp, Port::North]),
    );
    if row > top {
        add(columns.clone(), end, once(Port::South, vec![Port::Ramp]));
    }
    add(
        columns.clone(),
        row + 1..top,
        once(Port::North, vec![Port::South]),
    );
    add(
        columns.clone(),
        top.max(row + 1)..bottom - 1,
        once(Port::North, vec![Port::Ramp, Port::South]),
    );
    if row + 1 < bottom {
        add(
            columns.clone(),
            bottom - 1..bottom,
            once(Port::North, vec![Port::Ramp]),
        );
    }
    all
}

/// Finds the weights' ways, before those of streams.
pub fn run(plan: &mut Plan, machine: &Machine) -> Result<(), CompileError> {
    let (width, height) = (machine.mesh.width, machine.mesh.height);
    if plan.regions.iter().all(|r| r.streamed.is_none()) {
        return Ok(());
    }
    let mut used = vec![0u32; (width * height) as usize];
    // the channels in the west that inputs need, evenly spread
    let inputs = plan
        .edges
        .iter()
        .filter(|e| !matches!(e.source, Source::Kernel(_)));
    let lanes: usize = inputs.map(|e| e.layout.lanes).sum();
    let channels = machine.channels();
    let (mut west, east): (Vec<Channel>, Vec<Channel>) = channels.iter().partition(|c| c.side == Side::West);
    if lanes < west.len() + east.len() {
        let n = west.len();
        let kept: Vec<usize> = (0..lanes.min(n)).map(|i| i * n / lanes.min(n).max(1)).collect();
        west = west
            .iter()
            .enumerate()
            .filter(|(i, _)| !kept.contains(i))
            .map(|(_, c)| *c)
            .collect();
    }
    for k in 0..plan.kernels.len() {
        let Some(streamed) = &plan.regions[k].streamed else {
            continue;
        };
        let rect = plan.places[k];
        let served = streamed
            .columns
            .iter()
            .filter(|blocks| !blocks.is_empty())
            .count();
        let stream = format!("{}: weights", plan.kernels[k].name);
        let most = (west.len() + east.len()).min(served);
        let attempt = |n: usize, used: &mut [u32]| -> Option<Vec<WeightWay>> {
            // columns in the west by channels in the west
            let by_west = (n * west.len()).div_ceil(west.len() + east.len()).min(west.len());
            let by_east = (n - by_west).min(east.len());
            let mut ways = Vec::new();
            for (i, share) in shares(served, by_west + by_east).into_iter().enumerate() {
                let (all, of, i) = if i < by_west {
                    (&west, by_west, i)
                } else {
                    (&east, by_east, i - by_west)
                };
                let channel = all[i * all.len() / of];
                let columns = share.start as u32..share.end as u32;
                let places = rect.x + columns.start..rect.x + columns.end;
                let mut routes = routes(rect, width, channel, places, 0, &stream);
                let at: Vec<usize> = routes
                    .iter()
                    .flat_map(|r| r.at.places())
                    .map(|(x, y)| (y * width + x) as usize)
                    .collect();
                let taken = at.iter().fold(0, |all, pe| all | used[*pe]);
                let mut colors = crate::kernels::colors::STREAMS..machine.router.colors.min(32) as Color;
                let color = colors.find(|c| taken >> c & 1 == 0)?;
                at.iter().for_each(|pe| used[*pe] |= 1 << color);
                routes.iter_mut().for_each(|r| r.color = color);
                let mut columns: Vec<u32> = columns.collect();
                if channel.side == Side::East {
                    columns.reverse();
                }
                ways.push(WeightWay {
                    kernel: k,
                    color,
                    enters: (channel.side, channel.row),
                    data: Arc::new(in_turn(streamed, &columns)),
                    columns,
                    routes,
                });
            }
            Some(ways)
        };
        // streams between kernels need colours, too
        let few = machine
            .router
            .colors
            .saturating_sub(crate::kernels::colors::STREAMS as u32) as usize
            / 2;
        let found = (1..=most.min(few.max(1) * 2)).rev().find_map(|n| {
            let mut colors = used.clone();
            attempt(n, &mut colors).map(|ways| (ways, colors))
        });
        let Some((ways, colors)) = found else {
            return Err(CompileError::DoesNotFit {
                what: format!("the streamed weights of kernel {}", plan.kernels[k].name),
                needs:
                    "an edge channel, and a colour that is free in a row and in the columns that it serves"
                        .into(),
                has: format!(
                    "{} channels, {} colours on {}",
                    channels.len(),
                    machine.router.colors,
                    machine.name
                ),
                helps: format!(
                    "--weights resident, or --set router.colors={}",
                    (machine.router.colors + 8).min(32)
                ),
            });
        };
        used = colors;
        plan.weights.extend(ways);
    }
    Ok(())
}
