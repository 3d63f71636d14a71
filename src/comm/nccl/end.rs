//! The end of communicators. It takes every rank, so it is not waited for where a rank is done with its communicator:
//! one that has failed still has to tell the others.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::link::Link;

/// Communicators of this process that are ending.
static ENDING: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// Counts one of them.
struct Counted;

impl Counted {
    fn new() -> Self {
        change(|ending| *ending += 1);
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        change(|ending| *ending -= 1);
    }
}

fn change(change: impl FnOnce(&mut usize)) {
    change(&mut ENDING.0.lock().unwrap_or_else(PoisonError::into_inner));
    ENDING.1.notify_all();
}

/// Ends a communicator in a thread of its own; at once if there is no thread to be had.
pub(super) fn later(link: Link) {
    let counted = Counted::new();
    let thread = thread::Builder::new().name("end of nccl".into()).spawn(move || {
        link.finish();
        drop((link, counted));
    });
    // Without a thread the link was dropped, which aborts it.
    drop(thread);
}

/// Waits until all communicators of this process that nobody has any more are ended, for so long at most; whether they
/// are. A process that ends before may take from another rank what it is still receiving.
pub fn ended(within: Duration) -> bool {
    let ending = ENDING.0.lock().unwrap_or_else(PoisonError::into_inner);
    let woken = ENDING.1.wait_timeout_while(ending, within, |ending| *ending > 0);
    let ending = *woken.map_or_else(|poisoned| poisoned.into_inner().0, |woken| woken.0);
    ending == 0
}
