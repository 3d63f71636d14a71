//! Communication between ranks: owned buffers, exchanged without blocking.
//!
//! One primitive, [`Communicator::exchange`], carries everything: a rank hands over buffers for other ranks, says
//! what it expects from them, computes, and waits. Collectives ([`Collectives`]) are written on it, in rank order,
//! so that every engine gives the same bits.

/// The methods of a [`Communicator`] that is a newtype of a [`member::Member`].
macro_rules! delegate_to_member {
    () => {
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
            sends: Vec<$crate::comm::Send>,
            receives: Vec<$crate::comm::Receive>,
        ) -> $crate::error::Result<$crate::comm::Pending> {
            self.0.exchange(operation, sends, receives)
        }

        fn barrier(&self) -> $crate::error::Result<()> {
            self.0.barrier()
        }

        fn split(&self, color: usize, key: usize) -> $crate::error::Result<Box<dyn Communicator>> {
            self.0.split(color, key)
        }

        fn abort(&self, reason: &str) {
            self.0.abort(reason)
        }
    };
}

mod accounted;
pub mod clock;
mod collectives;
pub mod decorate;
pub mod dry;
mod groups;
mod mailbox;
mod member;
#[cfg(feature = "mpi")]
pub mod mpi;
mod sync;
mod tag;
pub mod threads;

use std::fmt;

pub use accounted::Accounted;
pub use collectives::Collectives;
pub(crate) use collectives::{gather, reduce, scatter};

use crate::error::{CommError, Result};
use crate::tensor::{Buffer, Charge, DType, Element, Host, Storage};

/// What an exchange is for. Both ends say it, and messages of one are never taken for those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Names the exchange in errors and counters.
    pub name: &'static str,
    /// Stands for what both ends must have alike beside their sizes, such as a plan; 0 for nothing.
    pub digest: u64,
}

impl Operation {
    /// The operation `name` under what `digest` stands for.
    pub const fn under(name: &'static str, digest: u64) -> Self {
        Operation { name, digest }
    }
}

impl From<&'static str> for Operation {
    fn from(name: &'static str) -> Self {
        Operation::under(name, 0)
    }
}

/// An owned buffer whose element type is known at run time: what a message carries.
#[derive(Debug)]
pub struct Parcel<S = Host> {
    storage: S,
    len: usize,
    dtype: DType,
}

impl<S: Storage> Parcel<S> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of the elements; what counts as sent.
    pub fn bytes(&self) -> usize {
        self.len * self.dtype.size()
    }

    /// Says on whose account the memory is: see [`Storage::set_charge`].
    fn set_charge(&mut self, charge: Option<Charge>) {
        self.storage.set_charge(charge);
    }

    /// The buffer, if it holds elements of `T`.
    pub fn open<T: Element>(self) -> Option<Buffer<T, S>> {
        (self.dtype == T::DTYPE).then(|| Buffer::from_storage(self.storage, self.len))
    }
}

impl<T: Element, S: Storage> From<Buffer<T, S>> for Parcel<S> {
    /// The buffer is on nobody's account from now on: when a receiver drops it is not for the sender to say.
    fn from(mut buffer: Buffer<T, S>) -> Self {
        let len = buffer.len();
        buffer.set_charge(None);
        Parcel { storage: buffer.into_storage(), len, dtype: T::DTYPE }
    }
}

/// A buffer for another rank.
#[derive(Debug)]
pub struct Send<S = Host> {
    /// The receiver. Sending to oneself is an error.
    pub to: usize,
    /// What it gets.
    pub parcel: Parcel<S>,
}

/// A buffer that another rank will send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receive {
    /// The sender.
    pub from: usize,
    /// Number of elements that it sends.
    pub len: usize,
    /// Their type.
    pub dtype: DType,
}

impl Receive {
    /// `len` elements of `T` from rank `from`.
    pub fn of<T: Element>(from: usize, len: usize) -> Self {
        Receive { from, len, dtype: T::DTYPE }
    }

    /// Bytes that come; the largest number there is where they cannot be counted.
    pub fn bytes(&self) -> usize {
        self.len.saturating_mul(self.dtype.size())
    }
}

/// What an exchange gives when it is complete.
#[derive(Debug)]
pub struct Received<S = Host> {
    /// One parcel per [`Receive`], in their order.
    pub parcels: Vec<Parcel<S>>,
}

/// An exchange under way. Sent buffers belong to the engine until it is complete, and go back to their pool then.
#[must_use = "an exchange that is not waited for is lost"]
pub struct Pending<S = Host>(Box<dyn Completion<S>>);

/// How an engine completes an exchange.
pub trait Completion<S>: std::marker::Send {
    /// Blocks until everything expected has come, a peer fails, or the deadline passes.
    fn complete(self: Box<Self>) -> Result<Received<S>>;
}

impl<S> Pending<S> {
    /// An exchange that `completion` completes.
    pub fn new(completion: impl Completion<S> + 'static) -> Self {
        Pending(Box::new(completion))
    }

    /// Blocks until everything expected has come, a peer fails, or the deadline passes.
    pub fn wait(self) -> Result<Received<S>> {
        self.0.complete()
    }
}

impl<S> fmt::Debug for Pending<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pending")
    }
}

/// A rank's view of the group of ranks that share a sequence.
///
/// Messages between two ranks arrive in the order in which they were sent. A rank that fails or falls silent makes
/// every operation of every other rank return an error that names it; nothing hangs.
pub trait Communicator<S: Storage = Host>: std::marker::Send + Sync {
    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// Number of ranks.
    fn size(&self) -> usize;

    /// The number that rank `rank` has in the communicator from which this one was split, at first hand or further
    /// back; what errors and traffic counters call it. The same number if there was no split.
    fn global_rank(&self, rank: usize) -> usize {
        rank
    }

    /// Hands over buffers and says what is expected; does not block.
    ///
    /// Several exchanges may be under way; each pair of ranks must post them in the same order. What comes is compared
    /// with what is expected: the operation with its digest, the length and the type.
    fn exchange(&self, operation: Operation, sends: Vec<Send<S>>, receives: Vec<Receive>) -> Result<Pending<S>>;

    /// Returns when every rank has called it.
    fn barrier(&self) -> Result<()>;

    /// The communicator of the ranks that pass the same `color`, ordered by `key`, then by rank. Every rank of this
    /// communicator must call it.
    fn split(&self, color: usize, key: usize) -> Result<Box<dyn Communicator<S>>>;

    /// Tells every other rank that this one gives up; their operations fail with this rank and reason.
    fn abort(&self, reason: &str);
}

macro_rules! forward_communicator {
    ($($t:ty),*) => { $(
        impl<'a, S: Storage, C: Communicator<S> + ?Sized + 'a> Communicator<S> for $t where $t: std::marker::Send + Sync {
            fn rank(&self) -> usize { (**self).rank() }
            fn size(&self) -> usize { (**self).size() }
            fn global_rank(&self, rank: usize) -> usize { (**self).global_rank(rank) }
            fn exchange(&self, operation: Operation, sends: Vec<Send<S>>, receives: Vec<Receive>) -> Result<Pending<S>> {
                (**self).exchange(operation, sends, receives)
            }
            fn barrier(&self) -> Result<()> { (**self).barrier() }
            fn split(&self, color: usize, key: usize) -> Result<Box<dyn Communicator<S>>> { (**self).split(color, key) }
            fn abort(&self, reason: &str) { (**self).abort(reason) }
        }
    )* };
}
forward_communicator!(Box<C>, &'a C);

/// Opens a parcel as elements of `T`, or says who broke the protocol.
pub fn open<T: Element, S: Storage>(parcel: Parcel<S>, peer: usize, operation: &'static str) -> Result<Buffer<T, S>> {
    let found = parcel.dtype().to_string();
    parcel
        .open()
        .ok_or_else(|| CommError::Protocol { peer, operation, step: 0, expected: T::DTYPE.to_string(), found }.into())
}
