//! What a plan will take, before it is made.

use std::time::Duration;

use context_parallel::error::Result;
use context_parallel::strategy::{CpStrategy, Dynamic, Magi};
use indicatif::HumanDuration;

use super::job::Job;
use crate::cli::{machine, output};

/// From when on it is worth a word.
const LONG: Duration = Duration::from_secs(2);
const LARGE: u64 = 1 << 30;

/// Estimated time on one core, and memory.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cost {
    nanoseconds: f64,
    bytes: f64,
}

impl Cost {
    /// Of the plans of documents of these lengths: measured on one core, for what grows with the runs that meet, with
    /// the ranks, with the ranks that a rank serves, and in a rehearsal with the rows that all ranks hold.
    fn of(lengths: &[usize], ranks: usize, serves: bool, rehearsed: bool) -> Self {
        let (ranks, tokens) = (ranks as f64, lengths.iter().sum::<usize>() as f64);
        // A rank has a document in at most two runs, and all ranks have it in at most two each.
        let met = |&length: &usize| length.min(2) as f64 * (length as f64).min(2.0 * ranks);
        let pieces: f64 = lengths.iter().map(met).sum();
        let served = if serves { ranks * ranks } else { 0.0 };
        let one = Cost {
            nanoseconds: 300.0 * pieces + 3e4 * ranks + 2.5e3 * served,
            bytes: 100.0 * pieces + 5e3 * ranks + 360.0 * served,
        };
        match rehearsed {
            false => one,
            true => Cost {
                nanoseconds: ranks * one.nanoseconds + 150.0 * tokens * ranks,
                bytes: ranks * one.bytes + 25.0 * tokens * ranks,
            },
        }
    }
}

/// Says what the plan will take where that is much, and refuses what the machine has no memory for.
pub fn announce(job: &Job) -> Result<()> {
    let (lengths, ranks) = (&job.lengths, job.settings.choice.degree);
    let serves = [<Magi>::NAME, <Dynamic>::NAME].contains(&job.settings.choice.strategy.as_str());
    let cost = Cost::of(lengths, ranks, serves, job.rank.is_none());
    let (time, bytes) = (Duration::from_nanos(cost.nanoseconds as u64), cost.bytes as u64);
    let tokens = output::many(lengths.iter().sum(), "token");
    let on = match job.rank {
        Some(rank) => format!("rank {rank} of {}", output::many(ranks, "rank")),
        None => output::many(ranks, "rank"),
    };
    let fix = match job.rank {
        Some(_) => "use shorter --lengths or a smaller --cp",
        None => "use --rank for one rank's plan, shorter --lengths or a smaller --cp",
    };
    machine::check(bytes, &format!("a plan of {tokens} on {on}"), fix)?;
    if time > LONG || bytes > LARGE {
        output::note(format!(
            "a plan of {tokens} on {on} takes about {} and {} of memory{}",
            HumanDuration(time),
            output::bytes(bytes),
            if job.rank.is_none() { "; --rank makes that of one rank" } else { "" },
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rank_costs_little_whatever_the_ranks() {
        let one = Cost::of(&[1 << 22], 4096, false, false);
        assert!(one.nanoseconds < 5e8 && one.bytes < 1e8, "{one:?}");
        let all = Cost::of(&[1 << 22], 4096, false, true);
        assert!(all.nanoseconds > 1e12 && all.bytes > 1e11, "{all:?}");
        // Measured: 2.1 seconds.
        let measured = Cost::of(&[1 << 18], 64, false, true);
        assert!((1e9..6e9).contains(&measured.nanoseconds), "{measured:?}");
    }
}
