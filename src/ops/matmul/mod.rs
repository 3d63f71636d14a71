//! Linear layers: products of activations with weights that are stored `[in, out]`.
//!
//! A product gives the same bits however its rows are split over calls or threads: the inner dimension is cut at fixed
//! multiples of 256, and within a part every element is one chain of multiply-adds, whatever is computed beside it.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod operands;
mod pack;
mod product;

pub(crate) use cpu::{gemm, gemm_on};
pub(crate) use operands::{CUT, GemmMut, GemmRef, target};

use crate::ops::op::op;
use crate::tensor::{AccMut, Device, ElemMut, ElemRef};

op! {
    /// Products with weights.
    pub trait Matmul: Device {
        /// `y [rows, out] = x [rows, in] * w [in, out] + bias [1, out]`.
        fn linear(
            &self,
            x: ElemRef<'_, Self>,
            w: ElemRef<'_, Self>,
            bias: Option<ElemRef<'_, Self>>,
            y: ElemMut<'_, Self>,
        );

        /// Gradient of the input: `dy [rows, out] * w^T`, added to `dx [rows, in]` if `accumulate`, else written.
        fn linear_backward_input(
            &self,
            dy: ElemRef<'_, Self>,
            w: ElemRef<'_, Self>,
            dx: ElemMut<'_, Self>,
            accumulate: bool,
        );

        /// Gradient of the weights, added: `dw [in, out] += x^T * dy`.
        fn linear_backward_weight(&self, x: ElemRef<'_, Self>, dy: ElemRef<'_, Self>, dw: AccMut<'_, Self>);

        /// Gradient of the bias, added: `db [1, out] +=` the sum of the rows of `dy`, in order.
        fn linear_backward_bias(&self, dy: ElemRef<'_, Self>, db: AccMut<'_, Self>);

        /// `y [cols, rows]` of `x [rows, cols]`.
        fn transpose(&self, x: ElemRef<'_, Self>, y: ElemMut<'_, Self>);
    }
}
