//! What the passes ask of an instruction set.

/// Lanes per step.
pub(super) const WIDTH: usize = 16;

/// 16 lanes of `f32`.
///
/// # Safety
/// Every method needs the instruction set of the implementation; `load` and `store` need 16 valid elements, aligned as
/// `f32`.
pub(super) trait Lanes: Copy {
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
