//! What the passes hand from one to the next: kernels, and the edges between them: streams of tensors.

use crate::passes::rewrite::Window;
use meshloom_models::{NodeId, TensorId};
use meshloom_simulator::program::{Block, Color, Port, Region, Route, Ty, Wavelet};
use meshloom_simulator::{Channel, Expr, Side};
use std::sync::Arc;

/// How a tensor travels: as a stream of its features, one after another, each as its elements at all other positions in row-major order;
/// or as several such streams at once, its lanes.
///
/// The tensor's shape is \[outer..., features, inner...\]; a feature has `length` = outer * inner elements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Product of the extents before the feature axis.
    pub outer: usize,
    /// Number of features.
    pub features: usize,
    /// Product of the extents after the feature axis.
    pub inner: usize,
    /// The tensor's feature at each place of the stream; the same place if there is none.
    pub order: Option<Arc<Vec<usize>>>,
    /// Parallel streams that carry it, each an equal share of the features, in order; set by the lanes pass.
    pub lanes: usize,
    /// Where it is one of several tiles that come one after another: what each has of the tensor. Set by the tiles pass.
    pub bands: Option<Arc<Bands>>,
}

/// How a tensor is cut in tiles of equal shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bands {
    /// Elements of one feature of the whole tensor.
    pub length: usize,
    /// Product of the extents after the feature axis in the whole tensor.
    pub inner: usize,
    /// The tiles, in the order in which they come.
    pub parts: Vec<Band>,
    /// What surrounds the tensor.
    pub fill: Fill,
}

/// A tile's positions, of each feature: so many before the tensor's, some of the tensor's (first, and last + 1), and so many after them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Band {
    /// Positions before the tensor's first.
    pub before: usize,
    /// First position of the tensor.
    pub from: usize,
    /// Last position + 1.
    pub to: usize,
    /// Positions after the tensor's last.
    pub after: usize,
}

impl Band {
    /// Positions of the tile.
    pub fn length(&self) -> usize {
        self.before + self.to - self.from + self.after
    }
}

/// What is fed for positions that a tensor has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// Zeros.
    Zero,
    /// Minus infinity.
    Lowest,
}

impl Fill {
    /// The number.
    pub fn value(self) -> f32 {
        match self {
            Fill::Zero => 0.0,
            Fill::Lowest => f32::NEG_INFINITY,
        }
    }
}

impl Layout {
    /// The stream of a tensor of this shape; `axis` is that of its features, none if all its elements are one feature.
    pub fn new(shape: &[usize], axis: Option<usize>) -> Layout {
        let product = |s: &[usize]| s.iter().product::<usize>();
        match axis {
            Some(a) => Layout {
                outer: product(&shape[..a]),
                features: shape[a],
                inner: product(&shape[a + 1..]),
                order: None,
                lanes: 1,
                bands: None,
            },
            None => Layout {
                outer: product(shape),
                features: 1,
                inner: 1,
                order: None,
                lanes: 1,
                bands: None,
            },
        }
    }

    /// Elements of one feature.
    pub fn length(&self) -> usize {
        self.outer * self.inner
    }

    /// Places of a lane's features: first, and last + 1.
    pub fn lane(&self, lane: usize) -> (usize, usize) {
        let each = self.features / self.lanes;
        (lane * each, (lane + 1) * each)
    }

    /// Row-major index in the tensor of the element at a place of the stream.
    pub fn index(&self, place: usize, position: usize) -> usize {
        self.row_major(place, position, self.inner)
    }

    fn row_major(&self, place: usize, position: usize, inner: usize) -> usize {
        let feature = self.order.as_ref().map_or(place, |o| o[place]);
        (position / inner * self.features + feature) * inner + position % inner
    }

    /// Tiles that come one after another for each tensor.
    pub fn tiles(&self) -> usize {
        self.bands.as_ref().map_or(1, |b| b.parts.len())
    }

    /// Elements of the whole tensor.
    pub fn size(&self) -> usize {
        let length = self.bands.as_ref().map_or(self.length(), |b| b.length);
        length * self.features
    }

    /// Row-major index in the whole tensor of the element at a place of a tile's stream; `None` if it is beyond the tensor.
    pub fn element(&self, tile: usize, place: usize, position: usize) -> Option<usize> {
        let Some(bands) = &self.bands else {
            return Some(self.index(place, position));
        };
        let band = &bands.parts[tile];
        let at = (position.checked_sub(band.before)? + band.from < band.to)
            .then(|| position - band.before + band.from)?;
        Some(self.row_major(place, at, bands.inner))
    }

    /// The same stream seen as \[outer, features * inner\]: one element a feature and outer index.
    pub fn flattened(&self) -> Layout {
        let order = self.order.as_ref().map(|o| {
            let all = o
                .iter()
                .flat_map(|f| (0..self.inner).map(move |i| f * self.inner + i));
            Arc::new(all.collect())
        });
        Layout {
            outer: self.outer,
            features: self.features * self.inner,
            inner: 1,
            order,
            lanes: self.lanes,
            // where positions become features there are no tiles
            bands: self.bands.clone().filter(|_| self.inner == 1),
        }
    }
}

/// Where an edge's tensor comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The graph input of this index, fed at the edge of the wafer.
    Input(usize),
    /// What left in an earlier stage: its number, and that of the plan's output. Memory outside kept it.
    Stored(usize, usize),
    /// The kernel of this index.
    Kernel(usize),
}

/// A tensor on its way from one kernel to others.
#[derive(Clone, Debug)]
pub struct Edge {
    /// The graph's tensor that it carries.
    pub tensor: TensorId,
    /// That tensor's name.
    pub name: String,
    /// Producer.
    pub source: Source,
    /// How it travels.
    pub layout: Layout,
    /// Type of its elements on the fabric.
    pub ty: Ty,
    /// For inputs: position of each axis of the tensor in the host's array, and the tensor's shape.
    pub axes: Vec<usize>,
    /// Shape of the tensor.
    pub shape: Vec<usize>,
    /// Consumers.
    pub to: Vec<usize>,
    /// Colour and way of each lane; set by the routing pass.
    pub ways: Vec<Way>,
}

/// A stream's way between rectangles: a tree from where it comes from to where it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Its colour.
    pub color: Color,
    /// The edge channel by which a graph input enters: its side and row.
    pub enters: Option<(Side, u32)>,
    /// The routers on the way, by place: input, and outputs. The first is the exit of the producer (its input has no meaning), or the
    /// border router of an input; the entries of consumers are not among them.
    pub routers: Vec<((u32, u32), Port, Vec<Port>)>,
    /// For each consumer, in the order of [`Edge::to`]: the port by which the stream comes to its entry.
    pub entries: Vec<Port>,
    /// The edge channel by which a graph output leaves.
    pub leaves: Option<(Side, u32)>,
}

/// A kernel's view of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// The edge.
    pub edge: usize,
    /// Whether it is seen flattened (features and inner extents merged; only where this changes no element's place).
    pub flat: bool,
}

/// A kernel's operator, with its constants.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Matrix products and convolutions with few groups, of one or several tensors, added up: mixes features.
    Mix(Arc<Mix>),
    /// A matrix product whose weights enter as it computes (see [`Mix::streams`]).
    Streamed(Arc<Mix>),
    /// Convolution in which each output feature reads one input feature.
    Depthwise(Arc<Linear>),
    /// Maximum or average over windows.
    Pool(Pool),
    /// Element-wise sum or product of two tensors.
    Binary {
        /// Product instead of sum.
        multiply: bool,
        /// ReLU on the result.
        relu: bool,
    },
    /// A function of each element.
    Pointwise(Function),
    /// Softmax over the features.
    Softmax,
    /// Normalisation over the features.
    LayerNorm(Arc<Norm>),
    /// Multi-head attention of a stream of queries, keys and values.
    Attention(Attention),
    /// Rows of a table, chosen by the elements of the input.
    Embedding(Arc<Table>),
    /// \[n, c, p\] to \[n, c * p\].
    Flatten,
}

impl Kind {
    /// Whether kernels of both cost the same wherever they see the same: the values of constants do not matter, but for which weights of
    /// lists are zero.
    pub fn costs_alike(&self, other: &Kind) -> bool {
        match (self, other) {
            (Kind::Mix(a), Kind::Mix(b)) | (Kind::Streamed(a), Kind::Streamed(b)) => {
                (a.terms.len(), a.bias.is_some(), a.relu) == (b.terms.len(), b.bias.is_some(), b.relu)
                    && a.terms.iter().zip(&b.terms).all(|(a, b)| a.costs_alike(b))
            }
            (Kind::Depthwise(a), Kind::Depthwise(b)) => a.costs_alike(b),
            (Kind::Pool(a), Kind::Pool(b)) => a == b,
            (
                Kind::Binary { multiply, relu },
                Kind::Binary {
                    multiply: other,
                    relu: fused,
                },
            ) => (multiply, relu) == (other, fused),
            (Kind::Pointwise(a), Kind::Pointwise(b)) => a.costs_alike(b),
            (Kind::Attention(a), Kind::Attention(b)) => a == b,
            (Kind::Embedding(a), Kind::Embedding(b)) => {
                let of = |t: &Table| (t.rows, t.width, t.start.is_some(), t.starts);
                of(a) == of(b)
            }
            (Kind::LayerNorm(_), Kind::LayerNorm(_)) => true,
            (Kind::Softmax, Kind::Softmax) | (Kind::Flatten, Kind::Flatten) => true,
            _ => false,
        }
    }
}

impl Function {
    /// See [`Kind::costs_alike`].
    fn costs_alike(&self, other: &Function) -> bool {
        match (self, other) {
            (Function::Relu, Function::Relu) => true,
            (
                Function::Clip { least, most },
                Function::Clip {
                    least: low,
                    most: high,
                },
            ) => (least, most) == (low, high),
            (Function::Gelu { tanh }, Function::Gelu { tanh: other }) => tanh == other,
            (Function::Affine { relu, .. }, Function::Affine { relu: other, .. }) => relu == other,
            _ => false,
        }
    }
}

/// A function of each element; constants are of the element's feature.
#[derive(Clone, Debug)]
pub enum Function {
    /// max(x, 0)
    Relu,
    /// min(max(x, least), most), as ReLU6; a bound may be infinite.
    Clip {
        /// The smallest result.
        least: f32,
        /// The largest result.
        most: f32,
    },
    /// x * Phi(x), by tanh or by the error function.
    Gelu {
        /// By tanh.
        tanh: bool,
    },
    /// x * scale + shift, optionally ReLU.
    Affine {
        /// Scale of each feature.
        scale: Arc<Vec<f32>>,
        /// Shift of each feature.
        shift: Arc<Vec<f32>>,
        /// ReLU on the result.
        relu: bool,
    },
}

/// Layer normalisation.
#[derive(Clone, Debug, Default)]
pub struct Norm {
    /// Scale of each feature.
    pub scale: Arc<Vec<f32>>,
    /// Shift of each feature.
    pub shift: Arc<Vec<f32>>,
    /// Added to the variance.
    pub epsilon: f32,
}

/// Attention over a stream of queries, keys and values, in the order of [`Attention::input_order`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attention {
    /// Heads.
    pub heads: usize,
    /// Features of a head's queries, and of its keys and values.
    pub width: usize,
    /// A token sees those up to itself only.
    pub causal: bool,
    /// Tokens.
    pub tokens: usize,
    /// Groups of heads that follow one another in the streams; the lanes divide them.
    pub groups: usize,
}

/// A table of rows, with what is added to them.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// Rows.
    pub rows: usize,
    /// Features of a row.
    pub width: usize,
    /// \[rows, width\].
    pub values: Arc<Vec<f32>>,
    /// Added at each position, \[starts * positions, width\].
    pub start: Option<Arc<Vec<f32>>>,
    /// Items after which what is added repeats: tiles of a sequence have each their own; 0 counts as 1.
    pub starts: usize,
}

/// The sum of linear operators, each of a tensor of its own, with a bias and what is fused.
#[derive(Clone, Debug)]
pub struct Mix {
    /// One for each input.
    pub terms: Vec<Linear>,
    /// Bias \[m\].
    pub bias: Option<Arc<Vec<f32>>>,
    /// ReLU on the result.
    pub relu: bool,
}

impl Mix {
    /// Whether its weights can be streamed: it is one matrix product, so that every weight is for all elements of a feature.
    pub fn streams(&self) -> bool {
        let [linear] = &self.terms[..] else { return false };
        let [tap] = &linear.taps[..] else { return false };
        let flat = (tap.rows, tap.y, tap.x, tap.steps[1], tap.strides[1]) == (1, 0, 0, 1, 1);
        flat && linear.groups == 1 && linear.window == 1 && linear.samples == 1
    }
}

/// A linear operator over features, applied at window positions.
#[derive(Clone, Debug, Default)]
pub struct Linear {
    /// Input features.
    pub k: usize,
    /// Output features.
    pub m: usize,
    /// Groups.
    pub groups: usize,
    /// Taps of the window; a matrix product has one.
    pub window: usize,
    /// Weights \[m, k / groups, window\].
    pub weights: Arc<Vec<f32>>,
    /// Bias \[m\]; that of a [`Mix`] is with the sum.
    pub bias: Option<Arc<Vec<f32>>>,
    /// ReLU on the result; that of a [`Mix`] is with the sum.
    pub relu: bool,
    /// The taps that hit anything.
    pub taps: Vec<Tap>,
    /// Input extents (rows, columns) of one sample; (1, n * inner) where there is no window.
    pub input: (usize, usize),
    /// Output extents.
    pub output: (usize, usize),
    /// Samples that are handled one by one (1 where they are merged into the columns).
    pub samples: usize,
    /// Only nonzero weights are stored and multiplied.
    pub sparse: bool,
    /// How the window moves; none where there is no window.
    pub slides: Option<Window>,
    /// The taps of a sample's first and last tile, where those differ.
    pub tiled: Option<Tiled>,
}

/// The taps where a sample is cut in bands of rows: in the first and the last one fewer rows hit the tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tiled {
    /// Bands of a sample.
    pub bands: usize,
    /// The taps of the first band, in the order of [`Linear::taps`]; without rows where nothing is hit.
    pub first: Vec<Tap>,
    /// Those of the last band.
    pub last: Vec<Tap>,
}

/// The output positions whose window element (a, b) hits the input, as a rectangle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tap {
    /// Index in the window.
    pub index: usize,
    /// Rows of the rectangle.
    pub rows: usize,
    /// Columns.
    pub columns: usize,
    /// First output element.
    pub y: usize,
    /// First input element.
    pub x: usize,
    /// Strides in the output, rows and columns: above 1 where zeros are inserted into the input.
    pub steps: [usize; 2],
    /// Strides in the input, rows and columns.
    pub strides: [usize; 2],
}

impl Linear {
    /// The weight from input feature k to output feature m at a window index, if the operator has one.
    #[inline]
    pub fn weight(&self, m: usize, k: usize, window: usize) -> Option<f32> {
        let (kg, mg) = (self.k / self.groups, self.m / self.groups);
        (k / kg == m / mg).then(|| self.weights[(m * kg + k % kg) * self.window + window])
    }

    /// Whether the weight is stored: it exists, and is not a zero that is skipped.
    #[inline]
    pub fn stored(&self, m: usize, k: usize, window: usize) -> Option<f32> {
        self.weight(m, k, window).filter(|w| !self.sparse || *w != 0.0)
    }

    /// See [`Kind::costs_alike`].
    fn costs_alike(&self, other: &Linear) -> bool {
        let sizes = |l: &Linear| (l.k, l.m, l.groups, l.window, l.input, l.output, l.samples);
        let flags = |l: &Linear| (l.bias.is_some(), l.relu, l.sparse);
        sizes(self) == sizes(other)
            && flags(self) == flags(other)
            && self.taps == other.taps
            && self.tiled == other.tiled
            && (!self.lists() || Arc::ptr_eq(&self.weights, &other.weights))
    }

    /// Whether weights are kept as lists of (index, value): some are not stored, or groups leave holes.
    pub fn lists(&self) -> bool {
        self.sparse || self.groups > 1
    }

    /// Taps for which there is code: those that differ in the first or last band count again.
    pub fn variants(&self) -> usize {
        let differ = |other: &[Tap]| self.taps.iter().zip(other).filter(|(a, b)| a != b).count();
        let tiled = self.tiled.as_ref();
        self.taps.len() + tiled.map_or(0, |t| differ(&t.first) + differ(&t.last))
    }

    /// Multiply-adds that a weight of a tap takes: its rectangle, for every sample.
    pub fn hits(&self, tap: &Tap) -> usize {
        tap.rows * tap.columns * self.samples
    }
}

/// Pooling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// Maximum instead of average.
    pub max: bool,
    /// Whether padding counts as zeros of the average.
    pub count_padding: bool,
    /// Window.
    pub kernel: [usize; 2],
    /// Strides.
    pub strides: [usize; 2],
    /// Top, left, bottom, right.
    pub pads: [usize; 4],
    /// Input extents.
    pub input: (usize, usize),
    /// Output extents.
    pub output: (usize, usize),
}

/// A kernel: one operator with what is fused into it.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Unique, readable.
    pub name: String,
    /// What it computes.
    pub kind: Kind,
    /// Its inputs.
    pub inputs: Vec<Use>,
    /// Its output edge.
    pub output: usize,
    /// The graph's nodes that it stands for.
    pub nodes: Vec<NodeId>,
}

/// How evenly a kernel's multiply-adds are spread over its PEs: those of the PE that has most over the mean of all that have any.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Balance {
    /// The kernel.
    pub kernel: usize,
    /// With the tensors' own order of features.
    pub before: f64,
    /// With the order that was chosen.
    pub after: f64,
}

/// A rectangle of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Rect {
    /// Left column.
    pub x: u32,
    /// Top row.
    pub y: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// The kernels of one stage (before the stages pass: the whole model) and the edges between them, filled in pass by pass.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The model's name.
    pub name: String,
    /// The stage's name; empty if it is the only one.
    pub stage_name: String,
    /// Element type of activations and weights.
    pub ty: Ty,
    /// Tensors that are sent through one after another: each tile is one.
    pub items: usize,
    /// Tiles that make up one tensor.
    pub tiles: usize,
    /// Kernels in topological order.
    pub kernels: Vec<Kernel>,
    /// Edges.
    pub edges: Vec<Edge>,
    /// What leaves: graph outputs, and tensors that later stages read; name and edge as seen outside.
    pub outputs: Vec<(String, Use)>,
    /// Rectangles of the kernels; set by the placement pass.
    pub places: Vec<Rect>,
    /// Expected cycles an item of each kernel; set by the placement pass.
    pub estimates: Vec<u64>,
    /// How even the work of kernels with lists is; set by the balance pass.
    pub balance: Vec<Balance>,
    /// The kernels' code and inner routes, with the words of weights that each PE waits for; set by the memory pass.
    pub regions: Vec<Emitted>,
    /// The ways of streamed weights; set by the weights pass.
    pub weights: Vec<WeightWay>,
    /// How many of the resident weights arrive in the stage before; set by the early pass, in stages after the first that have any.
    pub early: Option<Early>,
    /// What the next stage's kernels get while this one computes; set by the early pass.
    pub next: Option<Next>,
}

/// Resident weights that arrive while the stage before computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Early {
    /// Words of all weights of the stage.
    pub words: u64,
    /// Those that arrive early.
    pub arrived: u64,
    /// Why the others do not.
    pub why: Option<String>,
}

/// Weights of the next stage that enter while a stage computes.
#[derive(Clone, Debug)]
pub struct Next {
    /// Their colour.
    pub color: Color,
    /// The channels by which they enter.
    pub channels: Vec<Channel>,
    /// Words of each PE, row by row of the mesh, filled up to at least a wavelet a round.
    pub words: Vec<Vec<u32>>,
    /// PEs that get none, but have the code of others that do, row by row of the mesh.
    pub idle: Vec<bool>,
    /// Parts in which each PE gets its words, in turn with the others.
    pub rounds: usize,
    /// Code of the PEs that have no kernel in this stage, in places of the mesh.
    pub blocks: Vec<Block>,
}

/// A kernel's region, ready but for the streams between kernels and the weights' way.
#[derive(Clone, Debug)]
pub struct Emitted {
    /// Code and inner routes.
    pub region: Region,
    /// Weights of each PE as 32-bit words, row by row of the region; empty where it needs none. Those that arrive in the stage before
    /// are no longer among them.
    pub weights: Vec<Vec<u32>>,
    /// Where each lane of the output leaves.
    pub exits: Vec<Exit>,
    /// Where each lane of each input enters: column and row.
    pub entries: Vec<Vec<(u32, u32)>>,
    /// What each PE gives of the output stream.
    pub gives: Vec<Give>,
    /// Weights that enter as the kernel computes.
    pub streamed: Option<Streamed>,
}

/// Weights that enter as a kernel computes, again for every item: each column of its region has a stream of its own, which goes to all rows.
///
/// Several columns may share an edge channel. Then they get their blocks in turn, so a column must take a block whole before it waits
/// for anything that needs a later block of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Streamed {
    /// For each column its blocks, in order. The first columns have equally many, each of at least one wavelet, and the others none.
    pub columns: Vec<Vec<Vec<Wavelet>>>,
    /// The blocks are lists of nonzero weights.
    pub lists: bool,
}

/// The way of streamed weights from an edge channel to columns of a kernel.
#[derive(Clone, Debug)]
pub struct WeightWay {
    /// The kernel.
    pub kernel: usize,
    /// Its colour.
    pub color: Color,
    /// The channel by which they enter: its side and row.
    pub enters: (Side, u32),
    /// Columns of the kernel's region, in the order in which they get blocks.
    pub columns: Vec<u32>,
    /// The way, in places of the mesh.
    pub routes: Vec<Route>,
    /// One item's wavelets.
    pub data: Arc<Vec<Wavelet>>,
}

/// What a PE sends of its kernel's output, an item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Give {
    /// Column and row in the region.
    pub at: (u32, u32),
    /// Places of its features in the stream: first, and last + 1.
    pub features: (usize, usize),
    /// Where those of other PEs lie between: of every so many of the stream's places, first, and last + 1 of its own.
    pub turn: Option<(usize, (usize, usize))>,
    /// Of each of them, the positions, in the order in which they are sent: first, and last + 1.
    pub positions: Vec<(usize, usize)>,
}

impl Give {
    /// The places of its features in the stream.
    pub fn places(&self) -> impl Iterator<Item = usize> + use<'_> {
        let own = |place: &usize| {
            self.turn
                .is_none_or(|(every, (first, end))| (first..end).contains(&(place % every)))
        };
        (self.features.0..self.features.1).filter(own)
    }
}

/// Where a lane of a kernel's output leaves its region.
#[derive(Clone, Debug, Default)]
pub struct Exit {
    /// Column and row in the region.
    pub at: (u32, u32),
    /// What arrives there and for how many flagged blocks, in order.
    pub from: Vec<(Port, Expr)>,
}

impl Plan {
    /// The layout in which a kernel sees one of its inputs.
    pub fn view(&self, u: Use) -> Layout {
        let l = &self.edges[u.edge].layout;
        if u.flat { l.flattened() } else { l.clone() }
    }

    /// What the cycles of estimates are for.
    pub fn turn(&self) -> &'static str {
        if self.tiles > 1 { "a tile" } else { "an item" }
    }

    /// What makes every kernel need less SRAM, for messages.
    pub fn smaller(&self) -> &'static str {
        if self.ty == Ty::F32 {
            "a smaller --batch, --dtype f16"
        } else {
            "a smaller --batch"
        }
    }

    /// Longest chain of kernels before each kernel.
    pub fn levels(&self) -> Vec<usize> {
        let mut levels = vec![0; self.kernels.len()];
        for (i, k) in self.kernels.iter().enumerate() {
            for u in &k.inputs {
                if let Source::Kernel(p) = self.edges[u.edge].source {
                    levels[i] = levels[i].max(levels[p] + 1);
                }
            }
        }
        levels
    }
}
