//! The threads of a device: parked until there is work, which they are given without an allocation.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

/// Threads that are woken for a piece of work and park again; the caller of [`Team::run`] is one of them.
pub(crate) struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Whether some thread is in [`Team::run`].
    is_busy: AtomicBool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    opened: Condvar,
    left: Condvar,
}

#[derive(Default)]
struct State {
    open: Option<Open>,
    /// Workers that have joined and not left.
    inside: usize,
    /// What the first worker that failed panicked with.
    panic: Option<Box<dyn Any + Send>>,
    ends: bool,
}

/// Work that threads may join.
struct Open {
    /// Only called between joining and leaving.
    work: &'static (dyn Fn(usize) + Sync),
    /// Number of the next thread that joins.
    next: usize,
    /// Threads that may be in it, the caller's among them.
    limit: usize,
}

impl Team {
    /// A team of `threads` threads, at least 1: the caller's, and the others that are started now.
    ///
    /// # Errors
    /// If the system does not start one; those that it has started end.
    pub(super) fn new(threads: usize) -> io::Result<Self> {
        let mut team = Team { shared: Arc::default(), workers: Vec::new(), is_busy: AtomicBool::new(false) };
        for number in 1..threads {
            let shared = team.shared.clone();
            let worker = Builder::new().name(format!("cpu {number}")).spawn(move || shared.serve())?;
            team.workers.push(worker);
        }
        Ok(team)
    }

    /// Number of threads, the caller's among them.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work` on up to `limit` threads at once, with another number below `limit` on each: 0 on the caller's, and
    /// the others on those that come before that call is over. So each call has to go on until nothing is left to do.
    /// Returns when all of them have. While the team is at work, for this thread or another, the caller does the work
    /// alone.
    ///
    /// # Panics
    /// With what `work` panicked with on any thread, once all have returned.
    pub(crate) fn run(&self, limit: usize, work: &(dyn Fn(usize) + Sync)) {
        let limit = limit.min(self.threads());
        if limit < 2 || self.is_busy.swap(true, Ordering::Acquire) {
            return work(0);
        }
        // SAFETY: only the lifetime changes. Workers take the reference out of `open` and count themselves in under one
        // lock, and call it only while they are counted. Below, `open` is emptied and the count awaited to be 0 under
        // that lock before this function returns or unwinds; nothing in between unwinds, since `work` is caught.
        let lasting = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(work) };
        self.shared.lock().open = Some(Open { work: lasting, next: 1, limit });
        (1..limit).for_each(|_| self.shared.opened.notify_one());
        let own = catch_unwind(AssertUnwindSafe(|| work(0)));
        let mut state = self.shared.lock();
        state.open = None;
        while state.inside > 0 {
            state = wait(&self.shared.left, state);
        }
        let panic = own.err().or(state.panic.take());
        state.panic = None;
        drop(state);
        self.is_busy.store(false, Ordering::Release);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.lock().ends = true;
        self.shared.opened.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches what panics in its work.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// What a worker does until the team ends.
    fn serve(&self) {
        let mut state = self.lock();
        while !state.ends {
            let Some((work, number)) = state.join() else {
                state = wait(&self.opened, state);
                continue;
            };
            drop(state);
            let result = catch_unwind(AssertUnwindSafe(|| work(number)));
            state = self.lock();
            state.inside -= 1;
            if let Err(panic) = result {
                state.panic.get_or_insert(panic);
            }
            if state.inside == 0 {
                self.left.notify_one();
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Counts a worker in, where work is open to one more.
    fn join(&mut self) -> Option<(&'static (dyn Fn(usize) + Sync), usize)> {
        let open = self.open.as_mut().filter(|open| open.next < open.limit)?;
        let number = open.next;
        open.next += 1;
        self.inside += 1;
        Some((open.work, number))
    }
}

fn wait<'a>(condition: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    condition.wait(state).unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn threads_work_at_once_each_with_a_number_of_its_own() {
        let team = Team::new(3).unwrap();
        for limit in [2, 3, 9] {
            let count = limit.min(3);
            // Nobody passes before all are there.
            let (all, seen) = (Barrier::new(count), Mutex::new(Vec::new()));
            team.run(limit, &|number| {
                all.wait();
                seen.lock().unwrap().push(number);
            });
            let mut seen = seen.into_inner().unwrap();
            seen.sort_unstable();
            assert_eq!(seen, (0..count).collect::<Vec<_>>(), "a limit of {limit}");
        }
    }

    #[test]
    fn work_inside_of_work_is_done_where_it_is() {
        let team = Team::new(2).unwrap();
        let (all, inner) = (Barrier::new(2), AtomicUsize::new(0));
        team.run(2, &|_| {
            all.wait();
            let here = std::thread::current().id();
            team.run(2, &|number| {
                assert_eq!((number, std::thread::current().id()), (0, here));
                inner.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(inner.into_inner(), 2);
    }

    #[test]
    fn a_panic_on_any_thread_reaches_the_caller_and_the_team_goes_on() {
        let team = Team::new(2).unwrap();
        for failing in [0, 1] {
            let (all, is_over) = (Barrier::new(2), AtomicBool::new(false));
            let found = catch_unwind(AssertUnwindSafe(|| {
                team.run(2, &|number| {
                    all.wait();
                    assert_ne!(number, failing, "thread {failing} fails");
                    is_over.store(true, Ordering::Relaxed);
                });
            }));
            let message = *found.unwrap_err().downcast::<String>().unwrap();
            assert!(message.contains(&format!("thread {failing} fails")), "{message}");
            assert!(is_over.into_inner(), "the other thread has ended before the caller goes on");
        }
        let count = AtomicUsize::new(0);
        let all = Barrier::new(2);
        team.run(2, &|_| {
            all.wait();
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 2);
    }

    #[test]
    fn threads_end_with_their_team() {
        let team = Team::new(3).unwrap();
        let shared = Arc::downgrade(&team.shared);
        assert_eq!(shared.strong_count(), 3);
        drop(team);
        assert_eq!(shared.strong_count(), 0);
    }
}
