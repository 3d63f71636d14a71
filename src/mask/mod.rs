//! Masks as bands: every mask is a list of disjoint rectangles of (query, key) cells with a diagonal range.
//!
//! Queries and keys are tokens of the batch (global indices, padding included in the counting).

mod band;
mod fuse;
mod lower;
pub mod named;
mod slice;

pub use band::Band;
pub use slice::{Slice, SliceKind};

use std::ops::Range;

use crate::error::MaskError;

/// What each query may attend to. Except for [`Mask::Slices`] it is applied within each document.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Mask {
    /// Every valid token of the document.
    Full,
    /// The token itself and everything before it.
    Causal,
    /// The token itself, `left` tokens before it and `right` after it; `None` is unlimited.
    Window {
        /// Tokens to the left.
        left: Option<usize>,
        /// Tokens to the right.
        right: Option<usize>,
    },
    /// Causal, but the first `prefix[document]` tokens of each document are seen by all of it.
    Prefix(Vec<usize>),
    /// Explicit slices over the tokens of the batch, which must not overlap. Padding is never attended.
    Slices(Vec<Slice>),
}

impl Mask {
    /// A causal window of `width` tokens, the token itself among them (Hugging Face's `sliding_window`).
    ///
    /// # Errors
    /// [`MaskError::EmptyWindow`] for a width of 0, in which a token would not attend itself.
    pub fn sliding(width: usize) -> Result<Mask, MaskError> {
        let left = width.checked_sub(1).ok_or(MaskError::EmptyWindow)?;
        Ok(Mask::Window { left: Some(left), right: Some(0) })
    }
}

/// A mask applied to a batch: disjoint bands, sorted by first query, then by first key. Every band has cells and is
/// shrunk to them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Bands {
    bands: Vec<Band>,
    /// The largest end of queries among the first `i + 1` bands.
    reach: Vec<i64>,
}

impl Bands {
    /// The bands.
    pub fn as_slice(&self) -> &[Band] {
        &self.bands
    }

    /// The bands with queries in `q`, found by a search.
    pub fn meeting(&self, q: Range<i64>) -> impl Iterator<Item = &Band> {
        let first = self.reach.partition_point(|&end| end <= q.start);
        let last = self.bands.partition_point(|band| band.q.start < q.end);
        self.bands[first.min(last)..last].iter().filter(move |band| band.q.end > q.start)
    }

    /// Attended cells in all.
    pub fn area(&self) -> u64 {
        self.bands.iter().map(Band::area).fold(0, u64::saturating_add)
    }

    /// Whether query `q` attends key `k`. Looks at every band.
    pub fn contains(&self, q: i64, k: i64) -> bool {
        self.bands.iter().any(|band| band.contains(q, k))
    }

    /// Whether a query of one sequence attends a key of another, where every `seq` tokens are a sequence.
    pub fn cross_sequences(&self, seq: usize) -> bool {
        let seq = seq.max(1) as i64;
        self.bands.iter().any(|band| {
            let within = (band.q.start / seq..=(band.q.end - 1) / seq)
                .map(|sequence| sequence * seq..(sequence + 1) * seq)
                .filter_map(|tokens| band.intersect(tokens.clone(), tokens))
                .map(|part| part.area());
            within.sum::<u64>() != band.area()
        })
    }

    /// The part with queries in `q` and keys in `k`.
    pub fn intersect(&self, q: Range<i64>, k: Range<i64>) -> Bands {
        Bands::sorted(self.bands.iter().filter_map(|band| band.intersect(q.clone(), k.clone())).collect())
    }

    /// Bands that are shrunk and disjoint, put in order.
    fn sorted(mut bands: Vec<Band>) -> Bands {
        bands.sort_by_key(|band| (band.q.start, band.k.start, band.d_lo));
        let mut largest = i64::MIN;
        let reach = bands.iter().map(|band| {
            largest = largest.max(band.q.end);
            largest
        });
        Bands { reach: reach.collect(), bands }
    }
}
