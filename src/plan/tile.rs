//! Tiles: all pieces where one rank's queries meet a buffer of keys under a mask.

use std::ops::Range;
use std::sync::Arc;

use crate::mask::{Band, Bands};
use crate::order::Run;
use crate::plan::Piece;

/// Query rows and key rows of one sequence.
pub type Block = (Range<usize>, Range<usize>);

/// What is attended where a buffer of queries meets a buffer of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileCells {
    /// Rows of the query buffer.
    pub queries: usize,
    /// Rows of the key buffer.
    pub keys: usize,
    /// The attended cells, sorted by `q_row`, then by `k_row`.
    pub pieces: Arc<[Piece]>,
    /// Rows of each sequence in both buffers, which no piece crosses; only of dense batches and buffers of all keys.
    pub blocks: Arc<[Block]>,
}

impl TileCells {
    /// The cells of `pieces` in buffers of `queries` and `keys` rows, which are not of a dense batch.
    pub fn new(queries: usize, keys: usize, pieces: impl Into<Arc<[Piece]>>) -> Self {
        TileCells { queries, keys, pieces: pieces.into(), blocks: Arc::default() }
    }

    /// With the rows of each sequence.
    pub fn with_blocks(self, blocks: impl Into<Arc<[Block]>>) -> Self {
        TileCells { blocks: blocks.into(), ..self }
    }
}

/// The pieces where query runs meet key runs under `bands`, sorted by query row, then by key row.
///
/// Each run comes with the row of its first token in its buffer. Queries must not repeat, nor keys; runs may come in
/// any order and may cross documents. Pieces are trimmed to rows with cells and never share a cell; together they
/// have exactly the cells of `bands` whose query and key are both in a run. Takes time in the number of runs, bands
/// and pieces, times a logarithm, as long as runs of one buffer overlap little.
pub fn tile(q: &[(usize, Run)], k: &[(usize, Run)], bands: &Bands) -> Vec<Piece> {
    let keys = Intervals::new(k.iter().map(|&(row, run)| (run.start as i64..run.end() as i64, (row, run))));
    let mut pieces = Vec::new();
    for &(q_row, q_run) in q {
        let queries = q_run.start as i64..q_run.end() as i64;
        for band in bands.meeting(queries.clone()) {
            let Some(band) = band.intersect(queries.clone(), band.k.clone()) else { continue };
            for &(k_row, k_run) in keys.meeting(&band.k) {
                pieces.extend(meet((q_row, q_run), (k_row, k_run), &band));
            }
        }
    }
    pieces.sort_by_key(|piece| (piece.q_row, piece.k_row, piece.d_lo));
    pieces
}

/// The piece of one query run and one key run under one band.
fn meet(q: (usize, Run), k: (usize, Run), band: &Band) -> Option<Piece> {
    let (q_row, q) = clipped(q, &band.q)?;
    let (k_row, k) = clipped(k, &band.k)?;
    Piece { q_row, k_row, q, k, d_lo: band.d_lo, d_hi: band.d_hi }.trimmed()
}

/// The part of a run with tokens in `range`, and the row of its first token.
fn clipped((row, run): (usize, Run), range: &Range<i64>) -> Option<(usize, Run)> {
    // Index of the first token at or after a bound.
    let index = |bound: i64| (bound.max(0) as usize).saturating_sub(run.start).div_ceil(run.step).min(run.len);
    let (first, last) = (index(range.start), index(range.end));
    (first < last).then(|| (row + first, Run { start: run.token(first), len: last - first, ..run }))
}

/// Intervals that can be asked which of them meet another one.
struct Intervals<V> {
    /// Sorted by start.
    items: Vec<(Range<i64>, V)>,
    /// The largest end among the first `i + 1` items; it never falls.
    reach: Vec<i64>,
}

impl<V> Intervals<V> {
    fn new(items: impl Iterator<Item = (Range<i64>, V)>) -> Self {
        let mut items: Vec<_> = items.filter(|(range, _)| !range.is_empty()).collect();
        items.sort_by_key(|(range, _)| range.start);
        let mut largest = i64::MIN;
        let reach = items
            .iter()
            .map(|(range, _)| {
                largest = largest.max(range.end);
                largest
            })
            .collect();
        Intervals { items, reach }
    }

    fn meeting(&self, range: &Range<i64>) -> impl Iterator<Item = &V> {
        let first = self.reach.partition_point(|&end| end <= range.start);
        let last = self.items.partition_point(|(other, _)| other.start < range.end);
        let start = range.start;
        self.items[first.min(last)..last].iter().filter(move |(other, _)| other.end > start).map(|(_, value)| value)
    }
}

/// The rows of the key buffer that at least one query attends: sorted ranges that neither overlap nor touch.
///
/// Where the steps of a piece's runs are equal, or its keys have no gaps and every query attends as many as its step,
/// this takes constant time per piece, else time in its queries.
pub fn touched(pieces: &[Piece]) -> Vec<Range<usize>> {
    let mut ranges = Vec::new();
    for piece in pieces {
        match piece.indices() {
            // Every key that is left after shrinking is attended.
            Some(band) => ranges.extend(
                band.shrunk().map(|band| piece.k_row + band.k.start as usize..piece.k_row + band.k.end as usize),
            ),
            // The keys of neighbouring queries overlap or touch.
            None if piece.k.step == 1 && piece.d_hi - piece.d_lo + 1 >= piece.q.step as i64 => {
                ranges.push(piece.keys(0).start..piece.keys(piece.q.len - 1).end);
            }
            None => ranges.extend((0..piece.q.len).map(|i| piece.keys(i)).filter(|keys| !keys.is_empty())),
        }
    }
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// The attended cells of the pieces by key row: of those before `ends[0]`, of `ends[0]..ends[1]`, and so on. Ends
/// ascend; rows past the last do not count.
///
/// Where the steps of a piece's runs are equal this takes constant time per piece and end, else time in its queries.
pub fn area_by_keys(pieces: &[Piece], ends: &[usize]) -> Vec<u64> {
    let mut areas = vec![0; ends.len()];
    for piece in pieces {
        let keys = piece.k_rows();
        let mut before = 0;
        for index in ends.partition_point(|&end| end <= keys.start)..ends.len() {
            let len = ends[index].min(keys.end) - keys.start;
            let area = Piece { k: Run { len, ..piece.k }, ..piece.clone() }.area();
            areas[index] += area - before;
            before = area;
            if len == keys.len() {
                break;
            }
        }
    }
    areas
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Dense, Packed};
    use crate::mask::Mask;

    fn run(start: usize, step: usize, len: usize) -> Run {
        Run { start, step, len }
    }

    #[test]
    fn a_causal_zigzag_tile_by_hand() {
        // Rank 0 of 2 on 8 tokens holds 0, 1, 6, 7; its keys against those of rank 1 (2..6).
        let bands = Mask::Causal.lower(&Dense { batch: 1, seq: 8 }).unwrap();
        let mine = [(0, run(0, 1, 2)), (2, run(6, 1, 2))];
        let theirs = [(0, run(2, 1, 4))];
        let pieces = tile(&mine, &theirs, &bands);
        assert_eq!(pieces.len(), 1);
        assert_eq!((pieces[0].q_rows(), pieces[0].k_rows(), pieces[0].area()), (2..4, 0..4, 8));
        let own = tile(&mine, &mine, &bands);
        let rows: Vec<_> = own.iter().map(|piece| (piece.q_rows(), piece.k_rows(), piece.area())).collect();
        assert_eq!(rows, [(0..2, 0..2, 3), (2..4, 0..2, 4), (2..4, 2..4, 3)]);
    }

    #[test]
    fn touched_rows_are_exact() {
        let bands = Mask::sliding(2).unwrap().lower(&Dense { batch: 1, seq: 12 }).unwrap();
        // Queries 0, 3, 6, 9 see keys -1..=0, 2..=3, 5..=6, 8..=9.
        let pieces = tile(&[(0, run(0, 3, 4))], &[(0, run(0, 1, 12))], &bands);
        assert_eq!(touched(&pieces), [0..1, 2..4, 5..7, 8..10]);
        // Striped against striped: query 3i sees key 3j + 2 = 3i - 1.
        let pieces = tile(&[(0, run(0, 3, 4))], &[(0, run(2, 3, 4))], &bands);
        assert_eq!(touched(&pieces), vec![0..3; 1]);
        assert_eq!(pieces.iter().map(Piece::area).sum::<u64>(), 3);
        // ... and never key 3j + 1.
        assert_eq!(tile(&[(0, run(0, 3, 4))], &[(0, run(1, 3, 4))], &bands), []);
        assert!(touched(&[]).is_empty());
    }

    #[test]
    fn many_documents_take_little_time() {
        let documents = 50_000;
        let batch = Packed::from_lengths(&vec![4; documents]).unwrap();
        let bands = Mask::Causal.lower(&batch).unwrap();
        let runs: Vec<_> = (0..documents).map(|i| (2 * i, run(4 * i + 1, 1, 2))).collect();
        let pieces = tile(&runs, &runs, &bands);
        assert_eq!(pieces.len(), documents);
        assert!(pieces.iter().all(|piece| piece.area() == 3));
        assert_eq!(touched(&pieces), vec![0..2 * documents; 1]);
    }

    #[test]
    fn areas_by_keys_are_those_of_their_rows() {
        let batch = Packed::from_lengths(&[9, 4, 20]).unwrap();
        for mask in [Mask::Causal, Mask::Full, Mask::sliding(3).unwrap()] {
            let bands = mask.lower(&batch).unwrap();
            for (queries, keys) in
                [(run(0, 1, 33), run(0, 1, 33)), (run(1, 3, 10), run(2, 3, 9)), (run(0, 2, 16), run(1, 1, 30))]
            {
                let rows = |to: usize| Run { len: to, ..keys };
                let before =
                    |to: usize| tile(&[(0, queries)], &[(0, rows(to))], &bands).iter().map(Piece::area).sum::<u64>();
                let ends = [0, 1, 4, 4, keys.len.min(9), keys.len];
                let expected: Vec<u64> = ends
                    .iter()
                    .enumerate()
                    .map(|(i, &end)| before(end) - if i == 0 { 0 } else { before(ends[i - 1]) })
                    .collect();
                assert_eq!(area_by_keys(&tile(&[(0, queries)], &[(0, keys)], &bands), &ends), expected, "{mask:?}");
            }
        }
    }
}
