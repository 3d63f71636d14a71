//! Errors between ranks.

use thiserror::Error;

/// What can go wrong between ranks.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum CommError {
    /// Another rank failed; it said why.
    #[error("rank {rank} failed: {reason}")]
    Poisoned {
        /// The rank that failed first.
        rank: usize,
        /// What it said.
        reason: String,
    },
    /// Another rank did not answer in time.
    #[error("rank {peer} was silent for {seconds} s in {operation} (step {step}): it is stuck or lost")]
    Deadline {
        /// The silent rank.
        peer: usize,
        /// Seconds waited.
        seconds: u64,
        /// The operation waited for.
        operation: &'static str,
        /// Number of this rank's operation.
        step: u64,
    },
    /// Another rank sent something else than expected.
    #[error(
        "rank {peer} sent {found} in {operation} (step {step}) where {expected} was expected: the ranks run different programs"
    )]
    Protocol {
        /// The sender.
        peer: usize,
        /// The operation.
        operation: &'static str,
        /// Number of this rank's operation.
        step: u64,
        /// What was expected.
        expected: String,
        /// What came.
        found: String,
    },
    /// An engine did not start.
    #[error("the ranks did not start: {reason}")]
    NotStarted {
        /// What stood in the way.
        reason: String,
    },
    /// A rank that does not exist.
    #[error("rank {rank} does not exist: there are {size}")]
    NoSuchRank {
        /// The rank.
        rank: usize,
        /// Number of ranks.
        size: usize,
    },
    /// A message from a rank to itself.
    #[error("rank {rank} exchanges with itself in {operation}: keep the buffer instead of sending it")]
    ToItself {
        /// The rank.
        rank: usize,
        /// The operation.
        operation: &'static str,
    },
    /// Counts that do not fit the ranks or the buffers of a collective.
    #[error("{operation} got {found} {what}, expected {expected}: pass one count per rank, and buffers to match")]
    Counts {
        /// The collective.
        operation: &'static str,
        /// What was counted.
        what: &'static str,
        /// How many there should be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// Splits of a group collective that do not go together.
    #[error("{operation}: {what}: give both ends of a transfer the same splits, and the ranks of a split in order")]
    Splits {
        /// The collective.
        operation: &'static str,
        /// What does not go together.
        what: String,
    },
}
