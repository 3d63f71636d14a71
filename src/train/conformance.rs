//! A learner on several ranks against one on a single rank (feature `conformance`).

use crate::comm::{DynComm, threads};
use crate::conformance::{Case, Check, Failure, Report};
use crate::error::Result;
use crate::oracle::relative_error;
use crate::train::data::TokenBatch;
use crate::train::trainer::Learner;

/// Largest relative error of loss, gradient norm, and loss after the step. Sums in another order differ by less, and an
/// optimizer that divides a gradient by its own size makes the more of it where a gradient is nearly 0.
const BOUND: f64 = 1e-9;

/// Checks that a step of the learners that `make` makes, one on each of `ranks` ranks, is that of one that `alone`
/// makes: the loss, the norm of the gradient, and the loss after an update. Both must start from the same weights and
/// store `f64`. Labels that count should be spread unevenly in `batch`, or a mean of means is none the wiser.
///
/// # Errors
/// The failure of [`Check::TrainingStep`], under the name `name`.
pub fn check_learner<A: Learner, B: Learner>(
    name: &'static str,
    ranks: usize,
    batch: &TokenBatch,
    make: impl Fn(DynComm) -> Result<A> + Sync,
    alone: impl Fn(DynComm) -> Result<B> + Sync,
) -> Result<Report, Failure> {
    let case = Case::of(name, ranks);
    let fails = |what: String| case.fails(Check::TrainingStep, what);
    let found =
        threads::run(ranks, |comm| step(make(Box::new(comm))?, batch)).map_err(|error| fails(error.to_string()))?;
    let expected =
        threads::run(1, |comm| step(alone(Box::new(comm))?, batch)).map_err(|error| fails(error.to_string()))?;
    let mut report = Report::default();
    for (rank, found) in found.iter().enumerate() {
        let names = ["loss", "gradient norm", "loss after the step"];
        for (name, (found, expected)) in names.into_iter().zip(found.iter().zip(&expected[0])) {
            let error = relative_error(&[*found], &[*expected], 0.0);
            if error > BOUND {
                return Err(fails(format!("{name} is {found} on rank {rank} and {expected} on a single rank")));
            }
            report.note(Check::TrainingStep, ranks, error);
        }
    }
    Ok(report)
}

fn step(mut learner: impl Learner, batch: &TokenBatch) -> Result<[f64; 3]> {
    let labels = batch.counted();
    let loss = learner.accumulate(batch, labels)? / labels as f64;
    let norm = learner.update(1e-3)?;
    Ok([loss, norm, learner.evaluate(batch)? / labels as f64])
}
