//! Checks of a placement: that an order deals every token out once, in order, within documents.

use std::sync::Arc;

use super::{Case, Check, Failure, Subject};
use crate::conformance::trial::{documents, tokens_by_row};
use crate::error::Result;
use crate::layout::Batch;
use crate::mask::Mask;
use crate::oracle;
use crate::order::DynPlacement;

/// How a strategy deals out a batch for a mask, seen from every rank.
pub(super) fn of(subject: &Subject, batch: &Arc<dyn Batch>, mask: &Mask) -> Result<Vec<Arc<DynPlacement>>> {
    let Subject { strategy, layout } = subject;
    let deal = strategy.deal(&**batch, &[(mask.clone(), 1)])?;
    let seen_from = |rank| DynPlacement::new(batch.clone(), *layout, strategy.grid(), rank, deal.clone());
    (0..strategy.degree()).map(seen_from).collect()
}

/// Every token is held once, in ascending order and in runs within documents; then positions.
pub(super) fn check(case: &Case, placements: &[Arc<DynPlacement>]) -> Result<(), Failure> {
    let Some(placement) = placements.first() else { return Ok(()) };
    let batch = &**placement.batch();
    let mut holder: Vec<Option<usize>> = vec![None; batch.tokens()];
    for rank in 0..placement.ranks() {
        let fails = |what: String| Err(case.fails(Check::TokenCover, format!("rank {rank}: {what}")));
        let runs = placement.runs_of(rank);
        let crosses = |run: &&crate::order::Run| {
            run.len == 0
                || run.end() > batch.tokens()
                || batch.document_of(run.start) != batch.document_of(run.end() - 1)
        };
        if let Some(run) = runs.iter().find(crosses) {
            return fails(format!("{run:?} is empty, leaves the batch or crosses a document"));
        }
        let mut before = None;
        for token in runs.iter().flat_map(|run| run.iter()) {
            if let Some(other) = holder[token].replace(rank) {
                return fails(format!("token {token} is held by rank {other} too"));
            }
            if before.replace(token).is_some_and(|before| before >= token) {
                return fails(format!("token {token} comes after a larger one: tokens must ascend within a rank"));
            }
        }
        if batch.uniform().is_some() {
            let sequences = batch.documents();
            let in_sequence = |index| runs.iter().filter(move |run| batch.document_of(run.start) == index);
            let rows = |index| in_sequence(index).map(|run| run.len).sum::<usize>();
            if let Some(index) = (1..sequences).find(|&index| rows(index) != rows(0)) {
                return fails(format!(
                    "it holds {} rows of sequence 0 and {} of sequence {index}: sequences of a dense batch are dealt \
                     out alike",
                    rows(0),
                    rows(index)
                ));
            }
        }
    }
    if let Some(token) = holder.iter().position(Option::is_none) {
        return Err(case.fails(Check::TokenCover, format!("token {token} is held by no rank")));
    }
    positions(case, placements)
}

fn positions(case: &Case, placements: &[Arc<DynPlacement>]) -> Result<(), Failure> {
    for (rank, placement) in placements.iter().enumerate() {
        let documents = documents(&**placement.batch());
        let position = |token: usize| {
            let holds =
                |document: &&oracle::Document| (document.start..document.start + document.stored).contains(&token);
            documents.iter().find(holds).map(|document| token - document.start)
        };
        let tokens = tokens_by_row(placement, rank);
        for (row, (found, token)) in placement.positions().into_iter().zip(tokens).enumerate() {
            if Some(found) != position(token) {
                let expected = position(token);
                return Err(case.fails(
                    Check::Positions,
                    format!("rank {rank}: row {row} holds token {token}, position {expected:?}, and says {found}"),
                ));
            }
        }
    }
    Ok(())
}
