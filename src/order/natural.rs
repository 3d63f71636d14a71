//! The natural order: rank 0 holds everything. What a single rank uses.

use crate::order::{LineOrder, Run};

/// Rank 0 holds every row, in order; other ranks, if there are any, hold none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Natural;

impl LineOrder for Natural {
    const NAME: &'static str = "natural";

    fn runs(len: usize, _ranks: usize, rank: usize, each: &mut dyn FnMut(Run)) {
        if rank == 0 && len > 0 {
            each(Run { start: 0, step: 1, len });
        }
    }
}
