//! Weights that arrive a stage early: while the kernels of a stage compute, microthreads take in weights of the next stage's kernels,
//! which SRAM keeps over the change of stages (rule M16). What has arrived is not loaded.
//!
//! Early weights enter by channels that bring nothing else in that stage, on a colour that nothing else uses in it and that comes last
//! wherever links are shared. Each costs its PE a slot, and PEs that hand sums on wait for one another; so weights enter in many rounds
//! of a few wavelets for each PE ([`BURST`]), which queues absorb, instead of one PE after another. Data of a stage begin behind what
//! came before, or at address 0, whichever leaves the early weights a place that is free in both stages.

use super::memory;
use super::stages::context;
use crate::assemble::splice;
use crate::kernels::{self, Context, colors, per_wavelet, rectangles, table};
use crate::plan::*;
use meshloom_simulator::program::*;
use meshloom_simulator::{Channel, Expr, Machine};
use std::collections::BTreeMap;

/// Wavelets of a PE that follow one another.
const BURST: u64 = 4;
/// Cycles of load below which it is left as it is: other addresses are other code, which enters in the change of stages.
const WORTH: u64 = 256;

/// The blocks of a stage by place: each PE's kernel, and the number of its block there.
struct Hosts<'p> {
    plan: &'p Plan,
    width: u32,
    at: Vec<Option<(usize, usize)>>,
}

/// A kernel with its data where early weights find a place.
struct Moved {
    emitted: Emitted,
    /// For each PE of its region the address of its weights.
    at: Vec<u32>,
}

impl<'p> Hosts<'p> {
    fn new(plan: &'p Plan, width: u32, height: u32) -> Hosts<'p> {
        let mut at = vec![None; (width * height) as usize];
        for (kernel, e) in plan.regions.iter().enumerate() {
            for (n, b) in e.region.blocks.iter().enumerate() {
                for (x, y) in b.at.places() {
                    at[((e.region.y + y) * width + e.region.x + x) as usize] = Some((kernel, n));
                }
            }
        }
        Hosts { plan, width, at }
    }

    fn block(&self, (kernel, block): (usize, usize)) -> &'p Block {
        &self.plan.regions[kernel].region.blocks[block]
    }

    /// The PE of the mesh that is number `i` of a region.
    fn pe(&self, r: &Region, i: usize) -> usize {
        ((r.y + i as u32 / r.width) * self.width + r.x + i as u32 % r.width) as usize
    }

    /// Whether weights at these addresses hurt nothing here: a block has one buffer of them for all its PEs.
    fn fit(&self, all: &[&Moved], sent: &impl Fn(usize) -> u64, machine: &Machine) -> Result<(), String> {
        let sram = machine.pe.sram_bytes as u64;
        let full = |pe: usize, needs: u64| {
            let (x, y) = (pe as u32 % self.width, pe as u32 / self.width);
            format!("PE ({x}, {y}) would need {needs} bytes of SRAM for both stages, and has {sram}")
        };
        let mut taken: BTreeMap<(usize, usize), (u64, u64, usize)> = BTreeMap::new();
        for m in all {
            for (i, w) in m.emitted.weights.iter().enumerate() {
                let (n, pe) = (sent(w.len()), self.pe(&m.emitted.region, i));
                let (from, to) = (m.at[i] as u64, m.at[i] as u64 + 4 * n);
                match self.at[pe] {
                    _ if n == 0 => {}
                    Some(host) => {
                        let range = taken.entry(host).or_insert((from, to, pe));
                        *range = (range.0.min(from), range.1.max(to), pe);
                    }
                    // its code there will have four instructions
                    None => {
                        let needs = to + 4 * machine.pe.instruction_bytes as u64;
                        if needs > sram {
                            return Err(full(pe, needs));
                        }
                    }
                }
            }
        }
        for (host, (from, to, pe)) in taken {
            let block = self.block(host);
            let place = format!("kernel {} of the stage before", self.plan.kernels[host.0].name);
            if thread(block, machine).is_none() {
                return Err(format!("{place} uses all {} threads", machine.pe.threads));
            }
            let mut buffers = block.memory.iter().filter(|m| m.bytes > 0);
            let hit = buffers.find(|m| from < m.address as u64 + m.bytes as u64 && (m.address as u64) < to);
            if let Some(hit) = hit {
                return Err(format!("{place} has its buffer {} at their addresses", hit.name));
            }
            // three instructions more
            let code = (block.code.len() as u64 + 3) * machine.pe.instruction_bytes as u64;
            let needs = end(block).max(to) + code;
            if needs > sram {
                return Err(full(pe, needs));
            }
        }
        Ok(())
    }
}

/// The end of a block's data.
fn end(block: &Block) -> u64 {
    let ends = block.memory.iter().map(|m| m.address as u64 + m.bytes as u64);
    ends.max().unwrap_or(0)
}

/// Lets weights of each stage after the first arrive in the stage before, as many as fit.
pub fn run(plans: &mut [Plan], machine: &Machine) {
    for s in 1..plans.len() {
        let (before, after) = plans.split_at_mut(s);
        let (before, after) = (&mut before[s - 1], &mut after[0]);
        let words = after.regions.iter().flat_map(|e| &e.weights);
        let words: u64 = words.map(|w| w.len() as u64).sum();
        if words > 0 {
            let (arrived, why) = match bring(before, after, words, machine) {
                Ok((arrived, why)) => (arrived, why),
                Err(why) => (0, Some(why)),
            };
            after.early = Some(Early { words, arrived, why });
        }
    }
}

/// The channels that bring nothing in a stage.
fn idle(plan: &Plan, machine: &Machine) -> Vec<Channel> {
    let ways = plan.edges.iter().flat_map(|e| &e.ways).filter_map(|w| w.enters);
    let used: Vec<_> = ways.chain(plan.weights.iter().map(|w| w.enters)).collect();
    let channels = machine.channels().into_iter();
    channels.filter(|c| !used.contains(&(c.side, c.row))).collect()
}

/// The last colour that no stream of a stage has.
fn color(plan: &Plan, machine: &Machine) -> Option<Color> {
    let ways = plan.edges.iter().flat_map(|e| &e.ways).map(|w| w.color);
    let used: Vec<Color> = ways.chain(plan.weights.iter().map(|w| w.color)).collect();
    let all = colors::STREAMS..machine.router.colors.min(32) as Color;
    all.rev().find(|c| !used.contains(c))
}

/// The last microthread that a block does not use.
fn thread(block: &Block, machine: &Machine) -> Option<u8> {
    let used = |t: u8| {
        let uses = |i: &Instr| matches!(i, Instr::Async(n, ..) | Instr::Wait(n, _) if *n == t);
        block.code.iter().any(uses)
    };
    (1..machine.pe.threads.min(255) as u8).find(|t| !used(*t))
}

/// Cycles that a stage is expected to take for all items: those of its slowest kernel, and until its longest stream has come there.
fn expected(plan: &Plan, machine: &Machine) -> u64 {
    let streams = plan.edges.iter().map(|e| {
        let each = (e.layout.length() as u64).div_ceil(per_wavelet(machine, e.ty));
        (e.layout.features / e.layout.lanes) as u64 * each
    });
    let pace = plan.estimates.iter().max().copied().unwrap_or(0);
    pace * plan.items as u64 + streams.max().unwrap_or(0)
}

/// Where a block takes its weights in: the first of three instructions, and the address.
fn loading(block: &Block) -> Option<(usize, u32)> {
    block
        .code
        .windows(3)
        .enumerate()
        .find_map(|(i, code)| match code {
            [
                Instr::Desc(
                    to,
                    Descriptor {
                        place:
                            Place::Memory {
                                base: Val::Imm(base), ..
                            },
                        ..
                    },
                ),
                Instr::Desc(
                    from,
                    Descriptor {
                        place: Place::In(colors::LOAD),
                        ..
                    },
                ),
                Instr::Vector(Vector::Map {
                    op: Op::Mov,
                    dst,
                    a: Operand::Desc(a),
                    ..
                }),
            ] if (dst, a) == (to, from) => Some((i, *base as u32)),
            _ => None,
        })
}

/// A number of each PE as a parameter of the block.
fn param(block: &mut Block, name: &str, value: Expr) -> Val {
    if let Some(c) = value.constant() {
        return Val::Imm(c);
    }
    block.params.push(Param {
        name: name.into(),
        value,
    });
    Val::Param(block.params.len() as u16 - 1)
}

/// Brings weights of `after` in `before`; returns how many words, and why not all.
fn bring(
    before: &mut Plan,
    after: &mut Plan,
    words: u64,
    machine: &Machine,
) -> Result<(u64, Option<String>), String> {
    let per = per_wavelet(machine, Ty::F32);
    let all = machine.channels().len() as u64;
    let free = idle(before, machine);
    let gap = free.first().map_or(1, |c| c.gap) as u64;
    if words.div_ceil(per * all) * gap < WORTH {
        return Err(format!(
            "they load in about {} cycles",
            words.div_ceil(per * all) * gap
        ));
    }
    if free.is_empty() {
        return Err(format!("all {all} channels bring something in the stage before"));
    }
    if machine.router.switch_positions < 4 {
        return Err("routers have fewer than 4 switch positions".into());
    }
    let color = color(before, machine).ok_or(format!(
        "all {} colours are in use in the stage before",
        machine.router.colors
    ))?;
    // what can enter in the time that the stage before is expected to take; some channels have more than others, and links are shared
    let cycles = expected(before, machine);
    let can = cycles / gap * per * free.len() as u64 * 2 / 3;
    if can / (per * all) * gap < WORTH {
        return Err(format!("the stage before takes about {cycles} cycles"));
    }
    let early = |n: usize| match can < words {
        true => (n as u64 * can / words / per * per) as usize,
        false => n,
    };
    let most = after.regions.iter().flat_map(|e| &e.weights);
    let most = most.map(|w| early(w.len()) as u64).max().unwrap_or(0);
    let rounds = most.div_ceil(per * BURST).max(1);
    // words that enter for a PE: at least a wavelet a round
    let sent = |n: usize| match early(n) as u64 {
        0 => 0,
        n => n.next_multiple_of(per).max(rounds * per),
    };

    let (width, height) = (machine.mesh.width, machine.mesh.height);
    let hosts = Hosts::new(before, width, height);

    // where the weights of each kernel find a place
    let mut moved: Vec<Option<Moved>> = Vec::new();
    let mut why = None;
    for k in 0..after.kernels.len() {
        let old = &after.regions[k];
        if old.weights.iter().all(|w| early(w.len()) == 0) {
            moved.push(None);
            continue;
        }
        // behind the data of the stage before, unless address 0 will do
        let r = &old.region;
        let under = (0..old.weights.len()).filter(|i| early(old.weights[*i].len()) > 0);
        let under = under.filter_map(|i| hosts.at[hosts.pe(r, i)]);
        let end = under.map(|h| end(hosts.block(h))).max().unwrap_or(0);
        let first = r.blocks.iter().filter_map(loading).map(|(_, at)| at).min();
        let behind = (end as u32)
            .saturating_sub(first.unwrap_or(0))
            .next_multiple_of(64);
        let attempt = |base: u32| -> Result<Moved, String> {
            let m = place(after, k, base, &sent, machine)?;
            hosts.fit(&[&m], &sent, machine)?;
            Ok(m)
        };
        let found = attempt(0).or_else(|_| attempt(behind));
        match found {
            Ok(m) => moved.push(Some(m)),
            Err(e) => {
                why = Some(format!("{}: {e}", after.kernels[k].name));
                moved.push(None);
            }
        }
    }
    if moved.iter().all(|m| m.is_none()) {
        return Err(why.unwrap_or("no PE has room".into()));
    }
    if why.is_none() && can < words {
        why = Some(format!("the stage before takes about {cycles} cycles"));
    }

    let all: Vec<&Moved> = moved.iter().flatten().collect();
    hosts.fit(&all, &sent, machine)?;

    // the words of each PE, and where they go
    let empty: Vec<bool> = hosts.at.iter().map(|h| h.is_none()).collect();
    let mut arriving: Vec<Vec<u32>> = vec![Vec::new(); empty.len()];
    let mut at = vec![0u32; empty.len()];
    let mut arrived = 0;
    for (k, m) in moved.into_iter().enumerate() {
        let Some(Moved { mut emitted, at: own }) = m else {
            continue;
        };
        let r = emitted.region.clone();
        let mut taken = vec![0; own.len()];
        for (i, w) in emitted.weights.iter_mut().enumerate() {
            let pe = hosts.pe(&r, i);
            taken[i] = early(w.len());
            arrived += taken[i] as u64;
            let n = sent(w.len()) as usize;
            arriving[pe] = w.drain(..taken[i]).collect();
            arriving[pe].resize(n, 0);
            at[pe] = own[i];
        }
        let name = format!("{}.{}", after.stage_name, r.name);
        for block in &mut emitted.region.blocks {
            load_rest(block, &name, r.width, &emitted.weights, &taken);
        }
        after.regions[k] = emitted;
    }

    // the PEs of the stage before take them in
    let stage = before.stage_name.clone();
    let mut idle = vec![false; empty.len()];
    for e in &mut before.regions {
        let (x0, y0) = (e.region.x, e.region.y);
        let name = e.region.name.clone();
        for (n, block) in e.region.blocks.iter_mut().enumerate() {
            let pe = |x: u32, y: u32| ((y0 + y) * width + x0 + x) as usize;
            if let Some(t) = thread(block, machine) {
                let label = format!("{stage}.{name}.{n}");
                let words = |x, y| (at[pe(x, y)], arriving[pe(x, y)].len() as u32);
                if take(block, &label, Some(t), color, &words) {
                    let places = block.at.places().map(|(x, y)| pe(x, y));
                    places.for_each(|pe| idle[pe] = arriving[pe].is_empty());
                }
            }
        }
    }
    let alone = |x: u32, y: u32| {
        let pe = (y * width + x) as usize;
        (empty[pe] && !arriving[pe].is_empty()).then_some(at[pe])
    };
    let blocks = rectangles(width, height, alone).into_iter().enumerate();
    let blocks: Vec<Block> = blocks
        .map(|(n, (lattice, _))| {
            let mut block = Block {
                at: lattice,
                params: Vec::new(),
                memory: Vec::new(),
                tasks: vec![Task {
                    name: "main".into(),
                    trigger: Trigger::Start,
                    blocked: false,
                    entry: 0,
                }],
                labels: Vec::new(),
                code: vec![Instr::Halt],
            };
            take(&mut block, &format!("{stage}.next.{n}"), None, color, &|x, y| {
                let pe = (y * width + x) as usize;
                (at[pe], arriving[pe].len() as u32)
            });
            block
        })
        .collect();
    before.next = Some(Next {
        color,
        channels: free,
        words: arriving,
        idle,
        rounds: rounds as usize,
        blocks,
    });
    Ok((arrived, why))
}

/// Kernel `k` of a stage with its data from `base` on.
fn place(
    plan: &Plan,
    k: usize,
    base: u32,
    sent: &impl Fn(usize) -> u64,
    machine: &Machine,
) -> Result<Moved, String> {
    let old = &plan.regions[k].region;
    let emitted = match base {
        // as it is
        0 => plan.regions[k].clone(),
        _ => {
            let c = Context {
                base,
                ..context(plan, machine, k)
            };
            let kernel = kernels::of(&plan.kernels[k].kind);
            let mut emitted = kernel.emit(&plan.kernels[k].name, &c, old.width, old.height);
            (emitted.region.x, emitted.region.y) = (old.x, old.y);
            emitted
        }
    };
    let mut at = vec![0; emitted.weights.len()];
    for block in &emitted.region.blocks {
        let (needs, sram) = (memory::bytes(block, machine), machine.pe.sram_bytes as u64);
        if needs > sram {
            let (x, y) = (old.x + block.at.x, old.y + block.at.y);
            return Err(format!(
                "PE ({x}, {y}) would need {needs} bytes of SRAM to leave the stage before its own, and has {sram}"
            ));
        }
        let found = loading(block);
        for (x, y) in block.at.places() {
            let i = (y * old.width + x) as usize;
            if sent(emitted.weights[i].len()) > 0 {
                let (_, address) = found.ok_or("its code does not take weights in at once")?;
                at[i] = address;
            }
        }
    }
    Ok(Moved { emitted, at })
}

/// Leaves of a block's load what did not come early: `weights` are what is left, and `taken` the words that came, row by row of a region
/// of `width` columns.
fn load_rest(block: &mut Block, name: &str, width: u32, weights: &[Vec<u32>], taken: &[usize]) {
    let Some((i, address)) = loading(block) else {
        return;
    };
    let at = block.at;
    let index = |x: u32, y: u32| (y * width + x) as usize;
    if at.places().all(|(x, y)| weights[index(x, y)].is_empty()) {
        splice(block, i, 3, Vec::new());
        return;
    }
    let label = |what: &str| format!("{name}.{}.{}.{what}", at.x, at.y);
    let words = table(&label("rest"), at, |x, y| weights[index(x, y)].len() as i64);
    let from = table(&label("rest.at"), at, |x, y| {
        address as i64 + 4 * taken[index(x, y)] as i64
    });
    let words = param(block, "rest", words);
    let from = param(block, "rest.at", from);
    for instr in &mut block.code[i..i + 2] {
        if let Instr::Desc(_, d) = instr {
            d.shape = vec![words];
            if let Place::Memory { base, .. } = &mut d.place {
                *base = from;
            }
        }
    }
}

/// Lets a block take words of the next stage first of all, on a microthread or (in PEs without other work) itself; returns whether there
/// are any. `words` gives for each PE their address and number.
fn take(
    block: &mut Block,
    name: &str,
    thread: Option<u8>,
    color: Color,
    words: &dyn Fn(u32, u32) -> (u32, u32),
) -> bool {
    let at = block.at;
    let there = || at.places().map(|(x, y)| words(x, y)).filter(|(_, n)| *n > 0);
    let Some(from) = there().map(|(from, _)| from).min() else {
        return false;
    };
    let to = there().map(|(from, n)| from + 4 * n).max().unwrap_or(from);
    let Some(start) = block.tasks.iter().position(|t| t.trigger == Trigger::Start) else {
        return false;
    };
    block.memory.push(Buffer {
        name: "next.weights".into(),
        address: from,
        bytes: to - from,
    });
    let number = table(&format!("{name}.next.words"), at, |x, y| words(x, y).1 as i64);
    let address = table(&format!("{name}.next.at"), at, |x, y| match words(x, y) {
        (_, 0) => from as i64,
        (address, _) => address as i64,
    });
    let number = param(block, "next.words", number);
    let base = param(block, "next.at", address);
    let entry = block.tasks[start].entry;
    let descriptor = |place: Place| Descriptor {
        ty: Ty::F32,
        shape: vec![number],
        place,
    };
    let mov = Vector::Map {
        op: Op::Mov,
        dst: 0,
        a: Operand::Desc(1),
        b: None,
        count: Count::None,
    };
    let strides = vec![Val::Imm(1)];
    let wide = true;
    let code = vec![
        Instr::Desc(0, descriptor(Place::Memory { base, strides, wide })),
        Instr::Desc(1, descriptor(Place::In(color))),
        match thread {
            Some(t) => Instr::Async(t, mov, None),
            None => Instr::Vector(mov),
        },
    ];
    splice(block, entry as usize, 0, code);
    block.tasks[start].entry = entry;
    true
}
