//! Row movements on the processor.

use super::Rows;
use crate::ops::parallel::{RowsMut, by_rows, by_stretches};
use crate::tensor::{AccMut, AccRef, Cpu, ElemMut, ElemRef, Element, Float, MatrixMut, MatrixRef, Real};

impl<T: Float> Rows for Cpu<T> {
    fn gather_rows<E: Element>(&self, source: MatrixRef<'_, E>, rows: &[usize], mut target: MatrixMut<'_, E>) {
        let cols = source.cols();
        assert_eq!((target.rows(), target.cols()), (rows.len(), cols), "a row of the target per row of the list");
        let flat = source.flat().filter(|_| target.is_contiguous());
        by_rows(self, rows.len(), cols, RowsMut::of(&mut target), |range, mut target| {
            let rows = &rows[range];
            match flat {
                Some(flat) => each_run(rows, source.rows(), |at, row, len| {
                    target.all()[at * cols..(at + len) * cols].copy_from_slice(&flat[row * cols..(row + len) * cols]);
                }),
                None => rows.iter().enumerate().for_each(|(i, &row)| target.row(i).copy_from_slice(source.row(row))),
            }
        });
    }

    fn scatter_rows<E: Element>(&self, source: MatrixRef<'_, E>, rows: &[usize], mut target: MatrixMut<'_, E>) {
        let cols = source.cols();
        assert_eq!((source.rows(), target.cols()), (rows.len(), cols), "a row of the source per row of the list");
        match source.flat().filter(|_| target.is_contiguous()) {
            Some(flat) => each_run(rows, target.rows(), |at, row, len| {
                target.span_mut()[row * cols..(row + len) * cols].copy_from_slice(&flat[at * cols..(at + len) * cols]);
            }),
            None => rows.iter().enumerate().for_each(|(i, &row)| target.row_mut(row).copy_from_slice(source.row(i))),
        }
    }

    fn scatter_add_rows<E: Real>(&self, source: MatrixRef<'_, E>, rows: &[usize], mut target: MatrixMut<'_, E>) {
        let found = (source.rows(), target.cols());
        assert_eq!(found, (rows.len(), source.cols()), "a row of the source per row of the list");
        for (i, &row) in rows.iter().enumerate() {
            target.row_mut(row).iter_mut().zip(source.row(i)).for_each(|(sum, &value)| *sum += value);
        }
    }

    fn clear<E: Element>(&self, x: MatrixMut<'_, E>) {
        by_stretches(self, [], x, |[]: [&[E]; 0], x| x.fill(E::zeroed()));
    }

    fn add(&self, mut x: ElemMut<'_, Self>, y: ElemRef<'_, Self>) {
        assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()), "shapes of a sum");
        by_stretches(self, [y], x.reborrow(), |[y], x| {
            x.iter_mut().zip(y).for_each(|(x, y)| *x = T::from_acc(x.to_acc() + y.to_acc()));
        });
    }

    fn to_acc(&self, x: ElemRef<'_, Self>, y: AccMut<'_, Self>) {
        by_stretches(self, [x], y, |[x], y| y.iter_mut().zip(x).for_each(|(y, x)| *y = x.to_acc()));
    }

    fn to_elem(&self, x: AccRef<'_, Self>, y: ElemMut<'_, Self>) {
        by_stretches(self, [x], y, |[x], y| y.iter_mut().zip(x).for_each(|(y, &x)| *y = T::from_acc(x)));
    }
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
    use crate::tensor::{Device, Matrix};
    use half::bf16;

    const LIST: [usize; 5] = [4, 5, 6, 1, 0];

    #[test]
    fn gather_into_some_or_all_columns() {
        let cpu = Cpu::<f32>::default();
        let source = Matrix::from_slice(&(0..14).collect::<Vec<i64>>(), 7, 2);
        let mut target: Matrix<i64> = Matrix::from_slice(&[-1; 10], 5, 2);
        cpu.gather_rows(source.view(), &LIST, target.view_mut());
        assert_eq!(target[..], [8, 9, 10, 11, 12, 13, 2, 3, 0, 1]);
        let mut wide: Matrix<i64> = Matrix::from_slice(&[-1; 20], 5, 4);
        cpu.gather_rows(source.view(), &LIST, wide.view_mut().column_range(1..3));
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
            cpu.scatter_rows(source.view().column_range(column..3), &LIST, target.view_mut());
            for (i, &row) in LIST.iter().enumerate() {
                assert_eq!(target.row(row), &source.row(i)[column..]);
            }
            assert!([2, 3].iter().all(|&row| target.row(row).iter().all(|x| x.is_nan())));
            let mut back: Matrix<f32> = poisoned(5, cols);
            cpu.gather_rows(target.view(), &LIST, back.view_mut());
            assert!((0..5).all(|i| back.row(i) == &source.row(i)[column..]));
        }
    }

    #[test]
    fn scatter_add_adds_repeated_rows() {
        let cpu = Cpu::<bf16>::default();
        let mut target = matrix::<f32>(&[10.0; 4], 2, 2);
        let source = matrix(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3, 2);
        cpu.scatter_add_rows(source.view(), &[1, 0, 1], target.view_mut());
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
        cpu.gather_rows(source.view(), &[1, 0], target.view_mut());
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
                        false => cpu.gather_rows(source.view().column_range(columns), rows, target.view_mut()),
                        true => {
                            let mut source = source.clone();
                            cpu.scatter_rows(target.view(), rows, source.view_mut().column_range(columns));
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
        cpu.gather_rows(source.view(), &[], none.view_mut());
        let (mut target, before) = (source.clone(), wide(&source));
        cpu.scatter_rows(none.view(), &[], target.view_mut());
        cpu.scatter_add_rows(none.view(), &[], target.view_mut());
        cpu.add(none.view_mut(), random(2, 0, 2).view());
        assert_eq!(wide(&target), before);
    }
}
