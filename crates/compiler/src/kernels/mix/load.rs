//! What a PE has: its multiply-adds, its weights as words, its SRAM bytes.

use super::*;

/// Sums over the weights [output feature][input feature] before a place, to know any rectangle's work at once.
pub(super) struct Sums {
    /// (k + 1) entries a row, m + 1 rows: cycles of products.
    pub(super) cycles: Vec<u64>,
    /// The same for stored weights.
    pub(super) stored: Vec<u32>,
    /// Entries of a row.
    pub(super) width: usize,
}

impl Sums {
    fn of<T: Copy + std::ops::Add<Output = T> + std::ops::Sub<Output = T>>(
        all: &[T],
        width: usize,
        (m0, m1): (usize, usize),
        (k0, k1): (usize, usize),
    ) -> T {
        all[m1 * width + k1] + all[m0 * width + k0] - all[m0 * width + k1] - all[m1 * width + k0]
    }
}

/// How an operator's products lie in the banks, and what they take.
pub(super) struct Cost {
    /// Where accumulators begin modulo 32.
    pub(super) phase: u32,
    /// Cycles of each tap's products with one weight.
    pub(super) cycles: Vec<u64>,
}

/// The weights of one PE as words, and where its lists lie in them.
pub(super) struct Image {
    pub(super) words: Vec<u32>,
    /// Bytes before the first index, and before the first value.
    pub(super) indices: usize,
    pub(super) values: usize,
    /// Stored weights of each chunk's taps.
    pub(super) counts: Vec<u16>,
}

impl MixKernel<'_> {
    /// Multiply-adds of one weight at all its positions, over all taps.
    pub(super) fn work(term: &Linear) -> u64 {
        term.taps.iter().map(|t| term.hits(t) as u64).sum::<u64>().max(1)
    }

    /// Weights of one PE: bias (where the sum ends), then the stored weights.
    pub(super) fn image(&self, c: &Context, cut: &Cut, column: usize, row: usize) -> Image {
        let Column { term, from, to, .. } = cut.columns[column];
        let linear = &self.mix.terms[term];
        let order = c.output.order.as_deref();
        let input = c.inputs[term].order.as_deref();
        let outputs: Vec<usize> = (cut.rows[row]..cut.rows[row + 1])
            .map(|m| order.map_or(m, |o| o[m]))
            .collect();
        let features: Vec<usize> = (from..to).map(|k| input.map_or(k, |o| o[k])).collect();
        let mut words = Vec::new();
        if column + 1 == cut.columns.len() {
            let bias = |m: &usize| self.mix.bias.as_ref().map_or(0.0f32, |b| b[*m]).to_bits();
            words.extend(outputs.iter().map(bias));
            words.resize(bias_bytes(cut) / 4, 0);
        }
        let (mut counts, mut index, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for chunk in features.chunks(cut.chunk[term]) {
            for tap in &linear.taps {
                let before = values.len();
                for (i, &k) in chunk.iter().enumerate() {
                    for (j, &m) in outputs.iter().enumerate() {
                        if !linear.lists() {
                            values.push(linear.weight(m, k, tap.index).unwrap_or(0.0));
                        } else if let Some(w) = linear.stored(m, k, tap.index) {
                            index.push((i * outputs.len() + j) as u16);
                            values.push(w);
                        }
                    }
                }
                counts.push((values.len() - before) as u16);
            }
        }
        if linear.lists() && !cut.steady {
            words.extend(pack_u16(&counts));
        }
        let indices = words.len() * 4;
        words.extend(pack_u16(&index));
        let at = words.len() * 4;
        words.extend(pack(c.ty, &values));
        // weights have a way to all PEs of a block or to none
        words.resize(words.len().max(1), 0);
        Image {
            words,
            indices,
            values: at,
            counts,
        }
    }

    /// Of a term's products; worked out once, for all rectangles.
    pub(super) fn products(&self, c: &Context, term: usize) -> &Cost {
        self.costs[term].get_or_init(|| Self::cost(c, &self.mix.terms[term]))
    }

    fn cost(c: &Context, linear: &Linear) -> Cost {
        let issue = match linear.lists() {
            true => c.machine.pe.cost.issue as u64,
            false => 0,
        };
        let steps = |t: &Tap| {
            let lanes = match t.strides[1] * t.steps[1] {
                1 => c.multiply_lanes(),
                _ => 1,
            };
            (t.rows * linear.samples) as u64 * (t.columns as u64).div_ceil(lanes)
        };
        let at = |t: &Tap| (4 * t.y as i64, c.ty.bytes() as i64 * t.x as i64, steps(t));
        let (phase, _) = phase(c.machine, &linear.taps.iter().map(at).collect::<Vec<_>>());
        let cycles = |t: &Tap| {
            let (y, x, steps) = at(t);
            let slots = 1 + conflict(c.machine, y + phase as i64, x) as u64;
            steps * slots + issue
        };
        Cost {
            phase,
            cycles: linear.taps.iter().map(cycles).collect(),
        }
    }

    /// Sums over a term's weights in the order of the streams; made once, for all rectangles.
    pub(super) fn sums(&self, c: &Context, term: usize) -> &Sums {
        self.sums[term].get_or_init(|| {
            let linear = &self.mix.terms[term];
            let cycles = &self.products(c, term).cycles;
            let taps: Vec<(usize, u64)> = (linear.taps.iter().map(|t| t.index))
                .zip(cycles.iter().copied())
                .collect();
            let width = linear.k + 1;
            let mut cycles = vec![0u64; width * (linear.m + 1)];
            let mut stored = vec![0u32; width * (linear.m + 1)];
            let (outputs, inputs) = (c.output.order.as_deref(), c.inputs[term].order.as_deref());
            for m in 0..linear.m {
                let (mut row_cycles, mut row_stored) = (0, 0);
                for k in 0..linear.k {
                    let (om, ok) = (outputs.map_or(m, |o| o[m]), inputs.map_or(k, |o| o[k]));
                    for (index, products) in &taps {
                        if linear.stored(om, ok, *index).is_some() {
                            row_cycles += products;
                            row_stored += 1;
                        }
                    }
                    let at = (m + 1) * width + k + 1;
                    cycles[at] = cycles[at - width] + row_cycles;
                    stored[at] = stored[at - width] + row_stored;
                }
            }
            Sums {
                cycles,
                stored,
                width,
            }
        })
    }

    /// Multiplication cycles and stored weights of one PE.
    pub(super) fn load(&self, c: &Context, cut: &Cut, column: usize, row: usize) -> (u64, u64) {
        let Column { term, from, to, .. } = cut.columns[column];
        let linear = &self.mix.terms[term];
        if linear.lists() {
            let sums = self.sums(c, term);
            let rows = (cut.rows[row], cut.rows[row + 1]);
            let cycles = Sums::of(&sums.cycles, sums.width, rows, (from, to));
            let stored = Sums::of(&sums.stored, sums.width, rows, (from, to));
            (cycles, stored as u64)
        } else {
            let weights = (cut.outputs(row) * (to - from)) as u64;
            let products: u64 = self.products(c, term).cycles.iter().sum();
            (weights * products, weights * linear.taps.len() as u64)
        }
    }

    /// Multiplication cycles and stored weights of the PE of a column that has most of both, cycles first.
    pub(super) fn heaviest(&self, c: &Context, cut: &Cut, column: usize) -> (u64, u64) {
        if !self.mix.terms[cut.columns[column].term].lists() {
            return self.load(c, cut, column, cut.widest_row());
        }
        let loads = (0..cut.rows.len() - 1).map(|r| self.load(c, cut, column, r));
        loads.max().unwrap_or_default()
    }

    /// Stored weights of the PE of a column that has most, and its row: the first such.
    fn fullest_of(&self, c: &Context, cut: &Cut, column: usize) -> (u64, usize) {
        if !self.mix.terms[cut.columns[column].term].lists() {
            let row = cut.widest_row();
            return (self.load(c, cut, column, row).1, row);
        }
        (0..cut.rows.len() - 1)
            .map(|r| (self.load(c, cut, column, r).1, r))
            .max_by_key(|(n, r)| (*n, usize::MAX - r))
            .unwrap_or((0, 0))
    }

    /// SRAM bytes of the fullest PE, and which it is.
    pub(super) fn fullest(&self, c: &Context, cut: &Cut) -> (u64, (u32, u32)) {
        let length_out = c.output.length();
        let outputs = cut.widest() as u64;
        let y = outputs * Context::pitch(Ty::F32, length_out) as u64;
        let mut widest = vec![0; self.mix.terms.len()];
        for (i, column) in cut.columns.iter().enumerate() {
            widest[column.term] = cut.features(i).max(widest[column.term]);
        }
        let mut fullest = (0, (0, 0));
        for column in 0..cut.columns.len() {
            let term = cut.columns[column].term;
            let linear = &self.mix.terms[term];
            let x = widest[term] as u64 * Context::pitch(c.ty, c.inputs[term].length()) as u64;
            let (stored, row) = self.fullest_of(c, cut, column);
            let chunks = (cut.features(column).div_ceil(cut.chunk[term]) * linear.taps.len()) as u64;
            let weights = if linear.lists() {
                stored * (2 + c.ty.bytes() as u64) + chunks * 2 + 8
            } else {
                stored * c.ty.bytes() as u64 + 4
            };
            let mut bytes = x * cut.slots[term] as u64 + y * (1 + cut.steady as u64) + weights;
            if column + 1 == cut.columns.len() {
                bytes += bias_bytes(cut) as u64 + if cut.staged { y } else { 0 };
            }
            // a tile's dense taps have no loop over samples
            let each = if linear.tiled.is_some() && !linear.lists() {
                7
            } else {
                12
            };
            let code = (90 + linear.variants() as u64 * each) * c.machine.pe.instruction_bytes as u64;
            bytes += code + 128;
            if bytes > fullest.0 {
                fullest = (bytes, (column as u32, row as u32));
            }
        }
        fullest
    }
}

pub(super) fn bias_bytes(cut: &Cut) -> usize {
    (cut.widest() * 4).next_multiple_of(32)
}
