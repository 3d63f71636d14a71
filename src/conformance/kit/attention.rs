//! Checks of attention: the rehearsal of its programs, numbers against the oracle, bits, and predictions.

use std::sync::Arc;

use super::cases::{TestedKernel, masks, shapes};
use super::{Case, Check, Failure, Kit, Subject, placement};
use crate::attention::RankPlan;
use crate::comm::decorate::traffic::Counted;
use crate::comm::{DynComm, threads};
use crate::conformance::trial::{Attended, Prediction, Trial, owners};
use crate::error::Result;
use crate::kernel::{Flash, KernelOn, kernel_object};
use crate::layout::{Batch, LayoutKind, Packed, Thd};
use crate::oracle::{F32_BOUND, F64_BOUND, NAMES, allowed};
use crate::order::{DynPlacement, Natural, Placement};
use crate::strategy::{Single, object};
use crate::tensor::{Cpu, DryRun, Float};

/// Checks attention on a batch under all masks; in `f32` too, and twice, if `all` is asked for.
pub(super) fn check<K: TestedKernel>(kit: &mut Kit, batch: &Arc<dyn Batch>, all: bool) -> Result<(), Failure> {
    let shapes = shapes(&*kit.subject.strategy);
    let mut placements = None;
    for (index, mask) in masks::<K>(&**batch).into_iter().enumerate() {
        let shape = shapes[(index + batch.documents()) % shapes.len()];
        let case = Case { mask: Some(mask.clone()), ..kit.case.on(&**batch) };
        let fails = |error| case.fails(Check::TokenCover, error);
        if placements.is_none() || kit.subject.strategy.places_by_masks() {
            let made = placement::of(&kit.subject, batch, &mask).map_err(fails)?;
            placement::check(&case, &made)?;
            kit.passed(Check::TokenCover, 0.0);
            placements = Some(made);
        }
        let Some(placement) = placements.as_ref().and_then(|placements| placements.first()) else { return Ok(()) };
        if kit.options.rehearse {
            RankPlan::check(&*kit.subject.strategy, placement, &mask)
                .map_err(|error| case.fails(Check::ExactCover, error))?;
            kit.passed(Check::ExactCover, 0.0);
        }
        let owners = owners(placement);
        let trial = Trial::<f64>::new(&**batch, &owners, shape, &mask, index as u64);
        let found = run::<K, f64>(kit, Check::OracleF64, &case, placement, &trial)?;
        let errors = trial.errors(&found);
        for (name, error) in NAMES.into_iter().zip(errors) {
            if error.is_nan() || error >= F64_BOUND {
                let what = format!("relative error of {name} is {error:.1e}, at most {F64_BOUND:.0e} is rounding");
                return Err(of(&trial, &case).fails(Check::OracleF64, what));
            }
            kit.passed(Check::OracleF64, error);
        }
        if all {
            let trial = Trial::new(&**batch, &owners, shape, &mask, index as u64);
            single_precision::<K>(kit, &case, placement, &trial)?;
        }
    }
    Ok(())
}

fn single_precision<K: TestedKernel>(
    kit: &mut Kit,
    case: &Case,
    placement: &DynPlacement,
    trial: &Trial<f32>,
) -> Result<(), Failure> {
    let case = of(trial, case);
    let found = run::<K, f32>(kit, Check::OracleF32, &case, placement, trial)?;
    let alone = alone(&**placement.batch(), trial).map_err(|error| case.fails(Check::OracleF32, error))?;
    for (name, (error, single)) in NAMES.into_iter().zip(trial.errors(&found).into_iter().zip(alone)) {
        // Measured by `Single`, which shares its kernel with the strategy: what is wrong in both shows by itself.
        let bound = allowed(single, kit.case.ranks).min(F32_BOUND);
        if error.is_nan() || error > bound {
            let what = format!("relative error of {name} is {error:.1e}, and that of Single {single:.1e}");
            return Err(case.fails(Check::OracleF32, what));
        }
        kit.passed(Check::OracleF32, error);
    }
    let again = run::<K, f32>(kit, Check::Determinism, &case, placement, trial)?;
    for ((name, first), second) in NAMES.into_iter().zip(&found).zip(&again) {
        let differ = first.iter().zip(second).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
        if differ > 0 {
            let what = format!("{differ} of {} values of {name} differ between two runs", first.len());
            return Err(case.fails(Check::Determinism, what));
        }
    }
    kit.passed(Check::Determinism, 0.0);
    Ok(())
}

/// Attention on all ranks; out, dq, dk and dv in natural order. Predictions are checked on the way.
fn run<K: KernelOn<Cpu<T>> + KernelOn<DryRun<T>>, T: Float>(
    kit: &mut Kit,
    check: Check,
    case: &Case,
    placement: &DynPlacement,
    trial: &Trial<T>,
) -> Result<[Vec<T>; 4], Failure> {
    let case = of(trial, case);
    let parts = kit.on_ranks(check, &case, &|comm| attend::<K, T>(&kit.subject, comm, placement, trial))?;
    for (rank, part) in parts.iter().enumerate() {
        let mut predictions = part.predictions().into_iter();
        let wrong = predictions.find(|(_, prediction)| prediction.predicted != prediction.counted);
        if let Some((what, Prediction { predicted, counted })) = wrong {
            let what = format!("rank {rank} {what}: {predicted} predicted, {counted} counted");
            return Err(case.fails(Check::Prediction, what));
        }
    }
    kit.passed(Check::Prediction, 0.0);
    Ok(trial.together(&parts))
}

/// Relative errors of `Single` on the same numbers. It is always the packed layout, whose tokens are numbered alike.
fn alone(batch: &dyn Batch, trial: &Trial<f32>) -> Result<[f64; 4]> {
    let documents = (0..batch.documents()).map(|index| batch.document(index));
    let (valid, stored): (Vec<usize>, Vec<usize>) = documents.map(|document| (document.valid, document.stored)).unzip();
    let placement = Placement::<Natural, Thd>::new(Arc::new(Packed::new(&valid, &stored)?), 1, 0)?;
    let single = Subject { strategy: object(Single), layout: LayoutKind::Thd };
    let parts = threads::run(1, |comm| attend::<Flash, f32>(&single, Box::new(comm), &placement, trial))?;
    Ok(trial.errors(&trial.together(&parts)))
}

/// Forward and backward on one rank of the kit.
pub(super) fn attend<K: KernelOn<Cpu<T>> + KernelOn<DryRun<T>>, T: Float>(
    subject: &Subject,
    comm: DynComm,
    placement: &DynPlacement,
    trial: &Trial<T>,
) -> Result<Attended<T>> {
    let counted = Counted::new(comm);
    let traffic = counted.traffic();
    let handler = subject.handler(Cpu::<T>::new(1), Box::new(counted))?;
    let peak = |plan: &RankPlan| plan.peak_bytes::<K, Cpu<T>>(trial.shape());
    trial.attend(&handler, &traffic, kernel_object::<K, Cpu<T>>(), placement, peak)
}

/// The case with what is known of the trial.
fn of<T: Float>(trial: &Trial<T>, case: &Case) -> Case {
    Case { shape: Some(*trial.shape()), dtype: Some(T::DTYPE), ..case.clone() }
}
