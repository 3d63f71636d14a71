//! The search: take a few documents out, put them back where they receive less, keep what is no worse.
//!
//! Every state in between is a valid schedule, so the search can end at any time; it ends after a fixed amount of
//! work (ranks looked at), not of time. Random numbers come from a fixed seed.

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use super::draft::{Burden, Draft, Fit, Spot};
use super::micro_batch::price;
use super::pairs::Pairs;
use super::task::Task;

/// Ranks that the search may look at.
const EFFORT: usize = 1_000_000;
/// Most documents that are taken out at once.
const MOST_OUT: usize = 8;

/// Every document on all ranks: the least makespan and the most rows. Micro-batches as full as tokens permit.
pub(super) fn start_of(task: &Task) -> Draft {
    let mut state = Draft::new(task);
    let mut room = vec![task.tokens];
    for document in task.documents() {
        let length = task.lengths[document];
        let need = length.div_ceil(task.ranks);
        let batch = room.iter().position(|&room| room >= need).unwrap_or(room.len());
        if batch == room.len() {
            room.push(task.tokens);
            state.open(task.ranks);
        }
        room[batch] -= need;
        state.insert(document, length, Spot { batch, first: 0, degree: task.ranks });
    }
    state
}

/// The best schedule found from any of `starts`, which keep the limits. There is at least one.
pub(super) fn improve(task: &Task, mut starts: Vec<Draft>) -> Draft {
    let mut search = Reinsertion::new(task);
    starts.extend((1..=8).filter_map(|parts| search.construct(parts)));
    let total: u128 = task.lengths.iter().map(|&length| length as u128).sum();
    let fewest = total.div_ceil((task.ranks as u128).saturating_mul(task.tokens.max(1) as u128)).max(1) as usize;
    starts.extend((fewest..fewest + 4).filter_map(|parts| search.level(parts)));
    for (fit, spread) in [(Fit::Level, 1), (Fit::Tight, 1), (Fit::Level, 2)] {
        // Lower micro-batches cost more rows: the first that keep the limit are the best.
        starts.extend((1..=16).rev().find_map(|sixteenths| search.layers(fit, spread, sixteenths)));
    }
    starts.sort_by_key(Draft::cost);
    starts.truncate(3);
    let share = EFFORT / starts.len();
    let ends = starts.into_iter().map(|start| search.descend(start, share));
    ends.min_by_key(Draft::cost).unwrap_or_else(|| start_of(task))
}

/// How documents are put back.
#[derive(Clone, Copy)]
struct Manner {
    fit: Fit,
    /// Quarters of the unused makespan that the next document may take to get a smaller degree.
    quarters: u128,
    /// No micro-batch may become taller than this.
    tallest: Pairs,
}

struct Reinsertion<'a> {
    task: &'a Task<'a>,
    /// Documents with tokens, the longest first.
    documents: Vec<usize>,
    least: Vec<usize>,
    random: SplitMix64,
    looked_at: usize,
}

impl<'a> Reinsertion<'a> {
    fn new(task: &'a Task<'a>) -> Self {
        let mut documents: Vec<usize> = task.documents().collect();
        documents.sort_by_key(|&document| (std::cmp::Reverse(task.lengths[document]), document));
        let least = (0..task.lengths.len()).map(|document| task.least_degree(document)).collect();
        Reinsertion { task, documents, least, random: SplitMix64::seed_from_u64(0), looked_at: 0 }
    }

    /// A number below `bound`, the same on every machine.
    fn below(&mut self, bound: usize) -> usize {
        (self.random.next_u64() % bound as u64) as usize
    }

    /// Longest first, into `parts` micro-batches none of which is taller than its part of the limit.
    fn construct(&mut self, parts: usize) -> Option<Draft> {
        if self.task.single && parts > 1 {
            return None;
        }
        let mut state = Draft::new(self.task);
        (1..parts).for_each(|_| state.open(self.task.ranks));
        let tallest = self.task.limit.share(1, parts as u128);
        let manner = Manner { fit: Fit::Level, quarters: 4, tallest };
        for nth in 0..self.documents.len() {
            self.put(&mut state, self.documents[nth], manner)?;
        }
        Some(state)
    }

    /// Longest first, at the smallest degree that keeps the limits, where least work is so far in any of `parts`
    /// micro-batches: all become equally high and full, if documents are many.
    fn level(&mut self, parts: usize) -> Option<Draft> {
        let Task { lengths, ranks, tokens, limit, single, .. } = *self.task;
        if single && parts > 1 {
            return None;
        }
        let mut state = Draft::new(self.task);
        (1..parts).for_each(|_| state.open(ranks));
        let tallest = limit.share(1, parts as u128);
        for &document in &self.documents {
            let length = lengths[document];
            let place = (self.least[document]..=ranks).find_map(|degree| {
                let load = Burden { work: Pairs::of(length, degree), tokens: length.div_ceil(degree) };
                let block = |batch: usize| {
                    let (_, had, first) = state.block(batch, degree, load, tallest, tokens, Fit::Level)?;
                    Some((had, Spot { batch, first, degree }))
                };
                self.looked_at += ranks * parts;
                (0..parts).filter_map(block).min_by_key(|(had, _)| *had).map(|(_, place)| place)
            })?;
            state.insert(document, length, place);
        }
        Some(state)
    }

    /// Longest first, one micro-batch after another. The longest document that waits sets the height of the next, at
    /// `sixteenths` of its work at its least degree; the others join it at degrees up to `spread` times the least
    /// that heeds this height, or wait. Neighbours in length have similar work per token, so that ranks which are
    /// full are level too.
    fn layers(&mut self, fit: Fit, spread: usize, sixteenths: u128) -> Option<Draft> {
        let Task { lengths, ranks, tokens, limit, single, .. } = *self.task;
        // Where one micro-batch may hold everything, several have no use.
        if single || tokens >= lengths.iter().sum() {
            return None;
        }
        let mut state = Draft::new(self.task);
        let mut waiting = self.documents.clone();
        while let Some(&longest) = waiting.first() {
            let batch = state.batches() - 1;
            let at_least = Pairs::of(lengths[longest], self.least[longest]).share(sixteenths, 16);
            let tallest = at_least.max(Pairs::of(lengths[longest], ranks));
            waiting.retain(|&document| {
                let length = lengths[document];
                let heeds = |&degree: &usize| Pairs::of(length, degree) <= tallest;
                let Some(from) = (self.least[document]..=ranks).find(heeds) else { return true };
                let block = (from..=ranks.min(from * spread)).find_map(|degree| {
                    let load = Burden { work: Pairs::of(length, degree), tokens: length.div_ceil(degree) };
                    self.looked_at += ranks;
                    let (.., first) = state.block(batch, degree, load, tallest, tokens, fit)?;
                    Some(Spot { batch, first, degree })
                });
                block.inspect(|&place| state.insert(document, length, place)).is_none()
            });
            if state.makespan > limit {
                return None;
            }
            state.open(ranks);
        }
        Some(state)
    }

    /// Puts a document where its degree is smallest; among those places, where the makespan grows least.
    fn put(&mut self, state: &mut Draft, document: usize, manner: Manner) -> Option<()> {
        let length = self.task.lengths[document];
        let unused = self.task.limit.saturating_sub(state.makespan);
        for quarters in [manner.quarters, 4] {
            let growth = unused.share(quarters, 4);
            for degree in self.least[document]..=self.task.ranks {
                let load = Burden { work: Pairs::of(length, degree), tokens: length.div_ceil(degree) };
                let mut best: Option<(Pairs, usize, usize)> = None;
                for batch in 0..state.batches() {
                    let tallest = (state.height(batch) + growth).min(manner.tallest);
                    self.looked_at += self.task.ranks;
                    let Some((height, _, first)) =
                        state.block(batch, degree, load, tallest, self.task.tokens, manner.fit)
                    else {
                        continue;
                    };
                    let grows = height - state.height(batch);
                    if best.is_none_or(|(least, ..)| grows < least) {
                        best = Some((grows, batch, first));
                    }
                }
                if let Some((_, batch, first)) = best {
                    state.insert(document, length, Spot { batch, first, degree });
                    return Some(());
                }
            }
        }
        None
    }

    /// Improves a state for as long as `effort` lasts.
    fn descend(&mut self, start: Draft, effort: usize) -> Draft {
        let end = self.looked_at + effort;
        let (mut best, mut state) = (start.clone(), start);
        let lowest: u128 =
            self.documents.iter().map(|&document| price(self.task.lengths[document], self.least[document])).sum();
        let fastest = self.task.even + self.task.toll();
        while self.looked_at < end && best.cost() > (lowest, fastest) {
            if !self.task.single && (0..state.batches()).all(|batch| state.height(batch) > Pairs::NONE) {
                state.open(self.task.ranks);
            }
            let before = state.clone();
            let out = self.choose(&state);
            for &document in &out {
                state.remove(document, self.task.lengths[document]);
            }
            let manner = Manner {
                fit: [Fit::Tight, Fit::Level][self.below(2)],
                quarters: [0, 1, 2, 4][self.below(4)],
                tallest: Pairs::MAX,
            };
            let complete = out.iter().try_for_each(|&document| self.put(&mut state, document, manner)).is_some();
            // Slightly worse is accepted early on, to leave local minima; nothing worse at the end.
            let left = (end.saturating_sub(self.looked_at)) as u128;
            let slack = best.rows * left / (32 * effort as u128);
            if !complete || state.rows > best.rows + slack && state.cost() > before.cost() {
                state = before;
            } else if state.cost() < best.cost() {
                best = state.clone();
            }
            // Copies and scans of all documents count too.
            self.looked_at += self.task.ranks + self.documents.len() / 4;
        }
        best
    }

    /// Documents to take out, in the order in which to put them back.
    fn choose(&mut self, state: &Draft) -> Vec<usize> {
        let place = |document: usize| state.places()[document];
        let loose: Vec<usize> = self
            .documents
            .iter()
            .copied()
            .filter(|&document| place(document).is_some_and(|place| place.degree > self.least[document]))
            .collect();
        let all = self.documents.len();
        let any = self.below(all);
        let seed = if loose.is_empty() { self.documents[any] } else { loose[any % loose.len()] };
        let near: Vec<usize> = self
            .documents
            .iter()
            .copied()
            .filter(|&document| {
                place(document).zip(place(seed)).is_some_and(|(one, other)| {
                    one.batch == other.batch
                        && one.first < other.first + other.degree
                        && other.first < one.first + one.degree
                })
            })
            .collect();
        let mut out = vec![seed];
        for _ in 0..self.below(MOST_OUT.min(all)) {
            let any = self.below(2 * all);
            let more = if any < all { self.documents[any] } else { near[any % near.len()] };
            if !out.contains(&more) {
                out.push(more);
            }
        }
        if self.below(4) > 0 {
            out.sort_by_key(|&document| (std::cmp::Reverse(self.task.lengths[document]), document));
        }
        out
    }
}
