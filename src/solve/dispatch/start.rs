//! Simple placements, made in one pass: what the search starts from and what it is compared with.

use std::collections::BTreeSet;
use std::ops::Range;

use serde::Serialize;

use crate::layout::Packed;
use crate::order::{Contiguous, TokenOrder, Zigzag};
use crate::solve::dispatch::heap::heap_parts;
use crate::solve::dispatch::measure::measured;
use crate::solve::dispatch::problem::joined;
use crate::solve::dispatch::profile::Profile;
use crate::solve::dispatch::span::spans;
use crate::solve::dispatch::{Dispatch, Problem, Remainder};

/// A simple placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Start {
    /// This many chunks per rank, of at most 512 tokens if it is 8 or more, dealt out by
    /// [`heap()`](fn@crate::solve::dispatch::heap).
    Heap(usize),
    /// One block of tokens per rank: the order [`Contiguous`].
    Contiguous,
    /// Two chunks of each document per rank: the order [`Zigzag`].
    Zigzag,
    /// Each rank takes rows from the densest spans (by cells per row) and from the sparsest, as many of each as make
    /// both its rows and its cells the average of what is left. What is left of a cut span counts as a span.
    TwoEnded,
}

impl Start {
    /// All of them.
    pub const ALL: [Start; 5] = [Start::Heap(8), Start::Heap(2), Start::Contiguous, Start::Zigzag, Start::TwoEnded];

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
            Start::Heap(chunks) => {
                let chunk = tokens.div_ceil(chunks.max(1).saturating_mul(ranks));
                let chunk = if chunks >= 8 { chunk.min(512) } else { chunk };
                heap_parts(problem, profile, chunk, Remainder::Uneven)
            }
            Start::Contiguous => (0..ranks).map(|rank| ordered::<Contiguous>(problem, ranks, rank)).collect(),
            Start::Zigzag => (0..ranks).map(|rank| ordered::<Zigzag>(problem, ranks, rank)).collect(),
            Start::TwoEnded => two_ended(problem, profile, grain.max(1)),
        }
    }
}

/// The tokens of a rank in a token order of the library.
fn ordered<O: TokenOrder>(problem: &Problem, ranks: usize, rank: usize) -> Vec<Range<usize>> {
    let lengths: Vec<usize> = problem.documents.iter().map(|document| document.len()).collect();
    let Ok(pack) = Packed::from_lengths(&lengths) else { unreachable!("documents tile the tokens of a batch") };
    let mut part = Vec::new();
    O::runs(&pack, &O::table(&pack, ranks), ranks, rank, &mut |run| part.push(run.start..run.end()));
    joined(part)
}

/// What is left of a span.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    start: usize,
    end: usize,
    /// Where its span starts.
    origin: usize,
    /// Cells per row at its sparser and at its denser end, scaled.
    density: [u128; 2],
    /// Whether its last rows are denser than its first.
    rising: bool,
}

impl Item {
    /// `window`: the number of rows by which ends are compared.
    fn new(profile: &Profile, origin: usize, tokens: Range<usize>, window: usize) -> Self {
        let rows = tokens.len().min(window).max(1);
        let first = profile.area(&(tokens.start..tokens.start + rows));
        let last = profile.area(&(tokens.end - rows..tokens.end));
        // Scaled, so that spans of less than a cell more per row differ.
        let density = [first.min(last), first.max(last)].map(|area| (area << 16) / rows as u128);
        Item { density, start: tokens.start, end: tokens.end, origin, rising: last > first }
    }

    fn rows(&self) -> usize {
        self.end - self.start
    }

    /// Cuts off about `rows` rows, at a multiple of `grain` from the start of the span: dense rows or sparse ones.
    fn cut(&self, rows: usize, dense: bool, grain: usize) -> (Range<usize>, Range<usize>) {
        let from_end = self.rising == dense;
        let place = if from_end { self.end - rows } else { self.start + rows };
        let place = (self.origin + (place - self.origin + grain / 2) / grain * grain).clamp(self.start, self.end);
        let (low, high) = (self.start..place, place..self.end);
        if from_end { (high, low) } else { (low, high) }
    }

    /// Cells of the first `rows` rows that [`Item::cut`] takes.
    fn area(&self, profile: &Profile, rows: usize, dense: bool) -> u128 {
        profile.area(&self.cut(rows, dense, 1).0)
    }
}

/// A rank's choice from one end: items in the order in which it takes them, with rows and cells before each.
struct EndItems {
    items: Vec<(Item, usize, u128)>,
    dense: bool,
}

impl EndItems {
    /// The items that it takes to have `rows` rows.
    fn new<'a>(items: impl Iterator<Item = &'a Item>, rows: usize, dense: bool, profile: &Profile) -> Self {
        let (mut before, mut cells) = (0, 0);
        let mut taken = Vec::new();
        for item in items {
            if before >= rows {
                break;
            }
            taken.push((*item, before, cells));
            before += item.rows();
            cells += profile.area(&(item.start..item.end));
        }
        EndItems { items: taken, dense }
    }

    /// Cells of the first `rows` rows.
    fn area(&self, profile: &Profile, rows: usize) -> u128 {
        match self.items.partition_point(|item| item.1 <= rows).checked_sub(1).map(|index| &self.items[index]) {
            Some((item, before, cells)) => cells + item.area(profile, (rows - before).min(item.rows()), self.dense),
            None => 0,
        }
    }

    /// Takes the first `rows` rows out of `pool`.
    fn take(&self, pool: &mut Untaken, rows: usize, part: &mut Vec<Range<usize>>) {
        for (item, before, _) in &self.items {
            if *before >= rows {
                break;
            }
            let (taken, left) = item.cut((rows - before).min(item.rows()), self.dense, pool.grain);
            pool.remove(item);
            if !left.is_empty() {
                pool.insert(Item::new(pool.profile, item.origin, left, pool.window));
            }
            part.push(taken);
        }
    }
}

/// What no rank has taken yet.
struct Untaken<'a> {
    /// By the density of the sparser end, and by that of the denser end.
    items: [BTreeSet<(u128, Item)>; 2],
    profile: &'a Profile,
    grain: usize,
    window: usize,
}

impl Untaken<'_> {
    fn insert(&mut self, item: Item) {
        for (items, density) in self.items.iter_mut().zip(item.density) {
            items.insert((density, item));
        }
    }

    fn remove(&mut self, item: &Item) {
        for (items, density) in self.items.iter_mut().zip(item.density) {
            items.remove(&(density, *item));
        }
    }

    fn sparse(&self) -> impl Iterator<Item = &Item> {
        self.items[0].iter().map(|(_, item)| item)
    }

    fn dense(&self) -> impl Iterator<Item = &Item> {
        self.items[1].iter().rev().map(|(_, item)| item)
    }
}

fn two_ended(problem: &Problem, profile: &Profile, grain: usize) -> Vec<Vec<Range<usize>>> {
    let ranks = problem.ranks.max(1);
    let window = problem.tokens() / ranks / 2;
    let mut pool = Untaken { items: Default::default(), profile, grain, window };
    spans(problem).into_iter().for_each(|span| pool.insert(Item::new(profile, span.start, span, window)));
    let (mut rows_left, mut cells_left) = (problem.tokens(), profile.before(problem.tokens()));
    let mut parts = Vec::with_capacity(ranks);
    for left in (1..=ranks).rev() {
        let mut part = Vec::new();
        if left == 1 {
            part.extend(pool.sparse().map(|item| item.start..item.end));
        } else {
            let (rows, share) = (rows_left / left, cells_left / left as u128);
            let front = EndItems::new(pool.dense(), rows, true, profile);
            let back = EndItems::new(pool.sparse(), rows, false, profile);
            // More dense rows mean more cells: bisect for the average.
            let (mut low, mut high) = (0, rows);
            while low < high {
                let dense = low + (high - low) / 2;
                let taken = front.area(profile, dense) + back.area(profile, rows - dense);
                if taken >= share { high = dense } else { low = dense + 1 }
            }
            front.take(&mut pool, low, &mut part);
            // The front may have cut what the back would take first.
            let back = EndItems::new(pool.sparse(), rows - low, false, profile);
            back.take(&mut pool, rows - low, &mut part);
        }
        rows_left -= part.iter().map(|range| range.len()).sum::<usize>();
        cells_left -= part.iter().map(|range| profile.area(range)).sum::<u128>();
        parts.push(joined(part));
    }
    parts
}
