//! The graph of a file as a whole: who makes each tensor, in which order the nodes go, inputs, constants and outputs.

use super::error::{Problem, UnsupportedOperator, shown, type_name};
use super::operators;
use super::proto::{GraphProto, Model, NodeProto, TensorProto, ValueInfo};
use super::scan::Budget;
use super::values::{self, Folder, Values};
use super::{ImportOptions, Level};
use crate::graph::{Graph, GraphError, Op, TensorId};
use crate::shapes::{self, ShapeError};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::path::Path;
use std::sync::Arc;

/// The operator versions whose meaning is known.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=28;

/// What makes a tensor.
#[derive(Clone, Copy)]
enum Source<'a> {
    Input,
    Constant(&'a TensorProto),
    Node(usize),
}

/// What a name stands for.
#[derive(Clone)]
pub(crate) enum Value {
    /// A tensor of the graph.
    Tensor(TensorId),
    /// Constant integers (or truth values, as 0 and 1): shapes, axes, ids, masks.
    Integers(Arc<Integers>),
}

/// A constant tensor of integers.
pub(crate) struct Integers {
    pub shape: Vec<usize>,
    /// In row-major order.
    pub data: Vec<i64>,
}

/// The state of an import.
pub(crate) struct Importer<'a> {
    pub graph: Graph,
    pub opset: i64,
    sources: BTreeMap<&'a str, Source<'a>>,
    values: BTreeMap<&'a str, Value>,
    /// Constants made from others, by what they were made from and how.
    prepared: BTreeMap<(TensorId, String), TensorId>,
    /// Tensors of ids: integer inputs and what has their values.
    pub ids: BTreeSet<TensorId>,
    pub folder: Folder,
    pub budget: Budget,
}

/// Translates a decoded file.
pub(crate) fn convert(
    model: Model,
    path: &Path,
    budget: Budget,
    options: &ImportOptions,
    level: Level,
) -> Result<Graph, Problem> {
    let Some(proto) = &model.graph else {
        return Err(Problem::Missing { what: "graph" });
    };
    let opset = opset(&model)?;
    if !proto.sparse_initializer.is_empty() {
        let detail = "it has sparse initializers, which are not supported: store them dense".into();
        return Err(Problem::Malformed { detail });
    }
    supported(proto)?;
    let name = if proto.name.is_empty() {
        "model".into()
    } else {
        proto.name.clone()
    };
    let mut importer = Importer {
        graph: Graph::new(name),
        opset,
        sources: sources(proto)?,
        values: BTreeMap::new(),
        prepared: BTreeMap::new(),
        ids: BTreeSet::new(),
        folder: Folder::new(path),
        budget,
    };
    importer.inputs(proto)?;
    for i in importer.order(proto)? {
        operators::convert(&mut importer, &proto.node[i])?;
    }
    importer.outputs(proto)?;
    let mut graph = importer.graph;
    fuse_biases(&mut graph);
    let graph = match level {
        Level::Raised => crate::raise::raise(&graph),
        Level::AsWritten => graph.compact(),
    };
    let graph = match options.batch {
        Some(batch) => graph.with_batch(batch)?,
        None => graph,
    };
    graph.verify()?;
    Ok(graph)
}

/// The version of ONNX's own operators that the file uses.
fn opset(model: &Model) -> Result<i64, Problem> {
    let own = model.opset_import.iter().filter(|o| own_domain(&o.domain));
    let found = own.map(|o| o.version).max().unwrap_or(0);
    if OPSETS.contains(&found) {
        return Ok(found);
    }
    Err(Problem::Opset {
        found,
        least: *OPSETS.start(),
        most: *OPSETS.end(),
    })
}

fn own_domain(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

/// A node's name, or what it makes where it has none.
pub(crate) fn node_name(node: &NodeProto) -> &str {
    if node.name.is_empty() {
        node.output.first().map_or("", String::as_str)
    } else {
        &node.name
    }
}

/// Names all operators that cannot be imported.
fn supported(proto: &GraphProto) -> Result<(), Problem> {
    let mut unknown: BTreeMap<String, (usize, Vec<String>)> = BTreeMap::new();
    for node in &proto.node {
        if own_domain(&node.domain) && operators::SUPPORTED.contains(&node.op_type.as_str()) {
            continue;
        }
        let domain = if own_domain(&node.domain) {
            String::new()
        } else {
            format!("{}.", node.domain)
        };
        let (count, nodes) = unknown
            .entry(shown(&format!("{domain}{}", node.op_type)))
            .or_default();
        *count += 1;
        if nodes.len() < 5 {
            nodes.push(shown(node_name(node)));
        }
    }
    if unknown.is_empty() {
        return Ok(());
    }
    let show = |(operator, (count, nodes))| UnsupportedOperator {
        operator,
        count,
        nodes,
    };
    // a damaged file can have any number of operators
    let operators = unknown.into_iter().take(100).map(show).collect();
    Err(Problem::Operators {
        operators,
        supported: operators::SUPPORTED.join(", "),
    })
}

/// What makes each tensor; each name once.
fn sources(proto: &GraphProto) -> Result<BTreeMap<&str, Source<'_>>, Problem> {
    let mut sources: BTreeMap<&str, Source> = BTreeMap::new();
    let show = |s: &Source| match s {
        Source::Input => "a graph input".into(),
        Source::Constant(_) => "an initializer".into(),
        Source::Node(i) => format!("node `{}`", shown(node_name(&proto.node[*i]))),
    };
    let mut add = |name, source| match sources.insert(name, source) {
        // before IR version 4, initializers were inputs as well
        None | Some(Source::Input) if matches!(source, Source::Constant(_)) => Ok(()),
        None => Ok(()),
        Some(first) => Err(Problem::Duplicate {
            tensor: shown(name),
            first: show(&first),
            second: show(&source),
        }),
    };
    for input in &proto.input {
        add(&input.name, Source::Input)?;
    }
    for tensor in &proto.initializer {
        add(&tensor.name, Source::Constant(tensor))?;
    }
    for (i, node) in proto.node.iter().enumerate() {
        let constant = if node.op_type == "Constant" {
            operators::constant_tensor(node)
        } else {
            None
        };
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            add(output, constant.map_or(Source::Node(i), Source::Constant))?;
        }
    }
    Ok(sources)
}

impl Value {
    /// The tensor, if it holds floating-point numbers.
    fn number(&self, ids: &BTreeSet<TensorId>) -> Option<TensorId> {
        match self {
            Value::Tensor(t) if !ids.contains(t) => Some(*t),
            _ => None,
        }
    }
}

impl<'a> Importer<'a> {
    /// The nodes that the outputs need, each after those that it depends on, otherwise in the order of the file.
    fn order(&self, proto: &'a GraphProto) -> Result<Vec<usize>, Problem> {
        let node = |i: usize| &proto.node[i];
        let name = |i: usize| shown(node_name(node(i)));
        let never = |tensor: &str, user: String| Problem::NeverMade {
            tensor: shown(tensor),
            user,
        };
        let mut before: Vec<Vec<usize>> = vec![Vec::new(); proto.node.len()];
        for (i, before) in before.iter_mut().enumerate() {
            for input in node(i).input.iter().filter(|t| !t.is_empty()) {
                match self.sources.get(input.as_str()) {
                    Some(Source::Node(p)) => before.push(*p),
                    Some(_) => {}
                    None => return Err(never(input, format!("node `{}`", name(i)))),
                }
            }
            before.sort_unstable();
            before.dedup();
        }
        let mut todo = Vec::new();
        for output in &proto.output {
            match self.sources.get(output.name.as_str()) {
                Some(Source::Node(p)) => todo.push(*p),
                Some(_) => {}
                None => return Err(never(&output.name, "the graph outputs".into())),
            }
        }
        let mut needed = vec![false; proto.node.len()];
        while let Some(i) = todo.pop() {
            if !std::mem::replace(&mut needed[i], true) {
                todo.extend(&before[i]);
            }
        }
        let mut after: Vec<Vec<usize>> = vec![Vec::new(); proto.node.len()];
        for (i, before) in before.iter().enumerate() {
            for p in before {
                after[*p].push(i);
            }
        }
        let mut waits: Vec<usize> = before.iter().map(Vec::len).collect();
        let mut ready: BinaryHeap<Reverse<usize>> =
            (0..waits.len()).filter(|i| waits[*i] == 0).map(Reverse).collect();
        let mut order = Vec::new();
        while let Some(Reverse(i)) = ready.pop() {
            if needed[i] {
                order.push(i);
            }
            for next in &after[i] {
                waits[*next] -= 1;
                if waits[*next] == 0 {
                    ready.push(Reverse(*next));
                }
            }
        }
        match waits.iter().position(|w| *w > 0) {
            None => Ok(order),
            Some(first) => Err(Problem::Cycle {
                nodes: circle(first, &before, &waits, name),
            }),
        }
    }

    /// Adds the graph inputs. A first size that is only named becomes 1; the batch is set at the end.
    fn inputs(&mut self, proto: &'a GraphProto) -> Result<(), Problem> {
        for input in &proto.input {
            if matches!(self.sources.get(input.name.as_str()), Some(Source::Constant(_))) {
                continue;
            }
            let shape = input_shape(input)?;
            let t = self.graph.add_input(input.name.as_str(), &shape)?;
            let kind = input.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
            if kind.is_some_and(|k| values::is_integer(k.elem_type)) {
                self.ids.insert(t);
            }
            self.values.insert(&input.name, Value::Tensor(t));
        }
        Ok(())
    }

    /// Makes the outputs of the file those of the graph, under their names.
    fn outputs(&mut self, proto: &'a GraphProto) -> Result<(), Problem> {
        let mut seen = BTreeSet::new();
        for output in &proto.output {
            let name = output.name.as_str();
            if !seen.insert(name) {
                let (tensor, first) = (shown(name), "the graph outputs".to_string());
                return Err(Problem::Duplicate {
                    tensor,
                    second: first.clone(),
                    first,
                });
            }
        }
        for output in &proto.output {
            let name = output.name.as_str();
            let value = self.value(name)?;
            let Some(t) = value.and_then(|v| v.number(&self.ids)) else {
                return Err(Problem::DataType {
                    tensor: shown(name),
                    found: "integers".into(),
                    expected: "floating-point numbers in a graph output",
                });
            };
            let tensor = self.graph.tensor(t);
            let t = if tensor.name == name {
                t
            } else if self.graph.producer(t).is_some()
                && !seen.contains(tensor.name.as_str())
                && !self.graph.outputs().contains(&t)
            {
                // an identity after it has gone
                self.graph.rename(t, name)?;
                t
            } else {
                let shape = tensor.shape.clone();
                self.graph.add_reshape(name, t, name, &shape)?
            };
            self.graph.add_output(t)?;
        }
        if proto.output.is_empty() {
            return Err(Problem::Missing { what: "outputs" });
        }
        Ok(())
    }

    /// What a name stands for; constants are decoded when first asked for.
    pub(crate) fn value(&mut self, name: &str) -> Result<Option<Value>, Problem> {
        if let Some(value) = self.values.get(name) {
            return Ok(Some(value.clone()));
        }
        let Some((name, Source::Constant(tensor))) = self.sources.get_key_value(name).map(|(n, s)| (*n, *s))
        else {
            return Ok(None);
        };
        let (shape, data) = values::decode(name, tensor, &mut self.folder, &mut self.budget)?;
        let value = match data {
            Values::Floats(data) => Value::Tensor(self.graph.add_constant(name, &shape, data)?),
            Values::Integers(data) => Value::Integers(Arc::new(Integers { shape, data })),
        };
        self.values.insert(name, value.clone());
        Ok(Some(value))
    }

    /// Says what a name stands for.
    pub(crate) fn set_value(&mut self, name: &str, value: Value) {
        if let Some((name, _)) = self.sources.get_key_value(name) {
            self.values.insert(name, value);
        }
    }

    /// A name for a tensor that the file does not have: none of the file's, nor of the graph's.
    pub(crate) fn fresh_name(&self, name: &str) -> String {
        let mut name = self.graph.fresh_name(name);
        while self.sources.contains_key(name.as_str()) || self.graph.find(&name).is_some() {
            name.push('\'');
        }
        name
    }

    /// A constant made from another one, once for each `how` (which ends its name).
    pub(crate) fn prepare(
        &mut self,
        from: TensorId,
        how: &str,
        shape: &[usize],
        make: impl FnOnce(&[f32]) -> Vec<f32>,
    ) -> Result<TensorId, Problem> {
        let key = (from, how.to_string());
        if let Some(t) = self.prepared.get(&key) {
            return Ok(*t);
        }
        let tensor = self.graph.tensor(from);
        let Some(data) = tensor.data.clone() else {
            return Err(GraphError::NotConstant(tensor.name.clone()).into());
        };
        let name = self.fresh_name(&format!("{}.{how}", tensor.name));
        let count = shapes::elements(shape).map_err(|error| Problem::TensorShape {
            tensor: shown(&name),
            error,
        })?;
        self.budget.charge(4 * count as u64)?;
        let made = make(&data);
        if let Some(index) = made.iter().position(|v| !v.is_finite()) {
            return Err(Problem::NotFinite {
                tensor: shown(&name),
                index,
                value: f64::from(made[index]),
            });
        }
        let t = self.graph.add_constant(name, shape, made)?;
        self.prepared.insert(key, t);
        Ok(t)
    }
}

/// One circle among nodes that wait: from one of them back along those that it waits for.
fn circle(first: usize, before: &[Vec<usize>], waits: &[usize], name: impl Fn(usize) -> String) -> String {
    let (mut path, mut places) = (vec![first], BTreeMap::from([(first, 0)]));
    let start = loop {
        let last = path[path.len() - 1];
        // a node that waits depends on another that waits
        let Some(next) = before[last].iter().copied().find(|p| waits[*p] > 0) else {
            break 0;
        };
        if let Some(place) = places.insert(next, path.len()) {
            break place;
        }
        path.push(next);
    };
    let mut nodes: Vec<usize> = path[start..].to_vec();
    nodes.reverse();
    nodes.push(nodes[0]);
    let more = if nodes.len() > 10 { " -> ..." } else { "" };
    nodes
        .iter()
        .take(10)
        .map(|i| name(*i))
        .collect::<Vec<_>>()
        .join(" -> ")
        + more
}

/// The shape of a graph input with 1 for a first size that is open.
fn input_shape(input: &ValueInfo) -> Result<Vec<usize>, Problem> {
    let tensor = || shown(&input.name);
    let kind = input.r#type.as_ref().and_then(|t| t.tensor_type.as_ref());
    let Some((kind, shape)) = kind.and_then(|k| k.shape.as_ref().map(|s| (k, s))) else {
        return Err(Problem::NoShape { tensor: tensor() });
    };
    if !values::is_float(kind.elem_type) && !values::is_integer(kind.elem_type) {
        let expected = "float32, float64, float16 or bfloat16 (or int64, int32 for ids)";
        let found = type_name(kind.elem_type);
        return Err(Problem::DataType {
            tensor: tensor(),
            found,
            expected,
        });
    }
    if shape.dim.len() > shapes::MAX_RANK {
        return Err(Problem::TensorShape {
            tensor: tensor(),
            error: ShapeError::Rank(shape.dim.len()),
        });
    }
    let named = |i: usize| {
        let name = shape.dim[i]
            .dim_param
            .as_deref()
            .filter(|p| !p.is_empty())
            .unwrap_or("?");
        format!("axis {i} `{}`", shown(name))
    };
    let open: Vec<String> = (1..shape.dim.len())
        .filter(|i| shape.dim[*i].dim_value.is_none())
        .map(named)
        .collect();
    if !open.is_empty() {
        return Err(Problem::Symbolic {
            tensor: tensor(),
            axes: open.join(", "),
        });
    }
    let dims: Vec<i64> = shape.dim.iter().map(|d| d.dim_value.unwrap_or(1)).collect();
    values::sizes(&input.name, &dims)
}

/// Makes `Add` of a constant to a product or convolution without bias its bias, where it is one value a feature.
fn fuse_biases(graph: &mut Graph) {
    for id in graph.nodes_in_order() {
        let node = graph.node(id);
        if node.op != Op::Add {
            continue;
        }
        let is_constant = |t: TensorId| graph.tensor(t).data.is_some();
        let (x, c) = match node.inputs[..] {
            [x, c] if is_constant(c) => (x, c),
            [c, x] if is_constant(c) => (x, c),
            _ => continue,
        };
        let Some(producer) = graph.producer(x) else {
            continue;
        };
        let made = graph.node(producer);
        let (shape, bias) = (&graph.tensor(x).shape, graph.tensor(c));
        let fits = made.inputs.len() == 2
            && matches!(made.op, Op::Linear | Op::Conv { .. })
            && *shape == graph.tensor(node.output).shape
            && graph.consumers(x) == [id]
            && !graph.outputs().contains(&x);
        let features = match made.op {
            Op::Linear => shape.len() - 1,
            _ => 1,
        };
        // aligned at the last axis, every size but that of the features is 1
        let skipped = shape.len().saturating_sub(bias.shape.len());
        let alone = bias
            .shape
            .iter()
            .enumerate()
            .all(|(i, d)| *d == 1 || i + skipped == features);
        if !fits || !alone || bias.shape.len() > shape.len() {
            continue;
        }
        let (m, data) = (shape[features], bias.data.as_deref());
        let t = if bias.shape == [m] {
            Ok(c)
        } else {
            let values = data.map_or_else(Vec::new, |d| if d.len() == m { d.clone() } else { vec![d[0]; m] });
            let name = graph.fresh_name(&format!("{}.bias", bias.name));
            graph.add_constant(name, &[m], values)
        };
        let Ok(t) = t else { continue };
        let made = graph.node(producer);
        let (op, name, inputs) = (
            made.op.clone(),
            made.name.clone(),
            [made.inputs[0], made.inputs[1], t],
        );
        graph.rewire(id, op, &inputs);
        // both exist: the sum takes the place of the product
        let _ = graph.rename_node(id, name);
        let _ = graph.remove_node(producer);
    }
}
