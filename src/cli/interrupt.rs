//! Ctrl-C: the first asks the run to stop, the second ends the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::output;

/// The exit code of a program that an interrupt ended (128 + SIGINT).
const INTERRUPTED: i32 = 130;

/// A flag that is set at the first Ctrl-C (or termination request); at the second the program exits at once. Says so
/// if it `speaks`.
pub fn watch(speaks: bool) -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let watching = ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED);
        }
        if speaks {
            output::note("stopping after this step; press Ctrl-C again to stop at once");
        }
    });
    if let Err(error) = watching {
        output::note(format!("Ctrl-C will end the run at once, without saving: {error}"));
    }
    stop
}
