//! The memory of one rank on a GPU.

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

/// Blocks that are handed out, come back, and are handed out again in the order of the stream.
#[derive(Debug, Default)]
pub(super) struct CudaPool {
    arena: Mutex<Arena<Slab>>,
    purpose: Purpose,
}

impl CudaPool {
    pub(super) fn of(purpose: Purpose) -> Self {
        CudaPool { arena: Mutex::default(), purpose }
    }

    fn lock(&self) -> MutexGuard<'_, Arena<Slab>> {
        self.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Memory of at least so many bytes; the GPU is the calling thread's. If there is none left, what is free goes back
    /// to the driver first, which waits for the GPU.
    pub(super) fn take(&self, bytes: usize) -> Result<Slab, DriverError> {
        let grains = bytes.div_ceil(GRAIN).max(1);
        let mut arena = self.lock();
        let slab = match arena.take(grains) {
            Some(slab) => slab,
            None => {
                let address = match allocate(grains) {
                    Ok(address) => address,
                    Err(_) => {
                        arena.clear().iter().for_each(free);
                        allocate(grains)?
                    }
                };
                arena.adopt(grains);
                self.fresh(address, grains)
            }
        };
        arena.lend(&slab);
        Ok(slab)
    }

    fn fresh(&self, address: sys::CUdeviceptr, grains: usize) -> Slab {
        Slab { address, grains, uses: Vec::new(), freed: None, purpose: self.purpose }
    }

    pub(super) fn put(&self, slab: Slab) {
        self.lock().put(slab);
    }

    pub(super) fn stats(&self) -> PoolStats {
        self.lock().stats(GRAIN)
    }

    /// As [`Pool::seal`](crate::tensor::Pool::seal).
    pub(super) fn seal(&self) {
        let mut arena = self.lock();
        for grains in arena.seal() {
            // Without it a later message may have to be allocated for, no more.
            if let Ok(address) = allocate(grains) {
                arena.adopt(grains);
                arena.put_back(self.fresh(address, grains));
            }
        }
    }

    /// Gives everything back that is free.
    pub(super) fn clear(&self) {
        self.lock().clear().iter().for_each(free);
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
