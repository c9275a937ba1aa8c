//! The ways of streamed weights: from edge channels to the columns of kernels. A channel's stream runs along a row, past all columns that
//! it serves, and up and down in each of them; where it serves several, filters let each take its turns. Channels in the west serve the
//! columns in the west. Graph inputs keep channels of their own as long as there are enough.

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

/// Interleaves the streams of columns that share a channel: unit by unit, in turn. A column whose stream would get too many groups ahead
/// of another's waits, so that no column ever waits for weights behind those of one that waits for it: in its turns, and after its end,
/// come wavelets that its header says to drop.
fn interleave(streamed: &Streamed, columns: &[u32]) -> Vec<Wavelet> {
    let all: Vec<&Vec<Vec<Wavelet>>> = columns.iter().map(|c| &streamed.columns[*c as usize]).collect();
    let groups = all.first().map_or(0, |c| c.len());
    let unit = streamed.unit;
    let mut out: Vec<Wavelet> = Vec::new();
    // of each column: group, wavelets of it that are on their way, and the place of the last header's second word
    let mut at: Vec<(usize, usize, usize)> = vec![(0, 0, 0); all.len()];
    while let Some(behind) = at.iter().map(|a| a.0).min().filter(|g| *g < groups) {
        for ((group, done, word), column) in at.iter_mut().zip(&all) {
            if *group == groups || (*done == 0 && *group > behind + streamed.slack) {
                let pad = Wavelet {
                    elements: 1,
                    ..Default::default()
                };
                out.extend(std::iter::repeat_n(pad, unit));
                out[*word].bits += unit as u64;
                continue;
            }
            let wavelets = &column[*group];
            if *done <= 1 && *done + unit > 1 {
                *word = out.len() + 1 - *done;
            }
            out.extend(&wavelets[*done..*done + unit]);
            *done += unit;
            if *done == wavelets.len() {
                (*group, *done) = (*group + 1, 0);
            }
        }
    }
    out
}

/// What a way needs to know of its kernel's place.
struct Target<'p> {
    rect: Rect,
    /// Filters that are left in each router.
    filters: &'p [u32],
    unit: u64,
    width: u32,
    height: u32,
}

/// The routers of the way from a channel to columns of the mesh.
fn routes(t: &Target, channel: Channel, columns: &[u32], color: Color, stream: &str) -> Option<Vec<Route>> {
    let (border, onwards, last) = match channel.side {
        Side::West => (0, Port::East, *columns.iter().max()?),
        Side::East => (t.width - 1, Port::West, *columns.iter().min()?),
    };
    let from = onwards.opposite();
    let (top, bottom) = (t.rect.y, t.rect.y + t.rect.height);
    // where it goes in a column: up, down, and to the PE there
    let turns = |row: u32| {
        let all = [
            (Port::North, row > top),
            (Port::South, row + 1 < bottom),
            (Port::Ramp, (top..bottom).contains(&row)),
        ];
        all.into_iter()
            .filter(|(_, there)| *there)
            .map(|(port, _)| port)
            .collect::<Vec<_>>()
    };
    // the row along which it runs: the nearest in which there are filters for its columns to take turns
    let mut rows: Vec<u32> = (0..t.height).collect();
    rows.sort_by_key(|row| row.abs_diff(channel.row));
    let row = rows.into_iter().find(|row| {
        let needed = if columns.len() > 1 {
            turns(*row).len() as u32
        } else {
            0
        };
        let enough = columns
            .iter()
            .all(|x| t.filters[(row * t.width + x) as usize] >= needed);
        enough && (*row == channel.row || !columns.contains(&border))
    })?;
    let mut all = Vec::new();
    let mut add = |at: Lattice, input: Port, outputs: Vec<Port>, filters: Vec<Filter>| {
        if at.nx * at.ny > 0 {
            all.push(Route {
                color,
                stream: stream.into(),
                at,
                positions: vec![Position {
                    input,
                    outputs,
                    hold: Expr::Const(1),
                }],
                filters,
            });
        }
    };
    let mut enters = from;
    if row != channel.row {
        let (down, n) = (row > channel.row, row.abs_diff(channel.row));
        let port = if down { Port::South } else { Port::North };
        add(
            Lattice::rect(border, channel.row, 1, 1),
            from,
            vec![port],
            Vec::new(),
        );
        let between = if down { channel.row + 1 } else { row + 1 };
        add(
            Lattice::rect(border, between, 1, n - 1),
            port.opposite(),
            vec![port],
            Vec::new(),
        );
        enters = port.opposite();
    }
    let mut x = border;
    loop {
        let input = if x == border { enters } else { from };
        match columns.iter().position(|c| *c == x) {
            Some(turn) => {
                let mut outputs = turns(row);
                let filter = |output: &Port| Filter {
                    output: *output,
                    first: Expr::Const(turn as i64 * t.unit as i64),
                    count: Expr::Const(t.unit as i64),
                    period: Expr::Const((columns.len() as u64 * t.unit) as i64),
                };
                let filters = match columns.len() {
                    1 => Vec::new(),
                    _ => outputs.iter().map(filter).collect(),
                };
                outputs.extend((x != last).then_some(onwards));
                add(Lattice::rect(x, row, 1, 1), input, outputs, filters);
                // up, then down: first what lies outside of the rectangle
                for (port, near, end) in [(Port::North, row, top), (Port::South, row + 1, bottom)] {
                    let up = port == Port::North;
                    let rows = if up { top..near } else { near..bottom };
                    if rows.is_empty() {
                        continue;
                    }
                    let far = if up { end } else { end - 1 };
                    let outer = if up { bottom.max(top)..near } else { near..top };
                    let inner = if up {
                        top..near.min(bottom)
                    } else {
                        near.max(top)..bottom
                    };
                    let pass = if up {
                        inner.start + 1..inner.end
                    } else {
                        inner.start..inner.end - 1
                    };
                    let part =
                        |r: std::ops::Range<u32>| Lattice::rect(x, r.start, 1, r.end.saturating_sub(r.start));
                    add(part(outer), port.opposite(), vec![port], Vec::new());
                    add(part(pass), port.opposite(), vec![Port::Ramp, port], Vec::new());
                    add(part(far..far + 1), port.opposite(), vec![Port::Ramp], Vec::new());
                }
            }
            None => add(Lattice::rect(x, row, 1, 1), input, vec![onwards], Vec::new()),
        }
        if x == last {
            break;
        }
        x = if onwards == Port::East { x + 1 } else { x - 1 };
    }
    Some(all)
}

/// Finds the weights' ways, before those of streams.
pub fn run(plan: &mut Plan, machine: &Machine) -> Result<(), CompileError> {
    let (width, height) = (machine.mesh.width, machine.mesh.height);
    if plan.regions.iter().all(|r| r.streamed.is_none()) {
        return Ok(());
    }
    let mut used = vec![0u32; (width * height) as usize];
    let mut filters = vec![machine.router.filters; used.len()];
    for (rect, region) in plan.places.iter().zip(&plan.regions) {
        for route in region.region.routes.iter().filter(|r| !r.filters.is_empty()) {
            for (x, y) in route.at.places() {
                let left = &mut filters[((rect.y + y) * width + rect.x + x) as usize];
                *left = left.saturating_sub(route.filters.len() as u32);
            }
        }
    }
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
        let served: Vec<u32> = (0..rect.width)
            .filter(|c| !streamed.columns[*c as usize].is_empty())
            .collect();
        let stream = format!("{}: weights", plan.kernels[k].name);
        let most = (west.len() + east.len()).min(served.len());
        let attempt = |n: usize, used: &mut [u32], filters: &mut [u32]| -> Option<Vec<WeightWay>> {
            // columns in the west by channels in the west
            let by_west = (n * west.len()).div_ceil(west.len() + east.len()).min(west.len());
            let by_east = (n - by_west).min(east.len());
            let mut ways = Vec::new();
            for (i, share) in shares(served.len(), by_west + by_east).into_iter().enumerate() {
                let (all, of, i) = if i < by_west {
                    (&west, by_west, i)
                } else {
                    (&east, by_east, i - by_west)
                };
                let channel = all[i * all.len() / of];
                let columns = served[share].to_vec();
                let places: Vec<u32> = columns.iter().map(|c| rect.x + c).collect();
                let target = Target {
                    rect,
                    filters,
                    unit: streamed.unit as u64,
                    width,
                    height,
                };
                let mut routes = routes(&target, channel, &places, 0, &stream)?;
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
                for route in &routes {
                    let taken = route.filters.len() as u32;
                    let pes = route.at.places().map(|(x, y)| (y * width + x) as usize);
                    pes.for_each(|pe| filters[pe] -= taken);
                }
                ways.push(WeightWay {
                    kernel: k,
                    color,
                    enters: (channel.side, channel.row),
                    data: Arc::new(interleave(streamed, &columns)),
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
            let (mut colors, mut left) = (used.clone(), filters.clone());
            attempt(n, &mut colors, &mut left).map(|ways| (ways, colors, left))
        });
        let Some((ways, colors, left)) = found else {
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
        (used, filters) = (colors, left);
        plan.weights.extend(ways);
    }
    Ok(())
}
