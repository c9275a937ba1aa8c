//! Reads a program's text: recursive descent over tokens taken one at a time, in linear time. Depth is limited, every number is checked,
//! and what is built is charged against a budget of four times the text and 256 MB.

use super::print::op_form;
use super::{DataStore, MAX_DEPTH, TextError, like_register};
use crate::expr::{Axes, Expr, Table};
use crate::machine::Side;
use crate::program::*;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

type Res<T> = Result<T, TextError>;

#[derive(Clone, Copy, PartialEq, Debug)]
enum Tok<'a> {
    /// A word.
    Ident(&'a str),
    /// A quoted name, quotes included.
    Quoted(&'a str),
    /// An unsigned number.
    Num(&'a str),
    /// `#` and the word behind it, `#` excluded.
    Hash(&'a str),
    /// Punctuation.
    Sym(&'static str),
    /// The end of a line.
    Line,
    /// The end of the text.
    End,
    /// A quoted name without its end.
    Open,
    /// Anything else.
    Bad(char),
}

const SYMBOLS: [&str; 24] = [
    "->", "..", "+=", "==", "!=", ">=", "<", "=", "+", "-", "*", "/", "%", "(", ")", "[", "]", ",", ":", ";",
    "@", "$", "!", "~",
];

struct Parser<'a> {
    text: &'a str,
    data: &'a DataStore,
    tok: Tok<'a>,
    start: usize,
    end: usize,
    budget: usize,
    tables: HashMap<(Cow<'a, str>, u32), Arc<Table>>,
}

/// A jump or task target that is not yet known.
struct Fix<'a> {
    instr: bool,
    index: usize,
    target: Target<'a>,
    place: (usize, usize),
}

enum Target<'a> {
    Name(Cow<'a, str>),
    At(u32),
}

enum TaskRef<'a> {
    Name(Cow<'a, str>),
    Number(u16),
}

/// What the names of the block being read stand for; `None` where a name is declared twice.
#[derive(Default)]
struct Scope<'a> {
    params: HashMap<Cow<'a, str>, Option<u16>>,
    buffers: HashMap<Cow<'a, str>, Option<u32>>,
    tasks: HashMap<Cow<'a, str>, Option<u16>>,
    labels: HashMap<Cow<'a, str>, Option<u32>>,
    at: HashMap<u32, u32>,
    fixes: Vec<Fix<'a>>,
    /// Instructions whose task is named, and where: tasks may be declared behind their use.
    task_fixes: Vec<(usize, Cow<'a, str>, (usize, usize))>,
}

pub(super) fn program(text: &str, data: &DataStore) -> Res<Program> {
    let budget = text.len().saturating_mul(3).saturating_add(200 << 20);
    let mut p = Parser {
        text,
        data,
        tok: Tok::Line,
        start: 0,
        end: 0,
        budget,
        tables: HashMap::new(),
    };
    p.next();
    p.program()
}

impl<'a> Parser<'a> {
    // ---- tokens

    fn next(&mut self) {
        let b = self.text.as_bytes();
        let mut i = self.end;
        loop {
            match b.get(i) {
                Some(b' ' | b'\t' | b'\r') => i += 1,
                Some(b'/') if b.get(i + 1) == Some(&b'/') => {
                    while i < b.len() && b[i] != b'\n' {
                        i += 1;
                    }
                }
                _ => break,
            }
        }
        self.start = i;
        let word = |c: &u8| c.is_ascii_alphanumeric() || *c == b'_';
        let run = |mut i: usize, ok: &dyn Fn(&u8) -> bool| {
            while b.get(i).is_some_and(ok) {
                i += 1;
            }
            i
        };
        let Some(&c) = b.get(i) else {
            self.end = i;
            self.tok = Tok::End;
            return;
        };
        (self.tok, self.end) = match c {
            b'\n' => (Tok::Line, i + 1),
            b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                let mut e = run(i, &word);
                while b.get(e) == Some(&b'.') && b.get(e + 1).is_some_and(word) {
                    e = run(e + 1, &word);
                }
                (Tok::Ident(&self.text[i..e]), e)
            }
            b'0'..=b'9' => {
                let digit = |c: &u8| c.is_ascii_digit();
                let mut e = run(i, &digit);
                if b.get(e) == Some(&b'.') && b.get(e + 1).is_some_and(digit) {
                    e = run(e + 1, &digit);
                }
                if b.get(e) == Some(&b'e') {
                    let sign = matches!(b.get(e + 1), Some(b'+' | b'-')) as usize;
                    if b.get(e + 1 + sign).is_some_and(digit) {
                        e = run(e + 1 + sign, &digit);
                    }
                }
                (Tok::Num(&self.text[i..e]), e)
            }
            b'#' => {
                let e = run(i + 1, &word);
                (Tok::Hash(&self.text[i + 1..e]), e)
            }
            b'"' => {
                let mut e = i + 1;
                loop {
                    match b.get(e) {
                        None | Some(b'\n') => break (Tok::Open, e),
                        Some(b'"') => break (Tok::Quoted(&self.text[i..e + 1]), e + 1),
                        Some(b'\\') if b.get(e + 1).is_some_and(|c| *c != b'\n') => e += 2,
                        _ => e += 1,
                    }
                }
            }
            _ => match SYMBOLS.iter().find(|s| b[i..].starts_with(s.as_bytes())) {
                Some(s) => (Tok::Sym(s), i + s.len()),
                None => {
                    let c = self.text[i..].chars().next().unwrap_or('?');
                    (Tok::Bad(c), i + c.len_utf8())
                }
            },
        };
    }

    /// The span of the current token.
    fn place(&self) -> (usize, usize) {
        (self.start, self.end)
    }

    fn err<T>(&self, expected: impl Into<String>) -> Res<T> {
        Err(self.error(self.place(), expected))
    }

    fn error(&self, (start, end): (usize, usize), expected: impl Into<String>) -> TextError {
        let before = &self.text.as_bytes()[..start];
        let line_start = before.iter().rposition(|c| *c == b'\n').map_or(0, |i| i + 1);
        let what = &self.text[start..end];
        let found = match what {
            "" => "the end of the text".into(),
            "\n" => "the end of the line".into(),
            _ if what.chars().count() > 40 => format!("`{}...`", what.chars().take(40).collect::<String>()),
            _ => format!("`{what}`"),
        };
        TextError {
            line: before.iter().filter(|c| **c == b'\n').count() + 1,
            column: self.text[line_start..start].chars().count() + 1,
            found,
            expected: expected.into(),
        }
    }

    fn charge(&mut self, bytes: usize) -> Res<()> {
        match self.budget.checked_sub(bytes) {
            Some(left) => {
                self.budget = left;
                Ok(())
            }
            None => self.err("a program that fits in four times its text and 256 MB"),
        }
    }

    /// Appends and pays; three times, since a vector that grows holds its old and its doubled new room.
    fn push<T>(&mut self, to: &mut Vec<T>, item: T) -> Res<()> {
        self.charge(size_of::<T>() * 3 + if to.is_empty() { 4 * size_of::<T>() } else { 0 })?;
        to.push(item);
        Ok(())
    }

    fn is(&self, sym: &str) -> bool {
        matches!(self.tok, Tok::Sym(s) if s == sym)
    }

    fn eat(&mut self, sym: &str) -> bool {
        let yes = self.is(sym);
        if yes {
            self.next();
        }
        yes
    }

    fn sym(&mut self, sym: &str) -> Res<()> {
        if self.eat(sym) {
            Ok(())
        } else {
            self.err(format!("`{sym}`"))
        }
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.tok, Tok::Ident(w) if w == word)
    }

    fn eat_word(&mut self, word: &str) -> bool {
        let yes = self.is_word(word);
        if yes {
            self.next();
        }
        yes
    }

    fn word(&mut self, word: &str) -> Res<()> {
        if self.eat_word(word) {
            Ok(())
        } else {
            self.err(format!("`{word}`"))
        }
    }

    fn end_line(&mut self) -> Res<()> {
        match self.tok {
            Tok::Line => {
                self.next();
                Ok(())
            }
            Tok::End => Ok(()),
            _ => self.err("the end of the line"),
        }
    }

    /// One of the words, by its index.
    fn one_of(&mut self, words: &[&str]) -> Res<usize> {
        if let Tok::Ident(w) = self.tok
            && let Some(i) = words.iter().position(|k| *k == w)
        {
            self.next();
            return Ok(i);
        }
        let all: Vec<String> = words.iter().map(|w| format!("`{w}`")).collect();
        self.err(all.join(" or "))
    }

    /// Lists go over lines after `[` and between items.
    fn skip_lines(&mut self) {
        while self.tok == Tok::Line {
            self.next();
        }
    }

    // ---- numbers and names

    fn magnitude(&mut self, what: &str, most: u64) -> Res<u64> {
        if let Tok::Num(n) = self.tok
            && let Ok(v) = n.parse::<u64>()
            && v <= most
        {
            self.next();
            return Ok(v);
        }
        self.err(format!("{what} (whole, at most {most})"))
    }

    fn u32(&mut self, what: &str) -> Res<u32> {
        Ok(self.magnitude(what, u32::MAX as u64)? as u32)
    }

    fn i64(&mut self, what: &str) -> Res<i64> {
        if self.eat("-") {
            let m = self.magnitude(what, 1 << 63)?;
            return Ok((m as i64).wrapping_neg());
        }
        if !matches!(self.tok, Tok::Num(_)) {
            return self.err(what);
        }
        Ok(self.magnitude(what, i64::MAX as u64)? as i64)
    }

    fn hex(&mut self, digits: &str) -> Option<u64> {
        if digits.is_empty() || digits.len() > 16 || !digits.bytes().all(|c| c.is_ascii_hexdigit()) {
            return None;
        }
        u64::from_str_radix(digits, 16).ok()
    }

    fn hash(&mut self) -> Res<u64> {
        if let Tok::Hash(h) = self.tok
            && h.len() == 16
            && let Some(v) = self.hex(h)
        {
            self.next();
            return Ok(v);
        }
        self.err("`#` and a hash of 16 hexadecimal digits")
    }

    /// `r3`, `d12`, `c5`, `t1`.
    fn register(&mut self, prefix: char, what: &str) -> Res<u8> {
        if let Some(n) = self.is_register(prefix) {
            self.next();
            return Ok(n);
        }
        self.err(format!("{what} (`{prefix}0` to `{prefix}255`)"))
    }

    fn is_register(&self, prefix: char) -> Option<u8> {
        let Tok::Ident(w) = self.tok else { return None };
        let n = w.strip_prefix(prefix)?;
        if n.is_empty() || !n.bytes().all(|c| c.is_ascii_digit()) {
            None
        } else {
            n.parse().ok()
        }
    }

    fn color(&mut self) -> Res<Color> {
        self.register('c', "a colour")
    }

    fn name(&mut self, what: &str) -> Res<Cow<'a, str>> {
        let name = match self.tok {
            Tok::Ident(w) => Cow::Borrowed(w),
            Tok::Quoted(q) => self.unquote(q)?,
            Tok::Open => return self.err("a quoted name with its closing quote on the same line"),
            _ => return self.err(what),
        };
        self.charge(32 + 2 * name.len())?;
        self.next();
        Ok(name)
    }

    fn unquote(&self, quoted: &'a str) -> Res<Cow<'a, str>> {
        let inner = &quoted[1..quoted.len() - 1];
        if !inner.contains('\\') {
            return Ok(Cow::Borrowed(inner));
        }
        let mut out = String::with_capacity(inner.len());
        let mut rest = inner.chars();
        while let Some(c) = rest.next() {
            if c != '\\' {
                out.push(c);
                continue;
            }
            let c = match rest.next() {
                Some('n') => Some('\n'),
                Some(c @ ('"' | '\\')) => Some(c),
                Some('u') => {
                    let after = rest.as_str();
                    let inside = after.strip_prefix('{').and_then(|a| a.split_once('}'));
                    inside.filter(|(h, _)| h.len() <= 6).and_then(|(h, tail)| {
                        rest = tail.chars();
                        char::from_u32(u32::from_str_radix(h, 16).ok()?)
                    })
                }
                _ => None,
            };
            match c {
                Some(c) => out.push(c),
                None => return self.err("a quoted name with the escapes \\\" \\\\ \\n \\u{...}"),
            }
        }
        Ok(Cow::Owned(out))
    }

    // ---- the program

    fn program(&mut self) -> Res<Program> {
        let mut program = Program::default();
        let mut stage = Stage::default();
        let mut named = false;
        let mut block: Option<(Block, Scope<'a>)> = None;
        let mut first = true;
        loop {
            if self.tok == Tok::Line {
                self.next();
                continue;
            }
            if self.tok == Tok::End {
                break;
            }
            if first {
                self.word("program")?;
                program.name = self.name("the program's name")?.into_owned();
                self.end_line()?;
                first = false;
                continue;
            }
            let place = self.place();
            let label = match self.tok {
                Tok::Ident(w) => {
                    self.next();
                    (Cow::Borrowed(w), w)
                }
                Tok::Quoted(_) if block.is_some() => (self.name("a label")?, ""),
                Tok::Sym("@") if block.is_some() => {
                    let (b, scope) = block.as_mut().expect("just tested");
                    self.next();
                    let n = self.u32("the place's number")?;
                    self.charge(48)?;
                    if scope.at.insert(n, b.code.len() as u32).is_some() {
                        return Err(self.error(place, "each `@` place once in a block"));
                    }
                    self.sym(":")?;
                    self.end_line()?;
                    continue;
                }
                _ => return self.err(line_starts(stage.regions.is_empty(), block.is_some())),
            };
            let (name, word) = label;
            if let Some((b, scope)) = &mut block
                && (self.is(":") || word.is_empty())
            {
                self.sym(":")?;
                self.end_line()?;
                let at = b.code.len() as u32;
                self.label(b, scope, name, at)?;
                continue;
            }
            let header = matches!(
                word,
                "stage" | "region" | "route" | "table" | "feed" | "drain" | "priority"
            ) || (word == "block" && matches!(self.tok, Tok::Num(_)));
            if header && word != "table" && word != "priority" {
                self.finish(&mut stage, block.take())?;
            }
            match word {
                "stage" => {
                    if !named && stage != Stage::default() {
                        return Err(self.error(
                            place,
                            "a program of one stage, or `stage` before all of the first one",
                        ));
                    }
                    let name = self.name("the stage's name")?.into_owned();
                    self.end_line()?;
                    let before = std::mem::replace(
                        &mut stage,
                        Stage {
                            name,
                            ..Stage::default()
                        },
                    );
                    if std::mem::replace(&mut named, true) {
                        self.push(&mut program.stages, before)?;
                    }
                }
                "priority" => {
                    while self.is_register('c').is_some() {
                        let c = self.color()?;
                        self.push(&mut stage.priority, c)?;
                    }
                    self.end_line()?;
                }
                "table" => self.table()?,
                "feed" => {
                    let feed = self.feed()?;
                    self.push(&mut stage.feeds, feed)?;
                }
                "drain" => {
                    let name = self.name("the drain's name")?.into_owned();
                    let (side, row, color) = self.channel()?;
                    self.sym(":")?;
                    let wavelets = self.magnitude("the number of wavelets", u64::MAX)?;
                    self.word("wavelets")?;
                    self.end_line()?;
                    self.push(
                        &mut stage.drains,
                        Drain {
                            name,
                            side,
                            row,
                            color,
                            wavelets,
                        },
                    )?;
                }
                "region" => {
                    let name = self.name("the region's name")?.into_owned();
                    self.word("at")?;
                    let x = self.u32("the left column")?;
                    self.sym(",")?;
                    let y = self.u32("the top row")?;
                    self.word("size")?;
                    let width = self.u32("the width")?;
                    self.word("x")?;
                    let height = self.u32("the height")?;
                    self.end_line()?;
                    let region = Region {
                        name,
                        x,
                        y,
                        width,
                        height,
                        routes: vec![],
                        blocks: vec![],
                    };
                    self.push(&mut stage.regions, region)?;
                }
                "route" | "block" if header => {
                    if stage.regions.is_empty() {
                        return Err(self.error(place, line_starts(true, false)));
                    }
                    if word == "route" {
                        let route = self.route()?;
                        let region = stage.regions.last_mut().expect("just tested");
                        self.push(&mut region.routes, route)?;
                    } else {
                        let at = self.lattice()?;
                        self.eat(":");
                        self.end_line()?;
                        self.charge(1024)?;
                        let b = Block {
                            at,
                            params: vec![],
                            memory: vec![],
                            tasks: vec![],
                            labels: vec![],
                            code: vec![],
                        };
                        block = Some((b, Scope::default()));
                    }
                }
                _ => match &mut block {
                    Some((b, scope)) => {
                        self.in_block(b, scope, word, place)?;
                        self.end_line()?;
                    }
                    None => return Err(self.error(place, line_starts(stage.regions.is_empty(), false))),
                },
            }
        }
        if first {
            return self.err("`program` and its name");
        }
        self.finish(&mut stage, block)?;
        program.stages.push(stage);
        Ok(program)
    }

    /// A channel of the edge and a colour, as feeds and drains have them.
    fn channel(&mut self) -> Res<(Side, u32, Color)> {
        let side = [Side::West, Side::East][self.one_of(&["west", "east"])?];
        self.word("row")?;
        Ok((side, self.u32("the channel's row")?, self.color()?))
    }

    fn feed(&mut self) -> Res<Feed> {
        let name = self.name("the feed's name")?.into_owned();
        let (side, row, color) = self.channel()?;
        self.word("epoch")?;
        let epoch = self.u32("the epoch")?;
        let data = if self.eat_word("drained") {
            match self.is("[") {
                true => FeedData::Drained(self.spans()?),
                false => FeedData::Cut(self.cut()?),
            }
        } else if self.eat(":") {
            let place = self.place();
            let n = self.magnitude("the number of wavelets", u64::MAX)?;
            self.word("wavelets")?;
            let hash = self.hash()?;
            match self.data.feed(&name, hash, n as usize) {
                Some(d) => FeedData::Host(d.clone()),
                None => {
                    return Err(
                        self.error(place, format!("a feed that the data beside the text has: {name}"))
                    );
                }
            }
        } else {
            if !self.is("=") {
                return self.err("`:` and a size, `= [` and the wavelets, or `drained [`");
            }
            self.next();
            if !self.is("[") {
                return self.err("`[`");
            }
            let mut data = Vec::new();
            loop {
                self.hex_word();
                match self.tok {
                    Tok::Sym("]") => break,
                    Tok::Line => continue,
                    _ => {}
                }
                let w = self.wavelet()?;
                self.push(&mut data, w)?;
            }
            self.next();
            FeedData::Host(Arc::new(data))
        };
        self.end_line()?;
        Ok(Feed {
            name,
            side,
            row,
            color,
            epoch,
            data,
        })
    }

    /// `[16 of stage 0 drain 1 from 4 flag 8, ...]`
    fn spans(&mut self) -> Res<Vec<Span>> {
        let mut spans = Vec::new();
        self.sym("[")?;
        self.skip_lines();
        while !self.eat("]") {
            if !spans.is_empty() {
                self.sym(",")?;
                self.skip_lines();
            }
            let count = self.magnitude("a number of wavelets", u64::MAX)?;
            let (stage, drain) = self.of_drain()?;
            let first = self.or_zero("from", "the first wavelet")?;
            let flag_every = self.or_zero("flag", "the wavelets of a block")?;
            self.skip_lines();
            self.push(
                &mut spans,
                Span {
                    stage,
                    drain,
                    first,
                    count,
                    flag_every,
                },
            )?;
        }
        Ok(spans)
    }

    /// `of stage 0 drain 1`
    fn of_drain(&mut self) -> Res<(u32, u32)> {
        self.word("of")?;
        self.word("stage")?;
        let stage = self.u32("the drain's stage")?;
        self.word("drain")?;
        Ok((stage, self.u32("the drain's number in its stage")?))
    }

    /// The number behind a word that may be left out: 0 then.
    fn or_zero(&mut self, word: &str, what: &str) -> Res<u64> {
        match self.eat_word(word) {
            true => self.magnitude(what, u64::MAX),
            false => Ok(0),
        }
    }

    /// `f16 by 2 rows 8 [16 of stage 0 drain 1 from 4 skip 1 step 9, 7 fill fc00]`
    fn cut(&mut self) -> Res<Cut> {
        let ty = self.ty()?;
        self.word("by")?;
        let per = self.u32("the elements of a wavelet")?;
        self.word("rows")?;
        let rows = self.magnitude("the number of rows", u64::MAX)?;
        let mut pieces = Vec::new();
        self.sym("[")?;
        self.skip_lines();
        while !self.eat("]") {
            if !pieces.is_empty() {
                self.sym(",")?;
                self.skip_lines();
            }
            let count = self.magnitude("a number of elements", u64::MAX)?;
            let piece = if self.is_word("fill") {
                self.hex_word();
                let bits = match self.tok {
                    Tok::Ident(digits) => self.hex(digits).and_then(|b| u32::try_from(b).ok()),
                    _ => None,
                };
                let Some(bits) = bits else {
                    return self.err("an element's bits, at most 8 hexadecimal digits");
                };
                self.next();
                Piece::Fill { bits, count }
            } else {
                let (stage, drain) = self.of_drain()?;
                let first = self.or_zero("from", "the first wavelet")?;
                let skip = self.or_zero("skip", "elements before the piece")?;
                let step = self.or_zero("step", "wavelets from row to row")?;
                Piece::Kept {
                    stage,
                    drain,
                    first,
                    skip,
                    count,
                    step,
                }
            };
            self.skip_lines();
            self.push(&mut pieces, piece)?;
        }
        Ok(Cut {
            ty,
            per,
            rows,
            pieces,
        })
    }

    /// Takes the next token, reading a run of letters and digits as one word.
    fn hex_word(&mut self) {
        let before = self.end;
        self.next();
        if matches!(self.tok, Tok::Num(_) | Tok::Ident(_)) {
            let b = &self.text.as_bytes()[self.start..];
            let n = b.iter().take_while(|c| c.is_ascii_alphanumeric()).count();
            self.end = self.start + n;
            self.tok = Tok::Ident(&self.text[self.start..self.end]);
        }
        debug_assert!(self.end >= before);
    }

    /// A wavelet; the current token is its payload, and afterwards its last token.
    fn wavelet(&mut self) -> Res<Wavelet> {
        let Tok::Ident(digits) = self.tok else {
            return self.err("a wavelet's hexadecimal payload or `]`");
        };
        let Some(bits) = self.hex(digits) else {
            return self.err("at most 16 hexadecimal digits");
        };
        let mut w = Wavelet {
            bits,
            elements: 1,
            flag: false,
        };
        let bytes = self.text.as_bytes();
        if bytes.get(self.end) == Some(&b'/') {
            self.next();
            self.next();
            match self.tok {
                Tok::Num(n) if n.parse::<u8>().is_ok() => w.elements = n.parse().unwrap_or(0),
                _ => return self.err("a number of elements, 0 to 255"),
            }
        }
        if bytes.get(self.end) == Some(&b'!') {
            self.next();
            w.flag = true;
        }
        Ok(w)
    }

    fn table(&mut self) -> Res<()> {
        let place = self.place();
        let (name, ordinal) = self.table_name()?;
        self.word("by")?;
        let axes = [Axes::X, Axes::Y, Axes::XY][self.one_of(&["x", "y", "xy"])?];
        let width = if self.eat_word("width") {
            self.u32("the table's width")?
        } else {
            0
        };
        let table = if self.eat(":") {
            let at = self.place();
            let n = self.magnitude("the number of entries", u64::MAX)?;
            self.word("entries")?;
            let hash = self.hash()?;
            match self.data.table(&name, hash, axes, width, n as usize) {
                Some(t) => t.clone(),
                None => {
                    return Err(self.error(at, format!("a table that the data beside the text has: {name}")));
                }
            }
        } else {
            if !self.eat("=") {
                return self.err("`:` and a size, or `= [` and the entries");
            }
            self.sym("[")?;
            let mut values = Vec::new();
            self.skip_lines();
            while !self.eat("]") {
                let v = self.i64("an entry or `]`")?;
                self.push(&mut values, v)?;
                self.skip_lines();
            }
            Arc::new(Table {
                name: name.clone().into_owned(),
                axes,
                width,
                values,
            })
        };
        self.end_line()?;
        self.charge(200)?;
        if self.tables.insert((name, ordinal), table).is_some() {
            return Err(self.error(place, "a table name that is not yet taken"));
        }
        Ok(())
    }

    fn table_name(&mut self) -> Res<(Cow<'a, str>, u32)> {
        let name = self.name("a table's name")?;
        let ordinal = if self.eat("~") {
            self.u32("the table's number")?
        } else {
            1
        };
        Ok((name, ordinal))
    }

    fn lattice(&mut self) -> Res<Lattice> {
        let (x, nx, dx) = self.span()?;
        self.word("x")?;
        let (y, ny, dy) = self.span()?;
        Ok(Lattice { x, y, nx, ny, dx, dy })
    }

    fn span(&mut self) -> Res<(u32, u32, u32)> {
        let first = self.u32("a column or row")?;
        if self.eat_word("times") {
            let n = self.u32("a count")?;
            self.word("by")?;
            return Ok((first, n, self.u32("a stride")?));
        }
        if !self.eat("..") {
            return Ok((first, 1, 1));
        }
        let place = self.place();
        let end = self.magnitude("the end (exclusive)", u64::MAX)?;
        let by = if self.eat_word("by") {
            self.u32("a stride")?
        } else {
            1
        };
        let n = if by == 0 {
            None
        } else {
            end.checked_sub(first as u64).map(|n| n.div_ceil(by as u64))
        };
        match n.and_then(|n| u32::try_from(n).ok()) {
            Some(n) => Ok((first, n, by)),
            None => Err(self.error(place, "an end of at least the first, and a stride of at least 1")),
        }
    }

    fn port(&mut self) -> Res<Port> {
        Ok(Port::ALL[self.one_of(&["north", "east", "south", "west", "ramp"])?])
    }

    fn route(&mut self) -> Res<Route> {
        let color = self.color()?;
        let stream = self.name("the name of the stream")?.into_owned();
        let at = self.lattice()?;
        self.sym(":")?;
        self.skip_lines();
        let mut route = Route {
            color,
            stream,
            at,
            positions: vec![],
            filters: vec![],
        };
        let mut more = true;
        if self.eat_word("none") {
            more = self.eat(";");
        }
        while more {
            self.skip_lines();
            if self.eat_word("filter") {
                let output = self.port()?;
                self.word("pass")?;
                let count = self.expr()?;
                self.word("of")?;
                let period = self.expr()?;
                self.word("from")?;
                let first = self.expr()?;
                self.push(
                    &mut route.filters,
                    Filter {
                        output,
                        first,
                        count,
                        period,
                    },
                )?;
            } else {
                let input = match self.tok {
                    Tok::Ident("north" | "east" | "south" | "west" | "ramp") => self.port()?,
                    _ => return self.err("a port (a switch position) or `filter`"),
                };
                self.sym("->")?;
                let mut outputs = Vec::new();
                if !self.eat_word("none") {
                    let o = self.port()?;
                    self.push(&mut outputs, o)?;
                    while matches!(self.tok, Tok::Ident("north" | "east" | "south" | "west" | "ramp")) {
                        let o = self.port()?;
                        self.push(&mut outputs, o)?;
                    }
                }
                let hold = if self.eat_word("hold") {
                    self.expr()?
                } else {
                    Expr::Const(1)
                };
                self.push(&mut route.positions, Position { input, outputs, hold })?;
            }
            more = self.eat(";");
        }
        self.end_line()?;
        Ok(route)
    }

    // ---- expressions

    fn expr(&mut self) -> Res<Expr> {
        Ok(self.sum(0)?.0)
    }

    /// A box around an operand; `depth` is that of the new tree.
    fn boxed(&mut self, e: Expr, depth: usize) -> Res<Box<Expr>> {
        if depth > MAX_DEPTH {
            return self.err(format!("an expression of at most {MAX_DEPTH} levels"));
        }
        self.charge(48)?;
        Ok(Box::new(e))
    }

    /// Returns the expression and the depth of its tree; `nest` counts the brackets around it.
    fn sum(&mut self, nest: usize) -> Res<(Expr, usize)> {
        let (mut e, mut depth) = self.product(nest)?;
        loop {
            let plus = self.is("+");
            if !plus && !self.is("-") {
                return Ok((e, depth));
            }
            self.next();
            let (b, d) = self.product(nest)?;
            depth = depth.max(d) + 1;
            let (a, b) = (self.boxed(e, depth)?, self.boxed(b, depth)?);
            e = if plus { Expr::Add(a, b) } else { Expr::Sub(a, b) };
        }
    }

    fn product(&mut self, nest: usize) -> Res<(Expr, usize)> {
        let (mut e, mut depth) = self.primary(nest)?;
        loop {
            let sign = match self.tok {
                Tok::Sym(s @ ("*" | "/" | "%")) => s,
                _ => return Ok((e, depth)),
            };
            self.next();
            if sign == "*" {
                let (b, d) = self.primary(nest)?;
                depth = depth.max(d) + 1;
                let (a, b) = (self.boxed(e, depth)?, self.boxed(b, depth)?);
                e = Expr::Mul(a, b);
            } else {
                let n = self.i64("a constant divisor")?;
                depth += 1;
                let a = self.boxed(e, depth)?;
                e = if sign == "/" {
                    Expr::Div(a, n)
                } else {
                    Expr::Mod(a, n)
                };
            }
        }
    }

    fn primary(&mut self, nest: usize) -> Res<(Expr, usize)> {
        if nest > MAX_DEPTH {
            return self.err(format!("an expression of at most {MAX_DEPTH} levels"));
        }
        let leaf = match self.tok {
            Tok::Num(_) | Tok::Sym("-") => Expr::Const(self.i64("a number")?),
            Tok::Sym("(") => {
                self.next();
                let e = self.sum(nest + 1)?;
                self.sym(")")?;
                return Ok(e);
            }
            Tok::Ident("x") => {
                self.next();
                Expr::X
            }
            Tok::Ident("y") => {
                self.next();
                Expr::Y
            }
            Tok::Ident(f @ ("min" | "max")) => {
                self.next();
                self.sym("(")?;
                let (a, da) = self.sum(nest + 1)?;
                self.sym(",")?;
                let (b, db) = self.sum(nest + 1)?;
                self.sym(")")?;
                let depth = da.max(db) + 1;
                let (a, b) = (self.boxed(a, depth)?, self.boxed(b, depth)?);
                return Ok((
                    if f == "min" {
                        Expr::Min(a, b)
                    } else {
                        Expr::Max(a, b)
                    },
                    depth,
                ));
            }
            Tok::Ident(_) | Tok::Quoted(_) => {
                let place = self.place();
                let key = self.table_name()?;
                match self.tables.get(&key) {
                    Some(t) => Expr::Table(t.clone()),
                    None => return Err(self.error(place, "`x`, `y`, `min`, `max` or a table declared above")),
                }
            }
            _ => return self.err("an expression"),
        };
        Ok((leaf, 1))
    }

    // ---- blocks

    fn label(&mut self, b: &mut Block, scope: &mut Scope<'a>, name: Cow<'a, str>, at: u32) -> Res<()> {
        self.charge(96)?;
        self.push(&mut b.labels, (name.clone().into_owned(), at))?;
        scope
            .labels
            .entry(name)
            .and_modify(|l| *l = None)
            .or_insert(Some(at));
        Ok(())
    }

    /// A line of a block that is not a label; `word` is its first word.
    fn in_block(
        &mut self,
        b: &mut Block,
        scope: &mut Scope<'a>,
        word: &str,
        place: (usize, usize),
    ) -> Res<()> {
        match word {
            "param" => {
                let name = self.name("the parameter's name")?;
                self.sym("=")?;
                let value = self.expr()?;
                let index = self.index16(b.params.len(), "parameters")?;
                self.charge(96)?;
                self.push(
                    &mut b.params,
                    Param {
                        name: name.clone().into_owned(),
                        value,
                    },
                )?;
                scope
                    .params
                    .entry(name)
                    .and_modify(|p| *p = None)
                    .or_insert(Some(index));
            }
            "memory" => {
                let name = self.name("the buffer's name")?;
                self.sym("@")?;
                let address = self.u32("the first byte")?;
                let bytes = self.u32("the number of bytes")?;
                self.word("bytes")?;
                self.charge(96)?;
                self.push(
                    &mut b.memory,
                    Buffer {
                        name: name.clone().into_owned(),
                        address,
                        bytes,
                    },
                )?;
                scope
                    .buffers
                    .entry(name)
                    .and_modify(|p| *p = None)
                    .or_insert(Some(address));
            }
            "task" => {
                let name = self.name("the task's name")?;
                let trigger = match self.one_of(&["start", "local", "data"])? {
                    0 => Trigger::Start,
                    1 => Trigger::Local,
                    _ => Trigger::Data(self.color()?),
                };
                let blocked = self.eat_word("blocked");
                self.sym("->")?;
                let number = self.index16(b.tasks.len(), "tasks")?;
                self.target(scope, false, b.tasks.len())?;
                self.charge(96)?;
                self.push(
                    &mut b.tasks,
                    Task {
                        name: name.clone().into_owned(),
                        trigger,
                        blocked,
                        entry: 0,
                    },
                )?;
                scope
                    .tasks
                    .entry(name)
                    .and_modify(|p| *p = None)
                    .or_insert(Some(number));
            }
            "label" => {
                let name = self.name("the label's name")?;
                self.sym("=")?;
                let at = self.u32("an index of the code")?;
                self.label(b, scope, name, at)?;
            }
            _ => {
                if b.code.len() >= u32::MAX as usize {
                    return self.err("fewer instructions");
                }
                let i = self.instr(b.code.len(), scope, word, place)?;
                self.push(&mut b.code, i)?;
            }
        }
        Ok(())
    }

    fn index16(&mut self, index: usize, what: &str) -> Res<u16> {
        u16::try_from(index).or_else(|_| self.err(format!("at most 65536 {what} in a block")))
    }

    /// A place in the code, resolved at the block's end.
    fn target(&mut self, scope: &mut Scope<'a>, instr: bool, index: usize) -> Res<()> {
        let place = self.place();
        let target = if self.eat("@") {
            Target::At(self.u32("a place's number")?)
        } else {
            Target::Name(self.name("a label, or `@` and an index of the code")?)
        };
        self.push(
            &mut scope.fixes,
            Fix {
                instr,
                index,
                target,
                place,
            },
        )
    }

    fn task_ref(&mut self, scope: &mut Scope<'a>, index: usize) -> Res<u16> {
        let place = self.place();
        let t = match self.tok {
            Tok::Ident("task") => {
                self.next();
                match self.tok {
                    Tok::Num(_) => {
                        TaskRef::Number(self.magnitude("a task's number", u16::MAX as u64)? as u16)
                    }
                    _ => TaskRef::Name(Cow::Borrowed("task")),
                }
            }
            _ => TaskRef::Name(self.name("a task's name, or `task` and its number")?),
        };
        match t {
            TaskRef::Number(n) => Ok(n),
            TaskRef::Name(n) => {
                self.push(&mut scope.task_fixes, (index, n, place))?;
                Ok(0)
            }
        }
    }

    fn finish(&mut self, stage: &mut Stage, block: Option<(Block, Scope<'a>)>) -> Res<()> {
        let Some((mut b, scope)) = block else {
            return Ok(());
        };
        for fix in scope.fixes {
            let to = match fix.target {
                Target::At(n) => scope.at.get(&n).copied().unwrap_or(n),
                Target::Name(n) => match scope.labels.get(&n) {
                    Some(Some(at)) => *at,
                    Some(None) => return Err(self.error(fix.place, "a label that the block has only once")),
                    None => return Err(self.error(fix.place, "a label of this block")),
                },
            };
            if fix.instr {
                match &mut b.code[fix.index] {
                    Instr::Jump(t) | Instr::Branch(_, _, _, t) => *t = to,
                    _ => {}
                }
            } else {
                b.tasks[fix.index].entry = to;
            }
        }
        for (index, name, place) in scope.task_fixes {
            let task = match scope.tasks.get(&name) {
                Some(Some(t)) => *t,
                Some(None) => return Err(self.error(place, "a task that the block has only once")),
                None => return Err(self.error(place, "a task of this block")),
            };
            match &mut b.code[index] {
                Instr::Activate(t) | Instr::Block(t) | Instr::Unblock(t) | Instr::Async(_, _, Some(t)) => {
                    *t = task
                }
                _ => {}
            }
        }
        if let Some(region) = stage.regions.last_mut() {
            self.push(&mut region.blocks, b)?;
        }
        Ok(())
    }

    // ---- instructions

    fn val(&mut self, scope: &Scope<'a>) -> Res<Val> {
        const WHAT: &str = "a number, a register (`r0`) or a parameter (`$name`)";
        match self.tok {
            Tok::Num(_) | Tok::Sym("-") => Ok(Val::Imm(self.i64("a number")?)),
            Tok::Ident(_) => match self.is_register('r') {
                Some(r) => {
                    self.next();
                    Ok(Val::Reg(r))
                }
                None => self.err(WHAT),
            },
            Tok::Sym("$") => {
                self.next();
                let place = self.place();
                if matches!(self.tok, Tok::Num(_)) {
                    return Ok(Val::Param(
                        self.magnitude("a parameter's number", u16::MAX as u64)? as u16,
                    ));
                }
                let name = self.name("a parameter's name or number")?;
                match scope.params.get(&name) {
                    Some(Some(p)) => Ok(Val::Param(*p)),
                    Some(None) => Err(self.error(place, "a parameter that the block has only once")),
                    None => Err(self.error(place, "a parameter declared above in this block")),
                }
            }
            _ => self.err(WHAT),
        }
    }

    fn address(&mut self, scope: &Scope<'a>) -> Res<Val> {
        self.sym("@")?;
        match self.tok {
            Tok::Ident(w) if !like_register(w) => {}
            Tok::Quoted(_) => {}
            _ => return self.val(scope),
        }
        let place = self.place();
        let name = self.name("a buffer's name")?;
        let base = match scope.buffers.get(&name) {
            Some(Some(address)) => *address as i64,
            Some(None) => return Err(self.error(place, "a buffer that the block has only once")),
            None => return Err(self.error(place, "a buffer declared above in this block")),
        };
        let offset = if self.eat("+") {
            self.magnitude("an offset in bytes", u32::MAX as u64)? as i64
        } else {
            0
        };
        Ok(Val::Imm(base + offset))
    }

    fn vals(&mut self, scope: &Scope<'a>) -> Res<Vec<Val>> {
        self.sym("[")?;
        let mut all = Vec::new();
        while !self.eat("]") {
            let v = self.val(scope)?;
            self.push(&mut all, v)?;
        }
        Ok(all)
    }

    fn ty(&mut self) -> Res<Ty> {
        Ok([Ty::F32, Ty::F16][self.one_of(&["f32", "f16"])?])
    }

    fn scalar(&mut self) -> Res<u8> {
        self.register('r', "a scalar register")
    }

    fn descriptor(&mut self) -> Res<u8> {
        self.register('d', "a descriptor register")
    }

    fn two(&mut self, scope: &Scope<'a>, between: &str) -> Res<(Val, Val)> {
        let a = self.val(scope)?;
        self.sym(between)?;
        Ok((a, self.val(scope)?))
    }

    fn instr(
        &mut self,
        index: usize,
        scope: &mut Scope<'a>,
        word: &str,
        place: (usize, usize),
    ) -> Res<Instr> {
        let scalar = matches!(word, "add" | "sub" | "mul") && self.is_register('r').is_some();
        if let Some(op) = op_named(word)
            && !scalar
        {
            return Ok(Instr::Vector(self.map(op)?));
        }
        Ok(match word {
            "set" => {
                let r = self.scalar()?;
                self.sym("=")?;
                Instr::Set(r, self.val(scope)?)
            }
            "add" | "sub" | "mul" => {
                let r = self.scalar()?;
                self.sym("=")?;
                let (sign, make): (_, fn(u8, Val, Val) -> Instr) = match word {
                    "add" => ("+", Instr::Add),
                    "sub" => ("-", Instr::Sub),
                    _ => ("*", Instr::Mul),
                };
                let (a, b) = self.two(scope, sign)?;
                make(r, a, b)
            }
            "load.u16" | "load.i32" => {
                let w = if word == "load.u16" { Word::U16 } else { Word::I32 };
                let r = self.scalar()?;
                self.sym("=")?;
                self.sym("[")?;
                let (a, b) = self.two(scope, "+")?;
                self.sym("]")?;
                Instr::Load(w, r, a, b)
            }
            "store.u16" | "store.i32" => {
                let w = if word == "store.u16" { Word::U16 } else { Word::I32 };
                self.sym("[")?;
                let (a, b) = self.two(scope, "+")?;
                self.sym("]")?;
                self.sym("=")?;
                Instr::Store(w, a, b, self.val(scope)?)
            }
            "jump" => {
                self.target(scope, true, index)?;
                Instr::Jump(0)
            }
            "branch" => {
                let a = self.val(scope)?;
                let c = match self.tok {
                    Tok::Sym("==") => Cond::Eq,
                    Tok::Sym("!=") => Cond::Ne,
                    Tok::Sym("<") => Cond::Lt,
                    Tok::Sym(">=") => Cond::Ge,
                    _ => return self.err("`==`, `!=`, `<` or `>=`"),
                };
                self.next();
                let b = self.val(scope)?;
                self.target(scope, true, index)?;
                Instr::Branch(c, a, b, 0)
            }
            "desc" => {
                let d = self.descriptor()?;
                self.sym("=")?;
                Instr::Desc(d, self.desc(scope)?)
            }
            "base" => {
                let d = self.descriptor()?;
                self.sym("=")?;
                Instr::Base(d, self.address(scope)?)
            }
            "advance" => {
                let d = self.descriptor()?;
                self.sym("+=")?;
                Instr::Advance(d, self.val(scope)?)
            }
            "axpy" => Instr::Vector(self.axpy(scope)?),
            "async" => {
                let t = self.register('t', "a microthread")?;
                let v = match self.tok {
                    Tok::Ident("axpy") => {
                        self.next();
                        self.axpy(scope)?
                    }
                    Tok::Ident(w) if op_named(w).is_some() => {
                        self.next();
                        self.map(op_named(w).expect("just tested"))?
                    }
                    _ => return self.err("a vector instruction"),
                };
                let then = if self.eat_word("then") {
                    Some(self.task_ref(scope, index)?)
                } else {
                    None
                };
                Instr::Async(t, v, then)
            }
            "wait" => {
                let t = self.register('t', "a microthread")?;
                Instr::Wait(
                    t,
                    if self.eat(">=") {
                        Some(self.val(scope)?)
                    } else {
                        None
                    },
                )
            }
            "activate" => Instr::Activate(self.task_ref(scope, index)?),
            "block" => Instr::Block(self.task_ref(scope, index)?),
            "unblock" => Instr::Unblock(self.task_ref(scope, index)?),
            "end" => Instr::End,
            "halt" => Instr::Halt,
            _ => return Err(self.error(place, line_starts(false, true))),
        })
    }

    fn desc(&mut self, scope: &Scope<'a>) -> Res<Descriptor> {
        Ok(match self.one_of(&["mem", "in", "out"])? {
            0 => {
                let ty = self.ty()?;
                let base = self.address(scope)?;
                let shape = self.vals(scope)?;
                self.word("by")?;
                let strides = self.vals(scope)?;
                let wide = self.eat_word("wide");
                Descriptor {
                    ty,
                    shape,
                    place: Place::Memory { base, strides, wide },
                }
            }
            1 => {
                let c = self.color()?;
                let ty = self.ty()?;
                Descriptor {
                    ty,
                    shape: self.vals(scope)?,
                    place: Place::In(c),
                }
            }
            _ => {
                let color = self.color()?;
                let ty = self.ty()?;
                let shape = self.vals(scope)?;
                let flag = self.eat_word("flag");
                Descriptor {
                    ty,
                    shape,
                    place: Place::Out { color, flag },
                }
            }
        })
    }

    fn operand(&mut self) -> Res<Operand> {
        const WHAT: &str = "a descriptor (`d0`), a number, `inf`, `nan` or a register (`r0`)";
        if let Some(d) = self.is_register('d') {
            self.next();
            return Ok(Operand::Desc(d));
        }
        if let Some(r) = self.is_register('r') {
            self.next();
            return Ok(Operand::Reg(r));
        }
        if self.eat_word("nan") {
            if let Tok::Hash(h) = self.tok
                && h.len() == 8
                && let Some(bits) = self.hex(h)
            {
                let f = f32::from_bits(bits as u32);
                if !f.is_nan() {
                    return self.err("the bits of a NaN");
                }
                self.next();
                return Ok(Operand::Imm(f));
            }
            return Ok(Operand::Imm(f32::from_bits(0x7fc0_0000)));
        }
        let negative = self.eat("-");
        let f = match self.tok {
            Tok::Ident("inf") => f32::INFINITY,
            Tok::Num(n) => match n.parse::<f32>() {
                Ok(f) if f.is_finite() => f,
                _ => return self.err("a number that an f32 can hold"),
            },
            _ => return self.err(WHAT),
        };
        self.next();
        Ok(Operand::Imm(if negative { -f } else { f }))
    }

    fn map(&mut self, op: Op) -> Res<Vector> {
        let dst = self.descriptor()?;
        self.sym(if op == Op::Mac { "+=" } else { "=" })?;
        let a = self.operand()?;
        let b = if self.eat(op_form(op).1) {
            Some(self.operand()?)
        } else {
            None
        };
        Ok(Vector::Map {
            op,
            dst,
            a,
            b,
            count: self.count()?,
        })
    }

    fn axpy(&mut self, scope: &Scope<'a>) -> Res<Vector> {
        let y = self.descriptor()?;
        self.sym("+=")?;
        let x = self.descriptor()?;
        self.sym("*")?;
        self.word("list")?;
        let list = if self.eat_word("mem") {
            let ty = self.ty()?;
            self.word("index")?;
            let index = self.address(scope)?;
            self.word("value")?;
            let value = self.address(scope)?;
            self.word("count")?;
            List::Memory {
                index,
                value,
                count: self.val(scope)?,
                ty,
            }
        } else if self.is_register('c').is_some() {
            let color = self.color()?;
            List::Fabric {
                color,
                ty: self.ty()?,
            }
        } else {
            return self.err("`mem` or a colour (`c0`)");
        };
        self.word("modulo")?;
        let modulo = self.val(scope)?;
        self.word("divisor")?;
        let divisor = self.val(scope)?;
        self.word("y_step")?;
        let y_step = self.val(scope)?;
        self.word("x_step")?;
        let x_step = self.val(scope)?;
        Ok(Vector::Axpy {
            y,
            x,
            list,
            modulo,
            divisor,
            y_step,
            x_step,
            count: self.count()?,
        })
    }

    fn count(&mut self) -> Res<Count> {
        let Tok::Hash(h) = self.tok else {
            return Ok(Count::None);
        };
        let count = match h {
            "mac" => Count::Mac,
            "mac_act" => Count::MacAct,
            "reduce" => Count::Reduce,
            "other" => Count::Other,
            _ => return self.err("`#mac`, `#mac_act`, `#reduce` or `#other`"),
        };
        self.next();
        Ok(count)
    }
}

fn op_named(word: &str) -> Option<Op> {
    use Op::*;
    [Mov, Add, Sub, Mul, Mac, Max, Min, Exp, Div, Rsqrt, Tanh]
        .into_iter()
        .find(|o| op_form(*o).0 == word)
}

fn line_starts(no_region: bool, in_block: bool) -> &'static str {
    match (no_region, in_block) {
        (_, true) => {
            "an instruction, a label, `param`, `memory`, `task`, `block`, `route`, `region`, `feed`, `drain` or `stage`"
        }
        (true, _) => "`priority`, `region`, `table`, `feed`, `drain` or `stage`",
        _ => "`region`, `table`, `route`, `block`, `feed`, `drain` or `stage`",
    }
}
