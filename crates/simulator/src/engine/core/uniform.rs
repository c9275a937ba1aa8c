//! Which bytes of a core's memory are known to be the same in all columns that do what this one does, because they came from the edge.
//! They need not be written in the other columns before something there reads them ([`super::record`]).

use super::Range;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Part {
    from: i64,
    end: i64,
    /// The other columns have not got it yet.
    stale: bool,
}

/// Bytes that are the same in all columns.
#[derive(Default)]
pub(super) struct Uniform {
    /// In order, without a common byte.
    parts: Vec<Part>,
}

impl Uniform {
    /// Whether all of these bytes are.
    pub fn covers(&self, (mut from, end): Range) -> bool {
        for part in &self.parts {
            if part.end > from {
                if part.from > from || from >= end {
                    break;
                }
                from = part.end;
            }
        }
        from >= end
    }

    /// These bytes are no longer.
    pub fn remove(&mut self, (from, end): Range) {
        if from >= end || !self.parts.iter().any(|p| p.from < end && from < p.end) {
            return;
        }
        let cut = |part: Part| {
            let before = Part {
                end: part.end.min(from),
                ..part
            };
            let after = Part {
                from: part.from.max(end),
                ..part
            };
            [before, after].into_iter().filter(|p| p.from < p.end)
        };
        self.parts = self.parts.drain(..).flat_map(cut).collect();
    }

    /// These bytes are the same, but not yet there, in all columns.
    pub fn add(&mut self, (from, end): Range) {
        self.remove((from, end));
        let at = self.parts.partition_point(|p| p.from < from);
        let stale = true;
        self.parts.insert(at, Part { from, end, stale });
    }

    /// What has to be written in the other columns before some of these bytes are read there.
    pub fn stale(&mut self, (from, end): Range) -> impl Iterator<Item = Range> {
        let of = move |p: &&mut Part| p.stale && p.from < end && from < p.end;
        self.parts.iter_mut().filter(of).map(|p| {
            p.stale = false;
            (p.from, p.end)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a byte at a time.
    #[test]
    fn ranges_are_sets_of_bytes() {
        let mut state = 7u64;
        let mut draw = move |n: i64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 33) as i64 % n
        };
        for _ in 0..200 {
            let (mut uniform, mut bytes) = (Uniform::default(), [None; 40]);
            for _ in 0..30 {
                let from = draw(40);
                let end = from + draw(41 - from);
                let range = from as usize..end as usize;
                match draw(4) {
                    0 => {
                        uniform.remove((from, end));
                        bytes[range].fill(None);
                    }
                    1 => {
                        uniform.add((from, end));
                        bytes[range].fill(Some(true));
                    }
                    2 => {
                        let known = bytes[range].iter().all(Option::is_some);
                        assert_eq!(uniform.covers((from, end)), known);
                    }
                    _ => {
                        let written: Vec<Range> = uniform.stale((from, end)).collect();
                        let meets = |r: &Range| r.0 < end && from < r.1;
                        assert!(written.iter().all(meets));
                        for at in written.iter().flat_map(|r| r.0..r.1) {
                            assert_eq!(bytes[at as usize].replace(false), Some(true));
                        }
                        assert!(!bytes[range].contains(&Some(true)));
                    }
                }
            }
        }
    }
}
