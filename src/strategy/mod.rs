//! Strategies: how a sequence is split over ranks, as a composition of three types.
//!
//! | part | says | examples |
//! |---|---|---|
//! | [`TokenOrder`] | which rank holds which token | [`Zigzag`](crate::order::Zigzag) |
//! | [`HeadExchange`] | whether heads are exchanged for tokens around attention | [`KeepHeads`] |
//! | [`KvExchange`] | how keys and values reach the queries | [`LocalKv`], [`RingKv`], [`GatherKv`], [`CastKv`] |
//!
//! An exchange type differs from another only in the [`Program`]s that it writes; one executor
//! ([`executor`]) runs them all. To add a strategy, implement [`CpStrategy`] for a type of your own with existing or
//! new parts, and [`Row`] for the layouts and kernels that it works with.

mod all_gather;
mod cast;
pub mod executor;
mod kernel;
mod ring;
mod single;
pub mod support;

pub use all_gather::{AllGather, GatherKv};
pub use cast::CastKv;
pub use kernel::{Flash, Kernel, LogSumExp, TileOperands, Unfused};
pub use ring::{Ring, RingKv};
pub use single::{LocalKv, Single};
pub use support::{Row, RunsOn, Supports};

use std::fmt;

use crate::error::{Result, SupportError};
use crate::order::TokenOrder;
use crate::plan::{Program, View};

/// A way of splitting sequences over ranks.
pub trait CpStrategy: Copy + fmt::Debug + PartialEq + Send + Sync + 'static {
    /// Which rank holds which token.
    type Order: TokenOrder;
    /// What happens to heads.
    type Heads: HeadExchange;
    /// What happens to keys and values.
    type Kv: KvExchange;

    /// Name on the command line and in messages.
    const NAME: &'static str;

    /// Number of ranks that share a sequence.
    fn degree(&self) -> usize;
}

/// Whether ranks exchange heads for tokens around attention.
pub trait HeadExchange: Copy + fmt::Debug + Send + Sync + 'static {
    /// Name in messages.
    const NAME: &'static str;

    /// Query heads that one of `ranks` ranks attends with, or why they cannot be shared out.
    fn heads_per_rank(q_heads: usize, ranks: usize) -> Result<usize, SupportError>;
}

/// Every rank attends with all heads of its own tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct KeepHeads;

impl HeadExchange for KeepHeads {
    const NAME: &'static str = "keep-heads";

    fn heads_per_rank(q_heads: usize, _ranks: usize) -> Result<usize, SupportError> {
        Ok(q_heads)
    }
}

/// How keys and values reach the queries, and their gradients the way back.
///
/// Both programs must pass [`crate::plan::check`] on every rank, and must list transfers between two ranks in the
/// same order on both sides.
pub trait KvExchange: Copy + fmt::Debug + Send + Sync + 'static {
    /// Name in messages.
    const NAME: &'static str;

    /// The forward program of the view's rank.
    fn forward(view: &View) -> Program;

    /// The backward program of the view's rank.
    fn backward(view: &View) -> Program;
}

static_assertions::assert_eq_size!(KeepHeads, LocalKv, RingKv, GatherKv, CastKv, Single, ());
