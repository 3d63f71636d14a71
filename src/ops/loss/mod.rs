//! Cross entropy of next-token logits.

mod cpu;

use crate::tensor::{Buffer, Device, ElemMatrix};

/// Cross entropy with per-row weights.
pub trait CrossEntropy: Device {
    /// `logits [rows, vocab]`, `labels [rows]`, `weights [rows]` (0 where a label does not count; its label may then
    /// be anything). Returns the weighted sum of `-log softmax(logits)[label]`, in `f64`.
    ///
    /// If `scale` is given, the logits are replaced by the gradient of `scale * sum`.
    fn cross_entropy(
        &self,
        logits: &mut ElemMatrix<Self>,
        labels: &Buffer<i64, Self::Storage>,
        weights: &Buffer<f32, Self::Storage>,
        scale: Option<f64>,
    ) -> f64;
}
