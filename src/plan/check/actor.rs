//! One rank of the rehearsal, and the messages between ranks.

use std::collections::HashMap;

use super::sums::{Sums, hash};
use crate::plan::{Content, Piece, Program, Step, Transfer, View};

/// Messages by (sender, receiver).
pub(super) type Mail = HashMap<(usize, usize), Lane>;

/// Messages of one rank to another. The n-th that is sent is for the n-th receive that is posted, as on every engine,
/// whenever they are waited for.
#[derive(Default)]
pub(super) struct Lane {
    /// Taken out where they have been received.
    sent: Vec<Option<Letter>>,
    /// Receives posted so far.
    expected: usize,
}

impl Lane {
    /// Whether a message was sent that nobody took.
    pub(super) fn has_unread(&self) -> bool {
        self.sent.iter().any(Option::is_some)
    }
}

struct Letter {
    exchange: usize,
    content: Content,
    values: Vec<u64>,
}

/// One rank of the rehearsal.
pub(super) struct Actor<'a> {
    pub(super) rank: usize,
    pub(super) program: &'a Program,
    at: usize,
    /// Hash of the token in each row of each slot; 0 where nothing is. Empty for a slot that holds nothing.
    tokens: Vec<Vec<u64>>,
    /// Sum of the hashes of the queries whose gradient is in each row. Empty for a slot without gradients.
    pub(super) gradients: Vec<Vec<u64>>,
    /// Hash of the token of each query of other ranks, by slot; slot 0, the rank's own, is not used.
    queries: Vec<Vec<u64>>,
    /// Sum of the hashes of the keys that each query has met, by slot of queries.
    pub(super) met: Vec<Vec<u64>>,
    /// Exchanges under lane.
    open: HashMap<usize, (Content, Receives<'a>)>,
}

/// A receive with its sender and its message's number.
struct Numbered<'a> {
    receive: &'a Transfer,
    peer: usize,
    number: usize,
}

type Receives<'a> = Vec<Numbered<'a>>;

impl<'a> Actor<'a> {
    pub(super) fn new(view: &View, rank: usize, program: &'a Program) -> Self {
        let mut tokens: Vec<Vec<u64>> = vec![Vec::new(); program.slots.len()];
        tokens[0] = view.held(rank).iter().flat_map(|(_, run)| run.iter().map(hash)).collect();
        let gradients = vec![Vec::new(); program.slots.len()];
        let own = view.queries(rank).iter().flat_map(|(_, run)| run.iter().map(hash)).collect();
        let of_others = |rows: &usize| vec![0; *rows];
        let queries: Vec<Vec<u64>> = std::iter::once(own).chain(program.queries.iter().map(of_others)).collect();
        let met = queries.iter().map(|queries| vec![0; queries.len()]).collect();
        Actor { rank, at: 0, tokens, gradients, queries, met, open: HashMap::new(), program }
    }

    /// The step that it waits at, where it is not done.
    pub(super) fn waits_at(&self) -> Option<&Step> {
        self.program.steps.get(self.at)
    }

    /// An exchange that it has posted and not waited for.
    pub(super) fn never_waited_for(&self) -> Option<usize> {
        self.open.keys().min().copied()
    }

    /// Runs until it has to wait or is done; whether it got anywhere.
    pub(super) fn run(&mut self, mail: &mut Mail) -> Result<bool, String> {
        let from = self.at;
        let program = self.program;
        while let Some(step) = program.steps.get(self.at) {
            match step {
                Step::Post { exchange, content, sends, receives } => {
                    self.post(mail, *exchange, *content, sends, receives)
                }
                Step::Wait { exchange } => {
                    if !self.wait(mail, *exchange)? {
                        break;
                    }
                }
                Step::Tile { slot, pieces } => self.tile(0, *slot, pieces)?,
                Step::Serve { queries, slot, pieces } => self.tile(*queries, *slot, pieces)?,
                &Step::Free { slot } => {
                    self.tokens[slot] = Vec::new();
                    if slot != self.program.home {
                        self.gradients[slot] = Vec::new();
                    }
                }
                Step::Merge => {}
            }
            self.at += 1;
        }
        Ok(self.at > from)
    }

    /// Makes room for the keys of a slot.
    fn hold(&mut self, slot: usize) {
        self.tokens[slot].resize(self.program.slots[slot], 0);
    }

    /// Makes room for the gradients of a slot.
    fn add_to(&mut self, slot: usize) {
        self.gradients[slot].resize(self.program.slots[slot], 0);
    }

    fn post(
        &mut self,
        mail: &mut Mail,
        exchange: usize,
        content: Content,
        sends: &[Transfer],
        receives: &'a [Transfer],
    ) {
        for send in sends.iter().filter(|send| !send.rows.is_empty()) {
            let source = match content {
                Content::Keys => &self.tokens[send.slot],
                Content::Gradients => &self.gradients[send.slot],
                Content::Queries => &self.queries[send.slot],
                Content::Results => &self.met[send.slot],
            };
            for &peer in send.peers.as_slice() {
                let values = send.rows.iter().map(|row| source.get(row).copied().unwrap_or(0)).collect();
                mail.entry((self.rank, peer)).or_default().sent.push(Some(Letter { exchange, content, values }));
            }
        }
        // A receive without a sender was refused before.
        let with_sender = receives.iter().filter(|receive| !receive.rows.is_empty());
        let with_sender = with_sender.filter_map(|receive| Some((receive, receive.peer()?)));
        let numbered = with_sender.map(|(receive, peer)| {
            let lane = mail.entry((peer, self.rank)).or_default();
            lane.expected += 1;
            Numbered { receive, peer, number: lane.expected - 1 }
        });
        self.open.insert(exchange, (content, numbered.collect()));
    }

    fn wait(&mut self, mail: &mut Mail, exchange: usize) -> Result<bool, String> {
        let Some((content, receives)) = self.open.remove(&exchange) else {
            return Err(format!("rank {} waits for exchange {exchange}, which it has not posted", self.rank));
        };
        let there = |receive: &Numbered| {
            mail.get(&(receive.peer, self.rank)).is_some_and(|lane| lane.sent.len() > receive.number)
        };
        if !receives.iter().all(there) {
            self.open.insert(exchange, (content, receives));
            return Ok(false);
        }
        for Numbered { receive, peer, number } in receives {
            let lane = mail.get_mut(&(peer, self.rank));
            let Some(message) = lane.and_then(|lane| lane.sent[number].take()) else { continue };
            if message.exchange != exchange {
                return Err(format!(
                    "rank {} takes a message of exchange {} from rank {peer} for one of exchange {exchange}",
                    self.rank, message.exchange
                ));
            }
            if message.content != content || message.values.len() != receive.rows.len() {
                return Err(format!(
                    "rank {} expects {} rows of {content:?} from rank {} and gets {} of {:?}",
                    self.rank,
                    receive.rows.len(),
                    peer,
                    message.values.len(),
                    message.content
                ));
            }
            let slot = receive.slot;
            match content {
                Content::Keys => self.hold(slot),
                Content::Gradients => self.add_to(slot),
                Content::Queries | Content::Results => {}
            }
            for (row, value) in receive.rows.iter().zip(message.values) {
                match content {
                    Content::Keys => self.tokens[slot][row] = value,
                    Content::Queries => self.queries[slot][row] = value,
                    Content::Gradients | Content::Results => {
                        let sums = if content == Content::Results { &mut self.met } else { &mut self.gradients };
                        let sum = &mut sums[slot][row];
                        *sum = sum.wrapping_add(value);
                    }
                }
            }
        }
        Ok(true)
    }

    fn tile(&mut self, queries: usize, slot: usize, pieces: &[Piece]) -> Result<(), String> {
        self.add_to(slot);
        for piece in pieces {
            let rows = piece.k_rows();
            let held = self.tokens[slot].get(rows.clone()).unwrap_or_default();
            let wrong = (0..rows.len()).find(|&j| held.get(j) != Some(&hash(piece.k.token(j))));
            if let Some(j) = wrong {
                let (token, row) = (piece.k.token(j), rows.start + j);
                return Err(format!("rank {}: token {token} is not in row {row} of slot {slot}", self.rank));
            }
            // The keys of a query are neighbours, so sums over them are differences of two, and so are gradients.
            let before = Sums::new(held);
            let mut changes = vec![0u64; rows.len() + 1];
            for i in 0..piece.q.len {
                let keys = piece.keys(i);
                let (from, to) = (keys.start - rows.start, keys.end - rows.start);
                let met = &mut self.met[queries][piece.q_row + i];
                *met = met.wrapping_add(before.of(from..to));
                let query = hash(piece.q.token(i));
                if self.queries[queries][piece.q_row + i] != query {
                    let (token, row) = (piece.q.token(i), piece.q_row + i);
                    return Err(format!("rank {}: query {token} is not in row {row} of slot {queries}", self.rank));
                }
                changes[from] = changes[from].wrapping_add(query);
                changes[to] = changes[to].wrapping_sub(query);
            }
            let mut sum = 0u64;
            for (gradient, change) in self.gradients[slot][rows].iter_mut().zip(changes) {
                sum = sum.wrapping_add(change);
                *gradient = gradient.wrapping_add(sum);
            }
        }
        Ok(())
    }
}
