//! The scheduler of dynamic context parallelism: which documents share a micro-batch, and on which ranks each runs.
//!
//! Every document gets its own degree, any number from 1 to all ranks, and a block of neighbouring ranks. A document
//! of length L on g ranks puts L/g tokens (rounded up) on each, costs each L*L/g query-key pairs, and makes each
//! receive the L - L/g rows of keys and values that it does not hold: L*(g-1) rows in all. Blocks may overlap, so a
//! rank may work for several documents. A group of one rank receives nothing.
//!
//! [`schedule`] looks for the fewest rows received, subject to two limits: tokens per rank and micro-batch, and the
//! *makespan*, the sum over micro-batches of the busiest rank's work. The second is what greedy placement on blocks of
//! powers of two reaches with the same tokens (Megatron-LM's scheduler that packs), so that the freedom of degree and
//! block is spent on less traffic and never on more time; [`schedule_within`] takes any other makespan. Both limits can
//! always be kept: every document on all ranks attains the least makespan, the sum of L*L over the number of ranks.
//!
//! Same lengths, same ranks, same schedule: integers only, and random numbers of a fixed seed.
//!
//! ```
//! use context_parallel::solve::schedule::schedule;
//!
//! // One document that needs 6 of 8 ranks, and five short ones.
//! let lengths = [6000, 3000, 1500, 700, 300, 100];
//! let schedule = schedule(&lengths, 8, Some(1024))?;
//! assert!(schedule.report.makespan <= schedule.report.makespan_limit);
//! assert_eq!(schedule.report.rows_received, 49_500); // 66,400 with blocks of powers of two
//! # Ok::<(), context_parallel::error::Error>(())
//! ```

mod draft;
mod limits;
mod micro_batch;
mod pairs;
mod reference;
mod scheduler;
mod search;
mod task;
#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::error::{Result, ScheduleError};
use draft::{Draft, Spot};
use limits::check;
pub use limits::{check_fits, default_tokens_per_rank};
use micro_batch::rows;
pub use micro_batch::{Group, MicroBatch};
pub use pairs::Pairs;
pub use scheduler::Scheduler;
use search::{improve, start_of};
use task::Task;

/// Micro-batches, one after another, with what they cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Schedule {
    /// The micro-batches; every document is in one of them.
    pub micro_batches: Vec<MicroBatch>,
    /// What they cost, and what they cannot be better than.
    pub report: ScheduleReport,
}

/// What a schedule costs, beside its limits and lower bounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ScheduleReport {
    /// Sum over micro-batches of the busiest rank's work.
    pub makespan: Pairs,
    /// The makespan that was allowed.
    pub makespan_limit: Pairs,
    /// No schedule has a smaller makespan: all work, spread evenly over all ranks.
    pub makespan_bound: Pairs,
    /// Rows of keys and values that all ranks receive in all micro-batches.
    pub rows_received: u128,
    /// No schedule within the limits receives fewer: every document alone at the smallest degree that they permit.
    pub rows_bound: u128,
    /// Most tokens of any rank in any micro-batch.
    pub tokens_per_rank: usize,
    /// The tokens that were allowed.
    pub tokens_limit: usize,
}

/// Cuts documents of these lengths into micro-batches over `ranks` ranks.
///
/// `tokens_per_rank` limits the tokens of a rank in a micro-batch; by default 1.1 times the even share, rounded up.
/// The makespan is at most that of placement on power-of-two groups with the same limit; where one micro-batch may
/// hold everything, also at most 5 % above the lower bound.
///
/// # Errors
///
/// [`ScheduleError`]: no ranks, a document that does not fit on all ranks together, more tokens than can be counted.
pub fn schedule(lengths: &[usize], ranks: usize, tokens_per_rank: Option<usize>) -> Result<Schedule> {
    let tokens = check(lengths, ranks, tokens_per_rank)?;
    let even = even_share(lengths, ranks);
    let mut limit = reference::makespan(lengths, ranks, tokens).max(even);
    if tokens >= lengths.iter().sum() {
        limit = limit.min(even.share(21, 20));
    }
    Ok(solve(lengths, ranks, tokens, limit))
}

/// [`schedule`], with a makespan of at most `makespan`.
///
/// # Errors
///
/// Those of [`schedule`], and [`ScheduleError::Makespan`] if nothing can be that fast.
pub fn schedule_within(
    lengths: &[usize],
    ranks: usize,
    tokens_per_rank: Option<usize>,
    makespan: Pairs,
) -> Result<Schedule> {
    let tokens = check(lengths, ranks, tokens_per_rank)?;
    let bound = even_share(lengths, ranks);
    if makespan < bound {
        return Err(ScheduleError::Makespan { limit: makespan.to_f64(), bound: bound.to_f64() }.into());
    }
    Ok(solve(lengths, ranks, tokens, makespan))
}

/// Places all documents in one micro-batch, however many tokens a rank gets: makespan within 5 % of the least, and
/// among those few rows. For a pack that comes as it is. Groups are by ascending document, one per document.
///
/// # Errors
///
/// [`ScheduleError`]: no ranks, more tokens than can be counted.
pub fn assign(lengths: &[usize], ranks: usize) -> Result<Vec<Group>> {
    check(lengths, ranks, Some(usize::MAX))?;
    // A token is not divided: a document shorter than the ranks costs one of them at least its length.
    let whole = lengths.iter().filter(|&&length| length < ranks).max().map_or(0, |&length| length as u128);
    let limit = even_share(lengths, ranks).share(21, 20).max(Pairs::whole(whole));
    let task = Task { lengths, ranks, tokens: usize::MAX, limit, single: true, even: even_share(lengths, ranks) };
    Ok(batches(lengths, improve(&task, vec![start_of(&task)])).into_iter().flat_map(|batch| batch.groups).collect())
}

/// The least makespan: every document on all ranks.
fn even_share(lengths: &[usize], ranks: usize) -> Pairs {
    lengths.iter().map(|&length| Pairs::of(length, ranks)).sum()
}

fn solve(lengths: &[usize], ranks: usize, tokens: usize, limit: Pairs) -> Schedule {
    let task = Task { lengths, ranks, tokens, limit, single: false, even: even_share(lengths, ranks) };
    let mut starts = vec![start_of(&task)];
    starts.extend(reference::start(&task));
    let state = improve(&task, starts);
    let micro_batches = batches(lengths, state);
    let report = ScheduleReport {
        makespan: micro_batches.iter().map(|batch| batch.busiest(lengths, ranks)).sum(),
        makespan_limit: limit,
        makespan_bound: even_share(lengths, ranks),
        rows_received: micro_batches.iter().map(|batch| batch.rows_received(lengths)).sum(),
        rows_bound: task.documents().map(|document| rows(lengths[document], task.least_degree(document))).sum(),
        tokens_per_rank: micro_batches.iter().flat_map(|batch| batch.tokens(lengths, ranks)).max().unwrap_or(0),
        tokens_limit: tokens,
    };
    Schedule { micro_batches, report }
}

/// The micro-batches of a complete state, the one with most work first; empty documents go to rank 0 of the first.
fn batches(lengths: &[usize], state: Draft) -> Vec<MicroBatch> {
    let mut order: Vec<usize> = (0..state.batches()).filter(|&batch| state.height(batch) > Pairs::NONE).collect();
    order.sort_by_key(|&batch| (std::cmp::Reverse(state.height(batch)), batch));
    if order.is_empty() && !lengths.is_empty() {
        order.push(0);
    }
    let group = |document: usize, place: &Option<Spot>, nth: usize| match place {
        Some(place) if place.batch == order[nth] => Some(Group { document, first: place.first, degree: place.degree }),
        None if nth == 0 => Some(Group { document, first: 0, degree: 1 }),
        _ => None,
    };
    (0..order.len())
        .map(|nth| MicroBatch {
            groups: state
                .places()
                .iter()
                .enumerate()
                .filter_map(|(document, place)| group(document, place, nth))
                .collect(),
        })
        .collect()
}
