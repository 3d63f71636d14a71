//! Who sends to whom where a few messages of each rank reach all.

#[cfg(any(feature = "mpi", test))]
use std::collections::BTreeSet;

/// How far a rank sends in each round of a dissemination: 1, 2, 4, and so on. What it knows goes to the rank that far
/// after it; when the rounds are over, every rank has heard, over others, of all.
pub(super) fn distances(size: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1usize), |distance| distance.checked_mul(2)).take_while(move |&distance| distance < size)
}

/// The rank above in the binomial tree whose root is rank 0.
pub(super) fn parent(rank: usize) -> Option<usize> {
    rank.checked_sub(1).map(|before| rank & before)
}

/// The ranks below in the binomial tree whose root is rank 0.
pub(super) fn children(rank: usize, size: usize) -> impl Iterator<Item = usize> {
    let down = distances(size).take_while(move |distance| rank & distance == 0);
    down.map(move |distance| rank + distance).filter(move |&child| child < size)
}

/// The ranks at the distances of a dissemination, either way: each can be reached from each over a few of them, also
/// when some are lost.
#[cfg(feature = "mpi")]
pub(super) fn neighbours(rank: usize, size: usize) -> BTreeSet<usize> {
    distances(size).flat_map(|distance| [(rank + distance) % size, (rank + size - distance) % size]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_but_the_root_is_the_child_of_its_parent() {
        for size in 1..=70 {
            let below: Vec<(usize, usize)> =
                (0..size).flat_map(|rank| children(rank, size).map(move |child| (child, rank))).collect();
            assert_eq!(below.iter().map(|&(child, _)| child).collect::<BTreeSet<_>>(), (1..size).collect());
            assert_eq!(below.len(), size - 1);
            assert!(below.iter().all(|&(child, rank)| parent(child) == Some(rank)));
            assert_eq!(parent(0), None);
            assert!((0..size).all(|rank| children(rank, size).count() <= distances(size).count()));
        }
    }

    #[test]
    fn after_all_distances_each_rank_has_heard_of_all() {
        for size in 1..=70 {
            let mut heard: Vec<BTreeSet<usize>> = (0..size).map(|rank| BTreeSet::from([rank])).collect();
            for distance in distances(size) {
                let before = heard.clone();
                (0..size).for_each(|rank| heard[(rank + distance) % size].extend(&before[rank]));
            }
            assert!(heard.iter().all(|ranks| ranks.len() == size));
        }
    }
}
