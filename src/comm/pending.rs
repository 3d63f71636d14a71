//! Exchanges under way.

use std::fmt;

use super::parcel::Parcel;
use crate::error::Result;
use crate::tensor::Host;

/// What an exchange gives when it is complete.
#[derive(Debug)]
pub struct Received<S = Host> {
    /// One parcel per [`Receive`](super::Receive), in their order.
    pub parcels: Vec<Parcel<S>>,
}

/// An exchange under way. Sent buffers belong to the engine until it is complete, and go back to their pool then, or
/// when their last receiver is done with them.
#[must_use = "an exchange that is not waited for is lost"]
pub struct Pending<S = Host>(Box<dyn Completion<S>>);

/// How an engine completes an exchange.
pub trait Completion<S>: Send {
    /// Blocks until everything expected has come as far as the host is concerned, a peer fails, or the deadline passes.
    ///
    /// Whatever is issued later on this rank's queue sees what came. On a device that works off a queue that does not
    /// say that the bytes are there: the engine has called [`Storage::arrive`](crate::tensor::Storage::arrive) on each
    /// parcel, which makes the queue wait for them, not the host.
    fn complete(self: Box<Self>) -> Result<Received<S>>;
}

impl<S> Pending<S> {
    /// An exchange that `completion` completes.
    pub fn new(completion: impl Completion<S> + 'static) -> Self {
        Pending(Box::new(completion))
    }

    /// Blocks until everything expected has come, a peer fails, or the deadline passes: whatever is issued later on
    /// this rank's queue sees it, as [`Completion::complete`] has it.
    ///
    /// # Errors
    /// [`CommError::Poisoned`](crate::error::CommError) if another rank failed,
    /// [`CommError::Deadline`](crate::error::CommError) if one is silent, and
    /// [`CommError::Protocol`](crate::error::CommError) or [`CommError::Disagree`](crate::error::CommError) if what
    /// came is not what was expected.
    pub fn wait(self) -> Result<Received<S>> {
        self.0.complete()
    }
}

impl<S> fmt::Debug for Pending<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pending")
    }
}
