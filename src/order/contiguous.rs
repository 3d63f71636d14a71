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

/// The block that holds `row`.
pub(super) fn block_of(len: usize, ranks: usize, row: usize) -> usize {
    let (rows, larger) = (len / ranks, len % ranks);
    let in_larger = larger * (rows + 1);
    if row < in_larger { row / (rows + 1) } else { larger + (row - in_larger) / rows }
}

impl LineOrder for Contiguous {
    const NAME: &'static str = "contiguous";

    fn rows(len: usize, ranks: usize, rank: usize) -> usize {
        len / ranks + usize::from(rank < len % ranks)
    }

    fn runs(len: usize, ranks: usize, rank: usize, each: &mut dyn FnMut(Run)) {
        let rows = Self::rows(len, ranks, rank);
        if rows > 0 {
            each(Run { start: block_start(len, ranks, rank), step: 1, len: rows });
        }
    }

    fn row(len: usize, ranks: usize, rank: usize, local: usize) -> usize {
        block_start(len, ranks, rank) + local
    }

    fn locate(len: usize, ranks: usize, row: usize) -> (usize, usize) {
        let rank = block_of(len, ranks, row);
        (rank, row - block_start(len, ranks, rank))
    }
}
