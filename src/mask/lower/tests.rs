//! Masks lowered by hand, what is refused, and masks that are written in other ways.

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
