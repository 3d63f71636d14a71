//! Packed batches: documents of any lengths one after another.

use super::batch::{Batch, Document};
use crate::error::{LayoutError, Result};

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
    }
}
