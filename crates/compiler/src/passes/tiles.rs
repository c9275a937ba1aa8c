//! Tiles: a stage whose tensors do not fit works on a band of rows at a time (of images; of sequences, on a block of tokens). Its kernels
//! see each tile as an item of its own, of a smaller tensor. Only what enters and leaves knows the whole: memory outside feeds the rows
//! that a tile reads, those shared with its neighbours once to each, and puts together what they give.
//!
//! Every tile has the same shape. Rows beyond the tensor's are fed as zeros (or, to a maximum, as minus infinity), which no convolution
//! multiplies: in the first and the last tile of a sample its taps run over the rows that the tensor has (see [`Tiled`]).

use super::rewrite::{Window, taps};
use crate::plan::*;
use std::sync::Arc;

/// Samples, rows and columns of a tensor's positions.
type Extents = (usize, usize, usize);

/// Numbers of tiles in which a stage can be cut, fewest first; why not at all, if it can't.
pub fn numbers(plan: &Plan) -> Result<Vec<usize>, String> {
    let (samples, rows, _) = extents(&plan.edges[plan.kernels[0].output]);
    let divisors = |n: usize| (1..=n).filter(move |d| n.is_multiple_of(*d));
    let all = divisors(samples).chain(divisors(rows).map(|bands| samples * bands));
    let all: std::collections::BTreeSet<usize> = all.filter(|n| *n > 1).collect();
    let mut why = "it has one row of positions".to_string();
    let mut numbers = Vec::new();
    for tiles in all {
        match cut(plan, tiles) {
            Ok(_) => numbers.push(tiles),
            Err(e) => why = e,
        }
    }
    match numbers.is_empty() {
        true => Err(why),
        false => Ok(numbers),
    }
}

/// Whether tiles of a stage cost nothing beside their number: no kernel looks beyond its own rows, so none is fed to two tiles.
pub fn free(plan: &Plan) -> bool {
    plan.kernels.iter().all(|k| match &k.kind {
        Kind::Mix(mix) | Kind::Streamed(mix) => mix.terms.iter().all(|t| t.slides.is_none()),
        Kind::Depthwise(_) | Kind::Pool(_) | Kind::Attention(_) | Kind::Flatten => false,
        Kind::Binary { .. }
        | Kind::Pointwise(_)
        | Kind::Softmax
        | Kind::LayerNorm(_)
        | Kind::Embedding(_) => true,
    })
}

/// Images have rows; other tensors have a row for each position.
fn extents(edge: &Edge) -> Extents {
    let l = &edge.layout;
    match edge.shape[..] {
        [_, _, h, w] if h * w == l.inner => (l.outer, h, w),
        _ => (1, l.length(), 1),
    }
}

/// How a tensor is cut: whole samples, or bands of each.
#[derive(Clone, Copy)]
struct Shape {
    tiles: usize,
    /// Bands of a sample, 1 where a tile is one or several samples.
    bands: usize,
}

impl Shape {
    fn new(tiles: usize, samples: usize, rows: usize) -> Option<Shape> {
        if samples.is_multiple_of(tiles) {
            return Some(Shape { tiles, bands: 1 });
        }
        let bands = tiles / samples;
        (tiles.is_multiple_of(samples) && rows.is_multiple_of(bands)).then_some(Shape { tiles, bands })
    }

    /// The layout in which each tile has as many consecutive positions as the others.
    fn blocks(&self, edge: &Edge) -> Layout {
        let length = edge.layout.length() / self.tiles;
        let part = |t: usize| Band {
            before: 0,
            from: t * length,
            to: (t + 1) * length,
            after: 0,
        };
        self.layout(edge, (0..self.tiles).map(part).collect(), Fill::Zero)
    }

    /// The layout of a window's input: of each band the rows from its first window's first to its last window's last. Also these rows.
    fn windows(&self, edge: &Edge, slides: &Along, rows: usize, fill: Fill) -> (Layout, usize) {
        let (_, height, width) = extents(edge);
        let own = rows / self.bands;
        let reach = (own - 1) * slides.stride + slides.reach;
        let part = |t: usize| {
            let (sample, band) = (t / self.bands, t % self.bands);
            let first = (band * own * slides.stride) as i64 - slides.before as i64;
            let within = |row: i64| row.clamp(0, height as i64) as usize;
            let (from, to) = (within(first), within(first + reach as i64));
            let before = ((-first).max(0) as usize).min(reach);
            let start = sample * height * width;
            Band {
                before: before * width,
                from: start + from * width,
                to: start + to * width,
                after: (reach - before - (to - from)) * width,
            }
        };
        (
            self.layout(edge, (0..self.tiles).map(part).collect(), fill),
            reach,
        )
    }

    fn layout(&self, edge: &Edge, parts: Vec<Band>, fill: Fill) -> Layout {
        let l = &edge.layout;
        let length = parts[0].length();
        let (outer, inner) = match l.inner {
            1 => (length, 1),
            _ if self.bands == 1 => (l.outer / self.tiles, l.inner),
            _ => (1, length),
        };
        Layout {
            outer,
            inner,
            bands: Some(Arc::new(Bands {
                length: l.length(),
                inner: l.inner,
                parts,
                fill,
            })),
            ..l.clone()
        }
    }
}

/// A window's way down the rows.
struct Along {
    stride: usize,
    /// Rows before the tensor's first.
    before: usize,
    /// Rows from a window's first to its last.
    reach: usize,
}

/// The stage in so many tiles, or why it can't be.
pub fn cut(plan: &Plan, tiles: usize) -> Result<Plan, String> {
    let mut all = plan.clone();
    all.items *= tiles;
    all.tiles = tiles;
    let mut layouts: Vec<Option<Layout>> = vec![None; plan.edges.len()];
    for (k, kernel) in plan.kernels.iter().enumerate() {
        let output = &plan.edges[kernel.output];
        let (samples, rows, _) = extents(output);
        // a stage of one kernel is named by what does not fit
        let named = |why: String| match plan.kernels.len() {
            1 => why,
            _ => format!("{}: {why}", kernel.name),
        };
        let shape = Shape::new(tiles, samples, rows).ok_or_else(|| {
            named(format!(
                "it gives {samples} samples of {rows} rows, which are not {tiles} equal tiles"
            ))
        })?;
        if kernel
            .inputs
            .iter()
            .any(|u| u.flat && plan.edges[u.edge].layout.inner > 1)
        {
            return Err(named("it sees all positions of a sample as features".into()));
        }
        let inputs: Vec<&Edge> = kernel.inputs.iter().map(|u| &plan.edges[u.edge]).collect();
        let (kind, taken) = tile(&kernel.kind, &inputs, output, shape).map_err(named)?;
        all.kernels[k].kind = kind;
        for (u, layout) in kernel.inputs.iter().zip(taken) {
            match &layouts[u.edge] {
                Some(other) if *other != layout => {
                    let edge = &plan.edges[u.edge].name;
                    return Err(named(format!(
                        "it reads other rows of {edge} than the kernel before it gives, or another one reads"
                    )));
                }
                _ => layouts[u.edge] = Some(layout),
            }
        }
        layouts[kernel.output] = Some(shape.blocks(output));
    }
    for (edge, layout) in all.edges.iter_mut().zip(layouts) {
        edge.layout = layout.ok_or_else(|| format!("nothing in the stage reads {}", edge.name))?;
    }
    Ok(all)
}

/// A kernel that works on a tile, and how each of its inputs is cut.
fn tile(kind: &Kind, inputs: &[&Edge], output: &Edge, shape: Shape) -> Result<(Kind, Vec<Layout>), String> {
    let blocks = || inputs.iter().map(|e| shape.blocks(e)).collect();
    let (_, rows, _) = extents(output);
    Ok(match kind {
        Kind::Mix(mix) | Kind::Streamed(mix) => {
            let mut own = (**mix).clone();
            let mut taken = Vec::new();
            for (term, edge) in own.terms.iter_mut().zip(inputs) {
                taken.push(linear(term, edge, output, shape)?);
            }
            let own = Arc::new(own);
            match kind {
                Kind::Streamed(_) => (Kind::Streamed(own), taken),
                _ => (Kind::Mix(own), taken),
            }
        }
        Kind::Depthwise(of) => {
            let mut own = (**of).clone();
            let taken = linear(&mut own, inputs[0], output, shape)?;
            (Kind::Depthwise(Arc::new(own)), vec![taken])
        }
        Kind::Pool(pool) if shape.bands > 1 => {
            let along = Along {
                stride: pool.strides[0],
                before: pool.pads[0],
                reach: pool.kernel[0],
            };
            let beyond = (rows - 1) * along.stride + along.reach > pool.input.0 + along.before;
            if !pool.max && !pool.count_padding && (along.before > 0 || beyond) {
                return Err("averages at the border are of fewer elements".into());
            }
            let fill = if pool.max { Fill::Lowest } else { Fill::Zero };
            let (layout, reach) = shape.windows(inputs[0], &along, rows, fill);
            let own = Pool {
                pads: [0, pool.pads[1], 0, pool.pads[3]],
                input: (reach, pool.input.1),
                output: (rows / shape.bands, pool.output.1),
                ..pool.clone()
            };
            (Kind::Pool(own), vec![layout])
        }
        Kind::Embedding(table) if table.start.is_some() => {
            // as much as is needed until it repeats
            let start = table.start.as_deref().map_or(&[][..], |s| &s[..]);
            let each = start.len() / shape.tiles;
            let repeats = |n: &usize| start.chunks(n * each).all(|part| part == &start[..n * each]);
            let divisors = (1..=shape.tiles).filter(|n| shape.tiles.is_multiple_of(*n));
            let starts = divisors.into_iter().find(repeats).unwrap_or(shape.tiles);
            let own = Table {
                start: Some(Arc::new(start[..starts * each].to_vec())),
                starts,
                ..(**table).clone()
            };
            (Kind::Embedding(Arc::new(own)), blocks())
        }
        Kind::Attention(_) => return Err("every token looks at all others".into()),
        Kind::Flatten => {
            let samples = inputs[0].layout.outer;
            if !samples.is_multiple_of(shape.tiles) {
                return Err("it turns all positions of a sample into features".into());
            }
            let whole = Shape { bands: 1, ..shape };
            (Kind::Flatten, vec![whole.blocks(inputs[0])])
        }
        Kind::Pool(_)
        | Kind::Binary { .. }
        | Kind::Pointwise(_)
        | Kind::Softmax
        | Kind::LayerNorm(_)
        | Kind::Embedding(_) => (kind.clone(), blocks()),
    })
}

/// Makes a product or convolution that of a tile, and cuts its input.
fn linear(of: &mut Linear, input: &Edge, output: &Edge, shape: Shape) -> Result<Layout, String> {
    let Some(window) = of.slides else {
        let layout = shape.blocks(input);
        let length = layout.length();
        (of.input, of.output) = ((1, length), (1, length));
        of.taps[0].columns = length;
        return Ok(layout);
    };
    if shape.bands == 1 {
        of.samples /= shape.tiles;
        return Ok(shape.blocks(input));
    }
    if window.zeros != [1, 1] {
        return Err("zeros are inserted between the rows that it reads".into());
    }
    let (_, rows, _) = extents(output);
    let own = rows / shape.bands;
    let along = Along {
        stride: window.strides[0],
        before: window.pads[0],
        reach: (window.kernel[0] - 1) * window.dilations[0] + 1,
    };
    let (layout, reach) = shape.windows(input, &along, rows, Fill::Zero);
    let (height, width) = of.input;
    let inner = Window {
        pads: [0, window.pads[1], 0, window.pads[3]],
        ..window
    };
    let columns = of.output.1;
    let all = taps(&inner, (reach, width), (own, columns));
    // the taps of a band, without the rows where they would hit what is not there
    let band = |band: usize| -> Vec<Tap> {
        let cut = |tap: &Tap| {
            let offset = (tap.index / window.kernel[1] * window.dilations[0]) as i64 - along.before as i64;
            let hits = |row: &usize| {
                let at = ((band * own + row) * along.stride) as i64 + offset;
                (0..height as i64).contains(&at)
            };
            let first = (0..own).find(hits).unwrap_or(0);
            Tap {
                rows: (0..own).filter(hits).count(),
                y: tap.y + first * columns,
                x: tap.x + first * along.stride * width,
                ..tap.clone()
            }
        };
        all.iter().map(cut).collect()
    };
    if (1..shape.bands - 1).any(|b| band(b) != all) {
        return Err(format!(
            "tiles of {own} rows, of which more than the first and the last reach beyond the image"
        ));
    }
    let (first, last) = (band(0), band(shape.bands - 1));
    of.tiled = (first != all || last != all).then_some(Tiled {
        bands: shape.bands,
        first,
        last,
    });
    (of.input, of.output, of.samples) = ((reach, width), (own, columns), 1);
    of.taps = all;
    Ok(layout)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, passes::rewrite};
    use meshloom_models::{Graph, Op};
    use meshloom_simulator::Machine;

    /// A plan of one operator on an input; `weights` are the shapes of its constants.
    fn plan(shape: &[usize], op: Op, weights: &[&[usize]]) -> Plan {
        let mut graph = Graph::new("one");
        let mut inputs = vec![graph.add_input("x", shape).unwrap()];
        for (i, w) in weights.iter().enumerate() {
            let values = vec![1.0; w.iter().product()];
            inputs.push(graph.add_constant(format!("w{i}"), w, values).unwrap());
        }
        let y = graph.add_node("y", op, &inputs, "y").unwrap();
        graph.add_output(y).unwrap();
        let text = include_str!("../../../../machines/small.toml");
        let machine = Machine::parse("small", text, &[]).unwrap();
        rewrite::run(&graph, &machine, &Options::default()).unwrap()
    }

    fn conv(stride: usize, pad: usize) -> Op {
        Op::Conv {
            strides: [stride; 2],
            pads: [pad; 4],
            dilations: [1, 1],
            groups: 1,
        }
    }

    /// Positions before, first, last + 1, and after, of each tile of the input.
    fn bands(plan: &Plan) -> Vec<(usize, usize, usize, usize)> {
        let bands = plan.edges[0].layout.bands.as_ref().unwrap();
        bands
            .parts
            .iter()
            .map(|b| (b.before, b.from, b.to, b.after))
            .collect()
    }

    #[test]
    fn bands_share_the_rows_that_windows_of_both_reach() {
        // 8 rows of 10 columns, window 3, one row of padding above and below
        let whole = plan(&[1, 2, 8, 10], conv(1, 1), &[&[4, 2, 3, 3]]);
        assert_eq!(numbers(&whole).unwrap(), [2, 4, 8]);
        let four = cut(&whole, 4).unwrap();
        assert_eq!(
            bands(&four),
            [(10, 0, 30, 0), (0, 10, 50, 0), (0, 30, 70, 0), (0, 50, 80, 10)]
        );
        assert_eq!((four.items, four.tiles), (4, 4));
        let Kind::Mix(mix) = &four.kernels[0].kind else {
            panic!()
        };
        let tiled = mix.terms[0].tiled.as_ref().unwrap();
        let rows = |taps: &[Tap]| taps.iter().map(|t| t.rows).collect::<Vec<_>>();
        assert_eq!(rows(&mix.terms[0].taps), [2; 9]);
        assert_eq!(rows(&tiled.first), [1, 1, 1, 2, 2, 2, 2, 2, 2]);
        assert_eq!(rows(&tiled.last), [2, 2, 2, 2, 2, 2, 1, 1, 1]);
        // multiply-adds are those of the whole
        let hits = |taps: &[Tap]| taps.iter().map(|t| t.rows * t.columns).sum::<usize>();
        let Kind::Mix(one) = &whole.kernels[0].kind else {
            panic!()
        };
        let sum = hits(&tiled.first) + 2 * hits(&mix.terms[0].taps) + hits(&tiled.last);
        assert_eq!(sum, hits(&one.terms[0].taps));
    }

    #[test]
    fn strides_leave_out_rows_that_no_window_reaches() {
        let whole = plan(&[1, 2, 8, 10], conv(2, 0), &[&[4, 2, 1, 1]]);
        assert_eq!(bands(&cut(&whole, 2).unwrap()), [(0, 0, 30, 0), (0, 40, 70, 0)]);
        assert_eq!(bands(&cut(&whole, 4).unwrap())[3], (0, 60, 70, 0));
    }

    #[test]
    fn samples_come_first_then_bands_of_each() {
        let whole = plan(&[4, 2, 6, 5], conv(1, 1), &[&[4, 2, 3, 3]]);
        assert_eq!(numbers(&whole).unwrap(), [2, 4, 8, 12, 24]);
        let two = cut(&whole, 2).unwrap();
        assert_eq!(bands(&two), [(0, 0, 60, 0), (0, 60, 120, 0)]);
        assert_eq!(two.edges[0].layout.outer, 2);
        let eight = cut(&whole, 8).unwrap();
        assert_eq!(bands(&eight)[2..4], [(5, 30, 50, 0), (0, 40, 60, 5)]);
    }

    #[test]
    fn every_element_of_the_output_is_in_one_tile() {
        let whole = plan(&[2, 3, 6, 5], conv(1, 2), &[&[4, 3, 5, 5]]);
        for n in numbers(&whole).unwrap() {
            let l = cut(&whole, n).unwrap().edges[1].layout.clone();
            let mut seen = vec![0; l.size()];
            for (tile, place) in (0..n).flat_map(|t| (0..4).map(move |f| (t, f))) {
                (0..l.length()).for_each(|p| seen[l.element(tile, place, p).unwrap()] += 1);
            }
            assert!(seen.iter().all(|n| *n == 1), "{n} tiles");
        }
    }

    #[test]
    fn what_cannot_be_cut_says_why() {
        // a window of 7 reaches three rows beyond the image, over more than one tile of a row
        let whole = plan(&[1, 1, 6, 6], conv(1, 3), &[&[1, 1, 7, 7]]);
        assert_eq!(numbers(&whole).unwrap(), [2]);
        let why = cut(&whole, 6).unwrap_err();
        assert!(
            why.contains("more than the first and the last reach beyond the image"),
            "{why}"
        );
        let mean = Op::AvgPool {
            kernel: [3, 3],
            strides: [1, 1],
            pads: [1; 4],
            count_include_pad: false,
        };
        let why = numbers(&plan(&[1, 1, 6, 6], mean, &[])).unwrap_err();
        assert!(why.contains("averages at the border"), "{why}");
        let global = Op::AvgPool {
            kernel: [6, 6],
            strides: [1, 1],
            pads: [0; 4],
            count_include_pad: true,
        };
        assert!(
            numbers(&plan(&[1, 1, 6, 6], global, &[]))
                .unwrap_err()
                .contains("one row")
        );
    }
}
