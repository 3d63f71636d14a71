//! Errors of masks.

use thiserror::Error;

/// What can be wrong with a mask.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum MaskError {
    /// Two slices attend the same cell.
    #[error(
        "mask slices {first} and {second} both attend query {query}, key {key}: every cell may be attended once, cut one of them"
    )]
    Overlap {
        /// Index of one slice.
        first: usize,
        /// Index of the other.
        second: usize,
        /// A query in both.
        query: i64,
        /// A key in both.
        key: i64,
    },
    /// A slice reaches past the batch.
    #[error("mask slice {slice} covers {what} {start}..{end}, but the batch has tokens 0..{tokens}")]
    OutOfRange {
        /// Index of the slice.
        slice: usize,
        /// `queries` or `keys`.
        what: &'static str,
        /// First token.
        start: i64,
        /// One past the last token.
        end: i64,
        /// Tokens of the batch.
        tokens: usize,
    },
    /// A slice's range runs backwards.
    #[error("mask slice {slice} has {what} {start}..{end}: the start must not be after the end")]
    Backwards {
        /// Index of the slice.
        slice: usize,
        /// `queries` or `keys`.
        what: &'static str,
        /// Its start.
        start: i64,
        /// Its end.
        end: i64,
    },
    /// Queries and keys of other documents.
    #[error(
        "queries of {queries} documents and keys of {keys}: a mask that goes by documents needs both of each, use a length of \
         0 where there are none"
    )]
    Documents {
        /// Documents of the queries.
        queries: usize,
        /// Documents of the keys.
        keys: usize,
    },
    /// A window of no tokens.
    #[error("a window of 0 tokens: use at least 1, the token itself")]
    EmptyWindow,
    /// Blocks of no tokens.
    #[error("blocks of 0 tokens: use at least 1")]
    EmptyBlock,
    /// A node of a tree that comes before the one that it continues.
    #[error("node {node} continues node {parent}, which does not come before it: list parents before their nodes")]
    Parent {
        /// Index of the node.
        node: usize,
        /// Index of its parent.
        parent: usize,
    },
    /// One prefix length per document is needed.
    #[error("{found} prefix lengths for {expected} documents: pass one per document")]
    PrefixCount {
        /// Documents of the batch.
        expected: usize,
        /// Lengths passed.
        found: usize,
    },
}
