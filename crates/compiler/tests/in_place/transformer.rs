//! The two halves of a transformer's block.
