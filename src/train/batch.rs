//! Sequences of token ids with their labels, of one length or of many.

use std::ops::Range;

use crate::model::loss::IGNORED;
use crate::model::mtp::label_counts_in;
use crate::order::RowDocuments;

/// Sequences of token ids and what each token has to predict, on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenBatch {
    /// Token ids, sequence after sequence.
    pub tokens: Vec<i64>,
    /// Labels in the same order; [`IGNORED`] where nothing is to be predicted.
    pub labels: Vec<i64>,
    /// Tokens of each sequence; their sum is the number of ids. Only a packed layout takes different ones.
    pub lengths: Vec<usize>,
}

impl TokenBatch {
    /// Ids and labels `[batch, seq]`, row-major.
    pub fn uniform(tokens: Vec<i64>, labels: Vec<i64>, batch: usize, seq: usize) -> Self {
        debug_assert_eq!((tokens.len(), labels.len()), (batch * seq, batch * seq));
        TokenBatch { tokens, labels, lengths: vec![seq; batch] }
    }

    /// A batch of ids `[batch, seq]` in which each token has to predict the next one of its sequence.
    pub fn next_token(tokens: Vec<i64>, batch: usize, seq: usize) -> Self {
        let labels = RowDocuments::new(tokens.len(), seq, |_| false).ahead(&tokens, IGNORED);
        Self::uniform(tokens, labels, batch, seq)
    }

    /// Adds a sequence of bytes in which each predicts the next one; the last predicts `bytes[range.end]`.
    pub(super) fn push_bytes(&mut self, bytes: &[u8], range: Range<usize>) {
        let ids = |range: Range<usize>| bytes[range].iter().map(|&byte| i64::from(byte));
        self.tokens.extend(ids(range.clone()));
        self.labels.extend(ids(range.start + 1..range.end + 1));
        self.lengths.push(range.len());
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.lengths.len()
    }

    /// Tokens of the longest sequence.
    pub fn longest(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// The indices of each sequence's tokens.
    fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.lengths.iter().scan(0, |end, &length| {
            *end += length;
            Some(*end - length..*end)
        })
    }

    /// Number of labels that count.
    pub fn counted(&self) -> usize {
        self.labels.iter().filter(|&&label| label != IGNORED).count()
    }

    /// Number of labels that count for each loss: of the next token, then of the depths 1 to `depth` of multi-token
    /// prediction.
    pub fn counted_by_depth(&self, depth: usize) -> Vec<usize> {
        label_counts_in(self.ranges(), &self.labels, depth)
    }

    /// The same sequences in batches of `batch` (at least 1) of them; the last may have fewer.
    pub fn chunks(&self, batch: usize) -> impl Iterator<Item = TokenBatch> + '_ {
        let chunk = |start: &mut usize, lengths: &[usize]| {
            let range = *start..*start + lengths.iter().sum::<usize>();
            *start = range.end;
            let (tokens, labels) = (self.tokens[range.clone()].to_vec(), self.labels[range].to_vec());
            Some(TokenBatch { tokens, labels, lengths: lengths.to_vec() })
        };
        self.lengths.chunks(batch.max(1)).scan(0, chunk)
    }

    /// Some of the sequences, in ascending order.
    pub fn select(&self, sequences: impl IntoIterator<Item = usize>) -> TokenBatch {
        let mut out = TokenBatch::default();
        let mut ranges = self.ranges().enumerate();
        for sequence in sequences {
            if let Some((_, range)) = ranges.find(|(index, _)| *index == sequence) {
                out.tokens.extend_from_slice(&self.tokens[range.clone()]);
                out.labels.extend_from_slice(&self.labels[range]);
                out.lengths.push(self.lengths[sequence]);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_token_labels_end_with_each_sequence() {
        let batch = TokenBatch::next_token(vec![1, 2, 3, 4, 5, 6], 2, 3);
        assert_eq!(batch.labels, [2, 3, IGNORED, 5, 6, IGNORED]);
    }

    #[test]
    fn sequences_of_any_lengths_are_selected_and_counted() {
        let mut batch = TokenBatch::default();
        for range in [0..3, 4..4, 5..6, 6..10] {
            batch.push_bytes(b"abcdefghijk", range);
        }
        assert_eq!((batch.sequences(), batch.longest(), batch.counted()), (4, 4, 8));
        assert_eq!(batch.counted_by_depth(2), [8, 2 + 3, 1 + 2]);
        let some = batch.select([0, 1, 3]);
        let ids = |text: &[u8]| text.iter().map(|&byte| i64::from(byte)).collect::<Vec<_>>();
        assert_eq!((some.tokens, some.labels), (ids(b"abcghij"), ids(b"bcdhijk")));
        assert_eq!(some.lengths, [3, 0, 4]);
        let pieces: Vec<TokenBatch> = batch.chunks(3).collect();
        assert_eq!(pieces.iter().map(|piece| &piece.lengths[..]).collect::<Vec<_>>(), [&[3, 0, 1][..], &[4]]);
        assert_eq!(pieces.iter().flat_map(|piece| piece.labels.clone()).collect::<Vec<_>>(), batch.labels);
        assert_eq!(pieces.iter().flat_map(|piece| piece.tokens.clone()).collect::<Vec<_>>(), batch.tokens);
    }
}
