//! `meshloom flops`: a model's FLOPs by several conventions; nothing is run.

use super::{Zeros, print};
use meshloom::error::Error;
use meshloom::flops::{Counted, deviation, shape};
use meshloom_models::Graph;
use meshloom_models::accounting::{self, Convention};
use meshloom_models::transform::{Transform, Transformed, transform};
use meshloom_traces::format::{grouped, ratio, sparsity};
use std::collections::BTreeMap;

/// Arguments of `flops`.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  meshloom flops gpt3-xl --sparsity 0.75 --tokens 26e9
  meshloom flops gpt2-small --seq 2048 --sparsity 0.5 --json
  meshloom flops resnet18:stem=imagenet --sparsity 0.5 --transform wide
  meshloom flops model.onnx --layers --convention engine

Conventions (docs/papers.md): engine, what the simulator executes; spdf, 6 a token and nonzero weight, attention in full;
sparse-ift, the counter of that paper's authors.")]
pub struct Arguments {
    /// A built-in model with parameters, or an .onnx file.
    model: String,
    #[command(flatten)]
    zeros: Zeros,
    /// Tokens of a sequence, for a built-in model that has them.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    seq: Option<usize>,
    /// Tokens of the whole training, for its total.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    tokens: Option<f64>,
    /// Sequences (or images) of the whole training.
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "tokens",
        allow_negative_numbers = true
    )]
    sequences: Option<f64>,
    /// Replace layers by larger sparse ones with as many nonzero weights: wide, parallel, factorized or doped.
    #[arg(long, value_name = "HOW", conflicts_with_all = ["mask", "mask_all", "sparsity_file"])]
    transform: Option<Transform>,
    /// How --json and --layers count (default: spdf for gpt2-small and gpt3-xl, else engine).
    #[arg(long, value_enum)]
    convention: Option<ConventionName>,
    /// Also list every product.
    #[arg(long)]
    layers: bool,
    /// Print the figures of one convention as JSON.
    #[arg(long, conflicts_with = "layers")]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ConventionName {
    /// What the simulator executes.
    Engine,
    /// That of the SPDF paper.
    Spdf,
    /// That of the Sparse-IFT paper.
    SparseIft,
}

impl ConventionName {
    fn convention(self) -> Convention {
        match self {
            ConventionName::Engine => Convention::Engine,
            ConventionName::Spdf => Convention::Spdf,
            ConventionName::SparseIft => Convention::SparseIft,
        }
    }
}

/// What the model was made into.
struct Made {
    graph: Graph,
    /// The head of its column.
    title: String,
    transformed: Option<(Transformed, f64)>,
}

/// Runs the verb.
pub fn run(a: Arguments) -> Result<(), Error> {
    let model = Counted::load(&a.model, a.seq)?;
    let sequences = sequences(&a, &model)?;
    let dense = accounting::dense(&model.graph);
    let made = made(&a, &model, &dense)?;
    let convention = a
        .convention
        .map_or(model.convention(), ConventionName::convention);
    if a.json {
        let graph = made.as_ref().map_or(&dense, |m| &m.graph);
        let figures = model.figures(graph, convention, sequences);
        let json = serde_json::to_string_pretty(&figures).map_err(|e| Error::Internal(e.to_string()))?;
        return print(&json);
    }
    let mut text = summary(&model, &dense, made.as_ref(), sequences);
    if let Some((transformed, asked)) = made.as_ref().and_then(|m| m.transformed.as_ref()) {
        text += &transformation(&model, &dense, transformed, *asked);
    }
    if a.layers {
        text += &layers(&model, made.as_ref().map_or(&dense, |m| &m.graph), convention);
    }
    print(&text)
}

fn sequences(a: &Arguments, model: &Counted) -> Result<Option<f64>, Error> {
    let positive = |what: &str, n: f64| match n.is_finite() && n > 0.0 {
        true => Ok(n),
        false => Err(Error::Input(format!("{what} {n}: expected a number above 0"))),
    };
    match (a.tokens, a.sequences) {
        (Some(tokens), _) => match model.tokens() {
            Some(of_one) => Ok(Some(positive("--tokens", tokens)? / of_one as f64)),
            None => Err(Error::Input(format!(
                "--tokens {tokens}: {} reads no tokens; give the number of its inputs with --sequences",
                model.name
            ))),
        },
        (None, Some(n)) => positive("--sequences", n).map(Some),
        (None, None) => Ok(None),
    }
}

/// The sparse or transformed graph, if one is asked for.
fn made(a: &Arguments, model: &Counted, dense: &Graph) -> Result<Option<Made>, Error> {
    if let Some(which) = a.transform {
        let [s] = a.zeros.sparsity[..] else {
            return Err(Error::Input(format!(
                "--transform {which} needs one sparsity; add --sparsity S, for example --sparsity 0.75"
            )));
        };
        let transformed = transform(dense, which, s, 0)
            .map_err(|e| Error::Input(format!("--transform {which} --sparsity {s}: {e}")))?;
        return Ok(Some(Made {
            graph: transformed.graph.clone(),
            title: format!("{which} {}", sparsity(s)),
            transformed: Some((transformed, s)),
        }));
    }
    // no value of a mask matters, only how many stay
    let mut sparse = a.zeros.graphs(&model.graph, 0)?;
    if sparse.len() > 1 {
        return Err(Error::Input("--sparsity: flops takes one value".into()));
    }
    Ok(sparse.pop().map(|s| Made {
        graph: s.graph,
        title: format!("sparse {}", sparsity(s.sparsity)),
        transformed: None,
    }))
}

/// The table of conventions.
fn summary(model: &Counted, dense: &Graph, made: Option<&Made>, sequences: Option<f64>) -> String {
    let mut rows: Vec<[String; 4]> = vec![[String::new(), "dense".into(), String::new(), String::new()]];
    if let Some(made) = made {
        rows[0][2] = made.title.clone();
        rows[0][3] = "dense over it".into();
    }
    let mut row = |name: String, dense: u64, sparse: Option<u64>| {
        let quotient = |s: u64| ratio(dense as f64 / s.max(1) as f64);
        rows.push([
            name,
            grouped(dense),
            sparse.map_or(String::new(), grouped),
            sparse.map_or(String::new(), quotient),
        ]);
    };
    let before = accounting::parameters(dense);
    let after = made.map(|m| accounting::parameters(&m.graph));
    row("parameters".into(), before.0, after.map(|a| a.0));
    row("nonzeros".into(), before.1, after.map(|a| a.1));
    for convention in Convention::ALL {
        let before = model.flops(dense, convention);
        let after = made.map(|m| model.flops(&m.graph, convention));
        row(
            format!("{convention}: inference"),
            before.inference,
            after.map(|f| f.inference),
        );
        row(
            format!("{convention}: training"),
            before.training,
            after.map(|f| f.training),
        );
    }
    if let Some(n) = sequences {
        for convention in Convention::ALL {
            let total = |g: &Graph| model.flops(g, convention).training as f64 * n;
            let (before, after) = (total(dense), made.map(|m| total(&m.graph)));
            rows.push([
                format!("{convention}: all training"),
                format!("{before:.4e}"),
                after.map_or(String::new(), |a| format!("{a:.4e}")),
                after.map_or(String::new(), |a| ratio(before / a)),
            ]);
        }
    }
    let one = match model.tokens() {
        Some(tokens) => format!("FLOPs of one sequence of {tokens} tokens"),
        None => format!("FLOPs of one input of {}", inputs(&model.graph)),
    };
    let all = sequences.map_or(String::new(), |n| format!("; all training: {} of them", count(n)));
    format!("{}  {}\n{one}{all}\n{}", model.name, model.source, table(&rows))
}

/// A number that need not be whole.
fn count(n: f64) -> String {
    match n.fract() == 0.0 && n < 1e15 {
        true => grouped(n as u64),
        false => format!("{n:.4e}"),
    }
}

fn inputs(graph: &Graph) -> String {
    let shapes: Vec<String> = graph
        .inputs()
        .iter()
        .map(|t| shape(&graph.tensor(*t).shape))
        .collect();
    shapes.join(", ")
}

/// What became of each layer; equal ones together.
fn transformation(model: &Counted, dense: &Graph, made: &Transformed, asked: f64) -> String {
    let mut rows: Vec<[String; 6]> = vec![[
        "transformed layers".into(),
        "dense".into(),
        "now".into(),
        "nonzeros".into(),
        format!("sparsity {}, nudged", sparsity(asked)),
        format!("nonzeros at {}", sparsity(asked)),
    ]];
    let mut groups: Vec<(usize, [String; 6])> = Vec::new();
    for layer in &made.layers {
        let mut now: Vec<String> = layer.made.iter().map(|m| shape(&m.1)).collect();
        if now.len() > 2 && now.iter().all(|s| *s == now[0]) {
            now = vec![format!("{} x {}", now.len(), now[0])];
        }
        let row = [
            layer.name.clone(),
            shape(&layer.shape),
            now.join(" + "),
            grouped(layer.nonzeros),
            sparsity(layer.sparsity),
            deviation(layer.deviation()),
        ];
        match groups.iter_mut().find(|(_, r)| r[1..] == row[1..]) {
            Some((count, _)) => *count += 1,
            None => groups.push((1, row)),
        }
    }
    for (count, mut row) in groups {
        if count > 1 {
            row[0] = format!("{} and {} more", row[0], count - 1);
        }
        rows.push(row);
    }
    let mut text = format!("\n{}", table(&rows));
    if !made.widened.is_empty() {
        text += &widened(model, dense, made);
    }
    if !made.left.is_empty() {
        text += &format!(
            "\nleft as they are, because they are grouped convolutions, shared, or have few values: {}\n",
            made.left.join(", ")
        );
    }
    text
}

/// What stays dense and widens: parameters, and forward FLOPs of the nodes that read them.
fn widened(model: &Counted, dense: &Graph, made: &Transformed) -> String {
    let convention = Convention::Engine;
    let by_node = |g: &Graph| -> BTreeMap<String, u64> {
        let all = accounting::per_node(g, convention, model.functional).into_iter();
        all.map(|(id, f)| (g.node(id).name.clone(), f.inference))
            .collect()
    };
    let (before, after) = (by_node(dense), by_node(&made.graph));
    let mut rows: Vec<[String; 4]> = vec![[
        "dense, but wider".into(),
        "parameters".into(),
        "before".into(),
        "engine FLOPs of inference, more than before".into(),
    ]];
    let sparse: Vec<&str> = made.layers.iter().map(|l| l.name.as_str()).collect();
    let mut small = (0usize, 0u64, 0u64);
    let mut named = Vec::new();
    for w in &made.widened {
        let elements = |s: &[usize]| s.iter().map(|d| *d as u64).product::<u64>();
        let (from, to) = (elements(&w.from), elements(&w.to));
        if w.to.len() == 1 {
            small = (small.0 + 1, small.1 + to, small.2 + from);
            continue;
        }
        let readers = made
            .graph
            .find(&w.name)
            .map_or(Vec::new(), |t| made.graph.consumers(t));
        let mut cost = 0;
        for id in readers {
            let name = &made.graph.node(id).name;
            cost += after
                .get(name)
                .unwrap_or(&0)
                .saturating_sub(*before.get(name).unwrap_or(&0));
            named.push(name.clone());
        }
        rows.push([w.name.clone(), grouped(to), grouped(from), grouped(cost)]);
    }
    if small.0 > 0 {
        rows.push([
            format!("{} norms and biases", small.0),
            grouped(small.1),
            grouped(small.2),
            String::new(),
        ]);
    }
    // all that neither is a transformed layer nor is listed above: norms, activations, attention, pooling
    let transformed: Vec<String> = made
        .graph
        .nodes_in_order()
        .into_iter()
        .map(|id| made.graph.node(id))
        .filter(|n| {
            n.inputs
                .iter()
                .any(|t| sparse.contains(&made.graph.tensor(*t).name.as_str()))
        })
        .map(|n| n.name.clone())
        .collect();
    let rest = |of: &BTreeMap<String, u64>| -> u64 {
        of.iter()
            .filter(|(n, _)| !transformed.contains(n) && !named.contains(n))
            .map(|(_, f)| f)
            .sum()
    };
    rows.push([
        "operations without weights".into(),
        String::new(),
        String::new(),
        grouped(rest(&after).saturating_sub(rest(&before))),
    ]);
    format!("\n{}", table(&rows))
}

fn layers(model: &Counted, graph: &Graph, convention: Convention) -> String {
    let mut rows: Vec<[String; 5]> = vec![[
        format!("{convention}, by product"),
        "weight".into(),
        "nonzeros".into(),
        "inference".into(),
        "training".into(),
    ]];
    for layer in model.layers(graph, convention) {
        rows.push([
            layer.name,
            layer.shape,
            layer.nonzeros.map_or(String::new(), grouped),
            grouped(layer.flops.inference),
            grouped(layer.flops.training),
        ]);
    }
    format!("\n{}", table(&rows))
}

/// Rows in columns, the first to the left, the others to the right.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = format!("{:<w$}", row[0], w = widths[0]);
        for i in (1..N).filter(|i| widths[*i] > 0) {
            line += &format!("   {:>w$}", row[i], w = widths[i]);
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}
