//! One rank's program, from what it fetches and what others fetch from it.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use crate::plan::{Content, Program, RowSet, Step, Transfer, View};
use crate::strategy::KvExchange;
use crate::strategy::cast::CastKv;
use crate::strategy::cast::fetches::{Fetches, Part, Served};

/// The slot of the own rows, and of their gradients; part `i` has slot `i + 1`.
const OWN: usize = 0;

/// An exchange of all ranks, in the order in which every rank posts those that it takes part in.
///
/// The keys of a stage are asked for when the stage before it begins, so they are named after its first part; a rank
/// that serves them posts its side at the same place, whatever its own stages are. So the messages between any two
/// ranks come in one order, though neither knows the stages of a third.
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
pub(super) struct Writer<'a> {
    view: &'a View,
    mine: &'a Fetches,
    /// What the ranks fetch that use this rank's rows.
    peers: &'a [Served],
    backward: bool,
    posts: Vec<Post>,
    /// How many of them are written.
    posted: usize,
    steps: Vec<Step>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(view: &'a View, mine: &'a Fetches, peers: &'a [Served], backward: bool) -> Self {
        let parts = peers.iter().map(Served::parts).chain([mine.parts.len()]).max().unwrap_or(0);
        let mut writer = Writer { view, mine, peers, backward, posts: Vec::new(), posted: 0, steps: Vec::new() };
        let of_part = |part| [Post::Keys(Some(part)), Post::Gradients(part)];
        let posts = std::iter::once(Post::Keys(None)).chain((0..parts).flat_map(of_part));
        writer.posts = posts.filter(|&post| writer.takes_part(post)).collect();
        writer
    }

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
    fn used(&self, parts: impl Fn(&Served) -> Range<usize>) -> Vec<Transfer> {
        let rows = |peer: &'a Served| {
            let parts = parts(peer);
            peer.rows(parts).map(|rows| Transfer::new(peer.peer, OWN, rows))
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
        let uses = |parts: &dyn Fn(&Served) -> Range<usize>| {
            self.peers.iter().any(|peer| peer.rows(parts(peer)).next().is_some())
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

    pub(super) fn program(mut self) -> Program {
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
