//! A device whose ops run later, on a thread of their own: the proof that nothing leans on an op having run when its
//! call returns.

mod argument;
mod memory;
mod queue;

pub use argument::{Argument, Kept, Referred, Written};
pub use memory::Deferred;
pub use queue::Issue;

use std::fmt;
use std::sync::Arc;

use crate::error::{DeviceError, Result};
use crate::tensor::{Buffer, Device, Element, Host, Ledger, MatrixMut, MatrixRef, PoolStats};
use queue::Queue;

/// A device over another one on the host, `D`, that computes nothing when an op is called: every op goes into a queue,
/// which another thread works off in order, as a GPU works off a stream.
///
/// Numbers are those of `D`, to the bit. What is not allowed on such a device is an error at the next
/// [`Device::read`]: an op on memory that another queue wrote and did not hand over with [`Storage::leave`] and
/// [`Storage::arrive`], or a panic inside of an op. Memory reads as NaN until it is written, and there is no way to its
/// contents but `read`.
///
/// [`Storage::leave`]: crate::tensor::Storage::leave
/// [`Storage::arrive`]: crate::tensor::Storage::arrive
#[derive(Clone)]
pub struct Queued<D> {
    inner: D,
    queue: Arc<Queue>,
}

impl<D: Device<Storage = Host>> Queued<D> {
    /// A queue of its own over `inner`. Its thread ends when all that was issued has run and nobody can issue more.
    pub fn new(inner: D) -> Self {
        Queued { inner, queue: Queue::start() }
    }

    /// What computes.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// Starts an op of this name.
    #[doc(hidden)]
    pub fn issue(&self, name: &'static str) -> Issue<'_> {
        Issue::new(&self.queue, name)
    }
}

impl<D: fmt::Debug> fmt::Debug for Queued<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Queued({:?})", self.inner)
    }
}

impl<D: Device<Storage = Host>> Device for Queued<D> {
    type Elem = D::Elem;
    type Acc = D::Acc;
    type Storage = Deferred;

    fn empty<T: Element>(&self, len: usize) -> Buffer<T, Deferred> {
        Deferred::buffer(&self.queue, self.inner.empty(len))
    }

    fn zeros<T: Element>(&self, len: usize) -> Buffer<T, Deferred> {
        let mut buffer = self.empty(len);
        let mut issue = self.issue("zeros");
        let mut target = MatrixMut::of_buffer(&mut buffer).keep(&mut issue);
        issue.run(move || target.get().span_mut().fill(T::zeroed()));
        buffer
    }

    fn write<T: Element>(&self, values: &[T], target: MatrixMut<'_, T, Deferred>) {
        assert_eq!(values.len(), target.len(), "values for {target:?}");
        let mut issue = self.issue("write");
        let (mut target, values, inner) = (target.keep(&mut issue), values.to_vec(), self.inner.clone());
        issue.run(move || inner.write(&values, target.get()));
    }

    fn read<'a, T: Element>(&self, from: impl Into<MatrixRef<'a, T, Deferred>>) -> Result<Vec<T>> {
        let mut issue = self.issue("read");
        let (mut from, inner) = (from.into().keep(&mut issue), self.inner.clone());
        let (sender, receiver) = std::sync::mpsc::channel();
        let stamp = issue.stamp().clone();
        issue.run(move || {
            // Who asked waits for it below.
            let _ = sender.send(inner.read(from.get()));
        });
        let values = receiver.recv();
        // What went wrong is noted before the op counts as done.
        stamp.wait();
        self.queue.failure()?;
        values.unwrap_or_else(|_| Err(DeviceError { op: "read", reason: "it gave nothing".to_string() }.into()))
    }

    fn reserve(&self, bytes: usize) -> Result<()> {
        self.inner.reserve(bytes)
    }

    fn duplicate<T: Element>(&self, buffer: &Buffer<T, Deferred>) -> Buffer<T, Deferred> {
        let mut copy = self.empty(buffer.len());
        let mut issue = self.issue("duplicate");
        let mut source = MatrixRef::of_buffer(buffer).keep(&mut issue);
        let mut target = MatrixMut::of_buffer(&mut copy).keep(&mut issue);
        issue.run(move || target.get().span_mut().copy_from_slice(source.get().span()));
        copy
    }

    fn memory(&self) -> PoolStats {
        self.inner.memory()
    }

    fn ledger(&self) -> &Arc<Ledger> {
        self.inner.ledger()
    }

    fn seal(&self) {
        self.inner.seal();
    }
}
