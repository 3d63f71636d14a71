//! Root-mean-square normalisation (Zhang and Sennrich 2019).

mod cpu;

use crate::tensor::{AccMatrix, Device, ElemMatrix};

/// `y = x / sqrt(mean(x^2) + eps) * weight`, row by row. Heads are normalised by passing them as rows.
///
/// ```
/// use context_parallel::ops::norm::RmsNorm;
/// use context_parallel::tensor::{Cpu, Device, Matrix};
///
/// let cpu = Cpu::<f32>::default();
/// let x = Matrix::from_slice(&[1.0, 7.0, 5.0, 5.0], 2, 2); // both rows have the root mean square 5
/// let weight = Matrix::from_slice(&[1.0, 10.0], 1, 2);
/// let (y, reciprocal) = cpu.rms_norm(&x, &weight, 0.0);
/// assert_eq!(y[..], [0.2, 14.0, 1.0, 10.0]);
/// assert_eq!(reciprocal[..], [0.2, 0.2]);
///
/// let dy = Matrix::from_slice(&[1.0, 0.0, 0.0, 1.0], 2, 2);
/// let (mut dx, mut dweight) = (cpu.matrix(2, 2), cpu.zero_matrix(1, 2));
/// cpu.rms_norm_backward(&x, &weight, &reciprocal, &dy, &mut dx, false, &mut dweight);
/// assert_eq!(dweight[..], [0.2, 1.0]);
/// assert!((dx[2] + 1.0).abs() < 1e-6 && (dx[3] - 1.0).abs() < 1e-6); // orthogonal to x
/// ```
pub trait RmsNorm: Device {
    /// `x [rows, n]`, `weight [1, n]`; returns `y` and the reciprocal root mean square `[rows, 1]`.
    fn rms_norm(
        &self,
        x: &ElemMatrix<Self>,
        weight: &ElemMatrix<Self>,
        eps: f64,
    ) -> (ElemMatrix<Self>, AccMatrix<Self>);

    /// Gradient: adds to `dx` if `accumulate`, else writes it; adds to `dweight [1, n]`.
    #[allow(clippy::too_many_arguments)]
    fn rms_norm_backward(
        &self,
        x: &ElemMatrix<Self>,
        weight: &ElemMatrix<Self>,
        reciprocal: &AccMatrix<Self>,
        dy: &ElemMatrix<Self>,
        dx: &mut ElemMatrix<Self>,
        accumulate: bool,
        dweight: &mut AccMatrix<Self>,
    );
}
