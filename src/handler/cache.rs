//! What a handler keeps between batches: placements, plans and rotary tables of the latest batches.

use std::sync::{Mutex, PoisonError};

use crate::error::Result;

/// Entries of each kind that are kept; the one that was not used for longest goes first.
const KEPT: usize = 32;

/// A list of entries, the latest used last.
pub(super) struct Recent<K, V>(Mutex<Vec<(K, V)>>);

impl<K: PartialEq, V: Clone> Recent<K, V> {
    pub(super) fn new() -> Self {
        Recent(Mutex::new(Vec::new()))
    }

    /// The value of `key`, made now if it is not there. Nothing is locked while it is made.
    pub(super) fn get_or_make(&self, key: K, make: impl FnOnce(&K) -> Result<V>) -> Result<V> {
        if let Some(value) = self.get(&key) {
            return Ok(value);
        }
        let value = make(&key)?;
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() == KEPT {
            entries.remove(0);
        }
        entries.push((key, value.clone()));
        Ok(value)
    }

    fn get(&self, key: &K) -> Option<V> {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let at = entries.iter().position(|(other, _)| other == key)?;
        let entry = entries.remove(at);
        let value = entry.1.clone();
        entries.push(entry);
        Some(value)
    }
}
