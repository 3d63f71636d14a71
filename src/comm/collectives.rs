//! Collectives, written once for every engine and device.
//!
//! Sums are taken in rank order, rank 0's contribution first and one's own at its place, so every rank and every
//! engine gives the same bits, unless a caller asks for the engine's own sum. Both sides know the counts, so a part
//! without elements costs no message.

use super::communicator::Communicator;
use super::movement::{check, is_relayed};
use super::parcel::{Operation, Parcel, Receive, open};
use crate::error::Result;
use crate::tensor::{Buffer, Element, Real, Storage};

/// In which order ranks are summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sum {
    /// From rank 0 on: the same bits on every rank and with every engine.
    #[default]
    Ranks,
    /// As the engine likes, if it has a sum of its own ([`Communicator::sum_parcel`]); else from rank 0 on. Faster
    /// where the network adds; bits depend on the engine, and may differ from run to run.
    Engine,
}

/// Collectives; sums are taken in rank order on every engine.
///
/// Every rank of the communicator calls the same collective with counts that agree; counts that do not fit the
/// buffers are [`CommError::Counts`](crate::error::CommError::Counts), counts that do not fit the peers' are
/// [`CommError::Protocol`](crate::error::CommError::Protocol) or a deadline. One rank alone communicates nothing.
pub trait Collectives<S: Storage>: Communicator<S> {
    /// Everyone's buffer, by rank. `counts[r]` is the number of elements of rank `r`.
    fn all_gather_v<T: Element>(&self, mine: Buffer<T, S>, counts: &[usize]) -> Result<Vec<Buffer<T, S>>> {
        gather(self, "all_gather".into(), mine, counts)
    }

    /// Sends `parts[r]` to rank `r`; gives what the ranks sent here, by rank. `counts[r]` is the number of elements
    /// that rank `r` sends here. One's own part is given back as it is.
    fn all_to_all_v<T: Element>(&self, parts: Vec<Buffer<T, S>>, counts: &[usize]) -> Result<Vec<Buffer<T, S>>> {
        trade(self, "all_to_all".into(), parts, counts)
    }

    /// Replaces `values` by those of rank `root`. Every rank passes as many.
    fn broadcast<T: Element>(&self, root: usize, values: &mut Buffer<T, S>) -> Result<()> {
        let (name, of) = ("broadcast", Receive::of::<T>(root, values.len()));
        if self.rank() != root {
            let parcel = self.broadcast_parcel(name.into(), None, of)?;
            S::write(values, 0, &open(parcel, root, name)?);
            return Ok(());
        }
        let nothing = S::beside(values, 0);
        let (mine, sent) = std::mem::replace(values, nothing).share();
        *values = mine;
        self.broadcast_parcel(name.into(), Some(sent.into()), of).map(drop)
    }

    /// The sum over ranks, in rank order, of everyone's part for this rank. Part `r` of `whole` is the next
    /// `counts[r]` elements.
    ///
    /// Each rank sends each other its part: whoever sums in rank order has to have all contributions.
    fn reduce_scatter_v<T: Real>(&self, whole: &Buffer<T, S>, counts: &[usize]) -> Result<Buffer<T, S>> {
        scatter(self, "reduce_scatter".into(), whole, counts)
    }

    /// Replaces `values` by their sum over ranks, in rank order: the same bits on every rank and engine.
    ///
    /// Every rank passes as many values. Each sums one of `size` nearly equal chunks and sends it to the others, so
    /// a rank sends about `2 * (size - 1) / size` times the values. Where many ranks have few values, each gets those
    /// of all, as [`all_gather_v`](Self::all_gather_v) brings them, and sums for itself.
    fn all_reduce<T: Real>(&self, values: &mut Buffer<T, S>) -> Result<()> {
        reduce(self, "all_reduce".into(), values)
    }

    /// [`all_reduce`](Self::all_reduce), in an order that the caller chooses. Every rank chooses the same.
    fn all_reduce_in<T: Real>(&self, sum: Sum, values: &mut Buffer<T, S>) -> Result<()> {
        reduce_in(self, sum, "all_reduce".into(), values)
    }
}

impl<S: Storage, C: Communicator<S> + ?Sized> Collectives<S> for C {}

/// [`Collectives::all_reduce_in`] as part of an operation.
pub(crate) fn reduce_in<T: Real, S: Storage, C: Communicator<S> + ?Sized>(
    comm: &C,
    sum: Sum,
    operation: Operation,
    values: &mut Buffer<T, S>,
) -> Result<()> {
    if sum == Sum::Engine {
        let (len, nothing) = (values.len(), S::beside(values, 0));
        let mut parcel = Parcel::keep(std::mem::replace(values, nothing));
        let summed = comm.sum_parcel(operation, &mut parcel);
        *values = Buffer::from_storage(parcel.storage, len);
        if summed? {
            return Ok(());
        }
    }
    reduce(comm, operation, values)
}

/// [`Collectives::all_reduce`] as part of an operation.
pub(crate) fn reduce<T: Real, S: Storage, C: Communicator<S> + ?Sized>(
    comm: &C,
    operation: Operation,
    values: &mut Buffer<T, S>,
) -> Result<()> {
    let (size, len) = (comm.size(), values.len());
    if size == 1 {
        return Ok(());
    }
    if is_relayed(size, values.bytes().saturating_mul(size)) {
        let mine = S::part(values, 0..len);
        let contributions = gather(comm, operation, mine, &vec![len; size])?;
        for (rank, contribution) in contributions.iter().enumerate() {
            match rank {
                0 => S::write(values, 0, contribution),
                _ => S::add(values, 0, contribution),
            }
        }
        return Ok(());
    }
    let (each, spare) = (len / size, len % size);
    let counts: Vec<usize> = (0..size).map(|rank| each + usize::from(rank < spare)).collect();
    let sum = scatter(comm, operation, values, &counts)?;
    let mut at = 0;
    for chunk in gather(comm, operation, sum, &counts)? {
        S::write(values, at, &chunk);
        at += chunk.len();
    }
    Ok(())
}

/// [`Collectives::all_gather_v`] as part of an operation.
pub(crate) fn gather<T: Element, S: Storage, C: Communicator<S> + ?Sized>(
    comm: &C,
    operation: Operation,
    mine: Buffer<T, S>,
    counts: &[usize],
) -> Result<Vec<Buffer<T, S>>> {
    opened(comm.all_gather_parcels(operation, Parcel::keep(mine), counts)?, operation)
}

/// [`Collectives::all_to_all_v`] as part of an operation.
fn trade<T: Element, S: Storage, C: Communicator<S> + ?Sized>(
    comm: &C,
    operation: Operation,
    parts: Vec<Buffer<T, S>>,
    counts: &[usize],
) -> Result<Vec<Buffer<T, S>>> {
    let own = comm.rank();
    let pack = |(to, part): (usize, Buffer<T, S>)| if to == own { Parcel::keep(part) } else { part.into() };
    let parts = parts.into_iter().enumerate().map(pack).collect();
    opened(comm.all_to_all_parcels(operation, parts, counts)?, operation)
}

/// Parcels of all ranks, by rank.
fn opened<T: Element, S: Storage>(parcels: Vec<Parcel<S>>, operation: Operation) -> Result<Vec<Buffer<T, S>>> {
    parcels.into_iter().enumerate().map(|(rank, parcel)| open(parcel, rank, operation.name)).collect()
}

/// [`Collectives::reduce_scatter_v`] as part of an operation.
pub(crate) fn scatter<T: Real, S: Storage, C: Communicator<S> + ?Sized>(
    comm: &C,
    operation: Operation,
    whole: &Buffer<T, S>,
    counts: &[usize],
) -> Result<Buffer<T, S>> {
    check(operation.name, "counts, one per rank", comm.size(), counts.len())?;
    check(
        operation.name,
        "elements, the sum of the counts",
        counts.iter().fold(0, |sum: usize, &count| sum.saturating_add(count)),
        whole.len(),
    )?;
    let mut at = 0;
    let parts = counts.iter().map(|&count| {
        at += count;
        S::part(whole, at - count..at)
    });
    let parts = parts.collect();
    let here = vec![counts[comm.rank()]; comm.size()];
    let mut contributions = trade(comm, operation, parts, &here)?.into_iter();
    // A communicator has at least one rank.
    let Some(first) = contributions.next() else { return Ok(S::part(whole, 0..0)) };
    let mut sum = match comm.rank() {
        0 => first,
        _ => {
            // In memory of this rank's own: that of the first contribution is rank 0's, as would be all copies of it.
            let mut sum = S::part(whole, 0..first.len());
            S::write(&mut sum, 0, &first);
            sum
        }
    };
    contributions.for_each(|contribution| S::add(&mut sum, 0, &contribution));
    Ok(sum)
}

#[cfg(test)]
mod tests;
