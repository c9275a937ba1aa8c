//! What the command's verbs share, usable from tests: finding models and machines, arrays in files, one run from graph to figures.

pub mod arrays;
pub mod error;
pub mod flops;
pub mod layers;
pub mod machines;
pub mod memory;
pub mod models;
pub mod papers;
pub mod rounding;
pub mod simulate;
pub mod validation;
