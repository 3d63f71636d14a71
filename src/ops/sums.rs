//! Sums over the features of a row, in an order that depends on their number only.
//!
//! Element `i` goes to lane `i % LANES`; lanes are added pairwise. The lanes are independent, so the compiler uses
//! vector additions, and the error grows with `n / LANES` instead of `n`.

use crate::tensor::Real;

/// Independent partial sums.
const LANES: usize = 16;

/// Sum of `term(x[i])`.
#[inline(always)]
pub(super) fn sum<X: Copy, A: Real>(x: &[X], term: impl Fn(X) -> A) -> A {
    let mut lanes = [A::zero(); LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] += term(block[lane]);
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(rest) {
        *lane += term(value);
    }
    tree(lanes)
}

/// Sum of `term(x[i], y[i], z[i])`; the slices have one length.
#[inline(always)]
pub(super) fn sum3<X: Copy, A: Real>(x: &[X], y: &[X], z: &[X], term: impl Fn(X, X, X) -> A) -> A {
    debug_assert!(x.len() == y.len() && x.len() == z.len());
    let mut lanes = [A::zero(); LANES];
    let ((x, x_rest), (y, y_rest), (z, z_rest)) =
        (x.as_chunks::<LANES>(), y.as_chunks::<LANES>(), z.as_chunks::<LANES>());
    for ((x, y), z) in x.iter().zip(y).zip(z) {
        for lane in 0..LANES {
            lanes[lane] += term(x[lane], y[lane], z[lane]);
        }
    }
    for (lane, ((&x, &y), &z)) in lanes.iter_mut().zip(x_rest.iter().zip(y_rest).zip(z_rest)) {
        *lane += term(x, y, z);
    }
    tree(lanes)
}

/// The largest element, NaN aside; `-inf` if there is none.
#[inline(always)]
pub(super) fn max<X: Copy, A: Real>(x: &[X], value: impl Fn(X) -> A) -> A {
    let larger = |a: A, b: A| if b > a { b } else { a };
    let mut lanes = [A::neg_infinity(); LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], value(block[lane]));
        }
    }
    rest.iter().fold(lanes.into_iter().fold(A::neg_infinity(), larger), |m, &x| larger(m, value(x)))
}

#[inline(always)]
fn tree<A: Real>(mut lanes: [A; LANES]) -> A {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            let other = lanes[lane + width];
            lanes[lane] += other;
        }
        width /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_and_maxima_of_all_lengths() {
        for n in 0..70usize {
            let x: Vec<f64> = (1..=n).map(|i| i as f64).collect();
            assert_eq!(sum(&x, |x| x), (n * (n + 1) / 2) as f64);
            assert_eq!(sum3(&x, &x, &x, |x, y, z| x * y - z), (0..=n).map(|i| (i * i) as f64 - i as f64).sum::<f64>());
            assert_eq!(max(&x, |x| x), if n == 0 { f64::NEG_INFINITY } else { n as f64 });
            assert_eq!(max(&x, |x| -x), if n == 0 { f64::NEG_INFINITY } else { -1.0 });
        }
    }

    #[test]
    fn lanes_lose_less_than_one_running_sum() {
        let x = vec![0.1f32; 1 << 14];
        let error = |sum: f32| (f64::from(sum) / (f64::from(0.1f32) * x.len() as f64) - 1.0).abs();
        let running = x.iter().fold(0.0, |sum, x| sum + x);
        let (lanes, running) = (error(sum(&x, |x| x)), error(running));
        assert!(lanes < 2e-5 && 4.0 * lanes < running, "{lanes}, {running}");
    }
}
