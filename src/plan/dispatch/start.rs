//! Simple placements, made in one pass: what the search starts from and what it is compared with.

use std::cmp::Reverse;
use std::ops::Range;

use serde::Serialize;

use crate::plan::dispatch::heap::heap_parts;
use crate::plan::dispatch::measure::measured;
use crate::plan::dispatch::problem::joined;
use crate::plan::dispatch::profile::Profile;
use crate::plan::dispatch::span::spans;
use crate::plan::dispatch::{Dispatch, Problem, Remainder};

/// A simple placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Start {
    /// Chunks of at most 512 tokens, dealt out by [`heap()`](fn@crate::plan::dispatch::heap).
    Heap,
    /// As many tokens per rank as possible alike, in the order of the batch.
    Contiguous,
    /// Each document in twice as many chunks as ranks; rank `r` has its chunks `r` and `2 * ranks - 1 - r`.
    Zigzag,
    /// Spans by cells per row. Each rank takes rows from the dense end and from the sparse end, as many as make both
    /// its rows and its cells the average of what is left.
    TwoEnded,
}

impl Start {
    /// All of them.
    pub const ALL: [Start; 4] = [Start::Heap, Start::Contiguous, Start::Zigzag, Start::TwoEnded];

    /// Makes the placement.
    pub fn place(self, problem: &Problem) -> Dispatch {
        let profile = Profile::new(problem);
        let parts = self.parts(problem, &profile, 1);
        let report = measured(problem, &profile, &parts);
        Dispatch { parts, report }
    }

    /// The tokens of each rank. `grain`: what the two-ended fill rounds its cuts to, from the start of a span.
    pub(super) fn parts(self, problem: &Problem, profile: &Profile, grain: usize) -> Vec<Vec<Range<usize>>> {
        let (tokens, ranks) = (problem.tokens(), problem.ranks.max(1));
        match self {
            Start::Heap => {
                let chunk = tokens.div_ceil(8 * ranks).min(512);
                heap_parts(problem, profile, chunk, Remainder::Uneven)
            }
            Start::Contiguous => {
                let cut = |rank: usize| (rank as u128 * tokens as u128 / ranks as u128) as usize;
                (0..ranks).map(|rank| joined(vec![cut(rank)..cut(rank + 1)])).collect()
            }
            Start::Zigzag => zigzag(problem.documents, ranks),
            Start::TwoEnded => two_ended(problem, profile, grain.max(1)),
        }
    }
}

fn zigzag(documents: &[Range<usize>], ranks: usize) -> Vec<Vec<Range<usize>>> {
    let chunks = 2 * ranks as u128;
    let mut parts = vec![Vec::new(); ranks];
    // Spare rows of short documents go to one chunk after another.
    let mut spare = 0;
    for document in documents {
        let length = document.len() as u128;
        let cut = |chunk: u128| document.start + ((spare + chunk * length) / chunks) as usize;
        for chunk in 0..chunks {
            let rank = chunk.min(chunks - 1 - chunk) as usize;
            parts[rank].push(cut(chunk)..cut(chunk + 1));
        }
        spare = (spare + length) % chunks;
    }
    parts.into_iter().map(joined).collect()
}

/// The spans of a batch one after another, by falling density.
struct Line {
    spans: Vec<Range<usize>>,
    /// Tokens and cells before each span, and in all.
    before: Vec<(usize, u128)>,
}

impl Line {
    fn new(problem: &Problem, profile: &Profile) -> Self {
        let mut spans = spans(problem);
        // Whole cells per row suffice to compare, scaled so that short documents differ.
        spans.sort_by_cached_key(|span| Reverse((profile.area(span) << 16) / span.len().max(1) as u128));
        let mut before = vec![(0, 0)];
        for span in &spans {
            let (tokens, cells) = before[before.len() - 1];
            before.push((tokens + span.len(), cells + profile.area(span)));
        }
        Line { spans, before }
    }

    /// The span at a place of the line, and how far into it the place is.
    fn locate(&self, place: usize) -> (usize, usize) {
        let index = self.before.partition_point(|before| before.0 <= place) - 1;
        (index, place - self.before[index].0)
    }

    /// Cells before a place.
    fn cells(&self, profile: &Profile, place: usize) -> u128 {
        let (index, offset) = self.locate(place);
        let inside = |span: &Range<usize>| profile.area(&(span.start..span.start + offset));
        self.before[index].1 + self.spans.get(index).map_or(0, inside)
    }

    /// A place rounded to a multiple of `grain` from the start of its span, or to the span's end.
    fn rounded(&self, place: usize, grain: usize) -> usize {
        let (index, offset) = self.locate(place);
        let Some(span) = self.spans.get(index) else { return place };
        self.before[index].0 + ((offset + grain / 2) / grain * grain).min(span.len())
    }

    /// The tokens between two places.
    fn ranges(&self, places: Range<usize>, out: &mut Vec<Range<usize>>) {
        let mut place = places.start;
        while place < places.end {
            let (index, offset) = self.locate(place);
            let span = &self.spans[index];
            let length = (span.len() - offset).min(places.end - place);
            out.push(span.start + offset..span.start + offset + length);
            place += length;
        }
    }
}

fn two_ended(problem: &Problem, profile: &Profile, grain: usize) -> Vec<Vec<Range<usize>>> {
    let ranks = problem.ranks.max(1);
    let line = Line::new(problem, profile);
    let mut left = 0..problem.tokens();
    let mut parts = Vec::with_capacity(ranks);
    for rank in 0..ranks {
        let others = ranks - 1 - rank;
        let mut part = Vec::new();
        if others == 0 {
            line.ranges(left.clone(), &mut part);
            parts.push(joined(part));
            break;
        }
        let cells = |place: usize| line.cells(profile, place);
        let (first, last) = (cells(left.start), cells(left.end));
        let (rows, share) = (left.len() / (others + 1), (last - first) / (others as u128 + 1));
        // More rows of the dense end mean more cells: bisect for the average.
        let (mut low, mut high) = (0, rows);
        while low < high {
            let dense = low + (high - low) / 2;
            let taken = cells(left.start + dense) - first + last - cells(left.end - (rows - dense));
            if taken >= share { high = dense } else { low = dense + 1 }
        }
        let front = line.rounded(left.start + low, grain).clamp(left.start, left.end);
        let back = line.rounded(left.end - (rows - low), grain).clamp(front, left.end);
        line.ranges(left.start..front, &mut part);
        line.ranges(back..left.end, &mut part);
        parts.push(joined(part));
        left = front..back;
    }
    parts
}
