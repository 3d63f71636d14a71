//! The yardstick: the makespan of greedy placement on power-of-two groups, as schedulers in use do it.
//!
//! The rule is that of Megatron-LM's packing-aware scheduler. Longest document first; the first opens a micro-batch
//! on the fewest ranks that hold it, each later one joins a group of its size (or a larger power of two) or opens
//! one on unused ranks, whichever keeps the busiest rank lowest; what finds no place waits for the next micro-batch.
//! Unused ranks are then given to the smallest groups by doubling. Where that is impossible, which happens only if
//! the number of ranks is not a power of two, all documents run on all ranks.

use super::search::Task;
use super::state::{Place, State};
use super::work::Work;

/// Documents that run on the same block of ranks.
struct Block {
    size: usize,
    documents: Vec<usize>,
}

/// The makespan of the rule above; `tokens` per rank must suffice for every document on all ranks.
pub(super) fn makespan(lengths: &[usize], ranks: usize, tokens: usize) -> Work {
    let busiest = |blocks: &Vec<Block>| blocks.iter().map(|block| work(lengths, block)).max().unwrap_or_default();
    place(lengths, ranks, tokens).iter().map(busiest).sum()
}

/// Its placement, if it keeps the limits of a task; it counts fractions of tokens, which the limit does not.
pub(super) fn start(task: &Task) -> Option<State> {
    let mut state = State::new(task.lengths.len(), task.ranks);
    for (batch, blocks) in place(task.lengths, task.ranks, task.tokens).iter().enumerate() {
        if batch == state.batches() {
            state.open(task.ranks);
        }
        let mut used = vec![0; task.ranks];
        let mut first = 0;
        for block in blocks {
            for &document in &block.documents {
                let length = task.lengths[document];
                state.insert(document, length, Place { batch, first, degree: block.size });
                used[first..][..block.size].iter_mut().for_each(|used| *used += length.div_ceil(block.size));
            }
            first += block.size;
        }
        if used.iter().any(|&used| used > task.tokens) {
            return None;
        }
    }
    (state.makespan <= task.limit).then_some(state)
}

fn work(lengths: &[usize], block: &Block) -> Work {
    block.documents.iter().map(|&document| Work::of(lengths[document], block.size)).sum()
}

/// Blocks of each micro-batch, in rank order.
fn place(lengths: &[usize], ranks: usize, tokens: usize) -> Vec<Vec<Block>> {
    let mut waiting: Vec<usize> = (0..lengths.len()).filter(|&document| lengths[document] > 0).collect();
    waiting.sort_by_key(|&document| (std::cmp::Reverse(lengths[document]), document));
    let tokens = tokens.min(lengths.iter().sum());
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
