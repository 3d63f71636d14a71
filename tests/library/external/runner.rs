//! Which combinations run a case, and the comparison with a single rank.

use std::collections::HashMap;

use context_parallel::degree::{Grid, Runtime};
use context_parallel::error::Result;
use context_parallel::kernel::{Flash, KernelKind};
use context_parallel::layout::{Bshd, Layout, LayoutKind, Sbhd, Thd};
use context_parallel::order::Striped;
use context_parallel::strategy::select::{self, Choice, Chosen, TABLE};
use context_parallel::strategy::{AllGather, CpStrategy, Ring, RingUlysses, Single, Supports, Ulysses, object};

use super::problem::{DrawnCase, TENSORS};

/// Numbers of ranks.
pub const RANKS: [usize; 5] = [2, 3, 4, 5, 8];

/// How far a rank's error may go beyond that of a single rank.
const FACTOR: f64 = 1.5;

/// How large a single rank's own error may be: sums of some hundred products in f32.
const ALONE: f64 = 2e-6;

/// Layouts without padding: every sequence is as long.
pub const DENSE: &[&str] = &[Bshd::NAME, Sbhd::NAME];
/// Packed documents.
pub const PACKED: &[&str] = &[Thd::NAME];

/// How much of the support table runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Breadth {
    /// Every strategy x order x layout x kernel.
    Whole,
    /// Every strategy x order x kernel, each in one of the layouts, in turn over cases, orders and ranks.
    LayoutsInTurn,
    /// Every strategy and kernel in its default order.
    DefaultOrders,
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

impl Runner {
    /// The combinations of the support table that can run the problem, in these layouts.
    pub fn run(&mut self, problem: &DrawnCase, layouts: &[&str], breadth: Breadth, ranks: &[usize]) {
        let mut alone = HashMap::new();
        for line in TABLE {
            for &(layout, kernel) in line.works {
                let Some(place) = layouts.iter().position(|other| *other == layout) else { continue };
                if line.strategy == Single::NAME {
                    let single = select::chosen(&choice(line.strategy, "", layout, kernel, 1, None));
                    let errors = problem.attend::<f32>(&single.expect("a single rank"));
                    alone.insert((layout, kernel), self.alone(problem, errors));
                    continue;
                }
                let orders = line.orders.iter().enumerate();
                for ((at, &order), &ranks) in orders.flat_map(|order| ranks.iter().map(move |ranks| (order, ranks))) {
                    let taken = match breadth {
                        Breadth::Whole => true,
                        Breadth::LayoutsInTurn => (self.tally.cases + at + ranks) % layouts.len() == place,
                        Breadth::DefaultOrders => at == 0,
                    };
                    for grid in grids(line.strategy, ranks, problem.shape.q_heads).into_iter().filter(|_| taken) {
                        let choice = choice(line.strategy, order, layout, kernel, ranks, grid);
                        self.one(problem, &choice, &alone[&(layout, kernel)]);
                    }
                }
            }
        }
        self.tally.cases += 1;
    }

    /// A single rank's errors, which must be those of rounding.
    fn alone(&mut self, problem: &DrawnCase, errors: Result<[f64; 4]>) -> [f64; 4] {
        let errors = errors.expect("a single rank");
        if !errors.iter().all(|&error| error <= ALONE) {
            self.wrong.push(format!("{}: a single rank has errors {errors:?}", problem.case.name));
        }
        errors
    }

    fn one(&mut self, problem: &DrawnCase, choice: &Choice, alone: &[f64; 4]) {
        let heads = problem.shape.q_heads;
        // The one reason for which a combination of the table cannot run. The library must give it, too.
        let divides = choice.strategy != <Ulysses>::NAME || heads.is_multiple_of(choice.degree);
        let fits = select::fit_heads(choice.clone(), heads);
        assert_eq!(fits.is_ok(), divides, "{}: {heads} query heads, {choice:?}: {fits:?}", problem.case.name);
        if !divides {
            self.tally.skipped += 1;
            return;
        }
        let what = || {
            let Choice { strategy, order, layout, kernel, degree, grid, .. } = choice;
            let grid = grid.map_or_else(String::new, |grid| format!(" as {grid}"));
            format!("{}: {strategy} {order} {layout} {kernel} on {degree}{grid}", problem.case.name)
        };
        match select::chosen(choice).and_then(|chosen| problem.attend::<f32>(&chosen)) {
            Ok(errors) => self.judge(&what(), &errors, alone),
            Err(error) => self.wrong.push(format!("{}: {error}", what())),
        }
        self.tally.run += 1;
    }

    /// Flash attention of packed documents under strategies with stripes of `STRIPE` rows.
    pub fn stripes<const STRIPE: usize>(&mut self, problem: &DrawnCase, ranks: usize) {
        let alone = self.alone(problem, problem.attend::<f32>(&flash(Single)));
        let (n, name) = (Runtime(ranks), &problem.case.name);
        let what = |strategy: &str| format!("{name}: {strategy} in stripes of {STRIPE} on {ranks}");
        self.striped(what(<AllGather>::NAME), problem, AllGather::<_, Striped<STRIPE>>::new(n), &alone);
        self.striped(what(<Ring>::NAME), problem, Ring::<_, Striped<STRIPE>>::new(n), &alone);
    }

    fn striped<H: Supports<Thd, Flash>>(&mut self, what: String, problem: &DrawnCase, strategy: H, alone: &[f64; 4]) {
        match problem.attend::<f32>(&flash(strategy)) {
            Ok(errors) => self.judge(&what, &errors, alone),
            Err(error) => self.wrong.push(format!("{what}: {error}")),
        }
        self.tally.run += 1;
    }

    fn judge(&mut self, what: &str, errors: &[f64; 4], alone: &[f64; 4]) {
        for (tensor, (&error, &alone)) in errors.iter().zip(alone).enumerate() {
            // Neither is ever NaN.
            if error > FACTOR * alone {
                self.wrong.push(format!("{what}: {} {error:.2e}, a single rank {alone:.2e}", TENSORS[tensor]));
            }
            let ratio = if error == 0.0 { 0.0 } else { error / alone };
            if ratio > self.worst[tensor].0 {
                self.worst[tensor] = (ratio, what.to_string());
            }
        }
    }

    /// What was wrong.
    pub fn wrong(&self) -> &[String] {
        &self.wrong
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

/// Flash attention of packed documents under a strategy.
pub fn flash<H: Supports<Thd, Flash>>(strategy: H) -> Chosen {
    Chosen { strategy: object(strategy), layout: LayoutKind::Thd, kernel: KernelKind::Flash }
}

fn choice(strategy: &str, order: &str, layout: &str, kernel: &str, degree: usize, grid: Option<Grid>) -> Choice {
    let [strategy, order, layout, kernel] = [strategy, order, layout, kernel].map(str::to_string);
    Choice { strategy, order, layout, kernel, degree, grid, ..Choice::default() }
}

/// Every grid of `ring-ulysses` with both parts larger than 1, or the two degenerate ones where ranks are prime, as far
/// as the heads go into groups.
fn grids(strategy: &str, ranks: usize, q_heads: usize) -> Vec<Option<Grid>> {
    if strategy != <RingUlysses>::NAME {
        return vec![None];
    }
    let fits = |grid: &Grid| grid.inner_adjacent && q_heads.is_multiple_of(grid.inner);
    let mixed: Vec<Option<Grid>> = Grid::mixed(ranks).filter(fits).map(Some).collect();
    if !mixed.is_empty() {
        return mixed;
    }
    let degenerate = [1, ranks].map(|inner| Grid { outer: ranks / inner, inner, inner_adjacent: true });
    degenerate.into_iter().filter(fits).map(Some).collect()
}
