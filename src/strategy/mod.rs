//! Strategies: how a sequence is split over ranks, as a composition of three types.
//!
//! | part | says | examples |
//! |---|---|---|
//! | [`TokenOrder`] | which rank holds which token | [`Zigzag`](crate::order::Zigzag) |
//! | [`HeadExchange`] | whether heads are exchanged for tokens around attention | [`KeepHeads`], [`SwapHeads`] |
//! | [`KvExchange`] | how keys and values reach the queries | [`LocalKv`], [`RingKv`], [`GatherKv`], [`CastKv`], [`CastQueries`] |
//!
//! An exchange type differs from another only in the [`Program`]s that it writes; one executor
//! ([`crate::attention`]) runs them all. To add a strategy, implement [`CpStrategy`] for a type of your own with
//! existing or new parts, and [`Row`] for the layouts and kernels that it works with.

mod all_gather;
mod cast;
mod cast_queries;
mod dynamic;
mod magi;
mod object;
mod ring;
mod ring_ulysses;
pub mod select;
mod single;
mod support;
mod ulysses;

pub use all_gather::{AllGather, GatherKv};
pub use cast::CastKv;
pub use cast_queries::CastQueries;
pub use dynamic::Dynamic;
pub use magi::Magi;
pub use object::{DynStrategy, object};
pub use ring::{Ring, RingKv};
pub use ring_ulysses::RingUlysses;
pub use single::{LocalKv, Single};
pub use support::{Row, RunsOn, Supports};
pub use ulysses::Ulysses;

use std::fmt;
use std::hash::Hash;

use crate::degree::Grid;
use crate::error::{Result, SupportError};
use crate::heads::HeadExchange;
#[cfg(doc)]
use crate::heads::{KeepHeads, SwapHeads};
use crate::layout::Batch;
use crate::mask::Mask;
use crate::order::TokenOrder;
#[cfg(doc)]
use crate::plan::Step;
use crate::plan::{Program, View};

/// A way of splitting sequences over ranks.
pub trait CpStrategy: Clone + fmt::Debug + PartialEq + Send + Sync + 'static {
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

    /// How the ranks are grouped: the ranks of a group exchange heads if [`CpStrategy::Heads`] does, and keys and
    /// values go between groups. Groups of one rank unless the strategy says otherwise.
    fn grid(&self) -> Grid {
        Grid::line(self.degree())
    }

    /// Query heads that each rank attends with.
    ///
    /// # Errors
    /// [`SupportError::Heads`] if the ranks of a group cannot share them out.
    fn heads_per_rank(&self, q_heads: usize) -> Result<usize, SupportError> {
        Self::Heads::heads_per_rank(Self::NAME, q_heads, self.grid().inner)
    }

    /// Refuses settings that are out of their bounds, before anything is placed or planned.
    ///
    /// # Errors
    /// [`SupportError::Numbers`] with the setting and its bounds.
    fn check(&self) -> Result<(), SupportError> {
        self.kv().check()
    }

    /// The exchange of keys and values, with its settings if it has any.
    fn kv(&self) -> Self::Kv {
        Self::Kv::default()
    }

    /// What the order needs to know about a batch whose layers attend under `masks`, each with the number of layers
    /// that use it. Only orders that are data ([`TokenOrder::FROM_MASKS`]) look at the masks.
    ///
    /// # Errors
    /// If a mask does not fit the batch, or the batch cannot be dealt out.
    fn table(&self, batch: &dyn Batch, masks: &[(Mask, u64)]) -> Result<<Self::Order as TokenOrder>::Table> {
        let _ = masks;
        Ok(Self::Order::table(batch, self.degree()))
    }
}

/// How keys and values reach the queries, and their gradients the way back.
///
/// Both programs must pass [`crate::plan::check`] on every rank. Between two ranks, the n-th transfer that one posts to
/// send is for the n-th that the other posts to receive, whenever they are waited for; both posts have the same number
/// ([`Step::Post`]), which every message carries with the plan's hash. The hash of an exchange's settings is part of
/// its plans' hashes.
///
/// Where a program depends on what another rank solved, that rank may tell it when both make their plans: numbers of
/// [`KvExchange::tells`] go to [`KvExchange::hear`] of the other before either writes a program. A rank that plans by
/// itself hears nothing and must write the same programs.
pub trait KvExchange: Clone + Default + fmt::Debug + Hash + Send + Sync + 'static {
    /// Name in messages.
    const NAME: &'static str;

    /// Refuses settings that are out of their bounds, before anything is planned.
    ///
    /// # Errors
    /// [`SupportError::Numbers`] with the setting and its bounds.
    fn check(&self) -> Result<(), SupportError> {
        Ok(())
    }

    /// The ranks that the view's rank tells something, each once, with what it tells. Those are the ranks that say so
    /// in [`KvExchange::hears`] of theirs.
    fn tells(&self, view: &View) -> Vec<(usize, Vec<i64>)> {
        let _ = view;
        Vec::new()
    }

    /// The ranks that tell the view's rank something, each once, with how many numbers.
    fn hears(&self, view: &View) -> Vec<(usize, usize)> {
        let _ = view;
        Vec::new()
    }

    /// Takes what a rank tells, for programs of this view's rank to be written from: [`View::shared`] keeps it, in
    /// place of what would be worked out.
    ///
    /// # Errors
    /// What was expected, in words, if the numbers are out of their bounds.
    fn hear(&self, view: &View, from: usize, numbers: &[i64]) -> Result<(), String> {
        let _ = (view, from, numbers);
        Ok(())
    }

    /// The forward program of the view's rank.
    fn forward(&self, view: &View) -> Program;

    /// The backward program of the view's rank.
    fn backward(&self, view: &View) -> Program;
}

static_assertions::assert_eq_size!(LocalKv, RingKv, GatherKv, Single, ());
