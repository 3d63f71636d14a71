//! What the mask says must have been met, and by whom.

use super::actor::Actor;
use super::sums::{Sums, hash};
use crate::order::Run;
use crate::plan::View;

/// What the mask says, by token.
pub(super) struct Due {
    /// By token; as many as are attended or held.
    met: Vec<u64>,
    gradients: Vec<u64>,
    /// Tokens of keys, by rank.
    tokens: Vec<Vec<usize>>,
    /// Tokens of queries, by rank.
    queries: Vec<Vec<usize>>,
}

impl Due {
    pub(super) fn new(view: &View) -> Self {
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
    pub(super) fn check_holders(&self) -> Result<(), String> {
        for (held, counts) in [(&self.queries, &self.met), (&self.tokens, &self.gradients)] {
            let mut holders = vec![0; counts.len()];
            held.iter().flatten().for_each(|&token| holders[token] += 1);
            if let Some(token) = (0..holders.len()).find(|&token| holders[token] != 1 && counts[token] != 0) {
                return Err(format!("token {token} is held by {} ranks, not by one", holders[token]));
            }
        }
        Ok(())
    }

    pub(super) fn check(&self, actor: &Actor, backward: bool) -> Result<(), String> {
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
