//! Moving and adding rows, and conversion between storage and accumulation type.

mod cpu;

use crate::tensor::{AccBuffer, AccMatrix, Device, ElemBuffer, ElemMatrix, Element, Matrix, Real};

/// Row movements. `rows` lists index rows of the larger matrix; the smaller one is in list order.
pub trait Rows: Device {
    /// Writes row `rows[i]` of `source`, columns all, to row `i` of `target` at column `column`.
    fn gather_rows<T: Element>(
        &self,
        source: &Matrix<T, Self::Storage>,
        rows: &[usize],
        target: &mut Matrix<T, Self::Storage>,
        column: usize,
    );

    /// Writes row `i` of `source`, from column `column` on, to row `rows[i]` of `target` (as many columns as it has).
    fn scatter_rows<T: Element>(
        &self,
        source: &Matrix<T, Self::Storage>,
        rows: &[usize],
        target: &mut Matrix<T, Self::Storage>,
        column: usize,
    );

    /// Adds row `i` of `source` to row `rows[i]` of `target`; both have the same columns.
    fn scatter_add_rows<T: Real>(
        &self,
        source: &Matrix<T, Self::Storage>,
        rows: &[usize],
        target: &mut Matrix<T, Self::Storage>,
    );

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
