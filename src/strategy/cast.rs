//! Group-cast: each rank receives just the rows of keys and values that its queries attend, in stages.

use std::collections::HashSet;
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

    /// The parts whose keys come with an exchange: those of the stage after the one that begins with part `after`.
    fn keys(&self, after: Option<usize>) -> Range<usize> {
        let stage = match after {
            None => Some(0),
            Some(part) => self.stages.iter().position(|parts| parts.start == part).map(|stage| stage + 1),
        };
        stage.and_then(|stage| self.stages.get(stage)).cloned().unwrap_or_default()
    }
}

/// What a rank attends, before it is cut into stages.
struct Remote {
    /// Owners of remote rows, each with its first row in a buffer of all of them, and the rows.
    owners: Vec<(usize, usize, RowSet)>,
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
                runs.extend(view.runs(owner, &needs, total));
                let first = total;
                total += needs.len();
                owners.push((owner, first, needs));
            }
        }
        let parts = parts.min(total);
        let ends: Vec<usize> = (1..=parts).map(|part| part * total / parts).collect();
        let areas = area_by_keys(&view.seen_from(rank).tile_runs(&runs), &ends);
        let mut start = 0;
        let atom = |(&end, area)| Atom { rows: end - std::mem::replace(&mut start, end), area };
        let atoms = ends.iter().zip(areas).map(atom).collect();
        let own_area = view.seen_from(rank).tile_runs(view.held(rank)).iter().map(Piece::area).sum();
        Remote { owners, atoms, own_area }
    }
}

impl CastKv {
    /// Cut like this.
    pub fn new(staging: impl Into<Staging>) -> Self {
        CastKv { staging: staging.into() }
    }

    /// What a rank fetches.
    fn fetches(&self, view: &View, rank: usize, backward: bool) -> Arc<Fetches> {
        let parts = self.staging.merging.parts();
        view.shared(&(Self::NAME, self, backward, rank), || {
            let remote = view.shared(&(Self::NAME, parts, rank), || Remote::of(view, rank, parts));
            self.cut(view, rank, &remote, backward)
        })
    }

    fn cut(&self, view: &View, rank: usize, remote: &Remote, backward: bool) -> Fetches {
        let Staging { count, merging, forward, backward: of_backward } = &self.staging;
        // Nothing returns in a forward pass, whose first tile is that of the own keys.
        let costs = if backward { *of_backward } else { StageCosts { returned: 0, ..*forward } };
        let work = Work { queries: view.query_rows(rank), own_area: remote.own_area, atoms: &remote.atoms };
        let Stages { cuts, own_last, .. } = best(&work, &costs, *count, *merging);
        let (atoms, stages) = match merging {
            Merging::Stages => (cuts.clone(), (0..cuts.len()).map(|stage| stage..stage + 1).collect()),
            Merging::Parts(_) => ((0..remote.atoms.len()).map(|atom| atom..atom + 1).collect(), cuts),
        };
        let mut start = 0;
        let part = |atoms: Range<usize>| {
            let end = start + remote.atoms[atoms].iter().map(|atom| atom.rows).sum::<usize>();
            let rows = std::mem::replace(&mut start, end)..end;
            let of_owner = |(owner, first, needs): &(usize, usize, RowSet)| {
                let clip = |row: usize| row.saturating_sub(*first);
                let rows = needs.at_places(clip(rows.start)..clip(rows.end));
                (!rows.is_empty()).then_some((*owner, rows))
            };
            remote.owners.iter().filter_map(of_owner).collect()
        };
        Fetches { parts: atoms.into_iter().map(part).collect(), stages, own_last }
    }

    fn program(&self, view: &View, backward: bool) -> Program {
        let (rank, ranks) = (view.rank(), view.ranks());
        let uses = |peer: &usize| *peer != rank && !view.needs(rank, *peer).is_empty();
        // Starting with the rank before, which starts with this one.
        let peers = (1..ranks).map(|i| (rank + ranks - i) % ranks).filter(uses);
        let peers: Vec<_> = peers.map(|peer| (peer, self.fetches(view, peer, backward))).collect();
        let mine = self.fetches(view, rank, backward);
        let parts = peers.iter().map(|(_, fetches)| &**fetches).chain([&*mine]).map(|rank| rank.parts.len()).max();
        let mut writer =
            Writer { view, mine: &mine, peers: &peers, backward, posts: Vec::new(), posted: 0, steps: Vec::new() };
        let events = std::iter::once(Post::Keys(None));
        let of_part = |part| [Post::Keys(Some(part)), Post::Gradients(part)];
        writer.posts =
            events.chain((0..parts.unwrap_or(0)).flat_map(of_part)).filter(|&post| writer.takes_part(post)).collect();
        writer.program()
    }
}

/// An exchange of all ranks, in the order in which every rank posts those that it takes part in.
///
/// The keys of a stage are asked for when the stage before it begins, so they are named after its first part; a rank that
/// serves them posts its side at the same place, whatever its own stages are. So the messages between any two ranks come
/// in one order, though neither knows the stages of a third.
#[derive(Clone, Copy, Debug)]
enum Post {
    /// Keys of the stage after the one that begins with this part; of the first stage.
    Keys(Option<usize>),
    /// Gradients of a part.
    Gradients(usize),
}

impl Post {
    /// Its number, which ascends.
    fn exchange(self) -> usize {
        match self {
            Post::Keys(None) => 0,
            Post::Keys(Some(part)) => 2 * part + 1,
            Post::Gradients(part) => 2 * part + 2,
        }
    }
}

/// Writes one rank's program.
struct Writer<'a> {
    view: &'a View,
    mine: &'a Fetches,
    /// What the ranks fetch that use this rank's rows.
    peers: &'a [(usize, Arc<Fetches>)],
    backward: bool,
    posts: Vec<Post>,
    /// How many of them are written.
    posted: usize,
    steps: Vec<Step>,
}

impl<'a> Writer<'a> {
    /// Rows of the parts' slots by owner.
    fn places(&self, parts: Range<usize>) -> Vec<Transfer> {
        let place = |part: usize| {
            let mut first = 0;
            let transfer = move |(owner, rows): &(usize, RowSet)| {
                let start = first;
                first += rows.len();
                Transfer::new(*owner, part + 1, start..first)
            };
            self.mine.parts[part].iter().map(transfer)
        };
        parts.flat_map(place).collect()
    }

    /// Own rows that other ranks use, in parts that each of them says.
    fn used(&self, parts: impl Fn(&'a Fetches) -> Range<usize>) -> Vec<Transfer> {
        let rank = self.view.rank();
        let rows = |(peer, fetches): &'a (usize, Arc<Fetches>)| {
            fetches.rows_of(rank, parts(fetches)).map(|rows| Transfer::new(*peer, OWN, rows))
        };
        self.peers.iter().flat_map(rows).collect()
    }

    /// Whether the rank has a share of its own in an exchange, beside what others fetch from it.
    fn is_mine(&self, post: Post) -> bool {
        match post {
            Post::Keys(after) => !self.mine.keys(after).is_empty(),
            Post::Gradients(part) => self.backward && part < self.mine.parts.len(),
        }
    }

    /// Whether the rank sends or receives anything.
    fn takes_part(&self, post: Post) -> bool {
        let uses = |parts: &dyn Fn(&Fetches) -> Range<usize>| {
            let any = |(_, fetches): &(usize, Arc<Fetches>)| {
                fetches.rows_of(self.view.rank(), parts(fetches)).next().is_some()
            };
            self.peers.iter().any(any)
        };
        self.is_mine(post)
            || match post {
                Post::Keys(after) => uses(&|peer| peer.keys(after)),
                Post::Gradients(part) => self.backward && uses(&|_| part..part + 1),
            }
    }

    /// Posts all exchanges up to this one, and those after it that wait for nothing that this rank has yet to do.
    fn post(&mut self, last: Post) {
        while let Some(&post) =
            self.posts.get(self.posted).filter(|post| post.exchange() <= last.exchange() || !self.is_mine(**post))
        {
            let (content, sends, receives) = match post {
                Post::Keys(after) => {
                    (Content::Keys, self.used(|peer| peer.keys(after)), self.places(self.mine.keys(after)))
                }
                Post::Gradients(part) => {
                    let mine = if self.is_mine(post) { part..part + 1 } else { 0..0 };
                    (Content::Gradients, self.places(mine), self.used(|_| part..part + 1))
                }
            };
            self.steps.push(Step::Post { exchange: post.exchange(), content, sends, receives });
            self.posted += 1;
        }
    }

    fn wait(&mut self, post: Post) {
        self.steps.push(Step::Wait { exchange: post.exchange() });
    }

    fn wait_for_gradients(&mut self, parts: Range<usize>) {
        if self.backward {
            parts.for_each(|part| self.wait(Post::Gradients(part)));
        }
    }

    fn program(mut self) -> Program {
        let (view, mine) = (self.view, self.mine);
        let pieces = view.shared(&(CastKv::NAME, "own", view.rank()), || view.tile_runs(view.held(view.rank())));
        let own = Step::Tile { slot: OWN, pieces: Arc::<[_]>::clone(&pieces) };
        self.post(Post::Keys(None));
        if !mine.own_last {
            self.steps.push(own.clone());
        }
        let mut before = None;
        let mut keys = Post::Keys(None);
        for parts in &mine.stages {
            self.wait(keys);
            keys = Post::Keys(Some(parts.start));
            self.post(keys);
            for part in parts.clone() {
                self.attend(part);
            }
            self.wait_for_gradients(before.replace(parts.clone()).unwrap_or(0..0));
        }
        if mine.own_last {
            self.steps.push(own);
        }
        debug_assert_eq!(self.posted, self.posts.len());
        // What is only served, and the last stage's own.
        let waited: HashSet<usize> = self
            .steps
            .iter()
            .filter_map(|step| match step {
                Step::Wait { exchange } => Some(*exchange),
                _ => None,
            })
            .collect();
        let left: Vec<Post> = self.posts.iter().copied().filter(|post| !waited.contains(&post.exchange())).collect();
        left.into_iter().for_each(|post| self.wait(post));
        let rows = |part: &Part| -> usize { part.iter().map(|(_, rows)| rows.len()).sum() };
        let slots = std::iter::once(view.rows(view.rank())).chain(mine.parts.iter().map(rows));
        Program::new(slots.collect(), self.steps)
    }

    /// Attends a part, merges it, and posts its gradients.
    fn attend(&mut self, part: usize) {
        let (slot, mut keys, mut rows) = (part + 1, Vec::new(), 0);
        for (owner, of_owner) in &self.mine.parts[part] {
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
