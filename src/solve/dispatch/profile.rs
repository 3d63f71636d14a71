//! How much of the mask lies in which rows: areas of any range of queries, and the keys they need.

use std::ops::Range;

use crate::mask::{Band, Bands};
use crate::solve::dispatch::Problem;

/// From `start` on, until the next knot, query `start + t` has `width + t * slope` cells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Knot {
    pub(super) start: i64,
    /// Cells of all queries before `start`.
    before: i128,
    width: i128,
    slope: i128,
}

/// The number of cells of each query, summed over masks, as a function that is linear between knots.
pub(super) struct Profile {
    knots: Vec<Knot>,
}

impl Profile {
    /// The cells of all masks, each times its weight.
    pub(super) fn new(problem: &Problem) -> Self {
        Self::of(problem.masks.iter().map(|(bands, weight)| (bands, *weight)))
    }

    /// The cells of these masks, each times its weight.
    pub(super) fn of<'a>(masks: impl Iterator<Item = (&'a Bands, u64)>) -> Self {
        // Changes of width and slope, by query.
        let mut changes: Vec<(i64, i128, i128)> = Vec::new();
        for (bands, weight) in masks {
            let weight = i128::from(weight);
            for band in bands.as_slice() {
                // Between these queries both ends of a row's keys stand still or move with the query.
                let clamp = |query: i64| query.clamp(band.q.start, band.q.end);
                let (lower, upper) = (clamp(band.k.start - band.d_lo), clamp(band.k.end - 1 - band.d_hi));
                let cuts = [band.q.start, lower.min(upper), lower.max(upper), band.q.end];
                for pair in cuts.windows(2).filter(|pair| pair[0] < pair[1]) {
                    let slope = i128::from(pair[0] < upper) - i128::from(pair[0] >= lower);
                    let width = row_width(band, pair[0]);
                    let end = width + slope * i128::from(pair[1] - pair[0]);
                    changes.push((pair[0], weight * width, weight * slope));
                    changes.push((pair[1], -weight * end, -weight * slope));
                }
            }
        }
        changes.sort_unstable_by_key(|change| change.0);
        let mut knots = vec![Knot { start: i64::MIN, before: 0, width: 0, slope: 0 }];
        for (start, width, slope) in changes {
            let last = knots[knots.len() - 1];
            let here = match last.start == start {
                true => {
                    knots.pop();
                    last
                }
                false => Knot { start, before: last.cells_before(start), width: last.width_at(start), ..last },
            };
            knots.push(Knot { width: here.width + width, slope: here.slope + slope, ..here });
        }
        Profile { knots }
    }

    /// Cells of all queries before `query`.
    pub(super) fn before(&self, query: usize) -> u128 {
        let query = query as i64;
        let index = self.knots.partition_point(|knot| knot.start <= query) - 1;
        self.knots[index].cells_before(query) as u128
    }

    /// Indices of the knots that matter to the queries of a range.
    pub(super) fn indices(&self, range: &Range<usize>) -> Range<usize> {
        let first = self.knots.partition_point(|knot| knot.start <= range.start as i64) - 1;
        first..self.knots.partition_point(|knot| knot.start <= range.end as i64)
    }

    /// [`Profile::before`], looking only at the knots with these indices.
    pub(super) fn before_of(&self, knots: &Range<usize>, query: usize) -> u128 {
        let query = query as i64;
        let knots = &self.knots[knots.clone()];
        let index = match knots.len() {
            0..=4 => knots.iter().rposition(|knot| knot.start <= query).unwrap_or(0),
            _ => knots.partition_point(|knot| knot.start <= query).saturating_sub(1),
        };
        knots[index].cells_before(query) as u128
    }

    /// Cells of a range of queries.
    pub(super) fn area(&self, range: &Range<usize>) -> u128 {
        self.before(range.end) - self.before(range.start)
    }

    /// Pieces of `range` on which the width is linear: queries, first width, last width.
    pub(super) fn pieces(&self, range: Range<i64>) -> impl Iterator<Item = (Range<i64>, u128, u128)> {
        let first = self.knots.partition_point(|knot| knot.start <= range.start) - 1;
        let last = self.knots.partition_point(|knot| knot.start < range.end);
        (first..last).map(move |index| {
            let knot = &self.knots[index];
            let end = self.knots.get(index + 1).map_or(i64::MAX, |next| next.start);
            let piece = range.start.max(knot.start)..range.end.min(end);
            let (low, high) = (knot.width_at(piece.start) as u128, knot.width_at(piece.end - 1) as u128);
            (piece, low, high)
        })
    }
}

impl Knot {
    fn width_at(&self, query: i64) -> i128 {
        match self.slope {
            0 => self.width,
            slope => self.width + slope * (i128::from(query) - i128::from(self.start)),
        }
    }

    fn cells_before(&self, query: i64) -> i128 {
        // The first knot starts far away, but has no cells.
        if self.width == 0 && self.slope == 0 {
            return self.before;
        }
        let rows = i128::from(query) - i128::from(self.start);
        self.before + rows * self.width + self.slope * (rows * (rows - 1) / 2)
    }
}

fn row_width(band: &Band, query: i64) -> i128 {
    let keys = band.keys(query);
    i128::from(keys.end) - i128::from(keys.start)
}

/// The bands of one mask, to be asked for the keys that queries need.
pub(super) struct Needs {
    bands: Vec<Band>,
    /// The largest query end among the first `i + 1` bands; it never falls.
    reach: Vec<i64>,
    tokens: i64,
}

impl Needs {
    /// The bands of a mask over a batch of `tokens` tokens.
    pub(super) fn new(bands: &Bands, tokens: usize) -> Self {
        let bands = bands.as_slice().to_vec();
        let mut largest = i64::MIN;
        let reach = bands
            .iter()
            .map(|band| {
                largest = largest.max(band.q.end);
                largest
            })
            .collect();
        Needs { bands, reach, tokens: tokens as i64 }
    }

    /// Indices of the bands with queries in a range, and of some others perhaps.
    pub(super) fn indices(&self, range: &Range<usize>) -> Range<usize> {
        let first = self.reach.partition_point(|&reach| reach <= range.start as i64);
        let last = self.bands.partition_point(|band| band.q.start < range.end as i64);
        first.min(last)..last
    }

    /// Appends the keys that the queries of `range` attend, as ranges that may overlap and come in any order.
    pub(super) fn keys(&self, range: &Range<usize>, out: &mut Vec<Range<usize>>) {
        self.keys_of(self.indices(range), range, out);
    }

    /// [`Needs::keys`] in the bands with these indices.
    pub(super) fn keys_of(&self, bands: Range<usize>, range: &Range<usize>, out: &mut Vec<Range<usize>>) {
        let (start, end) = (range.start as i64, range.end as i64);
        for band in &self.bands[bands] {
            // Every key of a shrunk band is attended, and shrinking to fewer queries leaves one range of keys.
            let (from, to) = (start.max(band.q.start), end.min(band.q.end));
            if from < to {
                let keys = band.k.start.max(from + band.d_lo)..band.k.end.min(to + band.d_hi).min(self.tokens);
                if keys.start < keys.end {
                    out.push(keys.start as usize..keys.end as usize);
                }
            }
        }
    }
}
