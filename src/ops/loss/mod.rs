//! Cross entropy of next-token logits.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::ops::op::op;
use crate::tensor::{Device, ElemMut, MatrixMut, MatrixRef};

op! {
    /// Cross entropy with per-row weights.
    ///
    /// ```
    /// use context_parallel::ops::loss::CrossEntropy;
    /// use context_parallel::tensor::{Cpu, Device, Matrix};
    ///
    /// let cpu = Cpu::<f32>::default();
    /// let mut logits = Matrix::from_slice(&[1.0, 1.0, 7.0, 3.0], 2, 2);
    /// let (labels, weights) = (Matrix::from_slice(&[1, -100], 2, 1), Matrix::from_slice(&[1.0, 0.0], 2, 1));
    /// let mut sum = cpu.zero_matrix(1, 1);
    /// cpu.cross_entropy(logits.view_mut(), labels.view(), weights.view(), Some(1.0), sum.view_mut());
    /// assert!((sum[0] - 2f64.ln()).abs() < 1e-7);
    /// assert_eq!(logits[..], [0.5, -0.5, 0.0, 0.0]);
    /// ```
    pub trait CrossEntropy: Device {
        /// `logits [rows, vocab]`, `labels [rows, 1]`, `weights [rows, 1]` (0 where a label does not count; its label
        /// may then be anything; callers check the others). Adds the weighted sum of `-log softmax(logits)[label]` to
        /// `sum [1, 1]`.
        ///
        /// If `scale` is given, the logits are replaced by the gradient of `scale` times what is added.
        fn cross_entropy(
            &self,
            logits: ElemMut<'_, Self>,
            labels: MatrixRef<'_, i64, Self::Storage>,
            weights: MatrixRef<'_, f32, Self::Storage>,
            scale: Option<f64>,
            sum: MatrixMut<'_, f64, Self::Storage>,
        );
    }
}
