//! A queue of work, and the thread that works it off in order.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use crate::error::{DeviceError, Result};

/// A piece of work: its name, what it waits for, and the work itself.
struct Task {
    name: &'static str,
    after: Vec<Stamp>,
    work: Box<dyn FnOnce() + Send>,
}

/// What is issued is worked off in order by one thread, which ends when nobody can issue any more.
pub(super) struct Queue {
    /// The number of tasks that were issued, and where they go.
    issued: Mutex<(u64, Sender<Task>)>,
    progress: Arc<Progress>,
}

/// How far a queue is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    done: Mutex<u64>,
    grown: Condvar,
    /// The first failure since it was last asked for.
    failure: Mutex<Option<DeviceError>>,
}

/// A place in a queue: everything up to a task.
#[derive(Clone, Debug)]
pub(super) struct Stamp {
    progress: Arc<Progress>,
    ticket: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Progress {
    fn fail(&self, op: &'static str, reason: String) {
        lock(&self.failure).get_or_insert(DeviceError { op, reason });
    }
}

impl Stamp {
    /// Whether it is a place in `queue`.
    pub(super) fn is_of(&self, queue: &Queue) -> bool {
        Arc::ptr_eq(&self.progress, &queue.progress)
    }

    /// Whether both are places in one queue.
    pub(super) fn is_beside(&self, other: &Stamp) -> bool {
        Arc::ptr_eq(&self.progress, &other.progress)
    }

    /// Waits until the queue has come that far.
    pub(super) fn wait(&self) {
        let mut done = lock(&self.progress.done);
        while *done < self.ticket {
            done = self.progress.grown.wait(done).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Queue {
    pub(super) fn start() -> Arc<Self> {
        let (sender, receiver) = channel::<Task>();
        let progress = Arc::new(Progress::default());
        let queue = Arc::new(Queue { issued: Mutex::new((0, sender)), progress: progress.clone() });
        thread::spawn(move || {
            for Task { name, after, work } in receiver {
                after.iter().for_each(Stamp::wait);
                if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
                    let text = panic.downcast_ref::<String>().cloned();
                    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_string()));
                    progress.fail(name, text.unwrap_or_else(|| "it panicked".to_string()));
                }
                *lock(&progress.done) += 1;
                progress.grown.notify_all();
            }
        });
        queue
    }

    /// What went wrong since the last time.
    pub(super) fn failure(&self) -> Result<()> {
        lock(&self.progress.failure).take().map_or(Ok(()), |failure| Err(failure.into()))
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Queue({} issued)", lock(&self.issued).0)
    }
}

/// An op on its way into a queue; nothing else is issued there until it is.
pub struct Issue<'q> {
    queue: &'q Arc<Queue>,
    issued: MutexGuard<'q, (u64, Sender<Task>)>,
    name: &'static str,
    stamp: Stamp,
    after: Vec<Stamp>,
    /// What is done first, in the same place.
    first: Vec<Box<dyn FnOnce() + Send>>,
}

impl<'q> Issue<'q> {
    pub(super) fn new(queue: &'q Arc<Queue>, name: &'static str) -> Self {
        let issued = lock(&queue.issued);
        let stamp = Stamp { progress: queue.progress.clone(), ticket: issued.0 + 1 };
        Issue { queue, issued, name, stamp, after: Vec::new(), first: Vec::new() }
    }

    pub(super) fn queue(&self) -> &Arc<Queue> {
        self.queue
    }

    /// The place that the op will have.
    pub(super) fn stamp(&self) -> &Stamp {
        &self.stamp
    }

    /// The op runs after this.
    pub(super) fn after(&mut self, stamp: &Stamp) {
        if !stamp.is_of(self.queue) {
            self.after.push(stamp.clone());
        }
    }

    /// This is done before the op.
    pub(super) fn first(&mut self, work: impl FnOnce() + Send + 'static) {
        self.first.push(Box::new(work));
    }

    /// The op is not allowed.
    pub(super) fn refuse(&self, reason: String) {
        self.queue.progress.fail(self.name, reason);
    }

    /// Issues the op.
    pub fn run(self, work: impl FnOnce() + Send + 'static) {
        let Issue { mut issued, name, after, first, .. } = self;
        issued.0 += 1;
        let work = Box::new(move || {
            first.into_iter().for_each(|work| work());
            work();
        });
        // The thread ends after the queue.
        let _ = issued.1.send(Task { name, after, work });
    }
}

impl fmt::Debug for Issue<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Issue({})", self.name)
    }
}
