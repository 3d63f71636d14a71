//! A conformance kit for strategies of one's own (feature `conformance`).
//!
//! [`check`] puts a strategy through everything that can be checked without knowing how it works: that its order
//! deals every token out once, that dispatch, combine and roll are exact and have their adjoints, that its programs
//! compute every attended cell once, that output and gradients are those of a float64 oracle, that its traffic is the
//! predicted one to the byte, and that a rank which fails ends the others with its name. The project's own strategies
//! are tested through it. The first check that fails is returned as a [`Failure`], which says what was run, what came
//! out and where to look.
//!
//! ```
//! use context_parallel::conformance::{self, Options};
//! use context_parallel::degree::Runtime;
//! use context_parallel::layout::Thd;
//! use context_parallel::kernel::Flash;
//! use context_parallel::strategy::Ring;
//!
//! let options = Options { degrees: vec![2, 3], ..Options::default() };
//! let report = conformance::check::<Ring, Thd, Flash>(|ranks| Some(Ring::new(Runtime(ranks))), &options)?;
//! println!("{report}");
//! # Ok::<(), conformance::Failure>(())
//! ```
//!
//! A learner of one's own is compared with a single rank by [`crate::train::conformance::check_learner`].
//!
//! Ranks are threads of this process. Numbers are drawn from fixed seeds, so that a failure comes again.

mod attention;
mod cases;
mod failure;
mod faults;
mod movement;
mod placement;
mod report;

pub use cases::TestedKernel;
pub use failure::{Case, Check, Failure};
pub use report::{Entry, Report};

use std::sync::Arc;
use std::time::Duration;

use crate::comm::{DynComm, threads};
use crate::error::Result;
use crate::handler::UntypedHandler;
use crate::layout::{Layout, LayoutKind};
use crate::strategy::{DynStrategy, Supports, object};
use crate::tensor::{Device, Host};

/// What to run.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Numbers of ranks. Those that the strategy cannot do are left out.
    pub degrees: Vec<usize>,
    /// Whether programs are rehearsed before they run ([`Check::ExactCover`]). Without, a wrong program is run, and the
    /// checks that follow have to notice.
    pub rehearse: bool,
    /// The longest that a rank waits for another.
    pub deadline: Duration,
}

impl Default for Options {
    /// 1, 2, 3, 4, 5 and 8 ranks, programs rehearsed, waits of at most 30 seconds.
    fn default() -> Self {
        Options { degrees: vec![1, 2, 3, 4, 5, 8], rehearse: true, deadline: Duration::from_secs(30) }
    }
}

/// What is checked: a strategy with its number of ranks, and a layout.
#[derive(Clone)]
struct Subject {
    strategy: Arc<dyn DynStrategy>,
    layout: LayoutKind,
}

impl Subject {
    /// A handler for one rank.
    fn handler<D: Device<Storage = Host>>(&self, device: D, comm: DynComm) -> Result<UntypedHandler<D>> {
        UntypedHandler::new(self.strategy.clone(), self.layout, device, comm)
    }
}

/// One strategy and layout on one number of ranks, and what was found so far.
struct Kit<'a> {
    subject: Subject,
    case: Case,
    options: &'a Options,
    report: &'a mut Report,
}

impl Kit<'_> {
    /// Runs `body` on all ranks; an error is the failure of `check` in `case`.
    fn on_ranks<R: Send>(
        &self,
        check: Check,
        case: &Case,
        body: &(dyn Fn(DynComm) -> Result<R> + Sync),
    ) -> Result<Vec<R>, Failure> {
        let options = threads::Waiting { deadline: self.options.deadline, ..threads::Waiting::default() };
        threads::run_with(options, self.case.ranks, |comm| body(Box::new(comm)))
            .map_err(|error| case.fails(check, error))
    }

    /// Notes that a check was passed with this number, which would be 0 if all were exact.
    fn passed(&mut self, check: Check, number: f64) {
        self.report.note(check, self.case.ranks, number);
    }
}

/// Runs the strategies that `strategy` makes for each number of ranks (nothing where it cannot do that many) through
/// all checks, with layout `L` and kernel `K`.
///
/// Takes about a second in a build with optimisation. Every message and every number is checked on small batches: the
/// strategy's speed is not.
///
/// # Errors
/// The first check that fails; [`Check::Degree`] if there is no number of ranks that the strategy can do.
pub fn check<H, L, K>(strategy: impl Fn(usize) -> Option<H>, options: &Options) -> Result<Report, Failure>
where
    H: Supports<L, K>,
    L: Layout,
    K: TestedKernel,
{
    all_checks::<K>(H::NAME, L::KIND, &|ranks| strategy(ranks).map(object), options)
}

/// What [`check`] does, compiled once per kernel.
fn all_checks<K: TestedKernel>(
    name: &'static str,
    layout: LayoutKind,
    strategy: &dyn Fn(usize) -> Option<Arc<dyn DynStrategy>>,
    options: &Options,
) -> Result<Report, Failure> {
    let mut report = Report::default();
    let case = |ranks| Case { works: Some((layout.name(), K::NAME)), ..Case::of(name, ranks) };
    let mut injected = false;
    for &ranks in &options.degrees {
        let Some(strategy) = strategy(ranks).filter(|_| ranks > 0) else { continue };
        let subject = Subject { strategy, layout };
        let mut kit = Kit { subject, case: case(ranks), options, report: &mut report };
        degree(&mut kit)?;
        let batches = cases::batches(layout, ranks).map_err(|error| kit.case.fails(Check::Degree, error))?;
        for batch in &batches {
            movement::check(&mut kit, batch)?;
        }
        for (index, batch) in batches.iter().enumerate() {
            attention::check::<K>(&mut kit, batch, index == 0)?;
        }
        if ranks > 1 {
            // Every operation once, then one per number of ranks.
            faults::check::<K>(&mut kit, &batches[0], !std::mem::replace(&mut injected, true))?;
        }
    }
    match report.entries().is_empty() {
        true => Err(case(0).fails(Check::Degree, format!("none of {:?} ranks can be done", options.degrees))),
        false => Ok(report),
    }
}

fn degree(kit: &mut Kit) -> Result<(), Failure> {
    let (asked, made, grid) = (kit.case.ranks, kit.subject.strategy.degree(), kit.subject.strategy.grid());
    let fails = |what: String| Err(kit.case.fails(Check::Degree, what));
    if made != asked {
        return fails(format!("a strategy for {asked} ranks was asked for, and one for {made} was made"));
    }
    if grid.ranks() != asked {
        return fails(format!("its grid has {} ranks: {grid:?}", grid.ranks()));
    }
    if cases::shapes(&*kit.subject.strategy).is_empty() {
        return fails(format!("no number of query heads from 4 to {} can be shared out", 4 * grid.inner.max(1)));
    }
    kit.passed(Check::Degree, 0.0);
    Ok(())
}
