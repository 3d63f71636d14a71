//! What can be scheduled at all, and the limit on a rank's tokens.

use crate::error::{Result, ScheduleError};

/// Most tokens that are counted exactly, whatever the degrees: the sum of squares times [`Pairs`](super::Pairs)'s unit
/// fits.
pub(super) const MOST_TOKENS: u128 = 1 << 37;

/// Refuses documents of which one does not fit on all ranks together, whichever of them share a micro-batch.
///
/// # Errors
///
/// [`ScheduleError::DocumentTooLong`] with the first such document, [`ScheduleError::NoRanks`].
pub fn check_fits(lengths: &[usize], ranks: usize, tokens_per_rank: usize) -> Result<()> {
    Ok(fits(lengths, ranks, tokens_per_rank)?)
}

fn fits(lengths: &[usize], ranks: usize, tokens: usize) -> Result<(), ScheduleError> {
    if ranks == 0 {
        return Err(ScheduleError::NoRanks);
    }
    match lengths.iter().position(|length| length.div_ceil(ranks) > tokens) {
        Some(document) => {
            let (length, needed) = (lengths[document], lengths[document].div_ceil(ranks));
            Err(ScheduleError::DocumentTooLong { document, length, ranks, tokens, needed })
        }
        None => Ok(()),
    }
}

/// Tokens that a rank may have in a micro-batch where nothing else is said: 1.1 times the even share of `total` tokens,
/// rounded up. `ranks` is at least 1.
pub fn default_tokens_per_rank(total: usize, ranks: usize) -> usize {
    (total as u128 * 11).div_ceil(ranks as u128 * 10) as usize
}

/// The token limit, once everything is known to fit.
pub(super) fn check(lengths: &[usize], ranks: usize, tokens_per_rank: Option<usize>) -> Result<usize, ScheduleError> {
    fits(&[], ranks, 0)?;
    let total: u128 = lengths.iter().map(|&length| length as u128).sum();
    if total > MOST_TOKENS {
        return Err(ScheduleError::TooManyTokens { total, most: MOST_TOKENS });
    }
    let tokens = tokens_per_rank.unwrap_or_else(|| default_tokens_per_rank(total as usize, ranks));
    fits(lengths, ranks, tokens)?;
    Ok(tokens)
}
