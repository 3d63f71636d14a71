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

    /// The same where queries and keys are batches of their own, document by document: each document's last valid query is
    /// at the position of its last valid key (as in Flash Attention), so that queries of new tokens attend keys that are
    /// there already. Bands have the tokens of `queries` as queries and those of `keys` as keys.
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
mod tests {
    use super::*;
    use crate::layout::{Dense, Packed};
    use crate::mask::SliceKind::{self, Causal, Full, InvCausal};

    fn slice(q: Range<usize>, k: Range<usize>, kind: SliceKind) -> Slice {
        Slice { q, k, kind }
    }

    fn cells(bands: &Bands, tokens: i64) -> Vec<(i64, i64)> {
        let row = |q| (0..tokens).filter(move |&k| bands.contains(q, k)).map(move |k| (q, k));
        (0..tokens).flat_map(row).collect()
    }

    /// `magi.md` section 2.8.
    #[test]
    fn areas_of_parts() {
        let mask = Mask::Slices(vec![
            slice(0..6, 0..4, Causal),
            slice(6..9, 4..12, Full),
            slice(9..12, 12..15, Causal),
            slice(12..16, 1..13, Causal),
        ]);
        let bands = mask.lower(&Dense { batch: 1, seq: 16 }).unwrap();
        assert_eq!(bands.area(), 82);
        for (q, k, area) in [(4..13, 1..13, 41), (0..14, 0..7, 31), (5..16, 3..11, 53), (4..12, 4..12, 24)] {
            assert_eq!(bands.intersect(q.clone(), k.clone()).area(), area, "{q:?} {k:?}");
        }
    }

    /// The mask "tc2" of `magi.md` section 2.8, cut into chunks of 8 queries.
    #[test]
    fn areas_of_chunks() {
        let mask = Mask::Slices(vec![
            slice(0..10, 0..11, Full),
            slice(10..16, 5..18, Causal),
            slice(16..30, 18..32, Causal),
            slice(30..43, 32..45, Causal),
            slice(43..61, 45..64, Full),
            slice(61..64, 53..64, Full),
        ]);
        let bands = mask.lower(&Dense { batch: 1, seq: 64 }).unwrap();
        let areas: Vec<_> = (0..8).map(|chunk| bands.intersect(chunk * 8..chunk * 8 + 8, 0..64).area()).collect();
        assert_eq!(areas, [88, 85, 36, 72, 52, 131, 152, 128]);
    }

    #[test]
    fn masks_of_a_pack_by_hand() {
        // Tokens 0, 1 valid; 2 padding; 3, 4, 5 valid.
        let batch = Packed::new(&[2, 0, 3], &[3, 0, 3]).unwrap();
        let cells = |mask: Mask| cells(&mask.lower(&batch).unwrap(), 6);
        assert_eq!(cells(Mask::Causal), [(0, 0), (1, 0), (1, 1), (3, 3), (4, 3), (4, 4), (5, 3), (5, 4), (5, 5)]);
        assert_eq!(cells(Mask::sliding(1).unwrap()), [(0, 0), (1, 1), (3, 3), (4, 4), (5, 5)]);
        let right = Mask::Window { left: Some(0), right: Some(1) };
        assert_eq!(cells(right), [(0, 0), (0, 1), (1, 1), (3, 3), (3, 4), (4, 4), (4, 5), (5, 5)]);
        assert_eq!(cells(Mask::Window { left: None, right: None }), cells(Mask::Full));
        let prefix = cells(Mask::Prefix(vec![usize::MAX, 7, 2]));
        let second = [(3, 3), (3, 4), (4, 3), (4, 4), (5, 3), (5, 4), (5, 5)];
        assert_eq!(prefix, [&[(0, 0), (0, 1), (1, 0), (1, 1)][..], &second[..]].concat());
        // Slices cross documents but never touch padding.
        let across = Mask::Slices(vec![slice(1..4, 0..6, Causal)]);
        assert_eq!(cells(across), [(1, 0), (1, 1), (1, 3), (3, 0), (3, 1), (3, 3), (3, 4), (3, 5)]);
    }

    #[test]
    fn what_is_refused() {
        let batch = Dense { batch: 1, seq: 8 };
        let refused = |mask: Mask| mask.lower(&batch).unwrap_err().to_string();
        let overlap = refused(Mask::Slices(vec![slice(4..8, 0..4, Full), slice(0..6, 0..6, Causal)]));
        assert!(overlap.starts_with("mask slices 0 and 1 both attend query 4, key 0"), "{overlap}");
        let outside = refused(Mask::Slices(vec![slice(0..8, 0..9, Full)]));
        assert_eq!(outside, "mask slice 0 covers keys 0..9, but the batch has tokens 0..8");
        let (start, end) = (3, 2);
        let reversed = slice(start..end, 0..8, Full);
        let backwards = refused(Mask::Slices(vec![slice(0..8, 0..8, Full), reversed]));
        assert!(backwards.starts_with("mask slice 1 has queries 3..2"), "{backwards}");
        assert_eq!(refused(Mask::Prefix(vec![])), "0 prefix lengths for 1 documents: pass one per document");
        // One rectangle shared by shapes that do not meet, and an overlap in padding, are fine.
        let lower = slice(0..4, 0..4, Causal);
        let upper = slice(0..3, 1..4, InvCausal);
        let both = Mask::Slices(vec![lower, upper]).lower(&batch).unwrap();
        assert_eq!(both.area(), 16);
        let padded = Packed::new(&[2], &[4]).unwrap();
        let both = Mask::Slices(vec![slice(0..4, 0..2, Full), slice(2..4, 0..4, Full)]).lower(&padded).unwrap();
        assert_eq!(both.area(), 4);
    }

    /// However the cells of a band are written, the bands are the same.
    #[test]
    fn slices_of_one_band_are_one_band() {
        let batch = Dense { batch: 1, seq: 24 };
        let masks = [
            Mask::Full,
            Mask::Causal,
            Mask::sliding(5).unwrap(),
            Mask::Window { left: Some(3), right: Some(7) },
            Mask::Window { left: None, right: Some(2) },
            Mask::Window { left: Some(0), right: Some(0) },
        ];
        for mask in masks {
            let bands = mask.lower(&batch).unwrap();
            for (queries, keys) in [(24, 5), (5, 24), (6, 6), (7, 3), (1, 24)] {
                let mut slices = Vec::new();
                for (q, k) in (0..24).step_by(queries).flat_map(|q| (0..24).step_by(keys).map(move |k| (q, k))) {
                    let part = bands.intersect(q..q + queries as i64, k..k + keys as i64);
                    slices.extend(part.as_slice().iter().flat_map(Band::slices));
                }
                let written = Mask::Slices(slices.clone()).lower(&batch).unwrap();
                assert_eq!(cells(&written, 24), cells(&bands, 24), "{mask:?} in pieces of {queries} x {keys}");
                assert_eq!(written, bands, "{mask:?} in pieces of {queries} x {keys}");
                slices.reverse();
                assert_eq!(Mask::Slices(slices).lower(&batch).unwrap(), bands, "{mask:?} backwards");
            }
        }
    }

    #[test]
    fn many_documents_take_little_time() {
        let documents = 100_000;
        let batch = Packed::new(&vec![2; documents], &vec![3; documents]).unwrap();
        let slices: Vec<_> = (0..documents).map(|i| slice(3 * i..3 * i + 3, 3 * i..3 * i + 3, Full)).collect();
        assert_eq!(Mask::Slices(slices).lower(&batch).unwrap(), Mask::Full.lower(&batch).unwrap());
    }
}
