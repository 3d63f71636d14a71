//! Errors of combinations.

use thiserror::Error;

/// Combinations that do not work.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum SupportError {
    /// A name that does not exist.
    #[error("unknown {what} \"{name}\": choose one of {known}")]
    Unknown {
        /// `strategy`, `layout`, `kernel`, `order`.
        what: &'static str,
        /// The name.
        name: String,
        /// What exists, separated by commas.
        known: String,
    },
    /// A combination that is not in the table.
    #[error("{strategy} with layout {layout} and kernel {kernel} is not supported: {reason}; {suggestion} works")]
    Combination {
        /// The strategy.
        strategy: String,
        /// The layout.
        layout: String,
        /// The kernel.
        kernel: String,
        /// Why it cannot work.
        reason: &'static str,
        /// The smallest change that works.
        suggestion: String,
    },
    /// Query heads that ranks cannot exchange evenly.
    #[error(
        "{strategy} cannot run a model with {q_heads} query heads on {ranks} ranks that exchange heads: the number of \
         query heads must be a multiple of the degree of the head exchange; ring and all-gather take any number"
    )]
    Heads {
        /// The strategy.
        strategy: &'static str,
        /// Query heads.
        q_heads: usize,
        /// Ranks that exchange heads.
        ranks: usize,
    },
    /// A mask that a kernel cannot compute.
    #[error(
        "the mask lets queries of one sequence attend keys of another, which the kernel {kernel} does not compute: use \
         the kernel flash"
    )]
    AcrossSequences {
        /// The kernel.
        kernel: &'static str,
    },
    /// Something that this version does not have.
    #[error("{what} is not available: {instead}")]
    NotAvailable {
        /// What was asked for.
        what: String,
        /// What works.
        instead: String,
    },
    /// Threads that the system does not start.
    #[error(
        "the system does not start {threads} threads for one rank ({reason}): use fewer (--threads), or raise its limits \
         on processes and memory"
    )]
    Threads {
        /// Threads of a rank.
        threads: usize,
        /// What stood in the way.
        reason: String,
    },
    /// Memory that the system does not have.
    #[error(
        "{bytes} bytes of memory are needed for one rank, {owned} of which are there already, and the system does not have \
         the rest ({reason}): run fewer tokens at a time, or spread them over more ranks"
    )]
    Memory {
        /// Bytes in all.
        bytes: u64,
        /// Bytes that the device has already.
        owned: u64,
        /// What stood in the way.
        reason: String,
    },
    /// A GPU, or a library that it needs, which is not there.
    #[error("{0}")]
    Cuda(String),
    /// Numbers that do not go together.
    #[error("{0}")]
    Numbers(String),
}
