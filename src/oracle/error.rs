//! How far a tensor is from its reference: one number, the same everywhere.

/// The Euclidean norm of the finite values; infinite ones (the log-sum-exp of a row that attends nothing) have no
/// part in it.
pub fn norm(values: &[f64]) -> f64 {
    values.iter().filter(|value| value.is_finite()).map(|value| value * value).sum::<f64>().sqrt()
}

/// Norm of the difference / norm of the reference.
///
/// Where the reference's norm is below `1e-3 * scale_norm`, `scale_norm` takes its place: the gradient of a query
/// that attends one key is 0, and what is computed for it is rounding of numbers as large as the output gradient.
/// Pass the norm of the output gradient for gradients, 0 for everything else.
///
/// Never NaN: infinite where a value is not finite and not equal to the reference's, or where the reference and
/// `scale_norm` are 0 and the difference is not. Equal infinities have no difference.
///
/// # Panics
/// If the lengths differ.
pub fn relative_error(found: &[f64], reference: &[f64], scale_norm: f64) -> f64 {
    assert_eq!(found.len(), reference.len(), "a tensor and its reference have different lengths");
    let mut squares = 0.0;
    for (&found, &reference) in found.iter().zip(reference) {
        if found != reference {
            let difference = found - reference;
            if !difference.is_finite() {
                return f64::INFINITY;
            }
            squares += difference * difference;
        }
    }
    if squares == 0.0 {
        return 0.0;
    }
    let reference_norm = norm(reference);
    let denominator = if reference_norm < 1e-3 * scale_norm { scale_norm } else { reference_norm };
    if denominator == 0.0 { f64::INFINITY } else { squares.sqrt() / denominator }
}

/// Largest relative error of what is computed in `f64` with sums in another order.
pub const F64_BOUND: f64 = 1e-12;

/// Largest relative error of attention in `f32`, with whatever strategy.
pub const F32_BOUND: f64 = 2e-6;

/// Largest relative error of a strategy on so many ranks where `Single` has the error `single`: half as much again,
/// two and a half times as much beyond 16 ranks (a ring merges as many partial results), and a little for errors near
/// 0.
pub fn allowed(single: f64, ranks: usize) -> f64 {
    let factor = if ranks <= 16 { 1.5 } else { 2.5 };
    factor * single + 1e-7
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_norm_of_the_difference_over_the_norm() {
        assert_eq!(relative_error(&[3.0, 4.5], &[3.0, 4.0], 0.0), 0.1);
        assert_eq!(relative_error(&[3.0, 4.5], &[3.0, 4.0], 4999.0), 0.1);
    }

    #[test]
    fn a_vanishing_reference_is_measured_against_the_output_gradient() {
        assert_eq!(relative_error(&[3e-7, 4e-7], &[0.0, 0.0], 10.0), 5e-8);
        assert_eq!(relative_error(&[0.0; 2], &[0.0; 2], 10.0), 0.0);
    }

    #[test]
    fn is_never_nan() {
        assert_eq!(relative_error(&[0.0], &[0.0], 0.0), 0.0);
        assert_eq!(relative_error(&[], &[], 0.0), 0.0);
        assert_eq!(relative_error(&[1.0], &[0.0], 0.0), f64::INFINITY);
        assert_eq!(relative_error(&[f64::NAN], &[1.0], 1.0), f64::INFINITY);
        assert_eq!(relative_error(&[1.0], &[f64::NAN], 1.0), f64::INFINITY);
        assert_eq!(relative_error(&[f64::INFINITY], &[f64::NEG_INFINITY], 1.0), f64::INFINITY);
    }

    #[test]
    fn equal_infinities_have_no_difference() {
        let empty = f64::NEG_INFINITY;
        assert_eq!(relative_error(&[empty, 2.5], &[empty, 2.0], 0.0), 0.25);
        assert_eq!(relative_error(&[0.0, 2.0], &[empty, 2.0], 0.0), f64::INFINITY);
    }
}
