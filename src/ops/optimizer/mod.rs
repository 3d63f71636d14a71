//! AdamW (Loshchilov and Hutter 2019) with a bound on the gradient's norm, for all parameters at once.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::ops::op::op;
use crate::tensor::{AccBuffer, Buffer, Device, ElemBuffer};

/// AdamW's constants and the bound on the gradient's norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwOptions {
    /// Decay of the mean.
    pub beta1: f64,
    /// Decay of the mean square.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub eps: f64,
    /// Decoupled decay, of parameters with two or more dimensions.
    pub weight_decay: f64,
    /// The gradient is scaled down to this norm; 0 for no bound.
    pub clip: f64,
}

impl Default for AdamwOptions {
    /// The constants of GPT-3 (Brown et al. 2020).
    fn default() -> Self {
        AdamwOptions { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip: 1.0 }
    }
}

/// The numbers of a step, in the order in which the device has them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepNumbers {
    /// Learning rate.
    pub lr: f64,
    /// Number of the step, from 1, for the bias corrections.
    pub step: f64,
    /// Sum of the squares of the gradient, before it is scaled.
    pub gradient: f64,
    /// Sum of the squares of the weights after the step.
    pub weights: f64,
}

impl StepNumbers {
    /// How many there are.
    pub const LEN: usize = 4;
    /// Place of [`StepNumbers::gradient`].
    pub const GRADIENT: usize = 2;
    /// Place of [`StepNumbers::weights`].
    pub const WEIGHTS: usize = 3;

    /// As the device has them.
    pub fn to_array(self) -> [f64; Self::LEN] {
        [self.lr, self.step, self.gradient, self.weights]
    }

    /// From what was read of the device.
    pub fn from_array([lr, step, gradient, weights]: [f64; Self::LEN]) -> Self {
        StepNumbers { lr, step, gradient, weights }
    }

    /// The factor on a gradient whose squares sum to this: PyTorch's `clip_grad_norm_`.
    pub fn gradient_scale(self, clip: f64) -> f64 {
        if clip > 0.0 { (clip / (self.gradient.sqrt() + 1e-6)).min(1.0) } else { 1.0 }
    }
}

/// What an optimizer step changes: each has an element for every weight.
#[derive(Debug)]
pub struct AdamwState<'a, D: Device> {
    /// The gradient; zero after the step.
    pub gradient: &'a mut AccBuffer<D>,
    /// The weights.
    pub weights: &'a mut AccBuffer<D>,
    /// Running mean of the gradient.
    pub mean: &'a mut AccBuffer<D>,
    /// Running mean of its squares.
    pub square: &'a mut AccBuffer<D>,
    /// The weights rounded to the storage type; only written.
    pub working: &'a mut ElemBuffer<D>,
}

/// How the state is kept until a device comes to it.
#[cfg(feature = "conformance")]
mod queued {
    use super::*;
    use crate::tensor::Host;
    use crate::tensor::queued::{Argument, Deferred, Issue, Kept, Queued, Referred, Written};

    impl Argument for &AdamwOptions {
        type Kept = Referred<AdamwOptions>;

        fn keep(self, _issue: &mut Issue<'_>) -> Self::Kept {
            Referred(*self)
        }
    }

    /// What is kept of an [`AdamwState`].
    pub struct KeptState<D: Device> {
        sums: [Written<D::Acc>; 4],
        working: Written<D::Elem>,
    }

    impl<D: Device<Storage = Host>> Argument for AdamwState<'_, Queued<D>> {
        type Kept = KeptState<D>;

        fn keep(self, issue: &mut Issue<'_>) -> KeptState<D> {
            let sums: [&mut Buffer<D::Acc, Deferred>; 4] = [self.gradient, self.weights, self.mean, self.square];
            KeptState { sums: sums.map(|sum| sum.keep(issue)), working: self.working.keep(issue) }
        }
    }

    impl<D: Device<Storage = Host>> Kept for KeptState<D> {
        type Inner<'a> = AdamwState<'a, D>;

        fn get(&mut self) -> AdamwState<'_, D> {
            let [gradient, weights, mean, square] = self.sums.each_mut().map(Written::get);
            AdamwState { gradient, weights, mean, square, working: self.working.get() }
        }
    }
}

op! {
    /// Updates of weights in the accumulation type.
    ///
    /// ```
    /// use context_parallel::ops::optimizer::{AdamwOptions, AdamwState, Optimizer, StepNumbers};
    /// use context_parallel::tensor::{Cpu, Device};
    ///
    /// let cpu = Cpu::<f64>::default();
    /// let options = AdamwOptions { beta1: 0.9, beta2: 0.95, eps: 0.0, weight_decay: 0.0, clip: 0.0 };
    /// let mut numbers = cpu.upload(&StepNumbers { lr: 0.25, step: 1.0, ..StepNumbers::default() }.to_array());
    /// let (mut gradient, mut weights) = (cpu.upload(&[0.3, -70.0]), cpu.upload(&[1.0, 1.0]));
    /// let (mut mean, mut square, mut working) = (cpu.zeros(2), cpu.zeros(2), cpu.empty(2));
    /// cpu.sum_of_squares(&gradient, &mut numbers);
    /// let state = AdamwState {
    ///     gradient: &mut gradient,
    ///     weights: &mut weights,
    ///     mean: &mut mean,
    ///     square: &mut square,
    ///     working: &mut working,
    /// };
    /// cpu.adamw(&options, 0, &mut numbers, state);
    /// // The first step is lr, whatever the gradient's size.
    /// assert!((weights[0] - 0.75).abs() < 1e-12 && (weights[1] - 1.25).abs() < 1e-12);
    /// assert_eq!((&working[..], &gradient[..]), (&weights[..], &[0.0, 0.0][..]));
    /// ```
    pub trait Optimizer: Device {
        /// Writes the sum of the squares of a gradient to [`StepNumbers::gradient`] of `numbers [StepNumbers::LEN]`.
        fn sum_of_squares(&self, gradient: &AccBuffer<Self>, numbers: &mut Buffer<f64, Self::Storage>);

        /// One step in one pass over memory, in PyTorch's order of operations: the gradient is scaled, weights and
        /// means are updated, the working copy is written, the gradient is zeroed, and the sum of the squares of the
        /// new weights is written to [`StepNumbers::weights`]. Weight decay applies to the first `decayed` weights.
        ///
        /// Where the gradient's sum of squares is not finite, nothing is changed.
        fn adamw(
            &self,
            options: &AdamwOptions,
            decayed: usize,
            numbers: &mut Buffer<f64, Self::Storage>,
            state: AdamwState<'_, Self>,
        );
    }
}
