//! AdamW (Loshchilov and Hutter 2019) and the sums that gradient clipping needs.

mod cpu;

use crate::tensor::{AccBuffer, AccMatrix, Device};

/// One AdamW step's numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwStep {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean.
    pub beta1: f64,
    /// Decay of the mean square.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub eps: f64,
    /// Decoupled weight decay; 0 for vectors.
    pub weight_decay: f64,
    /// Number of this step, from 1, for the bias corrections.
    pub step: u64,
    /// Factor on the gradient (clipping).
    pub gradient_scale: f64,
}

/// Updates of master weights in the accumulation type.
///
/// ```
/// use context_parallel::ops::optimizer::{AdamwStep, Optimizer};
/// use context_parallel::tensor::{Cpu, Device, Matrix};
///
/// let cpu = Cpu::<f64>::default();
/// let (beta1, beta2, eps) = (0.9, 0.95, 0.0);
/// let step = AdamwStep { lr: 0.25, beta1, beta2, eps, weight_decay: 0.0, step: 1, gradient_scale: 1.0 };
/// let gradient = Matrix::from_slice(&[0.3, -70.0], 1, 2);
/// let mut weights = Matrix::from_slice(&[1.0, 1.0], 1, 2);
/// let (mut mean, mut square) = (cpu.zero_matrix(1, 2), cpu.zero_matrix(1, 2));
/// cpu.adamw(&step, &gradient, &mut weights, &mut mean, &mut square);
/// // The first step is lr, whatever the gradient's size.
/// assert!((weights[0] - 0.75).abs() < 1e-12 && (weights[1] - 1.25).abs() < 1e-12);
/// ```
pub trait Optimizer: Device {
    /// Updates `weights`, `mean` and `square` from `gradient`, in PyTorch's order of operations.
    fn adamw(
        &self,
        step: &AdamwStep,
        gradient: &AccMatrix<Self>,
        weights: &mut AccMatrix<Self>,
        mean: &mut AccMatrix<Self>,
        square: &mut AccMatrix<Self>,
    );

    /// Sum of squares, in `f64`.
    fn sum_of_squares(&self, x: &AccBuffer<Self>) -> f64;

    /// `x *= factor`.
    fn scale(&self, x: &mut AccBuffer<Self>, factor: f64);

    /// Zeroes.
    fn clear(&self, x: &mut AccBuffer<Self>);
}
