//! A decorator that counts what a rank sends.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::comm::{Communicator, DynComm, Message, Operation, Parcel, Pending, Receive};
use crate::error::Result;
use crate::tensor::Storage;

/// What one rank sent: payload handed to the communicator for other ranks, a block once per rank that receives it.
/// What an engine does inside (barriers, splits, how a collective that only moves data reaches all) is not counted: a
/// block of an all-gather or a broadcast counts for the rank that it comes from, whoever passes it on.
#[derive(Debug)]
pub struct Traffic {
    /// By receiver.
    links: Vec<(AtomicU64, AtomicU64)>,
    operations: Mutex<BTreeMap<&'static str, u64>>,
}

impl Traffic {
    fn new(size: usize) -> Self {
        Traffic { links: (0..size).map(|_| Default::default()).collect(), operations: Mutex::default() }
    }

    /// Bytes to all other ranks.
    pub fn bytes(&self) -> u64 {
        self.links.iter().map(|(bytes, _)| bytes.load(Ordering::Relaxed)).sum()
    }

    /// Messages to all other ranks.
    pub fn messages(&self) -> u64 {
        self.links.iter().map(|(_, messages)| messages.load(Ordering::Relaxed)).sum()
    }

    /// Bytes to rank `to` of the communicator that was wrapped first; 0 for a rank that does not exist.
    pub fn bytes_to(&self, to: usize) -> u64 {
        self.links.get(to).map_or(0, |(bytes, _)| bytes.load(Ordering::Relaxed))
    }

    /// Messages to rank `to` of the communicator that was wrapped first; 0 for a rank that does not exist.
    pub fn messages_to(&self, to: usize) -> u64 {
        self.links.get(to).map_or(0, |(_, messages)| messages.load(Ordering::Relaxed))
    }

    /// Bytes sent by exchanges of this name.
    pub fn bytes_in(&self, operation: &str) -> u64 {
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).get(operation).copied().unwrap_or(0)
    }

    /// Starts again from zero.
    pub fn reset(&self) {
        for (bytes, messages) in &self.links {
            bytes.store(0, Ordering::Relaxed);
            messages.store(0, Ordering::Relaxed);
        }
        self.operations.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn add(&self, operation: &'static str, to: usize, sent: u64) {
        if let Some((bytes, messages)) = self.links.get(to) {
            bytes.fetch_add(sent, Ordering::Relaxed);
            messages.fetch_add(1, Ordering::Relaxed);
        }
        *self.operations.lock().unwrap_or_else(PoisonError::into_inner).entry(operation).or_default() += sent;
    }
}

/// Counts what goes through a communicator and through those split from it.
#[derive(Debug)]
pub struct Counted<C> {
    inner: C,
    /// By rank of `inner`: the rank of the communicator that was wrapped first; `None` if this is the one.
    ranks: Option<Vec<usize>>,
    traffic: Arc<Traffic>,
}

impl<C> Counted<C> {
    /// Counts from zero.
    pub fn new<S: Storage>(inner: C) -> Self
    where
        C: Communicator<S>,
    {
        let traffic = Arc::new(Traffic::new(inner.size()));
        Counted { inner, ranks: None, traffic }
    }

    /// The counters; they may be read while the ranks run and after they have ended.
    pub fn traffic(&self) -> Arc<Traffic> {
        self.traffic.clone()
    }

    /// A message to rank `to` of `inner`.
    fn count(&self, operation: Operation, to: usize, bytes: usize) {
        self.traffic.add(operation.name, self.ranks.as_ref().map_or(to, |ranks| ranks[to]), bytes as u64);
    }
}

impl<S: Storage, C: Communicator<S>> Communicator<S> for Counted<C> {
    as_inner!();

    fn exchange(&self, operation: Operation, messages: Vec<Message<S>>, receives: Vec<Receive>) -> Result<Pending<S>> {
        let sent: Vec<_> = messages.iter().map(|message| (message.to.clone(), message.parcel.bytes())).collect();
        let pending = self.inner.exchange(operation, messages, receives)?;
        for (to, bytes) in &sent {
            to.ranks().iter().for_each(|&to| self.count(operation, to, *bytes));
        }
        Ok(pending)
    }

    fn barrier(&self) -> Result<()> {
        self.inner.barrier()
    }

    fn split(&self, color: usize, key: usize) -> Result<DynComm<S>> {
        let inner = self.inner.split(color, key)?;
        // Global ranks lead from the new numbers to those of `self`, and from there to the first.
        let here: Vec<usize> = (0..self.size()).map(|rank| self.inner.global_rank(rank)).collect();
        let first = |at: usize| self.ranks.as_ref().map_or(at, |ranks| ranks[at]);
        let place = |global: usize| here.iter().position(|&other| other == global).map_or(global, first);
        let ranks = (0..inner.size()).map(|rank| place(inner.global_rank(rank))).collect();
        Ok(Box::new(Counted { inner, ranks: Some(ranks), traffic: self.traffic.clone() }))
    }

    fn all_gather_parcels(&self, operation: Operation, mine: Parcel<S>, counts: &[usize]) -> Result<Vec<Parcel<S>>> {
        let bytes = mine.bytes();
        let parcels = self.inner.all_gather_parcels(operation, mine, counts)?;
        let others = (0..self.inner.size()).filter(|&to| to != self.inner.rank() && bytes > 0);
        others.for_each(|to| self.count(operation, to, bytes));
        Ok(parcels)
    }

    fn all_to_all_parcels(
        &self,
        operation: Operation,
        parts: Vec<Parcel<S>>,
        counts: &[usize],
    ) -> Result<Vec<Parcel<S>>> {
        let bytes: Vec<usize> = parts.iter().map(Parcel::bytes).collect();
        let parcels = self.inner.all_to_all_parcels(operation, parts, counts)?;
        let others = bytes.into_iter().enumerate().filter(|&(to, bytes)| to != self.inner.rank() && bytes > 0);
        others.for_each(|(to, bytes)| self.count(operation, to, bytes));
        Ok(parcels)
    }

    fn broadcast_parcel(&self, operation: Operation, mine: Option<Parcel<S>>, of: Receive) -> Result<Parcel<S>> {
        let parcel = self.inner.broadcast_parcel(operation, mine, of)?;
        let receivers = (0..self.inner.size()).filter(|&to| to != of.from && of.from == self.inner.rank());
        receivers.for_each(|to| self.count(operation, to, of.bytes()));
        Ok(parcel)
    }

    /// Counted as payload for every other rank, as the sums are that engines have in common.
    fn sum_parcel(&self, operation: Operation, values: &mut Parcel<S>) -> Result<bool> {
        let bytes = values.bytes();
        let summed = self.inner.sum_parcel(operation, values)?;
        let others = (0..self.inner.size()).filter(|&to| summed && to != self.inner.rank());
        others.for_each(|to| self.count(operation, to, bytes));
        Ok(summed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::{Collectives, threads::run};
    use crate::tensor::Buffer;

    #[test]
    fn counts_are_exact() {
        let counts = [3, 0, 5];
        let traffic = run(3, |comm| {
            let comm = Counted::new(comm);
            comm.barrier()?;
            let mine = Buffer::from_slice(&vec![0f32; counts[comm.rank()]]);
            comm.all_gather_v(mine, &counts)?;
            Ok(comm.traffic())
        });
        let traffic = traffic.expect("no rank fails");
        let seen: Vec<_> = traffic.iter().map(|t| (t.bytes(), t.messages(), t.bytes_to(1), t.messages_to(1))).collect();
        assert_eq!(seen, [(24, 2, 12, 1), (0, 0, 0, 0), (40, 2, 20, 1)], "rank 1 has nothing to send");
        assert_eq!((traffic[0].bytes_in("all_gather"), traffic[0].bytes_in("barrier")), (24, 0));
    }

    #[test]
    fn splits_count_into_the_same_totals() {
        let traffic = run(4, |comm| {
            // Wrapped after a split: ranks are those of the first half, 3 and 1.
            let halves = comm.split(comm.rank() % 2, 4 - comm.rank())?;
            let comm = Counted::new(halves);
            comm.exchange("outer".into(), vec![Message::new(1 - comm.rank(), Buffer::from_slice(&[1f64]))], vec![])?
                .wait()?;
            let turned = comm.split(0, 1 - comm.rank())?;
            turned
                .exchange("inner".into(), vec![Message::new(1 - turned.rank(), Buffer::from_slice(&[1u8]))], vec![])?
                .wait()?;
            // Nobody leaves before all have sent.
            turned.barrier()?;
            Ok((comm.rank(), comm.traffic()))
        });
        for (rank, traffic) in traffic.expect("no rank fails") {
            assert_eq!((traffic.bytes(), traffic.messages()), (9, 2));
            assert_eq!((traffic.bytes_to(1 - rank), traffic.bytes_to(rank)), (9, 0));
            assert_eq!((traffic.bytes_in("outer"), traffic.bytes_in("inner")), (8, 1));
            traffic.reset();
            assert_eq!((traffic.bytes(), traffic.messages(), traffic.bytes_in("inner")), (0, 0, 0));
        }
    }

    #[test]
    fn a_message_for_many_counts_once_for_each() {
        let traffic = run(4, |comm| {
            let comm = Counted::new(comm);
            let messages = match comm.rank() {
                1 => vec![Message::new(vec![0, 3], Buffer::from_slice(&[1f32; 5]))],
                _ => vec![],
            };
            let receives = if [0, 3].contains(&comm.rank()) { vec![Receive::of::<f32>(1, 5)] } else { vec![] };
            comm.exchange("news".into(), messages, receives)?.wait()?;
            Ok(comm.traffic())
        });
        let traffic = traffic.expect("no rank fails");
        assert_eq!((traffic[1].bytes(), traffic[1].messages(), traffic[1].bytes_in("news")), (40, 2, 40));
        assert_eq!([0, 2, 3].map(|to| traffic[1].bytes_to(to)), [20, 0, 20]);
        assert_eq!(traffic[0].bytes(), 0);
    }

    #[test]
    fn what_is_passed_on_counts_for_whom_it_comes_from() {
        let traffic = run(9, |comm| {
            let comm = Counted::new(comm);
            comm.all_gather_v(Buffer::from_slice(&[comm.rank() as f32]), &[1; 9])?;
            comm.broadcast(4, &mut Buffer::from_slice(&[0f64; 3]))?;
            Ok(comm.traffic())
        });
        for (rank, traffic) in traffic.expect("no rank fails").iter().enumerate() {
            assert_eq!((traffic.bytes_in("all_gather"), traffic.bytes_to(rank)), (32, 0));
            assert_eq!(traffic.bytes_in("broadcast"), if rank == 4 { 8 * 24 } else { 0 });
        }
    }
}
