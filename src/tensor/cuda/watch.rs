//! Waits of the host for a stream that may stand still because of another rank.

use std::sync::{Arc, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use cudarc::driver::{DriverError, result, sys};

use super::place::Place;
use super::probe::said;
use crate::error::{Error, Result};

/// How long the host asks without a break: most reads are over by then.
const BRISK: Duration = Duration::from_millis(2);
/// The longest break.
const NAP: Duration = Duration::from_micros(50);
/// How often it is asked whether there is still something to wait for.
const LOOK: Duration = Duration::from_millis(2);

/// Somebody who lets streams wait for other ranks, and knows why they stand still.
pub(crate) trait Watch: Send + Sync {
    /// Whether a stream may stand still.
    fn is_open(&self) -> bool;

    /// Why not to wait any longer, after so long.
    fn look(&self, waited: Duration) -> Result<()>;

    /// Lets the streams go on, whatever is in the memory that they wait for.
    fn give_up(&self, error: &Error);
}

impl Place {
    /// From now on waits of the host ask `watch`, as long as somebody has it.
    pub(crate) fn watch(&self, watch: Weak<dyn Watch>) {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.retain(|watch| watch.strong_count() > 0);
        watches.push(watch);
    }

    /// Those by whom the streams may stand still.
    pub(super) fn open_watches(&self) -> Vec<Arc<dyn Watch>> {
        let watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        watches.iter().filter_map(Weak::upgrade).filter(|watch| watch.is_open()).collect()
    }

    /// Waits for everything that was asked of a stream, which may stand still.
    fn wait_watched(&self, stream: sys::CUstream, watches: &[Arc<dyn Watch>]) {
        let since = Instant::now();
        let mut looked = since;
        loop {
            if !self.is_well() {
                return;
            }
            // SAFETY: the stream is alive.
            match unsafe { sys::cuStreamQuery(stream).result() } {
                Ok(()) => return,
                Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_READY)) => {}
                Err(error) => return self.fail("read", said(&error)),
            }
            if looked.elapsed() >= LOOK {
                looked = Instant::now();
                if let Some(error) = watches.iter().find_map(|watch| watch.look(since.elapsed()).err()) {
                    watches.iter().for_each(|watch| watch.give_up(&error));
                    return self.fail_with(error);
                }
            }
            match since.elapsed() < BRISK {
                true => thread::yield_now(),
                false => thread::sleep(NAP),
            }
        }
    }

    /// Waits for everything that was asked of the streams, if they may stand still: where the driver would wait next,
    /// without asking anybody.
    pub(super) fn wait_if_watched(&self) {
        let watches = self.open_watches();
        if !watches.is_empty() {
            [self.stream(), self.transfers()].into_iter().for_each(|stream| self.wait_watched(stream, &watches));
        }
    }

    /// Waits for everything that was asked of the stream for computing.
    ///
    /// # Errors
    /// What went wrong there first.
    pub(super) fn finish(&self) -> Result<()> {
        self.interrupt("a wait");
        match &*self.open_watches() {
            // SAFETY: the stream is alive.
            [] => self.attempt("read", || unsafe { result::stream::synchronize(self.stream()) }),
            watches => self.wait_watched(self.stream(), watches),
        }
        self.check()
    }
}
