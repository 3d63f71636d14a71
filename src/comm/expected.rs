//! Messages that a rank waits for, and why one does not come.

use std::sync::Arc;
use std::time::Duration;

use super::failure::poisoned;
use super::mailbox::{Lost, Slot};
use super::wire::{Carrier, Packet, Waiting};
use crate::error::{CommError, Result};
use crate::tensor::Storage;

/// An operation of one rank, for errors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Act {
    pub(super) name: &'static str,
    /// How many operations this rank has begun, this one included.
    pub(super) step: u64,
}

impl Act {
    pub(super) fn protocol<S: Storage>(self, peer: usize, expected: String, found: &Packet<S>) -> CommError {
        let (operation, step, found) = (self.name, self.step, found.describe());
        CommError::Protocol { peer, operation, step, expected, found }
    }
}

/// Messages that a rank expects: gives them in order, and gives up the rest when dropped, so that messages sent
/// later find their places.
#[derive(Debug)]
pub(super) struct Expected<W: Carrier> {
    pub(super) wire: Arc<W>,
    /// Of the run.
    pub(super) rank: usize,
    pub(super) operation: Act,
    slots: std::vec::IntoIter<Slot>,
    /// When the wait began.
    since: Option<Duration>,
}

impl<W: Carrier> Expected<W> {
    /// The next message of a stream from each of `peers`, for an operation that begins now.
    pub(super) fn new(
        wire: &Arc<W>,
        rank: usize,
        stream: u64,
        name: &'static str,
        peers: impl Iterator<Item = usize>,
    ) -> Self {
        let mailbox = wire.mailbox(rank);
        let slots = peers.map(|peer| mailbox.reserve(stream, peer)).collect::<Vec<_>>().into_iter();
        let step = wire.counts(rank).begin_operation();
        Expected { wire: wire.clone(), rank, operation: Act { name, step }, slots, since: None }
    }

    /// The failure that was told, if any.
    pub(super) fn check(&self) -> Result<()> {
        self.wire.mailbox(self.rank).failure().map_or(Ok(()), |failure| Err(poisoned(failure)))
    }

    /// The next message and its sender.
    pub(super) fn next(&mut self) -> Result<Option<(usize, Packet<W::Storage>)>> {
        let Some(slot) = self.slots.next() else { return Ok(None) };
        let Waiting { deadline, clock } = self.wire.waiting();
        let since = *self.since.get_or_insert_with(|| clock.now());
        let left = || deadline.checked_sub(clock.now().saturating_sub(since)).filter(|left| !left.is_zero());
        let patience = || left().map(|left| clock.nap(left));
        let Act { name: operation, step } = self.operation;
        let peer = slot.from();
        let counts = self.wire.counts(self.rank);
        counts.wait_for(Some(peer));
        let taken = self.wire.mailbox(self.rank).take(slot, patience);
        let waits = if matches!(taken, Err(Lost::Late)) { self.wire.waits(peer) } else { Vec::new() };
        // A rank that gives up is still seen to wait until it has told why.
        if taken.is_ok() {
            counts.wait_for(None);
        }
        taken.map(|packet| Some((peer, packet))).map_err(|lost| {
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

impl<W: Carrier> Drop for Expected<W> {
    fn drop(&mut self) {
        let mailbox = self.wire.mailbox(self.rank);
        self.slots.by_ref().for_each(|slot| mailbox.discard(slot));
    }
}
