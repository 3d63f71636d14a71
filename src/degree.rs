//! Degrees: how many ranks share a sequence, known at compile time or at run time.

use std::fmt;

use crate::error::{PlacementError, Result};

/// A number of ranks.
///
/// [`Fixed`] is part of the type and free; [`Runtime`] is a value. Code written for one works for the other.
pub trait Degree: Copy + Clone + fmt::Debug + PartialEq + Eq + Send + Sync + 'static {
    /// The number, if the type says it.
    const FIXED: Option<usize>;

    /// A degree of `ranks`, or nothing if the type says another number.
    fn of(ranks: usize) -> Option<Self>;

    /// The number of ranks.
    fn ranks(self) -> usize;

    /// Refuses 0.
    fn checked(self) -> Result<usize> {
        match self.ranks() {
            0 => Err(PlacementError::ZeroDegree.into()),
            ranks => Ok(ranks),
        }
    }
}

/// A degree that is known at compile time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fixed<const RANKS: usize>;

/// A degree that is known at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Runtime(pub usize);

impl<const RANKS: usize> Degree for Fixed<RANKS> {
    const FIXED: Option<usize> = Some(RANKS);

    fn of(ranks: usize) -> Option<Self> {
        (ranks == RANKS).then_some(Fixed)
    }

    fn ranks(self) -> usize {
        RANKS
    }
}

impl Degree for Runtime {
    const FIXED: Option<usize> = None;

    fn of(ranks: usize) -> Option<Self> {
        Some(Runtime(ranks))
    }

    fn ranks(self) -> usize {
        self.0
    }
}

static_assertions::assert_eq_size!(Fixed<8>, ());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_and_runtime_degrees() {
        assert_eq!((Fixed::<4>::of(4), Fixed::<4>::of(3)), (Some(Fixed), None));
        assert_eq!(Runtime::of(3), Some(Runtime(3)));
        assert_eq!((Fixed::<4>.checked(), Runtime(5).checked()), (Ok(4), Ok(5)));
        assert!(Fixed::<0>.checked().is_err() && Runtime(0).checked().is_err());
    }
}
