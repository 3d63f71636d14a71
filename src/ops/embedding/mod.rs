//! Token embedding: a row of the table per token.

mod cpu;

use crate::tensor::{AccMatrix, Buffer, Device, ElemMatrix};

/// Look-up and its gradient.
///
/// ```
/// use context_parallel::ops::embedding::Embedding;
/// use context_parallel::tensor::{Cpu, Device, Matrix};
///
/// let cpu = Cpu::<f32>::default();
/// let table = Matrix::from_slice(&[0.5, 1.5, 2.5], 3, 1);
/// let tokens = cpu.upload(&[2, 0, 2, 2, 0]);
/// assert_eq!(cpu.embed(&table, &tokens)[..], [2.5, 0.5, 2.5, 2.5, 0.5]);
///
/// let mut dtable = cpu.zero_matrix(3, 1);
/// let dy = Matrix::from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0], 5, 1);
/// cpu.embed_backward(&tokens, &dy, None, &mut dtable);
/// assert_eq!(dtable[..], [7.0, 0.0, 8.0]);
/// cpu.embed_backward(&tokens, &dy, Some(0), &mut dtable);
/// assert_eq!(dtable[..], [7.0, 0.0, 16.0]);
/// ```
pub trait Embedding: Device {
    /// Rows of `table [vocab, n]` for `tokens [rows]`. Ids must be in the vocabulary; callers check.
    fn embed(&self, table: &ElemMatrix<Self>, tokens: &Buffer<i64, Self::Storage>) -> ElemMatrix<Self>;

    /// Adds row `i` of `dy` to row `tokens[i]` of `dtable`, in order, except where the token is `skip` (padding).
    fn embed_backward(
        &self,
        tokens: &Buffer<i64, Self::Storage>,
        dy: &ElemMatrix<Self>,
        skip: Option<i64>,
        dtable: &mut AccMatrix<Self>,
    );
}
