//! How large errors may be.

use context_parallel::tensor::DType;

/// Bounds on out, dq, dk and dv against the float64 oracle; for 16-bit types, from what `Single` has on the same
/// numbers.
pub fn attention(dtype: DType, errors: [f64; 4], single: Option<[f64; 4]>) -> bool {
    match (dtype, single) {
        (DType::F64, _) => errors.iter().all(|&error| error < 1e-12),
        (_, Some(single)) => no_worse(&errors, &single),
        (_, None) => errors.iter().all(|&error| error < 2e-6),
    }
}

/// Bounds on loss and worst gradient against `Single` (in `f32` for 16-bit types, whose own error is then the measure).
pub fn model(dtype: DType, errors: [f64; 2], single: Option<[f64; 2]>) -> bool {
    match (dtype, single) {
        (DType::F64, _) => errors.iter().all(|&error| error < 1e-12),
        (_, Some(single)) => no_worse(&errors, &single),
        (_, None) => errors.iter().all(|&error| error < 1e-5),
    }
}

/// At most 1.5 times the error of `Single`, and a little for errors near 0.
fn no_worse(errors: &[f64], single: &[f64]) -> bool {
    errors.iter().zip(single).all(|(&error, &single)| error <= 1.5 * single + 1e-7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_by_type() {
        assert!(attention(DType::F32, [1.9e-6; 4], None) && !attention(DType::F32, [0.0, 0.0, 0.0, 2e-6], None));
        assert!(attention(DType::F64, [9e-13; 4], None) && !attention(DType::F64, [0.0, 1e-12, 0.0, 0.0], None));
        assert!(attention(DType::Bf16, [1.5e-3; 4], Some([1e-3; 4])));
        assert!(!attention(DType::Bf16, [1e-3, 1e-3, 1.6e-3, 1e-3], Some([1e-3; 4])));
        assert!(model(DType::F32, [9e-6; 2], None) && !model(DType::F32, [0.0, 1e-5], None));
        assert!(!attention(DType::F32, [f64::NAN; 4], None) && !model(DType::F16, [f64::INFINITY; 2], Some([1.0; 2])));
    }
}
