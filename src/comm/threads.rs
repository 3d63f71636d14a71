//! The embedded engine: one thread per rank, a mailbox each.
//!
//! Buffers are moved between threads, never copied. A rank that fails, panics, ends early or falls silent gives
//! every other rank an error that names it, in the group that [`run`] makes and in every group split from it.
//! Errors number ranks as [`run`] does, also in such groups.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::clock::{Clock, SystemClock};
use super::groups::Groups;
use super::mailbox::{Failure, Lost, Slot, Switchboard};
use super::{Communicator, Completion, Parcel, Pending, Receive, Received};
use crate::error::{CommError, Error, Result};

/// How the ranks of a run wait for each other.
#[derive(Clone, Debug)]
pub struct Options {
    /// The longest that one wait, barrier or split may take. Default: 10 minutes.
    pub deadline: Duration,
    /// What the deadline is measured with. Default: the time that passes.
    pub clock: Arc<dyn Clock>,
}

impl Default for Options {
    fn default() -> Self {
        Options { deadline: Duration::from_secs(600), clock: Arc::new(SystemClock::default()) }
    }
}

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
    run_with(Options::default(), ranks, body)
}

/// [`run`] with a deadline or clock of one's own.
///
/// # Errors
/// As [`run`].
pub fn run_with<R: Send, F>(options: Options, ranks: usize, body: F) -> Result<Vec<R>>
where
    F: Fn(ThreadComm) -> Result<R> + Sync,
{
    if ranks == 0 {
        return Err(CommError::NoSuchRank { rank: 0, size: 0 }.into());
    }
    let world = Arc::new(World::new(options, ranks));
    let (world, body) = (&world, &body);
    let results: Vec<Result<R>> = thread::scope(|scope| {
        let start = |rank| {
            let comm = ThreadComm::everyone(world.clone(), rank);
            let thread = thread::Builder::new().name(format!("rank {rank}"));
            thread.spawn_scoped(scope, move || live(world, rank, || body(comm)))
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
fn live<R>(world: &World, rank: usize, body: impl FnOnce() -> Result<R>) -> Result<R> {
    let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(panicked(rank, &*panic)));
    match &result {
        Ok(_) => world.board.finish(rank),
        Err(error) => world.fail(rank, error),
    }
    result
}

fn panicked(rank: usize, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    CommError::Poisoned { rank, reason: text.unwrap_or_else(|| "it panicked".into()) }.into()
}

fn poisoned(Failure { rank, reason }: Failure) -> Error {
    CommError::Poisoned { rank, reason }.into()
}

/// What a message carries. Parcels are one stream, notes another, so that a barrier may stand on either side of an
/// exchange that is under way.
#[derive(Debug)]
enum Message {
    Parcel(Parcel),
    Barrier,
    Split { color: usize, key: usize },
}

/// The parcels of a group.
fn parcels(group: u64) -> u64 {
    2 * group
}

/// The notes of a group: barriers and splits.
fn notes(group: u64) -> u64 {
    2 * group + 1
}

impl Message {
    fn describe(&self) -> String {
        match self {
            Message::Parcel(parcel) => format!("{} x {}", parcel.len(), parcel.dtype()),
            Message::Barrier => "a barrier".into(),
            Message::Split { .. } => "a split".into(),
        }
    }
}

/// What the threads of a run share. Ranks are those of the run.
#[derive(Debug)]
struct World {
    board: Switchboard<Message>,
    groups: Groups,
    /// Operations of each rank so far, in all its groups.
    steps: Vec<AtomicU64>,
    options: Options,
}

impl World {
    fn new(options: Options, ranks: usize) -> Self {
        let steps = (0..ranks).map(|_| AtomicU64::new(0)).collect();
        World { board: Switchboard::new(ranks), groups: Groups::default(), steps, options }
    }

    /// Rank `by` ended with `error`. What it had from another rank is passed on as that rank's failure.
    fn fail(&self, by: usize, error: &Error) {
        let failure = match error {
            Error::Comm(CommError::Poisoned { rank, reason }) => Failure { rank: *rank, reason: reason.clone() },
            other => Failure { rank: by, reason: other.to_string() },
        };
        self.board.fail(by, failure);
    }

    fn unstarted(&self, rank: usize, error: &std::io::Error) -> Error {
        let error = CommError::Poisoned { rank, reason: format!("its thread does not start: {error}") }.into();
        self.fail(rank, &error);
        error
    }
}

/// An operation of one rank, for errors.
#[derive(Clone, Copy, Debug)]
struct Operation {
    name: &'static str,
    /// How many operations this rank has begun, this one included.
    step: u64,
}

impl Operation {
    fn protocol(self, peer: usize, expected: String, found: &Message) -> Error {
        let (operation, step, found) = (self.name, self.step, found.describe());
        CommError::Protocol { peer, operation, step, expected, found }.into()
    }
}

/// Messages that a rank expects: gives them in order, and gives up the rest when dropped, so that messages sent
/// later find their places.
#[derive(Debug)]
struct Expected {
    world: Arc<World>,
    rank: usize,
    operation: Operation,
    slots: std::vec::IntoIter<Slot>,
    /// When the wait began.
    since: Option<Duration>,
}

impl Expected {
    fn check(&self) -> Result<()> {
        self.world.board.mailbox(self.rank).failure().map_or(Ok(()), |failure| Err(poisoned(failure)))
    }

    /// The next message and its sender.
    fn next(&mut self) -> Result<Option<(usize, Message)>> {
        let Some(slot) = self.slots.next() else { return Ok(None) };
        let Options { deadline, clock } = &self.world.options;
        let since = *self.since.get_or_insert_with(|| clock.now());
        let left = || deadline.checked_sub(clock.now().saturating_sub(since)).filter(|left| !left.is_zero());
        let patience = || left().map(|left| clock.nap(left));
        let Operation { name: operation, step } = self.operation;
        let peer = slot.from();
        self.world.board.mailbox(self.rank).take(slot, patience).map(|message| Some((peer, message))).map_err(|lost| {
            // The message may still come.
            self.world.board.mailbox(self.rank).discard(slot);
            match lost {
                Lost::Failed(failure) => poisoned(failure),
                Lost::Finished => {
                    let reason = format!("it finished without taking part in {operation} (step {step})");
                    CommError::Poisoned { rank: peer, reason }.into()
                }
                Lost::Late => CommError::Deadline { peer, seconds: deadline.as_secs(), operation, step }.into(),
            }
        })
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        let mailbox = self.world.board.mailbox(self.rank);
        self.slots.by_ref().for_each(|slot| mailbox.discard(slot));
    }
}

/// One rank of an in-process group.
#[derive(Debug)]
pub struct ThreadComm {
    world: Arc<World>,
    group: u64,
    /// Ranks of the run, by rank of this group.
    members: Arc<[usize]>,
    rank: usize,
    /// How often this group was split.
    splits: AtomicU64,
}

impl ThreadComm {
    fn everyone(world: Arc<World>, rank: usize) -> Self {
        let members = (0..world.steps.len()).collect();
        ThreadComm { world, group: Groups::ALL, members, rank, splits: AtomicU64::new(0) }
    }

    fn me(&self) -> usize {
        self.members[self.rank]
    }

    /// The rank of the run that is `peer` here.
    fn peer(&self, peer: usize, operation: &'static str) -> Result<usize> {
        match self.members.get(peer) {
            None => Err(CommError::NoSuchRank { rank: peer, size: self.size() }.into()),
            Some(_) if peer == self.rank => Err(CommError::ToItself { rank: self.me(), operation }.into()),
            Some(&member) => Ok(member),
        }
    }

    fn expect(&self, stream: u64, name: &'static str, peers: impl Iterator<Item = usize>) -> Expected {
        let mailbox = self.world.board.mailbox(self.me());
        let slots = peers.map(|peer| mailbox.reserve(stream, self.members[peer])).collect::<Vec<_>>().into_iter();
        let step = self.world.steps[self.me()].fetch_add(1, Ordering::Relaxed) + 1;
        Expected { world: self.world.clone(), rank: self.me(), operation: Operation { name, step }, slots, since: None }
    }

    fn deliver(&self, stream: u64, to: usize, message: Message) {
        self.world.board.mailbox(self.members[to]).deliver(stream, self.me(), message);
    }

    /// Sends a note to every other rank and gives what they sent, by rank without this one.
    fn tell_all(&self, name: &'static str, note: impl Fn() -> Message) -> Result<(Operation, Vec<(usize, Message)>)> {
        let others = || (0..self.size()).filter(|&peer| peer != self.rank);
        let mut expected = self.expect(notes(self.group), name, others());
        expected.check()?;
        others().for_each(|peer| self.deliver(notes(self.group), peer, note()));
        let mut received = Vec::with_capacity(self.size());
        while let Some(note) = expected.next()? {
            received.push(note);
        }
        expected.check()?;
        Ok((expected.operation, received))
    }
}

impl Communicator for ThreadComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.members.len()
    }

    fn global_rank(&self, rank: usize) -> usize {
        self.members[rank]
    }

    fn exchange(&self, operation: &'static str, sends: Vec<super::Send>, receives: Vec<Receive>) -> Result<Pending> {
        for peer in sends.iter().map(|send| send.to).chain(receives.iter().map(|receive| receive.from)) {
            self.peer(peer, operation)?;
        }
        let expected = self.expect(parcels(self.group), operation, receives.iter().map(|receive| receive.from));
        expected.check()?;
        sends.into_iter().for_each(|send| self.deliver(parcels(self.group), send.to, Message::Parcel(send.parcel)));
        Ok(Pending::new(Exchange { expected, receives }))
    }

    fn barrier(&self) -> Result<()> {
        let (operation, notes) = self.tell_all("barrier", || Message::Barrier)?;
        let stray = notes.iter().find(|(_, note)| !matches!(note, Message::Barrier));
        stray.map_or(Ok(()), |(peer, note)| Err(operation.protocol(*peer, "a barrier".into(), note)))
    }

    fn split(&self, color: usize, key: usize) -> Result<Box<dyn Communicator>> {
        let (operation, notes) = self.tell_all("split", || Message::Split { color, key })?;
        // (key, rank in this group, rank of the run); the notes come in the order of this group's ranks.
        let mut members = vec![(key, self.rank, self.me())];
        let others = (0..self.size()).filter(|&peer| peer != self.rank);
        for (rank, (peer, note)) in others.zip(notes) {
            match note {
                Message::Split { color: other, key } if other == color => members.push((key, rank, peer)),
                Message::Split { .. } => {}
                stray => return Err(operation.protocol(peer, "a split".into(), &stray)),
            }
        }
        members.sort_unstable();
        let rank = members.partition_point(|&(other, at, _)| (other, at) < (key, self.rank));
        let nth = self.splits.fetch_add(1, Ordering::Relaxed);
        let group = self.world.groups.number(self.group, nth, color);
        let members = members.into_iter().map(|(_, _, member)| member).collect();
        Ok(Box::new(ThreadComm { world: self.world.clone(), group, members, rank, splits: AtomicU64::new(0) }))
    }

    fn abort(&self, reason: &str) {
        self.world.board.fail(self.me(), Failure { rank: self.me(), reason: reason.into() });
    }
}

/// An exchange under way.
#[derive(Debug)]
struct Exchange {
    expected: Expected,
    receives: Vec<Receive>,
}

impl Completion<super::Host> for Exchange {
    fn complete(mut self: Box<Self>) -> Result<Received> {
        self.expected.check()?;
        let mut parcels = Vec::with_capacity(self.receives.len());
        for receive in &self.receives {
            let Some((peer, message)) = self.expected.next()? else { break };
            match message {
                Message::Parcel(parcel) if parcel.len() == receive.len && parcel.dtype() == receive.dtype => {
                    parcels.push(parcel)
                }
                found => {
                    let expected = format!("{} x {}", receive.len, receive.dtype);
                    return Err(self.expected.operation.protocol(peer, expected, &found));
                }
            }
        }
        Ok(Received { parcels })
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
