//! Checks of failure: a rank that fails or falls silent in the middle of attention, and operands that do not belong.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::attention::attend;
use super::cases::{TestedKernel, shapes, two_batches};
use super::{Check, Failure, Kit, placement};
use crate::comm::clock::ManualClock;
use crate::comm::decorate::faults::{Fault, Faulty};
use crate::comm::{Communicator, DynComm, threads};
use crate::conformance::trial::{Trial, owners};
use crate::error::{CommError, Error, PlacementError, Result};
use crate::kernel::kernel_object;
use crate::layout::Batch;
use crate::mask::Mask;
use crate::order::laid_out;
use crate::tensor::Cpu;

/// The deadline on a clock that is turned while a rank is silent, and how many turns make one.
const DEADLINE: Duration = Duration::from_secs(64);
const TURNS: u32 = 64;

/// Operations of a rank, from the first, that are made to fail one after another.
const MOST_OPERATIONS: u64 = 9;

/// Checks failures: at each of the first operations if `all` is asked for, else at the first.
pub(super) fn check<K: TestedKernel>(kit: &mut Kit, batch: &Arc<dyn Batch>, all: bool) -> Result<(), Failure> {
    let mask = Mask::Causal;
    let case = super::Case { mask: Some(mask.clone()), ..kit.case.on(&**batch) };
    let subject = &kit.subject.clone();
    let (ranks, shapes) = (kit.case.ranks, shapes(&*subject.strategy));
    let placements = placement::of(subject, batch, &mask);
    let placements = placements.map_err(|error| case.fails(Check::FailingRank, error))?;
    let trial = Trial::<f32>::new(&**batch, &owners(&placements[0]), shapes[0], &mask, 0);
    let victim = ranks / 2;
    let body = |comm: DynComm| attend::<K, f32>(subject, comm, &placements[0], &trial).map(drop);

    // The first operation is the first exchange of attention, or that of its plan, if there is any.
    let operations = if all { 1..MOST_OPERATIONS + 1 } else { 1..2 };
    for at in operations {
        let errors = with_fault(ranks, victim, at, Fault::Fail, kit.options.deadline, &body);
        if errors.iter().all(Option::is_none) && at > 1 {
            break;
        }
        for (rank, error) in errors.iter().enumerate().filter(|(rank, _)| *rank != victim) {
            match error {
                Some(Error::Comm(CommError::Poisoned { rank: named, .. })) if *named == victim => {}
                other => {
                    let what = format!("rank {victim} failed at its operation {at}, and rank {rank} {}", said(other));
                    return Err(case.fails(Check::FailingRank, what));
                }
            }
        }
        kit.passed(Check::FailingRank, 0.0);
        if all && at <= 2 {
            let errors = with_fault(ranks, victim, at, Fault::Silence, DEADLINE, &body);
            for (rank, error) in errors.iter().enumerate().filter(|(rank, _)| *rank != victim) {
                match error {
                    Some(Error::Comm(CommError::Poisoned { .. } | CommError::Deadline { .. })) => {}
                    other => {
                        let what =
                            format!("rank {victim} fell silent at its operation {at}, and rank {rank} {}", said(other));
                        return Err(case.fails(Check::FailingRank, what));
                    }
                }
            }
            kit.passed(Check::FailingRank, 0.0);
        }
    }
    if all {
        foreign_operands::<K>(kit)?;
    }
    Ok(())
}

fn said(error: &Option<Error>) -> String {
    match error {
        Some(error) => format!("gave the error \"{error}\""),
        None => "gave no error".to_string(),
    }
}

/// The error of each rank, where `victim` has a fault at its operation number `at`.
fn with_fault(
    ranks: usize,
    victim: usize,
    at: u64,
    fault: Fault,
    deadline: Duration,
    body: &(dyn Fn(DynComm) -> Result<()> + Sync),
) -> Vec<Option<Error>> {
    let errors = Mutex::new(vec![None; ranks]);
    let run = |options| {
        threads::run_with(options, ranks, |comm| {
            let rank = comm.rank();
            let fault = (rank == victim).then_some((at, fault));
            body(Box::new(Faulty::new(comm, fault))).inspect_err(|error| {
                errors.lock().unwrap_or_else(PoisonError::into_inner)[rank] = Some(error.clone());
            })
        })
    };
    let ended = match fault {
        Fault::Fail | Fault::Panic => run(threads::Waiting { deadline, ..threads::Waiting::default() }),
        Fault::Silence => {
            let (clock, over) = (ManualClock::default(), AtomicBool::new(false));
            let options = threads::Waiting { deadline, clock: Arc::new(clock.clone()) };
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        std::thread::sleep(Duration::from_millis(1));
                        clock.advance(deadline / TURNS);
                    }
                });
                let ended = run(options);
                over.store(true, Ordering::Relaxed);
                ended
            })
        }
    };
    // Every rank's own error is what is looked at.
    drop(ended);
    errors.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Each operand in turn is of another placement than the plan.
fn foreign_operands<K: TestedKernel>(kit: &mut Kit) -> Result<(), Failure> {
    let (subject, shape) = (&kit.subject, shapes(&*kit.subject.strategy)[0]);
    let batches = two_batches(subject.layout).map_err(|error| kit.case.fails(Check::ForeignOperand, error))?;
    let case = kit.case.on(&*batches[0]);
    let refused = kit.on_ranks(Check::ForeignOperand, &case, &|comm| {
        let (device, kernel) = (Cpu::<f64>::new(1), kernel_object::<K, Cpu<f64>>());
        let handler = subject.handler(device, comm)?;
        let widths = [shape.q_width(), shape.k_width(), shape.v_width(), shape.out_width()];
        let mut shards = Vec::new();
        for batch in &batches {
            let placement = handler.place_for(batch.clone(), &[(Mask::Causal, 1)])?;
            for width in widths {
                let full = laid_out(&vec![0.5; batch.tokens() * width], width, &**batch, subject.layout)?;
                shards.push(handler.by_ref().dispatch(&placement, &full)?);
            }
        }
        let (own, foreign) = shards.split_at(widths.len());
        let plan = handler.plan(own[0].placement(), &Mask::Causal)?;
        let is_refused =
            |error: Option<Error>| matches!(error, Some(Error::Placement(PlacementError::Mismatch { .. })));
        let attend = |which: Option<usize>| {
            let operand = |i: usize| if which == Some(i) { &foreign[i] } else { &own[i] };
            handler.by_ref().core_attn(kernel, &plan, &shape, [0, 1, 2].map(operand))
        };
        let mut refused: Vec<bool> = (0..3).map(|i| is_refused(attend(Some(i)).err())).collect();
        let (_, core) = attend(None)?;
        let qkv = [&own[0], &own[1], &own[2]];
        let backward = handler.by_ref().core_attn_backward(&plan, qkv, &core, &foreign[3]);
        refused.push(is_refused(backward.err()));
        handler.comm().barrier()?;
        Ok(refused)
    })?;
    for (rank, refused) in refused.iter().enumerate() {
        let names = ["queries", "keys", "values", "the output gradient"];
        if let Some((name, _)) = names.into_iter().zip(refused).find(|(_, refused)| !**refused) {
            return Err(case.fails(Check::ForeignOperand, format!("rank {rank} took {name} of another placement")));
        }
    }
    kit.passed(Check::ForeignOperand, 0.0);
    Ok(())
}
