//! How the failure of a rank becomes an error, and the other way round.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::mailbox::RankFailure;
use crate::error::{CommError, Error, Result};

/// Runs one rank's `body`; a panic becomes its error.
pub(super) fn caught<R>(rank: usize, body: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(panicked(rank, &*panic)))
}

pub(super) fn panicked(rank: usize, panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    CommError::Poisoned { rank, reason: text.unwrap_or_else(|| "it panicked".into()) }.into()
}

pub(super) fn poisoned(RankFailure { rank, reason }: RankFailure) -> Error {
    CommError::Poisoned { rank, reason }.into()
}

/// How rank `by`, which ended with `error`, tells the others. What it had from another rank is passed on as that
/// rank's failure.
pub(super) fn failure_of(by: usize, error: &Error) -> RankFailure {
    match error {
        Error::Comm(CommError::Poisoned { rank, reason }) => RankFailure { rank: *rank, reason: reason.clone() },
        other => RankFailure { rank: by, reason: other.to_string() },
    }
}
