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
    state: Mutex<Arena<Vec<Line>>>,
    ledger: Arc<Ledger>,
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
        for length in state.seal() {
            state.adopt(length);
            state.put_back(zeroed_vec(length));
        }
    }

    /// Allocations, bytes owned and the peak in use.
    pub fn stats(&self) -> PoolStats {
        self.lock().stats(LINE)
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

    fn lock(&self) -> std::sync::MutexGuard<'_, Arena<Vec<Line>>> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(super) fn take(&self, lines: usize) -> Vec<Line> {
        let mut state = self.lock();
        let block = state.take(lines).unwrap_or_else(|| {
            state.adopt(lines);
            zeroed_vec(lines)
        });
        state.lend(&block);
        block
    }

    pub(super) fn put(&self, block: Vec<Line>) {
        self.lock().put(block);
    }
}

/// Memory in one piece.
pub(super) trait Piece {
    /// Its size, in the arena's unit.
    fn length(&self) -> usize;
}

impl Piece for Vec<Line> {
    fn length(&self) -> usize {
        self.len()
    }
}

/// The pieces that a pool owns, and what became of them; whoever has it asks the system for more. All sizes are in one
/// unit.
#[derive(Debug)]
pub(super) struct Arena<B> {
    /// Sorted by length.
    free: Vec<B>,
    owned: usize,
    live: usize,
    peak: usize,
    allocations: u64,
    sealed: bool,
}

impl<B> Default for Arena<B> {
    fn default() -> Self {
        Arena { free: Vec::new(), owned: 0, live: 0, peak: 0, allocations: 0, sealed: false }
    }
}

impl<B: Piece> Arena<B> {
    /// A free piece of at least this length: not more than twice as long, or however long once the arena is sealed.
    pub(super) fn take(&mut self, length: usize) -> Option<B> {
        let at = self.free.partition_point(|piece| piece.length() < length);
        let fits = self.free.get(at).is_some_and(|piece| self.sealed || piece.length() <= 2 * length);
        fits.then(|| self.free.remove(at))
    }

    /// A piece of this length was asked of the system.
    pub(super) fn adopt(&mut self, length: usize) {
        self.allocations += 1;
        self.owned += length;
    }

    /// A piece is handed out.
    pub(super) fn lend(&mut self, piece: &B) {
        self.live += piece.length();
        self.peak = self.peak.max(self.live);
    }

    /// A piece that was handed out comes back.
    pub(super) fn put(&mut self, piece: B) {
        self.live -= piece.length();
        self.put_back(piece);
    }

    /// A piece is free that nobody had.
    pub(super) fn put_back(&mut self, piece: B) {
        let at = self.free.partition_point(|other| other.length() < piece.length());
        self.free.insert(at, piece);
    }

    /// Seals the arena; gives, the first time, each length of which a piece is free.
    pub(super) fn seal(&mut self) -> Vec<usize> {
        if std::mem::replace(&mut self.sealed, true) {
            return Vec::new();
        }
        let mut lengths: Vec<usize> = self.free.iter().map(B::length).filter(|&length| length > 0).collect();
        lengths.dedup();
        lengths
    }

    /// The free pieces that `is_wanted` says, which are free no longer; they are still owned.
    #[cfg(feature = "cuda")]
    pub(super) fn withdraw(&mut self, is_wanted: impl Fn(&B) -> bool) -> Vec<B> {
        self.free.extract_if(.., |piece| is_wanted(piece)).collect()
    }

    /// All free pieces, which go back to the system.
    #[cfg(feature = "cuda")]
    pub(super) fn clear(&mut self) -> Vec<B> {
        self.owned -= self.free.iter().map(B::length).sum::<usize>();
        std::mem::take(&mut self.free)
    }

    /// What became of the pieces, in bytes of `unit` each.
    pub(super) fn stats(&self, unit: usize) -> PoolStats {
        PoolStats { allocations: self.allocations, owned: self.owned * unit, peak: self.peak * unit }
    }
}
