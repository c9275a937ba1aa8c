//! The reference engine: every router and core that can change, every cycle, as the rules say it. Slow and plain on purpose.

use super::core::{Core, Rules};
use super::explain;
use super::network::Network;
use super::run::StageRun;
use super::{Class, Landed, Outcome, PeCounters, RunError, StageOutcome, Visit};
use crate::change::Change;
use crate::program::Stage;
use std::sync::atomic::Ordering;

/// The whole machine at the start of a cycle of a stage.
pub(super) struct State<'p> {
    pub stage: &'p Stage,
    pub net: Network<'p>,
    /// One a PE; `None` where no block puts code.
    pub cores: Vec<Option<Core<'p>>>,
    pub now: u64,
}

impl StageRun<'_> {
    /// Runs it from the SRAM that it finds to that which it leaves; adds to the outcome what it drained, probed and moved.
    pub fn reference(&self, sram: &mut [Vec<u8>], outcome: &mut Outcome) -> Result<StageOutcome, RunError> {
        let StageRun {
            stage,
            machine,
            options,
            ..
        } = *self;
        let width = machine.mesh.width;
        let pes = sram.len();
        let mut state = State {
            stage,
            net: Network::new(stage, self.data.clone(), machine),
            cores: (0..pes).map(|_| None).collect(),
            now: 0,
        };
        for (r, region) in stage.regions.iter().enumerate() {
            for (b, block) in region.blocks.iter().enumerate() {
                for (x, y) in block.at.places() {
                    let pe = (region.y + y) * width + region.x + x;
                    let found = std::mem::take(&mut sram[pe as usize]);
                    state.cores[pe as usize] =
                        Some(Core::new(stage, r as u32, b as u32, x, y, pe, machine, found));
                }
            }
        }
        if options.record {
            state.net.record = Some(vec![Vec::new(); state.net.queues.len()]);
        }
        let rules = Rules { machine };
        let mut landed: Vec<Vec<Landed>> = vec![Vec::new(); stage.drains.len()];
        let mut probes_at = vec![Vec::new(); pes];
        for (i, p) in options
            .probes
            .iter()
            .enumerate()
            .filter(|(_, p)| p.stage == self.number)
        {
            probes_at[(p.y * width + p.x) as usize].push((p.color, i));
        }
        let mut counters = vec![PeCounters::default(); pes];
        let order = visit_order(options.visit, pes);
        let everything = options.visit != Visit::Active;
        let mut active: Vec<u32> = order.clone();
        // each PE's class, which the counters do not contain yet from the cycle `since` on
        let mut class = vec![Class::Idle; pes];
        let mut since = vec![0u64; pes];
        let mut active_pe_cycles = 0u64;
        let mut epochs_seen = 1;
        loop {
            let now = state.now;
            if now & 0xfff == 0
                && let Some(p) = &options.progress
            {
                p.store(self.begin + now, Ordering::Relaxed);
            }
            if let Some(cycles) = options.max_cycles
                && self.begin + now >= cycles
            {
                return Err(RunError::TooLong { cycles });
            }
            if epochs_seen == 1 && state.net.epoch >= 1 && state.net.epochs[1] <= now {
                epochs_seen = 2;
                for pe in 0..pes {
                    counters[pe].classes[class[pe] as usize] += now - since[pe];
                    since[pe] = now;
                    counters[pe].load_classes = counters[pe].classes;
                    if let Some(core) = &mut state.cores[pe] {
                        core.counters.load_slots = core.counters.slots;
                    }
                }
            }
            let mut fault: Option<(u32, RunError)> = None;
            let mut event = state.net.feed(now);
            // in any order: what one does in this cycle is seen by the others in the next
            for &pe in &active {
                let i = pe as usize;
                if state.net.route(pe, now, &mut landed) {
                    event = true;
                    state.net.visit(pe, now + 1);
                }
                let Some(core) = &mut state.cores[i] else { continue };
                let cycle = match core.cycle(&mut state.net, &rules, now) {
                    Ok(cycle) => cycle,
                    Err((pc, message)) => {
                        // of several faults in one cycle the first in row order counts, whatever the order of visits
                        if fault.as_ref().is_none_or(|(first, _)| pe < *first) {
                            let place = explain::place(stage, core.region, core.block_index, pc);
                            fault = Some((
                                pe,
                                RunError::Fault {
                                    cycle: now,
                                    x: pe % width,
                                    y: pe / width,
                                    place,
                                    message,
                                },
                            ));
                        }
                        continue;
                    }
                };
                if cycle.event {
                    event = true;
                    state.net.visit(pe, now + 1);
                }
                // while it slept, every cycle was like the last one that was counted
                counters[i].classes[class[i] as usize] += now - since[i];
                (class[i], since[i]) = (core.class, now);
                if epochs_seen > 1 && core.class == Class::Busy {
                    core.counters.first_busy.get_or_insert(now);
                }
                if let Some((color, w)) = cycle.sent {
                    for &(c, i) in &probes_at[pe as usize] {
                        if c == color {
                            outcome.probes[i].push(w);
                        }
                    }
                }
            }
            if let Some((_, fault)) = fault {
                return Err(fault);
            }
            let pending = state.net.last_arrival > now;
            if !event && !pending {
                break;
            }
            for &pe in &active {
                let i = pe as usize;
                counters[i].classes[class[i] as usize] += now + 1 - since[i];
                since[i] = now + 1;
            }
            active_pe_cycles += active.len() as u64;
            if !everything {
                state.net.sleep(&mut active, now);
            }
            state.now += 1;
        }
        let cycles = state.now;
        for pe in 0..pes {
            counters[pe].classes[class[pe] as usize] += cycles - since[pe];
            if let Some(core) = &state.cores[pe] {
                let PeCounters {
                    classes,
                    load_classes,
                    ..
                } = counters[pe];
                counters[pe] = PeCounters {
                    classes,
                    load_classes,
                    ..core.counters
                };
            }
        }
        explain::ending(&state, &landed)?;
        for (left, core) in sram.iter_mut().zip(state.cores) {
            if let Some(core) = core {
                *left = core.into_sram();
            }
        }
        if let Some(cycles) = state.net.record.take() {
            let arrivals = state.net.arrivals(cycles, self.number, self.begin);
            outcome.arrivals.extend(arrivals);
        }
        let net = &state.net;
        outcome.wavelets += net.wavelets;
        outcome.hops += net.hops;
        outcome.edge_wavelets += net.edge_wavelets;
        outcome.active_pe_cycles += active_pe_cycles;
        let works = |c: &PeCounters| c.classes[Class::Busy as usize] + c.classes[Class::Launch as usize];
        outcome.paths.single += counters.iter().map(works).sum::<u64>();
        outcome.paths.hops_single += net.hops;
        // from here on in the run's cycles
        let begin = self.begin;
        landed.iter_mut().flatten().for_each(|l| l.cycle += begin);
        outcome.drains.append(&mut landed);
        counters.iter_mut().for_each(|c| c.shift(begin));
        let epochs: Vec<u64> = net.epochs.iter().map(|e| begin + e).collect();
        Ok(StageOutcome {
            change: Change::default(),
            begin,
            load_end: epochs[1],
            end: begin + cycles,
            epochs,
            pes: counters.into(),
        })
    }
}

fn visit_order(visit: Visit, pes: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..pes as u32).collect();
    if let Visit::Shuffled(seed) = visit {
        let mut s = seed | 1;
        for i in (1..order.len()).rev() {
            s ^= s << 13;
            s ^= s >> 7;
            s ^= s << 17;
            order.swap(i, (s % (i as u64 + 1)) as usize);
        }
    }
    order
}
