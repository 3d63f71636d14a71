//! Moving and adding rows, and conversion between storage and accumulation type.

mod cpu;

use std::ops::Range;

use crate::tensor::{AccBuffer, AccMatrix, Device, ElemBuffer, ElemMatrix, Element, Matrix, Real};

/// Row movements. `rows` lists index rows of the larger matrix; the smaller one is in list order.
///
/// ```
/// use context_parallel::ops::rows::Rows;
/// use context_parallel::tensor::{Cpu, Device, Matrix};
///
/// let cpu = Cpu::<f32>::default();
/// let x = Matrix::from_slice(&[1.0f32, 2.0, 3.0, 4.0, 5.0], 5, 1);
/// let mut part = cpu.matrix(3, 1);
/// cpu.gather_rows(&x, &[4, 0, 1], &mut part, 0);
/// assert_eq!(part[..], [5.0, 1.0, 2.0]);
///
/// let mut sum = cpu.zero_matrix::<f32>(2, 1);
/// cpu.scatter_add_rows(&part, &[1, 0, 1], &mut sum);
/// assert_eq!(sum[..], [1.0, 7.0]);
/// ```
pub trait Rows: Device {
    /// Writes columns `columns` of row `rows[i]` of `source` to row `i` of `target`, from its column `column` on.
    fn gather_block<T: Element>(
        &self,
        source: &Matrix<T, Self::Storage>,
        rows: &[usize],
        columns: Range<usize>,
        target: &mut Matrix<T, Self::Storage>,
        column: usize,
    );

    /// Writes columns `columns` of row `i` of `source` to row `rows[i]` of `target`, from its column `column` on.
    fn scatter_block<T: Element>(
        &self,
        source: &Matrix<T, Self::Storage>,
        columns: Range<usize>,
        rows: &[usize],
        target: &mut Matrix<T, Self::Storage>,
        column: usize,
    );

    /// Adds columns `columns` of row `i` of `source` to row `rows[i]` of `target`, from its column `column` on.
    fn scatter_add_block<T: Real>(
        &self,
        source: &Matrix<T, Self::Storage>,
        columns: Range<usize>,
        rows: &[usize],
        target: &mut Matrix<T, Self::Storage>,
        column: usize,
    );

    /// Writes row `rows[i]` of `source`, columns all, to row `i` of `target` at column `column`.
    fn gather_rows<T: Element>(
        &self,
        source: &Matrix<T, Self::Storage>,
        rows: &[usize],
        target: &mut Matrix<T, Self::Storage>,
        column: usize,
    ) {
        self.gather_block(source, rows, 0..source.cols(), target, column);
    }

    /// Writes row `i` of `source`, from column `column` on, to row `rows[i]` of `target` (as many columns as it has).
    fn scatter_rows<T: Element>(
        &self,
        source: &Matrix<T, Self::Storage>,
        rows: &[usize],
        target: &mut Matrix<T, Self::Storage>,
        column: usize,
    ) {
        self.scatter_block(source, column..column + target.cols(), rows, target, 0);
    }

    /// Adds row `i` of `source` to row `rows[i]` of `target`; both have the same columns.
    fn scatter_add_rows<T: Real>(
        &self,
        source: &Matrix<T, Self::Storage>,
        rows: &[usize],
        target: &mut Matrix<T, Self::Storage>,
    ) {
        assert_eq!(source.cols(), target.cols(), "columns of what is added");
        self.scatter_add_block(source, 0..source.cols(), rows, target, 0);
    }

    /// `x += y`, rounded once per element.
    fn add(&self, x: &mut ElemMatrix<Self>, y: &ElemMatrix<Self>);

    /// Widens.
    fn to_acc(&self, x: &ElemBuffer<Self>) -> AccBuffer<Self>;

    /// Rounds.
    fn to_elem(&self, x: &AccBuffer<Self>) -> ElemBuffer<Self>;

    /// Widens a matrix.
    fn to_acc_matrix(&self, x: &ElemMatrix<Self>) -> AccMatrix<Self> {
        Matrix::new(self.to_acc(x.buffer()), x.rows(), x.cols())
    }

    /// Rounds a matrix.
    fn to_elem_matrix(&self, x: &AccMatrix<Self>) -> ElemMatrix<Self> {
        Matrix::new(self.to_elem(x.buffer()), x.rows(), x.cols())
    }
}
