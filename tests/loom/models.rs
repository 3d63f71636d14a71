//! A model of the in-process engine's mailboxes under every order in which threads can meet. Run it with
//! `CARGO_TARGET_DIR=target cargo test --release --manifest-path tests/loom/Cargo.toml`.

// What the engine uses besides is not modelled.
#[allow(dead_code)]
#[path = "../../src/comm/mailbox.rs"]
mod mailbox;
#[path = "../../src/comm/sync.rs"]
mod sync;

use std::sync::Arc;
use std::time::Duration;

use loom::thread;
use mailbox::{Lost, RankFailure, Switchboard};

/// Never gives up: whatever would hang is a deadlock, which loom reports.
fn patient() -> Option<Duration> {
    Some(Duration::from_secs(1))
}

fn failure(rank: usize) -> RankFailure {
    RankFailure { rank, reason: format!("rank {rank} is lost") }
}

#[test]
fn both_ranks_get_what_was_sent_in_order() {
    loom::model(|| {
        let board = Arc::new(Switchboard::new(2));
        let rank = |board: &Switchboard<usize>, me: usize| {
            let (mine, other) = (board.mailbox(me), 1 - me);
            let slots = [mine.reserve(0, other), mine.reserve(0, other)];
            board.mailbox(other).deliver(0, me, 10 * me);
            board.mailbox(other).deliver(0, me, 10 * me + 1);
            assert_eq!(slots.map(|slot| mine.take(slot, patient)), [Ok(10 * other), Ok(10 * other + 1)]);
        };
        let peer = {
            let board = board.clone();
            thread::spawn(move || rank(&board, 1))
        };
        rank(&board, 0);
        peer.join().unwrap();
    });
}

#[test]
fn a_failure_wakes_who_waits_and_is_the_same_for_all() {
    loom::model(|| {
        let board = Arc::new(Switchboard::<usize>::new(3));
        // Ranks 1 and 2 fail at the same time, one of them first; rank 0 waits for rank 1.
        let peers: Vec<_> = [1, 2]
            .map(|rank| {
                let board = board.clone();
                thread::spawn(move || board.fail(rank, failure(rank)))
            })
            .into();
        let mailbox = board.mailbox(0);
        let lost = mailbox.take(mailbox.reserve(0, 1), patient);
        peers.into_iter().for_each(|peer| peer.join().unwrap());
        let (by, first) = board.first_failure().expect("two ranks failed");
        assert_eq!((lost, by), (Err(Lost::Failed(first.clone())), first.rank));
        assert!((0..3).all(|rank| board.mailbox(rank).failure() == Some(first.clone())));
    });
}

#[test]
fn a_message_sent_before_the_end_is_not_lost() {
    loom::model(|| {
        let board = Arc::new(Switchboard::new(2));
        let peer = {
            let board = board.clone();
            thread::spawn(move || {
                board.mailbox(0).deliver(0, 1, 7);
                board.finish(1);
            })
        };
        let mailbox = board.mailbox(0);
        let slots = [mailbox.reserve(0, 1), mailbox.reserve(0, 1)];
        assert_eq!(slots.map(|slot| mailbox.take(slot, patient)), [Ok(7), Err(Lost::Finished)]);
        peer.join().unwrap();
    });
}

#[test]
fn a_message_given_up_before_or_after_it_came_leaves_the_next_in_place() {
    loom::model(|| {
        let board = Arc::new(Switchboard::new(2));
        let peer = {
            let board = board.clone();
            thread::spawn(move || [1, 2].into_iter().for_each(|value| board.mailbox(0).deliver(0, 1, value)))
        };
        let mailbox = board.mailbox(0);
        let (given_up, kept) = (mailbox.reserve(0, 1), mailbox.reserve(0, 1));
        mailbox.discard(given_up);
        assert_eq!(mailbox.take(kept, patient), Ok(2));
        peer.join().unwrap();
    });
}
