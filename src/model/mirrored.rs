//! Values on a device that the host knows too: token ids, labels and their weights.

use std::borrow::Cow;
use std::ops::Deref;
use std::sync::Arc;

use crate::error::Result;
use crate::layout::Layout;
use crate::order::{DynPlacement, DynShard, Placement, Shard, TokenOrder};
use crate::tensor::{Device, Element, Host, Matrix, Storage};

/// One rank's rows on a device, with the host's copy where they come from the host. Ids are checked there, so that
/// nothing waits for the device.
#[derive(Debug)]
pub struct DynMirrored<T, S = Host> {
    shard: DynShard<T, S>,
    host: Option<Vec<T>>,
}

impl<T: Element, S: Storage> DynMirrored<T, S> {
    /// Rows of the host as this rank's tokens of `placement`, copied to the device.
    ///
    /// # Errors
    /// [`PlacementError::Rows`](crate::error::PlacementError::Rows) for another number of rows than the rank has.
    pub fn new<D: Device<Storage = S>>(device: &D, rows: &Matrix<T>, placement: &Arc<DynPlacement>) -> Result<Self> {
        let on_device = Matrix::new(device.upload(rows), rows.rows(), rows.cols());
        Ok(DynMirrored { shard: DynShard::new(on_device, placement.clone())?, host: Some(rows.to_vec()) })
    }

    /// The same rows with other values, in the memory that these have.
    ///
    /// # Panics
    /// If there are not as many.
    pub(super) fn rewrite<D: Device<Storage = S>>(&mut self, device: &D, rows: Vec<T>) {
        device.write(&rows, self.shard.matrix_mut().view_mut());
        self.host = Some(rows);
    }

    /// Rows that only the device knows.
    pub fn of_shard(shard: DynShard<T, S>) -> Self {
        DynMirrored { shard, host: None }
    }

    /// The values, row by row; read from the device only where the host has no copy.
    ///
    /// # Errors
    /// Those of [`Device::read`].
    pub fn values<D: Device<Storage = S>>(&self, device: &D) -> Result<Cow<'_, [T]>> {
        match &self.host {
            Some(host) => Ok(Cow::Borrowed(host)),
            None => Ok(Cow::Owned(device.read(self.shard.matrix())?)),
        }
    }

    /// The rows on the device.
    pub fn shard(&self) -> &DynShard<T, S> {
        &self.shard
    }
}

impl<T, S> Deref for DynMirrored<T, S> {
    type Target = DynShard<T, S>;

    fn deref(&self) -> &DynShard<T, S> {
        &self.shard
    }
}

/// A [`DynMirrored`] of order `O` and layout `L`.
#[derive(Debug)]
pub struct Mirrored<O: TokenOrder, L: Layout, T, S = Host> {
    data: DynMirrored<T, S>,
    placement: Arc<Placement<O, L>>,
}

impl<O: TokenOrder, L: Layout, T: Element, S: Storage> Mirrored<O, L, T, S> {
    /// What was made from `placement`, with its types.
    ///
    /// # Errors
    /// [`PlacementError::Mismatch`](crate::error::PlacementError::Mismatch) for rows of another placement.
    pub fn typed(data: DynMirrored<T, S>, placement: &Arc<Placement<O, L>>) -> Result<Self> {
        placement.data().expect_same("the placement", data.placement(), "the tensor")?;
        Ok(Mirrored { data, placement: placement.clone() })
    }

    /// The rows on the device.
    pub fn matrix(&self) -> &Matrix<T, S> {
        self.data.matrix()
    }

    /// Where the rows belong.
    pub fn placement(&self) -> &Arc<Placement<O, L>> {
        &self.placement
    }

    /// The rows without their types.
    pub fn data(&self) -> &DynMirrored<T, S> {
        &self.data
    }
}

impl<O: TokenOrder, L: Layout, T: Element, S: Storage> From<Shard<O, L, T, S>> for Mirrored<O, L, T, S> {
    /// Rows that only the device knows.
    fn from(shard: Shard<O, L, T, S>) -> Self {
        let placement = shard.placement().clone();
        Mirrored { data: DynMirrored::of_shard(shard.into_data()), placement }
    }
}
