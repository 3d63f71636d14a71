//! What `inspect` is asked for, checked.

use context_parallel::error::Result;
use context_parallel::mask::Mask;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::plan::Wire;
use context_parallel::strategy::select;

use crate::cli::args::{self, Combination, Names, Settings, Table};

/// Print the plan of a strategy: who holds, computes and sends what
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    #[command(flatten)]
    combination: Combination,
    /// Lengths of the documents (thd), or of the sequences, all alike (bshd, sbhd), separated by commas
    #[arg(long, value_name = "N,N,..", allow_hyphen_values = true, help_heading = args::MODEL)]
    lengths: String,
    /// What is attended
    #[arg(long, value_name = "NAME", default_value = "causal", value_parser = Names::new(|| args::of(MASKS)),
        help_heading = args::MODEL)]
    mask: String,
    /// Width of a sliding window under a causal mask, the token itself among them
    #[arg(long, value_name = "N", help_heading = args::MODEL)]
    window: Option<usize>,
    /// Query heads, for bytes [default: 8, or the next multiple of the ranks that exchange heads]
    #[arg(long, value_name = "N", help_heading = args::MODEL)]
    heads: Option<usize>,
    /// Key/value heads, for bytes [default: as many as query heads]
    #[arg(long, value_name = "N", help_heading = args::MODEL)]
    kv_heads: Option<usize>,
    /// Features of a head, for bytes
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = args::MODEL)]
    head_dim: usize,
    /// Gradients of keys and values travel in bf16, not f32; for --dtype bf16
    #[arg(long, help_heading = args::PARALLELISM)]
    bf16_wire: bool,
    /// Cut the documents into dynamic's micro-batches, with at most so many tokens per rank, as train does [default:
    /// one micro-batch of all]
    #[arg(long, value_name = "N", help_heading = args::PARALLELISM)]
    tokens_per_rank: Option<usize>,
    /// Plan for this rank alone, and rehearse nothing: quick for any number of ranks
    #[arg(long, value_name = "R", help_heading = args::PARALLELISM)]
    rank: Option<usize>,
    /// Print one JSON object
    #[arg(long, help_heading = args::OUTPUT)]
    pub json: bool,
}

/// Most ranks, tokens and features of a row.
const MOST_RANKS: usize = 1 << 16;
const MOST_TOKENS: usize = 1 << 30;
const MOST_FEATURES: usize = 1 << 24;
/// Query heads, where nothing is said and they can be shared out.
const DEFAULT_HEADS: usize = 8;

#[derive(Clone, Copy)]
enum MaskName {
    Causal,
    Full,
}
const MASKS: Table<MaskName> = &[(&["causal"], MaskName::Causal), (&["full"], MaskName::Full)];

/// Everything checked.
pub struct Job {
    pub settings: Settings,
    pub lengths: Vec<usize>,
    pub mask: Mask,
    pub shape: AttentionShape,
    pub tokens_per_rank: Option<usize>,
    pub wire: Wire,
    /// The rank to plan for, if not all.
    pub rank: Option<usize>,
}

pub fn prepare(arguments: &Arguments) -> Result<Job> {
    let mut settings = arguments.combination.settings()?;
    let ranks = settings.choice.degree;
    if ranks > MOST_RANKS {
        return Err(args::numbers(format!("--cp is {ranks}: use --cp {MOST_RANKS} or less")));
    }
    if let Some(rank) = arguments.rank.filter(|&rank| rank >= ranks) {
        return Err(args::numbers(format!("--rank is {rank} of {ranks} ranks: use 0 to {}", ranks - 1)));
    }
    if let (Some(rank), Some(_)) = (arguments.rank, arguments.tokens_per_rank) {
        return Err(args::numbers(format!(
            "--rank {rank} is for one plan, --tokens-per-rank makes one per micro-batch: leave one of them out"
        )));
    }
    let lengths = lengths(&arguments.lengths)?;
    let q_heads = match arguments.heads {
        Some(heads) => args::positive("--heads", heads)?,
        None => heads_for(&mut settings)?,
    };
    let kv_heads = args::positive("--kv-heads", arguments.kv_heads.unwrap_or(q_heads))?;
    if !q_heads.is_multiple_of(kv_heads) {
        return Err(args::numbers(format!(
            "--heads is {q_heads} and --kv-heads {kv_heads}: use a number of heads that is a multiple of --kv-heads"
        )));
    }
    settings.fit_heads(q_heads)?;
    let dim = args::positive("--head-dim", arguments.head_dim)?;
    if q_heads.checked_mul(dim).is_none_or(|features| features > MOST_FEATURES) {
        return Err(args::numbers(format!(
            "--heads {q_heads} times --head-dim {dim} is more than {MOST_FEATURES} features: use smaller numbers"
        )));
    }
    let mask = match (args::pick("mask", &arguments.mask, MASKS, &[])?, arguments.window) {
        (MaskName::Causal, None) => Mask::Causal,
        (MaskName::Causal, Some(width)) => Mask::sliding(args::positive("--window", width)?)?,
        (MaskName::Full, None) => Mask::Full,
        (MaskName::Full, Some(_)) => {
            return Err(args::numbers("--window is for --mask causal: leave one of them out".into()));
        }
    };
    let shape = AttentionShape { q_heads, kv_heads, qk_dim: dim, v_dim: dim, scale: 1.0 };
    let wire = settings.gradient_wire(arguments.bf16_wire)?;
    let tokens_per_rank = settings.tokens_per_rank(arguments.tokens_per_rank, &lengths)?;
    Ok(Job { settings, lengths, mask, shape, tokens_per_rank, wire, rank: arguments.rank })
}

/// Query heads where none are asked for: as few from 8 on as the ranks can share out.
fn heads_for(settings: &mut Settings) -> Result<usize> {
    if settings.fit_heads(DEFAULT_HEADS).is_ok() {
        return Ok(DEFAULT_HEADS);
    }
    let ranks = select::chosen(&settings.choice)?.strategy.grid().inner;
    Ok(DEFAULT_HEADS.next_multiple_of(ranks.max(1)))
}

/// The lengths of the documents; no more tokens in all than a plan is made for.
fn lengths(text: &str) -> Result<Vec<usize>> {
    let lengths = text.split(',').map(|text| length(text.trim())).collect::<Result<Vec<usize>>>()?;
    let tokens = lengths.iter().try_fold(0usize, |sum, &length| sum.checked_add(length));
    match tokens {
        Some(tokens) if tokens <= MOST_TOKENS => Ok(lengths),
        _ => Err(args::numbers(format!("--lengths has more than {MOST_TOKENS} tokens in all: use shorter documents"))),
    }
}

fn length(text: &str) -> Result<usize> {
    text.parse().map_err(|_| args::numbers(format!("--lengths has \"{text}\": use numbers of tokens, such as 100,28")))
}
