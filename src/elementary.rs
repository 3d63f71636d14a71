//! Elementary functions that give the same bits on every processor. Those of the C library choose a variant by
//! instruction set, so the nodes of a cluster could disagree in the last place. Here is what has one result per number
//! or row; for whole rows there is `ops::simd`.
//!
//! All are computed in `f64` and rounded to the accumulation type once. The exponential is ours, because it is also
//! the inner loop of devices that compute in `f64`; the others are those of the `libm` crate, which is Rust code
//! without run-time choices.

use crate::tensor::Real;

/// `e^x`.
pub(crate) fn exp<A: Real>(x: A) -> A {
    A::from_f64(exp_f64(x.to_f64()))
}

/// The natural logarithm.
pub(crate) fn ln<A: Real>(x: A) -> A {
    A::from_f64(libm::log(x.to_f64()))
}

/// `ln(1 + x)`, exact to rounding for small `x` too.
pub(crate) fn ln_1p<A: Real>(x: A) -> A {
    A::from_f64(libm::log1p(x.to_f64()))
}

/// `base^exponent`.
pub(crate) fn pow(base: f64, exponent: f64) -> f64 {
    libm::pow(base, exponent)
}

/// Sine and cosine of an angle in radians.
pub(crate) fn sin_cos(angle: f64) -> (f64, f64) {
    (libm::sin(angle), libm::cos(angle))
}

/// `1 / n!` for `n` from 13 down to 2.
const SERIES: [f64; 12] = {
    let mut series = [0.5; 12];
    let (mut n, mut factorial) = (3, 2.0);
    while n <= 13 {
        factorial *= n as f64;
        series[13 - n] = 1.0 / factorial;
        n += 1;
    }
    series
};

/// `2^n * e^r` with `n = round(x / ln 2)`; `e^r = 1 + r + r^2 q(r)` is added up from the small end, which leaves little
/// more than the last rounding. Infinite where it overflows, and below the normal numbers rounded once more.
#[inline]
fn exp_f64(x: f64) -> f64 {
    /// Adding this leaves the nearest integer in the low bits of the sum.
    const ROUND: f64 = 6_755_399_441_055_744.0;
    /// `ln 2`, split so that a product of the first part with `n` is exact.
    const LN2_HIGH: f64 = 6.931_471_803_691_238e-1;
    const LN2_LOW: f64 = 1.908_214_929_270_587_7e-10;
    if x > 709.79 {
        return f64::INFINITY;
    }
    if x < -745.2 {
        return 0.0;
    }
    let n = (x * std::f64::consts::LOG2_E + ROUND) - ROUND;
    let high = x - n * LN2_HIGH;
    let low = n * LN2_LOW;
    let r = high - low;
    let rest = (high - r) - low;
    let mut series = SERIES[0];
    for coefficient in &SERIES[1..] {
        series = series * r + coefficient;
    }
    let sum = 1.0 + r;
    let value = sum + (((1.0 - sum) + r) + (r * r * series + rest));
    // In two steps, so that neither factor leaves the normal numbers.
    let power = |n: i64| f64::from_bits(((n + 1023) as u64) << 52);
    let half = n as i64 / 2;
    value * power(half) * power(n as i64 - half)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Arguments, and the bits of results that were computed with 60 digits and rounded.
    const TABLE: &str = include_str!("elementary/table.txt");

    /// Worst distance from the table in units of the last place, by function.
    fn worst(name: &str, of: impl Fn(f64, f64) -> f64) -> f64 {
        let mut worst = 0.0f64;
        let mut lines = 0;
        for line in TABLE.lines().filter(|line| line.split(' ').next() == Some(name)) {
            let bits = |field: usize| {
                let field = line.split(' ').nth(field).expect("four fields");
                f64::from_bits(u64::from_str_radix(field, 16).expect("bits"))
            };
            let (x, y, exact) = (bits(1), bits(2), bits(3));
            let unit = exact.abs().next_up() - exact.abs();
            worst = worst.max((of(x, y) - exact).abs() / unit);
            lines += 1;
        }
        assert!(lines > 50, "{lines} lines of {name}");
        worst
    }

    #[test]
    fn functions_are_within_a_unit_of_the_exact_value() {
        assert!(worst("exp", |x, _| exp(x)) <= 1.0);
        assert!(worst("ln", |x, _| ln(x)) <= 1.0);
        assert!(worst("ln_1p", |x, _| ln_1p(x)) <= 1.0);
        assert!(worst("pow", pow) <= 1.0);
        assert!(worst("sin", |x, _| sin_cos(x).0) <= 1.0);
        assert!(worst("cos", |x, _| sin_cos(x).1) <= 1.0);
    }

    #[test]
    fn in_single_precision_they_are_rounded_right() {
        for line in TABLE.lines() {
            let bits = |field: usize| u64::from_str_radix(line.split(' ').nth(field).unwrap(), 16).unwrap();
            let (x, exact) = (f64::from_bits(bits(1)), f64::from_bits(bits(3)));
            if f64::from(x as f32) != x {
                continue;
            }
            let found = match line.split(' ').next() {
                Some("exp") => exp(x as f32),
                Some("ln") => ln(x as f32),
                Some("ln_1p") => ln_1p(x as f32),
                _ => continue,
            };
            assert_eq!(found, exact as f32, "{line}");
        }
    }

    #[test]
    fn limits() {
        assert_eq!((exp(0.0), exp(-0.0), exp(1.0), exp(f64::NEG_INFINITY)), (1.0, 1.0, std::f64::consts::E, 0.0));
        assert_eq!((exp(710.0), exp(f64::INFINITY), exp(-746.0)), (f64::INFINITY, f64::INFINITY, 0.0));
        assert_eq!(exp(-745.13), f64::from_bits(1), "the smallest number that there is");
        assert!(exp(f64::NAN).is_nan() && exp(f32::NAN).is_nan() && ln(-1.0f64).is_nan());
        assert_eq!((ln(1.0f32), ln(0.0), ln(f32::INFINITY)), (0.0, f64::NEG_INFINITY, f32::INFINITY));
        assert_eq!((ln_1p(0.0), ln_1p(1.0), sin_cos(0.0)), (0.0, std::f64::consts::LN_2, (0.0, 1.0)));
        assert_eq!((pow(0.9, 1.0), pow(0.9, 0.0), pow(0.9, 1e9)), (0.9, 1.0, 0.0));
    }
}
