//! Convolutional neural fabrics (Saxena and Verbeek, 2016): a trellis of layers and scales whose nodes are joined by 3x3
//! convolutions, so that every chain of convolutions up to its size is a path through it.
//!
//! Node `(layer, scale)`, both from 1, has maps of side `2^(scales - scale)`. It is `relu(batch norm(sum of its edges))`:
//!
//! | edge | from | convolution |
//! |---|---|---|
//! | `input` | the image, to (1, 1) | stride 1, always dense |
//! | `forward` | (layer - 1, scale) | stride 1 |
//! | `down` | (layer - 1, scale - 1) | stride 2 |
//! | `up` | (layer - 1, scale + 1) | stride 1, after [`Op::ZeroInsert`] by 2 |
//! | `zipper` | (layer, scale - 1), in the first and the last layer | stride 2 |
//!
//! With the read-out at the coarsest scale, node (layers, scales) gives logits `[batch, classes]`. With that at the finest,
//! the last layer's zipper runs upward, from (layers, scale + 1), and node (layers, 1) gives logits for each pixel. Banded
//! fabrics let output channel `c` read the input channels `c - 1`, `c` and `c + 1` only.
//!
//! A node's tensors are called by its name and the edge's: `l2s3.up.weight`, `l2s3.bn.weight`, `l2s3` its output.

use super::maker::{Maker, Window, he};
use super::parameters::Parameters;
use super::{BuilderError, Family};
use crate::graph::{Graph, GraphError, NodeId, Op, TensorId};
use std::collections::BTreeSet;

pub(super) const FAMILY: Family = Family {
    parameters: &[
        "layers",
        "scales",
        "channels",
        "banded",
        "classes",
        "in_channels",
        "readout",
    ],
    about: "convolutional neural fabric; layers=3, scales=4 (images of side 2^(scales-1)), channels=8, banded=false, classes=10, in_channels=3, readout=coarsest (or finest)",
    batch: 1,
    build,
};

/// A node of the trellis: layer and scale, from 1.
pub type Place = (usize, usize);

/// Where the logits come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readout {
    /// Node (layers, scales), with maps of one element.
    Coarsest,
    /// Node (layers, 1), with maps as large as the image.
    Finest,
}

/// How a node reads another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    Forward,
    Down,
    Up,
    /// Within a layer, to the next coarser scale.
    Zipper,
    /// Within a layer, to the next finer scale.
    ZipperUp,
}

impl Edge {
    fn name(self) -> &'static str {
        match self {
            Edge::Forward => "forward",
            Edge::Down => "down",
            Edge::Up => "up",
            Edge::Zipper | Edge::ZipperUp => "zipper",
        }
    }

    fn inserts_zeros(self) -> bool {
        matches!(self, Edge::Up | Edge::ZipperUp)
    }

    fn stride(self) -> usize {
        if matches!(self, Edge::Down | Edge::Zipper) {
            2
        } else {
            1
        }
    }
}

/// The edges into a node, in the order in which they are added.
fn edges(place: Place, layers: usize, scales: usize, readout: Readout) -> Vec<(Place, Edge)> {
    let (l, s) = place;
    let mut all = Vec::new();
    if l > 1 {
        all.push(((l - 1, s), Edge::Forward));
        if s > 1 {
            all.push(((l - 1, s - 1), Edge::Down));
        }
        if s < scales {
            all.push(((l - 1, s + 1), Edge::Up));
        }
    }
    if l == layers && readout == Readout::Finest {
        if s < scales {
            all.push(((l, s + 1), Edge::ZipperUp));
        }
    } else if (l == 1 || l == layers) && s > 1 {
        all.push(((l, s - 1), Edge::Zipper));
    }
    all
}

/// All nodes, each after those that it reads.
fn order(layers: usize, scales: usize, readout: Readout) -> Vec<Place> {
    let column = |l: usize| -> Vec<Place> {
        let all = (1..=scales).map(|s| (l, s));
        if l == layers && readout == Readout::Finest {
            all.rev().collect()
        } else {
            all.collect()
        }
    };
    (1..=layers).flat_map(column).collect()
}

fn named((l, s): Place) -> String {
    format!("l{l}s{s}")
}

const CONV: Window = Window {
    kernel: 3,
    stride: 1,
    pad: 1,
    groups: 1,
};

fn build(p: &mut Parameters, m: &mut Maker, batch: usize) -> Result<(), BuilderError> {
    let (layers, scales) = (p.layers("layers", 3, 2)?, p.within("scales", 4, 1, 12)?);
    let channels = p.size("channels", 8)?;
    let banded = p.flag("banded", false)?;
    let (classes, in_channels) = (p.size("classes", 10)?, p.size("in_channels", 3)?);
    let readout = match p.choice("readout", &["coarsest", "finest"])? {
        0 => Readout::Coarsest,
        _ => Readout::Finest,
    };
    let side = 1 << (scales - 1);
    let image = m.graph.add_input("image", &[batch, in_channels, side, side])?;
    for place in order(layers, scales, readout) {
        let mut terms = Vec::new();
        if place == (1, 1) {
            terms.push(m.conv("l1s1.input", image, channels, CONV)?);
        }
        for (from, edge) in edges(place, layers, scales, readout) {
            let x = output(&m.graph, from)?;
            terms.push(convolve(
                m,
                &format!("{}.{}", named(place), edge.name()),
                x,
                edge,
                channels,
                banded,
            )?);
        }
        node(m, &named(place), &terms)?;
    }
    let end = match readout {
        Readout::Coarsest => (layers, scales),
        Readout::Finest => (layers, 1),
    };
    let x = output(&m.graph, end)?;
    let shape = [classes, channels, 1, 1];
    let weight = m.normal("readout.weight", &shape, (1.0 / channels as f64).sqrt())?;
    let bias = m.bias("readout.bias", classes)?;
    read_out(&mut m.graph, x, weight, bias)?;
    Ok(())
}

/// A node's output.
fn output(graph: &Graph, place: Place) -> Result<TensorId, GraphError> {
    tensor(graph, &named(place))
}

fn tensor(graph: &Graph, name: &str) -> Result<TensorId, GraphError> {
    graph.find(name).ok_or_else(|| {
        GraphError::Malformed(format!(
            "`{}` is no fabric: it has no tensor `{name}`",
            graph.name
        ))
    })
}

/// One edge: its convolution, after zeros are inserted where it leads to a finer scale.
fn convolve(
    m: &mut Maker,
    name: &str,
    x: TensorId,
    edge: Edge,
    channels: usize,
    banded: bool,
) -> Result<TensorId, GraphError> {
    let mut x = x;
    if edge.inserts_zeros() {
        let square = m.square(x) / 4.0;
        x = m.node(
            &format!("{name}.zeros"),
            Op::ZeroInsert { factor: [2, 2] },
            &[x],
            square,
        )?;
    }
    let window = Window {
        stride: edge.stride(),
        ..CONV
    };
    if !banded {
        return m.conv(name, x, channels, window);
    }
    let shape = m.conv_shape(x, channels, window);
    let weight = m.masked(
        format!("{name}.weight"),
        &shape,
        he(&[0, channels.min(3), 3, 3]),
        |i| (i / 9 % channels).abs_diff(i / 9 / channels) <= 1,
    )?;
    m.conv_with(name, x, &[weight], window, 2.0)
}

/// The sum of a node's edges, normalised, without what is negative.
fn node(m: &mut Maker, name: &str, terms: &[TensorId]) -> Result<TensorId, GraphError> {
    let mut sum = terms[0];
    for (i, term) in terms[1..].iter().enumerate() {
        sum = m.add(&format!("{name}.sum{}", i + 1), sum, *term)?;
    }
    let normed = m.batch_norm(&format!("{name}.bn"), sum)?;
    let square = m.square(normed) / 2.0;
    let y = m
        .graph
        .add_node(format!("{name}.relu"), Op::Relu, &[normed], name)?;
    m.expect(y, square);
    Ok(y)
}

/// The 1x1 convolution to logits; maps of one element lose their axes.
fn read_out(graph: &mut Graph, x: TensorId, weight: TensorId, bias: TensorId) -> Result<(), GraphError> {
    let op = Op::Conv {
        strides: [1; 2],
        pads: [0; 4],
        dilations: [1; 2],
        groups: 1,
    };
    let one = graph.tensor(x).shape[2..] == [1, 1];
    let name = if one { "readout.out" } else { "logits" };
    let mut y = graph.add_node("readout", op, &[x, weight, bias], name)?;
    if one {
        let shape = graph.tensor(y).shape[..2].to_vec();
        y = graph.add_reshape("flatten", y, "logits", &shape)?;
    }
    graph.add_output(y)
}

// ---- paths

/// All paths from (1, 1) to the read-out at the coarsest scale, each as the nodes that it goes through.
pub fn paths(layers: usize, scales: usize) -> Vec<Vec<Place>> {
    paths_to(layers, scales, Readout::Coarsest)
}

/// As [`paths`], to either read-out. Their number grows exponentially with the layers ([`path_count`]).
pub fn paths_to(layers: usize, scales: usize, readout: Readout) -> Vec<Vec<Place>> {
    let end = match readout {
        Readout::Coarsest => (layers, scales),
        Readout::Finest => (layers, 1),
    };
    // backward from the end, so that no path leads nowhere
    let (mut all, mut todo) = (Vec::new(), vec![vec![end]]);
    while let Some(path) = todo.pop() {
        let first = path[0];
        if first == (1, 1) {
            all.push(path);
            continue;
        }
        for (from, _) in edges(first, layers, scales, readout) {
            todo.push([&[from], path.as_slice()].concat());
        }
    }
    all.sort();
    all
}

/// How many paths there are: each node has as many as those that it reads together.
pub fn path_count(layers: usize, scales: usize, readout: Readout) -> u64 {
    let mut counts = std::collections::BTreeMap::from([((0, 0), 0u64)]);
    let mut last = 0;
    for place in order(layers, scales, readout) {
        let into = edges(place, layers, scales, readout);
        let sum = into
            .iter()
            .fold(0u64, |n, (from, _)| n.saturating_add(counts[from]));
        last = if place == (1, 1) { 1 } else { sum };
        counts.insert(place, last);
    }
    last
}

/// The names of a path's convolutions, first to last.
fn steps(graph: &Graph, path: &[Place]) -> Result<Vec<(String, Option<Edge>)>, GraphError> {
    if path.first() != Some(&(1, 1)) {
        return Err(GraphError::Malformed("a path begins at (1, 1)".into()));
    }
    let mut steps = vec![("l1s1.input".to_string(), None)];
    for pair in path.windows(2) {
        let (from, to) = (pair[0], pair[1]);
        let edge = match (to.0.wrapping_sub(from.0), to.1.wrapping_sub(from.1) as isize) {
            (1, 0) => Edge::Forward,
            (1, 1) => Edge::Down,
            (1, -1) => Edge::Up,
            (0, 1) => Edge::Zipper,
            (0, -1) => Edge::ZipperUp,
            _ => {
                return Err(GraphError::Malformed(format!(
                    "no edge leads from {from:?} to {to:?}"
                )));
            }
        };
        let name = format!("{}.{}", named(to), edge.name());
        tensor(graph, &format!("{name}.weight"))?;
        steps.push((name, Some(edge)));
    }
    Ok(steps)
}

/// The node that makes a tensor of this name.
fn producer(graph: &Graph, name: &str) -> Result<NodeId, GraphError> {
    let t = tensor(graph, name)?;
    graph
        .producer(t)
        .ok_or_else(|| GraphError::Malformed(format!("`{name}` is made by no node")))
}

/// The network that a path through a fabric is: its convolutions, norms and ReLUs one after another and the read-out, with
/// the fabric's weights, as a graph of its own.
///
/// # Errors
/// If the graph is not what the builder makes, or the path does not lead from (1, 1) along edges to its read-out.
pub fn chain(graph: &Graph, path: &[Place]) -> Result<Graph, GraphError> {
    let mut chain = Graph::new(format!("{} path", graph.name));
    let image = graph.tensor(tensor(graph, "image")?);
    let mut x = chain.add_input("image", &image.shape)?;
    for ((name, edge), place) in steps(graph, path)?.into_iter().zip(path) {
        if edge.is_some_and(Edge::inserts_zeros) {
            x = copy(graph, &mut chain, &format!("{name}.zeros.out"), x)?;
        }
        x = copy(graph, &mut chain, &format!("{name}.out"), x)?;
        x = copy(graph, &mut chain, &format!("{}.bn.out", named(*place)), x)?;
        x = copy(graph, &mut chain, &named(*place), x)?;
    }
    let read = graph.node(producer(graph, graph_logits(graph))?).inputs[0];
    if graph.tensor(read).name != chain.tensor(x).name {
        return Err(GraphError::Malformed(format!(
            "the path ends at `{}`, the read-out is at `{}`",
            chain.tensor(x).name,
            graph.tensor(read).name
        )));
    }
    let weight = constant(graph, &mut chain, "readout.weight")?;
    let bias = constant(graph, &mut chain, "readout.bias")?;
    read_out(&mut chain, x, weight, bias)?;
    Ok(chain)
}

/// The tensor that the read-out's convolution makes.
fn graph_logits(graph: &Graph) -> &'static str {
    if graph.find("readout.out").is_some() {
        "readout.out"
    } else {
        "logits"
    }
}

/// The node that makes `name`, reading `x` and copies of its constants.
fn copy(from: &Graph, to: &mut Graph, name: &str, x: TensorId) -> Result<TensorId, GraphError> {
    let node = from.node(producer(from, name)?);
    let mut inputs = vec![x];
    for t in &node.inputs[1..] {
        inputs.push(constant(from, to, &from.tensor(*t).name)?);
    }
    to.add_node(&node.name, node.op.clone(), &inputs, name)
}

fn constant(from: &Graph, to: &mut Graph, name: &str) -> Result<TensorId, GraphError> {
    let tensor = from.tensor(tensor(from, name)?);
    match (&tensor.data, tensor.nonzeros) {
        (Some(data), _) => to.add_constant(name, &tensor.shape, data.to_vec()),
        (None, Some(nonzeros)) => {
            let t = to.add_abstract_constant(name, &tensor.shape)?;
            to.set_nonzeros(t, nonzeros)?;
            Ok(t)
        }
        (None, None) => Err(GraphError::NotConstant(name.into())),
    }
}

/// The fabric with the weights of all edges off a path zero. Nodes off the path still compute (of their norms' shifts), and
/// nothing reads them: the result is that of [`chain`], exactly.
///
/// # Errors
/// As [`chain`].
pub fn keep_path(graph: &Graph, path: &[Place]) -> Result<Graph, GraphError> {
    chain(graph, path)?;
    let kept: BTreeSet<String> = steps(graph, path)?.into_iter().map(|(name, _)| name).collect();
    let mut only = graph.clone();
    for id in graph.nodes_in_order() {
        let node = graph.node(id);
        if !matches!(node.op, Op::Conv { .. }) || node.name == "readout" || kept.contains(&node.name) {
            continue;
        }
        let weight = graph.tensor(node.inputs[1]);
        match weight.data {
            Some(_) => only.set_constant(node.inputs[1], vec![0.0; weight.elements() as usize])?,
            None => only.set_nonzeros(node.inputs[1], 0)?,
        }
    }
    Ok(only)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builders::{Values, builtin, builtin_with};
    use crate::{evaluate, flops, seeded_inputs};
    use std::collections::BTreeMap;

    fn edge_count(graph: &Graph) -> usize {
        let conv = |id: &NodeId| matches!(graph.node(*id).op, Op::Conv { .. });
        graph.nodes_in_order().iter().filter(|id| conv(id)).count() - 1
    }

    #[test]
    fn counts_are_those_of_the_formulas() {
        for (s, l, c, classes, image) in [
            (4, 3, 8, 10, 3),
            (6, 9, 27, 10, 1),
            (3, 2, 5, 4, 2),
            (1, 2, 4, 3, 1),
            (9, 8, 16, 3, 3),
        ] {
            for readout in ["coarsest", "finest"] {
                for banded in [false, true] {
                    let spec = format!(
                        "fabric:layers={l},scales={s},channels={c},classes={classes},in_channels={image},banded={banded},readout={readout}"
                    );
                    let g = builtin_with(&spec, 1, 0, Values::Abstract).unwrap().graph;
                    let edges = 1 + 2 * (s - 1) + (l - 1) * (3 * s - 2);
                    assert_eq!(edge_count(&g), edges, "{spec}");
                    let norms = 2 * c * s * l;
                    let weight = if banded { 9 * (3 * c - 2) } else { 9 * c * c };
                    let all = 9 * image * c + (edges - 1) * weight + norms + c * classes + classes;
                    let statistics = norms as u64;
                    assert_eq!(g.nonzeros(), all as u64 + statistics, "{spec}");
                }
            }
        }
        let large = builtin_with("fabric-cifar10", 1, 0, Values::Abstract)
            .unwrap()
            .graph;
        assert_eq!(large.trainable_parameters(), 18_006_666);
        let all = builtin("fabric:banded=true,in_channels=1", 1, 0).unwrap().graph;
        assert_eq!(all.nonzeros() - 2 * 8 * 4 * 3, 5_502);
    }

    #[test]
    fn paths_are_as_many_as_the_formula_says() {
        for (layers, scales, count) in [(3, 4, 26), (8, 6, 7_442), (9, 6, 20_844)] {
            assert_eq!(path_count(layers, scales, Readout::Coarsest), count);
        }
        assert_eq!(paths(3, 4).len(), 26);
        for (layers, scales) in [(2, 1), (2, 3), (4, 3), (5, 2)] {
            for readout in [Readout::Coarsest, Readout::Finest] {
                let all = paths_to(layers, scales, readout);
                let distinct: BTreeSet<_> = all.iter().collect();
                assert_eq!(all.len() as u64, path_count(layers, scales, readout));
                assert_eq!(distinct.len(), all.len());
            }
        }
    }

    #[test]
    fn up_edges_multiply_a_quarter() {
        let g = builtin("fabric", 1, 0).unwrap().graph;
        let mut ups = 0;
        for (id, counts) in flops::per_node(&g) {
            let x = g.node(id).inputs[0];
            let up = g
                .producer(x)
                .is_some_and(|p| matches!(g.node(p).op, Op::ZeroInsert { .. }));
            if matches!(g.node(id).op, Op::Conv { .. }) && up {
                // sides are even: exactly a quarter of all taps, less those in the padding
                let n = g.tensor(x).shape[3] as u64;
                let per_axis = 3 * n / 2 - 1;
                assert_eq!(counts.mac_dense, 64 * per_axis.pow(2));
                assert_eq!(counts.mac_published, 64 * 9 * n * n);
                assert!(4 * counts.mac_dense <= counts.mac_published);
                ups += 1;
            }
        }
        assert_eq!(ups, 2 * 3);
    }

    fn run(graph: &Graph) -> Vec<f64> {
        let inputs = seeded_inputs(graph, 3, 1).into_iter();
        let inputs: BTreeMap<_, _> = inputs
            .map(|(n, v)| (n, v.into_iter().map(f64::from).collect()))
            .collect();
        evaluate(graph, &inputs).unwrap()[graph.outputs()[0].0 as usize]
            .take()
            .unwrap()
    }

    #[test]
    fn every_path_is_its_chain_exactly() {
        for (spec, readout, (layers, scales), count) in [
            ("fabric", Readout::Coarsest, (3, 4), 26),
            (
                "fabric:scales=3,banded=true,readout=finest",
                Readout::Finest,
                (3, 3),
                17,
            ),
        ] {
            let g = builtin(spec, 2, 7).unwrap().graph;
            let all = paths_to(layers, scales, readout);
            assert_eq!(all.len(), count, "{spec}");
            let mut seen = BTreeSet::new();
            for path in all {
                let chain = chain(&g, &path).unwrap();
                chain.verify().unwrap();
                let only = keep_path(&g, &path).unwrap();
                let bits = |v: Vec<f64>| v.into_iter().map(f64::to_bits).collect::<Vec<_>>();
                let (a, b) = (bits(run(&chain)), bits(run(&only)));
                assert_eq!(a, b, "{path:?}");
                assert!(seen.insert(a), "{path:?} gives what another path gives");
            }
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        let g = builtin("fabric", 1, 0).unwrap().graph;
        for path in [
            vec![],
            vec![(1, 2), (2, 2)],
            vec![(1, 1), (2, 3)],
            vec![(1, 1), (2, 1)],
            vec![(1, 1), (0, 1)],
            vec![(1, 1), (1, 2), (1, 1)],
        ] {
            assert!(
                chain(&g, &path).is_err() && keep_path(&g, &path).is_err(),
                "{path:?}"
            );
        }
        assert!(chain(&builtin("mlp:layers=4-2", 1, 0).unwrap().graph, &[(1, 1)]).is_err());
    }
}
