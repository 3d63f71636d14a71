//! How runs end in which a rank is lost: everyone ends, soon, badly, and says which rank it was.

use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use context_parallel::comm::mpi::{MpiComm, MpiOptions};
use context_parallel::comm::{Collectives, Communicator};
use context_parallel::error::{CommError, Error, Result};
use context_parallel::tensor::Buffer;

use super::Case;
use super::messages::{receive, send};

pub fn cases() -> Vec<Case> {
    // Where a failure is told, nothing waits for the deadline; where a rank is silent, it is all that helps.
    let quick = MpiOptions { deadline: Duration::from_secs(2), grace: Duration::from_secs(2), ..MpiOptions::default() };
    let told = MpiOptions { deadline: Duration::from_secs(600), ..MpiOptions::default() };
    let case = |name, rank, says| Case { name, ranks: &[3], options: told, rank, says: Some(says) };
    let silent = |name, rank, says| Case { name, ranks: &[2, 3], options: quick, rank, says: Some(says) };
    const ERROR: &[&str] = &["rank 77 does not exist", "rank 1 failed: rank 77 does not exist"];
    const PANIC: &[&str] = &["rank 1 failed: boom on 1"];
    const EARLY: &str = "rank 1 failed: it finished without taking part in";
    vec![
        case("an error in a wait", |comm| lose_1(comm, WAIT, 0, fail), ERROR),
        case("an error in exchanges", |comm| lose_1(comm, EXCHANGES, 0, fail), ERROR),
        case("an error in a barrier", |comm| lose_1(comm, BARRIER, 1, fail), ERROR),
        case("an error in a split", |comm| lose_1(comm, SPLIT, 2, fail), ERROR),
        case("an error in an all_reduce", |comm| lose_1(comm, ALL_REDUCE, 0, fail), ERROR),
        case("a panic in a wait", |comm| lose_1(comm, WAIT, 1, panics), PANIC),
        case("a panic in a barrier", |comm| lose_1(comm, BARRIER, 0, panics), PANIC),
        case("an abort", |comm| lose_1(comm, ALL_REDUCE, 1, aborts), &["rank 1 failed: no more data"]),
        case("an early end in a wait", |comm| lose_1(comm, WAIT, 0, |_| Ok(())), &[EARLY]),
        case("an early end in a barrier", |comm| lose_1(comm, BARRIER, 0, |_| Ok(())), &[EARLY]),
        case("a failure reaches ranks of other groups", other_groups, &["rank 2 failed: out of memory"]),
        case("a failure reaches ranks that have ended", ended, &["rank 2 failed: out of memory"]),
        case(
            "what comes must be what was expected",
            |comm| mismatch(comm, false),
            &["rank 1 sent 2 x i64 in rows (step 2) where 3 x i64 was expected"],
        ),
        case(
            "the type must be what was expected",
            |comm| mismatch(comm, true),
            &["rank 1 sent 2 x i64 in rows (step 2) where 2 x f64 was expected"],
        ),
        case("a barrier is no split", barrier_or_split, &["a split", "a barrier", "different programs"]),
        silent("a silent rank", |comm| silence(comm, || thread::sleep(Duration::from_secs(1000))), SILENT),
        Case {
            name: "a rank that waits for a silent one",
            ranks: &[3],
            options: quick,
            rank: chain,
            says: Some(&["rank 1 was silent for 2 s in chain (step 1): it waits for rank 2, which is stuck or lost"]),
        },
        silent("a frozen process", |comm| silence(comm, || signal("STOP")), SILENT),
        silent("a killed process", |comm| silence(comm, || signal("KILL")), &[]),
        silent("a process that exits", |comm| silence(comm, || std::process::exit(0)), &[]),
        silent("a rank that never ends", never_ends, &["rank 1 was silent for 2 s in the end of the run"]),
    ]
}

const SILENT: &[&str] = &["rank 1 was silent for 2 s in ring (step 1)"];

/// What a rank can be in when another fails.
type Act = fn(&dyn Communicator) -> Result<()>;
const WAIT: Act = |comm| comm.exchange("a".into(), vec![], vec![receive(1, 1)])?.wait().map(drop);
const EXCHANGES: Act = |comm| {
    loop {
        comm.exchange("b".into(), vec![send(1, &[1])], vec![])?.wait()?;
        thread::yield_now();
    }
};
const BARRIER: Act = |comm| comm.barrier();
const SPLIT: Act = |comm| comm.split(0, 0).map(drop);
const ALL_REDUCE: Act = |comm| comm.all_reduce(&mut Buffer::from_slice(&[1f32; 9]));

fn fail(_: &dyn Communicator) -> Result<()> {
    Err(CommError::NoSuchRank { rank: 77, size: 3 }.into())
}

fn panics(comm: &dyn Communicator) -> Result<()> {
    panic!("boom on {}", comm.rank());
}

fn aborts(comm: &dyn Communicator) -> Result<()> {
    comm.abort("no more data");
    let error = comm.barrier().expect_err("it has given up");
    assert_eq!(error, CommError::Poisoned { rank: 1, reason: "no more data".into() }.into());
    Ok(())
}

/// Runs `act` on all ranks but 1 (in groups split `depth` times), which ends as `end` says. The others must hear of it
/// at once, and it must be named.
fn lose_1(comm: MpiComm, act: Act, depth: usize, end: Act) -> Result<()> {
    let mut comm: Box<dyn Communicator> = Box::new(comm);
    for _ in 0..depth {
        comm = comm.split(0, 0)?;
    }
    if comm.rank() == 1 {
        thread::sleep(Duration::from_millis(200));
        return end(&*comm);
    }
    let start = Instant::now();
    let error = act(&*comm).expect_err("rank 1 does not take part");
    assert!(start.elapsed() < Duration::from_secs(20), "promptly, not at the deadline");
    assert!(matches!(&error, Error::Comm(CommError::Poisoned { rank: 1, .. })), "{error}");
    Err(error)
}

fn other_groups(comm: MpiComm) -> Result<()> {
    let group = comm.split(usize::from(comm.rank() == 2), 0)?;
    if comm.rank() == 2 {
        return Err(CommError::Poisoned { rank: 2, reason: "out of memory".into() }.into());
    }
    // The two go on alone until they hear of it.
    loop {
        if let Err(error) = group.barrier() {
            assert_eq!(error, CommError::Poisoned { rank: 2, reason: "out of memory".into() }.into());
            return Err(error);
        }
    }
}

fn ended(comm: MpiComm) -> Result<()> {
    if comm.rank() == 2 {
        thread::sleep(Duration::from_millis(500));
        return Err(CommError::Poisoned { rank: 2, reason: "out of memory".into() }.into());
    }
    Ok(())
}

fn mismatch(comm: MpiComm, of_type: bool) -> Result<()> {
    use context_parallel::comm::Receive;
    comm.barrier()?;
    match comm.rank() {
        0 => {
            let expected = if of_type { Receive::of::<f64>(1, 2) } else { receive(1, 3) };
            comm.exchange("rows".into(), vec![], vec![expected])?.wait().map(drop)
        }
        1 => comm.exchange("rows".into(), vec![send(0, &[1, 2])], vec![])?.wait().map(drop),
        _ => Ok(()),
    }
}

/// Rank 0 waits for 1, which after a while waits for 2, which does nothing.
fn chain(comm: MpiComm) -> Result<()> {
    if comm.rank() == 1 {
        thread::sleep(Duration::from_secs(1));
    }
    if comm.rank() == 2 {
        thread::sleep(Duration::from_secs(1000));
    }
    comm.exchange("chain".into(), vec![], vec![receive(comm.rank() + 1, 1)])?.wait().map(drop)
}

fn barrier_or_split(comm: MpiComm) -> Result<()> {
    if comm.rank() == 0 { comm.barrier() } else { comm.split(0, 0).map(drop) }
}

fn signal(name: &str) {
    let _ = Command::new("kill").args([&format!("-{name}"), &std::process::id().to_string()]).status();
    thread::sleep(Duration::from_secs(1000));
}

/// Rank 1 does `act` when the others wait for it.
fn silence(comm: MpiComm, act: impl Fn()) -> Result<()> {
    if comm.rank() == 1 {
        thread::sleep(Duration::from_millis(200));
        act();
    }
    comm.exchange("ring".into(), vec![], vec![receive(1, 1)])?.wait().map(drop)
}

/// Rank 1 hangs when the others have ended, in a process that is frozen.
fn never_ends(comm: MpiComm) -> Result<()> {
    if comm.rank() == 1 {
        signal("STOP");
    }
    Ok(())
}
