//! Row movements on the processor.

use std::ops::Range;

use super::Rows;
use crate::ops::parallel::{RowsMut, by_elements, by_rows};
use crate::tensor::{AccBuffer, Cpu, Device, ElemBuffer, ElemMatrix, Element, Float, Matrix, Real};

impl<T: Float> Rows for Cpu<T> {
    fn gather_block<E: Element>(
        &self,
        source: &Matrix<E>,
        rows: &[usize],
        columns: Range<usize>,
        target: &mut Matrix<E>,
        column: usize,
    ) {
        let (cols, width) = (columns.len(), target.cols());
        assert_eq!(target.rows(), rows.len(), "a row of the target per row of the list");
        inside(&columns, source.cols(), column, width);
        by_rows(self, rows.len(), cols, RowsMut::new(target, width), |range, mut target| {
            let rows = &rows[range];
            if cols == width && cols == source.cols() {
                each_run(rows, source.rows(), |at, row, len| {
                    target.all()[at * cols..(at + len) * cols].copy_from_slice(&source[row * cols..(row + len) * cols]);
                });
            } else {
                for (i, &row) in rows.iter().enumerate() {
                    target.row(i)[column..column + cols].copy_from_slice(&source.row(row)[columns.clone()]);
                }
            }
        });
    }

    fn scatter_block<E: Element>(
        &self,
        source: &Matrix<E>,
        columns: Range<usize>,
        rows: &[usize],
        target: &mut Matrix<E>,
        column: usize,
    ) {
        let (cols, width) = (columns.len(), target.cols());
        assert_eq!(source.rows(), rows.len(), "a row of the source per row of the list");
        inside(&columns, source.cols(), column, width);
        if cols == width && cols == source.cols() {
            each_run(rows, target.rows(), |at, row, len| {
                target[row * cols..(row + len) * cols].copy_from_slice(&source[at * cols..(at + len) * cols]);
            });
        } else {
            for (i, &row) in rows.iter().enumerate() {
                target.row_mut(row)[column..column + cols].copy_from_slice(&source.row(i)[columns.clone()]);
            }
        }
    }

    fn scatter_add_block<E: Real>(
        &self,
        source: &Matrix<E>,
        columns: Range<usize>,
        rows: &[usize],
        target: &mut Matrix<E>,
        column: usize,
    ) {
        assert_eq!(source.rows(), rows.len(), "a row of the source per row of the list");
        inside(&columns, source.cols(), column, target.cols());
        for (i, &row) in rows.iter().enumerate() {
            let sums = target.row_mut(row)[column..column + columns.len()].iter_mut();
            sums.zip(&source.row(i)[columns.clone()]).for_each(|(sum, &value)| *sum += value);
        }
    }

    fn add(&self, x: &mut ElemMatrix<Self>, y: &ElemMatrix<Self>) {
        assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()), "shapes of a sum");
        by_elements(self, y.len(), RowsMut::new(x, 1), |range, mut x| {
            let pairs = x.all().iter_mut().zip(&y[range]);
            pairs.for_each(|(x, y)| *x = T::from_acc(x.to_acc() + y.to_acc()));
        });
    }

    fn to_acc(&self, x: &ElemBuffer<Self>) -> AccBuffer<Self> {
        let mut y = self.empty(x.len());
        by_elements(self, x.len(), RowsMut::new(&mut y, 1), |range, mut y| {
            y.all().iter_mut().zip(&x[range]).for_each(|(y, x)| *y = x.to_acc());
        });
        y
    }

    fn to_elem(&self, x: &AccBuffer<Self>) -> ElemBuffer<Self> {
        let mut y = self.empty(x.len());
        by_elements(self, x.len(), RowsMut::new(&mut y, 1), |range, mut y| {
            y.all().iter_mut().zip(&x[range]).for_each(|(y, &x)| *y = T::from_acc(x));
        });
        y
    }
}

/// Refuses columns that a source of `from` columns does not have, or, from its column `column` on, a target of `to`.
fn inside(columns: &Range<usize>, from: usize, column: usize, to: usize) {
    assert!(columns.start <= columns.end && columns.end <= from, "columns {columns:?} of a source of {from}");
    let fits = column.checked_add(columns.len()).is_some_and(|end| end <= to);
    assert!(fits, "{} columns from {column} on of a target of {to}", columns.len());
}

/// Calls `each(index in the list, row, length)` for every stretch of consecutive rows, all of them below `limit`.
fn each_run(rows: &[usize], limit: usize, mut each: impl FnMut(usize, usize, usize)) {
    let mut at = 0;
    for run in rows.chunk_by(|&row, &next| row.checked_add(1) == Some(next)) {
        let last = run[run.len() - 1];
        assert!(last < limit, "row {last} of {limit}");
        each(at, run[0], run.len());
        at += run.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::*;
    use half::bf16;

    const LIST: [usize; 5] = [4, 5, 6, 1, 0];

    #[test]
    fn gather_into_some_or_all_columns() {
        let cpu = Cpu::<f32>::default();
        let source = Matrix::from_slice(&(0..14).collect::<Vec<i64>>(), 7, 2);
        let mut target: Matrix<i64> = Matrix::from_slice(&[-1; 10], 5, 2);
        cpu.gather_rows(&source, &LIST, &mut target, 0);
        assert_eq!(target[..], [8, 9, 10, 11, 12, 13, 2, 3, 0, 1]);
        let mut wide: Matrix<i64> = Matrix::from_slice(&[-1; 20], 5, 4);
        cpu.gather_rows(&source, &LIST, &mut wide, 1);
        for (i, row) in LIST.iter().enumerate() {
            assert_eq!(wide.row(i), [-1, 2 * *row as i64, 2 * *row as i64 + 1, -1]);
        }
    }

    #[test]
    fn scatter_undoes_gather() {
        let cpu = Cpu::<f32>::default();
        let source = random::<f32>(1, 5, 3);
        for column in 0..2 {
            let cols = 3 - column;
            let mut target: Matrix<f32> = poisoned(7, cols);
            cpu.scatter_rows(&source, &LIST, &mut target, column);
            for (i, &row) in LIST.iter().enumerate() {
                assert_eq!(target.row(row), &source.row(i)[column..]);
            }
            assert!([2, 3].iter().all(|&row| target.row(row).iter().all(|x| x.is_nan())));
            let mut back: Matrix<f32> = poisoned(5, cols);
            cpu.gather_rows(&target, &LIST, &mut back, 0);
            assert!((0..5).all(|i| back.row(i) == &source.row(i)[column..]));
        }
    }

    #[test]
    fn scatter_add_adds_repeated_rows() {
        let cpu = Cpu::<bf16>::default();
        let mut target = matrix::<f32>(&[10.0; 4], 2, 2);
        cpu.scatter_add_rows(&matrix(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3, 2), &[1, 0, 1], &mut target);
        assert_eq!(target[..], [13.0, 14.0, 16.0, 18.0]);
    }

    #[test]
    fn sums_and_conversions_round_once() {
        let cpu = Cpu::<bf16>::new(2);
        let (mut x, y) = (random::<bf16>(1, 300, 200), random::<bf16>(2, 300, 200));
        let (before, other) = (wide(&x), wide(&y));
        cpu.add(&mut x, &y);
        assert!((0..x.len()).all(|i| x[i] == bf16::from_f64(before[i] + other[i])));
        let acc = cpu.to_acc_matrix(&x);
        assert_eq!(wide(&acc), wide(&x));
        assert_eq!(bits(&cpu.to_elem_matrix(&acc)), bits(&x));
        let fine = Matrix::from_slice(&[1.0f32 + 1.0 / 256.0, 1.0 + 3.0 / 256.0], 1, 2);
        assert_eq!(wide(&cpu.to_elem_matrix(&fine)), [1.0, 1.0 + 4.0 / 256.0]);
    }

    #[test]
    fn negative_zero_and_nan_bits_survive_moving() {
        let cpu = Cpu::<f32>::default();
        let source = Matrix::from_slice(&[-0.0f32, f32::from_bits(0x7FC0_1234)], 2, 1);
        let mut target = cpu.matrix(2, 1);
        cpu.gather_rows(&source, &[1, 0], &mut target, 0);
        assert_eq!((target[0].to_bits(), target[1].to_bits()), (0x7FC0_1234, 0x8000_0000));
    }

    #[test]
    fn rows_and_columns_past_the_end_are_refused_however_large() {
        let cpu = Cpu::<f32>::default();
        let source = Matrix::from_slice(&[1i64; 8], 2, 4);
        let refused = |rows: &[usize], columns: Range<usize>, column: usize, part: &str| {
            for scatter in [false, true] {
                let run = || {
                    let mut target = Matrix::from_slice(&vec![0i64; 4 * rows.len()], rows.len(), 4);
                    match scatter {
                        false => cpu.gather_block(&source, rows, columns.clone(), &mut target, column),
                        true => cpu.scatter_block(&target, columns.clone(), rows, &mut source.clone(), column),
                    }
                };
                let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
                let message = *panic.downcast::<String>().unwrap();
                assert!(message.contains(part), "{message}");
            }
        };
        // Times 4 columns this would be row 0 again.
        refused(&[1 << 62], 0..4, 0, "row 4611686018427387904 of");
        refused(&[1 << 62], 0..3, 0, "row 4611686018427387904 of");
        refused(&[usize::MAX, 0], 0..4, 0, "row 18446744073709551615 of");
        refused(&[0], 1..4, usize::MAX, "3 columns from 18446744073709551615 on");
        refused(&[0], 3..5, 0, "columns 3..5 of a source of 4");
    }

    #[test]
    fn no_rows() {
        let cpu = Cpu::<f32>::default();
        let (source, mut none) = (random::<f32>(1, 7, 2), random::<f32>(1, 0, 2));
        cpu.gather_rows(&source, &[], &mut none, 0);
        let (mut target, before) = (source.clone(), wide(&source));
        cpu.scatter_rows(&none, &[], &mut target, 0);
        cpu.scatter_add_rows(&none, &[], &mut target);
        cpu.add(&mut none, &random(2, 0, 2));
        assert_eq!(wide(&target), before);
    }
}
