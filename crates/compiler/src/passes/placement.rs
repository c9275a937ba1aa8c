//! Rectangles: kernels stand side by side, each as high as the mesh, in the order of the data. Widths follow the work: the slowest
//! kernel gets the next column, as long as one is free and helps.

use super::stages::context;
use crate::CompileError;
use crate::kernels;
use crate::plan::*;
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
            helps: format!(
                "{}, or a wider machine (--machine wse2, or --set mesh.width={})",
                plan.smaller(),
                needed + 2
            ),
        });
    }
    let contexts: Vec<_> = (0..plan.kernels.len())
        .map(|k| context(plan, machine, k))
        .collect();
    let sram = machine.pe.sram_bytes as u64;
    let mut widths = least.to_vec();
    let all: Vec<_> = plan.kernels.iter().map(|k| kernels::of(&k.kind)).collect();
    let estimate = |k: usize, w: u32| all[k].estimate(&contexts[k], w);
    let mut cost: Vec<u64> = (0..widths.len()).map(|k| estimate(k, widths[k]).cycles).collect();
    let mut free = if fixed { 0 } else { columns - needed as i64 };
    let mut stuck = vec![false; widths.len()];
    while free > 0 {
        // the slowest kernel that can still gain
        let Some(k) = (0..widths.len())
            .filter(|k| !stuck[*k])
            .max_by_key(|k| (cost[*k], usize::MAX - k))
        else {
            break;
        };
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
            let r = Rect {
                x,
                y: 0,
                width,
                height: machine.mesh.height,
            };
            x += width;
            r
        })
        .collect();
    plan.estimates = cost;
    Ok(())
}

/// The mesh in characters, at most 80 columns x 40 rows, with a scale and a legend. The traces crate draws a run's kernels in the same
/// way; this map also shows where data enters and leaves, and which rows only pass it on. A character that stands for several PEs shows
/// the kernel that has the most of them.
pub fn show(plan: &Plan, machine: &Machine) -> String {
    const SIGNS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let sign = |i: usize| SIGNS[i % SIGNS.len()] as char;
    let (w, h) = (machine.mesh.width, machine.mesh.height);
    let (sx, sy) = (w.div_ceil(80), h.div_ceil(40));
    let scale = if (sx, sy) == (1, 1) {
        "one character is one PE".into()
    } else {
        format!("one character is {sx}x{sy} PEs")
    };
    let mut out = format!("{} on {}: {w}x{h} PEs, {scale}\n", plan.name, machine.name);
    let rows: Vec<u32> = (0..h).step_by(sy as usize).collect();
    let gutter = rows.last().map_or(1, |y| y.to_string().len());
    let edge = format!("{:gutter$} +{}+\n", "", "-".repeat(w.div_ceil(sx) as usize));
    // rows with outputs of each kernel
    let active: Vec<u32> = plan
        .kernels
        .iter()
        .map(|k| plan.edges[k.output].layout.rows() as u32)
        .collect();
    out += &edge;
    for (line, &y) in rows.iter().enumerate() {
        let number = if line % 8 == 0 || (line + 1 == rows.len() && line % 8 > 2) {
            y.to_string()
        } else {
            String::new()
        };
        out += &format!("{number:>gutter$} |");
        for x in (0..w).step_by(sx as usize) {
            let share = |r: &Rect| (r.x + r.width).min(x + sx).saturating_sub(r.x.max(x));
            let most = (0..plan.places.len()).max_by_key(|i| (share(&plan.places[*i]), usize::MAX - i));
            out.push(match most.filter(|i| share(&plan.places[*i]) > 0) {
                Some(i) if y < active[i] => sign(i),
                Some(_) => '-',
                None if x == 0 => '>',
                None if x + sx >= w => '<',
                None => '.',
            });
        }
        out += "|\n";
    }
    out += &edge;
    let used: u32 = plan.places.iter().map(|r| r.width).sum();
    let (n, s) = (plan.kernels.len(), if plan.kernels.len() == 1 { "" } else { "s" });
    out += &format!(
        "{n} kernel{s} on {used} of {w} columns; . is a PE without a kernel, - a row of one that only passes data on,\n"
    );
    out += "> where inputs and weights enter, < where outputs leave\n";
    if n > SIGNS.len() {
        out += &format!("letters repeat every {} kernels\n", SIGNS.len());
    }
    let ops: Vec<&str> = plan.kernels.iter().map(|k| kernels::of(&k.kind).op()).collect();
    let rects: Vec<String> = plan
        .places
        .iter()
        .map(|r| format!("{}x{} @ ({},{})", r.width, r.height, r.x, r.y))
        .collect();
    let wide = |all: &mut dyn Iterator<Item = usize>| all.max().unwrap_or(0);
    let (name, op) = (
        wide(&mut plan.kernels.iter().map(|k| k.name.chars().count())),
        wide(&mut ops.iter().map(|o| o.len())),
    );
    let rect = wide(&mut rects.iter().map(String::len));
    for (i, k) in plan.kernels.iter().enumerate() {
        out += &format!(
            "{}  {:name$}  {:op$}  {:rect$}  outputs in {} rows, about {} cycles an item\n",
            sign(i),
            k.name,
            ops[i],
            rects[i],
            active[i],
            plan.estimates[i]
        );
    }
    out
}
