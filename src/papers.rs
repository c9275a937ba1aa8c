//! The tables of docs/papers.md: figures of papers beside those that are computed here. Published figures stand in this file
//! as they were printed; no other number does.

use crate::error::Error;
use crate::flops::{Counted, deviation};
use meshloom_models::accounting::{self, Convention};
use meshloom_models::transform::{Transform, Transformed, transform};
use meshloom_models::{Graph, Mask, Plan};
use meshloom_traces::format::{grouped, sparsity};

/// A row of SPDF's tables of FLOPs.
pub struct Spdf {
    /// The built-in model.
    pub model: &'static str,
    /// Sparsity of pre-training.
    pub sparsity: f64,
    /// Published FLOPs of a sequence.
    pub sequence: f64,
    /// Published exaFLOPs of pre-training.
    pub total: f64,
    /// Tokens of pre-training.
    pub tokens: f64,
    /// Published total speed-up, where it is printed.
    pub speedup: Option<f64>,
}

const fn spdf_row(
    model: &'static str,
    sparsity: f64,
    sequence: f64,
    total: f64,
    tokens: f64,
    speedup: Option<f64>,
) -> Spdf {
    Spdf {
        model,
        sparsity,
        sequence,
        total,
        tokens,
        speedup,
    }
}

/// SPDF (Thangarasa et al., 2023), pre-training. Sequences have 2048 tokens. Of a speed-up printed as a range over the
/// fine-tuned tasks this is the end that pre-training alone would have.
pub const SPDF: [Spdf; 6] = [
    spdf_row("gpt2-small", 0.0, 1.99e12, 2.43, 2.5e9, None),
    spdf_row("gpt2-small", 0.5, 1.47e12, 1.79, 2.5e9, Some(1.35)),
    spdf_row("gpt2-small", 0.75, 1.20e12, 1.46, 2.5e9, Some(1.65)),
    spdf_row("gpt3-xl", 0.0, 1.86e13, 236.10, 26e9, None),
    spdf_row("gpt3-xl", 0.5, 1.12e13, 141.87, 26e9, Some(1.66)),
    spdf_row("gpt3-xl", 0.75, 7.46e12, 94.76, 26e9, Some(2.49)),
];

/// MediSwift (2024): built-in model, published parameters in millions.
pub const MEDISWIFT: [(&str, f64); 3] = [
    ("mediswift-med", 302.0),
    ("mediswift-large", 510.0),
    ("mediswift-xl", 1208.0),
];

/// Dense FLOP budgets of Sparse-IFT, in its authors' configuration files: name, built-in model, FLOPs.
pub const BUDGETS: [(&str, &str, u64); 4] = [
    (
        "ResNet-18, CIFAR-100",
        "resnet18:stem=cifar,width=64,classes=100",
        1_115_226_800,
    ),
    ("ResNet-18, ImageNet", "resnet18:stem=imagenet", 3_647_128_359),
    ("ResNet-34, ImageNet", "resnet34:stem=imagenet", 7_355_270_501),
    ("MobileNetV2, CIFAR-100", "mobilenetv2-cifar", 138_538_103),
];

/// A row of [`SPDF`] as computed here.
pub struct SpdfComputed {
    /// FLOPs of a sequence.
    pub sequence: f64,
    /// exaFLOPs of pre-training.
    pub total: f64,
    /// Dense FLOPs over these.
    pub speedup: f64,
}

/// A model with a share of the weights that are masked by default zero.
fn sparse(model: &Counted, fraction: f64) -> Result<Graph, Error> {
    Plan::default_weights(&model.graph, fraction, Mask::Uniform)
        .and_then(|p| p.apply(&model.graph, 0))
        .map_err(Error::input)
}

/// A row of [`SPDF`], by the `spdf` convention from the graph.
pub fn spdf(row: &Spdf) -> Result<SpdfComputed, Error> {
    let model = Counted::load(row.model, Some(2048))?;
    let training = |fraction: f64| -> Result<f64, Error> {
        Ok(model.flops(&sparse(&model, fraction)?, Convention::Spdf).training as f64)
    };
    let sequence = training(row.sparsity)?;
    Ok(SpdfComputed {
        sequence,
        total: sequence * row.tokens / 2048.0 / 1e18,
        speedup: training(0.0)? / sequence,
    })
}

/// Parameters, and speed-ups at 50 and 75 %, of a MediSwift model.
pub fn mediswift(model: &str) -> Result<(u64, [f64; 2]), Error> {
    let model = Counted::load(model, None)?;
    let dense = model.flops(&model.graph, Convention::Spdf).training as f64;
    let mut speedups = [0.0; 2];
    for (to, fraction) in speedups.iter_mut().zip([0.5, 0.75]) {
        *to = dense / model.flops(&sparse(&model, fraction)?, Convention::Spdf).training as f64;
    }
    Ok((accounting::parameters(&model.graph).0, speedups))
}

/// The dense FLOPs of a model by Sparse-IFT's counter.
pub fn budget(spec: &str) -> Result<u64, Error> {
    let model = Counted::load(spec, None)?;
    Ok(model.flops(&model.graph, Convention::SparseIft).inference)
}

fn transformed(model: &Counted, which: Transform, s: f64) -> Result<Transformed, Error> {
    transform(&model.graph, which, s, 0).map_err(Error::input)
}

fn markdown(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut out = format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        out += &format!("| {} |\n", row.join(" | "));
    }
    out
}

fn off(computed: f64, published: f64) -> String {
    deviation(computed / published - 1.0)
}

/// All tables of the page, by name.
pub fn tables() -> Result<Vec<(&'static str, String)>, Error> {
    Ok(vec![
        ("spdf", spdf_table()?),
        ("mediswift", mediswift_table()?),
        ("budgets", budget_table()?),
        ("widths", width_table()?),
        ("transformations", transformation_table()?),
    ])
}

fn spdf_table() -> Result<String, Error> {
    let head = [
        "model",
        "sparsity",
        "FLOPs a sequence, published",
        "computed",
        "off",
        "exaFLOPs in all, published",
        "computed",
        "off",
        "speed-up, published",
        "computed",
        "off",
    ];
    let mut rows = Vec::new();
    for row in &SPDF {
        let c = spdf(row)?;
        rows.push(vec![
            row.model.into(),
            sparsity(row.sparsity),
            format!("{:.2e}", row.sequence),
            format!("{:.3e}", c.sequence),
            off(c.sequence, row.sequence),
            format!("{:.2}", row.total),
            format!("{:.2}", c.total),
            off(c.total, row.total),
            row.speedup.map_or("1".into(), |s| format!("{s:.2}")),
            format!("{:.3}", c.speedup),
            row.speedup.map_or(String::new(), |s| off(c.speedup, s)),
        ]);
    }
    Ok(markdown(&head, rows))
}

fn mediswift_table() -> Result<String, Error> {
    let head = [
        "model",
        "parameters, published",
        "in the graph",
        "without embeddings",
        "speed-up at 50%",
        "at 75%",
    ];
    let mut rows = Vec::new();
    for (name, published) in MEDISWIFT {
        let (parameters, speedups) = mediswift(name)?;
        let graph = Counted::load(name, None)?.graph;
        let tables =
            ["wte.weight", "wpe.weight"].map(|n| graph.find(n).map_or(0, |t| graph.tensor(t).elements()));
        let inner = parameters - tables.iter().sum::<u64>();
        rows.push(vec![
            name.into(),
            format!("{published} M"),
            format!("{:.1} M", parameters as f64 / 1e6),
            format!("{:.1} M", inner as f64 / 1e6),
            format!("{:.2}", speedups[0]),
            format!("{:.2}", speedups[1]),
        ]);
    }
    Ok(markdown(&head, rows))
}

fn budget_table() -> Result<String, Error> {
    let head = [
        "network",
        "built-in model",
        "published",
        "computed",
        "off",
        "engine",
        "spdf",
    ];
    let mut rows = Vec::new();
    for (name, spec, published) in BUDGETS {
        let model = Counted::load(spec, None)?;
        let inference = |c: Convention| model.flops(&model.graph, c).inference;
        let computed = inference(Convention::SparseIft);
        rows.push(vec![
            name.into(),
            format!("`{spec}`"),
            grouped(published),
            grouped(computed),
            (i128::from(computed) - i128::from(published)).to_string(),
            grouped(inference(Convention::Engine)),
            grouped(inference(Convention::Spdf)),
        ]);
    }
    Ok(markdown(&head, rows))
}

fn width_table() -> Result<String, Error> {
    let head = [
        "model",
        "sparsity",
        "width",
        "nonzeros of a square layer at that sparsity",
        "sparsity for the dense count",
        "stem, head and embeddings before",
        "widened",
        "inference, `sparse-ift`, over dense",
    ];
    let mut rows = Vec::new();
    for (spec, layer, fractions) in [
        ("gpt2-small", "h0.attn.c_proj.weight", &[0.5, 0.75][..]),
        (BUDGETS[0].1, "layer1.0.conv1.weight", &[0.5, 0.75, 0.9]),
        (BUDGETS[1].1, "layer1.0.conv1.weight", &[0.5, 0.75, 0.9]),
        (BUDGETS[2].1, "layer1.0.conv1.weight", &[0.5, 0.75, 0.9]),
    ] {
        let model = Counted::load(spec, None)?;
        let before = model.flops(&model.graph, Convention::SparseIft).inference as f64;
        for s in fractions {
            let made = transformed(&model, Transform::Wide, *s)?;
            let Some(found) = made.layers.iter().find(|l| l.name == layer) else {
                return Err(Error::Internal(format!("{spec} has no layer {layer}")));
            };
            let tables = made.widened.iter().filter(|w| w.to.len() > 1);
            let (from, to) = tables.fold((0, 0), |(from, to), w| {
                let elements = |s: &[usize]| s.iter().map(|d| *d as u64).product::<u64>();
                (from + elements(&w.from), to + elements(&w.to))
            });
            let after = model.flops(&made.graph, Convention::SparseIft).inference as f64;
            rows.push(vec![
                format!("`{spec}`"),
                sparsity(*s),
                format!("{} to {}", found.shape[0], found.made[0].1[0]),
                deviation(found.deviation()),
                sparsity(found.sparsity),
                grouped(from),
                grouped(to),
                format!("{:.3}", after / before),
            ]);
        }
    }
    Ok(markdown(&head, rows))
}

fn transformation_table() -> Result<String, Error> {
    let head = [
        "transformation",
        "sparsity",
        "parameters",
        "nonzeros",
        "nonzeros of transformed layers",
        "those of the dense ones",
        "layers",
        "at the asked sparsity: least",
        "most",
        "inference, `sparse-ift`, over dense",
    ];
    let model = Counted::load(BUDGETS[0].1, None)?;
    let before = model.flops(&model.graph, Convention::SparseIft).inference as f64;
    let mut rows = Vec::new();
    for which in Transform::ALL {
        for s in [0.5, 0.75, 0.9] {
            let made = transformed(&model, which, s)?;
            let (parameters, nonzeros) = accounting::parameters(&made.graph);
            let new: u64 = made.layers.iter().flat_map(|l| &l.made).map(|m| m.2).sum();
            let old: u64 = made.layers.iter().map(|l| l.nonzeros).sum();
            let off = made.layers.iter().map(|l| l.deviation());
            let (least, most) = off.fold((f64::MAX, f64::MIN), |(a, b), d| (a.min(d), b.max(d)));
            let after = model.flops(&made.graph, Convention::SparseIft).inference as f64;
            rows.push(vec![
                which.to_string(),
                sparsity(s),
                grouped(parameters),
                grouped(nonzeros),
                grouped(new),
                grouped(old),
                made.layers.len().to_string(),
                deviation(least),
                deviation(most),
                format!("{:.3}", after / before),
            ]);
        }
    }
    Ok(markdown(&head, rows))
}
