//! Documents of a text: what lies between separators, in sequences of at most a given length.

use std::fmt;
use std::ops::Range;

use super::batch::TokenBatch;
use crate::error::{DataError, Result};

/// The bytes between documents, such as a blank line; at least one.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Separator(Vec<u8>);

impl Separator {
    /// These bytes.
    ///
    /// # Errors
    /// [`DataError::Unusable`] if there are none.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self> {
        let bytes = bytes.into();
        if bytes.is_empty() {
            let message = "--document-separator is empty: use what stands between documents, such as '\\n\\n'";
            return Err(DataError::Unusable(message.into()).into());
        }
        Ok(Separator(bytes))
    }

    /// Refuses a text in which it does not occur.
    ///
    /// # Errors
    /// [`DataError::Unusable`], with `name` of the text.
    pub fn check(&self, text: &[u8], name: impl fmt::Display) -> Result<()> {
        match self.split(text).nth(1) {
            Some(_) => Ok(()),
            None => Err(DataError::Unusable(format!(
                "{name} does not contain --document-separator {self:?}: check how its documents are separated, or leave \
                 the option out"
            ))
            .into()),
        }
    }

    /// The ranges between separators, empty ones too.
    fn split<'a>(&'a self, text: &'a [u8]) -> impl Iterator<Item = Range<usize>> + 'a {
        let mut next = Some(0);
        std::iter::from_fn(move || {
            let start = next?;
            let found = text[start..].windows(self.0.len()).position(|bytes| bytes == self.0);
            next = found.map(|at| start + at + self.0.len());
            Some(start..found.map_or(text.len(), |at| start + at))
        })
    }
}

impl fmt::Debug for Separator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// The documents of a text as sequences: ranges of its bytes, each of 1 to `seq` tokens. A document longer than `seq`
/// is cut; its sequences are neighbours. Each byte predicts the next one of its document, so the last one is a label
/// only, and documents of fewer than two bytes give nothing.
pub fn sequences<'a>(
    text: &'a [u8],
    separator: &'a Separator,
    seq: usize,
) -> impl Iterator<Item = Range<usize>> + use<'a> {
    separator.split(text).flat_map(move |document| {
        let predicting = document.start..document.end.saturating_sub(1);
        predicting.clone().step_by(seq.max(1)).map(move |start| start..predicting.end.min(start.saturating_add(seq)))
    })
}

/// The first documents of a text as a batch: [`sequences`] until they have `tokens` tokens or more in all.
pub fn batch(text: &[u8], separator: &Separator, seq: usize, tokens: usize) -> TokenBatch {
    let mut out = TokenBatch::default();
    for sequence in sequences(text, separator, seq) {
        if out.tokens.len() >= tokens {
            break;
        }
        out.push_bytes(text, sequence);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str, separator: &str, seq: usize) -> Vec<String> {
        let separator = Separator::new(separator).unwrap();
        let batch = batch(text.as_bytes(), &separator, seq, usize::MAX);
        // Ids and the last label: all bytes that a sequence touches.
        let mut at = 0;
        let text = |&length: &usize| {
            let ids = batch.tokens[at..at + length].iter().chain(&batch.labels[at + length - 1..at + length]);
            assert_eq!(batch.tokens[at + 1..at + length], batch.labels[at..at + length - 1]);
            at += length;
            String::from_utf8(ids.map(|&id| id as u8).collect()).unwrap()
        };
        let texts = batch.lengths.iter().map(text).collect();
        assert_eq!((at, batch.labels.len()), (batch.tokens.len(), batch.tokens.len()));
        texts
    }

    #[test]
    fn nothing_is_predicted_across_documents() {
        assert_eq!(texts("one\n\ntwo\n\nthree", "\n\n", 8), ["one", "two", "three"]);
        // Long ones are cut: the label of a sequence's last token is the next one's first token.
        assert_eq!(texts("abcdefgh|xy", "|", 3), ["abcd", "defg", "gh", "xy"]);
        assert_eq!(texts("abcdefg|", "|", 3), ["abcd", "defg"]);
        // Separators in a row, at both ends, and documents of one byte: nothing is there to predict.
        assert_eq!(texts("||a||bc||||", "|", 8), ["bc"]);
        assert_eq!(texts("aaab", "aa", 8), ["ab"]);
        assert!(texts("", "|", 8).is_empty() && texts("|", "|", 8).is_empty());
    }

    #[test]
    fn as_many_documents_as_tokens_are_asked_for() {
        let separator = Separator::new("|").unwrap();
        let lengths = |tokens| batch(b"abc|defgh|ij|kl", &separator, 8, tokens).lengths;
        assert_eq!([lengths(0), lengths(1), lengths(3)], [vec![], vec![2], vec![2, 4]]);
        assert_eq!(lengths(usize::MAX), [2, 4, 1, 1]);
    }

    #[test]
    fn a_separator_must_be_something_that_occurs() {
        assert!(Separator::new("").unwrap_err().to_string().contains("--document-separator is empty"));
        let blank = Separator::new("\n\n").unwrap();
        assert!(blank.check(b"a\n\nb", "text").is_ok() && blank.check(b"\n\n", "text").is_ok());
        let error = blank.check(b"a\r\n\r\nb", "text").unwrap_err();
        assert!(
            error.is_input() && error.to_string().starts_with("text does not contain --document-separator \"\\n\\n\"")
        );
    }
}
