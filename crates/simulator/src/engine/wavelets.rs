//! Wavelets one after another in little memory: words, elements and flags lie apart, so that the words of a stream of f32 are numbers in a
//! row, to be copied and computed with as they are.

use crate::numerics::block::Word;
use crate::program::Wavelet;
use std::ops::Range;

/// The bit of a form that is the flag; the others are the number of elements (at most 4, see M3).
const FLAG: u8 = 0x80;

/// Wavelets one after another.
#[derive(Clone, Debug, Default)]
pub(super) struct Wavelets {
    /// The low 32 bits of each payload.
    words: Vec<Word>,
    /// The high ones; empty if all are 0.
    high: Vec<Word>,
    /// Elements and flags; empty if each has one element and none is flagged.
    forms: Vec<u8>,
}

fn form(w: &Wavelet) -> u8 {
    w.elements | (w.flag as u8 * FLAG)
}

impl Wavelets {
    /// Room for so many.
    pub fn with_capacity(n: usize) -> Wavelets {
        Wavelets {
            words: Vec::with_capacity(n),
            ..Wavelets::default()
        }
    }

    pub fn len(&self) -> usize {
        self.words.len()
    }

    pub fn clear(&mut self) {
        self.words.clear();
        self.high.clear();
        self.forms.clear();
    }

    pub fn get(&self, i: usize) -> Wavelet {
        let high = self.high.get(i).map_or(0, |h| u32::from_le_bytes(*h));
        let form = self.forms.get(i).copied().unwrap_or(1);
        Wavelet {
            bits: (high as u64) << 32 | u32::from_le_bytes(self.words[i]) as u64,
            elements: form & !FLAG,
            flag: form & FLAG > 0,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Wavelet> {
        (0..self.len()).map(|i| self.get(i))
    }

    /// Whether each carries one element of 32 bits or fewer.
    pub fn single(&self) -> bool {
        self.are_single(0..self.len())
    }

    /// The low words, if each wavelet carries one element of 32 bits or fewer.
    pub fn single_words(&self) -> Option<&[Word]> {
        self.single().then_some(&self.words)
    }

    /// Whether some of them do.
    pub fn are_single(&self, range: Range<usize>) -> bool {
        let forms = self.forms.get(range).unwrap_or_default().iter();
        self.high.is_empty() && forms.fold(true, |all, f| all & (f & !FLAG == 1))
    }

    /// The low words of some.
    pub fn words_of(&self, range: Range<usize>) -> &[Word] {
        &self.words[range]
    }

    /// The low words.
    pub fn words(&mut self) -> &mut Vec<Word> {
        &mut self.words
    }

    pub fn push(&mut self, w: Wavelet) {
        self.add_all(&[w]);
    }

    /// Adds wavelets of one element each, none flagged.
    pub fn add_words(&mut self, words: impl ExactSizeIterator<Item = Word>) {
        self.reserve(words.len());
        self.words.extend(words);
        self.level();
    }

    /// Adds wavelets of one element of 32 bits each, none flagged, which `add` adds as words.
    pub fn add_single(&mut self, add: impl FnOnce(&mut Vec<Word>)) {
        add(&mut self.words);
        self.level();
    }

    /// Adds some of others.
    pub fn add(&mut self, from: &Wavelets, range: Range<usize>) {
        let first = self.len();
        self.reserve(range.len());
        self.words.extend_from_slice(&from.words[range.clone()]);
        if let Some(forms) = from.forms.get(range.clone())
            && !(self.forms.is_empty() && forms.iter().fold(true, |all, f| all & (*f == 1)))
        {
            self.forms.resize(first, 1);
            self.forms.extend_from_slice(forms);
        }
        if !from.high.is_empty() {
            self.high.resize(first, [0; 4]);
            self.high.extend_from_slice(&from.high[range]);
        }
        self.level();
    }

    /// Adds wavelets that the host keeps.
    pub fn add_all(&mut self, from: &[Wavelet]) {
        self.add_host(from);
    }

    /// The same. Returns whether any is flagged.
    pub fn add_host(&mut self, from: &[Wavelet]) -> bool {
        let first = self.len();
        self.words.resize(first + from.len(), [0; 4]);
        let (mut bits, mut forms) = (0, 0);
        for (word, w) in self.words[first..].iter_mut().zip(from) {
            *word = (w.bits as u32).to_le_bytes();
            bits |= w.bits;
            forms |= form(w) ^ 1;
        }
        if forms > 0 {
            self.forms.resize(first, 1);
            self.forms.extend(from.iter().map(form));
        }
        if bits >> 32 > 0 {
            self.high.resize(first, [0; 4]);
            let high = from.iter().map(|w| ((w.bits >> 32) as u32).to_le_bytes());
            self.high.extend(high);
        }
        self.level();
        forms & FLAG > 0
    }

    /// One of several that are side by side: a wavelet of each, then the next one of each, ...
    pub fn of(&self, lane: usize, lanes: usize) -> Wavelets {
        let high = self.high.get(lane..).unwrap_or_default();
        Wavelets {
            words: self.words[lane.min(self.words.len())..]
                .iter()
                .step_by(lanes)
                .copied()
                .collect(),
            high: high.iter().step_by(lanes).copied().collect(),
            forms: self.forms[lane.min(self.forms.len())..]
                .iter()
                .step_by(lanes)
                .copied()
                .collect(),
        }
    }

    /// Adds equally many of several, side by side.
    pub fn add_side_by_side(&mut self, all: &[Wavelets]) {
        for i in 0..all.first().map_or(0, Wavelets::len) {
            all.iter().for_each(|one| self.push(one.get(i)));
        }
    }

    /// Adds some of them to others, each so many times.
    pub fn times(&self, range: Range<usize>, times: usize, to: &mut Wavelets) {
        if self.are_single(range.clone()) {
            let words = self.words[range].iter();
            return to.add_single(|to| words.for_each(|w| to.extend(std::iter::repeat_n(*w, times))));
        }
        range.for_each(|i| to.add_all(&vec![self.get(i); times]));
    }

    /// Forgets the first ones.
    pub fn drop_first(&mut self, n: usize) {
        self.words.drain(..n);
        self.high.drain(..n.min(self.high.len()));
        self.forms.drain(..n.min(self.forms.len()));
    }

    /// Room for more, and one after them: often a single wavelet ends what was sent at once.
    fn reserve(&mut self, n: usize) {
        self.words.reserve(n + 1);
    }

    /// High words and forms, if there are any, are as many as the others.
    fn level(&mut self) {
        if !self.high.is_empty() {
            self.high.resize(self.words.len(), [0; 4]);
        }
        if !self.forms.is_empty() {
            self.forms.resize(self.words.len(), 1);
        }
    }
}

impl PartialEq for Wavelets {
    fn eq(&self, other: &Wavelets) -> bool {
        self.words == other.words && self.iter().eq(other.iter())
    }
}

impl Eq for Wavelets {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Payloads of 32 and 64 bits, elements and flags come back as they were put in, in whatever way.
    #[test]
    fn as_they_were() {
        let of = |i: u64| Wavelet {
            bits: if i % 5 == 3 { i << 40 | i } else { i },
            elements: (i % 4) as u8 + 1,
            flag: i.is_multiple_of(3),
        };
        let all: Vec<Wavelet> = (0..40).map(of).collect();
        for cut in 0..40 {
            let mut some = Wavelets::default();
            all[..cut].iter().for_each(|w| some.push(*w));
            some.add_all(&all[cut..]);
            assert!(some.iter().eq(all.iter().copied()));
            let mut part = Wavelets::default();
            part.add_words([[1, 0, 0, 0]].into_iter());
            assert!(part.single());
            part.add(&some, cut / 2..cut);
            let one = Wavelet {
                bits: 1,
                elements: 1,
                flag: false,
            };
            part.add_words([[1, 0, 0, 0]].into_iter());
            let want = [one]
                .into_iter()
                .chain(all[cut / 2..cut].iter().copied())
                .chain([one]);
            assert!(part.iter().eq(want), "{cut}");
            some.drop_first(cut);
            assert!(some.iter().eq(all[cut..].iter().copied()));
        }
    }
}
