//! Every supported strategy, order, layout and kernel on every number of ranks, from the support table; and how a
//! case with one row per token is run under one of them.

use std::collections::BTreeSet;
use std::sync::Arc;

use context_parallel::comm::threads;
use context_parallel::error::Result;
use context_parallel::handler::{HandlerRef, UntypedHandler};
use context_parallel::mask::Mask;
use context_parallel::order::{DynPlacement, DynShard, laid_out, token_by_token};
use context_parallel::strategy::select::{self, Choice};
use context_parallel::tensor::{Cpu, Element};

use super::report::CaseReport;
use super::tokens::{Given, Rows, Tensors, TokenCase};

/// Numbers of ranks that every case runs on, besides its own.
pub const RANKS: [usize; 6] = [1, 2, 3, 4, 5, 8];

/// Everything that the support table has for a batch: packed batches need the packed layout, `Single` one rank.
/// `kernels` says whether the kernel matters; if not the first of each line does for all.
pub fn choices(dense: bool, ranks: Option<usize>, kernels: bool) -> Vec<Choice> {
    let mut choices: Vec<Choice> = Vec::new();
    let ranks: BTreeSet<usize> = RANKS.into_iter().chain(ranks).collect();
    for line in select::TABLE {
        for &(layout, kernel) in line.works.iter().filter(|(layout, _)| dense || *layout == "thd") {
            for &order in line.orders {
                for &degree in ranks.iter().filter(|&&degree| line.strategy != "single" || degree == 1) {
                    let (strategy, order, layout) = (line.strategy.to_string(), order.to_string(), layout.to_string());
                    let choice =
                        Choice { strategy, order, layout, kernel: kernel.to_string(), degree, ..Choice::default() };
                    let same = |other: &Choice| Choice { kernel: other.kernel.clone(), ..choice.clone() } == *other;
                    if kernels || !choices.iter().any(same) {
                        choices.push(choice);
                    }
                }
            }
        }
    }
    choices
}

/// A combination in words.
pub fn describe(choice: &Choice) -> String {
    let Choice { strategy, order, layout, kernel, degree, .. } = choice;
    format!("{strategy} {order} {layout} {kernel} on {degree} ranks")
}

/// What one rank does with a case: from the whole inputs to output shards.
pub trait Job: Sync {
    /// Runs on one rank and hands its outputs to `outputs`.
    fn run(
        &self,
        handler: HandlerRef<'_, Cpu<f32>>,
        placement: &Arc<DynPlacement>,
        outputs: &mut Outputs,
    ) -> Result<()>;
}

/// A whole tensor, cut for one rank.
pub fn cut<T: Element>(
    handler: HandlerRef<'_, Cpu<f32>>,
    placement: &Arc<DynPlacement>,
    rows: &Rows,
    narrow: impl Fn(f64) -> T,
) -> Result<DynShard<T>> {
    let values: Vec<T> = rows.values.iter().map(|&value| narrow(value)).collect();
    let full = laid_out(&values, rows.features, &**placement.batch(), placement.layout())?;
    handler.dispatch(placement, &full)
}

/// The outputs of one rank: its own rows and, combined, the whole.
#[derive(Default)]
pub struct Outputs {
    own: Tensors,
    whole: Tensors,
}

impl Outputs {
    /// Takes an output shard, and combines it with those of the other ranks.
    pub fn take<T: Element>(
        &mut self,
        name: &str,
        handler: HandlerRef<'_, Cpu<f32>>,
        shard: &DynShard<T>,
        widen: impl Fn(T) -> f64,
    ) -> Result<()> {
        let (placement, matrix) = (shard.placement(), shard.matrix());
        let local = (0..placement.rows()).flat_map(|local| matrix.row(placement.row_of(placement.rank(), local)));
        let own = Rows { features: matrix.cols(), values: local.map(|&value| widen(value)).collect() };
        let whole = handler.combine(shard)?;
        let whole = token_by_token(&whole, &**placement.batch(), placement.layout());
        let whole = Rows { features: matrix.cols(), values: whole.into_iter().map(widen).collect() };
        self.own.insert(name.to_string(), own);
        self.whole.insert(name.to_string(), whole);
        Ok(())
    }
}

/// Runs a case under every combination that applies to it and compares with what is expected.
pub fn run(case: &TokenCase, job: &dyn Job, report: &mut CaseReport) {
    for choice in choices(case.dense, Some(case.ranks), false) {
        case.run(report, &describe(&choice), choice.order == "zigzag", |case| {
            on_ranks(&choice, &case.lengths, job).map_err(|error| error.to_string())
        });
    }
}

/// Runs a job on every rank.
fn on_ranks(choice: &Choice, lengths: &[usize], job: &dyn Job) -> Result<Given> {
    let chosen = select::chosen(choice)?;
    let batch = chosen.layout.batch_of(lengths)?;
    let by_rank = threads::run(choice.degree, |comm| {
        let handler = UntypedHandler::new(chosen.strategy.clone(), chosen.layout, Cpu::default(), Box::new(comm))?;
        let placement = handler.place_for(batch.clone(), &[(Mask::Causal, 1)])?;
        let mut outputs = Outputs::default();
        job.run(handler.by_ref(), &placement, &mut outputs)?;
        let tokens = (0..placement.rows()).map(|local| placement.token_of(placement.rank(), local)).collect();
        Ok((outputs, tokens))
    })?;
    let mut given = Given::default();
    for (rank, (outputs, tokens)) in by_rank.into_iter().enumerate() {
        assert!(rank == 0 || given.whole == outputs.whole, "rank {rank} combines to something else than rank 0");
        given.whole = outputs.whole;
        given.by_rank.push(outputs.own);
        given.tokens.push(tokens);
    }
    Ok(given)
}
