//! Root-mean-square normalisation on the processor.

use super::RmsNorm;
use crate::ops::parallel::{RowsMut, by_rows};
use crate::ops::sums::{sum, sum3};
use crate::tensor::{AccMut, AccRef, Cpu, ElemMut, ElemRef, Float, MatrixRef, product};

/// Rows whose weight gradients are summed together: fixed, so that the sum does not depend on threads.
const BLOCK: usize = 64;

impl<T: Float> RmsNorm for Cpu<T> {
    fn rms_norm(
        &self,
        x: ElemRef<'_, Self>,
        weight: ElemRef<'_, Self>,
        parts: usize,
        eps: f64,
        mut y: ElemMut<'_, Self>,
        mut reciprocal: AccMut<'_, Self>,
    ) {
        let (rows, cols) = (x.rows(), x.cols());
        let width = width(x, weight, parts);
        assert_eq!((y.rows(), y.cols()), (rows, cols), "the result's shape");
        assert_eq!((reciprocal.rows(), reciprocal.cols()), (rows, parts), "a reciprocal for each part of a row");
        let outputs = (RowsMut::of(&mut y), RowsMut::of(&mut reciprocal));
        let (zero, one) = (T::Acc::from_f64(0.0), T::Acc::from_f64(1.0));
        let (eps, n, weight) = (T::Acc::from_f64(eps), T::Acc::from_f64(width as f64), weight.row(0));
        by_rows(self, rows, cols, outputs, |range, (mut y, mut reciprocal)| {
            for (i, row) in range.enumerate() {
                let heads = x.row(row).chunks_exact(width).zip(y.row(i).chunks_exact_mut(width));
                for ((x, y), reciprocal) in heads.zip(reciprocal.row(i)) {
                    let mean = sum(x, |x| x.to_acc() * x.to_acc()) / n;
                    let root = num_traits::Float::sqrt(mean + eps);
                    let r = if root == zero { zero } else { one / root };
                    *reciprocal = r;
                    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                        *y = T::from_acc(x.to_acc() * r * w.to_acc());
                    }
                }
            }
        });
    }

    fn rms_norm_backward(
        &self,
        x: ElemRef<'_, Self>,
        weight: ElemRef<'_, Self>,
        reciprocal: AccRef<'_, Self>,
        dy: ElemRef<'_, Self>,
        mut dx: ElemMut<'_, Self>,
        accumulate: bool,
        mut dweight: AccMut<'_, Self>,
    ) {
        let (rows, cols, parts) = (x.rows(), x.cols(), reciprocal.cols());
        let width = width(x, weight, parts);
        assert_eq!((dy.rows(), dy.cols()), (rows, cols), "the gradient's shape");
        assert_eq!((dx.rows(), dx.cols()), (rows, cols), "the shape of the input's gradient");
        assert_eq!((reciprocal.rows(), dweight.rows(), dweight.cols()), (rows, 1, width), "weights and reciprocals");
        let (n, weight) = (T::Acc::from_f64(width as f64), weight.row(0));
        by_rows(self, rows, cols, RowsMut::of(&mut dx), |range, mut dx| {
            for (i, row) in range.enumerate() {
                let inputs = x.row(row).chunks_exact(width).zip(dy.row(row).chunks_exact(width));
                let heads = inputs.zip(dx.row(i).chunks_exact_mut(width)).zip(reciprocal.row(row));
                for (((x, dy), dx), &r) in heads {
                    // d/dx of x r w: r (w dy - x r^2 mean(x w dy)).
                    let mean = sum3(x, dy, weight, |x, dy, w| x.to_acc() * (w.to_acc() * dy.to_acc())) / n;
                    let back = r * r * mean;
                    let gradient = |x: T, dy: T, w: T| r * (w.to_acc() * dy.to_acc() - x.to_acc() * back);
                    let inputs = x.iter().zip(dy).zip(weight);
                    if accumulate {
                        for (dx, ((&x, &dy), &w)) in dx.iter_mut().zip(inputs) {
                            *dx = T::from_acc(dx.to_acc() + gradient(x, dy, w));
                        }
                    } else {
                        for (dx, ((&x, &dy), &w)) in dx.iter_mut().zip(inputs) {
                            *dx = T::from_acc(gradient(x, dy, w));
                        }
                    }
                }
            }
        });

        let heads = product(&[rows, parts]);
        let blocks = heads.div_ceil(BLOCK);
        let mut partial = self.scratch::<T::Acc>(product(&[blocks, width]));
        partial.fill(T::Acc::default());
        by_rows(self, blocks, width.saturating_mul(BLOCK), RowsMut::new(&mut partial, width), |range, mut partial| {
            for (i, block) in range.enumerate() {
                for head in block * BLOCK..heads.min((block + 1) * BLOCK) {
                    let (row, part) = (head / parts, head % parts);
                    let (r, columns) = (reciprocal.row(row)[part], part * width..(part + 1) * width);
                    let inputs = x.row(row)[columns.clone()].iter().zip(&dy.row(row)[columns]);
                    for (sum, (x, dy)) in partial.row(i).iter_mut().zip(inputs) {
                        *sum += dy.to_acc() * (x.to_acc() * r);
                    }
                }
            }
        });
        for block in partial.chunks_exact(width) {
            dweight.row_mut(0).iter_mut().zip(block).for_each(|(sum, &part)| *sum += part);
        }
    }
}

/// Features of a part of a row.
fn width<T: Float>(x: MatrixRef<T>, weight: MatrixRef<T>, parts: usize) -> usize {
    let (cols, width) = (x.cols(), weight.cols());
    let fits = weight.rows() == 1 && width > 0 && parts.checked_mul(width) == Some(cols);
    assert!(fits, "a weight of {} features for rows of {cols} in {parts} parts", weight.len());
    width
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::*;
    use crate::tensor::{Device, Matrix};
    use half::bf16;

    const EPS: f64 = 1e-5;

    /// Output and reciprocals of rows in `parts`.
    fn norm<T: Float>(cpu: &Cpu<T>, x: &Matrix<T>, w: &Matrix<T>, parts: usize) -> (Matrix<T>, Matrix<T::Acc>) {
        let (mut y, mut reciprocal) = (poisoned(x.rows(), x.cols()), poisoned(x.rows(), parts));
        cpu.rms_norm(x.view(), w.view(), parts, EPS, y.view_mut(), reciprocal.view_mut());
        (y, reciprocal)
    }

    /// Output, reciprocal, `dx`, `dweight` of random inputs.
    fn run<T: Float>(threads: usize, rows: usize, cols: usize) -> [Vec<f64>; 4] {
        let cpu = Cpu::<T>::new(threads);
        poison(&cpu, rows * cols * 8);
        let (x, w, dy) = (random::<T>(1, rows, cols), random::<T>(2, 1, cols), random::<T>(3, rows, cols));
        let (y, reciprocal) = norm(&cpu, &x, &w, 1);
        let (mut dx, mut dw) = (poisoned::<T>(rows, cols), cpu.zero_matrix(1, cols));
        let (dx_view, dw_view) = (dx.view_mut(), dw.view_mut());
        cpu.rms_norm_backward(x.view(), w.view(), reciprocal.view(), dy.view(), dx_view, false, dw_view);
        [wide(&y), wide(&reciprocal), wide(&dx), wide(&dw)]
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let (rows, cols) = (3, 21);
        let cpu = Cpu::<f64>::default();
        let (x, w, dy) = (values(1, rows * cols), values(2, cols), values(3, rows * cols));
        let loss = |x: &[f64], w: &[f64]| {
            let (y, _) = norm(&cpu, &matrix(x, rows, cols), &matrix(w, 1, cols), 1);
            dot(&y, &dy)
        };
        let [_, _, dx, dw] = run::<f64>(1, rows, cols);
        assert!(relative(&dx, &differences(&x, |x| loss(x, &w))) < 1e-8);
        assert!(relative(&dw, &differences(&w, |w| loss(&x, w))) < 1e-8);
    }

    #[test]
    fn gradients_accumulate() {
        let cpu = Cpu::<f32>::default();
        let (x, w, dy) = (random(1, 2, 5), random(2, 1, 5), random(3, 2, 5));
        let (_, reciprocal) = norm(&cpu, &x, &w, 1);
        let (mut dx, mut dw) = (matrix(&[10.0; 10], 2, 5), matrix(&[20.0; 5], 1, 5));
        let (dx_view, dw_view) = (dx.view_mut(), dw.view_mut());
        cpu.rms_norm_backward(x.view(), w.view(), reciprocal.view(), dy.view(), dx_view, true, dw_view);
        let [_, _, dx_alone, dw_alone] = run::<f32>(1, 2, 5);
        assert!((0..10).all(|i| (f64::from(dx[i]) - 10.0 - dx_alone[i]).abs() < 1e-5));
        assert!((0..5).all(|i| (f64::from(dw[i]) - 20.0 - dw_alone[i]).abs() < 1e-5));
    }

    #[test]
    fn single_and_half_precision_agree_with_double() {
        let exact = run::<f64>(1, 70, 96);
        for (exact, (single, half)) in exact.iter().zip(run::<f32>(1, 70, 96).iter().zip(&run::<bf16>(1, 70, 96))) {
            assert!(relative(single, exact) < 1e-6);
            assert!(relative(half, exact) < 1e-2);
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        assert_eq!(run::<f32>(1, 1100, 65), run::<f32>(3, 1100, 65));
    }

    #[test]
    fn a_row_does_not_depend_on_the_others() {
        let (cpu, x, w) = (Cpu::<f32>::default(), random::<f32>(1, 9, 33), random(2, 1, 33));
        let (y, _) = norm(&cpu, &x, &w, 1);
        for row in 0..9 {
            let (alone, _) = norm(&cpu, &Matrix::from_slice(x.row(row), 1, 33), &w, 1);
            assert_eq!(bits(&alone), bits(y.row(row)));
        }
    }

    #[test]
    fn parts_of_a_row_in_part_of_a_matrix_are_rows_of_their_own() {
        let (rows, parts, width) = (30, 3, 7);
        let cpu = Cpu::<f32>::new(2);
        let (x, dy, w) = (random::<f32>(1, rows, 40), random::<f32>(2, rows, 40), random::<f32>(3, 1, width));
        let columns = 5..5 + parts * width;
        let heads =
            |x: &Matrix<f32>| matrix(&wide(&x.view().column_range(columns.clone()).to_vec()), rows * parts, width);
        let (alone, reciprocal_alone) = norm(&cpu, &heads(&x), &w, 1);
        let (mut y, mut reciprocal) = (poisoned::<f32>(rows, 40), poisoned::<f32>(rows, parts));
        let part = |x: &'_ Matrix<f32>| -> Vec<f32> { x.view().column_range(columns.clone()).to_vec() };
        let target = y.view_mut().column_range(columns.clone());
        cpu.rms_norm(x.view().column_range(columns.clone()), w.view(), parts, EPS, target, reciprocal.view_mut());
        assert_eq!((part(&y), &reciprocal[..]), (alone.to_vec(), &reciprocal_alone[..]));
        assert!(y.row(3)[..5].iter().chain(&y.row(3)[columns.end..]).all(|y| y.is_nan()), "nothing else is written");

        let (mut dx, mut dw) = (poisoned::<f32>(rows, 40), cpu.zero_matrix(1, width));
        let (x_part, dy_part) = (x.view().column_range(columns.clone()), dy.view().column_range(columns.clone()));
        let target = dx.view_mut().column_range(columns.clone());
        cpu.rms_norm_backward(x_part, w.view(), reciprocal.view(), dy_part, target, false, dw.view_mut());
        let (mut dx_alone, mut dw_alone) = (poisoned::<f32>(rows * parts, width), cpu.zero_matrix(1, width));
        let (x, dy, targets) = (heads(&x), heads(&dy), (dx_alone.view_mut(), dw_alone.view_mut()));
        cpu.rms_norm_backward(x.view(), w.view(), reciprocal_alone.view(), dy.view(), targets.0, false, targets.1);
        assert_eq!((part(&dx), &dw[..]), (dx_alone.to_vec(), &dw_alone[..]));
    }

    #[test]
    fn of_zeros_it_is_zero_without_an_epsilon_too() {
        let cpu = Cpu::<f32>::default();
        let (x, w) = (matrix::<f32>(&[0.0; 4], 1, 4), random::<f32>(1, 1, 4));
        let (mut y, mut reciprocal) = (poisoned(1, 4), poisoned(1, 1));
        cpu.rms_norm(x.view(), w.view(), 1, 0.0, y.view_mut(), reciprocal.view_mut());
        assert_eq!((&y[..], &reciprocal[..]), (&[0.0; 4][..], &[0.0][..]));
    }

    #[test]
    fn no_rows() {
        let [y, reciprocal, dx, dw] = run::<f32>(1, 0, 4);
        assert!(y.is_empty() && reciprocal.is_empty() && dx.is_empty());
        assert_eq!(dw, [0.0; 4]);
    }
}
