//! What a strategy plans from: who holds which valid tokens, and what is attended.

use std::sync::OnceLock;

use crate::layout::Layout;
use crate::mask::Bands;
use crate::order::{Placement, Run, TokenOrder};
use crate::plan::{Piece, RowSet, tile, touched};

/// Everything that the plan of one batch and mask depends on.
///
/// Rows here are a rank's *valid* rows: its tokens in local order without padding, counted from 0. Padding takes no
/// part in attention and does not travel.
#[derive(Debug)]
pub struct View {
    rank: usize,
    held: Vec<Vec<(usize, Run)>>,
    bands: Bands,
    needs: Vec<OnceLock<RowSet>>,
}

impl View {
    /// The view of `placement`'s rank under a mask that was lowered on its batch.
    pub fn new<O: TokenOrder, L: Layout>(placement: &Placement<O, L>, bands: Bands) -> Self {
        let valid_rows = |rank| {
            let mut row = 0;
            let place = |(_, run): (usize, Run)| {
                row += run.len;
                (row - run.len, run)
            };
            placement.valid_runs_of(rank).into_iter().map(place).collect()
        };
        let ranks = placement.ranks();
        let needs = (0..ranks * ranks).map(|_| OnceLock::new()).collect();
        View { rank: placement.rank(), held: (0..ranks).map(valid_rows).collect(), bands, needs }
    }

    /// The view in which each group of the placement's grid is one rank that holds the rows of all its members, seen
    /// from this rank's group, and for each member of it the group's row of each of its valid rows.
    ///
    /// The group's rows are in natural order where that takes no more runs than one member after another.
    pub fn grouped<O: TokenOrder, L: Layout>(placement: &Placement<O, L>, bands: Bands) -> (Self, Vec<Vec<usize>>) {
        let (grid, by_rank) = (placement.grid(), View::new(placement, bands));
        let group = |outer| {
            let members = (0..grid.inner).map(|inner| by_rank.held(grid.rank(outer, inner)));
            joined(&members.collect::<Vec<_>>())
        };
        let (held, mut places): (Vec<_>, Vec<_>) = (0..grid.outer).map(group).unzip();
        let rank = grid.place(placement.rank()).0;
        let needs = (0..grid.outer * grid.outer).map(|_| OnceLock::new()).collect();
        (View { rank, held, bands: by_rank.bands, needs }, places.swap_remove(rank))
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
        View { rank, held: self.held.clone(), bands: self.bands.clone(), needs: self.needs.clone() }
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
        self.needs[owner * self.ranks() + rank]
            .get_or_init(|| RowSet::from_sorted(touched(&tile(self.held(rank), self.held(owner), &self.bands))))
    }

    /// The pieces of this rank's queries against a buffer that holds the rows `rows` of `owner`.
    pub fn tile(&self, owner: usize, rows: &RowSet) -> Vec<Piece> {
        tile(self.held(self.rank), &kept(self.held(owner), rows), &self.bands)
    }

    /// The pieces of this rank's queries against a buffer with the given runs, each with its first row.
    pub fn tile_runs(&self, keys: &[(usize, Run)]) -> Vec<Piece> {
        tile(self.held(self.rank), keys, &self.bands)
    }

    /// The runs of a buffer that holds the rows `rows` of `owner`, from row `first` on.
    pub fn runs(&self, owner: usize, rows: &RowSet, first: usize) -> Vec<(usize, Run)> {
        kept(self.held(owner), rows).into_iter().map(|(row, run)| (first + row, run)).collect()
    }

    /// All valid tokens of the batch in natural order, and for each rank where its rows are among them.
    pub fn natural(&self) -> (Vec<(usize, Run)>, Vec<Vec<usize>>) {
        in_natural_order(&self.held.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }
}

/// The tokens of several ranks in natural order as runs, and for each rank where its rows are among them.
fn in_natural_order(held: &[&[(usize, Run)]]) -> (Vec<(usize, Run)>, Vec<Vec<usize>>) {
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
fn joined(held: &[&[(usize, Run)]]) -> (Vec<(usize, Run)>, Vec<Vec<usize>>) {
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
