//! The engine for clusters: every rank is a process, started by `mpirun`.
//!
//! A thread of each process, and no other, talks to MPI: it sends what this rank hands over, and receives whatever
//! comes into the same mailbox that in-process ranks have. So messages move while the rank computes, nothing waits
//! inside MPI, where a lost rank could not be noticed, and waits, deadlines and errors are those of
//! [`super::threads`]. Only the start and the end of a run are collective calls of MPI. A split is an exchange of notes
//! like a barrier, not `MPI_Comm_split`, which waits without a deadline, takes `i32`s, and makes something that must
//! not be freed while messages are on their way. MPI's own collectives would wait without a deadline too.
//!
//! What processes tell each other besides goes to a few of them, so that it costs thousands no more than it must: a
//! failure spreads from each process to those at distances that are powers of two; a rank that has waited a while asks
//! the one that it waits for what that one is doing; that processes live, and how ranks end, is told up and down a
//! tree.
//!
//! A message is a header, then its elements in parts that an `i32` can count. Processes are of one build and one
//! byte order. A rank that waits for another that computes alone, after everyone else has ended, waits for as long as
//! that one's process lives.

mod asks;
mod end;
mod engine;
mod frame;
mod lane;
mod state;
mod transfer;
mod world;

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use super::communicator::Communicator;
use super::failure::caught;
use super::member::Member;
use crate::error::{CommError, Result};
use crate::tensor::Host;
use end::{Exit, Judgement};
use engine::Engine;
use world::World;

/// How the ranks of a run wait for each other, and how they cut messages.
#[derive(Clone, Copy, Debug)]
pub struct MpiOptions {
    /// The longest that one wait, barrier or split may take, and the start and the end of the run. Default: 10
    /// minutes.
    pub deadline: Duration,
    /// How long a run that has failed waits for ranks that do not notice it. Default: 30 seconds; never more than
    /// the deadline.
    pub grace: Duration,
    /// Most bytes of one MPI message; longer buffers go in several. Default: 1 GiB; never more than `i32::MAX`.
    pub part: usize,
}

impl Default for MpiOptions {
    fn default() -> Self {
        MpiOptions { deadline: Duration::from_secs(600), grace: Duration::from_secs(30), part: 1 << 30 }
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
    let ended = run_with(MpiOptions::default(), body);
    if let (Err(error), Exit::Stuck) = (&ended.result, ended.exit) {
        eprintln!("error: {error}");
    }
    ended.leave()
}

/// [`run`] with options, in two halves: between the end of the ranks and the end of MPI the program can report.
pub fn run_with<R>(options: MpiOptions, body: impl FnOnce(MpiComm) -> Result<R>) -> Ended<R> {
    let world = match start(options) {
        Ok(world) => world,
        Err(error) => {
            let (repeated, is_input, exit) = (false, error.is_input(), Exit::Clean);
            return Ended { result: Err(error), repeated, is_input, exit, world: None };
        }
    };
    let comm = MpiComm(Member::everyone(world.clone(), world.rank(), world.size()));
    let result = caught(world.rank(), || body(comm));
    let (result, Judgement { repeated, is_input, exit }) = world.end(result);
    Ended { result, repeated, is_input, exit, world: Some(world) }
}

/// Starts MPI in a thread of its own.
fn start(options: MpiOptions) -> Result<Arc<World>> {
    let (tell, told) = channel();
    let thread = thread::Builder::new().name("mpi".into()).spawn(move || {
        let Some((engine, place)) = Engine::start(options.part) else { return };
        let (world, handed) = (Arc::new(World::new(options.deadline, options.grace, place)), tell);
        if handed.send(world.clone()).is_ok() {
            engine.run(&world);
        }
    });
    let failed = |reason: String| CommError::NotStarted { reason }.into();
    thread.map_err(|error| failed(format!("its thread does not start: {error}")))?;
    told.recv_timeout(options.deadline).map_err(|lost| match lost {
        RecvTimeoutError::Timeout => {
            failed(format!("the other processes did not come within {} s", options.deadline.as_secs()))
        }
        RecvTimeoutError::Disconnected => failed("this process has used MPI before".into()),
    })
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

    /// The number of this rank among those of the run that share its machine, from 0.
    pub fn seat(&self) -> usize {
        self.0.wire().seat()
    }
}

impl Communicator for MpiComm {
    delegate_to_member!(Host);
}
