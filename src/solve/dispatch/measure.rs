//! What a placement is worth: area, rows and traffic of each rank, exactly, beside lower bounds.

use std::ops::Range;

use serde::Serialize;

use crate::mask::Bands;
use crate::solve::dispatch::problem::joined;
use crate::solve::dispatch::profile::{Needs, Profile};
use crate::solve::dispatch::{Problem, bound};

/// Area, rows and traffic of a placement. Areas and traffic are sums over masks, each times its weight (layers).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlacementReport {
    /// Cells that each rank computes.
    pub area: Vec<u128>,
    /// The largest of them.
    pub area_max: u128,
    /// No placement has a smaller `area_max`: the average, or the cells of one query where that is more.
    pub area_bound: u128,
    /// Tokens that each rank holds.
    pub rows: Vec<u64>,
    /// The largest of them.
    pub rows_max: u64,
    /// Keys that each rank needs and does not hold.
    pub received: Vec<u64>,
    /// Keys that each rank holds and others need, once per rank that needs them.
    pub sent: Vec<u64>,
    /// No placement with this `area_max` and this `rows_max` has a smaller sum of `received`.
    pub received_bound: u64,
}

impl PlacementReport {
    /// Keys received by all ranks together, which is also what all send.
    pub fn traffic(&self) -> u64 {
        self.received.iter().sum()
    }
}

/// The keys that the queries of a part attend under one mask and that are not in the part: what its rank receives.
/// Sorted ranges that neither overlap nor touch.
pub fn remote(bands: &Bands, part: &[Range<usize>]) -> Vec<Range<usize>> {
    let needs = Needs::new(bands, i64::MAX as usize);
    let mut keys = Vec::new();
    part.iter().for_each(|range| needs.keys(range, &mut keys));
    let own = joined(part.to_vec());
    let mut remote = Vec::new();
    for key in joined(keys) {
        let mut from = key.start;
        let first = own.partition_point(|range| range.end <= key.start);
        for held in own[first..].iter().take_while(|range| range.start < key.end) {
            remote.push(from..held.start.max(from));
            from = held.end;
        }
        remote.push(from..key.end.max(from));
    }
    joined(remote)
}

/// Measures any placement. `parts` are the tokens of each rank, which must not overlap.
pub fn measure(problem: &Problem, parts: &[Vec<Range<usize>>]) -> PlacementReport {
    measured(problem, &Profile::new(problem), parts)
}

/// [`measure`] with the problem's profile at hand.
pub(super) fn measured(problem: &Problem, profile: &Profile, parts: &[Vec<Range<usize>>]) -> PlacementReport {
    let tokens = problem.tokens();
    let ranks = parts.len();
    let area: Vec<u128> = parts.iter().map(|part| part.iter().map(|range| profile.area(range)).sum()).collect();
    let rows: Vec<u64> = parts.iter().map(|part| part.iter().map(|range| range.len() as u64).sum()).collect();
    let mut owners: Vec<(Range<usize>, usize)> = parts
        .iter()
        .enumerate()
        .flat_map(|(rank, part)| part.iter().filter(|range| !range.is_empty()).map(move |range| (range.clone(), rank)))
        .collect();
    owners.sort_unstable_by_key(|(range, _)| range.start);
    let (mut received, mut sent) = (vec![0; ranks], vec![0; ranks]);
    for (bands, weight) in problem.masks {
        let needs = Needs::new(bands, tokens);
        let mut cover = Cover::new(owners.len());
        for (rank, part) in parts.iter().enumerate() {
            let mut keys = Vec::new();
            part.iter().for_each(|range| needs.keys(range, &mut keys));
            let keys = joined(keys);
            keys.iter().for_each(|range| cover.add(&owners, range));
            let own = weight * common(&keys, part);
            received[rank] += weight * keys.iter().map(|range| range.len() as u64).sum::<u64>() - own;
            // What a rank needs of itself is covered below, but not sent.
            sent[rank] -= own as i64;
        }
        for ((_, rank), rows) in owners.iter().zip(cover.rows(&owners)) {
            sent[*rank] += (weight * rows) as i64;
        }
    }
    let area_max = area.iter().copied().max().unwrap_or(0);
    let rows_max = rows.iter().copied().max().unwrap_or(0);
    PlacementReport {
        area_bound: bound::area(problem, profile),
        received_bound: bound::received(problem, profile, area_max, rows_max),
        sent: sent.into_iter().map(|rows| rows as u64).collect(),
        area,
        area_max,
        rows,
        rows_max,
        received,
    }
}

/// Tokens that are in both of two sorted lists of disjoint ranges.
fn common(one: &[Range<usize>], other: &[Range<usize>]) -> u64 {
    let (mut i, mut j, mut tokens) = (0, 0, 0);
    while let (Some(a), Some(b)) = (one.get(i), other.get(j)) {
        tokens += a.end.min(b.end).saturating_sub(a.start.max(b.start)) as u64;
        if a.end <= b.end { i += 1 } else { j += 1 }
    }
    tokens
}

/// Counts how often each piece of a sorted list is covered, in time that does not grow with the pieces covered.
struct Cover {
    /// Change, at each piece, of the number of ranges that cover a piece whole.
    change: Vec<i64>,
    /// Tokens to add where a range covers a piece in part.
    part: Vec<i64>,
}

impl Cover {
    fn new(pieces: usize) -> Self {
        Cover { change: vec![0; pieces + 1], part: vec![0; pieces + 1] }
    }

    fn add(&mut self, pieces: &[(Range<usize>, usize)], range: &Range<usize>) {
        let first = pieces.partition_point(|(piece, _)| piece.end <= range.start);
        let last = pieces.partition_point(|(piece, _)| piece.start < range.end);
        if first >= last {
            return;
        }
        self.change[first] += 1;
        self.change[last] -= 1;
        self.part[first] -= range.start.saturating_sub(pieces[first].0.start) as i64;
        self.part[last - 1] -= pieces[last - 1].0.end.saturating_sub(range.end) as i64;
    }

    fn rows(&self, pieces: &[(Range<usize>, usize)]) -> Vec<u64> {
        let mut depth = 0;
        let count = |((piece, _), (change, part)): (&(Range<usize>, usize), (&i64, &i64))| {
            depth += change;
            (depth * piece.len() as i64 + part) as u64
        };
        pieces.iter().zip(self.change.iter().zip(&self.part)).map(count).collect()
    }
}
