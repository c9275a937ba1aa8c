//! Matrix products and convolutions, of one tensor or the sum over several: input features over the columns of the rectangle, output
//! features over its rows, weights resident.
//!
//! Each column belongs to one input and takes some of its features, which come down the column to all rows at once. Each PE adds their
//! products to its accumulators, tap by tap: dense weights by one instruction a tap (an outer product), lists of (index, value) by one
//! instruction a tap too, which is an AXPY a stored weight over the rectangle of positions that the tap hits. At the end the partial sums are
//! added along the row from west to east; the last column adds the bias (it starts from it), applies what is fused, and sends the row's
//! output features.
//!
//! Where several items stream through, kernels work in a *steady* form if SRAM has room for it: the products of an item are a few
//! instructions of a microthread, and there are two sets of accumulators. Sums leave at once, by a microthread of higher priority, and do
//! not hold up the next item while they wait for their neighbours; one of lower priority clears accumulators in the slots that lie idle
//! while a stored weight's product is issued. What does not depend on the item is set once. A single item, and what has no room for that,
//! is worked on *in chunks* of features as they arrive, so that products begin early.
//!
//! [`cut`] divides the work, [`load`] says what a PE has of it, [`code`] and [`products`] are its instructions.

mod code;
mod cut;
mod load;
mod products;

use super::streams::{Role, alike, by_output_lane, distribute_lanes, role, sums_along_rows};
use super::*;
pub(crate) use cut::shares;
use cut::{Column, Cut};
use load::{Cost, Image, Sums, bias_bytes};
use std::cell::OnceCell;
use std::sync::Arc;

pub(super) struct MixKernel<'a> {
    mix: &'a Arc<Mix>,
    sums: Vec<OnceCell<Sums>>,
    costs: Vec<OnceCell<Cost>>,
}

/// The microthreads, by priority: what arrives, sums and results, and in the steady form products and the clearing of accumulators.
const RECEIVE: u8 = 1;
const SUMS: u8 = 2;
const PRODUCTS: u8 = 3;
const CLEAR: u8 = 4;

impl<'a> MixKernel<'a> {
    pub(super) fn new(mix: &'a Arc<Mix>) -> MixKernel<'a> {
        MixKernel {
            mix,
            sums: mix.terms.iter().map(|_| OnceCell::new()).collect(),
            costs: mix.terms.iter().map(|_| OnceCell::new()).collect(),
        }
    }
}

impl MixKernel<'_> {
    fn m(&self) -> usize {
        self.mix.terms[0].m
    }
}

impl Implementation for MixKernel<'_> {
    fn op(&self) -> &'static str {
        let plain = |t: &Linear| t.window == 1 && t.input.0 == 1;
        if self.mix.terms.iter().all(plain) {
            "matmul"
        } else {
            "conv"
        }
    }

    fn about(&self) -> &'static str {
        "matrix products or convolutions, summed: inputs over columns, outputs over rows, weights resident; dense or as lists of nonzeros"
    }

    fn fit(&self, c: &Context, width: u32, height: u32) -> (u32, u32) {
        let columns = self.allot(c, width as usize);
        let width = columns.map_or(u32::MAX, |a| a.iter().map(|a| a.2 as u32).sum());
        (width, self.rows(c, height.max(c.output.lanes as u32)))
    }

    fn estimate(&self, c: &Context, width: u32, height: u32) -> Option<Estimate> {
        let cut = self.cut(c, width, height)?;
        let cost = &c.machine.pe.cost;
        let length_out = c.output.length() as u64;
        let mut slowest = 0;
        for (i, column) in cut.columns.iter().enumerate() {
            let linear = &self.mix.terms[column.term];
            let features = column.to - column.from;
            let chunks = features.div_ceil(cut.chunk[column.term]) as u64;
            let taps = linear.taps.len() as u64;
            let outputs = cut.widest() as u64;
            // descriptors that differ from tile to tile
            let set = if linear.tiled.is_some() {
                3 * cost.descriptor as u64
            } else {
                0
            };
            // scalar code, and instructions that are issued beside those of stored weights
            let scalar = match (cut.steady, linear.lists()) {
                (true, true) => 50 + (3 + set) * taps,
                (true, false) => 50 + (3 + set + cost.issue as u64) * taps,
                (false, true) => chunks * (30 + 8 * taps),
                (false, false) => chunks * self.set_up(c, column.term),
            };
            let clear = outputs * length_out / 2;
            // the last column adds to its accumulators what it then applies a function to, or rounds
            let twice = i + 1 == cut.columns.len() && width > 1 && (self.mix.relu || c.ty != Ty::F32);
            let sums = outputs * length_out * (1 + twice as u64);
            let moves = c.move_slots(features, c.inputs[column.term].length());
            let (busy, stored) = self.heaviest(c, &cut, i);
            // the slots of a stored weight's issue are free for other threads
            let hidden = match cut.steady && linear.lists() {
                true => (stored * cost.issue as u64).min(clear + scalar),
                false => 0,
            };
            // what can't come in, or leave, meanwhile takes its time between items
            let input = &c.inputs[column.term];
            let between = match c.items > 1 && cut.slots[column.term] == 1 {
                true => c.move_slots(input.features / input.lanes, input.length()),
                false => 0,
            };
            let waits = c.items > 1 && !cut.staged && !cut.steady && i + 1 == cut.columns.len();
            let leaving = match waits {
                true => c.move_slots(c.output.features / c.output.lanes, c.output.length()),
                false => 0,
            };
            slowest = slowest.max(busy + moves + scalar + clear + sums - hidden + between + leaving);
        }
        // partial sums pass the columns one after another; in the steady form the next item does not wait for that
        let hop = (2 * c.machine.router.ramp_cycles + c.machine.router.hop_cycles + 1) as u64;
        let passing = if cut.steady { 0 } else { hop * width as u64 };
        let (bytes, fullest) = self.fullest(c, &cut);
        Some(Estimate {
            cycles: (slowest + passing).max(c.stream_cycles()),
            bytes,
            fullest,
        })
    }

    fn exit(&self, width: u32) -> u32 {
        width - 1
    }

    fn emit(&self, name: &str, c: &Context, width: u32, height: u32) -> Emitted {
        let cut = self.cut(c, width, height).expect("the rectangle was estimated");
        let w = width as usize;
        let mut region = region(name, width, height);
        let images: Vec<Vec<Image>> = (0..height as usize)
            .map(|r| (0..w).map(|i| self.image(c, &cut, i, r)).collect())
            .collect();
        let mut entries = Vec::new();
        for i in 0..c.inputs.len() {
            let parts: Vec<Option<Part>> = (0..height)
                .flat_map(|_| &cut.columns)
                .map(|column| (column.term == i).then_some(Part::Features(column.from, column.to)))
                .collect();
            entries.push(distribute_lanes(&mut region, name, c, i, &parts));
        }
        sums_along_rows(&mut region, name);
        let stream = format!("{name}: output");
        let lanes = c.output.lanes;
        let exits = (0..lanes)
            .map(|lane| {
                let rows = lane_row(lane, lanes, height)..lane_row(lane + 1, lanes, height);
                collect(
                    &mut region,
                    &stream,
                    c.output_colors[lane],
                    rows,
                    width - 1,
                    |x, _| x + 1 == width,
                )
            })
            .collect();
        // columns of one lane and one part in the sum share their code, in the rows of one lane
        let columns = cut.columns.iter().enumerate();
        for ((term, lane, role), columns) in alike(columns.map(|(i, k)| (k.term, k.lane, role(i, w)))) {
            let places = by_output_lane(role, &columns, lanes, height);
            for (part, at) in places.into_iter().enumerate() {
                let ways = (c.input_colors[term][lane], c.output_colors[part]);
                let block = self.block(name, c, &cut, (term, ways), role, at, &images);
                region.blocks.push(block);
            }
        }
        let gives = (0..height)
            .map(|y| Give {
                at: (width - 1, y),
                features: (cut.rows[y as usize], cut.rows[y as usize + 1]),
                turn: None,
                positions: vec![(0, c.output.length())],
            })
            .collect();
        let weights = images.into_iter().flatten().map(|image| image.words).collect();
        Emitted {
            region,
            weights,
            entries,
            exits,
            gives,
            streamed: None,
        }
    }
}
