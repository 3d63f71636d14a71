//! Rotary embedding of shards: each row is rotated by the position that its placement gives it.

use std::sync::Arc;

use crate::error::{LayoutError, Result};
use crate::handler::{CpHandler, ElemShard};
use crate::layout::{Batch, Layout};
use crate::ops;
use crate::order::{Placement, Shard};
use crate::rope::{Rope, RopeTable};
use crate::strategy::CpStrategy;
use crate::tensor::{AccMatrix, Device, Matrix};

/// Cosines and sines for the rows of one placement.
pub struct Rotary<H: CpStrategy, L: Layout, D: Device> {
    placement: Arc<Placement<H::Order, L>>,
    cos: AccMatrix<D>,
    sin: AccMatrix<D>,
    interleaved: bool,
}

impl<H: CpStrategy, L: Layout, D: Device> Rotary<H, L, D> {
    fn new(device: &D, placement: &Arc<Placement<H::Order, L>>, table: &RopeTable<D::Acc>, interleaved: bool) -> Self {
        let matrix = |values: &[D::Acc]| Matrix::new(device.upload(values), placement.rows(), table.pairs);
        let (cos, sin) = (matrix(&table.cos), matrix(&table.sin));
        Rotary { placement: placement.clone(), cos, sin, interleaved }
    }

    /// Cosines, `[rows, pairs]`.
    pub fn cos(&self) -> &AccMatrix<D> {
        &self.cos
    }

    /// Sines, `[rows, pairs]`.
    pub fn sin(&self) -> &AccMatrix<D> {
        &self.sin
    }
}

impl<H: CpStrategy, L: Layout, C> CpHandler<H, L, C> {
    /// Positions that a rotary table for this batch must cover: the longest stored length, whatever the ranks.
    #[doc(alias = "get_rotary_seq_len")]
    pub fn rotary_seq_len(&self, batch: &L::Batch) -> usize {
        batch.longest()
    }

    /// Cosines and sines for this rank's rows; kept while the same batch comes again.
    pub fn get_emb_on_this_cp_rank<D: Device>(
        &self,
        device: &D,
        rope: &Rope,
        placement: &Arc<Placement<H::Order, L>>,
    ) -> Result<Arc<Rotary<H, L, D>>> {
        // One handler may serve devices that compute in different types.
        let key = rope.key() ^ size_of::<D::Acc>() as u64;
        self.cache.other(placement, key, || {
            let table = rope.table::<D::Acc>(&placement.positions());
            Ok(Rotary::new(device, placement, &table, rope.config().interleaved))
        })
    }

    /// The same for M-RoPE: `ids [rows, 3]` holds the time, height and width id of each of this rank's rows.
    ///
    /// # Errors
    /// If the embedding has no sections, or there are not 3 ids a row.
    pub fn get_emb_from_ids<D: Device>(
        &self,
        device: &D,
        rope: &Rope,
        ids: &Shard<H::Order, L, i64>,
    ) -> Result<Rotary<H, L, D>> {
        super::expect_features("the M-RoPE ids", 3, ids.matrix().cols())?;
        let table = rope.table_from_ids::<D::Acc>(ids.matrix())?;
        Ok(Rotary::new(device, ids.placement(), &table, rope.config().interleaved))
    }

    /// Rotates the heads of queries or keys in place. `x [rows, heads * dim]`.
    ///
    /// # Errors
    /// If `x` is of another placement, or a head is smaller than what is rotated.
    pub fn apply_rotary_pos_emb<D: ops::rotary::Rotary>(
        &self,
        device: &D,
        rotary: &Rotary<H, L, D>,
        x: &mut ElemShard<H, L, D>,
        heads: usize,
    ) -> Result<()> {
        self.rotate(device, rotary, x, heads, false)
    }

    /// The gradient of [`CpHandler::apply_rotary_pos_emb`], in place.
    pub fn apply_rotary_pos_emb_backward<D: ops::rotary::Rotary>(
        &self,
        device: &D,
        rotary: &Rotary<H, L, D>,
        dx: &mut ElemShard<H, L, D>,
        heads: usize,
    ) -> Result<()> {
        self.rotate(device, rotary, dx, heads, true)
    }

    fn rotate<D: ops::rotary::Rotary>(
        &self,
        device: &D,
        rotary: &Rotary<H, L, D>,
        x: &mut ElemShard<H, L, D>,
        heads: usize,
        inverse: bool,
    ) -> Result<()> {
        rotary.placement.expect_same("the rotary table", x.placement(), "the rotated tensor")?;
        let (cols, rotated) = (x.matrix().cols(), 2 * rotary.cos.cols());
        if heads == 0 || !cols.is_multiple_of(heads) || cols / heads < rotated {
            return Err(
                LayoutError::Features { what: "the rotated tensor", expected: heads * rotated, found: cols }.into()
            );
        }
        device.rotate(x.matrix_mut(), heads, &rotary.cos, &rotary.sin, rotary.interleaved, inverse);
        Ok(())
    }
}
