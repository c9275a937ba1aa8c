//! The way of a stream inside a kernel's rectangle: to the PEs that take parts of it, and from the PEs that give parts of it.

use super::*;
use std::collections::BTreeMap;

/// What a PE takes of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The features at these places of the stream, whole.
    Features(usize, usize),
    /// These positions of every feature; they begin at a wavelet's first element.
    Positions(usize, usize),
}

impl Part {
    fn is_empty(self) -> bool {
        let (Part::Features(from, to) | Part::Positions(from, to)) = self;
        from >= to
    }
}

/// A number for each PE of a rectangle as the simplest expression: a constant, a table by row or column, or by both.
pub(crate) fn table(name: &str, at: Lattice, value: impl Fn(u32, u32) -> i64) -> Expr {
    let first = value(at.x, at.y);
    let by_x = at.places().all(|(x, y)| value(x, y) == value(x, at.y));
    let by_y = at.places().all(|(x, y)| value(x, y) == value(at.x, y));
    let (columns, rows) = (at.x + (at.nx - 1) * at.dx + 1, at.y + (at.ny - 1) * at.dy + 1);
    let inside_x = |x: u32| x >= at.x && (x - at.x).is_multiple_of(at.dx);
    let inside_y = |y: u32| y >= at.y && (y - at.y).is_multiple_of(at.dy);
    // entries of places that are not meant repeat the first: a table of equal entries is a constant
    match (by_x, by_y) {
        (true, _) => {
            let values = (0..columns)
                .map(|x| if inside_x(x) { value(x, at.y) } else { first })
                .collect();
            Expr::table(name, Axes::X, 0, values)
        }
        (_, true) => {
            let values = (0..rows)
                .map(|y| if inside_y(y) { value(at.x, y) } else { first })
                .collect();
            Expr::table(name, Axes::Y, 0, values)
        }
        _ => {
            let places = (0..rows).flat_map(|y| (0..columns).map(move |x| (x, y)));
            let values = places
                .map(|(x, y)| {
                    if inside_x(x) && inside_y(y) {
                        value(x, y)
                    } else {
                        first
                    }
                })
                .collect();
            Expr::table(name, Axes::XY, columns, values)
        }
    }
}

/// The places of equal keys as few rectangles, in row order.
pub(crate) fn rectangles<K: PartialEq + Clone>(
    width: u32,
    height: u32,
    key: impl Fn(u32, u32) -> Option<K>,
) -> Vec<(Lattice, K)> {
    let keys: Vec<Option<K>> = (0..height)
        .flat_map(|y| (0..width).map(move |x| (x, y)))
        .map(|(x, y)| key(x, y))
        .collect();
    let mut taken = vec![false; keys.len()];
    let at = |x: u32, y: u32| (y * width + x) as usize;
    let mut all = Vec::new();
    for y in 0..height {
        for x in 0..width {
            let Some(k) = &keys[at(x, y)] else { continue };
            if taken[at(x, y)] {
                continue;
            }
            let same = |x: u32, y: u32, taken: &[bool]| !taken[at(x, y)] && keys[at(x, y)].as_ref() == Some(k);
            let mut nx = 1;
            while x + nx < width && same(x + nx, y, &taken) {
                nx += 1;
            }
            let mut ny = 1;
            while y + ny < height && (x..x + nx).all(|i| same(i, y + ny, &taken)) {
                ny += 1;
            }
            for j in y..y + ny {
                (x..x + nx).for_each(|i| taken[at(i, j)] = true);
            }
            all.push((Lattice::rect(x, y, nx, ny), k.clone()));
        }
    }
    all
}

/// The last part of a stream's name, for names of tables.
fn label(stream: &str) -> String {
    stream.rsplit(": ").next().unwrap_or(stream).replace(' ', "")
}

/// A filter's numbers: first, count, period, in wavelets.
type Pass = (u64, u64, u64);

/// Adds the routes of a stream that enters at (0, 0), runs along the first row and down the columns. `parts` says, row by row, what
/// each PE takes; a filter stands wherever that is less than what passes by.
pub(super) fn distribute(
    region: &mut Region,
    stream: &str,
    color: Color,
    layout: &Layout,
    per: u64,
    parts: &[Option<Part>],
) {
    let (w, h) = (region.width, region.height);
    let label = label(stream);
    let each = (layout.length() as u64).div_ceil(per);
    let part = |x: u32, y: u32| parts[(y * w + x) as usize].filter(|p| !p.is_empty());
    // what goes down a column: the features from the first to the last that a PE below the first row takes
    let below = |x: u32| {
        let mut hull: Option<(usize, usize)> = None;
        for y in 1..h {
            let (from, to) = match part(x, y) {
                Some(Part::Features(from, to)) => (from, to),
                Some(Part::Positions(..)) => (0, layout.features),
                None => continue,
            };
            hull = Some(hull.map_or((from, to), |(a, b)| (a.min(from), b.max(to))));
        }
        hull
    };
    let deepest = |x: u32| (1..h).rev().find(|y| part(x, *y).is_some()).unwrap_or(0);
    let columns: Vec<_> = (0..w).map(|x| (below(x), deepest(x))).collect();
    let last = (0..w)
        .rev()
        .find(|x| part(*x, 0).is_some() || columns[*x as usize].0.is_some())
        .unwrap_or(0);
    // what a PE takes out of the features from..to that pass its router
    let pass = |p: Part, from: usize, to: usize| -> Option<Pass> {
        match p {
            Part::Features(a, b) if (a, b) == (from, to) => None,
            Part::Features(a, b) => Some((
                (a - from) as u64 * each,
                (b - a) as u64 * each,
                (to - from) as u64 * each,
            )),
            Part::Positions(a, b) if a == 0 && b == layout.length() => None,
            Part::Positions(a, b) => {
                let first = a as u64 / per;
                Some((first, (b as u64).div_ceil(per) - first, each))
            }
        }
    };
    let ramp = |x: u32, y: u32| {
        let (from, to) = match (y, columns[x as usize].0) {
            (0, _) | (_, None) => (0, layout.features),
            (_, Some(hull)) => hull,
        };
        part(x, y).map(|p| pass(p, from, to))
    };
    let south = |x: u32, y: u32| match columns[x as usize] {
        (Some((from, to)), deepest) if y < deepest => Some(if y == 0 {
            pass(Part::Features(from, to), 0, layout.features)
        } else {
            None
        }),
        _ => None,
    };
    let key = |x: u32, y: u32| {
        let (r, s) = (ramp(x, y), south(x, y));
        let passes = if y == 0 { x <= last } else { r.is_some() || s.is_some() };
        passes.then(|| {
            let input = if y == 0 { Port::West } else { Port::North };
            let east = y == 0 && x < last;
            (input, r.map(|f| f.is_some()), s.map(|f| f.is_some()), east, (x, y) == (0, 0))
        })
    };
    for (n, (at, (input, r, s, east, entry))) in rectangles(w, h, key).into_iter().enumerate() {
        let mut outputs = Vec::new();
        let mut filters = Vec::new();
        let mut add = |output: Port, filtered: Option<bool>, what: &str, pass: &dyn Fn(u32, u32) -> Pass| {
            let Some(filtered) = filtered else { return };
            outputs.push(output);
            if filtered {
                let number = |name: &str, f: fn(Pass) -> u64| {
                    let name = format!("{}.{label}.{what}.{n}.{name}", region.name);
                    table(&name, at, |x, y| f(pass(x, y)) as i64)
                };
                filters.push(Filter {
                    output,
                    first: number("first", |p| p.0),
                    count: number("count", |p| p.1),
                    period: number("period", |p| p.2),
                });
            }
        };
        add(Port::Ramp, r, "ramp", &|x, y| ramp(x, y).flatten().unwrap_or((0, 0, 0)));
        add(Port::South, s, "south", &|x, y| south(x, y).flatten().unwrap_or((0, 0, 0)));
        add(Port::East, east.then_some(false), "east", &|_, _| (0, 0, 0));
        // which way the stream comes to the entry is known when it is routed
        let input = if entry { Port::Ramp } else { input };
        region.routes.push(Route {
            color,
            stream: stream.into(),
            at,
            positions: vec![position(input, &outputs, 1)],
            filters,
        });
    }
}

/// Adds the routes that gather what PEs send on `color` at the exit in the first row of column `exit`: each sender gives one
/// flagged block a turn (an item, or a feature of one), and they come row by row, in a row the exit's column first, then those to its
/// west and those to its east, nearest first.
pub(super) fn collect(
    region: &mut Region,
    stream: &str,
    color: Color,
    exit: u32,
    sends: impl Fn(u32, u32) -> bool,
) -> Exit {
    let (w, h) = (region.width, region.height);
    let label = label(stream);
    let count = |from: u32, to: u32, y: u32| (from..to).filter(|x| sends(*x, y)).count() as i64;
    let row = |y: u32| count(0, w, y);
    let mut below = vec![0; h as usize + 1];
    for y in (0..h).rev() {
        below[y as usize] = below[y as usize + 1] + row(y);
    }
    let holds = |x: u32, y: u32| -> Vec<(Port, i64)> {
        let own = (Port::Ramp, sends(x, y) as i64);
        let all = match x.cmp(&exit) {
            std::cmp::Ordering::Less => vec![own, (Port::West, count(0, x, y))],
            std::cmp::Ordering::Greater => vec![own, (Port::East, count(x + 1, w, y))],
            std::cmp::Ordering::Equal => vec![
                own,
                (Port::West, count(0, x, y)),
                (Port::East, count(x + 1, w, y)),
                (Port::South, below[y as usize + 1]),
            ],
        };
        all.into_iter().filter(|(_, n)| *n > 0).collect()
    };
    let key = |x: u32, y: u32| {
        let inputs: Vec<Port> = holds(x, y).into_iter().map(|(p, _)| p).collect();
        (!inputs.is_empty() && (x, y) != (exit, 0)).then_some((x.cmp(&exit), inputs))
    };
    for (n, (at, (side, inputs))) in rectangles(w, h, key).into_iter().enumerate() {
        let out = match side {
            std::cmp::Ordering::Less => Port::East,
            std::cmp::Ordering::Greater => Port::West,
            std::cmp::Ordering::Equal => Port::North,
        };
        let positions = inputs
            .iter()
            .map(|&input| {
                let name = format!("{}.{label}.{n}.{input:?}", region.name).to_lowercase();
                let hold = |x: u32, y: u32| {
                    let all: BTreeMap<Port, i64> = holds(x, y).into_iter().collect();
                    all[&input]
                };
                position(input, &[out], table(&name, at, hold))
            })
            .collect();
        region.routes.push(route(color, stream, at, positions));
    }
    Exit {
        at: (exit, 0),
        from: holds(exit, 0)
            .into_iter()
            .map(|(p, n)| (p, Expr::Const(n)))
            .collect(),
    }
}

/// A column's part in the sum along a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Only,
    First,
    Middle(usize),
    Last(usize),
}

/// The part of a column of so many.
pub(super) fn role(column: usize, width: usize) -> Role {
    match (column, width) {
        (_, 1) => Role::Only,
        (0, _) => Role::First,
        (c, w) if c + 1 == w => Role::Last(c % 2),
        (c, _) => Role::Middle(c % 2),
    }
}

/// The way of partial sums along rows: column i sends on the colour of its parity, its neighbour receives that.
pub(super) fn sums_along_rows(region: &mut Region, name: &str) {
    let w = region.width;
    let stream = format!("{name}: partial sums");
    for parity in 0..2u32 {
        let color = colors::REDUCE[parity as usize];
        let senders = (w - 1).saturating_sub(parity).div_ceil(2);
        if senders > 0 {
            let at = |x| Lattice {
                x,
                y: 0,
                nx: senders,
                ny: region.height,
                dx: if senders > 1 { 2 } else { 1 },
                dy: 1,
            };
            let ways = [
                (parity, position(Port::Ramp, &[Port::East], 1)),
                (parity + 1, position(Port::West, &[Port::Ramp], 1)),
            ];
            for (x, way) in ways {
                region.routes.push(route(color, &stream, at(x), vec![way]));
            }
        }
    }
}
