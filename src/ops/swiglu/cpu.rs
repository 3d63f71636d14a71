//! The gated activation on the processor.

use super::Swiglu;
use crate::ops::parallel::{RowsMut, by_rows, by_stretches};
use crate::ops::simd;
use crate::tensor::{Cpu, ElemMut, ElemRef, Float};

/// Elements whose sigmoids are in memory at a time.
const CHUNK: usize = 128;

/// Calls `each` with an element's number, the element and its sigmoid, one after another.
///
/// The exponential is that of a number below 0, so that it is 0 where a sigmoid is.
fn with_sigmoids<T: Float>(x: &[T], mut each: impl FnMut(usize, T::Acc, T::Acc)) {
    let (one, mut exponentials) = (T::Acc::from_f64(1.0), [T::Acc::default(); CHUNK]);
    for (index, chunk) in x.chunks(CHUNK).enumerate() {
        let exponentials = &mut exponentials[..chunk.len()];
        exponentials.iter_mut().zip(chunk).for_each(|(e, x)| *e = -num_traits::Float::abs(x.to_acc()));
        simd::exp_sum(exponentials, T::Acc::default());
        for (i, (x, &e)) in chunk.iter().zip(exponentials.iter()).enumerate() {
            let x = x.to_acc();
            each(index * CHUNK + i, x, if x >= T::Acc::default() { one } else { e } / (one + e));
        }
    }
}

impl<T: Float> Swiglu for Cpu<T> {
    fn swiglu(&self, gate: ElemRef<'_, Self>, up: ElemRef<'_, Self>, y: ElemMut<'_, Self>) {
        by_stretches(self, [gate, up], y, |[gate, up], y| {
            with_sigmoids(gate, |i, g, s| y[i] = T::from_acc(g * s * up[i].to_acc()));
        });
    }

    fn swiglu_backward(
        &self,
        gate: ElemRef<'_, Self>,
        up: ElemRef<'_, Self>,
        dy: ElemRef<'_, Self>,
        mut gradient: ElemMut<'_, Self>,
    ) {
        let (rows, cols) = (gate.rows(), gate.cols());
        assert_eq!((up.rows(), up.cols()), (rows, cols), "gate and up");
        assert_eq!((dy.rows(), dy.cols()), (rows, cols), "the gradient's shape");
        assert_eq!((gradient.rows(), gradient.cols()), (rows, 2 * cols), "gradients of gate and up, side by side");
        let one = T::Acc::from_f64(1.0);
        by_rows(self, rows, 2 * cols, RowsMut::of(&mut gradient), |range, mut gradient| {
            for (i, row) in range.enumerate() {
                let (up, dy) = (up.row(row), dy.row(row));
                let (dgate, dup) = gradient.row(i).split_at_mut(cols);
                with_sigmoids(gate.row(row), |i, g, s| {
                    let (u, dy) = (up[i].to_acc(), dy[i].to_acc());
                    // silu'(g) = s + g s (1 - s).
                    dgate[i] = T::from_acc(dy * u * (s * (one + g * (one - s))));
                    dup[i] = T::from_acc(dy * (g * s));
                });
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::*;
    use crate::tensor::Matrix;
    use half::bf16;

    fn swiglu<T: Float>(cpu: &Cpu<T>, gate: &Matrix<T>, up: &Matrix<T>) -> Matrix<T> {
        let mut y = poisoned(gate.rows(), gate.cols());
        cpu.swiglu(gate.view(), up.view(), y.view_mut());
        y
    }

    /// Gradients of gate and up.
    fn backward<T: Float>(cpu: &Cpu<T>, gate: &Matrix<T>, up: &Matrix<T>, dy: &Matrix<T>) -> [Vec<T>; 2] {
        let cols = gate.cols();
        let mut gradient = poisoned::<T>(gate.rows(), 2 * cols);
        cpu.swiglu_backward(gate.view(), up.view(), dy.view(), gradient.view_mut());
        [0..cols, cols..2 * cols].map(|columns| gradient.view().column_range(columns).to_vec())
    }

    /// Output, gradient of gate, gradient of up.
    fn run<T: Float>(threads: usize, rows: usize, cols: usize) -> [Vec<f64>; 3] {
        let cpu = Cpu::<T>::new(threads);
        poison(&cpu, rows * cols * 8);
        let (gate, up, dy) = (random(1, rows, cols), random(2, rows, cols), random(3, rows, cols));
        let [dgate, dup] = backward(&cpu, &gate, &up, &dy);
        [wide(&swiglu(&cpu, &gate, &up)), wide(&dgate), wide(&dup)]
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let cpu = Cpu::<f64>::default();
        let (gate, up, dy) = (values(1, 35), values(2, 35), values(3, 35));
        let loss = |gate: &[f64], up: &[f64]| dot(&swiglu(&cpu, &matrix(gate, 5, 7), &matrix(up, 5, 7)), &dy);
        let [_, dgate, dup] = run::<f64>(1, 5, 7);
        assert!(relative(&dgate, &differences(&gate, |gate| loss(gate, &up))) < 1e-8);
        assert!(relative(&dup, &differences(&up, |up| loss(&gate, up))) < 1e-8);
    }

    #[test]
    fn single_and_half_precision_agree_with_double() {
        let exact = run::<f64>(1, 9, 33);
        for (exact, (single, half)) in exact.iter().zip(run::<f32>(1, 9, 33).iter().zip(&run::<bf16>(1, 9, 33))) {
            assert!(relative(single, exact) < 5e-7);
            assert!(relative(half, exact) < 1e-2);
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        assert_eq!(run::<f32>(1, 301, 333), run::<f32>(3, 301, 333));
    }

    #[test]
    fn large_gates_saturate() {
        let cpu = Cpu::<f32>::default();
        let (gate, up) = (matrix(&[-200.0, 200.0], 1, 2), matrix(&[3.0, 3.0], 1, 2));
        assert_eq!(swiglu(&cpu, &gate, &up)[..], [0.0, 600.0]);
        let [dgate, dup] = backward(&cpu, &gate, &up, &matrix(&[1.0, 1.0], 1, 2));
        assert_eq!(dgate[..], [0.0, 3.0]);
        assert_eq!(dup[..], [0.0, 200.0]);
    }

    #[test]
    fn halves_of_one_matrix_are_as_good_as_matrices_of_their_own() {
        let (cpu, both) = (Cpu::<bf16>::new(2), random::<bf16>(1, 11, 14));
        let halves = [0..7, 7..14].map(|columns| both.view().column_range(columns));
        let [gate, up] = halves.map(|half| Matrix::from_slice(&half.to_vec(), 11, 7));
        let mut y = poisoned(11, 7);
        cpu.swiglu(halves[0], halves[1], y.view_mut());
        assert_eq!(bits(&y), bits(&swiglu(&cpu, &gate, &up)));
    }

    #[test]
    fn no_rows() {
        assert!(run::<f32>(2, 0, 8).iter().all(Vec::is_empty));
    }
}
