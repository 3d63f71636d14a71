//! Errors of batches, masks, and where tensors are placed.

use thiserror::Error;

use crate::degree::Grid;

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
