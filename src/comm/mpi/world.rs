//! A process of a run: what arrives, what is told to others, and whom they wait for.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::clock::SystemClock;
use super::super::mailbox::{Mailbox, RankFailure};
use super::super::tree;
use super::super::wire::{Carrier, Counts, Packet, Waiting};
use super::frame::{Doing, End, Frame};
use super::state::{Order, Orders, Place, Progress, State};
use crate::tensor::Host;

/// No wait is longer than a century, so that times stay within what a clock can say.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// How often a process tells that it is alive, at least.
const PULSE: Duration = Duration::from_secs(10);
/// How long a process that lives may take to say what its rank does.
const ANSWER: Duration = Duration::from_secs(1);

/// One process of a run.
#[derive(Debug)]
pub(super) struct World {
    rank: usize,
    size: usize,
    neighbours: usize,
    seat: usize,
    mailbox: Mailbox<Packet>,
    pub(super) counts: Counts,
    pub(super) waits: Waiting,
    pub(super) grace: Duration,
    /// How often this process tells that it is alive.
    pulse: Duration,
    state: Mutex<State>,
    /// Tells the MPI thread of work.
    work: Condvar,
    /// Tells the rank what has come for it besides messages.
    news: Condvar,
}

impl World {
    pub(super) fn new(deadline: Duration, grace: Duration, Place { rank, size, neighbours, seat }: Place) -> Self {
        let deadline = deadline.min(LONGEST);
        World {
            rank,
            size,
            neighbours,
            seat,
            mailbox: Mailbox::default(),
            counts: Counts::default(),
            waits: Waiting { deadline, clock: Arc::new(SystemClock::default()) },
            grace: grace.min(deadline),
            pulse: PULSE.min(deadline / 4),
            state: Mutex::new(State::new(rank, size)),
            work: Condvar::new(),
            news: Condvar::new(),
        }
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn neighbours(&self) -> usize {
        self.neighbours
    }

    pub(super) fn seat(&self) -> usize {
        self.seat
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until there is work for the MPI thread, or for so long.
    pub(super) fn rest(&self, nap: Duration) {
        let state = self.lock();
        if state.outbox.is_empty() && state.order == Order::Run {
            drop(self.work.wait_timeout(state, nap));
        }
    }

    /// Changes the state and tells whoever waits for that.
    pub(super) fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let changed = change(&mut self.lock());
        self.work.notify_all();
        self.news.notify_all();
        changed
    }

    /// Waiting, for so long at most, until the state changes or `is_enough` of it.
    pub(super) fn wait_for_news<'a>(
        &self,
        state: MutexGuard<'a, State>,
        limit: Duration,
        mut is_enough: impl FnMut(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        let woken = self.news.wait_timeout_while(state, limit, |state| !is_enough(state));
        woken.map_or_else(|poisoned| poisoned.into_inner().0, |woken| woken.0)
    }

    /// A frame from another rank.
    pub(super) fn arrive(&self, from: usize, frame: Frame) {
        self.lock().branch.hear(from);
        match frame {
            Frame::Packet { stream, packet } => self.mailbox.deliver(stream, from, packet),
            Frame::Failed(failure) => self.hear(failure, Some(from)),
            Frame::Alive => {}
            Frame::Ask => self.change(|state| {
                let ended = state.end.as_ref().is_some_and(|End { error, .. }| error.is_none());
                let awaited = self.counts.awaited().filter(|_| state.end.is_none());
                state.post(from, Frame::Doing(Doing { awaited, ended }));
            }),
            Frame::Doing(doing) => {
                // All that it sent before it ended has come.
                if doing.ended {
                    self.mailbox.finish(from);
                }
                self.change(|state| state.asks.answer(from, doing));
            }
            Frame::Ended(report) => {
                if let Some(failure) = report.failure {
                    self.hear(failure, None);
                }
                self.change(|state| state.branch.end(from, report.ends));
            }
            Frame::Over(report) => {
                // What failed is told to those below with the end.
                if let Some(failure) = &report.failure {
                    self.note(failure);
                }
                self.change(|state| state.conclude(report));
            }
        }
    }

    /// Remembers a failure; true if it is the first.
    fn note(&self, failure: &RankFailure) -> bool {
        let first = self.change(|state| {
            let first = state.failure.is_none();
            state.failure.get_or_insert_with(|| (failure.clone(), Instant::now()));
            first
        });
        self.mailbox.fail(failure.clone());
        first
    }

    /// A failure, from another process or this one; the first is passed on to those that may not know it.
    fn hear(&self, failure: RankFailure, from: Option<usize>) {
        if self.note(&failure) {
            let others = tree::neighbours(self.rank, self.size).into_iter().filter(|&to| Some(to) != from);
            self.change(|state| others.for_each(|to| state.post(to, Frame::Failed(failure.clone()))));
        }
    }

    /// What is to be done, and the frames to send.
    pub(super) fn orders(&self) -> Orders {
        let (mut state, now) = (self.lock(), Instant::now());
        let was_over = state.branch.is_over;
        state.settle();
        if state.branch.is_over && !was_over {
            self.news.notify_all();
        }
        if now.saturating_duration_since(state.beat) >= self.pulse {
            state.beat = now;
            state.tell_alive();
        }
        if state.end.is_none()
            && state.failure.is_none()
            && let Some(peer) = state.asks.due(self.counts.waiting(), self.counts.awaited(), now, self.pulse)
        {
            state.asks.ask(peer);
            state.post(peer, Frame::Ask);
        }
        let outbox = std::mem::take(&mut state.outbox);
        Orders { order: state.order, outbox, is_failed: state.failure.is_some() }
    }
}

impl Carrier for World {
    type Storage = Host;

    fn waiting(&self) -> &Waiting {
        &self.waits
    }

    fn mailbox(&self, _: usize) -> &Mailbox<Packet> {
        &self.mailbox
    }

    fn counts(&self, _: usize) -> &Counts {
        &self.counts
    }

    /// Asks the rank's process, which answers at once if it lives.
    fn awaited(&self, rank: usize) -> Option<usize> {
        if rank == self.rank {
            return self.counts.awaited();
        }
        let question = self.change(|state| {
            state.post(rank, Frame::Ask);
            state.asks.ask(rank)
        });
        let is_enough =
            |state: &State| state.asks.answered(rank, question).is_some() || state.progress == Progress::Over;
        let state = self.wait_for_news(self.lock(), self.pulse.min(ANSWER), is_enough);
        state.asks.answered(rank, question)?.awaited
    }

    fn deliver(&self, stream: u64, _: usize, to: usize, packet: Packet) {
        self.lock().post(to, Frame::Packet { stream, packet });
        self.work.notify_all();
    }

    fn fail(&self, _: usize, failure: RankFailure) {
        self.hear(failure, None);
    }
}

#[cfg(test)]
mod tests;
