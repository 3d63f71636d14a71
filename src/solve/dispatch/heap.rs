//! MagiAttention's balance-only placement: equal chunks, the heaviest first, each to the least loaded rank.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use serde::Serialize;

use crate::solve::dispatch::measure::measured;
use crate::solve::dispatch::problem::joined;
use crate::solve::dispatch::profile::Profile;
use crate::solve::dispatch::{Dispatch, Problem};

/// What happens where the tokens are not a multiple of chunk times ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum Remainder {
    /// The last chunk is shorter and ranks may hold one chunk less than others (`uneven_shard`).
    Uneven,
    /// Chunks of padding are dealt out with the others. The padding itself is not part of the placement.
    Padded,
}

/// MagiAttention's chunk: eight to a rank, or of `at_most` tokens where that is less (`magi.md` section 1.2). At least
/// 1.
pub fn chunk_size(tokens: usize, ranks: usize, at_most: Option<usize>) -> usize {
    tokens.div_ceil(8 * ranks.max(1)).min(at_most.unwrap_or(usize::MAX)).max(1)
}

/// Tokens of padding with which every rank gets as many whole chunks ([`Remainder::Padded`]).
pub fn padding(tokens: usize, ranks: usize, chunk: usize) -> usize {
    tokens.next_multiple_of(chunk.max(1) * ranks.max(1)) - tokens
}

/// The heap placement of `magi.md` section 3.3 on chunks of `chunk` tokens (0 counts as 1).
pub fn heap(problem: &Problem, chunk: usize, remainder: Remainder) -> Dispatch {
    let profile = Profile::new(problem);
    let parts = heap_parts(problem, &profile, chunk, remainder);
    let report = measured(problem, &profile, &parts);
    Dispatch { parts, report }
}

/// The tokens of each rank in the heap placement.
pub(super) fn heap_parts(
    problem: &Problem,
    profile: &Profile,
    chunk: usize,
    remainder: Remainder,
) -> Vec<Vec<Range<usize>>> {
    let (tokens, ranks, chunk) = (problem.tokens(), problem.ranks.max(1), chunk.max(1));
    let count = match remainder {
        Remainder::Uneven => tokens.div_ceil(chunk),
        Remainder::Padded => tokens.div_ceil(chunk).next_multiple_of(ranks),
    };
    let range = |index: usize| (index * chunk).min(tokens)..((index + 1) * chunk).min(tokens);
    let areas: Vec<_> = (0..count).map(|index| profile.area(&range(index))).collect();
    heap_partition(&areas, ranks).into_iter().map(|part| joined(part.into_iter().map(range).collect())).collect()
}

/// Deals out jobs: the heaviest first (of equal ones the later), each to the least loaded rank (of equal ones the
/// first) that has fewer than `jobs / ranks` jobs, rounded up. Gives the indices of each rank's jobs, ascending.
pub fn heap_partition(workloads: &[u128], ranks: usize) -> Vec<Vec<usize>> {
    let ranks = ranks.max(1);
    let limit = workloads.len().div_ceil(ranks);
    let mut order: Vec<usize> = (0..workloads.len()).collect();
    order.sort_unstable_by_key(|&job| Reverse((workloads[job], job)));
    let mut parts = vec![Vec::with_capacity(limit); ranks];
    let mut heap: BinaryHeap<_> = (0..ranks).map(|rank| Reverse((0u128, rank))).collect();
    for job in order {
        // The limits add up to at least the number of jobs, so a rank with room is left.
        while let Some(Reverse((load, rank))) = heap.pop() {
            if parts[rank].len() < limit {
                parts[rank].push(job);
                heap.push(Reverse((load + workloads[job], rank)));
                break;
            }
        }
    }
    parts.iter_mut().for_each(|part| part.sort_unstable());
    parts
}
