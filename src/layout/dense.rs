//! Dense batches: sequences that are all as long.

use super::batch::{Batch, Document};
use crate::error::{LayoutError, Result};

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

    pub(super) fn from_padded_lengths(valid: &[usize], stored: &[usize]) -> Result<Self> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_is_refused() {
        let dense = Dense::from_padded_lengths;
        assert_eq!(dense(&[3, 3], &[3, 3]).unwrap(), Dense { batch: 2, seq: 3 });
        assert!(dense(&[3, 2], &[3, 3]).unwrap_err().to_string().contains("sequence 1 has 2 valid tokens in 3 rows"));
        assert!(dense(&[3], &[3, 3]).is_err());
    }
}
