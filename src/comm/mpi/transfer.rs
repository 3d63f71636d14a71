//! Memory that is lent to MPI for as long as it sends or receives.

use std::mem::ManuallyDrop;

use ::mpi::Tag;
use ::mpi::point_to_point::Message;
use ::mpi::request::{Request, StaticScope};
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{Communicator as _, Destination as _, Source as _};

use crate::tensor::Buffer;

/// Memory that MPI reads or writes, and the operations that do. If it is dropped before they are complete, the memory
/// is never freed.
pub(super) struct InFlight {
    bytes: ManuallyDrop<Buffer<u8>>,
    operations: Vec<Request<'static, [u8], StaticScope>>,
}

impl InFlight {
    /// Nothing is under way yet.
    fn of(bytes: Buffer<u8>) -> Self {
        InFlight { bytes: ManuallyDrop::new(bytes), operations: Vec::new() }
    }

    /// Starts operations that read parts of `bytes`; `start` gets the whole once.
    ///
    /// # Safety
    /// `start` keeps what it gets in the operations only, and each is an operation of MPI that only reads the part that
    /// it was given.
    unsafe fn reading(
        bytes: Buffer<u8>,
        start: impl FnOnce(&'static [u8], &mut Vec<Request<'static, [u8], StaticScope>>),
    ) -> Self {
        let mut transfer = InFlight::of(bytes);
        // SAFETY: these are the initialised bytes of a heap block that `transfer` owns, alone or with others, and that
        // does not move with it. Its share is given up or handed out only when `operations` is empty (see `take` and
        // `drop`), and only they use it here, as the caller promises, so it outlives every use by MPI; if MPI never
        // finishes, it lives for ever. Nobody writes into it meanwhile: not this transfer (`take` gives it back only
        // when `operations` is empty), and another owner gets a copy to write into as long as there is more than one,
        // which this one is. Should `start` panic, `drop` sees the operations that were begun.
        let whole = unsafe { std::slice::from_raw_parts(transfer.bytes.as_ptr(), transfer.bytes.len()) };
        start(whole, &mut transfer.operations);
        transfer
    }

    /// Starts operations that write parts of all of `bytes`; `start` gets the whole once.
    ///
    /// # Safety
    /// `start` keeps what it gets in the operations only, and each is an operation of MPI on the part that it was
    /// given.
    unsafe fn writing(
        bytes: Buffer<u8>,
        start: impl FnOnce(&'static mut [u8], &mut Vec<Request<'static, [u8], StaticScope>>),
    ) -> Self {
        let mut transfer = InFlight::of(bytes);
        let len = transfer.bytes.len();
        // SAFETY: these are the `len` initialised bytes of a heap block that `transfer` owns alone, because
        // `as_mut_ptr` gives it one of its own if it did not, and that does not move with it. It is freed or handed out
        // only when `operations` is empty (see `take` and `drop`), and only they use it, as the caller promises, so it
        // outlives every use by MPI; if MPI never finishes, it lives for ever. It is borrowed here once and for all
        // parts, and nothing touches `transfer.bytes` again before `operations` is empty (see `peek`), so no later
        // borrow of the whole invalidates a pointer that MPI holds. Should `start` panic, `drop` sees the operations
        // that were begun.
        let whole = unsafe { std::slice::from_raw_parts_mut(transfer.bytes.as_mut_ptr(), len) };
        start(whole, &mut transfer.operations);
        transfer
    }

    /// Sends `bytes` to rank `to` in parts.
    pub(super) fn send(comm: &SimpleCommunicator, to: i32, tag: Tag, bytes: Buffer<u8>, part: usize) -> Self {
        let peer = comm.process_at_rank(to);
        // SAFETY: every part goes into one operation, which reads it, and nowhere else.
        unsafe {
            InFlight::reading(bytes, |whole, operations| {
                let parts = whole.chunks(countable(part));
                operations.extend(parts.map(|part| peer.immediate_send_with_tag(StaticScope, part, tag)));
            })
        }
    }

    /// Receives into all of `bytes`, from rank `from`, in parts.
    pub(super) fn receive(comm: &SimpleCommunicator, from: i32, tag: Tag, bytes: Buffer<u8>, part: usize) -> Self {
        let peer = comm.process_at_rank(from);
        // SAFETY: every part goes into one operation, and nowhere else.
        unsafe {
            InFlight::writing(bytes, |whole, operations| {
                let parts = whole.chunks_mut(countable(part));
                operations.extend(parts.map(|part| peer.immediate_receive_into_with_tag(StaticScope, part, tag)));
            })
        }
    }

    /// Receives a message that has been announced into `bytes`, which has its size.
    pub(super) fn receive_matched(message: Message, bytes: Buffer<u8>) -> Self {
        // SAFETY: every part goes into one operation, and nowhere else.
        unsafe {
            InFlight::writing(bytes, |whole, operations| {
                operations.push(message.immediate_matched_receive_into(StaticScope, whole));
            })
        }
    }

    /// Lets MPI work; true if that completed something.
    pub(super) fn advance(&mut self) -> bool {
        let before = self.operations.len();
        self.operations = std::mem::take(&mut self.operations).into_iter().filter_map(|one| one.test().err()).collect();
        self.operations.len() < before
    }

    pub(super) fn is_complete(&self) -> bool {
        self.operations.is_empty()
    }

    /// The bytes, once nothing uses them.
    pub(super) fn peek(&self) -> Option<&[u8]> {
        self.is_complete().then(|| &self.bytes[..])
    }

    /// The memory, once nothing uses it.
    pub(super) fn take(mut self) -> Option<Buffer<u8>> {
        if !self.is_complete() {
            return None;
        }
        let bytes = std::mem::replace(&mut *self.bytes, Buffer::from_slice(&[]));
        Some(bytes)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.is_complete() {
            // SAFETY: no operation uses the memory any more, and nothing uses `bytes` after `drop`; what `take` handed
            // out is no longer in it.
            unsafe { ManuallyDrop::drop(&mut self.bytes) };
        }
        // A request must not be dropped while it is under way; MPI still owns it, as it does the memory.
        self.operations.drain(..).for_each(std::mem::forget);
    }
}

/// Bytes of a part that an `i32` counts, about `part`.
fn countable(part: usize) -> usize {
    part.clamp(1, i32::MAX as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_can_be_counted_and_come_to_an_end() {
        assert_eq!((countable(0), countable(4), countable(usize::MAX)), (1, 4, i32::MAX as usize));
    }

    #[test]
    fn the_parts_of_a_transfer_are_one_borrow_of_all_its_bytes() {
        let bytes = Buffer::from_slice(&[1u8, 2, 3, 4, 5]);
        let start = bytes.as_ptr() as usize;
        let mut found = Vec::new();
        // SAFETY: nothing of it is kept.
        let transfer = unsafe {
            InFlight::writing(bytes, |whole, _| {
                found.extend(whole.chunks_mut(2).map(|part| (part.as_ptr() as usize - start, part.to_vec())));
                whole[4] = 9;
            })
        };
        assert_eq!(found, [(0, vec![1, 2]), (2, vec![3, 4]), (4, vec![5])]);
        assert_eq!(transfer.take().as_deref(), Some(&[1, 2, 3, 4, 9][..]));
    }

    #[test]
    fn memory_that_others_read_is_sent_from_where_it_is() {
        let (mine, other) = Buffer::from_slice(&[1u8, 2, 3]).share();
        let mut found = None;
        // SAFETY: nothing of it is kept.
        let transfer = unsafe { InFlight::reading(other, |whole, _| found = Some((whole.as_ptr(), whole.len()))) };
        assert_eq!(found, Some((mine.as_ptr(), 3)));
        assert_eq!(transfer.take().map(|bytes| bytes.as_ptr()), Some(mine.as_ptr()));
    }
}
