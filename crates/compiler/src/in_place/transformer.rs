//! The two halves of a transformer's block, as operators in place that follow one another: each adds to the residual, whose place it keeps.

use super::gather::{Gather, key_features};
use super::{Bands, LayerNorm, Pair, Product, Room, Softmax, Source, Tensor, Unary};
use crate::CompileError;
use crate::plan::{Function, Norm};
use meshloom_simulator::Machine;
use meshloom_simulator::program::{Program, Ty};

/// A program, to be run on what those before it left.
#[derive(Clone, Debug)]
pub struct Operator {
    /// What it does.
    pub name: String,
    /// A single stage on the whole mesh.
    pub program: Program,
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
}

impl Chain<'_> {
    fn add(
        &mut self,
        what: &str,
        map: impl FnOnce(&str, &Machine) -> Result<Program, CompileError>,
    ) -> Result<(), CompileError> {
        let name = match self.name {
            "" => what.to_string(),
            name => format!("{name} {what}"),
        };
        let program = map(&name, self.machine)?;
        self.all.push(Operator { name, program });
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
    fn source(&self) -> Source<'a> {
        Source::Edge {
            weights: self.weights,
            bias: self.bias,
            lists: self.lists,
        }
    }

    /// Outputs, of so many inputs.
    fn outputs(&self, k: usize) -> usize {
        self.weights.len() / k.max(1)
    }
}

impl Mlp<'_> {
    /// Its operators; `x` stays where it is, and behind what `room` has given is room for what comes between.
    ///
    /// Errors: slices of lengths that do not fit each other or `x`; what does not fit the machine.
    pub fn map(&self, machine: &Machine, x: &Tensor, room: Room) -> Result<Vec<Operator>, CompileError> {
        let mut room = room;
        let mut chain = Chain {
            name: self.name,
            machine,
            all: Vec::new(),
        };
        let bands = Bands::new(machine, 1)?;
        let normal = room.tensor(x.ty, x.tokens, &x.features);
        let hidden = room.tensor(x.ty, x.tokens, &bands.spread(self.up.outputs(x.all())));
        chain.norm(self.norm, x, &normal, &room)?;
        chain.product("up", self.up.source(), &normal, &hidden, &room)?;
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
        chain.product("down", self.down.source(), &hidden, &normal, &room)?;
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

    /// Its operators; `x` stays where it is, and behind what `room` has given is room for what comes between.
    ///
    /// Errors: slices of lengths that do not fit each other or `x`; heads that do not divide the features; what does not fit the machine.
    pub fn map(&self, machine: &Machine, x: &Tensor, room: Room) -> Result<Vec<Operator>, CompileError> {
        let mut room = room;
        let mut chain = Chain {
            name: self.name,
            machine,
            all: Vec::new(),
        };
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
        let normal = room.tensor(x.ty, x.tokens, &x.features);
        let queries = room.tensor(x.ty, x.tokens, &split);
        // keys and values have gone when scores come
        let mut before = room;
        let keys = before.tensor(x.ty, x.tokens, &split);
        let values = before.tensor(x.ty, x.tokens, &split);
        let mut after = room;
        let scores = after.tensor(x.ty, x.tokens, &key_features(machine, &bands, x.tokens));
        chain.norm(self.norm, x, &normal, &before)?;
        for (what, linear, to) in [
            ("queries", self.query, &queries),
            ("keys", self.key, &keys),
            ("values", self.value, &values),
        ] {
            chain.product(what, linear.source(), &normal, to, &before)?;
        }
        let mut gathered = None;
        chain.add("gather", |name, machine| {
            let gather = Gather {
                name,
                bands: &bands,
                keys: &keys,
                values: &values,
            };
            let done = gather.map(machine)?;
            let program = done.program.clone();
            gathered = Some(done);
            Ok(program)
        })?;
        let Some(gathered) = gathered else {
            return Ok(chain.all);
        };
        chain.product("scores", gathered.key_source(&bands), &queries, &scores, &after)?;
        chain.add("softmax", |name, machine| {
            Softmax {
                name,
                bands: &bands,
                x: &scores,
                scale: self.scale,
                mask: self.mask,
                scratch: after.end(),
            }
            .map(machine)
        })?;
        // where the queries were
        chain.product("heads", gathered.value_source(&bands), &scores, &queries, &after)?;
        chain.product("output", self.output.source(), &queries, &normal, &after)?;
        chain.residual(x, &normal, &room)?;
        Ok(chain.all)
    }
}
