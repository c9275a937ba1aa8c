//! How a run that stopped is explained (rule M17): the circle of waits, or the chain of waits down to what never comes.

use super::core::Wait;
use super::network::{NONE, Target};
use super::reference::State;
use super::{Landed, RunError};
use crate::machine::{Channel, Side};
use crate::program::{Color, Port, Stage};
use crate::text::port;

/// Region, block and instruction, for messages.
pub(super) fn place(stage: &Stage, region: u32, block: u32, pc: u32) -> String {
    let r = &stage.regions[region as usize];
    let text = r.blocks[block as usize]
        .code
        .get(pc as usize)
        .map_or("past the end".into(), crate::text::instruction);
    format!("region {}, block {block}, instruction {pc} `{text}`", r.name)
}

/// Whether a run that has no event left ended well.
pub(super) fn ending(state: &State, landed: &[Vec<Landed>]) -> Result<(), RunError> {
    let cycle = state.now;
    let width = state.net.width;
    if state.cores.iter().flatten().any(|c| !c.halted()) || state.net.channels.iter().any(|c| !c.is_empty()) {
        return Err(RunError::Deadlock {
            cycle,
            explanation: deadlock(state),
        });
    }
    let mut left = Vec::new();
    for pe in 0..state.cores.len() {
        for r in state.net.router(pe as u32) {
            let mut n = 0;
            let mut queues: Vec<u32> = state.net.positions(r).iter().map(|p| p.queue).collect();
            let (core_in, core_out) = (&state.net.core_in, &state.net.core_out);
            queues.extend([core_in, core_out].map(|all| all.get(pe as u32, r.color)));
            queues.sort_unstable();
            queues.dedup();
            queues
                .iter()
                .filter(|q| **q != NONE)
                .for_each(|q| n += state.net.queues[*q as usize].len());
            if n > 0 {
                let (x, y) = (pe as u32 % width, pe as u32 / width);
                left.push(format!(
                    "{} of colour {} ({}) left on PE ({x}, {y})",
                    wavelets(n),
                    r.color,
                    stream(state, pe as u32, r.color)
                ));
            }
        }
    }
    for (d, l) in state.stage.drains.iter().zip(landed) {
        if d.wavelets != l.len() as u64 {
            left.push(format!(
                "{} instead of {} in drain {} at {} row {}",
                wavelets(l.len()),
                d.wavelets,
                d.name,
                crate::text::side(d.side),
                d.row
            ));
        }
    }
    if left.is_empty() {
        return Ok(());
    }
    let more = left.len().saturating_sub(4);
    left.truncate(4);
    let tail = if more > 0 {
        format!("; and {more} more places")
    } else {
        String::new()
    };
    Err(RunError::LeftOver {
        cycle,
        message: left.join("; ") + &tail,
    })
}

fn wavelets(n: usize) -> String {
    if n == 1 {
        "1 wavelet".into()
    } else {
        format!("{n} wavelets")
    }
}

fn stream(state: &State, pe: u32, color: Color) -> String {
    let routed = state.net.router(pe).iter().find(|r| r.color == color);
    routed.map_or_else(
        || "no route".into(),
        |r| {
            state.stage.regions[r.route.0 as usize].routes[r.route.1 as usize]
                .stream
                .clone()
        },
    )
}

/// Something that waits, or that is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Node {
    /// A core, in what its threads wait for.
    Core(u32),
    /// A wavelet of the colour that should leave the router (first number) by the port.
    Missing(u32, Color, Port),
    /// Room in the queue of the colour at the router's input port (the ramp: the queue out of the core).
    Full(u32, Color, Port),
    /// Room in the queue into the core.
    FullCore(u32, Color),
}

/// Follows waits from the first PE in row order that waits, depth first, until something repeats or nothing follows.
fn deadlock(state: &State) -> String {
    let width = state.net.width;
    let start = (0..state.cores.len() as u32).find(|pe| {
        state.cores[*pe as usize].as_ref().is_some_and(|c| {
            c.waits(&state.net, state.now)
                .iter()
                .any(|w| !matches!(w.2, Wait::Thread(_)))
        })
    });
    let start = start.or_else(|| {
        (0..state.cores.len() as u32)
            .find(|pe| state.cores[*pe as usize].as_ref().is_some_and(|c| !c.halted()))
    });
    let mut path: Vec<(Node, String)> = Vec::new();
    let mut node = match (start, state.net.entering()) {
        (Some(pe), _) => Node::Core(pe),
        // all have halted: what is still to enter waits for a queue that nobody empties
        (None, Some((channel, color))) => border(state, channel, color),
        (None, None) => return "nothing waits".into(),
    };
    if start.is_none()
        && let Some((channel, color)) = state.net.entering()
    {
        path.push((
            Node::Missing(u32::MAX, color, Port::Ramp),
            enters(state, channel, color),
        ));
    }
    loop {
        if let Some(i) = path.iter().position(|(n, _)| *n == node) {
            let circle: Vec<_> = path[i..].iter().map(|(_, t)| t.as_str()).collect();
            return format!(
                "a circle of waits:\n  {}\n  and so again {}",
                circle.join("\n  "),
                name(node, width)
            );
        }
        let (text, next) = follow(state, node);
        path.push((node, text));
        match next {
            Some(n) => node = n,
            None => {
                // a core without a task is no cause by itself: say what has not entered
                if let (true, Some((channel, color))) = (path.len() == 1, state.net.entering()) {
                    path.push((node, enters(state, channel, color)));
                }
                let chain: Vec<_> = path.iter().map(|(_, t)| t.as_str()).collect();
                return format!("a chain of waits:\n  {}", chain.join("\n  "));
            }
        }
    }
}

/// The border router's queue that a channel enters.
fn border(state: &State, channel: Channel, color: Color) -> Node {
    let width = state.net.width;
    match channel.side {
        Side::West => Node::Full(channel.row * width, color, Port::West),
        Side::East => Node::Full(channel.row * width + width - 1, color, Port::East),
    }
}

fn enters(state: &State, channel: Channel, color: Color) -> String {
    let left = state.net.feed_left(channel.row, channel.side, color);
    let side = crate::text::side(channel.side);
    format!(
        "the {side} channel of row {} has {} of colour {color} that cannot enter",
        channel.row,
        wavelets(left)
    )
}

fn name(node: Node, width: u32) -> String {
    let at = |pe: u32| format!("({}, {})", pe % width, pe / width);
    match node {
        Node::Core(pe) => format!("PE {}", at(pe)),
        Node::Missing(pe, c, Port::Ramp) => {
            format!("no wavelet of colour {c} leaves router {} for its core", at(pe))
        }
        Node::Missing(pe, c, p) => format!(
            "no wavelet of colour {c} leaves router {} to the {}",
            at(pe),
            port(p)
        ),
        Node::Full(pe, c, Port::Ramp) => {
            format!("the queue of colour {c} from the core at router {}", at(pe))
        }
        Node::Full(pe, c, p) => format!(
            "the queue of colour {c} from the {} at router {}",
            port(p),
            at(pe)
        ),
        Node::FullCore(pe, c) => format!("the queue of colour {c} into the core of PE {}", at(pe)),
    }
}

/// One line about a node, and what it waits for.
fn follow(state: &State, node: Node) -> (String, Option<Node>) {
    let net = &state.net;
    let width = net.width;
    let what = name(node, width);
    match node {
        Node::Core(pe) => {
            let Some(core) = &state.cores[pe as usize] else {
                return (format!("{what} has no code"), None);
            };
            let waits = core.waits(net, state.now);
            let wait = waits.iter().find(|w| !matches!(w.2, Wait::Thread(_)));
            let Some(&(thread, pc, wait)) = wait else {
                let thread = waits.iter().find_map(|w| {
                    if let Wait::Thread(t) = w.2 {
                        Some((w.1, t))
                    } else {
                        None
                    }
                });
                let text = match thread {
                    Some((pc, t)) => {
                        format!(
                            "{what} waits for microthread {t}, which has nothing to do, in {}",
                            place(state.stage, core.region, core.block_index, pc)
                        )
                    }
                    None if core.halted() => format!("{what} has halted"),
                    None if core.idle_main() => format!("{what} has no task that can start"),
                    None => format!("{what} has not halted"),
                };
                return (text, None);
            };
            let at = place(state.stage, core.region, core.block_index, pc);
            match wait {
                Wait::Input(c) => (
                    format!(
                        "{what} thread {thread} waits for a wavelet of colour {c} ({}) in {at}",
                        stream(state, pe, c)
                    ),
                    Some(Node::Missing(pe, c, Port::Ramp)),
                ),
                Wait::Room(c) => (
                    format!(
                        "{what} thread {thread} waits for room to send on colour {c} ({}) in {at}",
                        stream(state, pe, c)
                    ),
                    Some(Node::Full(pe, c, Port::Ramp)),
                ),
                Wait::Thread(_) => unreachable!("filtered above"),
            }
        }
        Node::Missing(pe, c, port) => {
            let Some(r) = net.router(pe).iter().find(|r| r.color == c) else {
                return (format!("{what}: the router has no route of it"), None);
            };
            if r.grants_nothing() {
                return (
                    format!("{what}: all holds of its switch are 0, so it passes nothing"),
                    None,
                );
            }
            let p = net.position(r);
            if net.queues[p.queue as usize].len() > 0 && net.outputs(p).iter().any(|o| o.port == port) {
                return (format!("{what}: a wavelet waits there"), blocked(state, pe, c));
            }
            let switch = if net.outputs(p).iter().any(|o| o.port == port) {
                String::new()
            } else {
                format!(
                    " (its switch stands at position {}, which does not lead there)",
                    r.stands_at()
                )
            };
            let text = format!(
                "{what}: none came from the {}{switch}",
                if p.input == Port::Ramp {
                    "core"
                } else {
                    crate::text::port(p.input)
                }
            );
            if net.queues[p.queue as usize].len() > 0 {
                return (text, blocked(state, pe, c));
            }
            let (x, y) = (pe % width, pe / width);
            let next = match p.input {
                Port::Ramp => Node::Core(pe),
                Port::West if x == 0 => return outside(state, text, y, Side::West, c),
                Port::East if x + 1 == width => return outside(state, text, y, Side::East, c),
                Port::North if y == 0 => return (text, None),
                Port::South if y + 1 == net.height => return (text, None),
                Port::West => Node::Missing(pe - 1, c, Port::East),
                Port::East => Node::Missing(pe + 1, c, Port::West),
                Port::North => Node::Missing(pe - width, c, Port::South),
                Port::South => Node::Missing(pe + width, c, Port::North),
            };
            if let (Node::Core(p), Some(core)) = (next, &state.cores[pe as usize])
                && core.waits(net, state.now).is_empty()
            {
                let end = if core.halted() {
                    "has halted"
                } else {
                    "has no task that can start"
                };
                return (format!("{text}; PE ({}, {}) {end}", p % width, p / width), None);
            }
            if matches!(next, Node::Core(_)) && state.cores[pe as usize].is_none() {
                return (format!("{text}, which has no code"), None);
            }
            (text, Some(next))
        }
        Node::Full(pe, c, port) => {
            let Some(r) = net.router(pe).iter().find(|r| r.color == c) else {
                return (format!("{what} leads nowhere"), None);
            };
            if r.grants_nothing() {
                return (
                    format!("{what} is full; all holds of its switch are 0, so it passes nothing"),
                    None,
                );
            }
            let p = net.position(r);
            if p.input != port {
                let text = format!(
                    "{what} is full; its switch stands at position {}, which takes from the {}",
                    r.stands_at(),
                    if p.input == Port::Ramp {
                        "core"
                    } else {
                        crate::text::port(p.input)
                    }
                );
                let queue = net.queues[p.queue as usize].len() == 0;
                return (
                    text,
                    if queue {
                        net.outputs(p).first().map(|o| Node::Missing(pe, c, o.port))
                    } else {
                        blocked(state, pe, c)
                    },
                );
            }
            (format!("{what} is full"), blocked(state, pe, c))
        }
        Node::FullCore(pe, _) => (format!("{what} is full"), Some(Node::Core(pe))),
    }
}

fn outside(state: &State, text: String, row: u32, side: Side, color: Color) -> (String, Option<Node>) {
    let left = state.net.feed_left(row, side, color);
    let left = if left == 0 {
        "no more of it".into()
    } else {
        wavelets(left) + " of it left"
    };
    (
        format!(
            "{text}: the {} channel of row {row} has {left}",
            crate::text::side(side)
        ),
        None,
    )
}

/// What the head of a colour in a router waits for: the first output without room.
fn blocked(state: &State, pe: u32, color: Color) -> Option<Node> {
    let net = &state.net;
    let r = net.router(pe).iter().find(|r| r.color == color)?;
    net.outputs(net.position(r)).iter().find_map(|o| {
        let Target::Queue { queue, .. } = o.target else {
            return None;
        };
        if queue == NONE || net.queues[queue as usize].has_room(state.now) {
            return None;
        }
        let to = net.queues[queue as usize].pe;
        Some(if o.port == Port::Ramp {
            Node::FullCore(to, color)
        } else {
            Node::Full(to, color, o.port.opposite())
        })
    })
}
