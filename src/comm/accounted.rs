//! Exchanges whose memory is on a device's account.

use super::communicator::Communicator;
use super::parcel::{Message, Operation, Receive};
use super::pending::{Pending, Received};
use crate::error::Result;
use crate::tensor::{Charge, Device, Host, Storage};

/// An exchange under way whose memory is on the account of a device: what it expects counts from the post on, what it
/// sends until then, once however many ranks it is for.
#[must_use = "an exchange that is not waited for is lost"]
pub struct Accounted<S = Host> {
    pending: Pending<S>,
    charges: Vec<Charge>,
}

impl<S: Storage> Accounted<S> {
    /// Posts on `comm`, for `device`.
    ///
    /// # Errors
    /// Those of [`Communicator::exchange`].
    pub fn post<D: Device<Storage = S>>(
        device: &D,
        comm: &dyn Communicator<S>,
        operation: Operation,
        messages: Vec<Message<S>>,
        receives: Vec<Receive>,
    ) -> Result<Self> {
        let charges = receives.iter().map(|receive| device.ledger().charge(receive.bytes())).collect();
        let _sent = device.ledger().charge(messages.iter().map(|message| message.parcel.bytes()).sum());
        Ok(Accounted { pending: comm.exchange(operation, messages, receives)?, charges })
    }

    /// Waits; what came is on the device's account.
    ///
    /// # Errors
    /// Those of [`Pending::wait`].
    pub fn wait(self) -> Result<Received<S>> {
        let mut received = self.pending.wait()?;
        for (parcel, charge) in received.parcels.iter_mut().zip(self.charges) {
            parcel.set_charge(Some(charge));
        }
        Ok(received)
    }
}
