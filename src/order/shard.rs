//! Tensors that know where their tokens are: one rank's rows.

use std::sync::Arc;

use crate::error::Result;
use crate::layout::Layout;
use crate::order::{DynShard, Placement, TokenOrder};
use crate::tensor::{Element, Host, Matrix, Storage};

/// One rank's rows in token order `O`: `[rows, features]` of `T` in layout `L`.
#[derive(Debug)]
pub struct Shard<O: TokenOrder, L: Layout, T, S = Host> {
    data: DynShard<T, S>,
    placement: Arc<Placement<O, L>>,
}

impl<O: TokenOrder, L: Layout, T: Element, S: Storage> Shard<O, L, T, S> {
    /// Rows of `matrix` as this rank's tokens of `placement`.
    ///
    /// # Errors
    /// [`PlacementError::Rows`](crate::error::PlacementError::Rows) for another number of rows than the rank has.
    pub fn new(matrix: Matrix<T, S>, placement: Arc<Placement<O, L>>) -> Result<Self> {
        Ok(Shard { data: DynShard::new(matrix, placement.data().clone())?, placement })
    }

    /// What was made from `placement`, with its types.
    ///
    /// # Errors
    /// [`PlacementError::Mismatch`](crate::error::PlacementError::Mismatch) for rows of another placement.
    pub fn typed(data: DynShard<T, S>, placement: &Arc<Placement<O, L>>) -> Result<Self> {
        placement.data().expect_same("the placement", data.placement(), "the tensor")?;
        Ok(Shard { data, placement: placement.clone() })
    }

    /// The rows.
    pub fn matrix(&self) -> &Matrix<T, S> {
        self.data.matrix()
    }

    /// The rows.
    pub fn matrix_mut(&mut self) -> &mut Matrix<T, S> {
        self.data.matrix_mut()
    }

    /// The rows.
    pub fn into_matrix(self) -> Matrix<T, S> {
        self.data.into_matrix()
    }

    /// Where the rows belong.
    pub fn placement(&self) -> &Arc<Placement<O, L>> {
        &self.placement
    }

    /// The shard without its types.
    pub fn data(&self) -> &DynShard<T, S> {
        &self.data
    }

    /// The shard without its types.
    pub fn into_data(self) -> DynShard<T, S> {
        self.data
    }

    /// The shard without its types.
    pub fn data_mut(&mut self) -> &mut DynShard<T, S> {
        &mut self.data
    }
}

impl<O: TokenOrder, L: Layout, T: Element, S: Storage> Clone for Shard<O, L, T, S> {
    fn clone(&self) -> Self {
        Shard { data: self.data.clone(), placement: self.placement.clone() }
    }
}
