//! Threads that the system refuses.

use std::process::Command;

/// Every thread asks for 256 MiB of stack in an address space of 4 GiB: enough for a rank, not for its 64 threads.
#[cfg(target_os = "linux")]
#[test]
fn threads_that_do_not_start_are_an_error_before_any_work() {
    let attention = "bench attention --heads 1 --seq 16 --head-dim 8";
    let limited = |threads: usize| {
        let program = env!("CARGO_BIN_EXE_context-parallel");
        let script = format!("ulimit -v 4194304 && exec {program} {attention} --threads {threads}");
        Command::new("sh").args(["-c", &script]).env("RUST_MIN_STACK", "268435456").output().unwrap()
    };
    let refused = limited(64);
    let message = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code(), Some(2), "{message}");
    assert!(refused.stdout.is_empty());
    for part in ["does not start 64 threads", "use fewer (--threads)"] {
        assert!(message.contains(part), "\"{part}\" is not in\n{message}");
    }
    let fits = limited(2);
    assert_eq!(fits.status.code(), Some(0), "{}", String::from_utf8_lossy(&fits.stderr));
}
