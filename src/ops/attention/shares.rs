//! Which block of threads computes what, where there are as many blocks as run at once and each has a list.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use bytemuck::{Pod, Zeroable};

use super::visits::{Item, number};

/// An item for one head: `Unit` of `kernels/attention_sm90.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Unit {
    pub(crate) item: i32,
    pub(crate) head: i32,
}

/// The work of a launch: block b does `units` from `ends[b - 1]` to `ends[b]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shares {
    pub(crate) units: Vec<Unit>,
    pub(crate) ends: Vec<i32>,
}

impl Shares {
    /// Every item, which come longest first, for each of `heads` heads, `rounds` times through its visits: in their
    /// order to the block that has least to do by then (Graham, Bounds on Multiprocessing Timing Anomalies, 1969).
    /// There are
    /// `blocks` of them, or as many as there are units.
    ///
    /// Heads of the same item follow each other, so that blocks which run at once read the same keys.
    pub(crate) fn deal(items: &[Item], heads: usize, rounds: usize, blocks: usize) -> Self {
        let blocks = blocks.clamp(1, (items.len() * heads).max(1));
        let mut loads: BinaryHeap<_> = (0..blocks).map(|block| Reverse((0, block))).collect();
        let mut dealt = vec![Vec::new(); blocks];
        for (index, item) in items.iter().enumerate() {
            for head in 0..heads {
                if let Some(mut least) = loads.peek_mut() {
                    let Reverse((load, block)) = &mut *least;
                    *load += work(item, rounds);
                    dealt[*block].push(Unit { item: number(index), head: number(head) });
                }
            }
        }
        let mut shares = Shares::default();
        for units in dealt.iter().filter(|units| !units.is_empty()) {
            shares.units.extend(units);
            shares.ends.push(number(shares.units.len()));
        }
        shares
    }
}

/// What a unit takes, in visits: its beginning and its end take about one.
fn work(item: &Item, rounds: usize) -> usize {
    1 + rounds * item.count as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn items(counts: &[i32]) -> Vec<Item> {
        counts.iter().map(|&count| Item { row: 0, rows: 1, first: 0, count }).collect()
    }

    fn loads(shares: &Shares, items: &[Item], rounds: usize) -> Vec<usize> {
        let mut from = 0;
        let load = |&end: &i32| {
            let units = &shares.units[std::mem::replace(&mut from, end as usize)..end as usize];
            units.iter().map(|unit| work(&items[unit.item as usize], rounds)).sum()
        };
        shares.ends.iter().map(load).collect()
    }

    #[test]
    fn long_items_are_dealt_first_and_short_ones_fill_up() {
        let items = items(&[7, 3, 3, 1]);
        let shares = Shares::deal(&items, 1, 1, 2);
        let of = |shares: &Shares| shares.units.iter().map(|unit| (unit.item, unit.head)).collect::<Vec<_>>();
        assert_eq!((of(&shares), &shares.ends[..]), (vec![(0, 0), (3, 0), (1, 0), (2, 0)], &[2, 4][..]));
        assert_eq!(loads(&shares, &items, 1), [10, 8]);
        let alone = Shares::deal(&items[..1], 3, 2, 132);
        assert_eq!((of(&alone), &alone.ends[..]), (vec![(0, 0), (0, 1), (0, 2)], &[1, 2, 3][..]));
        assert_eq!(Shares::deal(&[], 3, 1, 132), Shares::default());
    }

    proptest! {
        #[test]
        fn every_unit_is_dealt_once_and_no_block_has_much_more_than_another(
            mut counts in proptest::collection::vec(0i32..40, 0..30),
            heads in 1usize..5,
            rounds in 1usize..4,
            blocks in 1usize..20,
        ) {
            counts.sort_unstable_by_key(|&count| Reverse(count));
            let items = items(&counts);
            let shares = Shares::deal(&items, heads, rounds, blocks);
            let mut units = shares.units.clone();
            units.sort_unstable();
            let all = |item| (0..heads).map(move |head| Unit { item: number(item), head: number(head) });
            prop_assert_eq!(units, (0..items.len()).flat_map(all).collect::<Vec<_>>());
            let loads = loads(&shares, &items, rounds);
            prop_assert_eq!(loads.len(), blocks.min(items.len() * heads));
            if let (Some(most), Some(least), Some(longest)) = (loads.iter().max(), loads.iter().min(), items.first()) {
                prop_assert!(most - least <= work(longest, rounds), "{:?}", loads);
            }
        }
    }
}
