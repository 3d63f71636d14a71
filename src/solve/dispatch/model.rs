//! What each rank has of a span, given how it is cut: the inner loop of the search.

use std::ops::Range;

use crate::solve::dispatch::judge::{Judge, Limits};
use crate::solve::dispatch::load::Load;
use crate::solve::dispatch::problem::join;
use crate::solve::dispatch::profile::{Needs, Profile};
use crate::solve::dispatch::span::spans;
use crate::solve::dispatch::{DispatchOptions, Problem};

/// Tokens of one rank, side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) start: usize,
    pub(super) end: usize,
    pub(super) rank: usize,
}

/// What does not change during the search.
pub(super) struct Model<'a> {
    pub(super) profile: &'a Profile,
    pub(super) ranks: usize,
    pub(super) tokens: usize,
    pub(super) spans: Vec<Range<usize>>,
    /// Where documents and bands start and end inside each span.
    pub(super) cuts: Vec<Vec<usize>>,
    /// Indices of each span's knots.
    knots: Vec<Range<usize>>,
    /// Bands of each mask, its weight, and the indices of each span's bands.
    masks: Vec<(Needs, u64, Vec<Range<usize>>)>,
    pub(super) judge: Judge,
}

/// Buffers of [`Model::weigh`].
#[derive(Default)]
pub(super) struct Buffers {
    /// Where each rank's load is; only for ranks that hold part of the span at hand.
    slots: Vec<usize>,
    /// First and last segment of each load.
    ends: Vec<(usize, usize)>,
    /// The next segment of the same rank.
    next: Vec<usize>,
    keys: Vec<Range<usize>>,
    /// Change, at each segment, of the number of key ranges that cover a segment whole, and tokens to add where a
    /// range covers a segment in part.
    cover: Vec<(i64, i64)>,
}

impl<'a> Model<'a> {
    pub(super) fn new(problem: &Problem, options: &DispatchOptions, profile: &'a Profile, limits: Limits) -> Self {
        let tokens = problem.tokens();
        let spans = spans(problem);
        let masks = problem
            .masks
            .iter()
            .map(|(bands, weight)| {
                let needs = Needs::new(bands, tokens);
                let indices = spans.iter().map(|span| needs.indices(span)).collect();
                (needs, *weight, indices)
            })
            .collect();
        let judge = Judge::new(problem, options, profile, limits);
        let knots = spans.iter().map(|span| profile.indices(span)).collect();
        let cuts = natural_cuts(problem, &spans);
        Model { profile, ranks: problem.ranks.max(1), tokens, spans, cuts, knots, masks, judge }
    }

    /// Cells of a range of queries in a span.
    pub(super) fn area(&self, span: usize, range: &Range<usize>) -> u128 {
        let knots = &self.knots[span];
        self.profile.before_of(knots, range.end) - self.profile.before_of(knots, range.start)
    }

    /// What each rank has of a span that is cut like this.
    pub(super) fn weigh(
        &self,
        span: usize,
        segments: &[Segment],
        scratch: &mut Buffers,
        loads: &mut Vec<(usize, Load)>,
    ) {
        const NONE: usize = usize::MAX;
        loads.clear();
        let Buffers { slots, ends, next, keys, cover } = scratch;
        slots.resize(self.ranks, NONE);
        ends.clear();
        next.clear();
        next.resize(segments.len(), NONE);
        let knots = &self.knots[span];
        let mut before = self.profile.before_of(knots, segments[0].start);
        for (index, segment) in segments.iter().enumerate() {
            let slot = match slots[segment.rank] {
                NONE => {
                    slots[segment.rank] = loads.len();
                    loads.push((segment.rank, Load::default()));
                    ends.push((index, index));
                    loads.len() - 1
                }
                slot => {
                    next[ends[slot].1] = index;
                    ends[slot].1 = index;
                    slot
                }
            };
            let after = self.profile.before_of(knots, segment.end);
            let load = &mut loads[slot].1;
            load.area += after - before;
            load.rows += (segment.end - segment.start) as u64;
            before = after;
        }
        for (needs, weight, indices) in &self.masks {
            let bands = &indices[span];
            if bands.is_empty() || segments.len() == 1 {
                continue;
            }
            cover.clear();
            cover.resize(segments.len() + 1, (0, 0));
            for ((_, load), &(first, _)) in loads.iter_mut().zip(ends.iter()) {
                keys.clear();
                let mut index = first;
                while index != NONE {
                    let segment = &segments[index];
                    needs.keys_of(bands.clone(), &(segment.start..segment.end), keys);
                    index = next[index];
                }
                if keys.len() > 1 {
                    join(keys);
                }
                let (mut needed, mut own, mut held) = (0, 0, first);
                for range in keys.iter() {
                    needed += range.len() as u64;
                    // Own segments come in order, as do keys.
                    while held != NONE && segments[held].end <= range.start {
                        held = next[held];
                    }
                    let mut index = held;
                    while index != NONE && segments[index].start < range.end {
                        let segment = &segments[index];
                        own += (segment.end.min(range.end) - segment.start.max(range.start)) as u64;
                        index = next[index];
                    }
                    let (from, to) = covered(segments, range);
                    if from < to {
                        cover[from].0 += 1;
                        cover[to].0 -= 1;
                        cover[from].1 -= range.start.saturating_sub(segments[from].start) as i64;
                        cover[to - 1].1 -= segments[to - 1].end.saturating_sub(range.end) as i64;
                    }
                }
                load.received += weight * (needed - own);
                // What a rank needs of itself is covered below, but not sent.
                load.sent = load.sent.wrapping_sub(weight * own);
            }
            let mut depth = 0;
            for (segment, (change, part)) in segments.iter().zip(cover.iter()) {
                depth += change;
                let rows = depth * (segment.end - segment.start) as i64 + part;
                let load = &mut loads[slots[segment.rank]].1;
                load.sent = load.sent.wrapping_add(weight * rows as u64);
            }
        }
        loads.iter().for_each(|load| slots[load.0] = NONE);
    }
}

/// Where documents and bands start and end inside each span.
fn natural_cuts(problem: &Problem, spans: &[Range<usize>]) -> Vec<Vec<usize>> {
    let bands = problem.masks.iter().flat_map(|(bands, _)| bands.as_slice());
    let ends = bands.flat_map(|band| [band.q.start, band.q.end, band.k.start, band.k.end]);
    let mut cuts: Vec<usize> = ends.filter_map(|end| usize::try_from(end).ok()).collect();
    cuts.extend(problem.documents.iter().map(|document| document.start));
    cuts.sort_unstable();
    cuts.dedup();
    let inside = |span: &Range<usize>| {
        let first = cuts.partition_point(|&cut| cut <= span.start);
        let last = cuts.partition_point(|&cut| cut < span.end);
        cuts[first..last.max(first)].to_vec()
    };
    spans.iter().map(inside).collect()
}

/// The segments that meet a range.
fn covered(segments: &[Segment], range: &Range<usize>) -> (usize, usize) {
    if segments.len() <= 8 {
        let from = segments.iter().take_while(|segment| segment.end <= range.start).count();
        return (from, from + segments[from..].iter().take_while(|segment| segment.start < range.end).count());
    }
    let from = segments.partition_point(|segment| segment.end <= range.start);
    (from, from + segments[from..].partition_point(|segment| segment.start < range.end))
}
