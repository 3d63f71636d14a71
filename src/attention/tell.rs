//! What ranks tell one another when they make a plan together, before they write its programs.

use crate::comm::{Communicator, Message, Operation, Receive, open};
use crate::error::{CommError, Result};
use crate::plan::View;
use crate::strategy::DynStrategy;
use crate::tensor::Device;

/// Name of the exchange.
const NAME: &str = "plan";

/// An exchange under a digest of what all ranks must have alike: numbers for ranks, and how many are expected of ranks.
/// Gives those, in the order of the ranks that they are expected of.
pub(crate) type Tell<'a> = &'a dyn Fn(u64, &[(usize, Vec<i64>)], &[(usize, usize)]) -> Result<Vec<Vec<i64>>>;

/// [`Tell`] over a communicator.
pub(crate) fn tell<D: Device>(
    device: &D,
    comm: &dyn Communicator<D::Storage>,
    digest: u64,
    tells: &[(usize, Vec<i64>)],
    hears: &[(usize, usize)],
) -> Result<Vec<Vec<i64>>> {
    let messages = tells.iter().map(|(to, numbers)| Message::new(*to, device.upload(numbers))).collect();
    let receives = hears.iter().map(|&(from, len)| Receive::of::<i64>(from, len)).collect();
    let received = comm.exchange(Operation::under(NAME, digest), messages, receives)?.wait()?;
    let numbers = |(parcel, &(from, _))| device.read(&open::<i64, _>(parcel, from, NAME)?);
    received.parcels.into_iter().zip(hears).map(numbers).collect()
}

/// Lets the exchange of `strategy` tell and hear what its programs for `view` need of other ranks. Rank `r` of the view
/// is rank `at(r)` of the communicator. No message where there is nothing to tell or to hear.
///
/// # Errors
/// [`CommError::Protocol`] with the rank and the numbers for what cannot be; those of an exchange.
pub(super) fn hear(
    strategy: &dyn DynStrategy,
    view: &View,
    at: impl Fn(usize) -> usize,
    digest: u64,
    tell: Tell<'_>,
) -> Result<()> {
    let (mut tells, mut hears) = (strategy.tells(view), strategy.hears(view));
    if tells.is_empty() && hears.is_empty() {
        return Ok(());
    }
    let peers: Vec<usize> = hears.iter().map(|(peer, _)| *peer).collect();
    tells.iter_mut().for_each(|(peer, _)| *peer = at(*peer));
    hears.iter_mut().for_each(|(peer, _)| *peer = at(*peer));
    for (numbers, (peer, (from, _))) in tell(digest, &tells, &hears)?.iter().zip(peers.into_iter().zip(hears)) {
        strategy.hear(view, peer, numbers).map_err(|expected| {
            let found = format!("{numbers:?}");
            CommError::Protocol { peer: from, operation: NAME, step: 0, expected, found }
        })?;
    }
    Ok(())
}
