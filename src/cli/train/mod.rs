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
use context_parallel::train::run_folder::Vacant;
use context_parallel::train::schedule::Schedule;
use context_parallel::train::trainer::{Options, StepRecord};
use serde::Serialize;

use super::args::{self, Choices, Settings};
use super::engine::Cluster;
use super::model::{Reading, check_weights};
use super::{inputs, machine, output};

mod micro_batches;
mod work;

use work::Finished;

/// The value of `--data` that means the recall task; a file of this name is `./recall`.
pub const RECALL: &str = "recall";
/// Different tokens of the recall task, or fewer where the model's vocabulary is smaller.
pub const RECALL_VOCAB: usize = 64;
/// Most sequences of a step.
const MOST_SEQUENCES: usize = 1 << 20;
/// Tokens of a held-out evaluation, about.
const HELD_OUT_TOKENS: usize = 32_768;

/// Train a model on a text or on the recall task
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Model to start from: a folder with config.json and safetensors, as Hugging Face writes it
    #[arg(long, value_name = "DIR", conflicts_with = "preset")]
    model: Option<PathBuf>,
    #[command(flatten)]
    reading: Reading,
    /// Fresh model: tiny (4 layers, width 128) [default: tiny]
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Text file (its bytes are the tokens), or "recall" for the synthetic task
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    #[command(flatten)]
    bytes: inputs::Bytes,
    #[command(flatten)]
    pub choices: Choices,
    /// Optimizer steps
    #[arg(long, value_name = "N", default_value_t = 200)]
    steps: u64,
    /// Tokens of a sequence
    #[arg(long, value_name = "N", default_value_t = 512)]
    seq_len: usize,
    /// What stands between the documents of a text, such as '\n\n' (blank lines) or '<|endoftext|>'. A sequence is then
    /// a document, or a part of at most --seq-len tokens of a longer one, and nothing is predicted across documents
    #[arg(long, value_name = "STRING", allow_hyphen_values = true)]
    document_separator: Option<String>,
    /// Sequences of a micro-batch
    #[arg(long, value_name = "N", default_value_t = 4)]
    batch: usize,
    /// Micro-batches of a step; dynamic makes its own of all --batch times --accumulate sequences
    #[arg(long, value_name = "N", default_value_t = 1)]
    accumulate: usize,
    /// Most tokens of a rank in a micro-batch of dynamic [default: 1.1 times the even share of a step]
    #[arg(long, value_name = "N")]
    tokens_per_rank: Option<usize>,
    /// Highest learning rate
    #[arg(long, value_name = "RATE", default_value_t = 3e-3, allow_negative_numbers = true)]
    lr: f64,
    /// Steps over which the rate rises [default: a tenth of the steps, at most 30]
    #[arg(long, value_name = "N")]
    warmup: Option<u64>,
    /// Rate that the cosine ends at [default: a tenth of --lr]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    min_lr: Option<f64>,
    /// Decay of matrices
    #[arg(long, value_name = "RATE", default_value_t = 0.1, allow_negative_numbers = true)]
    weight_decay: f64,
    /// Largest norm of the gradient; 0 for no limit
    #[arg(long, value_name = "NORM", default_value_t = 1.0, allow_negative_numbers = true)]
    clip: f64,
    /// Share of the text, at its end, held out for validation, from 0 to 0.5
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true)]
    validation: f64,
    /// Steps between validations [default: 100]
    #[arg(long, value_name = "N")]
    validate_every: Option<u64>,
    /// Compute the inside of each block again in the backward pass, instead of keeping it: slower, less memory
    #[arg(long)]
    recompute: bool,
    /// Send gradients of keys and values in bf16, not f32: half their bytes, one more rounding; for --dtype bf16
    #[arg(long)]
    bf16_wire: bool,
    /// Seed of fresh weights and of the data
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Folder for the model, log.jsonl and loss.svg; must not hold another run
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Not available yet
    #[arg(long, value_name = "DIR", num_args = 0..=1, hide = true)]
    resume: Option<Option<PathBuf>>,
    /// Tokens to predict beyond the next one, each with a block of its own, which a --model without them gets fresh
    /// [default: what the model has; 0 for a preset]
    #[arg(long, value_name = "N")]
    mtp_depth: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
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
    options: Options,
    /// Limit for the micro-batches of dynamic.
    tokens_per_rank: Option<usize>,
    adamw: AdamwOptions,
    recompute: bool,
    /// How gradients of keys and values travel.
    wire: Wire,
    /// Where the run is written, by the process that speaks.
    out: Option<Vacant>,
}

#[derive(Clone, Debug, Serialize)]
struct Report {
    loss: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mtp_loss: Option<Vec<f64>>,
    grad_norm: Vec<f64>,
    /// Micro-batches of each step.
    micro_batches: Vec<usize>,
    tokens_per_second: f64,
    peak_bytes_per_rank: u64,
    out: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_out_loss: Option<f64>,
    steps: u64,
    /// Whether an interrupt ended the run before its last step.
    interrupted: bool,
}

pub fn run(arguments: Arguments, cluster: &Cluster) -> Result<ExitCode> {
    let job = prepare(&arguments, cluster)?;
    let steps = job.options.schedule.steps();
    let Finished { records, peak_bytes_per_rank, out } = work::run(&job, cluster, arguments.json)?;
    if !cluster.speaks() {
        return Ok(ExitCode::SUCCESS);
    }
    let out = out.map(|path| path.display().to_string());
    let report = report(&records, peak_bytes_per_rank, out, steps);
    if arguments.json {
        output::json(&report);
    } else {
        print(&report);
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks everything that can be checked without work.
fn prepare(arguments: &Arguments, cluster: &Cluster) -> Result<Job> {
    if arguments.resume.is_some() {
        return Err(args::not_available("--resume", "start from the saved model with --model DIR and a new --out"));
    }
    let mut settings = arguments.choices.settings(cluster)?;
    let reason = match settings.dtype {
        DType::F16 => Some("training in f16 needs loss scaling"),
        DType::F64 => Some("f64 is for checks"),
        _ => None,
    };
    if let Some(reason) = reason {
        let what = format!("--dtype {} for train", settings.dtype);
        let instead = format!("{reason}; use --dtype bf16 or f32 (eval and verify take f16 and f64)");
        return Err(args::not_available(what, instead));
    }
    let wire = settings.gradient_wire(arguments.bf16_wire)?;
    let seq_len = args::positive("--seq-len", arguments.seq_len)?;
    settings.check_seq_len(seq_len)?;
    let separator = settings.separator(arguments.document_separator.as_deref())?;
    let batch = args::positive("--batch", arguments.batch)?;
    let accumulate = args::positive("--accumulate", arguments.accumulate)?;
    if batch.checked_mul(accumulate).is_none_or(|sequences| sequences > MOST_SEQUENCES) {
        return Err(args::numbers(format!(
            "--batch {batch} times --accumulate {accumulate} is more than the {MOST_SEQUENCES} sequences that a step can \
             have: use fewer"
        )));
    }
    let steps = arguments.steps;
    let (lr, min_lr) = (arguments.lr, arguments.min_lr.unwrap_or(0.1 * arguments.lr));
    let schedule = Schedule::new(lr, min_lr, arguments.warmup.unwrap_or(Schedule::default_warmup(steps)), steps)?;
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
    let out = arguments.out.as_deref().filter(|_| cluster.speaks()).map(inputs::output_folder).transpose()?;
    let weights = arguments.model.clone();
    let is_recall = arguments.data.as_deref() == Some(Path::new(RECALL));
    arguments.bytes.is_for_text(!is_recall)?;
    let config = match (&weights, &arguments.preset) {
        (Some(folder), _) => arguments.reading.config(folder, cluster)?,
        (None, name) => Config::preset(name.as_deref().unwrap_or(Config::PRESETS[0]))?,
    };
    settings.fit_heads(config.heads)?;
    let stored = config.clone();
    let config = with_mtp_depth(config, arguments.mtp_depth)?;
    check_mtp_depth(&config, arguments.mtp_depth, seq_len)?;
    settings.tokens_per_rank(arguments.tokens_per_rank, &[])?;
    // Of a byte: itself, and where it may be a document, the range of it.
    let memory = if separator.is_some() { 1 + machine::TOKEN_BYTES / 2 } else { 1 };
    let text = |path: &Path| inputs::text(path, arguments.bytes, weights.as_deref(), &config, memory);
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
    let lengths = source.possible_lengths(seq_len);
    check_mtp_depth(&config, arguments.mtp_depth, lengths.iter().copied().max().unwrap_or(0))?;
    let tokens_per_rank = settings.tokens_per_rank(arguments.tokens_per_rank, &lengths)?;
    let held_out = if arguments.validation > 0.0 { HELD_OUT_TOKENS.div_ceil(seq_len) } else { 0 };
    let seed = arguments.seed;
    let options = Options { schedule, seed, batch, accumulate, seq_len, held_out, validate_every };
    let adamw = AdamwOptions { weight_decay, clip, ..AdamwOptions::default() };
    let recompute = arguments.recompute;
    if let Some(folder) = &weights {
        check_weights(folder, &stored, cluster)?;
    }
    let companions = match (&weights, &arguments.out) {
        (Some(folder), Some(out)) if cluster.speaks() => Companions::find(folder, out)?,
        _ => Companions::default(),
    };
    let stored_depth = stored.mtp_depth;
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
    })
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

fn describe(record: &StepRecord, steps: u64) -> String {
    let width = steps.to_string().len();
    let StepRecord { step, loss, grad_norm, lr, tokens_per_second, .. } = record;
    let held_out = record.held_out_loss.map_or(String::new(), |loss| format!("  held out {loss:.4}"));
    let mtp = record.mtp_loss.map_or(String::new(), |loss| format!("  mtp {loss:.4}"));
    format!(
        "step {step:>width$}/{steps}  loss {loss:.4}{mtp}  gradient {grad_norm:.3}  lr {lr:.2e}  {} tokens/s{held_out}",
        output::count(tokens_per_second.round() as u64)
    )
}

/// The whole run's numbers. Throughput is the mean over the steps' time, without the first, which grows the buffers.
fn report(records: &[StepRecord], peak_bytes_per_rank: u64, out: Option<String>, steps: u64) -> Report {
    let settled = if records.len() > 1 { &records[1..] } else { records };
    let tokens: f64 = settled.iter().map(|record| record.tokens as f64).sum();
    let time: f64 = settled.iter().map(|record| record.tokens as f64 / record.tokens_per_second).sum();
    let done = records.len() as u64;
    Report {
        loss: records.iter().map(|record| record.loss).collect(),
        // All of the records have it, or none.
        mtp_loss: records
            .iter()
            .map(|record| record.mtp_loss)
            .collect::<Option<Vec<_>>>()
            .filter(|all| !all.is_empty()),
        grad_norm: records.iter().map(|record| record.grad_norm).collect(),
        micro_batches: records.iter().map(|record| record.micro_batches).collect(),
        tokens_per_second: if time > 0.0 { tokens / time } else { 0.0 },
        peak_bytes_per_rank,
        out,
        held_out_loss: records.last().and_then(|record| record.held_out_loss),
        steps: done,
        interrupted: done < steps,
    }
}

fn print(report: &Report) {
    let state = if report.interrupted { "stopped" } else { "done" };
    let loss = report.loss.last().map_or(String::new(), |loss| format!(", loss {loss:.4}"));
    let held_out = report.held_out_loss.map_or(String::new(), |loss| format!(", held-out loss {loss:.4}"));
    output::line(format!(
        "{state} after {} steps{loss}{held_out}, {} tokens/s, peak {} per rank",
        output::count(report.steps),
        output::count(report.tokens_per_second.round() as u64),
        output::bytes(report.peak_bytes_per_rank)
    ));
    if let Some(out) = &report.out {
        output::line(format!("model, log and chart are in {out}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_has_both_series_and_a_mean_throughput() {
        let record = |step: u64, tokens: usize, tokens_per_second: f64| StepRecord {
            step,
            loss: 3.0 / step as f64,
            mtp_loss: None,
            grad_norm: step as f64,
            lr: 1e-3,
            tokens,
            micro_batches: step as usize,
            tokens_per_second,
            seconds: 1.0,
            held_out_loss: (step == 3).then_some(1.5),
        };
        let records = [record(1, 50, 1.0), record(2, 50, 100.0), record(3, 100, 400.0)];
        let report = report(&records, 7, None, 5);
        assert_eq!((&report.loss[..], &report.grad_norm[..]), (&[3.0, 1.5, 1.0][..], &[1.0, 2.0, 3.0][..]));
        assert!((report.tokens_per_second - 200.0).abs() < 1e-9, "150 tokens in 0.75 s");
        assert_eq!(report.micro_batches, [1, 2, 3]);
        assert!(report.interrupted && report.held_out_loss == Some(1.5));
        let json = serde_json::to_value(&report).unwrap();
        for key in ["loss", "grad_norm", "micro_batches", "tokens_per_second", "peak_bytes_per_rank", "out"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert!(
            describe(&records[2], 200).contains("step   3/200") && describe(&records[2], 9).contains("held out 1.5")
        );
        assert_eq!(super::report(&[], 0, None, 5).tokens_per_second, 0.0);
    }
}
