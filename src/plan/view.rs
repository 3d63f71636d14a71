//! What a strategy plans from: who holds which valid tokens, and what is attended.

use std::any::Any;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::mask::Bands;
use crate::order::{DynPlacement, Run};
use crate::plan::{Piece, RowSet, tile, touched};

/// What [`View::shared`] keeps, by its key.
type Shared = Arc<dyn Any + Send + Sync>;

/// Everything that the plan of one batch and mask depends on.
///
/// Rows here are a rank's *valid* rows: its tokens in local order without padding, counted from 0. Padding takes no
/// part in attention and does not travel.
#[derive(Debug)]
pub struct View {
    rank: usize,
    held: Vec<Vec<(usize, Run)>>,
    bands: Bands,
    /// By rank: the rows of each owner that its queries attend.
    needs: Vec<OnceLock<Vec<RowSet>>>,
    shared: Mutex<Vec<(u64, Shared)>>,
}

impl View {
    /// The view of `placement`'s rank under a mask that was lowered on its batch.
    pub fn new(placement: &DynPlacement, bands: Bands) -> Self {
        let valid_rows = |rank| {
            let mut row = 0;
            let place = |(_, run): (usize, Run)| {
                row += run.len;
                (row - run.len, run)
            };
            placement.valid_runs_of(rank).into_iter().map(place).collect()
        };
        Self::of(placement.rank(), (0..placement.ranks()).map(valid_rows).collect(), bands)
    }

    fn of(rank: usize, held: Vec<Vec<(usize, Run)>>, bands: Bands) -> Self {
        let needs = held.iter().map(|_| OnceLock::new()).collect();
        View { rank, held, bands, needs, shared: Mutex::default() }
    }

    /// The view in which each group of the placement's grid is one rank that holds the rows of all its members, seen
    /// from this rank's group, and for each member of it the group's row of each of its valid rows.
    ///
    /// The group's rows are in natural order where that takes no more runs than one member after another.
    pub fn grouped(placement: &DynPlacement, bands: Bands) -> (Self, Vec<Vec<usize>>) {
        let (grid, by_rank) = (placement.grid(), View::new(placement, bands));
        let group = |outer| {
            let members = (0..grid.inner).map(|inner| by_rank.held(grid.rank(outer, inner)));
            joined(&members.collect::<Vec<_>>())
        };
        let (held, mut places): (Vec<_>, Vec<_>) = (0..grid.outer).map(group).unzip();
        let rank = grid.place(placement.rank()).0;
        (Self::of(rank, held, by_rank.bands), places.swap_remove(rank))
    }

    /// The rank that the plan is for.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.held.len()
    }

    /// The same view from another rank.
    pub fn seen_from(&self, rank: usize) -> View {
        let shared = Mutex::new(self.shared.lock().unwrap_or_else(PoisonError::into_inner).clone());
        View { rank, held: self.held.clone(), bands: self.bands.clone(), needs: self.needs.clone(), shared }
    }

    /// The same view from another rank, with all that was worked out so far.
    pub fn turned_to(self, rank: usize) -> View {
        View { rank, ..self }
    }

    /// What is attended.
    pub fn bands(&self) -> &Bands {
        &self.bands
    }

    /// The valid tokens of a rank, each run with its first row.
    pub fn held(&self, rank: usize) -> &[(usize, Run)] {
        &self.held[rank]
    }

    /// Number of valid rows of a rank.
    pub fn rows(&self, rank: usize) -> usize {
        rows_of(&self.held[rank])
    }

    /// The rows of `owner` that queries of `rank` attend.
    pub fn needs(&self, owner: usize, rank: usize) -> &RowSet {
        &self.needs[rank].get_or_init(|| self.needs_of(rank))[owner]
    }

    fn needs_of(&self, rank: usize) -> Vec<RowSet> {
        let queries = self.held(rank);
        let owners = (0..self.ranks()).map(|owner| self.held(owner));
        if queries.iter().any(|(_, run)| run.step > 1 && run.len > 1) {
            // Keys of the same step are quicker to compare with than all tokens.
            return owners.map(|held| RowSet::from_sorted(touched(&tile(queries, held, &self.bands)))).collect();
        }
        let ends = self.bands.as_slice().iter().map(|band| band.k.end as usize);
        let all = (0, Run { start: 0, step: 1, len: ends.max().unwrap_or(0) });
        let tokens = RowSet::from_sorted(touched(&tile(queries, &[all], &self.bands)));
        owners.map(|held| rows_with(held, &tokens)).collect()
    }

    /// Something that the programs of several ranks are made from, worked out once for this view and those turned or
    /// seen from it. The key says all that it depends on beside the view; another type under the same key is made
    /// anew each time.
    pub fn shared<T: Any + Send + Sync>(&self, key: &impl Hash, make: impl FnOnce() -> T) -> Arc<T> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let key = hasher.finish();
        let lock = || self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let found = lock().iter().find(|(other, _)| *other == key).map(|(_, value)| value.clone());
        if let Some(value) = found.and_then(|value| value.downcast::<T>().ok()) {
            return value;
        }
        let value = Arc::new(make());
        lock().push((key, value.clone()));
        value
    }

    /// The pieces of this rank's queries against a buffer that holds the rows `rows` of `owner`.
    pub fn tile(&self, owner: usize, rows: &RowSet) -> Vec<Piece> {
        tile(self.held(self.rank), &kept(self.held(owner), rows), &self.bands)
    }

    /// The pieces of this rank's queries against a buffer with the given runs, each with its first row.
    pub fn tile_runs(&self, keys: &[(usize, Run)]) -> Vec<Piece> {
        tile(self.held(self.rank), keys, &self.bands)
    }

    /// The pieces of another rank's queries against a buffer with the given runs.
    pub fn tile_of(&self, rank: usize, keys: &[(usize, Run)]) -> Vec<Piece> {
        tile(self.held(rank), keys, &self.bands)
    }

    /// The runs of a buffer that holds the rows `rows` of `owner`, from row `first` on.
    pub fn runs(&self, owner: usize, rows: &RowSet, first: usize) -> Vec<(usize, Run)> {
        kept(self.held(owner), rows).into_iter().map(|(row, run)| (first + row, run)).collect()
    }

    /// All valid tokens of the batch in natural order, and for each rank where its rows are among them.
    pub fn natural(&self) -> Arc<InOrder> {
        self.shared(&"natural order", || in_natural_order(&self.held.iter().map(Vec::as_slice).collect::<Vec<_>>()))
    }
}

/// Tokens of several ranks as runs, each with its first row, and for each rank where its rows are among them.
pub type InOrder = (Vec<(usize, Run)>, Vec<Vec<usize>>);

/// The tokens of several ranks in natural order.
fn in_natural_order(held: &[&[(usize, Run)]]) -> InOrder {
    let mut tokens: Vec<(usize, usize, usize)> = Vec::new();
    for (rank, held) in held.iter().enumerate() {
        tokens.extend(held.iter().flat_map(|(row, run)| (0..run.len).map(move |i| (run.token(i), rank, row + i))));
    }
    tokens.sort_unstable();
    let mut places: Vec<Vec<usize>> = held.iter().map(|held| vec![0; rows_of(held)]).collect();
    let mut runs: Vec<(usize, Run)> = Vec::new();
    for (row, &(token, rank, local)) in tokens.iter().enumerate() {
        places[rank][local] = row;
        match runs.last_mut() {
            Some((_, run)) if run.end() == token => run.len += 1,
            _ => runs.push((row, Run { start: token, step: 1, len: 1 })),
        }
    }
    (runs, places)
}

/// The rows of several ranks as one buffer: in natural order where that takes no more runs, else one rank after
/// another.
fn joined(held: &[&[(usize, Run)]]) -> InOrder {
    let natural = in_natural_order(held);
    if natural.0.len() <= held.iter().map(|held| held.len()).sum() {
        return natural;
    }
    let (mut runs, mut places, mut before) = (Vec::new(), Vec::new(), 0);
    for held in held {
        runs.extend(held.iter().map(|&(row, run)| (before + row, run)));
        places.push((before..before + rows_of(held)).collect());
        before += rows_of(held);
    }
    (runs, places)
}

/// The rows whose tokens are in a set.
fn rows_with(held: &[(usize, Run)], tokens: &RowSet) -> RowSet {
    let ranges = tokens.ranges();
    RowSet::from_sorted(held.iter().flat_map(|&(row, run)| {
        let first = ranges.partition_point(|range| range.end <= run.start);
        let meeting = ranges[first..].iter().take_while(move |range| range.start < run.end());
        // Rows before the first token at or after a bound.
        let rows = move |bound: usize| row + bound.saturating_sub(run.start).div_ceil(run.step).min(run.len);
        meeting.map(move |range| rows(range.start)..rows(range.end))
    }))
}

fn rows_of(held: &[(usize, Run)]) -> usize {
    held.last().map_or(0, |(row, run)| row + run.len)
}

/// The parts of runs whose rows are in the set, with their row in a buffer of just the set's rows.
fn kept(held: &[(usize, Run)], rows: &RowSet) -> Vec<(usize, Run)> {
    let mut parts = Vec::new();
    let (mut place, mut index) = (0, 0);
    for range in rows.ranges() {
        while held[index].0 + held[index].1.len <= range.start {
            index += 1;
        }
        let mut from = range.start;
        for (row, run) in &held[index..] {
            let to = range.end.min(row + run.len);
            if from >= to {
                break;
            }
            parts.push((place, Run { start: run.token(from - row), step: run.step, len: to - from }));
            place += to - from;
            from = to;
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Packed, Thd};
    use crate::mask::Mask;
    use crate::order::{Contiguous, Placement, Striped, TokenOrder, Zigzag};

    fn needs_are_what_tiles_touch<O: TokenOrder>() {
        let batch = Arc::new(Packed::new(&[0, 1, 7, 16, 0, 3, 33], &[2, 1, 9, 16, 0, 8, 40]).unwrap());
        let window = Mask::Window { left: Some(5), right: Some(2) };
        for mask in [Mask::Causal, Mask::Full, window, Mask::Prefix(vec![4; 7])] {
            for ranks in [1, 2, 3, 5, 8] {
                let placement = Placement::<O, Thd>::new(batch.clone(), ranks, 0).unwrap();
                let view = View::new(&placement, mask.lower(&*batch).unwrap());
                for (owner, rank) in (0..ranks).flat_map(|owner| (0..ranks).map(move |rank| (owner, rank))) {
                    let pieces = tile(view.held(rank), view.held(owner), view.bands());
                    let expected = RowSet::from_sorted(touched(&pieces));
                    assert_eq!(view.needs(owner, rank), &expected, "{mask:?}, {owner} to {rank} of {ranks}");
                }
            }
        }
    }

    #[test]
    fn needs_are_what_tiles_touch_under_every_order() {
        needs_are_what_tiles_touch::<Zigzag>();
        needs_are_what_tiles_touch::<Contiguous>();
        needs_are_what_tiles_touch::<Striped>();
        needs_are_what_tiles_touch::<Striped<4>>();
    }

    #[test]
    fn what_is_shared_is_made_once_per_key() {
        let batch = Arc::new(Packed::from_lengths(&[8]).unwrap());
        let placement = Placement::<Zigzag, Thd>::new(batch.clone(), 2, 0).unwrap();
        let view = View::new(&placement, Mask::Causal.lower(&*batch).unwrap());
        assert_eq!((*view.shared(&1, || 5u8), *view.shared(&1, || 6u8), *view.shared(&2, || 7u8)), (5, 5, 7));
        assert_eq!(*view.seen_from(1).shared(&1, || 8u8), 5);
        assert_eq!(*view.turned_to(1).shared(&1, || "text"), "text");
    }
}
