//! Row movements on the processor.

use crate::ops::rows::Rows;
use crate::tensor::{Buffer, Cpu, Device, Element, Float, Matrix, Real};

impl<F: Float> Rows for Cpu<F> {
    fn gather_rows<T: Element>(&self, source: &Matrix<T>, rows: &[usize], target: &mut Matrix<T>, column: usize) {
        let cols = source.cols();
        for (i, &row) in rows.iter().enumerate() {
            target.row_mut(i)[column..column + cols].copy_from_slice(source.row(row));
        }
    }

    fn scatter_rows<T: Element>(&self, source: &Matrix<T>, rows: &[usize], target: &mut Matrix<T>, column: usize) {
        let cols = target.cols();
        for (i, &row) in rows.iter().enumerate() {
            target.row_mut(row).copy_from_slice(&source.row(i)[column..column + cols]);
        }
    }

    fn scatter_add_rows<T: Real>(&self, source: &Matrix<T>, rows: &[usize], target: &mut Matrix<T>) {
        for (i, &row) in rows.iter().enumerate() {
            target.row_mut(row).iter_mut().zip(source.row(i)).for_each(|(sum, &value)| *sum += value);
        }
    }

    fn add(&self, x: &mut Matrix<F>, y: &Matrix<F>) {
        x.iter_mut().zip(y.iter()).for_each(|(x, &y)| *x = F::from_acc(x.to_acc() + y.to_acc()));
    }

    fn to_acc(&self, x: &Buffer<F>) -> Buffer<F::Acc> {
        let mut wide = self.empty(x.len());
        wide.iter_mut().zip(x.iter()).for_each(|(wide, &x)| *wide = x.to_acc());
        wide
    }

    fn to_elem(&self, x: &Buffer<F::Acc>) -> Buffer<F> {
        let mut narrow = self.empty(x.len());
        narrow.iter_mut().zip(x.iter()).for_each(|(narrow, &x)| *narrow = F::from_acc(x));
        narrow
    }
}
