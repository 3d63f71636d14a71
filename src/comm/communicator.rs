//! What a rank asks of the engine that connects it with the others.

use std::sync::Arc;

use super::movement::{self, Ranks};
use super::parcel::{Message, Operation, Parcel, Receive};
use super::pending::Pending;
use crate::error::Result;
use crate::tensor::{Host, Storage};

/// The ranks of a communicator, for data to be moved between them.
macro_rules! ranks {
    ($comm:expr) => {
        Ranks {
            rank: $comm.rank(),
            size: $comm.size(),
            exchange: &|operation, messages, receives| $comm.exchange(operation, messages, receives),
        }
    };
}
/// A communicator of whatever engine, as [`Communicator::split`] gives it. An exchange costs far more than the virtual
/// call.
pub type DynComm<S = Host> = Box<dyn Communicator<S>>;

/// A rank's view of the group of ranks that share a sequence.
///
/// Messages between two ranks arrive in the order in which they were sent. A rank that fails or falls silent makes
/// every operation of every other rank return an error that names it; nothing hangs.
///
/// An engine has to exchange; the collectives that only move data are written on that, and an engine that has better
/// ones gives its own. [`Collectives`](super::Collectives) is what they are called through.
pub trait Communicator<S: Storage = Host>: Send + Sync {
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
    /// with what is expected: the operation with its digest, the length and the type. A message for several ranks is
    /// not copied for each, and counts as one message to each of them.
    fn exchange(&self, operation: Operation, messages: Vec<Message<S>>, receives: Vec<Receive>) -> Result<Pending<S>>;

    /// Returns when every rank has called it.
    fn barrier(&self) -> Result<()>;

    /// The communicator of the ranks that pass the same `color`, ordered by `key`, then by rank. Every rank of this
    /// communicator must call it.
    fn split(&self, color: usize, key: usize) -> Result<DynComm<S>>;

    /// Tells every other rank that this one gives up; their operations fail with this rank and reason.
    fn abort(&self, reason: &str);

    /// Whether this rank has been told of no failure; waits for nobody. An engine that is not told of failures has none
    /// to tell.
    ///
    /// # Errors
    /// [`CommError::Poisoned`](crate::error::CommError), as every operation would give it.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// How many operations this rank has begun, in whatever group: what errors call the step of the last one.
    fn steps(&self) -> u64 {
        0
    }

    /// Everyone's parcel, by rank, this rank's own as it is. `counts[r]` is the number of elements of rank `r`, of the
    /// type that `mine` has on every rank.
    ///
    /// Unless an engine has a better way, a rank hands its parcel over once for all others; where many ranks have
    /// little, they pass on what they heard of others, so that each sends as many messages as the number of ranks has
    /// binary digits.
    ///
    /// # Errors
    /// [`CommError::Counts`](crate::error::CommError) if `counts` do not fit; those of an exchange.
    fn all_gather_parcels(&self, operation: Operation, mine: Parcel<S>, counts: &[usize]) -> Result<Vec<Parcel<S>>> {
        movement::all_gather(&ranks!(self), operation, mine, counts)
    }

    /// What the ranks sent here, by rank: `parts[r]` goes to rank `r`, and one's own part is given back as it is.
    /// `counts[r]` is the number of elements that rank `r` sends here; all parts of all ranks are of one type.
    ///
    /// # Errors
    /// [`CommError::Counts`](crate::error::CommError) if there is not one part and one count per rank; those of an
    /// exchange.
    fn all_to_all_parcels(
        &self,
        operation: Operation,
        parts: Vec<Parcel<S>>,
        counts: &[usize],
    ) -> Result<Vec<Parcel<S>>> {
        movement::all_to_all(&ranks!(self), operation, parts, counts)
    }

    /// The parcel that rank `of.from` passes as `mine`, on every rank; `of` says its length and type, and the others
    /// pass `None`.
    ///
    /// Unless an engine has a better way, ranks pass it on down a tree, so that none sends it more often than the
    /// number of ranks has binary digits.
    ///
    /// # Errors
    /// [`CommError::Protocol`](crate::error::CommError) if `mine` is not what `of` says,
    /// [`CommError::NoSuchRank`](crate::error::CommError) if there is no such rank; those of an exchange.
    fn broadcast_parcel(&self, operation: Operation, mine: Option<Parcel<S>>, of: Receive) -> Result<Parcel<S>> {
        movement::broadcast(&ranks!(self), operation, mine, of)
    }

    /// Replaces `values` by their sum over ranks in whatever order the engine sums, and says so; or leaves them alone
    /// and gives `false`, as an engine does that has no sum of its own. Every rank gets the same answer.
    ///
    /// Nobody is given such a sum without asking for it: see [`Sum::Engine`](super::Sum::Engine).
    ///
    /// # Errors
    /// Those of the engine.
    fn sum_parcel(&self, _operation: Operation, _values: &mut Parcel<S>) -> Result<bool> {
        Ok(false)
    }
}

macro_rules! forward_communicator {
    ($($t:ty),*) => { $(
        impl<'a, S: Storage, C: Communicator<S> + ?Sized + 'a> Communicator<S> for $t where $t: Send + Sync {
            fn rank(&self) -> usize { (**self).rank() }
            fn size(&self) -> usize { (**self).size() }
            fn global_rank(&self, rank: usize) -> usize { (**self).global_rank(rank) }
            fn exchange(&self, operation: Operation, messages: Vec<Message<S>>, receives: Vec<Receive>) -> Result<Pending<S>> {
                (**self).exchange(operation, messages, receives)
            }
            fn barrier(&self) -> Result<()> { (**self).barrier() }
            fn split(&self, color: usize, key: usize) -> Result<DynComm<S>> { (**self).split(color, key) }
            fn abort(&self, reason: &str) { (**self).abort(reason) }
            fn check(&self) -> Result<()> { (**self).check() }
            fn steps(&self) -> u64 { (**self).steps() }
            fn all_gather_parcels(&self, operation: Operation, mine: Parcel<S>, counts: &[usize]) -> Result<Vec<Parcel<S>>> {
                (**self).all_gather_parcels(operation, mine, counts)
            }
            fn all_to_all_parcels(&self, operation: Operation, parts: Vec<Parcel<S>>, counts: &[usize]) -> Result<Vec<Parcel<S>>> {
                (**self).all_to_all_parcels(operation, parts, counts)
            }
            fn broadcast_parcel(&self, operation: Operation, mine: Option<Parcel<S>>, of: Receive) -> Result<Parcel<S>> {
                (**self).broadcast_parcel(operation, mine, of)
            }
            fn sum_parcel(&self, operation: Operation, values: &mut Parcel<S>) -> Result<bool> {
                (**self).sum_parcel(operation, values)
            }
        }
    )* };
}
forward_communicator!(Box<C>, Arc<C>, &'a C);
