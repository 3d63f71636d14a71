//! Communication between ranks: owned buffers, exchanged without blocking.
//!
//! One primitive, [`Communicator::exchange`], carries everything: a rank hands over buffers for other ranks, says
//! what it expects from them, computes, and waits. Collectives ([`Collectives`]) are written on it, in rank order,
//! so that every engine gives the same bits.

/// The methods of a [`Communicator`] of buffers in `$storage` that is a newtype of a [`member::Member`].
macro_rules! delegate_to_member {
    ($storage:ty) => {
        fn rank(&self) -> usize {
            self.0.rank()
        }

        fn size(&self) -> usize {
            self.0.size()
        }

        fn global_rank(&self, rank: usize) -> usize {
            self.0.global_rank(rank)
        }

        fn exchange(
            &self,
            operation: $crate::comm::Operation,
            messages: Vec<$crate::comm::Message<$storage>>,
            receives: Vec<$crate::comm::Receive>,
        ) -> $crate::error::Result<$crate::comm::Pending<$storage>> {
            self.0.exchange(operation, messages, receives)
        }

        fn barrier(&self) -> $crate::error::Result<()> {
            self.0.barrier()
        }

        fn split(&self, color: usize, key: usize) -> $crate::error::Result<$crate::comm::DynComm<$storage>> {
            self.0.split(color, key)
        }

        fn abort(&self, reason: &str) {
            self.0.abort(reason)
        }

        fn check(&self) -> $crate::error::Result<()> {
            self.0.check()
        }

        fn steps(&self) -> u64 {
            self.0.steps()
        }
    };
}

mod accounted;
pub mod clock;
mod collectives;
mod communicator;
pub mod decorate;
pub mod dry;
mod expected;
mod failure;
mod groups;
mod mailbox;
mod member;
mod movement;
#[cfg(feature = "mpi")]
pub mod mpi;
#[cfg(feature = "cuda")]
pub mod nccl;
mod parcel;
mod pending;
mod sync;
mod tag;
pub mod threads;
mod tree;
mod wire;

pub use accounted::Accounted;
pub use collectives::{Collectives, Sum};
pub(crate) use collectives::{gather, reduce_in, scatter};
pub use communicator::{Communicator, DynComm};
pub use parcel::{Message, Operation, Parcel, Receive, Receivers, open};
pub use pending::{Completion, Pending, Received};
