//! Colours of lanes: an edge's lanes run east along their rows, from the producer's last column to the last column that takes from
//! them. Edges whose spans meet need different colours.

use crate::CompileError;
use crate::kernels::colors;
use crate::plan::*;
use meshloom_simulator::Machine;

/// Columns from the first that sends an edge's lanes to the last that takes from them.
pub fn span(plan: &Plan, edge: usize, machine: &Machine) -> (u32, u32) {
    let e = &plan.edges[edge];
    let first = match e.source {
        Source::Input(_) => 0,
        Source::Kernel(k) => plan.places[k].x + plan.places[k].width - 1,
    };
    let mut last =
        e.to.iter()
            .map(|k| plan.places[*k].x + plan.places[*k].width - 1)
            .max()
            .unwrap_or(first);
    if plan.outputs.iter().any(|(_, u)| u.edge == edge) {
        last = machine.mesh.width - 1;
    }
    (first, last)
}

/// Gives every edge its colour.
pub fn run(plan: &mut Plan, machine: &Machine) -> Result<(), CompileError> {
    let spans: Vec<_> = (0..plan.edges.len()).map(|e| span(plan, e, machine)).collect();
    let mut order: Vec<usize> = (0..spans.len()).collect();
    order.sort_by_key(|e| (spans[*e].0, *e));
    let mut colored: Vec<(usize, u8)> = Vec::new();
    let mut most: Option<(u32, usize)> = None;
    for e in order {
        let taken: Vec<u8> = colored
            .iter()
            .filter(|(o, _)| spans[*o].1 >= spans[e].0)
            .map(|(_, c)| *c)
            .collect();
        let color = (colors::LANES..=u8::MAX)
            .find(|c| !taken.contains(c))
            .unwrap_or(u8::MAX);
        if most.is_none_or(|(n, _)| color as u32 + 1 > n) {
            most = Some((color as u32 + 1, e));
        }
        plan.edges[e].color = color;
        colored.push((e, color));
    }
    if let Some((needed, e)) = most
        && needed > machine.router.colors
    {
        return Err(CompileError::DoesNotFit {
            what: format!("the edge {}", plan.edges[e].name),
            needs: format!(
                "{needed} colours at column {}, {} of them for use inside kernels",
                spans[e].0,
                colors::LANES
            ),
            has: format!("{} on {}", machine.router.colors, machine.name),
            helps: format!("a model with fewer parallel branches, or --set router.colors={needed}"),
        });
    }
    Ok(())
}

/// The edges' colours and spans, and the columns where lanes of several edges share their links.
pub fn show(plan: &Plan, machine: &Machine) -> String {
    let mut out = String::new();
    let spans: Vec<_> = (0..plan.edges.len()).map(|e| span(plan, e, machine)).collect();
    for (i, e) in plan.edges.iter().enumerate() {
        let from = match e.source {
            Source::Input(_) => "input".to_string(),
            Source::Kernel(k) => plan.kernels[k].name.clone(),
        };
        let mut to: Vec<String> = e.to.iter().map(|k| plan.kernels[*k].name.clone()).collect();
        to.extend(
            plan.outputs
                .iter()
                .filter(|(_, u)| u.edge == i)
                .map(|(n, _)| format!("output {n}")),
        );
        out += &format!(
            "colour {:>2}  {:<16} {from} -> {}  columns {}..{}, {} lanes of up to {} features x {} elements\n",
            e.color,
            e.name,
            to.join(", "),
            spans[i].0,
            spans[i].1,
            e.layout.rows(),
            e.layout.widest(),
            e.layout.length()
        );
    }
    let mut shared = Vec::new();
    for x in 0..machine.mesh.width {
        let here: Vec<&str> = (0..spans.len())
            .filter(|e| spans[*e].0 <= x && x < spans[*e].1)
            .map(|e| plan.edges[e].name.as_str())
            .collect();
        if here.len() > 1 {
            let here = here.join(", ");
            match shared.last_mut() {
                Some((_, to, names)) if *names == here && *to + 1 == x => *to = x,
                _ => shared.push((x, x, here)),
            }
        }
    }
    for (from, to, names) in shared {
        out += &format!("shared links: columns {from}..{to} eastward carry {names}\n");
    }
    out += &format!(
        "inside every kernel: colour {} weights, {} and {} partial sums, {} down and {} up its columns\n",
        colors::LOAD,
        colors::REDUCE[0],
        colors::REDUCE[1],
        colors::SOUTH,
        colors::NORTH
    );
    out
}
