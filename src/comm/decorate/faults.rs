//! A decorator that makes a rank fail, panic or fall silent at a chosen operation.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::comm::{Communicator, DynComm, Message, Operation, Parcel, Pending, Receive};
use crate::error::{CommError, Result};
use crate::tensor::Storage;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The operation returns an error.
    Fail,
    /// The operation panics.
    Panic,
    /// The operation does nothing and does not return before another rank has given up.
    Silence,
}

/// A communicator with a fault built in. Exchanges, collectives that move data, barriers and splits count as
/// operations, in this communicator and in those split from it.
#[derive(Debug)]
pub struct Faulty<C> {
    inner: C,
    /// The number of the operation, from 1, and what happens there.
    fault: Option<(u64, Fault)>,
    done: Arc<AtomicU64>,
}

impl<C> Faulty<C> {
    /// `fault` is the number of the operation, from 1, and what happens there; `None` is a sound rank.
    pub fn new(inner: C, fault: Option<(u64, Fault)>) -> Self {
        Faulty { inner, fault, done: Arc::default() }
    }

    fn step<S: Storage>(&self, operation: &'static str) -> Result<()>
    where
        C: Communicator<S>,
    {
        let step = self.done.fetch_add(1, Ordering::Relaxed) + 1;
        let Some((_, fault)) = self.fault.filter(|&(at, _)| at == step) else { return Ok(()) };
        let reason = format!("a fault was injected into {operation} (operation {step})");
        match fault {
            Fault::Fail => Err(CommError::Poisoned { rank: self.inner.global_rank(self.inner.rank()), reason }.into()),
            Fault::Panic => panic!("{reason}"),
            Fault::Silence => loop {
                self.inner.exchange("silence".into(), Vec::new(), Vec::new())?.wait()?;
                std::thread::sleep(Duration::from_millis(1));
            },
        }
    }
}

impl<S: Storage, C: Communicator<S>> Communicator<S> for Faulty<C> {
    as_inner!();

    fn exchange(&self, operation: Operation, messages: Vec<Message<S>>, receives: Vec<Receive>) -> Result<Pending<S>> {
        self.step(operation.name)?;
        self.inner.exchange(operation, messages, receives)
    }

    fn barrier(&self) -> Result<()> {
        self.step("barrier")?;
        self.inner.barrier()
    }

    fn split(&self, color: usize, key: usize) -> Result<DynComm<S>> {
        self.step("split")?;
        let inner = self.inner.split(color, key)?;
        Ok(Box::new(Faulty { inner, fault: self.fault, done: self.done.clone() }))
    }

    fn all_gather_parcels(&self, operation: Operation, mine: Parcel<S>, counts: &[usize]) -> Result<Vec<Parcel<S>>> {
        self.step(operation.name)?;
        self.inner.all_gather_parcels(operation, mine, counts)
    }

    fn all_to_all_parcels(
        &self,
        operation: Operation,
        parts: Vec<Parcel<S>>,
        counts: &[usize],
    ) -> Result<Vec<Parcel<S>>> {
        self.step(operation.name)?;
        self.inner.all_to_all_parcels(operation, parts, counts)
    }

    fn broadcast_parcel(&self, operation: Operation, mine: Option<Parcel<S>>, of: Receive) -> Result<Parcel<S>> {
        self.step(operation.name)?;
        self.inner.broadcast_parcel(operation, mine, of)
    }

    fn sum_parcel(&self, operation: Operation, values: &mut Parcel<S>) -> Result<bool> {
        self.step(operation.name)?;
        self.inner.sum_parcel(operation, values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::clock::ManualClock;
    use crate::comm::threads::{Waiting, run, run_with};

    #[test]
    fn a_fault_strikes_once_counted_through_splits() {
        for at in 1..=4 {
            let failed = run(2, |comm| {
                let fault = (comm.rank() == 1).then_some((at, Fault::Fail));
                let comm = Faulty::new(comm, fault);
                comm.barrier()?;
                let inner = comm.split(0, 0)?;
                inner.barrier()
            });
            let operation = ["barrier", "split", "barrier", "nothing"][at as usize - 1];
            let reason = format!("a fault was injected into {operation} (operation {at})");
            let expected = if at < 4 { Err(CommError::Poisoned { rank: 1, reason }.into()) } else { Ok(vec![(); 2]) };
            assert_eq!(failed, expected);
        }
    }

    #[test]
    fn silence_ends_at_the_deadline() {
        let clock = ManualClock::default();
        let options = Waiting { clock: Arc::new(clock.clone()), ..Waiting::default() };
        let failed = run_with(options, 2, |comm| {
            if comm.rank() == 0 {
                return comm.exchange("ring".into(), vec![], vec![Receive::of::<f32>(1, 1)])?.wait().map(drop);
            }
            let comm = Faulty::new(comm, Some((1, Fault::Silence)));
            std::thread::scope(|scope| {
                let silent = scope.spawn(|| comm.barrier());
                while !silent.is_finished() {
                    clock.advance(Duration::from_secs(60));
                    std::thread::sleep(Duration::from_millis(1));
                }
                silent.join().expect("silence does not panic")
            })
        });
        assert_eq!(
            failed,
            Err(CommError::Deadline { peer: 1, seconds: 600, operation: "ring", step: 1, waits: vec![] }.into())
        );
    }
}
