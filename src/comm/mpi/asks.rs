//! What a process asks others about their ranks, and what they answer.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::frame::Doing;

/// How long a rank waits before it asks what the one that it waits for is doing; later questions come ever less often.
const FIRST: Duration = Duration::from_millis(50);

/// Questions to other processes, by rank, and when the next is due.
#[derive(Debug, Default)]
pub(super) struct Asks {
    peers: BTreeMap<usize, Peer>,
    /// The wait of this process's rank that the next question is about.
    wait: u64,
    next: Option<Instant>,
    pause: Duration,
}

#[derive(Debug, Default)]
struct Peer {
    asked: u64,
    answered: u64,
    /// The last answer.
    doing: Doing,
}

impl Asks {
    /// A question to `peer` is on its way; gives its number.
    pub(super) fn ask(&mut self, peer: usize) -> u64 {
        let peer = self.peers.entry(peer).or_default();
        peer.asked += 1;
        peer.asked
    }

    /// An answer from `peer`: they come in the order of the questions.
    pub(super) fn answer(&mut self, peer: usize, doing: Doing) {
        let peer = self.peers.entry(peer).or_default();
        peer.answered += 1;
        peer.doing = doing;
    }

    /// What `peer` answered to the question of this number or a later one.
    pub(super) fn answered(&self, peer: usize, number: u64) -> Option<Doing> {
        self.peers.get(&peer).filter(|peer| peer.answered >= number).map(|peer| peer.doing)
    }

    /// A rank that has not answered yet.
    pub(super) fn unanswered(&self) -> Option<usize> {
        self.peers.iter().find(|(_, peer)| peer.answered < peer.asked).map(|(&rank, _)| rank)
    }

    /// Whom to ask at `now`, at most once in `longest`. `wait` is another number for each wait of this process's rank,
    /// and `awaited` whom it waits for.
    pub(super) fn due(&mut self, wait: u64, awaited: Option<usize>, now: Instant, longest: Duration) -> Option<usize> {
        let awaited = awaited?;
        if self.next.is_none() || self.wait != wait {
            (self.wait, self.pause) = (wait, FIRST.min(longest));
            self.next = Some(now + self.pause);
            return None;
        }
        let is_open = self.peers.get(&awaited).is_some_and(|peer| peer.answered < peer.asked);
        if is_open || self.next.is_some_and(|next| now < next) {
            return None;
        }
        self.pause = longest.min(2 * self.pause);
        self.next = Some(now + self.pause);
        Some(awaited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_that_waits_asks_ever_less_often() {
        let (mut asks, start, longest) = (Asks::default(), Instant::now(), Duration::from_millis(150));
        let at = |millis| start + Duration::from_millis(millis);
        let mut due = |wait, millis, answers: bool| {
            let due = asks.due(wait, Some(3), at(millis), longest);
            if let Some(peer) = due {
                asks.ask(peer);
                if answers {
                    asks.answer(peer, Doing::default());
                }
            }
            due
        };
        assert_eq!([due(1, 0, true), due(1, 49, true), due(1, 50, true)], [None, None, Some(3)]);
        assert_eq!([due(1, 149, true), due(1, 150, true), due(1, 299, true)], [None, Some(3), None]);
        assert_eq!([due(1, 300, true), due(2, 1000, true)], [Some(3), None], "another wait begins anew");
        assert_eq!([due(2, 1050, false), due(2, 5000, true)], [Some(3), None], "one question at a time");
        assert_eq!((asks.unanswered(), asks.answered(3, 4)), (Some(3), None));
        asks.answer(3, Doing { awaited: Some(1), ended: false });
        assert_eq!((asks.unanswered(), asks.answered(3, 4).and_then(|doing| doing.awaited)), (None, Some(1)));
        assert_eq!(asks.due(3, None, at(9000), longest), None);
    }
}
