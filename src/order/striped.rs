//! The striped order: stripes of rows dealt out in turn.

use crate::order::contiguous::{Contiguous, block_len};
use crate::order::{LineOrder, Run};

/// Stripes of `STRIPE` rows dealt out in turn: rank `r` holds stripes `r`, `r + W`, `r + 2W`, ... of the whole
/// rounds. What is left, fewer than `STRIPE * W` rows, is dealt out in blocks as even as possible, so that ranks
/// differ by at most one row.
///
/// Striped Attention (Brandon et al., 2023) has `STRIPE = 1`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Striped<const STRIPE: usize = 1>;

/// A line of rows: whole rounds, then the tail.
struct StripedLine {
    /// Rows of a round.
    round: usize,
    /// Whole rounds.
    rounds: usize,
    /// Rows of whole rounds; where the tail starts.
    whole: usize,
    /// Rows of the tail.
    tail: usize,
}

impl<const STRIPE: usize> Striped<STRIPE> {
    fn line(len: usize, ranks: usize) -> StripedLine {
        const { assert!(STRIPE > 0, "a stripe has at least one row") };
        // A round that does not fit a number is longer than any line.
        let round = STRIPE.saturating_mul(ranks);
        let rounds = len / round;
        StripedLine { round, rounds, whole: rounds * round, tail: len % round }
    }
}

impl<const STRIPE: usize> LineOrder for Striped<STRIPE> {
    const NAME: &'static str = "striped";
    const VARIANT: usize = STRIPE;

    fn runs(len: usize, ranks: usize, rank: usize, each: &mut dyn FnMut(Run)) {
        if STRIPE == 1 || ranks == 1 {
            // One run: with stripes of one row, the tail continues the rounds.
            let rows = block_len(len, ranks, rank);
            if rows > 0 {
                each(Run { start: rank, step: ranks, len: rows });
            }
            return;
        }
        let line = Self::line(len, ranks);
        for round in 0..line.rounds {
            each(Run { start: round * line.round + rank * STRIPE, step: 1, len: STRIPE });
        }
        Contiguous::runs(line.tail, ranks, rank, &mut |run| each(Run { start: line.whole + run.start, ..run }));
    }
}
