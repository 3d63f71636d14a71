//! From a mask to bands.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::ops::Range;

use crate::error::{MaskError, Result};
use crate::layout::Batch;
use crate::mask::fuse::fuse;
use crate::mask::{Band, Bands, Mask, Slice};

impl Mask {
    /// The bands of this mask on `batch`: valid tokens only, nothing across documents unless slices say so.
    ///
    /// A prefix longer than its document counts as the whole document.
    ///
    /// # Errors
    /// [`MaskError`] for slices that reach past the batch or overlap in a cell of valid tokens, and for a number of
    /// prefixes that is not that of documents.
    pub fn lower(&self, batch: &dyn Batch) -> Result<Bands> {
        self.lower_onto(batch, batch)
    }

    /// The same where queries and keys are batches of their own, document by document: each document's last valid query
    /// is at the position of its last valid key (as in Flash Attention), so that queries of new tokens attend keys that
    /// are there already. Bands have the tokens of `queries` as queries and those of `keys` as keys.
    ///
    /// # Errors
    /// Those of [`Mask::lower`], and [`MaskError::Documents`] for other numbers of documents.
    pub fn lower_onto(&self, queries: &dyn Batch, keys: &dyn Batch) -> Result<Bands> {
        let bands = match self {
            Mask::Full => per_document(queries, keys, |_, q, k| vec![Band::full(q, k)])?,
            Mask::Causal => per_document(queries, keys, |_, q, k| vec![causal(q, k)])?,
            Mask::Window { left, right } => {
                per_document(queries, keys, |_, q, k| Band::sliding(q, k, *left, *right).into_iter().collect())?
            }
            Mask::Prefix(prefix) => {
                if prefix.len() != keys.documents() {
                    let (expected, found) = (keys.documents(), prefix.len());
                    return Err(MaskError::PrefixCount { expected, found }.into());
                }
                per_document(queries, keys, |document, q, k| {
                    let seen = i64::try_from(prefix[document]).unwrap_or(i64::MAX).min(k.end - k.start);
                    // Queries within the prefix attend all of it, those after it what comes before them.
                    let end = k.start + seen;
                    let within = (end - (k.end - q.end)).clamp(q.start, q.end);
                    vec![Band::full(q.start..within, k.start..end), causal_at(within..q.end, k.clone(), k.end - q.end)]
                })?
            }
            Mask::Slices(slices) => explicit(slices, queries, keys)?,
        };
        Ok(Bands::sorted(bands.into_iter().filter_map(Band::shrunk).collect()))
    }
}

/// A query attends the key at its own position and those before it; the last of both are at one position.
fn causal(q: Range<i64>, k: Range<i64>) -> Band {
    let diagonal = k.end - q.end;
    causal_at(q, k, diagonal)
}

fn causal_at(q: Range<i64>, k: Range<i64>, diagonal: i64) -> Band {
    Band { d_hi: diagonal, ..Band::full(q, k) }
}

/// Bands of each document's valid tokens, from those of its queries and of its keys.
fn per_document(
    queries: &dyn Batch,
    keys: &dyn Batch,
    bands: impl Fn(usize, Range<i64>, Range<i64>) -> Vec<Band>,
) -> Result<Vec<Band>, MaskError> {
    if queries.documents() != keys.documents() {
        return Err(MaskError::Documents { queries: queries.documents(), keys: keys.documents() });
    }
    let valid = |batch: &dyn Batch, document| {
        let valid = batch.document(document).valid_range();
        valid.start as i64..valid.end as i64
    };
    let of = |document| bands(document, valid(queries, document), valid(keys, document));
    Ok((0..keys.documents()).flat_map(of).collect())
}

/// Ranges of valid tokens, those that touch made one.
fn valid_ranges(batch: &dyn Batch) -> Vec<Range<i64>> {
    let mut ranges: Vec<Range<i64>> = Vec::new();
    for document in (0..batch.documents()).map(|i| batch.document(i).valid_range()).filter(|valid| !valid.is_empty()) {
        let valid = document.start as i64..document.end as i64;
        match ranges.last_mut() {
            Some(last) if last.end == valid.start => last.end = valid.end,
            _ => ranges.push(valid),
        }
    }
    ranges
}

/// The slices' bands, checked, cut to valid tokens, and fused.
fn explicit(slices: &[Slice], queries: &dyn Batch, keys: &dyn Batch) -> Result<Vec<Band>> {
    for (slice, Slice { q, k, .. }) in slices.iter().enumerate() {
        for (what, range, tokens) in [("queries", q, queries.tokens()), ("keys", k, keys.tokens())] {
            let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
            let (start, end) = (number(range.start), number(range.end));
            if range.start > range.end {
                return Err(MaskError::Backwards { slice, what, start, end }.into());
            }
            if range.end > tokens {
                return Err(MaskError::OutOfRange { slice, what, start, end, tokens }.into());
            }
        }
    }
    let (valid, valid_keys) = (valid_ranges(queries), valid_ranges(keys));
    let mut bands = Vec::new();
    for (slice, band) in slices.iter().enumerate() {
        let Some(band) = band.band() else { continue };
        for q in overlapping(&valid, &band.q) {
            let Some(row) = band.intersect(q.clone(), band.k.clone()) else { continue };
            let parts = overlapping(&valid_keys, &row.k).iter();
            bands.extend(parts.filter_map(|k| row.intersect(q.clone(), k.clone())).map(|part| (slice, part)));
        }
    }
    bands.sort_by_key(|(slice, band)| (band.q.start, band.k.start, *slice));
    refuse_overlap(&bands)?;
    Ok(fuse(bands.into_iter().map(|(_, band)| band).collect()))
}

/// The ranges of a sorted, disjoint list that meet `range`.
fn overlapping<'a>(ranges: &'a [Range<i64>], range: &Range<i64>) -> &'a [Range<i64>] {
    let first = ranges.partition_point(|other| other.end <= range.start);
    let last = ranges.partition_point(|other| other.start < range.end);
    &ranges[first..last.max(first)]
}

/// Refuses bands of different slices with a cell in common. Bands are sorted by first query.
///
/// Sweeps over queries with the bands that are open there, by first key, so that a band is compared only with bands
/// that share a query and may share a key.
fn refuse_overlap(bands: &[(usize, Band)]) -> Result<()> {
    let longest = bands.iter().map(|(_, band)| band.k.end - band.k.start).max().unwrap_or(0);
    let mut open: BTreeSet<(i64, usize)> = BTreeSet::new();
    let mut ends: BinaryHeap<Reverse<(i64, i64, usize)>> = BinaryHeap::new();
    for (index, (slice, band)) in bands.iter().enumerate() {
        while let Some(&Reverse((end, key, closed))) = ends.peek()
            && end <= band.q.start
        {
            ends.pop();
            open.remove(&(key, closed));
        }
        let from = band.k.start.saturating_sub(longest);
        for &(_, other) in open.range((from, 0)..(band.k.end, 0)) {
            let (other_slice, other) = &bands[other];
            if other_slice == slice {
                continue;
            }
            if let Some(shared) = band.common(other) {
                let (first, second) = (*slice.min(other_slice), *slice.max(other_slice));
                let (query, key) = (shared.q.start, shared.keys(shared.q.start).start);
                return Err(MaskError::Overlap { first, second, query, key }.into());
            }
        }
        open.insert((band.k.start, index));
        ends.push(Reverse((band.q.end, band.k.start, index)));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
