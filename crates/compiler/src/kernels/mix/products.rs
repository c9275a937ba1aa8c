//! The instructions of a PE's products, for dense weights (an outer product of features and weights, for each tap) and for lists of stored
//! weights (an AXPY for each tap, which walks its list by itself).
//!
//! In the steady form the products of an item are one instruction a tap, handed to a microthread one behind the other. Their descriptors
//! are set once if there are enough, and then only moved from buffer to buffer: a slot each an item. In chunks, dense products set them
//! anew; lists move them.

use super::*;

/// Descriptors that nothing else in a block uses.
const FREE: [u8; 36] = {
    let mut all = [0; 36];
    let mut i = 0;
    while i < all.len() {
        // d2 to d8, d11 to d13, and from d18 on
        all[i] = match i {
            0..7 => i + 2,
            7..10 => i + 4,
            _ => i + 8,
        } as u8;
        i += 1;
    }
    all
};

/// The products of one block's PEs.
pub(super) struct Products<'b> {
    pub(super) c: &'b Context<'b>,
    pub(super) linear: &'b Linear,
    /// The PE's features.
    pub(super) outputs: Val,
    pub(super) features: Val,
    /// Elements from feature to feature: of accumulators, and of the input.
    pub(super) pitch: (i64, i64),
    /// Address of the first dense weight, or of a chunk's first count.
    pub(super) weights: i64,
    /// In the steady form, each tap's list: addresses of indices and values, and their number. Empty for dense weights.
    pub(super) lists: Vec<[Val; 3]>,
}

/// A register with the address of accumulators, and one with that of features.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub(super) y: u8,
    pub(super) x: u8,
}

const fn reg(r: u8) -> Val {
    Val::Reg(r)
}

fn imm(n: usize) -> Val {
    Val::Imm(n as i64)
}

impl Products<'_> {
    fn element(&self) -> i64 {
        self.c.ty.bytes() as i64
    }

    /// Descriptors of a tap.
    fn each(&self) -> usize {
        if self.linear.lists() { 2 } else { 3 }
    }

    /// Whether every tap has descriptors of its own, the same for all items.
    pub(super) fn kept(&self) -> bool {
        self.linear.tiled.is_none() && self.linear.taps.len() * self.each() <= FREE.len()
    }

    /// The descriptors of a tap: accumulators, features, and dense weights.
    fn descriptors(&self, tap: usize) -> [u8; 3] {
        let first = if self.kept() { tap * self.each() } else { 0 };
        [0, 1, 2].map(|i| FREE[(first + i).min(FREE.len() - 1)])
    }

    /// Sets a tap's descriptors, for products with so many features.
    fn aim(&self, a: &mut Assembler, (t, tap): (usize, &Tap), features: Val, y: Val, x: Val) {
        let linear = self.linear;
        let ((hi, wi), (ho, wo)) = (linear.input, linear.output);
        let (row_y, column_y) = ((tap.steps[0] * wo) as i64, tap.steps[1] as i64);
        let (row, column) = ((tap.strides[0] * wi) as i64, tap.strides[1] as i64);
        let [dy, dx, dw] = self.descriptors(t);
        let (rows, columns) = (imm(tap.rows), imm(tap.columns));
        if linear.lists() {
            let shape = [imm(linear.samples), rows, columns];
            a.memory(dy, Ty::F32, y, &shape, &[(ho * wo) as i64, row_y, column_y], true);
            a.memory(dx, self.c.ty, x, &shape, &[(hi * wi) as i64, row, column], true);
            return;
        }
        let shape = [features, self.outputs, rows, columns];
        let (ey, ex) = self.pitch;
        a.memory(dy, Ty::F32, y, &shape, &[0, ey, row_y, column_y], true);
        a.memory(dx, self.c.ty, x, &shape, &[ex, 0, row, column], true);
        // r3: the tap's weights, r10: their bytes
        let place = Place::Memory {
            base: reg(3),
            strides: vec![self.outputs, Val::Imm(1), Val::Imm(0), Val::Imm(0)],
            wide: true,
        };
        a.emit(Instr::Desc(
            dw,
            Descriptor {
                ty: self.c.ty,
                shape: shape.to_vec(),
                place,
            },
        ));
        a.emit(Instr::Add(3, reg(3), reg(10)));
    }

    /// The same, from registers.
    fn aim_from(&self, a: &mut Assembler, (t, tap): (usize, &Tap), at: At) {
        a.emit(Instr::Add(9, reg(at.y), Val::Imm(4 * tap.y as i64)));
        a.emit(Instr::Add(15, reg(at.x), Val::Imm(self.element() * tap.x as i64)));
        self.aim(a, (t, tap), self.features, reg(9), reg(15));
    }

    /// Passes over a tap's dense weights, which hit nothing.
    fn pass(&self, a: &mut Assembler) {
        if !self.linear.lists() {
            a.emit(Instr::Add(3, reg(3), reg(10)));
        }
    }

    /// All products with a tap's list.
    fn axpy(&self, tap: usize, [index, value, count]: [Val; 3]) -> Vector {
        let [y, x, _] = self.descriptors(tap);
        let (ey, ex) = self.pitch;
        Vector::Axpy {
            y,
            x,
            list: List::Memory {
                index,
                value,
                count,
                ty: self.c.ty,
            },
            modulo: self.outputs,
            divisor: self.outputs,
            y_step: Val::Imm(ey * 4),
            x_step: Val::Imm(ex * self.element()),
            count: Count::Mac,
        }
    }

    fn multiply(&self, tap: usize) -> Vector {
        let [y, x, w] = self.descriptors(tap);
        Vector::Map {
            op: Op::Mac,
            dst: y,
            a: Operand::Desc(w),
            b: Some(Operand::Desc(x)),
            count: Count::Mac,
        }
    }

    /// Points the descriptors that are kept at the first buffers.
    pub(super) fn begin(&self, a: &mut Assembler, y: i64, x: i64) {
        if !self.linear.lists() {
            a.emit(Instr::Mul(10, self.features, self.outputs));
            a.emit(Instr::Mul(10, reg(10), Val::Imm(self.element())));
            a.emit(Instr::Set(3, Val::Imm(self.weights)));
        }
        if self.kept() {
            for (t, tap) in self.linear.taps.iter().enumerate() {
                let (y, x) = (y + 4 * tap.y as i64, x + self.element() * tap.x as i64);
                self.aim(a, (t, tap), self.features, Val::Imm(y), Val::Imm(x));
            }
        }
    }

    /// The steady form: hands all products of an item to the microthread.
    pub(super) fn start(&self, a: &mut Assembler, at: At) {
        if !self.kept() && !self.linear.lists() {
            a.emit(Instr::Set(3, Val::Imm(self.weights)));
        }
        bands::taps(a, self.linear, |a, t, tap| {
            if tap.rows == 0 {
                self.pass(a);
                return;
            }
            if !self.kept() {
                self.aim_from(a, (t, tap), at);
            }
            let product = match self.lists.get(t) {
                Some(list) => self.axpy(t, *list),
                None => self.multiply(t),
            };
            a.emit(Instr::Async(PRODUCTS, product, None));
        });
    }

    /// Moves the descriptors that are kept by the bytes in registers; accumulators only if there is one.
    pub(super) fn advance(&self, a: &mut Assembler, y: Option<u8>, x: u8) {
        if !self.kept() {
            return;
        }
        for t in 0..self.linear.taps.len() {
            let [dy, dx, _] = self.descriptors(t);
            if let Some(y) = y {
                a.emit(Instr::Advance(dy, reg(y)));
            }
            a.emit(Instr::Advance(dx, reg(x)));
        }
    }

    /// The products of a chunk with lists, whose first count, index and value are at r10, r7 and r8.
    pub(super) fn chunk_of_lists(&self, a: &mut Assembler, at: At) {
        bands::taps(a, self.linear, |a, t, tap| {
            if !self.kept() && tap.rows > 0 {
                self.aim_from(a, (t, tap), at);
            }
            a.emit(Instr::Load(Word::U16, 6, reg(10), Val::Imm(2 * t as i64)));
            if tap.rows > 0 {
                a.emit(Instr::Vector(self.axpy(t, [reg(7), reg(8), reg(6)])));
            }
            a.emit(Instr::Add(6, reg(6), reg(6)));
            a.emit(Instr::Add(7, reg(7), reg(6)));
            for _ in 0..self.element() / 2 {
                a.emit(Instr::Add(8, reg(8), reg(6)));
            }
        });
        a.emit(Instr::Add(
            10,
            reg(10),
            Val::Imm(2 * self.linear.taps.len() as i64),
        ));
    }

    /// The products of a chunk of r5 features at r2 with dense weights, which are at r3; r10 is the bytes of a tap's.
    pub(super) fn chunk_of_dense(&self, a: &mut Assembler, y: i64) {
        let linear = self.linear;
        let sample = |(rows, columns): (usize, usize), bytes: i64| Val::Imm((rows * columns) as i64 * bytes);
        bands::taps(a, linear, |a, t, tap| {
            if tap.rows == 0 {
                self.pass(a);
                return;
            }
            if tap.x > 0 {
                a.emit(Instr::Add(11, reg(2), Val::Imm(tap.x as i64 * self.element())));
            }
            let x = reg(if tap.x > 0 { 11 } else { 2 });
            self.aim(a, (t, tap), reg(5), Val::Imm(y + 4 * tap.y as i64), x);
            let product = Instr::Vector(self.multiply(t));
            if linear.samples == 1 {
                a.emit(product);
                return;
            }
            let [dy, dx, _] = self.descriptors(t);
            a.emit(Instr::Set(12, imm(linear.samples)));
            let again = a.here("sample");
            a.emit(product);
            a.emit(Instr::Advance(dy, sample(linear.output, 4)));
            a.emit(Instr::Advance(dx, sample(linear.input, self.element())));
            a.emit(Instr::Sub(12, reg(12), Val::Imm(1)));
            a.branch(Cond::Ne, reg(12), Val::Imm(0), again);
        });
    }
}
