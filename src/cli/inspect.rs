//! `inspect`: the plan of a strategy for given lengths, mask and ranks, as a table or as JSON; nothing is run.

mod cost;
mod job;
mod micro_batches;
mod print;
mod report;

use std::process::ExitCode;

use context_parallel::error::Result;
pub use job::Arguments;

use super::output;

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let job = job::prepare(&arguments)?;
    cost::announce(&job)?;
    if let Some(tokens) = job.tokens_per_rank {
        let report = micro_batches::compute(&job, tokens)?;
        match arguments.json {
            true => output::json(&report),
            false => micro_batches::print(&report),
        }
        return Ok(ExitCode::SUCCESS);
    }
    let report = report::compute(&job)?;
    match arguments.json {
        true => output::json(&report),
        false => print::print(&report),
    }
    Ok(ExitCode::SUCCESS)
}
