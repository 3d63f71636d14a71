//! Lower bounds: what no placement can beat.

use std::ops::Range;

use crate::solve::dispatch::Problem;
use crate::solve::dispatch::problem::joined;
use crate::solve::dispatch::profile::{Needs, Profile};
use crate::solve::dispatch::span::spans;

/// How many linear pieces of row widths are looked at per span and mask, over all ranks.
const PIECES: usize = 1 << 15;

/// The largest area of a rank is at least the average, and at least that of any query.
pub(super) fn area(problem: &Problem, profile: &Profile) -> u128 {
    let average = profile.before(problem.tokens()).div_ceil(problem.ranks.max(1) as u128);
    let widest = profile.pieces(0..problem.tokens() as i64).map(|(_, low, high)| low.max(high)).max();
    average.max(widest.unwrap_or(0))
}

/// The least sum of keys received, over all placements where no rank has more than `area_max` cells and `rows_max`
/// rows.
///
/// Take the ranks that have queries of one span by their widest query there, widest first. Queries wider than that of
/// rank `i` are all on ranks before `i`, so they have at most `i` times the most cells and rows that a rank may have:
/// this bounds the width from below. A rank needs at least as many keys as its widest query attends, and all ranks
/// together hold no more of them than there are. For documents with full or causal attention the bound is met by
/// cutting each into contiguous pieces that fill one rank after another from the end.
pub(super) fn received(problem: &Problem, profile: &Profile, area_max: u128, rows_max: u64) -> u64 {
    let tokens = problem.tokens();
    let whole = spans(problem);
    let fits = |span: &Range<usize>| profile.area(span) <= area_max && span.len() as u64 <= rows_max;
    let mut total = 0;
    let split: Vec<_> = whole.iter().filter(|span| !fits(span)).collect();
    if split.is_empty() {
        return 0;
    }
    for (bands, weight) in problem.masks {
        let widths = Profile::of(std::iter::once((bands, 1)));
        let needs = Needs::new(bands, tokens);
        for span in &split {
            let mut keys = Vec::new();
            needs.keys(span, &mut keys);
            let held: u64 = joined(keys).iter().map(|range| range.len() as u64).sum();
            let pieces: Vec<_> = widths.pieces(span.start as i64..span.end as i64).collect();
            let widest = pieces.iter().map(|(_, low, high)| *low.max(high) as u64).max().unwrap_or(0);
            let mut needed = widest;
            for rank in 1..problem.ranks.min(1 + PIECES / pieces.len().max(1)) {
                let (area, rows) = (area_max.saturating_mul(rank as u128), rows_max.saturating_mul(rank as u64));
                let width = narrowest(profile, &pieces, widest, area, rows);
                needed += width;
                if width == 0 {
                    break;
                }
            }
            total += weight * needed.saturating_sub(held);
        }
    }
    total
}

/// The smallest width such that wider queries have at most `area` cells and `rows` rows.
fn narrowest(profile: &Profile, pieces: &[(Range<i64>, u128, u128)], widest: u64, area: u128, rows: u64) -> u64 {
    let (mut low, mut high) = (0, widest);
    while low < high {
        let middle = low + (high - low) / 2;
        let (mut cells, mut count) = (0, 0);
        for piece in pieces {
            let wider = wider(piece, u128::from(middle));
            count += wider.len() as u64;
            cells += profile.area(&wider);
        }
        if cells <= area && count <= rows { high = middle } else { low = middle + 1 }
    }
    low
}

/// The queries of a linear piece that are wider than `width`.
fn wider((queries, first, last): &(Range<i64>, u128, u128), width: u128) -> Range<usize> {
    let (start, end) = (queries.start as usize, queries.end as usize);
    let steps = (end - start - 1) as u128;
    // Widths change by the same whole number at each step.
    match (*first > width, *last > width) {
        (true, true) => start..end,
        (false, false) => start..start,
        (true, false) => start..start + ((first - width).div_ceil((first - last) / steps)) as usize,
        (false, true) => end - ((last - width).div_ceil((last - first) / steps)) as usize..end,
    }
}
