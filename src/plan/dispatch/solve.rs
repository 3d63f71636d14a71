//! The solver: the best of several starts, improved.

use std::ops::Range;

use crate::plan::dispatch::measure::measured;
use crate::plan::dispatch::profile::Profile;
use crate::plan::dispatch::{Dispatch, Options, Problem, Report, Start};

/// The placement that takes the least estimated time, as far as the effort goes.
///
/// A rank's time is that of its cells plus that of what it receives or sends, whichever takes longer. The busiest
/// rank and the average rank count alike: the first decides the step, the second how soon the network is full.
/// Placements within [`Options::slack`] of the average area and rows go before those that are not.
pub fn solve(problem: &Problem, options: &Options) -> Dispatch {
    let profile = Profile::new(problem);
    let ranks = problem.ranks.max(1);
    let grain = options.grain.unwrap_or_else(|| default_grain(problem.tokens() / ranks)).max(1);
    let candidates = Start::ALL.into_iter().map(|start| {
        let parts = start.parts(problem, &profile, grain);
        let report = measured(problem, &profile, &parts);
        (energy(problem, options, &report), parts, report)
    });
    // Of equal ones the first.
    let best = candidates.min_by_key(|(energy, ..)| *energy);
    let (parts, report): (Vec<Vec<Range<usize>>>, Report) = match best {
        Some((_, parts, report)) => (parts, report),
        None => (Vec::new(), measured(problem, &profile, &[])),
    };
    Dispatch { parts, report }
}

/// The largest power of two up to 64 that is at most a 128th of the rows of a rank.
fn default_grain(rows: usize) -> usize {
    match (rows / 128).min(64) {
        0 => 1,
        grain => 1 << grain.ilog2(),
    }
}

/// Cells and rows above what is allowed, then time.
fn energy(problem: &Problem, options: &Options, report: &Report) -> (u128, u64, u128) {
    let ranks = problem.ranks.max(1) as u128;
    let slack = u128::from(options.slack);
    let average = report.area.iter().sum::<u128>().div_ceil(ranks);
    let area_cap = (average + average * slack / 1000).max(report.area_bound);
    let rows = problem.tokens() as u128;
    let rows_cap = rows.div_ceil(ranks).max(rows * (1000 + slack) / (1000 * ranks)) as u64;
    let over = |area: u128| area.saturating_sub(area_cap);
    let time = |rank: usize| {
        let costs = options.costs;
        let traffic = (report.received[rank] * costs.received).max(report.sent[rank] * costs.sent);
        report.area[rank] * u128::from(costs.cell) + u128::from(traffic)
    };
    let times = (0..report.area.len()).map(time);
    let busiest = times.clone().max().unwrap_or(0);
    (
        report.area.iter().map(|&area| over(area)).sum(),
        report.rows.iter().map(|rows| rows.saturating_sub(rows_cap)).sum(),
        times.sum::<u128>() + busiest * ranks,
    )
}
