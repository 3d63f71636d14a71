//! The engine for clusters: every rank is a process, started by `mpirun`.
//!
//! A thread of each process, and no other, talks to MPI: it sends what this rank hands over, and receives whatever
//! comes into the same mailbox that in-process ranks have. So messages move while the rank computes, nothing waits
//! inside MPI, where a lost rank could not be noticed, and waits, deadlines and errors are those of
//! [`super::threads`]. Only the start and the end of a run are collective calls of MPI. A split is an exchange of notes
//! like a barrier, not `MPI_Comm_split`, which waits without a deadline, takes `i32`s, and makes something that must
//! not be freed while messages are on their way.
//!
//! A message is a header, then its elements in parts that an `i32` can count. Processes are of one build and one
//! byte order. A rank that waits for another that computes alone, after everyone else has ended, waits for as long as
//! that one's process lives.

mod engine;
mod frame;
mod world;

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::Duration;

use ::mpi::Tag;
use ::mpi::point_to_point::Message;
use ::mpi::request::{Request, StaticScope};
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{Communicator as _, Destination as _, Source as _};

use super::Communicator;
use super::member::{Member, caught};
use crate::error::Result;
use crate::tensor::Buffer;
use world::{Exit, World};

/// How the ranks of a run wait for each other, and how they cut messages.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The longest that one wait, barrier or split may take, and the start and the end of the run. Default: 10
    /// minutes.
    pub deadline: Duration,
    /// How long a run that has failed waits for ranks that do not notice it. Default: 30 seconds; never more than
    /// the deadline.
    pub grace: Duration,
    /// Most bytes of one MPI message; longer buffers go in several. Default: 1 GiB; never more than `i32::MAX`.
    pub part: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options { deadline: Duration::from_secs(600), grace: Duration::from_secs(30), part: 1 << 30 }
    }
}

/// Runs `body` on this process's rank, and gives its result when every rank has ended.
///
/// MPI starts and ends with the call, so a process can do it once.
///
/// # Errors
/// That of this rank, else that of the rank that failed: [`CommError::Poisoned`](crate::error::CommError) names it. A
/// panic is an error too.
///
/// If a rank neither ends nor fails with the others, this writes the error to stderr and ends all processes
/// (`MPI_Abort`).
///
/// ```no_run
/// use context_parallel::comm::{Collectives, mpi};
/// use context_parallel::tensor::Buffer;
///
/// // mpirun -n 3 program
/// let sum = mpi::run(|comm| {
///     let mut sum = Buffer::from_slice(&[1.0f32, 10.0]);
///     comm.all_reduce(&mut sum)?;
///     Ok(sum.to_vec())
/// })?;
/// assert_eq!(sum, [3.0, 30.0]);
/// # Ok::<(), context_parallel::error::Error>(())
/// ```
pub fn run<R>(body: impl FnOnce(MpiComm) -> Result<R>) -> Result<R> {
    let ended = run_with(Options::default(), body);
    if let (Err(error), Exit::Stuck) = (&ended.result, ended.exit) {
        eprintln!("error: {error}");
    }
    ended.leave()
}

/// [`run`] with options, in two halves: between the end of the ranks and the end of MPI the program can report.
pub fn run_with<R>(options: Options, body: impl FnOnce(MpiComm) -> Result<R>) -> Ended<R> {
    let world = match World::start(options) {
        Ok(world) => world,
        Err(error) => {
            let (repeated, is_input, exit) = (false, error.is_input(), Exit::Clean);
            return Ended { result: Err(error), repeated, is_input, exit, world: None };
        }
    };
    let comm = MpiComm(Member::everyone(world.clone(), world.rank(), world.size()));
    let result = caught(world.rank(), || body(comm));
    world.end(result)
}

/// A run whose ranks have ended, or are given up.
#[derive(Debug)]
#[must_use = "MPI does not end before `leave`"]
pub struct Ended<R> {
    result: Result<R>,
    repeated: bool,
    is_input: bool,
    exit: Exit,
    world: Option<Arc<World>>,
}

impl<R> Ended<R> {
    /// How this rank's body ended; the failure of another rank if it did not fail itself.
    pub fn result(&self) -> &Result<R> {
        &self.result
    }

    /// Whether a rank before this one ended with the same error, so that one of them is enough to print.
    pub fn is_repeated(&self) -> bool {
        self.repeated
    }

    /// Whether the run failed because of the user's input, as some rank saw it: what the exit codes of all should say.
    pub fn is_input(&self) -> bool {
        self.is_input
    }

    /// Ends MPI, and gives the result. Ends all processes with exit code 1 (`MPI_Abort`), and does not return, if
    /// some rank has been given up.
    pub fn leave(self) -> Result<R> {
        if let Some(world) = self.world {
            world.leave(self.exit);
        }
        self.result
    }
}

/// One rank of a group of processes.
#[derive(Debug)]
pub struct MpiComm(Member<World>);

impl MpiComm {
    /// Number of ranks of the run that share this machine, this one included.
    pub fn neighbours(&self) -> usize {
        self.0.wire().neighbours()
    }
}

impl Communicator for MpiComm {
    delegate_to_member!();
}

/// Memory that MPI reads or writes, and the operations that do. If it is dropped before they are complete, the memory
/// is never freed.
struct Transfer {
    bytes: ManuallyDrop<Buffer<u8>>,
    operations: Vec<Request<'static, [u8], StaticScope>>,
}

impl Transfer {
    /// Starts operations on parts of all of `bytes`; `start` gets the whole once.
    ///
    /// # Safety
    /// `start` keeps what it gets in the operations only, and each is an operation of MPI on the part that it was
    /// given.
    unsafe fn new(
        bytes: Buffer<u8>,
        start: impl FnOnce(&'static mut [u8], &mut Vec<Request<'static, [u8], StaticScope>>),
    ) -> Self {
        let mut transfer = Transfer { bytes: ManuallyDrop::new(bytes), operations: Vec::new() };
        let len = transfer.bytes.len();
        // SAFETY: these are the `len` initialised bytes of a heap block that `transfer` owns and that does not move
        // with it. It is freed or handed out only when `operations` is empty (see `take` and `drop`), and only they use
        // it, as the caller promises, so it outlives every use by MPI; if MPI never finishes, it lives for ever. It is
        // borrowed here once and for all parts, and nothing touches `transfer.bytes` again before `operations` is empty
        // (see `peek`), so no later borrow of the whole invalidates a pointer that MPI holds. Should `start` panic,
        // `drop` sees the operations that were begun.
        let whole = unsafe { std::slice::from_raw_parts_mut(transfer.bytes.as_mut_ptr(), len) };
        start(whole, &mut transfer.operations);
        transfer
    }

    /// Sends `bytes` to rank `to` in parts.
    fn send(comm: &SimpleCommunicator, to: i32, tag: Tag, bytes: Buffer<u8>, part: usize) -> Self {
        let peer = comm.process_at_rank(to);
        // SAFETY: every part goes into one operation, and nowhere else.
        unsafe {
            Transfer::new(bytes, |whole, operations| {
                let whole: &'static [u8] = whole;
                let parts = whole.chunks(countable(part));
                operations.extend(parts.map(|part| peer.immediate_send_with_tag(StaticScope, part, tag)));
            })
        }
    }

    /// Receives into all of `bytes`, from rank `from`, in parts.
    fn receive(comm: &SimpleCommunicator, from: i32, tag: Tag, bytes: Buffer<u8>, part: usize) -> Self {
        let peer = comm.process_at_rank(from);
        // SAFETY: every part goes into one operation, and nowhere else.
        unsafe {
            Transfer::new(bytes, |whole, operations| {
                let parts = whole.chunks_mut(countable(part));
                operations.extend(parts.map(|part| peer.immediate_receive_into_with_tag(StaticScope, part, tag)));
            })
        }
    }

    /// Receives a message that has been announced into `bytes`, which has its size.
    fn receive_matched(message: Message, bytes: Buffer<u8>) -> Self {
        // SAFETY: every part goes into one operation, and nowhere else.
        unsafe {
            Transfer::new(bytes, |whole, operations| {
                operations.push(message.immediate_matched_receive_into(StaticScope, whole));
            })
        }
    }

    /// Lets MPI work; true if that completed something.
    fn advance(&mut self) -> bool {
        let before = self.operations.len();
        self.operations = std::mem::take(&mut self.operations).into_iter().filter_map(|one| one.test().err()).collect();
        self.operations.len() < before
    }

    fn is_complete(&self) -> bool {
        self.operations.is_empty()
    }

    /// The bytes, once nothing uses them.
    fn peek(&self) -> Option<&[u8]> {
        self.is_complete().then(|| &self.bytes[..])
    }

    /// The memory, once nothing uses it.
    fn take(mut self) -> Option<Buffer<u8>> {
        if !self.is_complete() {
            return None;
        }
        let bytes = std::mem::replace(&mut *self.bytes, Buffer::from_slice(&[]));
        Some(bytes)
    }
}

impl Drop for Transfer {
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
            Transfer::new(bytes, |whole, _| {
                found.extend(whole.chunks_mut(2).map(|part| (part.as_ptr() as usize - start, part.to_vec())));
                whole[4] = 9;
            })
        };
        assert_eq!(found, [(0, vec![1, 2]), (2, vec![3, 4]), (4, vec![5])]);
        assert_eq!(transfer.take().as_deref(), Some(&[1, 2, 3, 4, 9][..]));
    }
}
