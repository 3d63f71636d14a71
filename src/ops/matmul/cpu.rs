//! Products on the processor: one safe wrapper around the kernels of `gemm` for `f32` and `f64` (its own front would
//! build those for complex numbers too), and the linear layers on top of it.

use gemm_common::Parallelism;

use crate::ops::matmul::Matmul;
use crate::ops::workers::{Wide, install, threads, write_rounded};
use crate::tensor::{Buffer, Cpu, DType, Device, Float, Matrix, Real};

/// Where the inner dimension of every product is cut: each part is summed on its own, then added to the result.
pub(crate) const CUT: usize = 256;

/// Products with fewer multiplications than this are not worth a second thread.
const PARALLEL: usize = 128 * 64 * 128;

/// A matrix in a slice: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a, A> {
    data: &'a [A],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, A> View<'a, A> {
    /// Row-major, `row_stride` elements from row to row.
    ///
    /// # Panics
    /// If the slice is too short.
    pub(crate) fn new(data: &'a [A], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(reach(rows, cols, row_stride) <= data.len(), "{rows} x {cols} by {row_stride} in {}", data.len());
        View { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The same elements with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        View {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            data: self.data,
        }
    }
}

/// A row-major matrix in a slice, to be written.
pub(crate) struct ViewMut<'a, A> {
    data: &'a mut [A],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a, A> ViewMut<'a, A> {
    /// Row-major, `row_stride` elements from row to row.
    ///
    /// # Panics
    /// If the slice is too short or rows overlap.
    pub(crate) fn new(data: &'a mut [A], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(reach(rows, cols, row_stride) <= data.len(), "{rows} x {cols} by {row_stride} in {}", data.len());
        assert!(row_stride >= cols || rows <= 1, "rows of {cols} overlap at a stride of {row_stride}");
        ViewMut { data, rows, cols, row_stride }
    }
}

/// Elements from the first to one past the last.
fn reach(rows: usize, cols: usize, row_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + cols }
}

/// `out = lhs * rhs`, or `out += lhs * rhs` with `accumulate`, on `threads` threads of the pool that it runs in.
///
/// The number of threads does not change the result. Where `lhs` and `rhs` are row-major, neither does the number of
/// rows in one call: every element is one chain of multiply-adds over each part of the inner dimension. The `gemm`
/// crate has other chains for a single row or column, so a single row is computed twice over, and a single column
/// here.
///
/// # Panics
/// If the shapes do not fit.
pub(crate) fn gemm<A: Real>(out: ViewMut<A>, lhs: View<A>, rhs: View<A>, accumulate: bool, threads: usize) {
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
    let ViewMut { data, rows, cols, row_stride } = out;
    if rows == 0 || cols == 0 {
        return;
    }
    if !accumulate && lhs.cols == 0 {
        (0..rows).for_each(|row| data[row * row_stride..][..cols].fill(A::zero()));
        return;
    }
    if cols == 1 {
        return single_column(data, row_stride, lhs, rhs, accumulate);
    }
    if rows == 1 {
        let mut pair = [&data[..cols], &data[..cols]].concat();
        let twice = View { rows: 2, row_stride: 0, ..lhs };
        product(&mut pair, cols, twice, rhs, accumulate, threads);
        data[..cols].copy_from_slice(&pair[..cols]);
        return;
    }
    product(data, row_stride, lhs, rhs, accumulate, threads);
}

/// The product of at least 2 rows and 2 columns, cut along the inner dimension.
fn product<A: Real>(out: &mut [A], row_stride: usize, lhs: View<A>, rhs: View<A>, accumulate: bool, threads: usize) {
    let (m, n) = (lhs.rows, rhs.cols);
    let parallelism = match threads {
        0 | 1 => Parallelism::None,
        _ if m * n * lhs.cols < PARALLEL => Parallelism::None,
        _ => Parallelism::Rayon(threads),
    };
    assert!(reach(m, n, row_stride) <= out.len() && row_stride >= n);
    for from in (0..lhs.cols).step_by(CUT) {
        let k = CUT.min(lhs.cols - from);
        // The kernels want columns of the result to be contiguous: they compute its transpose, of which that holds.
        macro_rules! transposed {
            ($kernel:expr, $t:ty) => {
                $kernel(
                    n,
                    m,
                    k,
                    out.as_mut_ptr().cast::<$t>(),
                    row_stride as isize,
                    1,
                    accumulate || from > 0,
                    rhs.data.as_ptr().add(from * rhs.row_stride).cast::<$t>(),
                    rhs.row_stride as isize,
                    rhs.col_stride as isize,
                    lhs.data.as_ptr().add(from * lhs.col_stride).cast::<$t>(),
                    lhs.row_stride as isize,
                    lhs.col_stride as isize,
                    1.0,
                    1.0,
                    false,
                    false,
                    false,
                    parallelism,
                )
            };
        }
        // SAFETY: a view holds `rows x cols` elements inside its slice (asserted when it is made), `from + k` is at
        // most the inner dimension of both, the rows of `out` fit it and do not overlap, and `out` is borrowed
        // mutably, so it shares nothing with the operands. `A` is the type that its `DTYPE` names: there are two.
        unsafe {
            match A::DTYPE {
                DType::F64 => transposed!(gemm_f64::gemm::f64::get_gemm_fn(), f64),
                _ => transposed!(gemm_f32::gemm::f32::get_gemm_fn(), f32),
            }
        }
    }
}

/// The product with a single column, row by row.
fn single_column<A: Real>(out: &mut [A], row_stride: usize, lhs: View<A>, rhs: View<A>, accumulate: bool) {
    for row in 0..lhs.rows {
        let out = &mut out[row * row_stride];
        let mut total = if accumulate { *out } else { A::zero() };
        for from in (0..lhs.cols).step_by(CUT) {
            total += (from..lhs.cols.min(from + CUT))
                .map(|k| lhs.data[row * lhs.row_stride + k * lhs.col_stride] * rhs.data[k * rhs.row_stride])
                .fold(A::zero(), |sum, term| sum + term);
        }
        *out = total;
    }
}

impl<T: Float> Matmul for Cpu<T> {
    fn linear(&self, x: &Matrix<T>, w: &Matrix<T>, bias: Option<&Buffer<T>>) -> Matrix<T> {
        let (rows, inner, cols) = (x.rows(), x.cols(), w.cols());
        assert_eq!(w.rows(), inner, "{inner} features into a layer for {}", w.rows());
        let mut out = self.matrix::<T>(rows, cols);
        let (x, w) = (Wide::new(self, x), Wide::new(self, w));
        write_rounded(self, &mut out, false, |out| {
            let (lhs, rhs) = (View::new(&x, rows, inner, inner), View::new(&w, inner, cols, cols));
            let threads = threads(self);
            install(self, || gemm(ViewMut::new(out, rows, cols, cols), lhs, rhs, false, threads));
            if let (Some(bias), true) = (bias, cols > 0) {
                assert_eq!(bias.len(), cols, "a bias of {} for {cols} features", bias.len());
                for row in out.chunks_exact_mut(cols) {
                    row.iter_mut().zip(bias.iter()).for_each(|(y, b)| *y += b.to_acc());
                }
            }
        });
        out
    }

    fn linear_backward_input(&self, dy: &Matrix<T>, w: &Matrix<T>, dx: &mut Matrix<T>, accumulate: bool) {
        let (rows, inner, cols) = (dy.rows(), dy.cols(), w.rows());
        assert_eq!((w.cols(), dx.rows(), dx.cols()), (inner, rows, cols), "gradient of a linear layer's input");
        let (dy, w) = (Wide::new(self, dy), Wide::new(self, w));
        write_rounded(self, dx, accumulate, |dx| {
            let (lhs, rhs) = (View::new(&dy, rows, inner, inner), View::new(&w, cols, inner, inner).transposed());
            let threads = threads(self);
            install(self, || gemm(ViewMut::new(dx, rows, cols, cols), lhs, rhs, accumulate, threads));
        });
    }

    fn linear_backward_weight(
        &self,
        x: &Matrix<T>,
        dy: &Matrix<T>,
        dw: &mut Matrix<T::Acc>,
        db: Option<&mut Matrix<T::Acc>>,
    ) {
        let (rows, inputs, outputs) = (x.rows(), x.cols(), dy.cols());
        assert_eq!((dy.rows(), dw.rows(), dw.cols()), (rows, inputs, outputs), "gradient of a linear layer's weight");
        let (x, dy) = (Wide::new(self, x), Wide::new(self, dy));
        let (lhs, rhs) = (View::new(&x, rows, inputs, inputs).transposed(), View::new(&dy, rows, outputs, outputs));
        let threads = threads(self);
        install(self, || gemm(ViewMut::new(dw, inputs, outputs, outputs), lhs, rhs, true, threads));
        if let (Some(db), true) = (db, outputs > 0) {
            assert_eq!(db.len(), outputs, "gradient of a bias of {outputs}");
            for row in dy.chunks_exact(outputs) {
                db.iter_mut().zip(row).for_each(|(sum, &dy)| *sum += dy);
            }
        }
    }

    fn transpose(&self, x: &Matrix<T>) -> Matrix<T> {
        let (rows, cols) = (x.rows(), x.cols());
        let mut out = self.matrix::<T>(cols, rows);
        // Squares that fit the first-level cache, so that neither side misses it on every element.
        const SIDE: usize = 32;
        for from_row in (0..rows).step_by(SIDE) {
            for from_col in (0..cols).step_by(SIDE) {
                for row in from_row..rows.min(from_row + SIDE) {
                    for col in from_col..cols.min(from_col + SIDE) {
                        out[col * rows + row] = x[row * cols + col];
                    }
                }
            }
        }
        out
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
