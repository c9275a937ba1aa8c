//! How many parallel streams carry each tensor: more for large ones, as many as both ends can serve and the edge has channels.

use crate::kernels::per_wavelet;
use crate::plan::*;
use meshloom_simulator::{Machine, Side};

/// Wavelets below which a lane is not worth its colour.
const SMALL: usize = 512;

/// Sets the lanes of all edges: 1, 2 or 4, at most `most`.
pub fn run(plan: &mut Plan, machine: &Machine, most: usize) {
    let channels = machine.channels();
    let west = channels.iter().filter(|c| c.side == Side::West).count();
    for e in 0..plan.edges.len() {
        let edge = &plan.edges[e];
        let l = &edge.layout;
        let wavelets = l.features * l.length().div_ceil(per_wavelet(machine, edge.ty) as usize);
        let mut lanes = by_size(wavelets, most);
        let serves = |n: usize| {
            let producer = match edge.source {
                Source::Input(_) | Source::Stored(..) => n <= west,
                Source::Kernel(k) => gives(&plan.kernels[k].kind, n),
            };
            let leaves = plan.outputs.iter().any(|(_, u)| u.edge == e);
            let consumers = edge.to.iter().all(|k| takes(&plan.kernels[*k].kind, n));
            producer && consumers && l.features.is_multiple_of(n) && (!leaves || n <= channels.len())
        };
        while lanes > 1 && !serves(lanes) {
            lanes /= 2;
        }
        plan.edges[e].layout.lanes = lanes;
    }
    // a lane of an attention's result is that of a lane of its input
    for k in &plan.kernels {
        if let Kind::Attention(_) = k.kind {
            let both = [k.inputs[0].edge, k.output];
            let lanes = both
                .map(|e| plan.edges[e].layout.lanes)
                .into_iter()
                .min()
                .unwrap_or(1);
            both.into_iter().for_each(|e| plan.edges[e].layout.lanes = lanes);
        }
    }
}

/// Gives a tensor half as many lanes; `false` if it has one, or if an attention ties them to those of another tensor.
pub fn halve(plan: &mut Plan, edge: usize) -> bool {
    let attends = |k: &Kernel| {
        let tied = k.output == edge || k.inputs.iter().any(|u| u.edge == edge);
        matches!(k.kind, Kind::Attention(_)) && tied
    };
    let lanes = &mut plan.edges[edge].layout.lanes;
    let possible = *lanes > 1 && !plan.kernels.iter().any(attends);
    if possible {
        *lanes /= 2;
    }
    possible
}

/// Lanes of a stream of so many wavelets, at most `most`.
pub fn by_size(wavelets: usize, most: usize) -> usize {
    let mut lanes = 1;
    while lanes * 2 <= most && wavelets / (lanes * 2) >= SMALL {
        lanes *= 2;
    }
    lanes
}

/// Whether a kernel can send its output on so many lanes.
fn gives(kind: &Kind, lanes: usize) -> bool {
    match kind {
        // each position's PE has all features
        Kind::Softmax => lanes == 1,
        Kind::Attention(a) => a.groups.is_multiple_of(lanes),
        // a PE's share of inputs gives outputs of one lane
        Kind::Depthwise(d) => d.k.is_multiple_of(lanes),
        Kind::Flatten => lanes == 1,
        _ => true,
    }
}

/// Whether a kernel can take an input on so many lanes.
fn takes(kind: &Kind, lanes: usize) -> bool {
    match kind {
        Kind::Softmax | Kind::Embedding(_) | Kind::Flatten => lanes == 1,
        Kind::Attention(a) => a.groups.is_multiple_of(lanes),
        _ => true,
    }
}
