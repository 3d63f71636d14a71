//! One rank's NCCL communicator: what is under way there, what went wrong, and its end.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::super::communicator::{Communicator, DynComm};
use super::end;
use super::library::{Id, Raw};
use crate::error::{CommError, Error, Result};
use crate::tensor::cuda::cudarc::driver::sys::CUstream;
use crate::tensor::cuda::{Begun, CudaMemory, Event, Kept, Place, Watch};

/// How long an exchange waits for NCCL to put it on the stream: longer than that takes once ranks are connected, so
/// that it is there before the tile that is asked for next.
const EAGER: Duration = Duration::from_millis(2);
/// How long a rank whose NCCL fails waits for the one that made it fail to say why.
const GRACE: Duration = Duration::from_secs(5);
/// Operations that are remembered before it is asked which of them are over.
const REMEMBERED: usize = 64;

/// An operation, for errors.
#[derive(Clone, Debug)]
pub(super) struct Act {
    pub(super) name: &'static str,
    pub(super) step: u64,
    /// The other ranks that it takes, of the run.
    pub(super) peers: Vec<usize>,
}

/// Memory that an operation uses.
#[derive(Debug)]
pub(super) enum Used {
    /// Of nobody else.
    Own(CudaMemory),
    /// That somebody else has.
    Others(Kept),
}

/// The point at which an operation is over, once the operation is on the stream.
pub(super) type End = Arc<OnceLock<Arc<Event>>>;

/// An operation that NCCL has been called for, and has not put on the stream yet.
#[derive(Debug)]
struct Launching {
    act: Act,
    used: Vec<Used>,
    begun: Begun,
    end: End,
}

/// An operation on the stream.
#[derive(Debug)]
struct Flight {
    act: Act,
    end: Arc<Event>,
}

#[derive(Debug, Default)]
struct State {
    /// Nothing once something went wrong.
    raw: Option<Raw>,
    launching: Option<Launching>,
    flights: VecDeque<Flight>,
    /// When something was over last.
    moved: Option<Instant>,
    failure: Option<Error>,
}

impl State {
    /// Ends the communicator; the first failure stays.
    fn fail(&mut self, error: &Error) {
        self.failure.get_or_insert_with(|| error.clone());
        if let Some(raw) = self.raw.take() {
            raw.abort();
        }
        (self.launching, self.flights) = (None, VecDeque::new());
    }

    fn is_open(&self) -> bool {
        self.launching.is_some() || !self.flights.is_empty()
    }

    /// Forgets what is over.
    fn forget(&mut self) {
        while self.flights.front().is_some_and(|flight| flight.end.is_passed().unwrap_or(true)) {
            self.flights.pop_front();
            self.moved = Some(Instant::now());
        }
    }
}

/// One rank's communicator.
pub(super) struct Link {
    control: Arc<DynComm>,
    place: Arc<Place>,
    deadline: Duration,
    state: Mutex<State>,
    /// Whether its end has begun.
    is_ending: bool,
}

impl Link {
    /// Joins the other ranks of `control`, who know `id` too.
    pub(super) fn join(control: Arc<DynComm>, place: Arc<Place>, deadline: Duration, id: &Id) -> Result<Arc<Link>> {
        let (rank, ranks) = (control.rank(), control.size());
        let peers = (0..ranks).filter(|&peer| peer != rank).map(|peer| control.global_rank(peer)).collect();
        let act = Act { name: "nccl", step: control.steps(), peers };
        place.enter();
        let raw = Raw::join(ranks, rank, id);
        let link = Link { control, place, deadline, state: Mutex::default(), is_ending: false };
        let raw = raw.map_err(|reason| link.why(&act, reason))?;
        link.lock().raw = Some(raw);
        link.guarded(|state| link.until_done(state, &act))?;
        let link = Arc::new(link);
        let watch: Arc<dyn Watch> = link.clone();
        link.place.watch(Arc::downgrade(&watch));
        Ok(link)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something unless something has gone wrong; if that goes wrong, nothing is done from then on.
    fn guarded<R>(&self, attempt: impl FnOnce(&mut State) -> Result<R>) -> Result<R> {
        let mut state = self.lock();
        if let Some(failure) = &state.failure {
            return Err(failure.clone());
        }
        // NCCL may use the stream in any of its calls.
        self.place.enter();
        let done = attempt(&mut state);
        if let Err(error) = &done {
            state.fail(error);
        }
        done
    }

    /// Ends the communicator because of `error`, and gives it back.
    pub(super) fn fail(&self, error: Error) -> Error {
        self.lock().fail(&error);
        error
    }

    /// What has gone wrong, if anything has.
    pub(super) fn check(&self) -> Result<()> {
        self.guarded(|_| self.control.check())
    }

    /// The error of a rank whose NCCL says `reason`: that of the rank which made it so, if that one tells.
    fn why(&self, act: &Act, reason: String) -> Error {
        let since = Instant::now();
        while since.elapsed() < GRACE.min(self.deadline) {
            if let Err(error) = self.control.check() {
                return error;
            }
            thread::sleep(Duration::from_millis(1));
        }
        let rank = self.control.global_rank(self.control.rank());
        CommError::Engine { engine: "NCCL", rank, operation: act.name, step: act.step, reason }.into()
    }

    /// Whether to go on waiting for others after so long.
    fn hope(&self, act: &Act, waited: Duration) -> Result<()> {
        self.control.check()?;
        // A host that waits for the silent rank knows which it is, and tells.
        if waited < self.deadline.saturating_add(self.deadline / 4) {
            return Ok(());
        }
        let Act { name: operation, step, ref peers } = *act;
        let (peer, seconds) = (peers.first().copied().unwrap_or_default(), waited.as_secs());
        Err(CommError::Deadline { peer, seconds, operation, step, waits: Vec::new() }.into())
    }

    fn is_done(&self, state: &State, act: &Act) -> Result<bool> {
        match state.raw.as_ref().map_or(Ok(true), Raw::is_done) {
            Ok(is_done) => Ok(is_done),
            Err(reason) => Err(self.why(act, reason)),
        }
    }

    /// Waits until NCCL has done what it was called for.
    fn until_done(&self, state: &mut State, act: &Act) -> Result<()> {
        let since = Instant::now();
        while !self.is_done(state, act)? {
            self.hope(act, since.elapsed())?;
            nap(since.elapsed());
        }
        Ok(())
    }

    /// Whether what was called for is on the stream; what it uses is kept until the stream is past it.
    fn is_launched(&self, state: &mut State) -> Result<bool> {
        let Some(launching) = &state.launching else { return Ok(true) };
        if !self.is_done(state, &launching.act)? {
            return Ok(false);
        }
        let point = self.place.transferred();
        self.place.check()?;
        if let (Some(Launching { act, used, begun, end }), Some(point)) = (state.launching.take(), point) {
            self.place.end_transfer(act.name, begun);
            for memory in used {
                match memory {
                    Used::Own(memory) => memory.kept().until(&point),
                    Used::Others(kept) => kept.until(&point),
                }
            }
            state.flights.push_back(Flight { act, end: point.clone() });
            let _ = end.set(point);
        }
        Ok(true)
    }

    fn until_launched(&self, state: &mut State) -> Result<()> {
        let since = Instant::now();
        while !self.is_launched(state)? {
            if let Some(Launching { act, .. }) = &state.launching {
                self.hope(act, since.elapsed())?;
            }
            nap(since.elapsed());
        }
        Ok(())
    }

    /// Puts an operation on the stream for transfers, after what was computed so far. Where ranks have to connect
    /// first, it gets there later, and [`reached`](Self::reached) waits for that.
    pub(super) fn post(
        &self,
        act: Act,
        used: Vec<Used>,
        call: impl FnOnce(&Raw, CUstream) -> Result<(), String>,
    ) -> Result<End> {
        self.guarded(|state| {
            self.control.check()?;
            self.until_launched(state)?;
            if state.flights.len() >= REMEMBERED {
                state.forget();
            }
            self.place.begin_transfer();
            self.place.check()?;
            let begun = self.place.measure_transfer();
            if let Some(raw) = &state.raw {
                call(raw, self.place.transfers()).map_err(|reason| self.why(&act, reason))?;
            }
            let end = End::default();
            state.launching = Some(Launching { act, used, begun, end: end.clone() });
            let since = Instant::now();
            while !self.is_launched(state)? && since.elapsed() < EAGER {
                thread::yield_now();
            }
            Ok(end)
        })
    }

    /// Makes the stream for computing wait for an operation, and the host until it is on its stream.
    pub(super) fn reached(&self, end: &End) -> Result<()> {
        // Also where it was launched long ago: whoever gave up has let it end with whatever was there.
        self.guarded(|state| if end.get().is_none() { self.until_launched(state) } else { Ok(()) })?;
        if let Some(end) = end.get() {
            self.place.wait_for(end);
        }
        Ok(())
    }

    /// The end of a communicator that nobody has any more: once every rank is there, or nothing can be hoped for.
    pub(super) fn finish(&self) {
        let nothing = Act { name: "nccl", step: 0, peers: Vec::new() };
        let since = Instant::now();
        let finished = self.guarded(|state| {
            self.until_launched(state)?;
            while state.is_open() {
                state.forget();
                self.hope(&nothing, since.elapsed())?;
                nap(since.elapsed());
            }
            let finalized = state.raw.as_ref().map_or(Ok(()), Raw::finalize);
            finalized.map_err(|reason| self.why(&nothing, reason))?;
            self.until_done(state, &nothing)?;
            if let Some(raw) = state.raw.take() {
                raw.destroy();
            }
            Ok(())
        });
        // What stood in the way has ended the communicator too, and there is nobody to tell.
        drop(finished);
    }
}

impl Watch for Link {
    fn is_open(&self) -> bool {
        self.lock().is_open()
    }

    fn look(&self, waited: Duration) -> Result<()> {
        self.guarded(|state| {
            self.is_launched(state)?;
            state.forget();
            let act = match (state.flights.front(), &state.launching) {
                (Some(Flight { act, .. }), _) | (None, Some(Launching { act, .. })) => act.clone(),
                (None, None) => return Ok(()),
            };
            self.is_done(state, &act)?;
            // As long as exchanges end, nobody is silent, however long a step takes.
            self.hope(&act, state.moved.map_or(waited, |moved| waited.min(moved.elapsed())))
        })
    }

    fn give_up(&self, error: &Error) {
        self.lock().fail(error);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let state = std::mem::take(self.state.get_mut().unwrap_or_else(PoisonError::into_inner));
        match state.raw {
            None => {}
            Some(raw) if self.is_ending => raw.abort(),
            Some(_) => end::later(Link {
                control: self.control.clone(),
                place: self.place.clone(),
                deadline: self.deadline,
                state: Mutex::new(state),
                is_ending: true,
            }),
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Link({:?})", self.place)
    }
}

/// Sleeps longer, the longer one has waited.
fn nap(waited: Duration) {
    match waited {
        waited if waited < EAGER => thread::yield_now(),
        waited => thread::sleep((waited / 8).min(Duration::from_millis(1))),
    }
}
