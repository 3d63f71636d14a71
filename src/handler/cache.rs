//! What a handler keeps between batches: placements, plans and rotary tables of the latest batches.

use std::any::Any;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::Result;
use crate::layout::Layout;
use crate::mask::Mask;
use crate::order::{Placement, TokenOrder};
use crate::plan::Wire;
use crate::strategy::CpStrategy;
use crate::strategy::executor::AttentionPlan;

/// Entries of each kind that are kept; the one that was not used for longest goes first.
const KEPT: usize = 16;

/// A list of entries, the latest used last.
struct Recent<K, V>(Mutex<Vec<(K, V)>>);

impl<K: PartialEq, V: Clone> Recent<K, V> {
    fn new() -> Self {
        Recent(Mutex::new(Vec::new()))
    }

    fn get_or_make(&self, key: K, make: impl FnOnce() -> Result<V>) -> Result<V> {
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = lock();
        if let Some(at) = entries.iter().position(|(other, _)| *other == key) {
            let entry = entries.remove(at);
            let value = entry.1.clone();
            entries.push(entry);
            return Ok(value);
        }
        drop(entries);
        let value = make()?;
        let mut entries = lock();
        if entries.len() == KEPT {
            entries.remove(0);
        }
        entries.push((key, value.clone()));
        Ok(value)
    }
}

type Plan<H, L> = Arc<AttentionPlan<<H as CpStrategy>::Order, L>>;
type Place<H, L> = Arc<Placement<<H as CpStrategy>::Order, L>>;

/// What a placement is made for.
type Whose<L> = (Arc<<L as Layout>::Batch>, Vec<(Mask, u64)>);

/// The cache of one handler.
pub(super) struct Cache<H: CpStrategy, L: Layout> {
    strategy: H,
    rank: usize,
    ranks: usize,
    pub(super) checks: bool,
    pub(super) wire: Wire,
    /// By batch, and by masks where the order depends on them.
    placements: Recent<Whose<L>, Place<H, L>>,
    plans: Recent<(u64, Mask, Wire), Plan<H, L>>,
    /// By placement hash and content key; the value is whatever the key's owner keeps.
    other: Recent<(u64, u64), Arc<dyn Any + Send + Sync>>,
}

impl<H: CpStrategy, L: Layout> Cache<H, L> {
    pub(super) fn new(strategy: H, rank: usize, ranks: usize) -> Self {
        Cache {
            strategy,
            rank,
            ranks,
            checks: true,
            wire: Wire::default(),
            placements: Recent::new(),
            plans: Recent::new(),
            other: Recent::new(),
        }
    }

    pub(super) fn rank(&self) -> usize {
        self.rank
    }

    pub(super) fn ranks(&self) -> usize {
        self.ranks
    }

    pub(super) fn strategy(&self) -> &H {
        &self.strategy
    }

    pub(super) fn placement(&self, batch: Arc<L::Batch>, masks: &[(Mask, u64)]) -> Result<Place<H, L>> {
        let masks = if H::Order::FROM_MASKS { masks.to_vec() } else { Vec::new() };
        self.placements.get_or_make((batch.clone(), masks.clone()), || {
            let table = self.strategy.table(&*batch, &masks)?;
            Placement::with_table(batch, self.strategy.grid(), self.rank, table)
        })
    }

    pub(super) fn plan(&self, placement: &Place<H, L>, mask: &Mask) -> Result<Plan<H, L>> {
        self.plans.get_or_make((placement.hash(), mask.clone(), self.wire), || {
            // One rank's rehearsal speaks for all; where it fails, the others hear of it.
            if self.checks && self.rank == 0 && self.ranks > 1 {
                AttentionPlan::check(&self.strategy, placement, mask)?;
            }
            Ok(Arc::new(AttentionPlan::new(&self.strategy, placement, mask)?.with_wire(self.wire)))
        })
    }

    /// Something else that belongs to a placement, by a key that says all that it depends on.
    pub(super) fn other<V: Any + Send + Sync>(
        &self,
        placement: &Place<H, L>,
        key: u64,
        make: impl FnOnce() -> Result<V>,
    ) -> Result<Arc<V>> {
        let entry = self.other.get_or_make((placement.hash(), key), || {
            let value: Arc<dyn Any + Send + Sync> = Arc::new(make()?);
            Ok(value)
        })?;
        // Another type under the same key can only be a clash of hashes; the entry is then no use, not wrong.
        entry.downcast::<V>().map_err(|_| crate::error::PlacementError::CacheClash.into())
    }
}
