//! The plan of all ranks, or of one, and what it comes to.

use std::ops::Range;
use std::sync::Arc;

use context_parallel::attention::RankPlan;
use context_parallel::error::Result;
use context_parallel::layout::Batch;
use context_parallel::mask::Mask;
use context_parallel::order::{Deal, DynPlacement};
use context_parallel::plan::{Content, Program, Wire};
use context_parallel::solve::dispatch;
use context_parallel::strategy::select::{self, Chosen};
use serde::Serialize;

use super::job::Job;
use crate::cli::output;

/// Of the JSON object.
const VERSION: u32 = 2;

/// The plan of all ranks, or of one.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Of this form; a number is added when a key changes its meaning.
    pub version: u32,
    pub strategy: String,
    pub order: String,
    pub layout: String,
    pub cp: usize,
    pub dtype: String,
    /// Numbers in which gradients of keys and values travel: `accumulated` or `stored`, that is `dtype`.
    pub gradient_wire: Wire,
    pub lengths: Vec<usize>,
    /// Identifies strategy, placement and mask; in hexadecimal.
    pub hash: String,
    /// Attended cells of one query head.
    pub area: u64,
    /// Mean over the largest number of cells of a rank; 1 is even. Of all ranks only.
    pub balance: Option<f64>,
    /// Bytes of all ranks, forward and backward. Of all ranks only.
    pub bytes: Option<u64>,
    /// Cells, rows and keys received and sent of one layer, beside lower bounds. Not of one rank, nor where heads are
    /// exchanged, nor where neighbouring tokens lie on different ranks.
    pub placement: Option<dispatch::PlacementReport>,
    pub ranks: Vec<Rank>,
}

/// The plan of one rank.
#[derive(Clone, Debug, Serialize)]
pub struct Rank {
    pub rank: usize,
    pub rows: usize,
    /// Tokens as (first, step, count).
    pub tokens: Vec<(usize, usize, usize)>,
    /// Attended cells of one query head; under a head exchange of the whole group's rows.
    pub area: u64,
    /// Rows of keys and values handed to other ranks in a forward pass.
    pub rows_sent: usize,
    /// Most rows of keys and values held at a time, in a forward and in a backward pass.
    pub peak_rows: [usize; 2],
    /// Most bytes that attention holds at a time beyond its operands, in a forward and in a backward pass.
    pub peak_bytes: [usize; 2],
    /// Stages in which keys and values come from other ranks, in a forward and in a backward pass.
    pub stages: [usize; 2],
    pub bytes_forward: usize,
    pub bytes_backward: usize,
    pub forward: Program,
    pub backward: Program,
}

pub fn compute(job: &Job) -> Result<Inspection> {
    let chosen = select::chosen(&job.settings.choice)?;
    let batch = chosen.layout.batch_of(&job.lengths)?;
    let placing = output::phase(format!("placing {}", size(&*batch, job.settings.choice.degree)));
    let deal = chosen.strategy.deal(&*batch, &[(job.mask.clone(), 1)])?;
    drop(placing);
    placed(job, &chosen, batch, deal)
}

/// What makes planning long, in words.
fn size(batch: &dyn Batch, ranks: usize) -> String {
    let tokens = (0..batch.documents()).map(|i| batch.document(i).stored).sum();
    format!("{} on {}", output::many(tokens, "token"), output::many(ranks, "rank"))
}

/// The plan of a batch that is dealt out like this.
pub fn placed(job: &Job, chosen: &Chosen, batch: Arc<dyn Batch>, deal: Arc<dyn Deal>) -> Result<Inspection> {
    let Chosen { strategy, layout, .. } = chosen;
    let area = job.mask.lower(&*batch)?.area();
    let first = DynPlacement::new(batch.clone(), *layout, strategy.grid(), job.rank.unwrap_or(0), deal)?;
    let size = size(&*batch, strategy.degree());
    let (mut ranks, mut hash) = (Vec::new(), 0);
    let mut plan = |placement: &Arc<DynPlacement>| -> Result<()> {
        let plan = RankPlan::new(&**strategy, placement, &job.mask)?.with_wire(job.wire);
        hash = plan.hash();
        ranks.push(of_rank(job, chosen, placement, plan)?);
        Ok(())
    };
    match job.rank {
        Some(rank) => {
            let _planning = output::phase(format!("planning rank {rank} of {size}"));
            plan(&first)?;
        }
        None => {
            let checking =
                output::phase(format!("checking the plan of {size}: all of them run together, as a rehearsal"));
            RankPlan::check(&**strategy, &first, &job.mask)?;
            drop(checking);
            let _planning = output::phase(format!("planning every rank of {size}"));
            (0..strategy.degree()).try_for_each(|rank| plan(&first.seen_from(rank)?))?;
        }
    }
    let placement = match strategy.swaps_heads() || job.rank.is_some() {
        true => None,
        false => measured(&*batch, &job.mask, &ranks)?,
    };
    let largest = ranks.iter().map(|rank| rank.area).max().unwrap_or(0);
    let mean = ranks.iter().map(|rank| rank.area as f64).sum::<f64>() / ranks.len().max(1) as f64;
    let balance = if largest == 0 { 1.0 } else { mean / largest as f64 };
    let bytes = ranks.iter().map(|rank| (rank.bytes_forward + rank.bytes_backward) as u64).sum();
    Ok(Inspection {
        version: VERSION,
        strategy: strategy.name().to_string(),
        order: strategy.order().to_string(),
        layout: layout.name().to_string(),
        cp: strategy.degree(),
        dtype: job.settings.dtype.to_string(),
        gradient_wire: job.wire,
        lengths: (0..batch.documents()).map(|i| batch.document(i).stored).collect(),
        hash: format!("{hash:016x}"),
        area,
        balance: job.rank.is_none().then_some(balance),
        bytes: job.rank.is_none().then_some(bytes),
        placement,
        ranks,
    })
}

/// The plan of one rank, with what it comes to.
fn of_rank(job: &Job, chosen: &Chosen, placement: &DynPlacement, plan: RankPlan) -> Result<Rank> {
    let (rank, dtype) = (placement.rank(), job.settings.dtype);
    let (bytes_forward, bytes_backward) = plan.bytes_sent_of(dtype, &job.shape)?;
    let peak = plan.peak_bytes_of(chosen.kernel, dtype, &job.shape)?;
    let tokens = placement.runs_of(rank).into_iter().map(|run| (run.start, run.step, run.len));
    Ok(Rank {
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
    })
}

/// The placement's worth; nothing for orders that are not made of blocks of tokens.
fn measured(batch: &dyn Batch, mask: &Mask, ranks: &[Rank]) -> Result<Option<dispatch::PlacementReport>> {
    let blocks = |rank: &Rank| -> Option<Vec<Range<usize>>> {
        rank.tokens.iter().map(|&(start, step, len)| (step == 1 || len == 1).then_some(start..start + len)).collect()
    };
    let Some(parts) = ranks.iter().map(blocks).collect::<Option<Vec<_>>>() else { return Ok(None) };
    let documents: Vec<Range<usize>> = (0..batch.documents()).map(|i| batch.document(i).stored_range()).collect();
    let masks = [(mask.lower(batch)?, 1)];
    let problem = dispatch::Problem { masks: &masks, documents: &documents, ranks: parts.len() };
    Ok(Some(dispatch::measure(&problem, &parts)))
}
