//! Errors of batches.

use thiserror::Error;

/// What can be wrong with a batch.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum LayoutError {
    /// `cu_seqlens` must begin with 0.
    #[error("cu_seqlens starts at {first}, not at 0: pass the cumulative lengths with a leading 0")]
    CuSeqlensStart {
        /// The first entry.
        first: i64,
    },
    /// `cu_seqlens` must not decrease.
    #[error("cu_seqlens decreases from {previous} to {next} at entry {index}: entries are cumulative lengths")]
    CuSeqlensDecrease {
        /// Index of the smaller entry.
        index: usize,
        /// The entry before it.
        previous: i64,
        /// The entry.
        next: i64,
    },
    /// `cu_seqlens` has no entry at all.
    #[error("cu_seqlens is empty: it needs at least the entry 0")]
    CuSeqlensEmpty,
    /// The matrix has another number of rows than the documents.
    #[error("the documents have {expected} rows and the tensor has {found}: pass one row per stored token")]
    Rows {
        /// Rows that the batch has.
        expected: usize,
        /// Rows that came.
        found: usize,
    },
    /// Valid and stored lengths must be of the same documents.
    #[error("{valid} valid lengths but {stored} stored lengths: pass one of each per document")]
    DocumentCount {
        /// Number of valid lengths.
        valid: usize,
        /// Number of stored lengths.
        stored: usize,
    },
    /// A document cannot hold more valid tokens than it stores.
    #[error("document {document} has {valid} valid tokens but stores {stored}: the valid length must not be larger")]
    ValidLongerThanStored {
        /// Index of the document.
        document: usize,
        /// Its valid length.
        valid: usize,
        /// Its stored length.
        stored: usize,
    },
    /// Another number of features than the call needs.
    #[error("{what} has {found} features, expected {expected}")]
    Features {
        /// Which tensor.
        what: &'static str,
        /// Features needed.
        expected: usize,
        /// Features found.
        found: usize,
    },
    /// Another number of rows than the call needs.
    #[error("{what} has {found} rows, expected {expected}")]
    RowsOf {
        /// Which tensor.
        what: &'static str,
        /// Rows needed.
        expected: usize,
        /// Rows found.
        found: usize,
    },
    /// Rows that do not lie in the memory that was passed, or overlap.
    #[error(
        "{what}: {rows} rows of {cols} elements, {stride} from row to row, do not lie apart in {len} elements: pass memory that holds them"
    )]
    Memory {
        /// Which tensor.
        what: &'static str,
        /// Its rows.
        rows: usize,
        /// Its columns.
        cols: usize,
        /// Elements from one row to the next.
        stride: usize,
        /// Elements that were passed.
        len: usize,
    },
    /// Dense sequences must be of one length.
    #[error("sequence {sequence} has {length} tokens, sequence 0 has {first}: pad them, or use the layout thd")]
    Ragged {
        /// Index of the sequence.
        sequence: usize,
        /// Its length.
        length: usize,
        /// Length of the first sequence.
        first: usize,
    },
    /// Dense sequences have no padding.
    #[error(
        "sequence {sequence} has {valid} valid tokens in {stored} rows: a dense layout has no padding, use the layout thd"
    )]
    PaddedSequence {
        /// Index of the sequence.
        sequence: usize,
        /// Its valid length.
        valid: usize,
        /// Its stored length.
        stored: usize,
    },
    /// Lengths whose sum does not fit.
    #[error("the documents have more than {} rows in all: split the batch", i64::MAX)]
    TooLong,
}
