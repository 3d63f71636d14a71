//! Random numbers of the search.

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// Numbers that look random, the same on every machine.
pub(super) struct Random(SplitMix64);

impl Random {
    /// The numbers of a seed.
    pub(super) fn new(seed: u64) -> Self {
        Random(SplitMix64::seed_from_u64(seed))
    }

    /// Less than `bound`, which is at least 1.
    pub(super) fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.0.next_u64()) * bound as u128) >> 64) as usize
    }

    /// Whether a chance of `parts` in 256 comes true.
    pub(super) fn chance(&mut self, parts: u64) -> bool {
        self.0.next_u64() >> 56 < parts
    }

    /// Exponentially distributed, in 65536ths of a doubling: minus the logarithm to base 2, between whole numbers
    /// by a straight line.
    pub(super) fn doublings(&mut self) -> u64 {
        let number = self.0.next_u64() | 1;
        let zeros = number.leading_zeros();
        let fraction = if zeros == 63 { 0 } else { (number << (zeros + 1)) >> 48 };
        (u64::from(zeros) << 16) + 65535 - fraction
    }
}
