//! One rank's rows without types of order and layout: owned, borrowed, and borrowed to be written.

use std::sync::Arc;

use crate::error::{PlacementError, Result};
use crate::order::DynPlacement;
use crate::tensor::{Element, Host, Matrix, MatrixMut, MatrixRef, Storage};

/// A [`Shard`](crate::order::Shard) without its types.
#[derive(Debug)]
pub struct DynShard<T, S = Host> {
    matrix: Matrix<T, S>,
    placement: Arc<DynPlacement>,
}

impl<T: Element, S: Storage> DynShard<T, S> {
    /// Rows of `matrix` as this rank's tokens of `placement`.
    ///
    /// # Errors
    /// [`PlacementError::Rows`] for another number of rows than the rank has.
    pub fn new(matrix: Matrix<T, S>, placement: Arc<DynPlacement>) -> Result<Self> {
        expect_rows(&placement, matrix.rows())?;
        Ok(DynShard { matrix, placement })
    }

    /// The rows.
    pub fn matrix(&self) -> &Matrix<T, S> {
        &self.matrix
    }

    /// The rows.
    pub fn matrix_mut(&mut self) -> &mut Matrix<T, S> {
        &mut self.matrix
    }

    /// The rows.
    pub fn into_matrix(self) -> Matrix<T, S> {
        self.matrix
    }

    /// Where the rows belong.
    pub fn placement(&self) -> &Arc<DynPlacement> {
        &self.placement
    }
}

impl<T: Element, S: Storage> Clone for DynShard<T, S> {
    fn clone(&self) -> Self {
        DynShard { matrix: self.matrix.clone(), placement: self.placement.clone() }
    }
}

/// A [`DynShard`] that is borrowed, or some columns of one.
#[derive(Debug)]
pub struct DynShardRef<'a, T, S = Host> {
    view: MatrixRef<'a, T, S>,
    placement: &'a Arc<DynPlacement>,
}

impl<T, S> Clone for DynShardRef<'_, T, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, S> Copy for DynShardRef<'_, T, S> {}

/// A [`DynShard`] that is borrowed to be written, or some columns of one.
#[derive(Debug)]
pub struct DynShardMut<'a, T, S = Host> {
    view: MatrixMut<'a, T, S>,
    placement: &'a Arc<DynPlacement>,
}

fn expect_rows(placement: &DynPlacement, found: usize) -> Result<()> {
    match placement.rows() == found {
        true => Ok(()),
        false => Err(PlacementError::Rows { rank: placement.rank(), expected: placement.rows(), found }.into()),
    }
}

impl<'a, T: Element, S: Storage> DynShardRef<'a, T, S> {
    /// Rows of a view as this rank's tokens of `placement`.
    ///
    /// # Errors
    /// [`PlacementError::Rows`] for another number of rows than the rank has.
    pub fn new(view: MatrixRef<'a, T, S>, placement: &'a Arc<DynPlacement>) -> Result<Self> {
        expect_rows(placement, view.rows())?;
        Ok(DynShardRef { view, placement })
    }

    /// The rows.
    pub fn view(&self) -> MatrixRef<'a, T, S> {
        self.view
    }

    /// Where the rows belong.
    pub fn placement(&self) -> &'a Arc<DynPlacement> {
        self.placement
    }
}

impl<'a, T: Element, S: Storage> DynShardMut<'a, T, S> {
    /// Rows of a view as this rank's tokens of `placement`.
    ///
    /// # Errors
    /// [`PlacementError::Rows`] for another number of rows than the rank has.
    pub fn new(view: MatrixMut<'a, T, S>, placement: &'a Arc<DynPlacement>) -> Result<Self> {
        expect_rows(placement, view.rows())?;
        Ok(DynShardMut { view, placement })
    }

    /// The rows.
    pub fn into_view(self) -> MatrixMut<'a, T, S> {
        self.view
    }

    /// Number of columns (features).
    pub fn cols(&self) -> usize {
        self.view.cols()
    }

    /// Where the rows belong.
    pub fn placement(&self) -> &'a Arc<DynPlacement> {
        self.placement
    }
}

impl<'a, T: Element, S: Storage> From<&'a DynShard<T, S>> for DynShardRef<'a, T, S> {
    fn from(shard: &'a DynShard<T, S>) -> Self {
        DynShardRef { view: shard.matrix.view(), placement: &shard.placement }
    }
}

impl<'a, T: Element, S: Storage> From<&'a mut DynShard<T, S>> for DynShardMut<'a, T, S> {
    fn from(shard: &'a mut DynShard<T, S>) -> Self {
        DynShardMut { view: shard.matrix.view_mut(), placement: &shard.placement }
    }
}
