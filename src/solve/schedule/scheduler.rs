//! Schedules that are found once, for all ranks of a process that need them.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Schedule, schedule};
use crate::error::Result;

/// Schedules that are kept; the oldest goes first.
const KEPT: usize = 16;

/// Lengths and ranks, and their schedule.
type Found = (Vec<usize>, usize, Arc<Schedule>);

/// [`schedule`] with one limit of tokens, remembering the latest schedules. Clones share them: ranks that are threads
/// of a process need not all search for the same. What it gives does not depend on who asks first.
#[derive(Clone, Debug, Default)]
pub struct Scheduler {
    tokens_per_rank: Option<usize>,
    found: Arc<Mutex<Vec<Found>>>,
}

impl Scheduler {
    /// At most `tokens_per_rank` tokens on a rank in a micro-batch; by default 1.1 times the even share.
    pub fn new(tokens_per_rank: Option<usize>) -> Self {
        Scheduler { tokens_per_rank, found: Arc::default() }
    }

    /// The schedule of documents of these lengths over `ranks` ranks.
    ///
    /// # Errors
    /// Those of [`schedule`].
    pub fn schedule(&self, lengths: &[usize], ranks: usize) -> Result<Arc<Schedule>> {
        // Held while searching, so that whoever else needs the same waits for it.
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((.., schedule)) = found.iter().find(|(other, on, _)| (&other[..], *on) == (lengths, ranks)) {
            return Ok(schedule.clone());
        }
        let new = Arc::new(schedule(lengths, ranks, self.tokens_per_rank)?);
        if found.len() == KEPT {
            found.remove(0);
        }
        found.push((lengths.to_vec(), ranks, new.clone()));
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_found_once() {
        let scheduler = Scheduler::new(Some(60));
        let first = scheduler.clone().schedule(&[100, 20, 30], 2).unwrap();
        assert!(Arc::ptr_eq(&first, &scheduler.schedule(&[100, 20, 30], 2).unwrap()));
        assert_eq!(*first, schedule(&[100, 20, 30], 2, Some(60)).unwrap());
        for (lengths, ranks) in [(&[100, 20, 31][..], 2), (&[100, 20, 30], 3)] {
            assert_eq!(*scheduler.schedule(lengths, ranks).unwrap(), schedule(lengths, ranks, Some(60)).unwrap());
        }
        assert!(scheduler.schedule(&[121], 2).is_err());
        for length in 1..40 {
            scheduler.schedule(&[length], 2).unwrap();
        }
        assert_eq!(scheduler.found.lock().unwrap().len(), KEPT);
        assert_eq!(scheduler.schedule(&[100, 20, 30], 2).unwrap(), first);
    }
}
