//! Checks of plans before anything runs: a rehearsal of all ranks' programs with tokens in place of numbers.

mod shape;

use std::collections::HashMap;
use std::ops::Range;

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use crate::error::{PlanError, Result};
use crate::order::Run;
use crate::plan::{Content, Program, Step, Transfer, View};

/// Rehearses the forward and backward programs of all ranks (`programs[rank]`), and refuses them unless
///
/// - every step names slots, rows and ranks that there are, and forward every tile after the first is merged once;
/// - no rank waits for ever, and every send has its receive, under the same number of the exchange;
/// - every tile reads the tokens that it says it reads;
/// - every attended token is held by one rank;
/// - every attended cell is computed exactly once, over all ranks and tiles, forward and backward;
/// - the gradient of every key arrives home from every query that attends it, exactly once.
///
/// "Exactly once" is decided by sums of 64-bit hashes, so a wrong plan passes with a probability of about 2^-64. Takes
/// time in the rows that move and the rows of the pieces, not in the attended cells.
pub fn check(strategy: &'static str, view: &View, programs: &[(Program, Program)]) -> Result<()> {
    let unsound = |what: String| PlanError::Unsound { strategy, what };
    let expected = Due::new(view);
    expected.check_holders().map_err(unsound)?;
    for (direction, backward) in [("forward", false), ("backward", true)] {
        let mut ranks = Vec::with_capacity(programs.len());
        for (rank, (forward, back)) in programs.iter().enumerate() {
            let program = if backward { back } else { forward };
            shape::check(view, rank, program, backward)
                .map_err(|what| unsound(format!("{direction}, rank {rank}: {what}")))?;
            ranks.push(Actor::new(view, rank, program));
        }
        let mut mail = Mail::new();
        let mut moved = true;
        while moved {
            moved = false;
            for actor in &mut ranks {
                moved |= actor.run(&mut mail).map_err(|what| unsound(format!("{direction}, {what}")))?;
            }
        }
        if let Some(stuck) = ranks.iter().find(|actor| actor.at < actor.program.steps.len()) {
            let step = &stuck.program.steps[stuck.at];
            return Err(unsound(format!("{direction}, rank {} waits for ever at {step:?}", stuck.rank)).into());
        }
        if let Some((rank, exchange)) = ranks.iter().find_map(|actor| Some((actor.rank, *actor.open.keys().min()?))) {
            return Err(unsound(format!("{direction}, rank {rank} never waits for exchange {exchange}")).into());
        }
        let unread = mail.iter().filter(|(_, way)| way.sent.iter().any(Option::is_some));
        if let Some((from, to)) = unread.map(|(&ends, _)| ends).min() {
            return Err(unsound(format!("{direction}, rank {from} sends to rank {to}, which expects nothing")).into());
        }
        for actor in &ranks {
            expected.check(actor, backward).map_err(|what| unsound(format!("{direction}, {what}")))?;
        }
    }
    Ok(())
}

/// Refuses the programs of the view's rank where they name slots, rows or ranks that there are not, or leave results
/// unmerged: what can be said without the other ranks, in the time that it takes to read them.
pub fn check_rank(strategy: &'static str, view: &View, [forward, backward]: [&Program; 2]) -> Result<()> {
    for (direction, program, is_backward) in [("forward", forward, false), ("backward", backward, true)] {
        let rank = view.rank();
        shape::check(view, rank, program, is_backward)
            .map_err(|what| PlanError::Unsound { strategy, what: format!("{direction}, rank {rank}: {what}") })?;
    }
    Ok(())
}

/// Messages by (sender, receiver).
type Mail = HashMap<(usize, usize), Lane>;

/// Messages of one rank to another. The n-th that is sent is for the n-th receive that is posted, as on every engine,
/// whenever they are waited for.
#[derive(Default)]
struct Lane {
    /// Taken out where they have been received.
    sent: Vec<Option<Letter>>,
    /// Receives posted so far.
    expected: usize,
}

struct Letter {
    exchange: usize,
    content: Content,
    values: Vec<u64>,
}

/// Spreads token numbers over 64 bits.
fn hash(token: usize) -> u64 {
    SplitMix64::seed_from_u64(token as u64).next_u64()
}

/// One rank of the rehearsal.
struct Actor<'a> {
    rank: usize,
    program: &'a Program,
    at: usize,
    /// Hash of the token in each row of each slot; 0 where nothing is. Empty for a slot that holds nothing.
    tokens: Vec<Vec<u64>>,
    /// Sum of the hashes of the queries whose gradient is in each row. Empty for a slot without gradients.
    gradients: Vec<Vec<u64>>,
    /// Hash of the token of each query of other ranks, by slot; slot 0, the rank's own, is not used.
    queries: Vec<Vec<u64>>,
    /// Sum of the hashes of the keys that each query has met, by slot of queries.
    met: Vec<Vec<u64>>,
    /// Exchanges under way.
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
    fn new(view: &View, rank: usize, program: &'a Program) -> Self {
        let mut tokens: Vec<Vec<u64>> = vec![Vec::new(); program.slots.len()];
        tokens[0] = view.held(rank).iter().flat_map(|(_, run)| run.iter().map(hash)).collect();
        let gradients = vec![Vec::new(); program.slots.len()];
        let own = view.queries(rank).iter().flat_map(|(_, run)| run.iter().map(hash)).collect();
        let of_others = |rows: &usize| vec![0; *rows];
        let queries: Vec<Vec<u64>> = std::iter::once(own).chain(program.queries.iter().map(of_others)).collect();
        let met = queries.iter().map(|queries| vec![0; queries.len()]).collect();
        Actor { rank, at: 0, tokens, gradients, queries, met, open: HashMap::new(), program }
    }

    /// Runs until it has to wait or is done; whether it got anywhere.
    fn run(&mut self, mail: &mut Mail) -> Result<bool, String> {
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
            let way = mail.entry((peer, self.rank)).or_default();
            way.expected += 1;
            Numbered { receive, peer, number: way.expected - 1 }
        });
        self.open.insert(exchange, (content, numbered.collect()));
    }

    fn wait(&mut self, mail: &mut Mail, exchange: usize) -> Result<bool, String> {
        let Some((content, receives)) = self.open.remove(&exchange) else {
            return Err(format!("rank {} waits for exchange {exchange}, which it has not posted", self.rank));
        };
        let there = |receive: &Numbered| {
            mail.get(&(receive.peer, self.rank)).is_some_and(|way| way.sent.len() > receive.number)
        };
        if !receives.iter().all(there) {
            self.open.insert(exchange, (content, receives));
            return Ok(false);
        }
        for Numbered { receive, peer, number } in receives {
            let way = mail.get_mut(&(peer, self.rank));
            let Some(message) = way.and_then(|way| way.sent[number].take()) else { continue };
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

    fn tile(&mut self, queries: usize, slot: usize, pieces: &[crate::plan::Piece]) -> Result<(), String> {
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

/// Sums of the first numbers of a list, in wrapping arithmetic.
struct Sums(Vec<u64>);

impl Sums {
    fn new(values: &[u64]) -> Self {
        let mut sums = Vec::with_capacity(values.len() + 1);
        sums.push(0u64);
        for &value in values {
            sums.push(sums[sums.len() - 1].wrapping_add(value));
        }
        Sums(sums)
    }

    /// The sum of a range of the list.
    fn of(&self, range: Range<usize>) -> u64 {
        self.0[range.end].wrapping_sub(self.0[range.start])
    }
}

/// What the mask says, by token.
struct Due {
    /// By token; as many as are attended or held.
    met: Vec<u64>,
    gradients: Vec<u64>,
    /// Tokens of keys, by rank.
    tokens: Vec<Vec<usize>>,
    /// Tokens of queries, by rank.
    queries: Vec<Vec<usize>>,
}

impl Due {
    fn new(view: &View) -> Self {
        let listed = |held: &[(usize, Run)]| held.iter().flat_map(|(_, run)| run.iter()).collect();
        let tokens: Vec<Vec<usize>> = (0..view.ranks()).map(|rank| listed(view.held(rank))).collect();
        let queries: Vec<Vec<usize>> = (0..view.ranks()).map(|rank| listed(view.queries(rank))).collect();
        let bands = view.bands().as_slice();
        let ends = bands.iter().map(|band| band.q.end.max(band.k.end) as usize);
        let end = ends.chain(tokens.iter().chain(&queries).flatten().map(|token| token + 1)).max().unwrap_or(0);
        let before = Sums::new(&(0..end).map(hash).collect::<Vec<_>>());
        let (mut met, mut changes) = (vec![0u64; end], vec![0u64; end + 1]);
        for band in bands {
            for query in band.q.clone() {
                let keys = band.keys(query);
                let (from, to, query) = (keys.start as usize, keys.end as usize, query as usize);
                met[query] = met[query].wrapping_add(before.of(from..to));
                changes[from] = changes[from].wrapping_add(hash(query));
                changes[to] = changes[to].wrapping_sub(hash(query));
            }
        }
        let mut sum = 0u64;
        let running = |change: u64| {
            sum = sum.wrapping_add(change);
            sum
        };
        let gradients = changes.into_iter().map(running).collect();
        Due { met, gradients, tokens, queries }
    }

    /// Every token that attends is held once by the queries, and every token that is attended by the keys.
    fn check_holders(&self) -> Result<(), String> {
        for (held, counts) in [(&self.queries, &self.met), (&self.tokens, &self.gradients)] {
            let mut holders = vec![0; counts.len()];
            held.iter().flatten().for_each(|&token| holders[token] += 1);
            if let Some(token) = (0..holders.len()).find(|&token| holders[token] != 1 && counts[token] != 0) {
                return Err(format!("token {token} is held by {} ranks, not by one", holders[token]));
            }
        }
        Ok(())
    }

    fn check(&self, actor: &Actor, backward: bool) -> Result<(), String> {
        let home = &actor.gradients[actor.program.home];
        for (row, &token) in self.queries[actor.rank].iter().enumerate() {
            if actor.met[0][row] != self.met[token] {
                return Err(format!("query {token} on rank {} does not meet each of its keys once", actor.rank));
            }
        }
        for (row, &token) in self.tokens[actor.rank].iter().enumerate() {
            if backward && home.get(row).copied().unwrap_or(0) != self.gradients[token] {
                return Err(format!("key {token} on rank {} does not get each of its gradients once", actor.rank));
            }
        }
        Ok(())
    }
}
