//! The verbs of the command.

pub mod bench;
pub mod compile;
pub mod flops;
pub mod list;
pub mod run;
pub mod show;

use clap::builder::TypedValueParser;
use meshloom::error::Error;
use meshloom::models::Model;
use meshloom_compiler::{Options, Placement, Stages, Weights};
use meshloom_models::Graph;
use meshloom_models::sparsity::{self, Mask, Plan};
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
    #[command(flatten)]
    pub zeros: Zeros,
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
    /// Whether features are put in an order that evens out the PEs' nonzeros.
    #[arg(long, value_enum, default_value = "on")]
    pub balance: Switch,
    /// Most parallel streams between two kernels.
    #[arg(long, value_name = "1|2|4", default_value_t = 4, value_parser = clap::builder::PossibleValuesParser::new(["1", "2", "4"]).map(|s| s.parse::<usize>().unwrap_or(1)))]
    pub lanes: usize,
}

/// On or off.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    /// Do it.
    On,
    /// Leave it.
    Off,
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

/// Which weights are zero.
#[derive(clap::Args)]
pub struct Zeros {
    /// Share of the masked weights that is zero, 0 to below 1; several separated by commas. Masked are the weights of
    /// convolutions and products, but for embeddings, the stem and the head.
    #[arg(long, value_name = "S", value_delimiter = ',', allow_negative_numbers = true)]
    pub sparsity: Vec<f64>,
    /// Which weights are zero: uniform (at random, by the seed), magnitude (the smallest), existing (the file's own zeros),
    /// N:M (N of each M kept along the input features, as 2:4), skewed:CV (at random, rows with unequal numbers, as
    /// skewed:0.3) [default: uniform].
    #[arg(long, allow_hyphen_values = true)]
    pub mask: Option<Mask>,
    /// Mask the stem and the head too, and embeddings that products share.
    #[arg(long)]
    pub mask_all: bool,
    /// Sparsities and masks by layer, from a TOML file (docs/sparsity.md).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["sparsity", "mask", "mask_all"])]
    pub sparsity_file: Option<std::path::PathBuf>,
}

/// A graph with its weights masked.
pub struct Sparse {
    /// The share of zeros among the weights that are masked.
    pub sparsity: f64,
    /// The graph.
    pub graph: Graph,
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
            balance: self.balance == Switch::On,
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

    /// The sparse graphs that are asked for.
    pub fn sparse(&self, model: &Model) -> Result<Vec<Sparse>, Error> {
        self.zeros.graphs(&model.graph, self.seed)
    }
}

impl Zeros {
    /// The sparse graphs that are asked for, those of sparsity 0 left out. Without any option, the graph itself if over a
    /// tenth of its weights is zero.
    pub fn graphs(&self, graph: &Graph, seed: u64) -> Result<Vec<Sparse>, Error> {
        if let Some(path) = &self.sparsity_file {
            let plan = meshloom::layers::read(path)?.plan(graph);
            let plan = plan.map_err(|e| Error::Input(format!("--sparsity-file {}: {e}", path.display())))?;
            return Ok(vec![sparse(graph, &plan, seed)?]);
        }
        let mask = self.mask.unwrap_or(Mask::Uniform);
        let own = || zeros(graph);
        if mask == Mask::Existing || (self.sparsity.is_empty() && self.mask.is_none()) {
            if !self.sparsity.is_empty() {
                return Err(Error::Input("--sparsity contradicts --mask existing: the file's own zeros say how sparse it is; leave one of them away".into()));
            }
            let least = if mask == Mask::Existing { 0.0 } else { 0.1 };
            let sparsity = own();
            let graph = graph.clone();
            return Ok(if sparsity > least {
                vec![Sparse { sparsity, graph }]
            } else {
                Vec::new()
            });
        }
        let asked: Vec<f64> = match mask.own_fraction() {
            Some(own) if self.sparsity.is_empty() => vec![own],
            _ => self.sparsity.clone(),
        };
        if asked.is_empty() {
            return Err(Error::Input(format!(
                "--mask {mask} needs a sparsity; add --sparsity S, for example --sparsity 0.75"
            )));
        }
        for (i, s) in asked.iter().enumerate() {
            if !(0.0..1.0).contains(s) {
                return Err(Error::Input(format!(
                    "--sparsity {s}: expected at least 0 and below 1, for example 0.75"
                )));
            }
            if asked[..i].contains(s) {
                return Err(Error::Input(format!(
                    "--sparsity {s} is there twice; expected each value once"
                )));
            }
        }
        let plans = asked.iter().map(|s| match self.mask_all {
            true => Plan::same(&sparsity::weights(graph), *s, mask),
            false => Plan::default_weights(graph, *s, mask),
        });
        plans
            .map(|plan| {
                let plan = plan.map_err(|e| match e {
                    sparsity::SparsityError::Nothing { .. } => {
                        Error::Input(format!("{e}; --mask-all masks them too"))
                    }
                    e => Error::input(e),
                })?;
                sparse(graph, &plan, seed)
            })
            .collect()
    }
}

/// A plan applied; where a mask is skewed, standard error says how skewed it came out.
fn sparse(graph: &Graph, plan: &Plan, seed: u64) -> Result<Sparse, Error> {
    let masked = plan.apply(graph, seed).map_err(Error::input)?;
    let mut by_mask: Vec<(Mask, f64, f64)> = Vec::new();
    for entry in plan
        .entries
        .iter()
        .filter(|e| matches!(e.mask, Mask::Skewed { .. }))
    {
        let Some(cv) = sparsity::row_variation(&masked, entry.weight) else {
            continue;
        };
        match by_mask.iter_mut().find(|(mask, ..)| *mask == entry.mask) {
            Some((_, least, most)) => (*least, *most) = (least.min(cv), most.max(cv)),
            None => by_mask.push((entry.mask, cv, cv)),
        }
    }
    for (mask, least, most) in by_mask {
        eprintln!(
            "mask {mask}: coefficient of variation over the rows of each weight {least:.3} to {most:.3}"
        );
    }
    Ok(Sparse {
        sparsity: plan.sparsity(graph),
        graph: masked,
    })
}

/// Share of zeros among the weights of convolutions and products.
fn zeros(graph: &Graph) -> f64 {
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
