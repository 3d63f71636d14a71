//! `train`: trains a model on a text or on the recall task.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use context_parallel::error::Result;
use context_parallel::model::Config;
use context_parallel::plan::Wire;
use context_parallel::tensor::DType;
use context_parallel::train::companions::Companions;
use context_parallel::train::data::{Recall, Source, Text, check_validation};
use context_parallel::train::learner::AdamwOptions;
use context_parallel::train::learning_rate::LearningRate;
use context_parallel::train::run_folder::Vacant;
use context_parallel::train::run_record::RunRecord;
use context_parallel::train::trainer::TrainOptions;
use serde_json::json;

use super::args::{self, Choices, Names, Settings, Table};
use super::engine::Cluster;
use super::interrupt::INTERRUPTED;
use super::model::{Reading, check_weights};
use super::{inputs, machine, output};

mod micro_batches;
mod record;
mod report;
mod work;

use report::Summary;

/// The value of `--data` that means the recall task; a file of this name is `./recall`.
pub const RECALL: &str = "recall";
/// Different tokens of the recall task, or fewer where the model's vocabulary is smaller.
pub const RECALL_VOCAB: usize = 64;
/// Most sequences of a step.
const MOST_SEQUENCES: usize = 1 << 20;
/// Tokens of a held-out evaluation, about.
const HELD_OUT_TOKENS: usize = 32_768;

/// Types that a model is trained in.
const DTYPES: Table<DType> = &[(&["f32"], DType::F32), (&["bf16"], DType::Bf16)];

/// What help says below the options.
const AFTER_HELP: &str = "\
    Standard output has a line per step and a summary at the end, with --json as JSON objects: those of the steps are \
    the lines of log.jsonl and have \"step\", the last one has \"steps\" and the series of all of them. At Ctrl-C the \
    run ends after its step, evaluates, saves, and exits with 130.";

/// Train a model on a text or on the recall task
#[derive(clap::Args, Clone, Debug)]
#[command(after_help = AFTER_HELP)]
#[command(mut_arg("dtype", |dtype| dtype.value_parser(Names::new(|| args::of(DTYPES)))))]
pub struct Arguments {
    /// Model to start from: a folder with config.json and safetensors, as Hugging Face writes it. After a run of this
    /// program the data goes on where that run stopped, if the options of the data and --seed are the same; the
    /// optimizer starts afresh
    #[arg(long, value_name = "DIR", conflicts_with = "preset", help_heading = args::MODEL)]
    model: Option<PathBuf>,
    #[command(flatten)]
    reading: Reading,
    /// Fresh model: tiny has 4 layers of width 128 [default: tiny]
    #[arg(long, value_name = "NAME", value_parser = Names::PRESETS, help_heading = args::MODEL)]
    preset: Option<String>,
    /// Tokens to predict beyond the next one, each with a block of its own, which a --model without them gets fresh
    /// [default: what the model has; 0 for a preset]
    #[arg(long, value_name = "N", help_heading = args::MODEL)]
    mtp_depth: Option<usize>,
    /// Text file (its bytes are the tokens), or "recall" for the synthetic task
    #[arg(long, value_name = "FILE", help_heading = args::MODEL)]
    data: Option<PathBuf>,
    #[command(flatten)]
    bytes: inputs::Bytes,
    /// What stands between the documents of a text, such as '\n\n' (blank lines) or '<|endoftext|>'. A sequence is then
    /// a document, or a part of at most --seq-len tokens of a longer one, and nothing is predicted across documents
    #[arg(long, value_name = "STRING", allow_hyphen_values = true, help_heading = args::MODEL)]
    document_separator: Option<String>,
    /// Tokens of a sequence
    #[arg(long, value_name = "N", default_value_t = 512, help_heading = args::MODEL)]
    seq_len: usize,
    /// Share of the text, at its end, held out for validation, from 0 to 0.5
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true, help_heading = args::MODEL)]
    validation: f64,
    /// Seed of fresh weights and of the data
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = args::MODEL)]
    seed: u64,
    #[command(flatten)]
    pub choices: Choices,
    /// Most tokens of a rank in a micro-batch of dynamic [default: 1.1 times the even share of a step]
    #[arg(long, value_name = "N", help_heading = args::PARALLELISM)]
    tokens_per_rank: Option<usize>,
    /// Send gradients of keys and values in bf16, not f32: half their bytes, one more rounding; for --dtype bf16
    #[arg(long, help_heading = args::PARALLELISM)]
    bf16_wire: bool,
    /// Optimizer steps
    #[arg(long, value_name = "N", default_value_t = 200, help_heading = args::TRAINING)]
    steps: u64,
    /// Sequences of a micro-batch
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = args::TRAINING)]
    batch: usize,
    /// Micro-batches of a step; dynamic makes its own of all --batch times --accumulate sequences
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = args::TRAINING)]
    accumulate: usize,
    /// Highest learning rate [default: 3e-3 for a fresh model, 2e-5 for --model]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = args::TRAINING)]
    lr: Option<f64>,
    /// Steps over which the rate rises [default: a tenth of the steps, at most 30]
    #[arg(long, value_name = "N", help_heading = args::TRAINING)]
    warmup: Option<u64>,
    /// Rate that the cosine ends at [default: a tenth of --lr]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = args::TRAINING)]
    min_lr: Option<f64>,
    /// Decay of matrices
    #[arg(long, value_name = "RATE", default_value_t = 0.1, allow_negative_numbers = true,
        help_heading = args::TRAINING)]
    weight_decay: f64,
    /// Largest norm of the gradient; 0 for no limit
    #[arg(long, value_name = "NORM", default_value_t = 1.0, allow_negative_numbers = true,
        help_heading = args::TRAINING)]
    clip: f64,
    /// Steps between validations [default: 100]
    #[arg(long, value_name = "N", help_heading = args::TRAINING)]
    validate_every: Option<u64>,
    /// Compute the inside of each block again in the backward pass, instead of keeping it: slower, less memory
    #[arg(long, help_heading = args::TRAINING)]
    recompute: bool,
    /// Folder for the model, run.json, log.jsonl and loss.svg; must not hold another run. Without it nothing is kept
    #[arg(short, long, value_name = "DIR", help_heading = args::OUTPUT)]
    out: Option<PathBuf>,
    /// Steps between printed ones; evaluated ones and the last are printed too, and log.jsonl has all
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = args::OUTPUT)]
    log_every: u64,
    /// Print JSON: a line per step, then the summary; with --quiet the summary only
    #[arg(long, help_heading = args::OUTPUT)]
    json: bool,
    /// Not available yet
    #[arg(long, value_name = "DIR", num_args = 0..=1, hide = true)]
    resume: Option<Option<PathBuf>>,
}

/// Everything checked, nothing written.
#[derive(Clone, Debug)]
struct Job {
    config: Config,
    /// The folder with the weights; fresh ones without it.
    weights: Option<PathBuf>,
    /// Depths of multi-token prediction that the folder has; the weights of the others are fresh.
    stored_depth: usize,
    /// What is copied from the folder beside the trained weights.
    companions: Companions,
    source: Source,
    settings: Settings,
    options: TrainOptions,
    /// Limit for the micro-batches of dynamic.
    tokens_per_rank: Option<usize>,
    adamw: AdamwOptions,
    recompute: bool,
    /// How gradients of keys and values travel.
    wire: Wire,
    /// Where the run is written, by the process that speaks.
    out: Option<Vacant>,
    /// What the folder says of the run.
    record: RunRecord,
    /// What a model is trained further with, in words.
    goes_on: Option<String>,
    /// The highest and the last learning rate, and the warm-up, in words.
    rates: String,
    /// Steps between printed ones.
    log_every: u64,
}

pub fn run(arguments: Arguments, cluster: &Cluster) -> Result<ExitCode> {
    let job = prepare(&arguments, cluster)?;
    let finished = work::run(&job, cluster, arguments.json)?;
    // Whoever waits for this run must not go on as if it were whole. The first process says so once it has reported:
    // `mpirun` ends all others as soon as one process ends with another code than 0.
    let is_cut_short = finished.interrupted && cluster.speaks();
    let code = if is_cut_short { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS };
    if cluster.speaks() {
        let report = Summary::new(&finished);
        match arguments.json {
            true => output::json(&report),
            false => report.print(),
        }
    }
    Ok(code)
}

/// Checks everything that can be checked without work.
fn prepare(arguments: &Arguments, cluster: &Cluster) -> Result<Job> {
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
    let schedule = LearningRate::new(lr, min_lr, warmup, steps)?;
    let rates = describe_rates(arguments, [lr, min_lr], warmup);
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
    let adamw = AdamwOptions { weight_decay, clip, ..AdamwOptions::default() };
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
        "deadline": arguments.choices.engine.deadline, "device": arguments.choices.engine.device,
        "ignore_config_field": arguments.reading.ignored(), "bytes": arguments.bytes.bytes, "batch": batch,
        "accumulate": accumulate, "tokens_per_rank": tokens_per_rank, "bf16_wire": arguments.bf16_wire, "lr": lr,
        "min_lr": min_lr, "warmup": warmup, "weight_decay": weight_decay, "clip": clip, "recompute": recompute,
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
        out,
        record,
        goes_on,
        rates,
        log_every,
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
fn describe_rates(arguments: &Arguments, [lr, min_lr]: [f64; 2], warmup: u64) -> String {
    let default = match (arguments.lr, &arguments.model) {
        (Some(_), _) => "",
        (None, Some(_)) => " (the default for --model)",
        (None, None) => " (the default for a fresh model)",
    };
    let warmup = output::many(usize::try_from(warmup).unwrap_or(usize::MAX), "step");
    let [lr, min_lr] = [lr, min_lr].map(output::short);
    format!("learning rate {lr}{default} after {warmup} of warm-up, {min_lr} at the end")
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
