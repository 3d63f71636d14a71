//! Every way in which a rank can be lost, and whom the others name.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::super::super::Collectives;
use super::super::super::clock::ManualClock;
use super::super::*;
use super::{fails_with, gone, receive, send, values};
use crate::tensor::Buffer;

/// Everything that a rank can be in when another fails.
type Act = fn(&dyn Communicator) -> Result<()>;
const ACTS: [(&str, Act); 7] = [
    ("wait", |comm| comm.exchange("a".into(), vec![], vec![receive(1, 1)])?.wait().map(drop)),
    ("exchange", |comm| {
        loop {
            comm.exchange("b".into(), vec![send(1, &[1])], vec![])?.wait()?;
            thread::yield_now();
        }
    }),
    ("barrier", |comm| comm.barrier()),
    ("split", |comm| comm.split(0, 0).map(drop)),
    ("all_gather", |comm| comm.all_gather_v(Buffer::from_slice(&[1i64]), &vec![1; comm.size()]).map(drop)),
    ("all_reduce", |comm| comm.all_reduce(&mut Buffer::from_slice(&[1f32; 9]))),
    ("all_to_all", |comm| {
        let parts = (0..comm.size()).map(|_| Buffer::from_slice(&[1i64])).collect();
        comm.all_to_all_v(parts, &vec![1; comm.size()]).map(drop)
    }),
];

/// Runs `act` on ranks 0 and 2 of three (in groups split `depth` times) while rank 1 ends as `end` says; gives the
/// errors of the two, and that of the run.
fn lose_rank_1(depth: usize, act: Act, end: impl Fn(&dyn Communicator) -> Result<()> + Sync) -> [Option<Error>; 3] {
    let seen = Mutex::new([None, None]);
    let ready = AtomicU64::new(0);
    let start = Instant::now();
    let outcome = run(3, |comm| {
        let mut comm: Box<dyn Communicator> = Box::new(comm);
        for _ in 0..depth {
            comm = comm.split(0, 0)?;
        }
        if comm.rank() == 1 {
            while ready.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
            return end(&*comm);
        }
        ready.fetch_add(1, Ordering::SeqCst);
        let result = act(&*comm);
        seen.lock().expect("no rank panics here")[comm.rank() / 2] = result.clone().err();
        result
    });
    assert!(start.elapsed() < Duration::from_secs(20), "promptly, not at the deadline");
    let [first, third] = seen.into_inner().expect("no rank panics here");
    [first, third, outcome.err()]
}

#[test]
fn an_error_reaches_every_operation_of_every_rank() {
    for (depth, (name, act)) in (0..3).flat_map(|depth| ACTS.map(|act| (depth, act))) {
        let cause = CommError::NoSuchRank { rank: 77, size: 3 };
        let seen = lose_rank_1(depth, act, |_| Err(cause.clone().into()));
        let poisoned = Some(gone(1, &cause.to_string()).into());
        assert_eq!(seen, [poisoned.clone(), poisoned, Some(cause.into())], "{name}, {depth} splits");
    }
}

#[test]
fn a_panic_reaches_every_operation_of_every_rank() {
    for (name, act) in ACTS {
        let seen = lose_rank_1(1, act, |comm| panic!("boom on {}", comm.rank()));
        assert_eq!(seen, [(); 3].map(|_| Some(gone(1, "boom on 1").into())), "{name}");
    }
}

#[test]
fn an_abort_reaches_every_operation_of_every_rank() {
    for (name, act) in ACTS {
        let seen = lose_rank_1(2, act, |comm| {
            comm.abort("no more data");
            assert_eq!(comm.barrier(), Err(gone(1, "no more data").into()));
            Ok(())
        });
        assert_eq!(seen, [(); 3].map(|_| Some(gone(1, "no more data").into())), "{name}");
    }
}

#[test]
fn a_failure_reaches_groups_that_the_failed_rank_is_not_in() {
    let outcome = run(3, |comm| {
        let group = comm.split(usize::from(comm.rank() == 2), 0)?;
        if comm.rank() == 2 {
            return Err(gone(2, "out of memory").into());
        }
        // The two go on alone until they hear of it.
        loop {
            if let Err(error) = group.barrier() {
                assert_eq!(error, gone(2, "out of memory").into());
                return Err(error);
            }
        }
    });
    assert_eq!(outcome, fails_with(gone(2, "out of memory")));
}

#[test]
fn a_rank_that_ends_early_is_named() {
    for (name, act) in ACTS.into_iter().filter(|(name, _)| *name != "exchange") {
        let [first, third, outcome] = lose_rank_1(0, act, |_| Ok(()));
        let operation = if name == "wait" { "a" } else { name };
        let expected = gone(1, &format!("it finished without taking part in {operation} (step 1)"));
        // Whoever sees it first passes it on as it is.
        assert_eq!([first, third, outcome], [(); 3].map(|_| Some(expected.clone().into())), "{name}");
    }
}

#[test]
fn what_was_sent_before_the_end_arrives() {
    let seen = run(2, |comm| {
        if comm.rank() == 1 {
            comm.exchange("last words".into(), vec![send(0, &[5])], vec![])?.wait()?;
            return Ok(vec![]);
        }
        thread::sleep(Duration::from_millis(20));
        Ok(values(comm.exchange("last words".into(), vec![], vec![receive(1, 1)])?.wait()?))
    });
    assert_eq!(seen, Ok(vec![vec![vec![5]], vec![]]));
}

#[test]
fn the_first_failure_is_the_one_that_is_returned() {
    let outcome = run(4, |comm| {
        if comm.rank() == 2 {
            return Err(Error::Data(crate::error::DataError::Unusable("the file is empty".into())));
        }
        let error = comm.barrier().expect_err("rank 2 does not come");
        assert_eq!(error.to_string(), "rank 2 failed: the file is empty");
        Err::<(), _>(CommError::NoSuchRank { rank: comm.rank(), size: 4 }.into())
    });
    assert_eq!(outcome, Err(Error::Data(crate::error::DataError::Unusable("the file is empty".into()))));
}

#[test]
fn a_deadline_names_the_rank_that_others_wait_for_in_turn() {
    let clock = ManualClock::default();
    let waiting = Waiting { deadline: Duration::from_secs(30), clock: Arc::new(clock.clone()) };
    // Rank 0 waits for 1, which waits for 2, which waits for 3, which is silent until one has given up.
    let late = AtomicU64::new(0);
    let outcome = run_with(waiting, 4, |comm| match comm.rank() {
        3 => loop {
            comm.exchange("idle".into(), vec![], vec![])?.wait()?;
            clock.advance(Duration::from_secs(if late.load(Ordering::Relaxed) == 3 { 7 } else { 0 }));
            thread::sleep(Duration::from_millis(20));
        },
        rank => {
            let pending = comm.exchange("chain".into(), vec![], vec![receive(rank + 1, 1)])?;
            late.fetch_add(1, Ordering::Relaxed);
            pending.wait().map(drop)
        }
    });
    let Err(Error::Comm(CommError::Deadline { peer, operation: "chain", waits, .. })) = outcome else {
        panic!("{outcome:?}")
    };
    // Whoever gives up first names the whole chain.
    assert_eq!(waits, (peer + 1..=3).collect::<Vec<_>>());
}

#[test]
fn a_silent_rank_is_named_at_the_deadline() {
    let acts: [(&str, Act); 3] = [ACTS[0], ACTS[2], ACTS[3]];
    for (name, act) in acts {
        let clock = ManualClock::default();
        let waiting = Waiting { deadline: Duration::from_secs(30), clock: Arc::new(clock.clone()) };
        let outcome = run_with(waiting, 2, |comm| {
            if comm.rank() == 0 {
                return act(&comm);
            }
            // Turns the clock until rank 0 has given up.
            loop {
                comm.exchange("idle".into(), vec![], vec![])?.wait()?;
                clock.advance(Duration::from_secs(7));
                thread::sleep(Duration::from_millis(1));
            }
        });
        let operation = if name == "wait" { "a" } else { name };
        assert_eq!(
            outcome,
            fails_with(CommError::Deadline { peer: 1, seconds: 30, operation, step: 1, waits: vec![] })
        );
    }
}
