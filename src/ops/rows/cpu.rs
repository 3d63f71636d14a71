//! Row movements on the processor.

use std::ops::Range;

use super::MoveRows;
use crate::ops::parallel::{RowsMut, by_rows, by_stretches};
use crate::order::{Rows, Run};
use crate::tensor::{AccMut, AccRef, Cpu, ElemMut, ElemRef, Element, Float, MatrixMut, MatrixRef, Real};

impl<T: Float> MoveRows for Cpu<T> {
    type Rows = Rows;

    fn rows(&self, rows: &Rows) -> Rows {
        rows.clone()
    }

    fn gather_rows<E: Element>(&self, source: MatrixRef<'_, E>, rows: &Rows, mut target: MatrixMut<'_, E>) {
        let cols = source.cols();
        assert_eq!((target.rows(), target.cols()), (rows.len(), cols), "a row of the target per row of the list");
        let flat = source.flat().filter(|_| target.is_contiguous());
        by_rows(self, rows.len(), cols, RowsMut::of(&mut target), |range, mut target| {
            each_run(rows, range, source.rows(), |at, run| match flat {
                Some(flat) if run.step == 1 => {
                    let from = &flat[run.start * cols..(run.start + run.len) * cols];
                    target.all()[at * cols..(at + run.len) * cols].copy_from_slice(from);
                }
                _ => {
                    let pairs = run.iter().enumerate();
                    pairs.for_each(|(i, row)| target.row(at + i).copy_from_slice(source.row(row)));
                }
            });
        });
    }

    fn scatter_rows<E: Element>(&self, source: MatrixRef<'_, E>, rows: &Rows, mut target: MatrixMut<'_, E>) {
        let cols = source.cols();
        assert_eq!((source.rows(), target.cols()), (rows.len(), cols), "a row of the source per row of the list");
        let flat = source.flat().filter(|_| target.is_contiguous());
        each_run(rows, 0..rows.len(), target.rows(), |at, run| match flat {
            Some(flat) if run.step == 1 => {
                let to = &mut target.span_mut()[run.start * cols..(run.start + run.len) * cols];
                to.copy_from_slice(&flat[at * cols..(at + run.len) * cols]);
            }
            _ => {
                let pairs = run.iter().enumerate();
                pairs.for_each(|(i, row)| target.row_mut(row).copy_from_slice(source.row(at + i)));
            }
        });
    }

    fn scatter_add_rows<E: Real>(&self, source: MatrixRef<'_, E>, rows: &Rows, mut target: MatrixMut<'_, E>) {
        let found = (source.rows(), target.cols());
        assert_eq!(found, (rows.len(), source.cols()), "a row of the source per row of the list");
        each_run(rows, 0..rows.len(), target.rows(), |at, run| {
            for (i, row) in run.iter().enumerate() {
                target.row_mut(row).iter_mut().zip(source.row(at + i)).for_each(|(sum, &value)| *sum += value);
            }
        });
    }

    fn copy<E: Element>(&self, source: MatrixRef<'_, E>, target: MatrixMut<'_, E>) {
        by_stretches(self, [source], target, |[source], target| target.copy_from_slice(source));
    }

    fn fill<E: Element>(&self, x: MatrixMut<'_, E>, value: E) {
        by_stretches(self, [], x, |[]: [&[E]; 0], x| x.fill(value));
    }

    fn add<E: Float>(&self, mut x: MatrixMut<'_, E>, y: MatrixRef<'_, E>) {
        assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()), "shapes of a sum");
        by_stretches(self, [y], x.reborrow(), |[y], x| {
            x.iter_mut().zip(y).for_each(|(x, y)| *x = E::from_acc(x.to_acc() + y.to_acc()));
        });
    }

    fn to_acc(&self, x: ElemRef<'_, Self>, y: AccMut<'_, Self>) {
        by_stretches(self, [x], y, |[x], y| y.iter_mut().zip(x).for_each(|(y, x)| *y = x.to_acc()));
    }

    fn to_elem(&self, x: AccRef<'_, Self>, y: ElemMut<'_, Self>) {
        by_stretches(self, [x], y, |[x], y| y.iter_mut().zip(x).for_each(|(y, &x)| *y = T::from_acc(x)));
    }
}

/// Calls `each(index in the part, rows)` for the runs of a part of the list, all of them below `limit`.
fn each_run(rows: &Rows, part: Range<usize>, limit: usize, mut each: impl FnMut(usize, Run)) {
    for (at, run) in rows.runs_of(part) {
        let last = (run.len - 1).checked_mul(run.step).and_then(|steps| run.start.checked_add(steps));
        assert!(last.is_some_and(|last| last < limit), "row {} of {limit}", last.unwrap_or(usize::MAX));
        each(at, run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::*;
    use crate::tensor::{Device, Matrix};
    use half::bf16;

    const LIST: [usize; 5] = [4, 5, 6, 1, 0];

    fn list(rows: &[usize]) -> Rows {
        rows.iter().copied().collect()
    }

    #[test]
    fn runs_with_gaps_are_moved_row_by_row_and_in_parts() {
        let cpu = Cpu::<f32>::new(2);
        let source = Matrix::from_slice(&(0..90_000i64).collect::<Vec<_>>(), 30_000, 3);
        let rows: Rows =
            [Run { start: 1, step: 3, len: 9_000 }, Run { start: 0, step: 1, len: 12_345 }].into_iter().collect();
        let mut part: Matrix<i64> = Matrix::from_slice(&vec![-1; rows.len() * 3], rows.len(), 3);
        cpu.gather_rows(source.view(), &rows, part.view_mut());
        assert!(rows.iter().enumerate().all(|(i, row)| part.row(i) == source.row(row)));
        let mut back = source.clone();
        back.fill(-1);
        cpu.scatter_rows(part.view(), &rows, back.view_mut());
        let moved = |row: usize| row < 12_345 || (row < 27_000 && row % 3 == 1);
        assert!((0..30_000).all(|row| back.row(row) == if moved(row) { source.row(row) } else { &[-1; 3] }));
    }

    #[test]
    fn gather_into_some_or_all_columns() {
        let cpu = Cpu::<f32>::default();
        let source = Matrix::from_slice(&(0..14).collect::<Vec<i64>>(), 7, 2);
        let mut target: Matrix<i64> = Matrix::from_slice(&[-1; 10], 5, 2);
        cpu.gather_rows(source.view(), &list(&LIST), target.view_mut());
        assert_eq!(target[..], [8, 9, 10, 11, 12, 13, 2, 3, 0, 1]);
        let mut wide: Matrix<i64> = Matrix::from_slice(&[-1; 20], 5, 4);
        cpu.gather_rows(source.view(), &list(&LIST), wide.view_mut().column_range(1..3));
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
            cpu.scatter_rows(source.view().column_range(column..3), &list(&LIST), target.view_mut());
            for (i, &row) in LIST.iter().enumerate() {
                assert_eq!(target.row(row), &source.row(i)[column..]);
            }
            assert!([2, 3].iter().all(|&row| target.row(row).iter().all(|x| x.is_nan())));
            let mut back: Matrix<f32> = poisoned(5, cols);
            cpu.gather_rows(target.view(), &list(&LIST), back.view_mut());
            assert!((0..5).all(|i| back.row(i) == &source.row(i)[column..]));
        }
    }

    #[test]
    fn scatter_add_adds_repeated_rows() {
        let cpu = Cpu::<bf16>::default();
        let mut target = matrix::<f32>(&[10.0; 4], 2, 2);
        let source = matrix(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3, 2);
        cpu.scatter_add_rows(source.view(), &list(&[1, 0, 1]), target.view_mut());
        assert_eq!(target[..], [13.0, 14.0, 16.0, 18.0]);
    }

    #[test]
    fn sums_and_conversions_round_once() {
        let cpu = Cpu::<bf16>::new(2);
        let (mut x, y) = (random::<bf16>(1, 300, 200), random::<bf16>(2, 300, 200));
        let (before, other) = (wide(&x), wide(&y));
        cpu.add(x.view_mut(), y.view());
        assert!((0..x.len()).all(|i| x[i] == bf16::from_f64(before[i] + other[i])));
        let acc = cpu.to_acc_matrix(x.view());
        assert_eq!(wide(&acc), wide(&x));
        assert_eq!(bits(&cpu.to_elem_matrix(acc.view())), bits(&x));
        let fine = Matrix::from_slice(&[1.0f32 + 1.0 / 256.0, 1.0 + 3.0 / 256.0], 1, 2);
        assert_eq!(wide(&cpu.to_elem_matrix(fine.view())), [1.0, 1.0 + 4.0 / 256.0]);
    }

    #[test]
    fn negative_zero_and_nan_bits_survive_moving() {
        let cpu = Cpu::<f32>::default();
        let source = Matrix::from_slice(&[-0.0f32, f32::from_bits(0x7FC0_1234)], 2, 1);
        let mut target = cpu.matrix(2, 1);
        cpu.gather_rows(source.view(), &list(&[1, 0]), target.view_mut());
        assert_eq!((target[0].to_bits(), target[1].to_bits()), (0x7FC0_1234, 0x8000_0000));
    }

    #[test]
    fn rows_and_columns_past_the_end_are_refused_however_large() {
        let cpu = Cpu::<f32>::default();
        let source = Matrix::from_slice(&[1i64; 8], 2, 4);
        let refused = |rows: &[usize], columns: std::ops::Range<usize>, width: usize, part: &str| {
            for scatter in [false, true] {
                let run = || {
                    let mut target = Matrix::from_slice(&vec![0i64; width * rows.len()], rows.len(), width);
                    let columns = columns.clone();
                    match scatter {
                        false => cpu.gather_rows(source.view().column_range(columns), &list(rows), target.view_mut()),
                        true => {
                            let mut source = source.clone();
                            cpu.scatter_rows(target.view(), &list(rows), source.view_mut().column_range(columns));
                        }
                    }
                };
                let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_err();
                let message = *panic.downcast::<String>().unwrap();
                assert!(message.contains(part), "{message}");
            }
        };
        // Times 4 columns this would be row 0 again.
        refused(&[1 << 62], 0..4, 4, "row 4611686018427387904 of");
        refused(&[1 << 62], 0..3, 3, "row 4611686018427387904 of");
        refused(&[usize::MAX, 0], 0..4, 4, "row 18446744073709551615 of");
        refused(&[0], 1..4, 2, "a row of the");
        refused(&[0], 3..5, 2, "columns 3..5 of a view of 2 x 4");
    }

    #[test]
    fn clears_what_it_is_given_and_nothing_else() {
        let cpu = Cpu::<f32>::default();
        let mut x = Matrix::from_slice(&[1i64; 12], 3, 4);
        cpu.clear(x.view_mut().row_range(1..3).column_range(1..3));
        assert_eq!(x[..], [1, 1, 1, 1, 1, 0, 0, 1, 1, 0, 0, 1]);
        cpu.clear(x.view_mut());
        assert_eq!(x[..], [0; 12]);
    }

    #[test]
    fn no_rows() {
        let cpu = Cpu::<f32>::default();
        let (source, mut none) = (random::<f32>(1, 7, 2), random::<f32>(1, 0, 2));
        cpu.gather_rows(source.view(), &Rows::default(), none.view_mut());
        let (mut target, before) = (source.clone(), wide(&source));
        cpu.scatter_rows(none.view(), &Rows::default(), target.view_mut());
        cpu.scatter_add_rows(none.view(), &Rows::default(), target.view_mut());
        cpu.add(none.view_mut(), random(2, 0, 2).view());
        assert_eq!(wide(&target), before);
    }
}
