//! Ops: one folder each, `mod.rs` says what it computes, `cpu.rs` how.
//!
//! Ops take plain data: views of matrices, numbers, row lists, pieces of bands, and write into memory that they are
//! given. Type parameters of strategies and layouts end above this floor. Forward and backward stand next to each
//! other.

mod op;

pub mod attention;
pub mod embedding;
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
mod transpose;
pub mod unfused;
mod workers;

/// A device that can attend over ranks: all that the handler and attention ask for.
pub trait Attends: attention::Attention + rotary::Rotate + rows::MoveRows {}

impl<D> Attends for D where D: attention::Attention + rotary::Rotate + rows::MoveRows {}

/// A device that can do everything a GPT needs.
pub trait Ops:
    Attends
    + embedding::Embedding
    + loss::CrossEntropy
    + matmul::Matmul
    + norm::RmsNorm
    + optimizer::Optimizer
    + swiglu::Swiglu
    + unfused::UnfusedAttention
{
}

impl<D> Ops for D where
    D: Attends
        + embedding::Embedding
        + loss::CrossEntropy
        + matmul::Matmul
        + norm::RmsNorm
        + optimizer::Optimizer
        + swiglu::Swiglu
        + unfused::UnfusedAttention
{
}
