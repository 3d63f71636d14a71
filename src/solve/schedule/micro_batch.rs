//! Documents that run at once, each on its ranks, and what that costs.

use serde::Serialize;

use super::pairs::Pairs;
use crate::error::Result;
use crate::layout::Batch;
use crate::order::{Dealt, Grouped};

/// One document's ranks in its micro-batch: `first..first + degree`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// Index of the document in the lengths.
    pub document: usize,
    /// The first rank.
    pub first: usize,
    /// Number of ranks; 1 means no communication.
    pub degree: usize,
}

/// Documents that are packed together and run at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MicroBatch {
    /// One group per document, by ascending document.
    pub groups: Vec<Group>,
}

impl MicroBatch {
    /// Its documents, ascending.
    pub fn documents(&self) -> impl Iterator<Item = usize> + '_ {
        self.groups.iter().map(|group| group.document)
    }

    /// Where the tokens are, in a batch of just its documents, in this order.
    ///
    /// # Errors
    /// If the batch does not have as many documents, or there are not that many ranks.
    pub fn table(&self, batch: &dyn Batch, ranks: usize) -> Result<Dealt> {
        Grouped::deal(batch, self.groups.iter().map(|group| group.first..group.first + group.degree).enumerate(), ranks)
    }

    /// Work of the busiest rank.
    pub fn busiest(&self, lengths: &[usize], ranks: usize) -> Pairs {
        let mut work = vec![Pairs::NONE; ranks];
        for group in &self.groups {
            let each = Pairs::of(lengths[group.document], group.degree);
            work[group.first..][..group.degree].iter_mut().for_each(|work| *work += each);
        }
        work.into_iter().max().unwrap_or_default()
    }

    /// Tokens of each rank, every document's share rounded up: no rank holds more, whoever gets the spare tokens.
    pub fn tokens(&self, lengths: &[usize], ranks: usize) -> Vec<usize> {
        let mut tokens = vec![0; ranks];
        for group in &self.groups {
            let each = lengths[group.document].div_ceil(group.degree);
            tokens[group.first..][..group.degree].iter_mut().for_each(|tokens| *tokens += each);
        }
        tokens
    }

    /// Rows of keys and values that all ranks together receive, if every query attends its whole document: the sum of
    /// length times (degree - 1); ranks beyond a document's tokens receive nothing.
    pub fn rows_received(&self, lengths: &[usize]) -> u128 {
        self.groups.iter().map(|group| rows(lengths[group.document], group.degree)).sum()
    }
}

/// Rows that the ranks of a document receive: each that has a token of it misses those of the others.
pub(super) fn rows(length: usize, degree: usize) -> u128 {
    let holders = degree.min(length);
    length as u128 * holders.saturating_sub(1) as u128
}

/// The same, where ranks without a token count too: the search does not spread a document over more ranks than it has
/// tokens for nothing.
pub(super) fn price(length: usize, degree: usize) -> u128 {
    length as u128 * (degree as u128 - 1)
}
