//! `eval`: loss and perplexity of a model on a text or on token ids, and its logits.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::ArgGroup;
use context_parallel::error::{DataError, Result};
use context_parallel::model::Config;
use context_parallel::train::data::{Recall, Source, TokenBatch, read_bytes, windows};
use context_parallel::train::documents::{self, Separator};
use context_parallel::train::tokens::read_tokens;
use serde::Serialize;

use super::args::{self, Choices, Settings};
use super::engine::Cluster;
use super::train::{RECALL, RECALL_VOCAB, model_folder, refuse_tokenizer};
use super::{machine, output};

mod logits;
mod work;

/// Tokens of a sequence where neither the user nor a short text says so.
const SEQ_LEN: usize = 512;
/// Sequences of the recall task.
const RECALL_SEQUENCES: usize = 64;

/// The usage that clap makes of the group is wider than a terminal of 60 columns.
const USAGE: &str = "\
    context-parallel eval --model DIR --data FILE ..\n       \
    context-parallel eval --model DIR --tokens FILE ..";

/// Measure loss and perplexity of a model on a text or on token ids
#[derive(clap::Args, Clone, Debug)]
#[command(override_usage = USAGE)]
#[command(group(ArgGroup::new("input").required(true).args(["data", "tokens"])))]
pub struct Arguments {
    /// Model: a folder with config.json and safetensors, as Hugging Face writes it
    #[arg(long, value_name = "DIR", help_heading = args::MODEL)]
    model: PathBuf,
    /// Text file (its bytes are the tokens), cut into consecutive sequences, or "recall" for the synthetic task
    #[arg(long, value_name = "FILE", help_heading = args::MODEL)]
    data: Option<PathBuf>,
    /// Token ids: a safetensors file with "tokens" [B, S] of i64; each row is a sequence
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seq_len", "seed", "document_separator"],
        help_heading = args::MODEL)]
    tokens: Option<PathBuf>,
    /// Tokens of a sequence of --data [default: 512, or the whole text where it is shorter]
    #[arg(long, value_name = "N", help_heading = args::MODEL)]
    seq_len: Option<usize>,
    /// What stands between the documents of a text, such as '\n\n' (blank lines): a sequence is then a document, or a
    /// part of at most --seq-len tokens of a longer one
    #[arg(long, value_name = "STRING", allow_hyphen_values = true, help_heading = args::MODEL)]
    document_separator: Option<String>,
    /// Sequences at a time
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = args::MODEL)]
    batch: usize,
    /// Seed of the recall task [default: 0]
    #[arg(long, value_name = "N", help_heading = args::MODEL)]
    seed: Option<u64>,
    #[command(flatten)]
    pub choices: Choices,
    /// Write the logits here as a safetensors file with "logits" [B, S, V] of f32, replacing it
    #[arg(long, value_name = "FILE", help_heading = args::OUTPUT)]
    logits: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long, help_heading = args::OUTPUT)]
    json: bool,
}

/// Everything checked, nothing written.
#[derive(Clone, Debug)]
struct Job {
    model: PathBuf,
    config: Config,
    settings: Settings,
    /// Every sequence to run; labels where something is to be predicted.
    input: TokenBatch,
    /// Whether tokens are the bytes of a text.
    is_bytes: bool,
    /// Sequences at a time.
    batch: usize,
    logits: Option<PathBuf>,
}

#[derive(Clone, Debug, Serialize)]
struct Report {
    loss: f64,
    perplexity: f64,
    /// The loss in bits, where tokens are bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    bits_per_byte: Option<f64>,
    /// Labels that count.
    tokens: usize,
}

pub fn run(arguments: Arguments, cluster: &Cluster) -> Result<ExitCode> {
    let job = prepare(&arguments, cluster)?;
    let Some(loss) = work::run(&job, cluster)? else { return Ok(ExitCode::SUCCESS) };
    if !loss.is_finite() {
        // JSON has no such number, and a mean that is not one says nothing.
        output::warn(format!(
            "the loss is {loss}, not a finite number: check the weights, or use a --dtype with a larger range (bf16, f32)"
        ));
        return Ok(ExitCode::FAILURE);
    }
    let bits_per_byte = job.is_bytes.then_some(loss / std::f64::consts::LN_2);
    let report = Report { loss, perplexity: loss.exp(), bits_per_byte, tokens: job.input.counted() };
    if arguments.json {
        output::json(&report);
    } else {
        let Report { loss, perplexity, bits_per_byte, tokens } = report;
        let tokens = output::count(tokens as u64);
        let bits = bits_per_byte.map_or(String::new(), |bits| format!(", {bits:.4} bits per byte"));
        output::sentence(format!(
            "loss {loss:.4} nats per token{bits}, perplexity {perplexity:.3}, over {tokens} tokens"
        ));
        if let Some(path) = &job.logits {
            output::line(format!("logits are in {}", path.display()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn prepare(arguments: &Arguments, cluster: &Cluster) -> Result<Job> {
    let mut settings = arguments.choices.settings(cluster)?;
    let batch = args::positive("--batch", arguments.batch)?;
    let seq_len = arguments.seq_len.map(|seq_len| args::positive("--seq-len", seq_len)).transpose()?;
    if let Some(seq_len) = seq_len {
        settings.check_seq_len(seq_len)?;
    }
    let separator = settings.separator(arguments.document_separator.as_deref())?;
    if separator.is_some() && arguments.logits.is_some() {
        return Err(args::numbers(
            "--logits holds sequences of one length, --document-separator makes many: leave one of them out".into(),
        ));
    }
    if let Some(path) = arguments.logits.as_deref().filter(|_| cluster.speaks()) {
        check_writable(path)?;
        check_not_input(path, arguments)?;
    }
    let model = model_folder(&arguments.model)?;
    let is_bytes = arguments.data.as_deref().is_some_and(|data| data != Path::new(RECALL));
    if is_bytes {
        refuse_tokenizer(&model)?;
    }
    let config = Config::read(&model)?;
    settings.fit_heads(config.heads)?;
    let reading = arguments.tokens.as_deref().or(arguments.data.as_deref().filter(|_| is_bytes)).map(output::reading);
    let input = match (&arguments.tokens, &arguments.data) {
        (Some(tokens), _) => read_tokens(tokens)?,
        (None, Some(data)) if data == Path::new(RECALL) => {
            if separator.is_some() {
                return Err(args::no_documents());
            }
            let seq_len = seq_len.unwrap_or(SEQ_LEN);
            let source = Source::Recall(Recall::new(RECALL_VOCAB.min(config.vocab_size), seq_len)?);
            let bytes = (RECALL_SEQUENCES as u64).saturating_mul(seq_len as u64).saturating_mul(machine::TOKEN_BYTES);
            let what = format!("{RECALL_SEQUENCES} sequences of --seq-len {seq_len}");
            machine::check(bytes, &what, "use a smaller --seq-len")?;
            source.held_out(arguments.seed.unwrap_or(0), seq_len, RECALL_SEQUENCES)
        }
        (None, Some(data)) => {
            if arguments.seed.is_some() {
                return Err(args::numbers(
                    "--seed is for --data recall: a text has nothing random, leave it out".into(),
                ));
            }
            match &separator {
                None => read_text(data, seq_len)?,
                Some(separator) => read_documents(data, separator, seq_len.unwrap_or(SEQ_LEN))?,
            }
        }
        (None, None) => return Err(args::numbers("nothing to evaluate: pass --data FILE or --tokens FILE".into())),
    };
    drop(reading);
    settings.check_seq_len(input.longest())?;
    input.check_vocab(config.vocab_size)?;
    Ok(Job { model, config, settings, input, is_bytes, batch, logits: arguments.logits.clone() })
}

/// A text as consecutive sequences; one of the length asked for must fit.
fn read_text(path: &Path, asked: Option<usize>) -> Result<TokenBatch> {
    let bytes = read_bytes(path)?;
    let predicting = bytes.len() - 1;
    if predicting == 0 {
        let message = format!("{} has 1 byte, which leaves nothing to predict: use a longer text", path.display());
        return Err(DataError::Unusable(message).into());
    }
    if let Some(seq_len) = asked.filter(|&seq_len| seq_len > predicting) {
        let (path, all, needed) = (path.display(), bytes.len(), seq_len.saturating_add(1));
        let message = format!(
            "{path} has {all} bytes, --seq-len {seq_len} needs {needed}, the last one as a label: use --seq-len \
             {predicting} or less, or a longer text"
        );
        return Err(DataError::Unusable(message).into());
    }
    let seq_len = asked.unwrap_or(SEQ_LEN.min(predicting));
    Ok(windows(&bytes, seq_len, usize::MAX))
}

/// A text as documents; one must have something to predict.
fn read_documents(path: &Path, separator: &Separator, seq_len: usize) -> Result<TokenBatch> {
    let bytes = read_bytes(path)?;
    separator.check(&bytes, path.display())?;
    let documents = documents::batch(&bytes, separator, seq_len, usize::MAX);
    if documents.sequences() == 0 {
        let message = format!(
            "{} has no document of 2 bytes or more between separators {separator:?}: use another --document-separator",
            path.display()
        );
        return Err(DataError::Unusable(message).into());
    }
    Ok(documents)
}

/// Refuses a path that cannot become a file, before hours of work.
fn check_writable(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.is_dir() || !parent.is_dir() || path.file_name().is_none() {
        let message = format!("--logits {}: name a file in a folder that exists", path.display());
        return Err(DataError::Unusable(message).into());
    }
    Ok(())
}

/// Refuses to write over what is read, by whatever name.
fn check_not_input(logits: &Path, arguments: &Arguments) -> Result<()> {
    // What does not exist yet is no input.
    let Ok(target) = logits.canonicalize() else { return Ok(()) };
    let inputs = [("--tokens", &arguments.tokens), ("--data", &arguments.data)];
    let same = |input: &Path| input.canonicalize().is_ok_and(|input| input == target);
    let read = inputs.into_iter().find(|(_, input)| input.as_deref().is_some_and(same)).map(|(option, _)| option);
    let model = || std::fs::read_dir(&arguments.model).into_iter().flatten().flatten();
    // A file in the folder, or one that a link there leads to.
    let in_model = arguments.model.canonicalize().is_ok_and(|folder| target.starts_with(folder));
    let read = read.or_else(|| (in_model || model().any(|entry| same(&entry.path()))).then_some("--model"));
    let Some(option) = read else { return Ok(()) };
    let message =
        format!("--logits {} would replace an input ({option}): name a file that is not read from", logits.display());
    Err(DataError::Unusable(message).into())
}
