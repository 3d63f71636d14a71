//! What the queries of a tile attend, as lists for devices are made from it.

use std::ops::Range;

use crate::plan::TileCells;

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

    pub(super) fn queries(&self) -> usize {
        self.starts.len() - 1
    }

    /// What each query attends, from its first key to its last.
    pub(super) fn hulls(&self) -> Vec<Range<usize>> {
        (0..self.queries()).map(|query| self.hull(query..query + 1)).collect()
    }

    /// Which queries attend each key, from the first to the last.
    pub(super) fn attending(&self) -> Vec<Range<usize>> {
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
    pub(super) fn hull(&self, queries: Range<usize>) -> Range<usize> {
        let ranges = &self.ranges[self.starts[queries.start]..self.starts[queries.end]];
        let first = ranges.iter().map(|keys| keys.start).min().unwrap_or(0);
        first..ranges.iter().map(|keys| keys.end).max().unwrap_or(0)
    }

    /// The keys that all of these queries attend, as far as they are one range of each.
    pub(super) fn core(&self, queries: Range<usize>) -> Range<usize> {
        queries.fold(0..self.keys, |core, query| match self.of(query) {
            [keys] => core.start.max(keys.start)..core.end.min(keys.end),
            _ => 0..0,
        })
    }

    /// The first key from `from` on that one of these queries attends; past the last key if there is none.
    pub(super) fn next(&self, queries: Range<usize>, from: usize) -> usize {
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
    pub(super) fn meetings(&self, queries: Range<usize>, keys: Range<usize>) -> Vec<Option<Vec<u32>>> {
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
