//! How a run ends: every process learns how all ranks did, and MPI ends.

use std::time::{Duration, Instant};

use super::super::failure::{failure_of, poisoned};
use super::super::wire::Carrier as _;
use super::frame::End;
use super::state::{Order, Progress};
use super::world::World;
use crate::error::{CommError, Error, Result};

/// How long MPI may take to end the processes before this one ends alone.
const ABORT: Duration = Duration::from_secs(5);

/// How a run can be left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exit {
    /// Every rank has ended.
    Clean,
    /// Some rank neither ends nor fails.
    Stuck,
}

/// What a process knows of the run once its rank has ended, and all others have or are given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Judgement {
    /// Whether a rank before this one ended in the same way.
    pub(super) repeated: bool,
    /// Whether some rank failed because of the user's input.
    pub(super) is_input: bool,
    pub(super) exit: Exit,
}

impl World {
    /// The end of this rank: tells the others, waits for theirs, and judges the run.
    pub(super) fn end<R>(&self, result: Result<R>) -> (Result<R>, Judgement) {
        if let Err(error) = &result {
            self.fail(self.rank(), failure_of(self.rank(), error));
        }
        let error = result.as_ref().err();
        let mine = End { error: error.map(Error::to_string), is_input: error.is_some_and(Error::is_input) };
        self.change(|state| {
            state.branch.report.add(self.rank(), mine.clone());
            state.end = Some(mine.clone());
        });
        let exit = self.wait_for_ends();
        let state = self.lock();
        let result = result.and_then(|value| match &state.failure {
            Some((failure, _)) => Err(poisoned(failure.clone())),
            None => Ok(value),
        });
        let ends = &state.branch.report.ends;
        let repeated = ends.iter().any(|(rank, end)| *rank < self.rank() && *end == mine);
        let is_input = ends.iter().any(|(_, end)| end.is_input);
        (result, Judgement { repeated, is_input, exit })
    }

    /// Waits until every rank has ended and everything is sent. A rank may work on for as long as its process shows
    /// signs of life, but only for the grace once something has failed.
    fn wait_for_ends(&self) -> Exit {
        let start = Instant::now();
        // Since when only what this process has to send is missing, if that is all.
        let mut alone = None;
        let mut state = self.lock();
        loop {
            if state.branch.is_over && state.flushed {
                return Exit::Clean;
            }
            if state.progress == Progress::Over {
                return Exit::Stuck;
            }
            let quietest = state.branch.quietest();
            alone = quietest.is_none().then(|| alone.unwrap_or_else(Instant::now));
            let due = match (&state.failure, quietest) {
                (Some((_, when)), _) => start.max(*when) + self.grace,
                (None, Some((_, heard))) => start.max(heard) + self.waits.deadline,
                (None, None) => alone.unwrap_or(start) + self.waits.deadline,
            };
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let (failed, unanswered) = (state.failure.is_some(), state.asks.unanswered());
                drop(state);
                if !failed {
                    let peer = quietest.map(|(rank, _)| rank).or(unanswered).unwrap_or(self.rank());
                    let (seconds, operation) = (self.waits.deadline.as_secs(), "the end of the run");
                    let (step, waits) = (self.counts.operations(), self.waits(peer));
                    let error = CommError::Deadline { peer, seconds, operation, step, waits }.into();
                    self.fail(self.rank(), failure_of(self.rank(), &error));
                }
                return Exit::Stuck;
            }
            let mut is_woken = false;
            state = self.wait_for_news(state, left, |_| std::mem::replace(&mut is_woken, true));
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
        drop(self.wait_for_news(self.lock(), limit, |state| state.progress == Progress::Over));
    }
}
