//! A walk over the protobuf encoding before it is decoded: finds truncation with its position, and bounds the
//! memory decoding would take, since two bytes of file can ask for a message of hundreds of bytes.

use std::mem::size_of;

use super::proto;

/// What the walk found wrong.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A field at byte `at` needs `needed` bytes, but its surroundings have only `left`.
    Truncated { at: usize, needed: u64, left: usize },
    /// No protobuf field can start with the bytes at `at`.
    Malformed { at: usize, reason: &'static str },
    /// Decoding would take more than the limit.
    TooManyPieces { at: usize },
}

/// Most memory, in bytes, for messages, names and dimension lists.
pub(crate) const LIMIT: u64 = 64 << 20;
/// Longest name, in bytes.
const MAX_NAME: usize = 1 << 14;

#[derive(Clone, Copy)]
enum Kind {
    Model,
    OperatorSet,
    Graph,
    Node,
    Attribute,
    Tensor,
    Entry,
    Value,
    Type,
    TensorType,
    Shape,
    Dim,
}

enum Child {
    Message(Kind, usize),
    Text,
    Slice,
    Numbers,
    Other,
}

fn child(kind: Kind, field: u64) -> Child {
    use Child::{Message, Numbers, Slice, Text};
    match (kind, field) {
        (Kind::Model, 7) => Message(Kind::Graph, size_of::<proto::GraphProto>()),
        (Kind::Model, 8) => Message(Kind::OperatorSet, size_of::<proto::OperatorSet>()),
        (Kind::Graph, 1) => Message(Kind::Node, size_of::<proto::NodeProto>()),
        (Kind::Graph, 5) => Message(Kind::Tensor, size_of::<proto::TensorProto>()),
        (Kind::Graph, 11 | 12) => Message(Kind::Value, size_of::<proto::ValueInfo>()),
        (Kind::Graph, 15) | (Kind::Attribute, 4) | (Kind::Tensor, 4 | 7 | 9) => Slice,
        (Kind::Node, 5) => Message(Kind::Attribute, size_of::<proto::Attribute>()),
        (Kind::Attribute, 5) => Message(Kind::Tensor, size_of::<proto::TensorProto>()),
        (Kind::Attribute, 8) | (Kind::Tensor, 1) => Numbers,
        (Kind::Tensor, 13) => Message(Kind::Entry, size_of::<proto::Entry>()),
        (Kind::Value, 2) => Message(Kind::Type, size_of::<proto::TypeProto>()),
        (Kind::Type, 1) => Message(Kind::TensorType, size_of::<proto::TensorType>()),
        (Kind::TensorType, 2) => Message(Kind::Shape, size_of::<proto::Shape>()),
        (Kind::Shape, 1) => Message(Kind::Dim, size_of::<proto::Dim>()),
        (Kind::OperatorSet, 1)
        | (Kind::Graph, 2)
        | (Kind::Node, 1..=4 | 7)
        | (Kind::Attribute, 1)
        | (Kind::Tensor, 8)
        | (Kind::Entry, 1 | 2)
        | (Kind::Value, 1)
        | (Kind::Dim, 2) => Text,
        _ => Child::Other,
    }
}

/// Walks a whole model file.
pub(crate) fn scan(file: &[u8]) -> Result<(), Fault> {
    let mut cost = 0;
    walk(file, 0, file.len(), Kind::Model, &mut cost)
}

/// Reads a varint at `*at`, which must end before `end`.
pub(crate) fn varint(bytes: &[u8], at: &mut usize, end: usize) -> Result<u64, Fault> {
    let start = *at;
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        if *at >= end {
            let needed = (*at - start + 1) as u64;
            return Err(Fault::Truncated {
                at: start,
                needed,
                left: end - start,
            });
        }
        let byte = bytes[*at];
        *at += 1;
        if shift == 63 && byte > 1 {
            break;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Fault::Malformed {
        at: start,
        reason: "a number is longer than 64 bits",
    })
}

// Depth is bounded by the kinds: no kind contains itself.
fn walk(bytes: &[u8], start: usize, end: usize, kind: Kind, cost: &mut u64) -> Result<(), Fault> {
    let mut at = start;
    while at < end {
        let field_at = at;
        let key = varint(bytes, &mut at, end)?;
        let what = child(kind, key >> 3);
        let fixed = match key & 7 {
            0 => {
                varint(bytes, &mut at, end)?;
                if matches!(what, Child::Numbers) {
                    *cost += 16;
                }
                0
            }
            1 => 8,
            5 => 4,
            2 => varint(bytes, &mut at, end)?,
            _ => {
                return Err(Fault::Malformed {
                    at: field_at,
                    reason: "no such kind of field",
                });
            }
        };
        if key >> 3 == 0 {
            return Err(Fault::Malformed {
                at: field_at,
                reason: "fields are numbered from 1",
            });
        }
        if fixed > (end - at) as u64 {
            return Err(Fault::Truncated {
                at: field_at,
                needed: fixed,
                left: end - at,
            });
        }
        let length = fixed as usize;
        if key & 7 == 2 {
            match what {
                Child::Message(kind, size) => {
                    *cost += 2 * size as u64;
                    walk(bytes, at, at + length, kind, cost)?;
                }
                Child::Text if length > MAX_NAME => {
                    return Err(Fault::Malformed {
                        at: field_at,
                        reason: "a name is longer than 16384 bytes",
                    });
                }
                // Names are copied, and indexed in tables.
                Child::Text => *cost += 160 + 2 * length as u64,
                Child::Slice => *cost += 64,
                Child::Numbers => *cost += 16 * length as u64,
                Child::Other => {}
            }
        }
        at += length;
        if *cost > LIMIT {
            return Err(Fault::TooManyPieces { at: field_at });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_have_positions() {
        assert_eq!(scan(&[]), Ok(()));
        assert_eq!(
            scan(&[0x3a, 5, 0]),
            Err(Fault::Truncated {
                at: 0,
                needed: 5,
                left: 1
            })
        );
        assert_eq!(
            scan(&[8, 7, 0x80]),
            Err(Fault::Truncated {
                at: 2,
                needed: 2,
                left: 1
            })
        );
        assert!(matches!(scan(&[8, 7, 0x0b]), Err(Fault::Malformed { at: 2, .. })));
        assert!(matches!(scan(&[0xff; 11]), Err(Fault::Malformed { at: 0, .. })));
        assert!(matches!(scan(&[0x02, 0]), Err(Fault::Malformed { at: 0, .. })));
    }

    #[test]
    fn tiny_messages_cannot_take_all_memory() {
        let mut graph = Vec::new();
        for _ in 0..1_000_000 {
            graph.extend([0x0a, 0]);
        }
        let mut file = vec![0x3a];
        let mut length = graph.len();
        while length >= 0x80 {
            file.push(length as u8 | 0x80);
            length >>= 7;
        }
        file.push(length as u8);
        file.extend(graph);
        assert!(matches!(scan(&file), Err(Fault::TooManyPieces { .. })));
    }
}
