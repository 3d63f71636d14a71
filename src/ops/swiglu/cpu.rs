//! SwiGLU on the processor.

use num_traits::Float as _;

use crate::ops::swiglu::Swiglu;
use crate::tensor::{Cpu, Device, Float, Matrix};

impl<T: Float> Swiglu for Cpu<T> {
    fn swiglu(&self, gate: &Matrix<T>, up: &Matrix<T>) -> Matrix<T> {
        let mut y = self.matrix(gate.rows(), gate.cols());
        let one = T::Acc::from_f64(1.0);
        for ((y, &g), &u) in y.iter_mut().zip(gate.iter()).zip(up.iter()) {
            let g = g.to_acc();
            *y = T::from_acc(g / (one + (-g).exp()) * u.to_acc());
        }
        y
    }

    fn swiglu_backward(&self, gate: &Matrix<T>, up: &Matrix<T>, dy: &Matrix<T>) -> (Matrix<T>, Matrix<T>) {
        let mut dgate = self.matrix(gate.rows(), gate.cols());
        let mut dup = self.matrix(gate.rows(), gate.cols());
        let one = T::Acc::from_f64(1.0);
        for i in 0..gate.len() {
            let (g, u, dy) = (gate[i].to_acc(), up[i].to_acc(), dy[i].to_acc());
            let sigmoid = one / (one + (-g).exp());
            dup[i] = T::from_acc(dy * g * sigmoid);
            dgate[i] = T::from_acc(dy * u * sigmoid * (one + g * (one - sigmoid)));
        }
        (dgate, dup)
    }
}
