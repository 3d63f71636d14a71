//! What the user says of a training.

use std::path::PathBuf;

use context_parallel::tensor::DType;
use context_parallel::train::learning_rate::Decay;

use crate::cli::args::{self, Choices, Names, Table};
use crate::cli::inputs;
use crate::cli::model::Reading;

/// Types that a model is trained in.
pub(super) const DTYPES: Table<DType> = &[(&["f32"], DType::F32), (&["bf16"], DType::Bf16)];

/// How the rate falls; the steps of the last one are an option of their own.
pub(super) const SCHEDULES: Table<Decay> = &[
    (&["constant"], Decay::Constant),
    (&["linear"], Decay::Linear),
    (&["cosine"], Decay::Cosine),
    (&["wsd"], Decay::Last(0)),
];

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
    pub(super) model: Option<PathBuf>,
    #[command(flatten)]
    pub(super) reading: Reading,
    /// Fresh model: tiny has 4 layers of width 128, 125m 12 of 768, 1b 22 of 2048 [default: tiny]
    #[arg(long, value_name = "NAME", value_parser = Names::PRESETS, help_heading = args::MODEL)]
    pub(super) preset: Option<String>,
    /// Tokens to predict beyond the next one, each with a block of its own, which a --model without them gets fresh
    /// [default: what the model has; 0 for a preset]
    #[arg(long, value_name = "N", help_heading = args::MODEL)]
    pub(super) mtp_depth: Option<usize>,
    /// Text file (its bytes are the tokens), or "recall" for the synthetic task
    #[arg(long, value_name = "FILE", help_heading = args::MODEL)]
    pub(super) data: Option<PathBuf>,
    #[command(flatten)]
    pub(super) bytes: inputs::Bytes,
    /// What stands between the documents of a text, such as '\n\n' (blank lines) or '<|endoftext|>'. A sequence is then
    /// a document, or a part of at most --seq-len tokens of a longer one, and nothing is predicted across documents
    #[arg(long, value_name = "STRING", allow_hyphen_values = true, help_heading = args::MODEL)]
    pub(super) document_separator: Option<String>,
    /// Tokens of a sequence
    #[arg(long, value_name = "N", default_value_t = 512, help_heading = args::MODEL)]
    pub(super) seq_len: usize,
    /// Share of the text, at its end, held out for validation, from 0 to 0.5
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, allow_negative_numbers = true, help_heading = args::MODEL)]
    pub(super) validation: f64,
    /// Seed of fresh weights and of the data
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = args::MODEL)]
    pub(super) seed: u64,
    #[command(flatten)]
    pub choices: Choices,
    /// Most tokens of a rank in a micro-batch of dynamic [default: 1.1 times the even share of a step]
    #[arg(long, value_name = "N", help_heading = args::PARALLELISM)]
    pub(super) tokens_per_rank: Option<usize>,
    /// Send gradients of keys and values in bf16, not f32: half their bytes, one more rounding; for --dtype bf16
    #[arg(long, help_heading = args::PARALLELISM)]
    pub(super) bf16_wire: bool,
    /// Sum gradients in NCCL's own order, not in that of the ranks: faster, and other bits than every other transport
    /// gives; for --transport nccl
    #[arg(long, help_heading = args::PARALLELISM)]
    pub(super) native_reductions: bool,
    /// Optimizer steps
    #[arg(long, value_name = "N", default_value_t = 200, help_heading = args::TRAINING)]
    pub(super) steps: u64,
    /// Sequences of a micro-batch
    #[arg(long, value_name = "N", default_value_t = 4, help_heading = args::TRAINING)]
    pub(super) batch: usize,
    /// Micro-batches of a step; dynamic makes its own of all --batch times --accumulate sequences
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = args::TRAINING)]
    pub(super) accumulate: usize,
    /// Highest learning rate [default: 3e-3 for a fresh model, 2e-5 for --model]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = args::TRAINING)]
    pub(super) lr: Option<f64>,
    /// Steps over which the rate rises [default: a tenth of the steps, at most 30]
    #[arg(long, value_name = "N", help_heading = args::TRAINING)]
    pub(super) warmup: Option<u64>,
    /// How the rate falls after the warm-up: not, in equal steps, as a cosine, or in equal steps at the end only
    #[arg(long, value_name = "NAME", default_value = "cosine", value_parser = Names::new(|| args::of(SCHEDULES)),
        help_heading = args::TRAINING)]
    pub(super) schedule: String,
    /// Steps at the end over which the rate falls, for --schedule wsd [default: a fifth of the steps]
    #[arg(long, value_name = "N", help_heading = args::TRAINING)]
    pub(super) decay_steps: Option<u64>,
    /// Rate that it falls to [default: a tenth of --lr]
    #[arg(long, value_name = "RATE", allow_negative_numbers = true, help_heading = args::TRAINING)]
    pub(super) min_lr: Option<f64>,
    /// Decay of matrices
    #[arg(long, value_name = "RATE", default_value_t = 0.1, allow_negative_numbers = true,
        help_heading = args::TRAINING)]
    pub(super) weight_decay: f64,
    /// AdamW's decay of the mean of gradients
    #[arg(long, value_name = "SHARE", default_value_t = 0.9, allow_negative_numbers = true,
        help_heading = args::TRAINING)]
    pub(super) beta1: f64,
    /// AdamW's decay of the mean of their squares
    #[arg(long, value_name = "SHARE", default_value_t = 0.95, allow_negative_numbers = true,
        help_heading = args::TRAINING)]
    pub(super) beta2: f64,
    /// What AdamW adds to the root of that
    #[arg(long, value_name = "NUMBER", default_value_t = 1e-8, allow_negative_numbers = true,
        help_heading = args::TRAINING)]
    pub(super) epsilon: f64,
    /// Largest norm of the gradient; 0 for no limit
    #[arg(long, value_name = "NORM", default_value_t = 1.0, allow_negative_numbers = true,
        help_heading = args::TRAINING)]
    pub(super) clip: f64,
    /// Steps between validations [default: 100]
    #[arg(long, value_name = "N", help_heading = args::TRAINING)]
    pub(super) validate_every: Option<u64>,
    /// Compute the inside of each block again in the backward pass, instead of keeping it: slower, less memory
    #[arg(long, help_heading = args::TRAINING)]
    pub(super) recompute: bool,
    /// Folder for the model, run.json, log.jsonl and loss.svg; must not hold another run. Without it nothing is kept
    #[arg(short, long, value_name = "DIR", help_heading = args::OUTPUT)]
    pub(super) out: Option<PathBuf>,
    /// Steps between printed ones; evaluated ones and the last are printed too, and log.jsonl has all
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = args::OUTPUT)]
    pub(super) log_every: u64,
    /// Measure when each kernel and transfer of steps 2 and 3 runs, and write it into --out as trace.json, for
    /// ui.perfetto.dev; for --device cuda
    #[arg(long, help_heading = args::OUTPUT)]
    pub(super) trace: bool,
    /// Print JSON: a line per step, then the summary; with --quiet the summary only
    #[arg(long, help_heading = args::OUTPUT)]
    pub(super) json: bool,
    /// Not available yet
    #[arg(long, value_name = "DIR", num_args = 0..=1, hide = true)]
    pub(super) resume: Option<Option<PathBuf>>,
}
