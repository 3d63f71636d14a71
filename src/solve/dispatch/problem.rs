//! What is asked of the solver, and what it answers.

use std::ops::Range;

use serde::Serialize;

use crate::error::SupportError;
use crate::mask::Bands;
use crate::solve::dispatch::{PlacementReport, Remainder};

/// A packed batch to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a> {
    /// The masks of the model, each with the number of layers that use it.
    pub masks: &'a [(Bands, u64)],
    /// The stored tokens of each document; together `0..tokens`, in order. Documents may be empty.
    pub documents: &'a [Range<usize>],
    /// Number of ranks; 0 counts as 1.
    pub ranks: usize,
}

impl Problem<'_> {
    /// Tokens in all, padding included.
    pub fn tokens(&self) -> usize {
        self.documents.iter().map(|document| document.end).max().unwrap_or(0)
    }
}

/// What things cost, in any common unit of time. Only ratios matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Costs {
    /// Computing one cell of the mask, in one layer.
    pub cell: u64,
    /// Receiving the keys and values of one token, in one layer.
    pub received: u64,
    /// Sending the keys and values of one token to one rank, in one layer.
    pub sent: u64,
}

impl Default for Costs {
    /// Units of 57 ps: 64 query heads of 128 features at 580 TFLOP/s, 8 key/value heads in 16 bits at 45 GB/s
    /// (`magi.md` section 3.4: an H100 and its share of the network between nodes).
    fn default() -> Self {
        Costs { cell: 1, received: 1600, sent: 1600 }
    }
}

/// How the solver works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct DispatchOptions {
    /// Moves that are tried. 0 gives the best start as it is.
    pub effort: u64,
    /// What things cost.
    pub costs: Costs,
    /// How far a rank's area may lie above the average, in thousandths. More of it saves traffic.
    pub area_slack: u64,
    /// How far a rank's number of rows may lie above the average, in thousandths.
    pub rows_slack: u64,
    /// Cuts inside a document lie at multiples of this many tokens from its start (a kernel's tile); `None` lets
    /// the solver choose, between 1 and 64, by the number of tokens per rank.
    pub grain: Option<usize>,
    /// The heap placement on chunks of so many tokens that the solver must not fall behind: it is one more start, the
    /// area of its busiest rank is allowed even where it is more than the slack, and more traffic than it has is above
    /// the limits. `None`: nothing but the slack decides, and a heap placement with less balance may have less traffic.
    pub heap: Option<(usize, Remainder)>,
}

impl DispatchOptions {
    /// Refuses cuts and chunks of 0 tokens.
    ///
    /// # Errors
    /// [`SupportError::Numbers`].
    pub fn check(&self) -> Result<(), SupportError> {
        let refuse = |what| Err(SupportError::Numbers(format!("{what} of 0 tokens: use at least 1")));
        match (self.grain, self.heap) {
            (Some(0), _) => refuse("a grain"),
            (_, Some((0, _))) => refuse("a heap placement on chunks"),
            _ => Ok(()),
        }
    }
}

impl Default for DispatchOptions {
    fn default() -> Self {
        DispatchOptions {
            effort: 8192,
            costs: Costs::default(),
            area_slack: 50,
            rows_slack: 50,
            grain: None,
            heap: None,
        }
    }
}

/// A placement and what it is worth.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dispatch {
    /// The tokens of each rank: sorted ranges that neither overlap nor touch. Over all ranks they are `0..tokens`.
    /// A rank may hold none.
    pub parts: Vec<Vec<Range<usize>>>,
    /// Area, rows and traffic.
    pub report: PlacementReport,
}

/// Sorts ranges, drops empty ones and joins those that touch.
pub(super) fn joined(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    join(&mut ranges);
    ranges
}

/// [`joined`] in place.
pub(super) fn join(ranges: &mut Vec<Range<usize>>) {
    ranges.retain(|range| !range.is_empty());
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup_by(|next, last| {
        let touches = next.start <= last.end;
        if touches {
            last.end = last.end.max(next.end);
        }
        touches
    });
}
