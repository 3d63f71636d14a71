//! Moving rows between whole sequences and shards, and the adjoints of that.

use std::sync::Arc;

use crate::comm::{Communicator, Operation, gather, scatter};
use crate::error::{LayoutError, Result};
use crate::handler::core::MadeOf;
use crate::handler::{CpHandler, HandlerRef};
use crate::layout::Layout;
use crate::ops::rows::MoveRows;
use crate::order::{DynPlacement, DynShard, Full, Placement, Shard};
use crate::strategy::CpStrategy;
use crate::tensor::{Element, Host, Matrix, Real};

/// A gradient of whole sequences that every rank holds in full: of a loss that all ranks computed alike.
#[derive(Debug)]
pub struct Replicated<T>(pub T);

/// A gradient of whole sequences of which every rank holds one summand: of a loss whose terms are spread over ranks.
#[derive(Debug)]
pub struct Partial<T>(pub T);

/// A gradient of whole sequences, as [`CpHandler::combine_adjoint`] takes it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a gradient of whole sequences: say whether every rank holds all of it (`Replicated`) or a summand (`Partial`)"
)]
pub trait FullGradient<L: Layout, T: Real, D: MoveRows> {
    /// The whole sequences.
    fn full(&self) -> &Full<L, T, D::Storage>;

    /// This rank's rows of the gradient.
    ///
    /// # Errors
    /// Failures of other ranks.
    fn to_shard(&self, handler: HandlerRef<'_, D>, placement: &Arc<DynPlacement>) -> Result<DynShard<T, D::Storage>>;
}

impl<L: Layout, T: Real, D: MoveRows> FullGradient<L, T, D> for Replicated<&Full<L, T, D::Storage>> {
    fn full(&self) -> &Full<L, T, D::Storage> {
        self.0
    }

    fn to_shard(&self, handler: HandlerRef<'_, D>, placement: &Arc<DynPlacement>) -> Result<DynShard<T, D::Storage>> {
        handler.dispatch(placement, self.0.matrix())
    }
}

impl<L: Layout, T: Real, D: MoveRows> FullGradient<L, T, D> for Partial<&Full<L, T, D::Storage>> {
    fn full(&self) -> &Full<L, T, D::Storage> {
        self.0
    }

    fn to_shard(&self, handler: HandlerRef<'_, D>, placement: &Arc<DynPlacement>) -> Result<DynShard<T, D::Storage>> {
        handler.summed(placement, self.0.matrix())
    }
}

impl<D: MoveRows> HandlerRef<'_, D> {
    /// [`CpHandler::dispatch`]: this rank's rows of whole sequences, which come in the order of the layout.
    ///
    /// # Errors
    /// If the placement is not this handler's; [`LayoutError::Rows`] for another number of rows than the batch has
    /// tokens.
    pub fn dispatch<T: Element>(
        self,
        placement: &Arc<DynPlacement>,
        full: &Matrix<T, D::Storage>,
    ) -> Result<DynShard<T, D::Storage>> {
        let rows = self.core.other(self.device, placement, MadeOf::Dealt, || {
            self.device.rows(&placement.full_rows_of(placement.rank()))
        })?;
        self.core.cut(self.device, placement, &rows, full)
    }

    /// [`CpHandler::combine`]: the rows of whole sequences, in the order of the layout.
    ///
    /// # Errors
    /// If the placement is not this handler's, or ranks combine or attended other things; failures of other ranks.
    pub fn combine<T: Element>(self, shard: &DynShard<T, D::Storage>) -> Result<Matrix<T, D::Storage>> {
        let device = self.device;
        let (placement, cols) = (shard.placement(), shard.matrix().cols());
        self.core.expect_own(placement)?;
        let counts: Vec<usize> = (0..self.ranks()).map(|rank| placement.rows_of(rank) * cols).collect();
        let mine = device.duplicate(shard.matrix().buffer());
        let mut full = device.matrix(placement.batch().tokens(), cols);
        let rows = self.core.other(device, placement, MadeOf::DealtToAll, || -> Vec<D::Rows> {
            (0..self.ranks()).map(|rank| device.rows(&placement.full_rows_of(rank))).collect()
        })?;
        let operation = Operation::under("combine", self.digest(placement.hash()));
        for (rank, part) in gather(self.comm, operation, mine, &counts)?.into_iter().enumerate() {
            let part = Matrix::new(part, placement.rows_of(rank), cols);
            device.scatter_rows(part.view(), &rows[rank], full.view_mut());
        }
        Ok(full)
    }

    /// This rank's rows of the sum over ranks, in rank order, of `full`, the rows of whole sequences.
    ///
    /// # Errors
    /// If the placement is not this handler's, `full` has not its rows, or ranks sum or attended other things; failures
    /// of other ranks.
    pub fn summed<T: Real>(
        self,
        placement: &Arc<DynPlacement>,
        full: &Matrix<T, D::Storage>,
    ) -> Result<DynShard<T, D::Storage>> {
        let device = self.device;
        self.core.expect_own(placement)?;
        let (expected, found) = (placement.batch().tokens(), full.rows());
        if expected != found {
            return Err(LayoutError::Rows { expected, found }.into());
        }
        let cols = full.cols();
        let mut by_rank = device.matrix(full.rows(), cols);
        let rows = self.core.other(device, placement, MadeOf::ByRank, || {
            let all = (0..self.ranks()).flat_map(|rank| placement.full_rows_of(rank).runs().to_vec());
            device.rows(&all.collect())
        })?;
        device.gather_rows(full.view(), &rows, by_rank.view_mut());
        let counts: Vec<usize> = (0..self.ranks()).map(|rank| placement.rows_of(rank) * cols).collect();
        let operation = Operation::under("combine_adjoint", self.digest(placement.hash()));
        let sum = scatter(self.comm, operation, by_rank.buffer(), &counts)?;
        DynShard::new(Matrix::new(sum, placement.rows(), cols), placement.clone())
    }
}

/// A batch as the data loader gives it; every rank has all of it.
#[derive(Debug)]
pub struct WholeBatch<L: Layout> {
    /// Token ids.
    pub tokens: Option<Full<L, i64>>,
    /// Labels; -100 does not count.
    pub labels: Option<Full<L, i64>>,
    /// Weight of each label.
    pub loss_mask: Option<Full<L, f32>>,
    /// Positions.
    pub position_ids: Option<Full<L, i64>>,
    /// One row per query, one feature per key: only the queries are cut, the keys stay in natural order.
    pub attention_mask: Option<Full<L, u8>>,
}

/// The same, this rank's rows only.
#[derive(Debug)]
pub struct LocalBatch<H: CpStrategy, L: Layout> {
    /// Token ids.
    pub tokens: Option<Shard<H::Order, L, i64>>,
    /// Labels; -100 does not count.
    pub labels: Option<Shard<H::Order, L, i64>>,
    /// Weight of each label.
    pub loss_mask: Option<Shard<H::Order, L, f32>>,
    /// Positions.
    pub position_ids: Option<Shard<H::Order, L, i64>>,
    /// One row per query of this rank, one feature per key of the whole batch.
    pub attention_mask: Option<Shard<H::Order, L, u8>>,
}

impl<L: Layout> Default for WholeBatch<L> {
    fn default() -> Self {
        WholeBatch { tokens: None, labels: None, loss_mask: None, position_ids: None, attention_mask: None }
    }
}

impl<H: CpStrategy, L: Layout, D: MoveRows, C: Communicator<D::Storage>> CpHandler<H, L, D, C> {
    /// This rank's rows of whole sequences that every rank has: a copy, without communication.
    ///
    /// # Errors
    /// If `full` is of another batch than the placement.
    pub fn dispatch<T: Element>(
        &self,
        placement: &Arc<Placement<H::Order, L>>,
        full: &Full<L, T, D::Storage>,
    ) -> Result<Shard<H::Order, L, T, D::Storage>> {
        super::expect_batch(placement, &**full.batch())?;
        Shard::typed(self.by_ref().dispatch(placement.data(), full.matrix())?, placement)
    }

    /// The whole sequences from every rank's shard, on every rank. Rows are gathered, not summed: all bits survive.
    ///
    /// # Errors
    /// If the shard is not of this handler's ranks, or ranks combine or attended other things; failures of other ranks.
    pub fn combine<T: Element>(&self, shard: &Shard<H::Order, L, T, D::Storage>) -> Result<Full<L, T, D::Storage>> {
        Full::new(self.by_ref().combine(shard.data())?, shard.placement().batch().clone())
    }

    /// The adjoint of [`CpHandler::dispatch`]: the gradient of whole sequences that every rank holds, from the
    /// gradients of all shards.
    pub fn dispatch_adjoint<T: Element>(
        &self,
        gradient: &Shard<H::Order, L, T, D::Storage>,
    ) -> Result<Replicated<Full<L, T, D::Storage>>> {
        self.combine(gradient).map(Replicated)
    }

    /// The adjoint of [`CpHandler::combine`]: the gradient of this rank's shard. A [`Replicated`] gradient is cut, a
    /// [`Partial`] one is summed over ranks, in rank order.
    pub fn combine_adjoint<T: Real>(
        &self,
        placement: &Arc<Placement<H::Order, L>>,
        gradient: impl FullGradient<L, T, D>,
    ) -> Result<Shard<H::Order, L, T, D::Storage>> {
        super::expect_batch(placement, &**gradient.full().batch())?;
        Shard::typed(gradient.to_shard(self.by_ref(), placement.data())?, placement)
    }

    /// This rank's rows of every field of a batch; of an attention mask, its query rows.
    #[doc(alias = "get_thd_batch_on_this_cp_rank")]
    pub fn get_batch_on_this_cp_rank(
        &self,
        placement: &Arc<Placement<H::Order, L>>,
        batch: &WholeBatch<L>,
    ) -> Result<LocalBatch<H, L>>
    where
        D: MoveRows<Storage = Host>,
    {
        Ok(LocalBatch {
            tokens: self.cut(placement, &batch.tokens)?,
            labels: self.cut(placement, &batch.labels)?,
            loss_mask: self.cut(placement, &batch.loss_mask)?,
            position_ids: self.cut(placement, &batch.position_ids)?,
            attention_mask: self.cut(placement, &batch.attention_mask)?,
        })
    }

    #[allow(clippy::type_complexity)]
    fn cut<T: Element>(
        &self,
        placement: &Arc<Placement<H::Order, L>>,
        field: &Option<Full<L, T, D::Storage>>,
    ) -> Result<Option<Shard<H::Order, L, T, D::Storage>>> {
        field.as_ref().map(|full| self.dispatch(placement, full)).transpose()
    }
}
