//! Accounts of memory: how many bytes a rank holds, to the byte, and the most that it ever held.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What one device holds for a program: buffers, what an attention pass sends until it is posted, and what it expects
/// from then on. Scratch of an op, the rounding of an arena and results of collectives do not count, so that the
/// account depends on the program alone, not on threads, engines or other ranks.
///
/// Nor does a message that another rank sends before this one expects it: an engine keeps it until then, and it counts
/// from the post on. A rank that is behind the others can hold as much more as they send ahead, at most all that it
/// receives in the pass.
#[derive(Debug, Default)]
pub struct Ledger {
    held: AtomicUsize,
    peak: AtomicUsize,
}

impl Ledger {
    /// Counts bytes until the charge is dropped. A peak that cannot be counted stays at the largest number there is.
    pub fn charge(self: &Arc<Self>, bytes: usize) -> Charge {
        let held = self.held.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        self.peak.fetch_max(held, Ordering::Relaxed);
        Charge { ledger: self.clone(), bytes }
    }

    /// Bytes that are held.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Most bytes that were held at one time since the last [`Ledger::mark`].
    pub fn peak(&self) -> usize {
        self.peak.load(Ordering::Relaxed)
    }

    /// From now on the peak counts anew; gives what is held.
    pub fn mark(&self) -> usize {
        let held = self.held();
        self.peak.store(held, Ordering::Relaxed);
        held
    }
}

/// Bytes on an account, until it is dropped.
#[derive(Debug)]
pub struct Charge {
    ledger: Arc<Ledger>,
    bytes: usize,
}

impl Charge {
    /// Where it counts.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.ledger.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charges_count_until_they_are_dropped() {
        let ledger = Arc::new(Ledger::default());
        let (first, second) = (ledger.charge(100), ledger.charge(20));
        drop(first);
        assert_eq!((ledger.held(), ledger.peak()), (20, 120));
        assert_eq!((ledger.mark(), ledger.peak()), (20, 20));
        let third = ledger.charge(5);
        drop((second, third));
        assert_eq!((ledger.held(), ledger.peak()), (0, 25));
    }

    #[test]
    fn more_than_can_be_counted_is_the_largest_peak() {
        let ledger = Arc::new(Ledger::default());
        let charges = [ledger.charge(1 << 63), ledger.charge(1 << 63), ledger.charge(7)];
        assert_eq!(ledger.peak(), usize::MAX);
        drop(charges);
        assert_eq!(ledger.held(), 0);
    }
}
