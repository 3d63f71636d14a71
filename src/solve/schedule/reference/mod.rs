//! The yardstick: what greedy placement on blocks of powers of two reaches, as schedulers in use do it.
//!
//! The packing rule limits our makespan. The serial rule has no limit on the tokens of a rank, only of a document;
//! the tests compare with it.

mod packed;
#[cfg(test)]
mod serial;

use super::draft::{Draft, Spot};
use super::pairs::Pairs;
use super::task::Task;

/// Documents that run on the same ranks; blocks of a micro-batch follow each other in rank order and do not overlap.
#[derive(Debug)]
struct RankBlock {
    size: usize,
    documents: Vec<usize>,
}

/// Blocks of each micro-batch.
type Blocks = Vec<Vec<RankBlock>>;

/// The makespan of the packing rule; `tokens` per rank must suffice for every document on all ranks.
pub(super) fn makespan(lengths: &[usize], ranks: usize, tokens: usize) -> Pairs {
    cost(lengths, &packed::place(lengths, ranks, tokens))
}

/// The packing rule's placement, if it keeps the limits of a task.
pub(super) fn start(task: &Task) -> Option<Draft> {
    state(task, &packed::place(task.lengths, task.ranks, task.tokens))
}

/// Makespan and rows received of the serial rule, whose tokens do not add up.
#[cfg(test)]
pub(super) fn serial(lengths: &[usize], ranks: usize, tokens: usize) -> (Pairs, u128) {
    let placement = serial::place(lengths, ranks, tokens);
    let rows = |block: &RankBlock| -> u128 {
        block.documents.iter().map(|&document| super::micro_batch::rows(lengths[document], block.size)).sum()
    };
    (cost(lengths, &placement), placement.iter().flatten().map(rows).sum())
}

/// A placement counts fractions of tokens where a task counts whole ones: it may not fit.
fn state(task: &Task, placement: &Blocks) -> Option<Draft> {
    let mut state = Draft::new(task);
    for (batch, blocks) in placement.iter().enumerate() {
        if batch == state.batches() {
            state.open(task.ranks);
        }
        let mut first = 0;
        for block in blocks {
            let tokens = |&document: &usize| task.lengths[document].div_ceil(block.size);
            if block.documents.iter().map(tokens).sum::<usize>() > task.tokens {
                return None;
            }
            for &document in &block.documents {
                state.insert(document, task.lengths[document], Spot { batch, first, degree: block.size });
            }
            first += block.size;
        }
    }
    (state.makespan <= task.limit).then_some(state)
}

fn cost(lengths: &[usize], placement: &Blocks) -> Pairs {
    let busiest = |blocks: &Vec<RankBlock>| blocks.iter().map(|block| work(lengths, block)).max().unwrap_or_default();
    placement.iter().map(busiest).sum()
}

/// Work of each rank of a block.
fn work(lengths: &[usize], block: &RankBlock) -> Pairs {
    block.documents.iter().map(|&document| Pairs::of(lengths[document], block.size)).sum()
}

/// Documents that have tokens, by falling length.
fn longest_first(lengths: &[usize]) -> Vec<usize> {
    let mut documents: Vec<usize> = (0..lengths.len()).filter(|&document| lengths[document] > 0).collect();
    documents.sort_by_key(|&document| (std::cmp::Reverse(lengths[document]), document));
    documents
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Per micro-batch, per rank, the documents.
    fn by_rank(placement: &Blocks) -> Vec<Vec<Vec<usize>>> {
        let ranks = |blocks: &Vec<RankBlock>| {
            blocks.iter().flat_map(|block| vec![block.documents.clone(); block.size]).collect()
        };
        placement.iter().map(ranks).collect()
    }

    /// A micro-batch written as (ranks, documents) pairs.
    fn batch(blocks: &[(usize, &[usize])]) -> Vec<Vec<usize>> {
        blocks.iter().flat_map(|&(ranks, documents)| vec![documents.to_vec(); ranks]).collect()
    }

    const SIX: [usize; 6] = [6000, 3000, 1500, 700, 300, 100];
    const SEVEN: [usize; 7] = [2000, 900, 900, 900, 400, 300, 200];

    #[test]
    fn packed_gives_the_outcomes_that_were_measured() {
        let six = [batch(&[(8, &[0, 2, 4, 5])]), batch(&[(4, &[1]), (4, &[3])])];
        assert_eq!(by_rank(&packed::place(&SIX, 8, 1024)), six);
        let seven = [batch(&[(2, &[0]), (1, &[1]), (1, &[2])]), batch(&[(2, &[3]), (2, &[4, 5, 6])])];
        assert_eq!(by_rank(&packed::place(&SEVEN, 4, 1024)), seven);
    }

    #[test]
    fn serial_gives_the_outcomes_that_were_measured() {
        let four = [batch(&[(4, &[0]), (2, &[1]), (1, &[2]), (1, &[3])])];
        assert_eq!(by_rank(&serial::place(&[4096, 2048, 1024, 512], 8, 1024)), four);
        let equal = [batch(&[(2, &[0]), (1, &[1]), (1, &[2])])];
        assert_eq!(by_rank(&serial::place(&[1024; 3], 4, 1024)), equal);
        let one_long = [batch(&[(8, &[0])]), batch(&[(4, &[1]), (2, &[2]), (2, &[3])])];
        assert_eq!(by_rank(&serial::place(&[8192, 1024, 1024, 1024], 8, 1024)), one_long);
        let six = [batch(&[(8, &[0])]), batch(&[(4, &[1]), (2, &[2]), (1, &[3]), (1, &[4, 5])])];
        assert_eq!(by_rank(&serial::place(&SIX, 8, 1024)), six);
        let seven = [batch(&[(2, &[0]), (1, &[1, 3]), (1, &[2, 4, 5, 6])])];
        assert_eq!(by_rank(&serial::place(&SEVEN, 4, 1024)), seven);
        assert_eq!(by_rank(&serial::place(&[100], 8, 1024)), [batch(&[(8, &[0])])]);
    }
}
