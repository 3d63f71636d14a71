//! Errors of where tensors are placed.

use thiserror::Error;

use crate::degree::Grid;

/// What can be wrong with where tensors are placed.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum PlacementError {
    /// Two shards of different batches, degrees or ranks meet in one call.
    #[error("{left_name} is placed as {left} and {right_name} as {right}: dispatch both with the same placement")]
    Mismatch {
        /// One tensor.
        left_name: &'static str,
        /// Its placement.
        left: String,
        /// The other tensor.
        right_name: &'static str,
        /// Its placement.
        right: String,
    },
    /// A shard has another number of rows than its placement says.
    #[error("a shard of {found} rows for a placement that gives rank {rank} {expected} rows")]
    Rows {
        /// The rank.
        rank: usize,
        /// Rows of the placement.
        expected: usize,
        /// Rows of the tensor.
        found: usize,
    },
    /// The strategy's degree is not the number of ranks.
    #[error(
        "{strategy} is made for {degree} ranks but the communicator has {size}: use a degree of {size}, or split the communicator"
    )]
    Degree {
        /// Name of the strategy.
        strategy: &'static str,
        /// Its degree.
        degree: usize,
        /// Ranks of the communicator.
        size: usize,
    },
    /// Levels whose product is not a number of ranks.
    #[error("a grid of {}x{} ranks: use at least 1 on each level, and a product that is a number of ranks", grid.outer, grid.inner)]
    Grid {
        /// The grid.
        grid: Grid,
    },
    /// A strategy whose grid is not one of its ranks.
    #[error(
        "{strategy} has a degree of {degree} and a grid of {grid} ranks: let CpStrategy::grid give as many ranks as CpStrategy::degree"
    )]
    DegreeOfGrid {
        /// Name of the strategy.
        strategy: &'static str,
        /// Its degree.
        degree: usize,
        /// Its grid.
        grid: Grid,
    },
    /// A placement that another rank made.
    #[error(
        "the batch is placed for rank {found} of {found_ranks}, and this is rank {rank} of {ranks}: place it with the handler that uses it"
    )]
    Rank {
        /// This rank.
        rank: usize,
        /// Ranks of the handler.
        ranks: usize,
        /// The placement's rank.
        found: usize,
        /// Ranks of the placement.
        found_ranks: usize,
    },
    /// A placement whose ranks are grouped or numbered otherwise than the strategy's.
    #[error(
        "the batch is placed on {found} ranks (groups x ranks of a group), and {strategy} works on {expected}: place it with the handler that uses it"
    )]
    OtherGrid {
        /// Name of the strategy.
        strategy: &'static str,
        /// Its grid.
        expected: Grid,
        /// The grid of the placement.
        found: Grid,
    },
    /// A placement of other types than are asked for.
    #[error("the placement is {found}, and not {expected}: place the batch with the handler that uses it")]
    Types {
        /// Order and layout that are asked for.
        expected: String,
        /// Order and layout of the placement.
        found: String,
    },
    /// A degree of 0.
    #[error("a context-parallel degree of 0: use at least 1")]
    ZeroDegree,
    /// Ranges that are not every token once.
    #[error(
        "token {token} is held by {}: give every token of the batch to exactly one rank",
        if *missing { "no rank" } else { "more than one rank, or the batch has no such token" }
    )]
    Cover {
        /// The first token that is wrong.
        token: usize,
        /// Whether no rank holds it.
        missing: bool,
    },
    /// A table that was made of something else.
    #[error(
        "the {order} table was not made for a batch of {tokens} tokens on {ranks} ranks: make it from this batch, for as many ranks"
    )]
    Table {
        /// Name of the token order.
        order: &'static str,
        /// Tokens of the batch.
        tokens: usize,
        /// Ranks that the batch is to be dealt out to.
        ranks: usize,
    },
    /// A group that does not fit the batch or its ranks.
    #[error("document {document} is to run on ranks {first}..{} of {ranks} ranks: use a document of the batch, and at least one rank of those there are", first + degree)]
    Group {
        /// The document.
        document: usize,
        /// The first rank.
        first: usize,
        /// Number of ranks.
        degree: usize,
        /// Ranks that there are.
        ranks: usize,
    },
}
