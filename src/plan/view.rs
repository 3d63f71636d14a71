//! What a strategy plans from: who holds which valid tokens, and what is attended.

use std::any::Any;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::mask::Bands;
use crate::order::{DynPlacement, Rows, Run};
use crate::plan::{Piece, RowSet, tile, touched};

/// What [`View::shared`] keeps, by its key.
type Shared = Arc<dyn Any + Send + Sync>;

/// Runs of tokens in a buffer, each with the row of its first token.
type Placed = Vec<(usize, Run)>;

/// Everything that the plan of one batch and mask depends on, seen from one rank.
///
/// Rows here are a rank's *valid* rows: its tokens in local order without padding, counted from 0. Padding takes no
/// part in attention and does not travel. A view answers for the ranks that it is asked about and remembers the
/// answers, so a plan costs what its rank asks; views of the same batch seen from other ranks share what they remember.
#[derive(Clone, Debug)]
pub struct View {
    rank: usize,
    known: Arc<Known>,
}

/// What does not depend on the rank that a view is seen from.
#[derive(Debug)]
struct Known {
    placement: DynPlacement,
    /// Where the queries are, if not with the keys.
    apart: Option<DynPlacement>,
    /// Whether each group of the placement's grid counts as one rank.
    grouped: bool,
    bands: Bands,
    /// By rank.
    held: Vec<OnceLock<Placed>>,
    /// By rank, if they are not with the keys.
    queries: Vec<OnceLock<Placed>>,
    /// By rank: the tokens that its queries attend.
    attended: Vec<OnceLock<RowSet>>,
    natural: OnceLock<InOrder>,
    shared: Mutex<HashMap<u64, Shared>>,
}

/// All valid tokens of a batch in natural order.
#[derive(Debug)]
struct InOrder {
    /// Documents that are not empty, as (first token, row of it).
    documents: Vec<(usize, usize)>,
    runs: Placed,
    rows: usize,
}

impl View {
    /// The view of `placement`'s rank under a mask that was lowered on its batch.
    pub fn new(placement: &DynPlacement, bands: Bands) -> Self {
        Self::of(placement, None, bands, false)
    }

    /// The view of queries and keys that are placed apart, under a mask that was lowered on both of their batches. The
    /// ranks are the same.
    pub fn between(queries: &DynPlacement, keys: &DynPlacement, bands: Bands) -> Self {
        Self::of(keys, Some(queries), bands, false)
    }

    /// The view in which each group of the placement's grid is one rank that holds the rows of all its members, seen
    /// from this rank's group, and for each member of it the group's row of each of its valid rows.
    ///
    /// The group's rows are in natural order where its members' tokens lie between one another without gaps, else one
    /// member after another.
    pub fn grouped(placement: &DynPlacement, bands: Bands) -> (Self, Vec<Rows>) {
        let view = Self::of(placement, None, bands, true);
        let (_, places) = joined(&members(placement, view.rank));
        (view, places)
    }

    fn of(placement: &DynPlacement, apart: Option<&DynPlacement>, bands: Bands, grouped: bool) -> Self {
        let grid = placement.grid();
        let (rank, ranks) = match grouped {
            true => (grid.place(placement.rank()).0, grid.outer),
            false => (placement.rank(), placement.ranks()),
        };
        let known = Known {
            placement: placement.clone(),
            apart: apart.cloned(),
            grouped,
            bands,
            held: (0..ranks).map(|_| OnceLock::new()).collect(),
            queries: (0..if apart.is_some() { ranks } else { 0 }).map(|_| OnceLock::new()).collect(),
            attended: (0..ranks).map(|_| OnceLock::new()).collect(),
            natural: OnceLock::new(),
            shared: Mutex::default(),
        };
        View { rank, known: Arc::new(known) }
    }

    /// The rank that the plan is for.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of ranks.
    pub fn ranks(&self) -> usize {
        self.known.held.len()
    }

    /// The same view from another rank.
    pub fn seen_from(&self, rank: usize) -> View {
        View { rank, known: self.known.clone() }
    }

    /// What is attended.
    pub fn bands(&self) -> &Bands {
        &self.known.bands
    }

    /// The queries of a rank, each run with its first row: those of its tokens, where keys are not placed apart.
    pub fn queries(&self, rank: usize) -> &[(usize, Run)] {
        match &self.known.apart {
            Some(placement) => self.known.queries[rank].get_or_init(|| valid(placement, rank)),
            None => self.held(rank),
        }
    }

    /// Number of queries of a rank.
    pub fn query_rows(&self, rank: usize) -> usize {
        rows_of(self.queries(rank))
    }

    /// The valid tokens of a rank whose keys it holds, each run with its first row.
    pub fn held(&self, rank: usize) -> &[(usize, Run)] {
        let known = &*self.known;
        known.held[rank].get_or_init(|| match known.grouped {
            true => joined(&members(&known.placement, rank)).0,
            false => valid(&known.placement, rank),
        })
    }

    /// Number of valid rows of keys of a rank.
    pub fn rows(&self, rank: usize) -> usize {
        rows_of(self.held(rank))
    }

    /// The tokens that queries of `rank` attend.
    pub fn attended(&self, rank: usize) -> &RowSet {
        self.known.attended[rank].get_or_init(|| {
            let ends = self.bands().as_slice().iter().map(|band| band.k.end as usize);
            let all = (0, Run { start: 0, step: 1, len: ends.max().unwrap_or(0) });
            RowSet::from_sorted(touched(&tile(self.queries(rank), &[all], self.bands())))
        })
    }

    /// The rows of `owner` whose tokens are in a set.
    pub fn rows_with(&self, owner: usize, tokens: &RowSet) -> RowSet {
        rows_with(self.held(owner), tokens)
    }

    /// The rows of `owner` that queries of `rank` attend.
    pub fn needs(&self, owner: usize, rank: usize) -> RowSet {
        self.rows_with(owner, self.attended(rank))
    }

    /// Something that the programs of several ranks are made from, worked out once for this view and those seen from
    /// other ranks. The key says all that it depends on beside the view; another type under the same key is made anew
    /// each time.
    pub fn shared<T: Any + Send + Sync>(&self, key: &impl Hash, make: impl FnOnce() -> T) -> Arc<T> {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let key = hasher.finish();
        let lock = || self.known.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let found = lock().get(&key).cloned();
        if let Some(value) = found.and_then(|value| value.downcast::<T>().ok()) {
            return value;
        }
        let value = Arc::new(make());
        lock().insert(key, value.clone());
        value
    }

    /// The pieces of this rank's queries against a buffer that holds the rows `rows` of `owner`.
    pub fn tile(&self, owner: usize, rows: &RowSet) -> Arc<[Piece]> {
        self.tile_runs(&kept(self.held(owner), rows))
    }

    /// The pieces of this rank's queries against a buffer with the given runs, each with its first row.
    pub fn tile_runs(&self, keys: &[(usize, Run)]) -> Arc<[Piece]> {
        tile(self.queries(self.rank), keys, self.bands()).into()
    }

    /// The rows of `rank`'s queries that attend keys of `owner`, and their pieces, in a buffer of just these queries,
    /// against the owner's own keys.
    pub fn tile_queries(&self, rank: usize, owner: usize) -> (RowSet, Arc<[Piece]>) {
        let (queries, keys) = (self.queries(rank), self.held(owner));
        let mut rows: Vec<Range<usize>> = tile(queries, keys, self.bands()).iter().map(Piece::q_rows).collect();
        rows.sort_unstable_by_key(|rows| rows.start);
        let rows = RowSet::from_sorted(rows);
        let pieces = tile(&kept(queries, &rows), keys, self.bands()).into();
        (rows, pieces)
    }

    /// The runs of a buffer that holds the rows `rows` of `owner`, from row `first` on.
    pub fn runs(&self, owner: usize, rows: &RowSet, first: usize) -> Vec<(usize, Run)> {
        kept(self.held(owner), rows).into_iter().map(|(row, run)| (first + row, run)).collect()
    }

    /// All valid tokens of the batch in natural order, each run with its first row in a buffer of just them.
    pub fn natural(&self) -> &[(usize, Run)] {
        &self.in_order().runs
    }

    /// Number of valid tokens of the batch.
    pub fn natural_rows(&self) -> usize {
        self.in_order().rows
    }

    /// Where a rank's rows are among all valid tokens in natural order.
    pub fn natural_places(&self, rank: usize) -> Rows {
        let documents = &self.in_order().documents;
        let place = |&(_, run): &(usize, Run)| {
            let (first, row) = documents[documents.partition_point(|&(first, _)| first <= run.start) - 1];
            Run { start: row + run.start - first, ..run }
        };
        self.held(rank).iter().map(place).collect()
    }

    fn in_order(&self) -> &InOrder {
        self.known.natural.get_or_init(|| {
            let batch = self.known.placement.batch();
            let (mut documents, mut runs, mut rows): (_, Placed, _) = (Vec::new(), Vec::new(), 0);
            for index in 0..batch.documents() {
                let document = batch.document(index);
                if document.valid == 0 {
                    continue;
                }
                documents.push((document.start, rows));
                match runs.last_mut() {
                    Some((_, run)) if run.end() == document.start => run.len += document.valid,
                    _ => runs.push((rows, Run { start: document.start, step: 1, len: document.valid })),
                }
                rows += document.valid;
            }
            InOrder { documents, runs, rows }
        })
    }
}

/// The valid tokens of a rank, each run with its row among them.
fn valid(placement: &DynPlacement, rank: usize) -> Placed {
    let mut row = 0;
    let place = |(_, run): (usize, Run)| {
        row += run.len;
        (row - run.len, run)
    };
    placement.valid_runs_of(rank).into_iter().map(place).collect()
}

/// The valid tokens of each member of a group.
fn members(placement: &DynPlacement, group: usize) -> Vec<Placed> {
    let grid = placement.grid();
    (0..grid.inner).map(|inner| valid(placement, grid.rank(group, inner))).collect()
}

/// The rows of several ranks as one buffer: in natural order where their runs lie between one another without gaps,
/// else one rank after another. And where the rows of each are.
fn joined(held: &[Placed]) -> (Placed, Vec<Rows>) {
    if let Some(natural) = without_gaps(held) {
        return natural;
    }
    let (mut runs, mut places, mut before) = (Vec::new(), Vec::new(), 0);
    for held in held {
        runs.extend(held.iter().map(|&(row, run)| (before + row, run)));
        places.push((before..before + rows_of(held)).into());
        before += rows_of(held);
    }
    (runs, places)
}

/// Runs of several ranks in natural order, and for each rank where its rows are; nothing where runs overlap that leave
/// tokens between them to others.
fn without_gaps(held: &[Placed]) -> Option<(Placed, Vec<Rows>)> {
    let of_rank = |(rank, held): (usize, &Placed)| held.iter().map(|&(_, run)| (run, rank)).collect::<Vec<_>>();
    let mut all: Vec<(Run, usize)> = held.iter().enumerate().flat_map(of_rank).collect();
    all.sort_unstable_by_key(|(run, _)| run.start);
    let mut places = vec![Rows::default(); held.len()];
    let (mut runs, mut row): (Placed, usize) = (Vec::new(), 0);
    let mut rest = &all[..];
    while let Some((first, _)) = rest.first() {
        // Runs that overlap the one before them.
        let (mut end, mut count, mut tokens) = (first.end(), 0, 0);
        while let Some((run, _)) = rest.get(count).filter(|(run, _)| count == 0 || run.start < end) {
            (end, count, tokens) = (end.max(run.end()), count + 1, tokens + run.len);
        }
        let start = first.start;
        let alone = count == 1 && first.len > 1 && first.step > 1;
        if !alone && tokens != end - start {
            return None;
        }
        for (run, rank) in &rest[..count] {
            let (at, step) = if alone { (row, 1) } else { (row + run.start - start, run.step) };
            places[*rank].push(Run { start: at, step, len: run.len });
        }
        match runs.last_mut() {
            _ if alone => runs.push((row, *first)),
            Some((_, run)) if run.step == 1 && run.end() == start => run.len += tokens,
            _ => runs.push((row, Run { start, step: 1, len: tokens })),
        }
        row += tokens;
        rest = &rest[count..];
    }
    Some((runs, places))
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
                    assert_eq!(view.needs(owner, rank), expected, "{mask:?}, {owner} to {rank} of {ranks}");
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
        assert_eq!(*view.seen_from(1).shared(&1, || "text"), "text");
    }
}
