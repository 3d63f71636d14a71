//! Collectives that move data without arithmetic, written once on exchanges. Both sides know the counts, so a part
//! without elements costs no message.

use super::parcel::{Message, Operation, Parcel, Receive};
use super::pending::Pending;
use super::tree;
use crate::error::{CommError, Error, Result};
use crate::tensor::Storage;

/// From so many ranks on, little data is passed on from rank to rank instead of being sent from each to each.
const MANY: usize = 8;
/// Bytes of all ranks together that are little.
const LITTLE: usize = 1 << 16;

/// How a communicator exchanges.
type Exchange<'a, S> = &'a dyn Fn(Operation, Vec<Message<S>>, Vec<Receive>) -> Result<Pending<S>>;

/// The ranks that data is moved between.
pub(super) struct Ranks<'a, S> {
    /// This one.
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) exchange: Exchange<'a, S>,
}

/// Whether so many bytes of all of `size` ranks together are passed on from rank to rank.
pub(super) fn is_relayed(size: usize, bytes: usize) -> bool {
    size >= MANY && bytes <= LITTLE
}

/// [`Communicator::all_gather_parcels`](super::Communicator::all_gather_parcels).
pub(super) fn all_gather<S: Storage>(
    ranks: &Ranks<S>,
    operation: Operation,
    mine: Parcel<S>,
    counts: &[usize],
) -> Result<Vec<Parcel<S>>> {
    check(operation.name, "counts, one per rank", ranks.size, counts.len())?;
    check(operation.name, "elements in this rank's buffer", counts[ranks.rank], mine.len())?;
    let elements = counts.iter().fold(0usize, |sum, &count| sum.saturating_add(count));
    if is_relayed(ranks.size, elements.saturating_mul(mine.dtype().size())) {
        return relay(ranks, operation, mine, counts);
    }
    if ranks.size == 1 || mine.is_empty() {
        return swap(ranks, operation, vec![], mine, counts);
    }
    let others: Vec<usize> = (0..ranks.size).filter(|&to| to != ranks.rank).collect();
    let (mine, sent) = mine.share();
    swap(ranks, operation, vec![Message::new(others, sent)], mine, counts)
}

/// Each rank sends what it knows to ranks at growing distances.
fn relay<S: Storage>(
    ranks: &Ranks<S>,
    operation: Operation,
    mine: Parcel<S>,
    counts: &[usize],
) -> Result<Vec<Parcel<S>>> {
    let &Ranks { rank, size, exchange } = ranks;
    let dtype = mine.dtype();
    let before = |rank: usize, distance: usize| (rank + size - distance) % size;
    // Elements of a rank and those before it, so many in all.
    let elements = |rank: usize, blocks: usize| (0..blocks).map(|at| counts[before(rank, at)]).sum::<usize>();
    let own = mine.into_bytes();
    // What is known: this rank's elements, those of the rank before it, and so on.
    let mut known = S::beside(&own, elements(rank, size) * dtype.size());
    S::write(&mut known, 0, &own);
    let mut end = own.len();
    for distance in tree::distances(size) {
        let blocks = distance.min(size - distance);
        let (to, from) = ((rank + distance) % size, before(rank, distance));
        let (sent, received) = (elements(rank, blocks), elements(from, blocks));
        let parcel = || Parcel::of_bytes(S::part(&known, 0..sent * dtype.size()), sent, dtype);
        let messages = (sent > 0).then(|| Message::new(to, parcel())).into_iter().collect();
        let receives: Vec<Receive> =
            (received > 0).then_some(Receive { from, len: received, dtype }).into_iter().collect();
        let expected = receives.first().copied();
        let mut parcels = exchange(operation, messages, receives)?.wait()?.parcels.into_iter();
        if let Some(expected) = expected {
            let news = parcels.next().ok_or_else(|| lost(expected, operation.name))?.into_bytes();
            S::write(&mut known, end, &news);
            end += news.len();
        }
    }
    let mut blocks: Vec<Parcel<S>> = Vec::with_capacity(size);
    let mut at = own.len();
    blocks.push(Parcel::of_bytes(own, counts[rank], dtype));
    for from in (1..size).map(|distance| before(rank, distance)) {
        let bytes = counts[from] * dtype.size();
        blocks.push(Parcel::of_bytes(S::part(&known, at..at + bytes), counts[from], dtype));
        at += bytes;
    }
    // From rank, rank - 1, ... to 0, 1, ...
    blocks.reverse();
    blocks.rotate_right(rank + 1);
    Ok(blocks)
}

/// [`Communicator::all_to_all_parcels`](super::Communicator::all_to_all_parcels).
pub(super) fn all_to_all<S: Storage>(
    ranks: &Ranks<S>,
    operation: Operation,
    mut parts: Vec<Parcel<S>>,
    counts: &[usize],
) -> Result<Vec<Parcel<S>>> {
    let &Ranks { rank, size, .. } = ranks;
    check(operation.name, "counts, one per rank", size, counts.len())?;
    check(operation.name, "parts, one per rank", size, parts.len())?;
    check(operation.name, "elements in this rank's own part", counts[rank], parts[rank].len())?;
    let later = parts.split_off(rank + 1);
    // `check` above: there is one part per rank, so the last that is left is this rank's own.
    let Some(own) = parts.pop() else { return Ok(parts) };
    let others = parts.into_iter().enumerate().chain((rank + 1..).zip(later));
    let messages = others.filter(|(_, part)| !part.is_empty()).map(|(to, part)| Message::new(to, part)).collect();
    swap(ranks, operation, messages, own, counts)
}

/// [`Communicator::broadcast_parcel`](super::Communicator::broadcast_parcel).
pub(super) fn broadcast<S: Storage>(
    ranks: &Ranks<S>,
    operation: Operation,
    mine: Option<Parcel<S>>,
    of: Receive,
) -> Result<Parcel<S>> {
    let &Ranks { rank, size, exchange } = ranks;
    if of.from >= size {
        return Err(CommError::NoSuchRank { rank: of.from, size }.into());
    }
    // Places count from the rank that has it, which is the root of the tree.
    let place = (rank + size - of.from) % size;
    let at = |place: usize| (place + of.from) % size;
    let parcel = match tree::parent(place) {
        None => mine,
        Some(above) => {
            let receive = Receive { from: at(above), ..of };
            exchange(operation, vec![], vec![receive])?.wait()?.parcels.into_iter().next()
        }
    };
    let parcel = parcel.ok_or_else(|| lost(of, operation.name))?;
    if (parcel.len(), parcel.dtype()) != (of.len, of.dtype) {
        let found = format!("{} x {}", parcel.len(), parcel.dtype());
        return Err(protocol(of, operation.name, found));
    }
    let below: Vec<usize> = tree::children(place, size).map(at).collect();
    if below.is_empty() {
        return Ok(parcel);
    }
    let (parcel, sent) = parcel.share();
    exchange(operation, vec![Message::new(below, sent)], vec![])?.wait()?;
    Ok(parcel)
}

/// Sends, and receives `counts[r]` elements from every other rank; `own` stands at this rank's place.
fn swap<S: Storage>(
    ranks: &Ranks<S>,
    operation: Operation,
    messages: Vec<Message<S>>,
    own: Parcel<S>,
    counts: &[usize],
) -> Result<Vec<Parcel<S>>> {
    let &Ranks { rank, size, exchange } = ranks;
    if size == 1 {
        return Ok(vec![own]);
    }
    let dtype = own.dtype();
    let from = |from: usize| Receive { from, len: counts[from], dtype };
    let expected = |from: usize| from != rank && counts[from] > 0;
    let receives = (0..size).filter(|&rank| expected(rank)).map(from).collect();
    let mut parcels = exchange(operation, messages, receives)?.wait()?.parcels.into_iter();
    let own = own.into_bytes();
    let nothing = S::beside(&own, 0);
    let mut own = Some(own);
    (0..size)
        .map(|at| match own.take_if(|_| at == rank) {
            Some(own) => Ok(Parcel::of_bytes(own, counts[rank], dtype)),
            None if expected(at) => parcels.next().ok_or_else(|| lost(from(at), operation.name)),
            None => Ok(Parcel::of_bytes(S::part(&nothing, 0..0), 0, dtype)),
        })
        .collect()
}

/// An engine gave fewer parcels than were expected.
fn lost(expected: Receive, operation: &'static str) -> Error {
    protocol(expected, operation, "nothing".into())
}

fn protocol(Receive { from: peer, len, dtype }: Receive, operation: &'static str, found: String) -> Error {
    CommError::Protocol { peer, operation, step: 0, expected: format!("{len} x {dtype}"), found }.into()
}

/// Refuses counts that do not fit.
pub(super) fn check(operation: &'static str, what: &'static str, expected: usize, found: usize) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(CommError::Counts { operation, what, expected, found }.into())
}
