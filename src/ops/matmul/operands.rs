//! Operands of products: matrices in slices.

use std::ops::Range;

use bytemuck::Pod;

use crate::tensor::{MatrixMut, Real};

/// Where the inner dimension of every product is cut: each part is summed on its own, then added to the result.
pub(crate) const CUT: usize = 256;

/// A matrix in a slice: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct GemmRef<'a, A> {
    pub(super) data: &'a [A],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
    pub(super) col_stride: usize,
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
    pub(super) fn of<T: Pod>(self) -> GemmRef<'a, T>
    where
        A: Pod,
    {
        assert_eq!(size_of::<A>(), size_of::<T>(), "bytes of an element");
        let GemmRef { data, rows, cols, row_stride, col_stride } = self;
        GemmRef { data: bytemuck::cast_slice(data), rows, cols, row_stride, col_stride }
    }

    /// Some of the rows, of a matrix with columns.
    pub(super) fn row_range(self, rows: Range<usize>) -> Self {
        GemmRef { data: &self.data[rows.start * self.row_stride..], rows: rows.len(), ..self }
    }

    /// # Panics
    /// If not every element is in the slice.
    pub(super) fn expect(&self) {
        assert!(fits(self.rows, self.cols, [self.row_stride, self.col_stride], self.data.len()));
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
    pub(super) data: &'a mut [A],
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) row_stride: usize,
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

    /// # Panics
    /// If not every element is in the slice, or rows overlap.
    pub(super) fn expect(&self) {
        let GemmMut { data, rows, cols, row_stride } = self;
        assert!(fits(*rows, *cols, [*row_stride, 1], data.len()) && (row_stride >= cols || *rows <= 1));
    }
}

/// A view of host memory, to be written.
pub(crate) fn target<A: Real>(view: MatrixMut<'_, A>) -> GemmMut<'_, A> {
    let (rows, cols, row_stride) = (view.rows(), view.cols(), view.stride());
    GemmMut::new(view.into_span(), rows, cols, row_stride)
}

/// Whether every element of a matrix is inside a slice of `len`; not if it cannot be counted where the last one is.
pub(super) fn fits(rows: usize, cols: usize, [row_stride, col_stride]: [usize; 2], len: usize) -> bool {
    let last = || (rows - 1).checked_mul(row_stride)?.checked_add((cols - 1).checked_mul(col_stride)?);
    rows == 0 || cols == 0 || last().is_some_and(|last| last < len)
}
