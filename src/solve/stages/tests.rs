//! Cuts against all others, and slot by slot.

use super::*;
use proptest::prelude::*;

/// Time slot by slot, as the module says it.
fn simulated(work: &Work, costs: &StageCosts, cuts: &[Range<usize>], own_last: bool, merging: Merging) -> u64 {
    let merges = |cut: &Range<usize>| if merging == Merging::Stages { 1 } else { cut.len() as u64 };
    let exchange = |rows: u64, each: u64, messages: u64| match rows == 0 || each == 0 {
        true => 0,
        false => messages * costs.message + rows * each,
    };
    let rows = |cut: &Range<usize>| work.atoms[cut.clone()].iter().map(|atom| atom.rows as u64).sum();
    let area = |cut: &Range<usize>| work.atoms[cut.clone()].iter().map(|atom| atom.area).sum::<u64>();
    let own = work.own_area * costs.cell;
    let each = costs.launch + costs.merged * work.queries as u64;
    let remote = |cut| area(cut) * costs.cell + merges(cut) * each;
    // Slots as (fetch, attend, give back); own keys are a slot without exchanges of its own.
    let mut attends: Vec<Option<&Range<usize>>> = cuts.iter().map(Some).collect();
    attends.insert(if own_last { cuts.len() } else { 0 }, None);
    if own_last {
        attends.insert(0, None);
    }
    attends.push(None);
    let mut time = 0;
    for slot in 0..attends.len() {
        let is_own = if own_last { slot + 2 == attends.len() } else { slot == 0 };
        let attend = attends[slot].map_or(if is_own { own } else { 0 }, remote);
        let fetch = attends.get(slot + 1).copied().flatten().map_or(0, |cut| exchange(rows(cut), costs.fetched, 1));
        let before = if slot == 0 { None } else { attends[slot - 1] };
        let back = before.map_or(0, |cut| exchange(rows(cut), costs.returned, merges(cut)));
        time += fetch.max(attend).max(back);
    }
    time
}

/// All ways to cut `0..atoms` into non-empty parts.
fn partitions(atoms: usize) -> Vec<Vec<Range<usize>>> {
    (0..1usize << (atoms - 1))
        .map(|bits| {
            let mut ends: Vec<usize> = (1..atoms).filter(|cut| bits >> (cut - 1) & 1 == 1).collect();
            ends.push(atoms);
            let mut start = 0;
            ends.into_iter().map(|end| std::mem::replace(&mut start, end)..end).collect()
        })
        .collect()
}

proptest! {
    #[test]
    fn no_cut_is_faster(
        atoms in proptest::collection::vec((0usize..40, 0u64..400), 1..8),
        own_area in 0u64..600, queries in 0usize..30, backward: bool,
        (message, launch) in (0u64..60, 0u64..60), exactly in 1usize..6, fixed: bool, by_parts: bool,
    ) {
        let atoms: Vec<Atom> = atoms.into_iter().map(|(rows, area)| Atom { rows, area }).collect();
        let work = Work { queries, own_area, atoms: &atoms };
        let returned = if backward { 7 } else { 0 };
        let costs = StageCosts { cell: 2, fetched: 5, returned, message, launch, merged: 1 };
        let count = if fixed { StageCount::Exactly(exactly) } else { StageCount::Best };
        let merging = if by_parts { Merging::Parts(atoms.len()) } else { Merging::Stages };
        let found = best(&work, &costs, count, merging);
        prop_assert_eq!(found.time, simulated(&work, &costs, &found.cuts, found.own_last, merging));
        prop_assert!(!(by_parts && found.own_last));
        let allowed = |cuts: &Vec<Range<usize>>| !fixed || cuts.len() == exactly.min(atoms.len());
        for cuts in partitions(atoms.len()).iter().filter(|cuts| allowed(cuts)) {
            for own_last in [false, backward && !by_parts] {
                prop_assert!(found.time <= simulated(&work, &costs, cuts, own_last, merging));
            }
        }
    }
}

#[test]
fn stages_pay_where_both_sides_take_long() {
    let atoms = [Atom { rows: 1024, area: 8 << 20 }; 16];
    let count = |costs: &StageCosts, own_area: u64, queries: usize| {
        best(&Work { queries, own_area, atoms: &atoms }, costs, StageCount::Best, Merging::Stages).cuts.len()
    };
    assert!(count(&StageCosts::FORWARD, 0, 1024) > 1, "the second half travels while the first is attended");
    assert_eq!(count(&StageCosts::FORWARD, 1 << 30, 1024), 1, "own keys hide the whole fetch");
    assert_eq!(count(&StageCosts::FORWARD, 0, 1 << 30), 1, "merging costs more than it hides");
    let none = Work { queries: 8, own_area: 3, atoms: &[] };
    let none = best(&none, &StageCosts::FORWARD, StageCount::Exactly(4), Merging::Stages);
    assert_eq!((none.cuts.len(), none.time), (0, 6));
    // A long own part at the end hides the return of every gradient.
    let work = Work { queries: 0, own_area: 1 << 24, atoms: &atoms };
    let backward = best(&work, &StageCosts::BACKWARD, StageCount::Best, Merging::Stages);
    assert!(backward.own_last && backward.cuts.len() > 1, "{backward:?}");
}

#[test]
fn parts_are_between_one_and_the_most() {
    assert_eq!([0, 1, 5, 99].map(|parts| Merging::Parts(parts).parts()), [1, 1, 5, MOST_PARTS]);
}
