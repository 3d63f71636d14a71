//! The search: random moves of segments between ranks, accepted by annealing in integers.

use std::ops::Range;

use crate::solve::dispatch::model::{Buffers, Model, Segment};
use crate::solve::dispatch::random::Random;
use crate::solve::dispatch::state::{SearchState, Span};

/// Gives a range of a span to a rank.
type Edit = (usize, Range<usize>, usize);

/// How much worse a state may become in one move.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heat {
    /// What is accepted in half of the cases, at first.
    pub(super) hot: u64,
    /// How often it halves until the end.
    pub(super) halvings: u64,
}

pub(super) struct Annealing<'a> {
    model: &'a Model<'a>,
    grain: usize,
    random: Random,
    scratch: Buffers,
    edits: Vec<Edit>,
    /// Spans of the move at hand; after their exchange, the old ones.
    changed: Vec<(usize, Span)>,
    spare: Vec<Span>,
    buffer: Vec<Segment>,
}

impl<'a> Annealing<'a> {
    pub(super) fn new(model: &'a Model<'a>, grain: usize) -> Self {
        Annealing {
            model,
            grain,
            random: Random::new(1),
            scratch: Buffers::default(),
            edits: Vec::new(),
            changed: Vec::new(),
            spare: Vec::new(),
            buffer: Vec::new(),
        }
    }

    /// Tries `moves` moves from `state` and gives the best state seen. `within`: a state that keeps the limits is
    /// better than one that does not, whatever it costs.
    pub(super) fn run(&mut self, mut state: SearchState, moves: u64, heat: Heat, within: bool) -> SearchState {
        if self.model.ranks < 2 || self.model.tokens == 0 {
            return state;
        }
        // The best state is kept as its segments; most of them are also those of the current one.
        let mut best: Vec<Vec<Segment>> = state.spans.iter().map(|span| span.segments.clone()).collect();
        let key = |state: &SearchState| (if within { state.over } else { 0 }, state.energy);
        let mut best_key = key(&state);
        let mut dirty = Vec::new();
        let mut is_dirty = vec![false; best.len()];
        // The temperature halves this many times.
        let Heat { hot, halvings } = heat;
        let mut round = 0;
        while round < moves {
            let cooled = (halvings << 16) * round / moves;
            let (whole, part) = (cooled >> 16, cooled & 0xffff);
            let temperature = (hot >> whole) - (((u128::from(hot >> whole) * u128::from(part)) >> 17) as u64);
            self.propose(&state);
            // Moves in spans of many segments take longer and count for more.
            let weighed: usize = self.edits.iter().map(|edit| state.spans[edit.0].segments.len()).sum();
            round += 1 + weighed as u64 / 16;
            if self.edits.is_empty() {
                continue;
            }
            let before = state.energy;
            self.apply(&mut state);
            let limit = before + ((u128::from(temperature) * u128::from(self.random.doublings())) >> 16) as u64;
            if state.energy > limit {
                // Exchanging again restores the old spans.
                for (index, span) in self.changed.iter_mut().rev() {
                    state.exchange(*index, span);
                }
                state.judge(self.model);
                continue;
            }
            for (index, old) in &self.changed {
                state.settle(*index, old);
                if !is_dirty[*index] {
                    is_dirty[*index] = true;
                    dirty.push(*index);
                }
            }
            if key(&state) < best_key {
                best_key = key(&state);
                for index in dirty.drain(..) {
                    is_dirty[index] = false;
                    best[index].clone_from(&state.spans[index].segments);
                }
            }
        }
        for index in dirty {
            let mut span = Span { segments: std::mem::take(&mut best[index]), ..Span::default() };
            self.model.weigh(index, &span.segments, &mut self.scratch, &mut span.loads);
            state.exchange(index, &mut span);
            state.settle(index, &span);
        }
        state.judge(self.model);
        state
    }

    /// Makes the move at hand.
    fn apply(&mut self, state: &mut SearchState) {
        self.spare.extend(self.changed.drain(..).map(|(_, span)| span));
        for (index, range, rank) in self.edits.drain(..) {
            let slot = match self.changed.iter().position(|(changed, _)| *changed == index) {
                Some(slot) => slot,
                None => {
                    let mut span = self.spare.pop().unwrap_or_default();
                    span.segments.clone_from(&state.spans[index].segments);
                    self.changed.push((index, span));
                    self.changed.len() - 1
                }
            };
            let segments = &mut self.changed[slot].1.segments;
            Span::assigned(segments, &range, rank, &mut self.buffer);
            std::mem::swap(segments, &mut self.buffer);
        }
        for (index, span) in &mut self.changed {
            self.model.weigh(*index, &span.segments, &mut self.scratch, &mut span.loads);
            state.exchange(*index, span);
        }
        state.judge(self.model);
    }

    /// A segment of a rank: its span, and its place there.
    fn pick(&mut self, state: &SearchState, rank: usize) -> Option<(usize, usize)> {
        let held = &state.held[rank];
        if held.is_empty() {
            return None;
        }
        let index = held[self.random.below(held.len())];
        let segments = &state.spans[index].segments;
        let count = segments.iter().filter(|segment| segment.rank == rank).count();
        let nth = self.random.below(count);
        let place = segments.iter().enumerate().filter(|(_, segment)| segment.rank == rank).nth(nth)?.0;
        Some((index, place))
    }

    /// Chooses the next move.
    fn propose(&mut self, state: &SearchState) {
        self.edits.clear();
        let ranks = self.model.ranks;
        let from = match self.random.below(8) {
            0 => state.busiest(),
            _ => self.random.below(ranks),
        };
        let Some((index, place)) = self.pick(state, from) else { return };
        let segments = &state.spans[index].segments;
        let segment = segments[place];
        // Left and right neighbour, if they exist.
        let left = place.checked_sub(1).map(|place| segments[place].rank);
        let right = segments.get(place + 1).map(|segment| segment.rank);
        let choice = self.random.below(8);
        let (to, side) = match (choice, left, right) {
            (0..=1, Some(rank), _) => (rank, 1),
            (2..=3, _, Some(rank)) => (rank, 2),
            (4, Some(_), _) | (4, _, Some(_)) => (segments[self.random.below(segments.len())].rank, 0),
            _ => (self.random.below(ranks), 0),
        };
        if to == from {
            return;
        }
        let whole = self.random.chance(if side == 0 { 176 } else { 64 });
        let side = if side == 0 { 1 + self.random.below(2) } else { side };
        let given = if whole {
            segment.start..segment.end
        } else if self.random.chance(64)
            && let Some(cut) = self.natural(index, &segment)
        {
            if side == 1 { segment.start..cut } else { cut..segment.end }
        } else {
            let rows = match self.random.chance(96) {
                true => self.balancing(state, index, &segment, to),
                false => self.amount(segment.end - segment.start),
            };
            self.portion(index, &segment, side == 1, rows)
        };
        if given.is_empty() {
            return;
        }
        self.edits.push((index, given.clone(), to));
        if self.random.chance(144) {
            let Some((index_back, place)) = self.pick(state, to) else { return };
            let back = state.spans[index_back].segments[place];
            let rows = back.end - back.start;
            let range = match self.random.below(4) {
                0 | 1 => back.start..back.end,
                2 => {
                    let head = self.random.chance(128);
                    self.portion(index_back, &back, head, given.len().min(rows))
                }
                _ => {
                    let head = self.random.chance(128);
                    let wanted = self.model.area(index, &given);
                    let area = self.model.area(index_back, &(back.start..back.end)).max(1);
                    let rows = (rows as u128 * wanted.min(area) / area) as usize;
                    self.portion(index_back, &back, head, rows)
                }
            };
            if !range.is_empty() {
                self.edits.push((index_back, range, from));
            }
        }
    }

    /// Rows that would make the areas, or the rows, of a segment's rank and another one alike.
    fn balancing(&mut self, state: &SearchState, span: usize, segment: &Segment, to: usize) -> usize {
        let (a, b) = (&state.totals[segment.rank], &state.totals[to]);
        let rows = segment.end - segment.start;
        if self.random.chance(128) {
            return (a.rows.saturating_sub(b.rows) as usize / 2).min(rows);
        }
        let area = self.model.area(span, &(segment.start..segment.end)).max(1);
        let surplus = a.area.saturating_sub(b.area) / 2;
        (surplus.min(area) * rows as u128 / area) as usize
    }

    /// A place inside a segment where a document or a band starts or ends.
    fn natural(&mut self, span: usize, segment: &Segment) -> Option<usize> {
        let cuts = &self.model.cuts[span];
        let first = cuts.partition_point(|&cut| cut <= segment.start);
        let last = cuts.partition_point(|&cut| cut < segment.end);
        (first < last).then(|| cuts[first + self.random.below(last - first)])
    }

    /// Between 1 and `rows`, small ones as likely as large ones.
    fn amount(&mut self, rows: usize) -> usize {
        let magnitude = self.random.below(rows.ilog2() as usize + 1);
        (1usize << magnitude) + self.random.below(1 << magnitude).min(rows - (1 << magnitude))
    }

    /// The first or last `rows` rows of a segment, up to the grain.
    fn portion(&self, span: usize, segment: &Segment, head: bool, rows: usize) -> Range<usize> {
        let origin = self.model.spans[span].start;
        let snap = |token: usize| {
            let offset = (token - origin + self.grain / 2) / self.grain * self.grain;
            (origin + offset).clamp(segment.start, segment.end)
        };
        let rows = rows.min(segment.end - segment.start);
        if head { segment.start..snap(segment.start + rows) } else { snap(segment.end - rows)..segment.end }
    }
}
