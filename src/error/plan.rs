//! Errors of plans and schedules.

use thiserror::Error;

/// What can be wrong with a plan.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum PlanError {
    /// A check that failed, with the numbers.
    #[error("the plan of {strategy} is wrong: {what}")]
    Unsound {
        /// The strategy.
        strategy: &'static str,
        /// What does not hold.
        what: String,
    },
    /// A plan that another strategy made.
    #[error(
        "the plan is one of {found}, and the handler's strategy is {strategy}: make it with the handler that attends"
    )]
    OtherStrategy {
        /// The handler's strategy.
        strategy: &'static str,
        /// The plan's.
        found: &'static str,
    },
    /// A backward pass after another forward pass.
    #[error(
        "the forward pass attended by plan {forward:016x}, the backward pass is given plan {backward:016x}: pass the plan \
         (batch, mask, gradient wire) of the forward pass"
    )]
    OtherPlan {
        /// Hash of the forward pass's plan.
        forward: u64,
        /// Hash of the backward pass's.
        backward: u64,
    },
}

/// What can be wrong with documents that are to be scheduled over ranks.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum ScheduleError {
    /// Nothing to run on.
    #[error("a schedule over 0 ranks: use at least 1")]
    NoRanks,
    /// A document that does not fit even on all ranks.
    #[error(
        "document {document} of {length} tokens does not fit on {ranks} ranks of {tokens} tokens each: allow {needed} tokens per rank, use more ranks, or cut the document"
    )]
    DocumentTooLong {
        /// Index of the document.
        document: usize,
        /// Its length.
        length: usize,
        /// Number of ranks.
        ranks: usize,
        /// Tokens allowed per rank and micro-batch.
        tokens: usize,
        /// Tokens per rank that it needs on all ranks.
        needed: usize,
    },
    /// More tokens than the exact arithmetic holds.
    #[error("{total} tokens in one schedule, at most {most}: schedule them in several parts")]
    TooManyTokens {
        /// Tokens of all documents.
        total: u128,
        /// Most that can be scheduled.
        most: u128,
    },
    /// A makespan that nothing reaches.
    #[error("a makespan of {limit:.1} query-key pairs is asked for, but none is below {bound:.1}: allow at least that")]
    Makespan {
        /// What was asked for, in query-key pairs of the busiest ranks.
        limit: f64,
        /// The lower bound: all pairs, evenly over all ranks.
        bound: f64,
    },
}
