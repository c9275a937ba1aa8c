//! Functions of each element: ReLU, clipping (ReLU6), GELU, and scale and shift by feature (a batch norm that could not be folded). Each PE
//! has some features.
//!
//! What is one operation (ReLU, clipping on one side) is applied to wavelets as they pass. For the others SRAM is a ring of slots of a few features each: microthreads fill slots and send
//! finished ones, the main thread computes the slot between. A ring that holds a PE's whole share lets the stream flow on to the next PE
//! at full rate; a smaller one saves SRAM and works as well, with PEs in turn.

use super::*;

pub(super) struct PointwiseKernel<'a>(pub &'a Function);

/// What a step of a function works on.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Arg {
    /// The elements, in their type.
    X,
    /// Intermediate results, f32.
    A,
    /// More of them.
    B,
    Number(f32),
    /// The feature's scale.
    Scale,
    /// The feature's shift.
    Shift,
}

/// An operation on all elements of a slot.
pub(crate) struct Step(pub Op, pub Arg, pub Arg, pub Option<Arg>);

/// The microthread that sends comes first: all others wait for the one whose turn it is.
const SEND: u8 = 1;
/// The microthread that takes in.
const TAKE: u8 = 2;

/// sqrt(2 / pi)
const TANH_SCALE: f64 = std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;

/// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.28: erf(a) = 1 - (1 + c1 a + ... + c6 a^6)^-16 for a >= 0, within 3e-7.
const ERF: [f64; 6] = [
    0.0705230784,
    0.0422820123,
    0.0092705272,
    0.0001520143,
    0.0002765672,
    0.0000430638,
];

impl Function {
    /// The operations on a slot of elements of `ty`, and how its result is made from what it holds as it is sent.
    pub(crate) fn steps(&self, ty: Ty) -> (Vec<Step>, (Op, Option<Arg>)) {
        use Arg::*;
        let relu = (Op::Max, Some(Number(0.0)));
        match self {
            Function::Relu => (Vec::new(), relu),
            Function::Clip { least, most } if *most == f32::INFINITY => {
                (Vec::new(), (Op::Max, Some(Number(*least))))
            }
            Function::Clip { least, most } if *least == f32::NEG_INFINITY => {
                (Vec::new(), (Op::Min, Some(Number(*most))))
            }
            Function::Clip { least, most } => (
                vec![Step(Op::Max, X, X, Some(Number(*least)))],
                (Op::Min, Some(Number(*most))),
            ),
            Function::Affine { relu: false, .. } if ty == Ty::F32 => {
                (vec![Step(Op::Mul, X, X, Some(Scale))], (Op::Add, Some(Shift)))
            }
            Function::Affine { relu: fused, .. } => {
                // f16 is rounded once, at the end
                let product = if ty == Ty::F32 { X } else { A };
                let steps = vec![
                    Step(Op::Mul, product, X, Some(Scale)),
                    Step(Op::Add, X, product, Some(Shift)),
                ];
                (steps, if *fused { relu } else { (Op::Mov, None) })
            }
            Function::Gelu { tanh: true } => {
                // x * sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3); sigmoid(z) = rsqrt(1 + exp(-z))^2: an infinite exp gives 0
                let number = |v: f64| Some(Number(v as f32));
                let steps = vec![
                    Step(Op::Mul, A, X, Some(X)),
                    Step(Op::Mul, A, A, number(-2.0 * TANH_SCALE * 0.044715)),
                    Step(Op::Add, A, A, number(-2.0 * TANH_SCALE)),
                    Step(Op::Mul, A, A, Some(X)),
                    Step(Op::Exp, A, A, None),
                    Step(Op::Add, A, A, number(1.0)),
                    Step(Op::Rsqrt, A, A, None),
                    Step(Op::Mul, A, A, Some(A)),
                    Step(Op::Mul, X, A, Some(X)),
                ];
                (steps, (Op::Mov, None))
            }
            Function::Gelu { tanh: false } => {
                // max(x, 0) - |x| erfc(|x| / sqrt(2)) / 2, with erfc(a) = (1 + c1 a + ...)^-16; in f32 within 8e-7
                let c =
                    |i: usize| Number((ERF[i] * std::f64::consts::FRAC_1_SQRT_2.powi(i as i32 + 1)) as f32);
                let mut steps = vec![
                    Step(Op::Mul, A, X, Some(Number(-1.0))),
                    Step(Op::Max, A, A, Some(X)),
                    Step(Op::Mul, B, A, Some(c(5))),
                ];
                for i in (0..5).rev() {
                    steps.push(Step(Op::Add, B, B, Some(c(i))));
                    steps.push(Step(Op::Mul, B, B, Some(A)));
                }
                steps.push(Step(Op::Add, B, B, Some(Number(1.0))));
                steps.push(Step(Op::Rsqrt, B, B, None));
                steps.extend((0..5).map(|_| Step(Op::Mul, B, B, Some(B))));
                steps.extend([
                    Step(Op::Mul, B, B, Some(A)),
                    Step(Op::Mul, B, B, Some(Number(-0.5))),
                    Step(Op::Max, A, X, Some(Number(0.0))),
                    Step(Op::Add, X, A, Some(B)),
                ]);
                (steps, (Op::Mov, None))
            }
        }
    }
}

/// How a PE's SRAM is used.
#[derive(Clone, Copy, Debug)]
struct Ring {
    /// Features of a slot.
    chunk: usize,
    slots: usize,
    /// Finished slots that may wait to leave while the next one is worked on.
    waiting: usize,
    /// SRAM bytes, code included.
    bytes: u64,
}

/// Bytes of the scales, or shifts, of so many features.
fn constants(features: usize) -> usize {
    (features * 4).next_multiple_of(32)
}

impl PointwiseKernel<'_> {
    /// Buffers of intermediate results.
    fn temporaries(&self, ty: Ty) -> usize {
        let (steps, _) = self.0.steps(ty);
        let used = |arg: Arg| steps.iter().any(|s| s.1 == arg) as usize;
        used(Arg::A) + used(Arg::B)
    }

    /// The one operation that the function is, if it is one.
    fn direct(&self, ty: Ty) -> Option<(Op, f32)> {
        match self.0.steps(ty) {
            (steps, (op, Some(Arg::Number(v)))) if steps.is_empty() => Some((op, v)),
            _ => None,
        }
    }

    fn ring(&self, c: &Context, features: usize) -> Ring {
        let l = c.inputs[0].length();
        let queue = (c.machine.pe.move_queue as usize).clamp(1, 8);
        let (x, t) = (
            Context::pitch(c.ty, l) as u64,
            (self.temporaries(c.ty) as i64 * Context::pitch(Ty::F32, l)) as u64,
        );
        let weights = if matches!(self.0, Function::Affine { .. }) {
            2 * constants(features)
        } else {
            0
        };
        let fixed = weights as u64 + code_bytes(c.machine, 66 + self.0.steps(c.ty).0.len());
        let room = (c.machine.pe.sram_bytes as u64).saturating_sub(fixed);
        // small slots, but an instruction of many elements hides its own cost; in all, two shares
        let wanted = 64usize.div_ceil(l.max(1)).max((2 * features).div_ceil(queue));
        let wanted = wanted.clamp(1, features.max(1));
        let slots = queue.min((2 * features).div_ceil(wanted) + 1);
        let chunk = ((room / (slots as u64 * x + t)) as usize).min(wanted);
        let (chunk, slots) = if chunk > 0 {
            (chunk, slots)
        } else {
            (1, ((room.saturating_sub(t) / x) as usize).clamp(1, slots))
        };
        Ring {
            chunk,
            slots,
            // a whole share can be finished before it is this PE's turn to send
            waiting: features.div_ceil(chunk).min(slots - 1),
            bytes: chunk as u64 * (slots as u64 * x + t) + fixed,
        }
    }

    fn cost(&self, c: &Context, width: u32, height: u32) -> (u64, u64) {
        let n = local::widest(c, Split::Features, width, height);
        let l = c.inputs[0].length();
        if self.direct(c.ty).is_some() {
            return (c.stream_cycles() + 20, code_bytes(c.machine, 8));
        }
        let ring = self.ring(c, n);
        let (steps, _) = self.0.steps(c.ty);
        let machine = c.machine;
        let wide = (machine.pe.sram.port_bits / 32) as u64;
        let step = (machine.pe.lanes.f32_simple as u64).min(wide);
        // slots for a feature
        let each = |s: &Step| match s.0 {
            Op::Exp => (l as u64) * machine.pe.special.exp as u64,
            Op::Rsqrt => (l as u64) * machine.pe.special.rsqrt as u64,
            // both sources in one bank
            _ if s.3 == Some(s.2) => 2 * (l as u64).div_ceil(step),
            _ => (l as u64).div_ceil(step),
        };
        let feature = steps.iter().map(each).sum::<u64>() + 2 * c.move_slots(1, l);
        let cost = &machine.pe.cost;
        let chunk = (8 * cost.descriptor + 30 * cost.add) as u64 + steps.len() as u64 * cost.issue as u64;
        let busy = n as u64 * feature + n.div_ceil(ring.chunk) as u64 * chunk;
        // what a PE can not do before its turn to send, the PEs do one after another
        let held = (ring.chunk * (ring.waiting + 1)).min(n);
        let in_turn =
            (width * height) as u64 / local::lanes(c) as u64 * (busy * (n - held) as u64) / n.max(1) as u64;
        (busy.max(in_turn).max(c.stream_cycles()), ring.bytes)
    }

    /// Wavelets become results as they pass.
    fn emit_direct(&self, c: &Context, mut k: Local, op: Op, with: f32) -> Emitted {
        let pes = (k.width * k.height) as usize;
        let features = k.share("features");
        let shape = [features, Val::Imm(c.output.length() as i64)];
        k.a.task("main", Trigger::Start);
        k.a.input(0, c.input_colors[0][0], c.ty, &shape);
        k.a.output(1, c.output_colors[0], c.ty, &shape, true);
        let item = k.begin_items();
        k.a.map(op, 1, Operand::Desc(0), Some(Operand::Imm(with)), Count::Other);
        k.finish(item, vec![Vec::new(); pes])
    }

    /// Scales and shifts of the PE that has the features from..to.
    fn image(&self, c: &Context, most: usize, (from, to): (usize, usize)) -> Vec<u32> {
        let Function::Affine { scale, shift, .. } = self.0 else {
            return Vec::new();
        };
        if from == to {
            return Vec::new();
        }
        let order = c.inputs[0].order.as_deref();
        let of = |values: &[f32]| -> Vec<u32> {
            let features = (from..to).map(|f| order.map_or(f, |o| o[f]));
            features.map(|f| values[f].to_bits()).collect()
        };
        let mut words = of(scale);
        words.resize(constants(most) / 4, 0);
        words.extend(of(shift));
        words
    }
}

impl Implementation for PointwiseKernel<'_> {
    fn op(&self) -> &'static str {
        match self.0 {
            Function::Relu => "relu",
            Function::Clip { .. } => "clip",
            Function::Gelu { .. } => "gelu",
            Function::Affine { .. } => "affine",
        }
    }

    fn about(&self) -> &'static str {
        match self.0 {
            Function::Relu => "ReLU on passing wavelets, where no kernel before it could take it in",
            Function::Clip { .. } => "elements kept between two bounds (ReLU6)",
            Function::Gelu { .. } => {
                "GELU, by tanh or the error function: each PE works on its own features, in a ring of slots"
            }
            Function::Affine { .. } => "scale and shift by feature (a batch norm that could not be folded)",
        }
    }

    fn fit(&self, c: &Context, width: u32, height: u32) -> (u32, u32) {
        local::fit(c, Split::Features, width, height, |w, h| self.cost(c, w, h))
    }

    fn estimate(&self, c: &Context, width: u32, height: u32) -> Option<Estimate> {
        let (cycles, bytes) = self.cost(c, width, height);
        Some(Estimate {
            cycles,
            bytes,
            // the first PE has as many features as any
            fullest: (0, 0),
        })
    }

    fn emit(&self, name: &str, c: &Context, width: u32, height: u32) -> Emitted {
        let mut k = Local::new(name, c, Split::Features, width, height);
        if let Some((op, with)) = self.direct(c.ty) {
            return self.emit_direct(c, k, op, with);
        }
        let l = c.inputs[0].length();
        let (pitch_x, pitch_t) = (Context::pitch(c.ty, l), Context::pitch(Ty::F32, l));
        let (ex, et) = (pitch_x / c.ty.bytes() as i64, pitch_t / 4);
        let most = k.widest();
        let ring = self.ring(c, most);
        let (chunk, slot) = (ring.chunk as i64, ring.chunk as i64 * pitch_x);
        let images: Vec<Vec<u32>> = k.shares.iter().map(|share| self.image(c, most, *share)).collect();
        // slots and the two buffers of intermediate results begin in different banks (M9)
        let slots = k.a.buffer("slots", (slot * ring.slots as i64) as u32, 0);
        let end = Val::Imm(slots + slot * ring.slots as i64);
        let mut temporaries = [0; 2];
        for (i, at) in temporaries.iter_mut().enumerate().take(self.temporaries(c.ty)) {
            let phase = if c.machine.pe.sram.port_bits > 64 {
                [16, 0]
            } else {
                [16, 8]
            };
            *at = k.a.buffer(["a", "b"][i], (chunk * pitch_t) as u32, phase[i]);
        }
        let bytes = images.iter().map(|i| i.len() * 4).max().unwrap_or(0);
        let scales = k.a.buffer("constants", bytes as u32, 0);
        let shifts = scales + constants(most) as i64;
        let share = k.share("features");
        let words = k.each(
            "words",
            &images.iter().map(|i| i.len() as i64).collect::<Vec<_>>(),
        );
        let imm = Val::Imm;
        let reg = Val::Reg;
        let affine = matches!(self.0, Function::Affine { .. });
        k.a.task("main", Trigger::Start);
        if affine {
            load_weights(&mut k.a, words, scales);
        }
        // taking in: r1 slot, r2 features left of the item, r3 items left, r10 free slots;
        // work: r4 slot, r5 features left of the item, r6 elements that must be there, r8 features, r11 and r12 their constants;
        // sending: r7 elements that must have left, r13 features left of the item, r14 slots that need not have left
        for (r, value) in [
            (1, imm(slots)),
            (2, share),
            (3, imm(c.items as i64)),
            (4, imm(slots)),
            (5, share),
            (6, imm(0)),
            (7, imm(0)),
            (10, imm(ring.slots as i64)),
            (13, share),
            (14, imm(ring.waiting as i64)),
        ] {
            k.a.emit(Instr::Set(r, value));
        }
        if affine {
            k.a.emit(Instr::Set(11, imm(scales)));
            k.a.emit(Instr::Set(12, imm(shifts)));
        }
        let item = k.begin_items();
        let a = &mut k.a;
        let least = |a: &mut Assembler, r: u8, of: u8| {
            let whole = a.label("whole");
            a.emit(Instr::Set(r, imm(chunk)));
            a.branch(Cond::Ge, reg(of), reg(r), whole);
            a.emit(Instr::Add(r, reg(of), imm(0)));
            a.bind(whole);
        };
        let next = |a: &mut Assembler, r: u8| {
            let inside = a.label("inside");
            a.emit(Instr::Add(r, reg(r), imm(slot)));
            a.branch(Cond::Lt, reg(r), end, inside);
            a.emit(Instr::Set(r, imm(slots)));
            a.bind(inside);
        };
        let more = a.here("more");
        let work = a.label("work");
        a.branch(Cond::Eq, reg(10), imm(0), work);
        a.branch(Cond::Eq, reg(3), imm(0), work);
        least(a, 9, 2);
        let arriving = [reg(9), imm(l as i64)];
        a.memory(0, c.ty, reg(1), &arriving, &[ex, 1], c.wide());
        a.input(1, c.input_colors[0][0], c.ty, &arriving);
        a.start(TAKE, Op::Mov, 0, Operand::Desc(1), None, Count::None);
        a.emit(Instr::Sub(10, reg(10), imm(1)));
        a.emit(Instr::Sub(2, reg(2), reg(9)));
        next(a, 1);
        a.branch(Cond::Ne, reg(2), imm(0), more);
        a.emit(Instr::Set(2, share));
        a.emit(Instr::Sub(3, reg(3), imm(1)));
        a.jump(more);
        a.bind(work);
        least(a, 8, 5);
        let shape = [reg(8), imm(l as i64)];
        a.memory(2, c.ty, reg(4), &shape, &[ex, 1], true);
        for (i, at) in temporaries.into_iter().enumerate().take(self.temporaries(c.ty)) {
            a.memory(3 + i as u8, Ty::F32, imm(at), &shape, &[et, 1], true);
        }
        if affine {
            a.memory(5, Ty::F32, reg(11), &shape, &[1, 0], true);
            a.memory(6, Ty::F32, reg(12), &shape, &[1, 0], true);
        }
        a.emit(Instr::Mul(9, reg(8), imm(l as i64)));
        a.emit(Instr::Add(6, reg(6), reg(9)));
        a.emit(Instr::Wait(TAKE, Some(reg(6))));
        let operand = |arg: Arg| match arg {
            Arg::X => Operand::Desc(2),
            Arg::A => Operand::Desc(3),
            Arg::B => Operand::Desc(4),
            Arg::Scale => Operand::Desc(5),
            Arg::Shift => Operand::Desc(6),
            Arg::Number(v) => Operand::Imm(v),
        };
        let (steps, (last, with)) = self.0.steps(c.ty);
        for Step(op, to, x, y) in steps {
            let to = match to {
                Arg::A => 3,
                Arg::B => 4,
                _ => 2,
            };
            a.map(op, to, operand(x), y.map(operand), Count::Other);
        }
        // the item's last slot is flagged
        let (whole, send) = (a.label("last"), a.label("send"));
        a.emit(Instr::Sub(5, reg(5), reg(8)));
        a.branch(Cond::Eq, reg(5), imm(0), whole);
        a.output(7, c.output_colors[0], c.ty, &shape, false);
        a.jump(send);
        a.bind(whole);
        a.output(7, c.output_colors[0], c.ty, &shape, true);
        a.bind(send);
        let count = if last == Op::Mov {
            Count::None
        } else {
            Count::Other
        };
        a.start(SEND, last, 7, Operand::Desc(2), with.map(operand), count);
        // a slot is free once it has left
        let (wait, over) = (a.label("wait"), a.label("over"));
        a.branch(Cond::Eq, reg(14), imm(0), wait);
        a.emit(Instr::Sub(14, reg(14), imm(1)));
        a.jump(over);
        a.bind(wait);
        least(a, 9, 13);
        a.emit(Instr::Sub(13, reg(13), reg(9)));
        a.emit(Instr::Mul(9, reg(9), imm(l as i64)));
        a.emit(Instr::Add(7, reg(7), reg(9)));
        a.emit(Instr::Wait(SEND, Some(reg(7))));
        a.emit(Instr::Add(10, reg(10), imm(1)));
        a.branch(Cond::Ne, reg(13), imm(0), over);
        a.emit(Instr::Set(13, share));
        a.bind(over);
        next(a, 4);
        if affine {
            a.emit(Instr::Mul(9, reg(8), imm(4)));
            a.emit(Instr::Add(11, reg(11), reg(9)));
            a.emit(Instr::Add(12, reg(12), reg(9)));
        }
        a.branch(Cond::Ne, reg(5), imm(0), more);
        a.emit(Instr::Set(5, share));
        if affine {
            a.emit(Instr::Set(11, imm(scales)));
            a.emit(Instr::Set(12, imm(shifts)));
        }
        k.finish(item, images)
    }
}
