//! Row passes of softmax with a vectorised exponential; the same bits with AVX-512, AVX2 and without either.
//!
//! In `f32` everything is done on 16 lanes: one AVX-512 register, two AVX registers, or an array. All three run the
//! same sequence of correctly rounded operations (fused multiply-add among them), and sums are reduced in one fixed
//! order, so the instruction set does not change a result. In `f64` the standard library's exponential is used.

use crate::tensor::{DType, Real};

/// The largest value of a row; `-inf` if it is empty.
pub(crate) fn max<A: Real>(row: &[A]) -> A {
    match A::DTYPE {
        DType::F32 => from_f32(lanes::max(bytemuck::cast_slice(row))),
        _ => row.iter().fold(A::neg_infinity(), |most, &value| if value > most { value } else { most }),
    }
}

/// `row = exp(row - shift)`; returns the sum. `-inf` gives exactly 0, `shift` itself exactly 1.
pub(crate) fn exp_sum<A: Real>(row: &mut [A], shift: A) -> A {
    match A::DTYPE {
        DType::F32 => from_f32(lanes::exp_sum(bytemuck::cast_slice_mut(row), to_f32(shift))),
        _ => {
            let mut sum = A::zero();
            for value in row {
                *value = num_traits::Float::exp(*value - shift);
                sum += *value;
            }
            sum
        }
    }
}

/// The row pass of the backward pass: `p = exp(p - lse)`, then `ds = p * (ds - delta)`.
pub(crate) fn exp_grad<A: Real>(p: &mut [A], ds: &mut [A], lse: A, delta: A) {
    match A::DTYPE {
        DType::F32 => {
            lanes::exp_grad(bytemuck::cast_slice_mut(p), bytemuck::cast_slice_mut(ds), to_f32(lse), to_f32(delta))
        }
        _ => {
            for (p, ds) in p.iter_mut().zip(ds) {
                *p = num_traits::Float::exp(*p - lse);
                *ds = *p * (*ds - delta);
            }
        }
    }
}

/// `a * b`, summed from the first element to the last with fused multiply-adds where the processor has them: the
/// same chain as an element of a matrix product. So where attention has a single key, what the backward pass
/// subtracts from each other is equal to the bit.
pub(crate) fn dot<A: Real>(a: &[A], b: &[A]) -> A {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "fma")]
        fn fused<A: Real>(a: &[A], b: &[A]) -> A {
            a.iter().zip(b).fold(A::zero(), |sum, (&a, &b)| a.mul_add(b, sum))
        }
        if is_x86_feature_detected!("fma") {
            // SAFETY: just detected.
            return unsafe { fused(a, b) };
        }
    }
    a.iter().zip(b).map(|(&a, &b)| a * b).sum()
}

/// `A` is `f32` where this is called; the conversion is then exact.
fn to_f32<A: Real>(value: A) -> f32 {
    value.to_f64() as f32
}

/// `A` is `f32` where this is called; the conversion is then exact.
fn from_f32<A: Real>(value: f32) -> A {
    A::from_f64(f64::from(value))
}

mod lanes {
    //! The passes on 16 lanes of `f32`, written once over [`Lanes`] and compiled for each instruction set.

    /// Lanes per step.
    const WIDTH: usize = 16;

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

    /// 16 lanes of `f32`.
    ///
    /// # Safety
    /// Every method needs the instruction set of the implementation; `load` and `store` need 16 valid elements.
    trait Lanes: Copy {
        unsafe fn load(from: *const f32) -> Self;
        unsafe fn store(self, to: *mut f32);
        unsafe fn splat(value: f32) -> Self;
        unsafe fn add(self, other: Self) -> Self;
        unsafe fn sub(self, other: Self) -> Self;
        unsafe fn mul(self, other: Self) -> Self;
        /// `self * by + plus`, rounded once.
        unsafe fn mul_add(self, by: Self, plus: Self) -> Self;
        /// The larger; `other` if either is NaN.
        unsafe fn max(self, other: Self) -> Self;
        /// The smaller; `other` if either is NaN.
        unsafe fn min(self, other: Self) -> Self;
        /// `self`, or 0 in lanes where `a < b`.
        unsafe fn zero_where_less(self, a: Self, b: Self) -> Self;
        /// Moves the low 9 bits of each lane to sign and exponent.
        unsafe fn low_bits_to_exponent(self) -> Self;
    }

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
        // SAFETY: the caller has the instruction set; every pointer is to 16 elements.
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
        // SAFETY: the caller has the instruction set; every pointer is to 16 elements.
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
        // SAFETY: the caller has the instruction set; both pointers are to 16 elements.
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
        // SAFETY: the caller has the instruction set; every pointer is to 16 elements.
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
            // SAFETY: 16 valid elements; an array of f32 needs no more alignment than one.
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

    #[cfg(target_arch = "x86_64")]
    mod x86 {
        use super::Lanes;
        use std::arch::x86_64::*;

        /// Two registers of 8 lanes.
        #[derive(Clone, Copy)]
        pub(super) struct Avx2(__m256, __m256);

        // SAFETY (whole impl): the caller has AVX2 and FMA, and 16 elements behind each pointer.
        impl Lanes for Avx2 {
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                unsafe { Avx2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                unsafe {
                    _mm256_storeu_ps(to, self.0);
                    _mm256_storeu_ps(to.add(8), self.1);
                }
            }
            #[inline(always)]
            unsafe fn splat(value: f32) -> Self {
                unsafe { Avx2(_mm256_set1_ps(value), _mm256_set1_ps(value)) }
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                unsafe { Avx2(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
            }
            #[inline(always)]
            unsafe fn sub(self, other: Self) -> Self {
                unsafe { Avx2(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
            }
            #[inline(always)]
            unsafe fn mul(self, other: Self) -> Self {
                unsafe { Avx2(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
            }
            #[inline(always)]
            unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
                unsafe { Avx2(_mm256_fmadd_ps(self.0, by.0, plus.0), _mm256_fmadd_ps(self.1, by.1, plus.1)) }
            }
            #[inline(always)]
            unsafe fn max(self, other: Self) -> Self {
                unsafe { Avx2(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
            }
            #[inline(always)]
            unsafe fn min(self, other: Self) -> Self {
                unsafe { Avx2(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
            }
            #[inline(always)]
            unsafe fn zero_where_less(self, a: Self, b: Self) -> Self {
                unsafe {
                    Avx2(
                        _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(a.0, b.0), self.0),
                        _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(a.1, b.1), self.1),
                    )
                }
            }
            #[inline(always)]
            unsafe fn low_bits_to_exponent(self) -> Self {
                unsafe {
                    let low = _mm256_slli_epi32::<23>(_mm256_castps_si256(self.0));
                    let high = _mm256_slli_epi32::<23>(_mm256_castps_si256(self.1));
                    Avx2(_mm256_castsi256_ps(low), _mm256_castsi256_ps(high))
                }
            }
        }

        // SAFETY (whole impl): the caller has AVX-512F, and 16 elements behind each pointer.
        impl Lanes for __m512 {
            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                unsafe { _mm512_loadu_ps(from) }
            }
            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                unsafe { _mm512_storeu_ps(to, self) }
            }
            #[inline(always)]
            unsafe fn splat(value: f32) -> Self {
                unsafe { _mm512_set1_ps(value) }
            }
            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                unsafe { _mm512_add_ps(self, other) }
            }
            #[inline(always)]
            unsafe fn sub(self, other: Self) -> Self {
                unsafe { _mm512_sub_ps(self, other) }
            }
            #[inline(always)]
            unsafe fn mul(self, other: Self) -> Self {
                unsafe { _mm512_mul_ps(self, other) }
            }
            #[inline(always)]
            unsafe fn mul_add(self, by: Self, plus: Self) -> Self {
                unsafe { _mm512_fmadd_ps(self, by, plus) }
            }
            #[inline(always)]
            unsafe fn max(self, other: Self) -> Self {
                unsafe { _mm512_max_ps(self, other) }
            }
            #[inline(always)]
            unsafe fn min(self, other: Self) -> Self {
                unsafe { _mm512_min_ps(self, other) }
            }
            #[inline(always)]
            unsafe fn zero_where_less(self, a: Self, b: Self) -> Self {
                unsafe { _mm512_maskz_mov_ps(!_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), self) }
            }
            #[inline(always)]
            unsafe fn low_bits_to_exponent(self) -> Self {
                unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(self))) }
            }
        }
    }

    /// Defines a pass that picks the best instruction set at run time.
    macro_rules! pass {
        ($name:ident = $with:ident($($arg:ident: $type:ty),*) $(-> $result:ty)?) => {
            pub(super) fn $name($($arg: $type),*) $(-> $result)? {
                #[cfg(target_arch = "x86_64")]
                {
                    #[target_feature(enable = "avx512f")]
                    fn avx512($($arg: $type),*) $(-> $result)? {
                        // SAFETY: AVX-512F is enabled here.
                        unsafe { $with::<std::arch::x86_64::__m512>($($arg),*) }
                    }
                    #[target_feature(enable = "avx2,fma")]
                    fn avx2($($arg: $type),*) $(-> $result)? {
                        // SAFETY: AVX2 and FMA are enabled here.
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
}
