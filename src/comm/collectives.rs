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
        let operation = "all_reduce".into();
        if sum == Sum::Engine {
            let (len, nothing) = (values.len(), S::beside(values, 0));
            let mut parcel = Parcel::keep(std::mem::replace(values, nothing));
            let summed = self.sum_parcel(operation, &mut parcel);
            *values = Buffer::from_storage(parcel.storage, len);
            if summed? {
                return Ok(());
            }
        }
        reduce(self, operation, values)
    }
}

impl<S: Storage, C: Communicator<S> + ?Sized> Collectives<S> for C {}

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
mod tests {
    use super::*;
    use crate::comm::threads::run;
    use crate::error::CommError;
    use crate::tensor::Cpu;
    use crate::tensor::Device;

    /// Deterministic values whose sums depend on the order in which they are taken.
    fn value(rank: usize, to: usize, index: usize) -> f32 {
        let n = (rank * 7919 + to * 104_729 + index * 1_299_709 + 1) as u32;
        let bits = n.wrapping_mul(2_654_435_761).rotate_left(13).wrapping_mul(2_246_822_519);
        (bits as f32 / u32::MAX as f32 - 0.5) * 10f32.powi((bits % 7) as i32 - 3)
    }

    /// Ragged counts with zeros among them.
    fn ragged(ranks: usize, shift: usize) -> Vec<usize> {
        (0..ranks).map(|rank| [3, 0, 5, 1, 0][(rank + shift) % 5]).collect()
    }

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|value| value.to_bits()).collect()
    }

    /// Plain left-to-right sum over ranks.
    fn sum_in_order(ranks: usize, value: impl Fn(usize) -> f32) -> f32 {
        (1..ranks).fold(value(0), |sum, rank| sum + value(rank))
    }

    #[test]
    fn all_gather_gives_everyone_everything() {
        for (ranks, shift) in (1..=5).flat_map(|ranks| (0..5).map(move |shift| (ranks, shift))) {
            let counts = ragged(ranks, shift);
            let gathered = run(ranks, |comm| {
                let mine: Vec<f32> =
                    (0..counts[comm.rank()]).map(|i| if i == 0 { -0.0 } else { value(comm.rank(), 0, i) }).collect();
                let all = comm.all_gather_v(Cpu::<f32>::new(1).upload(&mine), &counts)?;
                Ok(all.iter().map(|part| bits(part)).collect::<Vec<_>>())
            });
            let plain =
                |rank: usize| (0..counts[rank]).map(|i| if i == 0 { -0.0 } else { value(rank, 0, i) }).collect();
            let expected: Vec<_> = (0..ranks).map(|rank| bits(&Vec::from_iter::<Vec<f32>>(plain(rank)))).collect();
            assert_eq!(gathered, Ok(vec![expected; ranks]), "{ranks} ranks, counts {counts:?}");
        }
    }

    #[test]
    fn all_to_all_delivers_each_part() {
        // Rank r sends ragged(ranks, r)[to] elements to rank `to`.
        for ranks in 1..=5 {
            let part = |from: usize, to: usize| -> Vec<i64> {
                (0..ragged(ranks, from)[to]).map(|i| (from * 100 + to * 10 + i) as i64).collect()
            };
            let received = run(ranks, |comm| {
                let me = comm.rank();
                let counts: Vec<usize> = (0..ranks).map(|from| ragged(ranks, from)[me]).collect();
                let parts = (0..ranks).map(|to| Buffer::from_slice(&part(me, to))).collect();
                let received = comm.all_to_all_v(parts, &counts)?;
                Ok(received.iter().map(|part| part.to_vec()).collect::<Vec<_>>())
            });
            let expected: Vec<Vec<_>> = (0..ranks).map(|to| (0..ranks).map(|from| part(from, to)).collect()).collect();
            assert_eq!(received, Ok(expected), "{ranks} ranks");
        }
    }

    #[test]
    fn reduce_scatter_sums_in_rank_order() {
        for (ranks, shift) in (1..=5).flat_map(|ranks| (0..5).map(move |shift| (ranks, shift))) {
            let counts = ragged(ranks, shift);
            let total: usize = counts.iter().sum();
            let sums = run(ranks, |comm| {
                let whole: Vec<f32> = (0..total).map(|i| value(comm.rank(), 1, i)).collect();
                Ok(bits(&comm.reduce_scatter_v(&Buffer::from_slice(&whole), &counts)?))
            });
            let all: Vec<u32> = (0..total).map(|i| sum_in_order(ranks, |rank| value(rank, 1, i)).to_bits()).collect();
            assert_eq!(sums.map(|sums| (sums.iter().map(Vec::len).collect(), sums.concat())), Ok((counts, all)));
        }
    }

    #[test]
    fn all_reduce_gives_the_same_bits_everywhere() {
        let mut order_matters = false;
        for (ranks, len) in (1..=5).flat_map(|ranks| [0, 1, 2, 7, 33].map(|len| (ranks, len))) {
            let sums = run(ranks, |comm| {
                let mut values = Buffer::from_slice(&Vec::from_iter((0..len).map(|i| value(comm.rank(), 2, i))));
                comm.all_reduce(&mut values)?;
                Ok(bits(&values))
            });
            let expected: Vec<f32> = (0..len).map(|i| sum_in_order(ranks, |rank| value(rank, 2, i))).collect();
            let backwards = (0..len).map(|i| sum_in_order(ranks, |rank| value(ranks - 1 - rank, 2, i)));
            order_matters |= !backwards.eq(expected.iter().copied());
            assert_eq!(sums, Ok(vec![bits(&expected); ranks]), "{ranks} ranks, {len} values");
        }
        assert!(order_matters, "the values are such that another order would show");
    }

    /// The values themselves, the parts that are sent, and the sums that are sent: not those of other ranks.
    #[test]
    fn each_rank_sums_in_memory_of_its_own() {
        const VALUES: usize = 1 << 14;
        let peaks = run(8, |comm| {
            let device = Cpu::<f32>::new(1);
            let mut values = device.upload(&vec![1.0f32; VALUES]);
            comm.all_reduce(&mut values)?;
            Ok(device.pool().stats().peak)
        });
        let peaks = peaks.expect("no rank fails");
        assert!(peaks.iter().all(|&peak| peak <= 4 * VALUES * size_of::<f32>()), "{peaks:?}");
    }

    #[test]
    fn a_sum_of_negative_zeros_stays_negative() {
        let sums = run(3, |comm| {
            let mut values = Buffer::from_slice(&[-0.0f64; 4]);
            comm.all_reduce(&mut values)?;
            Ok(values.iter().all(|value| value.to_bits() == (-0.0f64).to_bits()))
        });
        assert_eq!(sums, Ok(vec![true; 3]));
    }

    #[test]
    fn counts_that_do_not_fit_are_refused() {
        let refused = run(2, |comm| {
            let mine = || Buffer::from_slice(&[1.0f32, 2.0]);
            let errors = [
                comm.all_gather_v(mine(), &[2]).map(drop),
                comm.all_gather_v(mine(), &[3, 3]).map(drop),
                comm.all_to_all_v(vec![mine()], &[2, 2]).map(drop),
                comm.all_to_all_v(vec![mine(), mine()], &[3, 3]).map(drop),
                comm.reduce_scatter_v(&mine(), &[2, 1]).map(drop),
                comm.reduce_scatter_v(&mine(), &[usize::MAX, 3]).map(drop),
            ];
            let counts = |error: &Result<()>| matches!(error, Err(crate::error::Error::Comm(CommError::Counts { .. })));
            Ok(errors.iter().all(counts))
        });
        assert_eq!(refused, Ok(vec![true; 2]));
    }

    #[test]
    fn counts_that_disagree_name_the_peer() {
        let error = run(2, |comm| {
            let len = 2 + comm.rank();
            let mine = Buffer::from_slice(&vec![0f32; len]);
            comm.all_gather_v(mine, &if comm.rank() == 0 { [2, 2] } else { [2, 3] }).map(drop)
        });
        let (expected, found) = ("2 x f32".to_string(), "3 x f32".to_string());
        let protocol = CommError::Protocol { peer: 1, operation: "all_gather", step: 1, expected, found };
        assert_eq!(error, Err(protocol.into()));
    }
}
