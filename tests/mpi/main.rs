//! Ranks as processes: each case starts this program again under `mpirun`, once per rank, and judges how it ends.
//!
//! `cargo test --features mpi --test mpi [NAME]` runs the cases whose names contain NAME.

use std::path::Path;
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

mod failures;
mod messages;
mod program;

use context_parallel::comm::mpi::{self, MpiComm, MpiOptions};
use context_parallel::error::Result;

/// Names the case to a process that is a rank of it.
const CASE: &str = "CONTEXT_PARALLEL_MPI_CASE";
/// A run that takes longer hangs: no case has a deadline of more than a few seconds, except where nothing goes wrong.
const LIMIT: Duration = Duration::from_secs(60);

/// What the ranks do, and how that must end.
struct Case {
    name: &'static str,
    ranks: &'static [usize],
    options: MpiOptions,
    rank: fn(MpiComm) -> Result<()>,
    /// `None` if all ranks must end well; else what must be on stderr when they end badly.
    says: Option<&'static [&'static str]>,
}

fn main() -> ExitCode {
    let (messages, failures) = (messages::cases(), failures::cases());
    if let Ok(name) = std::env::var(CASE) {
        let mut cases = messages.iter().chain(&failures);
        return live(cases.find(|case| case.name == name).expect("the parent names a case"));
    }
    let asked = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let runs = |cases: &'static [Case]| -> Vec<Run> {
        let runs = cases.iter().flat_map(|case| case.ranks.iter().map(move |&ranks| (case, ranks)));
        runs.map(|(case, ranks)| (format!("{} on {ranks} ranks", case.name), Box::new(move || judge(case, ranks)) as _))
            .collect()
    };
    let programs = program::TESTS.iter().map(|&(name, test)| -> Run {
        (name.to_string(), Box::new(move || std::panic::catch_unwind(test).map_err(|_| "see above".to_string())))
    });
    let (messages, failures): (&[Case], &[Case]) = (messages.leak(), failures.leak());
    let mut failed = all(runs(messages), &asked, 1);
    // Most of the time a silent, frozen or killed rank is waited for: two runs at once are done in half of it.
    failed.extend(all(runs(failures), &asked, 2));
    failed.extend(all(programs.collect(), &asked, 1));
    println!("{} failed: {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What has a name and is right, or says what is wrong.
type Run = (String, Box<dyn FnOnce() -> std::result::Result<(), String> + Send>);

/// Does the runs whose names contain `asked`, so many at once; gives the names of those that are wrong.
fn all(runs: Vec<Run>, asked: &str, at_once: usize) -> Vec<String> {
    let runs: Vec<Run> = runs.into_iter().rev().filter(|(name, _)| name.contains(asked)).collect();
    let (runs, failed) = (Mutex::new(runs), Mutex::new(Vec::new()));
    let next = || runs.lock().expect("nobody panics").pop();
    let work = || {
        while let Some((name, run)) = next() {
            let start = Instant::now();
            let outcome = run();
            let (seconds, word) = (start.elapsed().as_secs_f64(), if outcome.is_ok() { "ok" } else { "FAILED" });
            let report = outcome.err().map_or_else(String::new, |report| format!("\n{report}"));
            println!("{name} ... {word} ({seconds:.1} s){report}");
            if word != "ok" {
                failed.lock().expect("nobody panics").push(name);
            }
        }
    };
    thread::scope(|scope| (0..at_once).for_each(|_| drop(scope.spawn(work))));
    failed.into_inner().expect("nobody panics")
}

/// One rank of a case.
fn live(case: &Case) -> ExitCode {
    let ended = mpi::run_with(case.options, case.rank);
    if let Err(error) = ended.result() {
        eprintln!("error: {error}");
    }
    match ended.leave() {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(7),
    }
}

fn judge(case: &Case, ranks: usize) -> std::result::Result<(), String> {
    let start = Instant::now();
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let output = mpirun(ranks, &program, &[], Path::new("."), &[(CASE, case.name)]);
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    let wrong = if start.elapsed() > LIMIT {
        Some("it hangs".to_string())
    } else if output.status.success() != case.says.is_none() {
        Some(format!("it ended with {}", output.status))
    } else {
        case.says.unwrap_or_default().iter().find(|text| !stderr.contains(*text)).map(|text| format!("no \"{text}\""))
    };
    wrong.map_or(Ok(()), |wrong| Err(format!("{wrong}\n{stdout}\n{stderr}")))
}

/// Runs `program` on so many ranks and gives what they wrote.
fn mpirun(ranks: usize, program: &Path, arguments: &[&str], folder: &Path, set: &[(&str, &str)]) -> Output {
    launch(ranks, program, arguments, folder, set).wait_with_output().expect("mpirun ends")
}

/// Starts `program` on so many ranks; after [`LIMIT`] and a little, `mpirun` ends them all.
fn launch(ranks: usize, program: &Path, arguments: &[&str], folder: &Path, set: &[(&str, &str)]) -> Child {
    let mut command = Command::new("mpirun");
    command.args(["--timeout", &(LIMIT.as_secs() + 5).to_string()]);
    command.args(["-n", &ranks.to_string()]).arg(program).args(arguments).current_dir(folder);
    // Root in a container, and more ranks than cores.
    for name in ["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "OMPI_MCA_rmaps_base_oversubscribe"] {
        command.env(name, "1");
    }
    command.env("OMPI_MCA_mpi_yield_when_idle", "1").envs(set.iter().copied());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("mpirun starts: it is in the package openmpi-bin")
}
