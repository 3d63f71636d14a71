//! A decorator that lets an engine of host memory carry messages of a device.

use crate::comm::{Communicator, Completion, DynComm, Message, Operation, Parcel, Pending, Receive, Received};
use crate::error::Result;
use crate::tensor::{Buffer, Device};

/// The ranks of `inner`, which moves host memory, for buffers of a device: what is sent is read from the device, and
/// what comes is written to it.
///
/// For where no engine moves the device's own memory. The host waits for the device in every exchange that sends
/// something, and every message takes the way through host memory. What came counts twice on the device's ledger for
/// the moment in which it is written. Collectives are written on exchanges, whatever the engine has; there is no sum in
/// an order of the engine's.
#[derive(Debug)]
pub struct Staged<C, D> {
    inner: C,
    device: D,
}

impl<C, D> Staged<C, D> {
    /// `inner` for the memory of `device`.
    pub fn new(inner: C, device: D) -> Self {
        Staged { inner, device }
    }
}

impl<C: Communicator, D: Device> Communicator<D::Storage> for Staged<C, D> {
    as_inner!();

    fn exchange(
        &self,
        operation: Operation,
        messages: Vec<Message<D::Storage>>,
        receives: Vec<Receive>,
    ) -> Result<Pending<D::Storage>> {
        let mut staged = Vec::with_capacity(messages.len());
        for Message { to, parcel } in messages {
            let (len, dtype) = (parcel.len(), parcel.dtype());
            let bytes = self.device.read(&parcel.into_bytes())?;
            staged.push(Message { to, parcel: Parcel::of_bytes(Buffer::from_vec(bytes), len, dtype) });
        }
        let pending = self.inner.exchange(operation, staged, receives)?;
        Ok(Pending::new(Arrives { pending, device: self.device.clone() }))
    }

    fn barrier(&self) -> Result<()> {
        self.inner.barrier()
    }

    fn split(&self, color: usize, key: usize) -> Result<DynComm<D::Storage>> {
        Ok(Box::new(Staged { inner: self.inner.split(color, key)?, device: self.device.clone() }))
    }
}

/// Messages that come into host memory and go to the device.
struct Arrives<D> {
    pending: Pending,
    device: D,
}

impl<D: Device> Completion<D::Storage> for Arrives<D> {
    fn complete(self: Box<Self>) -> Result<Received<D::Storage>> {
        let parcels = self.pending.wait()?.parcels.into_iter().map(|parcel| {
            let (len, dtype) = (parcel.len(), parcel.dtype());
            let mut bytes = self.device.upload(&parcel.into_bytes());
            // Received memory is on nobody's account until who waits says so.
            bytes.set_charge(None);
            Parcel::of_bytes(bytes, len, dtype)
        });
        Ok(Received { parcels: parcels.collect() })
    }
}
