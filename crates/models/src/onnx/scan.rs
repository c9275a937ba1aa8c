//! What decoding a file will cost, found before it is decoded. An empty submessage takes two bytes in the file and hundreds
//! in memory, so a small file could ask for a lot; this walk over the wire format adds up the memory and stops at a limit.

use super::error::Problem;

/// Bytes of memory that an import may still take.
pub(crate) struct Budget {
    pub left: u64,
    pub limit: u64,
}

impl Budget {
    /// For a file of `bytes`, which is in memory itself: 3 times as much, and 192 MiB.
    pub(crate) fn new(bytes: u64) -> Self {
        let limit = bytes.saturating_mul(3).saturating_add(192 << 20);
        Self { left: limit, limit }
    }

    /// Takes bytes, or says that there are too few.
    pub(crate) fn charge(&mut self, bytes: u64) -> Result<(), Problem> {
        match self.left.checked_sub(bytes) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(Problem::Memory { limit: self.limit }),
        }
    }

    /// Makes room: what a second file brings, or what was given back.
    pub(crate) fn grow(&mut self, bytes: u64) {
        self.left = self.left.saturating_add(bytes);
        self.limit = self.limit.max(self.left);
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Model,
    Opset,
    Graph,
    Node,
    Attribute,
    Tensor,
    Entry,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    Dim,
}

/// What a length-delimited field holds.
enum Field {
    /// A message; memory for one, with what the graph makes of it later.
    Message(Kind, u64),
    /// A string.
    Text,
    /// Packed variable-length integers.
    Varints,
    /// Packed numbers of fixed size: as large in memory.
    Fixed,
    /// Bytes that are not copied, or a field that is skipped.
    Free,
}

fn field(kind: Kind, number: u64) -> Field {
    use Field::*;
    match (kind, number) {
        (Kind::Model, 2) => Text,
        (Kind::Model, 7) => Message(Kind::Graph, 1024),
        (Kind::Model, 8) => Message(Kind::Opset, 128),
        (Kind::Opset, 1) => Text,
        (Kind::Graph, 1) => Message(Kind::Node, 2048),
        (Kind::Graph, 2) => Text,
        (Kind::Graph, 5) => Message(Kind::Tensor, 1024),
        (Kind::Graph, 11 | 12) => Message(Kind::ValueInfo, 1024),
        (Kind::Graph, 15) => Message(Kind::Entry, 64),
        (Kind::Node, 1..=4 | 7) => Text,
        (Kind::Node, 5) => Message(Kind::Attribute, 1024),
        (Kind::Attribute, 1) => Text,
        (Kind::Attribute, 5) => Message(Kind::Tensor, 1024),
        (Kind::Attribute, 7) => Fixed,
        (Kind::Attribute, 8) => Varints,
        (Kind::Tensor, 1 | 5 | 7) => Varints,
        (Kind::Tensor, 4 | 10) => Fixed,
        (Kind::Tensor, 8) => Text,
        (Kind::Tensor, 13) => Message(Kind::Entry, 256),
        (Kind::Entry, 1 | 2) => Text,
        (Kind::ValueInfo, 1) => Text,
        (Kind::ValueInfo, 2) => Message(Kind::Type, 256),
        (Kind::Type, 1) => Message(Kind::TensorType, 256),
        (Kind::TensorType, 2) => Message(Kind::Shape, 64),
        (Kind::Shape, 1) => Message(Kind::Dim, 128),
        (Kind::Dim, 2) => Text,
        _ => Free,
    }
}

/// Charges the budget with what decoding a model takes.
pub(crate) fn scan(bytes: &[u8], budget: &mut Budget) -> Result<(), Problem> {
    message(bytes, 0, Kind::Model, budget)
}

/// One message, which begins at `base` of the file. Calls itself to the fixed depth of the schema.
fn message(bytes: &[u8], base: usize, kind: Kind, budget: &mut Budget) -> Result<(), Problem> {
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let key = varint(bytes, base, &mut at)?;
        let length = match key & 7 {
            0 => {
                varint(bytes, base, &mut at)?;
                budget.charge(16)?;
                continue;
            }
            1 => 8,
            2 => varint(bytes, base, &mut at)?,
            5 => 4,
            other => {
                let detail = format!("the field at byte {} has the wire type {other}", base + start);
                return Err(Problem::Malformed { detail });
            }
        };
        let left = (bytes.len() - at) as u64;
        if length > left {
            return Err(Problem::Truncated {
                at: base + start,
                needed: length,
                left,
            });
        }
        let inner = &bytes[at..at + length as usize];
        if key & 7 != 2 {
            budget.charge(2 * length)?;
        } else {
            match field(kind, key >> 3) {
                Field::Message(kind, cost) => {
                    budget.charge(cost)?;
                    message(inner, base + at, kind, budget)?;
                }
                Field::Text => budget.charge(2 * length + 128)?,
                // one byte can be a number of eight, and a vector that grows takes up to twice its length
                Field::Varints => budget.charge(16 * length)?,
                Field::Fixed => budget.charge(length)?,
                Field::Free => {}
            }
        }
        at += inner.len();
    }
    Ok(())
}

fn varint(bytes: &[u8], base: usize, at: &mut usize) -> Result<u64, Problem> {
    let start = *at;
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let Some(byte) = bytes.get(*at) else {
            return Err(Problem::Truncated {
                at: base + start,
                needed: 1,
                left: 0,
            });
        };
        *at += 1;
        value |= u64::from(byte & 127).checked_shl(shift).unwrap_or(0);
        if byte & 128 == 0 {
            return Ok(value);
        }
    }
    Err(Problem::Malformed {
        detail: format!("the number at byte {} has no end", base + start),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan_with(bytes: &[u8], left: u64) -> Result<u64, Problem> {
        let mut budget = Budget { left, limit: left };
        scan(bytes, &mut budget).map(|()| left - budget.left)
    }

    #[test]
    fn many_empty_nodes_are_dear() {
        // field 7 (graph) of 200 bytes: 100 times field 1 (node) of length 0
        let mut bytes = vec![7 << 3 | 2, 200, 1];
        bytes.extend([1 << 3 | 2, 0].repeat(100));
        assert!(scan_with(&bytes, 1 << 20).unwrap() > 200_000);
        assert!(matches!(scan_with(&bytes, 100_000), Err(Problem::Memory { .. })));
    }

    #[test]
    fn broken_bytes_are_found() {
        assert!(matches!(
            scan_with(&[7 << 3 | 2, 5, 0], 1000),
            Err(Problem::Truncated {
                at: 0,
                needed: 5,
                left: 1
            })
        ));
        assert!(matches!(
            scan_with(&[255; 20], 1000),
            Err(Problem::Malformed { .. })
        ));
        assert!(matches!(
            scan_with(&[7 << 3 | 3], 1000),
            Err(Problem::Malformed { .. })
        ));
        assert_eq!(scan_with(&[], 0).unwrap(), 0);
    }
}
