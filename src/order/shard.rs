//! Tensors that know where their tokens are: whole sequences, and one rank's rows.

use std::sync::Arc;

use crate::error::{LayoutError, PlacementError, Result};
use crate::layout::{Batch, Layout};
use crate::order::{Placement, TokenOrder};
use crate::tensor::{Element, Host, Matrix, Storage};

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

impl<L: Layout, T: Element> Full<L, T, Host> {
    /// Rows that come sequence by sequence (`[B, S]`, as token batches do), put into the order of layout `L`.
    pub fn from_batch_first(values: &[T], features: usize, batch: Arc<L::Batch>) -> Result<Self> {
        let tokens = batch.tokens();
        if values.len() != tokens * features {
            return Err(LayoutError::Rows { expected: tokens, found: values.len() / features.max(1) }.into());
        }
        let mut matrix = Matrix::from_slice(values, tokens, features);
        if !L::TOKEN_MAJOR {
            for token in 0..tokens {
                let row = L::row(batch.documents(), tokens, token);
                matrix.row_mut(row).copy_from_slice(&values[token * features..(token + 1) * features]);
            }
        }
        Full::new(matrix, batch)
    }

    /// The rows sequence by sequence, whatever the layout.
    pub fn to_batch_first(&self) -> Vec<T> {
        let (tokens, documents) = (self.batch.tokens(), self.batch.documents());
        (0..tokens).flat_map(|token| self.matrix.row(L::row(documents, tokens, token)).iter().copied()).collect()
    }
}

/// One rank's rows in token order `O`: `[rows, features]` of `T` in layout `L`.
#[derive(Debug)]
pub struct Shard<O: TokenOrder, L: Layout, T, S = Host> {
    matrix: Matrix<T, S>,
    placement: Arc<Placement<O, L>>,
}

impl<O: TokenOrder, L: Layout, T: Element, S: Storage> Shard<O, L, T, S> {
    /// Rows of `matrix` as this rank's tokens of `placement`.
    pub fn new(matrix: Matrix<T, S>, placement: Arc<Placement<O, L>>) -> Result<Self> {
        match placement.rows() == matrix.rows() {
            true => Ok(Shard { matrix, placement }),
            false => {
                Err(PlacementError::Rows { rank: placement.rank(), expected: placement.rows(), found: matrix.rows() }
                    .into())
            }
        }
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
    pub fn placement(&self) -> &Arc<Placement<O, L>> {
        &self.placement
    }
}
