//! The place of a record in a file.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    pub start: u64,
    pub len: usize,
    /// The line where it starts, from 1.
    pub line: usize,
}
