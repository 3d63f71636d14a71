//! The core of the in-process engine: a mailbox per rank, with failure and end of every rank told to all of them.
//!
//! Messages of different streams do not wait for each other. Nothing here knows about buffers or deadlines, so that
//! loom can model it (`tests/loom`).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::sync::{Condvar, Mutex, lock};

/// Messages of one ordered pair of ranks in one stream: the n-th that arrives is for the n-th that is expected.
#[derive(Debug)]
pub struct Channel<M> {
    arrived: u64,
    reserved: u64,
    messages: BTreeMap<u64, M>,
    unwanted: BTreeSet<u64>,
}

impl<M> Default for Channel<M> {
    fn default() -> Self {
        Channel { arrived: 0, reserved: 0, messages: BTreeMap::new(), unwanted: BTreeSet::new() }
    }
}

impl<M> Channel<M> {
    /// Adds the next message; gives it back if its receiver no longer wants it.
    pub fn push(&mut self, message: M) -> Option<M> {
        let number = self.arrived;
        self.arrived += 1;
        if self.unwanted.remove(&number) {
            return Some(message);
        }
        self.messages.insert(number, message);
        None
    }

    /// The number of the next message that nobody expects yet.
    pub fn reserve(&mut self) -> u64 {
        self.reserved += 1;
        self.reserved - 1
    }

    /// The message of this number, if it has arrived.
    pub fn take(&mut self, number: u64) -> Option<M> {
        self.messages.remove(&number)
    }

    /// Gives up a reserved message: out of the channel now, or when it arrives. Later messages keep their numbers.
    pub fn discard(&mut self, number: u64) -> Option<M> {
        let message = self.messages.remove(&number);
        if message.is_none() && number >= self.arrived {
            self.unwanted.insert(number);
        }
        message
    }
}

/// A rank that failed, and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RankFailure {
    /// The rank.
    pub rank: usize,
    /// What it said.
    pub reason: String,
}

/// The place of one expected message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    stream: u64,
    from: usize,
    number: u64,
}

impl Slot {
    /// The sender.
    pub fn from(&self) -> usize {
        self.from
    }
}

/// Why a message does not come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Some rank failed.
    Failed(RankFailure),
    /// The sender ended without sending it.
    Finished,
    /// The patience of the receiver is at its end.
    Late,
}

#[derive(Debug)]
struct State<M> {
    /// By stream and sender.
    channels: BTreeMap<(u64, usize), Channel<M>>,
    failure: Option<RankFailure>,
    finished: BTreeSet<usize>,
}

/// What other ranks sent to one rank.
#[derive(Debug)]
pub struct Mailbox<M> {
    state: Mutex<State<M>>,
    changed: Condvar,
}

impl<M> Default for Mailbox<M> {
    fn default() -> Self {
        let state = State { channels: BTreeMap::new(), failure: None, finished: BTreeSet::new() };
        Mailbox { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl<M> Mailbox<M> {
    /// Puts in a message from rank `from`; never waits for the receiver.
    pub fn deliver(&self, stream: u64, from: usize, message: M) {
        let unwanted = lock(&self.state).channels.entry((stream, from)).or_default().push(message);
        self.changed.notify_all();
        drop(unwanted);
    }

    /// The place of the next message from rank `from`.
    pub fn reserve(&self, stream: u64, from: usize) -> Slot {
        let number = lock(&self.state).channels.entry((stream, from)).or_default().reserve();
        Slot { stream, from, number }
    }

    /// Waits for a message. `patience` says how long to sleep before it is asked again, or `None` to give up.
    ///
    /// A failure comes before any message. The end of the sender comes after: it is told under the same lock as
    /// its messages and after them, so one that was sent is always found first.
    pub fn take(&self, slot: Slot, mut patience: impl FnMut() -> Option<Duration>) -> Result<M, Lost> {
        let mut state = lock(&self.state);
        loop {
            if let Some(failure) = &state.failure {
                return Err(Lost::Failed(failure.clone()));
            }
            let channel = state.channels.entry((slot.stream, slot.from)).or_default();
            if let Some(message) = channel.take(slot.number) {
                return Ok(message);
            }
            if state.finished.contains(&slot.from) {
                return Err(Lost::Finished);
            }
            let nap = patience().ok_or(Lost::Late)?;
            state = match self.changed.wait_timeout(state, nap) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Gives up an expected message, whether it has arrived or not.
    pub fn discard(&self, slot: Slot) {
        let message = lock(&self.state).channels.entry((slot.stream, slot.from)).or_default().discard(slot.number);
        drop(message);
    }

    /// The failure that was told, if any.
    pub fn failure(&self) -> Option<RankFailure> {
        lock(&self.state).failure.clone()
    }

    /// Tells a failure to the rank whose mailbox this is; later ones are dropped.
    pub(super) fn fail(&self, failure: RankFailure) {
        lock(&self.state).failure.get_or_insert(failure);
        self.changed.notify_all();
    }

    /// Rank `rank` sends nothing here any more.
    pub(super) fn finish(&self, rank: usize) {
        lock(&self.state).finished.insert(rank);
        self.changed.notify_all();
    }
}

/// The mailboxes of all ranks, and the first failure.
#[derive(Debug)]
pub struct Switchboard<M> {
    boxes: Vec<Mailbox<M>>,
    /// The rank that reported a failure first, and the failure.
    first: Mutex<Option<(usize, RankFailure)>>,
}

impl<M> Switchboard<M> {
    /// Empty mailboxes for `ranks` ranks.
    pub fn new(ranks: usize) -> Self {
        Switchboard { boxes: (0..ranks).map(|_| Mailbox::default()).collect(), first: Mutex::new(None) }
    }

    /// The mailbox of a rank.
    pub fn mailbox(&self, rank: usize) -> &Mailbox<M> {
        &self.boxes[rank]
    }

    /// Rank `by` reports a failure. The first report reaches every rank; later ones are dropped.
    pub fn fail(&self, by: usize, failure: RankFailure) {
        {
            let mut first = lock(&self.first);
            if first.is_some() {
                return;
            }
            *first = Some((by, failure.clone()));
        }
        self.boxes.iter().for_each(|mailbox| mailbox.fail(failure.clone()));
    }

    /// A rank sends nothing any more.
    pub fn finish(&self, rank: usize) {
        self.boxes.iter().for_each(|mailbox| mailbox.finish(rank));
    }

    /// The rank that reported a failure first, and the failure.
    pub fn first_failure(&self) -> Option<(usize, RankFailure)> {
        lock(&self.first).clone()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_discarded_message_keeps_its_number() {
        let mut channel = Channel::default();
        let (a, b, c) = (channel.reserve(), channel.reserve(), channel.reserve());
        assert_eq!(channel.push("a"), None);
        assert_eq!(channel.discard(a), Some("a"));
        assert_eq!(channel.discard(b), None);
        assert_eq!(channel.push("b"), Some("b"), "an unwanted message comes back when it arrives");
        assert_eq!(channel.push("c"), None);
        assert_eq!(channel.take(c), Some("c"));
        assert!(channel.messages.is_empty() && channel.unwanted.is_empty());
    }

    #[test]
    fn only_the_first_failure_counts() {
        let board = Switchboard::<()>::new(2);
        let failure = |rank, reason: &str| RankFailure { rank, reason: reason.into() };
        board.fail(1, failure(1, "disk full"));
        board.fail(0, failure(0, "tired"));
        assert_eq!(board.first_failure(), Some((1, failure(1, "disk full"))));
        assert_eq!(board.mailbox(0).failure(), Some(failure(1, "disk full")));
    }

    #[test]
    fn what_was_sent_before_the_end_is_found() {
        let board = Switchboard::new(2);
        let mailbox = board.mailbox(0);
        let (first, second) = (mailbox.reserve(0, 1), mailbox.reserve(0, 1));
        mailbox.deliver(0, 1, 7);
        board.finish(1);
        assert_eq!(mailbox.take(first, || None), Ok(7));
        assert_eq!(mailbox.take(second, || None), Err(Lost::Finished));
    }
}
