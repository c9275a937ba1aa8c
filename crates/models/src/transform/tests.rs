use super::*;
use crate::builders::{Values, builtin, builtin_with};
use crate::evaluate::evaluate;
use crate::graph::TensorId;
use crate::{flops, seeded_inputs};

/// Models small enough to run, of every family.
const SMALL: [&str; 7] = [
    "mlp:layers=12-20-40-5",
    "gpt:layers=2,width=24,heads=3,seq=7,vocab=11",
    "gpt:layers=1,width=8,heads=2,seq=4,vocab=5,tied=true",
    "resnet18:width=8",
    "fabric",
    "fabric:banded=true,channels=12",
    "mobilenetv2:width=0.25,size=32,classes=5",
];

fn values(graph: &Graph) -> Vec<Option<Vec<f64>>> {
    let inputs = seeded_inputs(graph, 2, 1);
    let inputs = inputs
        .into_iter()
        .map(|(name, v)| (name, v.into_iter().map(f64::from).collect()));
    evaluate(graph, &inputs.collect()).unwrap()
}

fn output(graph: &Graph) -> Vec<f64> {
    values(graph)[graph.outputs()[0].0 as usize].clone().unwrap()
}

fn weight(graph: &Graph, name: &str) -> (TensorId, Vec<f64>) {
    let t = graph.find(name).unwrap_or_else(|| panic!("no tensor {name}"));
    let data = graph.tensor(t).data.as_deref().unwrap();
    (t, data.iter().map(|v| f64::from(*v)).collect())
}

#[test]
fn layers_keep_their_nonzero_weights_exactly() {
    for spec in SMALL {
        for which in Transform::ALL {
            for sparsity in [0.3, 0.5, 0.75, 0.9] {
                if which == Transform::Doped && spec.contains("banded") {
                    // a band has fewer values than a low rank
                    continue;
                }
                for values in [Values::Seeded, Values::Abstract] {
                    let dense = builtin_with(spec, 1, 3, values).unwrap().graph;
                    let made = transform(&dense, which, sparsity, 1).unwrap();
                    made.graph.verify().unwrap();
                    for layer in &made.layers {
                        let sum: u64 = layer.made.iter().map(|m| m.2).sum();
                        assert_eq!(sum, layer.nonzeros, "{spec} {which} {}", layer.name);
                        let before = dense.tensor(dense.find(&layer.name).unwrap());
                        assert_eq!(before.nonzero_count(), Some(layer.nonzeros));
                        assert_eq!(before.shape, layer.shape);
                        for (name, shape, nonzeros) in &layer.made {
                            let t = made.graph.tensor(made.graph.find(name).unwrap());
                            assert_eq!(&t.shape, shape);
                            assert_eq!(t.nonzero_count(), Some(*nonzeros), "{spec} {which} {name}");
                        }
                    }
                    let inner = crate::sparsity::maskable(&dense).len();
                    assert_eq!(made.layers.len() + made.left.len(), inner, "{spec} {which}");
                    // outputs are as they were
                    let shape = |g: &Graph| g.tensor(g.outputs()[0]).shape.clone();
                    assert_eq!(shape(&made.graph), shape(&dense), "{spec} {which}");
                }
            }
        }
    }
}

#[test]
fn transformed_graphs_run_and_keep_the_scale_of_their_activations() {
    for spec in SMALL {
        let dense = builtin(spec, 1, 3).unwrap().graph;
        for which in Transform::ALL {
            if which == Transform::Doped && spec.contains("banded") {
                let error = transform(&dense, which, 0.75, 1).unwrap_err();
                assert_eq!(error, TransformError::Nothing("fabric".into()));
                continue;
            }
            let made = transform(&dense, which, 0.5, 1).unwrap().graph;
            let all = values(&made);
            for id in made.nodes_in_order() {
                let t = made.node(id).output;
                let v = all[t.0 as usize].as_ref().unwrap();
                let rms = (v.iter().map(|v| v * v).sum::<f64>() / v.len() as f64).sqrt();
                assert!(
                    (0.02..25.0).contains(&rms),
                    "{spec} {which}: {} has {rms}",
                    made.tensor(t).name
                );
            }
        }
    }
}

#[test]
fn work_is_that_of_the_dense_layers() {
    // all positions of all taps hit: what a layer's weights cost is their number
    for which in Transform::ALL {
        let spec = "gpt:layers=2,width=96,heads=4,seq=16,vocab=31";
        let dense = builtin_with(spec, 1, 0, Values::Abstract).unwrap().graph;
        let made = transform(&dense, which, 0.75, 0).unwrap();
        let layers: u64 = made.layers.iter().map(|l| l.nonzeros).sum();
        let head = |g: &Graph| {
            let t = g.tensor(g.find("lm_head.weight").unwrap());
            t.elements()
        };
        let counts = flops::total(&made.graph);
        assert_eq!(
            counts.mac_theoretical,
            16 * (layers + head(&made.graph)),
            "{which}"
        );
        let before = flops::total(&dense);
        assert_eq!(
            counts.mac_theoretical - 16 * head(&made.graph),
            before.mac_dense - 16 * head(&dense)
        );
    }
}

/// `sparse + v u` of one layer.
fn product(u: &[f64], v: &[f64], outputs: usize) -> Vec<f64> {
    let rank = v.len() / outputs;
    let inputs = u.len() / rank;
    let mut w = vec![0.0; outputs * inputs];
    for o in 0..outputs {
        for r in 0..rank {
            for i in 0..inputs {
                w[o * inputs + i] += v[o * rank + r] * u[r * inputs + i];
            }
        }
    }
    w
}

fn agree(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= 1e-6 * (1.0 + b.abs()), "{a} {b}");
    }
}

#[test]
fn a_transformed_layer_is_the_dense_layer_of_its_joined_weights() {
    for spec in [
        "mlp:layers=12-20-16-5",
        "gpt:layers=1,width=24,heads=3,seq=7,vocab=11",
        "fabric",
    ] {
        let dense = builtin(spec, 1, 3).unwrap().graph;
        for which in [Transform::Factorized, Transform::Doped, Transform::Parallel] {
            let made = transform(&dense, which, 0.75, 1).unwrap();
            if which == Transform::Parallel && spec == "fabric" {
                // a norm a branch: the same but for epsilon
                continue;
            }
            let mut joined = dense.clone();
            for layer in &made.layers {
                let part = |end: &str| weight(&made.graph, &format!("{}.{end}", layer.name)).1;
                let mut w = match which {
                    Transform::Parallel => vec![0.0; layer.nonzeros as usize],
                    _ => product(&part("u"), &part("v"), layer.shape[0]),
                };
                match which {
                    Transform::Doped => w.iter_mut().zip(part("sparse")).for_each(|(w, s)| *w += s),
                    Transform::Parallel => {
                        for i in 0..4 {
                            w.iter_mut().zip(part(&i.to_string())).for_each(|(w, s)| *w += s);
                        }
                    }
                    _ => {}
                }
                let t = joined.find(&layer.name).unwrap();
                joined
                    .set_constant(t, w.into_iter().map(|v| v as f32).collect())
                    .unwrap();
            }
            agree(&output(&made.graph), &output(&joined));
        }
    }
}

#[test]
fn a_batch_norm_goes_with_each_branch() {
    let dense = builtin("resnet18:width=4", 1, 3).unwrap().graph;
    let made = transform(&dense, Transform::Parallel, 0.5, 1).unwrap().graph;
    let count = |g: &Graph, op: &str| {
        let nodes = g.nodes_in_order();
        nodes.into_iter().filter(|id| g.node(*id).op.name() == op).count()
    };
    let inner = count(&dense, "conv") - 1;
    assert_eq!(count(&made, "conv"), 2 * inner + 1);
    assert_eq!(count(&made, "batchnorm"), 2 * inner + 1);
    assert_eq!(count(&made, "relu"), count(&dense, "relu"));
    assert_eq!(count(&made, "add"), count(&dense, "add") + inner);
}

#[test]
fn published_widths_and_ranks() {
    let of = |spec: &str, which: Transform, s: f64| {
        let g = builtin_with(spec, 1, 0, Values::Abstract).unwrap().graph;
        transform(&g, which, s, 0).unwrap()
    };
    let layer = |made: &Transformed, name: &str| {
        let found = made.layers.iter().find(|l| l.name == name);
        found.unwrap_or_else(|| panic!("no layer {name}")).clone()
    };
    // GPT-3 small: 768 to 1092 and 1536
    let half = of("gpt2-small", Transform::Wide, 0.5);
    let fc = layer(&half, "h0.attn.c_proj.weight");
    assert_eq!(fc.made[0].1, [1092, 1092]);
    assert!((fc.deviation() - 0.0109).abs() < 0.0001, "{}", fc.deviation());
    assert!((fc.sparsity - 0.505374).abs() < 1e-6);
    assert!(
        half.layers
            .iter()
            .all(|l| (l.deviation() - fc.deviation()).abs() < 1e-6)
    );
    let most = of("gpt2-small", Transform::Wide, 0.75);
    let fc = layer(&most, "h11.mlp.c_fc.weight");
    assert_eq!((fc.made[0].1.clone(), fc.deviation()), (vec![6144, 1536], 0.0));
    // what stays dense and widens: embeddings (shared with the head), positions, norms, biases
    assert_eq!(half.widened.len(), 2 + 12 * (2 * 2 + 4) + 2);
    assert!(half.left.is_empty());
    // ResNet-18: 64 to 90, as the authors' code has it
    let r18 = of("resnet18:stem=imagenet", Transform::Wide, 0.5);
    assert_eq!(layer(&r18, "layer1.0.conv1.weight").made[0].1, [90, 90, 3, 3]);
    assert_eq!(layer(&r18, "layer4.1.conv2.weight").made[0].1, [720, 720, 3, 3]);
    // ranks by the paper's formulas
    let f = of("resnet18:stem=imagenet", Transform::Factorized, 0.5);
    let (u, v) = {
        let l = layer(&f, "layer2.1.conv1.weight");
        (l.made[0].1.clone(), l.made[1].1.clone())
    };
    // 9 x 128 x 128 / (0.5 x (9 x 128 + 128)) = 230.4
    assert_eq!((u, v), (vec![231, 128, 3, 3], vec![128, 231, 1, 1]));
    let d = of("gpt2-small", Transform::Doped, 0.5);
    let l = layer(&d, "h0.attn.c_proj.weight");
    assert_eq!(l.made[1].1, [192, 768]);
    let p = of("gpt2-small", Transform::Parallel, 0.9);
    assert_eq!(layer(&p, "h0.attn.c_proj.weight").made.len(), 10);
}

#[test]
fn what_cannot_be_transformed_is_said() {
    let mlp = builtin("mlp:layers=4-3-2", 1, 0).unwrap().graph;
    for s in [0.0, 1.0, -1.0, f64::NAN] {
        assert!(matches!(
            transform(&mlp, Transform::Wide, s, 0),
            Err(TransformError::Sparsity(_))
        ));
    }
    assert!("thin".parse::<Transform>().is_err());
    let mut g = Graph::new("sum");
    let x = g.add_input("x", &[1, 4]).unwrap();
    let w = g.add_constant("w", &[4, 4], vec![1.0; 16]).unwrap();
    let y = g.add_node("fc", crate::Op::Linear, &[x, w], "fc").unwrap();
    let y = g.add_node("sum", crate::Op::Add, &[x, y], "y").unwrap();
    g.add_output(y).unwrap();
    let message = transform(&g, Transform::Wide, 0.5, 0).unwrap_err().to_string();
    assert!(message.contains("`sum` (add) can't be widened"), "{message}");
    let mut empty = Graph::new("empty");
    let x = empty.add_input("x", &[1, 4]).unwrap();
    let y = empty.add_node("relu", crate::Op::Relu, &[x], "y").unwrap();
    empty.add_output(y).unwrap();
    assert_eq!(
        transform(&empty, Transform::Doped, 0.5, 0).unwrap_err(),
        TransformError::Nothing("empty".into())
    );
}
