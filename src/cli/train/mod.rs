//! `train`: trains a model on a text or on the recall task.

mod arguments;
mod job;
mod micro_batches;
mod record;
mod report;
mod work;

use std::process::ExitCode;

pub use arguments::Arguments;
use context_parallel::error::Result;
use report::Summary;

use super::engine::Cluster;
use super::interrupt::INTERRUPTED;
use super::output;

pub fn run(arguments: Arguments, cluster: &Cluster) -> Result<ExitCode> {
    let job = job::prepare(&arguments, cluster)?;
    let finished = work::run(&job, cluster, arguments.json)?;
    // Whoever waits for this run must not go on as if it were whole. The first process says so once it has reported:
    // `mpirun` ends all others as soon as one process ends with another code than 0.
    let is_cut_short = finished.interrupted && cluster.speaks();
    let code = if is_cut_short { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS };
    if cluster.speaks() {
        let report = Summary::new(&finished);
        match arguments.json {
            true => output::json(&report),
            false => report.print(),
        }
    }
    Ok(code)
}
