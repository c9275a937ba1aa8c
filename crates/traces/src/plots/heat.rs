//! The heat map: how busy each PE of the mesh was with multiply-adds, with the kernels' rectangles over it. Meshes of more than
//! 256 columns or rows are shown in square cells of several PEs.

use super::*;
use crate::format::{grouped, percent};
use crate::report::{Rect, Run};
use crate::table::title;

/// Most cells across and down.
const CELLS: u32 = 256;
/// Colours that are told apart; more would only make the files larger.
const LEVELS: usize = 64;
/// A panel is drawn within this many pixels, and not much smaller than the second.
const PANEL: (i32, i32) = (576, 640);
const LEAST: (i32, i32) = (120, 48);
/// Least height of the colour bar.
const SCALE: i32 = 150;
/// Largest side of a cell.
const LARGEST: i32 = 24;
/// Cells in which nothing was multiplied.
const NONE: RGBColor = RGBColor(0xe6, 0xe6, 0xe6);
/// Room at the left of each panel, and above the panels.
const LEFT: i32 = 72;
const TOP: i32 = 132;
/// Room for the colour bar.
const BAR: i32 = 120;
/// Below a panel: ticks and the axis' title.
const AXIS: i32 = 52;
/// A page may be as wide as this for its legend's sake.
const WIDE: i32 = 1100;
/// Most pixels of an entry of the legend.
const ENTRY: i32 = 320;
/// Size of the letters of labels, and how small they may become.
const LABELS: [f64; 3] = [13.0, 11.5, 10.0];

/// One run, and what each of its PEs executed.
#[derive(Clone, Copy, Debug)]
pub struct MeshUse<'a> {
    /// Its figures.
    pub run: &'a Run,
    /// Executed multiply-adds of each PE, row by row.
    pub multiply_adds: &'a [u64],
    /// Multiply-adds that one step can do for the type of the run.
    pub lanes: u32,
}

/// Utilisation of the cells of a mesh.
#[derive(Clone, Debug, PartialEq)]
pub struct Grid {
    /// PEs along a cell's side; those at the right and at the bottom may have fewer.
    pub side: u32,
    /// Cells in a row.
    pub columns: u32,
    /// Rows of cells.
    pub rows: u32,
    /// Of each cell, row by row: executed multiply-adds / (its PEs x lanes x cycles without load), 0 to 1.
    pub shares: Vec<f64>,
}

impl Grid {
    /// The cells of a mesh of `width` columns whose PEs executed these multiply-adds, row by row, and could have executed `most` each.
    pub fn new(width: u32, multiply_adds: &[u64], most: f64) -> Grid {
        let width = width.max(1);
        let height = (multiply_adds.len() as u64).div_ceil(width as u64) as u32;
        let side = width.max(height).div_ceil(CELLS).max(1);
        let (columns, rows) = (width.div_ceil(side), height.div_ceil(side));
        let mut sums = vec![(0u64, 0u64); columns as usize * rows as usize];
        for (i, n) in multiply_adds.iter().enumerate() {
            let (x, y) = (i as u32 % width, i as u32 / width);
            let cell = &mut sums[((y / side) * columns + x / side) as usize];
            *cell = (cell.0 + n, cell.1 + 1);
        }
        let share = |(sum, pes): (u64, u64)| {
            let all = pes as f64 * most;
            if all > 0.0 { sum as f64 / all } else { 0.0 }
        };
        Grid {
            side,
            columns,
            rows,
            shares: sums.into_iter().map(share).collect(),
        }
    }

    fn largest(&self) -> f64 {
        self.shares.iter().copied().fold(0.0, f64::max)
    }

    /// Rectangles of cells of equal colour: columns and rows from and to before, and the level, absent where nothing was multiplied.
    fn areas(&self, top: f64) -> Vec<([u32; 4], Option<usize>)> {
        let level = |share: f64| {
            (share > 0.0).then(|| {
                (share / top * (LEVELS - 1) as f64)
                    .round()
                    .min(LEVELS as f64 - 1.0) as usize
            })
        };
        let mut open: Vec<([u32; 4], Option<usize>)> = Vec::new();
        let mut done = Vec::new();
        for (y, row) in self.shares.chunks(self.columns as usize).enumerate() {
            let y = y as u32;
            let mut now: Vec<([u32; 4], Option<usize>)> = Vec::new();
            for (x, share) in row.iter().enumerate() {
                let (x, l) = (x as u32, level(*share));
                match now.last_mut() {
                    Some((area, same)) if *same == l => area[2] = x + 1,
                    _ => now.push(([x, y, x + 1, y + 1], l)),
                }
            }
            // what is as wide and of the same colour as right above continues it; both lists are in the order of columns
            let mut above = open.into_iter().peekable();
            for (area, l) in &mut now {
                while let Some(a) = above.next_if(|(a, _)| a[0] < area[0]) {
                    done.push(a);
                }
                match above.next_if(|(a, _)| a[0] == area[0]) {
                    Some((a, same)) if same == *l && a[2] == area[2] => area[1] = a[1],
                    Some(other) => done.push(other),
                    None => {}
                }
            }
            done.extend(above);
            open = now;
        }
        done.extend(open);
        done
    }
}

/// The heat map of runs on one mesh, side by side, with one scale of colours.
pub fn utilisation(model: &str, runs: &[MeshUse]) -> Result<Plot, PlotError> {
    register()?;
    render(&Heat::new(model, runs))
}

struct Panel<'a> {
    run: &'a Run,
    grid: Grid,
    /// Pixels of a cell.
    cell: (i32, i32),
    /// Left end in the picture.
    x: i32,
}

impl Panel<'_> {
    fn size(&self) -> (i32, i32) {
        (
            self.cell.0 * self.grid.columns as i32,
            self.cell.1 * self.grid.rows as i32,
        )
    }

    /// Pixels of a PE's left and top edge. The mesh ends where the last cells do, though these may have fewer PEs.
    fn at(&self, x: u32, y: u32) -> (i32, i32) {
        let machine = &self.run.machine;
        let (w, h) = self.size();
        let pixels = |n: u32, of: u32, cell: i32, end: i32| {
            let at = (n as f64 / self.grid.side as f64 * cell as f64).round() as i32;
            if n >= of { end } else { at }
        };
        (
            self.x + pixels(x, machine.width, self.cell.0, w),
            TOP + pixels(y, machine.height, self.cell.1, h),
        )
    }

    fn corners(&self, r: &Rect) -> ((i32, i32), (i32, i32)) {
        (self.at(r.x, r.y), self.at(r.x + r.width, r.y + r.height))
    }
}

struct Heat<'a> {
    title: String,
    panels: Vec<Panel<'a>>,
    /// The largest share of any cell: the upper end of the scale.
    top: f64,
    /// Names of all kernels; a kernel's number is its place here, from 1.
    names: Vec<&'a str>,
    /// Whether some name has no room in its rectangle, so that numbers and a legend are needed.
    numbered: bool,
    /// Stages of the run that has the most.
    stages: usize,
    /// Whether kernels are named: those of several stages may lie on one another, and so would their labels.
    labelled: bool,
    width: i32,
    height: i32,
    /// Left end of the colour bar.
    bar: i32,
    /// Top of the legend.
    below: i32,
    /// Offsets of the legend's entries.
    entries: Vec<(i32, i32)>,
}

impl<'a> Heat<'a> {
    fn new(model: &str, runs: &[MeshUse<'a>]) -> Heat<'a> {
        let mut x = LEFT;
        let mut panels = Vec::new();
        for of in runs {
            let run = of.run;
            let most = of.lanes as f64 * run.cycles.total as f64;
            let grid = Grid::new(run.machine.width, of.multiply_adds, most);
            let (columns, rows) = (grid.columns.max(1) as i32, grid.rows.max(1) as i32);
            let cell = (PANEL.0 / columns).min(PANEL.1 / rows).clamp(1, LARGEST);
            let cell = (
                cell.max((LEAST.0 + columns - 1) / columns),
                cell.max((LEAST.1 + rows - 1) / rows),
            );
            let panel = Panel { run, grid, cell, x };
            // the panel's title may be wider than the panel
            let (name, figures) = caption(run);
            let words = Style::new(14.0)
                .width(&name)
                .max(Style::new(13.0).width(&figures));
            x += panel.size().0.max(words) + LEFT;
            panels.push(panel);
        }
        let machine = runs.first().map(|r| &r.run.machine);
        let title = machine.map_or(model.to_string(), |m| {
            format!("{model} on {}, {}x{} PEs: utilisation", m.name, m.width, m.height)
        });
        let mut names: Vec<&str> = Vec::new();
        for k in runs.iter().flat_map(|r| &r.run.kernels) {
            if !names.contains(&k.name.as_str()) {
                names.push(&k.name);
            }
        }
        let stages = runs
            .iter()
            .flat_map(|r| &r.run.kernels)
            .map(|k| k.stage as usize + 1)
            .max()
            .unwrap_or(0);
        let labelled = runs.iter().all(|r| {
            let kernels = &r.run.kernels;
            let on = |i: usize| kernels[..i].iter().any(|k| k.region.overlaps(&kernels[i].region));
            !(0..kernels.len()).any(on)
        });
        let room = |p: &Panel, k: &crate::report::Kernel| place(p.corners(&k.region), &k.name).is_some();
        let numbered = labelled && panels.iter().any(|p| p.run.kernels.iter().any(|k| !room(p, k)));
        let bar = x - LEFT + 36;
        let width = (bar + BAR)
            .max(Style::new(20.0).width(&title).min(WIDE) + 2 * MARGIN)
            .max(560);
        let tallest = panels.iter().map(|p| p.size().1).fold(SCALE, i32::max);
        let below = TOP + tallest + AXIS + 24;
        let words = |i: usize| format!("{}  {}", i + 1, names[i]);
        let widest = (0..names.len())
            .map(|i| Style::new(13.0).width(&words(i)).min(ENTRY) + 24)
            .max()
            .unwrap_or(0);
        let width = if numbered {
            width.max((widest * names.len() as i32 + 2 * MARGIN).min(WIDE))
        } else {
            width
        };
        // read downwards, column by column
        let count = if numbered { names.len() } else { 0 };
        let columns = ((width - 2 * MARGIN) / widest.max(1)).max(1) as usize;
        let lines = count.div_ceil(columns).max(1);
        let entries: Vec<(i32, i32)> = (0..count)
            .map(|i| (widest * (i / lines) as i32, (i % lines) as i32))
            .collect();
        let lines = if numbered { lines as i32 } else { 0 };
        let top = panels.iter().map(|p| p.grid.largest()).fold(0.0, f64::max);
        Heat {
            title,
            panels,
            top,
            names,
            numbered,
            stages,
            labelled,
            width,
            height: below + 20 * lines + if lines > 0 { 12 } else { 0 },
            bar,
            below,
            entries,
        }
    }

    /// What may stand on a kernel, the best first.
    fn label(&self, name: &str) -> Vec<String> {
        if !self.numbered {
            return vec![name.to_string()];
        }
        let number = self.names.iter().position(|n| *n == name).map_or(0, |i| i + 1);
        vec![format!("{number}  {name}"), number.to_string()]
    }

    fn panel<B: DrawingBackend>(&self, page: &Page<B>, p: &Panel) -> Result<(), PlotError> {
        let (w, h) = p.size();
        let (name, figures) = caption(p.run);
        write(page, (p.x, TOP - 48), Style::new(14.0), &name)?;
        write(page, (p.x, TOP - 27), Style::new(13.0).faint(), &figures)?;
        for (area, level) in p.grid.areas(self.top) {
            let [x0, y0, x1, y1] = area.map(|n| n as i32);
            let at = |x: i32, y: i32| (p.x + x * p.cell.0, TOP + y * p.cell.1);
            fill(page, at(x0, y0), at(x1, y1), level.map_or(NONE, colour))?;
        }
        for k in &p.run.kernels {
            let (a, b) = p.corners(&k.region);
            // white shows on dark cells, black on light ones
            if (b.0 - a.0).min(b.1 - a.1) >= 8 {
                frame(page, (a.0 + 1, a.1 + 1), (b.0 - 1, b.1 - 1), WHITE)?;
            }
            frame(page, a, b, INK)?;
        }
        frame(page, (p.x, TOP), (p.x + w, TOP + h), FAINT)?;
        if self.labelled {
            for k in &p.run.kernels {
                let corners = p.corners(&k.region);
                if let Some((words, label)) = self
                    .label(&k.name)
                    .into_iter()
                    .find_map(|words| place(corners, &words).map(|at| (words, at)))
                {
                    // what is small shall still be seen behind its label
                    let area = |a: (i32, i32), b: (i32, i32)| (b.0 - a.0) * (b.1 - a.1);
                    let small = 3 * area(label.from, label.to) > area(corners.0, corners.1);
                    let opacity = if small { 0.55 } else { 0.78 };
                    fill(page, label.from, label.to, WHITE.mix(opacity))?;
                    write(page, label.centre, label.style, &words)?;
                }
            }
        }
        self.axes(page, p)
    }

    fn axes<B: DrawingBackend>(&self, page: &Page<B>, p: &Panel) -> Result<(), PlotError> {
        let (w, h) = p.size();
        let machine = &p.run.machine;
        let small = Style::new(12.0).faint();
        let step =
            |pes: u32, pixels: i32| round_step(pes as f64, (pixels as usize / 48).max(1)).max(1.0) as usize;
        for x in (0..machine.width).step_by(step(machine.width, w)) {
            let at = (p.at(x, 0).0 + p.at(x + 1, 0).0) / 2;
            line(page, &[(at, TOP + h), (at, TOP + h + 4)], FAINT)?;
            write(page, (at, TOP + h + 14), small.centred(), &x.to_string())?;
        }
        for y in (0..machine.height).step_by(step(machine.height, h)) {
            let at = (p.at(0, y).1 + p.at(0, y + 1).1) / 2;
            line(page, &[(p.x - 4, at), (p.x, at)], FAINT)?;
            write(page, (p.x - 8, at), small.right(), &y.to_string())?;
        }
        let title = Style::new(13.0);
        write(
            page,
            (p.x + w / 2, TOP + h + 36),
            title.centred(),
            "column of PEs",
        )?;
        let rows = if h > 90 { "row of PEs" } else { "row" };
        write(page, (p.x - 48, TOP + h / 2), title.centred().standing(), rows)
    }

    fn bar<B: DrawingBackend>(&self, page: &Page<B>) -> Result<(), PlotError> {
        let height = self.panels.iter().map(|p| p.size().1).fold(SCALE, i32::max);
        let (x, y) = (self.bar, TOP);
        for i in 0..LEVELS as i32 {
            let at = |i: i32| y + height - height * i / LEVELS as i32;
            fill(page, (x, at(i + 1)), (x + 18, at(i)), colour(i as usize))?;
        }
        frame(page, (x, y), (x + 18, y + height), FAINT)?;
        let small = Style::new(12.0).faint();
        if self.top > 0.0 {
            let step = round_step(self.top * 100.0, (height as usize / 48).clamp(1, 8));
            let ticks = (0..)
                .map(|i| i as f64 * step)
                .take_while(|t| *t <= self.top * 100.0 * (1.0 + 1e-9));
            for t in ticks {
                let at = y + height - (t / 100.0 / self.top * height as f64).round() as i32;
                line(page, &[(x + 18, at), (x + 22, at)], FAINT)?;
                let decimals = (-step.log10().floor()).max(0.0) as usize;
                write(page, (x + 26, at), small, &format!("{t:.decimals$} %"))?;
            }
        }
        fill(page, (x, y + height + 26), (x + 18, y + height + 40), NONE)?;
        frame(page, (x, y + height + 26), (x + 18, y + height + 40), FAINT)?;
        write(page, (x + 26, y + height + 33), small, "none")
    }
}

impl Drawing for Heat<'_> {
    fn size(&self) -> (u32, u32) {
        (self.width as u32, self.height as u32)
    }

    fn draw<B: DrawingBackend>(&self, page: &Page<B>) -> Result<(), PlotError> {
        let side = self.panels.iter().map(|p| p.grid.side).max().unwrap_or(1);
        let mut below = "executed multiply-adds / (lanes x cycles without load)".to_string();
        if side > 1 {
            below += &format!("; a cell is the mean of {side}x{side} PEs");
        }
        if self.stages > 1 {
            below += &format!("; {} stages, one after another", self.stages);
        }
        heading(page, self.width, &self.title, &[below])?;
        for p in &self.panels {
            self.panel(page, p)?;
        }
        self.bar(page)?;
        for (i, ((x, row), name)) in self.entries.iter().zip(&self.names).enumerate() {
            let style = Style::new(13.0);
            let words = style.elided(&format!("{}  {name}", i + 1), ENTRY);
            write(page, (MARGIN + x, self.below + 20 * row), style, &words)?;
        }
        Ok(())
    }
}

/// What is written above a panel: the run, and its utilisation and cycles.
fn caption(run: &Run) -> (String, String) {
    let figures = format!(
        "{} of the mesh, {} cycles",
        percent(run.utilisation),
        grouped(run.cycles.total)
    );
    (title(run), figures)
}

/// A label in a rectangle: its box, and its middle.
struct Label {
    from: (i32, i32),
    to: (i32, i32),
    centre: (i32, i32),
    style: Style,
}

/// The label in the middle of a rectangle, lying, else standing, in the largest letters that have room.
fn place(((x0, y0), (x1, y1)): ((i32, i32), (i32, i32)), words: &str) -> Option<Label> {
    let centre = ((x0 + x1) / 2, (y0 + y1) / 2);
    LABELS.iter().find_map(|size| {
        let style = Style::new(*size).centred();
        let (w, h) = (style.width(words) + 4, (*size * LINE).ceil() as i32);
        let (w, h, style) = if w + 2 <= x1 - x0 && h + 2 <= y1 - y0 {
            (w, h, style)
        } else if w + 2 <= y1 - y0 && h + 2 <= x1 - x0 {
            (h, w, style.standing())
        } else {
            return None;
        };
        Some(Label {
            from: (centre.0 - w / 2, centre.1 - h / 2),
            to: (centre.0 + w / 2, centre.1 + h / 2),
            centre,
            style,
        })
    })
}

fn colour(level: usize) -> RGBColor {
    ViridisRGB.get_color(level as f64 / (LEVELS - 1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_hold_every_multiply_add_once() {
        for (width, height) in [(1u32, 1u32), (7, 3), (256, 256), (257, 9), (750, 994), (3, 1001)] {
            let work: Vec<u64> = (0..width as u64 * height as u64)
                .map(|i| i * 2_654_435_761 % 1013)
                .collect();
            let grid = Grid::new(width, &work, 2000.0);
            assert!(grid.columns <= 256 && grid.rows <= 256);
            assert!(
                grid.columns.max(grid.rows) > 128 || grid.side == 1,
                "no coarser than needed"
            );
            let pes = |n: u32, i: u32| (width_of(n, grid.side, i)) as f64;
            let sum: f64 = (0..grid.rows)
                .flat_map(|y| (0..grid.columns).map(move |x| (x, y)))
                .map(|(x, y)| {
                    let share = grid.shares[(y * grid.columns + x) as usize];
                    assert!((0.0..=1.0).contains(&share));
                    share * 2000.0 * pes(width, x) * pes(height, y)
                })
                .sum();
            let all: u64 = work.iter().sum();
            assert!((sum - all as f64).abs() <= 1e-9 * all as f64, "{sum} {all}");
        }
    }

    /// PEs of the i-th cell along a side of `n` PEs.
    fn width_of(n: u32, side: u32, i: u32) -> u32 {
        side.min(n - i * side)
    }

    #[test]
    fn areas_cover_every_cell_once_with_its_colour() {
        let mut seed = 1u64;
        for columns in [1u32, 5, 31] {
            let work: Vec<u64> = (0..columns as u64 * 17)
                .map(|_| {
                    seed = seed
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    (seed >> 62) * 100
                })
                .collect();
            let grid = Grid::new(columns, &work, 300.0);
            let mut seen = vec![0; work.len()];
            for ([x0, y0, x1, y1], level) in grid.areas(1.0) {
                for y in y0..y1 {
                    for x in x0..x1 {
                        let i = (y * columns + x) as usize;
                        seen[i] += 1;
                        let want = (work[i] > 0).then(|| (work[i] as f64 / 300.0 * 63.0).round() as usize);
                        assert_eq!(level, want);
                    }
                }
            }
            assert!(seen.iter().all(|n| *n == 1));
        }
        // one rectangle where all is equal
        assert_eq!(Grid::new(30, &[5; 900], 10.0).areas(0.5).len(), 1);
    }

    #[test]
    fn a_run_without_cycles_has_no_shares() {
        assert_eq!(Grid::new(2, &[0, 0, 0, 0], 0.0).shares, [0.0; 4]);
        assert!(Grid::new(2, &[], 1.0).shares.is_empty());
    }
}
