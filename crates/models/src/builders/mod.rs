//! Models that are built, not read: the registry of their names, and the builders, one file a family.
//!
//! A specification is a name and optionally parameters: `gpt:layers=4,width=256`. Presets are a family's model with other
//! defaults (`gpt2-small`). Weights are seeded and not degenerate: no bias is 0, gains are about 1, statistics of batch norms
//! are those of the activations that they meet, which stay of order 1 through the depth of the model.

pub mod fabric;
mod gpt;
mod maker;
mod mlp;
mod mobilenet;
mod mobilenet_cifar;
mod parameters;
mod resnet;

pub use maker::Values;
pub use mlp::mlp;

use crate::graph::{Graph, GraphError};
use maker::Maker;
use parameters::Parameters;
use thiserror::Error;

/// Why a built-in model cannot be built.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum BuilderError {
    /// No model has this name.
    #[error("no built-in model is called `{name}`; there are: {known}")]
    UnknownModel {
        /// The name asked for.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// The model has no such parameter.
    #[error("`{model}` has no parameter `{parameter}`; it has: {known}")]
    UnknownParameter {
        /// The model.
        model: &'static str,
        /// The parameter asked for.
        parameter: String,
        /// Those that exist.
        known: String,
    },
    /// A parameter's value cannot be read, or does not go with the others.
    #[error("parameter `{parameter}` is `{value}`: expected {expected}")]
    Value {
        /// The parameter.
        parameter: &'static str,
        /// Its value.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// A parameter is given twice.
    #[error("parameter `{0}` is given twice")]
    Twice(String),
    /// The graph cannot be built with these parameters.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// A built-in model.
#[derive(Debug, Clone)]
pub struct BuiltIn {
    /// The model.
    pub graph: Graph,
    /// The specification with all parameters spelt out: with it, the batch and the seed the same graph is built.
    pub resolved: String,
}

/// How a family makes its graph of the given batch: it asks for its parameters, and adds to the maker's graph.
type Build = fn(&mut Parameters, &mut Maker, usize) -> Result<(), BuilderError>;

/// Models of one kind.
struct Family {
    /// The names of its parameters.
    parameters: &'static [&'static str],
    /// What it is and the defaults of its parameters.
    about: &'static str,
    /// The batch where none is asked for.
    batch: usize,
    build: Build,
}

/// A name, its family, and the parameters for which it has other defaults.
struct Model {
    name: &'static str,
    family: &'static Family,
    defaults: &'static [(&'static str, &'static str)],
    about: &'static str,
}

/// A family under its own name.
const fn plain(name: &'static str, family: &'static Family) -> Model {
    Model {
        name,
        family,
        defaults: &[],
        about: family.about,
    }
}

const MODELS: [Model; 14] = [
    plain("mlp", &mlp::FAMILY),
    plain("gpt", &gpt::FAMILY),
    plain("resnet18", &resnet::RESNET18),
    plain("resnet34", &resnet::RESNET34),
    plain("resnet50", &resnet::RESNET50),
    plain("fabric", &fabric::FAMILY),
    plain("mobilenetv2", &mobilenet::FAMILY),
    plain("mobilenetv2-cifar", &mobilenet_cifar::FAMILY),
    Model {
        name: "gpt2-small",
        family: &gpt::FAMILY,
        defaults: &[
            ("layers", "12"),
            ("width", "768"),
            ("heads", "12"),
            ("seq", "1024"),
            ("vocab", "50257"),
            ("tied", "true"),
        ],
        about: "GPT-2 small: gpt with 12 layers of 768, 12 heads, 1024 tokens, vocabulary 50257, tied",
    },
    Model {
        name: "gpt3-xl",
        family: &gpt::FAMILY,
        defaults: &[
            ("layers", "24"),
            ("width", "2048"),
            ("heads", "16"),
            ("seq", "2048"),
            ("vocab", "50257"),
            ("tied", "true"),
        ],
        about: "GPT-3 XL as SPDF has it: gpt with 24 layers of 2048, 16 heads, 2048 tokens, vocabulary 50257, tied",
    },
    Model {
        name: "mediswift-med",
        family: &gpt::FAMILY,
        defaults: &[
            ("layers", "24"),
            ("width", "1024"),
            ("heads", "16"),
            ("seq", "2048"),
            ("vocab", "50257"),
            ("tied", "true"),
        ],
        about: "MediSwift Med: gpt with 24 layers of 1024, 2048 tokens; 16 heads and the vocabulary are assumed",
    },
    Model {
        name: "mediswift-large",
        family: &gpt::FAMILY,
        defaults: &[
            ("layers", "18"),
            ("width", "1536"),
            ("heads", "16"),
            ("seq", "2048"),
            ("vocab", "50257"),
            ("tied", "true"),
        ],
        about: "MediSwift Large: gpt with 2048 tokens; 18 layers of 1536 are inferred from 510 M, heads and vocabulary assumed",
    },
    Model {
        name: "mediswift-xl",
        family: &gpt::FAMILY,
        defaults: &[
            ("layers", "24"),
            ("width", "2048"),
            ("heads", "16"),
            ("seq", "2048"),
            ("vocab", "50257"),
            ("tied", "true"),
        ],
        about: "MediSwift XL: gpt with 24 layers of 2048, 2048 tokens; 16 heads and the vocabulary are assumed",
    },
    Model {
        name: "fabric-cifar10",
        family: &fabric::FAMILY,
        defaults: &[("layers", "8"), ("scales", "6"), ("channels", "128")],
        about: "the fabric for CIFAR-10 with 18,006,666 parameters: 8 layers, 6 scales, 128 channels, dense",
    },
];

/// The built-in models, each with what it is and its parameters.
pub fn list() -> Vec<(&'static str, &'static str)> {
    MODELS.iter().map(|m| (m.name, m.about)).collect()
}

fn find(spec: &str) -> Result<(&'static Model, &str), BuilderError> {
    let (name, parameters) = spec.split_once(':').unwrap_or((spec, ""));
    match MODELS.iter().find(|m| m.name == name) {
        Some(model) => Ok((model, parameters)),
        None => Err(BuilderError::UnknownModel {
            name: name.into(),
            known: MODELS.map(|m| m.name).join(", "),
        }),
    }
}

/// The batch that a model of this name (or specification) is built with where none is asked for; 1 if there is no such model.
pub fn default_batch(name: &str) -> usize {
    find(name).map_or(1, |(model, _)| model.family.batch)
}

/// Builds the model of a specification with its values. `seed` is that of the weights.
///
/// # Errors
/// A [`BuilderError`] that lists what exists.
pub fn builtin(spec: &str, batch: usize, seed: u64) -> Result<BuiltIn, BuilderError> {
    builtin_with(spec, batch, seed, Values::Seeded)
}

/// As [`builtin`]; with [`Values::Abstract`] no values are made, so that a model of any size can be counted.
///
/// # Errors
/// As [`builtin`].
pub fn builtin_with(spec: &str, batch: usize, seed: u64, values: Values) -> Result<BuiltIn, BuilderError> {
    let (model, given) = find(spec)?;
    let mut parameters = Parameters::parse(model, given)?;
    let mut maker = Maker::new(model.name, seed, values);
    (model.family.build)(&mut parameters, &mut maker, batch)?;
    Ok(BuiltIn {
        graph: maker.graph,
        resolved: parameters.resolved(model.name),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evaluate::evaluate;
    use crate::{flops, seeded_inputs};

    /// Specifications of every family small enough to run.
    const SMALL: [&str; 10] = [
        "mlp:layers=12-7-5",
        "gpt:layers=2,width=24,heads=3,seq=7,vocab=11",
        "gpt:layers=1,width=8,heads=1,seq=4,vocab=5,mlp=2,tied=true",
        "resnet18:width=4",
        "resnet34:stem=imagenet,width=4,size=64,classes=7",
        "resnet50:width=2",
        "fabric",
        "fabric:layers=2,scales=3,channels=4,banded=true,readout=finest",
        "mobilenetv2:width=0.25,size=32,classes=5",
        "mobilenetv2-cifar:classes=5",
    ];

    #[test]
    fn resolved_specifications_build_the_same_graph() {
        for spec in SMALL {
            let one = builtin(spec, 2, 5).unwrap();
            one.graph.verify().unwrap();
            let again = builtin(&one.resolved, 2, 5).unwrap();
            assert_eq!(again.resolved, one.resolved);
            assert_eq!(again.graph.tensors(), one.graph.tensors(), "{spec}");
            let other = builtin(spec, 2, 6).unwrap().graph;
            assert_ne!(other.tensors(), one.graph.tensors(), "{spec}");
        }
    }

    #[test]
    fn abstract_graphs_count_as_those_with_values() {
        for spec in SMALL {
            let full = builtin(spec, 1, 0).unwrap().graph;
            let none = builtin_with(spec, 1, 0, Values::Abstract).unwrap().graph;
            none.verify().unwrap();
            assert!(none.tensors().iter().all(|t| t.data.is_none()), "{spec}");
            assert_eq!(none.parameters(), full.parameters(), "{spec}");
            assert_eq!(none.nonzeros(), full.nonzeros(), "{spec}");
            let (a, b) = (flops::total(&none), flops::total(&full));
            assert_eq!((a.mac_dense, a.mac_published), (b.mac_dense, b.mac_published));
            assert_eq!((a.mac_act, a.other), (b.mac_act, b.other), "{spec}");
            if !spec.contains("banded") {
                assert_eq!(a, b, "{spec}");
            }
        }
    }

    #[test]
    fn weights_are_not_degenerate_and_activations_stay_of_order_one() {
        for spec in [
            "mlp",
            "gpt",
            "resnet18",
            "resnet34",
            "resnet50",
            "fabric",
            "mobilenetv2:width=0.25,size=64",
        ] {
            let graph = builtin(spec, 1, 1).unwrap().graph;
            for t in graph.constants() {
                let data = graph.tensor(t).data.as_deref().unwrap();
                assert!(data.iter().all(|v| *v != 0.0), "{spec}: {}", graph.tensor(t).name);
                assert!(data.len() == 1 || data[1..].iter().any(|v| *v != data[0]));
            }
            let inputs = seeded_inputs(&graph, 2, 1);
            let inputs = inputs
                .into_iter()
                .map(|(name, v)| (name, v.into_iter().map(f64::from).collect()));
            let values = evaluate(&graph, &inputs.collect()).unwrap();
            for id in graph.nodes_in_order() {
                let y = graph.node(id).output;
                let v = values[y.0 as usize].as_ref().unwrap();
                let rms = (v.iter().map(|v| v * v).sum::<f64>() / v.len() as f64).sqrt();
                assert!(
                    (0.05..12.0).contains(&rms),
                    "{spec}: {} has {rms}",
                    graph.tensor(y).name
                );
            }
        }
    }

    #[test]
    fn batches_can_be_changed_afterwards() {
        for spec in SMALL {
            let (one, three) = (
                builtin(spec, 1, 3).unwrap().graph,
                builtin(spec, 3, 3).unwrap().graph,
            );
            assert_eq!(one.with_batch(3).unwrap().tensors(), three.tensors(), "{spec}");
        }
    }

    #[test]
    fn presets_are_families_with_other_defaults() {
        let small = builtin_with("gpt2-small", 1, 0, Values::Abstract).unwrap();
        // the published number of parameters
        assert_eq!(small.graph.trainable_parameters(), 124_439_808);
        assert_eq!(
            small.resolved,
            "gpt2-small:layers=12,width=768,heads=12,seq=1024,vocab=50257,mlp=4,tied=true"
        );
        let short = builtin_with("gpt2-small:seq=128", 1, 0, Values::Abstract)
            .unwrap()
            .graph;
        assert_eq!(short.tensor(short.inputs()[0]).shape, [1, 128]);
        assert_eq!(
            (default_batch("gpt2-small"), default_batch("mlp:layers=4-2")),
            (1, 32)
        );
    }

    #[test]
    fn absurd_parameters_are_errors() {
        for spec in [
            "gpt:heads=3",
            "gpt:layers=0",
            "gpt:width=99999999999999999999",
            "gpt:layers=1000000000",
            "gpt:vocab=1000000,width=1000000",
            "gpt:tied=yes",
            "gpt:depth=3",
            "fabric:scales=40",
            "fabric:layers=1",
            "fabric:readout=middle",
            "resnet18:size=1000000",
            "mobilenetv2:width=-1",
            "mobilenetv2:width=nan",
            "resnet18:width=4,width=8",
        ] {
            let error = builtin(spec, 1, 0).unwrap_err();
            assert!(!error.to_string().is_empty(), "{spec}");
        }
        assert!(builtin("gpt:width=8,heads=1,vocab=3,seq=2", 0, 0).is_err());
    }
}
