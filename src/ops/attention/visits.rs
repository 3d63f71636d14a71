//! Which tile of queries meets which tile of keys, as plain lists for a device that computes tiles by blocks of
//! threads.
//!
//! Tiles of keys begin where a tile of queries first attends one, not at fixed multiples, so a short document meets as
//! few of them as its length allows. The layout of the lists is that of `kernels/attention.cuh`.

use std::collections::HashMap;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::attended::AttendedKeys;
use super::cuts::{cuts, hull_of};

/// One block's work for a head: rows of one side, and its visits to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Item {
    pub(crate) row: i32,
    pub(crate) rows: i32,
    /// Its visits.
    pub(crate) first: i32,
    pub(crate) count: i32,
}

/// Rows of the other side that an item meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Visit {
    pub(crate) row: i32,
    pub(crate) rows: i32,
    /// Negative if every query attends every key; else where the words of the queries begin.
    pub(crate) table: i32,
}

/// The items of one side, longest first, with what they meet.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TileLists {
    pub(crate) items: Vec<Item>,
    pub(crate) visits: Vec<Visit>,
    /// By query of a visit: the keys that it attends, `from | to << 16`, counted from the tile's first key.
    pub(crate) table: Vec<u32>,
}

/// Rows of a tile of queries and of a tile of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TileSizes {
    pub(crate) queries: usize,
    pub(crate) keys: usize,
}

impl TileLists {
    /// Items of queries, which visit keys: the forward pass, and the gradient of the queries.
    pub(crate) fn by_queries(attended: &AttendedKeys, sizes: TileSizes) -> Self {
        let mut lists = TileLists::default();
        for queries in cuts(&attended.hulls(), sizes.queries, sizes.keys) {
            let first = lists.visits.len();
            let (hull, core) = (attended.hull(queries.clone()), attended.core(queries.clone()));
            let mut from = hull.start;
            while from < hull.end {
                let keys = from..(from + sizes.keys).min(hull.end);
                let is_whole = core.start <= keys.start && keys.end <= core.end;
                let meetings = if is_whole { vec![None] } else { attended.meetings(queries.clone(), keys.clone()) };
                from = if meetings.is_empty() { attended.next(queries.clone(), keys.end) } else { keys.end };
                meetings.into_iter().for_each(|words| lists.visit(&keys, words));
            }
            lists.item(&queries, first);
        }
        lists.sort();
        lists
    }

    /// Items of keys, which visit queries: the gradient of keys and values.
    pub(crate) fn by_keys(attended: &AttendedKeys, sizes: TileSizes) -> Self {
        let mut lists = TileLists::default();
        let attending = attended.attending();
        // Items of one document visit the same tiles of queries.
        let mut met: HashMap<Range<usize>, [Range<usize>; 2]> = HashMap::new();
        for keys in cuts(&attending, sizes.keys, sizes.queries) {
            let first = lists.visits.len();
            let Range { start, end } = hull_of(&attending[keys.clone()]);
            for row in (start..end).step_by(sizes.queries) {
                let queries = row..(row + sizes.queries).min(end);
                let tile = || [attended.hull(queries.clone()), attended.core(queries.clone())];
                let [hull, core] = met.entry(queries.clone()).or_insert_with(tile);
                if hull.start >= keys.end || hull.end <= keys.start {
                    continue;
                }
                let is_whole = core.start <= keys.start && keys.end <= core.end;
                let meetings = if is_whole { vec![None] } else { attended.meetings(queries.clone(), keys.clone()) };
                meetings.into_iter().for_each(|words| lists.visit(&queries, words));
            }
            // Keys that nobody attends have no gradient.
            if lists.visits.len() > first {
                lists.item(&keys, first);
            }
        }
        lists.sort();
        lists
    }

    fn item(&mut self, rows: &Range<usize>, first: usize) {
        let count = self.visits.len() - first;
        self.items.push(Item {
            row: number(rows.start),
            rows: number(rows.len()),
            first: number(first),
            count: number(count),
        });
    }

    fn visit(&mut self, rows: &Range<usize>, words: Option<Vec<u32>>) {
        let table = if words.is_some() { number(self.table.len()) } else { -1 };
        self.table.extend(words.unwrap_or_default());
        self.visits.push(Visit { row: number(rows.start), rows: number(rows.len()), table });
    }

    /// The longest first, so that no block of threads is still at work when all others have ended.
    fn sort(&mut self) {
        self.items.sort_by_key(|item| std::cmp::Reverse(item.count));
    }
}

/// A number of rows as devices count them.
///
/// # Panics
/// If there are more of them than 2^31.
pub(crate) fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or_else(|_| panic!("{count} rows or visits of one tile are more than a device counts"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::order::Run;
    use crate::plan::{Piece, TileCells};

    /// The cells that lists say, each once.
    fn cells_of(lists: &TileLists, by_keys: bool, sizes: TileSizes) -> Vec<(usize, usize)> {
        let mut cells = Vec::new();
        for item in &lists.items {
            for visit in &lists.visits[item.first as usize..][..item.count as usize] {
                let (queries, keys) = if by_keys {
                    (visit.row..visit.row + visit.rows, item.row..item.row + item.rows)
                } else {
                    (item.row..item.row + item.rows, visit.row..visit.row + visit.rows)
                };
                assert!(queries.len() <= sizes.queries && keys.len() <= sizes.keys);
                for (i, query) in queries.enumerate() {
                    let (from, to) = match usize::try_from(visit.table) {
                        Ok(at) => (lists.table[at + i] as i32 & 0xFFFF, (lists.table[at + i] >> 16) as i32),
                        Err(_) => (0, keys.len() as i32),
                    };
                    assert!(from <= to && to <= keys.len() as i32);
                    cells.extend((from..to).map(|j| (query as usize, (keys.start + j) as usize)));
                }
            }
        }
        cells.sort_unstable();
        cells
    }

    fn expected(cells: &TileCells) -> Vec<(usize, usize)> {
        let of = |piece: &Piece| {
            let piece = piece.clone();
            (0..piece.q.len).flat_map(move |i| piece.keys(i).map(move |key| (i, key)).collect::<Vec<_>>())
        };
        let mut all: Vec<_> =
            cells.pieces.iter().flat_map(|piece| of(piece).map(|(i, key)| (piece.q_row + i, key))).collect();
        all.sort_unstable();
        all
    }

    fn run(start: usize, step: usize, len: usize) -> Run {
        Run { start, step, len }
    }

    fn check(cells: &TileCells) {
        for sizes in
            [TileSizes { queries: 4, keys: 4 }, TileSizes { queries: 8, keys: 3 }, TileSizes { queries: 64, keys: 64 }]
        {
            let attended = AttendedKeys::new(cells);
            let queries = TileLists::by_queries(&attended, sizes);
            let keys = TileLists::by_keys(&attended, sizes);
            assert_eq!(cells_of(&queries, false, sizes), expected(cells), "{cells:?} {sizes:?}");
            assert_eq!(cells_of(&keys, true, sizes), expected(cells), "{cells:?} {sizes:?}");
            let mut rows: Vec<_> = queries.items.iter().flat_map(|item| item.row..item.row + item.rows).collect();
            rows.sort_unstable();
            assert_eq!(rows, (0..cells.queries as i32).collect::<Vec<_>>(), "every query is written");
            assert!(queries.items.is_sorted_by_key(|item| std::cmp::Reverse(item.count)));
        }
    }

    #[test]
    fn interior_tiles_are_whole_and_empty_ones_are_left_out() {
        let causal = Piece { q_row: 0, k_row: 0, q: run(0, 1, 16), k: run(0, 1, 16), d_lo: -100, d_hi: 0 };
        let cells = TileCells::new(16, 16, [causal]);
        let sizes = TileSizes { queries: 4, keys: 4 };
        let lists = TileLists::by_queries(&AttendedKeys::new(&cells), sizes);
        assert_eq!(lists.items[0], Item { row: 12, rows: 4, first: 6, count: 4 });
        assert_eq!(lists.visits.iter().filter(|visit| visit.table < 0).count(), 6);
        assert_eq!(lists.table.len(), 16);
        check(&cells);
        let far = Piece { q_row: 0, k_row: 40, q: run(50, 1, 2), k: run(50, 1, 2), d_lo: 0, d_hi: 0 };
        let near = Piece { q_row: 0, k_row: 0, q: run(50, 1, 2), k: run(50, 1, 2), d_lo: 0, d_hi: 0 };
        let cells = TileCells::new(3, 64, [near, far]);
        let lists = TileLists::by_queries(&AttendedKeys::new(&cells), sizes);
        assert_eq!(lists.visits.iter().map(|visit| (visit.row, visit.rows)).collect::<Vec<_>>(), [(0, 4), (40, 2)]);
        check(&cells);
    }

    #[test]
    fn two_ranges_of_a_query_in_a_tile_are_two_visits() {
        let piece = |k_row, start| Piece { q_row: 0, k_row, q: run(0, 1, 3), k: run(start, 1, 2), d_lo: -9, d_hi: 9 };
        let cells = TileCells::new(3, 6, [piece(0, 0), piece(4, 6)]);
        let lists = TileLists::by_queries(&AttendedKeys::new(&cells), TileSizes { queries: 4, keys: 8 });
        assert_eq!(lists.table, [2 << 16, 2 << 16, 2 << 16, 4 | 6 << 16, 4 | 6 << 16, 4 | 6 << 16]);
        check(&cells);
        check(&TileCells::new(0, 0, []));
        check(&TileCells::new(5, 0, []));
        check(&TileCells::new(0, 5, []));
    }

    proptest! {
        #[test]
        fn lists_say_the_cells_of_the_pieces(
            documents in proptest::collection::vec((1usize..23, 1usize..4, -12i64..3, 0i64..9), 0..6),
        ) {
            // Documents one after the other, with steps and windows of their own.
            let (mut row, mut pieces) = (0, Vec::new());
            for (len, step, d_lo, width) in documents {
                let tokens = run(row, step, len);
                pieces.push(Piece { q_row: row, k_row: row, q: tokens, k: tokens, d_lo, d_hi: d_lo + width });
                row += len;
            }
            check(&TileCells::new(row, row, pieces));
        }
    }
}
