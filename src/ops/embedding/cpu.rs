//! Token embedding on the processor.

use crate::ops::embedding::Embedding;
use crate::tensor::{Buffer, Cpu, Device, Float, Matrix};

impl<T: Float> Embedding for Cpu<T> {
    fn embed(&self, table: &Matrix<T>, tokens: &Buffer<i64>) -> Matrix<T> {
        let mut y = self.matrix(tokens.len(), table.cols());
        for (row, &token) in tokens.iter().enumerate() {
            y.row_mut(row).copy_from_slice(table.row(token as usize));
        }
        y
    }

    fn embed_backward(&self, tokens: &Buffer<i64>, dy: &Matrix<T>, dtable: &mut Matrix<T::Acc>) {
        for (row, &token) in tokens.iter().enumerate() {
            for (sum, &dy) in dtable.row_mut(token as usize).iter_mut().zip(dy.row(row)) {
                *sum += dy.to_acc();
            }
        }
    }
}
