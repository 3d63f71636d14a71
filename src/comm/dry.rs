//! A communicator without peers: every message that is expected comes, and has no contents.

use super::communicator::{Communicator, DynComm};
use super::parcel::{Message, Operation, Parcel, Receive};
use super::pending::{Completion, Pending, Received};
use crate::error::Result;
use crate::tensor::Imagined;

/// Stands for the group of ranks in a rehearsal on [`DryRun`](crate::tensor::DryRun).
#[derive(Clone, Copy, Debug)]
pub struct DryComm {
    rank: usize,
    size: usize,
}

impl DryComm {
    /// Rank `rank` of `size`.
    pub fn new(rank: usize, size: usize) -> Self {
        DryComm { rank, size }
    }
}

impl Communicator<Imagined> for DryComm {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(
        &self,
        _operation: Operation,
        _messages: Vec<Message<Imagined>>,
        receives: Vec<Receive>,
    ) -> Result<Pending<Imagined>> {
        Ok(Pending::new(Arrived(receives)))
    }

    fn barrier(&self) -> Result<()> {
        Ok(())
    }

    /// The group itself, whatever the color: a rehearsal asks for no other.
    fn split(&self, _color: usize, _key: usize) -> Result<DynComm<Imagined>> {
        Ok(Box::new(*self))
    }

    fn abort(&self, _reason: &str) {}
}

struct Arrived(Vec<Receive>);

impl Completion<Imagined> for Arrived {
    fn complete(self: Box<Self>) -> Result<Received<Imagined>> {
        let parcel = |receive: Receive| {
            let storage = Imagined::message(receive.bytes());
            Parcel { storage, len: receive.len, dtype: receive.dtype }
        };
        Ok(Received { parcels: self.0.into_iter().map(parcel).collect() })
    }
}
