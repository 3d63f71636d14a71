//! One rank's side of an engine that delivers into mailboxes: exchanges, barriers, splits and deadlines, the same
//! whether ranks are threads or processes.

use std::any::Any;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::clock::{Clock, SystemClock};
use super::mailbox::{Failure, Lost, Mailbox, Slot};
use super::tag::Tag;
use super::{Communicator, Completion, Operation, Parcel, Pending, Receive, Received, Send};
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

/// What carries the messages of one rank to the mailboxes of the others. Ranks are those of the run.
pub(super) trait Wire: Debug + std::marker::Send + Sync + 'static {
    fn options(&self) -> &Options;

    /// The mailbox of a rank that lives in this process.
    fn mailbox(&self, me: usize) -> &Mailbox<Message>;

    /// What the rank `me`, which lives in this process, has done so far.
    fn counts(&self, me: usize) -> &Counts;

    /// The rank that `rank` waits for, as far as it is known here.
    fn awaited(&self, rank: usize) -> Option<usize>;

    /// The ranks that wait for each other from `rank` on: whom it waits for, whom that one waits for, up to a rank that
    /// waits for none or is there already.
    fn waits(&self, rank: usize) -> Vec<usize> {
        let (mut at, mut waits) = (rank, Vec::new());
        while let Some(next) = self.awaited(at) {
            let circle = next == rank || waits.contains(&next);
            waits.push(next);
            if circle {
                break;
            }
            at = next;
        }
        waits
    }

    /// Sends without waiting. Messages from one rank to another arrive in the order in which they were sent.
    fn deliver(&self, stream: u64, from: usize, to: usize, message: Message);

    /// Tells a failure to every rank.
    fn fail(&self, by: usize, failure: Failure);
}

/// What one rank has done so far, in all its groups.
#[derive(Debug, Default)]
pub(super) struct Counts {
    operations: AtomicU64,
    splits: AtomicU64,
    /// The rank of the run that it waits for, from 1; 0 if it waits for none.
    awaited: AtomicU64,
}

impl Counts {
    /// The rank of the run that it waits for.
    pub(super) fn awaited(&self) -> Option<usize> {
        self.awaited.load(Ordering::Relaxed).checked_sub(1).map(|rank| rank as usize)
    }

    /// Exchanges, barriers and splits.
    #[cfg(feature = "mpi")]
    pub(super) fn operations(&self) -> u64 {
        self.operations.load(Ordering::Relaxed)
    }
}

/// Runs one rank's `body`; a panic becomes its error.
pub(super) fn caught<R>(rank: usize, body: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(panicked(rank, &*panic)))
}

pub(super) fn panicked(rank: usize, panic: &(dyn Any + std::marker::Send)) -> Error {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    CommError::Poisoned { rank, reason: text.unwrap_or_else(|| "it panicked".into()) }.into()
}

pub(super) fn poisoned(Failure { rank, reason }: Failure) -> Error {
    CommError::Poisoned { rank, reason }.into()
}

/// How rank `by`, which ended with `error`, tells the others. What it had from another rank is passed on as that
/// rank's failure.
pub(super) fn failure_of(by: usize, error: &Error) -> Failure {
    match error {
        Error::Comm(CommError::Poisoned { rank, reason }) => Failure { rank: *rank, reason: reason.clone() },
        other => Failure { rank: by, reason: other.to_string() },
    }
}

/// What a message carries. Parcels are one stream, notes another, so that a barrier may stand on either side of an
/// exchange that is under way.
#[derive(Debug)]
pub(super) enum Message {
    Parcel { tag: Tag, parcel: Parcel },
    Barrier,
    Split { color: usize, key: usize, group: u64 },
}

/// The group of everyone.
const ALL: u64 = 0;

/// The group that rank `leader`, its first member, counts as its `nth`, from 1. Different from every other group's.
fn group(leader: usize, nth: u64) -> u64 {
    (leader as u64) << 32 | nth
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
            Message::Parcel { parcel, .. } => format!("{} x {}", parcel.len(), parcel.dtype()),
            Message::Barrier => "a barrier".into(),
            Message::Split { .. } => "a split".into(),
        }
    }
}

/// An operation of one rank, for errors.
#[derive(Clone, Copy, Debug)]
struct Act {
    name: &'static str,
    /// How many operations this rank has begun, this one included.
    step: u64,
}

impl Act {
    fn protocol(self, peer: usize, expected: String, found: &Message) -> Error {
        let (operation, step, found) = (self.name, self.step, found.describe());
        CommError::Protocol { peer, operation, step, expected, found }.into()
    }
}

/// Messages that a rank expects: gives them in order, and gives up the rest when dropped, so that messages sent
/// later find their places.
#[derive(Debug)]
struct Expected<W: Wire> {
    wire: Arc<W>,
    rank: usize,
    operation: Act,
    slots: std::vec::IntoIter<Slot>,
    /// When the wait began.
    since: Option<Duration>,
}

impl<W: Wire> Expected<W> {
    fn check(&self) -> Result<()> {
        self.wire.mailbox(self.rank).failure().map_or(Ok(()), |failure| Err(poisoned(failure)))
    }

    /// The next message and its sender.
    fn next(&mut self) -> Result<Option<(usize, Message)>> {
        let Some(slot) = self.slots.next() else { return Ok(None) };
        let Options { deadline, clock } = self.wire.options();
        let since = *self.since.get_or_insert_with(|| clock.now());
        let left = || deadline.checked_sub(clock.now().saturating_sub(since)).filter(|left| !left.is_zero());
        let patience = || left().map(|left| clock.nap(left));
        let Act { name: operation, step } = self.operation;
        let peer = slot.from();
        let awaited = &self.wire.counts(self.rank).awaited;
        awaited.store(peer as u64 + 1, Ordering::Relaxed);
        let taken = self.wire.mailbox(self.rank).take(slot, patience);
        let waits = if matches!(taken, Err(Lost::Late)) { self.wire.waits(peer) } else { Vec::new() };
        // A rank that gives up is still seen to wait until it has told why.
        if taken.is_ok() {
            awaited.store(0, Ordering::Relaxed);
        }
        taken.map(|message| Some((peer, message))).map_err(|lost| {
            // The message may still come.
            self.wire.mailbox(self.rank).discard(slot);
            match lost {
                Lost::Failed(failure) => poisoned(failure),
                Lost::Finished => {
                    let reason = format!("it finished without taking part in {operation} (step {step})");
                    CommError::Poisoned { rank: peer, reason }.into()
                }
                Lost::Late => CommError::Deadline { peer, seconds: deadline.as_secs(), operation, step, waits }.into(),
            }
        })
    }
}

impl<W: Wire> Drop for Expected<W> {
    fn drop(&mut self) {
        let mailbox = self.wire.mailbox(self.rank);
        self.slots.by_ref().for_each(|slot| mailbox.discard(slot));
    }
}

/// One rank of a group.
#[derive(Debug)]
pub(super) struct Member<W> {
    wire: Arc<W>,
    group: u64,
    /// Ranks of the run, by rank of this group.
    members: Arc<[usize]>,
    rank: usize,
}

impl<W: Wire> Member<W> {
    /// Rank `rank` of all `size` ranks.
    pub(super) fn everyone(wire: Arc<W>, rank: usize, size: usize) -> Self {
        Member { wire, group: ALL, members: (0..size).collect(), rank }
    }

    /// What carries this rank's messages.
    #[cfg(feature = "mpi")]
    pub(super) fn wire(&self) -> &W {
        &self.wire
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

    fn expect(&self, stream: u64, name: &'static str, peers: impl Iterator<Item = usize>) -> Expected<W> {
        let mailbox = self.wire.mailbox(self.me());
        let slots = peers.map(|peer| mailbox.reserve(stream, self.members[peer])).collect::<Vec<_>>().into_iter();
        let step = self.wire.counts(self.me()).operations.fetch_add(1, Ordering::Relaxed) + 1;
        Expected { wire: self.wire.clone(), rank: self.me(), operation: Act { name, step }, slots, since: None }
    }

    fn deliver(&self, stream: u64, to: usize, message: Message) {
        self.wire.deliver(stream, self.me(), self.members[to], message);
    }

    /// Sends a note to every other rank and gives what they sent, by rank without this one.
    fn tell_all(&self, name: &'static str, note: impl Fn() -> Message) -> Result<(Act, Vec<(usize, Message)>)> {
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

impl<W: Wire> Communicator for Member<W> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.members.len()
    }

    fn global_rank(&self, rank: usize) -> usize {
        self.members[rank]
    }

    fn exchange(&self, operation: Operation, sends: Vec<Send>, receives: Vec<Receive>) -> Result<Pending> {
        for peer in sends.iter().map(|send| send.to).chain(receives.iter().map(|receive| receive.from)) {
            self.peer(peer, operation.name)?;
        }
        let expected = self.expect(parcels(self.group), operation.name, receives.iter().map(|receive| receive.from));
        expected.check()?;
        let tag = Tag::from(operation);
        for Send { to, parcel } in sends {
            self.deliver(parcels(self.group), to, Message::Parcel { tag, parcel });
        }
        Ok(Pending::new(Exchange { expected, receives, tag, me: self.me() }))
    }

    fn barrier(&self) -> Result<()> {
        let (operation, notes) = self.tell_all("barrier", || Message::Barrier)?;
        let stray = notes.iter().find(|(_, note)| !matches!(note, Message::Barrier));
        stray.map_or(Ok(()), |(peer, note)| Err(operation.protocol(*peer, "a barrier".into(), note)))
    }

    fn split(&self, color: usize, key: usize) -> Result<Box<dyn Communicator>> {
        let nth = self.wire.counts(self.me()).splits.fetch_add(1, Ordering::Relaxed) + 1;
        let mine = group(self.me(), nth);
        let (operation, notes) = self.tell_all("split", || Message::Split { color, key, group: mine })?;
        // (key, rank in this group, rank of the run, group if it leads); notes come in the order of this group's ranks.
        let mut members = vec![(key, self.rank, self.me(), mine)];
        let others = (0..self.size()).filter(|&peer| peer != self.rank);
        for (rank, (peer, note)) in others.zip(notes) {
            match note {
                Message::Split { color: other, key, group } if other == color => members.push((key, rank, peer, group)),
                Message::Split { .. } => {}
                stray => return Err(operation.protocol(peer, "a split".into(), &stray)),
            }
        }
        members.sort_unstable();
        let rank = members.partition_point(|&(other, at, ..)| (other, at) < (key, self.rank));
        // The first member's number stands for the group: all members have it from its note.
        let group = members[0].3;
        let members = members.into_iter().map(|(_, _, member, _)| member).collect();
        Ok(Box::new(Member { wire: self.wire.clone(), group, members, rank }))
    }

    fn abort(&self, reason: &str) {
        self.wire.fail(self.me(), Failure { rank: self.me(), reason: reason.into() });
    }
}

/// An exchange under way.
#[derive(Debug)]
struct Exchange<W: Wire> {
    expected: Expected<W>,
    receives: Vec<Receive>,
    tag: Tag,
    me: usize,
}

impl<W: Wire> Completion<super::Host> for Exchange<W> {
    fn complete(mut self: Box<Self>) -> Result<Received> {
        self.expected.check()?;
        let mut parcels = Vec::with_capacity(self.receives.len());
        for receive in &self.receives {
            let Some((peer, message)) = self.expected.next()? else { break };
            match message {
                Message::Parcel { tag, .. } if tag.same_name(&self.tag) && tag != self.tag => {
                    let Act { name: operation, step } = self.expected.operation;
                    let (own, found) = (self.tag.digest(), tag.digest());
                    return Err(CommError::Disagree { rank: self.me, peer, operation, step, own, found }.into());
                }
                Message::Parcel { tag, parcel }
                    if tag == self.tag && (parcel.len(), parcel.dtype()) == (receive.len, receive.dtype) =>
                {
                    parcels.push(parcel)
                }
                found => {
                    let expected = format!("{} x {}", receive.len, receive.dtype);
                    let Act { name: operation, step } = self.expected.operation;
                    let found = match &found {
                        Message::Parcel { tag, .. } if !tag.same_name(&self.tag) => {
                            format!("{} of {}", found.describe(), tag.name())
                        }
                        found => found.describe(),
                    };
                    return Err(CommError::Protocol { peer, operation, step, expected, found }.into());
                }
            }
        }
        Ok(Received { parcels })
    }
}
