//! Which combinations run a case, and the comparison with a single rank.

use std::collections::HashMap;

use context_parallel::degree::{Grid, Runtime};
use context_parallel::layout::{Bshd, Layout, Sbhd, Thd};
use context_parallel::order::Striped;
use context_parallel::strategy::support::{self, Choice, TABLE, Visitor};
use context_parallel::strategy::{AllGather, CpStrategy, Flash, Kernel, Ring, RingUlysses, Single, Supports, Ulysses};

use super::problem::{Attend, Problem, TENSORS};

/// Numbers of ranks.
pub const RANKS: [usize; 5] = [2, 3, 4, 5, 8];

/// How far a rank's error may go beyond that of a single rank.
const FACTOR: f64 = 1.5;

/// Layouts without padding: every sequence is as long.
pub const DENSE: &[&str] = &[Bshd::NAME, Sbhd::NAME];
/// Packed documents.
pub const PACKED: &[&str] = &[Thd::NAME];

/// Token orders of a strategy that run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Orders {
    All,
    /// The strategy's default.
    First,
}

/// Combinations that ran, and those that cannot because query heads do not divide by the ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    pub cases: usize,
    pub run: usize,
    pub skipped: usize,
}

/// Runs combinations, counts them and collects what is wrong.
#[derive(Default)]
pub struct Runner {
    pub tally: Tally,
    wrong: Vec<String>,
    /// Largest error relative to that of a single rank, by tensor, with what had it.
    worst: [(f64, String); 4],
}

/// Errors of a single rank, by layout and kernel.
type Alone = HashMap<(&'static str, &'static str), [f64; 4]>;

impl Runner {
    /// Every combination of the support table that can run the problem, in these layouts and orders.
    pub fn run(&mut self, problem: &Problem, layouts: &[&str], orders: Orders, ranks: &[usize]) {
        self.tally.cases += 1;
        let mut alone = Alone::new();
        for line in TABLE {
            let works = || line.works.iter().filter(|(layout, _)| layouts.contains(layout));
            for &(layout, kernel) in works() {
                if line.strategy == Single::NAME {
                    let choice = choice(Single::NAME, "", layout, kernel, 1, None);
                    let errors = support::select(&choice, Attend(problem)).expect("a single rank");
                    alone.insert((layout, kernel), errors);
                    continue;
                }
                let taken = if orders == Orders::First { 1 } else { line.orders.len() };
                for (&order, &ranks) in
                    line.orders[..taken].iter().flat_map(|order| ranks.iter().map(move |n| (order, n)))
                {
                    for grid in grids(line.strategy, ranks, problem.shape.q_heads) {
                        let choice = choice(line.strategy, order, layout, kernel, ranks, grid);
                        self.one(problem, &choice, &alone[&(layout, kernel)]);
                    }
                }
            }
        }
    }

    fn one(&mut self, problem: &Problem, choice: &Choice, alone: &[f64; 4]) {
        let heads = problem.shape.q_heads;
        // The one reason for which a combination of the table cannot run. The library must give it, too.
        let divides = choice.strategy != <Ulysses>::NAME || heads.is_multiple_of(choice.degree);
        let fits = support::fit_heads(choice.clone(), heads);
        assert_eq!(fits.is_ok(), divides, "{}: {heads} query heads, {choice:?}: {fits:?}", problem.case.name);
        if !divides {
            self.tally.skipped += 1;
            return;
        }
        let what = || {
            let Choice { strategy, order, layout, kernel, degree, grid } = choice;
            let grid = grid.map_or_else(String::new, |grid| format!(" as {} x {}", grid.outer, grid.inner));
            format!("{}: {strategy} {order} {layout} {kernel} on {degree}{grid}", problem.case.name)
        };
        match support::select(choice, Attend(problem)) {
            Ok(errors) => self.judge(&what(), &errors, alone),
            Err(error) => self.wrong.push(format!("{}: {error}", what())),
        }
        self.tally.run += 1;
    }

    /// Flash attention of packed documents under strategies with stripes of `STRIPE` rows.
    pub fn stripes<const STRIPE: usize>(&mut self, problem: &Problem, ranks: usize) {
        let alone = Attend(problem).visit::<_, Thd, Flash>(Single).expect("a single rank");
        let (n, name) = (Runtime(ranks), &problem.case.name);
        let what = |strategy: &str| format!("{name}: {strategy} in stripes of {STRIPE} on {ranks}");
        let gather = Striped::<STRIPE>;
        self.striped(what(<AllGather>::NAME), problem, AllGather::<_, Striped<STRIPE>>::new(n), &alone);
        self.striped(what(<Ring>::NAME), problem, Ring::<_, Striped<STRIPE>>::new(n), &alone);
        let _ = gather;
    }

    fn striped<H: Supports<Thd, Flash>>(&mut self, what: String, problem: &Problem, strategy: H, alone: &[f64; 4]) {
        match Attend(problem).visit::<H, Thd, Flash>(strategy) {
            Ok(errors) => self.judge(&what, &errors, alone),
            Err(error) => self.wrong.push(format!("{what}: {error}")),
        }
        self.tally.run += 1;
    }

    fn judge(&mut self, what: &str, errors: &[f64; 4], alone: &[f64; 4]) {
        for (tensor, (&error, &alone)) in errors.iter().zip(alone).enumerate() {
            if !(error <= FACTOR * alone) {
                self.wrong.push(format!("{what}: {} {error:.2e}, a single rank {alone:.2e}", TENSORS[tensor]));
            }
            let ratio = if error == 0.0 { 0.0 } else { error / alone };
            if ratio > self.worst[tensor].0 {
                self.worst[tensor] = (ratio, what.to_string());
            }
        }
    }

    /// What ran; fails with every combination that was wrong.
    pub fn done(self) -> Tally {
        for (tensor, (ratio, what)) in TENSORS.iter().zip(&self.worst) {
            println!("{tensor}: at most {ratio:.3} times a single rank's error, {what}");
        }
        println!("{:?}", self.tally);
        assert!(
            self.wrong.is_empty(),
            "{} of {:?} are wrong:\n{}",
            self.wrong.len(),
            self.tally,
            self.wrong.join("\n")
        );
        self.tally
    }
}

fn choice(strategy: &str, order: &str, layout: &str, kernel: &str, degree: usize, grid: Option<Grid>) -> Choice {
    let [strategy, order, layout, kernel] = [strategy, order, layout, kernel].map(str::to_string);
    Choice { strategy, order, layout, kernel, degree, grid }
}

/// Every grid of `ring-ulysses` with both parts larger than 1, or the two degenerate ones where ranks are prime, as far as
/// the heads go into groups.
fn grids(strategy: &str, ranks: usize, q_heads: usize) -> Vec<Option<Grid>> {
    if strategy != <RingUlysses>::NAME {
        return vec![None];
    }
    let fits = |inner: &usize| ranks.is_multiple_of(*inner) && q_heads.is_multiple_of(*inner);
    let all: Vec<Grid> =
        (1..=ranks).filter(fits).map(|inner| Grid { outer: ranks / inner, inner, inner_adjacent: true }).collect();
    let mixed: Vec<Option<Grid>> =
        all.iter().filter(|grid| grid.outer > 1 && grid.inner > 1).copied().map(Some).collect();
    if mixed.is_empty() { all.into_iter().map(Some).collect() } else { mixed }
}
