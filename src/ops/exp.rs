//! The exponential, for loops over rows.

use crate::elementary;
use crate::tensor::{DType, Real};

/// `e^x`: in `f32` a polynomial that compilers turn into vector code (see [`exp_f32`]), in `f64` [`elementary::exp`].
#[inline(always)]
pub(super) fn exp<A: Real>(x: A) -> A {
    // `A::DTYPE` is a constant, so one branch remains; for f32 the conversions to f64 and back cancel.
    match A::DTYPE {
        DType::F32 => A::from_f64(f64::from(exp_f32(x.to_f64() as f32))),
        _ => elementary::exp(x),
    }
}

/// `e^x` within 2 units in the last place: `2^n * e^r` with `n = round(x / ln 2)` and a polynomial of degree 6 in `r`
/// (coefficients of Cephes' `expf`). Below -87.33 (subnormal results) it is 0, from 88.37 on infinite; NaN stays NaN.
#[inline(always)]
fn exp_f32(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves round(x / ln 2) in the low bits of the significand.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.987_569_2e-4f32;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = p * r + c;
    }
    let power = f32::from_bits((shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127)) << 23);
    let y = (p * (r * r) + r + 1.0) * power;
    if x < -87.33 {
        0.0
    } else if x > 88.37 {
        f32::INFINITY
    } else {
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn within_two_units_of_the_exact_value() {
        let mut worst = 0.0f64;
        for i in -87_330..88_370 {
            for offset in [0.0, 0.000_37] {
                let x = i as f32 * 1e-3 + offset;
                let exact = f64::from(x).exp();
                let unit = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
                if (-87.33..88.37).contains(&x) {
                    worst = worst.max((f64::from(exp(x)) - exact).abs() / unit);
                }
            }
        }
        assert!(worst < 2.0, "{worst} units in the last place");
    }

    #[test]
    fn limits() {
        assert_eq!(exp(0.0f32), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1000.0f32), 0.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(1.0f64), std::f64::consts::E);
    }
}
