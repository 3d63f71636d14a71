//! The passes on 16 lanes of `f32`, written once over [`Lanes`] and compiled for each instruction set.

use crate::ops::matmul::CUT;
use crate::ops::simd::lanes::{Lanes, WIDTH};
#[cfg(target_arch = "x86_64")]
use crate::ops::simd::x86;
use crate::tensor::Real;

/// Below this the result would be subnormal; it is 0 instead.
const LOWEST: f32 = -87.336_54;
/// Above this the result would overflow; it is what it is here instead.
const HIGHEST: f32 = 88.376_26;
/// Adding this leaves the nearest integer, plus 127, in the low bits of the sum.
const ROUND: f32 = 12_582_912.0 + 127.0;
/// `ln 2`, split so that a product of the first part with a small integer is exact.
const LN2_HIGH: f32 = 0.693_359_4;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// `(exp(r) - 1 - r) / r^2` on `[-ln 2 / 2, ln 2 / 2]`, highest power first (minimax, as in Cephes' `expf`).
const SERIES: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// `exp(x)`: `2^n * exp(r)` with `x = n ln 2 + r`.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
unsafe fn exp<L: Lanes>(x: L) -> L {
    // SAFETY: the caller has the instruction set of `L`.
    unsafe {
        let capped = L::splat(HIGHEST).min(x);
        let shifted = capped.mul_add(L::splat(std::f32::consts::LOG2_E), L::splat(ROUND));
        let n = shifted.sub(L::splat(ROUND));
        let r = n.mul_add(L::splat(-LN2_HIGH), capped);
        let r = n.mul_add(L::splat(-LN2_LOW), r);
        let mut series = L::splat(SERIES[0]);
        for &coefficient in &SERIES[1..] {
            series = series.mul_add(r, L::splat(coefficient));
        }
        let value = series.mul_add(r.mul(r), r).add(L::splat(1.0));
        value.mul(shifted.low_bits_to_exponent()).zero_where_less(x, L::splat(LOWEST))
    }
}

/// The last, incomplete step of a row, filled up with `-inf`.
fn padded(rest: &[f32]) -> [f32; WIDTH] {
    let mut lanes = [f32::NEG_INFINITY; WIDTH];
    lanes[..rest.len()].copy_from_slice(rest);
    lanes
}

/// # Safety
/// As for [`Lanes`].
#[inline(always)]
unsafe fn max_with<L: Lanes>(row: &[f32]) -> f32 {
    let (steps, rest) = row.as_chunks::<WIDTH>();
    let mut lanes = padded(rest);
    // SAFETY: the caller has the instruction set; every pointer is that of an array of 16, whatever the row's length.
    unsafe {
        let mut most = L::load(lanes.as_ptr());
        for step in steps {
            most = most.max(L::load(step.as_ptr()));
        }
        most.store(lanes.as_mut_ptr());
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, |most, value| if value > most { value } else { most })
}

/// # Safety
/// As for [`Lanes`].
#[inline(always)]
unsafe fn exp_sum_with<L: Lanes>(row: &mut [f32], shift: f32) -> f32 {
    let (steps, rest) = row.as_chunks_mut::<WIDTH>();
    let mut lanes = padded(rest);
    // SAFETY: the caller has the instruction set; every pointer is that of an array of 16, whatever the row's length.
    unsafe {
        let shift = L::splat(shift);
        let mut sum = L::splat(0.0);
        for step in steps {
            let p = exp(L::load(step.as_ptr()).sub(shift));
            p.store(step.as_mut_ptr());
            sum = sum.add(p);
        }
        if !rest.is_empty() {
            let p = exp(L::load(lanes.as_ptr()).sub(shift));
            p.store(lanes.as_mut_ptr());
            rest.copy_from_slice(&lanes[..rest.len()]);
            sum = sum.add(p);
        }
        sum.store(lanes.as_mut_ptr());
    }
    let mut width = WIDTH;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
    }
    lanes[0]
}

/// One step of [`exp_grad_with`]; not a closure, because that would not be compiled for the instruction set.
///
/// # Safety
/// As for [`Lanes`].
#[inline(always)]
unsafe fn grad_step<L: Lanes>(p: &mut [f32; WIDTH], ds: &mut [f32; WIDTH], lse: L, delta: L) {
    // SAFETY: the caller has the instruction set; both pointers are those of arrays of 16.
    unsafe {
        let value = exp(L::load(p.as_ptr()).sub(lse));
        value.store(p.as_mut_ptr());
        value.mul(L::load(ds.as_ptr()).sub(delta)).store(ds.as_mut_ptr());
    }
}

/// # Safety
/// As for [`Lanes`].
#[inline(always)]
unsafe fn exp_grad_with<L: Lanes>(p: &mut [f32], ds: &mut [f32], lse: f32, delta: f32) {
    let (p_steps, p_rest) = p.as_chunks_mut::<WIDTH>();
    let (ds_steps, ds_rest) = ds.as_chunks_mut::<WIDTH>();
    let mut p_lanes = padded(p_rest);
    let mut ds_lanes = [0.0; WIDTH];
    ds_lanes[..ds_rest.len()].copy_from_slice(ds_rest);
    // SAFETY: the caller has the instruction set; every pointer is that of an array of 16, whatever the row's length.
    unsafe {
        let (lse, delta) = (L::splat(lse), L::splat(delta));
        for (p, ds) in p_steps.iter_mut().zip(ds_steps) {
            grad_step(p, ds, lse, delta);
        }
        if !p_rest.is_empty() {
            grad_step(&mut p_lanes, &mut ds_lanes, lse, delta);
            p_rest.copy_from_slice(&p_lanes[..p_rest.len()]);
            ds_rest.copy_from_slice(&ds_lanes[..ds_rest.len()]);
        }
    }
}

impl Lanes for [f32; WIDTH] {
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller has 16 valid elements there; an array of f32 needs no more alignment than one.
        unsafe { from.cast::<Self>().read() }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: as for `load`.
        unsafe { to.cast::<Self>().write(self) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        [value; WIDTH]
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] + other[i])
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] - other[i])
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] * other[i])
    }
    #[inline(always)]
    unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
        std::array::from_fn(|i| self[i].mul_add(by[i], plus[i]))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        std::array::from_fn(|i| if self[i] > other[i] { self[i] } else { other[i] })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        std::array::from_fn(|i| if self[i] < other[i] { self[i] } else { other[i] })
    }
    #[inline(always)]
    unsafe fn zero_where_less(self, a: Self, b: Self) -> Self {
        std::array::from_fn(|i| if a[i] < b[i] { 0.0 } else { self[i] })
    }
    #[inline(always)]
    unsafe fn low_bits_to_exponent(self) -> Self {
        std::array::from_fn(|i| f32::from_bits(self[i].to_bits() << 23))
    }
}

/// `a * b`, summed by the same chain as an element of a product of matrices ([`gemm`](crate::ops::matmul::gemm)): from
/// the first element to the last, with fused multiply-adds where the processor has them. So where attention has a
/// single key, what the backward pass subtracts from each other is equal to the bit.
pub(crate) fn dot<A: Real>(a: &[A], b: &[A]) -> A {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "fma")]
        fn fused<A: Real>(a: &[A], b: &[A]) -> A {
            chain(a, b, |a, b, sum| a.mul_add(b, sum))
        }
        if is_x86_feature_detected!("fma") {
            // SAFETY: just detected.
            return unsafe { fused(a, b) };
        }
    }
    match cfg!(target_arch = "aarch64") {
        true => chain(a, b, |a, b, sum| a.mul_add(b, sum)),
        false => chain(a, b, |a, b, sum| a * b + sum),
    }
}

/// The chain of the kernels of `gemm` over parts of [`CUT`] elements, which are added up.
#[inline(always)]
fn chain<A: Real>(a: &[A], b: &[A], multiply_add: impl Fn(A, A, A) -> A) -> A {
    // The zero that leaves every sum as it is, also one of -0.
    a.chunks(CUT).zip(b.chunks(CUT)).fold(-A::zero(), |total, (a, b)| {
        total + a.iter().zip(b).fold(A::zero(), |sum, (&a, &b)| multiply_add(a, b, sum))
    })
}

/// Defines a pass that picks the best instruction set at run time.
macro_rules! pass {
    ($name:ident = $with:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?) => {
        pub(super) fn $name($($arg: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512($($arg: $type),*) $(-> $result)? {
                    // SAFETY: AVX-512F is enabled here, which is all that this implementation needs.
                    unsafe { $with::<std::arch::x86_64::__m512>($($arg),*) }
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $type),*) $(-> $result)? {
                    // SAFETY: AVX2 and FMA are enabled here, which is all that this implementation needs.
                    unsafe { $with::<x86::Avx2>($($arg),*) }
                }
                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: just detected.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: just detected.
                    return unsafe { avx2($($arg),*) };
                }
            }
            // SAFETY: arrays need no instruction set.
            unsafe { $with::<[f32; WIDTH]>($($arg),*) }
        }
    };
}
pass!(max = max_with(row: &[f32]) -> f32);
pass!(exp_sum = exp_sum_with(row: &mut [f32], shift: f32) -> f32);
pass!(exp_grad = exp_grad_with(p: &mut [f32], ds: &mut [f32], lse: f32, delta: f32));

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::matmul::{GemmMut, GemmRef, gemm};

    fn arguments() -> Vec<f32> {
        let mut values: Vec<f32> = (0..200_003).map(|i| -(i as f32) * 4.4e-4).collect();
        values.extend([0.0, -0.0, f32::NEG_INFINITY, -87.0, -87.4, -100.0, -1e30, 1e-3, 0.5, 20.0, 80.0]);
        values
    }

    #[test]
    fn exponential_is_accurate() {
        let arguments = arguments();
        let mut values = arguments.clone();
        exp_sum(&mut values, 0.0);
        for (&x, &value) in arguments.iter().zip(&values) {
            let exact = f64::from(x).exp();
            if x < LOWEST {
                assert_eq!(value.to_bits(), 0, "exp({x})");
            } else {
                let ulp = f64::from(f32::EPSILON) * exact;
                assert!((f64::from(value) - exact).abs() <= 1.01 * ulp, "exp({x}) = {value}, not {exact}");
            }
            if x == 0.0 {
                assert_eq!(value, 1.0);
            }
        }
    }

    #[test]
    fn nan_stays() {
        let mut row = [f32::NAN, 1.0];
        assert!(exp_sum(&mut row, 0.0).is_nan());
        assert!(row[0].is_nan() && row[1] > 2.7);
    }

    #[test]
    fn a_sum_of_products_has_the_bits_of_a_product_of_matrices() {
        fn check<A: Real>(bits: impl Fn(A) -> u64) {
            for len in [1, 2, 3, 15, 64, 255, 256, 257, 258, 259, 512, 514, 700] {
                let values = |seed: usize| -> Vec<A> {
                    (0..16 * len).map(|i| A::from_f64(((i * 7919 + seed) % 1009) as f64 / 1009.0 - 0.4)).collect()
                };
                // Rows of the left side, and columns of the right side, which is row-major.
                let (lhs, columns) = (values(1), values(500));
                for (rows, cols) in [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (2, 2), (5, 3), (3, 16), (16, 7)] {
                    let rhs: Vec<A> = (0..len * cols).map(|i| columns[i % cols * len + i / cols]).collect();
                    let mut out = vec![A::nan(); rows * cols];
                    let (left, right) = (GemmRef::new(&lhs, rows, len, len), GemmRef::new(&rhs, len, cols, cols));
                    gemm(GemmMut::new(&mut out, rows, cols, cols), left, right, false);
                    for (at, &product) in out.iter().enumerate() {
                        let (row, column) = (&lhs[at / cols * len..][..len], &columns[at % cols * len..][..len]);
                        let dot = dot(row, column);
                        assert_eq!(bits(dot), bits(product), "{rows} x {len} x {cols}: {dot} and {product}");
                    }
                }
                // Compiled without and with the instruction, a fused sum is the same.
                if cfg!(any(target_arch = "aarch64", target_arch = "x86_64")) {
                    let fused = chain(&lhs[..len], &columns[..len], |a, b, sum| a.mul_add(b, sum));
                    assert!(!has_fma() || bits(fused) == bits(dot(&lhs[..len], &columns[..len])), "{len}");
                }
            }
        }
        check::<f32>(|x| x.to_bits().into());
        check::<f64>(f64::to_bits);
    }

    fn has_fma() -> bool {
        #[cfg(target_arch = "x86_64")]
        return is_x86_feature_detected!("fma");
        #[cfg(not(target_arch = "x86_64"))]
        cfg!(target_arch = "aarch64")
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        for len in [0, 1, 15, 16, 17, 40, 256] {
            let row: Vec<f32> = (0..len).map(|i| ((i * 37 % 101) as f32 - 90.0) * 0.3).collect();
            let mut ours = row.clone();
            let mut plain = row.clone();
            // SAFETY: arrays need no instruction set.
            let (most, sum) =
                unsafe { (max_with::<[f32; WIDTH]>(&row), exp_sum_with::<[f32; WIDTH]>(&mut plain, 2.5)) };
            assert_eq!(max(&row).to_bits(), most.to_bits());
            assert_eq!(exp_sum(&mut ours, 2.5).to_bits(), sum.to_bits());
            assert_eq!(ours, plain);

            let (mut p, mut ds) = (row.clone(), row.clone());
            let (mut p_plain, mut ds_plain) = (row.clone(), row.clone());
            exp_grad(&mut p, &mut ds, 1.5, 0.25);
            // SAFETY: arrays need no instruction set.
            unsafe { exp_grad_with::<[f32; WIDTH]>(&mut p_plain, &mut ds_plain, 1.5, 0.25) };
            assert_eq!((p, ds), (p_plain, ds_plain));
        }
    }
}
