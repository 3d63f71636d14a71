//! AdamW on the processor.

use super::{AdamwOptions, AdamwState, Optimizer, StepNumbers};
use crate::elementary::pow;
use crate::ops::parallel::{RowsMut, by_rows};
use crate::ops::sums::sum;
use crate::tensor::{AccBuffer, Buffer, Cpu, Float, Real};

/// Elements whose squares are summed together: fixed, so that the sum does not depend on threads.
const BLOCK: usize = 4096;

impl<T: Float> Optimizer for Cpu<T> {
    fn sum_of_squares(&self, gradient: &AccBuffer<Self>, numbers: &mut Buffer<f64>) {
        let mut found = read(numbers);
        let blocks = gradient.len().div_ceil(BLOCK);
        let mut sums: Buffer<f64> = self.scratch(blocks);
        by_rows(self, blocks, BLOCK, RowsMut::new(&mut sums, 1), |range, mut sums| {
            for (sum, block) in sums.all().iter_mut().zip(range) {
                *sum = squares(&gradient[block * BLOCK..gradient.len().min((block + 1) * BLOCK)]);
            }
        });
        found.gradient = sums.iter().sum();
        numbers.copy_from_slice(&found.to_array());
    }

    fn adamw(
        &self,
        options: &AdamwOptions,
        decayed: usize,
        numbers: &mut Buffer<f64>,
        AdamwState { gradient, weights, mean, square, working }: AdamwState<'_, Self>,
    ) {
        let n = gradient.len();
        assert_eq!([weights.len(), mean.len(), square.len(), working.len()], [n; 4], "weights and state");
        let mut found = read(numbers);
        assert!(found.step >= 1.0, "step {} of AdamW: steps count from 1", found.step);
        if !found.gradient.is_finite() {
            return;
        }
        let (decaying, fixed) = (Rule::new(options, found, true), Rule::new(options, found, false));
        let blocks = n.div_ceil(BLOCK);
        let mut sums: Buffer<f64> = self.scratch(blocks);
        let outputs = (
            (RowsMut::new(gradient, BLOCK), RowsMut::new(weights, BLOCK), RowsMut::new(mean, BLOCK)),
            (RowsMut::new(square, BLOCK), RowsMut::new(working, BLOCK), RowsMut::new(&mut sums, 1)),
        );
        by_rows(self, blocks, BLOCK, outputs, |range, ((mut g, mut w, mut m), (mut v, mut working, mut sums))| {
            let first = range.start * BLOCK;
            let all = [g.all(), w.all(), m.all(), v.all()];
            let cut = decayed.saturating_sub(first).min(all[0].len());
            let [head, tail] = split(all, cut);
            decaying.update(head);
            fixed.update(tail);
            working.all().iter_mut().zip(w.all()).for_each(|(to, &mut from)| *to = T::from_acc(from));
            sums.all().iter_mut().zip(w.all().chunks(BLOCK)).for_each(|(sum, block)| *sum = squares(block));
        });
        found.weights = sums.iter().sum();
        numbers.copy_from_slice(&found.to_array());
    }
}

fn read(numbers: &Buffer<f64>) -> StepNumbers {
    let found = <[f64; StepNumbers::LEN]>::try_from(&numbers[..]);
    StepNumbers::from_array(found.unwrap_or_else(|_| panic!("{} numbers of a step", numbers.len())))
}

fn squares<A: Real>(x: &[A]) -> f64 {
    sum(x, |x| x.to_f64() * x.to_f64())
}

fn split<A>(all: [&mut [A]; 4], at: usize) -> [[&mut [A]; 4]; 2] {
    let [(a, e), (b, f), (c, g), (d, h)] = all.map(|slice| slice.split_at_mut(at));
    [[a, b, c, d], [e, f, g, h]]
}

/// What a step does to a weight.
struct Rule<A> {
    scale: A,
    keep: A,
    beta1: A,
    rest1: A,
    beta2: A,
    rest2: A,
    size: A,
    correction: A,
    eps: A,
}

impl<A: Real> Rule<A> {
    fn new(options: &AdamwOptions, numbers: StepNumbers, decays: bool) -> Self {
        let AdamwOptions { beta1, beta2, eps, weight_decay, clip } = *options;
        let StepNumbers { lr, step, .. } = numbers;
        Rule {
            scale: A::from_f64(numbers.gradient_scale(clip)),
            keep: A::from_f64(1.0 - lr * if decays { weight_decay } else { 0.0 }),
            beta1: A::from_f64(beta1),
            rest1: A::from_f64(1.0 - beta1),
            beta2: A::from_f64(beta2),
            rest2: A::from_f64(1.0 - beta2),
            size: A::from_f64(lr / (1.0 - pow(beta1, step))),
            correction: A::from_f64((1.0 - pow(beta2, step)).sqrt()),
            eps: A::from_f64(eps),
        }
    }

    /// Gradients, weights, means and mean squares of the same parameters.
    fn update(&self, [gradient, weights, mean, square]: [&mut [A]; 4]) {
        let state = mean.iter_mut().zip(square);
        for ((w, (m, v)), gradient) in weights.iter_mut().zip(state).zip(gradient) {
            let g = *gradient * self.scale;
            *m = self.beta1 * *m + self.rest1 * g;
            *v = self.beta2 * *v + self.rest2 * (g * g);
            let root = num_traits::Float::sqrt(*v) / self.correction + self.eps;
            *w = *w * self.keep - self.size * (*m / root);
            *gradient = A::zero();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::*;
    use crate::tensor::Device;
    use half::bf16;

    const OPTIONS: AdamwOptions = AdamwOptions { beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.01, clip: 0.0 };

    /// Weights and their state, all of them decayed.
    struct Weights<T: Float> {
        w: Buffer<T::Acc>,
        m: Buffer<T::Acc>,
        v: Buffer<T::Acc>,
        working: Buffer<T>,
        decayed: usize,
    }

    impl<T: Float> Weights<T> {
        fn new(values: &[f64]) -> Self {
            let n = values.len();
            let of = |values: &[f64]| matrix::<T::Acc>(values, n, 1).into_buffer();
            let zeros = vec![0.0; n];
            Weights {
                w: of(values),
                m: of(&zeros),
                v: of(&zeros),
                working: poisoned(n, 1).into_buffer(),
                decayed: usize::MAX,
            }
        }

        /// A step; its numbers, and the gradient that is left.
        fn step(
            &mut self,
            cpu: &Cpu<T>,
            options: AdamwOptions,
            step: f64,
            gradient: &[f64],
        ) -> (StepNumbers, Vec<f64>) {
            let mut gradient = matrix::<T::Acc>(gradient, gradient.len(), 1).into_buffer();
            let mut numbers = cpu.upload(&StepNumbers { lr: 0.1, step, ..StepNumbers::default() }.to_array());
            cpu.sum_of_squares(&gradient, &mut numbers);
            let Weights { w: weights, m: mean, v: square, working, decayed } = self;
            let state = AdamwState { gradient: &mut gradient, weights, mean, square, working };
            cpu.adamw(&options, *decayed, &mut numbers, state);
            (read(&numbers), wide(&gradient))
        }
    }

    /// Weights, mean, square and the working copy after three steps with gradient `w - 1`, clipped.
    fn run<T: Float>(threads: usize, n: usize) -> [Vec<f64>; 4] {
        let cpu = Cpu::<T>::new(threads);
        let mut state = Weights::<T>::new(&values(1, n));
        for step in 1..=3 {
            let gradient: Vec<f64> = wide(&state.w).iter().map(|w| w - 1.0).collect();
            let (_, left) = state.step(&cpu, AdamwOptions { clip: 0.5, ..OPTIONS }, f64::from(step), &gradient);
            assert!(left.iter().all(|&g| g == 0.0));
        }
        [wide(&state.w), wide(&state.m), wide(&state.v), wide(&state.working)]
    }

    #[test]
    fn two_steps_by_hand() {
        let (cpu, mut state) = (Cpu::<f64>::default(), Weights::<f64>::new(&[1.0]));
        let (numbers, _) = state.step(&cpu, OPTIONS, 1.0, &[0.5]);
        // Corrected mean 0.5, corrected square 0.25: the step is lr, up to eps. Decay takes 0.001 first.
        assert!((state.m[0] - 0.05).abs() < 1e-15 && (state.v[0] - 0.0025).abs() < 1e-15);
        assert!((state.w[0] - (0.999 - 0.1)).abs() < 1e-8);
        assert_eq!((numbers.gradient, numbers.weights), (0.25, state.w[0] * state.w[0]));
        let before = state.w[0];
        state.step(&cpu, OPTIONS, 2.0, &[-0.5]);
        let (mean, square) = ((0.9 * 0.05 - 0.1 * 0.5) / (1.0 - 0.81), (0.99 * 0.0025 + 0.01 * 0.25) / (1.0 - 0.9801));
        assert!((state.w[0] - (before * 0.999 - 0.1 * mean / (f64::sqrt(square) + 1e-8))).abs() < 1e-12);
    }

    #[test]
    fn the_gradient_is_clipped_first() {
        let after = |clip: f64, gradient: f64| {
            let mut state = Weights::<f64>::new(&[1.0]);
            state.step(&Cpu::default(), AdamwOptions { clip, ..OPTIONS }, 5.0, &[gradient]);
            [state.w[0], state.m[0], state.v[0]]
        };
        let clipped = after(0.5, 2.0);
        assert!(clipped.iter().zip(after(0.0, 0.5)).all(|(a, b)| (a - b).abs() < 1e-6));
        assert!((clipped[1] - after(0.0, 2.0)[1]).abs() > 0.1);
        assert_eq!(after(4.0, 2.0), after(0.0, 2.0), "a norm below the bound stays");
    }

    #[test]
    fn decay_is_for_the_first_weights() {
        let cpu = Cpu::<f64>::new(2);
        let (all, gradient) = (values(1, 10_000), values(2, 10_000));
        let after = |decayed| {
            let mut state = Weights { decayed, ..Weights::<f64>::new(&all) };
            state.step(&cpu, OPTIONS, 1.0, &gradient);
            state.w.to_vec()
        };
        let (none, some, every) = (after(0), after(5000), after(10_000));
        assert_eq!((&some[..5000], &some[5000..]), (&every[..5000], &none[5000..]));
        assert!(none.iter().zip(&every).all(|(a, b)| a != b));
    }

    #[test]
    fn single_agrees_with_double_and_half_storage_updates_in_single() {
        let (exact, single) = (run::<f64>(1, 100), run::<f32>(1, 100));
        assert!(exact.iter().zip(&single).all(|(exact, single)| relative(single, exact) < 1e-6));
        assert_eq!(single[0], single[3], "the working copy is the weights where it is of their type");
        let half = run::<bf16>(1, 100);
        assert_eq!(half[..3], single[..3]);
        assert!(half[3].iter().zip(&half[0]).all(|(working, w)| *working == wide(&[bf16::from_f64(*w)])[0]));
    }

    #[test]
    fn threads_do_not_change_bits() {
        assert_eq!(run::<f32>(1, 70_001), run::<f32>(3, 70_001));
        let numbers = |threads| {
            let mut state = Weights::<f32>::new(&values(1, 70_001));
            state.step(&Cpu::new(threads), OPTIONS, 1.0, &values(2, 70_001)).0.to_array()
        };
        assert_eq!(numbers(1), numbers(3));
    }

    #[test]
    fn sums_of_squares() {
        let (cpu, x) = (Cpu::<f32>::new(2), random::<f32>(1, 9001, 5).into_buffer());
        let exact: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let mut numbers = cpu.upload(&[1.0, 2.0, f64::NAN, 4.0]);
        cpu.sum_of_squares(&x, &mut numbers);
        assert!((numbers[2] / exact - 1.0).abs() < 1e-13);
        assert_eq!((&numbers[..2], numbers[3]), (&[1.0, 2.0][..], 4.0));
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        for value in [f64::NAN, f64::INFINITY] {
            let mut state = Weights::<f64>::new(&[1.0, 2.0]);
            let (numbers, left) = state.step(&Cpu::default(), OPTIONS, 1.0, &[0.5, value]);
            assert!(!numbers.gradient.is_finite() && left[0] == 0.5);
            assert_eq!((&state.w[..], &state.m[..], &state.v[..]), (&[1.0, 2.0][..], &[0.0; 2][..], &[0.0; 2][..]));
        }
    }

    #[test]
    #[should_panic(expected = "steps count from 1")]
    fn step_zero_has_no_bias_correction() {
        Weights::<f64>::new(&[1.0]).step(&Cpu::default(), OPTIONS, 0.0, &[0.5]);
    }

    #[test]
    fn nothing_to_update() {
        assert!(run::<f32>(1, 0).iter().all(Vec::is_empty));
    }
}
