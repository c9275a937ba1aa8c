//! Which way wavelets go, by the routes alone.

use meshloom_simulator::program::*;
use meshloom_simulator::{Machine, Side};
use std::collections::BTreeSet;

/// Where wavelets of a colour come into a router: column, row and port.
pub type Arrival = (u32, u32, Port);

/// The positions of a route that are not passed over at a place.
pub fn live(route: &Route, (x, y): (u32, u32)) -> Vec<usize> {
    (0..route.positions.len())
        .filter(|k| route.positions.len() == 1 || route.positions[*k].hold.at(x as i64, y as i64) != 0)
        .collect()
}

/// The route of a colour through the router at a place of the mesh, and its positions that are used there.
fn route_at(stage: &Stage, (x, y): (u32, u32), color: Color) -> Option<(&Route, Vec<usize>)> {
    let inside = |g: &&Region| g.x <= x && x < g.x + g.width && g.y <= y && y < g.y + g.height;
    stage.regions.iter().filter(inside).find_map(|g| {
        let at = (x - g.x, y - g.y);
        let mut own = g.routes.iter().filter(|r| r.color == color);
        let route = own.find(|r| r.at.places().any(|p| p == at))?;
        Some((route, live(route, at)))
    })
}

/// Everywhere that wavelets come from these places on.
pub fn reached(stage: &Stage, color: Color, from: impl IntoIterator<Item = Arrival>) -> BTreeSet<Arrival> {
    let mut to_see: Vec<Arrival> = from.into_iter().collect();
    let mut seen: BTreeSet<Arrival> = to_see.iter().copied().collect();
    while let Some((x, y, from)) = to_see.pop() {
        let Some((route, live)) = route_at(stage, (x, y), color) else {
            continue;
        };
        let positions = live.iter().map(|k| &route.positions[*k]);
        for o in positions.filter(|p| p.input == from).flat_map(|p| &p.outputs) {
            let next = match o {
                Port::North => (x, y.wrapping_sub(1)),
                Port::South => (x, y + 1),
                Port::East => (x + 1, y),
                Port::West => (x.wrapping_sub(1), y),
                Port::Ramp => continue,
            };
            let next = (next.0, next.1, o.opposite());
            if seen.insert(next) {
                to_see.push(next);
            }
        }
    }
    seen
}

/// Whether a flag that the core at a place of the mesh sends is counted by any switch on its way.
pub fn counted(stage: &Stage, (x, y): (u32, u32), color: Color) -> bool {
    reached(stage, color, [(x, y, Port::Ramp)])
        .iter()
        .any(|(x, y, _)| route_at(stage, (*x, *y), color).is_some_and(|(_, live)| live.len() > 1))
}

/// Where the wavelets of a colour enter the mesh.
pub fn entries(stage: &Stage, machine: &Machine, color: Color) -> Vec<Arrival> {
    let feeds = stage.feeds.iter().filter(|f| f.color == color);
    feeds
        .map(|f| match f.side {
            Side::West => (0, f.row, Port::West),
            Side::East => (machine.mesh.width - 1, f.row, Port::East),
        })
        .collect()
}
