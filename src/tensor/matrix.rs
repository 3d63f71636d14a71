//! Matrices: a buffer with rows and columns.

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::tensor::{Buffer, Element, Host, MatrixMut, MatrixRef, Storage, product};

/// A row-major matrix `[rows, cols]`; what every activation is, whatever the layout.
pub struct Matrix<T, S = Host> {
    buffer: Buffer<T, S>,
    rows: usize,
    cols: usize,
}

impl<T: Element, S: Storage> Matrix<T, S> {
    /// Reads `buffer` as `[rows, cols]`.
    ///
    /// # Panics
    /// If the buffer does not have `rows * cols` elements.
    pub fn new(buffer: Buffer<T, S>, rows: usize, cols: usize) -> Self {
        let len = buffer.len();
        assert!(rows.checked_mul(cols) == Some(len), "a matrix of {rows} x {cols} from {len} elements");
        Matrix { buffer, rows, cols }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns (features).
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The elements, row by row.
    pub fn buffer(&self) -> &Buffer<T, S> {
        &self.buffer
    }

    /// The elements, row by row.
    pub fn buffer_mut(&mut self) -> &mut Buffer<T, S> {
        &mut self.buffer
    }

    /// All of it, to be read in place.
    pub fn view(&self) -> MatrixRef<'_, T, S> {
        MatrixRef::new(&self.buffer, 0, self.rows, self.cols, self.cols)
    }

    /// All of it, to be written in place.
    pub fn view_mut(&mut self) -> MatrixMut<'_, T, S> {
        MatrixMut::new(&mut self.buffer, 0, self.rows, self.cols, self.cols)
    }

    /// Gives up the shape.
    pub fn into_buffer(self) -> Buffer<T, S> {
        self.buffer
    }

    /// The same elements as `[rows * times, cols / times]`: how heads are seen as rows.
    ///
    /// # Panics
    /// If `times` does not divide the columns, or is 0.
    pub fn split_cols(self, times: usize) -> Self {
        assert!(times > 0 && self.cols.is_multiple_of(times), "{} columns do not split into {times}", self.cols);
        Matrix { rows: product(&[self.rows, times]), cols: self.cols / times, buffer: self.buffer }
    }
}

impl<T, S> fmt::Debug for Matrix<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix[{}, {}]", self.rows, self.cols)
    }
}

impl<T: Element> Matrix<T, Host> {
    /// A copy of `values`, `[rows, cols]`, that belongs to no pool.
    pub fn from_slice(values: &[T], rows: usize, cols: usize) -> Self {
        Matrix::new(Buffer::from_slice(values), rows, cols)
    }

    /// The memory of `values` itself as `[rows, cols]`, without a copy.
    ///
    /// # Panics
    /// If there are not `rows * cols` values.
    pub fn from_vec(values: Vec<T>, rows: usize, cols: usize) -> Self {
        Matrix::new(Buffer::from_vec(values), rows, cols)
    }

    /// One row.
    ///
    /// # Panics
    /// If there is none of this number.
    pub fn row(&self, row: usize) -> &[T] {
        assert!(row < self.rows, "row {row} of {self:?}");
        &self.buffer[row * self.cols..(row + 1) * self.cols]
    }

    /// One row.
    ///
    /// # Panics
    /// If there is none of this number.
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        assert!(row < self.rows, "row {row} of {self:?}");
        &mut self.buffer[row * self.cols..(row + 1) * self.cols]
    }
}

impl<T: Element, S: Storage> Clone for Matrix<T, S> {
    fn clone(&self) -> Self {
        Matrix { buffer: self.buffer.clone(), rows: self.rows, cols: self.cols }
    }
}

impl<T: Element> Deref for Matrix<T, Host> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.buffer
    }
}

impl<T: Element> DerefMut for Matrix<T, Host> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.buffer
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::tensor::{Cpu, Device, DryRun};

    /// What a panic says.
    fn panic_of<R>(body: impl FnOnce() -> R) -> String {
        let Err(panic) = catch_unwind(AssertUnwindSafe(body)) else { panic!("it is taken") };
        panic.downcast_ref::<String>().cloned().unwrap_or_default()
    }

    #[test]
    fn a_matrix_with_more_elements_than_can_be_counted_does_not_exist() {
        let huge = 1 << 32;
        let device = Cpu::<f32>::default();
        let empty = || Matrix::<f32>::from_slice(&[], huge, huge);
        assert!(panic_of(empty).contains("a matrix of 4294967296 x 4294967296 from 0 elements"));
        for message in [
            panic_of(|| device.matrix::<f32>(huge, huge)),
            panic_of(|| device.zero_matrix::<f32>(huge, huge)),
            panic_of(|| DryRun::<f32>::default().matrix::<f32>(huge, huge)),
            // No elements, but as many rows as that.
            panic_of(|| Matrix::<f32>::from_slice(&[], 1 << 40, 0).split_cols(1 << 30)),
        ] {
            assert!(message.contains("is more than can be counted"), "{message}");
        }
    }

    #[test]
    fn rows_past_the_end_are_no_other_rows() {
        let mut x = Matrix::from_slice(&[1.0f32; 8], 2, 4);
        let wraps = 1 << 62;
        assert!(panic_of(|| x.row(wraps).to_vec()).contains("row 4611686018427387904 of Matrix[2, 4]"));
        assert!(panic_of(|| x.row_mut(2).fill(0.0)).contains("row 2 of Matrix[2, 4]"));
        assert!(Matrix::<f32>::from_slice(&[], 3, 0).row(2).is_empty());
        assert!(panic_of(|| x.split_cols(0)).contains("4 columns do not split into 0"));
    }
}
