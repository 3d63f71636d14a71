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
