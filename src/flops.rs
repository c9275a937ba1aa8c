//! FLOPs at paper scale, from graphs that nothing runs: what `meshloom flops` and docs/papers.md show.

use crate::error::Error;
use meshloom_models::accounting::{self, Convention, Flops, Functional};
use meshloom_models::{Graph, NodeId, Op, Values, builders, builtin_with};
use serde::Serialize;

/// A model to be counted: one sequence or image, built-in models without values.
pub struct Counted {
    /// Short name.
    pub name: String,
    /// Resolved parameters, or the file.
    pub source: String,
    /// The graph for a batch of 1.
    pub graph: Graph,
    /// What its authors' code calls as a function.
    pub functional: Functional,
}

/// What is counted of a graph by one convention. The fields are the keys of `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// FLOPs of one forward and one backward pass of one sequence (or image).
    pub training_flops_per_sequence: u64,
    /// FLOPs of one forward pass of one sequence.
    pub inference_flops_per_sequence: u64,
    /// Trainable values.
    pub parameters: u64,
    /// Those other than 0.
    pub nonzeros: u64,
    /// How FLOPs are counted: `engine`, `spdf` or `sparse-ift`.
    pub convention: String,
    /// Sequences of the whole training, if they were given; may be a fraction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequences: Option<f64>,
    /// FLOPs of the whole training.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training_flops_total: Option<f64>,
}

impl Counted {
    /// A built-in model or an ONNX file; `seq` replaces the built-in model's number of tokens.
    pub fn load(spec: &str, seq: Option<usize>) -> Result<Counted, Error> {
        if spec.ends_with(".onnx") || std::path::Path::new(spec).exists() {
            if let Some(seq) = seq {
                return Err(Error::Input(format!(
                    "--seq {seq}: {spec} has its number of tokens in the file; leave --seq away"
                )));
            }
            let model = crate::models::load(spec, Some(1), 0)?;
            return Ok(Counted {
                name: model.name,
                source: model.source,
                graph: model.graph,
                functional: Functional::default(),
            });
        }
        let spec = match seq {
            Some(seq) => {
                let separator = if spec.contains(':') { ',' } else { ':' };
                format!("{spec}{separator}seq={seq}")
            }
            None => spec.into(),
        };
        let built = builtin_with(&spec, 1, 0, Values::Abstract).map_err(|e| match (&e, seq) {
            (builders::BuilderError::UnknownParameter { model, .. }, Some(seq)) => Error::Input(format!(
                "--seq {seq}: `{model}` has no parameter `seq`: it is no model of tokens; leave --seq away"
            )),
            _ => Error::input(e),
        })?;
        Ok(Counted {
            name: built.graph.name.clone(),
            functional: Functional::of(&built.resolved),
            source: built.resolved,
            graph: built.graph,
        })
    }

    /// The tokens of a sequence, if the model reads tokens.
    pub fn tokens(&self) -> Option<usize> {
        let ids = self
            .graph
            .inputs()
            .iter()
            .find(|t| self.graph.vocabulary(**t).is_some())?;
        self.graph.tensor(*ids).shape.last().copied()
    }

    /// The convention of `--json` unless another is asked for: that of the paper for the models of SPDF.
    pub fn convention(&self) -> Convention {
        match self.name.as_str() {
            "gpt2-small" | "gpt3-xl" => Convention::Spdf,
            _ => Convention::Engine,
        }
    }

    /// The FLOPs of a graph made from this model.
    pub fn flops(&self, graph: &Graph, convention: Convention) -> Flops {
        accounting::total(graph, convention, self.functional)
    }

    /// All figures of a graph made from this model.
    pub fn figures(&self, graph: &Graph, convention: Convention, sequences: Option<f64>) -> Figures {
        let flops = self.flops(graph, convention);
        let (parameters, nonzeros) = accounting::parameters(graph);
        Figures {
            training_flops_per_sequence: flops.training,
            inference_flops_per_sequence: flops.inference,
            parameters,
            nonzeros,
            convention: convention.name().into(),
            sequences,
            training_flops_total: sequences.map(|n| n * flops.training as f64),
        }
    }

    /// The products of a graph made from this model, in order: name, what they are, FLOPs; all other operations last.
    pub fn layers(&self, graph: &Graph, convention: Convention) -> Vec<Layer> {
        let mut layers = Vec::new();
        let mut rest = Flops::default();
        for (id, flops) in accounting::per_node(graph, convention, self.functional) {
            match describe(graph, id) {
                Some((shape, nonzeros)) => layers.push(Layer {
                    name: graph.node(id).name.clone(),
                    shape,
                    nonzeros,
                    flops,
                }),
                None => {
                    rest.inference += flops.inference;
                    rest.training += flops.training;
                }
            }
        }
        layers.push(Layer {
            name: "all else".into(),
            shape: String::new(),
            nonzeros: None,
            flops: rest,
        });
        layers
    }
}

/// A product of a model.
pub struct Layer {
    /// The node.
    pub name: String,
    /// Its weight's shape, or what it is.
    pub shape: String,
    /// Nonzero values of its weight.
    pub nonzeros: Option<u64>,
    /// Its FLOPs.
    pub flops: Flops,
}

/// The shape of a product's weight, or what it is without one, and the weight's nonzero values.
fn describe(graph: &Graph, id: NodeId) -> Option<(String, Option<u64>)> {
    let node = graph.node(id);
    match node.op {
        Op::Conv { .. } | Op::Linear => {
            let weight = graph.tensor(node.inputs[1]);
            Some((shape(&weight.shape), weight.nonzero_count()))
        }
        Op::Attention { .. } | Op::MatMul => Some((node.op.name().into(), None)),
        _ => None,
    }
}

/// Sizes joined by x.
pub fn shape(sizes: &[usize]) -> String {
    sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

/// A difference of shares in per cent, with its sign unless it rounds to nothing: `+1.09 %`, `0.00 %`.
pub fn deviation(x: f64) -> String {
    let text = format!("{:.2}", 100.0 * x);
    match text.trim_start_matches('-') {
        "0.00" => "0.00 %".into(),
        _ => format!("{:+.2} %", 100.0 * x),
    }
}
