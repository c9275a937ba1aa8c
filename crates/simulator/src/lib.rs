//! The machine and what it does: its description, the PE program (the ISA) and the engines that execute it. This crate knows
//! nothing of neural networks, and does no input or output.

pub mod change;
pub mod edge;
pub mod expr;
pub mod machine;
pub mod numerics;
pub mod program;
pub mod text;
pub mod verify;

pub mod engine;

pub use expr::{Axes, Expr, Table};
pub use machine::{Channel, Machine, MachineError, Side};
