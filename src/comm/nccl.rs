//! The engine for GPUs that are connected: NCCL moves the bytes of messages from GPU to GPU, of one machine or of many.
//!
//! A second communicator over the host, the *control*, does everything else: threads of one process
//! ([`super::threads`]) or processes (`mpi`). Through it ranks find each other, meet in barriers and splits, and
//! hear of failures; and every message is announced there with its operation, digest, length and type, so that what
//! does not agree is the same error as with every other engine, before the data can be used.
//!
//! An exchange is one group of NCCL's, on the stream for transfers, in the order in which messages were handed over. It
//! waits for what was computed before, and what is computed after it waits for it only where the exchange is waited
//! for: neither makes the host wait for the GPU. The first exchange between two ranks connects them, which takes both.
//!
//! Sums are those of [`Collectives`](super::Collectives), in rank order, unless a caller asks for the engine's own.
//!
//! What NCCL demands beyond what other engines do:
//! - Each rank has a GPU of its own. Ranks that share one use [`super::threads`] on device memory.
//! - A group holds up the later ones of its rank until its peers have come to it. So ranks post exchanges that depend
//!   on each other in one order over all ranks, not only over each pair, as plans and collectives do.
//! - Messages that do not fit, and ranks that are lost, end the communicator: what is under way is aborted, so that
//!   streams go on, and every later operation gives the same error. That also happens while the host waits for a stream
//!   that stands at a message ([`Device::read`](crate::tensor::Device::read)).

mod end;
mod library;
mod link;

pub use end::ended;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::communicator::{Communicator, DynComm};
use super::parcel::{Message, Operation, Parcel, Receive, open};
use super::pending::{Completion, Pending, Received};
use crate::error::{CommError, Error, Result, SupportError};
use crate::tensor::cuda::{CudaFloat, CudaMemory, Place};
use crate::tensor::{Buffer, Cuda, Host};
use library::{Id, Part};
use link::{Act, End, Link, Used};

/// How ranks wait for each other.
#[derive(Clone, Copy, Debug)]
pub struct NcclOptions {
    /// How long the GPU of one rank may wait for that of another; a quarter more is allowed, since hosts that wait for
    /// each other know better who is silent. Default: 10 minutes. How long hosts wait is the control's.
    pub deadline: Duration,
}

impl Default for NcclOptions {
    fn default() -> Self {
        NcclOptions { deadline: Duration::from_secs(600) }
    }
}

/// Whether NCCL is there, with all that is called of it.
///
/// # Errors
/// [`SupportError::Cuda`] that says what is missing, where it was sought and how to get it.
pub fn ready() -> Result<(), SupportError> {
    library::expect()
}

/// The version of NCCL; nothing if it is not there.
pub fn version() -> Option<String> {
    library::version()
}

/// What ranks do to find each other.
const MEET: &str = "nccl";

/// One rank of a group whose messages are moved by NCCL.
///
/// ```no_run
/// use context_parallel::comm::nccl::{NcclComm, NcclOptions};
/// use context_parallel::comm::{Collectives, threads};
/// use context_parallel::tensor::{Cuda, Device};
///
/// // Four ranks in one process, each with a GPU of its own.
/// let sums = threads::run(4, |control| {
///     let device = Cuda::<f32>::new(control.rank())?;
///     let comm = NcclComm::new(Box::new(control), &device, NcclOptions::default())?;
///     let mut sum = device.upload(&[1.0f32, 10.0]);
///     comm.all_reduce(&mut sum)?;
///     device.read(&sum)
/// })?;
/// assert_eq!(sums, vec![vec![4.0, 40.0]; 4]);
/// # use context_parallel::comm::Communicator;
/// # Ok::<(), context_parallel::error::Error>(())
/// ```
pub struct NcclComm {
    control: Arc<DynComm>,
    place: Arc<Place>,
    options: NcclOptions,
    /// Nothing where a rank is alone.
    link: Option<Arc<Link>>,
}

impl NcclComm {
    /// Joins the other ranks of `control`; all of them call it, each with a device on another GPU. What is exchanged is
    /// memory of that device, whatever it stores.
    ///
    /// # Errors
    /// [`SupportError::Cuda`] if NCCL is missing or too old, or if two ranks have one GPU; [`CommError::Engine`] if
    /// NCCL does not start; those of `control`.
    pub fn new<T: CudaFloat>(control: DynComm, device: &Cuda<T>, options: NcclOptions) -> Result<Self> {
        library::expect()?;
        let counts = vec![size_of::<[u8; 16]>(); control.size()];
        let mine = Buffer::from_slice(&device.place().uuid()?);
        let mut gpus = Vec::with_capacity(counts.len());
        for (peer, gpu) in control.all_gather_parcels(MEET.into(), mine.into(), &counts)?.into_iter().enumerate() {
            gpus.push(open::<u8, Host>(gpu, peer, MEET)?.to_vec());
        }
        for (rank, gpu) in gpus.iter().enumerate() {
            if let Some(other) = gpus[..rank].iter().position(|other| other == gpu) {
                return Err(SupportError::Cuda(format!(
                    "ranks {other} and {rank} have the same GPU, and NCCL takes one for each rank: use a GPU per rank, or \
                     fewer ranks; ranks that are threads of one process can share a GPU without NCCL"
                ))
                .into());
            }
        }
        Self::join(control, device.place().clone(), options)
    }

    fn join(control: DynComm, place: Arc<Place>, options: NcclOptions) -> Result<Self> {
        let control = Arc::new(control);
        let link = match control.size() {
            1 => None,
            _ => Some(Link::join(control.clone(), place.clone(), options.deadline, &meet(&**control)?)?),
        };
        Ok(NcclComm { control, place, options, link })
    }

    /// An operation with other ranks of the group.
    fn act(&self, name: &'static str, peers: impl Iterator<Item = usize>) -> Act {
        Act { name, step: self.control.steps(), peers: peers.map(|peer| self.control.global_rank(peer)).collect() }
    }

    /// An error of the control: if it was not that of a call that it refused, the GPUs are not to wait either.
    fn lost(&self, error: Error) -> Error {
        let is_refused = |error: &CommError| {
            matches!(error, CommError::NoSuchRank { .. } | CommError::ToItself { .. } | CommError::Counts { .. })
        };
        match (&self.link, &error) {
            (None, _) => error,
            (Some(_), Error::Comm(refused)) if is_refused(refused) => error,
            (Some(link), _) => link.fail(error),
        }
    }

    fn check_link(&self) -> Result<()> {
        self.link.as_ref().map_or(Ok(()), |link| link.check())
    }
}

impl fmt::Debug for NcclComm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NcclComm({} of {} on {:?})", self.control.rank(), self.control.size(), self.place)
    }
}

/// Rank 0's number for the group, on every rank.
fn meet(control: &dyn Communicator<Host>) -> Result<Id> {
    let mut id: Id = [0; size_of::<Id>()];
    let mine = match control.rank() {
        0 => {
            let reason = |reason| CommError::NotStarted { reason: format!("NCCL on rank 0: {reason}") };
            Some(Buffer::from_slice(&library::new_id().map_err(reason)?).into())
        }
        _ => None,
    };
    let of = Receive::of::<u8>(0, id.len());
    id.copy_from_slice(&open::<u8, Host>(control.broadcast_parcel(MEET.into(), mine, of)?, 0, MEET)?);
    Ok(id)
}

impl Communicator<CudaMemory> for NcclComm {
    fn rank(&self) -> usize {
        self.control.rank()
    }

    fn size(&self) -> usize {
        self.control.size()
    }

    fn global_rank(&self, rank: usize) -> usize {
        self.control.global_rank(rank)
    }

    fn exchange(
        &self,
        operation: Operation,
        messages: Vec<Message<CudaMemory>>,
        receives: Vec<Receive>,
    ) -> Result<Pending<CudaMemory>> {
        self.check_link()?;
        let announced = messages.iter().map(|Message { to, parcel }| Message {
            to: to.clone(),
            parcel: Parcel::announced(parcel.len(), parcel.dtype()),
        });
        let announced = self.control.exchange(operation, announced.collect(), receives.clone());
        let heard = announced.map_err(|error| self.lost(error))?;
        let Some(link) = self.link.clone() else {
            return Ok(Pending::new(Arriving { heard, parcels: Vec::new(), on: None }));
        };
        let senders = receives.iter().map(|receive| receive.from);
        let receivers = messages.iter().flat_map(|message| message.to.ranks().iter().copied());
        let act = self.act(operation.name, senders.chain(receivers));
        let (mut parts, mut used) = (Vec::new(), Vec::new());
        for Message { to, parcel } in messages {
            let (bytes, memory) = (parcel.bytes(), parcel.storage);
            if bytes > 0 {
                let from = memory.reads(&self.place);
                parts.extend(to.ranks().iter().map(|&to| Part::Send { to, from, bytes }));
                used.push(Used::Own(memory));
            }
        }
        let mut parcels = Vec::with_capacity(receives.len());
        for receive in receives {
            let bytes = receive.bytes();
            let storage = self.place.memory_to_receive(bytes);
            if bytes > 0 {
                parts.push(Part::Receive { from: receive.from, to: storage.reads(&self.place), bytes });
                used.push(Used::Others(storage.kept()));
            }
            parcels.push(Parcel { storage, len: receive.len, dtype: receive.dtype });
        }
        let end = match parts.is_empty() {
            true => None,
            false => Some(link.post(act, used, |raw, stream| raw.exchange(&parts, stream))?),
        };
        Ok(Pending::new(Arriving { heard, parcels, on: Some((link, end)) }))
    }

    fn barrier(&self) -> Result<()> {
        self.check_link()?;
        self.control.barrier().map_err(|error| self.lost(error))
    }

    fn split(&self, color: usize, key: usize) -> Result<DynComm<CudaMemory>> {
        self.check_link()?;
        let control = self.control.split(color, key).map_err(|error| self.lost(error))?;
        let part = Self::join(control, self.place.clone(), self.options).map_err(|error| self.lost(error))?;
        Ok(Box::new(part))
    }

    fn abort(&self, reason: &str) {
        self.control.abort(reason);
        if let Some(link) = &self.link {
            let rank = self.global_rank(self.rank());
            link.fail(CommError::Poisoned { rank, reason: reason.into() }.into());
        }
    }

    fn check(&self) -> Result<()> {
        self.check_link()?;
        self.control.check()
    }

    fn steps(&self) -> u64 {
        self.control.steps()
    }

    fn sum_parcel(&self, operation: Operation, values: &mut Parcel<CudaMemory>) -> Result<bool> {
        self.check_link()?;
        let Some(link) = &self.link else { return Ok(true) };
        let (rank, size, len, dtype) = (self.rank(), self.size(), values.len(), values.dtype());
        // Each rank tells the next one what it sums: who has heard no other is in agreement with all.
        let (next, before) = ((rank + 1) % size, (rank + size - 1) % size);
        let announced = vec![Message { to: next.into(), parcel: Parcel::announced(len, dtype) }];
        let heard = self.control.exchange(operation, announced, vec![Receive { from: before, len, dtype }]);
        heard.and_then(Pending::wait).map_err(|error| self.lost(error))?;
        if library::summed(dtype).is_none() {
            return Ok(false);
        }
        if len > 0 {
            let act = self.act(operation.name, (0..size).filter(|&peer| peer != rank));
            let at = values.storage.writes(&self.place);
            let used = vec![Used::Others(values.storage.kept())];
            let end = link.post(act, used, |raw, stream| raw.sum(at, len, dtype, stream))?;
            link.reached(&end)?;
        }
        Ok(true)
    }
}

/// An exchange under way.
struct Arriving {
    /// What others announce.
    heard: Pending,
    parcels: Vec<Parcel<CudaMemory>>,
    /// The operation on the stream, if there is anything to move.
    on: Option<(Arc<Link>, Option<End>)>,
}

impl Completion<CudaMemory> for Arriving {
    fn complete(self: Box<Self>) -> Result<Received<CudaMemory>> {
        let Arriving { heard, parcels, on } = *self;
        let Some((link, end)) = on else { return heard.wait().map(|_| Received { parcels }) };
        // The control compares.
        heard.wait().map_err(|error| link.fail(error))?;
        match end {
            Some(end) if !parcels.is_empty() => link.reached(&end)?,
            _ => link.check()?,
        }
        Ok(Received { parcels })
    }
}
