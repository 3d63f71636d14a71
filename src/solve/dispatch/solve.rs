//! The solver: the best of several starts, improved.

use std::ops::Range;

use crate::solve::dispatch::heap::heap_parts;
use crate::solve::dispatch::judge::Limits;
use crate::solve::dispatch::measure::measured;
use crate::solve::dispatch::model::{Buffers, Model};
use crate::solve::dispatch::profile::Profile;
use crate::solve::dispatch::search::{Annealing, Heat};
use crate::solve::dispatch::state::SearchState;
use crate::solve::dispatch::{Dispatch, DispatchOptions, Problem, Start, bound};

/// Every start gets this part of the effort to show what it is good for.
const TRIAL: u64 = 32;

/// The placement that takes the least estimated time, as far as the effort goes.
///
/// A rank's time is that of its cells plus that of what it receives or sends, whichever takes longer. Minimised are
/// the time of the busiest rank and, beside it, all traffic. Placements within [`DispatchOptions::area_slack`] and
/// [`DispatchOptions::rows_slack`] go before those that are not.
///
/// The result depends on nothing but the arguments.
pub fn solve(problem: &Problem, options: &DispatchOptions) -> Dispatch {
    let floor = options.heap.map(|(chunk, remainder)| heap_parts(problem, &Profile::new(problem), chunk, remainder));
    solved(problem, options, floor.as_deref())
}

/// [`solve`], but not falling behind a given placement, in place of that of [`DispatchOptions::heap`]: it is one more
/// start, the area of its busiest rank is allowed even where it is more than the slack, and more traffic than it has is
/// above the limits.
///
/// # Panics
/// If `given` is not a placement of all tokens on the problem's ranks.
pub fn improve(problem: &Problem, options: &DispatchOptions, given: &[Vec<Range<usize>>]) -> Dispatch {
    let (tokens, ranks) = (problem.tokens(), problem.ranks.max(1));
    let mut ranges: Vec<_> = given.iter().flatten().filter(|range| !range.is_empty()).collect();
    ranges.sort_unstable_by_key(|range| range.start);
    let end = ranges.iter().try_fold(0, |end, range| (range.start == end).then_some(range.end));
    assert!(
        given.len() == ranks && end == Some(tokens),
        "the given placement is on {} ranks and does not hold each token once: give all of 0..{tokens} to {ranks} ranks",
        given.len(),
    );
    solved(problem, options, Some(given))
}

fn solved(problem: &Problem, options: &DispatchOptions, given: Option<&[Vec<Range<usize>>]>) -> Dispatch {
    let profile = Profile::new(problem);
    let (tokens, ranks) = (problem.tokens(), problem.ranks.max(1));
    let grain = options.grain.unwrap_or_else(|| default_grain(tokens / ranks)).max(1);
    let report = given.map(|parts| measured(problem, &profile, parts));
    let area = bound::area(problem, &profile).max(report.as_ref().map_or(0, |report| report.area_max));
    let limits = Limits { area, traffic: report.map(|report| report.traffic()) };
    let model = Model::new(problem, options, &profile, limits);
    let mut search = Annealing::new(&model, grain);
    // An eighth of a rank's rows received, then less and less.
    let hot = u128::from(model.judge.unit()) * (tokens / ranks) as u128 / 8;
    let heat = Heat { hot: u64::try_from(hot).unwrap_or(u64::MAX >> 8), halvings: 6 };
    let cold = Heat { hot: heat.hot >> heat.halvings, halvings: 0 };
    let trial = options.effort / TRIAL;
    let mut scratch = Buffers::default();
    let starts = Start::ALL.into_iter().map(|start| start.parts(problem, &profile, grain));
    let states = starts.chain(given.map(<[_]>::to_vec)).map(|parts| {
        let state = SearchState::new(&model, &parts, &mut scratch);
        search.run(state, trial, cold, false)
    });
    // Of equal ones the first.
    let parts = match states.min_by_key(|state| state.energy) {
        Some(best) => {
            let spent = trial * (Start::ALL.len() + usize::from(given.is_some())) as u64;
            let best = search.run(best, options.effort - spent, heat, true);
            best.parts(ranks)
        }
        None => vec![Vec::new(); ranks],
    };
    let report = measured(problem, &profile, &parts);
    Dispatch { parts, report }
}

/// The largest power of two up to 64 that is at most a 32nd of the rows of a rank.
fn default_grain(rows: usize) -> usize {
    match (rows / 32).min(64) {
        0 => 1,
        grain => 1 << grain.ilog2(),
    }
}
