//! Ops: one folder each, `mod.rs` says what it computes, `cpu.rs` how.
//!
//! Ops take plain data: matrices, numbers, row lists, pieces of bands. Type parameters of strategies and layouts end
//! above this floor. Forward and backward stand next to each other.

pub mod attention;
mod dry;
pub mod embedding;
mod exp;
pub mod loss;
pub mod matmul;
pub mod norm;
pub mod optimizer;
mod parallel;
pub mod rotary;
pub mod rows;
mod simd;
mod sums;
pub mod swiglu;
#[cfg(test)]
mod testing;
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
