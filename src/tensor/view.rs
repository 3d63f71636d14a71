//! Views: part of a buffer as a matrix, read or written in place.

use std::fmt;
use std::ops::Range;

use crate::tensor::{Buffer, Element, Host, Matrix, Storage};

/// Where a matrix lies in a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Window {
    offset: usize,
    rows: usize,
    cols: usize,
    stride: usize,
}

impl Window {
    /// Refuses what is not inside a buffer of `len` elements, and rows that overlap.
    fn new(len: usize, offset: usize, rows: usize, cols: usize, stride: usize) -> Self {
        let end = || (rows - 1).checked_mul(stride)?.checked_add(cols)?.checked_add(offset);
        let fits = rows == 0 || cols == 0 || end().is_some_and(|end| end <= len);
        assert!(fits, "a view of {rows} x {cols} by {stride} from {offset} on in {len} elements");
        assert!(rows <= 1 || stride >= cols, "rows of {cols} overlap at a stride of {stride}");
        Window { offset, rows, cols, stride }
    }

    fn row_range(self, range: Range<usize>) -> Self {
        let Window { offset, rows, cols, stride } = self;
        assert!(range.start <= range.end && range.end <= rows, "rows {range:?} of a view of {rows} x {cols}");
        let offset = if range.is_empty() { offset } else { offset + range.start * stride };
        Window { offset, rows: range.len(), ..self }
    }

    fn column_range(self, range: Range<usize>) -> Self {
        let Window { offset, rows, cols, .. } = self;
        assert!(range.start <= range.end && range.end <= cols, "columns {range:?} of a view of {rows} x {cols}");
        Window { offset: offset + range.start, cols: range.len(), ..self }
    }

    fn is_contiguous(self) -> bool {
        self.stride == self.cols || self.rows <= 1 || self.cols == 0
    }

    fn is_empty(self) -> bool {
        self.rows == 0 || self.cols == 0
    }

    /// The elements from the first to the last.
    fn span(self) -> Range<usize> {
        match self.is_empty() {
            true => 0..0,
            false => self.offset..self.offset + (self.rows - 1) * self.stride + self.cols,
        }
    }

    fn row(self, row: usize) -> Range<usize> {
        let Window { offset, rows, cols, stride } = self;
        assert!(row < rows, "row {row} of a view of {rows} x {cols}");
        match cols {
            0 => 0..0,
            _ => offset + row * stride..offset + row * stride + cols,
        }
    }
}

/// A matrix that is read where it is: `rows` rows of `cols` elements, `stride` elements from row to row, from `offset`
/// on in a buffer.
pub struct MatrixRef<'a, T, S = Host> {
    buffer: &'a Buffer<T, S>,
    window: Window,
}

impl<T, S> Clone for MatrixRef<'_, T, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T, S> Copy for MatrixRef<'_, T, S> {}

/// A matrix that is written where it is; see [`MatrixRef`].
pub struct MatrixMut<'a, T, S = Host> {
    buffer: &'a mut Buffer<T, S>,
    window: Window,
}

/// What both kinds of view say of themselves.
macro_rules! shape_of_view {
    () => {
        /// Rows and columns.
        pub(crate) fn size(&self) -> (usize, usize) {
            (self.window.rows, self.window.cols)
        }

        /// Number of rows.
        pub fn rows(&self) -> usize {
            self.window.rows
        }

        /// Number of columns (features).
        pub fn cols(&self) -> usize {
            self.window.cols
        }

        /// Number of elements.
        pub fn len(&self) -> usize {
            self.window.rows * self.window.cols
        }

        /// Whether there are no elements.
        pub fn is_empty(&self) -> bool {
            self.window.is_empty()
        }

        /// Index of the first element in the buffer.
        pub fn offset(&self) -> usize {
            self.window.offset
        }

        /// Elements from one row to the next.
        pub fn stride(&self) -> usize {
            self.window.stride
        }

        /// Whether each row begins where the one before ends.
        pub fn is_contiguous(&self) -> bool {
            self.window.is_contiguous()
        }
    };
}

impl<'a, T: Element, S: Storage> MatrixRef<'a, T, S> {
    /// `[rows, cols]` in `buffer`, from `offset` on, `stride` elements from row to row.
    ///
    /// # Panics
    /// If it is not inside the buffer, or rows overlap.
    pub fn new(buffer: &'a Buffer<T, S>, offset: usize, rows: usize, cols: usize, stride: usize) -> Self {
        MatrixRef { buffer, window: Window::new(buffer.len(), offset, rows, cols, stride) }
    }

    /// All of a buffer as one row.
    pub fn of_buffer(buffer: &'a Buffer<T, S>) -> Self {
        Self::new(buffer, 0, 1, buffer.len(), buffer.len())
    }

    shape_of_view!();

    /// What it is a part of.
    pub fn buffer(&self) -> &'a Buffer<T, S> {
        self.buffer
    }

    /// Some rows.
    ///
    /// # Panics
    /// If it does not have them.
    pub fn row_range(self, range: Range<usize>) -> Self {
        MatrixRef { window: self.window.row_range(range), ..self }
    }

    /// Some columns of every row.
    ///
    /// # Panics
    /// If it does not have them.
    pub fn column_range(self, range: Range<usize>) -> Self {
        MatrixRef { window: self.window.column_range(range), ..self }
    }
}

impl<'a, T: Element, S: Storage> MatrixMut<'a, T, S> {
    /// `[rows, cols]` in `buffer`, from `offset` on, `stride` elements from row to row.
    ///
    /// # Panics
    /// If it is not inside the buffer, or rows overlap.
    pub fn new(buffer: &'a mut Buffer<T, S>, offset: usize, rows: usize, cols: usize, stride: usize) -> Self {
        MatrixMut { window: Window::new(buffer.len(), offset, rows, cols, stride), buffer }
    }

    /// All of a buffer as one row.
    pub fn of_buffer(buffer: &'a mut Buffer<T, S>) -> Self {
        let len = buffer.len();
        Self::new(buffer, 0, 1, len, len)
    }

    shape_of_view!();

    /// What it is a part of.
    pub fn buffer_mut(&mut self) -> &mut Buffer<T, S> {
        self.buffer
    }

    /// Some rows.
    ///
    /// # Panics
    /// If it does not have them.
    pub fn row_range(self, range: Range<usize>) -> Self {
        MatrixMut { window: self.window.row_range(range), buffer: self.buffer }
    }

    /// Some columns of every row.
    ///
    /// # Panics
    /// If it does not have them.
    pub fn column_range(self, range: Range<usize>) -> Self {
        MatrixMut { window: self.window.column_range(range), buffer: self.buffer }
    }

    /// The same for reading.
    pub fn as_ref(&self) -> MatrixRef<'_, T, S> {
        MatrixRef { buffer: self.buffer, window: self.window }
    }

    /// The same for a while.
    pub fn reborrow(&mut self) -> MatrixMut<'_, T, S> {
        MatrixMut { buffer: self.buffer, window: self.window }
    }
}

impl<'a, T: Element> MatrixRef<'a, T, Host> {
    /// One row.
    ///
    /// # Panics
    /// If there is none of this number.
    pub fn row(&self, row: usize) -> &'a [T] {
        &self.buffer[self.window.row(row)]
    }

    /// The elements from the first to the last, with what lies between rows.
    pub fn span(&self) -> &'a [T] {
        &self.buffer[self.window.span()]
    }

    /// The elements, if nothing lies between rows.
    pub fn flat(&self) -> Option<&'a [T]> {
        self.is_contiguous().then(|| self.span())
    }

    /// Copies of the elements, row by row.
    pub fn to_vec(&self) -> Vec<T> {
        (0..self.rows()).flat_map(|row| self.row(row)).copied().collect()
    }
}

impl<'a, T: Element> MatrixMut<'a, T, Host> {
    /// One row.
    ///
    /// # Panics
    /// If there is none of this number.
    pub fn row(&self, row: usize) -> &[T] {
        &self.buffer[self.window.row(row)]
    }

    /// One row.
    ///
    /// # Panics
    /// If there is none of this number.
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        &mut self.buffer[self.window.row(row)]
    }

    /// The elements from the first to the last, with what lies between rows.
    pub fn span_mut(&mut self) -> &mut [T] {
        &mut self.buffer[self.window.span()]
    }

    /// [`MatrixMut::span_mut`], for as long as the view was for.
    pub fn into_span(self) -> &'a mut [T] {
        &mut self.buffer[self.window.span()]
    }
}

impl<'a, T: Element, S: Storage> From<&'a Buffer<T, S>> for MatrixRef<'a, T, S> {
    /// One row.
    fn from(buffer: &'a Buffer<T, S>) -> Self {
        MatrixRef::of_buffer(buffer)
    }
}

impl<'a, T: Element, S: Storage> From<&'a Matrix<T, S>> for MatrixRef<'a, T, S> {
    fn from(matrix: &'a Matrix<T, S>) -> Self {
        matrix.view()
    }
}

impl<T, S> fmt::Debug for MatrixRef<'_, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MatrixRef[{}, {}]", self.window.rows, self.window.cols)
    }
}

impl<T, S> fmt::Debug for MatrixMut<'_, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MatrixMut[{}, {}]", self.window.rows, self.window.cols)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn ranges_of_rows_and_columns_are_parts_of_the_same_memory() {
        let mut x = Matrix::from_slice(&(0..20).collect::<Vec<i64>>(), 4, 5);
        let part = x.view().row_range(1..3).column_range(2..5);
        assert_eq!((part.rows(), part.cols(), part.stride(), part.offset()), (2, 3, 5, 7));
        assert_eq!((part.row(0), part.row(1)), (&[7, 8, 9][..], &[12, 13, 14][..]));
        assert_eq!(part.span(), [7, 8, 9, 10, 11, 12, 13, 14]);
        assert!(part.flat().is_none() && part.row_range(1..2).flat() == Some(&[12, 13, 14]));
        assert_eq!(part.column_range(1..2).to_vec(), [8, 13]);
        let mut part = x.view_mut().column_range(4..5).row_range(2..4);
        part.reborrow().row_mut(1).fill(-1);
        assert_eq!((part.row(0), part.as_ref().row(1)), (&[14][..], &[-1][..]));
        assert_eq!(x[19], -1);
    }

    #[test]
    fn empty_views_have_no_elements_wherever_they_are() {
        let x = Matrix::from_slice(&[1.0f32; 6], 2, 3);
        for part in [x.view().row_range(2..2), x.view().column_range(3..3), x.view().row_range(0..0)] {
            assert!(part.is_empty() && part.span().is_empty() && part.flat() == Some(&[]), "{part:?}");
            assert!((0..part.rows()).all(|row| part.row(row).is_empty()));
        }
    }

    #[test]
    fn what_is_not_there_is_refused_with_its_numbers() {
        let panic_of = |body: &dyn Fn(&Matrix<f32>)| {
            let x = Matrix::from_slice(&[1.0f32; 6], 2, 3);
            let panic = catch_unwind(AssertUnwindSafe(|| body(&x))).expect_err("it is taken");
            panic.downcast_ref::<String>().cloned().unwrap_or_default()
        };
        assert!(panic_of(&|x| drop(x.view().row_range(1..3).to_vec())).contains("rows 1..3 of a view of 2 x 3"));
        assert!(panic_of(&|x| drop(x.view().column_range(2..4).to_vec())).contains("columns 2..4 of a view of 2 x 3"));
        assert!(panic_of(&|x| drop(x.view().row(2).to_vec())).contains("row 2 of a view of 2 x 3"));
        let of = |x: &Matrix<f32>, offset, rows, cols, stride| {
            let _ = MatrixRef::new(x.buffer(), offset, rows, cols, stride);
        };
        assert!(panic_of(&|x| of(x, 1, 2, 3, 3)).contains("a view of 2 x 3 by 3 from 1 on in 6 elements"));
        assert!(panic_of(&|x| of(x, 0, usize::MAX, 1, usize::MAX)).contains("in 6 elements"));
        assert!(panic_of(&|x| of(x, 0, 2, 3, 2)).contains("rows of 3 overlap at a stride of 2"));
    }
}
