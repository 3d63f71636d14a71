//! Rows of tokens that hold documents, as files of token ids do: where documents begin, and which token predicts which.

/// Rows of equally many tokens, each cut into documents; none crosses a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowDocuments {
    seq: usize,
    /// Whether a document begins at this token.
    starts: Vec<bool>,
}

impl RowDocuments {
    /// `tokens` tokens in rows of `seq` (at least 1); a document begins with each row, and where `begins` says so of a
    /// token's index.
    pub fn new(tokens: usize, seq: usize, begins: impl Fn(usize) -> bool) -> Self {
        RowDocuments { seq, starts: (0..tokens).map(|token| token.is_multiple_of(seq) || begins(token)).collect() }
    }

    /// A document is a run of equal ids. Tokens that are not `kept` are padding, which belongs to what it follows.
    pub fn from_ids(ids: &[i64], seq: usize, kept: &[bool]) -> Self {
        Self::new(ids.len(), seq, |token| kept[token] && ids[token] != ids[token - 1])
    }

    /// A document begins where positions begin again at 0, but not with a token that is not `kept`.
    pub fn from_positions(positions: &[i64], seq: usize, kept: &[bool]) -> Self {
        Self::new(positions.len(), seq, |token| kept[token] && positions[token] == 0)
    }

    /// Documents that begin at the tokens `starts`, ascending, but not with one that is not `kept`.
    ///
    /// # Errors
    /// The first token of a row that does not begin with a document.
    pub fn from_starts(starts: &[usize], seq: usize, kept: &[bool]) -> Result<Self, usize> {
        let begins = |token: usize| starts.binary_search(&token).is_ok();
        match (0..kept.len()).step_by(seq).find(|&first| !begins(first)) {
            Some(first) => Err(first),
            None => Ok(Self::new(kept.len(), seq, |token| kept[token] && begins(token))),
        }
    }

    /// The row and the column of a token.
    pub fn place(&self, token: usize) -> (usize, usize) {
        place_in_rows(token, self.seq)
    }

    /// Whether a document begins at each token.
    pub fn starts(&self) -> &[bool] {
        &self.starts
    }

    /// Tokens of each document.
    pub fn lengths(&self) -> Vec<usize> {
        let ends = (1..=self.starts.len()).filter(|&end| self.starts.get(end).is_none_or(|&start| start));
        ends.scan(0, |start, end| Some(end - std::mem::replace(start, end))).collect()
    }

    /// The position of each token in its document.
    pub fn positions(&self) -> impl Iterator<Item = usize> + '_ {
        self.starts.iter().scan(0, |next, &start| {
            let position = if start { 0 } else { *next };
            *next = position + 1;
            Some(position)
        })
    }

    /// For each token the value of the next one of its document, or `none`.
    pub fn ahead(&self, values: &[i64], none: i64) -> Vec<i64> {
        let next = |token: usize| self.starts.get(token + 1).is_some_and(|&start| !start);
        (0..values.len()).map(|token| if next(token) { values[token + 1] } else { none }).collect()
    }

    /// The first row with a token of `kept` after one that is not, as the former's index: rows are not padded at their
    /// right ends only.
    pub fn kept_after_padding(&self, kept: &[bool]) -> Option<usize> {
        (1..kept.len()).find(|&token| !token.is_multiple_of(self.seq) && kept[token] && !kept[token - 1])
    }

    /// The first token at which a document of a row begins again that has ended before, by the documents' ids.
    pub fn taken_up_again(&self, ids: &[i64]) -> Option<usize> {
        let mut seen = std::collections::HashSet::new();
        (0..ids.len()).find(|&token| {
            if token.is_multiple_of(self.seq) {
                seen.clear();
            }
            self.starts[token] && !seen.insert(ids[token])
        })
    }
}

/// The row and the column of a token in rows of `seq` tokens.
pub fn place_in_rows(token: usize, seq: usize) -> (usize, usize) {
    (token / seq, token % seq)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_end_with_their_rows() {
        let documents = RowDocuments::from_ids(&[7, 7, 3, 3, 3, 3, 3, 9], 4, &[true; 8]);
        assert_eq!(documents.lengths(), [2, 2, 3, 1]);
        assert_eq!(documents.positions().collect::<Vec<_>>(), [0, 1, 0, 1, 0, 1, 2, 0]);
        assert_eq!(documents, RowDocuments::from_positions(&[0, 1, 0, 1, 0, 1, 2, 0], 4, &[true; 8]));
        assert_eq!(RowDocuments::from_starts(&[0, 2, 4, 7], 4, &[true; 8]), Ok(documents.clone()));
        assert_eq!(RowDocuments::from_starts(&[0, 2, 5], 4, &[true; 8]), Err(4));
        let tokens = [10, 11, 12, 13, 14, 15, 16, 17];
        assert_eq!(documents.ahead(&tokens, -1), [11, -1, 13, -1, 15, 16, -1, -1]);
        assert_eq!(documents.place(6), (1, 2));
        let whole = RowDocuments::new(6, 3, |_| false);
        assert_eq!((whole.lengths(), whole.starts()), (vec![3, 3], &[true, false, false, true, false, false][..]));
    }

    #[test]
    fn padding_and_documents_that_are_not_whole_are_found() {
        let documents = RowDocuments::new(6, 3, |_| false);
        let after = |kept: [u8; 6]| documents.kept_after_padding(&kept.map(|one| one == 1));
        assert_eq!(after([1, 1, 0, 1, 0, 0]), None);
        assert_eq!(after([1, 0, 0, 1, 1, 1]), None, "padding ends with its row");
        assert_eq!(after([1, 1, 1, 0, 1, 1]), Some(4));
        let again = |ids: [i64; 6]| RowDocuments::from_ids(&ids, 3, &[true; 6]).taken_up_again(&ids);
        assert_eq!((again([1, 2, 3, 1, 2, 2]), again([1, 2, 2, 5, 6, 5])), (None, Some(5)));
        // Padding begins nothing, except a row of nothing else.
        let kept = [true, true, false, false, false, false];
        assert_eq!(RowDocuments::from_ids(&[1, 2, 1, -1, -1, 0], 3, &kept).lengths(), [1, 2, 3]);
        assert_eq!(RowDocuments::from_positions(&[0, 0, 0, 0, 0, 0], 3, &kept).lengths(), [1, 2, 3]);
    }
}
