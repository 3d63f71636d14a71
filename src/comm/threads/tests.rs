//! Tests of the in-process engine: order, groups, and what must not be sent or come.

use std::sync::atomic::{AtomicU64, Ordering};

use super::super::{Collectives, Message, Receive, Received, open};
use super::*;
use crate::tensor::{Buffer, DType};

mod losses;

fn send(to: usize, values: &[i64]) -> Message {
    Message::new(to, Buffer::from_slice(values))
}

fn receive(from: usize, len: usize) -> Receive {
    Receive::of::<i64>(from, len)
}

/// What was received, opened.
fn values(received: Received) -> Vec<Vec<i64>> {
    let open = |parcel| open::<i64, _>(parcel, 0, "test").expect("the engine has checked the type").to_vec();
    received.parcels.into_iter().map(open).collect()
}

fn fails_with(error: CommError) -> Result<Vec<()>> {
    Err(error.into())
}

fn gone(rank: usize, reason: &str) -> CommError {
    CommError::Poisoned { rank, reason: reason.into() }
}

#[test]
fn messages_keep_their_order() {
    let seen = run(3, |comm| {
        let (next, last) = ((comm.rank() + 1) % 3, (comm.rank() + 2) % 3);
        let mut seen = Vec::new();
        for i in 0..100 {
            // Twice to one peer in one exchange.
            let sends = vec![send(next, &[i]), send(next, &[-i, i])];
            let received = comm.exchange("ring".into(), sends, vec![receive(last, 1), receive(last, 2)])?.wait()?;
            seen.extend(values(received));
        }
        Ok(seen)
    });
    let expected: Vec<Vec<i64>> = (0..100).flat_map(|i| [vec![i], vec![-i, i]]).collect();
    assert_eq!(seen, Ok(vec![expected; 3]));
}

#[test]
fn two_exchanges_may_be_under_way_and_end_in_any_order() {
    let seen = run(2, |comm| {
        let peer = 1 - comm.rank();
        let first = comm.exchange("first".into(), vec![send(peer, &[1])], vec![receive(peer, 1)])?;
        let second = comm.exchange("second".into(), vec![send(peer, &[2, 2])], vec![receive(peer, 2)])?;
        let second = values(second.wait()?);
        Ok((values(first.wait()?), second))
    });
    assert_eq!(seen, Ok(vec![(vec![vec![1]], vec![vec![2, 2]]); 2]));
}

#[test]
fn a_dropped_exchange_does_not_shift_later_ones() {
    for late in [false, true] {
        let seen = run(2, |comm| {
            let peer = 1 - comm.rank();
            let pending = if comm.rank() == 0 && late {
                // Given up before the peer has sent.
                drop(comm.exchange("dropped".into(), vec![send(1, &[1])], vec![receive(1, 1)])?);
                comm.barrier()?;
                None
            } else {
                if late {
                    comm.barrier()?;
                }
                Some(comm.exchange("dropped".into(), vec![send(peer, &[1])], vec![receive(peer, 1)])?)
            };
            if !late {
                comm.barrier()?;
            }
            drop(pending);
            Ok(values(comm.exchange("kept".into(), vec![send(peer, &[2])], vec![receive(peer, 1)])?.wait()?))
        });
        assert_eq!(seen, Ok(vec![vec![vec![2]]; 2]), "late: {late}");
    }
}

#[test]
fn buffers_are_moved_not_copied() {
    let addresses = run(2, |comm| {
        let buffer = Buffer::from_slice(&[comm.rank() as i64; 100]);
        let sent = buffer.as_ptr() as usize;
        let peer = 1 - comm.rank();
        let sends = vec![Message::new(peer, buffer)];
        let mut received = comm.exchange("swap".into(), sends, vec![receive(peer, 100)])?.wait()?;
        let buffer = open::<i64, _>(received.parcels.remove(0), peer, "swap")?;
        // Both live until both addresses are taken.
        comm.barrier()?;
        Ok((sent, buffer.as_ptr() as usize))
    });
    let addresses = addresses.expect("no rank fails");
    assert_eq!((addresses[0].0, addresses[1].0), (addresses[1].1, addresses[0].1));
}

#[test]
fn a_barrier_holds_until_the_last() {
    let arrived = AtomicU64::new(0);
    let seen = run(4, |comm| {
        for round in 1..=20 {
            arrived.fetch_add(1, Ordering::SeqCst);
            comm.barrier()?;
            assert!(arrived.load(Ordering::SeqCst) >= 4 * round);
        }
        Ok(())
    });
    assert_eq!(seen, Ok(vec![(); 4]));
}

#[test]
fn splits_order_by_key_then_rank_and_nest() {
    let seen = run(6, |comm| {
        // Even and odd ranks, in reverse; then each of those into a pair and one alone, by equal keys.
        let half = comm.split(comm.rank() % 2, 10 - comm.rank())?;
        let pair = half.split(usize::from(half.rank() == 2), 7)?;
        let globals = |comm: &dyn Communicator| (0..comm.size()).map(|r| comm.global_rank(r)).collect::<Vec<_>>();
        // Messages of the three groups do not mix, though posted in different orders.
        let mut sums = [Buffer::from_slice(&[1.0f32]), Buffer::from_slice(&[1.0]), Buffer::from_slice(&[1.0])];
        let peer = |comm: &dyn Communicator| (comm.rank() + 1) % comm.size();
        let early = half.exchange("half".into(), vec![send(peer(&*half), &[9])], vec![])?;
        comm.all_reduce(&mut sums[0])?;
        pair.all_reduce(&mut sums[2])?;
        let last = (half.rank() + half.size() - 1) % half.size();
        let from_half = values(half.exchange("half".into(), vec![], vec![receive(last, 1)])?.wait()?);
        early.wait()?;
        half.all_reduce(&mut sums[1])?;
        Ok((half.rank(), globals(&*half), globals(&*pair), sums.map(|sum| sum[0]), from_half))
    });
    let expected = |rank: usize| {
        let odd = rank % 2;
        let half = vec![4 + odd, 2 + odd, odd];
        let (pair, ranks) = if rank < 2 { (vec![odd], 1.0) } else { (vec![4 + odd, 2 + odd], 2.0) };
        ((5 - rank) / 2, half, pair, [6.0, 3.0, ranks], vec![vec![9]])
    };
    assert_eq!(seen, Ok((0..6).map(expected).collect()));
}

#[test]
fn wrong_peers_are_refused_before_anything_is_sent() {
    let seen = run(2, |comm| {
        let me = comm.rank();
        let try_exchange =
            |to, from| comm.exchange("test".into(), vec![send(to, &[1])], vec![receive(from, 1)]).map(drop);
        assert_eq!(try_exchange(2, 1 - me), Err(CommError::NoSuchRank { rank: 2, size: 2 }.into()));
        assert_eq!(try_exchange(1 - me, 5), Err(CommError::NoSuchRank { rank: 5, size: 2 }.into()));
        assert_eq!(try_exchange(me, 1 - me), Err(CommError::ToItself { rank: me, operation: "test" }.into()));
        assert_eq!(try_exchange(1 - me, me), Err(CommError::ToItself { rank: me, operation: "test" }.into()));
        let peer = 1 - me;
        Ok(values(comm.exchange("test".into(), vec![send(peer, &[3])], vec![receive(peer, 1)])?.wait()?))
    });
    assert_eq!(seen, Ok(vec![vec![vec![3]]; 2]));
    assert_eq!(run(0, |_| Ok(())), fails_with(CommError::NoSuchRank { rank: 0, size: 0 }));
}

#[test]
fn what_comes_must_be_what_was_expected() {
    let outcome = |expected: Receive| {
        run(2, |comm| {
            comm.barrier()?;
            let (sends, receives) =
                if comm.rank() == 0 { (vec![], vec![expected]) } else { (vec![send(0, &[1, 2])], vec![]) };
            comm.exchange("rows".into(), sends, receives)?.wait().map(drop)
        })
    };
    let protocol = |expected: &str| {
        let (expected, found) = (expected.into(), "2 x i64".into());
        fails_with(CommError::Protocol { peer: 1, operation: "rows", step: 2, expected, found })
    };
    assert_eq!(outcome(receive(1, 2)), Ok(vec![(); 2]));
    assert_eq!(outcome(receive(1, 3)), protocol("3 x i64"));
    assert_eq!(outcome(Receive { from: 1, len: 2, dtype: DType::F64 }), protocol("2 x f64"));
}

#[test]
fn a_barrier_is_no_split() {
    let outcome = run(2, |comm| if comm.rank() == 0 { comm.barrier() } else { comm.split(0, 0).map(drop) });
    let Err(Error::Comm(CommError::Protocol { peer, operation, step: 1, expected, found })) = outcome else {
        panic!("{outcome:?}")
    };
    // Either may notice first.
    match peer {
        1 => assert_eq!((operation, &*expected, &*found), ("barrier", "a barrier", "a split")),
        _ => assert_eq!((peer, operation, &*expected, &*found), (0, "split", "a split", "a barrier")),
    }
}
