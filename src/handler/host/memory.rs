//! Host memory of others as rows: borrowed to be read or written, or adopted.

use std::ops::Deref;

use crate::error::{LayoutError, Result};
use crate::tensor::{Element, Lent, Matrix};

/// How rows lie in a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Strided {
    rows: usize,
    cols: usize,
    stride: usize,
}

impl Strided {
    /// Refuses rows that `len` elements do not hold, and rows that overlap.
    fn checked(self, what: &'static str, len: usize) -> Result<Self> {
        let Strided { rows, cols, stride } = self;
        let last = rows.saturating_sub(1).checked_mul(stride).and_then(|start| start.checked_add(cols));
        let fits = rows == 0 || cols == 0 || (last.is_some_and(|end| end <= len) && (rows == 1 || stride >= cols));
        match fits {
            true => Ok(self),
            false => Err(LayoutError::Memory { what, rows, cols, stride, len }.into()),
        }
    }

    /// Whether the rows lie one behind the other.
    fn contiguous(self) -> bool {
        self.stride == self.cols || self.rows <= 1
    }
}

/// Rows of somebody else's host memory, to be read: `rows` rows of `cols` elements.
///
/// Nothing is checked before a call takes it, so that errors name the argument.
#[derive(Clone, Copy, Debug)]
pub struct HostRef<'a, T> {
    values: &'a [T],
    rows: Strided,
}

impl<'a, T: Element> HostRef<'a, T> {
    /// `values` row by row.
    pub fn new(values: &'a [T], rows: usize, cols: usize) -> Self {
        HostRef { values, rows: Strided { rows, cols, stride: cols } }
    }

    /// With `stride` elements from row to row, as in columns of a wider matrix. Such rows are copied once where they
    /// are used; rows that lie one behind the other are read where they are.
    pub fn with_stride(mut self, stride: usize) -> Self {
        self.rows.stride = stride;
        self
    }

    /// The matrix, which must have this many rows.
    pub(super) fn held(self, what: &'static str, expected: usize) -> Result<Held<'a, Matrix<T>>> {
        let Strided { rows, cols, stride } = self.rows.checked(what, self.values.len())?;
        expect_rows(what, expected, rows)?;
        if self.rows.contiguous() {
            return Ok(Held::Lent(Lent::new(&self.values[..rows * cols]).matrix(rows, cols)));
        }
        let packed = (0..rows).flat_map(|row| &self.values[row * stride..row * stride + cols]).copied().collect();
        Ok(Held::Owned(Matrix::from_vec(packed, rows, cols)))
    }
}

impl<'a, T: Element> From<&'a Matrix<T>> for HostRef<'a, T> {
    fn from(matrix: &'a Matrix<T>) -> Self {
        HostRef::new(matrix, matrix.rows(), matrix.cols())
    }
}

/// Rows of somebody else's host memory, to be written.
#[derive(Debug)]
pub struct HostMut<'a, T> {
    values: &'a mut [T],
    rows: Strided,
}

impl<'a, T: Element> HostMut<'a, T> {
    /// `values` row by row.
    pub fn new(values: &'a mut [T], rows: usize, cols: usize) -> Self {
        HostMut { values, rows: Strided { rows, cols, stride: cols } }
    }

    /// With `stride` elements from row to row.
    pub fn with_stride(mut self, stride: usize) -> Self {
        self.rows.stride = stride;
        self
    }

    /// Copies what a call has given; what lies between rows stays as it is.
    ///
    /// # Errors
    /// Memory that does not hold the rows, and results with other rows or columns.
    pub fn write(&mut self, result: &Matrix<T>) -> Result<()> {
        let what = "the memory for the result";
        let Strided { rows, cols, stride } = self.rows.checked(what, self.values.len())?;
        expect_rows(what, result.rows(), rows)?;
        if cols != result.cols() {
            return Err(LayoutError::Features { what, expected: result.cols(), found: cols }.into());
        }
        for row in 0..rows {
            self.values[row * stride..row * stride + cols].copy_from_slice(result.row(row));
        }
        Ok(())
    }
}

/// What attention keeps for its backward pass: memory that stays borrowed until then, or a matrix that is given away,
/// such as one from [`Matrix::from_vec`].
#[derive(Debug)]
pub enum HostOperand<'a, T: Element> {
    /// Stays borrowed.
    Borrowed(HostRef<'a, T>),
    /// Given away.
    Given(Matrix<T>),
}

impl<'a, T: Element> HostOperand<'a, T> {
    pub(super) fn held(self, what: &'static str, expected: usize) -> Result<Held<'a, Matrix<T>>> {
        match self {
            HostOperand::Borrowed(rows) => rows.held(what, expected),
            HostOperand::Given(matrix) => {
                expect_rows(what, expected, matrix.rows())?;
                Ok(Held::Owned(matrix))
            }
        }
    }
}

impl<'a, T: Element> From<HostRef<'a, T>> for HostOperand<'a, T> {
    fn from(rows: HostRef<'a, T>) -> Self {
        HostOperand::Borrowed(rows)
    }
}

impl<'a, T: Element> From<&'a Matrix<T>> for HostOperand<'a, T> {
    fn from(matrix: &'a Matrix<T>) -> Self {
        HostOperand::Borrowed(matrix.into())
    }
}

impl<T: Element> From<Matrix<T>> for HostOperand<'_, T> {
    fn from(matrix: Matrix<T>) -> Self {
        HostOperand::Given(matrix)
    }
}

/// Something made of memory that is borrowed or owned.
#[derive(Debug)]
pub(super) enum Held<'a, X> {
    Lent(Lent<'a, X>),
    Owned(X),
}

impl<'a, X> Held<'a, X> {
    /// Wraps it into something else, which all of it goes into: see [`Lent::wrap`].
    pub(super) fn wrap<Y>(self, wrap: impl FnOnce(X) -> Result<Y>) -> Result<Held<'a, Y>> {
        Ok(match self {
            Held::Lent(lent) => Held::Lent(lent.wrap(wrap)?),
            Held::Owned(owned) => Held::Owned(wrap(owned)?),
        })
    }
}

impl<X> Deref for Held<'_, X> {
    type Target = X;

    fn deref(&self) -> &X {
        match self {
            Held::Lent(lent) => lent,
            Held::Owned(owned) => owned,
        }
    }
}

fn expect_rows(what: &'static str, expected: usize, found: usize) -> Result<()> {
    match expected == found {
        true => Ok(()),
        false => Err(LayoutError::RowsOf { what, expected, found }.into()),
    }
}
