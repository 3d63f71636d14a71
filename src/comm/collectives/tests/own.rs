//! An engine that has collectives of its own.

use std::sync::atomic::{AtomicU64, Ordering};

use super::super::*;
use crate::comm::decorate::traffic::Counted;
use crate::comm::threads::{ThreadComm, run};
use crate::comm::{Message, Pending};

/// An engine whose collectives are its own.
struct Own {
    inner: ThreadComm,
    /// All-gathers, all-to-alls, broadcasts, sums.
    calls: [AtomicU64; 4],
}

impl Own {
    fn call(&self, which: usize) {
        self.calls[which].fetch_add(1, Ordering::Relaxed);
    }
}

impl Communicator for Own {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn exchange(&self, operation: Operation, messages: Vec<Message>, receives: Vec<Receive>) -> Result<Pending> {
        self.inner.exchange(operation, messages, receives)
    }

    fn barrier(&self) -> Result<()> {
        self.inner.barrier()
    }

    fn split(&self, color: usize, key: usize) -> Result<Box<dyn Communicator>> {
        self.inner.split(color, key)
    }

    fn abort(&self, reason: &str) {
        self.inner.abort(reason);
    }

    fn all_gather_parcels(&self, operation: Operation, mine: Parcel, counts: &[usize]) -> Result<Vec<Parcel>> {
        self.call(0);
        self.inner.all_gather_parcels(operation, mine, counts)
    }

    fn all_to_all_parcels(&self, operation: Operation, parts: Vec<Parcel>, counts: &[usize]) -> Result<Vec<Parcel>> {
        self.call(1);
        self.inner.all_to_all_parcels(operation, parts, counts)
    }

    fn broadcast_parcel(&self, operation: Operation, mine: Option<Parcel>, of: Receive) -> Result<Parcel> {
        self.call(2);
        self.inner.broadcast_parcel(operation, mine, of)
    }

    /// A sum that no order of ranks gives, so that it shows.
    fn sum_parcel(&self, _: Operation, values: &mut Parcel) -> Result<bool> {
        self.call(3);
        let len = values.len();
        *values = Buffer::from_slice(&vec![-1f32; len]).into();
        Ok(true)
    }
}

#[test]
fn an_engine_that_has_collectives_of_its_own_is_asked_through_whatever_is_around_it() {
    let calls = run(3, |inner| {
        let own = Own { inner, calls: Default::default() };
        let counted = Counted::new(&own);
        let traffic = counted.traffic();
        let comm: Box<dyn Communicator + '_> = Box::new(counted);
        let values = |comm: &dyn Communicator| Buffer::from_slice(&[comm.rank() as f32; 4]);
        comm.all_gather_v(values(&*comm), &[4; 3])?;
        comm.all_to_all_v((0..3).map(|_| values(&*comm)).collect(), &[4; 3])?;
        comm.broadcast(2, &mut values(&*comm))?;
        // A block counts once per rank that receives it, whatever the engine does.
        let root = if comm.rank() == 2 { 32 } else { 0 };
        assert_eq!(["all_gather", "all_to_all", "broadcast"].map(|name| traffic.bytes_in(name)), [32, 32, root]);
        let [mut ours, mut by_rank, mut by_engine] = [(); 3].map(|()| values(&*comm));
        comm.all_reduce(&mut ours)?;
        comm.all_reduce_in(Sum::Ranks, &mut by_rank)?;
        comm.all_reduce_in(Sum::Engine, &mut by_engine)?;
        assert_eq!((ours[0], by_rank[3], &by_engine[..]), (3.0, 3.0, &[-1f32; 4][..]));
        Ok(own.calls.each_ref().map(|calls| calls.load(Ordering::Relaxed)))
    });
    // A sum in rank order is a trade and a gathering.
    assert_eq!(calls, Ok(vec![[3, 3, 1, 1]; 3]));
}
