//! What a process's rank and its MPI thread share.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use super::super::mailbox::RankFailure;
use super::super::tree;
use super::asks::Asks;
use super::frame::{End, Endings, Frame};

/// What the MPI thread is to do besides moving messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Nothing.
    Run,
    /// End MPI; everyone has ended.
    Finalize,
    /// End all processes.
    Abort,
}

/// What there is to do for the MPI thread.
#[derive(Debug)]
pub(super) struct Orders {
    pub(super) order: Order,
    /// To be sent, in this order for each receiver.
    pub(super) outbox: VecDeque<Outgoing>,
    /// Whether something has failed.
    pub(super) is_failed: bool,
}

/// How far the MPI thread is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It moves messages.
    Running,
    /// It has ended.
    Over,
}

/// What a frame is for: a rank, and what it gets.
pub(super) type Outgoing = (usize, Frame);

/// What MPI says about this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) neighbours: usize,
    /// The number among them.
    pub(super) seat: usize,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) outbox: VecDeque<Outgoing>,
    pub(super) order: Order,
    pub(super) progress: Progress,
    /// Whether everything that was handed over is sent.
    pub(super) flushed: bool,
    /// The first failure that this process had or heard of, and when.
    pub(super) failure: Option<(RankFailure, Instant)>,
    /// How this process's rank ended, if it has.
    pub(super) end: Option<End>,
    pub(super) branch: Branch,
    pub(super) asks: Asks,
    /// When this process last told that it is alive.
    pub(super) beat: Instant,
}

impl State {
    pub(super) fn new(rank: usize, size: usize) -> Self {
        State {
            outbox: VecDeque::new(),
            order: Order::Run,
            progress: Progress::Running,
            flushed: true,
            failure: None,
            end: None,
            branch: Branch::new(rank, size),
            asks: Asks::default(),
            beat: Instant::now(),
        }
    }

    /// Hands a frame to the MPI thread.
    pub(super) fn post(&mut self, to: usize, frame: Frame) {
        self.outbox.push_back((to, frame));
        self.flushed = false;
    }

    /// Tells those next to this process in the tree that it lives, as long as they may wait for it.
    pub(super) fn tell_alive(&mut self) {
        let above = self.branch.parent.filter(|_| !self.branch.is_told);
        let below = self.branch.children.iter().copied().filter(|_| !self.branch.is_over);
        above.into_iter().chain(below).collect::<Vec<_>>().into_iter().for_each(|to| self.post(to, Frame::Alive));
    }

    /// Tells how the branch ended once all of it has, and every rank how all did once the tree has.
    ///
    /// A rank that has asked another waits for the answer first, so that nothing is under way when MPI ends; not once
    /// something has failed.
    pub(super) fn settle(&mut self) {
        let is_quiet = self.failure.is_some() || self.asks.unanswered().is_none();
        if self.end.is_none() || self.branch.is_told || !self.branch.missing.is_empty() || !is_quiet {
            return;
        }
        self.branch.is_told = true;
        let failure = self.failure.as_ref().map(|(failure, _)| failure.clone());
        let report = Endings { failure, ends: self.branch.report.ends.clone() };
        match self.branch.parent {
            Some(parent) => self.post(parent, Frame::Ended(report)),
            None => self.conclude(report),
        }
    }

    /// All ranks have ended.
    pub(super) fn conclude(&mut self, report: Endings) {
        self.branch.children.clone().into_iter().for_each(|to| self.post(to, Frame::Over(report.clone())));
        (self.branch.report, self.branch.is_over) = (report, true);
    }
}

/// Where a process stands in the tree along which processes tell that they live, and how their ranks ended.
#[derive(Debug)]
pub(super) struct Branch {
    parent: Option<usize>,
    children: Vec<usize>,
    /// The children whose branches have not ended yet.
    missing: BTreeSet<usize>,
    /// When those next to this process were last heard of.
    heard: BTreeMap<usize, Instant>,
    /// How the ranks of this branch ended, as far as they have; all ranks once it is over.
    pub(super) report: Endings,
    /// Whether the parent knows that the branch has ended.
    is_told: bool,
    /// Whether all ranks have ended.
    pub(super) is_over: bool,
}

impl Branch {
    fn new(rank: usize, size: usize) -> Self {
        let (parent, children) = (tree::parent(rank), tree::children(rank, size).collect::<Vec<_>>());
        let now = Instant::now();
        let heard = parent.iter().chain(&children).map(|&rank| (rank, now)).collect();
        let missing = children.iter().copied().collect();
        Branch { parent, children, missing, heard, report: Endings::default(), is_told: false, is_over: false }
    }

    /// Something came from a rank.
    pub(super) fn hear(&mut self, from: usize) {
        if let Some(heard) = self.heard.get_mut(&from) {
            *heard = Instant::now();
        }
    }

    /// The branch of a child has ended.
    pub(super) fn end(&mut self, child: usize, ends: Vec<(usize, End)>) {
        self.missing.remove(&child);
        ends.into_iter().for_each(|(rank, end)| self.report.add(rank, end));
    }

    /// Of the processes that this one waits for, once its own rank has ended, the one that it has not heard of for the
    /// longest time: those below whose branches have not ended, else the one above.
    pub(super) fn quietest(&self) -> Option<(usize, Instant)> {
        let above = self.parent.filter(|_| self.is_told && !self.is_over);
        let awaited = self.missing.iter().copied().chain(above);
        awaited.filter_map(|rank| Some((rank, *self.heard.get(&rank)?))).min_by_key(|&(_, heard)| heard)
    }
}
