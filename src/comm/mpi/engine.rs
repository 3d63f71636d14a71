//! The thread that talks to MPI: moves frames both ways without ever waiting for one of them.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use ::mpi::environment::Universe;
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{Communicator as _, Equivalence as _, Source as _};
use ::mpi::{Tag, Threading};

use super::super::failure::panicked;
use super::super::mailbox::RankFailure;
use super::super::wire::Carrier as _;
use super::frame::{Frame, Header};
use super::lane::Lane;
use super::state::{Order, Orders, Place, Progress};
use super::transfer::InFlight;
use super::world::World;
use crate::error::{CommError, Error};
use crate::tensor::{Buffer, Pool};

/// Headers, in the order in which a rank sends; and what follows them, in the same order.
pub(super) const HEADER: Tag = 1;
pub(super) const BYTES: Tag = 2;

/// Headers that are taken in before the thread turns to its other work: ranks that send without end do not hold it up.
const HEADERS: usize = 64;

/// Rounds without progress that are followed at once by another, and the naps after later ones. A message that comes
/// during a nap waits for its end, so the longest is short against the time that a rank computes between messages.
const EAGER_ROUNDS: u32 = 64;
const SHORTEST_NAP: Duration = Duration::from_micros(20);
const LONGEST_NAP: Duration = Duration::from_micros(200);

/// A frame under way to this rank.
enum Incoming {
    Header(InFlight),
    Bytes(Header, InFlight),
}

pub(super) struct Engine {
    comm: SimpleCommunicator,
    /// Most bytes of one message.
    part: usize,
    /// Memory of received messages.
    pool: Arc<Pool>,
    /// By receiver.
    outgoing: Vec<Lane>,
    /// The receivers to which something is going.
    busy: Vec<usize>,
    /// By sender, in the order in which they were sent.
    incoming: Vec<VecDeque<Incoming>>,
    /// The senders from which something is coming.
    active: Vec<usize>,
    // Last, so that it is dropped last: MPI ends then.
    _universe: Universe,
}

impl Engine {
    /// Starts MPI in this thread, together with all processes; `None` if the process has used it before.
    pub(super) fn start(part: usize) -> Option<(Self, Place)> {
        // The thread that starts MPI is the one that uses it.
        let (universe, _) = ::mpi::initialize_with_threading(Threading::Funneled)?;
        let world = universe.world();
        let here = world.split_shared(0);
        let (neighbours, seat) = (here.size() as usize, here.rank() as usize);
        drop(here);
        // A communicator of our own: its messages meet nobody else's.
        let comm = world.duplicate();
        let (rank, size) = (comm.rank() as usize, comm.size() as usize);
        let outgoing = (0..size).map(|_| Lane::default()).collect();
        let incoming = (0..size).map(|_| VecDeque::new()).collect();
        let (busy, active, pool) = (Vec::new(), Vec::new(), Pool::new());
        let engine = Engine { comm, part, pool, outgoing, busy, incoming, active, _universe: universe };
        Some((engine, Place { rank, size, neighbours, seat }))
    }

    /// Moves frames until the end of MPI is ordered.
    pub(super) fn run(mut self, world: &Arc<World>) {
        let turned = catch_unwind(AssertUnwindSafe(|| self.turn_until_the_end(world)));
        match turned {
            Ok(()) => drop(self),
            // MPI cannot be trusted any more, not even with its end; the process must end without it.
            Err(panic) => {
                let reason = match panicked(world.rank(), &*panic) {
                    Error::Comm(CommError::Poisoned { reason, .. }) => reason,
                    other => other.to_string(),
                };
                let reason = format!("its connection to the other processes broke: {reason}");
                world.fail(world.rank(), RankFailure { rank: world.rank(), reason });
                std::mem::forget(self);
            }
        }
        world.change(|state| state.progress = Progress::Over);
    }

    fn turn_until_the_end(&mut self, world: &World) {
        let mut idle = 0u32;
        loop {
            let Orders { order, outbox, is_failed } = world.orders();
            match order {
                Order::Run => {}
                Order::Finalize => return,
                Order::Abort => self.comm.abort(1),
            }
            let mut moved = !outbox.is_empty();
            outbox.into_iter().for_each(|(to, frame)| self.post(to, frame));
            moved |= self.receive(world);
            moved |= self.send(world, is_failed);
            idle = if moved { 0 } else { idle + 1 };
            match idle.checked_sub(EAGER_ROUNDS) {
                None => thread::yield_now(),
                Some(naps) => world.rest(LONGEST_NAP.min(SHORTEST_NAP * (1 + naps))),
            }
        }
    }

    fn post(&mut self, to: usize, frame: Frame) {
        if self.outgoing[to].is_empty() {
            self.busy.push(to);
        }
        self.outgoing[to].push(frame);
    }

    /// Sends on; tells when everything is sent.
    fn send(&mut self, world: &World, is_failed: bool) -> bool {
        if self.busy.is_empty() {
            return false;
        }
        let Engine { comm, part, outgoing, busy, .. } = self;
        let mut moved = false;
        busy.retain(|&to| {
            let lane = &mut outgoing[to];
            if is_failed {
                lane.give_up();
            }
            moved |= lane.advance(comm, to as i32, *part);
            !lane.is_empty()
        });
        if busy.is_empty() {
            world.change(|state| state.flushed = state.outbox.is_empty());
        }
        moved
    }

    /// Takes in what has come; true if anything has.
    fn receive(&mut self, world: &World) -> bool {
        let mut moved = false;
        for _ in 0..HEADERS {
            let Some((message, status)) = self.comm.any_process().immediate_matched_probe_with_tag(HEADER) else {
                break;
            };
            let len = status.count(u8::equivalent_datatype()) as usize;
            let header = InFlight::receive_matched(message, Buffer::empty(&self.pool, len));
            let from = status.source_rank() as usize;
            if self.incoming[from].is_empty() {
                self.active.push(from);
            }
            self.incoming[from].push_back(Incoming::Header(header));
            moved = true;
        }
        let mut active = std::mem::take(&mut self.active);
        active.retain(|&from| {
            moved |= self.receive_from(from, world);
            !self.incoming[from].is_empty()
        });
        self.active = active;
        moved
    }

    fn receive_from(&mut self, from: usize, world: &World) -> bool {
        let Engine { comm, pool, incoming, .. } = self;
        let queue = &mut incoming[from];
        let mut moved = false;
        for frame in queue.iter_mut() {
            if let Incoming::Header(transfer) = frame {
                moved |= transfer.advance();
                // What follows later headers comes after what follows this one.
                let Some(header) = transfer.peek() else { break };
                let Ok(header) = bytemuck::try_pod_read_unaligned::<Header>(header) else {
                    world.arrive(from, stranger(from));
                    break;
                };
                let bytes = Buffer::empty(pool, header.bytes as usize);
                let transfer = InFlight::receive(comm, from as i32, BYTES, bytes, header.part as usize);
                *frame = Incoming::Bytes(header, transfer);
            }
            if let Incoming::Bytes(header, transfer) = frame {
                moved |= transfer.advance();
                // A failure overtakes messages that are still coming; it is heard again, to no effect, in its turn.
                if header.is_urgent()
                    && let Some(reason) = transfer.peek()
                    && let Some(frame) = Frame::unpack(*header, Buffer::from_slice(reason))
                {
                    world.arrive(from, frame);
                }
            }
        }
        while let Some(Incoming::Bytes(_, transfer)) = queue.front()
            && transfer.is_complete()
        {
            let Some(Incoming::Bytes(header, transfer)) = queue.pop_front() else { break };
            let frame = transfer.take().and_then(|bytes| Frame::unpack(header, bytes));
            world.arrive(from, frame.unwrap_or_else(|| stranger(from)));
            moved = true;
        }
        moved
    }
}

/// What a rank is told that gets a frame it cannot read.
fn stranger(from: usize) -> Frame {
    let reason = "it runs another version of this program: start the same one everywhere".into();
    Frame::Failed(RankFailure { rank: from, reason })
}
