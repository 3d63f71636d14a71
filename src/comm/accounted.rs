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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::threads::run;
    use crate::tensor::{Cpu, DryRun};

    #[test]
    fn a_message_for_many_counts_once_where_it_is_sent_and_where_it_is_received_until_it_is_dropped() {
        let seen = run(4, |comm| {
            let device = Cpu::<f32>::new(1);
            let (mut messages, mut receives) = (Vec::new(), Vec::new());
            match comm.rank() {
                0 => messages.push(Message::new(vec![1, 2, 3], device.upload(&[1f32; 100]))),
                _ => receives.push(Receive::of::<f32>(0, 100)),
            }
            device.ledger().mark();
            let pending = Accounted::post(&device, &comm, "news".into(), messages, receives)?;
            let posted = device.ledger().held();
            let received = pending.wait()?;
            let (here, peak) = (device.ledger().held(), device.ledger().peak());
            drop(received);
            Ok((posted, here, peak, device.ledger().held()))
        });
        let receiver = (400, 400, 400, 0);
        assert_eq!(seen, Ok(vec![(0, 0, 400, 0), receiver, receiver, receiver]));
    }

    #[test]
    fn a_rehearsal_counts_the_same() {
        let device = DryRun::<f32>::default();
        let comm = crate::comm::dry::DryComm::new(0, 4);
        let messages = vec![Message::new(vec![1, 2, 3], device.zeros::<f32>(100))];
        let pending = Accounted::post(&device, &comm, "news".into(), messages, vec![]).expect("nothing can fail");
        assert_eq!((device.ledger().held(), device.ledger().peak()), (0, 400));
        assert!(pending.wait().is_ok());
    }
}
