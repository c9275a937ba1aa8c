//! Decoder-only transformers as GPT-2 has them: learned positions, norms before each part, causal attention, a GELU
//! perceptron, residual additions, a head that gives logits for every token.

use super::maker::Maker;
use super::parameters::Parameters;
use super::{BuilderError, Family};
use crate::graph::{GraphError, Op, TensorId};

pub(super) const FAMILY: Family = Family {
    parameters: &["layers", "width", "heads", "seq", "vocab", "mlp", "tied"],
    about: "decoder-only transformer (GPT-2); layers=2, width=128, heads=4, seq=64 (tokens), vocab=256, mlp=4 (times width), tied=false (head and embedding share weights)",
    batch: 1,
    build,
};

/// Sizes of a transformer.
struct Sizes {
    layers: usize,
    width: usize,
    heads: usize,
    hidden: usize,
}

fn build(p: &mut Parameters, m: &mut Maker, batch: usize) -> Result<(), BuilderError> {
    let (layers, width) = (p.layers("layers", 2, 1)?, p.size("width", 128)?);
    let heads = p.size("heads", 4)?;
    if !width.is_multiple_of(heads) {
        return p.bad("heads", format!("a divisor of the width, {width}"));
    }
    let (seq, vocab) = (p.size("seq", 64)?, p.size("vocab", 256)?);
    let hidden = width * p.within("mlp", 4, 1, 64)?;
    let tied = p.flag("tied", false)?;
    let sizes = Sizes {
        layers,
        width,
        heads,
        hidden,
    };

    let ids = m.graph.add_input("ids", &[batch, seq])?;
    // a table that is the head as well gives logits of order 1
    let deviation = if tied { (1.0 / width as f64).sqrt() } else { 0.7 };
    let tokens = m.normal("wte.weight", &[vocab, width], deviation)?;
    let positions = m.normal("wpe.weight", &[seq, width], deviation)?;
    let x = m.node("wte", Op::Gather, &[ids, tokens], deviation * deviation)?;
    m.expect(positions, deviation * deviation);
    let mut x = m.add("wpe", x, positions)?;
    for i in 0..layers {
        x = attention(m, &format!("h{i}"), x, &sizes)?;
        x = perceptron(m, &format!("h{i}"), x, &sizes)?;
    }
    let x = m.layer_norm("ln_f", x)?;
    let head = if tied {
        tokens
    } else {
        m.normal("lm_head.weight", &[vocab, width], (1.0 / width as f64).sqrt())?
    };
    let logits = m.graph.add_node("lm_head", Op::Linear, &[x, head], "logits")?;
    m.graph.add_output(logits)?;
    Ok(())
}

/// Deviations for a layer that reads `k` features: as it is, and where its result is added to the residual stream, whose
/// mean square 2 * layers additions should about double.
fn deviations(sizes: &Sizes, k: usize) -> (f64, f64) {
    let deviation = (1.0 / k as f64).sqrt();
    (deviation, deviation / (2.0 * sizes.layers as f64).sqrt())
}

fn attention(m: &mut Maker, layer: &str, x: TensorId, sizes: &Sizes) -> Result<TensorId, GraphError> {
    let (d, name) = (sizes.width, format!("{layer}.attn"));
    let (plain, residual) = deviations(sizes, d);
    let normed = m.layer_norm(&format!("{layer}.ln_1"), x)?;
    let joined = m.linear(&format!("{name}.c_attn"), normed, 3 * d, plain)?;
    let mut parts = Vec::new();
    for (i, part) in ["q", "k", "v"].iter().enumerate() {
        let op = Op::Slice {
            axis: 2,
            start: i * d,
            end: (i + 1) * d,
        };
        let square = m.square(joined);
        parts.push(m.node(&format!("{name}.{part}"), op, &[joined], square)?);
    }
    let op = Op::Attention {
        heads: sizes.heads,
        causal: true,
    };
    let mixed = m.node(&name, op, &parts, 1.0)?;
    let projected = m.linear(&format!("{name}.c_proj"), mixed, d, residual)?;
    m.add(&format!("{name}.add"), x, projected)
}

fn perceptron(m: &mut Maker, layer: &str, x: TensorId, sizes: &Sizes) -> Result<TensorId, GraphError> {
    let name = format!("{layer}.mlp");
    let normed = m.layer_norm(&format!("{layer}.ln_2"), x)?;
    let hidden = m.linear(
        &format!("{name}.c_fc"),
        normed,
        sizes.hidden,
        deviations(sizes, sizes.width).0,
    )?;
    // the mean square of a standard normal's GELU is about 0.43
    let square = 0.43 * m.square(hidden);
    let active = m.node(
        &format!("{name}.gelu"),
        Op::Gelu { tanh: true },
        &[hidden],
        square,
    )?;
    let residual = deviations(sizes, sizes.hidden).1;
    let projected = m.linear(&format!("{name}.c_proj"), active, sizes.width, residual)?;
    m.add(&format!("{name}.add"), x, projected)
}

#[cfg(test)]
mod tests {
    use crate::builders::{Values, builtin, builtin_with};
    use crate::{evaluate, flops};
    use std::collections::BTreeMap;

    #[test]
    fn parameters_and_products_follow_the_formulas() {
        let g = builtin_with("gpt3-xl:tied=false", 1, 0, Values::Abstract)
            .unwrap()
            .graph;
        let (layers, d, seq, vocab) = (24u64, 2048u64, 2048u64, 50257u64);
        let block = 12 * d * d + 13 * d;
        assert_eq!(g.parameters(), layers * block + 2 * vocab * d + seq * d + 2 * d);
        let c = flops::total(&g);
        assert_eq!(c.mac_dense, seq * (layers * 12 * d * d + vocab * d));
        assert_eq!(c.mac_act_published, layers * 2 * seq * seq * d);
        assert_eq!(c.mac_act, layers * seq * (seq + 1) * d);
    }

    #[test]
    fn a_token_sees_itself_and_those_before_it() {
        let g = builtin("gpt:layers=2,width=16,heads=2,seq=6,vocab=9", 1, 4)
            .unwrap()
            .graph;
        let run = |ids: [f64; 6]| {
            let mut values = evaluate(&g, &BTreeMap::from([("ids".to_string(), ids.to_vec())])).unwrap();
            values[g.outputs()[0].0 as usize].take().unwrap()
        };
        let (a, b) = (
            run([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]),
            run([1.0, 2.0, 3.0, 4.0, 8.0, 6.0]),
        );
        assert_eq!(a[..4 * 9], b[..4 * 9]);
        assert!((4..6).all(|t| a[t * 9..][..9] != b[t * 9..][..9]));
        // and no position is ignored
        let c = run([7.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert!((0..6).all(|t| a[t * 9..][..9] != c[t * 9..][..9]));
    }
}
