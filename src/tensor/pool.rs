//! The arena that host memory comes from and goes back to.

use std::sync::{Arc, Mutex};

use bytemuck::allocation::zeroed_vec;
use bytemuck::{Pod, Zeroable};

use crate::error::{Result, SupportError};
use crate::tensor::Ledger;

/// One cache line; gives host memory the alignment of vector loads.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u8; 64]);

pub(super) const LINE: usize = 64;

/// The arena of one rank: blocks of host memory that are handed out, come back on drop, and are handed out again.
#[derive(Default)]
pub struct Pool {
    state: Mutex<PoolState>,
    ledger: Arc<Ledger>,
}

#[derive(Default)]
struct PoolState {
    /// Free blocks, sorted by length.
    free: Vec<Vec<Line>>,
    owned: usize,
    live: usize,
    peak: usize,
    allocations: u64,
    sealed: bool,
}

/// What a [`Pool`] has done so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStats {
    /// Blocks that had to be requested from the system.
    pub allocations: u64,
    /// Bytes requested from the system and still owned.
    pub owned: usize,
    /// Most bytes in use at one time.
    pub peak: usize,
}

impl Pool {
    /// An empty pool.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// From now on a request is served by any free block that is large enough, however much larger, before the
    /// system is asked. Call it when every shape has been seen once.
    ///
    /// The first time, one more block of each length that is free is asked for: other ranks may keep a message a little
    /// longer than before, and smaller shapes may leave the gaps between blocks elsewhere. The system gives such memory
    /// once it is written.
    pub fn seal(&self) {
        let mut state = self.lock();
        if std::mem::replace(&mut state.sealed, true) {
            return;
        }
        let mut lengths: Vec<usize> = state.free.iter().map(Vec::len).filter(|&length| length > 0).collect();
        lengths.dedup();
        for length in lengths {
            state.allocations += 1;
            state.owned += length;
            let at = state.free.partition_point(|other| other.len() < length);
            state.free.insert(at, bytemuck::allocation::zeroed_vec(length));
        }
    }

    /// Allocations, bytes owned and the peak in use.
    pub fn stats(&self) -> PoolStats {
        let state = self.lock();
        PoolStats { allocations: state.allocations, owned: state.owned * LINE, peak: state.peak * LINE }
    }

    /// What the buffers from this pool hold, scratch excepted.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Makes sure that `bytes` can be owned in all.
    ///
    /// # Errors
    /// [`SupportError::Memory`] if the system refuses what is missing.
    pub(super) fn reserve(&self, bytes: usize) -> Result<()> {
        let owned = self.stats().owned;
        let missing = bytes.saturating_sub(owned);
        let mut lines: Vec<Line> = Vec::new();
        let refused = |error: std::collections::TryReserveError| SupportError::Memory {
            bytes: bytes as u64,
            owned: owned as u64,
            reason: error.to_string(),
        };
        Ok(lines.try_reserve_exact(missing.div_ceil(LINE)).map_err(refused)?)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn take(&self, lines: usize) -> Vec<Line> {
        let mut state = self.lock();
        let at = state.free.partition_point(|block| block.len() < lines);
        let fits = state.free.get(at).is_some_and(|block| state.sealed || block.len() <= 2 * lines);
        let block = if fits {
            state.free.remove(at)
        } else {
            state.allocations += 1;
            state.owned += lines;
            zeroed_vec(lines)
        };
        state.live += block.len();
        state.peak = state.peak.max(state.live);
        block
    }

    pub(super) fn put(&self, block: Vec<Line>) {
        let mut state = self.lock();
        state.live -= block.len();
        let at = state.free.partition_point(|other| other.len() < block.len());
        state.free.insert(at, block);
    }
}
