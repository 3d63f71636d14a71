//! Stages: how remote keys are cut into parts that travel while earlier ones are attended.
//!
//! In time slot `j` a rank attends stage `j`, fetches stage `j + 1`, and in a backward pass sends the gradients of
//! stage `j - 1` home; a slot takes as long as the slowest of the three (MagiAttention's model of overlap). The keys
//! that the rank holds itself need no fetch: they hide the first fetch if they come first, the last return of gradients
//! if they come last. [`best`] finds the cut that takes the least time, exactly, for each direction by itself.

use std::ops::Range;

use serde::Serialize;

use crate::error::SupportError;

/// Rows of remote keys that are never cut apart, and what is attended of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Atom {
    /// Rows.
    pub rows: usize,
    /// Attended cells.
    pub area: u64,
}

/// What the parts of one direction cost, in any common unit of time. Only ratios matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct StageCosts {
    /// Attending a cell.
    pub cell: u64,
    /// Fetching the keys and values of a token.
    pub fetched: u64,
    /// Sending the gradients of the keys and values of a token home; not looked at in a forward pass.
    pub returned: u64,
    /// Any exchange, however few its rows.
    pub message: u64,
    /// Attending remote keys once ([`Merging`]), however few the cells.
    pub launch: u64,
    /// Merging that result into those before it, for each query of the rank.
    pub merged: u64,
}

impl StageCosts {
    /// Forward, in units of 28 ps, half of those of [`Costs`](crate::solve::dispatch::Costs): 64 query heads of 128
    /// features at 580 TFLOP/s, 8 key/value heads in 16 bits at 45 GB/s, 10 us to a message, 5 us to a launch, and
    /// results in 32 bits merged at 3.3 TB/s.
    pub const FORWARD: Self =
        StageCosts { cell: 2, fetched: 3200, returned: 0, message: 350_000, launch: 175_000, merged: 1024 };

    /// Backward, in the same units: five matrix products where a forward pass has two, gradients in 32 bits, and
    /// nothing to merge.
    pub const BACKWARD: Self = StageCosts { cell: 5, returned: 6400, merged: 0, ..Self::FORWARD };
}

/// How many stages to cut remote keys into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StageCount {
    /// As many as take the least time, up to [`MOST`].
    #[default]
    Best,
    /// This many, 1 to [`MOST_PARTS`]; fewer where there are fewer parts to make them of ([`Merging::parts`]).
    Exactly(usize),
}

/// What is attended at a time, merged into the results before it, and has its gradients sent home.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Merging {
    /// A stage: as few merges as can be. Results of other stages round differently.
    #[default]
    Stages,
    /// A part of this many that remote keys are cut into, equally large (1 to [`MOST_PARTS`], and no more than there
    /// are rows), in one order: the rank's own keys, part 0, part 1, and so on. Stages only group parts that travel
    /// together, so the results have the same bits whatever their number and costs.
    Parts(usize),
}

impl Merging {
    /// Into how many parts remote keys are cut, out of which stages are made.
    pub fn parts(self) -> usize {
        match self {
            Merging::Stages => MOST_PARTS,
            Merging::Parts(parts) => parts.clamp(1, MOST_PARTS),
        }
    }
}

/// How keys and values are staged: how many stages, and what they are cut by. Every rank must use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Staging {
    /// How many stages.
    pub count: StageCount,
    /// What is attended and merged at a time.
    pub merging: Merging,
    /// Costs of a forward pass.
    pub forward: StageCosts,
    /// Costs of a backward pass.
    pub backward: StageCosts,
}

impl Staging {
    /// Refuses numbers of stages and parts out of 1 to [`MOST_PARTS`].
    ///
    /// # Errors
    /// [`SupportError::Numbers`].
    pub fn check(&self) -> Result<(), SupportError> {
        let within = |what, number| match (1..=MOST_PARTS).contains(&number) {
            true => Ok(()),
            false => Err(SupportError::Numbers(format!("keys in {number} {what}: use 1 to {MOST_PARTS}"))),
        };
        if let StageCount::Exactly(stages) = self.count {
            within("stages", stages)?;
        }
        match self.merging {
            Merging::Parts(parts) => within("parts", parts),
            Merging::Stages => Ok(()),
        }
    }
}

impl Default for Staging {
    /// The best number of stages on the hardware of [`StageCosts::FORWARD`].
    fn default() -> Self {
        let (count, merging) = (StageCount::Best, Merging::Stages);
        Staging { count, merging, forward: StageCosts::FORWARD, backward: StageCosts::BACKWARD }
    }
}

impl From<StageCount> for Staging {
    fn from(count: StageCount) -> Self {
        Staging { count, ..Staging::default() }
    }
}

impl From<Merging> for Staging {
    fn from(merging: Merging) -> Self {
        Staging { merging, ..Staging::default() }
    }
}

/// Most stages that [`StageCount::Best`] tries.
pub const MOST: usize = 8;
/// Most parts that stages are made of.
pub const MOST_PARTS: usize = 16;

/// A cut of remote keys into stages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Stages {
    /// The atoms of each stage, in order; none is empty.
    pub cuts: Vec<Range<usize>>,
    /// Whether the rank's own keys are attended after all others. Never in a forward pass.
    pub own_last: bool,
    /// Estimated time, in the unit of the costs.
    pub time: u64,
}

/// What a rank has to do in one direction.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// Queries.
    pub queries: usize,
    /// Attended cells of the rank's own keys.
    pub own_area: u64,
    /// The remote keys.
    pub atoms: &'a [Atom],
}

/// The cut that takes the least time; of equals, the one with fewer stages, then the one with the rank's own keys
/// first. If atoms are merged by themselves, the rank's own keys come first in any case.
pub fn best(work: &Work, costs: &StageCosts, count: StageCount, merging: Merging) -> Stages {
    let atoms = work.atoms.len();
    let (least, most) = match count {
        StageCount::Best => (1, MOST.min(atoms)),
        StageCount::Exactly(stages) => (stages.clamp(1, atoms.max(1)), stages.clamp(1, atoms.max(1))),
    };
    let search = Search::new(work, costs, merging);
    if atoms == 0 {
        return Stages { time: search.own, ..Stages::default() };
    }
    let mut best = search.cut(least, most, false);
    // With own keys last nothing hides the first fetch, which can only pay where gradients return.
    if costs.returned > 0 && merging == Merging::Stages {
        let other = search.cut(least, most, true);
        if (other.time, other.cuts.len()) < (best.time, best.cuts.len()) {
            best = other;
        }
    }
    best
}

/// Times that are longer count as this, which is less than that of no cut at all.
const LONGEST: u64 = u64::MAX - 1;

struct Search<'a> {
    costs: &'a StageCosts,
    /// Rows and cells of the first atoms.
    before: Vec<Atom>,
    /// Time to attend the rank's own keys.
    own: u64,
    /// Time of anything that is attended and merged at a time, beyond that of its cells.
    each: u64,
    merging: Merging,
}

impl<'a> Search<'a> {
    fn new(work: &Work, costs: &'a StageCosts, merging: Merging) -> Self {
        let mut before = vec![Atom::default()];
        for atom in work.atoms {
            let last = before[before.len() - 1];
            before.push(Atom { rows: last.rows + atom.rows, area: last.area.saturating_add(atom.area) });
        }
        let each = costs.launch.saturating_add(costs.merged.saturating_mul(work.queries as u64));
        Search { costs, before, own: work.own_area.saturating_mul(costs.cell), each, merging }
    }

    /// How many parts the atoms `start..end` are merged and sent home in.
    fn merges(&self, start: usize, end: usize) -> u64 {
        match self.merging {
            Merging::Stages => 1,
            Merging::Parts(_) => (end - start) as u64,
        }
    }

    fn exchange(&self, start: usize, end: usize, row: u64, messages: u64) -> u64 {
        match (self.before[end].rows - self.before[start].rows) as u64 {
            0 => 0,
            rows => self.costs.message.saturating_mul(messages).saturating_add(rows.saturating_mul(row)),
        }
    }

    fn fetch(&self, start: usize, end: usize) -> u64 {
        self.exchange(start, end, self.costs.fetched, 1)
    }

    fn attend(&self, start: usize, end: usize) -> u64 {
        let area = self.before[end].area - self.before[start].area;
        let merges = self.merges(start, end).saturating_mul(self.each);
        area.saturating_mul(self.costs.cell).saturating_add(merges)
    }

    fn give_back(&self, start: usize, end: usize) -> u64 {
        match self.costs.returned {
            0 => 0,
            row => self.exchange(start, end, row, self.merges(start, end)),
        }
    }

    /// The best cut into `least..=most` stages, by dynamic programming: the time of a slot depends on the stages
    /// before, at and after it, so a state is where the last two stages start and where the last one ends.
    fn cut(&self, least: usize, most: usize, own_last: bool) -> Stages {
        let atoms = self.before.len() - 1;
        let index = |a: usize, b: usize, c: usize| (a * (atoms + 1) + b) * (atoms + 1) + c;
        let states = (atoms + 1).pow(3);
        // Time until the last stage is there; MAX where no cut leads.
        let mut times = vec![u64::MAX; states];
        for end in 1..=atoms {
            let first = if own_last { 0 } else { self.own };
            times[index(0, 0, end)] = self.fetch(0, end).max(first).min(LONGEST);
        }
        // By stage: where the stage two before it starts.
        let mut from: Vec<Vec<u32>> = vec![vec![0; states]];
        let mut best = (u64::MAX, 0, [0, 0]);
        for stages in 1..=most {
            let (mut next, mut starts) = (vec![u64::MAX; states], vec![0; states]);
            // The first stage has none before it, and starts where that would.
            for (a, b) in (0..atoms).flat_map(|a| (a..atoms).map(move |b| (a, b))) {
                let back = self.give_back(a, b);
                for c in b + 1..=atoms {
                    let time = times[index(a, b, c)];
                    if time == u64::MAX {
                        continue;
                    }
                    let slot = self.attend(b, c).max(back);
                    for d in c + 1..=atoms {
                        let time = time.saturating_add(slot.max(self.fetch(c, d))).min(LONGEST);
                        let state = index(b, c, d);
                        if time < next[state] {
                            (next[state], starts[state]) = (time, a as u32);
                        }
                    }
                    let end = self.give_back(b, c).max(if own_last { self.own } else { 0 });
                    let time = time.saturating_add(slot).saturating_add(end).min(LONGEST);
                    if c == atoms && stages >= least && time < best.0 {
                        best = (time, stages, [a, b]);
                    }
                }
            }
            times = next;
            from.push(starts);
        }
        let (time, stages, [mut a, mut b]) = best;
        let (mut c, mut cuts) = (atoms, Vec::with_capacity(stages));
        for starts in from[..stages].iter().rev() {
            cuts.push(b..c);
            (a, b, c) = (starts[index(a, b, c)] as usize, a, b);
        }
        cuts.reverse();
        Stages { cuts, own_last, time }
    }
}

#[cfg(test)]
mod tests;
