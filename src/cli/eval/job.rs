//! What is evaluated, once everything is checked that can be checked without work.

use std::path::{Path, PathBuf};

use context_parallel::error::{DataError, Result};
use context_parallel::model::Config;
use context_parallel::train::data::{Recall, Source, TokenBatch, windows};
use context_parallel::train::documents::{self, Separator};
use context_parallel::train::tokens::{LabelMeaning, TokenFile};

use super::arguments::Arguments;
use crate::cli::args::{self, Settings};
use crate::cli::engine::Cluster;
use crate::cli::model::check_weights;
use crate::cli::recall::{RECALL, RECALL_VOCAB};
use crate::cli::{inputs, machine, output};

/// Tokens of a sequence where neither the user nor a short text says so.
const SEQ_LEN: usize = 512;
/// Sequences of the recall task.
const RECALL_SEQUENCES: usize = 64;

/// Everything checked, nothing written.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) model: PathBuf,
    pub(super) config: Config,
    pub(super) settings: Settings,
    /// Every sequence to run; labels where something is to be predicted.
    pub(super) input: TokenBatch,
    /// What the input is called in messages.
    pub(super) name: String,
    /// What it was taken for, where there is a choice.
    pub(super) note: Option<String>,
    /// Whether tokens are the bytes of a text.
    pub(super) is_bytes: bool,
    /// Sequences at a time.
    pub(super) batch: usize,
    pub(super) logits: Option<Logits>,
}

/// Where logits go.
#[derive(Clone, Debug)]
pub(super) struct Logits {
    pub(super) path: PathBuf,
    /// Rows of the input, and tokens of each.
    pub(super) shape: [usize; 2],
}

pub(super) fn prepare(arguments: &Arguments, cluster: &Cluster) -> Result<Job> {
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
