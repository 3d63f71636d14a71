//! Checks of plans before anything runs: a rehearsal of all ranks' programs with tokens in place of numbers.

mod actor;
mod due;
mod shape;
mod sums;

use actor::{Actor, Mail};
use due::Due;

use crate::error::{PlanError, Result};
use crate::plan::{Program, View};

/// Rehearses the forward and backward programs of all ranks (`programs[rank]`), and refuses them unless
///
/// - every step names slots, rows and ranks that there are, and forward every tile after the first is merged once;
/// - no rank waits for ever, and every send has its receive, under the same number of the exchange;
/// - every tile reads the tokens that it says it reads;
/// - every attended token is held by one rank;
/// - every attended cell is computed exactly once, over all ranks and tiles, forward and backward;
/// - the gradient of every key arrives home from every query that attends it, exactly once.
///
/// "Exactly once" is decided by sums of 64-bit hashes, so a wrong plan passes with a probability of about 2^-64. Takes
/// time in the rows that move and the rows of the pieces, not in the attended cells.
pub fn check(strategy: &'static str, view: &View, programs: &[(Program, Program)]) -> Result<()> {
    let unsound = |what: String| PlanError::Unsound { strategy, what };
    let expected = Due::new(view);
    expected.check_holders().map_err(unsound)?;
    for (direction, backward) in [("forward", false), ("backward", true)] {
        let mut ranks = Vec::with_capacity(programs.len());
        for (rank, (forward, back)) in programs.iter().enumerate() {
            let program = if backward { back } else { forward };
            shape::check(view, rank, program, backward)
                .map_err(|what| unsound(format!("{direction}, rank {rank}: {what}")))?;
            ranks.push(Actor::new(view, rank, program));
        }
        let mut mail = Mail::new();
        let mut moved = true;
        while moved {
            moved = false;
            for actor in &mut ranks {
                moved |= actor.run(&mut mail).map_err(|what| unsound(format!("{direction}, {what}")))?;
            }
        }
        if let Some((rank, step)) = ranks.iter().find_map(|actor| Some((actor.rank, actor.waits_at()?))) {
            return Err(unsound(format!("{direction}, rank {rank} waits for ever at {step:?}")).into());
        }
        if let Some((rank, exchange)) = ranks.iter().find_map(|actor| Some((actor.rank, actor.never_waited_for()?))) {
            return Err(unsound(format!("{direction}, rank {rank} never waits for exchange {exchange}")).into());
        }
        let unread = mail.iter().filter(|(_, lane)| lane.has_unread());
        if let Some((from, to)) = unread.map(|(&ends, _)| ends).min() {
            return Err(unsound(format!("{direction}, rank {from} sends to rank {to}, which expects nothing")).into());
        }
        for actor in &ranks {
            expected.check(actor, backward).map_err(|what| unsound(format!("{direction}, {what}")))?;
        }
    }
    Ok(())
}

/// Refuses the programs of the view's rank where they name slots, rows or ranks that there are not, or leave results
/// unmerged: what can be said without the other ranks, in the time that it takes to read them.
pub fn check_rank(strategy: &'static str, view: &View, [forward, backward]: [&Program; 2]) -> Result<()> {
    for (direction, program, is_backward) in [("forward", forward, false), ("backward", backward, true)] {
        let rank = view.rank();
        shape::check(view, rank, program, is_backward)
            .map_err(|what| PlanError::Unsound { strategy, what: format!("{direction}, rank {rank}: {what}") })?;
    }
    Ok(())
}
