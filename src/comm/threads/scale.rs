//! Tests of the in-process engine with many ranks and many receivers: how many messages there are, that nothing is
//! copied for each, and who is named when one rank of many is lost.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::clock::ManualClock;
use super::super::{Collectives, Message, Parcel, Receive, open, tree};
use super::*;
use crate::tensor::{Buffer, Pool};

mod memory;

/// What `act` makes each rank deliver.
fn delivered(ranks: usize, act: impl Fn(&ThreadComm) -> Result<()> + Sync) -> Vec<u64> {
    let delivered = run(ranks, |comm| {
        let count = || comm.0.wire().delivered[comm.rank()].load(Ordering::Relaxed);
        let before = count();
        act(&comm)?;
        Ok(count() - before)
    });
    delivered.expect("no rank fails")
}

/// The number of binary digits of the ranks.
fn digits(ranks: usize) -> u64 {
    tree::distances(ranks).count() as u64
}

#[test]
fn barriers_and_splits_take_as_many_messages_of_a_rank_as_ranks_have_digits() {
    for ranks in [1, 2, 3, 4, 7, 8, 16, 33, 64] {
        assert_eq!(delivered(ranks, |comm| comm.barrier()), vec![digits(ranks); ranks]);
        assert_eq!(delivered(ranks, |comm| comm.split(comm.rank() % 3, 0).map(drop)), vec![digits(ranks); ranks]);
    }
}

#[test]
fn little_data_of_many_ranks_takes_few_messages() {
    let gather = |comm: &ThreadComm| {
        let all = comm.all_gather_v(Buffer::from_slice(&[comm.rank() as i64]), &vec![1; comm.size()])?;
        assert!(all.iter().enumerate().all(|(rank, part)| part[..] == [rank as i64]));
        Ok(())
    };
    let reduce = |comm: &ThreadComm| comm.all_reduce(&mut Buffer::from_slice(&[1f64, 2.0]));
    for ranks in [8, 16, 33, 64] {
        assert_eq!(delivered(ranks, gather), vec![digits(ranks); ranks]);
        assert_eq!(delivered(ranks, reduce), vec![digits(ranks); ranks]);
    }
    // One message to each of few ranks, in one round.
    assert_eq!(delivered(5, gather), vec![4; 5]);
}

#[test]
fn a_broadcast_goes_down_a_tree() {
    for ranks in [1, 2, 3, 5, 8, 16, 33] {
        for root in [0, ranks / 2, ranks - 1] {
            let sent = delivered(ranks, |comm| {
                let mut values = Buffer::from_slice(&[comm.rank() as f32; 100]);
                comm.broadcast(root, &mut values)?;
                assert!(values.iter().all(|&value| value == root as f32));
                comm.broadcast(root, &mut Buffer::<f32>::from_slice(&[]))
            });
            assert_eq!(sent.iter().sum::<u64>(), 2 * (ranks as u64 - 1), "{ranks} ranks");
            assert!(sent.iter().all(|&sent| sent <= 2 * digits(ranks)));
        }
    }
    let refused = run(2, |comm| comm.broadcast(2, &mut Buffer::from_slice(&[1f32])));
    assert_eq!(refused, Err(CommError::NoSuchRank { rank: 2, size: 2 }.into()));
    let other = run(2, |comm| comm.broadcast(0, &mut Buffer::from_slice(&vec![1f32; 2 + comm.rank()])));
    let (expected, found) = ("3 x f32".into(), "2 x f32".into());
    assert_eq!(other, Err(CommError::Protocol { peer: 0, operation: "broadcast", step: 1, expected, found }.into()));
}

#[test]
fn one_parcel_for_many_is_one_memory_that_comes_back_to_its_pool() {
    let pool = Pool::new();
    let seen = run(5, |comm| {
        let buffer = if comm.rank() == 2 {
            let mut buffer = Buffer::<i64>::empty(&pool, 1000);
            buffer.copy_from_slice(&[7; 1000]);
            let (mine, sent) = buffer.share();
            comm.exchange("news".into(), vec![Message::new(vec![0, 1, 3, 4], sent)], vec![])?.wait()?;
            Some(mine)
        } else {
            let pending = comm.exchange("news".into(), vec![], vec![Receive::of::<i64>(2, 1000)])?;
            // One does not want it.
            if comm.rank() == 4 { None } else { pending.wait()?.parcels.pop().and_then(Parcel::open::<i64>) }
        };
        let place = buffer.as_ref().map(|buffer| buffer.as_ptr() as usize);
        assert!(buffer.iter().all(|buffer| buffer[..] == [7; 1000]));
        comm.barrier()?;
        // Whoever writes has memory of its own then.
        let buffer = buffer.map(|mut buffer| {
            buffer[999] = comm.rank() as i64;
            buffer
        });
        comm.barrier()?;
        assert!(buffer.iter().all(|buffer| (buffer[0], buffer[999]) == (7, comm.rank() as i64)));
        Ok(place)
    });
    let seen: Vec<usize> = seen.expect("no rank fails").into_iter().flatten().collect();
    assert_eq!((seen.len(), seen.iter().filter(|&&place| place == seen[0]).count()), (4, 4));
    // Four wrote, each but possibly the last into a copy; all of it is back.
    let stats = pool.stats();
    assert!((4..=5).contains(&stats.allocations), "{stats:?}");
    let again: Vec<_> = (0..stats.allocations).map(|_| Buffer::<i64>::empty(&pool, 1000)).collect();
    assert_eq!((pool.stats().allocations, again.len() as u64), (stats.allocations, stats.allocations));
    drop(again);
    assert_eq!(pool.ledger().held(), 0);
}

#[test]
fn a_parcel_that_is_only_read_is_never_copied() {
    let pool = Pool::new();
    for _ in 0..3 {
        run(6, |comm| {
            let mut news = Vec::new();
            if comm.rank() == 0 {
                news.push(Message::new((1..6).collect::<Vec<_>>(), Buffer::<f32>::zeros(&pool, 500)));
            }
            let receives = if comm.rank() == 0 { vec![] } else { vec![Receive::of::<f32>(0, 500)] };
            for parcel in comm.exchange("news".into(), news, receives)?.wait()?.parcels {
                assert!(open::<f32, _>(parcel, 0, "news")?.iter().all(|&value| value == 0.0));
            }
            Ok(())
        })
        .expect("no rank fails");
    }
    assert_eq!(pool.stats().allocations, 1);
}

/// Everything that many ranks do over others.
type Act = fn(&ThreadComm) -> Result<()>;
const ACTS: [(&str, Act); 5] = [
    ("barrier", |comm| comm.barrier()),
    ("split", |comm| comm.split(0, 0).map(drop)),
    ("all_gather", |comm| comm.all_gather_v(Buffer::from_slice(&[1i64]), &vec![1; comm.size()]).map(drop)),
    ("all_reduce", |comm| comm.all_reduce(&mut Buffer::from_slice(&[1f32]))),
    ("broadcast", |comm| comm.broadcast(8, &mut Buffer::from_slice(&[1f32]))),
];

#[test]
fn a_rank_that_fails_in_the_middle_is_named_by_all() {
    for (name, act) in ACTS {
        let errors = Mutex::new(vec![None; 16]);
        let outcome = run(16, |comm| {
            // In the tree of the broadcast it is the one that half of the others are below.
            if comm.rank() == 0 {
                return Err(CommError::NoSuchRank { rank: 77, size: 16 }.into());
            }
            let ended = act(&comm).and_then(|()| comm.barrier());
            errors.lock().expect("no rank panics here")[comm.rank()] = ended.clone().err();
            ended
        });
        assert_eq!(outcome, Err(CommError::NoSuchRank { rank: 77, size: 16 }.into()), "{name}");
        let reason = CommError::NoSuchRank { rank: 77, size: 16 }.to_string();
        let poisoned: Error = CommError::Poisoned { rank: 0, reason }.into();
        let errors = errors.into_inner().expect("no rank panics here");
        assert!(errors[1..].iter().all(|error| error.as_ref() == Some(&poisoned)), "{name}: {errors:?}");
    }
}

#[test]
fn a_rank_that_is_silent_in_the_middle_is_at_the_end_of_who_waits_for_whom() {
    for (name, act) in ACTS {
        let clock = ManualClock::default();
        let waiting = Waiting { deadline: Duration::from_secs(30), clock: Arc::new(clock.clone()) };
        let begun = AtomicU64::new(0);
        let outcome = run_with(waiting, 16, |comm| {
            if comm.rank() != 0 {
                begun.fetch_add(1, Ordering::Relaxed);
                // Those that are above it in the tree of the broadcast get through.
                return act(&comm).and_then(|()| comm.barrier());
            }
            while begun.load(Ordering::Relaxed) < 15 {
                thread::yield_now();
            }
            // The others have gone as far as they can.
            thread::sleep(Duration::from_millis(50));
            loop {
                comm.exchange("idle".into(), vec![], vec![])?.wait()?;
                clock.advance(Duration::from_secs(7));
                thread::sleep(Duration::from_millis(1));
            }
        });
        let Err(Error::Comm(CommError::Deadline { peer, seconds: 30, operation, waits, .. })) = outcome else {
            panic!("{name}: {outcome:?}")
        };
        assert!(operation == name || operation == "barrier" && name == "broadcast", "{name}: {operation}");
        assert_eq!(waits.last().copied().unwrap_or(peer), 0, "{name}: {peer} waits for {waits:?}");
    }
}
