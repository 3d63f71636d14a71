//! Root-mean-square normalisation on the processor.

use super::RmsNorm;
use crate::ops::parallel::{RowsMut, by_rows};
use crate::ops::sums::{sum, sum3};
use crate::tensor::{AccMatrix, Cpu, Device, ElemMatrix, Float, Matrix, product};

/// Rows whose weight gradients are summed together: fixed, so that the sum does not depend on threads.
const BLOCK: usize = 64;

impl<T: Float> RmsNorm for Cpu<T> {
    fn rms_norm(
        &self,
        x: &ElemMatrix<Self>,
        weight: &ElemMatrix<Self>,
        eps: f64,
    ) -> (ElemMatrix<Self>, AccMatrix<Self>) {
        let (rows, cols) = (x.rows(), x.cols());
        assert_eq!(weight.len(), cols, "a weight of {} features for rows of {cols}", weight.len());
        let (mut y, mut reciprocal) = (self.matrix(rows, cols), self.matrix(rows, 1));
        let outputs = (RowsMut::new(&mut y, cols), RowsMut::new(&mut reciprocal, 1));
        let (one, eps, n) = (T::Acc::from_f64(1.0), T::Acc::from_f64(eps), T::Acc::from_f64(cols as f64));
        by_rows(self, rows, cols, outputs, |range, (mut y, mut reciprocal)| {
            for (i, row) in range.enumerate() {
                let x = x.row(row);
                let mean = sum(x, |x| x.to_acc() * x.to_acc()) / n;
                let r = one / num_traits::Float::sqrt(mean + eps);
                reciprocal.all()[i] = r;
                for ((y, x), w) in y.row(i).iter_mut().zip(x).zip(weight.iter()) {
                    *y = T::from_acc(x.to_acc() * r * w.to_acc());
                }
            }
        });
        (y, reciprocal)
    }

    fn rms_norm_backward(
        &self,
        x: &ElemMatrix<Self>,
        weight: &ElemMatrix<Self>,
        reciprocal: &AccMatrix<Self>,
        dy: &ElemMatrix<Self>,
        dx: &mut ElemMatrix<Self>,
        accumulate: bool,
        dweight: &mut AccMatrix<Self>,
    ) {
        let (rows, cols) = (x.rows(), x.cols());
        assert_eq!((dy.rows(), dy.cols()), (rows, cols), "the gradient's shape");
        assert_eq!((dx.rows(), dx.cols()), (rows, cols), "the shape of the input's gradient");
        assert_eq!((weight.len(), dweight.len(), reciprocal.len()), (cols, cols, rows), "weights and reciprocals");
        let n = T::Acc::from_f64(cols as f64);
        by_rows(self, rows, cols, RowsMut::new(dx, cols), |range, mut dx| {
            for (i, row) in range.enumerate() {
                let (x, dy, r) = (x.row(row), dy.row(row), reciprocal[row]);
                // d/dx of x r w: r (w dy - x r^2 mean(x w dy)).
                let mean = sum3(x, dy, weight, |x, dy, w| x.to_acc() * (w.to_acc() * dy.to_acc())) / n;
                let back = r * r * mean;
                let gradient = |x: T, dy: T, w: T| r * (w.to_acc() * dy.to_acc() - x.to_acc() * back);
                let inputs = x.iter().zip(dy).zip(weight.iter());
                if accumulate {
                    for (dx, ((&x, &dy), &w)) in dx.row(i).iter_mut().zip(inputs) {
                        *dx = T::from_acc(dx.to_acc() + gradient(x, dy, w));
                    }
                } else {
                    for (dx, ((&x, &dy), &w)) in dx.row(i).iter_mut().zip(inputs) {
                        *dx = T::from_acc(gradient(x, dy, w));
                    }
                }
            }
        });

        let blocks = rows.div_ceil(BLOCK);
        let mut partial: Matrix<T::Acc> = Matrix::new(self.scratch(product(&[blocks, cols])), blocks, cols);
        partial.fill(T::Acc::default());
        by_rows(self, blocks, cols.saturating_mul(BLOCK), RowsMut::new(&mut partial, cols), |range, mut partial| {
            for (i, block) in range.enumerate() {
                for row in block * BLOCK..rows.min((block + 1) * BLOCK) {
                    let r = reciprocal[row];
                    for ((sum, x), dy) in partial.row(i).iter_mut().zip(x.row(row)).zip(dy.row(row)) {
                        *sum += dy.to_acc() * (x.to_acc() * r);
                    }
                }
            }
        });
        for block in 0..blocks {
            dweight.iter_mut().zip(partial.row(block)).for_each(|(sum, &part)| *sum += part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::*;
    use half::bf16;

    const EPS: f64 = 1e-5;

    /// Output, reciprocal, `dx`, `dweight` of random inputs.
    fn run<T: Float>(threads: usize, rows: usize, cols: usize) -> [Vec<f64>; 4] {
        let cpu = Cpu::<T>::new(threads);
        poison(&cpu, rows * cols * 8);
        let (x, w, dy) = (random::<T>(1, rows, cols), random::<T>(2, 1, cols), random::<T>(3, rows, cols));
        let (y, reciprocal) = cpu.rms_norm(&x, &w, EPS);
        let (mut dx, mut dw) = (poisoned::<T>(rows, cols), cpu.zero_matrix(1, cols));
        cpu.rms_norm_backward(&x, &w, &reciprocal, &dy, &mut dx, false, &mut dw);
        [wide(&y), wide(&reciprocal), wide(&dx), wide(&dw)]
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let (rows, cols) = (3, 21);
        let cpu = Cpu::<f64>::default();
        let (x, w, dy) = (values(1, rows * cols), values(2, cols), values(3, rows * cols));
        let loss = |x: &[f64], w: &[f64]| {
            let (y, _) = cpu.rms_norm(&matrix(x, rows, cols), &matrix(w, 1, cols), EPS);
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
        let (_, reciprocal) = cpu.rms_norm(&x, &w, EPS);
        let (mut dx, mut dw) = (matrix(&[10.0; 10], 2, 5), matrix(&[20.0; 5], 1, 5));
        cpu.rms_norm_backward(&x, &w, &reciprocal, &dy, &mut dx, true, &mut dw);
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
        let (y, _) = cpu.rms_norm(&x, &w, EPS);
        for row in 0..9 {
            let (alone, _) = cpu.rms_norm(&Matrix::from_slice(x.row(row), 1, 33), &w, EPS);
            assert_eq!(bits(&alone), bits(y.row(row)));
        }
    }

    #[test]
    fn no_rows() {
        let [y, reciprocal, dx, dw] = run::<f32>(1, 0, 4);
        assert!(y.is_empty() && reciprocal.is_empty() && dx.is_empty());
        assert_eq!(dw, [0.0; 4]);
    }
}
