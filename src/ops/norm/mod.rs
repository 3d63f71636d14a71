//! Root-mean-square normalisation (Zhang and Sennrich 2019).

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::ops::op::op;
use crate::tensor::{AccMut, AccRef, Device, ElemMut, ElemRef};

op! {
    /// `y = x / sqrt(mean(x^2) + eps) * weight`, row by row, or part by part of a row: a row of heads has as many
    /// parts. Of zeros it is zero, whatever `eps`.
    ///
    /// ```
    /// use context_parallel::ops::norm::RmsNorm;
    /// use context_parallel::tensor::{Cpu, Device, Matrix};
    ///
    /// let cpu = Cpu::<f32>::default();
    /// let x = Matrix::from_slice(&[1.0, 7.0, 5.0, 5.0], 2, 2); // both rows have the root mean square 5
    /// let weight = Matrix::from_slice(&[1.0, 10.0], 1, 2);
    /// let (mut y, mut reciprocal) = (cpu.matrix(2, 2), cpu.matrix(2, 1));
    /// cpu.rms_norm(x.view(), weight.view(), 1, 0.0, y.view_mut(), reciprocal.view_mut());
    /// assert_eq!(y[..], [0.2, 14.0, 1.0, 10.0]);
    /// assert_eq!(reciprocal[..], [0.2, 0.2]);
    ///
    /// let dy = Matrix::from_slice(&[1.0, 0.0, 0.0, 1.0], 2, 2);
    /// let (mut dx, mut dweight) = (cpu.matrix(2, 2), cpu.zero_matrix(1, 2));
    /// let (dx_view, dweight_view) = (dx.view_mut(), dweight.view_mut());
    /// cpu.rms_norm_backward(x.view(), weight.view(), reciprocal.view(), dy.view(), dx_view, false, dweight_view);
    /// assert_eq!(dweight[..], [0.2, 1.0]);
    /// assert!((dx[2] + 1.0).abs() < 1e-6 && (dx[3] - 1.0).abs() < 1e-6); // orthogonal to x
    /// ```
    pub trait RmsNorm: Device {
        /// `x [rows, parts * n]`, `weight [1, n]`; writes `y [rows, parts * n]` and the reciprocal root mean squares
        /// `[rows, parts]`.
        fn rms_norm(
            &self,
            x: ElemRef<'_, Self>,
            weight: ElemRef<'_, Self>,
            parts: usize,
            eps: f64,
            y: ElemMut<'_, Self>,
            reciprocal: AccMut<'_, Self>,
        );

        /// Gradient: adds to `dx` if `accumulate`, else writes it; adds to `dweight [1, n]`. There are as many parts as
        /// `reciprocal` has columns.
        fn rms_norm_backward(
            &self,
            x: ElemRef<'_, Self>,
            weight: ElemRef<'_, Self>,
            reciprocal: AccRef<'_, Self>,
            dy: ElemRef<'_, Self>,
            dx: ElemMut<'_, Self>,
            accumulate: bool,
            dweight: AccMut<'_, Self>,
        );
    }
}
