//! Token embedding: a row of the table per token.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::ops::op::op;
use crate::tensor::{AccMut, Device, ElemMut, ElemRef, MatrixRef};

op! {
    /// Look-up and its gradient. An id below 0 stands for no token.
    ///
    /// ```
    /// use context_parallel::ops::embedding::Embedding;
    /// use context_parallel::tensor::{Cpu, Device, Matrix};
    ///
    /// let cpu = Cpu::<f32>::default();
    /// let table = Matrix::from_slice(&[0.5, 1.5, 2.5], 3, 1);
    /// let (tokens, mut y) = (Matrix::from_slice(&[2, 0, 2, -1, 0], 5, 1), cpu.matrix(5, 1));
    /// cpu.embed(table.view(), tokens.view(), y.view_mut());
    /// assert_eq!(y[..], [2.5, 0.5, 2.5, 0.0, 0.5]);
    ///
    /// let mut dtable = cpu.zero_matrix(3, 1);
    /// let dy = Matrix::from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0], 5, 1);
    /// cpu.embed_backward(tokens.view(), dy.view(), None, dtable.view_mut());
    /// assert_eq!(dtable[..], [7.0, 0.0, 4.0]);
    /// cpu.embed_backward(tokens.view(), dy.view(), Some(0), dtable.view_mut());
    /// assert_eq!(dtable[..], [7.0, 0.0, 8.0]);
    /// ```
    pub trait Embedding: Device {
        /// `y [rows, n]`: rows of `table [vocab, n]` for `tokens [rows, 1]`, zeros where there is none. Ids must be in
        /// the vocabulary; callers check.
        fn embed(
            &self,
            table: ElemRef<'_, Self>,
            tokens: MatrixRef<'_, i64, Self::Storage>,
            y: ElemMut<'_, Self>,
        );

        /// Adds row `i` of `dy` to row `tokens[i]` of `dtable`, in order, except where there is no token or it is
        /// `skip` (padding).
        fn embed_backward(
            &self,
            tokens: MatrixRef<'_, i64, Self::Storage>,
            dy: ElemRef<'_, Self>,
            skip: Option<i64>,
            dtable: AccMut<'_, Self>,
        );
    }
}
