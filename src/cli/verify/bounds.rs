//! How large errors may be.

use context_parallel::oracle::{F32_BOUND, F64_BOUND, allowed};
use context_parallel::tensor::DType;

/// Bounds on out, dq, dk and dv against the float64 oracle; for 16-bit types, from what `Single` has on the same
/// numbers.
pub fn attention(dtype: DType, ranks: usize, errors: [f64; 4], single: Option<[f64; 4]>) -> bool {
    match (dtype, single) {
        (DType::F64, _) => errors.iter().all(|&error| error < F64_BOUND),
        (_, Some(single)) => no_worse(ranks, &errors, &single),
        (_, None) => errors.iter().all(|&error| error < F32_BOUND),
    }
}

/// Bounds on loss and worst gradient against `Single` (in `f32` for 16-bit types, whose own error is then the measure).
pub fn model(dtype: DType, ranks: usize, errors: [f64; 2], single: Option<[f64; 2]>) -> bool {
    match (dtype, single) {
        (DType::F64, _) => errors.iter().all(|&error| error < F64_BOUND),
        (_, Some(single)) => no_worse(ranks, &errors, &single),
        (_, None) => errors.iter().all(|&error| error < 1e-5),
    }
}

fn no_worse(ranks: usize, errors: &[f64], single: &[f64]) -> bool {
    errors.iter().zip(single).all(|(&error, &single)| error <= allowed(single, ranks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_by_type() {
        assert!(attention(DType::F32, 4, [1.9e-6; 4], None) && !attention(DType::F32, 4, [0.0, 0.0, 0.0, 2e-6], None));
        assert!(attention(DType::F64, 4, [9e-13; 4], None) && !attention(DType::F64, 4, [0.0, 1e-12, 0.0, 0.0], None));
        assert!(attention(DType::Bf16, 4, [1.5e-3; 4], Some([1e-3; 4])));
        assert!(!attention(DType::Bf16, 4, [1e-3, 1e-3, 1.6e-3, 1e-3], Some([1e-3; 4])));
        assert!(model(DType::F32, 4, [9e-6; 2], None) && !model(DType::F32, 4, [0.0, 1e-5], None));
        assert!(
            !attention(DType::F32, 4, [f64::NAN; 4], None) && !model(DType::F16, 4, [f64::INFINITY; 2], Some([1.0; 2]))
        );
    }
}
