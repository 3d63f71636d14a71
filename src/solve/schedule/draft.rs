//! A schedule under construction: who is where, and what that makes of every rank in every micro-batch.

use super::pairs::Pairs;
use super::task::Task;

/// Where a document is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub batch: usize,
    pub first: usize,
    pub degree: usize,
}

/// Which of several blocks that cost the same makespan to take.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fit {
    /// The one that has most work already, so that large gaps stay.
    Tight,
    /// The one that has least work, so that ranks stay level.
    Level,
}

/// What a document would put on each rank of a block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Burden {
    pub work: Pairs,
    pub tokens: usize,
}

#[derive(Clone, Debug)]
struct Bin {
    work: Vec<Pairs>,
    tokens: Vec<usize>,
    height: Pairs,
}

/// Documents' places, with loads and costs kept up to date.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    batches: Vec<Bin>,
    /// Micro-batches with documents.
    used: usize,
    /// What each of them costs besides its height.
    toll: Pairs,
    places: Vec<Option<Spot>>,
    /// Sum of the heights.
    pub makespan: Pairs,
    /// Rows received, as the search [prices](super::micro_batch::price) them.
    pub rows: u128,
}

impl Draft {
    /// No document placed, one empty micro-batch.
    pub fn new(task: &Task) -> Self {
        let (batches, places) = (Vec::new(), vec![None; task.lengths.len()]);
        let mut state = Draft { batches, used: 0, toll: task.toll(), places, makespan: Pairs::NONE, rows: 0 };
        state.open(task.ranks);
        state
    }

    /// Adds an empty micro-batch.
    pub fn open(&mut self, ranks: usize) {
        let batch = Bin { work: vec![Pairs::NONE; ranks], tokens: vec![0; ranks], height: Pairs::NONE };
        self.batches.push(batch);
    }

    pub fn batches(&self) -> usize {
        self.batches.len()
    }

    /// Work of the busiest rank of a micro-batch.
    pub fn height(&self, batch: usize) -> Pairs {
        self.batches[batch].height
    }

    /// Tokens of the fullest rank of a micro-batch.
    #[cfg(test)]
    pub fn most_tokens(&self, batch: usize) -> usize {
        self.batches[batch].tokens.iter().copied().max().unwrap_or(0)
    }

    pub fn places(&self) -> &[Option<Spot>] {
        &self.places
    }

    /// Rows first, then makespan with the tolls of its micro-batches: what makes a schedule better.
    pub fn cost(&self) -> (u128, Pairs) {
        (self.rows, self.makespan + self.toll.share(self.used as u128, 1))
    }

    pub fn insert(&mut self, document: usize, length: usize, place: Spot) {
        let batch = &mut self.batches[place.batch];
        let load = Burden { work: Pairs::of(length, place.degree), tokens: length.div_ceil(place.degree) };
        let mut height = batch.height;
        for rank in place.first..place.first + place.degree {
            batch.work[rank] += load.work;
            batch.tokens[rank] += load.tokens;
            height = height.max(batch.work[rank]);
        }
        self.makespan += height - batch.height;
        self.used += usize::from(batch.height == Pairs::NONE && height > Pairs::NONE);
        batch.height = height;
        self.rows += super::micro_batch::price(length, place.degree);
        self.places[document] = Some(place);
    }

    pub fn remove(&mut self, document: usize, length: usize) -> Option<Spot> {
        let place = self.places[document].take()?;
        let batch = &mut self.batches[place.batch];
        let load = Burden { work: Pairs::of(length, place.degree), tokens: length.div_ceil(place.degree) };
        for rank in place.first..place.first + place.degree {
            batch.work[rank] -= load.work;
            batch.tokens[rank] -= load.tokens;
        }
        let height = batch.work.iter().copied().max().unwrap_or_default();
        self.makespan -= batch.height - height;
        self.used -= usize::from(batch.height > Pairs::NONE && height == Pairs::NONE);
        batch.height = height;
        self.rows -= super::micro_batch::price(length, place.degree);
        Some(place)
    }

    /// The best block of `degree` ranks of a micro-batch that stays within `tallest` and `tokens`: the one that
    /// raises the height least, then the one that `fit` prefers, then the first. With the raised height and the work
    /// that the block has already.
    pub fn block(
        &self,
        batch: usize,
        degree: usize,
        load: Burden,
        tallest: Pairs,
        tokens: usize,
        fit: Fit,
    ) -> Option<(Pairs, Pairs, usize)> {
        let batch = &self.batches[batch];
        let mut best: Option<(Pairs, Pairs, usize)> = None;
        // Ranks whose work is not exceeded by a later rank of the window: the first is the window's maximum.
        let mut peaks = std::collections::VecDeque::new();
        let mut run = 0;
        for rank in 0..batch.work.len() {
            let here = batch.work[rank];
            if here + load.work > tallest || batch.tokens[rank] + load.tokens > tokens {
                run = 0;
                peaks.clear();
                continue;
            }
            run += 1;
            while peaks.back().is_some_and(|&peak: &usize| batch.work[peak] <= here) {
                peaks.pop_back();
            }
            peaks.push_back(rank);
            if run < degree {
                continue;
            }
            let first = rank + 1 - degree;
            while peaks.front().is_some_and(|&peak| peak < first) {
                peaks.pop_front();
            }
            let had = peaks.front().map_or(Pairs::NONE, |&peak| batch.work[peak]);
            let height = batch.height.max(had + load.work);
            let better = best.is_none_or(|(tall, other, _)| {
                height < tall
                    || height == tall
                        && match fit {
                            Fit::Tight => had > other,
                            Fit::Level => had < other,
                        }
            });
            if better {
                best = Some((height, had, first));
            }
        }
        best
    }
}
