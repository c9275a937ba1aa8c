//! What to compute: the graph of a model, where it comes from (builders, ONNX files), what it should give (the reference
//! evaluator in f64), which of its weights are zero (masks) and how much work it is (operation counts). This crate knows
//! nothing of machines.

pub mod accounting;
pub mod builders;
mod edit;
pub mod evaluate;
pub mod flops;
pub mod graph;
pub mod onnx;
pub mod raise;
mod random;
pub mod shapes;
pub mod sparsity;
mod text;
pub mod transform;
mod verify;

pub use builders::{BuiltIn, Values, builtin, builtin_with, default_batch, list};
pub use evaluate::{EvaluateError, evaluate, evaluate_adjusted, evaluate_node};
pub use flops::Counts;
pub use graph::{Graph, GraphError, Node, NodeId, Op, Tensor, TensorId};
pub use onnx::{ImportError, ImportOptions, import};
pub use raise::raise;
pub use random::seeded_inputs;
pub use sparsity::{Layers, Mask, Plan, SparsityError, sparsify};
