//! Errors: one enum per area, each message with the values in it and, at its end, what to do.

use thiserror::Error;

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Any error of this crate.
#[derive(Debug, Error, Clone, PartialEq)]
pub enum Error {
    /// A batch, its documents, or a matrix that does not match them.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A mask.
    #[error(transparent)]
    Mask(#[from] MaskError),
    /// Tensors of different placements in one call, or a placement that a handler did not make.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// Another rank failed, fell silent, or broke the protocol.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// A combination of strategy, layout and kernel (or degree) that does not work.
    #[error(transparent)]
    Support(#[from] SupportError),
    /// A model: its configuration, its weights, its tokens.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Training data, output folders, files.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A plan that does not hold together; a defect of the strategy that made it.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Documents that cannot be scheduled.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
}

impl Error {
    /// Whether the caller's input is wrong (exit code 2), as opposed to a failure at run time (exit code 1).
    pub fn is_input(&self) -> bool {
        let failed_data = |error: &DataError| matches!(error, DataError::Write { .. } | DataError::Diverged { .. });
        match self {
            Error::Comm(_) | Error::Plan(_) => false,
            Error::Data(error) => !failed_data(error),
            _ => true,
        }
    }
}

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
    /// Two things with the same content key.
    #[error("two tables of one placement have the same content hash: drop the handler and make a new one")]
    CacheClash,
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
    /// Numbers that do not go together.
    #[error("{0}")]
    Numbers(String),
}

/// What can be wrong with a model.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum ModelError {
    /// A token outside the vocabulary.
    #[error("token {token} at sequence or document {sequence}, position {position}: the vocabulary has ids 0..{vocab}")]
    Token {
        /// The id.
        token: i64,
        /// Sequence or document.
        sequence: usize,
        /// Position in it.
        position: usize,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A label outside the vocabulary.
    #[error("label {label}: the vocabulary has ids 0..{vocab}, and -100 for a label that does not count")]
    Label {
        /// The label.
        label: i64,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A configuration that cannot be used.
    #[error("{0}")]
    Config(String),
    /// Weights that cannot be used.
    #[error("{0}")]
    Weights(String),
}

/// What can be wrong with data and files.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum DataError {
    /// A file that cannot be read.
    #[error("cannot read {path}: {reason}; check the path, and that the file is whole and may be read")]
    Read {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// A file that cannot be written.
    #[error("cannot write {path}: {reason}")]
    Write {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// Data that cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// Training whose loss or gradient is no longer a number.
    #[error(
        "the run diverged at step {step}: loss {loss}, gradient norm {grad_norm}; use a smaller --lr, a longer --warmup or a smaller --clip"
    )]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// Its loss.
        loss: f64,
        /// Norm of its gradient.
        grad_norm: f64,
    },
}

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
    /// Ranks plan differently.
    #[error(
        "rank {own_rank} has plan {own:016x} and rank {rank} plan {found:016x}: give every rank the same strategy, batch \
         lengths, masks, solver effort, stages with their costs, and gradient wire"
    )]
    Disagree {
        /// This rank.
        own_rank: usize,
        /// The hash of its plan.
        own: u64,
        /// The other rank.
        rank: usize,
        /// The hash of its plan.
        found: u64,
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
