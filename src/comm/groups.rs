//! Numbers for the groups that `split` makes, the same on every rank without a message.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Shared by the ranks of a process: hands out one number per (parent group, how many splits of it came before,
/// color).
#[derive(Debug, Default)]
pub(crate) struct Groups {
    numbers: Mutex<BTreeMap<(u64, u64, usize), u64>>,
}

impl Groups {
    /// The group of everyone.
    pub(crate) const ALL: u64 = 0;

    /// The number of the group with `color` in the `nth` split of group `parent`.
    pub(crate) fn number(&self, parent: u64, nth: u64, color: usize) -> u64 {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let next = numbers.len() as u64 + 1;
        *numbers.entry((parent, nth, color)).or_insert(next)
    }
}
