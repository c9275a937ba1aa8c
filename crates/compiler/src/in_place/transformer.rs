//! The two halves of a transformer's block, as operators in place that follow one another: each adds to the residual, whose place it keeps.

use super::gather::{By, Gather, Gathered, key_features};
use super::{Bands, LayerNorm, Pair, Product, Replicate, Room, Softmax, Source, Tensor, Unary, choose};
use crate::CompileError;
use crate::plan::{Function, Norm};
use meshloom_simulator::Machine;
use meshloom_simulator::engine::Sram;
use meshloom_simulator::program::{Program, Ty};

/// A program, to be run on what those before it left.
#[derive(Clone, Debug)]
pub struct Operator {
    /// What it does.
    pub name: String,
    /// A single stage on the whole mesh.
    pub program: Program,
    /// SRAM bytes, from address 0 on, that operators after it may read: in column 0, and in the other columns.
    pub keeps: [u32; 2],
}

impl Operator {
    /// Drops what no later operator reads from the SRAM of every PE: a simulation need not carry it along.
    pub fn trim(&self, machine: &Machine, sram: &mut Sram) {
        sram.trim(|pe| {
            let column_0 = pe.is_multiple_of(machine.mesh.width as usize);
            self.keeps[!column_0 as usize] as usize
        });
    }
}

/// Weights of a product.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'a> {
    /// \[m, k\], row by row.
    pub weights: &'a [f32],
    /// \[m\].
    pub bias: Option<&'a [f32]>,
    /// Zero weights are neither sent nor multiplied.
    pub lists: bool,
}

/// x += down(function(up(norm(x)))).
#[derive(Clone, Debug)]
pub struct Mlp<'a> {
    /// Of the regions, their streams and tables.
    pub name: &'a str,
    /// Layer norm before it.
    pub norm: &'a Norm,
    /// The first product.
    pub up: Linear<'a>,
    /// Between the products.
    pub function: &'a Function,
    /// The second product.
    pub down: Linear<'a>,
}

/// x += output(softmax(scale * queries keysᵀ + mask) values) for each head, all of norm(x).
#[derive(Clone, Debug)]
pub struct Attention<'a> {
    /// Of the regions, their streams and tables.
    pub name: &'a str,
    /// Layer norm before it.
    pub norm: &'a Norm,
    /// Queries, head by head.
    pub query: Linear<'a>,
    /// Keys.
    pub key: Linear<'a>,
    /// Values.
    pub value: Linear<'a>,
    /// The product of what the heads give.
    pub output: Linear<'a>,
    /// Heads, each a band of rows.
    pub heads: usize,
    /// What scores are multiplied with.
    pub scale: f32,
    /// Added to the scores ([`Attention::mask`]).
    pub mask: Option<&'a Tensor>,
}

/// Operators, one after another.
struct Chain<'a> {
    name: &'a str,
    machine: &'a Machine,
    all: Vec<Operator>,
    /// As an operator's that is added.
    keeps: [u32; 2],
}

impl<'a> Chain<'a> {
    fn new(name: &'a str, machine: &'a Machine) -> Chain<'a> {
        Chain {
            name,
            machine,
            all: Vec::new(),
            keeps: [0; 2],
        }
    }

    fn named(&self, what: &str) -> String {
        match self.name {
            "" => what.to_string(),
            name => format!("{name} {what}"),
        }
    }

    fn push(&mut self, name: String, program: Program) {
        self.all.push(Operator {
            name,
            program,
            keeps: self.keeps,
        });
    }

    fn add(
        &mut self,
        what: &str,
        map: impl FnOnce(&str, &Machine) -> Result<Program, CompileError>,
    ) -> Result<(), CompileError> {
        let name = self.named(what);
        let program = map(&name, self.machine)?;
        self.push(name, program);
        Ok(())
    }

    fn norm(&mut self, norm: &Norm, x: &Tensor, y: &Tensor, room: &Room) -> Result<(), CompileError> {
        self.add("norm", |name, machine| {
            LayerNorm {
                name,
                x,
                y,
                scale: &norm.scale,
                shift: &norm.shift,
                epsilon: norm.epsilon,
                scratch: room.end(),
            }
            .map(machine)
        })
    }

    /// Products with weights, which read the same tensor, and whose results lie alike: with bands of rows as [`super::choose`] says.
    fn products(
        &mut self,
        all: &[(&str, Linear, &Tensor)],
        x: &Tensor,
        room: Room,
    ) -> Result<(), CompileError> {
        let linears: Vec<Linear> = all.iter().map(|(_, linear, _)| *linear).collect();
        let Some((_, _, y)) = all.first() else {
            return Ok(());
        };
        let (before, keeps) = (self.all.len(), self.keeps);
        let mut choices = choose::choices(self.machine, x, y, &linears);
        if choices.is_empty() {
            // what is wrong is told there
            choices.push(Bands::new(self.machine, 1)?);
        }
        let mut done = Ok(());
        for bands in choices {
            done = self.products_in(&bands, all, x, room);
            self.keeps = keeps;
            match &done {
                Err(CompileError::DoesNotFit { .. }) => self.all.truncate(before),
                _ => break,
            }
        }
        done
    }

    fn products_in(
        &mut self,
        bands: &Bands,
        all: &[(&str, Linear, &Tensor)],
        x: &Tensor,
        mut room: Room,
    ) -> Result<(), CompileError> {
        let mut replica = None;
        let kept = self.keeps[1];
        if bands.len() > 1 {
            let copies = room.tensor(x.ty, x.tokens, &bands.spread(x.all()));
            self.keeps[1] = room.end();
            self.add(&format!("replicate for {}", all[0].0), |name, machine| {
                Replicate {
                    name,
                    bands,
                    x,
                    y: &copies,
                }
                .map(machine)
            })?;
            replica = Some(copies);
        }
        for (i, (what, linear, y)) in all.iter().enumerate() {
            if i + 1 == all.len() {
                self.keeps[1] = kept;
            }
            self.product(
                what,
                linear.source(bands),
                replica.as_ref().unwrap_or(x),
                y,
                &room,
            )?;
        }
        Ok(())
    }

    fn product(
        &mut self,
        what: &str,
        source: Source,
        x: &Tensor,
        y: &Tensor,
        room: &Room,
    ) -> Result<(), CompileError> {
        self.add(what, |name, machine| {
            let product = Product {
                name,
                x,
                y,
                source,
                relu: false,
                scratch: room.end(),
            };
            Ok(product.map(machine)?.program)
        })
    }

    /// Brings a tensor to column 0, which has nothing else.
    fn gather(
        &mut self,
        what: &str,
        bands: &Bands,
        x: &Tensor,
        by: By,
        room: &Room,
    ) -> Result<Gathered, CompileError> {
        let name = self.named(what);
        let gather = Gather {
            name: &name,
            bands,
            x,
            by,
            address: 0,
            scratch: room.end(),
        };
        let done = gather.map(self.machine)?;
        self.keeps[0] = done.end;
        self.push(name, done.program.clone());
        Ok(done)
    }

    fn residual(&mut self, x: &Tensor, y: &Tensor, room: &Room) -> Result<(), CompileError> {
        self.add("add", |name, machine| {
            Pair {
                name,
                multiply: false,
                x: [x, y],
                y: x,
                scratch: room.end(),
            }
            .map(machine)
        })
    }
}

impl<'a> Linear<'a> {
    /// As a product's weights, with such bands.
    pub fn source<'b>(&self, bands: &'b Bands) -> Source<'b>
    where
        'a: 'b,
    {
        Source::Edge {
            bands,
            weights: self.weights,
            bias: self.bias,
            lists: self.lists,
        }
    }

    /// The share of its weights that is sent: where zeros are not, of a sample of at most 65536.
    pub(super) fn stored(&self) -> f64 {
        if !self.lists {
            return 1.0;
        }
        let sample = self.weights.iter().step_by((self.weights.len() >> 16) + 1);
        let (n, all) = sample.fold((0, 0), |(n, all), w| (n + (*w != 0.0) as usize, all + 1));
        n as f64 / all.max(1) as f64
    }

    /// Outputs, of so many inputs.
    pub(super) fn outputs(&self, k: usize) -> usize {
        self.weights.len() / k.max(1)
    }
}

/// logits = linear(norm(x)); between them lies what `room` gives next.
pub(super) fn head(
    machine: &Machine,
    norm: &Norm,
    linear: Linear,
    x: &Tensor,
    logits: &Tensor,
    room: Room,
) -> Result<Vec<Operator>, CompileError> {
    let mut chain = Chain::new("head", machine);
    let mut room = room;
    let normal = room.tensor(x.ty, x.tokens, &x.features);
    // logits come behind
    let behind = room.tensor(logits.ty, logits.tokens, &logits.features);
    chain.keeps[1] = room.end();
    chain.norm(norm, x, &normal, &room)?;
    chain.products(&[("product", linear, &behind)], &normal, room)?;
    Ok(chain.all)
}

/// How what lies between two products is spread, and the cycles that both are expected to take.
pub(super) fn hidden(
    machine: &Machine,
    x: &Tensor,
    up: Linear,
    down: Linear,
) -> Result<(Vec<usize>, f64), CompileError> {
    let cycles = |features: &[usize]| {
        let hidden = Tensor {
            features: features.to_vec(),
            ..x.clone()
        };
        choose::cycles(machine, x, &hidden, &[up]) + choose::cycles(machine, &hidden, x, &[down])
    };
    let best = choose::layout(machine, up.outputs(x.all()), cycles)?;
    let cycles = cycles(&best);
    Ok((best, cycles))
}

/// Cycles that an attention's products with weights are expected to take.
pub(super) fn attention_cycles(
    machine: &Machine,
    heads: usize,
    x: &Tensor,
    three: [Linear; 3],
    output: Linear,
) -> Result<f64, CompileError> {
    let of_head = three[0].outputs(x.all()) / heads.max(1);
    let given = Tensor {
        features: Bands::new(machine, heads)?.spread(of_head),
        ..x.clone()
    };
    Ok(choose::cycles(machine, x, &given, &three) + choose::cycles(machine, &given, x, &[output]))
}

impl Mlp<'_> {
    /// Its operators; `x` stays where it is, and behind what `room` has given is room for what comes between.
    ///
    /// Errors: slices of lengths that do not fit each other or `x`; what does not fit the machine.
    pub fn map(&self, machine: &Machine, x: &Tensor, room: Room) -> Result<Vec<Operator>, CompileError> {
        let (mut chain, kept) = (Chain::new(self.name, machine), room.end());
        let (hidden, _) = hidden(machine, x, self.up, self.down)?;
        let mut room = room;
        let normal = room.tensor(x.ty, x.tokens, &x.features);
        let hidden = room.tensor(x.ty, x.tokens, &hidden);
        chain.keeps[1] = room.end();
        chain.norm(self.norm, x, &normal, &room)?;
        chain.products(&[("up", self.up, &hidden)], &normal, room)?;
        chain.add("function", |name, machine| {
            Unary {
                name,
                function: self.function,
                x: &hidden,
                y: &hidden,
                scratch: room.end(),
            }
            .map(machine)
        })?;
        chain.products(&[("down", self.down, &normal)], &hidden, room)?;
        chain.keeps[1] = kept;
        chain.residual(x, &normal, &room)?;
        Ok(chain.all)
    }
}

impl Attention<'_> {
    /// A place for a mask of so many heads, to be filled with a head's \[tokens, tokens\] values for each ([`super::causal_mask`]) before the first
    /// operator runs. `tokens` are those of a column.
    ///
    /// Errors: too few rows for the heads.
    pub fn mask(
        machine: &Machine,
        heads: usize,
        tokens: usize,
        room: &mut Room,
    ) -> Result<Tensor, CompileError> {
        let bands = Bands::new(machine, heads)?;
        Ok(room.tensor(Ty::F32, tokens, &key_features(machine, &bands, tokens)))
    }

    /// Its operators; `x` stays where it is, and behind what `room` has given is room for what comes between, in column 0 all.
    /// Scores and probabilities are f32, all else has `x`'s type.
    ///
    /// Errors: slices of lengths that do not fit each other or `x`; heads that do not divide the features; what does not fit the machine.
    pub fn map(&self, machine: &Machine, x: &Tensor, room: Room) -> Result<Vec<Operator>, CompileError> {
        let (mut chain, kept) = (Chain::new(self.name, machine), room.end());
        let bands = Bands::new(machine, self.heads)?;
        let all = self.query.outputs(x.all());
        if !all.is_multiple_of(self.heads) {
            return Err(CompileError::Unsupported {
                node: format!("{}, in place", self.name),
                message: format!(
                    "{all} features of queries for {} heads: expected a multiple",
                    self.heads
                ),
            });
        }
        let split = bands.spread(all / self.heads);
        let mut room = room;
        let normal = room.tensor(x.ty, x.tokens, &x.features);
        let values = room.tensor(x.ty, x.tokens, &split);
        let queries = room.tensor(x.ty, x.tokens, &split);
        // keys have gone when scores come
        let mut before = room;
        let keys = before.tensor(x.ty, x.tokens, &split);
        let scores = room.tensor(Ty::F32, x.tokens, &key_features(machine, &bands, x.tokens));
        chain.keeps[1] = before.end();
        chain.norm(self.norm, x, &normal, &before)?;
        let three = [
            ("queries", self.query, &queries),
            ("keys", self.key, &keys),
            ("values", self.value, &values),
        ];
        chain.products(&three, &normal, before)?;
        let gathered = chain.gather("gather keys", &bands, &keys, By::Feature, &before)?;
        chain.keeps[1] = room.end();
        chain.product("scores", gathered.source(&bands), &queries, &scores, &room)?;
        chain.add("softmax", |name, machine| {
            Softmax {
                name,
                bands: &bands,
                x: &scores,
                scale: self.scale,
                mask: self.mask,
                scratch: room.end(),
            }
            .map(machine)
        })?;
        let gathered = chain.gather("gather values", &bands, &values, By::Token, &room)?;
        // where the queries were
        chain.product("heads", gathered.source(&bands), &scores, &queries, &room)?;
        chain.keeps[0] = 0;
        chain.products(&[("output", self.output, &normal)], &queries, room)?;
        chain.keeps[1] = kept;
        chain.residual(x, &normal, &room)?;
        Ok(chain.all)
    }
}
