//! `eval`: loss and perplexity of a model on a text or on token ids, and its logits.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgGroup, ValueEnum};
use context_parallel::error::{DataError, Result};
use context_parallel::model::Config;
use context_parallel::train::data::{Recall, Source, TokenBatch, windows};
use context_parallel::train::documents::{self, Separator};
use context_parallel::train::tokens::{LabelMeaning, TokenFile};
use serde::Serialize;

use super::args::{self, Choices, Settings};
use super::engine::Cluster;
use super::model::{Reading, check_weights};
use super::train::{RECALL, RECALL_VOCAB};
use super::{inputs, machine, output};

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
    #[command(flatten)]
    reading: Reading,
    /// Text file (its bytes are the tokens), cut into consecutive sequences, or "recall" for the synthetic task
    #[arg(long, value_name = "FILE", help_heading = args::MODEL)]
    data: Option<PathBuf>,
    /// Token ids: a safetensors file with "tokens" (or "input_ids") [B, S] of i64; each row is a sequence. It may hold
    /// "labels", "loss_mask", "document_ids" or "cu_seqlens", "position_ids" and "attention_mask" (README)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seq_len", "seed", "document_separator", "bytes"],
        help_heading = args::MODEL)]
    tokens: Option<PathBuf>,
    /// Whether "labels" of --tokens are those of the tokens at their own places (unshifted, as Hugging Face has them)
    /// or of the tokens after them (shifted, as Megatron has them) [default: found out by comparing them with the tokens]
    #[arg(long, value_enum, value_name = "MEANING", conflicts_with = "data", help_heading = args::MODEL)]
    labels: Option<Labels>,
    #[command(flatten)]
    bytes: inputs::Bytes,
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

/// A [`LabelMeaning`] by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Labels {
    #[value(alias = "hf")]
    Unshifted,
    #[value(alias = "megatron")]
    Shifted,
}

impl From<Labels> for LabelMeaning {
    fn from(labels: Labels) -> Self {
        match labels {
            Labels::Unshifted => LabelMeaning::Unshifted,
            Labels::Shifted => LabelMeaning::Shifted,
        }
    }
}

/// Everything checked, nothing written.
#[derive(Clone, Debug)]
struct Job {
    model: PathBuf,
    config: Config,
    settings: Settings,
    /// Every sequence to run; labels where something is to be predicted.
    input: TokenBatch,
    /// What the input is called in messages.
    name: String,
    /// What it was taken for, where there is a choice.
    note: Option<String>,
    /// Whether tokens are the bytes of a text.
    is_bytes: bool,
    /// Sequences at a time.
    batch: usize,
    logits: Option<Logits>,
}

/// Where logits go.
#[derive(Clone, Debug)]
struct Logits {
    path: PathBuf,
    /// Rows of the input, and tokens of each.
    shape: [usize; 2],
}

#[derive(Clone, Debug, Serialize)]
struct Score {
    /// None where no label counts.
    loss: Option<f64>,
    /// Left out where it is larger than any number.
    #[serde(skip_serializing_if = "is_infinite")]
    perplexity: Option<f64>,
    /// The loss in bits, where tokens are bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    bits_per_byte: Option<f64>,
    /// Labels that count.
    tokens: usize,
}

fn is_infinite(perplexity: &Option<f64>) -> bool {
    perplexity.is_some_and(f64::is_infinite)
}

pub fn run(arguments: Arguments, cluster: &Cluster) -> Result<ExitCode> {
    let job = prepare(&arguments, cluster)?;
    work::check_memory(&job, cluster)?;
    if let Some(note) = job.note.as_ref().filter(|_| cluster.speaks()) {
        output::note(note);
    }
    let Some(loss) = work::run(&job, cluster)? else { return Ok(ExitCode::SUCCESS) };
    if !loss.is_finite() {
        // JSON has no such number, and a mean that is not one says nothing.
        output::warn(format!(
            "the loss is {loss}, not a finite number: check the weights, or use a --dtype with a larger range (bf16, \
             f32)"
        ));
        return Ok(ExitCode::FAILURE);
    }
    let tokens = job.input.counted();
    let loss = Some(loss).filter(|_| tokens > 0);
    let bits_per_byte = loss.filter(|_| job.is_bytes).map(|loss| loss / std::f64::consts::LN_2);
    let report = Score { loss, perplexity: loss.map(f64::exp), bits_per_byte, tokens };
    if arguments.json {
        output::json(&report);
    } else {
        let tokens = output::count(tokens as u64);
        let bits = bits_per_byte.map_or(String::new(), |bits| format!(", {bits:.4} bits per byte"));
        output::sentence(match loss {
            Some(loss) => {
                format!("loss {loss:.4} nats per token{bits}, perplexity {:.3}, over {tokens} tokens", loss.exp())
            }
            None => "no label counts, so there is no loss".to_string(),
        });
        if let Some(Logits { path, .. }) = &job.logits {
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
        let (tokens, data) = (arguments.tokens.as_deref(), arguments.data.as_deref());
        let read = [("--tokens", tokens), ("--data", data), ("--model", Some(&*arguments.model))];
        inputs::output_file("--logits", path, &read)?;
    }
    let is_recall = arguments.data.as_deref() == Some(Path::new(RECALL));
    let is_bytes = arguments.data.is_some() && !is_recall;
    arguments.bytes.is_for_text(!is_recall)?;
    let model = arguments.model.clone();
    let config = arguments.reading.config(&model, cluster)?;
    settings.fit_heads(config.heads)?;
    let (mut shape, mut note) = (None, None);
    let reading = arguments.tokens.as_deref().or(arguments.data.as_deref().filter(|_| is_bytes)).map(output::reading);
    let input = match (&arguments.tokens, &arguments.data) {
        (Some(tokens), _) => {
            let file = inputs::tokens(tokens, &config, arguments.labels.map(LabelMeaning::from))?;
            note = describe(&file);
            shape = Some(file.shape);
            file.batch
        }
        (None, Some(_)) if is_recall => {
            if separator.is_some() {
                return Err(args::no_documents());
            }
            let seq_len = seq_len.unwrap_or(SEQ_LEN);
            let source = Source::Recall(Recall::new(RECALL_VOCAB.min(config.vocab_size), seq_len)?);
            let bytes = machine::token_bytes(RECALL_SEQUENCES.saturating_mul(seq_len));
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
            // Itself, and its id and label.
            let memory = 1 + machine::TOKEN_BYTES;
            let bytes = inputs::text(data, arguments.bytes, Some(&model), &config, memory)?;
            match &separator {
                None => cut_text(data, &bytes, seq_len)?,
                Some(separator) => cut_documents(data, &bytes, separator, seq_len.unwrap_or(SEQ_LEN))?,
            }
        }
        (None, None) => return Err(args::numbers("nothing to evaluate: pass --data FILE or --tokens FILE".into())),
    };
    let name =
        arguments.tokens.as_ref().or(arguments.data.as_ref()).map_or(String::new(), |path| path.display().to_string());
    drop(reading);
    settings.check_lengths(&name, &input.lengths)?;
    settings.check_seq_len(input.longest())?;
    if input.counted() == 0 && arguments.logits.is_none() {
        let message =
            format!("{name} has nothing to predict: no label of it counts; use longer rows, or --logits FILE");
        return Err(DataError::Unusable(message).into());
    }
    check_weights(&model, &config, cluster)?;
    let shape = shape.unwrap_or([input.sequences(), input.longest()]);
    let logits = arguments.logits.clone().map(|path| Logits { path, shape });
    Ok(Job { model, config, settings, input, name, note, is_bytes, batch, logits })
}

/// Documents and labels of a file of token ids in words, where there is a choice.
fn describe(file: &TokenFile) -> Option<String> {
    let [rows, _] = file.shape;
    let documents = file.batch.sequences();
    let labels = match file.labels {
        Some(LabelMeaning::Unshifted) => "labels are those of the tokens at their own places, as Hugging Face has them",
        Some(LabelMeaning::Shifted) => "labels are those of the tokens after them, as Megatron has them",
        None if documents == rows => return None,
        None => "each token predicts the next one of its document",
    };
    let [rows, documents] = [(rows, "row"), (documents, "document")].map(|(count, what)| output::many(count, what));
    Some(format!("{documents} in {rows}; {labels}; {} to predict", output::many(file.batch.counted(), "token")))
}

/// A text as consecutive sequences; one of the length asked for must fit.
fn cut_text(path: &Path, bytes: &[u8], asked: Option<usize>) -> Result<TokenBatch> {
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
    Ok(windows(bytes, seq_len, usize::MAX))
}

/// A text as documents; one must have something to predict.
fn cut_documents(path: &Path, bytes: &[u8], separator: &Separator, seq_len: usize) -> Result<TokenBatch> {
    separator.check(bytes, path.display())?;
    let documents = documents::batch(bytes, separator, seq_len, usize::MAX);
    if documents.sequences() == 0 {
        let message = format!(
            "{} has no document of 2 bytes or more between separators {separator:?}: use another --document-separator",
            path.display()
        );
        return Err(DataError::Unusable(message).into());
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_perplexity_that_is_no_number_is_not_that_of_no_label() {
        let json = |loss: Option<f64>| {
            let report = Score { loss, perplexity: loss.map(f64::exp), bits_per_byte: None, tokens: 1 };
            serde_json::to_string(&report).unwrap()
        };
        assert_eq!(json(Some(0.0)), r#"{"loss":0.0,"perplexity":1.0,"tokens":1}"#);
        assert_eq!(json(Some(710.0)), r#"{"loss":710.0,"tokens":1}"#);
        assert_eq!(json(None), r#"{"loss":null,"perplexity":null,"tokens":1}"#);
    }
}
