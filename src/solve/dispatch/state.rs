//! A placement during the search, with what it costs.

use std::ops::Range;

use crate::solve::dispatch::load::Load;
use crate::solve::dispatch::model::{Buffers, Model, Segment};
use crate::solve::dispatch::problem::joined;

/// A span cut into segments of different ranks.
#[derive(Clone, Debug, Default)]
pub(super) struct Span {
    /// In order; neighbours belong to different ranks.
    pub(super) segments: Vec<Segment>,
    /// The ranks that hold something, each once, with what they have here.
    pub(super) loads: Vec<(usize, Load)>,
}

impl Span {
    /// Gives a range to a rank. `out` becomes the new segments.
    pub(super) fn assigned(segments: &[Segment], range: &Range<usize>, rank: usize, out: &mut Vec<Segment>) {
        out.clear();
        let mut push = |start: usize, end: usize, rank: usize| {
            if start < end {
                match out.last_mut() {
                    Some(last) if last.rank == rank => last.end = end,
                    _ => out.push(Segment { start, end, rank }),
                }
            }
        };
        for segment in segments {
            let inside = segment.start.max(range.start)..segment.end.min(range.end);
            if inside.is_empty() {
                push(segment.start, segment.end, segment.rank);
            } else {
                push(segment.start, inside.start, segment.rank);
                push(inside.start, inside.end, rank);
                push(inside.end, segment.end, segment.rank);
            }
        }
    }
}

/// A placement during the search.
#[derive(Clone)]
pub(super) struct SearchState {
    pub(super) spans: Vec<Span>,
    pub(super) totals: Vec<Load>,
    /// Spans of which a rank holds something.
    pub(super) held: Vec<Vec<usize>>,
    pub(super) times: Vec<u64>,
    pub(super) overs: Vec<u64>,
    /// Ranks whose totals changed since they were judged.
    stale: Vec<usize>,
    is_stale: Vec<bool>,
    traffics: Vec<u64>,
    traffic: u64,
    rank_over: u64,
    /// What is above the caps: ranks' areas and rows, and traffic.
    pub(super) over: u64,
    pub(super) energy: u64,
}

impl SearchState {
    /// The state of a placement.
    pub(super) fn new(model: &Model, parts: &[Vec<Range<usize>>], scratch: &mut Buffers) -> Self {
        let mut owners: Vec<Segment> = parts
            .iter()
            .enumerate()
            .flat_map(|(rank, part)| part.iter().map(move |range| Segment { start: range.start, end: range.end, rank }))
            .collect();
        owners.sort_unstable_by_key(|segment| segment.start);
        let mut owner = 0;
        let mut totals = vec![Load::default(); model.ranks];
        let mut held = vec![Vec::new(); model.ranks];
        let mut spans = Vec::with_capacity(model.spans.len());
        for (index, range) in model.spans.iter().enumerate() {
            let mut span = Span::default();
            while owner < owners.len() && owners[owner].end <= range.start {
                owner += 1;
            }
            let mut next = owner;
            while next < owners.len() && owners[next].start < range.end {
                let Segment { start, end, rank } = owners[next];
                span.segments.push(Segment { start: start.max(range.start), end: end.min(range.end), rank });
                next += 1;
            }
            model.weigh(index, &span.segments, scratch, &mut span.loads);
            for (rank, load) in &span.loads {
                totals[*rank].add(load);
                held[*rank].push(index);
            }
            spans.push(span);
        }
        let times: Vec<_> = totals.iter().map(|load| model.judge.time(load)).collect();
        let overs: Vec<_> = totals.iter().map(|load| model.judge.over(load)).collect();
        let traffics: Vec<_> = totals.iter().map(|load| model.judge.traffic(load)).collect();
        let mut state = SearchState {
            spans,
            totals,
            held,
            traffic: traffics.iter().sum(),
            traffics,
            rank_over: overs.iter().sum(),
            over: 0,
            times,
            overs,
            stale: Vec::new(),
            is_stale: vec![false; model.ranks],
            energy: 0,
        };
        state.judge(model);
        state
    }

    /// Puts new segments into a span; `changed` holds the old ones afterwards. Totals follow, [`SearchState::held`]
    /// does not until [`SearchState::settle`], nor does the energy until [`SearchState::judge`].
    pub(super) fn exchange(&mut self, index: usize, changed: &mut Span) {
        let span = &mut self.spans[index];
        std::mem::swap(span, changed);
        for (rank, load) in &changed.loads {
            self.totals[*rank].subtract(load);
        }
        for (rank, load) in &span.loads {
            self.totals[*rank].add(load);
        }
        for &(rank, _) in changed.loads.iter().chain(&span.loads) {
            if !self.is_stale[rank] {
                self.is_stale[rank] = true;
                self.stale.push(rank);
            }
        }
    }

    /// Judges the state after one exchange or more.
    pub(super) fn judge(&mut self, model: &Model) {
        for rank in self.stale.drain(..) {
            self.is_stale[rank] = false;
            let load = &self.totals[rank];
            let (time, over) = (model.judge.time(load), model.judge.over(load));
            let traffic = model.judge.traffic(load);
            self.traffic = self.traffic - self.traffics[rank] + traffic;
            self.traffics[rank] = traffic;
            self.rank_over = self.rank_over - self.overs[rank] + over;
            self.times[rank] = time;
            self.overs[rank] = over;
        }
        self.over = self.rank_over + model.judge.surplus(self.traffic);
        self.energy = model.judge.energy(self.traffic, self.times.iter().copied().max().unwrap_or(0), self.over);
    }

    /// The rank that is most above the caps, and of equal ones takes longest.
    pub(super) fn busiest(&self) -> usize {
        (0..self.times.len()).max_by_key(|&rank| (self.overs[rank], self.times[rank])).unwrap_or(0)
    }

    /// Notes who holds a span now and held it before.
    pub(super) fn settle(&mut self, index: usize, before: &Span) {
        let now = &self.spans[index];
        for (rank, _) in &before.loads {
            if !now.loads.iter().any(|load| load.0 == *rank)
                && let Some(position) = self.held[*rank].iter().position(|&span| span == index)
            {
                self.held[*rank].swap_remove(position);
            }
        }
        for (rank, _) in &now.loads {
            if !before.loads.iter().any(|load| load.0 == *rank) {
                self.held[*rank].push(index);
            }
        }
    }

    /// The tokens of each rank.
    pub(super) fn parts(&self, ranks: usize) -> Vec<Vec<Range<usize>>> {
        let mut parts = vec![Vec::new(); ranks];
        for segment in self.spans.iter().flat_map(|span| &span.segments) {
            parts[segment.rank].push(segment.start..segment.end);
        }
        parts.into_iter().map(joined).collect()
    }
}
