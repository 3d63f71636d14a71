//! Which tile of queries meets which tile of keys, as plain lists for a device that computes tiles by blocks of threads.
//!
//! Tiles of keys begin where a tile of queries first attends one, not at fixed multiples, so a short document meets as
//! few of them as its length allows. The layout of the lists is that of `kernels/attention.cuh`.

use std::collections::HashMap;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use crate::plan::TileCells;

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

/// What each query attends: sorted ranges of keys that do not touch.
#[derive(Debug)]
pub(crate) struct AttendedKeys {
    ranges: Vec<Range<usize>>,
    /// Where the ranges of each query begin, and the end.
    starts: Vec<usize>,
    keys: usize,
}

impl AttendedKeys {
    /// Takes time in queries and the pieces that have them.
    ///
    /// # Panics
    /// If a piece is not inside the buffers.
    pub(crate) fn new(cells: &TileCells) -> Self {
        let TileCells { queries, keys, ref pieces, .. } = *cells;
        for piece in pieces.iter() {
            let (q, k) = (piece.q_rows(), piece.k_rows());
            assert!(q.end <= queries && k.end <= keys, "a piece of {q:?} x {k:?} in {queries} x {keys}");
        }
        let (mut ranges, mut starts): (Vec<Range<usize>>, _) = (Vec::new(), vec![0]);
        // Pieces come sorted by their first query.
        let (mut next, mut open) = (0, Vec::new());
        for query in 0..queries {
            open.retain(|&piece: &usize| pieces[piece].q_rows().end > query);
            while pieces.get(next).is_some_and(|piece| piece.q_row <= query) {
                open.push(next);
                next += 1;
            }
            let mut attended: Vec<Range<usize>> = open
                .iter()
                .map(|&piece| pieces[piece].keys(query - pieces[piece].q_row))
                .filter(|keys| !keys.is_empty())
                .collect();
            attended.sort_unstable_by_key(|keys| keys.start);
            let first = ranges.len();
            for keys in attended {
                match ranges[first..].last_mut() {
                    Some(Range { end, .. }) if keys.start <= *end => *end = keys.end.max(*end),
                    _ => ranges.push(keys),
                }
            }
            starts.push(ranges.len());
        }
        AttendedKeys { ranges, starts, keys }
    }

    /// The ranges of all queries, one query after the other.
    #[cfg(feature = "cuda")]
    pub(crate) fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// Where the ranges of each query begin, and the end.
    #[cfg(feature = "cuda")]
    pub(crate) fn starts(&self) -> &[usize] {
        &self.starts
    }

    fn queries(&self) -> usize {
        self.starts.len() - 1
    }

    /// What each query attends, from its first key to its last.
    fn hulls(&self) -> Vec<Range<usize>> {
        (0..self.queries()).map(|query| self.hull(query..query + 1)).collect()
    }

    /// Which queries attend each key, from the first to the last.
    fn attending(&self) -> Vec<Range<usize>> {
        let mut spans = vec![0..0; self.keys];
        let queries = || (0..self.queries()).map(|query| (query, self.of(query)));
        first_of_each(self.keys, queries(), |key, query| spans[key] = query..query + 1);
        first_of_each(self.keys, queries().rev(), |key, query| spans[key].end = query + 1);
        spans
    }

    fn of(&self, query: usize) -> &[Range<usize>] {
        &self.ranges[self.starts[query]..self.starts[query + 1]]
    }

    /// From the first key that one of these queries attends to the last.
    fn hull(&self, queries: Range<usize>) -> Range<usize> {
        let ranges = &self.ranges[self.starts[queries.start]..self.starts[queries.end]];
        let first = ranges.iter().map(|keys| keys.start).min().unwrap_or(0);
        first..ranges.iter().map(|keys| keys.end).max().unwrap_or(0)
    }

    /// The keys that all of these queries attend, as far as they are one range of each.
    fn core(&self, queries: Range<usize>) -> Range<usize> {
        queries.fold(0..self.keys, |core, query| match self.of(query) {
            [keys] => core.start.max(keys.start)..core.end.min(keys.end),
            _ => 0..0,
        })
    }

    /// The first key from `from` on that one of these queries attends; past the last key if there is none.
    fn next(&self, queries: Range<usize>, from: usize) -> usize {
        let ranges = &self.ranges[self.starts[queries.start]..self.starts[queries.end]];
        let later = ranges.iter().filter(|keys| keys.end > from).map(|keys| keys.start.max(from));
        later.min().unwrap_or(self.keys)
    }

    /// The ranges of a query inside of `keys`.
    fn inside(&self, query: usize, keys: &Range<usize>) -> impl Iterator<Item = Range<usize>> + '_ {
        let (start, end) = (keys.start, keys.end);
        let ranges = self.of(query).iter().skip_while(move |range| range.end <= start);
        ranges.take_while(move |range| range.start < end).map(move |range| range.start.max(start)..range.end.min(end))
    }

    /// The visits of a tile of queries to a tile of keys, without rows: the words of each, or none if everything is
    /// attended. As many as a query has ranges there.
    fn meetings(&self, queries: Range<usize>, keys: Range<usize>) -> Vec<Option<Vec<u32>>> {
        let inside: Vec<Vec<Range<usize>>> = queries.map(|query| self.inside(query, &keys).collect()).collect();
        let most = inside.iter().map(Vec::len).max().unwrap_or(0);
        if inside.iter().all(|ranges| ranges.first() == Some(&keys)) {
            return vec![None];
        }
        let word =
            |keys_of: &Range<usize>| (keys_of.start - keys.start) as u32 | ((keys_of.end - keys.start) as u32) << 16;
        let words = |index: usize| inside.iter().map(|ranges| ranges.get(index).map_or(0, word)).collect();
        (0..most).map(|index| Some(words(index))).collect()
    }
}

/// Tells `found` the first query that attends each of so many keys, in time about in the number of keys and ranges.
fn first_of_each<'a>(
    keys: usize,
    queries: impl Iterator<Item = (usize, &'a [Range<usize>])>,
    mut found: impl FnMut(usize, usize),
) {
    // The next key from each on that no query was found for, or a key on the way there.
    let mut next: Vec<usize> = (0..=keys).collect();
    for (query, ranges) in queries {
        for range in ranges {
            let mut key = range.start;
            loop {
                let begin = key;
                while next[key] != key {
                    key = next[key];
                }
                // Whoever comes this way again goes straight on.
                let mut passed = begin;
                while next[passed] != passed {
                    passed = std::mem::replace(&mut next[passed], key);
                }
                if key >= range.end {
                    break;
                }
                found(key, query);
                next[key] = key + 1;
            }
        }
    }
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

/// From the first row of the other side that one of these meets to the last.
fn hull_of(spans: &[Range<usize>]) -> Range<usize> {
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
/// Tiles may begin anew where what is met jumps, as it does from one document to the next; in between they are whole. So
/// long documents have tiles of their own, and short ones share them: at multiples of `size` instead, a tile would meet
/// the keys of two documents all over again. A dynamic program over these places, from the end: a run of whole tiles
/// goes from one of them to any that is not far away, or to the next.
fn cuts(spans: &[Range<usize>], size: usize, other: usize) -> Vec<Range<usize>> {
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
    use crate::plan::Piece;

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

    /// Documents one after the other, each causal.
    fn packed(lengths: &[usize]) -> TileCells {
        let starts = lengths.iter().scan(0, |row, len| Some(std::mem::replace(row, *row + len)));
        let piece = |(row, &len): (usize, &usize)| {
            let tokens = run(row, 1, len);
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
            let mut rows: Vec<_> = cuts(&attended.hulls(), sizes.queries, sizes.keys);
            assert_eq!(cuts(&attended.attending(), sizes.keys, sizes.queries), rows, "both sides of a document");
            rows.dedup();
            rows
        };
        assert_eq!(rows(&[5, 16]), [0..4, 4..5, 5..9, 9..13, 13..17, 17..21]);
        assert_eq!(rows(&[6, 9]), [0..4, 4..8, 8..12, 12..15], "one tile less, and no visit more");
        assert_eq!(rows(&[2, 1, 1, 8]), [0..4, 4..8, 8..12]);
        assert_eq!(rows(&[1, 1, 1, 1, 1, 1]), [0..4, 4..6]);
        assert_eq!(rows(&[]), []);
        check(&packed(&[6, 9, 1, 1, 30, 2]));
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
