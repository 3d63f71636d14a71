//! One training step of any combination at fresh weights: what `demo` and `verify` compare.

use std::time::Instant;

use context_parallel::comm::DynComm;
use context_parallel::comm::decorate::traffic::Counted;
use context_parallel::error::Result;
use context_parallel::handler::UntypedHandler;
use context_parallel::model::inputs::DynInputs;
use context_parallel::model::{Config, ParameterList, init};
use context_parallel::oracle::{norm, relative_error};
use context_parallel::strategy::select::{self, Choice, Chosen};
use context_parallel::tensor::{DType, Float};
use context_parallel::train::data::TokenBatch;
use context_parallel::train::learner::DynLearner;

use super::engine::{Cluster, gather};
use super::hardware::{Hardware, RankDevice, with_device};

/// What to compute: a model's fresh weights, and a batch.
#[derive(Clone, Copy, Debug)]
pub struct StepInputs<'a> {
    pub config: &'a Config,
    pub batch: &'a TokenBatch,
    /// Seed of the weights.
    pub seed: u64,
    /// Threads per rank.
    pub threads: usize,
    pub hardware: Hardware,
}

/// What one step gives: the mean loss, each parameter's gradient, and what it took.
#[derive(Clone, Debug, Default)]
pub struct StepOutcome {
    pub loss: f64,
    /// By parameter.
    pub gradients: Vec<Vec<f64>>,
    /// Bytes that each rank handed to the communicator for others, the sum of the gradients over ranks included.
    pub bytes: Vec<u64>,
    /// Attended cells of each rank, in the first layer.
    pub areas: Vec<u64>,
    /// Of the slowest rank.
    pub seconds: f64,
}

impl StepOutcome {
    /// Relative difference of the loss.
    pub fn loss_difference(&self, reference: &StepOutcome) -> f64 {
        relative_error(&[self.loss], &[reference.loss], 0.0)
    }

    /// Norm of the difference of the whole gradient over the norm of the reference's.
    pub fn gradient_difference(&self, reference: &StepOutcome) -> f64 {
        relative_error(&self.gradients.concat(), &reference.gradients.concat(), 0.0)
    }

    /// Relative difference of the parameter whose gradient differs most. Where a gradient is below
    /// 1e-6 of the whole one, 1e-3 of that takes its place.
    pub fn worst_gradient_difference(&self, reference: &StepOutcome) -> f64 {
        let whole = norm(&reference.gradients.concat());
        let pairs = self.gradients.iter().zip(&reference.gradients);
        pairs.map(|(found, reference)| relative_error(found, reference, 1e-3 * whole)).fold(0.0, f64::max)
    }

    /// Mean over the largest number of attended cells of a rank; 1 where nothing is attended.
    pub fn balance(&self) -> f64 {
        let largest = self.areas.iter().copied().max().unwrap_or(0);
        match largest {
            0 => 1.0,
            largest => self.areas.iter().sum::<u64>() as f64 / self.areas.len() as f64 / largest as f64,
        }
    }

    /// Mean over ranks.
    pub fn bytes_per_rank(&self) -> u64 {
        (self.bytes.iter().sum::<u64>() as f64 / self.bytes.len().max(1) as f64).round() as u64
    }
}

/// One step of `choice`, stored as `dtype`; what it gives in the process that speaks.
pub fn step(cluster: &Cluster, choice: &Choice, dtype: DType, task: StepInputs) -> Result<Option<StepOutcome>> {
    let chosen = select::chosen(choice)?;
    with_device!(task.hardware, dtype, D => {
        let open = |rank| D::open(cluster.seat(rank), task.threads);
        cluster.on_ranks(chosen.strategy.degree(), &open, &|device, comm| one_step(&chosen, device, comm, &task))
    })
}

fn one_step<D: RankDevice>(
    chosen: &Chosen,
    device: D,
    comm: DynComm<D::Storage>,
    task: &StepInputs,
) -> Result<StepOutcome> {
    let StepInputs { config, batch, seed, .. } = *task;
    let counted = Counted::new(comm);
    let traffic = counted.traffic();
    let handler = UntypedHandler::new(chosen.strategy.clone(), chosen.layout, device.clone(), Box::new(counted))?;
    let master = init::fresh(&device, config, &ParameterList::new(config), seed)?;
    let mut learner = DynLearner::new(config, master, handler, chosen.kernel.object())?;
    let (handler, masks) = (learner.handler(), learner.model().mask_weights());
    let placement = handler.place_for(chosen.layout.batch_of(&batch.lengths)?, &masks)?;
    let inputs = DynInputs::placed(handler.by_ref(), &placement, &batch.tokens, &batch.labels)?;
    // Makes plans and memory; with a scale of 0 it adds nothing to the gradient.
    learner.accumulate_inputs(&inputs, &[0.0])?;
    let plan = learner.handler().plan(&placement, &learner.model().masks()[0])?;
    learner.handler().comm().barrier()?;
    traffic.reset();
    let started = Instant::now();
    let counted = batch.counted().max(1) as f64;
    let sum = learner.accumulate_inputs(&inputs, &[1.0 / counted])?[0];
    learner.reduce_gradients()?;
    let (seconds, bytes) = (started.elapsed().as_secs_f64(), traffic.bytes());
    let loss = learner.handler().by_ref().sum(&[sum])?[0] / counted;
    let (list, gradients) = (learner.gradients().list().clone(), learner.gradients());
    let gradients = list.ids().map(|id| Ok(gradients.to_host(&device, id)?.iter().map(|x| x.to_f64()).collect()));
    let gradients = gradients.collect::<Result<_>>()?;
    let mine = [bytes as i64, plan.forward().area() as i64, (1e9 * seconds) as i64];
    let all = gather(&device, learner.handler().comm(), &mine)?;
    let column = |i: usize| all.iter().map(move |numbers| numbers[i] as u64);
    // Every rank has the same loss and, after the sum over ranks, the same gradient.
    Ok(StepOutcome {
        loss,
        gradients,
        bytes: column(0).collect(),
        areas: column(1).collect(),
        seconds: column(2).max().unwrap_or(0) as f64 / 1e9,
    })
}
