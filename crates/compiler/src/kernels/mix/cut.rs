//! How the work of a rectangle is cut: input features over its columns, output features over its rows; and in which form the PEs work.

use super::*;

/// A column of the rectangle: which lane of which input it takes from, and which features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) term: usize,
    pub(super) lane: usize,
    pub(super) from: usize,
    pub(super) to: usize,
}

/// How the work is cut in a rectangle.
pub(super) struct Cut {
    pub(super) columns: Vec<Column>,
    /// First output feature of each row, and the end.
    pub(super) rows: Vec<usize>,
    /// Features of a chunk, for each input.
    pub(super) chunk: Vec<usize>,
    /// Results leave from a buffer of their own, so that the next item can begin.
    pub(super) staged: bool,
    /// For each input, items whose features have room in its columns: those worked on, and those that come in meanwhile or wait for
    /// another input that takes a longer way.
    pub(super) slots: Vec<usize>,
    /// The steady form: one chunk an item, and two sets of accumulators; then every input has at least two slots, and `staged` does not hold.
    pub(super) steady: bool,
}

/// What the PEs of a rectangle have of an operator's features.
pub(crate) struct Shares {
    /// Places in the output stream: first one of each row, and the end.
    pub(crate) rows: Vec<usize>,
    /// Of each column, which input it takes from, and its places in that stream: first, and last + 1.
    pub(crate) columns: Vec<(usize, usize, usize)>,
}

/// The shares of a rectangle that [`Implementation::fit`] gave. They do not depend on the order of features in the streams.
pub(crate) fn shares(mix: &Arc<Mix>, c: &Context, width: u32, height: u32) -> Option<Shares> {
    let cut = MixKernel::new(mix).cut(c, width, height)?;
    Some(Shares {
        rows: cut.rows,
        columns: cut.columns.iter().map(|c| (c.term, c.from, c.to)).collect(),
    })
}

impl Cut {
    pub(super) fn outputs(&self, row: usize) -> usize {
        self.rows[row + 1] - self.rows[row]
    }

    /// Output features of the row that has most.
    pub(super) fn widest(&self) -> usize {
        self.rows.windows(2).map(|r| r[1] - r[0]).max().unwrap_or(0)
    }

    /// The first row that has most output features.
    pub(super) fn widest_row(&self) -> usize {
        let rows = 0..self.rows.len() - 1;
        rows.max_by_key(|r| (self.outputs(*r), usize::MAX - r))
            .unwrap_or(0)
    }

    pub(super) fn features(&self, column: usize) -> usize {
        self.columns[column].to - self.columns[column].from
    }
}

impl MixKernel<'_> {
    /// Columns for each lane of each input: as many as hold its features in half of their SRAM, and the others to where a column has most
    /// to do.
    pub(super) fn allot(&self, c: &Context, width: usize) -> Option<Vec<(usize, usize, usize)>> {
        // term, lane, columns
        let features = |t: usize| self.mix.terms[t].k / c.inputs[t].lanes;
        let waiting = self.slots(c, 1);
        let least = |t: usize| {
            let item = features(t) as u64 * Context::pitch(c.ty, c.inputs[t].length()) as u64;
            let bytes = item * waiting[t] as u64;
            (bytes.div_ceil(c.machine.pe.sram_bytes as u64 / 2) as usize).clamp(1, features(t))
        };
        let mut all: Vec<(usize, usize, usize)> = (0..self.mix.terms.len())
            .flat_map(|t| (0..c.inputs[t].lanes).map(move |lane| (t, lane)))
            .map(|(t, lane)| (t, lane, least(t)))
            .collect();
        let needed = all.iter().map(|a| a.2).sum::<usize>();
        if width < needed {
            return None;
        }
        let load = |t: usize, n: usize| features(t).div_ceil(n) as u64 * Self::work(&self.mix.terms[t]);
        for _ in needed..width {
            let open = all
                .iter_mut()
                .enumerate()
                .filter(|(_, (t, _, n))| *n < features(*t));
            match open.max_by_key(|(i, (t, _, n))| (load(*t, *n), usize::MAX - i)) {
                Some((_, lane)) => lane.2 += 1,
                None => break,
            }
        }
        all.iter_mut()
            .for_each(|(t, _, n)| *n = fewest(features(*t), *n as u32) as usize);
        Some(all)
    }

    /// The largest number of rows, at most `height`, that makes a row's share smaller; each lane of the output needs a row.
    pub(super) fn rows(&self, c: &Context, height: u32) -> u32 {
        let lanes = c.output.lanes as u32;
        fewest(self.m() / lanes as usize, height / lanes) * lanes
    }

    /// Room for `least` items of each input, and for those of a shorter way that wait for the longest one.
    fn slots(&self, c: &Context, least: usize) -> Vec<usize> {
        let longest = c.slack.iter().min().copied().unwrap_or(0);
        let most = c.items.min(c.machine.pe.move_queue as usize).max(1);
        c.slack.iter().map(|s| (least + s - longest).min(most)).collect()
    }

    pub(super) fn cut(&self, c: &Context, width: u32, height: u32) -> Option<Cut> {
        let allotted = self.allot(c, width as usize)?;
        if allotted.iter().map(|a| a.2).sum::<usize>() != width as usize || self.rows(c, height) != height {
            return None;
        }
        let mut columns = Vec::new();
        for (term, lane, n) in allotted {
            let (first, last) = c.inputs[term].lane(lane);
            let starts = balanced(last - first, n);
            columns.extend(starts.windows(2).map(|s| Column {
                term,
                lane,
                from: first + s[0],
                to: first + s[1],
            }));
        }
        let lanes = c.output.lanes;
        let mut rows = vec![0];
        for lane in 0..lanes {
            let (first, last) = c.output.lane(lane);
            let n = lane_row(lane + 1, lanes, height) - lane_row(lane, lanes, height);
            rows.extend(balanced(last - first, n as usize)[1..].iter().map(|r| first + r));
        }
        let outputs = rows.windows(2).map(|r| r[1] - r[0]).max().unwrap_or(1);
        let chunk = |term: usize| {
            let linear = &self.mix.terms[term];
            // small chunks let work begin early; an instruction of a few hundred steps hides its own cost
            let total = if linear.lists() {
                self.sums(c, term).stored.last().copied().unwrap_or(0) as f64
                    / linear.taps.len().max(1) as f64
            } else {
                (linear.m * linear.k) as f64
            };
            let density = total / (linear.m * linear.k).max(1) as f64;
            let tap = linear.taps.iter().map(|t| linear.hits(t)).max().unwrap_or(1);
            let steps = (outputs * tap) as f64 * density.max(0.02);
            let widest = columns
                .iter()
                .filter(|c| c.term == term)
                .map(|c| c.to - c.from)
                .max();
            let few = (256.0 / steps).ceil() as usize;
            let widest = widest.unwrap_or(1).max(1);
            // dense products that take longer than their features to arrive wait for n features once, and set up their instructions for
            // every n: the sum is least at the root of the quotient
            let arrival = c.move_slots(1, c.inputs[term].length()).max(1) as f64;
            let set_up = self.set_up(c, term) as f64;
            let work = linear
                .taps
                .iter()
                .map(|t| outputs * linear.hits(t))
                .sum::<usize>() as f64;
            let best = match !linear.lists() && work > arrival {
                true => (widest as f64 * set_up / arrival).sqrt().round() as usize,
                false => 1,
            };
            few.max(best)
                .clamp(1, widest)
                .min((65535 / outputs.max(1)).max(1))
        };
        let mut cut = Cut {
            chunk: (0..self.mix.terms.len()).map(chunk).collect(),
            columns,
            rows,
            staged: true,
            slots: Vec::new(),
            steady: false,
        };
        let fits = |cut: &Cut| self.fullest(c, cut).0 <= c.machine.pe.sram_bytes as u64;
        // one that comes in ahead, if there is SRAM; those that wait for another input in any case, if the pace is to be kept
        cut.slots = self.slots(c, 2);
        if let Some(steady) = self.steady(c, &cut).filter(fits) {
            return Some(steady);
        }
        if !fits(&cut) {
            cut.slots = self.slots(c, 1);
        }
        if !fits(&cut) && !c.keep_all {
            cut.slots.fill(1);
            cut.staged = fits(&cut);
        }
        Some(cut)
    }

    /// Slots in which a chunk's dense products are set up, by scalar code and the issue of their instructions.
    pub(super) fn set_up(&self, c: &Context, term: usize) -> u64 {
        let (cost, linear) = (&c.machine.pe.cost, &self.mix.terms[term]);
        let each = (3 * cost.descriptor + cost.issue + 10 * cost.add) as u64;
        linear.taps.len() as u64 * each * linear.samples.max(1) as u64
    }

    /// The steady form of a cut, if the operator and the machine allow it.
    fn steady(&self, c: &Context, cut: &Cut) -> Option<Cut> {
        let widest = |term: usize| {
            let of = cut.columns.iter().filter(|c| c.term == term);
            of.map(|c| c.to - c.from).max().unwrap_or(1)
        };
        // an index of a list has 16 bits; dense products of several samples are several instructions
        let one =
            |(i, t): (usize, &Linear)| (t.lists() || t.samples == 1) && widest(i) * cut.widest() <= 65535;
        let possible = c.items > 1
            && cut.slots.iter().all(|n| *n >= 2)
            && c.machine.pe.threads > CLEAR as u32
            && c.machine.pe.move_queue >= 2
            && self.mix.terms.iter().enumerate().all(one);
        possible.then(|| Cut {
            columns: cut.columns.clone(),
            rows: cut.rows.clone(),
            chunk: (0..self.mix.terms.len()).map(widest).collect(),
            slots: cut.slots.clone(),
            staged: false,
            steady: true,
        })
    }
}
