//! A text file as bytes: what training draws from, and what is held out.

use std::ops::Range;
use std::path::Path;

use rand_xoshiro::Xoshiro256PlusPlus;

use super::batch::TokenBatch;
use super::data::{below, unusable};
use super::documents::{self, Separator};
use super::formats::other_than_text;
use crate::error::Result;
use crate::model::loss::IGNORED;

/// A text as bytes, its end held out from training.
#[derive(Clone, Debug)]
pub struct Text {
    bytes: Vec<u8>,
    /// Bytes used for training; the rest is held out.
    training: usize,
    /// Where the text is cut into documents: what separates them, and the sequences of the training part.
    documents: Option<(Separator, Vec<Range<usize>>)>,
}

impl Text {
    /// Reads `path` whole ([`read_text`]); see [`Text::new`].
    ///
    /// # Errors
    /// What either of the two returns.
    pub fn read(path: &Path, seq_len: usize, validation: f64) -> Result<Self> {
        Self::new(read_text(path)?, path, seq_len, validation)
    }

    /// The text of these bytes, which `path` names in messages; `validation`, in `[0, 0.5]`, is the share at its end
    /// that training never sees.
    ///
    /// Fails if the share is out of range, if the training part is shorter than one sequence and the byte after it, or
    /// if a share is held out that has no byte to predict.
    pub fn new(bytes: Vec<u8>, path: &Path, seq_len: usize, validation: f64) -> Result<Self> {
        let text = Self::whole(bytes, validation)?;
        let (all, training, path) = (text.bytes.len(), text.training, path.display());
        let held_out = all - training;
        if training <= seq_len {
            let part =
                if held_out > 0 { format!(" for training ({held_out} of {all} are held out)") } else { String::new() };
            let fix = match training {
                1 => "use a longer text".to_string(),
                _ => format!("use --seq-len {} or less, or a longer text", training - 1),
            };
            return Err(unusable(format!(
                "{path} has {training} bytes{part}, --seq-len {seq_len} needs {}, the last one as a label: {fix}",
                seq_len.saturating_add(1)
            )));
        }
        if validation > 0.0 && held_out < 2 {
            return Err(unusable(format!(
                "--validation {validation} holds out {held_out} of the {all} bytes of {path}, which leaves nothing to \
                 predict: use --validation 0 or a longer text"
            )));
        }
        Ok(text)
    }

    /// Reads `path` whole ([`read_text`]); see [`Text::documents`].
    ///
    /// # Errors
    /// What either of the two returns.
    pub fn read_documents(path: &Path, separator: Separator, seq_len: usize, validation: f64) -> Result<Self> {
        Self::documents(read_text(path)?, path, separator, seq_len, validation)
    }

    /// [`Text::new`] as documents between separators, cut into sequences of at most `seq_len` tokens
    /// ([`documents::sequences`]). Nothing is predicted across documents.
    ///
    /// Fails if the share is out of range, if the separator does not occur, or if there is no document of at least two
    /// bytes to train on, or none that is held out where a share is.
    pub fn documents(
        bytes: Vec<u8>,
        path: &Path,
        separator: Separator,
        seq_len: usize,
        validation: f64,
    ) -> Result<Self> {
        let mut text = Self::whole(bytes, validation)?;
        separator.check(&text.bytes, path.display())?;
        let sequences: Vec<_> = documents::sequences(text.training(), &separator, seq_len).collect();
        let nothing = |part, fix| {
            let (path, separator) = (path.display(), &separator);
            Err(unusable(format!(
                "{path} has no document of 2 bytes or more {part} between separators {separator:?}: {fix}"
            )))
        };
        if sequences.is_empty() {
            return nothing("for training", "use another --document-separator, or a text with documents");
        }
        if validation > 0.0 && documents::sequences(text.held_out(), &separator, seq_len).next().is_none() {
            return nothing("in the share held out", "use --validation 0, a larger share or a longer text");
        }
        text.documents = Some((separator, sequences));
        Ok(text)
    }

    fn whole(bytes: Vec<u8>, validation: f64) -> Result<Self> {
        check_validation(validation)?;
        let held_out = (bytes.len() as f64 * validation).floor() as usize;
        Ok(Text { training: bytes.len() - held_out, bytes, documents: None })
    }

    /// The bytes that training draws from.
    pub fn training(&self) -> &[u8] {
        &self.bytes[..self.training]
    }

    /// The bytes that training never sees.
    pub fn held_out(&self) -> &[u8] {
        &self.bytes[self.training..]
    }

    /// The sequences that training draws from, as ranges of bytes, where the text is cut into documents.
    pub fn sequences(&self) -> Option<&[Range<usize>]> {
        self.documents.as_ref().map(|(_, sequences)| &sequences[..])
    }

    /// At most `limit` held-out windows of `seq` bytes, or documents until they have as many tokens.
    pub(super) fn held_out_batch(&self, seq: usize, limit: usize) -> TokenBatch {
        match &self.documents {
            None => windows(self.held_out(), seq, limit),
            Some((separator, _)) => documents::batch(self.held_out(), separator, seq, limit.saturating_mul(seq)),
        }
    }

    /// Every length that a sequence can have.
    pub(super) fn possible_lengths(&self, seq: usize) -> Vec<usize> {
        match &self.documents {
            None => vec![seq],
            Some((separator, sequences)) => {
                let held_out = documents::sequences(self.held_out(), separator, seq);
                sequences.iter().cloned().chain(held_out).map(|sequence| sequence.len()).collect()
            }
        }
    }

    /// A sequence: `seq` bytes from anywhere, or a document or a part of one.
    pub(super) fn draw(&self, mut random: Xoshiro256PlusPlus, seq: usize) -> Range<usize> {
        match self.sequences() {
            None => {
                let offset = below(&mut random, self.training - seq);
                offset..offset + seq
            }
            // Every sequence alike, so that every token is: a long document has more of them.
            Some(sequences) => sequences[below(&mut random, sequences.len())].clone(),
        }
    }
}

/// Refuses a held-out share that is not in `[0, 0.5]`.
pub fn check_validation(share: f64) -> Result<()> {
    if (0.0..=0.5).contains(&share) {
        return Ok(());
    }
    Err(unusable(format!("--validation is {share}: choose a share from 0 to 0.5, such as 0.05")))
}

/// The whole of a file whose bytes are a text.
///
/// # Errors
/// What [`read_bytes`] returns; a file that by its name or its first bytes is something else, such as JSON lines or
/// compressed.
pub fn read_text(path: &Path) -> Result<Vec<u8>> {
    let bytes = read_bytes(path)?;
    match other_than_text(path, &bytes) {
        None => Ok(bytes),
        Some(what) => Err(unusable(format!(
            "{} is no plain text ({what}): convert its text to UTF-8 in a file of its own first, or pass --bytes to \
             take its bytes as they are",
            path.display()
        ))),
    }
}

/// Refuses bytes that a vocabulary has no ids for, naming the largest one; `path` names them in messages.
///
/// # Errors
/// [`DataError::Unusable`](crate::error::DataError::Unusable).
pub fn check_bytes(bytes: &[u8], path: &Path, vocab: usize) -> Result<()> {
    // The first of them.
    let largest = bytes.iter().copied().enumerate().max_by_key(|&(offset, byte)| (byte, std::cmp::Reverse(offset)));
    match largest.filter(|&(_, byte)| usize::from(byte) >= vocab) {
        None => Ok(()),
        Some((offset, byte)) => Err(unusable(format!(
            "{} has byte {byte} at offset {offset}, the model has a vocabulary of {vocab}: use a model with a \
             vocabulary of at least {}, or a text of smaller bytes",
            path.display(),
            u16::from(byte) + 1
        ))),
    }
}

/// The whole of a file that must not be empty.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let bytes = crate::files::read(path)?;
    if bytes.is_empty() {
        return Err(unusable(format!("{} is empty: pass a file with text", path.display())));
    }
    Ok(bytes)
}

/// Consecutive windows of `seq` bytes, at most `limit` of them; each byte predicts the next one, also across windows.
///
/// The last window is filled with bytes 0 whose labels do not count.
pub fn windows(bytes: &[u8], seq: usize, limit: usize) -> TokenBatch {
    let predicting = bytes.len().saturating_sub(1);
    let batch = predicting.div_ceil(seq).min(limit);
    let id = |index: usize| bytes.get(index).map(|&byte| i64::from(byte));
    let tokens = (0..batch * seq).map(|index| id(index).filter(|_| index < predicting).unwrap_or(0)).collect();
    let labels = (0..batch * seq).map(|index| id(index + 1).unwrap_or(IGNORED)).collect();
    TokenBatch::uniform(tokens, labels, batch, seq)
}
