//! Who holds which tokens of a batch, looked up by token.

use crate::order::Run;

/// The runs of all ranks, by their first token.
#[derive(Debug)]
pub(super) struct Owners {
    held: Vec<HeldRun>,
    /// The largest end among the first `i + 1` runs.
    reach: Vec<usize>,
}

/// A run of one rank.
#[derive(Clone, Copy, Debug)]
struct HeldRun {
    run: Run,
    rank: usize,
    /// Local index of its first token.
    local: usize,
}

/// Tokens of a run that one rank holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub rank: usize,
    /// Indices of the tokens in the run.
    pub indices: Run,
    /// Local indices on the rank.
    pub local: Run,
}

impl Owners {
    /// From the runs of each rank, each with its local index.
    pub(super) fn new<'a>(ranks: impl Iterator<Item = &'a [(usize, Run)]>) -> Self {
        let held = ranks
            .enumerate()
            .flat_map(|(rank, runs)| runs.iter().map(move |&(local, run)| HeldRun { run, rank, local }));
        let mut held: Vec<HeldRun> = held.collect();
        held.sort_unstable_by_key(|held| held.run.start);
        let mut largest = 0;
        let reach = held.iter().map(|held| {
            largest = largest.max(held.run.end());
            largest
        });
        Owners { reach: reach.collect(), held }
    }

    /// Hands the parts of `run` to `each`, one per run of a rank that holds any of it; those of one rank come in
    /// ascending order.
    pub(super) fn shares(&self, run: Run, mut each: impl FnMut(Share)) {
        let first = self.reach.partition_point(|&end| end <= run.start);
        for held in self.held[first..].iter().take_while(|held| held.run.start < run.end()) {
            if let Some((indices, of_held)) = run.common(&held.run) {
                each(Share { rank: held.rank, indices, local: Run { start: held.local + of_held.start, ..of_held } });
            }
        }
    }
}
