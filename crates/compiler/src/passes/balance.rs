//! The order in which features travel, so that the PEs of a kernel with lists have about equally many nonzeros.
//!
//! In a rectangle each row has a range of the output stream's places and each column a range of an input stream's. Which feature is at
//! which place is free where a stream is made and read by operators that treat features alike; streams that such operators tie together
//! (a ReLU's input and output, both operands of a sum) share one order. For each order features are dealt out, heaviest first, and then
//! swapped in pairs as long as that evens out the work of the products on both ends. An order is kept only if no kernel gets less even.
//!
//! Ranges stay equally long: what moves over the fabric, and the buffers for it, are the same as before.

use super::stages::context;
use crate::Options;
use crate::kernels::{self, shares};
use crate::plan::*;
use meshloom_simulator::Machine;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::sync::Arc;

/// Swaps tried for each feature of a stream.
const TRIES: usize = 60;
/// Most PEs' loads looked at for one order, so that large meshes do not take minutes.
const EFFORT: usize = 200_000_000;
/// Times that all orders are gone through: each depends on those at the other ends of its products.
const ROUNDS: usize = 2;

/// A product's nonzeros in a rectangle.
struct Product {
    kernel: usize,
    /// First place of each row's output features, and the end.
    rows: Vec<usize>,
    /// Of each column, its input, and the places of its features.
    columns: Vec<(usize, usize, usize)>,
    /// For each input, by output feature: its input features with the multiply-adds of their weights.
    work: Vec<Vec<Vec<(u32, u32)>>>,
    /// Edge of the output, and those of the inputs.
    output: usize,
    inputs: Vec<usize>,
}

/// A range of places of a stream, and what one of its features adds to the PEs that have the range.
struct View {
    product: usize,
    /// Starts of the ranges, and the end; a place that is in none is in no range of this view.
    starts: Vec<usize>,
    /// The PEs of each range.
    pes: Vec<Vec<usize>>,
    /// Of each feature, what it adds to each of them.
    adds: Vec<Vec<f64>>,
}

/// Where the features at each place are, by edge.
type Orders = Vec<Vec<usize>>;

impl Product {
    fn new(plan: &Plan, machine: &Machine, kernel: usize) -> Option<Product> {
        let k = &plan.kernels[kernel];
        let Kind::Mix(mix) = &k.kind else { return None };
        if !mix.terms.iter().any(Linear::lists) {
            return None;
        }
        let place = plan.places[kernel];
        let shares = shares(mix, &context(plan, machine, kernel), place.width, place.height)?;
        let work = mix.terms.iter().map(|t| {
            let hits: Vec<(usize, u32)> = t.taps.iter().map(|tap| (tap.index, t.hits(tap) as u32)).collect();
            let of = |m: usize, k: usize| {
                let stored = hits.iter().filter(|(index, _)| t.stored(m, k, *index).is_some());
                stored.map(|(_, n)| n).sum::<u32>()
            };
            let row = |m: usize| {
                (0..t.k)
                    .map(|k| (k as u32, of(m, k)))
                    .filter(|(_, n)| *n > 0)
                    .collect()
            };
            (0..t.m).map(row).collect()
        });
        Some(Product {
            kernel,
            rows: shares.rows,
            columns: shares.columns,
            work: work.collect(),
            output: k.output,
            inputs: k.inputs.iter().map(|u| u.edge).collect(),
        })
    }

    /// The row of each output feature.
    fn row_of(&self, orders: &Orders) -> Vec<usize> {
        let order = &orders[self.output];
        let mut rows = vec![0; order.len()];
        for (row, s) in self.rows.windows(2).enumerate() {
            order[s[0]..s[1]].iter().for_each(|f| rows[*f] = row);
        }
        rows
    }

    /// The column of each feature of an input, as that input's stream has them.
    fn column_of(&self, plan: &Plan, term: usize, orders: &Orders) -> Vec<usize> {
        let u = plan.kernels[self.kernel].inputs[term];
        let seen = Layout {
            order: Some(Arc::new(orders[u.edge].clone())),
            ..plan.edges[u.edge].layout.clone()
        };
        let seen = if u.flat { seen.flattened() } else { seen };
        let order = seen.order.as_deref().map_or(&[][..], |o| &o[..]);
        let mut columns = vec![0; order.len()];
        for (column, (of, from, to)) in self.columns.iter().enumerate() {
            if *of == term {
                order[*from..*to].iter().for_each(|f| columns[*f] = column);
            }
        }
        columns
    }

    /// Multiply-adds of each PE, row by row.
    fn loads(&self, plan: &Plan, orders: &Orders) -> Vec<u64> {
        let rows = self.row_of(orders);
        let width = self.columns.len();
        let mut loads = vec![0; width * (self.rows.len() - 1)];
        for (term, work) in self.work.iter().enumerate() {
            let columns = self.column_of(plan, term, orders);
            for (m, row) in work.iter().enumerate() {
                for (k, n) in row {
                    loads[rows[m] * width + columns[*k as usize]] += *n as u64;
                }
            }
        }
        loads
    }

    /// The product's rows or columns as ranges of an edge's places.
    fn views(&self, plan: &Plan, index: usize, edge: &[bool], orders: &Orders) -> Vec<View> {
        let (width, height) = (self.columns.len(), self.rows.len() - 1);
        let mut views = Vec::new();
        if edge[self.output] {
            let mut adds = vec![vec![0.0; width]; plan.edges[self.output].layout.features];
            for (term, work) in self.work.iter().enumerate() {
                let columns = self.column_of(plan, term, orders);
                for (m, row) in work.iter().enumerate() {
                    row.iter()
                        .for_each(|(k, n)| adds[m][columns[*k as usize]] += *n as f64);
                }
            }
            views.push(View {
                product: index,
                starts: self.rows.clone(),
                pes: (0..height)
                    .map(|r| (r * width..(r + 1) * width).collect())
                    .collect(),
                adds,
            });
        }
        let rows = self.row_of(orders);
        for (term, _) in self.inputs.iter().enumerate().filter(|(_, e)| edge[**e]) {
            let own: Vec<usize> = (0..width).filter(|c| self.columns[*c].0 == term).collect();
            let mut adds = vec![vec![0.0; height]; plan.edges[self.inputs[term]].layout.features];
            for (m, row) in self.work[term].iter().enumerate() {
                row.iter()
                    .for_each(|(k, n)| adds[*k as usize][rows[m]] += *n as f64);
            }
            let mut starts: Vec<usize> = own.iter().map(|c| self.columns[*c].1).collect();
            starts.push(own.last().map_or(0, |c| self.columns[*c].2));
            views.push(View {
                product: index,
                starts,
                pes: own
                    .iter()
                    .map(|c| (0..height).map(|r| r * width + c).collect())
                    .collect(),
                adds,
            });
        }
        views
    }
}

/// The most over the mean of those that have any; 1 where there are none.
fn imbalance(loads: &[u64]) -> f64 {
    let (most, sum) = (
        loads.iter().max().copied().unwrap_or(0),
        loads.iter().sum::<u64>(),
    );
    let some = loads.iter().filter(|n| **n > 0).count();
    if sum == 0 {
        1.0
    } else {
        most as f64 * some as f64 / sum as f64
    }
}

/// Groups of edges that share an order which may be chosen.
fn groups(plan: &Plan) -> Vec<Vec<usize>> {
    let n = plan.edges.len();
    let mut parent: Vec<usize> = (0..n).collect();
    fn root(parent: &[usize], mut e: usize) -> usize {
        while parent[e] != e {
            e = parent[e];
        }
        e
    }
    let mut free: Vec<bool> = plan
        .edges
        .iter()
        .map(|e| e.layout.order.is_none() && !matches!(e.source, Source::Stored(..)))
        .collect();
    // later stages take what leaves as it is; outside, an array has its own order anyhow
    if !plan.stage_name.is_empty() {
        plan.outputs.iter().for_each(|(_, u)| free[u.edge] = false);
    }
    plan.outputs
        .iter()
        .filter(|(_, u)| u.flat)
        .for_each(|(_, u)| free[u.edge] = false);
    for k in &plan.kernels {
        let alike = match &k.kind {
            Kind::Mix(_) | Kind::Embedding(_) => true,
            Kind::Depthwise(d) => d.m == d.k,
            Kind::Pool(_) | Kind::Binary { .. } | Kind::Pointwise(_) | Kind::LayerNorm(_) => true,
            Kind::Softmax | Kind::Attention(_) | Kind::Flatten | Kind::Streamed(_) => false,
        };
        for u in &k.inputs {
            // features that are merged with positions would have to stay together
            free[u.edge] &= alike && (!u.flat || plan.edges[u.edge].layout.inner == 1);
        }
        free[k.output] &= alike;
        match k.kind {
            Kind::Mix(_) => {}
            Kind::Embedding(_) => k.inputs.iter().for_each(|u| free[u.edge] = false),
            _ => {
                for u in &k.inputs {
                    let (a, b) = (root(&parent, u.edge), root(&parent, k.output));
                    parent[a.max(b)] = a.min(b);
                }
            }
        }
    }
    let mut groups: Vec<Vec<usize>> = vec![Vec::new(); n];
    (0..n).for_each(|e| groups[root(&parent, e)].push(e));
    let same = |g: &[usize]| {
        let features = |e: &usize| plan.edges[*e].layout.features;
        g.iter().all(|e| free[*e] && features(e) == features(&g[0])) && features(&g[0]) > 1
    };
    groups.into_iter().filter(|g| !g.is_empty() && same(g)).collect()
}

/// What is made small: high powers of loads, which the highest ones rule.
fn power(load: f64) -> f64 {
    let square = load * load;
    let fourth = square * square;
    fourth * fourth
}

/// A search for one order.
struct Search {
    views: Vec<View>,
    /// Of each view and place, the range.
    ranges: Vec<Vec<usize>>,
    /// The loads of each product's PEs, over their mean.
    loads: Vec<Vec<f64>>,
    /// What no PE's load may rise above.
    limits: Vec<f64>,
    order: Vec<usize>,
}

impl Search {
    /// Swaps the features at two places if that evens out the work.
    fn swap(&mut self, a: usize, b: usize) -> bool {
        let (f, g) = (self.order[a], self.order[b]);
        let mut gain = 0.0;
        for (view, ranges) in self.views.iter().zip(&self.ranges) {
            let (i, j) = (ranges[a], ranges[b]);
            if i == j {
                continue;
            }
            let (loads, limit) = (&self.loads[view.product], self.limits[view.product]);
            for (other, (p, q)) in view.pes[i].iter().zip(&view.pes[j]).enumerate() {
                let d = view.adds[g][other] - view.adds[f][other];
                for (pe, d) in [(*p, d), (*q, -d)] {
                    let (old, new) = (loads[pe], loads[pe] + d);
                    if new > limit && new > old {
                        return false;
                    }
                    gain += power(old) - power(new);
                }
            }
        }
        if gain <= 0.0 {
            return false;
        }
        for (view, ranges) in self.views.iter().zip(&self.ranges) {
            let (i, j) = (ranges[a], ranges[b]);
            if i == j {
                continue;
            }
            let loads = &mut self.loads[view.product];
            for (other, (p, q)) in view.pes[i].iter().zip(&view.pes[j]).enumerate() {
                let d = view.adds[g][other] - view.adds[f][other];
                loads[*p] += d;
                loads[*q] -= d;
            }
        }
        self.order.swap(a, b);
        true
    }

    /// Swaps pairs, half of them with a place of the PE that has most to do.
    fn improve(&mut self, rng: &mut ChaCha8Rng) {
        let n = self.order.len();
        let step: usize = self
            .views
            .iter()
            .map(|v| v.pes.first().map_or(0, Vec::len) * 4)
            .sum();
        let tries = (TRIES * n).min(EFFORT / step.max(1));
        // places of the fullest PE
        let mut hot: Vec<usize> = Vec::new();
        for t in 0..tries {
            if t % 64 == 0 {
                let fullest = |v: &View| {
                    let loads = v
                        .pes
                        .iter()
                        .enumerate()
                        .flat_map(|(i, pes)| pes.iter().map(move |p| (i, *p)));
                    loads
                        .map(|(i, p)| (self.loads[v.product][p], i))
                        .fold((0.0, 0), |best, one| if one.0 > best.0 { one } else { best })
                };
                let view = (t / 64) % self.views.len();
                let (_, range) = fullest(&self.views[view]);
                hot = (0..n).filter(|p| self.ranges[view][*p] == range).collect();
            }
            let a = match t % 2 == 0 && !hot.is_empty() {
                true => hot[rng.random_range(0..hot.len())],
                false => rng.random_range(0..n),
            };
            self.swap(a, rng.random_range(0..n));
        }
    }
}

/// A better order for a group of edges, if one is found.
fn search(
    plan: &Plan,
    products: &[Product],
    group: &[usize],
    orders: &Orders,
    seed: u64,
) -> Option<Vec<usize>> {
    let mut member = vec![false; plan.edges.len()];
    group.iter().for_each(|e| member[*e] = true);
    let touched: Vec<&Product> = products
        .iter()
        .filter(|p| member[p.output] || p.inputs.iter().any(|e| member[*e]))
        .collect();
    let before: Vec<Vec<u64>> = touched.iter().map(|p| p.loads(plan, orders)).collect();
    let means: Vec<f64> = before
        .iter()
        .map(|l| (l.iter().sum::<u64>() as f64 / l.len() as f64).max(1.0))
        .collect();
    let mut views: Vec<View> = touched
        .iter()
        .enumerate()
        .flat_map(|(i, p)| p.views(plan, i, &member, orders))
        .collect();
    for v in &mut views {
        let mean = means[v.product];
        v.adds.iter_mut().flatten().for_each(|a| *a /= mean);
    }
    if views.is_empty() {
        return None;
    }
    let order = orders[group[0]].clone();
    let n = order.len();
    let ranges: Vec<Vec<usize>> = views
        .iter()
        .map(|v| {
            (0..n)
                .map(|p| v.starts.partition_point(|s| *s <= p) - 1)
                .collect()
        })
        .collect();
    let over = |l: &[u64], mean: f64| l.iter().map(|n| *n as f64 / mean).collect::<Vec<f64>>();
    let most = |l: &[f64]| l.iter().fold(0.0f64, |a, b| a.max(*b));
    let loads: Vec<Vec<f64>> = before.iter().zip(&means).map(|(l, m)| over(l, *m)).collect();
    let limits = loads.iter().map(|l| most(l)).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut kept = Search {
        views,
        ranges,
        loads,
        limits,
        order,
    };
    let dealt = deal(&kept);
    kept.improve(&mut rng);
    let mut best: Option<(f64, Vec<usize>)> = None;
    let mut consider = |order: &[usize]| {
        let mut tried = orders.clone();
        group.iter().for_each(|e| tried[*e] = order.to_vec());
        let mut cost = 0.0;
        let (mut worse, mut better) = (false, false);
        for (p, old) in touched.iter().zip(&before) {
            let new = p.loads(plan, &tried);
            let (new, old) = (imbalance(&new), imbalance(old));
            worse |= new > old;
            better |= new < old;
            cost += power(new);
        }
        if !worse && better && best.as_ref().is_none_or(|(c, _)| cost < *c) {
            best = Some((cost, order.to_vec()));
        }
        cost
    };
    consider(&kept.order);
    // the same from an order in which features were dealt out
    for (i, p) in touched.iter().enumerate() {
        let mut tried = orders.clone();
        group.iter().for_each(|e| tried[*e] = dealt.clone());
        kept.loads[i] = over(&p.loads(plan, &tried), means[i]);
    }
    kept.order = dealt;
    kept.improve(&mut rng);
    consider(&kept.order);
    best.map(|(_, order)| order)
}

/// Deals features out to the ranges, the heaviest first, each to the range that has least for its length so far.
fn deal(s: &Search) -> Vec<usize> {
    let n = s.order.len();
    let weight = |f: usize| s.views.iter().map(|v| v.adds[f].iter().sum::<f64>()).sum::<f64>();
    let mut features: Vec<(f64, usize)> = (0..n).map(|f| (weight(f), f)).collect();
    features.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    // places between the starts of any view
    let key = |p: usize| s.ranges.iter().map(move |r| r[p]);
    let mut starts: Vec<usize> = (0..n).filter(|p| *p == 0 || !key(*p).eq(key(p - 1))).collect();
    starts.push(n);
    let mut taken = vec![(0usize, 0.0f64); starts.len() - 1];
    let mut order = vec![0; n];
    for (weight, feature) in features {
        let length = |i: usize| starts[i + 1] - starts[i];
        let open = (0..taken.len()).filter(|i| taken[*i].0 < length(*i));
        let Some(i) = open.min_by(|i, j| {
            let (a, b) = (taken[*i].1 / length(*i) as f64, taken[*j].1 / length(*j) as f64);
            let room = |i: usize| taken[i].0 as f64 / length(i) as f64;
            a.total_cmp(&b).then(room(*i).total_cmp(&room(*j))).then(i.cmp(j))
        }) else {
            break;
        };
        order[starts[i] + taken[i].0] = feature;
        taken[i] = (taken[i].0 + 1, taken[i].1 + weight);
    }
    order
}

/// Chooses the orders of a placed stage, and sets [`Plan::balance`].
pub fn run(plan: &mut Plan, machine: &Machine, options: &Options) {
    let products: Vec<Product> = (0..plan.kernels.len())
        .filter_map(|k| Product::new(plan, machine, k))
        .collect();
    let own: Orders = plan
        .edges
        .iter()
        .map(|e| match &e.layout.order {
            Some(o) => o.to_vec(),
            None => (0..e.layout.features).collect(),
        })
        .collect();
    let mut orders = own.clone();
    if options.balance && !products.is_empty() {
        let groups = groups(plan);
        for round in 0..ROUNDS {
            for group in &groups {
                let seed = options.seed.wrapping_add(round as u64);
                if let Some(order) = search(plan, &products, group, &orders, seed) {
                    group.iter().for_each(|e| orders[*e].clone_from(&order));
                }
            }
        }
    }
    let fits = |plan: &Plan, k: usize| {
        let r = plan.places[k];
        let e = kernels::of(&plan.kernels[k].kind).estimate(&context(plan, machine, k), r.width, r.height);
        e.filter(|e| e.bytes <= machine.pe.sram_bytes as u64)
            .map(|e| e.cycles)
    };
    let mut balanced = plan.clone();
    for (edge, (order, own)) in balanced.edges.iter_mut().zip(orders.iter().zip(&own)) {
        if order != own {
            edge.layout.order = Some(Arc::new(order.clone()));
        }
    }
    // an evener order may still need more bytes on one PE, where weights differ in multiply-adds
    let estimates: Option<Vec<u64>> = products.iter().map(|p| fits(&balanced, p.kernel)).collect();
    let used = if let Some(estimates) = estimates {
        *plan = balanced;
        for (p, cycles) in products.iter().zip(estimates) {
            plan.estimates[p.kernel] = cycles;
        }
        &orders
    } else {
        &own
    };
    let of = |p: &Product| Balance {
        kernel: p.kernel,
        before: imbalance(&p.loads(plan, &own)),
        after: imbalance(&p.loads(plan, used)),
    };
    let all: Vec<Balance> = products.iter().map(of).collect();
    plan.balance = all;
}

/// One line a kernel with lists.
pub fn show(plan: &Plan) -> String {
    let mut out = String::from("most nonzeros of a PE over the mean   before  after\n");
    for b in &plan.balance {
        let name = &plan.kernels[b.kernel].name;
        out += &format!("  {name:<34}  {:>6.3} {:>6.3}\n", b.before, b.after);
    }
    if plan.balance.is_empty() {
        out += "  no kernel has lists of nonzeros\n";
    }
    out
}
