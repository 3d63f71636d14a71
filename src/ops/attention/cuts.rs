//! Where tiles of rows begin: at documents that are long, not at multiples of a tile.

use std::ops::Range;

/// From the first row of the other side that one of these meets to the last.
pub(super) fn hull_of(spans: &[Range<usize>]) -> Range<usize> {
    spans.iter().fold(0..0, |hull, span| join(&hull, span))
}

/// The hull of two ranges, of which one may be empty.
fn join(hull: &Range<usize>, span: &Range<usize>) -> Range<usize> {
    match (hull.is_empty(), span.is_empty()) {
        (true, _) => span.clone(),
        (_, true) => hull.clone(),
        _ => hull.start.min(span.start)..hull.end.max(span.end),
    }
}

/// Tiles that a run of rows is looked ahead for.
const AHEAD: usize = 4;

/// Tiles of at most `size` rows that together meet the fewest tiles of `other` rows, where each counts for one more.
/// `spans` are the rows of the other side that each row meets.
///
/// Tiles may begin anew where what is met jumps, as it does from one document to the next; in between they are whole.
/// So long documents have tiles of their own, and short ones share them: at multiples of `size` instead, a tile would
/// meet the keys of two documents all over again. A dynamic program over these places, from the end: a run of whole
/// tiles goes from one of them to any that is not far away, or to the next.
pub(super) fn cuts(spans: &[Range<usize>], size: usize, other: usize) -> Vec<Range<usize>> {
    let rows = spans.len();
    let jumps = |row: &usize| {
        let [before, here] = [&spans[*row - 1], &spans[*row]];
        before.is_empty() != here.is_empty()
            || before.start.abs_diff(here.start) > 1
            || before.end.abs_diff(here.end) > 1
    };
    // Places in their order, with the cost from there to the end and the place where the run from there ends.
    let mut places: Vec<(usize, usize, usize)> =
        (0..=rows).filter(|row| *row == 0 || *row == rows || jumps(row)).map(|row| (row, 0, 0)).collect();
    for from in (0..places.len().saturating_sub(1)).rev() {
        let begin = places[from].0;
        let (mut best, mut cost, mut next) = ((usize::MAX, 0), 0, from + 1);
        let last = (begin + AHEAD * size).max(places[from + 1].0);
        let mut hull = 0..0;
        for (row, span) in spans.iter().enumerate().take(last).skip(begin) {
            hull = join(&hull, span);
            let of_tile = 1 + hull.len().div_ceil(other);
            if places[next].0 == row + 1 {
                best = best.min((cost + of_tile + places[next].1, next));
                next += 1;
            }
            if (row + 1 - begin).is_multiple_of(size) {
                (cost, hull) = (cost + of_tile, 0..0);
            }
        }
        (places[from].1, places[from].2) = best;
    }
    let (mut at, mut tiles) = (0, Vec::new());
    while at + 1 < places.len() {
        let (begin, _, next) = places[at];
        let end = places[next].0;
        tiles.extend((begin..end).step_by(size).map(|row| row..(row + size).min(end)));
        at = next;
    }
    tiles
}

#[cfg(test)]
mod tests {
    use super::super::attended::AttendedKeys;
    use super::super::visits::{TileLists, TileSizes};
    use super::*;
    use crate::order::Run;
    use crate::plan::{Piece, TileCells};

    /// Documents one after the other, each causal.
    fn packed(lengths: &[usize]) -> TileCells {
        let starts = lengths.iter().scan(0, |row, len| Some(std::mem::replace(row, *row + len)));
        let piece = |(row, &len): (usize, &usize)| {
            let tokens = Run { start: row, step: 1, len };
            Piece { q_row: row, k_row: row, q: tokens, k: tokens, d_lo: i64::MIN / 2, d_hi: 0 }
        };
        let rows = lengths.iter().sum();
        TileCells::new(rows, rows, starts.zip(lengths).map(piece).collect::<Vec<_>>())
    }

    #[test]
    fn tiles_begin_with_documents_that_are_long_and_share_short_ones() {
        let sizes = TileSizes { queries: 4, keys: 4 };
        let rows = |lengths: &[usize]| {
            let attended = AttendedKeys::new(&packed(lengths));
            let rows = cuts(&attended.hulls(), sizes.queries, sizes.keys);
            assert_eq!(cuts(&attended.attending(), sizes.keys, sizes.queries), rows, "both sides of a document");
            rows
        };
        assert_eq!(rows(&[5, 16]), [0..4, 4..5, 5..9, 9..13, 13..17, 17..21]);
        assert_eq!(rows(&[6, 9]), [0..4, 4..8, 8..12, 12..15], "one tile less, and no visit more");
        assert_eq!(rows(&[2, 1, 1, 8]), [0..4, 4..8, 8..12]);
        assert_eq!(rows(&[1, 1, 1, 1, 1, 1]), [0..4, 4..6]);
        assert_eq!(rows(&[]), []);
    }

    #[test]
    fn documents_of_all_lengths_need_fewer_visits_than_a_grid_of_tiles() {
        // Lengths like those of texts: the logarithm normal, by the sum of uniform numbers.
        let mut state = 7u64;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / (1u64 << 24) as f64
        };
        for (median, spread, least) in [(100.0, 0.8, 1.02), (300.0, 0.8, 1.05), (800.0, 0.8, 1.03), (500.0, 0.0, 1.25)]
        {
            let mut lengths = Vec::new();
            while lengths.iter().sum::<usize>() < 16_384 {
                let normal: f64 = (0..12).map(|_| uniform()).sum::<f64>() - 6.0;
                lengths.push((f64::ln(median) + spread * normal).exp().round() as usize);
            }
            let attended = AttendedKeys::new(&packed(&lengths));
            let sizes = TileSizes { queries: 128, keys: 128 };
            let found = TileLists::by_queries(&attended, sizes).visits.len();
            let spans = attended.hulls();
            let grid = (0..spans.len()).step_by(128).map(|row| &spans[row..(row + 128).min(spans.len())]);
            let of_grid: usize = grid.map(|spans| hull_of(spans).len().div_ceil(128)).sum();
            println!("documents of {median}: {found} visits, {of_grid} with tiles at multiples of 128");
            assert!(of_grid as f64 >= least * found as f64, "{found} visits, {of_grid} with a grid");
        }
    }
}
