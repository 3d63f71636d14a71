//! Ctrl-C, and a request to terminate: ends the program at once, or, where a command can stop in good order, at the
//! second time.

use std::sync::atomic::{AtomicBool, Ordering};

use context_parallel::files;

use super::output;

/// The exit code of a program that an interrupt ended (128 + SIGINT).
pub const INTERRUPTED: u8 = 130;

/// Whether the command stops by itself at the first interrupt.
static STOPS: AtomicBool = AtomicBool::new(false);
/// Whether it has been asked to.
static ASKED: AtomicBool = AtomicBool::new(false);

/// Watches for interrupts from now on. What is half-written is removed before one ends the program.
pub fn watch() {
    let watching = ctrlc::set_handler(move || {
        if !STOPS.load(Ordering::Relaxed) || ASKED.swap(true, Ordering::Relaxed) {
            let _nothing_is_begun_any_more = files::abandon();
            std::process::exit(INTERRUPTED.into());
        }
        output::note("stopping after this step; press Ctrl-C again to stop at once");
    });
    if let Err(error) = watching {
        output::warn(format!("Ctrl-C will end the program at once, without saving: {error}"));
    }
}

/// The flag that the next interrupt sets, instead of ending the program.
pub fn stops_command() -> &'static AtomicBool {
    STOPS.store(true, Ordering::Relaxed);
    &ASKED
}
