//! One combination's attention against the float64 oracle, and its bytes against the plan.

use std::sync::Arc;

use context_parallel::attention::RankPlan;
use context_parallel::comm::decorate::traffic::Counted;
use context_parallel::comm::{Collectives, Communicator, DynComm};
use context_parallel::conformance::trial::{Attended, Prediction, Trial, owners, tokens_by_row};
use context_parallel::error::{Error, Result};
use context_parallel::handler::UntypedHandler;
use context_parallel::layout::{Batch, LayoutKind};
use context_parallel::mask::Mask;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::order::DynPlacement;
use context_parallel::strategy::select::{self, Choice, Chosen};
use context_parallel::strategy::{CpStrategy, Single};
use context_parallel::tensor::{DType, Device, Element, Float};

use super::super::engine::{Cluster, gather};
use super::super::hardware::{Hardware, RankDevice, with_device};

/// Relative errors of out, dq, dk and dv, the worst over masks, and what plans predict.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub errors: [f64; 4],
    /// Bytes that all ranks send, over all masks.
    pub sent: Prediction,
    /// Most bytes that a rank holds in a pass beyond what is there when it starts.
    pub peak: Prediction,
    /// Ranks and passes for which a prediction is wrong.
    pub mispredicted: usize,
}

/// Both joined.
fn with(one: Prediction, other: Prediction, join: impl Fn(u64, u64) -> u64) -> Prediction {
    let (predicted, counted) = (join(one.predicted, other.predicted), join(one.counted, other.counted));
    Prediction { predicted, counted }
}

impl Outcome {
    fn worst(self, other: Outcome) -> Outcome {
        Outcome {
            errors: std::array::from_fn(|i| self.errors[i].max(other.errors[i])),
            sent: with(self.sent, other.sent, |a, b| a + b),
            peak: with(self.peak, other.peak, u64::max),
            mispredicted: self.mispredicted + other.mispredicted,
        }
    }
}

/// Query and key/value heads that every strategy can share out over `cp` ranks.
pub fn heads(cp: usize) -> (usize, usize) {
    (if cp == 1 { 4 } else { 2 * cp }, 2)
}

/// What a combination gives, and for 16-bit types what `Single` gives.
type Checked = (Outcome, Option<Outcome>);

/// Runs `choice`, and for 16-bit types `Single` with the same layout and kernel, on the same numbers. Nothing where
/// this process does not speak.
pub fn check(
    cluster: &Cluster,
    choice: &Choice,
    (hardware, dtype): (Hardware, DType),
    threads: usize,
) -> Result<Option<Checked>> {
    with_device!(hardware, dtype, D => check_on::<D>(cluster, choice, threads))
}

fn check_on<D: RankDevice>(cluster: &Cluster, choice: &Choice, threads: usize) -> Result<Option<Checked>> {
    let cp = choice.degree;
    let chosen = select::chosen(choice)?;
    let (layout, kernel) = (choice.layout.clone(), choice.kernel.clone());
    let single = Choice { strategy: Single::NAME.to_string(), degree: 1, layout, kernel, ..Choice::default() };
    let single = select::chosen(&single)?;
    let measured = matches!(D::Elem::DTYPE, DType::Bf16 | DType::F16);
    let (q_heads, kv_heads) = heads(cp);
    let shape = AttentionShape { q_heads, kv_heads, qk_dim: 16, v_dim: 24, scale: 0.25 };
    let batch = batch(chosen.layout, cp)?;
    let placement = placement(&chosen, &batch)?;
    let (mut found, mut alone) = (Outcome::default(), Outcome::default());
    let masks = [Mask::Causal, Mask::Window { left: Some(5), right: Some(2) }, Mask::Full];
    for (case, mask) in masks.iter().enumerate() {
        let trial = Trial::<D::Elem>::new(&*batch, &owners(&placement), shape, mask, case as u64);
        let run = |chosen: &Chosen| {
            let open = |rank| D::open(cluster.seat(rank), threads);
            let body = |device, comm| attend::<D>(chosen, device, comm, (&trial, &batch));
            let parts = cluster.on_ranks(chosen.strategy.degree(), &open, &body)?;
            Ok::<_, Error>(parts.map(|parts| judge(&trial, &parts)))
        };
        found = run(&chosen)?.map_or(found, |outcome| found.worst(outcome));
        if measured {
            alone = run(&single)?.map_or(alone, |outcome| alone.worst(outcome));
        }
    }
    Ok(cluster.speaks().then_some((found, measured.then_some(alone))))
}

/// Edges of what divides by the ranks, or sequences of one length where the layout is dense.
fn batch(layout: LayoutKind, cp: usize) -> Result<Arc<dyn Batch>> {
    layout.batch_of(&[0, 1, 2 * cp - 1, 2 * cp + 1, 37]).or_else(|_| layout.batch_of(&[37; 2]))
}

/// How a batch is dealt out.
fn placement(chosen: &Chosen, batch: &Arc<dyn Batch>) -> Result<Arc<DynPlacement>> {
    let deal = chosen.strategy.deal(&**batch, &[(Mask::Causal, 1)])?;
    DynPlacement::new(batch.clone(), chosen.layout, chosen.strategy.grid(), 0, deal)
}

fn judge<T: Float>(trial: &Trial<T>, parts: &[Attended<T>]) -> Outcome {
    let mut outcome = Outcome { errors: trial.errors(&trial.together(parts)), ..Outcome::default() };
    for part in parts {
        outcome.sent = part.sent.into_iter().fold(outcome.sent, |sum, sent| with(sum, sent, |a, b| a + b));
        outcome.peak = part.held.into_iter().fold(outcome.peak, |most, held| with(most, held, u64::max));
        let wrong = |(_, prediction): &(_, Prediction)| prediction.predicted != prediction.counted;
        outcome.mispredicted += part.predictions().iter().filter(|prediction| wrong(prediction)).count();
    }
    outcome
}

/// One rank of one combination's run of a trial; what all ranks have, on every rank.
fn attend<D: RankDevice>(
    chosen: &Chosen,
    device: D,
    comm: DynComm<D::Storage>,
    (trial, batch): (&Trial<D::Elem>, &Arc<dyn Batch>),
) -> Result<Vec<Attended<D::Elem>>> {
    let counted = Counted::new(comm);
    let traffic = counted.traffic();
    let handler = UntypedHandler::new(chosen.strategy.clone(), chosen.layout, device.clone(), Box::new(counted))?;
    let placement = placement(chosen, batch)?;
    if handler.rank() == 0 {
        RankPlan::check(&*chosen.strategy, &placement, trial.mask())?;
    }
    let peak = |plan: &RankPlan| plan.peak_bytes_of(chosen.kernel, D::Elem::DTYPE, trial.shape());
    let part = trial.attend(&handler, &traffic, chosen.kernel.object(), &placement, peak)?;
    all(&device, handler.comm(), part, &placement)
}

/// The parts of all ranks.
fn all<D: Device>(
    device: &D,
    comm: &dyn Communicator<D::Storage>,
    part: Attended<D::Elem>,
    placement: &DynPlacement,
) -> Result<Vec<Attended<D::Elem>>> {
    let ranks = 0..placement.ranks();
    let predictions = part.predictions().map(|(_, of)| [of.predicted as i64, of.counted as i64]);
    let predictions = gather(device, comm, predictions.as_flattened())?;
    let mut parts: Vec<_> = ranks
        .clone()
        .map(|rank| {
            let at = |i: usize| Prediction {
                predicted: predictions[rank][2 * i] as u64,
                counted: predictions[rank][2 * i + 1] as u64,
            };
            let (sent, held) = ([at(0), at(1)], [at(2), at(3)]);
            Attended { tensors: Default::default(), tokens: tokens_by_row(placement, rank), sent, held }
        })
        .collect();
    for (index, tensor) in part.tensors.into_iter().enumerate() {
        let width = tensor.len() / part.tokens.len().max(1);
        // A rank without rows does not know how wide they are.
        let widths = gather(device, comm, &[width as i64])?;
        let width = widths.iter().map(|width| width[0] as usize).max().unwrap_or(0);
        let counts: Vec<usize> = ranks.clone().map(|rank| placement.rows_of(rank) * width).collect();
        for (part, values) in parts.iter_mut().zip(comm.all_gather_v(device.upload(&tensor), &counts)?) {
            part.tensors[index] = device.read(&values)?;
        }
    }
    Ok(parts)
}
