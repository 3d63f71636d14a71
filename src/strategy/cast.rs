//! Group-cast: each rank receives just the rows of keys and values that its queries attend, in stages.

use std::ops::Range;
use std::sync::Arc;

use crate::error::SupportError;
use crate::plan::{Content, Piece, Program, RowSet, Step, Transfer, View, area_by_keys};
use crate::solve::stages::{Atom, Merging, StageCosts, Stages, Staging, Work, best};
use crate::strategy::KvExchange;

/// Every owner sends each rank the rows that it needs, packed, straight.
///
/// A rank cuts its remote rows into [`stages`](crate::solve::stages): while it attends one, the next is under way. Its own
/// keys come first, or in a backward pass last where that is quicker. Gradients of a stage go home while the next one is
/// attended, and are added there in a fixed order. Forward and backward passes are cut by themselves.
///
/// A stage is attended, merged and sent home at once, or in [parts](crate::solve::stages::Merging) that do not depend on
/// the stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct CastKv {
    /// How the remote rows are cut.
    pub staging: Staging,
}

/// The slot of the own rows, and of their gradients; part `i` has slot `i + 1`.
const OWN: usize = 0;

/// Rows by owner, in the order in which they lie in a slot.
type Part = Vec<(usize, RowSet)>;

/// What a rank fetches.
#[derive(Debug)]
struct Fetches {
    /// What is attended at a time.
    parts: Vec<Part>,
    /// The parts that travel together.
    stages: Vec<Range<usize>>,
    own_last: bool,
}

impl Fetches {
    /// Rows of an owner in a stage, by part.
    fn rows_of(&self, owner: usize, parts: Range<usize>) -> impl Iterator<Item = &RowSet> {
        let parts = parts.start.min(self.parts.len())..parts.end.min(self.parts.len());
        self.parts[parts].iter().flatten().filter(move |(other, _)| *other == owner).map(|(_, rows)| rows)
    }

    fn stage(&self, stage: usize) -> Range<usize> {
        self.stages.get(stage).cloned().unwrap_or_default()
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
    fn of(view: &View, rank: usize, parts: usize) -> Self {
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
        let parts = parts.min(total);
        let ends: Vec<usize> = (1..=parts).map(|part| part * total / parts).collect();
        let areas = area_by_keys(&view.tile_of(rank, &runs), &ends);
        let mut start = 0;
        let atom = |(&end, area)| Atom { rows: end - std::mem::replace(&mut start, end), area };
        let atoms = ends.iter().zip(areas).map(atom).collect();
        let own_area = view.tile_of(rank, view.held(rank)).iter().map(Piece::area).sum();
        Remote { owners, atoms, own_area }
    }
}

impl CastKv {
    /// Cut like this.
    pub fn new(staging: impl Into<Staging>) -> Self {
        CastKv { staging: staging.into() }
    }

    /// What every rank fetches.
    fn fetches(&self, view: &View, backward: bool) -> Arc<Vec<Fetches>> {
        let parts = self.staging.merging.parts();
        let every = || (0..view.ranks()).map(|rank| Remote::of(view, rank, parts)).collect::<Vec<_>>();
        let remote = view.shared(&(Self::NAME, parts), every);
        let cut = |(rank, remote): (usize, &Remote)| self.cut(view, rank, remote, backward);
        view.shared(&(Self::NAME, self, backward), || remote.iter().enumerate().map(cut).collect())
    }

    fn cut(&self, view: &View, rank: usize, remote: &Remote, backward: bool) -> Fetches {
        let Staging { count, merging, forward, backward: of_backward } = &self.staging;
        // Nothing returns in a forward pass, whose first tile is that of the own keys.
        let costs = if backward { *of_backward } else { StageCosts { returned: 0, ..*forward } };
        let work = Work { queries: view.rows(rank), own_area: remote.own_area, atoms: &remote.atoms };
        let Stages { cuts, own_last, .. } = best(&work, &costs, *count, *merging);
        let (atoms, stages) = match merging {
            Merging::Stages => (cuts.clone(), (0..cuts.len()).map(|stage| stage..stage + 1).collect()),
            Merging::Parts(_) => ((0..remote.atoms.len()).map(|atom| atom..atom + 1).collect(), cuts),
        };
        let mut start = 0;
        let part = |atoms: Range<usize>| {
            let end = start + remote.atoms[atoms].iter().map(|atom| atom.rows).sum::<usize>();
            let rows = std::mem::replace(&mut start, end)..end;
            let of_owner = |&(owner, first): &(usize, usize)| {
                let clip = |row: usize| row.saturating_sub(first);
                let rows = view.needs(owner, rank).at_places(clip(rows.start)..clip(rows.end));
                (!rows.is_empty()).then_some((owner, rows))
            };
            remote.owners.iter().filter_map(of_owner).collect()
        };
        Fetches { parts: atoms.into_iter().map(part).collect(), stages, own_last }
    }

    fn program(&self, view: &View, backward: bool) -> Program {
        let fetches = self.fetches(view, backward);
        let posts = posts(&fetches, backward);
        Writer { view, fetches: &fetches, backward, posts: &posts, posted: 0, steps: Vec::new() }.program()
    }
}

/// An exchange of all ranks: keys of a stage, or gradients of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Post {
    Keys(usize),
    Gradients(usize),
}

/// The order in which every rank posts all exchanges, whatever its own stages are: the keys of a stage, then those of
/// the next one before the first gradients that a rank has of it.
fn posts(fetches: &[Fetches], backward: bool) -> Vec<Post> {
    let most = |of: fn(&Fetches) -> usize| fetches.iter().map(of).max().unwrap_or(0);
    let (stages, parts) = (most(|rank| rank.stages.len()), most(|rank| rank.parts.len()));
    let mut keys = (0..stages).map(Post::Keys).peekable();
    let mut posts = Vec::new();
    for part in if backward { 0..parts } else { 0..0 } {
        // The last stage in which a rank has this part.
        let stage_of = |rank: &Fetches| rank.stages.iter().position(|parts| parts.contains(&part));
        let next = fetches.iter().filter_map(stage_of).max().map_or(0, |stage| stage + 1);
        posts.extend(std::iter::from_fn(|| keys.next_if(|&post| matches!(post, Post::Keys(stage) if stage <= next))));
        posts.push(Post::Gradients(part));
    }
    posts.extend(keys);
    posts
}

/// Writes one rank's program.
struct Writer<'a> {
    view: &'a View,
    fetches: &'a [Fetches],
    backward: bool,
    posts: &'a [Post],
    /// How many of them are written.
    posted: usize,
    steps: Vec<Step>,
}

impl<'a> Writer<'a> {
    fn mine(&self) -> &'a Fetches {
        &self.fetches[self.view.rank()]
    }

    /// The number of an exchange: its place in the order.
    fn exchange(&self, post: Post) -> usize {
        self.posts.iter().take_while(|&&other| other != post).count()
    }

    /// Rows of the parts' slots by owner.
    fn places(&self, parts: Range<usize>) -> Vec<Transfer> {
        let place = |part: usize| {
            let mut first = 0;
            let transfer = move |(owner, rows): &(usize, RowSet)| {
                let start = first;
                first += rows.len();
                Transfer { peer: *owner, slot: part + 1, rows: (start..first).collect() }
            };
            self.mine().parts[part].iter().map(transfer)
        };
        parts.flat_map(place).collect()
    }

    /// Own rows that other ranks use, in parts that each of them says.
    fn used(&self, parts: impl Fn(&'a Fetches) -> Range<usize>) -> Vec<Transfer> {
        let (rank, ranks) = (self.view.rank(), self.view.ranks());
        let peers = (1..ranks).map(|i| (rank + ranks - i) % ranks);
        let rows = |peer: usize| {
            let fetches = &self.fetches[peer];
            let transfer = move |rows: &RowSet| Transfer { peer, slot: OWN, rows: rows.iter().collect() };
            fetches.rows_of(rank, parts(fetches)).map(transfer)
        };
        peers.flat_map(rows).collect()
    }

    /// Whether the rank has a share of its own in an exchange, beside what others fetch from it.
    fn is_mine(&self, post: Post) -> bool {
        match post {
            Post::Keys(stage) => stage < self.mine().stages.len(),
            Post::Gradients(part) => part < self.mine().parts.len(),
        }
    }

    /// Posts all exchanges up to this one, and those after it that wait for nothing that this rank has yet to do.
    fn post(&mut self, last: Post) {
        let last = self.exchange(last);
        while let Some(&post) = self.posts.get(self.posted).filter(|&&post| self.posted <= last || !self.is_mine(post))
        {
            let (content, sends, receives) = match post {
                Post::Keys(stage) => {
                    (Content::Keys, self.used(|peer| peer.stage(stage)), self.places(self.mine().stage(stage)))
                }
                Post::Gradients(part) => {
                    let mine = if self.is_mine(post) { part..part + 1 } else { 0..0 };
                    (Content::Gradients, self.places(mine), self.used(|_| part..part + 1))
                }
            };
            self.steps.push(Step::Post { exchange: self.posted, content, sends, receives });
            self.posted += 1;
        }
    }

    fn wait(&mut self, post: Post) {
        let exchange = self.exchange(post);
        self.steps.push(Step::Wait { exchange });
    }

    fn wait_for_gradients(&mut self, parts: Range<usize>) {
        if self.backward {
            parts.for_each(|part| self.wait(Post::Gradients(part)));
        }
    }

    fn program(mut self) -> Program {
        let (view, mine) = (self.view, self.mine());
        let stages = mine.stages.len();
        let own = Step::Tile { slot: OWN, pieces: view.tile_runs(view.held(view.rank())) };
        if let Some(&first) = self.posts.first() {
            self.post(first);
        }
        if !mine.own_last {
            self.steps.push(own.clone());
        }
        for (stage, parts) in mine.stages.iter().enumerate() {
            self.wait(Post::Keys(stage));
            if stage + 1 < stages {
                self.post(Post::Keys(stage + 1));
            }
            for part in parts.clone() {
                self.attend(part);
            }
            self.wait_for_gradients(stage.checked_sub(1).map_or(0..0, |before| mine.stage(before)));
        }
        if mine.own_last {
            self.steps.push(own);
        }
        debug_assert_eq!(self.posted, self.posts.len());
        // Others may have more stages and parts.
        let last = mine.stages.last().map_or(0, |parts| parts.start);
        let left = |&&post: &&Post| match post {
            Post::Keys(stage) => stage >= stages,
            Post::Gradients(part) => part >= last,
        };
        self.posts.iter().filter(left).for_each(|&post| self.wait(post));
        let rows = |part: &Part| -> usize { part.iter().map(|(_, rows)| rows.len()).sum() };
        let slots = std::iter::once(view.rows(view.rank())).chain(mine.parts.iter().map(rows));
        Program { slots: slots.collect(), home: OWN, steps: self.steps }
    }

    /// Attends a part, merges it, and posts its gradients.
    fn attend(&mut self, part: usize) {
        let (slot, mut keys, mut rows) = (part + 1, Vec::new(), 0);
        for (owner, of_owner) in &self.mine().parts[part] {
            keys.extend(self.view.runs(*owner, of_owner, rows));
            rows += of_owner.len();
        }
        self.steps.push(Step::Tile { slot, pieces: self.view.tile_runs(&keys) });
        match self.backward {
            true => self.post(Post::Gradients(part)),
            false => self.steps.push(Step::Merge),
        }
        self.steps.push(Step::Free { slot });
    }
}

impl KvExchange for CastKv {
    const NAME: &'static str = "cast";

    fn check(&self) -> Result<(), SupportError> {
        self.staging.check()
    }

    fn forward(&self, view: &View) -> Program {
        self.program(view, false)
    }

    fn backward(&self, view: &View) -> Program {
        self.program(view, true)
    }
}
