//! The micro-batches that the scheduler of `dynamic` cuts documents into, each with its plan.

use std::ops::Range;
use std::sync::Arc;

use context_parallel::error::Result;
use context_parallel::order::{DealOf, Grouped};
use context_parallel::solve::schedule::{self, Group, schedule};
use context_parallel::strategy::select;
use serde::Serialize;

use super::job::Job;
use super::report::{self, Inspection};
use crate::cli::output;

/// All micro-batches.
#[derive(Clone, Debug, Serialize)]
pub struct Scheduled {
    strategy: String,
    cp: usize,
    lengths: Vec<usize>,
    /// Attended cells of one query head.
    area: u64,
    /// Bytes of all ranks, forward and backward.
    bytes: u64,
    /// What the scheduler reached, beside its limits and bounds.
    schedule: schedule::ScheduleReport,
    micro_batches: Vec<PlannedMicroBatch>,
}

#[derive(Clone, Debug, Serialize)]
struct PlannedMicroBatch {
    /// Documents by their index in the lengths.
    groups: Vec<Group>,
    /// Attention work of the busiest rank, in query-key pairs.
    busiest: schedule::Pairs,
    rows_received: u128,
    plan: Inspection,
}

pub fn compute(job: &Job, tokens_per_rank: usize) -> Result<Scheduled> {
    let (lengths, ranks) = (&job.lengths, job.settings.choice.degree);
    let (documents, on) = (output::many(lengths.len(), "document"), output::many(ranks, "rank"));
    let scheduling = output::phase(format!("scheduling {documents} on {on}"));
    let schedule = schedule(lengths, ranks, Some(tokens_per_rank))?;
    drop(scheduling);
    let chosen = select::chosen(&job.settings.choice)?;
    let mut micro_batches = Vec::with_capacity(schedule.micro_batches.len());
    for micro in schedule.micro_batches {
        let own: Vec<usize> = micro.documents().map(|document| lengths[document]).collect();
        let batch = chosen.layout.batch_of(&own)?;
        let deal = Arc::new(DealOf::<Grouped>(micro.table(&*batch, ranks)?));
        micro_batches.push(PlannedMicroBatch {
            busiest: micro.busiest(lengths, ranks),
            rows_received: micro.rows_received(lengths),
            plan: report::placed(job, &chosen, batch, deal)?,
            groups: micro.groups,
        });
    }
    let sum = |of: fn(&Inspection) -> u64| micro_batches.iter().map(|micro| of(&micro.plan)).sum();
    Ok(Scheduled {
        strategy: job.settings.choice.strategy.clone(),
        cp: ranks,
        lengths: lengths.clone(),
        area: sum(|plan| plan.area),
        bytes: sum(|plan| plan.bytes.unwrap_or(0)),
        schedule: schedule.report,
        micro_batches,
    })
}

pub fn print(report: &Scheduled) {
    let Scheduled { strategy, cp, lengths, bytes, schedule, micro_batches, .. } = report;
    let rows = |rows: u128| output::count(u64::try_from(rows).unwrap_or(u64::MAX));
    let pairs = |work: schedule::Pairs| output::count(work.to_f64().round() as u64);
    output::sentence(format!(
        "{strategy} on {cp} ranks of at most {} tokens: {} in {}, {} sent",
        output::count(schedule.tokens_limit as u64),
        output::many(lengths.len(), "document"),
        output::many(micro_batches.len(), "micro-batch"),
        output::bytes(*bytes),
    ));
    output::sentence(format!(
        "{} of keys and values received, within these limits at least {}; makespan {} query-key pairs, at most {} \
         allowed, at least {}",
        output::many(usize::try_from(schedule.rows_received).unwrap_or(usize::MAX), "row"),
        rows(schedule.rows_bound),
        pairs(schedule.makespan),
        pairs(schedule.makespan_limit),
        pairs(schedule.makespan_bound),
    ));
    let header = ["micro-batch", "ranks", "documents", "tokens", "tokens per rank", "rows received"];
    let blocks = micro_batches.iter().enumerate().flat_map(|(index, micro)| {
        blocks(&micro.groups).into_iter().map(move |(ranks, block)| {
            let documents: Vec<usize> = block.documents().collect();
            let tokens: usize = documents.iter().map(|&document| lengths[document]).sum();
            let each = block.tokens(lengths, *cp).into_iter().max().unwrap_or(0);
            vec![
                index.to_string(),
                if ranks.len() == 1 { ranks.start.to_string() } else { format!("{}..{}", ranks.start, ranks.end) },
                named(&documents),
                output::count(tokens as u64),
                output::count(each as u64),
                rows(block.rows_received(lengths)),
            ]
        })
    });
    output::line(output::table(&header, 3, blocks));
}

/// Documents by the ranks that they share.
fn blocks(groups: &[Group]) -> Vec<(Range<usize>, schedule::MicroBatch)> {
    let mut blocks: Vec<(Range<usize>, schedule::MicroBatch)> = Vec::new();
    for group in groups {
        let ranks = group.first..group.first + group.degree;
        match blocks.iter_mut().find(|(other, _)| *other == ranks) {
            Some((_, block)) => block.groups.push(group.clone()),
            None => blocks.push((ranks, schedule::MicroBatch { groups: vec![group.clone()] })),
        }
    }
    blocks.sort_by_key(|(ranks, _)| (ranks.start, ranks.end));
    blocks
}

/// The first few documents in words.
fn named(documents: &[usize]) -> String {
    const SHOWN: usize = 8;
    let mut words: Vec<String> = documents.iter().take(SHOWN).map(usize::to_string).collect();
    if documents.len() > SHOWN {
        words.push(format!("and {} more", documents.len() - SHOWN));
    }
    words.join(", ")
}
