//! Small changes of a program's parts: expressions, one number of an instruction, an instruction more.

use meshloom_simulator::program::*;
use meshloom_simulator::{Axes, Expr};
use std::sync::Arc;

/// A register that no code keeps anything in across the instruction that a mutant has more.
pub const FREE: u8 = 15;

pub fn plus(e: &Expr, n: i64) -> Expr {
    Expr::Add(Box::new(e.clone()), Box::new(Expr::Const(n)))
}

/// One less, but not below 0, where the verifier would refuse it for another reason.
pub fn less(e: &Expr) -> Expr {
    Expr::Max(Box::new(plus(e, -1)), Box::new(Expr::Const(0)))
}

/// The expression with another value at one place of the region.
pub fn at_place(e: &Expr, region: &Region, place: (u32, u32), by: i64) -> Expr {
    let all = (0..region.height).flat_map(|y| (0..region.width).map(move |x| (x, y)));
    let values = all
        .map(|(x, y)| e.at(x as i64, y as i64) + if (x, y) == place { by } else { 0 })
        .collect();
    Expr::Table(Arc::new(meshloom_simulator::Table {
        name: "mutant".into(),
        axes: Axes::XY,
        width: region.width,
        values,
    }))
}

/// Puts an instruction before the k-th; jumps to the k-th go to the new one if `caught`.
pub fn insert(block: &mut Block, k: usize, instr: Instr, caught: bool) {
    let moved = |t: u32| t as usize > k || (t as usize == k && !caught);
    for i in &mut block.code {
        if let Instr::Jump(t) | Instr::Branch(_, _, _, t) = i
            && moved(*t)
        {
            *t += 1;
        }
    }
    for t in block
        .tasks
        .iter_mut()
        .map(|t| &mut t.entry)
        .chain(block.labels.iter_mut().map(|l| &mut l.1))
    {
        *t += moved(*t) as u32;
    }
    block.code.insert(k, instr);
}

/// Adds to a value of the k-th instruction: to a constant in place, to a parameter by a new one, to a register by an instruction more.
pub fn bump(block: &mut Block, k: usize, by: i64, pick: impl Fn(&mut Instr) -> &mut Val) {
    let v = *pick(&mut block.code[k]);
    *pick(&mut block.code[k]) = match v {
        Val::Imm(n) => Val::Imm(n + by),
        Val::Param(p) => {
            let changed = if by < 0 {
                less(&block.params[p as usize].value)
            } else {
                plus(&block.params[p as usize].value, by)
            };
            block.params.push(Param {
                name: "mutant".into(),
                value: changed,
            });
            Val::Param(block.params.len() as u16 - 1)
        }
        Val::Reg(_) => Val::Reg(FREE),
    };
    if let Val::Reg(r) = v {
        assert_ne!(r, FREE, "the compiler uses the register that mutants need");
        insert(block, k, Instr::Add(FREE, Val::Reg(r), Val::Imm(by)), true);
    }
}

pub fn descriptor(i: &mut Instr) -> &mut Descriptor {
    match i {
        Instr::Desc(_, d) => d,
        _ => unreachable!("picked as a descriptor"),
    }
}
