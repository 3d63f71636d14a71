//! What can be said of a program without running it.

use std::collections::HashSet;

use crate::order::{Rows, Run};
use crate::plan::{Content, Piece, Program, Step, Transfer, View};

/// Refuses a program whose steps name slots, rows or ranks that there are not, that posts an exchange twice, receives
/// keys into slot 0 while this rank's own are there or into a row twice at once, that leaves its queries without a
/// result, or, forward, that does not merge every tile after the first just once before the next.
pub fn check(view: &View, rank: usize, program: &Program, backward: bool) -> Result<(), String> {
    let Program { slots, home, steps, .. } = program;
    if slots.first() != Some(&view.rows(rank)) {
        return Err(format!("slot 0 has {:?} rows and the rank {} of its own", slots.first(), view.rows(rank)));
    }
    if *home >= slots.len() {
        return Err(format!("its gradients come home to slot {home} of {} slots", slots.len()));
    }
    // Tiles whose results are not merged yet: the first needs no merge.
    let (mut tiles, mut unmerged) = (0, false);
    let (mut own_keys, mut posted) = (true, HashSet::new());
    for step in steps {
        match step {
            Step::Post { exchange, content, sends, receives } => {
                if !posted.insert(*exchange) {
                    return Err(format!("exchange {exchange} is posted twice: give every exchange its own number"));
                }
                // The executor lends slot 0 the operands themselves.
                let filled = |receive: &Transfer| receive.slot == 0 && !receive.rows.is_empty();
                if own_keys && *content == Content::Keys && receives.iter().any(filled) {
                    return Err("keys are received into slot 0, which holds the rank's own: use another slot".into());
                }
                // Gradients are added, so several may come for one row.
                let mut repeated = receives.iter().filter_map(|receive| repeated(&receive.rows));
                if let (Content::Keys, Some(row)) = (content, repeated.next()) {
                    return Err(format!("exchange {exchange} receives keys into row {row} of a slot twice"));
                }
                if let Some(several) = receives.iter().find(|receive| receive.peer().is_none()) {
                    return Err(format!("a receive from ranks {:?}: one rank sends it", several.peers.as_slice()));
                }
                if backward && matches!(content, Content::Queries | Content::Results) {
                    return Err(format!("{content:?} in a backward program: only keys and gradients travel there"));
                }
                let limits = |sent: bool| limits(view, rank, program, *content, sent);
                sends.iter().try_for_each(|send| transferred(send, &limits(true), view.ranks()))?;
                receives.iter().try_for_each(|receive| transferred(receive, &limits(false), view.ranks()))?;
            }
            Step::Wait { .. } => {}
            Step::Free { slot } => {
                slot_rows(slots, *slot)?;
                own_keys &= *slot != 0;
            }
            Step::Tile { slot, pieces } => {
                let rows = slot_rows(slots, *slot)?;
                pieces.iter().try_for_each(|piece| attended(piece, view.query_rows(rank), rows))?;
                if !backward && unmerged {
                    return Err(format!("tile {tiles} comes before the result of the one before it is merged"));
                }
                unmerged = tiles > 0;
                tiles += 1;
            }
            Step::Serve { queries, .. } if *queries == 0 || backward => {
                return Err(format!(
                    "queries of slot {queries} served: those of other ranks, in a forward program, are"
                ));
            }
            Step::Serve { queries, slot, pieces } => {
                let (queries, rows) = (
                    slot_rows(&limits(view, rank, program, Content::Queries, true), *queries)?,
                    slot_rows(slots, *slot)?,
                );
                pieces.iter().try_for_each(|piece| attended(piece, queries, rows))?;
            }
            Step::Merge if backward => {}
            Step::Merge if unmerged => unmerged = false,
            Step::Merge => return Err("a merge without a second result".into()),
        }
    }
    match (backward, tiles, unmerged) {
        (false, 0, _) => Err("no tile: its queries have no result".into()),
        (false, _, true) => Err("the result of the last tile is not merged".into()),
        _ => Ok(()),
    }
}

/// A row that a transfer lists more than once.
fn repeated(rows: &Rows) -> Option<usize> {
    let runs = rows.runs();
    let common = |(index, run): (usize, &Run)| {
        runs[..index].iter().find_map(|before| before.common(run)).map(|(_, indices)| run.token(indices.start))
    };
    // Ascending runs, as nearly all are, share nothing.
    match runs.windows(2).all(|pair| pair[0].end() <= pair[1].start) {
        true => None,
        false => runs.iter().enumerate().find_map(common),
    }
}

/// Rows of the slots that a transfer may name: results arrive in the rank's own, whose queries nothing is written into.
fn limits(view: &View, rank: usize, program: &Program, content: Content, sent: bool) -> Vec<usize> {
    let own = view.query_rows(rank);
    match (content, sent) {
        (Content::Keys | Content::Gradients, _) => program.slots.clone(),
        (Content::Queries, false) => std::iter::once(0).chain(program.queries.iter().copied()).collect(),
        (Content::Queries | Content::Results, true) => {
            std::iter::once(own).chain(program.queries.iter().copied()).collect()
        }
        (Content::Results, false) => vec![own],
    }
}

fn slot_rows(slots: &[usize], slot: usize) -> Result<usize, String> {
    slots.get(slot).copied().ok_or_else(|| format!("slot {slot} of {} slots", slots.len()))
}

fn transferred(transfer: &Transfer, slots: &[usize], ranks: usize) -> Result<(), String> {
    let Transfer { peers, slot, rows } = transfer;
    let limit = slot_rows(slots, *slot)?;
    if let Some(peer) = peers.as_slice().iter().find(|&&peer| peer >= ranks) {
        return Err(format!("a message for rank {peer} of {ranks} ranks"));
    }
    match rows.end() > limit {
        true => Err(format!("row {} of slot {slot}, which has {limit} rows", rows.end() - 1)),
        false => Ok(()),
    }
}

fn attended(piece: &Piece, queries: usize, keys: usize) -> Result<(), String> {
    for (what, rows, limit) in [("query", piece.q_rows(), queries), ("key", piece.k_rows(), keys)] {
        if rows.end > limit {
            return Err(format!("a piece of {what} rows {rows:?} where there are {limit}"));
        }
    }
    Ok(())
}
