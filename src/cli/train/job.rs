//! What a training is, once everything is checked that can be checked without work.

use std::path::{Path, PathBuf};

use context_parallel::comm::Sum;
use context_parallel::error::Result;
use context_parallel::model::Config;
use context_parallel::plan::Wire;
use context_parallel::train::companions::Companions;
use context_parallel::train::data::{Recall, Source, Text, check_validation};
use context_parallel::train::learner::AdamwOptions;
use context_parallel::train::learning_rate::{Decay, LearningRate};
use context_parallel::train::run_folder::Vacant;
use context_parallel::train::run_record::RunRecord;
use context_parallel::train::trainer::TrainOptions;
use serde_json::json;

use super::arguments::{Arguments, DTYPES, SCHEDULES};
use super::record;
use crate::cli::args::{self, Settings};
use crate::cli::engine::Cluster;
use crate::cli::hardware::Hardware;
use crate::cli::model::check_weights;
use crate::cli::recall::{RECALL, RECALL_VOCAB};
use crate::cli::{inputs, machine, output};

/// Most sequences of a step.
const MOST_SEQUENCES: usize = 1 << 20;
/// Tokens of a held-out evaluation, about.
const HELD_OUT_TOKENS: usize = 32_768;

/// Everything checked, nothing written.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) config: Config,
    /// The folder with the weights; fresh ones without it.
    pub(super) weights: Option<PathBuf>,
    /// Depths of multi-token prediction that the folder has; the weights of the others are fresh.
    pub(super) stored_depth: usize,
    /// What is copied from the folder beside the trained weights.
    pub(super) companions: Companions,
    pub(super) source: Source,
    pub(super) settings: Settings,
    pub(super) options: TrainOptions,
    /// Limit for the micro-batches of dynamic.
    pub(super) tokens_per_rank: Option<usize>,
    pub(super) adamw: AdamwOptions,
    pub(super) recompute: bool,
    /// How gradients of keys and values travel.
    pub(super) wire: Wire,
    /// In which order gradients are summed over ranks.
    pub(super) sum: Sum,
    /// Where the run is written, by the process that speaks.
    pub(super) out: Option<Vacant>,
    /// What the folder says of the run.
    pub(super) record: RunRecord,
    /// What a model is trained further with, in words.
    pub(super) goes_on: Option<String>,
    /// The highest and the last learning rate, and the warm-up, in words.
    pub(super) rates: String,
    /// Steps between printed ones.
    pub(super) log_every: u64,
    /// Whether steps are measured.
    pub(super) trace: bool,
}

/// The step after which a trace begins, and the last one in it.
pub(super) const TRACED: [u64; 2] = [1, 3];

fn check_trace(arguments: &Arguments, hardware: Hardware) -> Result<()> {
    let refused = |message: String| arguments.trace.then(|| args::numbers(message));
    let reason = if hardware == Hardware::Cpu {
        refused("--trace measures GPUs: leave it out, or use --device cuda".into())
    } else if arguments.out.is_none() {
        refused("--trace writes trace.json into --out, which is missing: pass --out DIR".into())
    } else if arguments.steps < TRACED[1] {
        let [before, last] = TRACED;
        refused(format!(
            "--trace measures steps {} to {last}, but --steps is {}: use at least {last}",
            before + 1,
            arguments.steps
        ))
    } else {
        None
    };
    reason.map_or(Ok(()), Err)
}

/// Checks everything that can be checked without work.
pub(super) fn prepare(arguments: &Arguments, cluster: &Cluster) -> Result<Job> {
    if arguments.resume.is_some() {
        let instead = format!(
            "to train a saved model further, use --model DIR and a new --out. That begins with a fresh optimizer, a \
             warm-up and --lr {:e}; the data goes on where the run in DIR stopped if --seed and the options of the \
             data are the same",
            LearningRate::FINE_TUNING_LR
        );
        return Err(args::not_available("--resume", instead));
    }
    check_dtype(&arguments.choices.combination.dtype)?;
    let mut settings = arguments.choices.settings(cluster)?;
    let wire = settings.gradient_wire(arguments.bf16_wire)?;
    let transport = &arguments.choices.engine.transport;
    if arguments.native_reductions && transport != "nccl" {
        return Err(args::numbers(format!(
            "--native-reductions is for --transport nccl, which sums by itself, not for {transport}: leave it out"
        )));
    }
    let seq_len = args::positive("--seq-len", arguments.seq_len)?;
    settings.check_seq_len(seq_len)?;
    let separator = settings.separator(arguments.document_separator.as_deref())?;
    let batch = args::positive("--batch", arguments.batch)?;
    let accumulate = args::positive("--accumulate", arguments.accumulate)?;
    if batch.checked_mul(accumulate).is_none_or(|sequences| sequences > MOST_SEQUENCES) {
        return Err(args::numbers(format!(
            "--batch {batch} times --accumulate {accumulate} is more than the {MOST_SEQUENCES} sequences that a step \
             can have: use fewer"
        )));
    }
    let steps = arguments.steps;
    let default_lr = if arguments.model.is_some() { LearningRate::FINE_TUNING_LR } else { LearningRate::FRESH_LR };
    let lr = arguments.lr.unwrap_or(default_lr);
    let min_lr = arguments.min_lr.unwrap_or(lr / 10.0);
    let warmup = arguments.warmup.unwrap_or(LearningRate::default_warmup(steps));
    let decay = decay(arguments)?;
    let schedule = LearningRate::new(lr, min_lr, warmup, steps)?.with_decay(decay)?;
    let rates = describe_rates(arguments, [lr, min_lr], warmup, decay);
    let [beta1, beta2] = [("--beta1", arguments.beta1), ("--beta2", arguments.beta2)];
    let (beta1, beta2) = (share(beta1)?, share(beta2)?);
    if !(arguments.epsilon.is_finite() && arguments.epsilon > 0.0) {
        return Err(args::numbers(format!("--epsilon is {}: use a number above 0, such as 1e-8", arguments.epsilon)));
    }
    let weight_decay = args::not_negative("--weight-decay", arguments.weight_decay)?;
    let clip = args::not_negative("--clip", arguments.clip)?;
    check_validation(arguments.validation)?;
    let validate_every = match arguments.validate_every {
        Some(0) => return Err(args::numbers("--validate-every is 0: use at least 1".to_string())),
        Some(_) if arguments.validation == 0.0 => {
            return Err(args::numbers(
                "--validate-every is for a held-out share of the text: leave it out, or use --validation 0.1"
                    .to_string(),
            ));
        }
        every => every.unwrap_or(100),
    };
    if arguments.log_every == 0 {
        return Err(args::numbers("--log-every is 0: use at least 1".to_string()));
    }
    check_trace(arguments, settings.hardware)?;
    let out = arguments.out.as_deref().filter(|_| cluster.speaks()).map(inputs::output_folder).transpose()?;
    let weights = arguments.model.clone();
    let is_recall = arguments.data.as_deref() == Some(Path::new(RECALL));
    arguments.bytes.is_for_text(!is_recall)?;
    let config = match &weights {
        Some(folder) => arguments.reading.config(folder, cluster)?,
        None => Config::preset(config_name(arguments).unwrap_or_default())?,
    };
    settings.fit_heads(config.heads)?;
    let stored = config.clone();
    let config = with_mtp_depth(config, arguments.mtp_depth)?;
    check_mtp_depth(&config, arguments.mtp_depth, seq_len)?;
    settings.tokens_per_rank(arguments.tokens_per_rank, &[])?;
    // Of a byte: itself, and where it may be a document, the range of it.
    let memory = if separator.is_some() { 1 + machine::TOKEN_BYTES / 2 } else { 1 };
    let text = |path: &Path| inputs::text(path, arguments.bytes, weights.as_deref(), &config, memory);
    let reading = arguments.data.as_deref().filter(|_| !is_recall).map(output::reading);
    let source = match (&arguments.data, separator) {
        // Last, so that it does not hide what else is wrong.
        (None, _) => return Err(args::numbers("nothing to train on: pass --data FILE or --data recall".into())),
        (Some(_), Some(_)) if is_recall => return Err(args::no_documents()),
        (Some(_), None) if is_recall => Source::Recall(Recall::new(RECALL_VOCAB.min(config.vocab_size), seq_len)?),
        (Some(path), None) => Source::Text(Text::new(text(path)?, path, seq_len, arguments.validation)?),
        (Some(path), Some(separator)) => {
            Source::Text(Text::documents(text(path)?, path, separator, seq_len, arguments.validation)?)
        }
    };
    drop(reading);
    let lengths = source.possible_lengths(seq_len);
    let longest = lengths.iter().copied().max().unwrap_or(0);
    settings.check_seq_len(longest)?;
    check_mtp_depth(&config, arguments.mtp_depth, longest)?;
    let tokens_per_rank = settings.tokens_per_rank(arguments.tokens_per_rank, &lengths)?;
    let held_out = if arguments.validation > 0.0 { HELD_OUT_TOKENS.div_ceil(seq_len) } else { 0 };
    let mut data = record::of_data(arguments, &source, out.is_some() || weights.is_some());
    let goes_on = weights.as_deref().map(|folder| record::go_on(folder, &mut data));
    let (seed, first_step) = (arguments.seed, data.first_step);
    let options = TrainOptions { schedule, seed, first_step, batch, accumulate, seq_len, held_out, validate_every };
    let adamw = AdamwOptions { beta1, beta2, eps: arguments.epsilon, weight_decay, clip };
    let (recompute, log_every) = (arguments.recompute, arguments.log_every);
    if let Some(folder) = &weights {
        check_weights(folder, &stored, cluster)?;
    }
    let companions = match (&weights, &arguments.out) {
        (Some(folder), Some(out)) if cluster.speaks() => Companions::find(folder, out)?,
        _ => Companions::default(),
    };
    let stored_depth = stored.mtp_depth;
    let resolved = json!({
        "model": weights, "preset": config_name(arguments), "mtp_depth": config.mtp_depth,
        "strategy": settings.choice.strategy, "order": settings.choice.order, "layout": settings.choice.layout,
        "kernel": settings.choice.kernel, "cp": settings.choice.degree, "dtype": settings.dtype.to_string(),
        "grid": settings.choice.grid, "effort": settings.choice.effort, "stages": settings.choice.stages,
        "threads": settings.threads, "transport": arguments.choices.engine.transport,
        "deadline": arguments.choices.engine.deadline, "device": arguments.choices.engine.device.device,
        "ignore_config_field": arguments.reading.ignored(), "bytes": arguments.bytes.bytes, "batch": batch,
        "accumulate": accumulate, "tokens_per_rank": tokens_per_rank, "bf16_wire": arguments.bf16_wire,
        "native_reductions": arguments.native_reductions, "lr": lr,
        "min_lr": min_lr, "warmup": warmup, "schedule": arguments.schedule,
        "decay_steps": if let Decay::Last(steps) = decay { Some(steps) } else { None },
        "beta1": beta1, "beta2": beta2, "epsilon": arguments.epsilon,
        "weight_decay": weight_decay, "clip": clip, "recompute": recompute,
        "validate_every": validate_every, "log_every": log_every,
    });
    let record = record::of_run(data, resolved, steps);
    Ok(Job {
        config,
        weights,
        stored_depth,
        companions,
        source,
        settings,
        options,
        tokens_per_rank,
        adamw,
        recompute,
        wire,
        sum: if arguments.native_reductions { Sum::Engine } else { Sum::Ranks },
        out,
        record,
        goes_on,
        rates,
        log_every,
        trace: arguments.trace,
    })
}

/// Refuses number formats that a model is not trained in.
fn check_dtype(name: &str) -> Result<()> {
    let reason = match name {
        "f16" => "training in f16 needs loss scaling",
        "f64" => "f64 is for checks",
        _ => return args::pick("dtype", name, DTYPES, &[]).map(drop),
    };
    let instead = format!("{reason}; use --dtype bf16 or f32 (eval and verify take f16 and f64)");
    Err(args::not_available(format!("--dtype {name} for train"), instead))
}

/// The preset that a fresh model is made from.
fn config_name(arguments: &Arguments) -> Option<&str> {
    let named = arguments.preset.as_deref().unwrap_or(Config::PRESETS[0]);
    arguments.model.is_none().then_some(named)
}

/// The learning rates in words, and where the highest one comes from if nobody asked for it.
fn describe_rates(arguments: &Arguments, [lr, min_lr]: [f64; 2], warmup: u64, decay: Decay) -> String {
    let default = match (arguments.lr, &arguments.model) {
        (Some(_), _) => "",
        (None, Some(_)) => " (the default for --model)",
        (None, None) => " (the default for a fresh model)",
    };
    let warmup = output::many(usize::try_from(warmup).unwrap_or(usize::MAX), "step");
    let [lr, min_lr] = [lr, min_lr].map(output::short);
    let end = match decay {
        Decay::Constant => "and so to the end".to_string(),
        Decay::Linear | Decay::Cosine => format!("{min_lr} at the end"),
        Decay::Last(steps) => {
            let steps = output::many(usize::try_from(steps).unwrap_or(usize::MAX), "step");
            format!("and {min_lr} at the end of the last {steps}")
        }
    };
    format!("learning rate {lr}{default} after {warmup} of warm-up, {end}")
}

/// How the rate falls; refuses options of another schedule.
fn decay(arguments: &Arguments) -> Result<Decay> {
    let decay = args::pick("schedule", &arguments.schedule, SCHEDULES, &[])?;
    let is_of_end = matches!(decay, Decay::Last(_));
    if let Some(steps) = arguments.decay_steps.filter(|_| !is_of_end) {
        return Err(args::numbers(format!(
            "--decay-steps is {steps}, for --schedule {}: it is for --schedule wsd",
            arguments.schedule
        )));
    }
    if let Some(min_lr) = arguments.min_lr.filter(|_| decay == Decay::Constant) {
        return Err(args::numbers(format!(
            "--min-lr is {min_lr}, but with --schedule constant the rate does not fall"
        )));
    }
    let warmup = arguments.warmup.unwrap_or(LearningRate::default_warmup(arguments.steps));
    let default = arguments.steps.div_ceil(5).min(arguments.steps.saturating_sub(warmup)).max(1);
    Ok(if is_of_end { Decay::Last(arguments.decay_steps.unwrap_or(default)) } else { decay })
}

/// A share of what was before.
fn share((option, value): (&str, f64)) -> Result<f64> {
    match (0.0..1.0).contains(&value) {
        true => Ok(value),
        false => Err(args::numbers(format!("{option} is {value}: use a number from 0 to below 1"))),
    }
}

/// The model with the depth of multi-token prediction that is asked for. One that has a depth keeps it.
fn with_mtp_depth(config: Config, asked: Option<usize>) -> Result<Config> {
    let has = config.mtp_depth;
    let depth = asked.unwrap_or(has);
    if has > 0 && depth != has {
        return Err(args::numbers(format!(
            "--mtp-depth is {depth}, the model has depth {has} (num_nextn_predict_layers): leave the option out"
        )));
    }
    let config = config.with_mtp_depth(depth);
    config.check()?;
    Ok(config)
}

/// Refuses a depth of multi-token prediction that no sequence has a label for; the longest has `longest` tokens.
fn check_mtp_depth(config: &Config, asked: Option<usize>, longest: usize) -> Result<()> {
    let depth = config.mtp_depth;
    if depth < longest.max(1) {
        return Ok(());
    }
    let fix = match asked {
        Some(_) => format!("use --mtp-depth {} or less, or longer sequences", longest.saturating_sub(1)),
        None => format!("use sequences of {} or more", depth.saturating_add(1)),
    };
    Err(args::numbers(format!(
        "sequences have {longest} tokens at most, so none has a label for depth {depth} of multi-token prediction: \
         {fix}"
    )))
}
