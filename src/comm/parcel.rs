//! What an exchange carries: parcels, the messages that they go out in, and what is expected of others.

use crate::error::{CommError, Result};
use crate::tensor::{Buffer, Charge, DType, Element, Host, Storage};

/// What an exchange is for. Both ends say it, and messages of one are never taken for those of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Names the exchange in errors and counters.
    pub name: &'static str,
    /// Stands for what both ends must have alike beside their sizes, such as a plan; 0 for nothing.
    pub digest: u64,
}

impl Operation {
    /// The operation `name` under what `digest` stands for.
    pub const fn under(name: &'static str, digest: u64) -> Self {
        Operation { name, digest }
    }
}

impl From<&'static str> for Operation {
    fn from(name: &'static str) -> Self {
        Operation::under(name, 0)
    }
}

/// An owned buffer whose element type is known at run time: what a message carries.
#[derive(Debug)]
pub struct Parcel<S = Host> {
    pub(super) storage: S,
    pub(super) len: usize,
    pub(super) dtype: DType,
}

impl<S: Storage> Parcel<S> {
    /// `buffer`, on the account that it is on.
    pub(super) fn keep<T: Element>(buffer: Buffer<T, S>) -> Self {
        let len = buffer.len();
        Parcel { storage: buffer.into_storage(), len, dtype: T::DTYPE }
    }

    /// `bytes` read as `len` elements.
    pub(super) fn of_bytes(bytes: Buffer<u8, S>, len: usize, dtype: DType) -> Self {
        Parcel { storage: bytes.into_storage(), len, dtype }
    }

    /// The elements as bytes.
    pub(super) fn into_bytes(self) -> Buffer<u8, S> {
        let bytes = self.bytes();
        Buffer::from_storage(self.storage, bytes)
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of the elements; what counts as sent, once per receiver.
    pub fn bytes(&self) -> usize {
        self.len * self.dtype.size()
    }

    /// Says on whose account the memory is: see [`Storage::set_charge`].
    pub(super) fn set_charge(&mut self, charge: Option<Charge>) {
        self.storage.set_charge(charge);
    }

    /// Two owners of the same elements: see [`Storage::share`].
    pub fn share(self) -> (Self, Self) {
        let Parcel { storage, len, dtype } = self;
        let (this, other) = storage.share();
        (Parcel { storage: this, len, dtype }, Parcel { storage: other, len, dtype })
    }

    /// The buffer, if it holds elements of `T`. Where other ranks received the same memory it is read in place, and a
    /// write copies it first.
    pub fn open<T: Element>(self) -> Option<Buffer<T, S>> {
        let is_here = self.storage.capacity() >= self.bytes();
        (self.dtype == T::DTYPE && is_here).then(|| Buffer::from_storage(self.storage, self.len))
    }
}

/// Parcels whose elements take another way.
#[cfg(any(feature = "cuda", feature = "mpi"))]
impl Parcel {
    /// Says of so many elements that they come, and brings none: the receiver compares it with what it expects.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn announced(len: usize, dtype: DType) -> Self {
        Parcel { storage: Buffer::<u8>::from_slice(&[]).into_storage(), len, dtype }
    }

    /// The elements as bytes; none of those that take another way.
    #[cfg(feature = "mpi")]
    pub(super) fn into_bytes_here(self) -> Buffer<u8> {
        match self.storage.capacity() {
            0 => Buffer::from_storage(self.storage, 0),
            _ => self.into_bytes(),
        }
    }
}

impl<T: Element, S: Storage> From<Buffer<T, S>> for Parcel<S> {
    /// The buffer is on nobody's account from now on: when a receiver drops it is not for the sender to say.
    fn from(mut buffer: Buffer<T, S>) -> Self {
        buffer.set_charge(None);
        Parcel::keep(buffer)
    }
}

/// The ranks that a message is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Receivers {
    /// This one.
    One(usize),
    /// All of these; the message is not copied for each.
    Many(Vec<usize>),
}

impl Receivers {
    /// The ranks.
    pub fn ranks(&self) -> &[usize] {
        match self {
            Receivers::One(rank) => std::slice::from_ref(rank),
            Receivers::Many(ranks) => ranks,
        }
    }
}

impl From<usize> for Receivers {
    fn from(rank: usize) -> Self {
        Receivers::One(rank)
    }
}

impl From<Vec<usize>> for Receivers {
    fn from(ranks: Vec<usize>) -> Self {
        Receivers::Many(ranks)
    }
}

/// A buffer for another rank, or the same for several: those in this process share its memory, and it goes back to its
/// pool when the last of them is done.
#[derive(Debug)]
pub struct Message<S = Host> {
    /// The receivers. Sending to oneself is an error.
    pub to: Receivers,
    /// What each of them gets.
    pub parcel: Parcel<S>,
}

impl<S: Storage> Message<S> {
    /// `parcel` for one rank (`usize`) or several (`Vec<usize>`).
    ///
    /// ```
    /// use context_parallel::comm::{Communicator, Message, Receive, open, threads};
    /// use context_parallel::tensor::Buffer;
    ///
    /// let seen = threads::run(3, |comm| {
    ///     if comm.rank() > 0 {
    ///         let received = comm.exchange("news".into(), vec![], vec![Receive::of::<f32>(0, 2)])?.wait()?;
    ///         let parcel = received.parcels.into_iter().next().expect("one is expected");
    ///         return Ok(open::<f32, _>(parcel, 0, "news")?.to_vec());
    ///     }
    ///     let news = Buffer::from_slice(&[1.0f32, 2.0]);
    ///     comm.exchange("news".into(), vec![Message::new(vec![1, 2], news)], vec![])?.wait()?;
    ///     Ok(vec![])
    /// })?;
    /// assert_eq!(seen, [vec![], vec![1.0, 2.0], vec![1.0, 2.0]]);
    /// # Ok::<(), context_parallel::error::Error>(())
    /// ```
    pub fn new(to: impl Into<Receivers>, parcel: impl Into<Parcel<S>>) -> Self {
        Message { to: to.into(), parcel: parcel.into() }
    }
}

/// A buffer that another rank will send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Receive {
    /// The sender.
    pub from: usize,
    /// Number of elements that it sends.
    pub len: usize,
    /// Their type.
    pub dtype: DType,
}

impl Receive {
    /// `len` elements of `T` from rank `from`.
    pub fn of<T: Element>(from: usize, len: usize) -> Self {
        Receive { from, len, dtype: T::DTYPE }
    }

    /// Bytes that come; the largest number there is where they cannot be counted.
    pub fn bytes(&self) -> usize {
        self.len.saturating_mul(self.dtype.size())
    }
}

/// Opens a parcel as elements of `T`, or says who broke the protocol.
pub fn open<T: Element, S: Storage>(parcel: Parcel<S>, peer: usize, operation: &'static str) -> Result<Buffer<T, S>> {
    let found = parcel.dtype().to_string();
    parcel
        .open()
        .ok_or_else(|| CommError::Protocol { peer, operation, step: 0, expected: T::DTYPE.to_string(), found }.into())
}
