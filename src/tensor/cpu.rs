//! The processor as a device.

mod team;

use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::error::{Result, SupportError};
use crate::tensor::{Buffer, Device, Element, Float, Host, Ledger, MatrixMut, MatrixRef, Pool, PoolStats};

use team::Team;

/// Threads that a device has at most.
const MOST_THREADS: usize = 1 << 16;

/// The processor, storing `T`; the default device.
#[derive(Clone)]
pub struct Cpu<T = f32> {
    pool: Arc<Pool>,
    /// What ops use inside. All of it is free between two ops, so that with an arena of its own an op never lacks a
    /// block that a smaller matrix holds.
    scratch: Arc<Pool>,
    /// If more than one thread.
    team: Option<Arc<Team>>,
    marker: PhantomData<T>,
}

impl<T: Float> Cpu<T> {
    /// One rank's share of the processor: `threads` threads (at least 1), the caller's among them.
    ///
    /// # Panics
    /// If the system refuses the threads, which it never does for 1; [`Cpu::with_threads`] gives an error then.
    pub fn new(threads: usize) -> Self {
        Cpu::with_threads(threads).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same, for a number of threads that comes from outside the program.
    ///
    /// # Errors
    /// [`SupportError::Threads`] if the system refuses the threads.
    pub fn with_threads(threads: usize) -> Result<Self> {
        let refused = |reason| SupportError::Threads { threads, reason };
        let team = match threads {
            0 | 1 => None,
            2..=MOST_THREADS => Some(Arc::new(Team::new(threads).map_err(|error| refused(error.to_string()))?)),
            _ => return Err(refused(format!("a device has at most {MOST_THREADS}")).into()),
        };
        Ok(Cpu { pool: Pool::new(), scratch: Pool::new(), team, marker: PhantomData })
    }

    /// The same share of the processor and the same memory, storing another type.
    pub fn storing<E: Float>(&self) -> Cpu<E> {
        let (pool, scratch) = (self.pool.clone(), self.scratch.clone());
        Cpu { pool, scratch, team: self.team.clone(), marker: PhantomData }
    }

    /// The arena that buffers come from.
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Memory with unspecified contents for the inside of an op: it does not count in the [`Ledger`], because its size
    /// may depend on threads and tiles.
    pub(crate) fn scratch<E: Element>(&self, len: usize) -> Buffer<E> {
        Buffer::scratch(&self.scratch, len)
    }

    /// Number of threads, the caller's among them.
    pub fn threads(&self) -> usize {
        self.team().map_or(1, Team::threads)
    }

    /// The threads to spread work over, if more than one.
    pub(crate) fn team(&self) -> Option<&Team> {
        self.team.as_deref()
    }
}

impl<T: Float> fmt::Debug for Cpu<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cpu<{}>({} threads)", T::DTYPE, self.threads())
    }
}

impl<T: Float> Default for Cpu<T> {
    fn default() -> Self {
        Cpu::new(1)
    }
}

impl<T: Float> Device for Cpu<T> {
    type Elem = T;
    type Acc = T::Acc;
    type Storage = Host;

    fn empty<E: Element>(&self, len: usize) -> Buffer<E> {
        Buffer::empty(&self.pool, len)
    }

    fn zeros<E: Element>(&self, len: usize) -> Buffer<E> {
        Buffer::zeros(&self.pool, len)
    }

    fn write<E: Element>(&self, values: &[E], mut target: MatrixMut<'_, E>) {
        assert_eq!(values.len(), target.len(), "values for {target:?}");
        let cols = target.cols();
        (0..target.rows()).for_each(|row| target.row_mut(row).copy_from_slice(&values[row * cols..(row + 1) * cols]));
    }

    fn read<'a, E: Element>(&self, from: impl Into<MatrixRef<'a, E>>) -> Result<Vec<E>> {
        Ok(from.into().to_vec())
    }

    fn read_into<'a, E: Element>(&self, from: impl Into<MatrixRef<'a, E>>, values: &mut [E]) -> Result<()> {
        let from = from.into();
        assert_eq!(values.len(), from.len(), "values of {from:?}");
        let cols = from.cols();
        (0..from.rows()).for_each(|row| values[row * cols..(row + 1) * cols].copy_from_slice(from.row(row)));
        Ok(())
    }

    /// Asks the system for what the arena does not own yet, in one piece, and gives it back: blocks are taken one by
    /// one, as they are needed.
    fn reserve(&self, bytes: usize) -> Result<()> {
        self.pool.reserve(bytes)
    }

    fn duplicate<E: Element>(&self, buffer: &Buffer<E>) -> Buffer<E> {
        self.upload(buffer)
    }

    /// With what ops use inside; the peak is the sum of the two.
    fn memory(&self) -> PoolStats {
        let (held, inside) = (self.pool.stats(), self.scratch.stats());
        PoolStats {
            allocations: held.allocations + inside.allocations,
            owned: held.owned + inside.owned,
            peak: held.peak + inside.peak,
        }
    }

    fn ledger(&self) -> &Arc<Ledger> {
        self.pool.ledger()
    }

    fn seal(&self) {
        self.pool.seal();
        self.scratch.seal();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_are_refused_are_an_error_with_the_number_of_threads() {
        let error = Cpu::<f32>::with_threads(usize::MAX).err().unwrap();
        assert!(matches!(&error, crate::error::Error::Support(SupportError::Threads { threads: usize::MAX, .. })));
        assert!(error.is_input() && error.to_string().contains("use fewer"), "{error}");
        assert!(std::panic::catch_unwind(|| Cpu::<f32>::new(usize::MAX)).is_err(), "not one thread without a word");
        assert_eq!([0, 1, 3].map(|threads| Cpu::<f32>::with_threads(threads).unwrap().threads()), [1, 1, 3]);
    }
}
