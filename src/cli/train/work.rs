//! The training itself: the trainer on every rank, the run folder on one.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use context_parallel::comm::DynComm;
use context_parallel::error::Result;
use context_parallel::handler::UntypedHandler;
use context_parallel::model::parameters::MasterRole;
use context_parallel::model::{ParameterList, init, weights};
use context_parallel::solve::schedule::Scheduler;
use context_parallel::strategy::select::{self, Chosen};
use context_parallel::train::data::Source;
use context_parallel::train::learner::DynLearner;
use context_parallel::train::run_folder::RunFolder;
use context_parallel::train::trainer::{self, StepRecord, TrainOptions};
use indicatif::ProgressBar;

use super::super::engine::{Cluster, gather, gather_texts};
use super::super::hardware::{Hardware, RankDevice, with_device};
use super::super::memory::{self, Demand};
use super::super::output::Phase;
use super::super::sets::WeightsOfRanks;
use super::super::{interrupt, machine, output};
use super::job::{Job, TRACED};
use super::micro_batches;
use super::report::{Finished, Throughput, describe};

/// Lines of progress where there is no bar.
const NOTES: u64 = 20;

/// Trains, and writes log, chart and model into the job's folder. Steps are printed as JSON if `json`.
pub fn run(job: &Job, cluster: &Cluster, json: bool) -> Result<Finished> {
    with_device!(job.settings.hardware, job.settings.dtype, D => run_on::<D>(job, cluster, json))
}

fn run_on<D: RankDevice>(job: &Job, cluster: &Cluster, json: bool) -> Result<Finished> {
    // Everything that can be wrong with the input has been found before the folder is made.
    let list = ParameterList::new(&job.config);
    let choice = &job.settings.choice;
    let tokens = micro_batches::tokens_at_once(job);
    let load = Demand {
        rows: micro_batches::rows_per_rank(job, tokens),
        ranks: choice.degree,
        elem: size_of::<D::Elem>(),
        acc: size_of::<D::Acc>(),
        recompute: job.recompute,
    };
    let memory = memory::training(&job.config, load);
    // Each rank makes the tokens of all micro-batches before the first one runs.
    let micro_batches = if job.settings.is_dynamic() { 1 } else { job.options.accumulate };
    // A GPU says itself what it has.
    let on_host = if job.settings.hardware == Hardware::Cpu { memory } else { 0 };
    let step = machine::token_bytes(tokens.saturating_mul(micro_batches));
    let TrainOptions { batch, accumulate, seq_len, .. } = job.options;
    machine::check(
        on_host.saturating_add(step).saturating_mul(cluster.local(choice.degree).len() as u64),
        &format!("a step of --batch {batch} times --accumulate {accumulate} sequences of up to {seq_len} tokens"),
        "use a smaller --batch, --accumulate or --seq-len, more ranks on other machines, --recompute or a smaller \
         model",
    )?;
    // Nothing is refused any more, and nothing is done yet.
    if job.out.is_none() && cluster.speaks() {
        output::warn("the model will not be kept when the run ends: --out DIR keeps it");
    }
    let open = |rank| D::open(cluster.seat(rank), job.settings.threads);
    let ranks = WeightsOfRanks::new(cluster.local(choice.degree), open, |device: &D| match &job.weights {
        Some(folder) => {
            let _reading = output::reading(folder);
            let stored = ParameterList::new(&job.config.clone().with_mtp_depth(job.stored_depth));
            let weights = weights::load_master(device, folder, &stored)?;
            match stored.len() == list.len() {
                true => Ok(weights),
                false => init::completed(device, &job.config, &list, job.options.seed, &weights),
            }
        }
        None => {
            let _making = output::phase(format!("making {}", output::many(list.elements(), "fresh weight")));
            init::fresh(device, &job.config, &list, job.options.seed)
        }
    })?;
    let summary = format!(
        "{} parameters, {} with {} on {}, about {} of memory per rank",
        output::count(list.elements() as u64),
        choice.strategy,
        choice.layout,
        output::many(choice.degree, "rank"),
        output::bytes(memory),
    );
    let scheduler = Scheduler::new(job.tokens_per_rank);
    if cluster.speaks() {
        output::note(summary);
        job.goes_on.iter().for_each(output::note);
        output::note(&job.rates);
        if let Source::Text(text) = &job.source
            && let Some(sequences) = text.sequences()
        {
            output::note(describe_sequences(sequences));
        }
        if job.settings.is_dynamic() {
            output::note(micro_batches::describe_first(job, &scheduler)?);
        }
    }
    let stop = interrupt::stops_command();
    let folder = job.out.clone().map(|vacant| vacant.create(job.record.clone())).transpose()?;
    let out = folder.as_ref().map(|folder| folder.path().to_path_buf());
    let steps = job.options.schedule.steps();
    let bar = cluster.bar(steps, "training");
    let throughput = Throughput::default();
    let (log_every, records) = (job.log_every, Vec::new());
    let validate_every = (job.options.held_out > 0).then_some(job.options.validate_every);
    let waits = None;
    let progress =
        TrainProgress { folder, records, peak: 0, bar, steps, log_every, throughput, json, validate_every, waits };
    let progress = Mutex::new(progress);
    let chosen = select::chosen(choice)?;
    let scheduler = job.settings.is_dynamic().then_some(&scheduler);
    let cut_short = AtomicBool::new(false);
    let training = Training { job, memory, ranks: &ranks, scheduler, stop, cut_short: &cut_short, progress: &progress };
    let trained =
        cluster.on_ranks(chosen.strategy.degree(), &|rank| Ok(training.ranks.device(rank).clone()), &|device, comm| {
            training.rank(&chosen, &device, comm)
        });
    let TrainProgress { folder, records, peak, bar, .. } =
        progress.into_inner().unwrap_or_else(PoisonError::into_inner);
    bar.finish_and_clear();
    // A run that failed after a step leaves its log and chart too.
    let drawing = output::phase("drawing the chart");
    let drawn = folder.map_or(Ok(()), |folder| folder.finish(&records));
    drop(drawing);
    trained.and(drawn)?;
    Ok(Finished { records, peak_bytes_per_rank: peak, out, interrupted: cut_short.into_inner() })
}

/// The documents' sequences in words.
fn describe_sequences(sequences: &[Range<usize>]) -> String {
    let longest = sequences.iter().map(ExactSizeIterator::len).max().unwrap_or(0);
    let mean = sequences.iter().map(|sequence| sequence.len() as f64).sum::<f64>() / sequences.len().max(1) as f64;
    let [count, longest] = [sequences.len(), longest].map(|number| output::count(number as u64));
    format!("documents give {count} sequences of {mean:.0} tokens on average, {longest} at most")
}

/// What the first rank reports to.
struct TrainProgress {
    folder: Option<RunFolder>,
    records: Vec<StepRecord>,
    /// Most bytes that a rank had in use.
    peak: u64,
    bar: ProgressBar,
    steps: u64,
    /// Steps between printed ones.
    log_every: u64,
    throughput: Throughput,
    json: bool,
    /// Steps between evaluations, where there are any.
    validate_every: Option<u64>,
    /// Until a step is done that takes longer than others: the first, and those with an evaluation.
    waits: Option<Phase>,
}

impl TrainProgress {
    fn observe(&mut self, record: &StepRecord) -> Result<()> {
        self.waits = None;
        self.records.push(record.clone());
        if let Some(folder) = &mut self.folder {
            folder.log(record)?;
        }
        let StepRecord { step, held_out_loss, .. } = record;
        let tokens_per_second = self.throughput.with(record);
        let is_printed = step.is_multiple_of(self.log_every) || *step == self.steps || held_out_loss.is_some();
        if is_printed && !output::is_quiet() {
            self.bar.suspend(|| match self.json {
                true => output::json(record),
                false => output::line(describe(record, self.steps, tokens_per_second, output::width())),
            });
        }
        if self.json && self.bar.is_hidden() && step.is_multiple_of(self.steps.div_ceil(NOTES)) {
            output::note(describe(record, self.steps, tokens_per_second, None));
        }
        self.bar.set_message(format!("loss {:.4}", record.loss));
        self.bar.set_position(record.step);
        let next = step + 1;
        let is_evaluated = |every: u64| next == self.steps || next.is_multiple_of(every.max(1));
        if next <= self.steps && self.validate_every.is_some_and(is_evaluated) {
            let what = format!("step {next} and the evaluation of what is held out");
            self.waits = Some(output::phase_beside(&self.bar, what));
        }
        Ok(())
    }
}

struct Training<'a, D: RankDevice> {
    job: &'a Job,
    /// Bytes of one rank, about.
    memory: u64,
    ranks: &'a WeightsOfRanks<D, MasterRole, D::Acc>,
    /// Cuts steps into micro-batches, for the strategy whose documents have ranks of their own.
    scheduler: Option<&'a Scheduler>,
    stop: &'a AtomicBool,
    /// Set where the run ends before its last step.
    cut_short: &'a AtomicBool,
    progress: &'a Mutex<TrainProgress>,
}

impl<D: RankDevice> Training<'_, D> {
    /// One rank's run; the first one reports and saves.
    fn rank(&self, chosen: &Chosen, device: &D, comm: DynComm<D::Storage>) -> Result<()> {
        let Job { config, companions, source, options, settings, adamw, recompute, wire, sum, .. } = self.job;
        let rank = comm.rank();
        let master = self.ranks.take(rank);
        device.reserve(usize::try_from(self.memory).unwrap_or(usize::MAX))?;
        let handler = UntypedHandler::new(chosen.strategy.clone(), chosen.layout, device.clone(), comm)?;
        let (handler, kernel) = (handler.with_gradient_wire(*wire), chosen.kernel.object());
        let mut learner = DynLearner::new(config, master, handler, kernel)?;
        learner = learner.with_options(*adamw).with_recompute(*recompute).with_gradient_sum(*sum);
        if let Some(scheduler) = self.scheduler {
            learner = learner.with_schedule(scheduler)?;
        }
        let progress = || self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let mut trace = None;
        let observe = |record: &StepRecord| {
            match TRACED.iter().position(|&step| self.job.trace && step == record.step) {
                Some(0) => device.begin_trace()?,
                Some(_) => trace = Some(device.end_trace()?),
                None => {}
            }
            if rank == 0 { progress().observe(record) } else { Ok(()) }
        };
        if rank == 0 {
            let (ranks, tokens) = (settings.choice.degree, options.batch.saturating_mul(options.seq_len));
            let what = format!(
                "the first step on {}: planning, then micro-batches of up to {}",
                output::many(ranks, "rank"),
                output::many(tokens, "token")
            );
            let first = output::phase_beside(&progress().bar, what);
            progress().waits = Some(first);
        }
        let records = trainer::train(&mut learner, source, options, self.stop, observe)?;
        if (records.len() as u64) < options.schedule.steps() {
            self.cut_short.store(true, Ordering::Relaxed);
        }
        if let Some(trace) = trace {
            let traces = gather_texts(device, learner.handler().comm(), &trace)?;
            if rank == 0
                && let Some(folder) = &progress().folder
            {
                folder.trace(&D::trace_of_ranks(&traces)?)?;
            }
        }
        let peaks = gather(device, learner.handler().comm(), &[device.memory().peak as i64])?;
        if rank != 0 {
            return Ok(());
        }
        progress().peak = peaks.concat().into_iter().max().unwrap_or(0) as u64;
        let Some(out) = progress().folder.as_ref().map(|folder| folder.path().to_path_buf()) else { return Ok(()) };
        let weights = output::many(learner.master().list().elements(), "weight");
        let _saving = output::phase_beside(&progress().bar, format!("writing {weights} into {}", out.display()));
        weights::save(device, &out, config, learner.master(), settings.dtype)?;
        if let Some(folder) = &mut progress().folder {
            folder.saved(records.len() as u64)?;
        }
        companions.copy_to(&out)
    }
}
