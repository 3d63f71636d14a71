//! A strategy as an object: its types end here, and what reads it is compiled once for all strategies.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::degree::Grid;
use crate::error::{Result, SupportError};
use crate::heads::HeadExchange;
use crate::layout::Batch;
use crate::mask::Mask;
use crate::order::{Deal, DealOf, TokenOrder};
use crate::plan::{Program, View};
use crate::strategy::{CpStrategy, KvExchange};

/// A [`CpStrategy`] without its types.
pub trait DynStrategy: fmt::Debug + Send + Sync {
    /// [`CpStrategy::NAME`].
    fn name(&self) -> &'static str;

    /// Name of its token order.
    fn order(&self) -> &'static str;

    /// [`CpStrategy::degree`].
    fn degree(&self) -> usize;

    /// [`CpStrategy::grid`].
    fn grid(&self) -> Grid;

    /// Whether the ranks of a group exchange heads ([`HeadExchange::SWAPS`]).
    fn swaps_heads(&self) -> bool;

    /// The ranks of a group that exchanges heads, if the types say how many ([`HeadExchange::RANKS`]).
    fn fixed_group(&self) -> Option<usize>;

    /// [`CpStrategy::heads_per_rank`].
    ///
    /// # Errors
    /// [`SupportError::Heads`] if the ranks of a group cannot share the heads out.
    fn heads_per_rank(&self, q_heads: usize) -> Result<usize, SupportError>;

    /// Whether placements depend on what is attended ([`TokenOrder::FROM_MASKS`]).
    fn places_by_masks(&self) -> bool;

    /// How a batch is dealt out ([`CpStrategy::table`]).
    ///
    /// # Errors
    /// If a mask does not fit the batch, or the batch cannot be dealt out.
    fn deal(&self, batch: &dyn Batch, masks: &[(Mask, u64)]) -> Result<Arc<dyn Deal>>;

    /// [`CpStrategy::check`].
    ///
    /// # Errors
    /// Settings out of their bounds.
    fn check(&self) -> Result<(), SupportError>;

    /// Hashes the exchange of keys and values with its settings.
    fn hash_exchange(&self, state: &mut dyn Hasher);

    /// [`KvExchange::tells`].
    fn tells(&self, view: &View) -> Vec<(usize, Vec<i64>)>;

    /// [`KvExchange::hears`].
    fn hears(&self, view: &View) -> Vec<(usize, usize)>;

    /// [`KvExchange::hear`].
    ///
    /// # Errors
    /// What was expected, in words, if the numbers are out of their bounds.
    fn hear(&self, view: &View, from: usize, numbers: &[i64]) -> Result<(), String>;

    /// The forward program of the view's rank.
    fn forward(&self, view: &View) -> Program;

    /// The backward program of the view's rank.
    fn backward(&self, view: &View) -> Program;
}

/// The object of a strategy. A wrapper, so that a strategy's methods do not meet those of the object.
#[derive(Debug)]
struct Object<H>(H);

/// `strategy` as an object.
pub fn object<H: CpStrategy>(strategy: H) -> Arc<dyn DynStrategy> {
    Arc::new(Object(strategy))
}

impl<H: CpStrategy> DynStrategy for Object<H> {
    fn name(&self) -> &'static str {
        H::NAME
    }

    fn order(&self) -> &'static str {
        H::Order::NAME
    }

    fn degree(&self) -> usize {
        self.0.degree()
    }

    fn grid(&self) -> Grid {
        self.0.grid()
    }

    fn swaps_heads(&self) -> bool {
        H::Heads::SWAPS
    }

    fn fixed_group(&self) -> Option<usize> {
        H::Heads::RANKS
    }

    fn heads_per_rank(&self, q_heads: usize) -> Result<usize, SupportError> {
        self.0.heads_per_rank(q_heads)
    }

    fn places_by_masks(&self) -> bool {
        H::Order::FROM_MASKS
    }

    fn deal(&self, batch: &dyn Batch, masks: &[(Mask, u64)]) -> Result<Arc<dyn Deal>> {
        Ok(Arc::new(DealOf::<H::Order>(self.0.table(batch, masks)?)))
    }

    fn check(&self) -> Result<(), SupportError> {
        self.0.check()
    }

    fn hash_exchange(&self, mut state: &mut dyn Hasher) {
        (H::Kv::NAME, self.0.kv()).hash(&mut state);
    }

    fn tells(&self, view: &View) -> Vec<(usize, Vec<i64>)> {
        self.0.kv().tells(view)
    }

    fn hears(&self, view: &View) -> Vec<(usize, usize)> {
        self.0.kv().hears(view)
    }

    fn hear(&self, view: &View, from: usize, numbers: &[i64]) -> Result<(), String> {
        self.0.kv().hear(view, from, numbers)
    }

    fn forward(&self, view: &View) -> Program {
        self.0.kv().forward(view)
    }

    fn backward(&self, view: &View) -> Program {
        self.0.kv().backward(view)
    }
}
