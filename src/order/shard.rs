//! Tensors that know where their tokens are: whole sequences, and one rank's rows.

use std::sync::Arc;

use crate::error::{LayoutError, PlacementError, Result};
use crate::layout::{Batch, Layout, LayoutKind};
use crate::order::{DynPlacement, Placement, TokenOrder};
use crate::tensor::{Element, Host, Matrix, MatrixMut, MatrixRef, Storage};

/// Whole sequences in natural order: `[tokens, features]` of `T` in layout `L`.
#[derive(Debug)]
pub struct Full<L: Layout, T, S = Host> {
    matrix: Matrix<T, S>,
    batch: Arc<L::Batch>,
}

impl<L: Layout, T: Element, S: Storage> Full<L, T, S> {
    /// Rows of `matrix` as the tokens of `batch`, in the order of layout `L`.
    pub fn new(matrix: Matrix<T, S>, batch: Arc<L::Batch>) -> Result<Self> {
        match batch.tokens() == matrix.rows() {
            true => Ok(Full { matrix, batch }),
            false => Err(LayoutError::Rows { expected: batch.tokens(), found: matrix.rows() }.into()),
        }
    }

    /// The rows.
    pub fn matrix(&self) -> &Matrix<T, S> {
        &self.matrix
    }

    /// The rows.
    pub fn into_matrix(self) -> Matrix<T, S> {
        self.matrix
    }

    /// The batch.
    pub fn batch(&self) -> &Arc<L::Batch> {
        &self.batch
    }
}

impl<L: Layout, T: Element, S: Storage> Clone for Full<L, T, S> {
    fn clone(&self) -> Self {
        Full { matrix: self.matrix.clone(), batch: self.batch.clone() }
    }
}

impl<L: Layout, T: Element> Full<L, T, Host> {
    /// Rows that come sequence by sequence (`[B, S]`, as token batches do), put into the order of layout `L`.
    pub fn from_batch_first(values: &[T], features: usize, batch: Arc<L::Batch>) -> Result<Self> {
        Full::new(laid_out(values, features, &*batch, L::KIND)?, batch)
    }

    /// The rows sequence by sequence, whatever the layout.
    pub fn to_batch_first(&self) -> Vec<T> {
        token_by_token(&self.matrix, &*self.batch, L::KIND)
    }
}

/// Rows that come token by token, put into the order of a layout.
///
/// # Errors
/// [`LayoutError::Rows`] if there are not `features` values for each token.
pub fn laid_out<T: Element>(
    values: &[T],
    features: usize,
    batch: &dyn Batch,
    layout: LayoutKind,
) -> Result<Matrix<T, Host>> {
    let tokens = batch.tokens();
    if values.len() != tokens * features {
        return Err(LayoutError::Rows { expected: tokens, found: values.len() / features.max(1) }.into());
    }
    let mut matrix = Matrix::from_slice(values, tokens, features);
    if !layout.is_token_major() {
        for token in 0..tokens {
            let row = layout.row(batch.documents(), tokens, token);
            matrix.row_mut(row).copy_from_slice(&values[token * features..(token + 1) * features]);
        }
    }
    Ok(matrix)
}

/// The rows of a whole batch token by token, whatever the layout: undoes [`laid_out`].
pub fn token_by_token<T: Element>(matrix: &Matrix<T, Host>, batch: &dyn Batch, layout: LayoutKind) -> Vec<T> {
    let (tokens, documents) = (batch.tokens(), batch.documents());
    (0..tokens).flat_map(|token| matrix.row(layout.row(documents, tokens, token)).iter().copied()).collect()
}

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
    /// [`PlacementError::Rows`] for another number of rows than the rank has.
    pub fn new(matrix: Matrix<T, S>, placement: Arc<Placement<O, L>>) -> Result<Self> {
        Ok(Shard { data: DynShard::new(matrix, placement.data().clone())?, placement })
    }

    /// What was made from `placement`, with its types.
    ///
    /// # Errors
    /// [`PlacementError::Mismatch`] for rows of another placement.
    pub fn typed(data: DynShard<T, S>, placement: &Arc<Placement<O, L>>) -> Result<Self> {
        placement.data().expect_same("the placement", &data.placement, "the tensor")?;
        Ok(Shard { data, placement: placement.clone() })
    }

    /// The rows.
    pub fn matrix(&self) -> &Matrix<T, S> {
        &self.data.matrix
    }

    /// The rows.
    pub fn matrix_mut(&mut self) -> &mut Matrix<T, S> {
        &mut self.data.matrix
    }

    /// The rows.
    pub fn into_matrix(self) -> Matrix<T, S> {
        self.data.matrix
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

/// A [`Shard`] without its types.
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
