//! What a process's rank and its MPI thread share, and how a run starts and ends.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::super::clock::SystemClock;
use super::super::mailbox::{Failure, Mailbox};
use super::super::member::{self, Counts, Message, Wire, failure_of, poisoned};
use super::engine::Engine;
use super::frame::{End, Frame};
use super::{Ended, Options};
use crate::error::{CommError, Error, Result};

/// How long MPI may take to end the processes before this one ends alone.
const ABORT: Duration = Duration::from_secs(5);
/// No wait is longer than a century, so that times stay within what a clock can say.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// How often a process tells that it is alive, at least.
const PULSE: Duration = Duration::from_secs(10);

/// How a run can be left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// Every rank has ended.
    Clean,
    /// Some rank neither ends nor fails.
    Stuck,
}

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

#[derive(Debug)]
pub(super) struct State {
    pub(super) outbox: VecDeque<Outgoing>,
    pub(super) order: Order,
    pub(super) progress: Progress,
    /// The first failure that this process had or heard of, and when.
    failure: Option<(Failure, Instant)>,
    /// How each rank ended, if it has.
    ends: Vec<Option<End>>,
    /// When each rank's process was last heard of.
    heard: Vec<Instant>,
    /// Whom each rank waited for when it last said that it is alive, and when that was; nothing if it has done
    /// something since.
    awaited: Vec<Option<(usize, Instant)>>,
    /// When this process last told that it is alive.
    beat: Instant,
    /// Whether everything that was handed over is sent.
    pub(super) flushed: bool,
}

/// One process of a run.
#[derive(Debug)]
pub(super) struct World {
    rank: usize,
    neighbours: usize,
    mailbox: Mailbox<Message>,
    counts: Counts,
    waits: member::Options,
    grace: Duration,
    /// How often this process tells that it is alive.
    pulse: Duration,
    state: Mutex<State>,
    /// Tells the MPI thread of work.
    work: Condvar,
    /// Tells the rank, in the end, how far the others are.
    news: Condvar,
}

/// What MPI says about this process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) neighbours: usize,
}

impl World {
    /// Starts MPI in a thread of its own.
    pub(super) fn start(options: Options) -> Result<Arc<Self>> {
        let (tell, told) = std::sync::mpsc::channel();
        let thread = thread::Builder::new().name("mpi".into()).spawn(move || {
            let Some((engine, place)) = Engine::start(options.part) else { return };
            let (world, handed) = (Arc::new(World::new(options, place)), tell);
            if handed.send(world.clone()).is_ok() {
                engine.run(&world);
            }
        });
        let failed = |reason: String| CommError::NotStarted { reason }.into();
        thread.map_err(|error| failed(format!("its thread does not start: {error}")))?;
        told.recv_timeout(options.deadline).map_err(|lost| match lost {
            std::sync::mpsc::RecvTimeoutError::Timeout => {
                failed(format!("the other processes did not come within {} s", options.deadline.as_secs()))
            }
            std::sync::mpsc::RecvTimeoutError::Disconnected => failed("this process has used MPI before".into()),
        })
    }

    fn new(options: Options, Place { rank, size, neighbours }: Place) -> Self {
        let Options { deadline, grace, .. } = options;
        let deadline = deadline.min(LONGEST);
        let state = State {
            outbox: VecDeque::new(),
            order: Order::Run,
            progress: Progress::Running,
            failure: None,
            ends: vec![None; size],
            heard: vec![Instant::now(); size],
            awaited: vec![None; size],
            beat: Instant::now(),
            flushed: true,
        };
        World {
            rank,
            neighbours,
            mailbox: Mailbox::default(),
            counts: Counts::default(),
            waits: member::Options { deadline, clock: Arc::new(SystemClock::default()) },
            grace: grace.min(deadline),
            pulse: PULSE.min(deadline / 4),
            state: Mutex::new(state),
            work: Condvar::new(),
            news: Condvar::new(),
        }
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn size(&self) -> usize {
        self.lock().ends.len()
    }

    pub(super) fn neighbours(&self) -> usize {
        self.neighbours
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

    /// A frame from another rank.
    pub(super) fn arrive(&self, from: usize, frame: Frame) {
        {
            let (mut state, now) = (self.lock(), Instant::now());
            state.heard[from] = now;
            state.awaited[from] = match frame {
                Frame::Alive { awaited: Some(rank) } => Some((rank, now)),
                _ => None,
            };
        }
        match frame {
            Frame::Message { stream, message } => self.mailbox.deliver(stream, from, message),
            Frame::Failed(failure) => {
                self.note(failure);
            }
            Frame::Alive { .. } => {}
            Frame::Ended(end) => {
                if end.error.is_none() {
                    self.mailbox.finish(from);
                }
                self.change(|state| state.ends[from] = Some(end));
            }
        }
    }

    /// Remembers a failure; true if it is the first.
    fn note(&self, failure: Failure) -> bool {
        let first = self.change(|state| {
            let first = state.failure.is_none();
            state.failure.get_or_insert((failure.clone(), Instant::now()));
            first
        });
        self.mailbox.fail(failure);
        first
    }

    /// What is to be done, and the frames to send.
    pub(super) fn orders(&self) -> (Order, VecDeque<Outgoing>) {
        let mut state = self.lock();
        if state.ends[self.rank].is_none() && state.beat.elapsed() >= self.pulse {
            state.beat = Instant::now();
            let awaited = self.counts.awaited();
            self.tell_all(&mut state, || Frame::Alive { awaited });
        }
        (state.order, std::mem::take(&mut state.outbox))
    }

    /// Hands a frame for every other rank to the MPI thread.
    fn tell_all(&self, state: &mut State, frame: impl Fn() -> Frame) {
        let others = (0..state.ends.len()).filter(|&rank| rank != self.rank);
        state.outbox.extend(others.map(|rank| (rank, frame())));
        state.flushed = state.outbox.is_empty() && state.flushed;
    }

    /// The end of this rank: tells the others, waits for theirs, and judges the run.
    pub(super) fn end<R>(self: Arc<Self>, result: Result<R>) -> Ended<R> {
        if let Err(error) = &result {
            self.fail(self.rank, failure_of(self.rank, error));
        }
        let error = result.as_ref().err();
        let mine = End { error: error.map(Error::to_string), is_input: error.is_some_and(Error::is_input) };
        self.change(|state| {
            self.tell_all(state, || Frame::Ended(mine.clone()));
            state.ends[self.rank] = Some(mine.clone());
        });
        let exit = self.gather_ends();
        let state = self.lock();
        let result = result.and_then(|value| match &state.failure {
            Some((failure, _)) => Err(poisoned(failure.clone())),
            None => Ok(value),
        });
        let repeated = state.ends[..self.rank].contains(&Some(mine));
        let is_input = state.ends.iter().flatten().any(|end| end.is_input);
        drop(state);
        Ended { result, repeated, is_input, exit, world: Some(self) }
    }

    /// Waits until every rank has ended and everything is sent. A rank may work on for as long as its process shows
    /// signs of life, but only for the grace once something has failed.
    fn gather_ends(&self) -> Exit {
        let start = Instant::now();
        let mut state = self.lock();
        loop {
            let missing = (0..state.ends.len()).filter(|&rank| state.ends[rank].is_none());
            let quietest = missing.min_by_key(|&rank| state.heard[rank]);
            if quietest.is_none() && state.flushed {
                return Exit::Clean;
            }
            if state.progress == Progress::Over {
                return Exit::Stuck;
            }
            let due = match (&state.failure, quietest) {
                (Some((_, when)), _) => start.max(*when) + self.grace,
                (None, Some(rank)) => start.max(state.heard[rank]) + self.waits.deadline,
                (None, None) => start + self.waits.deadline,
            };
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let failed = state.failure.is_some();
                drop(state);
                if !failed {
                    let (seconds, operation) = (self.waits.deadline.as_secs(), "the end of the run");
                    let peer = quietest.unwrap_or(self.rank);
                    let error = CommError::Deadline {
                        peer,
                        seconds,
                        operation,
                        step: self.counts.operations(),
                        waits: self.waits(peer),
                    }
                    .into();
                    self.fail(self.rank, failure_of(self.rank, &error));
                }
                return Exit::Stuck;
            }
            state =
                self.news.wait_timeout(state, left).map_or_else(|poisoned| poisoned.into_inner().0, |woken| woken.0);
        }
    }

    /// Ends MPI; all processes if the run is stuck, without returning then.
    pub(super) fn leave(&self, exit: Exit) {
        match exit {
            Exit::Clean => {
                self.change(|state| state.order = Order::Finalize);
                self.wait_until_over(self.grace);
            }
            Exit::Stuck => {
                self.change(|state| state.order = Order::Abort);
                self.wait_until_over(ABORT);
                std::process::abort();
            }
        }
    }

    fn wait_until_over(&self, limit: Duration) {
        let state = self.lock();
        drop(self.news.wait_timeout_while(state, limit, |state| state.progress != Progress::Over));
    }
}

impl Wire for World {
    fn options(&self) -> &member::Options {
        &self.waits
    }

    fn mailbox(&self, _: usize) -> &Mailbox<Message> {
        &self.mailbox
    }

    fn counts(&self, _: usize) -> &Counts {
        &self.counts
    }

    fn awaited(&self, rank: usize) -> Option<usize> {
        if rank == self.rank {
            return self.counts.awaited();
        }
        // What a rank said long ago says nothing of what it does now.
        let (awaited, when) = (*self.lock().awaited.get(rank)?)?;
        (when.elapsed() < 3 * self.pulse).then_some(awaited)
    }

    fn deliver(&self, stream: u64, _: usize, to: usize, message: Message) {
        let mut state = self.lock();
        state.outbox.push_back((to, Frame::Message { stream, message }));
        state.flushed = false;
        drop(state);
        self.work.notify_all();
    }

    fn fail(&self, _: usize, failure: Failure) {
        // What another rank told is told to all by that rank.
        if self.note(failure.clone()) {
            self.change(|state| self.tell_all(state, || Frame::Failed(failure.clone())));
        }
    }
}
