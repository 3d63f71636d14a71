//! Group-cast and group-reduce: every range of rows goes to just the ranks that need it, and sums come back the way.
//!
//! A *cast* cuts the sender's rows into splits and copies each to any number of ranks, its [`Fan`]; the receiver
//! says, for each of its own splits, from which rank it takes the next one that this rank sends it, its [`Leg`]. So
//! the output is any interleaving of one queue per sender. A *reduce* goes the other way: every split of the input
//! is one leg, every split of the output gathers a fan. With fans and legs in each other's place, the summing reduce
//! is the adjoint of the cast.
//!
//! A split is one message, so lengths that disagree are errors of the receiver. Ranks of a split with itself cost
//! nothing. A split of 0 rows is padding: it may name any ranks and is never sent. Contributions are taken in the
//! order of the fan, so the result has the same bits on every engine.

use std::collections::VecDeque;
use std::ops::Range;

use super::{Communicator, Receive, Send, open};
use crate::elementary::{exp, ln};
use crate::error::{CommError, Result};
use crate::tensor::{Buffer, Element, Real, Storage};

/// Rows that go to, or come from, several ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fan {
    /// Number of rows.
    pub rows: usize,
    /// The ranks, ascending. May be none, may hold one's own.
    pub ranks: Vec<usize>,
}

/// Rows that come from, or go to, one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Number of rows.
    pub rows: usize,
    /// The rank; may be one's own.
    pub rank: usize,
}

/// Copies split `i` of `input`, rows of `width` elements, to the ranks of `fans[i]`; split `j` of `output` becomes
/// the next one from the rank of `legs[j]`.
///
/// `input` has exactly the rows of the fans, `output` at least those of the legs; what it has more is left alone.
///
/// # Errors
///
/// [`CommError::Counts`] where splits do not fit a buffer, [`CommError::Splits`] where they make no sense, and what
/// an exchange can fail with where they do not fit another rank's; see [`check`].
pub fn group_cast<T: Element, S: Storage, C: Communicator<S> + ?Sized>(
    comm: &C,
    input: &Buffer<T, S>,
    width: usize,
    fans: &[Fan],
    legs: &[Leg],
    output: &mut Buffer<T, S>,
) -> Result<()> {
    let operation = "group_cast";
    let (sent, received) = (fans.iter().map(|fan| fan.rows), legs.iter().map(|leg| leg.rows));
    fits(operation, input.len(), sent, output.len(), received, width)?;
    let (sends, receives) = (by_fan(fans), by_leg(legs));
    for (nth, part) in travel(comm, operation, input, width, &sends, &receives)?.into_iter().enumerate() {
        S::write(output, receives[nth].0.start * width, &part);
    }
    Ok(())
}

/// Sends split `i` of `input`, rows of `width` elements, to the rank of `legs[i]`; to split `j` of `output` is added
/// the next one from each rank of `fans[j]`.
///
/// # Errors
///
/// Those of [`group_cast`].
pub fn group_reduce_sum<T: Real, S: Storage, C: Communicator<S> + ?Sized>(
    comm: &C,
    input: &Buffer<T, S>,
    width: usize,
    legs: &[Leg],
    fans: &[Fan],
    output: &mut Buffer<T, S>,
) -> Result<()> {
    for (row, part) in reduce("group_reduce", comm, input, width, legs, fans, output.len())? {
        S::add(output, row * width, &part);
    }
    Ok(())
}

/// [`group_reduce_sum`], then divides each split by the number of its contributions: one per rank of its fan, and
/// one for what `output` held.
///
/// # Errors
///
/// Those of [`group_cast`].
pub fn group_reduce_mean<T: Real, C: Communicator + ?Sized>(
    comm: &C,
    input: &Buffer<T>,
    width: usize,
    legs: &[Leg],
    fans: &[Fan],
    output: &mut Buffer<T>,
) -> Result<()> {
    group_reduce_sum(comm, input, width, legs, fans, output)?;
    let mut at = 0;
    for fan in fans {
        let parts = T::from_f64(1.0 + fan.ranks.len() as f64);
        output[at..at + fan.rows * width].iter_mut().for_each(|value| *value /= parts);
        at += fan.rows * width;
    }
    Ok(())
}

/// A partial attention result: `out`, rows of `heads * head_dim` elements, and the log-sum-exp, rows of `heads`.
pub type Partial<'a, T> = (&'a Buffer<T>, &'a Buffer<T>);

/// Merges partial attention results over the ranks of each fan, together with what `output` (`out` and `lse`) holds:
/// `lse = ln(sum exp(lse_i))`, `out = sum exp(lse_i - lse) out_i`. Where every `lse_i` is minus infinity, no key was
/// attended: `out` becomes 0 and `lse` stays minus infinity.
///
/// # Errors
///
/// Those of [`group_cast`].
pub fn group_reduce_lse<T: Real, C: Communicator + ?Sized>(
    comm: &C,
    input: Partial<T>,
    (heads, head_dim): (usize, usize),
    legs: &[Leg],
    fans: &[Fan],
    (out, lse): (&mut Buffer<T>, &mut Buffer<T>),
) -> Result<()> {
    let operation = "group_reduce_lse";
    let outs = reduce(operation, comm, input.0, heads.saturating_mul(head_dim), legs, fans, out.len())?;
    let lses = reduce(operation, comm, input.1, heads, legs, fans, lse.len())?;
    let (mut start, mut nth) = (0, 0);
    for fan in fans.iter().filter(|fan| fan.rows > 0) {
        let here = nth..nth + fan.ranks.len();
        nth = here.end;
        for cell in 0..fan.rows * heads {
            let at = start * heads + cell;
            let parts = || lses[here.clone()].iter().map(|(_, part)| part[cell]);
            let most = parts().fold(lse[at], T::max);
            let values = &mut out[at * head_dim..][..head_dim];
            if most == T::neg_infinity() {
                values.fill(T::zero());
                continue;
            }
            let total = most + ln(parts().fold(exp(lse[at] - most), |sum, part| sum + exp(part - most)));
            // A weight of 0 must silence whatever the partial result holds.
            let weigh = |lse: T, value: T| {
                let weight = exp(lse - total);
                if weight == T::zero() { T::zero() } else { weight * value }
            };
            for (index, value) in values.iter_mut().enumerate() {
                let (head, tail) = (weigh(lse[at], *value), outs[here.clone()].iter().zip(parts()));
                *value = tail.fold(head, |sum, ((_, part), lse)| sum + weigh(lse, part[cell * head_dim + index]));
            }
            lse[at] = total;
        }
        start += fan.rows;
    }
    Ok(())
}

/// Checks the splits of all ranks, by rank, against each other: for every two ranks, the legs of one must be the fans
/// of the other, in the same order and with as many rows. For casts and reduces alike; nothing is sent.
///
/// # Errors
///
/// [`CommError::Splits`] with both sides' rows.
pub fn check(operation: &'static str, fans: &[Vec<Fan>], legs: &[Vec<Leg>]) -> Result<()> {
    let used = |rows: usize| rows > 0;
    for (one, fans) in fans.iter().enumerate() {
        for (other, legs) in legs.iter().enumerate() {
            let fan = fans.iter().filter(|fan| used(fan.rows) && fan.ranks.contains(&other)).map(|fan| fan.rows);
            let leg = legs.iter().filter(|leg| used(leg.rows) && leg.rank == one).map(|leg| leg.rows);
            let (fan, leg): (Vec<_>, Vec<_>) = (fan.collect(), leg.collect());
            if fan != leg {
                let what = format!("rank {one} has fans of {fan:?} rows with rank {other}, which has legs of {leg:?}");
                return Err(CommError::Splits { operation, what }.into());
            }
        }
    }
    Ok(())
}

/// Rows of a buffer and the rank at their other end.
type Part = (Range<usize>, usize);

/// Consecutive splits, without padding.
fn by_fan(fans: &[Fan]) -> Vec<Part> {
    let ranges = ranges(fans.iter().map(|fan| fan.rows)).zip(fans).filter(|(range, _)| !range.is_empty());
    ranges.flat_map(|(range, fan)| fan.ranks.iter().map(move |&rank| (range.clone(), rank))).collect()
}

fn by_leg(legs: &[Leg]) -> Vec<Part> {
    let ranges = ranges(legs.iter().map(|leg| leg.rows)).zip(legs).filter(|(range, _)| !range.is_empty());
    ranges.map(|(range, leg)| (range, leg.rank)).collect()
}

fn ranges(rows: impl Iterator<Item = usize>) -> impl Iterator<Item = Range<usize>> {
    rows.scan(0, |end, rows| {
        *end += rows;
        Some(*end - rows..*end)
    })
}

/// What a reduce receives, fan after fan: the row of the output where each part begins, and the part.
fn reduce<T: Element, S: Storage, C: Communicator<S> + ?Sized>(
    operation: &'static str,
    comm: &C,
    input: &Buffer<T, S>,
    width: usize,
    legs: &[Leg],
    fans: &[Fan],
    output: usize,
) -> Result<Vec<(usize, Buffer<T, S>)>> {
    fits(operation, input.len(), legs.iter().map(|leg| leg.rows), output, fans.iter().map(|fan| fan.rows), width)?;
    let receives = by_fan(fans);
    let parts = travel(comm, operation, input, width, &by_leg(legs), &receives)?;
    Ok(receives.into_iter().map(|(rows, _)| rows.start).zip(parts).collect())
}

/// The input is all splits, the output at least.
fn fits(
    operation: &'static str,
    input: usize,
    sends: impl Iterator<Item = usize>,
    output: usize,
    receives: impl Iterator<Item = usize>,
    width: usize,
) -> Result<()> {
    // Splits that cannot be counted fit no buffer, even where their rows have no elements.
    let elements = |rows: usize| if rows == usize::MAX { rows } else { rows.saturating_mul(width) };
    let sends = elements(sends.fold(0, usize::saturating_add));
    let receives = elements(receives.fold(0, usize::saturating_add));
    if input != sends {
        let what = "elements in the input, the sum of its splits";
        return Err(CommError::Counts { operation, what, expected: sends, found: input }.into());
    }
    if output < receives {
        let what = "elements in the output, the sum of its splits";
        return Err(CommError::Counts { operation, what, expected: receives, found: output }.into());
    }
    Ok(())
}

/// Sends parts, and gives what the ranks of `receives` send here, in that order.
fn travel<T: Element, S: Storage, C: Communicator<S> + ?Sized>(
    comm: &C,
    operation: &'static str,
    input: &Buffer<T, S>,
    width: usize,
    sends: &[Part],
    receives: &[Part],
) -> Result<Vec<Buffer<T, S>>> {
    let me = comm.rank();
    let wrong = |what: String| Err(CommError::Splits { operation, what }.into());
    for side in [sends, receives] {
        if let Some((rows, rank)) = side.iter().find(|(_, rank)| *rank >= comm.size()) {
            return wrong(format!("rows {rows:?} name rank {rank} of {}: only 0 rows may", comm.size()));
        }
        let disordered = |pair: &&[Part]| pair[0].0 == pair[1].0 && pair[0].1 >= pair[1].1;
        if let Some(pair) = side.windows(2).find(disordered) {
            return wrong(format!("rows {:?} name rank {} before rank {}", pair[0].0, pair[0].1, pair[1].1));
        }
    }
    let own = |side: &[Part]| side.iter().filter(|part| part.1 == me).map(|part| part.0.len()).collect::<Vec<_>>();
    if own(sends) != own(receives) {
        return wrong(format!("rank {me} sends itself splits of {:?} rows, expects {:?}", own(sends), own(receives)));
    }

    let part = |rows: &Range<usize>| S::part(input, rows.start * width..rows.end * width);
    let mut kept: VecDeque<_> = sends.iter().filter(|send| send.1 == me).map(|(rows, _)| part(rows)).collect();
    let away = sends.iter().filter(|send| send.1 != me);
    let away = away.map(|(rows, to)| Send { to: *to, parcel: part(rows).into() }).collect();
    let expected = receives.iter().filter(|receive| receive.1 != me);
    let expected = expected.map(|(rows, from)| Receive::of::<T>(*from, rows.len() * width)).collect();
    let mut parcels = comm.exchange(operation.into(), away, expected)?.wait()?.parcels.into_iter();
    let take = |(rows, from): &Part| match (*from == me).then(|| kept.pop_front()).flatten() {
        Some(own) => Ok(own),
        None => match parcels.next() {
            Some(parcel) => open(parcel, *from, operation),
            None => {
                let (expected, found) = (format!("{} rows", rows.len()), "nothing".into());
                Err(CommError::Protocol { peer: *from, operation, step: 0, expected, found }.into())
            }
        },
    };
    receives.iter().map(take).collect()
}

#[cfg(test)]
mod tests;
