//! How long the wafer's edge alone keeps a run busy (rule M15). It depends on the program and the machine alone.

use crate::machine::{Machine, Side};
use crate::program::{Program, Stage};
use std::collections::BTreeMap;

/// Cycles that the feeds of all stages take to enter at least, if nothing ever makes them wait but their channels' gap and their epochs.
/// A run takes at least as many.
pub fn entering(program: &Program, machine: &Machine) -> u64 {
    let channels = machine.channels();
    let gap = |side: Side, row: u32| {
        let channel = channels.iter().find(|c| (c.side, c.row) == (side, row));
        channel.map_or(1, |c| u64::from(c.gap))
    };
    let stage = |s: &Stage| {
        // wavelets by epoch and channel
        let mut all: BTreeMap<u32, BTreeMap<(Side, u32), u64>> = BTreeMap::new();
        for f in s.feeds.iter().filter(|f| !f.data.is_empty()) {
            let channel = all
                .entry(f.epoch)
                .or_default()
                .entry((f.side, f.row))
                .or_default();
            *channel = channel.saturating_add(f.data.len());
        }
        // the last of n wavelets enters n - 1 gaps after the first, and the next epoch begins in the cycle after it
        let epochs = all.values().map(|channels| {
            let each = channels
                .iter()
                .map(|(&(side, row), n)| (n - 1).saturating_mul(gap(side, row)));
            each.max().unwrap_or(0).saturating_add(1)
        });
        epochs.fold(0u64, u64::saturating_add)
    };
    program.stages.iter().map(stage).fold(0, u64::saturating_add)
}
