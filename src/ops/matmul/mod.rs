//! Linear layers: products of activations with weights that are stored `[in, out]`.
//!
//! The forward product gives the same bits however its rows are split over calls: the right side is row-major, the
//! inner dimension is cut at fixed multiples of 256, and never fewer than 2 rows are computed at a time.

mod cpu;

pub(crate) use cpu::{CUT, View, ViewMut, gemm};

use crate::tensor::{AccMatrix, Device, ElemBuffer, ElemMatrix};

/// Products with weights.
pub trait Matmul: Device {
    /// `x [rows, in] * w [in, out] + bias [out]`.
    fn linear(&self, x: &ElemMatrix<Self>, w: &ElemMatrix<Self>, bias: Option<&ElemBuffer<Self>>) -> ElemMatrix<Self>;

    /// Gradient of the input: `dy [rows, out] * w^T`, added to `dx [rows, in]` if `accumulate`, else written.
    fn linear_backward_input(
        &self,
        dy: &ElemMatrix<Self>,
        w: &ElemMatrix<Self>,
        dx: &mut ElemMatrix<Self>,
        accumulate: bool,
    );

    /// Gradient of the weights, added: `dw [in, out] += x^T * dy`, `db [1, out] += sum of the rows of dy`.
    fn linear_backward_weight(
        &self,
        x: &ElemMatrix<Self>,
        dy: &ElemMatrix<Self>,
        dw: &mut AccMatrix<Self>,
        db: Option<&mut AccMatrix<Self>>,
    );

    /// `[cols, rows]`.
    fn transpose(&self, x: &ElemMatrix<Self>) -> ElemMatrix<Self>;
}
