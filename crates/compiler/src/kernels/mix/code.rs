//! The code of a rectangle's PEs: buffers, moves and sums; the products' own instructions are in [`products`](super::products).

use super::products::{At, Products};
use super::*;

/// Where a block keeps features and accumulators.
#[derive(Clone, Copy)]
struct Buffers {
    /// Features, in so many slots of so many bytes.
    x: i64,
    slots: usize,
    slot: i64,
    /// Accumulators; in the steady form the other ones too.
    y: i64,
    y_next: i64,
    /// What accumulators start from.
    start: Operand,
}

impl MixKernel<'_> {
    /// The code of the columns of one input that have the same part in the sum.
    #[allow(clippy::too_many_arguments)] // what distinguishes blocks
    pub(super) fn block(
        &self,
        name: &str,
        c: &Context,
        cut: &Cut,
        (term, (input_color, output_color)): (usize, (Color, Color)),
        role: Role,
        at: Lattice,
        images: &[Vec<Image>],
    ) -> Block {
        let linear = &self.mix.terms[term];
        let (length_in, length_out) = (c.inputs[term].length(), c.output.length());
        let (pitch_x, pitch_y) = (
            Context::pitch(c.ty, length_in),
            Context::pitch(Ty::F32, length_out),
        );
        let element = c.ty.bytes() as i64;
        let most = |f: &dyn Fn(usize, usize) -> usize| {
            at.places()
                .map(|(x, y)| f(x as usize, y as usize))
                .max()
                .unwrap_or(0)
        };
        let mut a = c.assembler();
        // memory: X and Y start in different banks (M9), for most taps if not for all
        let x_bytes = most(&|i, _| cut.features(i)) as u32 * pitch_x as u32;
        let slots = cut.slots[term] as u32;
        let slot_bytes = x_bytes.next_multiple_of(32);
        let x = a.buffer("x", slot_bytes * slots, 0);
        let y_bytes = cut.widest() as u32 * pitch_y as u32;
        let phase = self.products(c, term).phase;
        let y = a.buffer("y", y_bytes, phase);
        let y_next = if cut.steady {
            a.buffer("y.next", y_bytes, phase)
        } else {
            y
        };
        let ends = matches!(role, Role::Only | Role::Last(_));
        let staged = ends && cut.staged;
        let out = if staged { a.buffer("out", y_bytes, 0) } else { 0 };
        let bytes = most(&|i, r| images[r][i].words.len() * 4);
        let weights = a.buffer("weights", bytes as u32, 0);
        let first_weight = weights + if ends { bias_bytes(cut) as i64 } else { 0 };
        let number = |what: &str, f: &dyn Fn(usize, usize) -> i64| {
            let label = format!("{name}.{}.{}.{what}", at.x, at.y);
            table(&label, at, |x, y| f(x as usize, y as usize))
        };
        let words = a.param("words", number("words", &|i, r| images[r][i].words.len() as i64));
        let features = a.param("features", number("features", &|i, _| cut.features(i) as i64));
        let outputs = a.param("outputs", number("outputs", &|_, r| cut.outputs(r) as i64));
        let imm = |n: usize| Val::Imm(n as i64);
        let (ex, ey) = (pitch_x / element, pitch_y / 4);

        a.task("main", Trigger::Start);
        if bytes > 0 {
            load_weights(&mut a, words, weights);
        }
        // d0, d1: what arrives; d9, d10: accumulators; d14 to d17: sums
        let arriving = [features, imm(length_in)];
        a.memory(0, c.ty, Val::Imm(x), &arriving, &[ex, 1], c.wide());
        a.input(1, input_color, c.ty, &arriving);
        let all = [outputs, imm(length_out)];
        a.memory(9, Ty::F32, Val::Imm(y), &all, &[ey, 1], true);
        if ends {
            a.memory(10, Ty::F32, Val::Imm(weights), &all, &[1, 0], true);
        }
        if let Role::Middle(parity) | Role::Last(parity) = role {
            a.input(14, colors::REDUCE[1 - parity], Ty::F32, &all);
        }
        match role {
            Role::First => a.output(15, colors::REDUCE[0], Ty::F32, &all, false),
            Role::Middle(parity) => a.output(15, colors::REDUCE[parity], Ty::F32, &all, false),
            Role::Only | Role::Last(_) => a.output(16, output_color, c.ty, &all, true),
        }
        if staged {
            a.memory(17, Ty::F32, Val::Imm(out), &all, &[ey, 1], true);
        }
        let start = if ends {
            Operand::Desc(10)
        } else {
            Operand::Imm(0.0)
        };
        // each list's first index, first value, and length: of a tap, or of the first chunk's first tap, whose length is in SRAM
        let taps = match (linear.lists(), cut.steady) {
            (true, true) => linear.taps.len(),
            (true, false) => 1,
            _ => 0,
        };
        let lists: Vec<[Val; 3]> = (0..taps)
            .map(|t| {
                let before = |image: &Image| image.counts[..t].iter().map(|n| *n as i64).sum::<i64>();
                let mut field = |what: &str, of: &dyn Fn(&Image) -> i64| {
                    let what = format!("{what}{t}");
                    a.param(&what, number(&what, &|i, r| of(&images[r][i])))
                };
                [
                    field("index", &|image| {
                        weights + image.indices as i64 + 2 * before(image)
                    }),
                    field("value", &|image| {
                        weights + image.values as i64 + element * before(image)
                    }),
                    field("count", &|image| image.counts[t] as i64),
                ]
            })
            .collect();
        let products = Products {
            c,
            linear,
            outputs,
            features,
            pitch: (ey, ex),
            weights: first_weight,
            lists,
        };
        let buffers = Buffers {
            x,
            slots: slots as usize,
            slot: slot_bytes as i64,
            y,
            y_next,
            start,
        };
        if cut.steady {
            self.steady_items(&mut a, role, &products, length_in, buffers);
        } else {
            self.items_in_chunks(
                &mut a,
                role,
                &products,
                (cut.chunk[term], length_in),
                buffers,
                staged,
            );
        }
        a.emit(Instr::Halt);
        a.finish(at)
    }

    /// The steady form: the products of an item follow those of the one before at once, into other accumulators.
    fn steady_items(&self, a: &mut Assembler, role: Role, products: &Products, length: usize, b: Buffers) {
        let items = products.c.items;
        products.begin(a, b.y, b.x);
        for slot in 0..(b.slots - 1).min(items) {
            if slot > 0 {
                a.emit(Instr::Advance(0, Val::Imm(b.slot)));
            }
            receive(a);
        }
        a.map(Op::Mov, 9, b.start, None, Count::None);
        // r0 items left, r14 items still to be taken in, r1 elements waited for, r6 elements an item; this item's features r13, the
        // place that is free r2; this item's sums r7, the next one's r8
        a.emit(Instr::Set(0, Val::Imm(items as i64)));
        a.emit(Instr::Set(14, Val::Imm(items.saturating_sub(b.slots - 1) as i64)));
        a.emit(Instr::Mul(6, products.features, Val::Imm(length as i64)));
        a.emit(Instr::Add(1, reg(6), Val::Imm(0)));
        let free = b.x + b.slot * (b.slots as i64 - 1);
        for (r, base) in [(13, b.x), (2, free), (7, b.y), (8, b.y_next)] {
            a.emit(Instr::Set(r, Val::Imm(base)));
        }
        bands::begin(a, products.linear);
        let item = a.here("item");
        a.emit(Instr::Wait(RECEIVE, Some(reg(1))));
        // before the products: their queue may be too short for all taps
        receive_next(a, 2);
        products.start(a, At { y: 7, x: 13 });
        // the sums of the item before have left their buffer
        a.emit(Instr::Wait(SUMS, None));
        a.emit(Instr::Base(9, reg(8)));
        a.start(CLEAR, Op::Mov, 9, b.start, None, Count::None);
        // all that the next item needs is ready before this one's sums leave: they have priority over this thread
        a.emit(Instr::Base(9, reg(7)));
        a.emit(Instr::Set(15, reg(7)));
        a.emit(Instr::Set(7, reg(8)));
        a.emit(Instr::Set(8, reg(15)));
        a.emit(Instr::Set(2, reg(13)));
        next_slot(a, b);
        a.emit(Instr::Sub(5, reg(7), reg(8)));
        a.emit(Instr::Sub(15, reg(13), reg(2)));
        products.advance(a, Some(5), 15);
        a.emit(Instr::Add(1, reg(1), reg(6)));
        a.emit(Instr::Sub(0, reg(0), Val::Imm(1)));
        a.emit(Instr::Wait(PRODUCTS, None));
        a.emit(Instr::Wait(CLEAR, None));
        self.finish_item(a, products.c, role, Some(SUMS), false);
        bands::next(a, products.linear);
        a.branch(Cond::Ne, reg(0), Val::Imm(0), item);
    }

    /// One item after another, each in chunks of so many features of a length: products begin when the first chunk has come.
    #[allow(clippy::too_many_arguments)] // what the block around it knows
    fn items_in_chunks(
        &self,
        a: &mut Assembler,
        role: Role,
        products: &Products,
        (chunk, length): (usize, usize),
        b: Buffers,
        staged: bool,
    ) {
        let (c, lists) = (products.c, products.linear.lists());
        let element = c.ty.bytes() as i64;
        if lists {
            products.begin(a, b.y, b.x);
            // r11 accumulators, r12 where the descriptors that are kept point
            a.emit(Instr::Set(11, Val::Imm(b.y)));
            if products.kept() {
                a.emit(Instr::Set(12, Val::Imm(b.x)));
            }
        }
        // r0 items left, r13 X of this item, r14 items still to be taken in; each takes the place that was worked on last
        a.emit(Instr::Set(0, Val::Imm(c.items as i64)));
        a.emit(Instr::Set(13, Val::Imm(b.x)));
        a.emit(Instr::Set(14, Val::Imm(c.items.saturating_sub(b.slots) as i64)));
        for slot in 0..b.slots.min(c.items) {
            if slot > 0 {
                a.emit(Instr::Advance(0, Val::Imm(b.slot)));
            }
            receive(a);
        }
        bands::begin(a, products.linear);
        let item = a.here("item");
        a.map(Op::Mov, 9, b.start, None, Count::None);
        // r1 elements waited for, r2 X, r4 features left, r5 features of this chunk
        a.emit(Instr::Set(2, reg(13)));
        a.emit(Instr::Set(4, products.features));
        if lists {
            // r7 indices, r8 values, r10 counts
            a.emit(Instr::Set(10, Val::Imm(products.weights)));
            let [index, value, _] = products.lists[0];
            a.emit(Instr::Set(7, index));
            a.emit(Instr::Set(8, value));
        } else {
            // r3 weights
            a.emit(Instr::Set(3, Val::Imm(products.weights)));
        }
        let next = a.here("chunk");
        let full = a.label("full");
        a.emit(Instr::Set(5, Val::Imm(chunk as i64)));
        a.branch(Cond::Ge, reg(4), reg(5), full);
        a.emit(Instr::Add(5, reg(4), Val::Imm(0)));
        a.bind(full);
        a.emit(Instr::Mul(9, reg(5), Val::Imm(length as i64)));
        a.emit(Instr::Add(1, reg(1), reg(9)));
        a.emit(Instr::Wait(RECEIVE, Some(reg(1))));
        if lists {
            if products.kept() {
                a.emit(Instr::Sub(15, reg(2), reg(12)));
                a.emit(Instr::Set(12, reg(2)));
                products.advance(a, None, 15);
            }
            products.chunk_of_lists(a, At { y: 11, x: 2 });
        } else {
            a.emit(Instr::Mul(10, reg(5), products.outputs));
            a.emit(Instr::Mul(10, reg(10), Val::Imm(element)));
            products.chunk_of_dense(a, b.y);
        }
        a.emit(Instr::Mul(9, reg(5), Val::Imm(products.pitch.1 * element)));
        a.emit(Instr::Add(2, reg(2), reg(9)));
        a.emit(Instr::Sub(4, reg(4), reg(5)));
        a.branch(Cond::Ne, reg(4), Val::Imm(0), next);
        if c.items > b.slots {
            receive_next(a, 13);
        }
        if b.slots > 1 {
            next_slot(a, b);
        }
        self.finish_item(a, c, role, None, staged);
        bands::next(a, products.linear);
        a.emit(Instr::Sub(0, reg(0), Val::Imm(1)));
        a.branch(Cond::Ne, reg(0), Val::Imm(0), item);
    }

    /// Hands the partial sums on, or adds them up, applies what is fused and sends the result; by a microthread if one is given.
    fn finish_item(&self, a: &mut Assembler, c: &Context, role: Role, thread: Option<u8>, staged: bool) {
        let sum = Some(Operand::Desc(9));
        let run =
            |a: &mut Assembler, op: Op, dst: u8, from: Operand, other: Option<Operand>, count: Count| {
                match thread {
                    Some(t) => a.start(t, op, dst, from, other, count),
                    None => a.map(op, dst, from, other, count),
                }
            };
        // the result's operation, its second operand and class
        let (op, other, count) = match self.mix.relu {
            true => (Op::Max, Some(Operand::Imm(0.0)), Count::Other),
            false => (Op::Mov, None, Count::None),
        };
        match role {
            Role::First => run(a, Op::Mov, 15, Operand::Desc(9), None, Count::None),
            Role::Middle(_) => run(a, Op::Add, 15, Operand::Desc(14), sum, Count::Reduce),
            Role::Last(_) | Role::Only if staged => {
                // the item before must have left
                a.emit(Instr::Wait(SUMS, None));
                match role {
                    Role::Only => a.map(Op::Mov, 17, Operand::Desc(9), None, Count::None),
                    _ => a.map(Op::Add, 17, Operand::Desc(14), sum, Count::Reduce),
                }
                a.start(SUMS, op, 16, Operand::Desc(17), other, count);
            }
            Role::Last(_) if !self.mix.relu && c.ty == Ty::F32 => {
                run(a, Op::Add, 16, Operand::Desc(14), sum, Count::Reduce);
            }
            Role::Last(_) | Role::Only => {
                if role != Role::Only {
                    run(a, Op::Add, 9, Operand::Desc(14), sum, Count::Reduce);
                }
                run(a, op, 16, Operand::Desc(9), other, count);
            }
        }
    }
}

const fn reg(r: u8) -> Val {
    Val::Reg(r)
}

/// Takes in an item where d0 points.
fn receive(a: &mut Assembler) {
    a.start(RECEIVE, Op::Mov, 0, Operand::Desc(1), None, Count::None);
}

/// Takes in the next item, if there is one that r14 still counts, at the address in a register.
fn receive_next(a: &mut Assembler, at: u8) {
    let none = a.label("none");
    a.branch(Cond::Eq, reg(14), Val::Imm(0), none);
    a.emit(Instr::Base(0, reg(at)));
    receive(a);
    a.emit(Instr::Sub(14, reg(14), Val::Imm(1)));
    a.bind(none);
}

/// Moves r13 to the next slot of features.
fn next_slot(a: &mut Assembler, b: Buffers) {
    let inside = a.label("inside");
    a.emit(Instr::Add(13, reg(13), Val::Imm(b.slot)));
    a.branch(Cond::Lt, reg(13), Val::Imm(b.x + b.slot * b.slots as i64), inside);
    a.emit(Instr::Set(13, Val::Imm(b.x)));
    a.bind(inside);
}
