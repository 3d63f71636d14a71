//! Device memory, and in what order streams use it.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys;

use super::event::Event;
use super::kernel::{Dims, Kernel};
use super::launch::{Arguments as _, Geometry, RawView};
use super::place::Place;
use super::pool::Slab;
use super::suffix_of;
use crate::tensor::{Buffer, Charge, Element, Real, Storage, bytes_of};

/// Memory of a [`Cuda`](super::Cuda) device.
///
/// Each owner of a piece of memory knows the stream that it is in order with. Memory that is handed to another rank
/// carries the point at which it left its stream, for which the receiver's waits. Memory that goes back to its pool
/// carries what other streams still do with it.
pub struct CudaMemory {
    held: Mutex<Held>,
    bytes: usize,
    charge: Option<Charge>,
}

struct Held {
    block: Arc<Block>,
    /// In the order of whose stream this owner uses it.
    place: Arc<Place>,
    /// Whether the rank that has it received it from another one, and has not used it since.
    arrived: bool,
}

/// Memory of one owner, or of several that only read it.
pub(super) struct Block {
    /// None if there was none left.
    slab: Option<Slab>,
    bytes: usize,
    /// Where it is from, and goes back to.
    home: Arc<Place>,
    uses: Mutex<Uses>,
}

#[derive(Default)]
struct Uses {
    /// The point at which it was handed over since it was last written.
    left: Option<Arc<Event>>,
    /// The last uses of owners that gave it up.
    read: Vec<Arc<Event>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Block {
    pub(super) fn new(slab: Option<Slab>, bytes: usize, home: Arc<Place>) -> Self {
        Block { slab, bytes, home, uses: Mutex::default() }
    }

    fn address(&self) -> sys::CUdeviceptr {
        self.slab.as_ref().map_or(0, |slab| slab.address)
    }

    /// What is asked of `place` from now on comes after what other streams did with the memory, or still do if it is
    /// written.
    pub(super) fn come_after_others(&self, place: &Place, is_written: bool) {
        lock(&self.uses).left.iter().for_each(|left| place.wait_for(left));
        if is_written {
            self.come_after_readers(place);
        }
    }

    /// It is written next, by `place`.
    fn come_after_readers(&self, place: &Place) {
        let uses = std::mem::take(&mut *lock(&self.uses));
        uses.read.iter().for_each(|event| place.wait_for(event));
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Block({} bytes)", self.bytes)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(mut slab) = self.slab.take() {
            slab.uses = std::mem::take(&mut lock(&self.uses).read);
            self.home.take_back(slab);
        }
    }
}

impl Held {
    /// Makes `place` the stream in whose order the memory is used.
    fn enter(&mut self, place: &Arc<Place>) {
        if Arc::ptr_eq(&self.place, place) {
            return;
        }
        let left = lock(&self.block.uses).left.clone();
        match left.filter(|_| self.arrived) {
            Some(left) => {
                (self.place, self.arrived) = (place.clone(), false);
                match Arc::ptr_eq(self.block.home.gpu(), place.gpu()) {
                    true => place.wait_for(&left),
                    false => self.come_to(place, &left),
                }
            }
            None => {
                let (bytes, missing) = (self.block.bytes, if self.arrived { "leave" } else { "arrive" });
                place.fail("order", format!("{bytes} bytes of another stream did not {missing} (Storage::{missing})"));
            }
        }
    }

    /// The address, which an op of `place` uses.
    fn used(&self, place: &Place, is_written: bool) -> sys::CUdeviceptr {
        let address = self.block.address();
        if place.recorder().is_recording() && !place.pool().is_watched(address) {
            place.recorder().note(address, &self.block, is_written);
        }
        address
    }

    /// Brings memory of another GPU, which `left` it, to that of `place`: by its stream for transfers, so that it comes
    /// while the other one still computes what was asked for before.
    fn come_to(&mut self, place: &Arc<Place>, left: &Event) {
        let here = Arc::new(place.receiving(self.block.bytes));
        place.transfer_waits_for(left);
        place.copy_from(self.block.home.gpu(), self.block.address(), here.address(), self.block.bytes);
        if let Some(done) = place.transferred() {
            place.wait_for(&done);
            lock(&self.block.uses).read.push(done);
        }
        self.block = here;
        place.recorder().note_move();
    }
}

/// Memory that somebody else has, for as long as a transfer uses it.
#[derive(Debug)]
pub(crate) struct Kept(Arc<Block>);

impl Kept {
    /// The transfer ends at this point: whoever writes there next waits for it.
    pub(crate) fn until(self, point: &Arc<Event>) {
        lock(&self.0.uses).read.push(point.clone());
    }
}

impl CudaMemory {
    pub(super) fn new(block: Block, place: Arc<Place>) -> Self {
        let bytes = block.bytes;
        CudaMemory { held: Mutex::new(Held { block: Arc::new(block), place, arrived: false }), bytes, charge: None }
    }

    /// The address for an op of `place` that reads.
    pub(crate) fn reads(&self, place: &Arc<Place>) -> sys::CUdeviceptr {
        let mut held = lock(&self.held);
        held.enter(place);
        held.used(place, false)
    }

    /// The address for an op of `place` that writes: memory that others have too is copied first.
    pub(crate) fn writes(&mut self, place: &Arc<Place>) -> sys::CUdeviceptr {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        held.enter(place);
        if Arc::strong_count(&held.block) > 1 {
            let mut copy = place.memory(self.bytes);
            let copied = copy.held.get_mut().unwrap_or_else(PoisonError::into_inner);
            place.copy(held.block.address(), copied.block.address(), self.bytes);
            // What is given up is still read by the copy.
            std::mem::swap(held, copied);
            place.recorder().note_move();
        } else {
            held.block.come_after_readers(place);
        }
        held.used(place, true)
    }

    /// The memory, for a transfer.
    pub(crate) fn kept(&self) -> Kept {
        Kept(lock(&self.held).block.clone())
    }

    /// The place whose stream the memory is in order with.
    fn place(&self) -> Arc<Place> {
        lock(&self.held).place.clone()
    }
}

impl Drop for CudaMemory {
    fn drop(&mut self) {
        let held = self.held.get_mut().unwrap_or_else(PoisonError::into_inner);
        let is_shared = Arc::strong_count(&held.block) > 1;
        // In the order of its own stream nobody has to be told.
        if (is_shared || !Arc::ptr_eq(&held.place, &held.block.home))
            && let Some(event) = held.place.now()
        {
            lock(&held.block.uses).read.push(event);
        }
    }
}

impl Storage for CudaMemory {
    fn capacity(&self) -> usize {
        self.bytes
    }

    fn leave(&self) {
        let mut held = lock(&self.held);
        let left = held.place.now();
        lock(&held.block.uses).left = left;
        held.arrived = false;
    }

    fn arrive(&mut self) {
        self.held.get_mut().unwrap_or_else(PoisonError::into_inner).arrived = true;
    }

    fn share(self) -> (Self, Self) {
        let other = {
            let held = lock(&self.held);
            let other = Held { block: held.block.clone(), place: held.place.clone(), arrived: held.arrived };
            CudaMemory { held: Mutex::new(other), bytes: self.bytes, charge: None }
        };
        (self, other)
    }

    fn beside<T: Element>(source: &Buffer<T, Self>, len: usize) -> Buffer<T, Self> {
        Buffer::from_storage(source.storage().place().memory(bytes_of::<T>(len)), len)
    }

    fn set_charge(&mut self, charge: Option<Charge>) {
        self.charge = charge;
    }

    fn part<T: Element>(source: &Buffer<T, Self>, range: Range<usize>) -> Buffer<T, Self> {
        assert!(range.start <= range.end && range.end <= source.len(), "{range:?} of {source:?}");
        let (storage, bytes) = (source.storage(), bytes_of::<T>(range.len()));
        let place = storage.place();
        let mut part = place.memory(bytes);
        part.charge = storage.charge.as_ref().map(|charge| charge.ledger().charge(bytes));
        let from = storage.reads(&place) + (range.start * size_of::<T>()) as u64;
        place.copy(from, part.writes(&place), bytes);
        Buffer::from_storage(part, range.len())
    }

    fn write<T: Element>(target: &mut Buffer<T, Self>, at: usize, from: &Buffer<T, Self>) {
        assert!(at <= target.len() && from.len() <= target.len() - at, "{from:?} from {at} on into {target:?}");
        let place = target.storage().place();
        let source = from.storage().reads(&place);
        let target = target.storage_mut().writes(&place) + (at * size_of::<T>()) as u64;
        place.copy(source, target, from.bytes());
    }

    fn add<T: Real>(target: &mut Buffer<T, Self>, at: usize, from: &Buffer<T, Self>) {
        assert!(at <= target.len() && from.len() <= target.len() - at, "{from:?} from {at} on onto {target:?}");
        if from.is_empty() {
            return;
        }
        let place = target.storage().place();
        let source = from.storage().reads(&place);
        let target = target.storage_mut().writes(&place) + (at * size_of::<T>()) as u64;
        let row = |address| RawView::row(address, from.len());
        let (x, y) = (row(target), row(source));
        let variant = Kernel::Add.variant(suffix_of::<T>(), Dims::Any);
        (x, y).launch(&place, variant, Geometry::elementwise(from.len()));
    }
}

impl fmt::Debug for CudaMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaMemory({} bytes)", self.bytes)
    }
}
