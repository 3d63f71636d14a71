//! Rotary embedding of shards: each row is rotated by the position that its placement gives it.

use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

use crate::comm::Communicator;
use crate::error::{LayoutError, Result};
use crate::handler::core::{MadeOf, expect_features};
use crate::handler::{CpHandler, ElemShard, HandlerRef};
use crate::layout::{Batch, Layout};
use crate::ops;
use crate::order::{DynPlacement, DynShardMut, Placement, Shard};
use crate::rope::{Rope, RopeTable};
use crate::strategy::CpStrategy;
use crate::tensor::{AccMatrix, Device, Matrix};

/// Cosines and sines for the rows of one placement, whatever its order and layout.
#[derive(Clone, Debug)]
pub struct RotaryTable<D: Device> {
    device: D,
    placement: Arc<DynPlacement>,
    cos: AccMatrix<D>,
    sin: AccMatrix<D>,
    interleaved: bool,
}

impl<D: Device> RotaryTable<D> {
    fn new(device: &D, placement: &Arc<DynPlacement>, table: &RopeTable<D::Acc>, interleaved: bool) -> Self {
        let matrix = |values: &[D::Acc]| Matrix::new(device.upload(values), placement.rows(), table.pairs);
        let (cos, sin) = (matrix(&table.cos), matrix(&table.sin));
        RotaryTable { device: device.clone(), placement: placement.clone(), cos, sin, interleaved }
    }

    /// Cosines, `[rows, pairs]`.
    pub fn cos(&self) -> &AccMatrix<D> {
        &self.cos
    }

    /// Sines, `[rows, pairs]`.
    pub fn sin(&self) -> &AccMatrix<D> {
        &self.sin
    }

    /// Rotates the heads of queries or keys in place.
    ///
    /// # Errors
    /// If `x` is of another placement, or a head is smaller than what is rotated.
    pub fn rotate<'x>(&self, x: impl Into<DynShardMut<'x, D::Elem, D::Storage>>, heads: usize) -> Result<()>
    where
        D: ops::rotary::Rotate,
    {
        self.turn(x.into(), heads, false)
    }

    /// The gradient of [`RotaryTable::rotate`], in place.
    ///
    /// # Errors
    /// Those of `rotate`.
    pub fn rotate_backward<'x>(&self, dx: impl Into<DynShardMut<'x, D::Elem, D::Storage>>, heads: usize) -> Result<()>
    where
        D: ops::rotary::Rotate,
    {
        self.turn(dx.into(), heads, true)
    }

    fn turn(&self, x: DynShardMut<'_, D::Elem, D::Storage>, heads: usize, inverse: bool) -> Result<()>
    where
        D: ops::rotary::Rotate,
    {
        self.placement.expect_same("the rotary table", x.placement(), "the rotated tensor")?;
        let (cols, rotated) = (x.cols(), 2 * self.cos.cols());
        if heads == 0 || !cols.is_multiple_of(heads) || cols / heads < rotated {
            return Err(
                LayoutError::Features { what: "the rotated tensor", expected: heads * rotated, found: cols }.into()
            );
        }
        self.device.rotate(x.into_view(), heads, self.cos.view(), self.sin.view(), self.interleaved, inverse);
        Ok(())
    }
}

impl<D: Device> HandlerRef<'_, D> {
    /// [`CpHandler::get_emb_on_this_cp_rank`].
    ///
    /// # Errors
    /// If the placement is not this handler's.
    pub fn rotary(self, rope: &Rope, placement: &Arc<DynPlacement>) -> Result<Arc<RotaryTable<D>>> {
        let device = self.device;
        self.core.other(device, placement, MadeOf::Rope(rope.clone()), || {
            let table = rope.table::<D::Acc>(&placement.positions());
            RotaryTable::new(device, placement, &table, rope.config().interleaved)
        })
    }
}

/// Cosines and sines for the rows of one placement: a [`RotaryTable`] that knows its strategy and layout.
#[derive(Clone, Debug)]
pub struct Rotary<H: CpStrategy, L: Layout, D: Device> {
    table: Arc<RotaryTable<D>>,
    types: PhantomData<(H, L)>,
}

impl<H: CpStrategy, L: Layout, D: Device> Rotary<H, L, D> {
    /// The table without its types.
    pub fn table(&self) -> &Arc<RotaryTable<D>> {
        &self.table
    }
}

impl<H: CpStrategy, L: Layout, D: Device> Deref for Rotary<H, L, D> {
    type Target = RotaryTable<D>;

    fn deref(&self) -> &RotaryTable<D> {
        &self.table
    }
}

impl<H: CpStrategy, L: Layout, D: Device, C: Communicator<D::Storage>> CpHandler<H, L, D, C> {
    /// Positions that a rotary table for this batch must cover: the longest stored length, whatever the ranks.
    #[doc(alias = "get_rotary_seq_len")]
    pub fn rotary_seq_len(&self, batch: &L::Batch) -> usize {
        batch.longest()
    }

    /// Cosines and sines for this rank's rows; kept while the same batch comes again.
    ///
    /// # Errors
    /// If the placement is not this handler's.
    pub fn get_emb_on_this_cp_rank(
        &self,
        rope: &Rope,
        placement: &Arc<Placement<H::Order, L>>,
    ) -> Result<Rotary<H, L, D>> {
        Ok(Rotary { table: self.by_ref().rotary(rope, placement.data())?, types: PhantomData })
    }

    /// The same for M-RoPE: `ids [rows, 3]` holds the time, height and width id of each of this rank's rows.
    ///
    /// # Errors
    /// If the embedding has no sections, or there are not 3 ids a row.
    pub fn get_emb_from_ids(&self, rope: &Rope, ids: &Shard<H::Order, L, i64>) -> Result<Rotary<H, L, D>> {
        expect_features("the M-RoPE ids", 3, ids.matrix().cols())?;
        let table = rope.table_from_ids::<D::Acc>(ids.matrix())?;
        let table = RotaryTable::new(&self.device, ids.placement().data(), &table, rope.config().interleaved);
        Ok(Rotary { table: Arc::new(table), types: PhantomData })
    }

    /// Rotates the heads of queries or keys in place. `x [rows, heads * dim]`.
    ///
    /// # Errors
    /// If `x` is of another placement, or a head is smaller than what is rotated.
    pub fn apply_rotary_pos_emb(&self, rotary: &Rotary<H, L, D>, x: &mut ElemShard<H, L, D>, heads: usize) -> Result<()>
    where
        D: ops::rotary::Rotate,
    {
        rotary.rotate(x.data_mut(), heads)
    }

    /// The gradient of [`CpHandler::apply_rotary_pos_emb`], in place.
    ///
    /// # Errors
    /// Those of `apply_rotary_pos_emb`.
    pub fn apply_rotary_pos_emb_backward(
        &self,
        rotary: &Rotary<H, L, D>,
        dx: &mut ElemShard<H, L, D>,
        heads: usize,
    ) -> Result<()>
    where
        D: ops::rotary::Rotate,
    {
        rotary.rotate_backward(dx.data_mut(), heads)
    }
}
