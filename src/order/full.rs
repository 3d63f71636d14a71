//! Tensors of whole sequences.

use std::sync::Arc;

use crate::error::{LayoutError, Result};
use crate::layout::{Batch, Layout, LayoutKind};
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
