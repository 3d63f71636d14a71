//! The embedded engine: one thread per rank, a mailbox each.
//!
//! Buffers are moved between threads, never copied. A rank that fails, panics, ends early or falls silent gives
//! every other rank an error that names it, in the group that [`run`] makes and in every group split from it.
//! Errors number ranks as [`run`] does, also in such groups.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::communicator::Communicator;
use super::failure::{caught, failure_of, panicked, poisoned};
use super::mailbox::{Mailbox, RankFailure, Switchboard};
use super::member::Member;
use super::wire::{Carrier, Counts, Packet};
use crate::error::{CommError, Error, Result};
use crate::tensor::{Host, Storage};

pub use super::wire::Waiting;

/// Runs `body` on `ranks` threads, one per rank, and gives their results by rank.
///
/// # Errors
/// The error of the rank that failed first; a panic is [`CommError::Poisoned`] with its text.
///
/// ```
/// use context_parallel::comm::{Collectives, threads};
/// use context_parallel::tensor::Buffer;
///
/// let sums = threads::run(3, |comm| {
///     let mut sum = Buffer::from_slice(&[1.0f32, 10.0]);
///     comm.all_reduce(&mut sum)?;
///     Ok(sum.to_vec())
/// })?;
/// assert_eq!(sums, vec![vec![3.0, 30.0]; 3]);
/// # Ok::<(), context_parallel::error::Error>(())
/// ```
pub fn run<R: Send, F>(ranks: usize, body: F) -> Result<Vec<R>>
where
    F: Fn(ThreadComm) -> Result<R> + Sync,
{
    run_with(Waiting::default(), ranks, body)
}

/// [`run`] with a deadline or clock of one's own.
///
/// # Errors
/// As [`run`].
pub fn run_with<R: Send, F>(waiting: Waiting, ranks: usize, body: F) -> Result<Vec<R>>
where
    F: Fn(ThreadComm) -> Result<R> + Sync,
{
    run_on::<Host, R, F>(waiting, ranks, body)
}

/// [`run_with`] for buffers that live in `S`: the messages are those of any device, and the engine orders the
/// receiver's queue behind the sender's through [`Storage::leave`] and [`Storage::arrive`].
///
/// # Errors
/// As [`run`].
pub fn run_on<S: Storage, R: Send, F>(waiting: Waiting, ranks: usize, body: F) -> Result<Vec<R>>
where
    F: Fn(ThreadComm<S>) -> Result<R> + Sync,
{
    // Compiled for every body: loops, where chains of iterators would be most of what the compiler sees of a caller.
    let mut results = Vec::with_capacity(ranks);
    for _ in 0..ranks {
        results.push(None);
    }
    let results = Mutex::new(results);
    run_ranks::<S>(waiting, ranks, &|rank, comm| {
        let result = body(comm)?;
        results.lock().unwrap_or_else(PoisonError::into_inner)[rank] = Some(result);
        Ok(())
    })?;
    let mut by_rank = Vec::with_capacity(ranks);
    for result in results.into_inner().unwrap_or_else(PoisonError::into_inner) {
        by_rank.extend(result);
    }
    Ok(by_rank)
}

/// What one rank does; the results go another way, so that threads are compiled once.
type Body<'a, S> = dyn Fn(usize, ThreadComm<S>) -> Result<()> + Sync + 'a;

fn run_ranks<S: Storage>(waiting: Waiting, ranks: usize, body: &Body<S>) -> Result<()> {
    if ranks == 0 {
        return Err(CommError::NoSuchRank { rank: 0, size: 0 }.into());
    }
    let world = Arc::new(World::new(waiting, ranks));
    let world = &world;
    let results: Vec<Result<()>> = thread::scope(|scope| {
        let start = |rank| {
            let comm = ThreadComm(Member::everyone(world.clone(), rank, ranks));
            let thread = thread::Builder::new().name(format!("rank {rank}"));
            thread.spawn_scoped(scope, move || live(world, rank, comm, body))
        };
        let threads: Vec<_> = (0..ranks).map(|rank| start(rank).map_err(|e| world.unstarted(rank, &e))).collect();
        threads
            .into_iter()
            .enumerate()
            .map(|(rank, thread)| thread?.join().unwrap_or_else(|panic| Err(panicked(rank, &*panic))))
            .collect()
    });
    match world.board.first_failure() {
        None => results.into_iter().collect(),
        Some((by, failure)) => Err(results.into_iter().nth(by).and_then(Result::err).unwrap_or(poisoned(failure))),
    }
}

/// One rank's life: runs `body` and tells the others how it ended.
fn live<S: Storage>(world: &World<S>, rank: usize, comm: ThreadComm<S>, body: &Body<S>) -> Result<()> {
    let result = caught(rank, || body(rank, comm));
    match &result {
        Ok(()) => world.board.finish(rank),
        Err(error) => world.fail(rank, failure_of(rank, error)),
    }
    result
}

/// What the threads of a run share. Ranks are those of the run.
#[derive(Debug)]
struct World<S> {
    board: Switchboard<Packet<S>>,
    counts: Vec<Counts>,
    waiting: Waiting,
    /// Messages and notes, by sender.
    #[cfg(test)]
    delivered: Vec<std::sync::atomic::AtomicU64>,
}

impl<S: Storage> World<S> {
    fn new(waiting: Waiting, ranks: usize) -> Self {
        World {
            board: Switchboard::new(ranks),
            counts: (0..ranks).map(|_| Counts::default()).collect(),
            waiting,
            #[cfg(test)]
            delivered: (0..ranks).map(|_| Default::default()).collect(),
        }
    }

    fn unstarted(&self, rank: usize, error: &std::io::Error) -> Error {
        let error = CommError::Poisoned { rank, reason: format!("its thread does not start: {error}") }.into();
        self.fail(rank, failure_of(rank, &error));
        error
    }
}

impl<S: Storage> Carrier for World<S> {
    type Storage = S;

    fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    fn mailbox(&self, me: usize) -> &Mailbox<Packet<S>> {
        self.board.mailbox(me)
    }

    fn counts(&self, me: usize) -> &Counts {
        &self.counts[me]
    }

    fn awaited(&self, rank: usize) -> Option<usize> {
        self.counts.get(rank).and_then(Counts::awaited)
    }

    fn deliver(&self, stream: u64, from: usize, to: usize, packet: Packet<S>) {
        #[cfg(test)]
        self.delivered[from].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.board.mailbox(to).deliver(stream, from, packet);
    }

    fn fail(&self, by: usize, failure: RankFailure) {
        self.board.fail(by, failure);
    }
}

/// One rank of an in-process group, whose buffers live in `S`.
#[derive(Debug)]
pub struct ThreadComm<S: Storage = Host>(Member<World<S>>);

impl<S: Storage> Communicator<S> for ThreadComm<S> {
    delegate_to_member!(S);
}

#[cfg(test)]
mod scale;
#[cfg(test)]
mod tests;
