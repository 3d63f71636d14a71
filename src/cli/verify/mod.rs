//! `verify`: every supported combination against the float64 oracle, against `Single`, and against its plan.

use std::process::ExitCode;

use context_parallel::degree::Grid;
use context_parallel::error::Result;
use context_parallel::strategy::select::{self, Choice};
use context_parallel::strategy::{CpStrategy, RingUlysses, Single};
use context_parallel::tensor::DType;
use serde::Serialize;

use super::args::{self, EngineArguments, Names};
use super::engine::Cluster;
use super::hardware::Hardware;
use super::output;

mod attention;
mod bounds;
mod model;

/// Most ranks that can be verified: each is a thread, and the model has two query heads per rank.
const MOST_RANKS: usize = 64;

/// Check every supported strategy x layout x kernel against a float64 oracle and a single rank
#[derive(clap::Args, Clone, Debug)]
pub struct Arguments {
    /// Numbers of ranks, separated by commas
    #[arg(long, value_name = "N,N,..", default_value = "1,2,3,4", allow_hyphen_values = true)]
    cp: String,
    /// Storage type
    #[arg(long, value_name = "NAME", default_value = "f32", value_parser = Names::DTYPES)]
    dtype: String,
    /// Threads of each rank [default: the machine's cores shared out over the ranks]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    #[command(flatten)]
    pub engine: EngineArguments,
    /// Print one JSON object
    #[arg(long, help_heading = args::OUTPUT)]
    json: bool,
}

/// Everything checked.
#[derive(Clone, Debug)]
struct Job {
    cp: Vec<usize>,
    dtype: DType,
    hardware: Hardware,
    /// Threads per rank, if the user says.
    threads: Option<usize>,
    transport: String,
}

/// One combination: relative errors, the bytes that all ranks sent, and the most that a rank held.
#[derive(Clone, Debug, Serialize)]
struct VerifyRow {
    strategy: String,
    order: String,
    layout: String,
    kernel: String,
    cp: usize,
    /// How `ring-ulysses` groups the ranks, of those numbers that can be grouped in several ways.
    grid: Option<Grid>,
    dtype: String,
    transport: String,
    err_out: f64,
    err_dq: f64,
    err_dk: f64,
    err_dv: f64,
    err_loss: f64,
    err_grad: f64,
    bytes_predicted: u64,
    bytes_counted: u64,
    peak_bytes_predicted: u64,
    peak_bytes_counted: u64,
    /// Whether the row is within its bounds; part of `ok`.
    #[serde(skip)]
    ok: bool,
}

#[derive(Clone, Debug, Serialize)]
struct VerifyReport {
    ok: bool,
    rows: Vec<VerifyRow>,
}

pub fn run(arguments: Arguments, cluster: &Cluster) -> Result<ExitCode> {
    let rows = compute(&prepare(&arguments, cluster)?, cluster)?;
    if !cluster.speaks() {
        return Ok(ExitCode::SUCCESS);
    }
    let report = VerifyReport { ok: !rows.is_empty() && rows.iter().all(|row| row.ok), rows };
    if arguments.json {
        output::json(&report);
    } else {
        print(&report);
    }
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn prepare(arguments: &Arguments, cluster: &Cluster) -> Result<Job> {
    let mut cp = args::rank_list(&arguments.cp)?;
    if let Some(cp) = cp.iter().find(|&&cp| cp > MOST_RANKS) {
        return Err(args::numbers(format!(
            "--cp is {cp}: verify runs on at most {MOST_RANKS} ranks, use --cp {MOST_RANKS} or less"
        )));
    }
    cp.sort_unstable();
    cp.dedup();
    cp.iter().try_for_each(|&ranks| cluster.check(ranks))?;
    let dtype = args::dtype(&arguments.dtype)?;
    let hardware = arguments.engine.device.hardware(dtype)?;
    let threads = arguments.threads.map(args::given_threads).transpose()?;
    Ok(Job { cp, dtype, hardware, threads, transport: arguments.engine.transport.clone() })
}

fn print(report: &VerifyReport) {
    let header = [
        "strategy", "order", "layout", "kernel", "cp", "out", "dq", "dk", "dv", "loss", "gradient", "bytes", "plan",
        "peak", "plan", "",
    ];
    let rows = report.rows.iter().map(|row| {
        let errors = [row.err_out, row.err_dq, row.err_dk, row.err_dv, row.err_loss, row.err_grad];
        let mut cells = vec![row.strategy.clone(), row.order.clone(), row.layout.clone(), row.kernel.clone()];
        cells.push(row.grid.map_or_else(|| row.cp.to_string(), |grid| grid.to_string()));
        cells.extend(errors.map(output::relative));
        let bytes = [row.bytes_counted, row.bytes_predicted, row.peak_bytes_counted, row.peak_bytes_predicted];
        cells.extend(bytes.map(output::count));
        cells.push(if row.ok { "ok" } else { "WRONG" }.to_string());
        cells
    });
    output::line(output::table(&header, 4, rows));
    let wrong = report.rows.iter().filter(|row| !row.ok).count();
    output::line(match wrong {
        0 => format!("all {} combinations are right", report.rows.len()),
        wrong => format!("{wrong} of {} combinations are wrong", report.rows.len()),
    });
}

/// One row per supported strategy x order x layout x kernel and number of ranks (for `ring-ulysses` each grid of them),
/// where this process speaks.
fn compute(job: &Job, cluster: &Cluster) -> Result<Vec<VerifyRow>> {
    let mut choices: Vec<Choice> = Vec::new();
    for &degree in &job.cp {
        for (strategy, layout, kernel) in select::combinations() {
            if strategy == Single::NAME && degree != 1 {
                continue;
            }
            let grids = grids(strategy, degree);
            for &order in select::orders(strategy) {
                let [strategy, order, layout, kernel] = [strategy, order, layout, kernel].map(str::to_string);
                let choice = Choice { strategy, order, layout, kernel, degree, ..Choice::default() };
                choices.extend(grids.iter().map(|&grid| Choice { grid, ..choice.clone() }));
            }
        }
    }
    let bar = cluster.bar(choices.len() as u64, "verifying");
    let mut references = model::References::new((job.hardware, job.dtype), cluster);
    let rows = choices.iter().filter_map(|choice| {
        let Choice { strategy, order, layout, kernel, degree, .. } = choice;
        bar.set_message(format!("{strategy} {order} {layout} on {degree}"));
        let what = format!("verifying {strategy} {order} {layout} {kernel} on {}", output::many(*degree, "rank"));
        let _verifying = output::phase_beside(&bar, what);
        let row = row(job, choice, &mut references, cluster);
        bar.inc(1);
        row.transpose()
    });
    let rows = rows.collect();
    bar.finish_and_clear();
    rows
}

/// The grids that a strategy is checked on; none is its own choice, which it has for any number of ranks.
fn grids(strategy: &str, ranks: usize) -> Vec<Option<Grid>> {
    let mixed: Vec<_> = Grid::mixed(ranks).map(Some).collect();
    if strategy == <RingUlysses>::NAME && !mixed.is_empty() { mixed } else { vec![None] }
}

fn row(job: &Job, choice: &Choice, references: &mut model::References, cluster: &Cluster) -> Result<Option<VerifyRow>> {
    let threads = cluster.threads(job.threads, choice.degree)?;
    let attended = attention::check(cluster, choice, (job.hardware, job.dtype), threads)?;
    let model = references.check(choice, threads)?;
    let (Some((attended, alone)), Some((model, model_alone))) = (attended, model) else { return Ok(None) };
    let [err_out, err_dq, err_dk, err_dv] = attended.errors;
    let [err_loss, err_grad] = model;
    let within = bounds::attention(job.dtype, choice.degree, attended.errors, alone.map(|alone| alone.errors))
        && bounds::model(job.dtype, choice.degree, model, model_alone);
    Ok(Some(VerifyRow {
        strategy: choice.strategy.clone(),
        order: choice.order.clone(),
        layout: choice.layout.clone(),
        kernel: choice.kernel.clone(),
        cp: choice.degree,
        grid: choice.grid,
        dtype: job.dtype.to_string(),
        transport: job.transport.clone(),
        err_out,
        err_dq,
        err_dk,
        err_dv,
        err_loss,
        err_grad,
        bytes_predicted: attended.sent.predicted,
        bytes_counted: attended.sent.counted,
        peak_bytes_predicted: attended.peak.predicted,
        peak_bytes_counted: attended.peak.counted,
        ok: within && attended.mispredicted == 0,
    }))
}
