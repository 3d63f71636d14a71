//! Greedy placement whose ranks run their documents one after another, as Megatron-LM's first scheduler does it.
//!
//! Only single documents heed the tokens per rank, by running on the power of two of ranks that they need. Documents
//! wait in buckets of about equal work; the first bucket whose longest document finds a block of its size or unused
//! ranks gives it away, until nothing fits or the ranks are level. Then the last documents of the busiest blocks go
//! back as long as that evens out, and unused ranks go to the smallest blocks by doubling.

use std::cmp::Reverse;
use std::collections::VecDeque;

use super::{Blocks, RankBlock, longest_first, work};
use crate::solve::schedule::pairs::Pairs;

/// Ranks are level when the busiest has at most this part of its work more than the least busy one.
const LEVEL: u128 = Pairs::PARTS / 20;

/// Blocks of each micro-batch; the number of ranks is a power of two.
pub(super) fn place(lengths: &[usize], ranks: usize, tokens: usize) -> Blocks {
    let need = |document: usize| lengths[document].div_ceil(tokens).next_power_of_two();
    let mut waiting = longest_first(lengths);
    let mut placement = Vec::new();
    while !waiting.is_empty() {
        let mut buckets = buckets(lengths, need, &waiting);
        let mut blocks = fill(lengths, ranks, need, &mut buckets);
        waiting = buckets.into_iter().flatten().collect();
        trim(lengths, ranks, &mut blocks, &mut waiting);
        grow(ranks, &mut blocks);
        placement.push(blocks);
    }
    placement
}

/// Cuts the documents, in order, into as many parts of about equal work as there are sizes of blocks.
fn buckets(lengths: &[usize], need: impl Fn(usize) -> usize, waiting: &[usize]) -> VecDeque<VecDeque<usize>> {
    let cost = |&document: &usize| Pairs::of(lengths[document], need(document));
    let mut sizes: Vec<usize> = waiting.iter().map(|&document| need(document)).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let most = waiting.iter().map(cost).sum::<Pairs>().share(11, 10 * sizes.len() as u128);
    let (mut buckets, mut open) = (VecDeque::new(), VecDeque::new());
    let mut filled = Pairs::NONE;
    for (nth, document) in waiting.iter().enumerate() {
        // Each closed bucket counts twice against the number of sizes, there as here.
        let few = waiting.len() - nth + 2 * buckets.len() <= sizes.len();
        if nth > 0 && (filled + cost(document) > most || few) {
            buckets.push_back(std::mem::take(&mut open));
            filled = Pairs::NONE;
        }
        open.push_back(*document);
        filled += cost(document);
    }
    buckets.push_back(open);
    buckets
}

/// Takes documents from the heads of buckets.
fn fill(
    lengths: &[usize],
    ranks: usize,
    need: impl Fn(usize) -> usize,
    buckets: &mut VecDeque<VecDeque<usize>>,
) -> Vec<RankBlock> {
    let mut blocks: Vec<RankBlock> = Vec::new();
    let mut first_need = None;
    let mut mixed = false;
    loop {
        let free = ranks - blocks.iter().map(|block| block.size).sum::<usize>();
        let placeable = |head: usize| free >= need(head) || blocks.iter().any(|block| block.size == need(head));
        let ready = |bucket: &&mut VecDeque<usize>| bucket.front().is_some_and(|&head| placeable(head));
        let Some(document) = buckets.iter_mut().find(ready).and_then(VecDeque::pop_front) else {
            return blocks;
        };
        let size = need(document);
        let same = blocks.iter_mut().filter(|block| block.size == size);
        match same.min_by_key(|block| work(lengths, block)) {
            Some(block) if free < size => block.documents.push(document),
            // Every block has work, so unused ranks are less busy.
            _ => blocks.push(RankBlock { size, documents: vec![document] }),
        }
        while buckets.front().is_some_and(VecDeque::is_empty) {
            buckets.pop_front();
        }
        mixed |= size < *first_need.get_or_insert(size);
        if mixed && !buckets.is_empty() && unevenness(lengths, ranks, &blocks) <= LEVEL {
            return blocks;
        }
    }
}

/// Sends the last documents of the busiest blocks back to the end of the queue, while ranks become more even.
fn trim(lengths: &[usize], ranks: usize, blocks: &mut [RankBlock], waiting: &mut Vec<usize>) {
    let used = blocks.iter().map(|block| block.size).sum::<usize>();
    loop {
        let before = unevenness(lengths, ranks, blocks);
        let busiest = (0..blocks.len()).min_by_key(|&block| Reverse(work(lengths, &blocks[block])));
        let Some(busiest) = busiest.filter(|_| used == ranks && before > LEVEL) else { return };
        if blocks[busiest].documents.len() < 2 {
            return;
        }
        let Some(last) = blocks[busiest].documents.pop() else { return };
        if unevenness(lengths, ranks, blocks) >= before {
            return blocks[busiest].documents.push(last);
        }
        waiting.push(last);
    }
}

/// Doubles the first of the smallest blocks until no rank is unused.
fn grow(ranks: usize, blocks: &mut [RankBlock]) {
    let mut free = ranks - blocks.iter().map(|block| block.size).sum::<usize>();
    while free > 0 {
        // Sizes divide the number of ranks and each other, so the smallest divides what is unused.
        let Some(smallest) = blocks.iter_mut().min_by_key(|block| block.size) else { return };
        free -= smallest.size;
        smallest.size *= 2;
    }
}

/// What the busiest rank does more than the least busy one, in [`Pairs::PARTS`] of what it does.
fn unevenness(lengths: &[usize], ranks: usize, blocks: &[RankBlock]) -> u128 {
    let unused = blocks.iter().map(|block| block.size).sum::<usize>() < ranks;
    let works = || blocks.iter().map(|block| work(lengths, block)).chain(unused.then_some(Pairs::NONE));
    let (most, least) = (works().max().unwrap_or_default(), works().min().unwrap_or_default());
    (most - least).parts_of(most)
}
