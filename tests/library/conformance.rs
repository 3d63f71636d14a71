//! The project's own strategies pass the conformance kit, with every order, layout and kernel of the support table.

use std::collections::BTreeSet;

use context_parallel::conformance::{self, Check, Options, Report, TestedKernel};
use context_parallel::degree::Runtime;
use context_parallel::kernel::{Flash, Unfused};
use context_parallel::layout::{Bshd, Layout, Sbhd, Thd};
use context_parallel::order::{Contiguous, Striped, TokenOrder, Zigzag};
use context_parallel::solve::stages::{Merging, StageCosts, StageCount, Staging};
use context_parallel::strategy::select::TABLE;
use context_parallel::strategy::{AllGather, CpStrategy, Dynamic, Magi, Ring, RingUlysses, Single, Supports, Ulysses};

/// What was run, as (order, layout, kernel).
type Passed = BTreeSet<(&'static str, &'static str, &'static str)>;

fn passes<H, L, K>(
    strategy: impl Fn(usize) -> Option<H>,
    degrees: &[usize],
) -> (&'static str, &'static str, &'static str)
where
    H: Supports<L, K>,
    L: Layout,
    K: TestedKernel,
{
    let options = Options { degrees: degrees.to_vec(), ..Options::default() };
    let report = conformance::check::<H, L, K>(strategy, &options).unwrap_or_else(|failure| panic!("{failure}"));
    complete(&report, degrees);
    (H::Order::NAME, L::NAME, K::NAME)
}

/// Every check ran on every number of ranks; those of failures need two ranks.
fn complete(report: &Report, degrees: &[usize]) {
    for check in Check::ALL {
        let ranks = match (check, report.entry(check)) {
            (Check::FailingRank | Check::ForeignOperand, None) if degrees == [1] => continue,
            (_, entry) => &entry.unwrap_or_else(|| panic!("{check} did not run")).ranks,
        };
        let several: Vec<usize> = degrees.iter().copied().filter(|&ranks| ranks > 1).collect();
        match check {
            Check::FailingRank => assert_eq!(*ranks, several),
            Check::ForeignOperand => assert_eq!(*ranks, several[..1]),
            _ => assert_eq!(*ranks, degrees, "{check}"),
        }
    }
}

fn flash<H>(strategy: impl Fn(usize) -> Option<H> + Copy, packed: &[usize], dense: &[usize]) -> Passed
where
    H: Supports<Thd, Flash> + Supports<Bshd, Flash> + Supports<Sbhd, Flash>,
{
    Passed::from([
        passes::<H, Thd, Flash>(strategy, packed),
        passes::<H, Bshd, Flash>(strategy, dense),
        passes::<H, Sbhd, Flash>(strategy, dense),
    ])
}

fn unfused<H>(strategy: impl Fn(usize) -> Option<H> + Copy, degrees: &[usize]) -> Passed
where
    H: Supports<Bshd, Unfused> + Supports<Sbhd, Unfused>,
{
    Passed::from([passes::<H, Bshd, Unfused>(strategy, degrees), passes::<H, Sbhd, Unfused>(strategy, degrees)])
}

/// What was run is the strategy's line of the support table.
fn is_the_line(strategy: &str, passed: impl IntoIterator<Item = Passed>) {
    let line = TABLE.iter().find(|line| line.strategy == strategy).expect("a line of the table");
    let expected =
        line.orders.iter().flat_map(|order| line.works.iter().map(|(layout, kernel)| (*order, *layout, *kernel)));
    assert_eq!(passed.into_iter().flatten().collect::<Passed>(), expected.collect::<Passed>(), "{strategy}");
}

/// All numbers of ranks for one order and layout; for the others a few that are even, odd and many.
const ALL: &[usize] = &[1, 2, 3, 4, 5, 8];
const FEW: &[usize] = &[2, 3, 8];

#[test]
fn single() {
    let strategy = |ranks| (ranks == 1).then_some(Single);
    is_the_line(Single::NAME, [flash(strategy, &[1], &[1]), unfused(strategy, &[1])]);
}

#[test]
fn ring() {
    fn of<O: TokenOrder>(degrees: &[usize]) -> Passed {
        flash(|ranks| Some(Ring::<_, O>::new(Runtime(ranks))), degrees, FEW)
    }
    is_the_line(<Ring>::NAME, [of::<Zigzag>(ALL), of::<Striped>(FEW), of::<Contiguous>(FEW)]);
}

#[test]
fn all_gather() {
    fn of<O: TokenOrder>(degrees: &[usize]) -> Passed {
        let strategy = |ranks| Some(AllGather::<_, O>::new(Runtime(ranks)));
        &flash(strategy, degrees, FEW) | &unfused(strategy, FEW)
    }
    is_the_line(<AllGather>::NAME, [of::<Zigzag>(ALL), of::<Striped>(FEW), of::<Contiguous>(FEW)]);
}

#[test]
fn ulysses() {
    fn of<O: TokenOrder>(degrees: &[usize]) -> Passed {
        let strategy = |ranks| Some(Ulysses::<_, O>::new(Runtime(ranks)));
        &flash(strategy, degrees, FEW) | &unfused(strategy, FEW)
    }
    is_the_line(<Ulysses>::NAME, [of::<Zigzag>(ALL), of::<Striped>(FEW), of::<Contiguous>(FEW)]);
}

/// Groups of two where the ranks are even, else of one; either level on neighbouring ranks.
#[test]
fn ring_ulysses() {
    fn of<O: TokenOrder>(inner_adjacent: bool) -> Passed {
        let strategy = |ranks: usize| {
            let inner = if ranks.is_multiple_of(2) { 2 } else { 1 };
            let grid = RingUlysses::<_, _, O>::new(Runtime(ranks / inner), Runtime(inner));
            Some(grid.with_inner_adjacent(inner_adjacent))
        };
        flash(strategy, &[1, 2, 3, 4, 6, 8], &[3, 4])
    }
    is_the_line(<RingUlysses>::NAME, [of::<Zigzag>(true), of::<Striped>(false), of::<Contiguous>(true)]);
}

/// Groups that are not of two: three, four, and all ranks.
#[test]
fn ring_ulysses_in_other_grids() {
    for inner_adjacent in [true, false] {
        for (outer, inner) in [(1, 4), (2, 3), (3, 2), (2, 4)] {
            let grid = RingUlysses::<_, _, Zigzag>::new(Runtime(outer), Runtime(inner));
            let strategy = |_| Some(grid.with_inner_adjacent(inner_adjacent));
            passes::<_, Thd, Flash>(strategy, &[outer * inner]);
        }
    }
}

/// Three stages, the rank's own keys last backward; then stages of parts that are merged by themselves.
#[test]
fn magi_in_stages() {
    let free = StageCosts { cell: 1000, fetched: 0, returned: 1_000_000, message: 0, launch: 0, merged: 0 };
    let staging = Staging { forward: free, backward: free, ..StageCount::Exactly(3).into() };
    passes::<_, Thd, Flash>(|ranks| Some(Magi::new(Runtime(ranks)).with_stages(staging)), &[2, 3, 8]);
    let parts = Staging { merging: Merging::Parts(5), ..staging };
    passes::<_, Thd, Flash>(|ranks| Some(Magi::new(Runtime(ranks)).with_stages(parts)), &[3]);
}

#[test]
fn magi() {
    let passed = passes::<_, Thd, Flash>(|ranks| Some(Magi::new(Runtime(ranks))), ALL);
    is_the_line(<Magi>::NAME, [Passed::from([passed])]);
}

#[test]
fn dynamic() {
    let passed = passes::<_, Thd, Flash>(|ranks| Some(Dynamic::new(Runtime(ranks))), ALL);
    is_the_line(<Dynamic>::NAME, [Passed::from([passed])]);
}

#[test]
fn a_strategy_that_can_do_no_number_of_ranks_is_told() {
    let failure = conformance::check::<Ring, Thd, Flash>(|_| None, &Options::default()).unwrap_err();
    assert_eq!(failure.check, Check::Degree);
    let other = |_| Some(<Ring>::new(Runtime(3)));
    let failure = conformance::check::<Ring, Thd, Flash>(other, &Options::default()).unwrap_err();
    assert_eq!(failure.check, Check::Degree);
    assert!(failure.to_string().contains("for 1 ranks was asked for, and one for 3 was made"), "{failure}");
}
