//! Threads and colours: a colour has one reader and one writer in a core (rule M20). Refused is only what is plain from the code alone,
//! whatever its order: a `wait` between two threads' instructions makes no difference.

use super::Check;
use super::code::{Part, vector_parts};
use crate::program::*;
use std::collections::HashMap;

/// Who sends or takes a colour.
#[derive(Clone, Copy, PartialEq)]
enum User {
    DataTask,
    Main,
    Micro(u8),
}

impl User {
    fn name(self) -> String {
        match self {
            User::DataTask => "a data task".into(),
            User::Main => "the main thread".into(),
            User::Micro(t) => format!("microthread t{t}"),
        }
    }
}

impl<'a> Check<'a> {
    /// No two threads of a block name one colour in one direction, as far as descriptor registers are set to one colour only.
    pub(super) fn one_user(&mut self, r: usize, b: usize) {
        let block: &'a Block = &self.program.regions[r].blocks[b];
        // The colour of each descriptor register, and whether it is sent; `None` for memory and where it is set to several things.
        let mut colors: HashMap<u8, Option<(Color, bool)>> = HashMap::new();
        for i in &block.code {
            if let Instr::Desc(d, desc) = i {
                let new = match desc.place {
                    Place::In(c) => Some((c, false)),
                    Place::Out { color, .. } => Some((color, true)),
                    Place::Memory { .. } => None,
                };
                let old = colors.entry(*d).or_insert(new);
                if *old != new {
                    *old = None;
                }
            }
        }
        let mut first: HashMap<(Color, bool), User> = HashMap::new();
        for t in &block.tasks {
            if let Trigger::Data(c) = t.trigger {
                first.insert((c, false), User::DataTask);
            }
        }
        for (i, instr) in block.code.iter().enumerate() {
            let (user, v) = match instr {
                Instr::Vector(v) => (User::Main, v),
                Instr::Async(t, v, _) => (User::Micro(*t), v),
                _ => continue,
            };
            let mut used: Vec<(Color, bool)> = Vec::new();
            vector_parts(v, &mut |part| match part {
                Part::Desc(d) => used.extend(colors.get(&d).copied().flatten()),
                Part::Color(c, sends) => used.push((c, sends)),
                _ => {}
            });
            for (c, sends) in used {
                let other = *first.entry((c, sends)).or_insert(user);
                if other != user {
                    let verb = if sends { "sends" } else { "takes" };
                    let problem = format!("{} {verb} c{c}, as {} does", user.name(), other.name());
                    let help = "leave a colour to one thread, or use a second colour";
                    self.add(self.instr_place(r, b, i), "M20", problem, help);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Machine;
    use crate::text::{DataStore, parse};

    /// The problems of rule M20 in a block with this task and code.
    fn found(task: &str, code: &str) -> Vec<String> {
        let text = format!(
            "program t\nregion r at 0, 0 size 1 x 1\nroute c1 a 0 x 0: ramp -> ramp\nroute c2 b 0 x 0: ramp -> ramp\n\
             block 0 x 0\n  memory m @0 16 bytes\n  task a {task} -> a\n  a:\n    desc d0 = mem f32 @m [4] by [1]\n\
             desc d1 = in c1 f32 [4]\n    desc d2 = out c1 f32 [4]\n    desc d3 = out c2 f32 [4]\n{code}\n    halt\n"
        );
        let machine = Machine::parse("small", include_str!("../../../../machines/small.toml"), &[]).unwrap();
        let all = crate::verify::verify(&parse(&text, &DataStore::default()).unwrap(), &machine);
        let all = all.err().unwrap_or_default();
        assert!(all.iter().all(|v| v.rule == "M20"), "{all:?}");
        all.into_iter().map(|v| v.problem).collect()
    }

    #[test]
    fn a_colour_has_one_user_in_each_direction() {
        let none: [&str; 0] = [];
        // A sender and a receiver of one colour; one thread several times; two threads with two colours.
        assert_eq!(found("start", "mov d2 = d0\nasync t1 mov d0 = d1"), none);
        assert_eq!(found("start", "async t1 mov d2 = d0\nasync t1 mov d2 = d0"), none);
        assert_eq!(found("start", "mov d2 = d0\nasync t1 mov d3 = d0"), none);
        // A register that is set to two colours is not plain.
        assert_eq!(
            found(
                "start",
                "mov d3 = d0\ndesc d3 = out c1 f32 [4]\nasync t1 mov d3 = d0"
            ),
            none
        );
        let sends = ["microthread t1 sends c1, as the main thread does"];
        assert_eq!(found("start", "mov d2 = d0\nasync t1 mov d2 = d0"), sends);
        let takes = ["microthread t2 takes c1, as microthread t1 does"];
        assert_eq!(
            found("start", "async t1 mov d0 = d1\nasync t2 mov d0 = d1"),
            takes
        );
        let task = ["microthread t1 takes c1, as a data task does"];
        assert_eq!(found("data c1", "async t1 mov d0 = d1"), task);
    }
}
