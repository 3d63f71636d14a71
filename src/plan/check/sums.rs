//! Hashes of tokens, and their sums.

use std::ops::Range;

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// Spreads token numbers over 64 bits.
pub(super) fn hash(token: usize) -> u64 {
    SplitMix64::seed_from_u64(token as u64).next_u64()
}

/// Sums of the first numbers of a list, in wrapping arithmetic.
pub(super) struct Sums(Vec<u64>);

impl Sums {
    pub(super) fn new(values: &[u64]) -> Self {
        let mut sums = Vec::with_capacity(values.len() + 1);
        sums.push(0u64);
        for &value in values {
            sums.push(sums[sums.len() - 1].wrapping_add(value));
        }
        Sums(sums)
    }

    /// The sum of a range of the list.
    pub(super) fn of(&self, range: Range<usize>) -> u64 {
        self.0[range.end].wrapping_sub(self.0[range.start])
    }
}
