//! Ops: one folder each, `mod.rs` says what it computes, `cpu.rs` how.
//!
//! Ops take plain data: matrices, numbers, row lists, pieces of bands. Type parameters of strategies and layouts end
//! above this floor. Forward and backward stand next to each other.

pub mod attention;
pub mod embedding;
pub mod loss;
pub mod matmul;
pub mod norm;
pub mod optimizer;
pub mod rotary;
pub mod rows;
mod simd;
pub mod swiglu;
pub mod unfused;
mod workers;

/// A device that can do everything a GPT needs.
pub trait Ops:
    attention::Attention
    + embedding::Embedding
    + loss::CrossEntropy
    + matmul::Matmul
    + norm::RmsNorm
    + optimizer::Optimizer
    + rotary::Rotary
    + rows::Rows
    + swiglu::Swiglu
    + unfused::Unfused
{
}

impl<D> Ops for D where
    D: attention::Attention
        + embedding::Embedding
        + loss::CrossEntropy
        + matmul::Matmul
        + norm::RmsNorm
        + optimizer::Optimizer
        + rotary::Rotary
        + rows::Rows
        + swiglu::Swiglu
        + unfused::Unfused
{
}

/// The dot product, in the accumulation type, summed in 16 lanes.
pub(crate) fn dot<T: crate::tensor::Float>(x: &[T], y: &[T]) -> T::Acc {
    let zero = <T::Acc as crate::tensor::Float>::from_f64(0.0);
    let mut lanes = [zero; 16];
    let (mut xs, mut ys) = (x.chunks_exact(16), y.chunks_exact(16));
    for (x, y) in (&mut xs).zip(&mut ys) {
        for i in 0..16 {
            lanes[i] += x[i].to_acc() * y[i].to_acc();
        }
    }
    for (i, (x, y)) in xs.remainder().iter().zip(ys.remainder()).enumerate() {
        lanes[i] += x.to_acc() * y.to_acc();
    }
    lanes.iter().copied().sum()
}
