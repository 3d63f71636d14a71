//! Group-cast: each rank receives just the rows of keys and values that its queries attend, in stages.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::Arc;

use crate::plan::stages::{Atom, StageCosts, Stages, Staging, Work, best};
use crate::plan::{Content, Piece, Program, RowSet, Step, Transfer, View, area_by_keys};
use crate::strategy::KvExchange;

/// Every owner sends each rank the rows that it needs, packed, straight.
///
/// A rank cuts its remote rows into [`stages`](crate::plan::stages): while it attends one, the next is under way. Its own
/// keys come first, or in a backward pass last where that is quicker. Gradients of a stage go home while the next one is
/// attended, and are added there stage by stage, in a fixed order. Forward and backward passes are cut by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CastKv {
    /// How the remote rows are cut.
    pub staging: Staging,
}

/// The slot of the own rows, and of their gradients; stage `i` has slot `i + 1`.
const OWN: usize = 0;
/// Parts of the remote rows, equally large, that a stage can be made of.
const ATOMS: usize = 16;

/// What a rank fetches in each stage: rows by owner, in the order in which they lie in the stage's slot.
#[derive(Debug)]
struct Fetches {
    stages: Vec<Vec<(usize, RowSet)>>,
    own_last: bool,
}

impl Fetches {
    fn rows(&self, stage: usize, owner: usize) -> Option<&RowSet> {
        self.stages.get(stage)?.iter().find(|(other, _)| *other == owner).map(|(_, rows)| rows)
    }
}

/// What a rank attends, before it is cut into stages.
struct Remote {
    /// Owners of remote rows, each with its first row in a buffer of all of them.
    owners: Vec<(usize, usize)>,
    /// The buffer in equal parts.
    atoms: Vec<Atom>,
    own_area: u64,
}

impl Remote {
    fn of(view: &View, rank: usize) -> Self {
        let ranks = view.ranks();
        let (mut owners, mut runs, mut total) = (Vec::new(), Vec::new(), 0);
        // Starting with the next rank, so that not all ask the same one first.
        for owner in (1..ranks).map(|i| (rank + i) % ranks) {
            let needs = view.needs(owner, rank);
            if !needs.is_empty() {
                owners.push((owner, total));
                runs.extend(view.runs(owner, needs, total));
                total += needs.len();
            }
        }
        let parts = ATOMS.min(total);
        let ends: Vec<usize> = (1..=parts).map(|part| part * total / parts).collect();
        let areas = area_by_keys(&view.tile_of(rank, &runs), &ends);
        let mut start = 0;
        let atom = |(&end, area)| Atom { rows: end - std::mem::replace(&mut start, end), area };
        let atoms = ends.iter().zip(areas).map(atom).collect();
        let own_area = view.tile_of(rank, view.held(rank)).iter().map(Piece::area).sum();
        Remote { owners, atoms, own_area }
    }
}

/// What a view keeps something under.
fn key(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

impl CastKv {
    /// Cut like this.
    pub fn new(staging: impl Into<Staging>) -> Self {
        CastKv { staging: staging.into() }
    }

    /// What every rank fetches.
    fn fetches(&self, view: &View, backward: bool) -> Arc<Vec<Fetches>> {
        let every = || (0..view.ranks()).map(|rank| Remote::of(view, rank)).collect::<Vec<_>>();
        let remote = view.shared(key(&(Self::NAME, "remote")), every);
        let cut = |(rank, remote): (usize, &Remote)| self.cut(view, rank, remote, backward);
        view.shared(key(&(Self::NAME, self, backward)), || remote.iter().enumerate().map(cut).collect())
    }

    fn cut(&self, view: &View, rank: usize, remote: &Remote, backward: bool) -> Fetches {
        let Staging { count, forward, backward: of_backward } = &self.staging;
        // Nothing returns in a forward pass, whose first tile is that of the own keys.
        let costs = if backward { *of_backward } else { StageCosts { returned: 0, ..*forward } };
        let work = Work { queries: view.rows(rank), own_area: remote.own_area, atoms: &remote.atoms };
        let Stages { cuts, own_last, .. } = best(&work, &costs, *count);
        let mut start = 0;
        let stage = |atoms: Range<usize>| {
            let end = start + remote.atoms[atoms].iter().map(|atom| atom.rows).sum::<usize>();
            let rows = std::mem::replace(&mut start, end)..end;
            let part = |&(owner, first): &(usize, usize)| {
                let clip = |row: usize| row.saturating_sub(first);
                let part = view.needs(owner, rank).at_places(clip(rows.start)..clip(rows.end));
                (!part.is_empty()).then_some((owner, part))
            };
            remote.owners.iter().filter_map(part).collect()
        };
        Fetches { stages: cuts.into_iter().map(stage).collect(), own_last }
    }

    fn program(&self, view: &View, backward: bool) -> Program {
        let fetches = self.fetches(view, backward);
        Writer {
            view,
            fetches: &fetches,
            exchanges: fetches.iter().map(|f| f.stages.len()).max().unwrap_or(0),
            backward,
        }
        .program()
    }
}

/// Writes one rank's program.
///
/// Every rank posts all exchanges in the same order, whatever its own stages are: keys of stage 0, keys 1, gradients 0,
/// keys 2, gradients 1, and so on.
struct Writer<'a> {
    view: &'a View,
    fetches: &'a [Fetches],
    /// Most stages of any rank.
    exchanges: usize,
    backward: bool,
}

impl Writer<'_> {
    fn mine(&self) -> &Fetches {
        &self.fetches[self.view.rank()]
    }

    /// Rows of the stage's slot by owner.
    fn places(&self, stage: usize) -> Vec<Transfer> {
        let mut first = 0;
        let parts = self.mine().stages.get(stage).map_or(&[][..], Vec::as_slice);
        let place = |(owner, rows): &(usize, RowSet)| {
            let start = first;
            first += rows.len();
            Transfer { peer: *owner, slot: stage + 1, rows: (start..first).collect() }
        };
        parts.iter().map(place).collect()
    }

    /// Own rows that other ranks use in a stage.
    fn used(&self, stage: usize) -> Vec<Transfer> {
        let (rank, ranks) = (self.view.rank(), self.view.ranks());
        let peers = (1..ranks).map(|i| (rank + ranks - i) % ranks);
        let rows = |peer: usize| {
            let rows = self.fetches[peer].rows(stage, rank)?;
            Some(Transfer { peer, slot: OWN, rows: rows.iter().collect() })
        };
        peers.filter_map(rows).collect()
    }

    /// Posts the keys of a stage. Forward, those that only others fetch follow its last one at once, so that they are not
    /// held up by this rank's work; backward, gradients come between.
    fn post_keys(&self, steps: &mut Vec<Step>, stage: usize) {
        let own = self.mine().stages.len();
        let last = if !self.backward && stage + 1 == own.max(1) { self.exchanges } else { stage + 1 };
        if self.backward || stage < own.max(1) {
            for stage in stage..last.min(self.exchanges) {
                let (sends, receives) = (self.used(stage), self.places(stage));
                steps.push(Step::Post { exchange: stage, content: Content::Keys, sends, receives });
            }
        }
    }

    fn post_gradients(&self, steps: &mut Vec<Step>, stage: usize) {
        if self.backward && stage < self.exchanges {
            let (sends, receives) = (self.places(stage), self.used(stage));
            steps.push(Step::Post { exchange: self.exchanges + stage, content: Content::Gradients, sends, receives });
        }
    }

    fn wait_for_gradients(&self, steps: &mut Vec<Step>, stages: Range<usize>) {
        if self.backward {
            steps.extend(stages.map(|stage| Step::Wait { exchange: self.exchanges + stage }));
        }
    }

    fn program(&self) -> Program {
        let (view, mine) = (self.view, self.mine());
        let stages = mine.stages.len();
        let own = Step::Tile { slot: OWN, pieces: view.tile_runs(view.held(view.rank())) };
        let mut steps = Vec::new();
        self.post_keys(&mut steps, 0);
        if !mine.own_last && stages > 0 {
            steps.push(own.clone());
        }
        for (stage, parts) in mine.stages.iter().enumerate() {
            steps.push(Step::Wait { exchange: stage });
            self.post_keys(&mut steps, stage + 1);
            let slot = stage + 1;
            let (mut keys, mut rows) = (Vec::new(), 0);
            for (owner, part) in parts {
                keys.extend(view.runs(*owner, part, rows));
                rows += part.len();
            }
            steps.push(Step::Tile { slot, pieces: view.tile_runs(&keys) });
            if !self.backward {
                steps.push(Step::Merge);
            }
            self.post_gradients(&mut steps, stage);
            steps.push(Step::Free { slot });
            self.wait_for_gradients(&mut steps, stage.saturating_sub(1)..stage);
        }
        // Others may have more stages.
        for stage in stages..self.exchanges {
            self.post_keys(&mut steps, stage + 1);
            self.post_gradients(&mut steps, stage);
        }
        if mine.own_last || stages == 0 {
            steps.push(own);
        }
        steps.extend((stages..self.exchanges).map(|exchange| Step::Wait { exchange }));
        self.wait_for_gradients(&mut steps, stages.saturating_sub(1)..self.exchanges);
        let rows = |parts: &Vec<(usize, RowSet)>| -> usize { parts.iter().map(|(_, rows)| rows.len()).sum() };
        let mut slots = vec![view.rows(view.rank())];
        slots.extend(mine.stages.iter().map(rows));
        Program { slots, home: OWN, steps }
    }
}

impl KvExchange for CastKv {
    const NAME: &'static str = "cast";

    fn forward(&self, view: &View) -> Program {
        self.program(view, false)
    }

    fn backward(&self, view: &View) -> Program {
        self.program(view, true)
    }
}
