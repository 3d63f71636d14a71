//! What is to be scheduled.

use super::pairs::Pairs;

/// What is to be scheduled, and within which limits.
pub(super) struct Task<'a> {
    pub lengths: &'a [usize],
    pub ranks: usize,
    /// Most tokens of a rank in a micro-batch.
    pub tokens: usize,
    /// Largest makespan; at least that of all documents on all ranks.
    pub limit: Pairs,
    /// Whether all must be in one micro-batch.
    pub single: bool,
    /// Makespan of all documents on all ranks, which no schedule is below.
    pub even: Pairs,
}

impl Task<'_> {
    /// The documents that have tokens; the others need no place.
    pub fn documents(&self) -> impl Iterator<Item = usize> {
        (0..self.lengths.len()).filter(|&document| self.lengths[document] > 0)
    }

    /// What a micro-batch costs besides its work: its launches, exchanges and waits. A little of everything's work, so
    /// that a step has a few dozen micro-batches at most where tokens permit.
    pub fn toll(&self) -> Pairs {
        self.even.share(1, 128)
    }

    /// The smallest degree with which a document keeps the limits even if it is alone.
    pub fn least_degree(&self, document: usize) -> usize {
        let length = self.lengths[document];
        let for_tokens = length.div_ceil(self.tokens.max(1)).max(1);
        (for_tokens..self.ranks).find(|&degree| Pairs::of(length, degree) <= self.limit).unwrap_or(self.ranks)
    }
}
