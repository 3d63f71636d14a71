//! The natural order: rank 0 holds everything. What a single rank uses.

use crate::order::{LineOrder, Run};

/// Rank 0 holds every row, in order; other ranks, if there are any, hold none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Natural;

impl LineOrder for Natural {
    const NAME: &'static str = "natural";

    fn rows(len: usize, _ranks: usize, rank: usize) -> usize {
        if rank == 0 { len } else { 0 }
    }

    fn runs(len: usize, _ranks: usize, rank: usize, each: &mut dyn FnMut(Run)) {
        if rank == 0 && len > 0 {
            each(Run { start: 0, step: 1, len });
        }
    }

    fn row(_len: usize, _ranks: usize, _rank: usize, local: usize) -> usize {
        local
    }

    fn locate(_len: usize, _ranks: usize, row: usize) -> (usize, usize) {
        (0, row)
    }
}
