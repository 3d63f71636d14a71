//! `demo`: trains a small GPT on the recall task on 2 ranks, then compares every supported combination with `Single`.

mod findings;

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use context_parallel::comm::DynComm;
use context_parallel::degree::Runtime;
use context_parallel::error::Result;
use context_parallel::handler::CpHandler;
use context_parallel::kernel::{Flash, Kernel};
use context_parallel::layout::{Layout, Thd};
use context_parallel::model::inputs::Inputs;
use context_parallel::model::{Config, ParameterList, Sizes, init};
use context_parallel::strategy::select::{self, Choice};
use context_parallel::strategy::{CpStrategy, Ring, Single};
use context_parallel::tensor::{DType, Float};
use context_parallel::train::data::{Recall, Source, TokenBatch};
use context_parallel::train::learner::{AdamwOptions, GptLearner, global_sum};
use context_parallel::train::learning_rate::LearningRate;
use context_parallel::train::trainer::{self, StepRecord, TrainOptions};
#[cfg(test)]
pub use findings::NEXT;
use findings::{Comparison, Findings, print};
use indicatif::ProgressBar;

use super::engine::Cluster;
use super::hardware::{Hardware, RankDevice, with_device};
use super::step::{StepInputs, step};
use super::{args, output};

const RANKS: usize = 2;
const VOCAB: usize = 32;
const SEQ: usize = 64;
const BATCH: usize = 32;
const STEPS: u64 = 200;
const LR: f64 = 3e-3;
/// Held-out sequences that accuracy is measured on.
const HELD_OUT: usize = 64;
/// Sequences of the step that strategies are compared in.
const COMPARED: usize = 8;
/// Steps between lines of progress where there is no bar.
const NOTE_EVERY: u64 = 20;
/// Train a small GPT across 2 ranks on a task that only works across ranks, then compare every combination
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Seed of the weights and the data
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    device: args::DeviceArguments,
    /// Print one JSON object
    #[arg(long, help_heading = args::OUTPUT)]
    json: bool,
}

pub fn run(arguments: Arguments, cluster: &Cluster) -> Result<ExitCode> {
    let report = compute(&arguments, cluster)?;
    if arguments.json {
        output::json(&report);
    } else {
        print(&report);
    }
    let faults = report.faults();
    faults.iter().for_each(output::warn);
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Trains, then one step of every row of the support table.
fn compute(arguments: &Arguments, cluster: &Cluster) -> Result<Findings> {
    let hardware = arguments.device.hardware(DType::F32)?;
    let begin = Instant::now();
    let config = model()?;
    let accuracy = with_device!(hardware, DType::F32, D => train::<D>(&config, arguments.seed, cluster))?;
    let seconds = begin.elapsed().as_secs_f64();
    let rows = compare(&config, arguments.seed, cluster, hardware)?;
    Ok(Findings { accuracy, seconds, rows })
}

fn model() -> Result<Config> {
    Config::llama(Sizes {
        vocab_size: VOCAB,
        hidden_size: 64,
        intermediate_size: 128,
        layers: 2,
        heads: 2,
        kv_heads: 2,
    })
}

/// Accuracy on held-out sequences after the training.
fn train<D: RankDevice>(config: &Config, seed: u64, cluster: &Cluster) -> Result<f64> {
    let source = Source::Recall(Recall::new(VOCAB, SEQ)?);
    let schedule = LearningRate::new(LR, 0.1 * LR, LearningRate::default_warmup(STEPS), STEPS)?;
    let (batch, accumulate) = (BATCH, 1);
    let (seq_len, first_step, held_out, validate_every) = (SEQ, 0, 0, STEPS);
    let options = TrainOptions { schedule, seed, first_step, batch, accumulate, seq_len, held_out, validate_every };
    let threads = args::threads(None, RANKS)?;
    let stop = AtomicBool::new(false);
    let bar = output::bar(STEPS, "training");
    let found = cluster.on_ranks(RANKS, &|rank| D::open(cluster.seat(rank), threads), &|device, comm| {
        let rank = comm.rank();
        let handler = CpHandler::<Ring, Thd, _, _>::new(Ring::new(Runtime(RANKS)), device.clone(), comm)?;
        let master = init::fresh(&device, config, &ParameterList::new(config), seed)?;
        let adamw = AdamwOptions { weight_decay: 0.0, ..AdamwOptions::default() };
        let mut learner = GptLearner::<Ring, Thd, Flash, _, _>::new(config, master, handler)?.with_options(adamw);
        trainer::train(&mut learner, &source, &options, &stop, |record| {
            if rank == 0 {
                progress(&bar, record);
            }
            Ok(())
        })?;
        accuracy(&learner, &device, &source.held_out(seed, SEQ, HELD_OUT))
    })?;
    bar.finish_and_clear();
    Ok(found.unwrap_or(0.0))
}

fn progress(bar: &ProgressBar, record: &StepRecord) {
    bar.set_message(format!("loss {:.4}", record.loss));
    bar.set_position(record.step);
    if bar.is_hidden() && record.step.is_multiple_of(NOTE_EVERY) {
        output::note(format!("step {}/{STEPS}  loss {:.4}", record.step, record.loss));
    }
}

/// The share of labels, over all ranks, that have the largest logit.
fn accuracy<D: RankDevice>(
    learner: &GptLearner<Ring, Thd, Flash, D, DynComm<D::Storage>>,
    device: &D,
    batch: &TokenBatch,
) -> Result<f64> {
    let (model, handler) = (learner.model(), learner.handler());
    let shape = Arc::new(Thd::batch_of(&batch.lengths)?);
    let inputs = Inputs::new(handler, shape, &batch.tokens, &batch.labels)?;
    let logits = model.logits(&model.forward(handler, &inputs.tokens)?);
    let cols = logits.cols();
    let (logits, labels) = (device.read(&logits)?, device.read(inputs.labels.matrix())?);
    let best = |row: &[D::Elem]| {
        let values = row.iter().map(|logit| logit.to_f64()).enumerate();
        values.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(id, _)| id as i64)
    };
    let right = logits.chunks_exact(cols).zip(&labels).filter(|&(row, &label)| best(row) == Some(label)).count();
    Ok(global_sum(device, handler.comm(), right as f64)? / batch.counted().max(1) as f64)
}

/// One step of every row of the support table at fresh weights, next to `Single`.
fn compare(config: &Config, seed: u64, cluster: &Cluster, hardware: Hardware) -> Result<Vec<Comparison>> {
    let batch = Source::Recall(Recall::new(VOCAB, SEQ)?).batch(seed, 0, 0..COMPARED, SEQ);
    let step_of = |strategy: &str, layout: &str, kernel: &str| {
        let degree = if strategy == Single::NAME { 1 } else { RANKS };
        let [strategy, layout, kernel] = [strategy, layout, kernel].map(str::to_string);
        let order = select::orders(&strategy)[0].to_string();
        let choice = Choice { strategy, order, layout, kernel, degree, ..Choice::default() };
        let task = StepInputs { config, batch: &batch, seed, threads: args::threads(None, degree)?, hardware };
        let step = step(cluster, &choice, DType::F32, task)?.unwrap_or_default();
        Ok::<_, context_parallel::error::Error>((choice, step))
    };
    let (_, reference) = step_of(Single::NAME, Thd::NAME, Flash::NAME)?;
    let bar = output::bar(select::combinations().count() as u64, "comparing");
    let mut rows = Vec::new();
    for (strategy, layout, kernel) in select::combinations() {
        let _comparing = output::phase_beside(&bar, format!("comparing {strategy} {layout} {kernel} with single"));
        let (choice, step) = step_of(strategy, layout, kernel)?;
        rows.push(Comparison {
            loss_diff: step.loss_difference(&reference),
            grad_diff: step.gradient_difference(&reference),
            bytes_per_rank: step.bytes_per_rank(),
            balance: step.balance(),
            ms: 1e3 * step.seconds,
            strategy: choice.strategy,
            layout: choice.layout,
            kernel: choice.kernel,
            cp: choice.degree,
        });
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(rows)
}
