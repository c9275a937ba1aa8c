//! The way of a stream inside a kernel's rectangle: to the PEs that take parts of it, and from the PEs that give parts of it.

use super::*;

/// What a PE takes of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The features at these places of the stream, whole.
    Features(usize, usize),
    /// These positions of every feature; they begin at a wavelet's first element.
    Positions(usize, usize),
    /// These positions of these features (first of each, and last + 1), the same features in a whole column. A PE in the row in which the
    /// stream enters gets its positions of all features of the lane.
    Block((usize, usize), (usize, usize)),
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
            let same =
                |x: u32, y: u32, taken: &[bool]| !taken[at(x, y)] && keys[at(x, y)].as_ref() == Some(k);
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

/// Every second column and row of a rectangle, from column `dx` and row `dy` of it on.
pub(super) fn every_second(at: Lattice, dx: u32, dy: u32) -> Lattice {
    let (nx, ny) = (
        at.nx.saturating_sub(dx).div_ceil(2),
        at.ny.saturating_sub(dy).div_ceil(2),
    );
    Lattice {
        x: at.x + dx,
        y: at.y + dy,
        nx,
        ny,
        dx: if nx > 1 { 2 } else { 1 },
        dy: if ny > 1 { 2 } else { 1 },
    }
}

/// A snake through all PEs of a rectangle, from (0, 0) east along the first row, west along the second, and so on: the number of a PE.
pub(super) fn snake(x: u32, y: u32, width: u32) -> u32 {
    y * width + if y.is_multiple_of(2) { x } else { width - 1 - x }
}

/// Adds the routes of a sum over all PEs of a rectangle and of its way back: partial sums go along the snake to (0, 0), on the colours
/// of [`colors::REDUCE`] by the parity of column + row of the PE that sends; the result goes back along it on [`colors::SPREAD`].
pub(super) fn sum_along_snake(region: &mut Region, name: &str) {
    let (w, h) = (region.width, region.height);
    let last = w * h - 1;
    // ports to the PE before, and to the one after
    let before = |x: u32, y: u32| match (snake(x, y, w), y.is_multiple_of(2)) {
        (0, _) => None,
        (_, true) if x > 0 => Some(Port::West),
        (_, false) if x + 1 < w => Some(Port::East),
        _ => Some(Port::North),
    };
    let after = |x: u32, y: u32| match (snake(x, y, w), y.is_multiple_of(2)) {
        (n, _) if n == last => None,
        (_, true) if x + 1 < w => Some(Port::East),
        (_, false) if x > 0 => Some(Port::West),
        _ => Some(Port::South),
    };
    let whole = Lattice::rect(0, 0, w, h);
    let stream = format!("{name}: partial sums");
    for (dx, dy) in [(0, 0), (1, 1), (1, 0), (0, 1)] {
        let part = every_second(whole, dx, dy);
        let parity = ((dx + dy) % 2) as usize;
        let place = |x: u32, y: u32| (part.x + x * part.dx, part.y + y * part.dy);
        let mut add = |color: Color, way: &dyn Fn(u32, u32) -> Option<(Port, Port)>| {
            let key = |x: u32, y: u32| {
                let (x, y) = place(x, y);
                way(x, y)
            };
            for (at, (input, output)) in rectangles(part.nx, part.ny, key) {
                let (x, y) = place(at.x, at.y);
                let at = Lattice {
                    x,
                    y,
                    dx: if at.nx > 1 { part.dx } else { 1 },
                    dy: if at.ny > 1 { part.dy } else { 1 },
                    ..at
                };
                let way = vec![position(input, &[output], 1)];
                region.routes.push(route(color, &stream, at, way));
            }
        };
        // the snake's ends have nothing to pass on: a loop back to the core keeps the code of all PEs alike
        add(colors::REDUCE[parity], &|x, y| {
            Some((Port::Ramp, before(x, y).unwrap_or(Port::Ramp)))
        });
        add(colors::REDUCE[1 - parity], &|x, y| {
            Some((after(x, y).unwrap_or(Port::Ramp), Port::Ramp))
        });
    }
    let stream = format!("{name}: sums");
    for (at, (b, a)) in rectangles(w, h, |x, y| Some((before(x, y), after(x, y)))) {
        let (input, outputs) = match (b, a) {
            (None, Some(a)) => (Port::Ramp, vec![a]),
            (Some(b), Some(a)) => (b, vec![Port::Ramp, a]),
            (b, None) => (b.unwrap_or(Port::Ramp), vec![Port::Ramp]),
        };
        let way = vec![
            position(Port::Ramp, &[Port::Ramp], 0),
            position(input, &outputs, 1),
        ];
        region.routes.push(route(colors::SPREAD, &stream, at, way));
    }
}

/// A filter's numbers: first, count, period, in wavelets.
type Pass = (u64, u64, u64);

/// The row by which a lane enters or leaves: lanes are spread evenly over the rows.
pub(super) fn lane_row(lane: usize, lanes: usize, height: u32) -> u32 {
    (lane * height as usize / lanes) as u32
}

/// Adds the routes of one lane of a stream, which enters at `entry`, runs east along that row and up and down the columns. `parts` says,
/// row by row, what each PE takes of the stream; a filter stands wherever that is less than what passes by. Returns the entry.
#[allow(clippy::too_many_arguments)] // a stream's lane, and where it goes
pub(super) fn distribute(
    region: &mut Region,
    stream: &str,
    color: Color,
    layout: &Layout,
    lane: usize,
    per: u64,
    entry: (u32, u32),
    parts: &[Option<Part>],
) -> (u32, u32) {
    let (w, h) = (region.width, region.height);
    let label = format!("{}{lane}", label(stream));
    let each = (layout.length() as u64).div_ceil(per);
    let whole = layout.lane(lane);
    // what a PE takes of this lane
    let part = |x: u32, y: u32| {
        parts[(y * w + x) as usize].and_then(|p| match p {
            Part::Features(from, to) => {
                let (from, to) = (from.max(whole.0), to.min(whole.1));
                (from < to).then_some(Part::Features(from, to))
            }
            Part::Positions(from, to) => (from < to).then_some(p),
            Part::Block((from, to), positions) => {
                let (from, to) = (from.max(whole.0), to.min(whole.1));
                (from < to).then_some(Part::Block((from, to), positions))
            }
        })
    };
    // what leaves the entry's row along a column: the features from the first to the last that a PE there takes, and how far it goes
    let branch = |x: u32, rows: std::ops::Range<u32>| {
        let mut hull: Option<((usize, usize), u32)> = None;
        for y in rows {
            let (from, to) = match part(x, y) {
                Some(Part::Features(from, to) | Part::Block((from, to), _)) => (from, to),
                Some(Part::Positions(..)) => whole,
                None => continue,
            };
            let far = y.abs_diff(entry.1);
            hull = Some(match hull {
                Some(((a, b), n)) => ((a.min(from), b.max(to)), n.max(far)),
                None => ((from, to), far),
            });
        }
        hull
    };
    let north: Vec<_> = (0..w).map(|x| branch(x, 0..entry.1)).collect();
    let south: Vec<_> = (0..w).map(|x| branch(x, entry.1 + 1..h)).collect();
    let last = (entry.0..w)
        .rev()
        .find(|x| part(*x, entry.1).is_some() || north[*x as usize].is_some() || south[*x as usize].is_some())
        .unwrap_or(entry.0);
    // what a part is of the features that pass
    let pass = |p: Part, (from, to): (usize, usize)| -> Option<Pass> {
        match p {
            Part::Features(a, b) if (a, b) == (from, to) => None,
            Part::Features(a, b) => Some((
                (a - from) as u64 * each,
                (b - a) as u64 * each,
                (to - from) as u64 * each,
            )),
            Part::Positions(a, b) | Part::Block(_, (a, b)) if a == 0 && b == layout.length() => None,
            Part::Positions(a, b) | Part::Block(_, (a, b)) => {
                let first = a as u64 / per;
                Some((first, (b as u64).div_ceil(per) - first, each))
            }
        }
    };
    // for each output of a router: none, or its filter if it has one
    let outputs = |x: u32, y: u32| -> [(Port, Option<Option<Pass>>); 4] {
        let column = x as usize;
        let (arm, far) = match y.cmp(&entry.1) {
            std::cmp::Ordering::Equal => {
                let arm = |b: Option<((usize, usize), u32)>| {
                    b.map(|(hull, _)| pass(Part::Features(hull.0, hull.1), whole))
                };
                let ramp = part(x, y).map(|p| pass(p, whole));
                return [
                    (Port::Ramp, ramp),
                    (Port::North, arm(north[column])),
                    (Port::South, arm(south[column])),
                    (Port::East, (x < last).then_some(None)),
                ];
            }
            std::cmp::Ordering::Less => (north[column], Port::North),
            std::cmp::Ordering::Greater => (south[column], Port::South),
        };
        let hull = arm.map_or(whole, |(hull, _)| hull);
        let on = arm.is_some_and(|(_, n)| y.abs_diff(entry.1) < n).then_some(None);
        let ramp = part(x, y).map(|p| pass(p, hull));
        [
            (Port::Ramp, ramp),
            (far, on),
            (Port::East, None),
            (Port::West, None),
        ]
    };
    let key = |x: u32, y: u32| {
        let shape = outputs(x, y).map(|(port, o)| (port, o.map(|f| f.is_some())));
        let input = match y.cmp(&entry.1) {
            std::cmp::Ordering::Equal if (x, y) == entry => Port::Ramp,
            std::cmp::Ordering::Equal => Port::West,
            std::cmp::Ordering::Less => Port::South,
            std::cmp::Ordering::Greater => Port::North,
        };
        let passes = x >= entry.0 && x <= last && ((x, y) == entry || shape.iter().any(|(_, o)| o.is_some()));
        passes.then_some((input, shape))
    };
    for (n, (at, (input, shape))) in rectangles(w, h, key).into_iter().enumerate() {
        let mut route = route(color, stream, at, vec![position(input, &[], 1)]);
        for (i, (port, filtered)) in shape.into_iter().enumerate() {
            let Some(filtered) = filtered else { continue };
            route.positions[0].outputs.push(port);
            if filtered {
                let number = |what: &str, f: fn(Pass) -> u64| {
                    let name = format!("{}.{label}.{n}.{port:?}.{what}", region.name).to_lowercase();
                    table(&name, at, |x, y| {
                        outputs(x, y)[i].1.flatten().map_or(0, |p| f(p) as i64)
                    })
                };
                route.filters.push(Filter {
                    output: port,
                    first: number("first", |p| p.0),
                    count: number("count", |p| p.1),
                    period: number("period", |p| p.2),
                });
            }
        }
        region.routes.push(route);
    }
    entry
}

/// Adds the routes that gather what the PEs of some rows send on `color` at the exit in the first of them, in column `exit`: each sender
/// gives one flagged block a turn (an item, or a feature of one), and they come row by row, in a row the exit's column first, then
/// those to its west and those to its east, nearest first.
pub(super) fn collect(
    region: &mut Region,
    stream: &str,
    color: Color,
    rows: std::ops::Range<u32>,
    exit: u32,
    sends: impl Fn(u32, u32) -> bool,
) -> Exit {
    let (w, h) = (region.width, region.height);
    let label = format!("{}.{}", label(stream), rows.start);
    // senders of each row before a column
    let mut before = vec![0i64; ((w + 1) * h) as usize];
    let index = |x: u32, y: u32| (y * (w + 1) + x) as usize;
    for (x, y) in rows.clone().flat_map(|y| (0..w).map(move |x| (x, y))) {
        before[index(x + 1, y)] = before[index(x, y)] + sends(x, y) as i64;
    }
    let count = |from: u32, to: u32, y: u32| before[index(to, y)] - before[index(from, y)];
    let mut below = vec![0; h as usize + 1];
    for y in rows.clone().rev() {
        below[y as usize] = below[y as usize + 1] + count(0, w, y);
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
        if !rows.contains(&y) || (x, y) == (exit, rows.start) {
            return None;
        }
        let inputs: Vec<Port> = holds(x, y).into_iter().map(|(p, _)| p).collect();
        (!inputs.is_empty()).then_some((x.cmp(&exit), inputs))
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
                    let of = holds(x, y).into_iter().find(|(port, _)| *port == input);
                    of.map_or(0, |(_, n)| n)
                };
                position(input, &[out], table(&name, at, hold))
            })
            .collect();
        region.routes.push(route(color, stream, at, positions));
    }
    Exit {
        at: (exit, rows.start),
        from: holds(exit, rows.start)
            .into_iter()
            .map(|(p, n)| (p, Expr::Const(n)))
            .collect(),
    }
}

/// Adds the routes of all lanes of an input, each entering on a row of its own; `parts` as for [`distribute`]. Returns the entries.
pub(super) fn distribute_lanes(
    region: &mut Region,
    name: &str,
    c: &Context,
    input: usize,
    parts: &[Option<Part>],
) -> Vec<(u32, u32)> {
    let layout = &c.inputs[input];
    let stream = format!("{name}: input {input}");
    let lanes = (0..layout.lanes).map(|lane| {
        let entry = (0, lane_row(lane, layout.lanes, region.height));
        let color = c.input_colors[input][lane];
        distribute(
            region,
            &stream,
            color,
            layout,
            lane,
            c.per_wavelet(),
            entry,
            parts,
        )
    });
    lanes.collect()
}

/// Columns that share their code: those of equal keys, in the order of the first of each.
pub(super) fn alike<K: PartialEq>(keys: impl Iterator<Item = K>) -> Vec<(K, Vec<u32>)> {
    let mut groups: Vec<(K, Vec<u32>)> = Vec::new();
    for (key, column) in keys.zip(0..) {
        match groups.iter_mut().find(|(k, _)| *k == key) {
            Some((_, columns)) => columns.push(column),
            None => groups.push((key, vec![column])),
        }
    }
    groups
}

/// The places of columns that share their code: all rows, or, since only the last column knows lanes of the output, those of each lane.
pub(super) fn by_output_lane(role: Role, columns: &[u32], lanes: usize, height: u32) -> Vec<Lattice> {
    let parts = match role {
        Role::Only | Role::Last(_) => lanes,
        Role::First | Role::Middle(_) => 1,
    };
    let places = (0..parts).map(|part| {
        let (from, to) = (lane_row(part, parts, height), lane_row(part + 1, parts, height));
        Lattice {
            x: columns[0],
            y: from,
            nx: columns.len() as u32,
            ny: to - from,
            dx: columns.get(1).map_or(1, |second| second - columns[0]),
            dy: 1,
        }
    });
    places.collect()
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
