//! Products on the processor: one safe wrapper around the kernels of `gemm` for `f32` and `f64` (its own front would
//! build those for complex numbers too), and the linear layers on top of it.

use bytemuck::Pod;
use gemm_common::Parallelism;

use crate::ops::matmul::Matmul;
use crate::ops::transpose::transpose;
use crate::ops::workers::{Wide, install, threads, write_rounded};
use crate::tensor::{Cpu, DType, Float, MatrixMut, MatrixRef, Real};

/// Where the inner dimension of every product is cut: each part is summed on its own, then added to the result.
pub(crate) const CUT: usize = 256;

/// Products with fewer multiplications than this are not worth a second thread.
const PARALLEL: usize = 128 * 64 * 128;

/// A matrix in a slice: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct GemmRef<'a, A> {
    data: &'a [A],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, A> GemmRef<'a, A> {
    /// Row-major, `row_stride` elements from row to row.
    ///
    /// # Panics
    /// If the slice is too short.
    pub(crate) fn new(data: &'a [A], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(fits(rows, cols, [row_stride, 1], data.len()), "{rows} x {cols} by {row_stride} in {}", data.len());
        GemmRef { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The same elements by the name of their type.
    ///
    /// # Panics
    /// If `T` has another size.
    fn of<T: Pod>(self) -> GemmRef<'a, T>
    where
        A: Pod,
    {
        assert_eq!(size_of::<A>(), size_of::<T>(), "bytes of an element");
        let GemmRef { data, rows, cols, row_stride, col_stride } = self;
        GemmRef { data: bytemuck::cast_slice(data), rows, cols, row_stride, col_stride }
    }

    /// The same elements with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        GemmRef {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            data: self.data,
        }
    }
}

/// A row-major matrix in a slice, to be written.
pub(crate) struct GemmMut<'a, A> {
    data: &'a mut [A],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a, A> GemmMut<'a, A> {
    /// Row-major, `row_stride` elements from row to row.
    ///
    /// # Panics
    /// If the slice is too short or rows overlap.
    pub(crate) fn new(data: &'a mut [A], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert!(fits(rows, cols, [row_stride, 1], data.len()), "{rows} x {cols} by {row_stride} in {}", data.len());
        assert!(row_stride >= cols || rows <= 1, "rows of {cols} overlap at a stride of {row_stride}");
        GemmMut { data, rows, cols, row_stride }
    }
}

/// A view of host memory, to be written.
pub(crate) fn target<A: Real>(view: MatrixMut<'_, A>) -> GemmMut<'_, A> {
    let (rows, cols, row_stride) = (view.rows(), view.cols(), view.stride());
    GemmMut::new(view.into_span(), rows, cols, row_stride)
}

/// Whether every element of a matrix is inside a slice of `len`; not if it cannot be counted where the last one is.
fn fits(rows: usize, cols: usize, [row_stride, col_stride]: [usize; 2], len: usize) -> bool {
    let last = || (rows - 1).checked_mul(row_stride)?.checked_add((cols - 1).checked_mul(col_stride)?);
    rows == 0 || cols == 0 || last().is_some_and(|last| last < len)
}

/// `out = lhs * rhs`, or `out += lhs * rhs` with `accumulate`, on `threads` threads of the pool that it runs in.
///
/// The number of threads does not change the result. Where `lhs` and `rhs` are row-major, neither does the number of
/// rows or columns in one call: every element is one chain of multiply-adds over each part of the inner dimension,
/// that of [`dot`](crate::ops::simd::dot). The `gemm` crate has other chains for a single row or column, so these are
/// computed twice over.
///
/// # Panics
/// If the shapes do not fit.
pub(crate) fn gemm<A: Real>(out: GemmMut<A>, lhs: GemmRef<A>, rhs: GemmRef<A>, accumulate: bool, threads: usize) {
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
    if !accumulate && lhs.cols == 0 {
        (0..rows).for_each(|row| data[row * row_stride..][..cols].fill(A::zero()));
        return;
    }
    if cols == 1 {
        // Twice in memory: a stride of 0 along its columns would change how the kernels read it.
        let column: Vec<A> = (0..rhs.rows).flat_map(|k| [rhs.data[k * rhs.row_stride]; 2]).collect();
        let mut pair: Vec<A> = (0..rows).flat_map(|row| [data[row * row_stride]; 2]).collect();
        gemm(GemmMut::new(&mut pair, rows, 2, 2), lhs, GemmRef::new(&column, rhs.rows, 2, 2), accumulate, threads);
        (0..rows).for_each(|row| data[row * row_stride] = pair[2 * row]);
        return;
    }
    if rows == 1 {
        let mut pair = [&data[..cols], &data[..cols]].concat();
        let twice = GemmRef { rows: 2, row_stride: 0, ..lhs };
        by_type(GemmMut::new(&mut pair, 2, cols, cols), twice, rhs, accumulate, threads);
        data[..cols].copy_from_slice(&pair[..cols]);
        return;
    }
    by_type(GemmMut { data, rows, cols, row_stride }, lhs, rhs, accumulate, threads);
}

/// The product of at least 2 rows and 2 columns with the kernel for `A`. There are two, so `A` must be one of them.
fn by_type<A: Real>(out: GemmMut<A>, lhs: GemmRef<A>, rhs: GemmRef<A>, accumulate: bool, threads: usize) {
    let GemmMut { data, rows, cols, row_stride } = out;
    match A::DTYPE {
        DType::F64 => {
            let out = GemmMut { data: bytemuck::cast_slice_mut(data), rows, cols, row_stride };
            product(gemm_f64::gemm::f64::get_gemm_fn(), 1.0, out, lhs.of(), rhs.of(), accumulate, threads);
        }
        _ => {
            let out = GemmMut { data: bytemuck::cast_slice_mut(data), rows, cols, row_stride };
            product(gemm_f32::gemm::f32::get_gemm_fn(), 1.0, out, lhs.of(), rhs.of(), accumulate, threads);
        }
    }
}

/// A kernel of the `gemm` crates: sizes (rows, columns, inner), result, its strides (column, row), whether it is
/// added to, left and right side with their strides, factors of the old and the new, what is conjugated, threads.
type Kernel<T> = unsafe fn(
    usize,
    usize,
    usize,
    *mut T,
    isize,
    isize,
    bool,
    *const T,
    isize,
    isize,
    *const T,
    isize,
    isize,
    T,
    T,
    bool,
    bool,
    bool,
    Parallelism,
);

/// The product of at least 2 rows and 2 columns, cut along the inner dimension.
fn product<T: Copy>(
    kernel: Kernel<T>,
    one: T,
    out: GemmMut<T>,
    lhs: GemmRef<T>,
    rhs: GemmRef<T>,
    accumulate: bool,
    threads: usize,
) {
    let (m, n, row_stride) = (out.rows, out.cols, out.row_stride);
    let parallelism = match threads {
        0 | 1 => Parallelism::None,
        _ if m.saturating_mul(n).saturating_mul(lhs.cols) < PARALLEL => Parallelism::None,
        _ => Parallelism::Rayon(threads),
    };
    assert!(m >= 2 && n >= 2 && (lhs.rows, rhs.cols) == (m, n) && lhs.cols == rhs.rows);
    assert!(fits(m, n, [row_stride, 1], out.data.len()) && row_stride >= n);
    for view in [&lhs, &rhs] {
        assert!(fits(view.rows, view.cols, [view.row_stride, view.col_stride], view.data.len()));
    }
    let stride = |stride: usize| isize::try_from(stride).unwrap_or(0);
    for from in (0..lhs.cols).step_by(CUT) {
        let k = CUT.min(lhs.cols - from);
        // SAFETY: it was just asserted, without wrapping, that every element `(i, j)` of the three is inside its slice,
        // and that the inner dimension of both operands is the same; `from + k` is at most that, and `k` at least 1.
        // So the offsets of the operands are inside their slices too. A stride that is multiplied by more than 0 has at
        // least two elements along it in a slice, so it fits an `isize`; one that does not fit is never used. The rows
        // of `out` do not overlap (`row_stride >= n`); it is borrowed mutably, so it shares nothing with the operands.
        // All elements are initialised, as those of every slice; the kernel is that of their type and was chosen by its
        // crate for the instructions of this processor. Threads get parts of the result that do not overlap.
        unsafe {
            // The kernels want columns of the result to be contiguous: they compute its transpose, of which that holds.
            kernel(
                n,
                m,
                k,
                out.data.as_mut_ptr(),
                stride(row_stride),
                1,
                accumulate || from > 0,
                rhs.data.as_ptr().add(from * rhs.row_stride),
                stride(rhs.row_stride),
                stride(rhs.col_stride),
                lhs.data.as_ptr().add(from * lhs.col_stride),
                stride(lhs.row_stride),
                stride(lhs.col_stride),
                one,
                one,
                false,
                false,
                false,
                parallelism,
            );
        }
    }
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
            let threads = threads(self);
            install(self, || gemm(GemmMut::new(y, rows, cols, stride), lhs, rhs, false, threads));
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
            let threads = threads(self);
            install(self, || gemm(GemmMut::new(dx, rows, cols, stride), lhs, rhs, accumulate, threads));
        });
    }

    fn linear_backward_weight(&self, x: MatrixRef<T>, dy: MatrixRef<T>, dw: MatrixMut<T::Acc>) {
        let (rows, inputs, outputs) = (x.rows(), x.cols(), dy.cols());
        assert_eq!((dy.rows(), dw.rows(), dw.cols()), (rows, inputs, outputs), "gradient of a linear layer's weight");
        let (x, dy) = (Wide::new(self, x), Wide::new(self, dy));
        let lhs = GemmRef::new(x.span(), rows, inputs, x.stride()).transposed();
        let rhs = GemmRef::new(dy.span(), rows, outputs, dy.stride());
        let threads = threads(self);
        install(self, || gemm(target(dw), lhs, rhs, true, threads));
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
