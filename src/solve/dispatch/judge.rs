//! Weighs what ranks have: estimated times, and what is above the limits.

use crate::solve::dispatch::load::Load;
use crate::solve::dispatch::profile::Profile;
use crate::solve::dispatch::{Costs, DispatchOptions, Problem};

/// How many times over a cell or a row above a cap counts.
const OVER: u128 = 8;

/// What a placement may have, whatever the options say.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Cells that a rank may have, even where they are more than the slack.
    pub(super) area: u128,
    /// Keys that all ranks together may receive.
    pub(super) traffic: Option<u64>,
}

/// Weighs what ranks have.
pub(super) struct Judge {
    costs: Costs,
    pub(super) area_cap: u128,
    pub(super) rows_cap: u64,
    /// Cost of a cell above the cap, and of a row.
    area_over: u128,
    row_over: u128,
    /// The most that all ranks together may receive and send, as time.
    traffic_cap: u64,
    /// Times are divided by two to this power, so that sums fit.
    shift: u32,
    ranks: u64,
}

impl Judge {
    pub(super) fn new(problem: &Problem, options: &DispatchOptions, profile: &Profile, limits: Limits) -> Self {
        let ranks = problem.ranks.max(1) as u128;
        let tokens = problem.tokens() as u128;
        let (area_slack, rows_slack) = (u128::from(options.area_slack), u128::from(options.rows_slack));
        let cells = profile.before(problem.tokens());
        // Rounded down, so that the slack is kept whatever the average is rounded to.
        let area_cap = (cells * (1000 + area_slack) / (1000 * ranks)).max(limits.area);
        let rows_cap = tokens.div_ceil(ranks).max(tokens * (1000 + rows_slack) / (1000 * ranks)) as u64;
        let layers: u128 = problem.masks.iter().map(|(_, weight)| u128::from(*weight)).sum();
        let costs = options.costs;
        let traffic = tokens * ranks * layers * u128::from(costs.received.max(costs.sent));
        let time = cells * u128::from(costs.cell) + traffic + 1;
        let area_over = (time / (cells + 1)).max(1) * OVER;
        let row_over = (time / (tokens + 1)).max(1) * OVER;
        // All cells and rows may be above the caps, and all traffic, which is up to twice the time above.
        let largest = time.saturating_mul(16 * OVER * ranks);
        let shift = (u128::BITS - largest.leading_zeros()).saturating_sub(62);
        let traffic_cap = match limits.traffic {
            // All traffic is received and sent.
            Some(rows) => ((u128::from(rows) * (u128::from(costs.received) + u128::from(costs.sent))) >> shift) as u64,
            None => u64::MAX,
        };
        Judge { costs, area_cap, rows_cap, area_over, row_over, traffic_cap, shift, ranks: ranks as u64 }
    }

    /// Time of what a rank receives, and of what it sends, before the shift.
    fn parts(&self, load: &Load) -> [u128; 2] {
        let time = |rows: u64, cost: u64| u128::from(rows) * u128::from(cost);
        [time(load.received, self.costs.received), time(load.sent, self.costs.sent)]
    }

    /// Estimated time of a rank: its cells, and what it receives or sends, whichever takes longer.
    pub(super) fn time(&self, load: &Load) -> u64 {
        let [received, sent] = self.parts(load);
        ((load.area * u128::from(self.costs.cell) + received.max(sent)) >> self.shift) as u64
    }

    /// The time of one row that is received and sent, at least 1.
    pub(super) fn unit(&self) -> u64 {
        (self.costs.received.max(self.costs.sent) >> self.shift).max(1)
    }

    /// Cost of what a rank has above the caps.
    pub(super) fn over(&self, load: &Load) -> u64 {
        let area = load.area.saturating_sub(self.area_cap) * self.area_over;
        let rows = u128::from(load.rows.saturating_sub(self.rows_cap)) * self.row_over;
        ((area + rows) >> self.shift) as u64
    }

    /// Time that all of a rank's traffic takes together.
    pub(super) fn traffic(&self, load: &Load) -> u64 {
        let [received, sent] = self.parts(load);
        ((received + sent) >> self.shift) as u64
    }

    /// The rows of traffic above its cap, like [`Judge::over`].
    pub(super) fn surplus(&self, traffic: u64) -> u64 {
        traffic.saturating_sub(self.traffic_cap) * OVER as u64
    }

    /// From the sum of traffic, the longest time of a rank, and the sum of what is over.
    pub(super) fn energy(&self, traffic: u64, max: u64, over: u64) -> u64 {
        2 * traffic + (max + 2 * over) * self.ranks
    }
}
