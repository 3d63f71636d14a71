//! What the user says of an evaluation.

use std::path::PathBuf;

use clap::{ArgGroup, ValueEnum};
use context_parallel::train::tokens::LabelMeaning;

use crate::cli::args::{self, Choices};
use crate::cli::inputs;
use crate::cli::model::Reading;

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
    pub(super) model: PathBuf,
    #[command(flatten)]
    pub(super) reading: Reading,
    /// Text file (its bytes are the tokens), cut into consecutive sequences, or "recall" for the synthetic task
    #[arg(long, value_name = "FILE", help_heading = args::MODEL)]
    pub(super) data: Option<PathBuf>,
    /// Token ids: a safetensors file with "tokens" (or "input_ids") [B, S] of i64; each row is a sequence. It may hold
    /// "labels", "loss_mask", "document_ids" or "cu_seqlens", "position_ids" and "attention_mask" (README)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seq_len", "seed", "document_separator", "bytes"],
        help_heading = args::MODEL)]
    pub(super) tokens: Option<PathBuf>,
    /// Whether "labels" of --tokens are those of the tokens at their own places (unshifted, as Hugging Face has them)
    /// or of the tokens after them (shifted, as Megatron has them) [default: found out by comparing them with the
    /// tokens]
    #[arg(long, value_enum, value_name = "MEANING", conflicts_with = "data", help_heading = args::MODEL)]
    pub(super) labels: Option<Labels>,
    #[command(flatten)]
    pub(super) bytes: inputs::Bytes,
    /// Tokens of a sequence of --data [default: 512, or the whole text where it is shorter]
    #[arg(long, value_name = "N", help_heading = args::MODEL)]
    pub(super) seq_len: Option<usize>,
    /// What stands between the documents of a text, such as '\n\n' (blank lines): a sequence is then a document, or a
    /// part of at most --seq-len tokens of a longer one
    #[arg(long, value_name = "STRING", allow_hyphen_values = true, help_heading = args::MODEL)]
    pub(super) document_separator: Option<String>,
    /// Sequences at a time
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = args::MODEL)]
    pub(super) batch: usize,
    /// Seed of the recall task [default: 0]
    #[arg(long, value_name = "N", help_heading = args::MODEL)]
    pub(super) seed: Option<u64>,
    #[command(flatten)]
    pub choices: Choices,
    /// Write the logits here as a safetensors file with "logits" [B, S, V] of f32, replacing it
    #[arg(long, value_name = "FILE", help_heading = args::OUTPUT)]
    pub(super) logits: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long, help_heading = args::OUTPUT)]
    pub(super) json: bool,
}

/// A [`LabelMeaning`] by name.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Labels {
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
