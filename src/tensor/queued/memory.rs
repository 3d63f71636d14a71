//! Memory whose contents are there once a queue has come that far.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::queue::{Issue, Queue, Stamp};
use crate::tensor::{Buffer, Charge, Element, Host, Real, Storage, bytes_of};

/// Memory of a [`Queued`](super::Queued) device.
pub struct Deferred {
    memory: Arc<Shared>,
    /// One for each owner of the memory.
    owners: Arc<()>,
    /// The queue that last wrote it.
    queue: Arc<Queue>,
    /// Whether the rank that has it received it from another one.
    arrived: AtomicBool,
    charge: Option<Charge>,
}

/// The memory itself, of one owner or several, and what the queues do with it.
#[derive(Debug)]
pub(super) struct Shared {
    bytes: usize,
    contents: Mutex<Option<Host>>,
    uses: Mutex<Uses>,
}

#[derive(Debug, Default)]
struct Uses {
    written: Option<Stamp>,
    /// The latest of each queue since then.
    read: Vec<Stamp>,
    /// Whether it was handed over since it was written.
    left: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn new(bytes: usize, host: Option<Host>) -> Arc<Self> {
        Arc::new(Shared { bytes, contents: Mutex::new(host), uses: Mutex::default() })
    }

    /// The contents, to be read for a while.
    pub(super) fn borrow(&self) -> Host {
        let mut contents = lock(&self.contents);
        let Some(host) = contents.take() else { panic!("memory is read while another queue writes it") };
        let (kept, lent) = host.share();
        *contents = Some(kept);
        lent
    }

    /// The contents, to be written and put back.
    pub(super) fn take(&self) -> Host {
        let Some(host) = lock(&self.contents).take() else { panic!("memory is written by two queues at a time") };
        host
    }

    pub(super) fn put(&self, host: Host) {
        *lock(&self.contents) = Some(host);
    }
}

impl Deferred {
    /// Memory of the queue's device, poisoned.
    pub(super) fn buffer<T: Element>(queue: &Arc<Queue>, mut host: Buffer<T>) -> Buffer<T, Deferred> {
        let len = host.len();
        bytemuck::cast_slice_mut::<T, u8>(&mut host).fill(0xFF);
        let mut host = host.into_storage();
        // The account is that of who holds the memory, not of the ops that are still to run on it.
        let charge = host.take_charge();
        Buffer::from_storage(Self::of(queue, Shared::new(host.capacity(), Some(host)), charge), len)
    }

    fn of(queue: &Arc<Queue>, memory: Arc<Shared>, charge: Option<Charge>) -> Self {
        Deferred { memory, owners: Arc::default(), queue: queue.clone(), arrived: AtomicBool::new(false), charge }
    }

    /// An op reads it.
    pub(super) fn reads(&self, issue: &mut Issue<'_>) -> Arc<Shared> {
        let mut uses = lock(&self.memory.uses);
        self.after_write(&uses, issue);
        uses.read.retain(|stamp| !stamp.is_beside(issue.stamp()));
        uses.read.push(issue.stamp().clone());
        self.memory.clone()
    }

    /// An op writes it: memory that others have too is copied first.
    pub(super) fn writes(&mut self, issue: &mut Issue<'_>) -> Arc<Shared> {
        if Arc::strong_count(&self.owners) > 1 {
            let (shared, own) = (self.reads(issue), Shared::new(self.memory.bytes, None));
            (self.memory, self.owners) = (own.clone(), Arc::default());
            issue.first(move || own.put(copied(&shared, 0..shared.bytes)));
        }
        let mut uses = lock(&self.memory.uses);
        self.after_write(&uses, issue);
        uses.read.iter().for_each(|stamp| issue.after(stamp));
        *uses = Uses { written: Some(issue.stamp().clone()), ..Uses::default() };
        drop(uses);
        self.queue = issue.queue().clone();
        self.arrived = AtomicBool::new(false);
        self.memory.clone()
    }

    /// An op comes after the one that wrote the memory; that of another queue must have been handed over.
    fn after_write(&self, uses: &Uses, issue: &mut Issue<'_>) {
        let Some(written) = &uses.written else { return };
        let handed_over = uses.left && self.arrived.load(Ordering::Relaxed);
        if !written.is_of(issue.queue()) && !handed_over {
            let missing = if uses.left { "received (Storage::arrive)" } else { "handed over (Storage::leave)" };
            issue.refuse(format!("{} bytes that another queue wrote were not {missing}", self.memory.bytes));
        }
        issue.after(written);
    }
}

/// A copy of some bytes of the contents.
fn copied(memory: &Shared, bytes: Range<usize>) -> Host {
    Host::part(&Buffer::<u8>::from_storage(memory.borrow(), memory.bytes), bytes).into_storage()
}

impl Storage for Deferred {
    fn capacity(&self) -> usize {
        self.memory.bytes
    }

    fn leave(&self) {
        lock(&self.memory.uses).left = true;
        self.arrived.store(false, Ordering::Relaxed);
    }

    fn arrive(&mut self) {
        self.arrived = AtomicBool::new(true);
    }

    fn share(self) -> (Self, Self) {
        let other = Deferred {
            memory: self.memory.clone(),
            owners: self.owners.clone(),
            queue: self.queue.clone(),
            arrived: AtomicBool::new(self.arrived.load(Ordering::Relaxed)),
            charge: None,
        };
        (self, other)
    }

    fn beside<T: Element>(source: &Buffer<T, Self>, len: usize) -> Buffer<T, Self> {
        let storage = source.storage();
        let memory = Shared::new(bytes_of::<T>(len), None);
        let mut buffer = Buffer::from_storage(Self::of(&storage.queue, memory, None), len);
        let queue = storage.queue.clone();
        let mut issue = Issue::new(&queue, "beside");
        let (from, to) = (storage.reads(&mut issue), buffer.storage_mut().writes(&mut issue));
        issue.run(move || {
            let beside = Buffer::<u8>::from_storage(from.borrow(), from.bytes);
            let mut new = Host::beside(&beside, to.bytes);
            new.fill(0xFF);
            to.put(new.into_storage());
        });
        buffer
    }

    fn set_charge(&mut self, charge: Option<Charge>) {
        self.charge = charge;
    }

    fn part<T: Element>(source: &Buffer<T, Self>, range: Range<usize>) -> Buffer<T, Self> {
        let (storage, bytes) = (source.storage(), bytes_of::<T>(range.len()));
        let charge = storage.charge.as_ref().map(|charge| charge.ledger().charge(bytes));
        let queue = storage.queue.clone();
        let mut part = Buffer::from_storage(Self::of(&queue, Shared::new(bytes, None), charge), range.len());
        let mut issue = Issue::new(&queue, "part");
        let (from, to) = (storage.reads(&mut issue), part.storage_mut().writes(&mut issue));
        issue.run(move || to.put(copied(&from, range.start * size_of::<T>()..range.end * size_of::<T>())));
        part
    }

    fn write<T: Element>(target: &mut Buffer<T, Self>, at: usize, from: &Buffer<T, Self>) {
        Self::onto("write", target, from, move |target, from| Host::write(target, at, from));
    }

    fn add<T: Real>(target: &mut Buffer<T, Self>, at: usize, from: &Buffer<T, Self>) {
        Self::onto("add", target, from, move |target, from| Host::add(target, at, from));
    }
}

impl Deferred {
    /// An op of the queue that last wrote `target`.
    fn onto<T: Element>(
        name: &'static str,
        target: &mut Buffer<T, Self>,
        from: &Buffer<T, Self>,
        work: impl FnOnce(&mut Buffer<T>, &Buffer<T>) + Send + 'static,
    ) {
        let queue = target.storage().queue.clone();
        let mut issue = Issue::new(&queue, name);
        let sizes = (from.len(), target.len());
        let (from, target) = (from.storage().reads(&mut issue), target.storage_mut().writes(&mut issue));
        issue.run(move || {
            let mut to = Buffer::from_storage(target.take(), sizes.1);
            work(&mut to, &Buffer::from_storage(from.borrow(), sizes.0));
            target.put(to.into_storage());
        });
    }
}

impl fmt::Debug for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Deferred({} bytes)", self.memory.bytes)
    }
}
