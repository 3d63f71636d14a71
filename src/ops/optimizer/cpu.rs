//! AdamW on the processor.

use super::{AdamwStep, Optimizer};
use crate::elementary::pow;
use crate::ops::parallel::{RowsMut, by_elements, by_rows};
use crate::ops::sums::sum;
use crate::tensor::{AccBuffer, AccMatrix, Buffer, Cpu, Float};

/// Elements whose squares are summed together: fixed, so that the sum does not depend on threads.
const BLOCK: usize = 4096;

impl<T: Float> Optimizer for Cpu<T> {
    fn adamw(
        &self,
        step: &AdamwStep,
        gradient: &AccMatrix<Self>,
        weights: &mut AccMatrix<Self>,
        mean: &mut AccMatrix<Self>,
        square: &mut AccMatrix<Self>,
    ) {
        let n = gradient.len();
        assert_eq!((weights.len(), mean.len(), square.len()), (n, n, n), "weights and state");
        assert!(step.step > 0, "step 0 of AdamW: steps count from 1");
        let acc = T::Acc::from_f64;
        let t = step.step as f64;
        let gradient_scale = acc(step.gradient_scale);
        let keep = acc(1.0 - step.lr * step.weight_decay);
        let (beta1, rest1) = (acc(step.beta1), acc(1.0 - step.beta1));
        let (beta2, rest2) = (acc(step.beta2), acc(1.0 - step.beta2));
        let size = acc(step.lr / (1.0 - pow(step.beta1, t)));
        let correction = acc((1.0 - pow(step.beta2, t)).sqrt());
        let eps = acc(step.eps);
        let outputs = (RowsMut::new(weights, 1), RowsMut::new(mean, 1), RowsMut::new(square, 1));
        by_elements(self, n, outputs, |range, (mut weights, mut mean, mut square)| {
            let state = mean.all().iter_mut().zip(square.all());
            for ((w, (m, v)), &g) in weights.all().iter_mut().zip(state).zip(&gradient[range]) {
                let g = g * gradient_scale;
                *m = beta1 * *m + rest1 * g;
                *v = beta2 * *v + rest2 * (g * g);
                let root = num_traits::Float::sqrt(*v) / correction + eps;
                *w = *w * keep - size * (*m / root);
            }
        });
    }

    fn sum_of_squares(&self, x: &AccBuffer<Self>) -> f64 {
        let blocks = x.len().div_ceil(BLOCK);
        let mut sums: Buffer<f64> = self.scratch(blocks);
        by_rows(self, blocks, BLOCK, RowsMut::new(&mut sums, 1), |range, mut sums| {
            for (i, block) in range.enumerate() {
                let x = &x[block * BLOCK..x.len().min((block + 1) * BLOCK)];
                sums.all()[i] = sum(x, |x| x.to_f64() * x.to_f64());
            }
        });
        sums.iter().sum()
    }

    fn scale(&self, x: &mut AccBuffer<Self>, factor: f64) {
        let factor = T::Acc::from_f64(factor);
        by_elements(self, x.len(), RowsMut::new(x, 1), |_, mut x| x.all().iter_mut().for_each(|x| *x *= factor));
    }

    fn clear(&self, x: &mut AccBuffer<Self>) {
        x.fill(T::Acc::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::*;
    use crate::tensor::Device;
    use half::bf16;

    const STEP: AdamwStep =
        AdamwStep { lr: 0.1, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.01, step: 1, gradient_scale: 1.0 };

    /// Weights, mean and square after three steps with gradient `w - 1`.
    fn run<T: Float>(threads: usize, n: usize) -> [Vec<f64>; 3] {
        let cpu = Cpu::<T>::new(threads);
        let mut w = random::<T::Acc>(1, n, 1);
        let (mut m, mut v) = (cpu.zero_matrix(n, 1), cpu.zero_matrix(n, 1));
        for step in 1..=3 {
            let gradient: Vec<f64> = wide(&w).iter().map(|w| w - 1.0).collect();
            let step = AdamwStep { step, gradient_scale: 0.5, ..STEP };
            cpu.adamw(&step, &matrix(&gradient, n, 1), &mut w, &mut m, &mut v);
        }
        [wide(&w), wide(&m), wide(&v)]
    }

    #[test]
    fn two_steps_by_hand() {
        let cpu = Cpu::<f64>::default();
        let (mut w, mut m, mut v) = (matrix(&[1.0], 1, 1), matrix(&[0.0], 1, 1), matrix(&[0.0], 1, 1));
        cpu.adamw(&STEP, &matrix(&[0.5], 1, 1), &mut w, &mut m, &mut v);
        // Corrected mean 0.5, corrected square 0.25: the step is lr, up to eps. Decay takes 0.001 first.
        assert!((m[0] - 0.05).abs() < 1e-15 && (v[0] - 0.0025).abs() < 1e-15);
        assert!((w[0] - (0.999 - 0.1)).abs() < 1e-8);
        let before = w[0];
        cpu.adamw(&AdamwStep { step: 2, ..STEP }, &matrix(&[-0.5], 1, 1), &mut w, &mut m, &mut v);
        let (mean, square) = ((0.9 * 0.05 - 0.1 * 0.5) / (1.0 - 0.81), (0.99 * 0.0025 + 0.01 * 0.25) / (1.0 - 0.9801));
        assert!((w[0] - (before * 0.999 - 0.1 * mean / (f64::sqrt(square) + 1e-8))).abs() < 1e-12);
    }

    #[test]
    fn the_gradient_scale_comes_first() {
        let cpu = Cpu::<f32>::default();
        let after = |scale: f64, gradient: f64| {
            let (mut w, mut m, mut v) = (matrix(&[1.0], 1, 1), matrix(&[0.3], 1, 1), matrix(&[0.2], 1, 1));
            let step = AdamwStep { gradient_scale: scale, step: 5, ..STEP };
            cpu.adamw(&step, &matrix(&[gradient], 1, 1), &mut w, &mut m, &mut v);
            [w[0], m[0], v[0]]
        };
        assert_eq!(after(0.25, 2.0), after(1.0, 0.5));
        assert_ne!(after(0.25, 2.0), after(1.0, 2.0));
    }

    #[test]
    fn single_agrees_with_double_and_half_storage_updates_in_single() {
        let (exact, single) = (run::<f64>(1, 100), run::<f32>(1, 100));
        assert!(exact.iter().zip(&single).all(|(exact, single)| relative(single, exact) < 1e-6));
        assert_eq!(run::<bf16>(1, 100), single);
    }

    #[test]
    fn threads_do_not_change_bits() {
        assert_eq!(run::<f32>(1, 70_001), run::<f32>(3, 70_001));
        let norm = |threads| Cpu::<f32>::new(threads).sum_of_squares(random::<f32>(1, 70_001, 1).buffer());
        assert_eq!(norm(1).to_bits(), norm(3).to_bits());
    }

    #[test]
    fn sums_scales_and_clears() {
        let cpu = Cpu::<f32>::new(2);
        let mut x = random::<f32>(1, 9001, 5).into_buffer();
        let exact: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        assert!((cpu.sum_of_squares(&x) / exact - 1.0).abs() < 1e-13);
        cpu.scale(&mut x, 2.0);
        assert!((cpu.sum_of_squares(&x) / exact - 4.0).abs() < 1e-12);
        cpu.clear(&mut x);
        assert_eq!(cpu.sum_of_squares(&x), 0.0);
    }

    #[test]
    #[should_panic(expected = "steps count from 1")]
    fn step_zero_has_no_bias_correction() {
        let (mut w, mut m, mut v) = (matrix(&[1.0], 1, 1), matrix(&[0.0], 1, 1), matrix(&[0.0], 1, 1));
        let step = AdamwStep { step: 0, ..STEP };
        Cpu::<f64>::default().adamw(&step, &matrix(&[0.5], 1, 1), &mut w, &mut m, &mut v);
    }

    #[test]
    fn nothing_to_update() {
        let cpu = Cpu::<f32>::default();
        assert_eq!(run::<f32>(1, 0), [Vec::<f64>::new(), Vec::new(), Vec::new()]);
        assert_eq!(cpu.sum_of_squares(&cpu.zeros(0)), 0.0);
    }
}
