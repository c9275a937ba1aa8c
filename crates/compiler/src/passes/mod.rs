//! The passes, in the order in which they run; one file a pass, each with a result that can be printed.

pub mod balance;
pub mod early;
pub mod emit;
pub mod lanes;
pub mod limits;
pub mod load;
pub mod memory;
pub mod placement;
pub mod rewrite;
pub mod routes;
pub mod stages;
pub mod tiles;
pub mod weights;

/// A pass: its name for `--emit`, and what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Name.
    pub name: &'static str,
    /// What its result shows.
    pub about: &'static str,
}

/// All passes in order. The first prints the graph as imported, before any of them.
pub const PASSES: [Pass; 8] = [
    Pass {
        name: "graph",
        about: "the model as built or imported: operators, shapes",
    },
    Pass {
        name: "rewritten",
        about: "kernels: batch norms folded, activations fused, input transposes absorbed, flattenings seen through",
    },
    Pass {
        name: "stages",
        about: "which kernels are on the mesh together, what each needs and is expected to cost, which weights arrive early",
    },
    Pass {
        name: "placement",
        about: "the mesh with every kernel's rectangle",
    },
    Pass {
        name: "balance",
        about: "how even the nonzeros of each kernel's PEs are, before and after features were put in another order",
    },
    Pass {
        name: "routes",
        about: "the colours of all lanes, and the links that several of them share",
    },
    Pass {
        name: "memory",
        about: "the SRAM map of every kernel's PEs",
    },
    Pass {
        name: "program",
        about: "the program for every PE, in the text form of docs/program.md",
    },
];
