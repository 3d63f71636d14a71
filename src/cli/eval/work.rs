//! The evaluation itself: forward passes over all ranks.

use std::sync::{Arc, Mutex, PoisonError};

use context_parallel::error::Result;
use context_parallel::handler::CpHandler;
use context_parallel::layout::Layout;
use context_parallel::model::inputs::Inputs;
use context_parallel::model::parameters::WorkingRole;
use context_parallel::model::{GptModel, ParameterList, weights};
use context_parallel::order::Shard;
use context_parallel::strategy::support::{self, Visitor};
use context_parallel::strategy::{Kernel, Supports};
use context_parallel::tensor::{Cpu, Float};
use context_parallel::train::learner::global_sum;

use super::super::engine::{Cluster, with_storage_type};
use super::super::sets::Ranks;
use super::Job;
use super::logits::LogitsFile;

/// The mean loss in nats, 0 without labels; writes the logits if they are asked for. Nothing where this process does
/// not speak.
pub fn run(job: &Job, cluster: &Cluster) -> Result<Option<f64>> {
    with_storage_type!(job.settings.dtype, T => run_as::<T>(job, cluster))
}

fn run_as<T: Float>(job: &Job, cluster: &Cluster) -> Result<Option<f64>> {
    let list = ParameterList::new(&job.config);
    let (ranks, threads) = (cluster.local(job.settings.choice.degree), job.settings.threads);
    let ranks = Ranks::new(ranks, threads, |device: &Cpu<T>| weights::load(device, &job.model, &list))?;
    let shape = [job.input.sequences(), job.input.longest(), job.config.vocab_size];
    let file =
        job.logits.as_deref().filter(|_| cluster.speaks()).map(|path| LogitsFile::create(path, shape)).transpose()?;
    let file = Mutex::new(file);
    let sum = support::select(&job.settings.choice, Evaluation::<T> { cluster, job, ranks: &ranks, file: &file })?;
    if let Some(file) = file.into_inner().unwrap_or_else(PoisonError::into_inner) {
        file.finish()?;
    }
    Ok(sum.map(|sum| sum / job.input.counted().max(1) as f64))
}

struct Evaluation<'a, T: Float> {
    cluster: &'a Cluster,
    job: &'a Job,
    ranks: &'a Ranks<T, WorkingRole, T>,
    file: &'a Mutex<Option<LogitsFile>>,
}

impl<T: Float> Visitor for Evaluation<'_, T> {
    /// The sum of the losses, where this process speaks.
    type Output = Option<f64>;

    fn visit<H, L, K>(self, strategy: H) -> Result<Option<f64>>
    where
        H: Supports<L, K>,
        L: Layout,
        K: Kernel,
    {
        let Evaluation { cluster, job, ranks, file } = self;
        let bar = cluster.bar(job.input.sequences() as u64, "evaluating");
        let sum = cluster.on_ranks(strategy.degree(), &|comm| {
            let rank = comm.rank();
            let device = ranks.device(rank);
            let handler = CpHandler::<H, L, _>::new(strategy, comm)?;
            let model = GptModel::<H, L, K, Cpu<T>>::from_parameters(device.clone(), &job.config, ranks.take(rank))?;
            let mut sum = 0.0;
            for batch in job.input.chunks(job.batch) {
                let shape = Arc::new(L::batch_of(&batch.lengths)?);
                let placement = handler.place_for(shape, &model.mask_weights())?;
                let Inputs { tokens, labels, weights } =
                    Inputs::placed(&handler, device, &placement, &batch.tokens, &batch.labels)?;
                let activations = model.forward(&handler, &tokens)?;
                sum += global_sum(device, handler.comm(), model.loss_sum(&activations, &labels, &weights)?)?;
                if job.logits.is_some() {
                    let logits = Shard::new(model.logits(&activations), tokens.placement().clone())?;
                    let whole = handler.combine(device, &logits)?;
                    if rank == 0 {
                        write(file, whole.to_batch_first())?;
                    }
                }
                if rank == 0 {
                    bar.inc(batch.sequences() as u64);
                }
            }
            Ok(sum)
        })?;
        bar.finish_and_clear();
        Ok(sum)
    }
}

fn write<T: Float>(file: &Mutex<Option<LogitsFile>>, logits: Vec<T>) -> Result<()> {
    match &mut *file.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(file) => file.append(logits.into_iter().map(|value| value.to_f64() as f32)),
        None => Ok(()),
    }
}
