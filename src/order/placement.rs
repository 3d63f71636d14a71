//! Placements: a batch, dealt out to a number of ranks by an order, seen from one rank.

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use crate::degree::Grid;
use crate::error::{PlacementError, Result};
use crate::layout::Layout;
use crate::order::{DealOf, DynPlacement, TokenOrder};

/// Where the tokens of one batch are: made by a handler, shared by every tensor of the batch.
///
/// The types keep placements of different orders and layouts apart; everything else is a [`DynPlacement`], to which it
/// dereferences.
#[derive(Debug)]
pub struct Placement<O: TokenOrder, L: Layout> {
    data: Arc<DynPlacement>,
    batch: Arc<L::Batch>,
    deal: Arc<DealOf<O>>,
}

impl<O: TokenOrder, L: Layout> Placement<O, L> {
    /// Deals `batch` out to `ranks` ranks, seen from `rank`. Takes time in the number of documents.
    ///
    /// # Errors
    /// [`PlacementError::ZeroDegree`] without ranks, [`NoSuchRank`](crate::error::CommError::NoSuchRank) where `rank`
    /// is not one of them.
    pub fn new(batch: Arc<L::Batch>, ranks: usize, rank: usize) -> Result<Arc<Self>> {
        if ranks == 0 {
            return Err(PlacementError::ZeroDegree.into());
        }
        let table = O::table(&*batch, ranks);
        Self::with_table(batch, Grid::line(ranks), rank, table)
    }

    /// The same on a grid of ranks, with a table that was made elsewhere.
    ///
    /// # Errors
    /// [`PlacementError::Grid`] without ranks, [`NoSuchRank`](crate::error::CommError::NoSuchRank) where `rank` is not
    /// one of them, [`PlacementError::Table`] where the table deals out another number of tokens or ranks.
    pub fn with_table(batch: Arc<L::Batch>, grid: Grid, rank: usize, table: O::Table) -> Result<Arc<Self>> {
        let deal = Arc::new(DealOf::<O>(table));
        let data = DynPlacement::new(batch.clone(), L::KIND, grid, rank, deal.clone())?;
        Ok(Arc::new(Placement { data, batch, deal }))
    }

    /// A placement with its types, which must be those that it was made with.
    ///
    /// # Errors
    /// [`PlacementError::Types`] for another order or layout.
    pub fn typed(data: Arc<DynPlacement>) -> Result<Arc<Self>> {
        let (batch, deal): (Arc<dyn Any + Send + Sync>, Arc<dyn Any + Send + Sync>) =
            (data.batch().clone(), data.deal().clone());
        match (batch.downcast::<L::Batch>(), deal.downcast::<DealOf<O>>()) {
            (Ok(batch), Ok(deal)) if data.layout() == L::KIND => Ok(Arc::new(Placement { data, batch, deal })),
            _ => {
                let expected = format!("{} of layout {}", O::NAME, L::NAME);
                let found = format!("{} of layout {}", data.deal().name(), data.layout().name());
                Err(PlacementError::Types { expected, found }.into())
            }
        }
    }

    /// The batch.
    pub fn batch(&self) -> &Arc<L::Batch> {
        &self.batch
    }

    /// The order's data for this batch.
    pub fn table(&self) -> &O::Table {
        &self.deal.0
    }

    /// The placement without its types.
    pub fn data(&self) -> &Arc<DynPlacement> {
        &self.data
    }

    /// [`DynPlacement::expect_same`] of two placements of one order and layout.
    ///
    /// # Errors
    /// [`PlacementError::Mismatch`] with both names and placements.
    pub fn expect_same(
        self: &Arc<Self>,
        name: &'static str,
        other: &Arc<Self>,
        other_name: &'static str,
    ) -> Result<()> {
        self.data.expect_same(name, &other.data, other_name)
    }
}

impl<O: TokenOrder, L: Layout> Deref for Placement<O, L> {
    type Target = DynPlacement;

    fn deref(&self) -> &DynPlacement {
        &self.data
    }
}

impl<O: TokenOrder, L: Layout> fmt::Display for Placement<O, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.data.fmt(f)
    }
}
