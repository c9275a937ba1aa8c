//! The change from one stage to the next (rule M16): how long it takes, and why. It depends on the program and the machine alone, so
//! engines and compilers share it.

use crate::expr::Expr;
use crate::machine::Machine;
use crate::program::{Block, Filter, Program, Region, Route, Stage};
use crate::text::instruction;
use std::collections::{HashMap, HashSet};

/// Bytes of a route word: a switch position or a filter.
pub const ROUTE_WORD_BYTES: u64 = 4;

/// The parts of a change, which follow one another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Cycles of the barrier.
    pub barrier: u64,
    /// Bytes of code and route words that enter at the edge.
    pub bytes: u64,
    /// Cycles in which they enter.
    pub enter: u64,
    /// Cycles in which the PE with the most route words writes them.
    pub write: u64,
}

impl Change {
    /// All cycles of the change.
    pub fn cycles(&self) -> u64 {
        self.barrier + self.enter + self.write
    }

    /// The change to a program's stage of this number, at least 1, from the one before.
    pub fn to(program: &Program, number: usize, machine: &Machine) -> Change {
        let (before, after) = (&program.stages[number - 1], &program.stages[number]);
        let bytes_of_code = code(before, after) * machine.pe.instruction_bytes as u64;
        let (words, write) = routes(before, after, machine);
        let bytes = bytes_of_code + words * ROUTE_WORD_BYTES;
        let channels = machine.channels();
        let gap = channels.first().map_or(1, |c| c.gap) as u64;
        let bits = channels.len().max(1) as u64 * machine.link.bits as u64;
        Change {
            barrier: (machine.mesh.width as u64 + machine.mesh.height as u64)
                * machine.router.hop_cycles as u64,
            bytes,
            enter: bytes.saturating_mul(8 * gap).div_ceil(bits),
            write,
        }
    }
}

/// Instructions that enter: each different list of them once, if any PE does not have it yet.
fn code(before: &Stage, after: &Stage) -> u64 {
    // texts without names: names have no effect
    let lists = |stage: &Stage| -> Vec<String> {
        let blocks = stage.regions.iter().flat_map(|r| &r.blocks);
        blocks
            .map(|b| b.code.iter().map(|i| instruction(i) + "\n").collect())
            .collect()
    };
    let (old, new) = (lists(before), lists(after));
    let mut had: HashMap<(u32, u32), (&Region, &Block, &str)> = HashMap::new();
    let blocks = before
        .regions
        .iter()
        .flat_map(|r| r.blocks.iter().map(move |b| (r, b)));
    for ((region, block), text) in blocks.zip(&old) {
        for (x, y) in block.at.places() {
            had.insert((region.x + x, region.y + y), (region, block, text));
        }
    }
    let mut entered = HashSet::new();
    let mut sum = 0;
    let blocks = after
        .regions
        .iter()
        .flat_map(|r| r.blocks.iter().map(move |b| (r, b)));
    for ((region, block), text) in blocks.zip(&new) {
        let resident = |(x, y): (u32, u32)| {
            let (gx, gy) = (region.x + x, region.y + y);
            had.get(&(gx, gy))
                .is_some_and(|(r, b, t)| t == text && same_setting((b, gx - r.x, gy - r.y), (block, x, y)))
        };
        if !entered.contains(text) && !block.at.places().all(resident) {
            entered.insert(text);
            sum += block.code.len() as u64;
        }
    }
    sum
}

/// Whether two blocks' tasks, buffers and, where they are, parameters are equal.
fn same_setting((a, ax, ay): (&Block, u32, u32), (b, bx, by): (&Block, u32, u32)) -> bool {
    let value = |e: &Expr, x: u32, y: u32| e.at(x as i64, y as i64);
    a.params.len() == b.params.len()
        && a.tasks.len() == b.tasks.len()
        && a.memory.len() == b.memory.len()
        && a.tasks
            .iter()
            .zip(&b.tasks)
            .all(|(a, b)| (a.trigger, a.blocked, a.entry) == (b.trigger, b.blocked, b.entry))
        && a.memory
            .iter()
            .zip(&b.memory)
            .all(|(a, b)| (a.address, a.bytes) == (b.address, b.bytes))
        && a.params
            .iter()
            .zip(&b.params)
            .all(|(a, b)| value(&a.value, ax, ay) == value(&b.value, bx, by))
}

/// Route words that enter, each different route's once, if any router does not have it yet; and the most that one router is to write.
fn routes(before: &Stage, after: &Stage, machine: &Machine) -> (u64, u64) {
    let mut had: HashMap<(u32, u32, u8), (&Route, u32, u32)> = HashMap::new();
    for region in &before.regions {
        for route in &region.routes {
            for (x, y) in route.at.places() {
                had.insert((region.x + x, region.y + y, route.color), (route, x, y));
            }
        }
    }
    let width = machine.mesh.width as usize;
    let mut written = vec![0u64; width * machine.mesh.height as usize];
    let mut entered = HashSet::new();
    let mut sum = 0;
    for region in &after.regions {
        for route in &region.routes {
            let words = (route.positions.len() + route.filters.len()) as u64;
            let mut enters = false;
            for (x, y) in route.at.places() {
                let (gx, gy) = (region.x + x, region.y + y);
                let old = had.get(&(gx, gy, route.color));
                if !old.is_some_and(|(r, rx, ry)| same_route((r, *rx, *ry), (route, x, y))) {
                    enters = true;
                    written[gy as usize * width + gx as usize] += words;
                }
            }
            if enters && entered.insert(route_key(route)) {
                sum += words;
            }
        }
    }
    (sum, written.into_iter().max().unwrap_or(0))
}

/// Whether two routes of a colour have equal words in the routers where they are.
fn same_route((a, ax, ay): (&Route, u32, u32), (b, bx, by): (&Route, u32, u32)) -> bool {
    let same = |a: &Expr, b: &Expr| a.at(ax as i64, ay as i64) == b.at(bx as i64, by as i64);
    let same_filter = |a: &Filter, b: &Filter| {
        a.output == b.output
            && same(&a.first, &b.first)
            && same(&a.count, &b.count)
            && same(&a.period, &b.period)
    };
    a.positions.len() == b.positions.len()
        && a.filters.len() == b.filters.len()
        && a.positions
            .iter()
            .zip(&b.positions)
            .all(|(a, b)| a.input == b.input && a.outputs == b.outputs && same(&a.hold, &b.hold))
        && a.filters.iter().zip(&b.filters).all(|(a, b)| same_filter(a, b))
}

/// A route without names and places: two are the same multicast if this is equal.
fn route_key(route: &Route) -> Vec<i64> {
    let mut key = vec![route.color as i64, route.positions.len() as i64];
    for p in &route.positions {
        key.extend([p.input as i64, p.outputs.len() as i64]);
        key.extend(p.outputs.iter().map(|o| *o as i64));
        expr_key(&p.hold, &mut key);
    }
    for f in &route.filters {
        key.push(f.output as i64);
        [&f.first, &f.count, &f.period]
            .into_iter()
            .for_each(|e| expr_key(e, &mut key));
    }
    key
}

/// An expression without its tables' names.
fn expr_key(e: &Expr, key: &mut Vec<i64>) {
    let two = match e {
        Expr::Const(c) => return key.extend([0, *c]),
        Expr::X => return key.push(1),
        Expr::Y => return key.push(2),
        Expr::Table(t) => {
            key.extend([3, t.axes as i64, t.width as i64, t.values.len() as i64]);
            return key.extend(&t.values);
        }
        Expr::Div(a, n) => {
            key.extend([4, *n]);
            return expr_key(a, key);
        }
        Expr::Mod(a, n) => {
            key.extend([5, *n]);
            return expr_key(a, key);
        }
        Expr::Add(a, b) => (6, a, b),
        Expr::Sub(a, b) => (7, a, b),
        Expr::Mul(a, b) => (8, a, b),
        Expr::Min(a, b) => (9, a, b),
        Expr::Max(a, b) => (10, a, b),
    };
    key.push(two.0);
    expr_key(two.1, key);
    expr_key(two.2, key);
}
