//! How many bands of rows share the outputs of a product with weights from the edge.
//!
//! *The rule.* Bands end at rows where Y has no features, each the nearest to where bands of equal heights would end, and each has an output.
//! For each number of bands that can be, expected cycles are those of the largest of three parts: what a channel of the edge brings to its rows, and a
//! group's work behind it; the work of the fullest row of a band (multiply, take weights in, hand sums on, and each group's own instructions), behind the
//! first group's weights; sums and results of a band's last row. The last sums' way comes on top. With several bands, X's features are brought to all of them
//! first, a wavelet a cycle in each column, once for all products that read it. The fewest cycles win, or of those within three hundredths of them, which is
//! less than what expectations are off, the most bands: they add and send the fewest sums. What does not fit SRAM gives way to the next best.
//!
//! Bands make the sums' part smaller, B times, and rows of many features more even; they add what it takes to replicate X. They do nothing for weights, each
//! of which enters once: where the edge sets the time, they gain little.

use super::product::{enough, mac_lanes};
use super::transformer::Linear;
use super::{Bands, Tensor, Trunk};
use crate::CompileError;
use crate::kernels::{balanced, blocks, per_wavelet};
use meshloom_simulator::Machine;
use meshloom_simulator::program::Ty;

/// Cycles of a group's own instructions and issues: scalar code of one turn of its loop (kernels/blocks.rs).
const GROUP: f64 = 100.0;

/// The bands of products that read the same X and whose results lie alike, the best first.
pub(super) fn choices(machine: &Machine, x: &Tensor, y: &Tensor, linears: &[Linear]) -> Vec<Bands> {
    let mut all = all(machine, x, y, linears);
    if let Some(best) = most_of_least(all.iter().map(|(_, cycles)| *cycles)) {
        all[best].1 = 0.0;
    }
    all.sort_by(|a, b| a.1.total_cmp(&b.1));
    all.into_iter().map(|(bands, _)| bands).collect()
}

/// What the best bands are expected to take; without any, endless.
pub(super) fn cycles(machine: &Machine, x: &Tensor, y: &Tensor, linears: &[Linear]) -> f64 {
    let all = all(machine, x, y, linears);
    all.iter()
        .fold(f64::INFINITY, |least, (_, cycles)| least.min(*cycles))
}

impl Bands {
    /// The bands, up to 16, for a product of X with weights from the edge whose results are spread over them ([`Bands::share`]). X has features for each row of the mesh.
    ///
    /// Errors: a mesh that is too small.
    pub fn for_product(machine: &Machine, x: &Tensor, linear: &Linear) -> Result<Bands, CompileError> {
        let outputs = linear.outputs(x.all());
        let most = 16.min(machine.mesh.height as usize / 2).min(outputs).max(1);
        let mut all = Vec::new();
        for n in 1..=most {
            let bands = Bands::new(machine, n)?;
            let y = Tensor {
                features: bands.share(outputs),
                ..x.clone()
            };
            let cycles = bands.expected(machine, x, &y, &[*linear]);
            all.push((bands, cycles));
        }
        let best = most_of_least(all.iter().map(|(_, cycles)| *cycles)).unwrap_or(0);
        Ok(all.swap_remove(best).0)
    }

    /// The cycles that products of X with weights from the edge are expected to take in these bands, and the replication of X before them if there are several. Both
    /// tensors have features for each row of the machine's mesh.
    pub fn expected(&self, machine: &Machine, x: &Tensor, y: &Tensor, linears: &[Linear]) -> f64 {
        let mut cycles = 0.0;
        let mut given = x.clone();
        if self.len() > 1 {
            cycles += replicate(machine, x);
            given.features = self.spread(x.all());
        }
        for linear in linears {
            cycles += expected(machine, &given, y, self, linear);
        }
        cycles
    }
}

/// All bands that can be, the fewest first, and the cycles that they are expected to take.
fn all(machine: &Machine, x: &Tensor, y: &Tensor, linears: &[Linear]) -> Vec<(Bands, f64)> {
    // of other tensors products tell what is wrong
    let rows = machine.mesh.height as usize;
    let fine = |t: &Tensor| t.features.len() == rows + 1 && t.features.is_sorted() && t.tokens <= 1 << 24;
    if !fine(x) || !fine(y) {
        return Vec::new();
    }
    let ends = (0..rows).filter(|row| y.of(*row) == 0);
    let ends: Vec<usize> = ends.collect();
    let mut all = Vec::new();
    for n in 1..=ends.len().min(y.all()) {
        let Some(bands) = cut(machine, y, &ends, n) else {
            continue;
        };
        let cycles = bands.expected(machine, x, y, linears);
        all.push((bands, cycles));
    }
    all
}

/// Where a tensor of so many features may lie: in up to 16 bands, such that something is least.
pub(super) fn layout(
    machine: &Machine,
    features: usize,
    cost: impl Fn(&[usize]) -> f64,
) -> Result<Vec<usize>, CompileError> {
    let most = 16.min(machine.mesh.height as usize / 2).max(1);
    let mut all = Vec::new();
    for n in 1..=most {
        all.push(Bands::new(machine, n)?.share(features));
    }
    let best = most_of_least(all.iter().map(|features| cost(features))).unwrap_or(0);
    Ok(all.swap_remove(best))
}

/// The last one that is within three hundredths of the least.
fn most_of_least(costs: impl Iterator<Item = f64>) -> Option<usize> {
    let costs: Vec<f64> = costs.collect();
    let least = costs.iter().copied().fold(f64::INFINITY, f64::min);
    costs.iter().rposition(|cost| *cost <= least * 1.03)
}

/// So many bands that end at some of these rows, as equal as can be.
fn cut(machine: &Machine, y: &Tensor, ends: &[usize], n: usize) -> Option<Bands> {
    let height = machine.mesh.height as usize;
    let mut starts = vec![0];
    for equal in balanced(height, n)[1..n].iter().map(|start| start - 1) {
        let top = *starts.last()?;
        let later = ends.iter().filter(|end| **end > top && **end + 1 < height);
        starts.push(later.min_by_key(|end| end.abs_diff(equal))? + 1);
    }
    starts.push(height);
    let bands = Bands { starts };
    let fine = |(top, last): (usize, usize)| top < last && y.features[top] < y.features[last];
    let fine = bands.each().all(fine);
    fine.then_some(bands)
}

/// Cycles to bring X to all bands.
fn replicate(machine: &Machine, x: &Tensor) -> f64 {
    let wavelets = x.tokens as u64 * x.all() as u64 / per_wavelet(machine, x.ty);
    let way = 2 * machine.mesh.height * machine.router.hop_cycles;
    wavelets as f64 + way as f64
}

/// Cycles of a product.
fn expected(machine: &Machine, x: &Tensor, y: &Tensor, bands: &Bands, linear: &Linear) -> f64 {
    let up = |n: usize, per: u64| (n as u64).div_ceil(per) as f64;
    let stored = linear.stored();
    let lanes = mac_lanes(machine, x.ty);
    let step = up(x.tokens, lanes);
    let sums = up(x.tokens, per_wavelet(machine, Ty::F32));
    // words that bring a feature's weight for an output
    let words = match (linear.lists, x.ty) {
        (false, ty) => 1.0 / per_wavelet(machine, ty) as f64,
        (true, Ty::F32) => 1.5 * stored,
        (true, Ty::F16) => stored,
    };
    let outputs = |(top, last): (usize, usize)| y.features[last] - y.features[top];
    let mut brought = vec![0.0; bands.height()];
    for (top, last) in bands.each() {
        for (row, brought) in (top..last).zip(&mut brought[top..]) {
            *brought = (x.of(row) * outputs((top, last))) as f64 * words;
        }
    }
    let gap = machine.channels().first().map_or(1, |c| c.gap) as f64;
    let channels = Trunk::new(machine, bands.height()).channels;
    let channels = channels
        .iter()
        .map(|(top, _, end)| brought[*top..*end].iter().sum::<f64>());
    let channel = channels.fold(0.0, f64::max) * gap;
    let mut most = 0.0f64;
    for (top, last) in bands.each() {
        let outputs = outputs((top, last));
        let features = (top..last).map(|row| x.of(row)).max().unwrap_or(0);
        let multiply = match linear.lists {
            // the first feature's are written, not added (M8)
            false => (features as f64 - 0.5) * step,
            true => features as f64 * stored * (step + machine.pe.cost.issue as f64) + sums / 2.0,
        };
        let sizes = blocks::group_sizes(outputs, features, linear.lists);
        let group = sizes.take(1).chain([1]).max().unwrap_or(1);
        let enough = enough((features * x.tokens) as u64, x.ty, x.tokens) as usize;
        let groups = outputs.div_ceil(group.min(enough));
        let group = group.min(enough) as f64;
        let row = multiply + features as f64 * words + sums + GROUP / group;
        let finish = 2.0 * sums + GROUP / group;
        // a channel's blocks of the first group come before all work; that of the last group follows its blocks
        let of_rows = (outputs as f64 * row + channel / groups as f64).max(channel + group * row);
        let chain = (last - top) as f64 * (2 * machine.router.ramp_cycles + 2) as f64;
        most = most.max(of_rows.max(outputs as f64 * finish) + chain + group * finish);
    }
    most
}
