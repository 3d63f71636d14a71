//! Products on the processor: by type and over threads, and the linear layers on top of them.

use crate::ops::matmul::Matmul;
use crate::ops::matmul::operands::{GemmMut, GemmRef, target};
use crate::ops::matmul::product::{kernels_f32, kernels_f64, product};
use crate::ops::transpose::transpose;
use crate::ops::workers::{Wide, for_each, write_rounded};
use crate::tensor::{Cpu, DType, Float, MatrixMut, MatrixRef, Real};

/// Products with fewer multiplications than this are not worth a second thread.
const PARALLEL: usize = 128 * 64 * 128;

/// `out = lhs * rhs`, or `out += lhs * rhs` with `accumulate`.
///
/// The number of rows or columns in one call does not change the result: every element is one chain of multiply-adds
/// over each part of the inner dimension, that of [`dot`](crate::ops::simd::dot).
///
/// # Panics
/// If the shapes do not fit.
pub(crate) fn gemm<A: Real>(out: GemmMut<A>, lhs: GemmRef<A>, rhs: GemmRef<A>, accumulate: bool) {
    assert!(
        (lhs.rows, rhs.cols) == (out.rows, out.cols) && lhs.cols == rhs.rows,
        "{} x {} times {} x {} into {} x {}",
        lhs.rows,
        lhs.cols,
        rhs.rows,
        rhs.cols,
        out.rows,
        out.cols
    );
    let GemmMut { data, rows, cols, row_stride } = out;
    if rows == 0 || cols == 0 {
        return;
    }
    if lhs.cols == 0 {
        if !accumulate {
            (0..rows).for_each(|row| data[row * row_stride..][..cols].fill(A::zero()));
        }
        return;
    }
    // There are two accumulation types, so `A` is one of them.
    match A::DTYPE {
        DType::F64 => {
            let out = GemmMut { data: bytemuck::cast_slice_mut(data), rows, cols, row_stride };
            product(&kernels_f64(), 1.0, out, lhs.of(), rhs.of(), accumulate);
        }
        _ => {
            let out = GemmMut { data: bytemuck::cast_slice_mut(data), rows, cols, row_stride };
            product(&kernels_f32(), 1.0, out, lhs.of(), rhs.of(), accumulate);
        }
    }
}

/// [`gemm`] on all threads of a device, each with rows of the result: the same bits.
///
/// # Panics
/// If the shapes do not fit.
pub(crate) fn gemm_on<T: Float>(
    device: &Cpu<T>,
    out: GemmMut<T::Acc>,
    lhs: GemmRef<T::Acc>,
    rhs: GemmRef<T::Acc>,
    accumulate: bool,
) {
    let work = out.rows.saturating_mul(out.cols).saturating_mul(lhs.cols);
    let tasks = if work < PARALLEL { 1 } else { device.threads().min(out.rows) };
    if tasks < 2 || lhs.rows != out.rows {
        return gemm(out, lhs, rhs, accumulate);
    }
    let at_once = out.rows.div_ceil(tasks);
    let GemmMut { data, rows, cols, row_stride } = out;
    let parts = data.chunks_mut(at_once * row_stride).enumerate();
    let parts = parts.map(|(task, data)| (task * at_once, data)).filter(|&(top, _)| top < rows);
    for_each(
        device,
        tasks,
        parts,
        || (),
        |(), (top, data)| {
            let some = at_once.min(rows - top);
            gemm(GemmMut { data, rows: some, cols, row_stride }, lhs.row_range(top..top + some), rhs, accumulate);
        },
    );
}

impl<T: Float> Matmul for Cpu<T> {
    fn linear(&self, x: MatrixRef<T>, w: MatrixRef<T>, bias: Option<MatrixRef<T>>, y: MatrixMut<T>) {
        let (rows, inner, cols) = (x.rows(), x.cols(), w.cols());
        assert_eq!(w.rows(), inner, "{inner} features into a layer for {}", w.rows());
        assert_eq!((y.rows(), y.cols()), (rows, cols), "result of a linear layer");
        let (x, w) = (Wide::new(self, x), Wide::new(self, w));
        write_rounded(self, y, false, |y, stride| {
            let lhs = GemmRef::new(x.span(), rows, inner, x.stride());
            let rhs = GemmRef::new(w.span(), inner, cols, w.stride());
            gemm_on(self, GemmMut::new(y, rows, cols, stride), lhs, rhs, false);
            if let (Some(bias), true) = (bias, cols > 0) {
                assert_eq!((bias.rows(), bias.cols()), (1, cols), "a bias of {} for {cols} features", bias.len());
                for row in y.chunks_mut(stride.max(1)) {
                    row[..cols].iter_mut().zip(bias.row(0)).for_each(|(y, b)| *y += b.to_acc());
                }
            }
        });
    }

    fn linear_backward_input(&self, dy: MatrixRef<T>, w: MatrixRef<T>, dx: MatrixMut<T>, accumulate: bool) {
        let (rows, inner, cols) = (dy.rows(), dy.cols(), w.rows());
        assert_eq!((w.cols(), dx.rows(), dx.cols()), (inner, rows, cols), "gradient of a linear layer's input");
        let (dy, w) = (Wide::new(self, dy), Wide::new(self, w));
        write_rounded(self, dx, accumulate, |dx, stride| {
            let lhs = GemmRef::new(dy.span(), rows, inner, dy.stride());
            let rhs = GemmRef::new(w.span(), cols, inner, w.stride()).transposed();
            gemm_on(self, GemmMut::new(dx, rows, cols, stride), lhs, rhs, accumulate);
        });
    }

    fn linear_backward_weight(&self, x: MatrixRef<T>, dy: MatrixRef<T>, dw: MatrixMut<T::Acc>) {
        let (rows, inputs, outputs) = (x.rows(), x.cols(), dy.cols());
        assert_eq!((dy.rows(), dw.rows(), dw.cols()), (rows, inputs, outputs), "gradient of a linear layer's weight");
        let (x, dy) = (Wide::new(self, x), Wide::new(self, dy));
        let lhs = GemmRef::new(x.span(), rows, inputs, x.stride()).transposed();
        let rhs = GemmRef::new(dy.span(), rows, outputs, dy.stride());
        gemm_on(self, target(dw), lhs, rhs, true);
    }

    fn linear_backward_bias(&self, dy: MatrixRef<T>, mut db: MatrixMut<T::Acc>) {
        assert_eq!((db.rows(), db.cols()), (1, dy.cols()), "gradient of a bias of {}", dy.cols());
        for row in 0..dy.rows() {
            db.row_mut(0).iter_mut().zip(dy.row(row)).for_each(|(sum, dy)| *sum += dy.to_acc());
        }
    }

    fn transpose(&self, x: MatrixRef<T>, mut y: MatrixMut<T>) {
        assert_eq!((y.rows(), y.cols()), (x.cols(), x.rows()), "rows and columns exchanged");
        let (from, to) = (x.stride(), y.stride());
        transpose((x.span(), from), x.rows(), x.cols(), (y.span_mut(), to));
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
