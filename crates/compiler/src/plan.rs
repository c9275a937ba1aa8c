//! What the passes hand from one to the next: kernels, the edges (streams of tensors) between them, and how each tensor is laid
//! out over the mesh's rows.

use meshloom_models::{NodeId, TensorId};
use meshloom_simulator::program::{Color, Region, Ty};
use std::sync::Arc;

/// How a tensor \[n, features, inner...\] travels: row r of the mesh (lane r) carries the features `starts[r] .. starts[r + 1]`, one
/// after another, each as its n * inner elements in row-major order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Samples.
    pub n: usize,
    /// Extents after the feature axis.
    pub inner: Vec<usize>,
    /// First feature of each lane, and the number of features at the end.
    pub starts: Vec<usize>,
}

impl Layout {
    /// Splits `features` over `lanes` rows as evenly as possible, the longer blocks first.
    pub fn balanced(n: usize, features: usize, inner: Vec<usize>, lanes: usize) -> Layout {
        let (each, extra) = (features / lanes, features % lanes);
        let starts = (0..=lanes).map(|r| r * each + r.min(extra)).collect();
        Layout { n, inner, starts }
    }

    /// Number of features.
    pub fn features(&self) -> usize {
        self.starts.last().copied().unwrap_or(0)
    }

    /// Features of lane `r`.
    pub fn lane(&self, r: usize) -> usize {
        self.starts[r + 1] - self.starts[r]
    }

    /// Rows up to the last that carries anything.
    pub fn rows(&self) -> usize {
        (0..self.starts.len() - 1)
            .rev()
            .find(|r| self.lane(*r) > 0)
            .map_or(0, |r| r + 1)
    }

    /// Most features of a lane.
    pub fn widest(&self) -> usize {
        (0..self.starts.len() - 1)
            .map(|r| self.lane(r))
            .max()
            .unwrap_or(0)
    }

    /// Elements of one feature.
    pub fn length(&self) -> usize {
        self.n * self.inner.iter().product::<usize>()
    }

    /// The same stream seen as \[n = 1, features * length\]: one element a feature.
    pub fn flattened(&self) -> Layout {
        let p: usize = self.inner.iter().product();
        Layout {
            n: self.n,
            inner: Vec::new(),
            starts: self.starts.iter().map(|s| s * p).collect(),
        }
    }

    /// Feature counts of all lanes, for tables by row.
    pub fn counts(&self) -> Vec<i64> {
        (0..self.starts.len() - 1).map(|r| self.lane(r) as i64).collect()
    }
}

/// Where an edge's tensor comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The graph input of this index, fed at the edge of the wafer.
    Input(usize),
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
    /// Layout as produced; set by the layout pass.
    pub layout: Layout,
    /// For inputs: position of each axis of the stream \[n, features, inner...\] in the host's array.
    pub axes: Vec<usize>,
    /// Consumers.
    pub to: Vec<usize>,
    /// Lanes' colour; set by the routing pass.
    pub color: Color,
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
    /// Matrix product or convolution with few groups: mixes features.
    Mix(Arc<Mix>),
    /// Convolution in which each output feature reads one input feature.
    Depthwise(Arc<Mix>),
    /// Maximum or average over windows.
    Pool(Pool),
    /// Element-wise sum or product of two tensors.
    Binary {
        /// Product instead of sum.
        multiply: bool,
        /// ReLU on the result.
        relu: bool,
    },
    /// ReLU alone.
    Relu,
    /// Softmax over the features.
    Softmax,
    /// \[n, c, p\] to \[n, c * p\].
    Flatten,
}

/// A linear operator over features, applied at window positions.
#[derive(Clone, Debug)]
pub struct Mix {
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
    /// Bias \[m\].
    pub bias: Option<Arc<Vec<f32>>>,
    /// ReLU on the result.
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
    /// Strides in the input, rows and columns.
    pub strides: [usize; 2],
}

impl Mix {
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

    /// Whether weights are kept as lists of (index, value): some are not stored, or groups leave holes.
    pub fn lists(&self) -> bool {
        self.sparse || self.groups > 1
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

/// The model as kernels and edges, filled in pass by pass.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The model's name.
    pub name: String,
    /// Element type of activations and weights.
    pub ty: Ty,
    /// Tensors that are sent through one after another.
    pub items: usize,
    /// Kernels in topological order.
    pub kernels: Vec<Kernel>,
    /// Edges.
    pub edges: Vec<Edge>,
    /// Graph outputs: name and edge as seen outside.
    pub outputs: Vec<(String, Use)>,
    /// Rectangles of the kernels; set by the placement pass.
    pub places: Vec<Rect>,
    /// Expected cycles an item of each kernel; set by the placement pass.
    pub estimates: Vec<u64>,
    /// The kernels' code and inner routes, with the words of weights that each PE waits for; set by the memory pass.
    pub regions: Vec<Emitted>,
}

/// A kernel's region, ready but for the lanes' routes and the weights' way.
#[derive(Clone, Debug)]
pub struct Emitted {
    /// Code and inner routes.
    pub region: Region,
    /// Weights of each PE as 32-bit words, row by row of the region; empty where it needs none.
    pub weights: Vec<Vec<u32>>,
    /// Columns of the region that take from each input's lanes, with the filter that selects their part.
    pub taps: Vec<LaneTap>,
}

/// Which part of an input's lanes goes to which columns of a region.
#[derive(Clone, Debug, Default)]
pub struct LaneTap {
    /// For each column and row of the region (row by row): first wavelet and number of wavelets taken; all of them if empty.
    pub parts: Vec<(u64, u64)>,
    /// Columns that take anything.
    pub columns: u32,
}

impl Plan {
    /// The layout in which a kernel sees one of its inputs.
    pub fn view(&self, u: Use) -> Layout {
        let l = &self.edges[u.edge].layout;
        if u.flat { l.flattened() } else { l.clone() }
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
