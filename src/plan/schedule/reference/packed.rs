//! Greedy placement that packs a rank's documents into one micro-batch, as Megatron-LM's later scheduler does it.
//!
//! Longest document first; the first opens a micro-batch on the fewest ranks that hold it, each later one joins a
//! block of its size (or a larger power of two) or opens one on unused ranks, whichever keeps the busiest rank
//! lowest; what finds no place waits for the next micro-batch. Unused ranks are then given to the smallest blocks by
//! doubling. Where that is impossible, which happens only if the number of ranks is not a power of two, all
//! documents run on all ranks.

use super::{Block, Placement, longest_first, work};
use crate::plan::schedule::work::Work;

/// Blocks of each micro-batch, in rank order.
pub(super) fn place(lengths: &[usize], ranks: usize, tokens: usize) -> Placement {
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
fn micro_batch(lengths: &[usize], ranks: usize, tokens: usize, waiting: &[usize]) -> (Vec<Block>, Vec<usize>) {
    // Shares of tokens are fractions; sizes are powers of two, or all ranks.
    let unit = ranks as u128 * (1 << ranks.ilog2());
    let share = |document: usize, size: usize| lengths[document] as u128 * unit / size as u128;
    let fits = |block: &Block, document: usize| {
        let held: u128 = block.documents.iter().map(|&held| share(held, block.size)).sum();
        held + share(document, block.size) <= tokens as u128 * unit
    };
    let longest = lengths[waiting[0]] as u128;
    let cap = Work::pairs(longest * tokens as u128).share(21, 20);

    let (mut blocks, mut left) = (Vec::<Block>::new(), Vec::new());
    for &document in waiting {
        let (mut free, mut busiest) = (ranks, Work::NONE);
        for block in &blocks {
            free -= block.size;
            busiest = busiest.max(work(lengths, block));
        }
        let mut best: Option<(Work, Option<usize>, usize)> = None;
        let mut consider = |busiest: Work, block, size| {
            if (busiest <= cap || blocks.is_empty()) && best.is_none_or(|(least, ..)| busiest < least) {
                best = Some((busiest, block, size));
            }
        };
        let mut size = lengths[document].div_ceil(tokens).next_power_of_two().min(ranks);
        loop {
            let more = Work::of(lengths[document], size);
            for (index, block) in blocks.iter().enumerate().filter(|(_, block)| block.size == size) {
                if fits(block, document) {
                    consider(busiest.max(work(lengths, block) + more), Some(index), size);
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
        match best {
            Some((_, Some(index), _)) => blocks[index].documents.push(document),
            Some((_, None, size)) => blocks.push(Block { size, documents: vec![document] }),
            None => left.push(document),
        }
    }

    let mut free = ranks - blocks.iter().map(|block| block.size).sum::<usize>();
    while free > 0 {
        match blocks.iter_mut().min_by_key(|block| block.size) {
            Some(smallest) if smallest.size <= free => {
                free -= smallest.size;
                smallest.size *= 2;
            }
            _ => return on_all(waiting, Block { size: ranks, documents: Vec::new() }, fits),
        }
    }
    (blocks, left)
}

/// Everything on all ranks, as far as tokens permit.
fn on_all(waiting: &[usize], mut all: Block, fits: impl Fn(&Block, usize) -> bool) -> (Vec<Block>, Vec<usize>) {
    let mut left = Vec::new();
    for &document in waiting {
        match fits(&all, document) {
            true => all.documents.push(document),
            false => left.push(document),
        }
    }
    (vec![all], left)
}
