//! The evaluation itself: forward passes over all ranks.

use std::sync::{Mutex, PoisonError};

use context_parallel::comm::DynComm;
use context_parallel::error::Result;
use context_parallel::handler::UntypedHandler;
use context_parallel::model::inputs::DynInputs;
use context_parallel::model::parameters::WorkingRole;
use context_parallel::model::{DynModel, ParameterList, weights};
use context_parallel::order::{DynShard, token_by_token};
use context_parallel::strategy::select::{self, Chosen};
use context_parallel::tensor::{Device, Float, Matrix};
use indicatif::ProgressBar;

use super::super::args::Settings;
use super::super::engine::Cluster;
use super::super::hardware::{Hardware, RankDevice, with_device};
use super::super::machine;
use super::super::memory::{self, Demand};
use super::super::output;
use super::super::sets::WeightsOfRanks;
use super::job::{Job, Logits};
use super::logits::LogitsFile;

/// Bytes of one rank, about.
fn memory_of_rank(job: &Job) -> Result<u64> {
    let Settings { hardware, dtype, .. } = job.settings;
    let sizes =
        with_device!(hardware, dtype, D => Ok((size_of::<<D as Device>::Elem>(), size_of::<<D as Device>::Acc>())));
    let ((elem, acc), ranks) = (sizes?, job.settings.choice.degree);
    let tokens = job.input.lengths.chunks(job.batch).map(|lengths| lengths.iter().sum()).max().unwrap_or(0);
    let load = Demand { rows: usize::div_ceil(tokens, ranks), ranks, elem, acc, recompute: false };
    Ok(memory::evaluation(&job.config, load, job.logits.as_ref().map(|_| tokens)))
}

/// Refuses what does not fit the machine.
pub fn check_memory(job: &Job, cluster: &Cluster) -> Result<()> {
    let longest = job.input.longest();
    let what = if job.logits.is_some() { "logits" } else { "a forward pass" };
    let ranks = cluster.local(job.settings.choice.degree).len() as u64;
    // A GPU says itself what it has.
    let is_host = job.settings.hardware == Hardware::Cpu;
    let memory = if is_host { memory_of_rank(job)?.saturating_mul(ranks) } else { 0 };
    machine::check(
        memory.saturating_add(machine::token_bytes(job.input.tokens.len())),
        &format!("{what} of --batch {} sequences of up to {longest} tokens ({})", job.batch, job.name),
        "use a smaller --batch, shorter sequences, more ranks on other machines or a smaller model",
    )
}

/// The mean loss in nats, 0 without labels; writes the logits if they are asked for. Nothing where this process does
/// not speak.
pub fn run(job: &Job, cluster: &Cluster) -> Result<Option<f64>> {
    with_device!(job.settings.hardware, job.settings.dtype, D => run_on::<D>(job, cluster))
}

fn run_on<D: RankDevice>(job: &Job, cluster: &Cluster) -> Result<Option<f64>> {
    let list = ParameterList::new(&job.config);
    let (ranks, threads) = (cluster.local(job.settings.choice.degree), job.settings.threads);
    let open = |rank| D::open(cluster.seat(rank), threads);
    let ranks = WeightsOfRanks::new(ranks, open, |device: &D| {
        let _reading = output::reading(&job.model);
        weights::load(device, &job.model, &list)
    })?;
    let create =
        |Logits { path, shape: [rows, seq] }: &Logits| LogitsFile::create(path, [*rows, *seq, job.config.vocab_size]);
    let file = job.logits.as_ref().filter(|_| cluster.speaks()).map(create).transpose()?;
    let file = Mutex::new(file);
    let bar = cluster.bar(job.input.sequences() as u64, "evaluating");
    let chosen = select::chosen(&job.settings.choice)?;
    let evaluation = Evaluation::<D> { job, ranks: &ranks, file: &file, bar: &bar };
    let sum = cluster.on_ranks(
        chosen.strategy.degree(),
        &|rank| Ok(evaluation.ranks.device(rank).clone()),
        &|device, comm| evaluation.rank(&chosen, &device, comm),
    )?;
    bar.finish_and_clear();
    // What is not finite is no result: it replaces nothing.
    let file = file.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(file) = file.filter(|_| sum.is_none_or(f64::is_finite)) {
        file.finish()?;
    }
    Ok(sum.map(|sum| sum / job.input.counted().max(1) as f64))
}

struct Evaluation<'a, D: RankDevice> {
    job: &'a Job,
    ranks: &'a WeightsOfRanks<D, WorkingRole, D::Elem>,
    file: &'a Mutex<Option<LogitsFile>>,
    bar: &'a ProgressBar,
}

impl<D: RankDevice> Evaluation<'_, D> {
    /// One rank's part; the sum of the losses.
    fn rank(&self, chosen: &Chosen, device: &D, comm: DynComm<D::Storage>) -> Result<f64> {
        let Evaluation { job, ranks, file, bar } = self;
        let rank = comm.rank();
        device.reserve(usize::try_from(memory_of_rank(job)?).unwrap_or(usize::MAX))?;
        let handler = UntypedHandler::new(chosen.strategy.clone(), chosen.layout, device.clone(), comm)?;
        let model = DynModel::from_parameters(device.clone(), &job.config, ranks.take(rank), chosen.kernel.object())?;
        let mut sum = 0.0;
        for batch in job.input.chunks(job.batch) {
            // What is long the first time is long for every batch: the first rank speaks for all.
            let on = || output::many(job.settings.choice.degree, "rank");
            let tokens = || output::many(batch.tokens.len(), "token");
            let planning = (rank == 0).then(|| output::phase_beside(bar, format!("planning {} on {}", tokens(), on())));
            let shape = chosen.layout.batch_of(&batch.lengths)?;
            let placement = handler.place_for(shape, &model.mask_weights())?;
            for mask in model.masks() {
                // The model finds it again.
                handler.plan(&placement, mask)?;
            }
            drop(planning);
            let _computing =
                (rank == 0).then(|| output::phase_beside(bar, format!("evaluating {} on {}", tokens(), on())));
            let inputs = DynInputs::placed(handler.by_ref(), &placement, &batch.tokens, &batch.labels)?;
            let activations = model.forward(handler.by_ref(), &inputs.tokens)?;
            let loss = model.loss_sum(&activations, &inputs.labels, &inputs.weights)?;
            sum += handler.by_ref().sum(&[loss])?[0];
            if job.logits.is_some() {
                let logits = DynShard::new(model.logits(&activations), placement.clone())?;
                let whole = handler.by_ref().combine(&logits)?;
                if rank == 0 {
                    let values = Matrix::from_vec(device.read(&whole)?, whole.rows(), whole.cols());
                    write(file, token_by_token(&values, &**placement.batch(), chosen.layout))?;
                }
            }
            if rank == 0 {
                bar.inc(batch.sequences() as u64);
            }
        }
        Ok(sum)
    }
}

fn write<T: Float>(file: &Mutex<Option<LogitsFile>>, logits: Vec<T>) -> Result<()> {
    match &mut *file.lock().unwrap_or_else(PoisonError::into_inner) {
        Some(file) => file.append(logits.into_iter().map(|value| value.to_f64() as f32)),
        None => Ok(()),
    }
}
