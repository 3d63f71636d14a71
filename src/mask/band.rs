//! One band: a rectangle of (query, key) cells cut by two diagonals.

use std::ops::Range;

use crate::mask::{Slice, SliceKind};

/// The cells `(q, k)` with `q` and `k` in the ranges and `d_lo <= k - q <= d_hi`.
///
/// Tokens are not negative. The form is that of MagiAttention's rectangles (`common/rectangle.py`).
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
    /// All cells of a rectangle.
    pub fn full(q: Range<i64>, k: Range<i64>) -> Band {
        Band { d_lo: k.start - q.end + 1, d_hi: k.end - 1 - q.start, q, k }
    }

    /// A sliding window over a rectangle, aligned to its bottom right corner: with `c = k.end - q.end + q` the key on
    /// the diagonal of query `q`, it attends keys `c - left ..= c + right` of the rectangle; `None` is unlimited. As
    /// in Flash Attention. Queries whose diagonal lies before the first key attend nothing, whatever `right` is.
    pub fn sliding(q: Range<i64>, k: Range<i64>, left: Option<usize>, right: Option<usize>) -> Option<Band> {
        let diagonal = k.end - q.end;
        let reach = |tokens: Option<usize>| tokens.and_then(|n| i64::try_from(n).ok()).unwrap_or(i64::MAX);
        let q = q.start.max(k.start - diagonal)..q.end;
        let (d_lo, d_hi) = (diagonal.saturating_sub(reach(left)), diagonal.saturating_add(reach(right)));
        Band { q, k, d_lo, d_hi }.shrunk()
    }

    /// Shrinks ranges and diagonals to what cells exist; nothing if there is none. Afterwards every query attends a
    /// key, every key is attended, and both outer diagonals have cells.
    pub fn shrunk(self) -> Option<Band> {
        let Band { q, k, d_lo, d_hi } = self;
        if q.is_empty() || k.is_empty() {
            return None;
        }
        let d_lo = d_lo.max(k.start - (q.end - 1));
        let d_hi = d_hi.min(k.end - 1 - q.start);
        if d_lo > d_hi {
            return None;
        }
        // In this order one pass is enough.
        let q = q.start.max(k.start - d_hi)..q.end.min(k.end - d_lo);
        let k = k.start.max(q.start + d_lo)..k.end.min(q.end + d_hi);
        Some(Band { q, k, d_lo, d_hi })
    }

    /// Number of cells, in constant time. Stops at `u64::MAX`.
    pub fn area(&self) -> u64 {
        if self.q.is_empty() || self.k.is_empty() || self.d_lo > self.d_hi {
            return 0;
        }
        let wide = i128::from;
        let (rows, keys) = (wide(self.q.end) - wide(self.q.start), wide(self.k.end) - wide(self.k.start));
        // Sum over i in 0..rows of max(0, first + i).
        let triangle = |x: i128| if x > 0 { x * (x + 1) / 2 } else { 0 };
        let ramp = |first: i128| triangle(first + rows - 1) - triangle(first - 1);
        // Cells with k - q <= d: row i has clamp(first + i, 0, keys) of them.
        let up_to = |d: i128| {
            let first = wide(self.q.start) + d - wide(self.k.start) + 1;
            ramp(first) - ramp(first - keys)
        };
        u64::try_from(up_to(wide(self.d_hi)) - up_to(wide(self.d_lo) - 1)).unwrap_or(u64::MAX)
    }

    /// Whether query `q` attends key `k`.
    pub fn contains(&self, q: i64, k: i64) -> bool {
        self.q.contains(&q) && self.keys(q).contains(&k)
    }

    /// The keys that query `q` attends in this band; an empty range if there is none.
    pub fn keys(&self, q: i64) -> Range<i64> {
        if !self.q.contains(&q) {
            return self.k.start..self.k.start;
        }
        let from = self.k.start.max(q.saturating_add(self.d_lo));
        let to = self.k.end.min(q.saturating_add(self.d_hi).saturating_add(1));
        from..to.max(from)
    }

    /// The part with queries in `q` and keys in `k`.
    pub fn intersect(&self, q: Range<i64>, k: Range<i64>) -> Option<Band> {
        let q = self.q.start.max(q.start)..self.q.end.min(q.end);
        let k = self.k.start.max(k.start)..self.k.end.min(k.end);
        Band { q, k, ..*self }.shrunk()
    }

    /// The cells that are also in `other`.
    pub fn common(&self, other: &Band) -> Option<Band> {
        let (d_lo, d_hi) = (self.d_lo.max(other.d_lo), self.d_hi.min(other.d_hi));
        Band { d_lo, d_hi, ..self.clone() }.intersect(other.q.clone(), other.k.clone())
    }

    /// The parts with queries before `at` and from `at` on.
    pub fn cut_q(&self, at: i64) -> (Option<Band>, Option<Band>) {
        (self.intersect(i64::MIN..at, i64::MIN..i64::MAX), self.intersect(at..i64::MAX, i64::MIN..i64::MAX))
    }

    /// The parts with keys before `at` and from `at` on.
    pub fn cut_k(&self, at: i64) -> (Option<Band>, Option<Band>) {
        (self.intersect(i64::MIN..i64::MAX, i64::MIN..at), self.intersect(i64::MIN..i64::MAX, at..i64::MAX))
    }

    /// The same cells as at most three slices, by ascending query.
    pub fn slices(&self) -> Vec<Slice> {
        let Some(band) = self.clone().shrunk() else {
            return Vec::new();
        };
        let Band { q, k, d_lo, d_hi } = &band;
        // The upper bound moves in queries before `upper`, the lower one from `lower` on. The query where a bound
        // only touches its range counts as moving, unless no other moves.
        let touch = k.end - 1 - d_hi;
        let upper = if touch <= q.start { q.start } else { q.end.min(touch + 1) };
        let touch = k.start - d_lo;
        let lower = if touch >= q.end - 1 { q.end } else { q.start.max(touch) };
        let (first, last) = (upper.min(lower), upper.max(lower));
        let middle = if upper <= lower { SliceKind::Full } else { SliceKind::BiCausal };
        let kinds = [(q.start..first, SliceKind::Causal), (first..last, middle), (last..q.end, SliceKind::InvCausal)];
        let slice = |(q, kind): (Range<i64>, SliceKind)| Slice {
            k: band.keys(q.start).start as usize..band.keys(q.end - 1).end as usize,
            q: q.start as usize..q.end as usize,
            kind,
        };
        kinds.into_iter().filter(|(q, _)| !q.is_empty()).map(slice).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: i64 = 1 << 40;

    /// Every band in a small box, with diagonals past its corners.
    fn small_bands(mut each: impl FnMut(Band)) {
        for (qs, ks) in [(0, 0), (2, 0), (0, 3)] {
            for (sq, sk) in [(0, 3), (3, 0), (1, 1), (1, 4), (4, 1), (3, 5), (5, 3), (4, 4)] {
                for d_lo in -8..9 {
                    for d_hi in -8..9 {
                        each(Band { q: qs..qs + sq, k: ks..ks + sk, d_lo, d_hi });
                    }
                }
            }
        }
    }

    /// The cells, by definition.
    fn cells(band: &Band) -> Vec<(i64, i64)> {
        let inside = |q: i64, k: i64| band.d_lo <= k - q && k - q <= band.d_hi;
        band.q.clone().flat_map(|q| band.k.clone().filter(move |&k| inside(q, k)).map(move |k| (q, k))).collect()
    }

    #[test]
    fn shrinking_keeps_the_cells_and_no_more() {
        small_bands(|band| {
            let expected = cells(&band);
            assert_eq!(band.area(), expected.len() as u64, "{band:?}");
            let Some(shrunk) = band.clone().shrunk() else {
                assert!(expected.is_empty(), "{band:?}");
                return;
            };
            assert_eq!(cells(&shrunk), expected);
            assert!(shrunk.q.clone().all(|q| expected.iter().any(|cell| cell.0 == q)), "{band:?} {shrunk:?}");
            assert!(shrunk.k.clone().all(|k| expected.iter().any(|cell| cell.1 == k)), "{band:?} {shrunk:?}");
            for d in [shrunk.d_lo, shrunk.d_hi] {
                assert!(expected.iter().any(|&(q, k)| k - q == d), "{band:?} {shrunk:?}");
            }
        });
    }

    #[test]
    fn keys_contains_cuts_and_slices_agree_with_the_definition() {
        small_bands(|band| {
            let expected = cells(&band);
            for q in -1..9 {
                let keys: Vec<_> = band.keys(q).collect();
                let row: Vec<_> = expected.iter().filter(|cell| cell.0 == q).map(|cell| cell.1).collect();
                assert_eq!(keys, row, "{band:?} query {q}");
                assert!((-1..9).all(|k| band.contains(q, k) == row.contains(&k)), "{band:?} query {q}");
            }
            for at in -1..9 {
                let part = |band: Option<Band>| band.iter().flat_map(cells).collect::<Vec<_>>();
                let (before, after) = band.cut_q(at);
                assert_eq!([part(before), part(after)].concat(), expected);
                let (before, after) = band.cut_k(at);
                let mut both = [part(before), part(after)].concat();
                both.sort_unstable();
                assert_eq!(both, expected);
            }
            let slices = band.slices();
            assert!(slices.len() <= 3);
            let bands: Vec<_> = slices.iter().map(|slice| slice.band().unwrap()).collect();
            assert_eq!(bands.iter().flat_map(cells).collect::<Vec<_>>(), expected, "{band:?} {slices:?}");
        });
    }

    #[test]
    fn large_areas() {
        let full = Band::full(0..LARGE, 0..4);
        assert_eq!(full.area(), 4 << 40);
        let tokens = 1 << 20;
        let causal = Band { d_hi: 0, ..Band::full(0..tokens, 0..tokens) };
        assert_eq!(causal.area(), (1 << 19) * ((1 << 20) + 1));
        assert_eq!(Band { d_lo: i64::MIN, d_hi: i64::MAX, ..Band::full(0..LARGE, 0..LARGE) }.area(), u64::MAX);
    }

    /// The vectors of `magi.md` section 2.6: ranges, window, slices, area.
    #[test]
    fn sliding_windows_as_slices() {
        use SliceKind::{BiCausal as B, Causal as C, InvCausal as I};
        type Case = ((i64, i64), (i64, i64), (i64, i64), &'static [(SliceKind, usize, usize, usize, usize)], u64);
        let cases: [Case; 8] = [
            ((5, 15), (5, 15), (2, 3), &[(C, 5, 7, 5, 10), (B, 7, 12, 5, 15), (I, 12, 15, 10, 15)], 51),
            ((5, 15), (7, 30), (3, 2), &[(B, 5, 13, 17, 30), (I, 13, 15, 25, 30)], 57),
            ((5, 30), (10, 20), (2, 3), &[(C, 20, 22, 10, 15), (B, 22, 27, 10, 20), (I, 27, 30, 15, 20)], 51),
            ((0, 8), (0, 8), (2, 0), &[(C, 0, 2, 0, 2), (B, 2, 8, 0, 8)], 21),
            ((0, 4096), (0, 4096), (1024, 0), &[(C, 0, 1024, 0, 1024), (B, 1024, 4096, 0, 4096)], 3673600),
            ((0, 8), (0, 8), (-1, 0), &[(C, 0, 8, 0, 8)], 36),
            ((0, 8), (0, 8), (0, 0), &[(B, 0, 8, 0, 8)], 8),
            ((0, 4), (0, 16), (3, 0), &[(B, 0, 4, 9, 16)], 16),
        ];
        for (q, k, (left, right), slices, area) in cases {
            let band = Band::sliding(q.0..q.1, k.0..k.1, reach(left), reach(right)).unwrap();
            let expected: Vec<_> =
                slices.iter().map(|&(kind, qs, qe, ks, ke)| Slice { q: qs..qe, k: ks..ke, kind }).collect();
            assert_eq!(band.slices(), expected);
            assert_eq!(band.area(), area);
        }
    }

    /// -1 is unlimited.
    fn reach(tokens: i64) -> Option<usize> {
        usize::try_from(tokens).ok()
    }

    #[test]
    fn every_sliding_window_over_the_listed_ranges() {
        let ranges = [(5..25, 5..25), (5..15, 7..30), (5..30, 10..20), (10..20, 5..45), (3..25, 20..24)];
        for (q, k) in ranges {
            for left in -1..k.end - k.start {
                for right in -1..k.end - k.start {
                    let mut expected = Vec::new();
                    for row in q.clone() {
                        let c = k.end - 1 - (q.end - 1 - row);
                        if c < k.start {
                            continue;
                        }
                        let seen = |key: &i64| (left == -1 || *key >= c - left) && (right == -1 || *key <= c + right);
                        expected.extend(k.clone().filter(seen).map(|key| (row, key)));
                    }
                    let band = Band::sliding(q.clone(), k.clone(), reach(left), reach(right));
                    let found: Vec<_> = band.iter().flat_map(cells).collect();
                    assert_eq!(found, expected, "{q:?} {k:?} ({left}, {right})");
                }
            }
        }
    }
}
