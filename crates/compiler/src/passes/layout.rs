//! How every tensor lies over the mesh's rows: inputs and mixed features are split evenly, row-local kernels keep what they get.

use crate::kernels;
use crate::plan::*;

/// Sets the layouts of all edges, for a mesh of `lanes` rows.
pub fn run(plan: &mut Plan, lanes: usize) {
    for i in 0..plan.edges.len() {
        let e = &plan.edges[i];
        let (n, features, inner) = (e.layout.n, e.layout.features(), e.layout.inner.clone());
        plan.edges[i].layout = match e.source {
            Source::Input(_) => Layout::balanced(n, features, inner, lanes),
            Source::Kernel(k) => {
                let inputs: Vec<Layout> = plan.kernels[k].inputs.iter().map(|u| plan.view(*u)).collect();
                kernels::of(&plan.kernels[k].kind).layout(&inputs, n, features, inner)
            }
        };
    }
}
