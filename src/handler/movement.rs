//! Moving rows between whole sequences and shards, and the adjoints of that.

use std::sync::Arc;

use crate::comm::{Collectives, Communicator};
use crate::error::Result;
use crate::handler::CpHandler;
use crate::layout::Layout;
use crate::ops::rows::Rows;
use crate::order::{Full, Placement, Shard};
use crate::strategy::CpStrategy;
use crate::tensor::{Element, Matrix, Real};

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
pub trait FullGradient<L: Layout, T: Real, D: Rows> {
    /// This rank's rows of the gradient.
    fn to_shard<H: CpStrategy, C: Communicator<D::Storage>>(
        self,
        handler: &CpHandler<H, L, C>,
        device: &D,
        placement: &Arc<Placement<H::Order, L>>,
    ) -> Result<Shard<H::Order, L, T, D::Storage>>;
}

impl<L: Layout, T: Real, D: Rows> FullGradient<L, T, D> for Replicated<&Full<L, T, D::Storage>> {
    fn to_shard<H: CpStrategy, C: Communicator<D::Storage>>(
        self,
        handler: &CpHandler<H, L, C>,
        device: &D,
        placement: &Arc<Placement<H::Order, L>>,
    ) -> Result<Shard<H::Order, L, T, D::Storage>> {
        handler.dispatch(device, placement, self.0)
    }
}

impl<L: Layout, T: Real, D: Rows> FullGradient<L, T, D> for Partial<&Full<L, T, D::Storage>> {
    fn to_shard<H: CpStrategy, C: Communicator<D::Storage>>(
        self,
        handler: &CpHandler<H, L, C>,
        device: &D,
        placement: &Arc<Placement<H::Order, L>>,
    ) -> Result<Shard<H::Order, L, T, D::Storage>> {
        let full = self.0.matrix();
        super::expect_batch(placement, self.0.batch())?;
        let cols = full.cols();
        let mut by_rank = device.matrix(full.rows(), cols);
        let rows: Vec<usize> = (0..handler.ranks()).flat_map(|rank| placement.full_rows_of(rank)).collect();
        device.gather_rows(full, &rows, &mut by_rank, 0);
        let counts: Vec<usize> = (0..handler.ranks()).map(|rank| placement.rows_of(rank) * cols).collect();
        let sum = handler.comm().reduce_scatter_v(by_rank.buffer(), &counts)?;
        Shard::new(Matrix::new(sum, placement.rows(), cols), placement.clone())
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

impl<H: CpStrategy, L: Layout, C> CpHandler<H, L, C> {
    /// This rank's rows of whole sequences that every rank has: a copy, without communication.
    ///
    /// # Errors
    /// If `full` is of another batch than the placement.
    pub fn dispatch<T: Element, D: Rows>(
        &self,
        device: &D,
        placement: &Arc<Placement<H::Order, L>>,
        full: &Full<L, T, D::Storage>,
    ) -> Result<Shard<H::Order, L, T, D::Storage>> {
        super::expect_batch(placement, full.batch())?;
        let mut matrix = device.matrix(placement.rows(), full.matrix().cols());
        device.gather_rows(full.matrix(), &placement.full_rows_of(placement.rank()), &mut matrix, 0);
        Shard::new(matrix, placement.clone())
    }

    /// The whole sequences from every rank's shard, on every rank. Rows are gathered, not summed: all bits survive.
    pub fn combine<T: Element, D: Rows>(
        &self,
        device: &D,
        shard: &Shard<H::Order, L, T, D::Storage>,
    ) -> Result<Full<L, T, D::Storage>>
    where
        C: Communicator<D::Storage>,
    {
        let (placement, cols) = (shard.placement(), shard.matrix().cols());
        let counts: Vec<usize> = (0..self.ranks()).map(|rank| placement.rows_of(rank) * cols).collect();
        let mine = device.duplicate(shard.matrix().buffer());
        let rows: usize = counts.iter().sum::<usize>() / cols.max(1);
        let mut full = device.matrix(rows, cols);
        for (rank, part) in self.comm.all_gather_v(mine, &counts)?.into_iter().enumerate() {
            let part = Matrix::new(part, placement.rows_of(rank), cols);
            device.scatter_rows(&part, &placement.full_rows_of(rank), &mut full, 0);
        }
        Full::new(full, placement.batch().clone())
    }

    /// The adjoint of [`CpHandler::dispatch`]: the gradient of whole sequences that every rank holds, from the
    /// gradients of all shards.
    pub fn dispatch_adjoint<T: Element, D: Rows>(
        &self,
        device: &D,
        gradient: &Shard<H::Order, L, T, D::Storage>,
    ) -> Result<Replicated<Full<L, T, D::Storage>>>
    where
        C: Communicator<D::Storage>,
    {
        self.combine(device, gradient).map(Replicated)
    }

    /// The adjoint of [`CpHandler::combine`]: the gradient of this rank's shard. A [`Replicated`] gradient is cut, a
    /// [`Partial`] one is summed over ranks, in rank order.
    pub fn combine_adjoint<T: Real, D: Rows>(
        &self,
        device: &D,
        placement: &Arc<Placement<H::Order, L>>,
        gradient: impl FullGradient<L, T, D>,
    ) -> Result<Shard<H::Order, L, T, D::Storage>>
    where
        C: Communicator<D::Storage>,
    {
        gradient.to_shard(self, device, placement)
    }

    /// This rank's rows of every field of a batch; of an attention mask, its query rows.
    pub fn get_batch_on_this_cp_rank<D: Rows<Storage = crate::tensor::Host>>(
        &self,
        device: &D,
        placement: &Arc<Placement<H::Order, L>>,
        batch: &WholeBatch<L>,
    ) -> Result<LocalBatch<H, L>> {
        Ok(LocalBatch {
            tokens: self.cut(device, placement, &batch.tokens)?,
            labels: self.cut(device, placement, &batch.labels)?,
            loss_mask: self.cut(device, placement, &batch.loss_mask)?,
            position_ids: self.cut(device, placement, &batch.position_ids)?,
            attention_mask: self.cut(device, placement, &batch.attention_mask)?,
        })
    }

    #[allow(clippy::type_complexity)]
    fn cut<T: Element, D: Rows>(
        &self,
        device: &D,
        placement: &Arc<Placement<H::Order, L>>,
        field: &Option<Full<L, T, D::Storage>>,
    ) -> Result<Option<Shard<H::Order, L, T, D::Storage>>> {
        field.as_ref().map(|full| self.dispatch(device, placement, full)).transpose()
    }
}
