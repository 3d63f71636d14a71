//! Layouts: which row of a matrix holds which token of which sequence.
//!
//! Everything that depends on where a token is speaks of *tokens*: their index in the batch, sequence by sequence
//! (or document by document), padding included. A layout only says in which row of the matrix a token lies.

mod batch;
mod dense;
mod kind;
mod packed;

pub use batch::{Batch, Document};
pub use dense::Dense;
pub use kind::LayoutKind;
pub use packed::Packed;

use std::fmt;
use std::hash::Hash;

use crate::error::Result;

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Bshd {}
    impl Sealed for super::Sbhd {}
    impl Sealed for super::Thd {}
}

/// How a batch is laid out in memory: a marker type.
#[diagnostic::on_unimplemented(message = "`{Self}` is not a layout: use `Bshd`, `Sbhd` or `Thd`")]
pub trait Layout: sealed::Sealed + Copy + Default + fmt::Debug + PartialEq + Eq + Send + Sync + 'static {
    /// The shape that batches of this layout have.
    type Batch: Batch + Clone + PartialEq + Eq + Hash;

    /// The layout as a value.
    const KIND: LayoutKind;

    /// Name on the command line.
    const NAME: &'static str;

    /// Whether rows are in the order of tokens, so that no row needs moving between the two.
    const TOKEN_MAJOR: bool;

    /// The shape of sequences, or documents, of these lengths, without padding.
    ///
    /// # Errors
    /// In a dense layout, if they are not all as long.
    fn batch_of(lengths: &[usize]) -> Result<Self::Batch>;

    /// The same with padding: `valid[i]` tokens in `stored[i]` rows.
    ///
    /// # Errors
    /// In a dense layout, if there is any padding; where lengths do not go together.
    fn padded_batch_of(valid: &[usize], stored: &[usize]) -> Result<Self::Batch>;

    /// The row of token `token` in a matrix that holds `sequences` sequences of `tokens / sequences` tokens each
    /// (a whole batch, or one rank's part of it).
    fn row(sequences: usize, tokens: usize, token: usize) -> usize;
}

/// Dense, batch first: row `b * seq + s`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bshd;

/// Dense, sequence first: row `s * batch + b`. The layout of Megatron's activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Sbhd;

/// Packed: documents of any lengths one after another, each attending to itself only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Thd;

static_assertions::assert_eq_size!(Bshd, Sbhd, Thd, ());

impl Layout for Bshd {
    fn batch_of(lengths: &[usize]) -> Result<Dense> {
        Dense::from_lengths(lengths)
    }

    fn padded_batch_of(valid: &[usize], stored: &[usize]) -> Result<Dense> {
        Dense::from_padded_lengths(valid, stored)
    }

    type Batch = Dense;
    const KIND: LayoutKind = LayoutKind::Bshd;
    const NAME: &'static str = "bshd";
    const TOKEN_MAJOR: bool = true;

    #[inline(always)]
    fn row(_sequences: usize, _tokens: usize, token: usize) -> usize {
        token
    }
}

impl Layout for Sbhd {
    fn batch_of(lengths: &[usize]) -> Result<Dense> {
        Dense::from_lengths(lengths)
    }

    fn padded_batch_of(valid: &[usize], stored: &[usize]) -> Result<Dense> {
        Dense::from_padded_lengths(valid, stored)
    }

    type Batch = Dense;
    const KIND: LayoutKind = LayoutKind::Sbhd;
    const NAME: &'static str = "sbhd";
    const TOKEN_MAJOR: bool = false;

    #[inline(always)]
    fn row(sequences: usize, tokens: usize, token: usize) -> usize {
        // Nothing lies in a matrix without rows; whoever asks for its end gets it.
        match tokens.checked_div(sequences) {
            None | Some(0) => token,
            Some(length) => token % length * sequences + token / length,
        }
    }
}

impl Layout for Thd {
    fn batch_of(lengths: &[usize]) -> Result<Packed> {
        Packed::from_lengths(lengths)
    }

    fn padded_batch_of(valid: &[usize], stored: &[usize]) -> Result<Packed> {
        Packed::new(valid, stored)
    }

    type Batch = Packed;
    const KIND: LayoutKind = LayoutKind::Thd;
    const NAME: &'static str = "thd";
    const TOKEN_MAJOR: bool = true;

    #[inline(always)]
    fn row(_sequences: usize, _tokens: usize, token: usize) -> usize {
        token
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_by_layout() {
        // Two sequences of three tokens.
        let rows = |row: fn(usize, usize, usize) -> usize| (0..6).map(|token| row(2, 6, token)).collect::<Vec<_>>();
        assert_eq!(rows(Bshd::row), [0, 1, 2, 3, 4, 5]);
        assert_eq!(rows(Sbhd::row), [0, 2, 4, 1, 3, 5]);
        assert_eq!((Sbhd::row(0, 0, 0), Sbhd::row(3, 0, 0)), (0, 0));
    }
}
