//! A token order together with its table for one batch, as an object: the types end here.

use std::any::Any;
use std::fmt;
use std::hash::{Hash, Hasher};

use crate::layout::Batch;
use crate::order::{Run, TokenOrder};

/// How one batch is dealt out, whatever the token order: [`TokenOrder`] with its table inside.
pub trait Deal: Any + fmt::Debug + Send + Sync {
    /// [`TokenOrder::NAME`].
    fn name(&self) -> &'static str;

    /// [`TokenOrder::fits`].
    fn fits(&self, batch: &dyn Batch, ranks: usize) -> bool;

    /// [`TokenOrder::runs`].
    fn runs(&self, batch: &dyn Batch, ranks: usize, rank: usize, each: &mut dyn FnMut(Run));

    /// Hashes the order and the table.
    fn hash_into(&self, state: &mut dyn Hasher);
}

/// The deal of order `O` with this table.
#[derive(Debug)]
pub struct DealOf<O: TokenOrder>(pub O::Table);

impl<O: TokenOrder> Deal for DealOf<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn fits(&self, batch: &dyn Batch, ranks: usize) -> bool {
        O::fits(batch, &self.0, ranks)
    }

    fn runs(&self, batch: &dyn Batch, ranks: usize, rank: usize, each: &mut dyn FnMut(Run)) {
        O::runs(batch, &self.0, ranks, rank, each);
    }

    fn hash_into(&self, mut state: &mut dyn Hasher) {
        (O::NAME, O::VARIANT, &self.0).hash(&mut state);
    }
}
