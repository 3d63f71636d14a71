//! Clocks for deadlines and simulated links: the real one, and one that tests turn by hand.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Tells the time to what waits.
pub trait Clock: fmt::Debug + Send + Sync {
    /// Time since some fixed moment.
    fn now(&self) -> Duration;

    /// How long, in real time, a thread that has `left` on this clock may sleep before it looks again.
    fn nap(&self, left: Duration) -> Duration {
        left
    }
}

/// The time that passes.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    start: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        SystemClock { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that moves only when told; its clones show the same time.
#[derive(Clone, Debug, Default)]
pub struct ManualClock {
    now: Arc<Mutex<Duration>>,
}

impl ManualClock {
    /// Moves the time on.
    pub fn advance(&self, by: Duration) {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Duration {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nap(&self, left: Duration) -> Duration {
        left.min(Duration::from_millis(1))
    }
}
