//! The memory of one rank on a GPU.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{DriverError, result, sys};

use super::event::Event;
use crate::tensor::PoolStats;
use crate::tensor::pool::{Arena, Piece};

/// Bytes that sizes are rounded up to: kernels load whole 16 bytes, and rows of blocks begin anew.
const GRAIN: usize = 256;

/// Device memory in one piece.
#[derive(Debug)]
pub(super) struct Slab {
    pub(super) address: sys::CUdeviceptr,
    /// In grains.
    grains: usize,
    /// What other streams still do with it.
    pub(super) uses: Vec<Arc<Event>>,
    /// How many points of the stream had been recorded when it was given up last; nothing if nobody has had it.
    pub(super) freed: Option<u64>,
    /// What it was taken for.
    pub(super) purpose: Purpose,
}

/// Who writes into memory first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The stream for computing.
    #[default]
    Compute,
    /// The stream for transfers.
    Receive,
}

impl Piece for Slab {
    fn length(&self) -> usize {
        self.grains
    }
}

impl Slab {
    /// Gives it back to the driver.
    pub(super) fn free(self) {
        free(&self);
    }
}

/// Blocks that are handed out, come back, and are handed out again in the order of the stream.
#[derive(Debug, Default)]
pub(super) struct CudaPool {
    state: Mutex<State>,
    purpose: Purpose,
}

#[derive(Debug, Default)]
struct State {
    arena: Arena<Slab>,
    /// What is handed out while it is watched, by address.
    watched: Option<HashSet<sys::CUdeviceptr>>,
}

impl CudaPool {
    pub(super) fn of(purpose: Purpose) -> Self {
        CudaPool { state: Mutex::default(), purpose }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches from now on what is handed out.
    pub(super) fn watch(&self) {
        self.lock().watched = Some(HashSet::new());
    }

    /// Whether this memory was handed out since then.
    pub(super) fn is_watched(&self, address: sys::CUdeviceptr) -> bool {
        self.lock().watched.as_ref().is_some_and(|watched| watched.contains(&address))
    }

    /// What was handed out since then and has come back, which is no longer free; and whether something has not.
    pub(super) fn watched(&self) -> (Vec<Slab>, bool) {
        let mut state = self.lock();
        let watched = state.watched.take().unwrap_or_default();
        let slabs = state.arena.withdraw(|slab| watched.contains(&slab.address));
        let is_kept = slabs.len() < watched.len();
        (slabs, is_kept)
    }

    /// Memory that was watched is free again.
    pub(super) fn give_back(&self, slab: Slab) {
        self.lock().arena.put_back(slab);
    }

    /// Memory of at least so many bytes; the GPU is the calling thread's.
    pub(super) fn take(&self, bytes: usize) -> Result<Slab, DriverError> {
        let grains = bytes.div_ceil(GRAIN).max(1);
        let State { arena, watched } = &mut *self.lock();
        let slab = match arena.take(grains) {
            Some(slab) => slab,
            None => {
                let address = allocate(grains)?;
                arena.adopt(grains);
                self.fresh(address, grains)
            }
        };
        arena.lend(&slab);
        watched.iter_mut().for_each(|watched| watched.extend([slab.address]));
        Ok(slab)
    }

    fn fresh(&self, address: sys::CUdeviceptr, grains: usize) -> Slab {
        Slab { address, grains, uses: Vec::new(), freed: None, purpose: self.purpose }
    }

    pub(super) fn put(&self, slab: Slab) {
        self.lock().arena.put(slab);
    }

    pub(super) fn stats(&self) -> PoolStats {
        self.lock().arena.stats(GRAIN)
    }

    /// As [`Pool::seal`](crate::tensor::Pool::seal).
    pub(super) fn seal(&self) {
        let arena = &mut self.lock().arena;
        for grains in arena.seal() {
            // Without it a later message may have to be allocated for, no more.
            if let Ok(address) = allocate(grains) {
                arena.adopt(grains);
                arena.put_back(self.fresh(address, grains));
            }
        }
    }

    /// Gives everything back that is free, which waits for the GPU.
    pub(super) fn clear(&self) {
        let pieces = self.lock().arena.clear();
        pieces.iter().for_each(free);
    }
}

fn allocate(grains: usize) -> Result<sys::CUdeviceptr, DriverError> {
    // SAFETY: memory with unspecified contents, which is all that a buffer promises.
    unsafe { result::malloc_sync(grains * GRAIN) }
}

fn free(slab: &Slab) {
    // The driver waits for uses on this GPU, not for another one that copies from here.
    slab.uses.iter().for_each(|event| event.wait());
    // SAFETY: the address came from `allocate`, and nobody has the slab any more; the driver waits for its uses. An
    // error here is that of an earlier op, which has been told.
    let _ = unsafe { result::free_sync(slab.address) };
}
