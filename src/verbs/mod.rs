//! The verbs of the command.

pub mod bench;
pub mod compile;
pub mod list;
pub mod run;
pub mod show;

use meshloom::error::Error;
use meshloom::models::Model;
use meshloom_models::sparsity::Mask;
use clap::builder::TypedValueParser;
use meshloom_compiler::{Options, Placement, Stages, Weights};
use meshloom_simulator::program::Ty;
use std::io::Write;

/// Options that `run` and `compile` share.
#[derive(clap::Args)]
pub struct Common {
    /// A built-in model with parameters, or an .onnx file.
    pub model: String,
    /// A machine by name (`meshloom list machines`) or a .toml file; several give one table with all.
    #[arg(long, value_name = "NAME|FILE", default_value = "small")]
    pub machine: Vec<String>,
    /// Replace a field of the machine: `--set link.bits=64 --set pe.lanes.f32=2`.
    #[arg(long, value_name = "FIELD=VALUE")]
    pub set: Vec<String>,
    /// Share of the weights of convolutions and products that is zero, 0 to below 1; several separated by commas.
    #[arg(long, value_name = "S", value_delimiter = ',', allow_negative_numbers = true)]
    pub sparsity: Vec<f64>,
    /// Which weights are zero.
    #[arg(long, value_enum, default_value = "uniform")]
    pub mask: MaskName,
    /// Element type of weights and activations; sums are f32.
    #[arg(long, value_enum, default_value = "f32")]
    pub dtype: Dtype,
    /// Samples in one tensor (default: 32 for built-in models, the file's own for .onnx).
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub batch: Option<usize>,
    /// Tensors sent through one after another.
    #[arg(long, value_name = "M", allow_negative_numbers = true)]
    pub items: Option<usize>,
    /// Seed of everything that is drawn at random.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub seed: u64,
    /// Inputs by name; an array with one more leading axis than the model's input holds that many items.
    #[arg(long, value_name = "FILE.npz")]
    pub input: Option<std::path::PathBuf>,
    /// How the model is cut into stages: one if it fits, a stage for each kernel, or one in any case.
    #[arg(long, value_enum, default_value = "auto")]
    pub stages: StagesName,
    /// Where weights are while they are multiplied: in SRAM, or entering from the edge; auto streams them where each kernel has a stage
    /// of its own, and where they do not fit.
    #[arg(long, value_enum, default_value = "auto")]
    pub weights: WeightsName,
    /// How the mesh is divided: by work, or in equal strips (to compare with).
    #[arg(long, value_enum, default_value = "work")]
    pub placement: PlacementName,
    /// Most parallel streams between two kernels.
    #[arg(long, value_name = "1|2|4", default_value_t = 4, value_parser = clap::builder::PossibleValuesParser::new(["1", "2", "4"]).map(|s| s.parse::<usize>().unwrap_or(1)))]
    pub lanes: usize,
}

/// How a model is cut into stages.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum StagesName {
    /// One if everything fits, else as few as it takes.
    Auto,
    /// A stage for each kernel, on the whole mesh.
    Layer,
    /// One, or an error.
    One,
}

/// Where weights are.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum WeightsName {
    /// Streamed with `--stages layer` and where they do not fit, else resident.
    Auto,
    /// In SRAM before a kernel begins.
    Resident,
    /// From the edge, as kernels compute.
    Streamed,
}

/// How the mesh is divided.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PlacementName {
    /// Areas in proportion to the work that is left after sparsity.
    Work,
    /// Equal strips.
    Strips,
}

/// How a mask chooses weights.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum MaskName {
    /// At random, by the seed.
    Uniform,
    /// The smallest ones.
    Magnitude,
    /// The zeros that the file has.
    Existing,
}

/// Element types.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Dtype {
    /// 32 bits.
    F32,
    /// 16 bits, f32 accumulation.
    F16,
}

impl Dtype {
    /// The machine's type.
    pub fn ty(self) -> Ty {
        match self {
            Dtype::F32 => Ty::F32,
            Dtype::F16 => Ty::F16,
        }
    }
}

impl MaskName {
    /// The models crate's mask.
    pub fn mask(self) -> Mask {
        match self {
            MaskName::Uniform => Mask::Uniform,
            MaskName::Magnitude => Mask::Magnitude,
            MaskName::Existing => Mask::Existing,
        }
    }
}

impl Common {
    /// How to compile, but for what differs from run to run.
    pub fn options(&self, items: usize) -> Options {
        Options {
            ty: self.dtype.ty(),
            items,
            skip_zeros: false,
            stages: match self.stages {
                StagesName::Auto => Stages::Auto,
                StagesName::Layer => Stages::Layer,
                StagesName::One => Stages::One,
            },
            weights: match self.weights {
                WeightsName::Auto => Weights::Auto,
                WeightsName::Resident => Weights::Resident,
                WeightsName::Streamed => Weights::Streamed,
            },
            placement: match self.placement {
                PlacementName::Work => Placement::Work,
                PlacementName::Strips => Placement::Strips,
            },
            lanes: self.lanes,
            seed: self.seed,
        }
    }
}

/// Most elements of seeded inputs, all items together.
const MOST_INPUTS: u128 = 1 << 27;

/// Inputs: by name all items, and where they came from.
pub struct Inputs {
    /// Name and items.
    pub arrays: Vec<(String, Vec<f32>)>,
    /// Number of items.
    pub items: usize,
    /// `seeded`, or the file.
    pub source: String,
}

impl Common {
    /// The model, with its batch.
    pub fn load(&self) -> Result<Model, Error> {
        meshloom::models::load(&self.model, self.batch, self.seed)
    }

    /// Inputs from the file or the seed.
    pub fn inputs(&self, model: &Model) -> Result<Inputs, Error> {
        if self.items == Some(0) {
            return Err(Error::Input("--items 0: at least one tensor goes through".into()));
        }
        if let Some(path) = &self.input {
            let (arrays, items) = meshloom::arrays::inputs(path, &model.graph)?;
            if self.items.is_some_and(|m| m != items) {
                return Err(Error::Input(format!(
                    "--items {} contradicts --input {}, which holds {items} item(s); leave --items away",
                    self.items.unwrap_or(0),
                    path.display()
                )));
            }
            return Ok(Inputs {
                arrays,
                items,
                source: path.display().to_string(),
            });
        }
        let items = self.items.unwrap_or(1);
        let elements: u128 = model
            .graph
            .inputs()
            .iter()
            .map(|t| {
                model
                    .graph
                    .tensor(*t)
                    .shape
                    .iter()
                    .map(|n| *n as u128)
                    .product::<u128>()
            })
            .sum();
        if elements * items as u128 > MOST_INPUTS {
            return Err(Error::Input(format!(
                "--items {items}: the inputs would have {} elements; at most {MOST_INPUTS} are drawn; fewer items, or a smaller --batch",
                elements * items as u128
            )));
        }
        let by_name = meshloom_models::seeded_inputs(&model.graph, self.seed, items);
        let arrays = model
            .graph
            .inputs()
            .iter()
            .map(|t| model.graph.tensor(*t).name.clone())
            .map(|n| (n.clone(), by_name[&n].clone()))
            .collect();
        Ok(Inputs {
            arrays,
            items,
            source: "seeded".into(),
        })
    }

    /// The sparsities that are to be run, 0 only where it is asked for; `existing` stands for the share of zeros in the file.
    pub fn sparsities(&self, model: &Model) -> Result<Vec<f64>, Error> {
        for (i, s) in self.sparsity.iter().enumerate() {
            if !(0.0..1.0).contains(s) {
                return Err(Error::Input(format!(
                    "--sparsity {s}: expected at least 0 and below 1, for example 0.75"
                )));
            }
            if self.sparsity[..i].contains(s) {
                return Err(Error::Input(format!(
                    "--sparsity {s} is there twice; expected each value once"
                )));
            }
        }
        let zeros = zeros(&model.graph);
        if self.mask == MaskName::Existing {
            if !self.sparsity.is_empty() {
                return Err(Error::Input("--sparsity contradicts --mask existing: the file's own zeros say how sparse it is; leave one of them away".into()));
            }
            return Ok(if zeros > 0.0 { vec![zeros] } else { Vec::new() });
        }
        if self.sparsity.is_empty() && zeros > 0.1 {
            return Ok(vec![zeros]);
        }
        Ok(self.sparsity.clone())
    }

    /// The mask that goes with [`Common::sparsities`].
    pub fn mask(&self) -> Mask {
        if self.sparsity.is_empty() {
            Mask::Existing
        } else {
            self.mask.mask()
        }
    }
}

/// Share of zeros among the weights of convolutions and products.
fn zeros(graph: &meshloom_models::Graph) -> f64 {
    use meshloom_models::Op;
    let (mut all, mut zero) = (0u64, 0u64);
    for id in graph.nodes_in_order() {
        let node = graph.node(id);
        if matches!(node.op, Op::Conv { .. } | Op::Linear)
            && let Some(w) = &graph.tensor(node.inputs[1]).data
        {
            all += w.len() as u64;
            zero += w.iter().filter(|w| **w == 0.0).count() as u64;
        }
    }
    if all == 0 { 0.0 } else { zero as f64 / all as f64 }
}

/// Prints to standard output; a reader that went away is not an error.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    let text = if text.ends_with('\n') {
        text.to_string()
    } else {
        format!("{text}\n")
    };
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::Input(format!("can't write to standard output: {e}")))
        }
        _ => Ok(()),
    }
}
