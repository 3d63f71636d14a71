//! Token orders: which rank holds which token, in which row. The only place with index arithmetic.
//!
//! Positions, slices of a batch, roll neighbours, attention tiles and transfers are all derived from an order.

mod contiguous;
mod deal;
mod dealt;
mod dyn_placement;
mod dyn_shard;
mod full;
mod line;
mod natural;
mod owners;
mod placement;
mod rows;
mod run;
mod shard;
mod striped;
mod zigzag;

pub use contiguous::Contiguous;
pub use deal::{Deal, DealOf};
pub use dealt::{Dealt, Grouped, Solved};
pub use dyn_placement::DynPlacement;
pub use dyn_shard::{DynShard, DynShardMut, DynShardRef};
pub use full::{Full, laid_out, token_by_token};
pub use line::LineOrder;
pub use natural::Natural;
pub use placement::Placement;
pub use rows::{RowDocuments, place_in_rows};
pub use run::{Rows, Run};
pub use shard::Shard;
pub use striped::Striped;
pub use zigzag::Zigzag;

use std::fmt;
use std::hash::Hash;

use crate::layout::Batch;

/// A rule that deals the tokens of a batch out to ranks.
///
/// The rule is written once, as [`TokenOrder::runs`]; everything else about where a token is follows from it
/// ([`DynPlacement`]). Within a rank, tokens lie in ascending order. A dense batch is dealt out alike in every
/// sequence, so that a rank holds equally many rows of each. `ranks` is at least 1 and `rank` less than it. Every rank
/// can compute every other rank's tokens without communication.
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

    /// Hands the rank's tokens to `each`, in local order. No run is empty or crosses a document.
    fn runs(batch: &dyn Batch, table: &Self::Table, ranks: usize, rank: usize, each: &mut dyn FnMut(Run));
}
