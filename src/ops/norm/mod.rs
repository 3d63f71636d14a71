//! Root-mean-square normalisation (Zhang and Sennrich 2019).

mod cpu;

use crate::tensor::{AccMatrix, Device, ElemMatrix};

/// `y = x / sqrt(mean(x^2) + eps) * weight`, row by row. Heads are normalised by passing them as rows.
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
