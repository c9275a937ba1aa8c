//! The program as text: line-oriented, readable, and exact: [`parse`] of [`print()`] gives the same program. Long tables and feeds are
//! shown by size and hash; their contents travel beside the text in a [`DataStore`]. `docs/program.md` has the grammar.

mod parse;
mod print;

use crate::expr::{Axes, Expr, Table, fnv};
use crate::program::{Block, FeedData, Program, Region, Wavelet};
use std::collections::HashMap;
use std::sync::Arc;

pub use print::{instruction, instruction_in, lattice};
pub(crate) use print::{name, port, side, span, stage_name};

/// Tables of at most this many entries are printed in full.
pub const INLINE_ENTRIES: usize = 32;
/// Feeds of at most this many wavelets are printed in full.
pub const INLINE_WAVELETS: usize = 16;
/// Deepest expression that the text form and the verifier accept.
pub const MAX_DEPTH: usize = 200;

/// A place in a text that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: found {found}, expected {expected}")]
pub struct TextError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is there.
    pub found: String,
    /// What could be there.
    pub expected: String,
}

/// The contents of long tables and feeds, by name and hash.
#[derive(Clone, Debug, Default)]
pub struct DataStore {
    tables: HashMap<(String, u64), Vec<Arc<Table>>>,
    feeds: HashMap<(String, u64), Vec<Arc<Vec<Wavelet>>>>,
}

impl DataStore {
    /// Adds a table.
    pub fn add_table(&mut self, table: &Arc<Table>) {
        let same = self.tables.entry((table.name.clone(), table.hash())).or_default();
        if !same
            .iter()
            .any(|t| t.axes == table.axes && t.width == table.width)
        {
            same.push(table.clone());
        }
    }

    /// Adds the wavelets of a feed.
    pub fn add_feed(&mut self, name: &str, data: &Arc<Vec<Wavelet>>) {
        let same = self.feeds.entry((name.into(), feed_hash(data))).or_default();
        if !same.iter().any(|d| d.len() == data.len()) {
            same.push(data.clone());
        }
    }

    /// The table of that name, hash and form.
    pub fn table(
        &self,
        name: &str,
        hash: u64,
        axes: Axes,
        width: u32,
        entries: usize,
    ) -> Option<&Arc<Table>> {
        let all = self.tables.get(&(name.to_string(), hash))?;
        all.iter()
            .find(|t| t.axes == axes && t.width == width && t.values.len() == entries)
    }

    /// The wavelets of that feed, hash and length.
    pub fn feed(&self, name: &str, hash: u64, wavelets: usize) -> Option<&Arc<Vec<Wavelet>>> {
        self.feeds
            .get(&(name.to_string(), hash))?
            .iter()
            .find(|d| d.len() == wavelets)
    }
}

/// FNV-1a over a feed's wavelets: how the text form shows a long feed.
pub fn feed_hash(data: &[Wavelet]) -> u64 {
    fnv(data
        .iter()
        .flat_map(|w| w.bits.to_le_bytes().into_iter().chain([w.elements, w.flag as u8])))
}

/// The contents of a program's long tables and feeds: what [`parse`] needs beside the text.
pub fn data(program: &Program) -> DataStore {
    let mut store = DataStore::default();
    let mut seen = std::collections::HashSet::new();
    for region in program.regions() {
        region_tables(region, &mut |t| {
            if t.values.len() > INLINE_ENTRIES && seen.insert(Arc::as_ptr(t)) {
                store.add_table(t);
            }
        });
    }
    for feed in program.stages.iter().flat_map(|s| &s.feeds) {
        if let FeedData::Host(data) = &feed.data
            && data.len() > INLINE_WAVELETS
        {
            store.add_feed(&feed.name, data);
        }
    }
    store
}

/// The program as text.
pub fn print(program: &Program) -> String {
    print::program(program)
}

/// Reads a program's text; `data` has the contents of the tables and feeds that it names by hash.
pub fn parse(text: &str, data: &DataStore) -> Result<Program, TextError> {
    parse::program(text, data)
}

/// All tables of an expression, in the order in which they are written.
pub(crate) fn expr_tables<'a>(e: &'a Expr, visit: &mut dyn FnMut(&'a Arc<Table>)) {
    match e {
        Expr::Const(_) | Expr::X | Expr::Y => {}
        Expr::Div(a, _) | Expr::Mod(a, _) => expr_tables(a, visit),
        Expr::Add(a, b) | Expr::Sub(a, b) | Expr::Mul(a, b) | Expr::Min(a, b) | Expr::Max(a, b) => {
            expr_tables(a, visit);
            expr_tables(b, visit);
        }
        Expr::Table(t) => visit(t),
    }
}

/// All tables of a region's routes and blocks.
fn region_tables<'a>(region: &'a Region, visit: &mut dyn FnMut(&'a Arc<Table>)) {
    for route in &region.routes {
        for position in &route.positions {
            expr_tables(&position.hold, visit);
        }
        for f in &route.filters {
            for e in [&f.count, &f.period, &f.first] {
                expr_tables(e, visit);
            }
        }
    }
    for param in region.blocks.iter().flat_map(|b: &Block| &b.params) {
        expr_tables(&param.value, visit);
    }
}

/// Whether a name can be written without quotes.
fn plain(name: &str) -> bool {
    let b = name.as_bytes();
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    b.first().is_some_and(|c| c.is_ascii_alphabetic() || *c == b'_')
        && b.iter()
            .enumerate()
            .all(|(i, c)| word(*c) || (*c == b'.' && b.get(i + 1).is_some_and(|n| word(*n))))
}

/// Whether a name reads like a scalar register.
fn like_register(name: &str) -> bool {
    name.strip_prefix('r')
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit()))
}
