//! The gated activation on the processor.

use super::Swiglu;
use crate::ops::exp::exp;
use crate::ops::parallel::{RowsMut, by_elements};
use crate::tensor::{Cpu, Device, ElemMatrix, Float, Real};

#[inline(always)]
fn sigmoid<A: Real>(x: A) -> A {
    A::one() / (A::one() + exp(-x))
}

impl<T: Float> Swiglu for Cpu<T> {
    fn swiglu(&self, gate: &ElemMatrix<Self>, up: &ElemMatrix<Self>) -> ElemMatrix<Self> {
        assert_eq!((gate.rows(), gate.cols()), (up.rows(), up.cols()), "gate and up");
        let mut y = self.matrix(gate.rows(), gate.cols());
        by_elements(self, gate.len(), RowsMut::new(&mut y, 1), |range, mut y| {
            for ((y, g), u) in y.all().iter_mut().zip(&gate[range.clone()]).zip(&up[range]) {
                let g = g.to_acc();
                *y = T::from_acc(g * sigmoid(g) * u.to_acc());
            }
        });
        y
    }

    fn swiglu_backward(
        &self,
        gate: &ElemMatrix<Self>,
        up: &ElemMatrix<Self>,
        dy: &ElemMatrix<Self>,
    ) -> (ElemMatrix<Self>, ElemMatrix<Self>) {
        let (rows, cols) = (gate.rows(), gate.cols());
        assert_eq!((up.rows(), up.cols()), (rows, cols), "gate and up");
        assert_eq!((dy.rows(), dy.cols()), (rows, cols), "the gradient's shape");
        let (mut dgate, mut dup) = (self.matrix(rows, cols), self.matrix(rows, cols));
        let outputs = (RowsMut::new(&mut dgate, 1), RowsMut::new(&mut dup, 1));
        by_elements(self, gate.len(), outputs, |range, (mut dgate, mut dup)| {
            let inputs = gate[range.clone()].iter().zip(&up[range.clone()]).zip(&dy[range]);
            for ((dg, du), ((g, u), dy)) in dgate.all().iter_mut().zip(dup.all()).zip(inputs) {
                let (g, u, dy) = (g.to_acc(), u.to_acc(), dy.to_acc());
                let s = sigmoid(g);
                // silu'(g) = s + g s (1 - s).
                let one = <T::Acc as num_traits::One>::one();
                *dg = T::from_acc(dy * u * (s * (one + g * (one - s))));
                *du = T::from_acc(dy * (g * s));
            }
        });
        (dgate, dup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::*;
    use half::bf16;

    /// Output, gradient of gate, gradient of up.
    fn run<T: Float>(threads: usize, rows: usize, cols: usize) -> [Vec<f64>; 3] {
        let cpu = Cpu::<T>::new(threads);
        poison(&cpu, rows * cols * 8);
        let (gate, up, dy) = (random(1, rows, cols), random(2, rows, cols), random(3, rows, cols));
        let (dgate, dup) = cpu.swiglu_backward(&gate, &up, &dy);
        [wide(&cpu.swiglu(&gate, &up)), wide(&dgate), wide(&dup)]
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let cpu = Cpu::<f64>::default();
        let (gate, up, dy) = (values(1, 35), values(2, 35), values(3, 35));
        let loss = |gate: &[f64], up: &[f64]| dot(&cpu.swiglu(&matrix(gate, 5, 7), &matrix(up, 5, 7)), &dy);
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
        assert_eq!(cpu.swiglu(&gate, &up)[..], [0.0, 600.0]);
        let (dgate, dup) = cpu.swiglu_backward(&gate, &up, &matrix(&[1.0, 1.0], 1, 2));
        assert_eq!(dgate[..], [0.0, 3.0]);
        assert_eq!(dup[..], [0.0, 200.0]);
    }

    #[test]
    fn no_rows() {
        assert!(run::<f32>(2, 0, 8).iter().all(Vec::is_empty));
    }
}
