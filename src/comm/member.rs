//! One rank's side of an engine that delivers into mailboxes: exchanges, barriers and splits, the same whether ranks
//! are threads or processes.
//!
//! Barriers and splits are disseminated: in each of a few rounds a rank tells what it knows to the one that is twice as
//! far after it as in the round before, so it sends as many notes as the number of ranks has binary digits.

use std::sync::Arc;

use super::communicator::{Communicator, DynComm};
use super::expected::{Act, Expected};
use super::failure::poisoned;
use super::mailbox::RankFailure;
use super::parcel::{Message, Operation, Receive};
use super::pending::{Completion, Pending, Received};
use super::tag::Tag;
use super::tree;
use super::wire::{Carrier, NoteKind, Packet, SplitEntry};
use crate::error::{CommError, Result};
use crate::tensor::Storage;

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

/// One rank of a group.
#[derive(Debug)]
pub(super) struct Member<W> {
    wire: Arc<W>,
    group: u64,
    /// Ranks of the run, by rank of this group.
    members: Arc<[usize]>,
    rank: usize,
}

impl<W: Carrier> Member<W> {
    /// Rank `rank` of all `size` ranks.
    pub(super) fn everyone(wire: Arc<W>, rank: usize, size: usize) -> Self {
        Member { wire, group: ALL, members: (0..size).collect(), rank }
    }

    /// What carries this rank's messages.
    #[cfg(any(feature = "mpi", test))]
    pub(super) fn wire(&self) -> &W {
        &self.wire
    }

    fn me(&self) -> usize {
        self.members[self.rank]
    }

    /// Refuses ranks that do not exist, and this one.
    fn check_peer(&self, peer: usize, operation: &'static str) -> Result<()> {
        match self.members.get(peer) {
            None => Err(CommError::NoSuchRank { rank: peer, size: self.members.len() }.into()),
            Some(_) if peer == self.rank => Err(CommError::ToItself { rank: self.me(), operation }.into()),
            Some(_) => Ok(()),
        }
    }

    fn expect(&self, stream: u64, name: &'static str, peers: impl Iterator<Item = usize>) -> Expected<W> {
        Expected::new(&self.wire, self.me(), stream, name, peers.map(|peer| self.members[peer]))
    }

    fn deliver(&self, stream: u64, to: usize, packet: Packet<W::Storage>) {
        self.wire.deliver(stream, self.me(), self.members[to], packet);
    }

    /// Tells all ranks of the group what this one knows, which is one entry or nothing, and hears what they know: their
    /// entries follow this rank's, that of the rank before it first.
    fn disseminate(&self, kind: NoteKind, entries: &mut Vec<SplitEntry>) -> Result<()> {
        let (size, stream, each) = (self.members.len(), notes(self.group), entries.len());
        let senders = tree::distances(size).map(|distance| (self.rank + size - distance) % size);
        let mut expected = self.expect(stream, kind.name(), senders);
        expected.check()?;
        for distance in tree::distances(size) {
            let count = each * distance.min(size - distance);
            let note = Packet::Note { kind, entries: entries[..count].to_vec() };
            self.deliver(stream, (self.rank + distance) % size, note);
            match expected.next()? {
                Some((_, Packet::Note { kind: other, entries: news })) if other == kind && news.len() == count => {
                    entries.extend(news)
                }
                Some((peer, stray)) => return Err(expected.operation.protocol(peer, kind.describe(), &stray).into()),
                None => break,
            }
        }
        expected.check()
    }
}

impl<W: Carrier> Communicator<W::Storage> for Member<W> {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.members.len()
    }

    fn global_rank(&self, rank: usize) -> usize {
        self.members[rank]
    }

    fn exchange(
        &self,
        operation: Operation,
        messages: Vec<Message<W::Storage>>,
        receives: Vec<Receive>,
    ) -> Result<Pending<W::Storage>> {
        let receivers = messages.iter().flat_map(|message| message.to.ranks());
        for &peer in receivers.chain(receives.iter().map(|receive| &receive.from)) {
            self.check_peer(peer, operation.name)?;
        }
        let stream = parcels(self.group);
        let expected = self.expect(stream, operation.name, receives.iter().map(|receive| receive.from));
        expected.check()?;
        let tag = Tag::from(operation);
        for Message { to, mut parcel } in messages {
            let Some((&last, others)) = to.ranks().split_last() else { continue };
            parcel.storage.leave();
            for &to in others {
                let (rest, shared) = parcel.share();
                self.deliver(stream, to, Packet::Parcel { tag, parcel: shared });
                parcel = rest;
            }
            self.deliver(stream, last, Packet::Parcel { tag, parcel });
        }
        Ok(Pending::new(Exchange { expected, receives, tag, me: self.me() }))
    }

    fn barrier(&self) -> Result<()> {
        self.disseminate(NoteKind::Barrier, &mut Vec::new())
    }

    fn split(&self, color: usize, key: usize) -> Result<DynComm<W::Storage>> {
        let nth = self.wire.counts(self.me()).begin_split();
        let mine = SplitEntry { color: color as u64, key: key as u64, group: group(self.me(), nth) };
        let mut entries = vec![mine];
        self.disseminate(NoteKind::Split, &mut entries)?;
        // Key, rank in this group, number of the group if it leads.
        let size = self.members.len();
        let ranks = (0..size).map(|distance| (self.rank + size - distance) % size);
        let alike = entries.iter().zip(ranks).filter(|(entry, _)| entry.color == mine.color);
        let mut members: Vec<_> = alike.map(|(entry, rank)| (entry.key, rank, entry.group)).collect();
        members.sort_unstable();
        let rank = members.partition_point(|&(other, at, _)| (other, at) < (mine.key, self.rank));
        // The first member's number stands for the group: all members have it from its entry.
        let group = members[0].2;
        let members = members.into_iter().map(|(_, rank, _)| self.members[rank]).collect();
        Ok(Box::new(Member { wire: self.wire.clone(), group, members, rank }))
    }

    fn abort(&self, reason: &str) {
        self.wire.fail(self.me(), RankFailure { rank: self.me(), reason: reason.into() });
    }

    fn check(&self) -> Result<()> {
        self.wire.mailbox(self.me()).failure().map_or(Ok(()), |failure| Err(poisoned(failure)))
    }

    fn steps(&self) -> u64 {
        self.wire.counts(self.me()).operations()
    }
}

/// An exchange under way.
#[derive(Debug)]
struct Exchange<W: Carrier> {
    expected: Expected<W>,
    receives: Vec<Receive>,
    tag: Tag,
    /// This rank, of the run.
    me: usize,
}

impl<W: Carrier> Completion<W::Storage> for Exchange<W> {
    fn complete(mut self: Box<Self>) -> Result<Received<W::Storage>> {
        self.expected.check()?;
        let mut parcels = Vec::with_capacity(self.receives.len());
        for receive in &self.receives {
            let Some((peer, packet)) = self.expected.next()? else { break };
            let Act { name: operation, step } = self.expected.operation;
            match packet {
                Packet::Parcel { tag, .. } if tag.same_name(&self.tag) && tag != self.tag => {
                    let (own, found) = (self.tag.digest(), tag.digest());
                    return Err(CommError::Disagree { rank: self.me, peer, operation, step, own, found }.into());
                }
                Packet::Parcel { tag, mut parcel }
                    if tag == self.tag && (parcel.len(), parcel.dtype()) == (receive.len, receive.dtype) =>
                {
                    parcel.storage.arrive();
                    parcels.push(parcel)
                }
                found => {
                    let expected = format!("{} x {}", receive.len, receive.dtype);
                    let found = match &found {
                        Packet::Parcel { tag, .. } if !tag.same_name(&self.tag) => {
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
