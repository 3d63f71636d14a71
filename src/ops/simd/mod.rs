//! Row passes of softmax with a vectorised exponential; the same bits with AVX-512, AVX2 and without either.
//!
//! In `f32` everything is done on 16 lanes: one AVX-512 register, two AVX registers, or an array. All three run the
//! same sequence of correctly rounded operations (fused multiply-add among them), and sums are reduced in one fixed
//! order, so the instruction set does not change a result. In `f64` rows are computed element by element.

mod cpu;
mod lanes;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::elementary::exp;
use crate::tensor::{DType, Real};

pub(crate) use cpu::dot;

/// The largest value of a row; `-inf` if it is empty.
pub(crate) fn max<A: Real>(row: &[A]) -> A {
    match A::DTYPE {
        DType::F32 => from_f32(cpu::max(bytemuck::cast_slice(row))),
        _ => row.iter().fold(A::neg_infinity(), |most, &value| if value > most { value } else { most }),
    }
}

/// `row = exp(row - shift)`; returns the sum. `-inf` gives exactly 0, `shift` itself exactly 1.
pub(crate) fn exp_sum<A: Real>(row: &mut [A], shift: A) -> A {
    match A::DTYPE {
        DType::F32 => from_f32(cpu::exp_sum(bytemuck::cast_slice_mut(row), to_f32(shift))),
        _ => {
            let mut sum = A::zero();
            for value in row {
                *value = exp(*value - shift);
                sum += *value;
            }
            sum
        }
    }
}

/// The row pass of the backward pass: `p = exp(p - lse)`, then `ds = p * (ds - delta)`.
///
/// # Panics
/// If the rows have different lengths.
pub(crate) fn exp_grad<A: Real>(p: &mut [A], ds: &mut [A], lse: A, delta: A) {
    assert_eq!(p.len(), ds.len(), "scores and their gradients");
    match A::DTYPE {
        DType::F32 => {
            cpu::exp_grad(bytemuck::cast_slice_mut(p), bytemuck::cast_slice_mut(ds), to_f32(lse), to_f32(delta))
        }
        _ => {
            for (p, ds) in p.iter_mut().zip(ds) {
                *p = exp(*p - lse);
                *ds = *p * (*ds - delta);
            }
        }
    }
}

/// `A` is `f32` where this is called; the conversion is then exact.
fn to_f32<A: Real>(value: A) -> f32 {
    value.to_f64() as f32
}

/// `A` is `f32` where this is called; the conversion is then exact.
fn from_f32<A: Real>(value: f32) -> A {
    A::from_f64(f64::from(value))
}
