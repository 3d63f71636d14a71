//! Layouts: which row of a matrix holds which token of which sequence.
//!
//! Everything that depends on where a token is speaks of *tokens*: their index in the batch, sequence by sequence
//! (or document by document), padding included. A layout only says in which row of the matrix a token lies.

mod kind;

pub use kind::LayoutKind;

use std::any::Any;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;

use crate::error::{LayoutError, Result};

/// One sequence of a dense batch or one document of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Document {
    /// Index of its first token in the batch.
    pub start: usize,
    /// Rows that it occupies, padding at its end included.
    pub stored: usize,
    /// Tokens that count; the rest is padding.
    pub valid: usize,
}

impl Document {
    /// The tokens that it occupies.
    pub fn stored_range(&self) -> Range<usize> {
        self.start..self.start + self.stored
    }

    /// The tokens that count.
    pub fn valid_range(&self) -> Range<usize> {
        self.start..self.start + self.valid
    }
}

/// The shape of a batch: its documents, one after another. Whatever its layout, code reads it as `&dyn Batch`.
pub trait Batch: Any + fmt::Debug + Send + Sync {
    /// Number of sequences or documents.
    fn documents(&self) -> usize;

    /// The document with this index.
    fn document(&self, index: usize) -> Document;

    /// Index of the document that holds `token`.
    ///
    /// # Panics
    /// If the batch has no such token.
    fn document_of(&self, token: usize) -> usize;

    /// Rows in all, padding included.
    fn tokens(&self) -> usize;

    /// The sequence length, if every document has the same and all of it is valid.
    fn uniform(&self) -> Option<usize>;

    /// The longest stored length; what rotary tables must cover.
    fn longest(&self) -> usize {
        (0..self.documents()).map(|i| self.document(i).stored).max().unwrap_or(0)
    }

    /// Tokens that are not padding.
    fn valid_tokens(&self) -> usize {
        (0..self.documents()).map(|i| self.document(i).valid).sum()
    }
}

impl dyn Batch {
    /// Whether both have the same documents, and both or neither are dense.
    pub fn same_documents(&self, other: &dyn Batch) -> bool {
        let sizes = |batch: &dyn Batch| (batch.documents(), batch.tokens(), batch.uniform());
        sizes(self) == sizes(other) && (0..self.documents()).all(|index| self.document(index) == other.document(index))
    }

    /// Documents and tokens, in words.
    pub fn describe(&self) -> String {
        format!("{} documents of {} tokens in all", self.documents(), self.tokens())
    }
}

impl Hash for dyn Batch {
    fn hash<X: Hasher>(&self, state: &mut X) {
        (self.documents(), self.uniform()).hash(state);
        if self.uniform().is_none() {
            (0..self.documents()).for_each(|index| self.document(index).hash(state));
        }
    }
}

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

/// A dense batch: `batch` sequences of `seq` tokens, none of them padding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dense {
    /// Number of sequences.
    pub batch: usize,
    /// Tokens of each.
    pub seq: usize,
}

impl Dense {
    /// Sequences that are all as long.
    pub fn from_lengths(lengths: &[usize]) -> Result<Self> {
        let seq = lengths.first().copied().unwrap_or(0);
        match lengths.iter().position(|&other| other != seq) {
            None if lengths.len().checked_mul(seq).is_none_or(|tokens| tokens > i64::MAX as usize) => {
                Err(LayoutError::TooLong.into())
            }
            None => Ok(Dense { batch: lengths.len(), seq }),
            Some(sequence) => Err(LayoutError::Ragged { sequence, length: lengths[sequence], first: seq }.into()),
        }
    }

    fn from_padded_lengths(valid: &[usize], stored: &[usize]) -> Result<Self> {
        if valid.len() != stored.len() {
            return Err(LayoutError::DocumentCount { valid: valid.len(), stored: stored.len() }.into());
        }
        match valid.iter().zip(stored).position(|(valid, stored)| valid != stored) {
            None => Self::from_lengths(stored),
            Some(sequence) => {
                let (valid, stored) = (valid[sequence], stored[sequence]);
                Err(LayoutError::PaddedSequence { sequence, valid, stored }.into())
            }
        }
    }
}

impl Batch for Dense {
    fn documents(&self) -> usize {
        self.batch
    }

    fn document(&self, index: usize) -> Document {
        Document { start: index * self.seq, stored: self.seq, valid: self.seq }
    }

    fn document_of(&self, token: usize) -> usize {
        assert!(token < self.tokens(), "token {token} of a batch of {} rows", self.tokens());
        token / self.seq
    }

    fn tokens(&self) -> usize {
        self.batch * self.seq
    }

    fn uniform(&self) -> Option<usize> {
        Some(self.seq)
    }
}

/// A packed batch: documents with a valid and a stored length each.
///
/// The rows of document `i` are its valid tokens followed by `stored - valid` rows of padding. Orders, positions
/// and transfers use stored lengths; masks, roll and loss use valid ones.
#[doc(alias = "PackedSeqParams")]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Packed {
    /// Cumulative stored lengths, from 0.
    starts: Vec<usize>,
    /// Valid lengths.
    valid: Vec<usize>,
}

impl Packed {
    /// Documents of these lengths, without padding. Zero lengths are fine.
    pub fn from_lengths(lengths: &[usize]) -> Result<Self> {
        Self::new(lengths, lengths)
    }

    /// Documents with `valid[i]` tokens in `stored[i]` rows.
    pub fn new(valid: &[usize], stored: &[usize]) -> Result<Self> {
        if valid.len() != stored.len() {
            return Err(LayoutError::DocumentCount { valid: valid.len(), stored: stored.len() }.into());
        }
        let mut starts = Vec::with_capacity(stored.len() + 1);
        let mut end = 0usize;
        starts.push(0);
        for (document, (&valid, &stored)) in valid.iter().zip(stored).enumerate() {
            if valid > stored {
                return Err(LayoutError::ValidLongerThanStored { document, valid, stored }.into());
            }
            end = end.checked_add(stored).filter(|&end| end <= i64::MAX as usize).ok_or(LayoutError::TooLong)?;
            starts.push(end);
        }
        Ok(Packed { starts, valid: valid.to_vec() })
    }

    /// Documents from cumulative lengths (`cu_seqlens`), without padding.
    pub fn from_cu_seqlens<I: Copy + Into<i64>>(cu_seqlens: &[I]) -> Result<Self> {
        Self::from_lengths(&lengths(cu_seqlens)?)
    }

    /// Documents from cumulative valid lengths and cumulative stored lengths (`cu_seqlens`, `cu_seqlens_padded`).
    pub fn from_cu_seqlens_padded<I: Copy + Into<i64>>(cu_seqlens: &[I], cu_seqlens_padded: &[I]) -> Result<Self> {
        Self::new(&lengths(cu_seqlens)?, &lengths(cu_seqlens_padded)?)
    }

    /// Cumulative stored lengths, from 0, one entry more than documents.
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// Refuses a tensor whose rows are not the pack's.
    pub fn expect_rows(&self, rows: usize) -> Result<()> {
        match self.tokens() == rows {
            true => Ok(()),
            false => Err(LayoutError::Rows { expected: self.tokens(), found: rows }.into()),
        }
    }
}

fn lengths<I: Copy + Into<i64>>(cu_seqlens: &[I]) -> Result<Vec<usize>> {
    let first: i64 = (*cu_seqlens.first().ok_or(LayoutError::CuSeqlensEmpty)?).into();
    if first != 0 {
        return Err(LayoutError::CuSeqlensStart { first }.into());
    }
    let step = |(index, pair): (usize, &[I])| {
        let (previous, next): (i64, i64) = (pair[0].into(), pair[1].into());
        // The first entry is 0 and none before this one decreased, so only a smaller `next` can overflow.
        match next.checked_sub(previous).and_then(|length| usize::try_from(length).ok()) {
            Some(length) => Ok(length),
            None => Err(LayoutError::CuSeqlensDecrease { index: index + 1, previous, next }.into()),
        }
    };
    cu_seqlens.windows(2).enumerate().map(step).collect()
}

impl Batch for Packed {
    fn documents(&self) -> usize {
        self.valid.len()
    }

    fn document(&self, index: usize) -> Document {
        let start = self.starts[index];
        Document { start, stored: self.starts[index + 1] - start, valid: self.valid[index] }
    }

    fn document_of(&self, token: usize) -> usize {
        assert!(token < self.tokens(), "token {token} of a pack of {} rows", self.tokens());
        self.starts.partition_point(|&start| start <= token) - 1
    }

    fn tokens(&self) -> usize {
        self.starts[self.starts.len() - 1]
    }

    fn uniform(&self) -> Option<usize> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_from_cumulative_lengths() {
        let pack = Packed::from_cu_seqlens_padded(&[0i32, 3, 3, 5], &[0, 4, 6, 8]).unwrap();
        let documents: Vec<_> = (0..pack.documents()).map(|i| pack.document(i)).collect();
        let document = |start, stored, valid| Document { start, stored, valid };
        assert_eq!(documents, [document(0, 4, 3), document(4, 2, 0), document(6, 2, 2)]);
        assert_eq!((pack.tokens(), pack.valid_tokens(), pack.longest()), (8, 5, 4));
        assert_eq!(pack, Packed::new(&[3, 0, 2], &[4, 2, 2]).unwrap());
        // Empty documents hold no token.
        let pack = Packed::from_cu_seqlens(&[0i64, 0, 2, 2, 3]).unwrap();
        assert_eq!([0, 1, 2].map(|token| pack.document_of(token)), [1, 1, 3]);
    }

    #[test]
    fn bad_packs_are_refused() {
        let refused = |cu_seqlens: &[i64]| Packed::from_cu_seqlens(cu_seqlens).unwrap_err().to_string();
        assert!(refused(&[]).contains("empty"));
        assert!(refused(&[1, 2]).contains("starts at 1"));
        assert!(refused(&[0, 5, 3]).contains("from 5 to 3 at entry 2"));
        assert!(refused(&[0, 5, i64::MIN]).contains("at entry 2"));
        assert!(Packed::new(&[3], &[2]).unwrap_err().to_string().contains("3 valid tokens but stores 2"));
        assert!(Packed::new(&[1], &[]).is_err());
        assert!(Packed::from_lengths(&[usize::MAX, 1]).is_err());
        assert!(Packed::from_lengths(&[4]).unwrap().expect_rows(5).is_err());
        let dense = |valid: &[usize], stored: &[usize]| Bshd::padded_batch_of(valid, stored);
        assert_eq!(dense(&[3, 3], &[3, 3]).unwrap(), Dense { batch: 2, seq: 3 });
        assert!(dense(&[3, 2], &[3, 3]).unwrap_err().to_string().contains("sequence 1 has 2 valid tokens in 3 rows"));
        assert!(dense(&[3], &[3, 3]).is_err());
    }

    #[test]
    fn rows_by_layout() {
        // Two sequences of three tokens.
        let rows = |row: fn(usize, usize, usize) -> usize| (0..6).map(|token| row(2, 6, token)).collect::<Vec<_>>();
        assert_eq!(rows(Bshd::row), [0, 1, 2, 3, 4, 5]);
        assert_eq!(rows(Sbhd::row), [0, 2, 4, 1, 3, 5]);
        assert_eq!((Sbhd::row(0, 0, 0), Sbhd::row(3, 0, 0)), (0, 0));
    }
}
