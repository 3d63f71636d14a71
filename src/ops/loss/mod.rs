//! Cross entropy of next-token logits.

mod cpu;

use crate::tensor::{Buffer, Device, ElemMatrix};

/// Cross entropy with per-row weights.
///
/// ```
/// use context_parallel::ops::loss::CrossEntropy;
/// use context_parallel::tensor::{Cpu, Device, Matrix};
///
/// let cpu = Cpu::<f32>::default();
/// let mut logits = Matrix::from_slice(&[1.0, 1.0, 7.0, 3.0], 2, 2);
/// let (labels, weights) = (cpu.upload(&[1, -100]), cpu.upload(&[1.0, 0.0]));
/// let loss = cpu.cross_entropy(&mut logits, &labels, &weights, Some(1.0));
/// assert!((loss - 2f64.ln()).abs() < 1e-7);
/// assert_eq!(logits[..], [0.5, -0.5, 0.0, 0.0]);
/// ```
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
