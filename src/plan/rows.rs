//! Sets of rows of a buffer, as sorted ranges.

use std::ops::Range;

use crate::order::{Rows, Run};

/// A set of row indices: sorted, disjoint, non-empty ranges that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RowSet {
    ranges: Vec<Range<usize>>,
}

impl RowSet {
    /// All rows of a buffer.
    pub fn all(rows: usize) -> Self {
        Self::from_sorted(std::iter::once(0..rows))
    }

    /// From ranges sorted by start; empty ones are dropped, touching or overlapping ones are joined.
    pub fn from_sorted(ranges: impl IntoIterator<Item = Range<usize>>) -> Self {
        let mut set = RowSet::default();
        for range in ranges {
            match set.ranges.last_mut() {
                _ if range.is_empty() => {}
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => set.ranges.push(range),
            }
        }
        set
    }

    /// The ranges.
    pub fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.ranges.iter().map(ExactSizeIterator::len).sum()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The rows, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.ranges.iter().cloned().flatten()
    }

    /// Rows in either set.
    pub fn union(&self, other: &RowSet) -> RowSet {
        let mut ranges = [&self.ranges[..], &other.ranges[..]].concat();
        // Stable, which merges two sorted halves in linear time.
        ranges.sort_by_key(|range| range.start);
        RowSet::from_sorted(ranges)
    }

    /// Rows in both sets.
    pub fn intersection(&self, other: &RowSet) -> RowSet {
        let (mut a, mut b) = (self.ranges.iter().peekable(), other.ranges.iter().peekable());
        let mut common = Vec::new();
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            common.push(x.start.max(y.start)..x.end.min(y.end));
            if x.end < y.end {
                a.next()
            } else {
                b.next()
            };
        }
        RowSet::from_sorted(common)
    }

    /// Rows of this set that are not in the other.
    pub fn difference(&self, other: &RowSet) -> RowSet {
        let mut left = Vec::new();
        let mut cuts = other.ranges.iter().peekable();
        for range in &self.ranges {
            let mut from = range.start;
            while cuts.peek().is_some_and(|cut| cut.end <= from) {
                cuts.next();
            }
            while let Some(cut) = cuts.peek().filter(|cut| cut.start < range.end) {
                left.push(from..cut.start.max(from));
                from = cut.end;
                if cut.end >= range.end {
                    break;
                }
                cuts.next();
            }
            left.push(from.min(range.end)..range.end);
        }
        RowSet::from_sorted(left)
    }

    /// The rows at these places of the set, counted from its first row.
    pub fn at_places(&self, places: Range<usize>) -> RowSet {
        let mut before = 0;
        RowSet::from_sorted(self.ranges.iter().map(|range| {
            let first = before;
            before += range.len();
            let clip = |place: usize| range.start + place.clamp(first, before) - first;
            clip(places.start)..clip(places.end)
        }))
    }

    /// Where the rows of `part` lie in a buffer that holds just the rows of this set.
    ///
    /// # Panics
    /// If `part` has a row that this set has not.
    pub fn places_of(&self, part: &RowSet) -> Rows {
        let mut places = Rows::default();
        let (mut before, mut index) = (0, 0);
        for range in &part.ranges {
            while self.ranges[index].end <= range.start {
                before += self.ranges[index].len();
                index += 1;
            }
            let own = &self.ranges[index];
            assert!(own.start <= range.start && range.end <= own.end, "rows {range:?} are not all in the set");
            places.push(Run { start: before + range.start - own.start, step: 1, len: range.len() });
        }
        places
    }
}

impl From<&RowSet> for Rows {
    fn from(set: &RowSet) -> Self {
        set.ranges.iter().map(|range| Run { start: range.start, step: 1, len: range.len() }).collect()
    }
}

impl From<RowSet> for Rows {
    fn from(set: RowSet) -> Self {
        (&set).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(rows: &[usize]) -> RowSet {
        RowSet::from_sorted(rows.iter().map(|&row| row..row + 1))
    }

    proptest! {
        #[test]
        fn like_sets_of_numbers(a in proptest::collection::btree_set(0usize..40, 0..30),
                                b in proptest::collection::btree_set(0usize..40, 0..30)) {
            let to = |s: &std::collections::BTreeSet<usize>| set(&s.iter().copied().collect::<Vec<_>>());
            let (x, y) = (to(&a), to(&b));
            prop_assert_eq!(x.union(&y), to(&a.union(&b).copied().collect()));
            prop_assert_eq!(x.intersection(&y), to(&a.intersection(&b).copied().collect()));
            prop_assert_eq!(x.difference(&y), to(&a.difference(&b).copied().collect()));
            prop_assert_eq!(x.len(), a.len());
            let both = x.intersection(&y);
            let places: Vec<usize> = both.iter().map(|row| a.range(..row).count()).collect();
            prop_assert_eq!(x.places_of(&both).to_vec(), places);
            for (from, to) in [(0, 3), (2, 2), (1, 50), (40, 50)] {
                let part: Vec<usize> = a.iter().copied().skip(from).take(to - from).collect();
                prop_assert_eq!(x.at_places(from..to), set(&part));
            }
        }
    }
}
