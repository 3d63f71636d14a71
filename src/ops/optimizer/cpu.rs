//! AdamW on the processor.

use num_traits::Float as _;

use crate::ops::optimizer::{AdamwStep, Optimizer};
use crate::tensor::{Buffer, Cpu, Float, Matrix};

impl<T: Float> Optimizer for Cpu<T> {
    fn adamw(
        &self,
        step: &AdamwStep,
        gradient: &Matrix<T::Acc>,
        weights: &mut Matrix<T::Acc>,
        mean: &mut Matrix<T::Acc>,
        square: &mut Matrix<T::Acc>,
    ) {
        let acc = T::Acc::from_f64;
        let keep = acc(1.0 - step.lr * step.weight_decay);
        let (b1, b2) = (acc(step.beta1), acc(step.beta2));
        let (c1, c2) = (acc(1.0 - step.beta1), acc(1.0 - step.beta2));
        let correction = 1.0 - step.beta1.powf(step.step as f64);
        let root = acc((1.0 - step.beta2.powf(step.step as f64)).sqrt());
        let (rate, eps, scale) = (acc(step.lr / correction), acc(step.eps), acc(step.gradient_scale));
        for i in 0..gradient.len() {
            let g = gradient[i] * scale;
            mean[i] = b1 * mean[i] + c1 * g;
            square[i] = b2 * square[i] + c2 * g * g;
            weights[i] = weights[i] * keep - rate * mean[i] / (square[i].sqrt() / root + eps);
        }
    }

    fn sum_of_squares(&self, x: &Buffer<T::Acc>) -> f64 {
        x.iter().map(|x| x.to_f64() * x.to_f64()).sum()
    }

    fn scale(&self, x: &mut Buffer<T::Acc>, factor: f64) {
        let factor = T::Acc::from_f64(factor);
        x.iter_mut().for_each(|x| *x *= factor);
    }

    fn clear(&self, x: &mut Buffer<T::Acc>) {
        x.fill(T::Acc::from_f64(0.0));
    }
}
