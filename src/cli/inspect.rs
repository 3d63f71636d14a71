//! `inspect`: the plan of a strategy for given lengths, mask and ranks, as a table or as JSON; nothing is run.

mod micro_batches;

use std::ops::Range;
use std::process::ExitCode;
use std::sync::Arc;

use context_parallel::attention::RankPlan;
use context_parallel::error::Result;
use context_parallel::layout::Batch;
use context_parallel::mask::Mask;
use context_parallel::ops::attention::AttentionShape;
use context_parallel::order::{Deal, DynPlacement};
use context_parallel::plan::{Content, Program, Wire};
use context_parallel::solve::dispatch;
use context_parallel::strategy::select::{self, Chosen};
use serde::Serialize;

use super::args::{self, Combination, Names, Settings, Table};
use super::{machine, output};

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
    /// Query heads, for bytes
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = args::MODEL)]
    heads: usize,
    /// Key/value heads, for bytes [default: as many as query heads]
    #[arg(long, value_name = "N", help_heading = args::MODEL)]
    kv_heads: Option<usize>,
    /// Features of a head, for bytes
    #[arg(long, value_name = "N", default_value_t = 64, help_heading = args::MODEL)]
    head_dim: usize,
    /// Gradients of keys and values travel in bf16, not f32; for --dtype bf16
    #[arg(long, help_heading = args::PARALLELISM)]
    bf16_wire: bool,
    /// Cut the documents into dynamic's micro-batches, with at most so many tokens per rank, as train does [default: one
    /// micro-batch of all]
    #[arg(long, value_name = "N", help_heading = args::PARALLELISM)]
    tokens_per_rank: Option<usize>,
    /// Print one JSON object
    #[arg(long, help_heading = args::OUTPUT)]
    json: bool,
}

/// Most ranks, tokens and features of a row: a plan is made and rehearsed for every token on every rank.
const MOST_RANKS: usize = 1 << 12;
const MOST_TOKENS: usize = 1 << 26;
const MOST_FEATURES: usize = 1 << 24;
/// Bytes that a plan takes per token and rank, about: 30 to 76 were measured, by strategy.
const PLAN_BYTES: u64 = 64;
/// Of the JSON object.
const VERSION: u32 = 1;

#[derive(Clone, Copy)]
enum Attended {
    Causal,
    Full,
}
const MASKS: Table<Attended> = &[(&["causal"], Attended::Causal), (&["full"], Attended::Full)];

/// Everything checked.
struct Job {
    settings: Settings,
    lengths: Vec<usize>,
    mask: Mask,
    shape: AttentionShape,
    tokens_per_rank: Option<usize>,
    wire: Wire,
}

/// The plan of all ranks.
#[derive(Clone, Debug, Serialize)]
struct Report {
    /// Of this form; a number is added when a key changes its meaning.
    version: u32,
    strategy: String,
    order: String,
    layout: String,
    cp: usize,
    dtype: String,
    /// Numbers in which gradients of keys and values travel: `accumulated` or `stored`, that is `dtype`.
    gradient_wire: Wire,
    lengths: Vec<usize>,
    /// Identifies strategy, placement and mask; in hexadecimal.
    hash: String,
    /// Attended cells of one query head.
    area: u64,
    /// Mean over the largest number of cells of a rank; 1 is even.
    balance: f64,
    /// Bytes of all ranks, forward and backward.
    bytes: u64,
    /// Cells, rows and keys received and sent of one layer, beside lower bounds. Not where heads are exchanged, nor where
    /// neighbouring tokens lie on different ranks.
    placement: Option<dispatch::Report>,
    ranks: Vec<Rank>,
}

/// The plan of one rank.
#[derive(Clone, Debug, Serialize)]
struct Rank {
    rank: usize,
    rows: usize,
    /// Tokens as (first, step, count).
    tokens: Vec<(usize, usize, usize)>,
    /// Attended cells of one query head; under a head exchange of the whole group's rows.
    area: u64,
    /// Rows of keys and values handed to other ranks in a forward pass.
    rows_sent: usize,
    /// Most rows of keys and values held at a time, in a forward and in a backward pass.
    peak_rows: [usize; 2],
    /// Most bytes that attention holds at a time beyond its operands, in a forward and in a backward pass.
    peak_bytes: [usize; 2],
    /// Stages in which keys and values come from other ranks, in a forward and in a backward pass.
    stages: [usize; 2],
    bytes_forward: usize,
    bytes_backward: usize,
    forward: Program,
    backward: Program,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let job = prepare(&arguments)?;
    if let Some(tokens) = job.tokens_per_rank {
        let report = micro_batches::compute(&job, tokens)?;
        match arguments.json {
            true => output::json(&report),
            false => micro_batches::print(&report),
        }
        return Ok(ExitCode::SUCCESS);
    }
    let report = compute(&job)?;
    if arguments.json {
        output::json(&report);
    } else {
        print(&report);
    }
    Ok(ExitCode::SUCCESS)
}

fn prepare(arguments: &Arguments) -> Result<Job> {
    let mut settings = arguments.combination.settings()?;
    if settings.choice.degree > MOST_RANKS {
        let ranks = settings.choice.degree;
        return Err(args::numbers(format!(
            "--cp is {ranks}: use --cp {MOST_RANKS} or less, every rank is planned for"
        )));
    }
    let lengths = lengths(&arguments.lengths)?;
    let (tokens, ranks) = (lengths.iter().sum::<usize>() as u64, settings.choice.degree as u64);
    let what = format!("a plan of {tokens} tokens on {ranks} ranks");
    machine::check(PLAN_BYTES * tokens * ranks, &what, "use shorter --lengths or a smaller --cp")?;
    let q_heads = args::positive("--heads", arguments.heads)?;
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
        (Attended::Causal, None) => Mask::Causal,
        (Attended::Causal, Some(width)) => Mask::sliding(args::positive("--window", width)?)?,
        (Attended::Full, None) => Mask::Full,
        (Attended::Full, Some(_)) => {
            return Err(args::numbers("--window is for --mask causal: leave one of them out".into()));
        }
    };
    let shape = AttentionShape { q_heads, kv_heads, qk_dim: dim, v_dim: dim, scale: 1.0 };
    let wire = settings.gradient_wire(arguments.bf16_wire)?;
    let tokens_per_rank = settings.tokens_per_rank(arguments.tokens_per_rank, &lengths)?;
    Ok(Job { settings, lengths, mask, shape, tokens_per_rank, wire })
}

/// The lengths of the documents; as many tokens in all as a plan can be rehearsed for.
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

fn compute(job: &Job) -> Result<Report> {
    let chosen = select::chosen(&job.settings.choice)?;
    let batch = chosen.layout.batch_of(&job.lengths)?;
    let _placing = output::phase(format!("placing {}", size(&*batch, job.settings.choice.degree)));
    let deal = chosen.strategy.deal(&*batch, &[(job.mask.clone(), 1)])?;
    placed(job, &chosen, batch, deal)
}

/// What makes planning long, in words.
fn size(batch: &dyn Batch, ranks: usize) -> String {
    let tokens = (0..batch.documents()).map(|i| batch.document(i).stored).sum();
    format!("{} on {}", output::many(tokens, "token"), output::many(ranks, "rank"))
}

/// The plan of a batch that is dealt out like this.
fn placed(job: &Job, chosen: &Chosen, batch: Arc<dyn Batch>, deal: Arc<dyn Deal>) -> Result<Report> {
    let Job { mask, shape, wire, .. } = job;
    let Chosen { strategy, layout, kernel } = chosen;
    let area = mask.lower(&*batch)?.area();
    let first = DynPlacement::new(batch.clone(), *layout, strategy.grid(), 0, deal)?;
    let size = size(&*batch, strategy.degree());
    let checking = output::phase(format!("checking the plan of {size}: all of them run together, as a rehearsal"));
    RankPlan::check(&**strategy, &first, mask)?;
    drop(checking);
    let _planning = output::phase(format!("planning every rank of {size}"));
    let (mut ranks, mut hash) = (Vec::new(), 0);
    for rank in 0..strategy.degree() {
        let placement = first.seen_from(rank)?;
        let plan = RankPlan::new(&**strategy, &placement, mask)?.with_wire(*wire);
        hash = plan.hash();
        let (bytes_forward, bytes_backward) = plan.bytes_sent_of(job.settings.dtype, shape)?;
        let peak = plan.peak_bytes_of(*kernel, job.settings.dtype, shape)?;
        let tokens = placement.runs_of(rank).into_iter().map(|run| (run.start, run.step, run.len));
        ranks.push(Rank {
            rank,
            rows: placement.rows(),
            tokens: tokens.collect(),
            area: plan.forward().area(),
            rows_sent: plan.forward().rows_sent(rank, Content::Keys),
            peak_rows: [plan.forward().peak_rows(), plan.backward().peak_rows()],
            peak_bytes: [peak.0, peak.1],
            stages: [plan.forward().stages(rank), plan.backward().stages(rank)],
            bytes_forward,
            bytes_backward,
            forward: plan.forward().clone(),
            backward: plan.backward().clone(),
        });
    }
    let placement = match strategy.swaps_heads() {
        true => None,
        false => measured(&*batch, mask, &ranks)?,
    };
    let largest = ranks.iter().map(|rank| rank.area).max().unwrap_or(0);
    let mean = ranks.iter().map(|rank| rank.area as f64).sum::<f64>() / ranks.len().max(1) as f64;
    Ok(Report {
        version: VERSION,
        strategy: strategy.name().to_string(),
        order: strategy.order().to_string(),
        layout: layout.name().to_string(),
        cp: strategy.degree(),
        dtype: job.settings.dtype.to_string(),
        gradient_wire: *wire,
        lengths: (0..batch.documents()).map(|i| batch.document(i).stored).collect(),
        hash: format!("{hash:016x}"),
        area,
        balance: if largest == 0 { 1.0 } else { mean / largest as f64 },
        bytes: ranks.iter().map(|rank| (rank.bytes_forward + rank.bytes_backward) as u64).sum(),
        placement,
        ranks,
    })
}

/// The placement's worth; nothing for orders that are not made of blocks of tokens.
fn measured(batch: &dyn Batch, mask: &Mask, ranks: &[Rank]) -> Result<Option<dispatch::Report>> {
    let blocks = |rank: &Rank| -> Option<Vec<Range<usize>>> {
        rank.tokens.iter().map(|&(start, step, len)| (step == 1 || len == 1).then_some(start..start + len)).collect()
    };
    let Some(parts) = ranks.iter().map(blocks).collect::<Option<Vec<_>>>() else { return Ok(None) };
    let documents: Vec<Range<usize>> = (0..batch.documents()).map(|i| batch.document(i).stored_range()).collect();
    let masks = [(mask.lower(batch)?, 1)];
    let problem = dispatch::Problem { masks: &masks, documents: &documents, ranks: parts.len() };
    Ok(Some(dispatch::measure(&problem, &parts)))
}

fn print(report: &Report) {
    let Report { strategy, order, layout, cp, area, balance, hash, .. } = report;
    output::sentence(format!(
        "{strategy} ({order}, {layout}) on {cp} ranks: {} cells, balance {balance:.3}, {} sent, plan {hash}",
        output::count(*area),
        output::bytes(report.bytes),
    ));
    if let Some(placement) = &report.placement {
        let rows = |rows: u64| output::count(rows);
        let cells = |cells: u128| output::count(u64::try_from(cells).unwrap_or(u64::MAX));
        let busiest = placement.area.iter().position(|&area| area == placement.area_max).unwrap_or(0);
        output::sentence(format!(
            "rank {busiest} has most cells, {}, no placement has fewer than {}; {} keys are needed from other ranks, at \
             this balance at least {}",
            cells(placement.area_max),
            cells(placement.area_bound),
            rows(placement.traffic()),
            rows(placement.received_bound),
        ));
    }
    let header =
        ["rank", "tokens", "rows", "cells", "rows sent", "stages", "sent fwd", "sent bwd", "held fwd", "held bwd"];
    let rows = report.ranks.iter().map(|rank| {
        vec![
            rank.rank.to_string(),
            tokens(&rank.tokens),
            output::count(rank.rows as u64),
            output::count(rank.area),
            output::count(rank.rows_sent as u64),
            format!("{} / {}", rank.stages[0], rank.stages[1]),
            output::bytes(rank.bytes_forward as u64),
            output::bytes(rank.bytes_backward as u64),
            output::bytes(rank.peak_bytes[0] as u64),
            output::bytes(rank.peak_bytes[1] as u64),
        ]
    });
    output::line(output::table(&header, 2, rows));
}

/// The first few runs of tokens in words.
fn tokens(runs: &[(usize, usize, usize)]) -> String {
    const SHOWN: usize = 4;
    let word = |&(start, step, len): &(usize, usize, usize)| match (step, len) {
        (_, 1) => start.to_string(),
        (1, _) => format!("{start}..{}", start + len),
        _ => format!("{start}..{} by {step}", start + (len - 1) * step + 1),
    };
    let mut words: Vec<String> = runs.iter().take(SHOWN).map(word).collect();
    if runs.len() > SHOWN {
        words.push(format!("and {} more", runs.len() - SHOWN));
    }
    words.join(", ")
}
