//! Marks: the instructions of a block by which values may change its timing (rule M20).

use crate::program::*;

/// Instructions of a block whose timing depends on data (the mark of rule M20): [`Vector::Axpy`], whose elements may be dropped by value;
/// and branches, waits, element counts, shapes, strides and addresses that come from a register which is somewhere loaded from SRAM or by
/// a data task. What is written behind a listed branch depends on it too: a block with any entry is to be timed with its data.
///
/// Without `skip.zero_operands` no element is dropped: see [`timing_depends_on_values_without_skip`].
pub fn timing_depends_on_values(block: &Block) -> Vec<u32> {
    value_dependent(block, true)
}

/// As [`timing_depends_on_values`], on a machine whose `skip.zero_operands` is off.
pub fn timing_depends_on_values_without_skip(block: &Block) -> Vec<u32> {
    value_dependent(block, false)
}

fn value_dependent(block: &Block, axpy: bool) -> Vec<u32> {
    let mut scalar = [false; 256];
    let mut vector = [false; 256];
    if block.tasks.iter().any(|t| matches!(t.trigger, Trigger::Data(_))) {
        (scalar[0], scalar[1]) = (true, true);
    }
    let from = |scalar: &[bool; 256], vals: &[Val]| {
        vals.iter()
            .any(|v| matches!(v, Val::Reg(r) if scalar[*r as usize]))
    };
    loop {
        let before = (scalar, vector);
        for i in &block.code {
            match i {
                Instr::Load(_, r, ..) => scalar[*r as usize] = true,
                Instr::Set(r, a) => scalar[*r as usize] |= from(&scalar, &[*a]),
                Instr::Add(r, a, b) | Instr::Sub(r, a, b) | Instr::Mul(r, a, b) => {
                    scalar[*r as usize] |= from(&scalar, &[*a, *b])
                }
                Instr::Base(d, v) | Instr::Advance(d, v) => vector[*d as usize] |= from(&scalar, &[*v]),
                Instr::Desc(d, desc) => {
                    vector[*d as usize] |= from(&scalar, &desc.shape);
                    if let Place::Memory { base, strides, .. } = &desc.place {
                        vector[*d as usize] |= from(&scalar, &[*base]) || from(&scalar, strides);
                    }
                }
                _ => {}
            }
        }
        if before == (scalar, vector) {
            break;
        }
    }
    let depends = |i: &Instr| match i {
        Instr::Branch(_, a, b, _) => from(&scalar, &[*a, *b]),
        Instr::Wait(_, Some(n)) => from(&scalar, &[*n]),
        Instr::Vector(v) | Instr::Async(_, v, _) => match v {
            Vector::Map { dst, a, b, .. } => {
                let desc = |o: &Operand| matches!(o, Operand::Desc(d) if vector[*d as usize]);
                vector[*dst as usize] || desc(a) || b.as_ref().is_some_and(desc)
            }
            Vector::Axpy {
                y,
                x,
                list,
                modulo,
                divisor,
                y_step,
                x_step,
                ..
            } => {
                let listed = match list {
                    List::Fabric { .. } => false,
                    List::Memory {
                        index, value, count, ..
                    } => from(&scalar, &[*index, *value, *count]),
                };
                axpy || listed
                    || vector[*y as usize]
                    || vector[*x as usize]
                    || from(&scalar, &[*modulo, *divisor, *y_step, *x_step])
            }
        },
        _ => false,
    };
    block
        .code
        .iter()
        .enumerate()
        .filter(|(_, i)| depends(i))
        .map(|(k, _)| k as u32)
        .collect()
}
