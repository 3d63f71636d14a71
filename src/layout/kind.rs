//! Layouts as values.

use std::sync::Arc;

use super::{Batch, Bshd, Layout, Sbhd, Thd};
use crate::error::Result;

/// A layout without its type: what code reads that is compiled once for all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayoutKind {
    /// [`Bshd`].
    Bshd,
    /// [`Sbhd`].
    Sbhd,
    /// [`Thd`].
    Thd,
}

impl LayoutKind {
    /// [`Layout::NAME`].
    pub fn name(self) -> &'static str {
        match self {
            LayoutKind::Bshd => Bshd::NAME,
            LayoutKind::Sbhd => Sbhd::NAME,
            LayoutKind::Thd => Thd::NAME,
        }
    }

    /// The layout of this name.
    pub fn named(name: &str) -> Option<Self> {
        [LayoutKind::Bshd, LayoutKind::Sbhd, LayoutKind::Thd].into_iter().find(|kind| kind.name() == name)
    }

    /// [`Layout::TOKEN_MAJOR`].
    pub fn is_token_major(self) -> bool {
        match self {
            LayoutKind::Bshd => Bshd::TOKEN_MAJOR,
            LayoutKind::Sbhd => Sbhd::TOKEN_MAJOR,
            LayoutKind::Thd => Thd::TOKEN_MAJOR,
        }
    }

    /// [`Layout::row`].
    #[inline]
    pub fn row(self, sequences: usize, tokens: usize, token: usize) -> usize {
        match self {
            LayoutKind::Bshd => Bshd::row(sequences, tokens, token),
            LayoutKind::Sbhd => Sbhd::row(sequences, tokens, token),
            LayoutKind::Thd => Thd::row(sequences, tokens, token),
        }
    }

    /// Distance between the rows of neighbouring tokens of a sequence.
    pub fn stride(self, sequences: usize) -> usize {
        if self.is_token_major() { 1 } else { sequences }
    }

    /// [`Layout::batch_of`].
    ///
    /// # Errors
    /// In a dense layout, if the lengths are not all the same.
    pub fn batch_of(self, lengths: &[usize]) -> Result<Arc<dyn Batch>> {
        match self {
            LayoutKind::Bshd => Ok(Arc::new(Bshd::batch_of(lengths)?)),
            LayoutKind::Sbhd => Ok(Arc::new(Sbhd::batch_of(lengths)?)),
            LayoutKind::Thd => Ok(Arc::new(Thd::batch_of(lengths)?)),
        }
    }

    /// [`Layout::padded_batch_of`].
    ///
    /// # Errors
    /// In a dense layout, if there is any padding; where lengths do not go together.
    pub fn padded_batch_of(self, valid: &[usize], stored: &[usize]) -> Result<Arc<dyn Batch>> {
        match self {
            LayoutKind::Bshd => Ok(Arc::new(Bshd::padded_batch_of(valid, stored)?)),
            LayoutKind::Sbhd => Ok(Arc::new(Sbhd::padded_batch_of(valid, stored)?)),
            LayoutKind::Thd => Ok(Arc::new(Thd::padded_batch_of(valid, stored)?)),
        }
    }
}
