//! Matrices: a buffer with rows and columns.

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::tensor::{Buffer, Element, Host, Storage};

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
        assert_eq!(buffer.len(), rows * cols, "a matrix of {rows} x {cols} from {} elements", buffer.len());
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

    /// Gives up the shape.
    pub fn into_buffer(self) -> Buffer<T, S> {
        self.buffer
    }

    /// The same elements as `[rows * times, cols / times]`: how heads are seen as rows.
    ///
    /// # Panics
    /// If `times` does not divide the columns.
    pub fn split_cols(self, times: usize) -> Self {
        assert_eq!(self.cols % times, 0, "{} columns do not split into {times}", self.cols);
        Matrix { rows: self.rows * times, cols: self.cols / times, buffer: self.buffer }
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

    /// One row.
    pub fn row(&self, row: usize) -> &[T] {
        &self.buffer[row * self.cols..(row + 1) * self.cols]
    }

    /// One row.
    pub fn row_mut(&mut self, row: usize) -> &mut [T] {
        &mut self.buffer[row * self.cols..(row + 1) * self.cols]
    }
}

impl<T: Element> Clone for Matrix<T, Host> {
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
