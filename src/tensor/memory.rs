//! Buffers, and the host memory behind them.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use bytemuck::allocation::zeroed_vec;
use bytemuck::cast_slice_mut;

use crate::tensor::foreign::Foreign;
use crate::tensor::pool::{LINE, Line, Pool};
use crate::tensor::{Charge, Element, Real, bytes_of};

/// Untyped memory on some device; what a communicator moves.
///
/// An engine calls [`leave`](Storage::leave) once for a buffer that is handed to other ranks, before anyone else has
/// it, and [`arrive`](Storage::arrive) once for each buffer that is received, before the receiver has it. A device that
/// works off a queue records in the one where its queue is, and makes the receiver's queue wait for that in the other.
pub trait Storage: Send + Sync + Sized + fmt::Debug + 'static {
    /// Usable bytes.
    fn capacity(&self) -> usize;

    /// The memory is handed to other ranks as it is now: whatever was issued before on this rank's queue is in it.
    fn leave(&self) {}

    /// The memory was received: whatever is issued from now on on this rank's queue sees what was in it when it left.
    fn arrive(&mut self) {}

    /// Two owners of the same contents, this one on the account that it was on and another on none; a write into one
    /// is not seen in the other. Memory that can have several owners is not copied before one of them writes; the
    /// others are copied at once, which is what happens unless a storage says otherwise.
    fn share(self) -> (Self, Self) {
        let bytes = self.capacity();
        let whole = Buffer::<u8, Self>::from_storage(self, bytes);
        let mut copy = Self::part(&whole, 0..bytes);
        copy.set_charge(None);
        (whole.into_storage(), copy.into_storage())
    }

    /// Memory on nobody's account, its contents unspecified, from the place that `source` is from.
    fn beside<T: Element>(source: &Buffer<T, Self>, len: usize) -> Buffer<T, Self>;

    /// Says on whose account the memory is from now on: that of the rank that received it, or nobody's once it is
    /// handed over.
    fn set_charge(&mut self, charge: Option<Charge>);

    /// A copy of a range of elements, in memory from the same place and on the same account, if any.
    fn part<T: Element>(source: &Buffer<T, Self>, range: Range<usize>) -> Buffer<T, Self>;

    /// Overwrites the elements from `at` on.
    fn write<T: Element>(target: &mut Buffer<T, Self>, at: usize, from: &Buffer<T, Self>);

    /// Adds to the elements from `at` on, one rounding each.
    fn add<T: Real>(target: &mut Buffer<T, Self>, at: usize, from: &Buffer<T, Self>);
}

/// Host memory that returns to where it is from when the last owner drops it: aligned to 64 bytes and from a [`Pool`],
/// or taken over from elsewhere.
pub struct Host {
    memory: Memory,
    charge: Option<Charge>,
}

/// Memory of one owner, or of several until one of them writes.
enum Memory {
    Own(HostBlock),
    Shared(Arc<HostBlock>),
}

/// Memory that goes back to where it is from.
struct HostBlock {
    contents: Contents,
    pool: Option<Arc<Pool>>,
}

enum Contents {
    Lines(Vec<Line>),
    Foreign(Foreign),
}

impl HostBlock {
    /// As many lines from the same place, their contents unspecified.
    fn beside(&self, lines: usize) -> HostBlock {
        let pool = self.pool.clone();
        let lines = pool.as_ref().map_or_else(|| zeroed_vec(lines), |pool| pool.take(lines));
        HostBlock { contents: Contents::Lines(lines), pool }
    }

    fn bytes(&self) -> usize {
        match &self.contents {
            Contents::Lines(lines) => lines.len() * LINE,
            Contents::Foreign(foreign) => foreign.bytes(),
        }
    }

    fn as_slice<T: Element>(&self, len: usize) -> &[T] {
        match &self.contents {
            Contents::Lines(lines) => &bytemuck::cast_slice::<Line, T>(lines)[..len],
            Contents::Foreign(foreign) => foreign.as_slice(len),
        }
    }

    fn as_mut_slice<T: Element>(&mut self, len: usize) -> &mut [T] {
        match &mut self.contents {
            Contents::Lines(lines) => &mut bytemuck::cast_slice_mut::<Line, T>(lines)[..len],
            Contents::Foreign(foreign) => foreign.as_mut_slice(len),
        }
    }
}

impl Clone for HostBlock {
    fn clone(&self) -> Self {
        let bytes = self.bytes();
        // A block of the pool may be longer than what was asked for.
        let mut copy = self.beside(bytes.div_ceil(LINE));
        copy.as_mut_slice::<u8>(bytes).copy_from_slice(self.as_slice(bytes));
        copy
    }
}

impl Drop for HostBlock {
    fn drop(&mut self) {
        if let (Some(pool), Contents::Lines(lines)) = (self.pool.take(), &mut self.contents) {
            pool.put(std::mem::take(lines));
        }
    }
}

impl Host {
    fn block(&self) -> &HostBlock {
        match &self.memory {
            Memory::Own(block) => block,
            Memory::Shared(block) => block,
        }
    }

    /// Takes the memory off the account that it is on.
    #[cfg(feature = "conformance")]
    pub(super) fn take_charge(&mut self) -> Option<Charge> {
        self.charge.take()
    }

    /// To write into: what others own too is copied first.
    fn block_mut(&mut self) -> &mut HostBlock {
        match &mut self.memory {
            Memory::Own(block) => block,
            Memory::Shared(block) => Arc::make_mut(block),
        }
    }
}

impl Storage for Host {
    fn capacity(&self) -> usize {
        self.block().bytes()
    }

    fn share(self) -> (Self, Self) {
        let block = match self.memory {
            Memory::Own(block) => Arc::new(block),
            Memory::Shared(block) => block,
        };
        let other = Host { memory: Memory::Shared(block.clone()), charge: None };
        (Host { memory: Memory::Shared(block), charge: self.charge }, other)
    }

    fn beside<T: Element>(source: &Buffer<T>, len: usize) -> Buffer<T> {
        let block = source.storage.block().beside(bytes_of::<T>(len).div_ceil(LINE));
        Buffer::from_storage(Host { memory: Memory::Own(block), charge: None }, len)
    }

    fn set_charge(&mut self, charge: Option<Charge>) {
        self.charge = charge;
    }

    fn part<T: Element>(source: &Buffer<T>, range: Range<usize>) -> Buffer<T> {
        let mut copy = Self::beside(source, range.len());
        copy.storage.charge = source.storage.charge.as_ref().map(|charge| charge.ledger().charge(copy.bytes()));
        copy.copy_from_slice(&source[range]);
        copy
    }

    fn write<T: Element>(target: &mut Buffer<T>, at: usize, from: &Buffer<T>) {
        target[at..at + from.len()].copy_from_slice(from);
    }

    fn add<T: Real>(target: &mut Buffer<T>, at: usize, from: &Buffer<T>) {
        let len = from.len();
        target[at..at + len].iter_mut().zip(from.iter()).for_each(|(sum, &value)| *sum += value);
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Host({} bytes)", self.capacity())
    }
}

/// An owned run of `len` elements of `T` in device memory.
///
/// On the host it derefs to a slice. Its storage returns to the pool that it came from when dropped, on whichever
/// rank that happens; memory that several ranks received when the last of them drops it. Who writes into such memory
/// gets a copy first ([`Storage::share`]).
pub struct Buffer<T, S = Host> {
    storage: S,
    len: usize,
    marker: PhantomData<T>,
}

impl<T: Element, S: Storage> Buffer<T, S> {
    /// Reads `storage` as `len` elements.
    ///
    /// # Panics
    /// If the storage is too small.
    pub fn from_storage(storage: S, len: usize) -> Self {
        let bytes = len.checked_mul(size_of::<T>());
        let fits = bytes.is_some_and(|bytes| bytes <= storage.capacity());
        assert!(fits, "a buffer of {len} elements does not fit its storage");
        Buffer { storage, len, marker: PhantomData }
    }

    /// Gives up the type; the elements stay where they are.
    pub fn into_storage(self) -> S {
        self.storage
    }

    /// The storage behind the elements.
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// The storage behind the elements, to be written into.
    pub fn storage_mut(&mut self) -> &mut S {
        &mut self.storage
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Says on whose account the memory is: see [`Storage::set_charge`].
    pub fn set_charge(&mut self, charge: Option<Charge>) {
        self.storage.set_charge(charge);
    }

    /// Two owners of the same elements: see [`Storage::share`].
    pub fn share(self) -> (Self, Self) {
        let len = self.len;
        let (this, other) = self.storage.share();
        (Buffer { storage: this, len, marker: PhantomData }, Buffer { storage: other, len, marker: PhantomData })
    }

    /// Bytes of the elements.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

impl<T: Element> Buffer<T, Host> {
    /// Memory from `pool`, its contents unspecified; in debug builds every byte is 0xFF, which reads as NaN, so
    /// that a use before a write shows.
    ///
    /// # Panics
    /// If it has more bytes than can be addressed.
    pub fn empty(pool: &Arc<Pool>, len: usize) -> Self {
        let mut buffer = Self::scratch(pool, len);
        let bytes = buffer.bytes();
        buffer.storage.charge = Some(pool.ledger().charge(bytes));
        buffer
    }

    /// [`Buffer::empty`], but on nobody's account.
    pub(super) fn scratch(pool: &Arc<Pool>, len: usize) -> Self {
        let mut lines = pool.take(bytes_of::<T>(len).div_ceil(LINE));
        if cfg!(debug_assertions) {
            cast_slice_mut::<Line, u8>(&mut lines).fill(0xFF);
        }
        let block = HostBlock { contents: Contents::Lines(lines), pool: Some(pool.clone()) };
        Buffer::from_storage(Host { memory: Memory::Own(block), charge: None }, len)
    }

    /// Memory from `pool`, every element zero.
    pub fn zeros(pool: &Arc<Pool>, len: usize) -> Self {
        let mut buffer = Self::empty(pool, len);
        buffer.fill(T::zeroed());
        buffer
    }

    /// A copy of `values` that belongs to no pool.
    pub fn from_slice(values: &[T]) -> Self {
        let lines = zeroed_vec::<Line>(size_of_val(values).div_ceil(LINE));
        let memory = Memory::Own(HostBlock { contents: Contents::Lines(lines), pool: None });
        let mut buffer = Buffer::from_storage(Host { memory, charge: None }, values.len());
        buffer.copy_from_slice(values);
        buffer
    }

    /// The memory of `values` itself, without a copy; it belongs to no pool and on nobody's account.
    pub fn from_vec(values: Vec<T>) -> Self {
        let len = values.len();
        Self::foreign(Foreign::adopt(values), len)
    }

    pub(super) fn foreign(memory: Foreign, len: usize) -> Self {
        let block = HostBlock { contents: Contents::Foreign(memory), pool: None };
        Buffer::from_storage(Host { memory: Memory::Own(block), charge: None }, len)
    }
}

impl<T: Element> Deref for Buffer<T, Host> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        self.storage.block().as_slice(self.len)
    }
}

impl<T: Element> DerefMut for Buffer<T, Host> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.storage.block_mut().as_mut_slice(self.len)
    }
}

impl<T: Element, S: Storage> Clone for Buffer<T, S> {
    /// A copy in memory from the same place.
    fn clone(&self) -> Self {
        S::part(self, 0..self.len)
    }
}

impl<T: Element, S: Storage> fmt::Debug for Buffer<T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer<{}>[{}]", T::DTYPE, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_poisoned_and_comes_back() {
        let pool = Pool::new();
        let buffer = Buffer::<f32>::empty(&pool, 100);
        assert_eq!(buffer.as_ptr() as usize % 64, 0);
        assert!(!cfg!(debug_assertions) || buffer.iter().all(|x| x.is_nan()));
        drop(buffer);
        let zeros = Buffer::<f64>::zeros(&pool, 50);
        assert!(zeros.iter().all(|&x| x == 0.0));
        assert_eq!(pool.stats().allocations, 1, "the block of the first buffer serves the second");
        assert_eq!(pool.stats().owned, 448);
    }

    #[test]
    fn lengths_whose_bytes_cannot_be_counted_are_refused() {
        let pool = Pool::new();
        for len in [1 << 62, (1 << 62) + 1, usize::MAX, 1 << 61] {
            let taken = std::panic::catch_unwind(|| Buffer::<f32>::empty(&pool, len));
            let message = *taken.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(message, format!("{len} elements of f32 take more memory than can be addressed"));
            let read = std::panic::catch_unwind(|| {
                Buffer::<f32>::from_storage(Buffer::from_slice(&[0u8; 64]).into_storage(), len);
            });
            assert!(read.is_err(), "{len} elements in 64 bytes");
        }
        assert_eq!(pool.stats().allocations, 0);
    }

    #[test]
    fn a_sealed_pool_uses_larger_blocks_before_it_asks_for_more() {
        let pool = Pool::new();
        drop(Buffer::<u8>::empty(&pool, 64 * 100));
        drop(Buffer::<u8>::empty(&pool, 64));
        assert_eq!(pool.stats().allocations, 2, "a block of 100 lines is too good for one line");
        pool.seal();
        pool.seal();
        assert_eq!((pool.stats().allocations, pool.stats().owned), (4, 64 * 202), "one more of each length, once");
        let four: Vec<_> = (0..4).map(|_| Buffer::<u8>::empty(&pool, 64)).collect();
        assert_eq!(pool.stats().allocations, 4);
        let fifth = Buffer::<u8>::empty(&pool, 64);
        assert_eq!(pool.stats().allocations, 5);
        assert_eq!(pool.stats().peak, 64 * 203);
        drop((four, fifth));
    }

    #[test]
    fn what_the_system_does_not_have_cannot_be_reserved() {
        let pool = Pool::new();
        let _some = Buffer::<u8>::empty(&pool, 640);
        assert_eq!(pool.reserve(640), Ok(()));
        assert_eq!(pool.reserve(1 << 20), Ok(()));
        assert_eq!(pool.stats().owned, 640, "blocks are taken as they are needed");
        let error = pool.reserve(usize::MAX / 2).unwrap_err();
        let message = error.to_string();
        assert!(
            error.is_input() && message.contains("9223372036854775807 bytes") && message.contains("640"),
            "{message}"
        );
    }

    #[test]
    fn a_buffer_returns_to_its_pool_from_any_thread() {
        let pool = Pool::new();
        let buffer = Buffer::<i64>::zeros(&pool, 3);
        std::thread::spawn(move || drop(buffer)).join().unwrap();
        drop(Buffer::<i64>::zeros(&pool, 3));
        assert_eq!(pool.stats().allocations, 1);
    }

    #[test]
    fn parts_are_written_and_added() {
        let pool = Pool::new();
        let mut target = Buffer::<f32>::zeros(&pool, 4);
        let from = Buffer::from_slice(&[1.0f32, -0.0]);
        Host::write(&mut target, 2, &from);
        Host::add(&mut target, 1, &from);
        assert_eq!(target[..], [0.0, 1.0, 1.0, 0.0]);
        assert_eq!(Host::part(&target, 1..3)[..], [1.0, 1.0]);
        assert!(target[3].is_sign_negative());
    }

    #[test]
    fn shared_memory_is_read_in_place_copied_for_who_writes_and_comes_back_once() {
        let pool = Pool::new();
        let mut buffer = Buffer::<f32>::empty(&pool, 100);
        buffer.copy_from_slice(&[7.0; 100]);
        let place = buffer.as_ptr();
        let (first, second) = buffer.share();
        let (mut second, third) = second.share();
        assert_eq!([first.as_ptr(), second.as_ptr(), third.as_ptr()], [place; 3]);
        assert_eq!((pool.stats().allocations, pool.ledger().held()), (1, 400), "the first is on the account");
        second[0] = 1.0;
        assert_eq!((first[0], second[0], third[0], second[99]), (7.0, 1.0, 7.0, 7.0));
        assert_ne!(second.as_ptr(), place);
        drop(first);
        let mut third = third;
        third[1] = 2.0;
        assert_eq!(third.as_ptr(), place, "its only owner writes in place");
        assert_eq!((pool.stats().allocations, pool.ledger().held()), (2, 0));
        drop((second, third));
        drop((Buffer::<f32>::empty(&pool, 100), Buffer::<f32>::empty(&pool, 100)));
        assert_eq!(pool.stats().allocations, 2, "both blocks are back");
    }

    #[test]
    fn a_part_is_on_the_account_of_the_whole() {
        let (pool, other) = (Pool::new(), Pool::new());
        let mut buffer = Buffer::<f32>::zeros(&pool, 10);
        assert_eq!((Host::part(&buffer, 2..4).bytes(), pool.ledger().peak()), (8, 48));
        buffer.set_charge(Some(other.ledger().charge(40)));
        drop(Host::part(&buffer, 2..4));
        assert_eq!((pool.ledger().peak(), other.ledger().peak()), (48, 48));
        buffer.set_charge(None);
        drop(Host::part(&buffer, 0..10));
        assert_eq!((pool.ledger().held(), other.ledger().peak()), (0, 48));
    }
}
