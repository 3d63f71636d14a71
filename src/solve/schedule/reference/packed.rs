//! Greedy placement that packs a rank's documents into one micro-batch, as Megatron-LM's later scheduler does it.
//!
//! Longest document first; the first opens a micro-batch on the fewest ranks that hold it, each later one joins a
//! block of its size (or a larger power of two) or opens one on unused ranks, whichever keeps the busiest rank
//! lowest; what finds no place waits for the next micro-batch. Unused ranks are then given to the smallest blocks by
//! doubling. Where that is impossible, which happens only if the number of ranks is not a power of two, all
//! documents run on all ranks.

use super::{Blocks, RankBlock, longest_first};
use crate::solve::schedule::pairs::Pairs;

/// Blocks of each micro-batch, in rank order.
pub(super) fn place(lengths: &[usize], ranks: usize, tokens: usize) -> Blocks {
    // More tokens than there are change nothing; 0 tokens come with documents that have none.
    let tokens = tokens.min(lengths.iter().sum()).max(1);
    let mut waiting = longest_first(lengths);
    let mut batches = Vec::new();
    while !waiting.is_empty() {
        let (blocks, left) = micro_batch(lengths, ranks, tokens, &waiting);
        batches.push(blocks);
        waiting = left;
    }
    batches
}

/// One micro-batch of the longest of `waiting`, and who waits on. It always takes the first.
fn micro_batch(lengths: &[usize], ranks: usize, tokens: usize, waiting: &[usize]) -> (Vec<RankBlock>, Vec<usize>) {
    // Shares of tokens are fractions; sizes are powers of two, or all ranks.
    let unit = ranks as u128 * (1 << ranks.ilog2());
    let share = |document: usize, size: usize| lengths[document] as u128 * unit / size as u128;
    let limit = tokens as u128 * unit;
    let longest = lengths[waiting[0]] as u128;
    let cap = Pairs::whole(longest * tokens as u128).share(21, 20);

    let (mut blocks, mut left) = (Vec::<RankBlock>::new(), Vec::new());
    // Work and shares of tokens of each block.
    let mut loads: Vec<(Pairs, u128)> = Vec::new();
    for &document in waiting {
        let free = ranks - blocks.iter().map(|block| block.size).sum::<usize>();
        let busiest = loads.iter().map(|load| load.0).max().unwrap_or_default();
        let mut best: Option<(Pairs, Option<usize>, usize)> = None;
        let mut consider = |busiest: Pairs, block, size| {
            if (busiest <= cap || blocks.is_empty()) && best.is_none_or(|(least, ..)| busiest < least) {
                best = Some((busiest, block, size));
            }
        };
        let mut size = lengths[document].div_ceil(tokens).next_power_of_two().min(ranks);
        loop {
            let more = Pairs::of(lengths[document], size);
            for (index, block) in blocks.iter().enumerate().filter(|(_, block)| block.size == size) {
                let (work, held) = loads[index];
                if held + share(document, block.size) <= limit {
                    consider(busiest.max(work + more), Some(index), size);
                }
            }
            if free >= size {
                consider(busiest.max(more), None, size);
            }
            if size == ranks || blocks.is_empty() {
                break;
            }
            size = (2 * size).min(ranks);
        }
        let index = match best {
            Some((_, Some(index), _)) => index,
            Some((_, None, size)) => {
                blocks.push(RankBlock { size, documents: Vec::new() });
                loads.push((Pairs::NONE, 0));
                blocks.len() - 1
            }
            None => {
                left.push(document);
                continue;
            }
        };
        let block = &mut blocks[index];
        block.documents.push(document);
        loads[index].0 += Pairs::of(lengths[document], block.size);
        loads[index].1 += share(document, block.size);
    }

    let mut free = ranks - blocks.iter().map(|block| block.size).sum::<usize>();
    while free > 0 {
        match blocks.iter_mut().min_by_key(|block| block.size) {
            Some(smallest) if smallest.size <= free => {
                free -= smallest.size;
                smallest.size *= 2;
            }
            _ => return on_all(waiting, ranks, |document| share(document, ranks), limit),
        }
    }
    (blocks, left)
}

/// Everything on all ranks, as far as shares of tokens permit.
fn on_all(waiting: &[usize], ranks: usize, share: impl Fn(usize) -> u128, limit: u128) -> (Vec<RankBlock>, Vec<usize>) {
    let (mut all, mut left, mut held) = (RankBlock { size: ranks, documents: Vec::new() }, Vec::new(), 0);
    for &document in waiting {
        match held + share(document) <= limit {
            true => {
                held += share(document);
                all.documents.push(document);
            }
            false => left.push(document),
        }
    }
    (vec![all], left)
}
