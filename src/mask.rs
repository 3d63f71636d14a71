//! Masks as bands: every mask is a list of disjoint rectangles of (query, key) cells with a diagonal range.
//!
//! Queries and keys are tokens of the batch (global indices, padding included in the counting).

use std::ops::Range;

use crate::error::Result;
use crate::layout::Batch;

/// The cells `(q, k)` with `q` and `k` in the ranges and `d_lo <= k - q <= d_hi`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Band {
    /// Queries.
    pub q: Range<i64>,
    /// Keys.
    pub k: Range<i64>,
    /// Smallest `k - q`.
    pub d_lo: i64,
    /// Largest `k - q`.
    pub d_hi: i64,
}

impl Band {
    /// Shrinks ranges and diagonals to what cells exist; nothing if there is none.
    pub fn shrunk(self) -> Option<Band> {
        todo!()
    }

    /// Number of cells.
    pub fn area(&self) -> u64 {
        todo!()
    }

    /// The keys that query `q` attends in this band.
    pub fn keys(&self, q: i64) -> Range<i64> {
        let _ = q;
        todo!()
    }

    /// The part with queries in `q` and keys in `k`.
    pub fn intersect(&self, q: Range<i64>, k: Range<i64>) -> Option<Band> {
        let _ = (q, k);
        todo!()
    }
}

/// Which cells of a slice's rectangle are attended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SliceKind {
    /// All.
    Full,
    /// The upper bound moves with the query, aligned to the bottom right corner.
    Causal,
    /// The lower bound moves with the query, aligned to the top left corner.
    InvCausal,
    /// Both bounds move.
    BiCausal,
}

/// A rectangle of queries and keys with the shape of what is attended in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Slice {
    /// Queries.
    pub q: Range<usize>,
    /// Keys.
    pub k: Range<usize>,
    /// Shape.
    pub kind: SliceKind,
}

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

/// A mask applied to a batch: disjoint bands, sorted by first query, then by first key.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct Bands(Vec<Band>);

impl Bands {
    /// The bands.
    pub fn as_slice(&self) -> &[Band] {
        &self.0
    }

    /// Attended cells in all.
    pub fn area(&self) -> u64 {
        self.0.iter().map(Band::area).sum()
    }
}

impl Mask {
    /// A causal window of `width` tokens, the token itself among them (Hugging Face's `sliding_window`).
    pub fn sliding(width: usize) -> Mask {
        Mask::Window { left: Some(width.saturating_sub(1)), right: Some(0) }
    }

    /// The bands of this mask on `batch`: valid tokens only, nothing across documents unless slices say so.
    pub fn lower<B: Batch>(&self, batch: &B) -> Result<Bands> {
        let _ = batch;
        todo!()
    }
}
