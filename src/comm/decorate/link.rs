//! A decorator that gives messages the travel time of a real link, so that overlap can be shown in one process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::comm::clock::{Clock, SystemClock};
use crate::comm::groups::Groups;
use crate::comm::{Communicator, Completion, DynComm, Message, Operation, Pending, Receive, Received};
use crate::error::Result;
use crate::tensor::Storage;

/// The links between all ranks of a process. Make one, and give every rank a clone of the `Arc`.
#[derive(Debug)]
pub struct Link {
    latency: Duration,
    bytes_per_second: f64,
    clock: Arc<dyn Clock>,
    groups: Groups,
    /// When messages arrive, by (group, sender, receiver).
    arrivals: Mutex<BTreeMap<Way, Arrivals>>,
}

/// Group, sender, receiver.
type Way = (u64, usize, usize);

/// When the messages of one way arrive: the n-th that is sent is the n-th that is expected.
#[derive(Debug, Default)]
struct Arrivals {
    sent: u64,
    expected: u64,
    due: BTreeMap<u64, Duration>,
    /// Given up before they were sent.
    unwanted: BTreeSet<u64>,
}

impl Arrivals {
    /// The next message will arrive at `due`.
    fn announce(&mut self, due: Duration) {
        if !self.unwanted.remove(&self.sent) {
            self.due.insert(self.sent, due);
        }
        self.sent += 1;
    }

    /// The message announced last is not sent.
    fn withdraw(&mut self) {
        self.sent -= 1;
        if self.due.remove(&self.sent).is_none() {
            self.unwanted.insert(self.sent);
        }
    }

    /// The number of the next message that nobody expects yet.
    fn expect(&mut self) -> u64 {
        self.expected += 1;
        self.expected - 1
    }

    /// When the message of this number arrives, if it is sent.
    fn take(&mut self, number: u64) -> Option<Duration> {
        self.due.remove(&number)
    }

    /// Nobody asks for an expected message any more.
    fn discard(&mut self, number: u64) {
        if self.due.remove(&number).is_none() && number >= self.sent {
            self.unwanted.insert(number);
        }
    }
}

impl Link {
    /// A message posted at time t can be taken out at t + `latency` + bytes / `bytes_per_second`. Messages do not
    /// slow each other down. A rate of 0 or less, or NaN, is taken as without limit.
    pub fn new(latency: Duration, bytes_per_second: f64) -> Arc<Self> {
        Self::with_clock(latency, bytes_per_second, Arc::new(SystemClock::default()))
    }

    /// A link in the time of `clock`.
    pub fn with_clock(latency: Duration, bytes_per_second: f64, clock: Arc<dyn Clock>) -> Arc<Self> {
        let (groups, arrivals) = (Groups::default(), Mutex::default());
        Arc::new(Link { latency, bytes_per_second, clock, groups, arrivals })
    }

    /// Time that a message of so many bytes is under way.
    pub fn travel(&self, bytes: usize) -> Duration {
        let seconds = if self.bytes_per_second > 0.0 { bytes as f64 / self.bytes_per_second } else { 0.0 };
        self.latency.saturating_add(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
    }

    fn arrivals(&self) -> MutexGuard<'_, BTreeMap<Way, Arrivals>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sleeps until the clock shows `due`.
    fn sleep_until(&self, due: Duration) {
        while let Some(left) = due.checked_sub(self.clock.now()).filter(|left| !left.is_zero()) {
            std::thread::sleep(self.clock.nap(left));
        }
    }
}

/// A communicator whose messages take the time of a [`Link`]. Every rank must be wrapped, with the same link.
/// Collectives are written on its exchanges, whatever the engine has, so that each of their messages takes its time.
#[derive(Debug)]
pub struct SimulatedLink<C> {
    inner: C,
    link: Arc<Link>,
    group: u64,
    splits: AtomicU64,
}

impl<C> SimulatedLink<C> {
    /// Puts `link` between the ranks of `inner`.
    pub fn new(inner: C, link: Arc<Link>) -> Self {
        SimulatedLink { inner, link, group: Groups::ALL, splits: AtomicU64::new(0) }
    }
}

impl<S: Storage, C: Communicator<S>> Communicator<S> for SimulatedLink<C> {
    as_inner!();

    fn exchange(&self, operation: Operation, messages: Vec<Message<S>>, receives: Vec<Receive>) -> Result<Pending<S>> {
        let me = self.inner.rank();
        let now = self.link.clock.now();
        let ways = |message: &Message<S>| {
            let travel = self.link.travel(message.parcel.bytes());
            message.to.ranks().iter().map(|&to| ((self.group, me, to), travel)).collect::<Vec<_>>()
        };
        let sent: Vec<(Way, Duration)> = messages.iter().flat_map(ways).collect();
        let expected: Vec<Way> = receives.iter().map(|receive| (self.group, receive.from, me)).collect();
        {
            // Arrival times go ahead of the messages, so a message that has come has its time.
            let mut arrivals = self.link.arrivals();
            for &(way, travel) in &sent {
                arrivals.entry(way).or_default().announce(now.saturating_add(travel));
            }
        }
        let posted = self.inner.exchange(operation, messages, receives);
        let mut arrivals = self.link.arrivals();
        let pending = posted.inspect_err(|_| {
            sent.iter().for_each(|&(way, _)| arrivals.entry(way).or_default().withdraw());
        })?;
        let messages = expected.into_iter().map(|way| (way, arrivals.entry(way).or_default().expect())).collect();
        let expected = Arrival { link: self.link.clone(), messages };
        Ok(Pending::new(Delayed { pending, expected }))
    }

    fn barrier(&self) -> Result<()> {
        self.inner.barrier()
    }

    fn split(&self, color: usize, key: usize) -> Result<DynComm<S>> {
        let inner = self.inner.split(color, key)?;
        let group = self.link.groups.number(self.group, self.splits.fetch_add(1, Ordering::Relaxed), color);
        Ok(Box::new(SimulatedLink { inner, link: self.link.clone(), group, splits: AtomicU64::new(0) }))
    }
}

/// Messages whose arrival times this rank has not read yet.
struct Arrival {
    link: Arc<Link>,
    messages: Vec<(Way, u64)>,
}

impl Drop for Arrival {
    fn drop(&mut self) {
        let mut arrivals = self.link.arrivals();
        for (way, number) in self.messages.drain(..) {
            arrivals.entry(way).or_default().discard(number);
        }
    }
}

struct Delayed<S> {
    pending: Pending<S>,
    expected: Arrival,
}

impl<S: Storage> Completion<S> for Delayed<S> {
    fn complete(self: Box<Self>) -> Result<Received<S>> {
        let Delayed { pending, mut expected } = *self;
        let received = pending.wait()?;
        let due = {
            let mut arrivals = expected.link.arrivals();
            let messages = std::mem::take(&mut expected.messages).into_iter();
            messages.filter_map(|(way, number)| arrivals.entry(way).or_default().take(number)).max()
        };
        if let Some(due) = due {
            expected.link.sleep_until(due);
        }
        Ok(received)
    }
}

#[cfg(test)]
mod tests;
