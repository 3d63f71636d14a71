//! Token orders: which rank holds which token, in which row. The only place with index arithmetic.
//!
//! Positions, slices of a batch, roll neighbours, attention tiles and transfers are all derived from an order.

mod contiguous;
mod deal;
mod dealt;
mod line;
mod natural;
mod placement;
mod rows;
mod shard;
mod striped;
mod zigzag;

pub use contiguous::Contiguous;
pub use deal::{Deal, DealOf};
pub use dealt::{Dealt, Grouped, Solved};
pub use line::LineOrder;
pub use natural::Natural;
pub use placement::{DynPlacement, Placement};
pub use rows::{RowDocuments, place_in_rows};
pub use shard::{DynShard, Full, Shard, laid_out, token_by_token};
pub use striped::Striped;
pub use zigzag::Zigzag;

use std::fmt;
use std::hash::Hash;

use crate::layout::Batch;

/// `len` tokens `start, start + step, ...`, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Run {
    /// First token.
    pub start: usize,
    /// Distance between tokens, at least 1.
    pub step: usize,
    /// Number of tokens.
    pub len: usize,
}

impl Run {
    /// The token at index `i` of the run.
    #[inline(always)]
    pub fn token(&self, i: usize) -> usize {
        self.start + i * self.step
    }

    /// One past the last token; `start` if there is none.
    pub fn end(&self) -> usize {
        if self.len == 0 { self.start } else { self.token(self.len - 1) + 1 }
    }
}

/// A rule that deals the tokens of a batch out to ranks.
///
/// Within a rank, tokens lie in ascending order. A dense batch is dealt out alike in every sequence, so that a rank
/// holds equally many rows of each. `ranks` is at least 1 and `rank` less than it. Every rank can compute every other
/// rank's tokens without communication.
pub trait TokenOrder: Copy + Default + fmt::Debug + PartialEq + Eq + Send + Sync + 'static {
    /// Name on the command line and in messages.
    const NAME: &'static str;

    /// What tells orders of the same name apart.
    const VARIANT: usize = 0;

    /// Whether the rule's table depends on what is attended, not on the batch alone.
    const FROM_MASKS: bool = false;

    /// What the rule needs to know about a batch beyond arithmetic; made once per batch.
    type Table: Clone + fmt::Debug + PartialEq + Eq + Hash + Send + Sync + 'static;

    /// The table of `batch` on `ranks` ranks.
    fn table(batch: &dyn Batch, ranks: usize) -> Self::Table;

    /// Whether a table is one of `batch` on `ranks` ranks.
    fn fits(batch: &dyn Batch, table: &Self::Table, ranks: usize) -> bool {
        *table == Self::table(batch, ranks)
    }

    /// Tokens of the rank.
    fn rows(batch: &dyn Batch, table: &Self::Table, ranks: usize, rank: usize) -> usize;

    /// Hands the rank's tokens to `each`, in local order. No run is empty or crosses a document.
    fn runs(batch: &dyn Batch, table: &Self::Table, ranks: usize, rank: usize, each: &mut dyn FnMut(Run));

    /// The token at index `local` of the rank.
    ///
    /// # Panics
    /// May panic if the rank has no such row.
    fn token(batch: &dyn Batch, table: &Self::Table, ranks: usize, rank: usize, local: usize) -> usize;

    /// The rank that holds `token`, and its index there.
    ///
    /// # Panics
    /// May panic if the batch has no such token.
    fn locate(batch: &dyn Batch, table: &Self::Table, ranks: usize, token: usize) -> (usize, usize);
}
