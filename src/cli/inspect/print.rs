//! The plan of all ranks, or of one, as a table.

use super::report::Inspection;
use crate::cli::output;

pub fn print(report: &Inspection) {
    let Inspection { strategy, order, layout, cp, area, balance, bytes, hash, .. } = report;
    let mut words = vec![format!("{} cells", output::count(*area))];
    words.extend(balance.map(|balance| format!("balance {balance:.3}")));
    words.extend(bytes.map(|bytes| format!("{} sent", output::bytes(bytes))));
    output::sentence(format!("{strategy} ({order}, {layout}) on {cp} ranks: {}, plan {hash}", words.join(", ")));
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
