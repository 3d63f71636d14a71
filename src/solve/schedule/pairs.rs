//! Exact amounts of attention work: a document's length squared over its degree, without floating point.

use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Sub, SubAssign};

use serde::{Serialize, Serializer};

/// Attention work of one rank, in query-key pairs (a causal mask halves all of them alike).
///
/// Held as a multiple of 1 / 4,620,913,692,595,200, which every degree up to 32, and every power of two up to 1024,
/// divides. Other degrees round up by less than one such unit. Serialised as a number of pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pairs(u128);

impl Pairs {
    /// Least common multiple of 1..=32, times 32.
    const UNITS: u128 = 4_620_913_692_595_200;
    /// No work.
    pub const NONE: Pairs = Pairs(0);
    /// More than any schedule needs.
    pub(super) const MAX: Pairs = Pairs(u128::MAX);

    /// Work of each rank for a document of `length` tokens on `degree` ranks: `length * length / degree`.
    pub fn of(length: usize, degree: usize) -> Self {
        let pairs = (length as u128).saturating_mul(length as u128);
        Pairs(pairs.saturating_mul(Self::UNITS).div_ceil(degree.max(1) as u128))
    }

    /// A whole number of query-key pairs.
    pub fn whole(pairs: u128) -> Self {
        Pairs(pairs.saturating_mul(Self::UNITS))
    }

    /// The number of query-key pairs, rounded; to be read, not compared.
    pub fn to_f64(self) -> f64 {
        self.0 as f64 / Self::UNITS as f64
    }

    /// `numerator / denominator` of it, rounded down.
    pub(super) fn share(self, numerator: u128, denominator: u128) -> Self {
        let (whole, rest) = (self.0 / denominator, self.0 % denominator);
        Pairs(whole.saturating_mul(numerator).saturating_add(rest * numerator / denominator))
    }

    /// What [`Pairs::parts_of`] counts in.
    #[cfg(test)]
    pub(super) const PARTS: u128 = 1 << 30;

    /// How many [`Pairs::PARTS`] of `whole` it is, rounded down up to the last digits.
    #[cfg(test)]
    pub(super) fn parts_of(self, whole: Self) -> u128 {
        self.0 / (whole.0 / Self::PARTS).max(1)
    }

    /// What is left after `other`, at least nothing.
    pub(super) fn saturating_sub(self, other: Self) -> Self {
        Pairs(self.0.saturating_sub(other.0))
    }
}

impl Add for Pairs {
    type Output = Pairs;
    fn add(self, other: Pairs) -> Pairs {
        Pairs(self.0.saturating_add(other.0))
    }
}

impl AddAssign for Pairs {
    fn add_assign(&mut self, other: Pairs) {
        *self = *self + other;
    }
}

impl Sub for Pairs {
    type Output = Pairs;
    fn sub(self, other: Pairs) -> Pairs {
        Pairs(self.0 - other.0)
    }
}

impl SubAssign for Pairs {
    fn sub_assign(&mut self, other: Pairs) {
        *self = *self - other;
    }
}

impl Sum for Pairs {
    fn sum<I: Iterator<Item = Pairs>>(iter: I) -> Pairs {
        iter.fold(Pairs::NONE, Add::add)
    }
}

impl fmt::Display for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1}", self.to_f64())
    }
}

impl Serialize for Pairs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.to_f64())
    }
}
