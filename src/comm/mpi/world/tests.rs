//! Processes without MPI: what they hand to it is given to those that it is for, and counted.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use super::super::super::communicator::Communicator;
use super::super::super::failure::{failure_of, poisoned};
use super::super::super::member::Member;
use super::super::super::parcel::{Message, Receive};
use super::super::end::{Exit, Judgement};
use super::*;
use crate::error::{CommError, Error, Result};
use crate::tensor::Buffer;

/// Frames that went between processes, by kind.
type Frames = BTreeMap<&'static str, usize>;

fn kind(frame: &Frame) -> &'static str {
    match frame {
        Frame::Packet { packet: Packet::Parcel { .. }, .. } => "parcel",
        Frame::Packet { packet: Packet::Note { .. }, .. } => "note",
        Frame::Failed(_) => "failed",
        Frame::Alive => "alive",
        Frame::Ask => "ask",
        Frame::Doing(_) => "doing",
        Frame::Ended(_) => "ended",
        Frame::Over(_) => "over",
    }
}

fn worlds(size: usize, deadline: Duration) -> Vec<Arc<World>> {
    let place = |rank| Place { rank, size, neighbours: size, seat: rank };
    (0..size).map(|rank| Arc::new(World::new(deadline, Duration::from_secs(5), place(rank)))).collect()
}

/// Gives everyone what is for them, once round; true if that was anything. A process that is `frozen` does nothing.
fn turn(worlds: &[Arc<World>], frames: &mut Frames, frozen: impl Fn(usize) -> bool) -> bool {
    let mut moved = false;
    for (from, world) in worlds.iter().enumerate().filter(|(from, _)| !frozen(*from)) {
        let outbox = world.orders().outbox;
        moved |= !outbox.is_empty();
        for (to, frame) in outbox {
            *frames.entry(kind(&frame)).or_default() += 1;
            if !frozen(to) {
                worlds[to].arrive(from, frame);
            }
        }
        world.change(|state| state.flushed = state.outbox.is_empty());
    }
    moved
}

type Outcome = (Result<()>, Judgement);

/// Runs `body` on so many processes; gives how they ended, and what went between them.
fn run(size: usize, deadline: Duration, body: impl Fn(Member<World>) -> Result<()> + Sync) -> (Vec<Outcome>, Frames) {
    let (worlds, mut frames, over) = (worlds(size, deadline), Frames::new(), AtomicBool::new(false));
    let outcomes = thread::scope(|scope| {
        let live = |rank: usize| {
            let (world, body) = (worlds[rank].clone(), &body);
            scope.spawn(move || {
                let result = body(Member::everyone(world.clone(), rank, size));
                world.end(result)
            })
        };
        let ranks: Vec<_> = (0..size).map(live).collect();
        let carrier = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                if !turn(&worlds, &mut frames, |_| false) {
                    thread::sleep(Duration::from_micros(100));
                }
            }
        });
        let outcomes: Vec<_> = ranks.into_iter().map(|rank| rank.join()).collect();
        over.store(true, Ordering::Relaxed);
        carrier.join().expect("what carries frames does not panic");
        outcomes.into_iter().map(|outcome| outcome.expect("no rank panics")).collect()
    });
    (outcomes, frames)
}

const LONG: Duration = Duration::from_secs(600);

fn of(frames: &Frames, kinds: &[&str]) -> usize {
    kinds.iter().map(|kind| frames.get(kind).copied().unwrap_or(0)).sum()
}

/// The number of binary digits of what is below.
fn digits(size: usize) -> usize {
    tree::distances(size).count()
}

#[test]
fn barriers_splits_and_ends_take_a_few_messages_of_each() {
    for size in [1, 2, 3, 5, 8, 16, 33, 64] {
        let (outcomes, frames) = run(size, LONG, |comm| {
            comm.barrier()?;
            let half = comm.split(comm.rank() % 2, 0)?;
            assert_eq!(half.size(), (size + 1 - comm.rank() % 2) / 2);
            Ok(())
        });
        let judgement = |rank: usize| Judgement { repeated: rank > 0, is_input: false, exit: Exit::Clean };
        assert!(outcomes.iter().enumerate().all(|(rank, outcome)| *outcome == (Ok(()), judgement(rank))));
        assert_eq!(of(&frames, &["note"]), 2 * size * digits(size), "{size} ranks");
        assert_eq!((of(&frames, &["ended"]), of(&frames, &["over"])), (size - 1, size - 1), "{size} ranks");
        assert_eq!(of(&frames, &["ask"]), of(&frames, &["doing"]), "every question is answered");
        assert_eq!(of(&frames, &["failed"]), 0);
    }
}

#[test]
fn signs_of_life_go_up_and_down_the_tree() {
    for size in 1..=64 {
        // The time between two signs of life is none.
        let (worlds, mut frames) = (worlds(size, Duration::ZERO), Frames::new());
        turn(&worlds, &mut frames, |_| false);
        assert_eq!(of(&frames, &["alive"]), 2 * (size - 1), "{size} processes");
    }
}

#[test]
fn a_failure_reaches_all_over_a_few() {
    for size in [2, 3, 8, 40] {
        for by in [0, 1, size - 1] {
            let (worlds, mut frames) = (worlds(size, LONG), Frames::new());
            let failure = RankFailure { rank: by, reason: "disk full".into() };
            worlds[by].fail(by, failure.clone());
            // One of the others is lost.
            let lost = (size > 3).then_some((by + 2) % size);
            while turn(&worlds, &mut frames, |rank| Some(rank) == lost) {}
            let heard = |rank: usize| worlds[rank].mailbox.failure() == Some(failure.clone());
            assert!((0..size).all(|rank| Some(rank) == lost || heard(rank)), "{size} processes");
            assert!(of(&frames, &["failed"]) <= 2 * size * digits(size));
        }
    }
}

#[test]
fn ranks_that_have_ended_hear_of_a_later_failure() {
    let full: Error = CommError::NoSuchRank { rank: 77, size: 9 }.into();
    for by in 0..9 {
        let (outcomes, _) = run(9, LONG, |comm| {
            if comm.rank() == by {
                thread::sleep(Duration::from_millis(100));
                return Err(full.clone());
            }
            Ok(())
        });
        let heard = poisoned(failure_of(by, &full));
        for (rank, (result, judgement)) in outcomes.into_iter().enumerate() {
            assert_eq!(result, Err(if rank == by { full.clone() } else { heard.clone() }));
            assert_eq!((judgement.exit, judgement.is_input), (Exit::Clean, full.is_input()));
            let before = if by == 0 { 1 } else { 0 };
            assert_eq!(judgement.repeated, rank != by && rank > before, "the others ended well");
        }
    }
}

#[test]
fn a_rank_that_has_ended_is_named_by_those_that_wait_for_it() {
    // In the middle of a barrier of many.
    let (outcomes, frames) = run(12, LONG, |comm| if comm.rank() == 5 { Ok(()) } else { comm.barrier() });
    let reason = "it finished without taking part in barrier (step 1)".to_string();
    let gone: Error = CommError::Poisoned { rank: 5, reason }.into();
    assert!(outcomes.iter().all(|(result, _)| *result == Err(gone.clone())), "{outcomes:?}");
    assert!(of(&frames, &["ask"]) >= 1);
}

#[test]
fn the_deadline_names_whom_the_silent_rank_waits_for() {
    let late = AtomicU64::new(0);
    // Rank 0 waits for 1, which waits for 2, which waits for 3, which does nothing before one has given up.
    let (outcomes, _) = run(4, Duration::from_millis(600), |comm| {
        if comm.rank() == 3 {
            while late.load(Ordering::Relaxed) == 0 {
                thread::sleep(Duration::from_millis(1));
            }
            return Ok(());
        }
        // Rank 0 begins first, so that it gives up first.
        thread::sleep(Duration::from_millis(100 * comm.rank() as u64));
        let expected = vec![Receive::of::<f32>(comm.rank() + 1, 1)];
        let ended = comm.exchange("chain".into(), vec![], expected)?.wait().map(drop);
        late.fetch_add(1, Ordering::Relaxed);
        ended
    });
    let Err(Error::Comm(CommError::Deadline { peer: 1, operation: "chain", waits, .. })) = &outcomes[0].0 else {
        panic!("{outcomes:?}");
    };
    assert_eq!(waits, &[2, 3]);
    assert!(outcomes.iter().all(|(result, _)| result.is_err()));
}

#[test]
fn a_process_that_lives_is_waited_for_and_a_frozen_one_is_named_by_who_is_next_to_it() {
    // Rank 6 is below 4, which is below 0; it ends long after the deadline, or its process is frozen.
    let deadline = Duration::from_millis(400);
    let (outcomes, _) = run(8, deadline, |comm| {
        thread::sleep(if comm.rank() == 6 { 3 * deadline } else { Duration::ZERO });
        Ok(())
    });
    assert!(outcomes.iter().all(|(result, judgement)| result.is_ok() && judgement.exit == Exit::Clean));
    let (worlds, mut frames, over) = (worlds(8, deadline), Frames::new(), AtomicBool::new(false));
    thread::scope(|scope| {
        let end = |rank: usize| {
            let world = worlds[rank].clone();
            scope.spawn(move || world.end(Ok(())))
        };
        let ranks: Vec<_> = (0..8).filter(|&rank| rank != 6).map(end).collect();
        let carrier = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                turn(&worlds, &mut frames, |rank| rank == 6);
                thread::sleep(Duration::from_micros(100));
            }
        });
        let outcomes: Vec<_> = ranks.into_iter().map(|rank| rank.join()).collect();
        over.store(true, Ordering::Relaxed);
        carrier.join().expect("what carries frames does not panic");
        for outcome in outcomes {
            let (result, judgement) = outcome.expect("no rank panics");
            let said = result.expect_err("rank 6 never ends").to_string();
            assert!(
                said.ends_with("rank 6 was silent for 0 s in the end of the run (step 0): it is stuck or lost"),
                "{said}"
            );
            // Rank 4 is above it, rank 7 below.
            assert!(said.starts_with("rank 4 failed: ") || said.starts_with("rank 7 failed: "), "{said}");
            assert_eq!(judgement.exit, Exit::Stuck);
        }
    });
}

#[test]
fn one_parcel_for_many_is_one_memory_on_its_way() {
    let mine = Buffer::from_slice(&[7i64; 1000]);
    let place = mine.as_ptr();
    let worlds = worlds(5, LONG);
    let comm = Member::everyone(worlds[2].clone(), 2, 5);
    drop(comm.exchange("news".into(), vec![Message::new(vec![0, 1, 3, 4], mine)], vec![]));
    let outbox = worlds[2].orders().outbox;
    let receivers: Vec<usize> = outbox.iter().map(|(to, _)| *to).collect();
    assert_eq!(receivers, [0, 1, 3, 4]);
    for (_, frame) in outbox {
        let (_, bytes) = frame.pack(100);
        assert_eq!((bytes.as_ptr().cast(), bytes.len()), (place, 8000));
    }
}
