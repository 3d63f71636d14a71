//! `demo`: trains a small GPT on the recall task on 2 ranks, then compares every supported combination with `Single`.

use std::process::ExitCode;

use context_parallel::error::Result;
use serde::Serialize;

use super::output;

/// Train a small GPT across 2 ranks on a task that only works across ranks, then compare every combination
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Seed of the weights and the data
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// One strategy x layout, compared with `Single`.
#[derive(Clone, Debug, Serialize)]
struct Row {
    strategy: String,
    layout: String,
    kernel: String,
    cp: usize,
    /// Relative difference of the loss.
    loss_diff: f64,
    /// Norm of the difference of the whole gradient over the norm of `Single`'s.
    grad_diff: f64,
    bytes_per_rank: u64,
    /// Mean over the largest number of attended cells of a rank; 1 is even.
    balance: f64,
    ms: f64,
}

#[derive(Clone, Debug, Serialize)]
struct Report {
    accuracy: f64,
    seconds: f64,
    rows: Vec<Row>,
}

pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let report = compute(&arguments)?;
    if arguments.json {
        output::json(&report);
    } else {
        print(&report);
    }
    Ok(ExitCode::SUCCESS)
}

fn print(report: &Report) {
    output::line(format!("recall accuracy {:.1} % on 2 ranks after {:.1} s", 100.0 * report.accuracy, report.seconds));
    let header = ["strategy", "layout", "kernel", "cp", "loss diff", "gradient diff", "bytes/rank", "balance", "ms"];
    let rows = report.rows.iter().map(|row| {
        vec![
            row.strategy.clone(),
            row.layout.clone(),
            row.kernel.clone(),
            row.cp.to_string(),
            output::relative(row.loss_diff),
            output::relative(row.grad_diff),
            output::bytes(row.bytes_per_rank),
            format!("{:.2}", row.balance),
            format!("{:.1}", row.ms),
        ]
    });
    output::line(output::table(&header, 3, rows));
}

// SECOND TASK: train, then one step of every row of the support table.
fn compute(arguments: &Arguments) -> Result<Report> {
    let _ = arguments.seed;
    todo!("the demo")
}
