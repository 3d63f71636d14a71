//! The contiguous order: one block of rows per rank.

use crate::order::{LineOrder, Run};

/// Rank `r` holds the `r`-th block of rows. Blocks differ by at most one row; the larger ones come first.
///
/// Simple, but unbalanced under a causal mask: the last rank attends to everything, the first to its own block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Contiguous;

/// Where block `rank` of `len` rows starts. `rank == ranks` gives `len`.
pub(super) fn block_start(len: usize, ranks: usize, rank: usize) -> usize {
    len / ranks * rank + rank.min(len % ranks)
}

/// Rows of block `rank` of `len` rows.
pub(super) fn block_len(len: usize, ranks: usize, rank: usize) -> usize {
    len / ranks + usize::from(rank < len % ranks)
}

impl LineOrder for Contiguous {
    const NAME: &'static str = "contiguous";

    fn runs(len: usize, ranks: usize, rank: usize, each: &mut dyn FnMut(Run)) {
        let rows = block_len(len, ranks, rank);
        if rows > 0 {
            each(Run { start: block_start(len, ranks, rank), step: 1, len: rows });
        }
    }
}
