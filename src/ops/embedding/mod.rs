//! Token embedding: a row of the table per token.

mod cpu;

use crate::tensor::{AccMatrix, Buffer, Device, ElemMatrix};

/// Look-up and its gradient.
pub trait Embedding: Device {
    /// Rows of `table [vocab, n]` for `tokens [rows]`. Ids must be in the vocabulary; callers check.
    fn embed(&self, table: &ElemMatrix<Self>, tokens: &Buffer<i64, Self::Storage>) -> ElemMatrix<Self>;

    /// Adds row `i` of `dy` to row `tokens[i]` of `dtable`, in order.
    fn embed_backward(&self, tokens: &Buffer<i64, Self::Storage>, dy: &ElemMatrix<Self>, dtable: &mut AccMatrix<Self>);
}
