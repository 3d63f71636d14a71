//! Slices: rectangles with one of four shapes, the form in which masks are written down.

use std::ops::Range;

use crate::mask::Band;

/// Which cells of a slice's rectangle are attended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SliceKind {
    /// All.
    Full,
    /// The upper bound moves with the query, aligned to the bottom right corner: `k - q <= k.end - q.end`.
    Causal,
    /// The lower bound moves with the query, aligned to the top left corner: `k - q >= k.start - q.start`.
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

impl Slice {
    /// The slice's cells; nothing if it has none. The ends of its ranges must fit `i64`.
    pub fn band(&self) -> Option<Band> {
        let (q, k) = (self.q.start as i64..self.q.end as i64, self.k.start as i64..self.k.end as i64);
        if q.is_empty() || k.is_empty() {
            return None;
        }
        let full = Band::full(q.clone(), k.clone());
        let d_lo = match self.kind {
            SliceKind::InvCausal | SliceKind::BiCausal => k.start - q.start,
            SliceKind::Full | SliceKind::Causal => full.d_lo,
        };
        let d_hi = match self.kind {
            SliceKind::Causal | SliceKind::BiCausal => k.end - q.end,
            SliceKind::Full | SliceKind::InvCausal => full.d_hi,
        };
        Band { q, k, d_lo, d_hi }.shrunk()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [SliceKind; 4] = [SliceKind::Full, SliceKind::Causal, SliceKind::InvCausal, SliceKind::BiCausal];

    fn area(q: Range<usize>, k: Range<usize>, kind: SliceKind) -> u64 {
        Slice { q, k, kind }.band().map_or(0, |band| band.area())
    }

    /// `magi.md` section 2.2: areas, and keys per row of the causal shape.
    #[test]
    fn areas_and_rows_by_shape() {
        for (sq, sk, areas, rows) in [
            (3, 5, [15, 12, 12, 9], &[3, 4, 5][..]),
            (5, 3, [15, 6, 6, 0], &[0, 0, 1, 2, 3]),
            (4, 4, [16, 10, 10, 4], &[1, 2, 3, 4]),
        ] {
            assert_eq!(KINDS.map(|kind| area(7..7 + sq, 2..2 + sk, kind)), areas);
            let causal = Slice { q: 7..7 + sq, k: 2..2 + sk, kind: SliceKind::Causal }.band().unwrap();
            let lengths: Vec<_> = (7..7 + sq as i64).map(|q| causal.keys(q).count()).collect();
            assert_eq!(lengths, rows);
        }
    }

    /// The closed forms of section 2.3, with the negative area of a tall double-causal slice taken as none.
    #[test]
    fn areas_are_the_closed_forms() {
        for sq in 0..8u64 {
            for sk in 0..8u64 {
                let (q, k) = (3..3 + sq as usize, 1..1 + sk as usize);
                let causal = if sk >= sq { (2 * sk + 1 - sq) * sq / 2 } else { sk * (sk + 1) / 2 };
                let both = (sk + 1).saturating_sub(sq) * sq;
                let both = if sk == 0 { 0 } else { both };
                let expected = [sq * sk, causal, causal, both];
                assert_eq!(KINDS.map(|kind| area(q.clone(), k.clone(), kind)), expected, "{sq} x {sk}");
            }
        }
    }

    #[test]
    fn bounds_move_as_defined() {
        let (q, k) = (2..7usize, 3..9usize);
        for (code, kind) in KINDS.into_iter().enumerate() {
            let band = Slice { q: q.clone(), k: k.clone(), kind }.band().unwrap();
            for row in q.clone() {
                let lo = k.start + if code & 2 != 0 { row - q.start } else { 0 };
                let hi = k.end - if code & 1 != 0 { q.end - 1 - row } else { 0 };
                let expected: Vec<_> = (lo as i64..hi as i64).collect();
                assert_eq!(band.keys(row as i64).collect::<Vec<_>>(), expected, "{kind:?} row {row}");
            }
        }
    }
}
