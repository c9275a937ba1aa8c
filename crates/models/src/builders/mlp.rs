//! The multi-layer perceptron.

use super::maker::{Maker, Values};
use super::parameters::Parameters;
use super::{BuilderError, Family};
use crate::graph::{Graph, GraphError, Op};

pub(super) const FAMILY: Family = Family {
    parameters: &["layers"],
    about: "fully connected layers with ReLU between them; layers=784-512-512-10 (sizes, input first)",
    batch: 32,
    build,
};

fn build(parameters: &mut Parameters, maker: &mut Maker, batch: usize) -> Result<(), BuilderError> {
    let text = parameters.text("layers", "784-512-512-10");
    let sizes: Option<Vec<usize>> = text
        .split('-')
        .map(|v| v.parse().ok().filter(|v| *v > 0))
        .collect();
    match sizes.filter(|s| s.len() >= 2) {
        Some(sizes) => Ok(layers(maker, &sizes, batch)?),
        None => parameters.bad("layers", "at least two sizes joined by `-`, such as 64-32-10"),
    }
}

/// A multi-layer perceptron: input `x [batch, layers[0]]`, a product with bias for each further size, ReLU between them and
/// none after the last; output `y [batch, last]`.
///
/// Weights are normal with variance 2 / inputs, biases of magnitude 0.01 to 0.05 with random sign.
///
/// # Errors
/// If there are fewer than two sizes, a size or the batch is 0, or they are absurd.
pub fn mlp(layers: &[usize], batch: usize, seed: u64) -> Result<Graph, GraphError> {
    let mut maker = Maker::new("mlp", seed, Values::Seeded);
    self::layers(&mut maker, layers, batch)?;
    Ok(maker.graph)
}

fn layers(maker: &mut Maker, sizes: &[usize], batch: usize) -> Result<(), GraphError> {
    if sizes.len() < 2 {
        return Err(GraphError::Malformed(
            "a perceptron needs at least two sizes".into(),
        ));
    }
    let mut t = maker.graph.add_input("x", &[batch, sizes[0]])?;
    for (i, pair) in sizes.windows(2).enumerate() {
        let deviation = (2.0 / pair[0] as f64).sqrt();
        let w = maker.normal(format!("fc{i}.weight"), &[pair[1], pair[0]], deviation)?;
        let b = maker.bias(format!("fc{i}.bias"), pair[1])?;
        let last = i + 2 == sizes.len();
        let output = if last { "y".into() } else { format!("fc{i}.out") };
        t = maker
            .graph
            .add_node(format!("fc{i}"), Op::Linear, &[t, w, b], output)?;
        if !last {
            t = maker.relu(&format!("relu{i}"), t)?;
        }
    }
    maker.graph.add_output(t)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builtin;

    #[test]
    fn the_default_is_spelt_out() {
        let b = builtin("mlp", 3, 0).unwrap();
        assert_eq!(b.resolved, "mlp:layers=784-512-512-10");
        assert_eq!(
            b.graph.parameters(),
            (784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10) as u64
        );
        assert_eq!(b.graph.nonzeros(), b.graph.parameters());
    }

    #[test]
    fn weights_have_the_scale_of_their_layer() {
        let g = mlp(&[256, 128], 1, 9).unwrap();
        let w = g.tensor(g.find("fc0.weight").unwrap()).data.clone().unwrap();
        let variance = w.iter().map(|v| f64::from(v * v)).sum::<f64>() / w.len() as f64;
        assert!((variance * 128.0 - 1.0).abs() < 0.03, "{variance}");
    }

    #[test]
    fn seeds_and_batches() {
        let (a, b) = (mlp(&[4, 3], 1, 1).unwrap(), mlp(&[4, 3], 1, 2).unwrap());
        assert_ne!(a.tensors(), b.tensors());
        assert_eq!(
            mlp(&[4, 3], 5, 1).unwrap().tensors(),
            a.with_batch(5).unwrap().tensors()
        );
        assert!(mlp(&[4, 3], 0, 1).is_err());
        assert!(mlp(&[1 << 20, 1 << 20], 1, 1).is_err());
    }
}
