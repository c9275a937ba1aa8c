//! Integer expressions of a PE's place in its region: how one program text serves a whole rectangle of PEs.

use std::sync::Arc;

/// An expression of `x` and `y`, the PE's column and row relative to its region's origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// A constant.
    Const(i64),
    /// The column in the region.
    X,
    /// The row in the region.
    Y,
    /// Sum.
    Add(Box<Expr>, Box<Expr>),
    /// Difference.
    Sub(Box<Expr>, Box<Expr>),
    /// Product.
    Mul(Box<Expr>, Box<Expr>),
    /// Floor division by a positive constant.
    Div(Box<Expr>, i64),
    /// Floor remainder by a positive constant.
    Mod(Box<Expr>, i64),
    /// The smaller.
    Min(Box<Expr>, Box<Expr>),
    /// The larger.
    Max(Box<Expr>, Box<Expr>),
    /// A table's entry at (x, y); see [`Table`].
    Table(Arc<Table>),
}

/// Which coordinates select a table's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Axes {
    /// By column.
    X,
    /// By row.
    Y,
    /// By both: entry `y * width + x`.
    XY,
}

/// Numbers too irregular for a formula, indexed by the place in the region. Entries outside the table read as 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Name, unique in the program.
    pub name: String,
    /// What selects an entry.
    pub axes: Axes,
    /// Row length of an `XY` table; 0 otherwise.
    pub width: u32,
    /// The entries.
    pub values: Vec<i64>,
}

impl Table {
    /// The entry at (x, y), 0 outside.
    pub fn at(&self, x: i64, y: i64) -> i64 {
        let index = match self.axes {
            Axes::X => x,
            Axes::Y => y,
            Axes::XY if x < 0 || x >= self.width as i64 => return 0,
            Axes::XY => y.wrapping_mul(self.width as i64).wrapping_add(x),
        };
        usize::try_from(index)
            .ok()
            .and_then(|i| self.values.get(i))
            .copied()
            .unwrap_or(0)
    }

    /// FNV-1a over the entries: how the text form shows a long table.
    pub fn hash(&self) -> u64 {
        fnv(self.values.iter().flat_map(|v| v.to_le_bytes()))
    }
}

/// FNV-1a, 64 bits.
pub fn fnv(bytes: impl IntoIterator<Item = u8>) -> u64 {
    bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ b as u64).wrapping_mul(0x100_0000_01b3)
    })
}

impl Expr {
    /// Whether its value may differ between columns.
    pub fn depends_on_x(&self) -> bool {
        match self {
            Expr::Const(_) | Expr::Y => false,
            Expr::X => true,
            Expr::Add(a, b) | Expr::Sub(a, b) | Expr::Mul(a, b) | Expr::Min(a, b) | Expr::Max(a, b) => {
                a.depends_on_x() || b.depends_on_x()
            }
            Expr::Div(a, _) | Expr::Mod(a, _) => a.depends_on_x(),
            Expr::Table(t) => t.axes != Axes::Y,
        }
    }

    /// Its value at (x, y) of the region; arithmetic wraps, as the verifier bounds what matters.
    pub fn at(&self, x: i64, y: i64) -> i64 {
        match self {
            Expr::Const(c) => *c,
            Expr::X => x,
            Expr::Y => y,
            Expr::Add(a, b) => a.at(x, y).wrapping_add(b.at(x, y)),
            Expr::Sub(a, b) => a.at(x, y).wrapping_sub(b.at(x, y)),
            Expr::Mul(a, b) => a.at(x, y).wrapping_mul(b.at(x, y)),
            Expr::Div(a, n) => a.at(x, y).checked_div_euclid(*n).unwrap_or(0),
            Expr::Mod(a, n) => a.at(x, y).checked_rem_euclid(*n).unwrap_or(0),
            Expr::Min(a, b) => a.at(x, y).min(b.at(x, y)),
            Expr::Max(a, b) => a.at(x, y).max(b.at(x, y)),
            Expr::Table(t) => t.at(x, y),
        }
    }

    /// The constant, where it is one.
    pub fn constant(&self) -> Option<i64> {
        match self {
            Expr::Const(c) => Some(*c),
            _ => None,
        }
    }

    /// A table of `values`, or a constant where all are equal.
    pub fn table(name: &str, axes: Axes, width: u32, values: Vec<i64>) -> Expr {
        match values.first() {
            None => Expr::Const(0),
            Some(first) if values.iter().all(|v| v == first) => Expr::Const(*first),
            _ => Expr::Table(Arc::new(Table {
                name: name.into(),
                axes,
                width,
                values,
            })),
        }
    }
}

impl From<i64> for Expr {
    fn from(c: i64) -> Expr {
        Expr::Const(c)
    }
}
