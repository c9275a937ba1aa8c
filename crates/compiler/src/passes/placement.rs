//! Rectangles: kernels stand side by side, each as high as the mesh, in the order of the data. Widths follow the work: the slowest
//! kernel gets the next column, as long as one is free and helps.

use super::stages::context;
use crate::kernels;
use crate::plan::*;
use crate::CompileError;
use meshloom_simulator::Machine;

/// Chooses widths from the least ones (or takes those, if `fixed`), and sets `places` and `estimates`.
pub fn run(plan: &mut Plan, machine: &Machine, least: &[u32], fixed: bool) -> Result<(), CompileError> {
    // the first column takes what comes in, the last what goes out
    let columns = machine.mesh.width as i64 - 2;
    let needed: u32 = least.iter().sum();
    if (needed as i64) > columns {
        return Err(CompileError::DoesNotFit {
            what: format!("the model's {} kernels", plan.kernels.len()),
            needs: format!("{needed} columns of PEs, and one on each side for what comes in and goes out"),
            has: format!("{} columns on {}", machine.mesh.width, machine.name),
            helps: format!("a wider machine (--machine wse2, or --set mesh.width={}), --dtype f16, or a smaller --batch", needed + 2),
        });
    }
    let contexts: Vec<_> = (0..plan.kernels.len()).map(|k| context(plan, machine, k)).collect();
    let sram = machine.pe.sram_bytes as u64;
    let mut widths = least.to_vec();
    let all: Vec<_> = plan.kernels.iter().map(|k| kernels::of(&k.kind)).collect();
    let estimate = |k: usize, w: u32| all[k].estimate(&contexts[k], w);
    let mut cost: Vec<u64> = (0..widths.len()).map(|k| estimate(k, widths[k]).cycles).collect();
    let mut free = if fixed { 0 } else { columns - needed as i64 };
    let mut stuck = vec![false; widths.len()];
    while free > 0 {
        // the slowest kernel that can still gain
        let Some(k) = (0..widths.len()).filter(|k| !stuck[*k]).max_by_key(|k| (cost[*k], usize::MAX - k)) else { break };
        let widest = all[k].widest(&contexts[k]);
        // a wider rectangle may only help some columns later, where a share becomes a whole number smaller
        let better = (widths[k] + 1..=widest.min(widths[k] + free as u32)).find_map(|w| {
            let e = estimate(k, w);
            (e.bytes <= sram && e.cycles < cost[k] - cost[k] / 50).then_some((w, e.cycles))
        });
        match better {
            Some((w, cycles)) => {
                free -= (w - widths[k]) as i64;
                (widths[k], cost[k]) = (w, cycles);
            }
            None => stuck[k] = true,
        }
    }
    let mut x = 1;
    plan.places = widths
        .iter()
        .map(|&width| {
            let r = Rect { x, y: 0, width, height: machine.mesh.height };
            x += width;
            r
        })
        .collect();
    plan.estimates = cost;
    Ok(())
}

/// An ASCII map of the mesh, one letter a kernel, with a legend. Large meshes are shown in steps.
pub fn show(plan: &Plan, machine: &Machine) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let letter = |i: usize| LETTERS[i % LETTERS.len()] as char;
    let (w, h) = (machine.mesh.width, machine.mesh.height);
    let (dx, dy) = (w.div_ceil(80), h.div_ceil(32));
    let mut out = format!("{} {w}x{h} PEs", machine.name);
    if dx > 1 || dy > 1 {
        out += &format!(", one character for {dx}x{dy}");
    }
    out += "\n";
    for y in (0..h).step_by(dy as usize) {
        for x in (0..w).step_by(dx as usize) {
            let inside = |r: &Rect| (r.x..r.x + r.width).contains(&x) && (r.y..r.y + r.height).contains(&y);
            out.push(match plan.places.iter().position(inside) {
                Some(i) => {
                    // rows without outputs of this kernel only pass data on
                    let rows = plan.edges[plan.kernels[i].output].layout.rows();
                    if (y as usize) < rows { letter(i) } else { letter(i).to_ascii_lowercase() }
                }
                None if x == 0 => '>',
                None if x == w - 1 => '<',
                None => '.',
            });
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out += "> where inputs and weights enter, < where outputs leave, . free, small letters: rows that only pass data on\n";
    for (i, k) in plan.kernels.iter().enumerate() {
        let r = &plan.places[i];
        let op = kernels::of(&k.kind).op();
        let rows = plan.edges[k.output].layout.rows();
        out += &format!(
            "{} {:<16} {:<10} {}x{} @ ({}, {}), outputs in {rows} rows, about {} cycles an item\n",
            letter(i),
            k.name,
            op,
            r.width,
            r.height,
            r.x,
            r.y,
            plan.estimates[i]
        );
    }
    out
}
