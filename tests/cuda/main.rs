//! Everything that the processor computes, on a GPU or on the libraries that stand in for one.
//!
//! Without a driver, NVRTC or cuBLASLt nothing is run, and the reason is printed; `.ci/cuda` builds stand-ins from
//! `tests/emulator` and runs this on them. `cargo test --features cuda --test cuda [NAME]`.

mod attention;
mod cost;
#[path = "../allocations/counter.rs"]
mod counter;
mod counts;
#[path = "../common/devices.rs"]
mod devices;
mod golden;
#[allow(dead_code, reason = "models alone run here")]
#[path = "../common/golden/mod.rs"]
mod golden_kinds;
mod memory;
mod nccl;
mod ops;
mod program;
mod ranks;
mod transfers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Instant;

use context_parallel::tensor::cuda::probe::Library;

/// A test: its name, and what it runs.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    if let Some(missing) = Library::ALL.into_iter().find(|library| !library.is_present()) {
        println!("SKIPPED: tests on GPUs, because {}", missing.missing());
        return ExitCode::SUCCESS;
    }
    if let [path @ ("typed" | "plain"), times] =
        &std::env::args().skip(1).map(|x| x.leak() as &str).collect::<Vec<_>>()[..]
        && let Ok(times) = times.parse()
    {
        cost::run(path, times);
        return ExitCode::SUCCESS;
    }
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let tests: Vec<Test> =
        [ops::TESTS, attention::TESTS, memory::TESTS, counts::TESTS, cost::TESTS, transfers::TESTS, nccl::TESTS]
            .concat();
    let tests = [tests, [ranks::TESTS, golden::TESTS, program::TESTS].concat()].concat();
    let mut failed = Vec::new();
    for (name, test) in tests.into_iter().filter(|(name, _)| name.contains(&wanted)) {
        let started = Instant::now();
        let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
        let verdict = if passed { "ok" } else { "FAILED" };
        println!("{name} ... {verdict} ({:.1} s)", started.elapsed().as_secs_f64());
        failed.extend((!passed).then_some(name));
    }
    println!("{} failed: {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
