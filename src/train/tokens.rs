//! Token ids from a safetensors file, with what belongs to them: labels, weights, documents, positions, padding.
//!
//! Every tensor of the file is honoured or refused. What they mean is what they mean to Hugging Face and Megatron:
//!
//! | tensor | shape and type | meaning |
//! |---|---|---|
//! | `tokens`, or `input_ids` | `[batch, seq]` of whole numbers | the ids |
//! | `labels` | `[batch, seq]` of whole numbers | [`LabelMeaning`]; -100 does not count |
//! | `loss_mask` | `[batch, seq]` of 0 and 1 | whether the prediction that is made *at* a token counts |
//! | `document_ids` | `[batch, seq]` of whole numbers | tokens of one document have one id |
//! | `cu_seqlens` | `[documents + 1]` of whole numbers | where documents end in all rows, one after another |
//! | `position_ids` | `[batch or 1, seq]` of whole numbers | from 0 in each document; alone, it says where one begins |
//! | `attention_mask` | `[batch, seq]` of 0 and 1 | 0 is padding, at the end of a row only |
//!
//! Whole numbers are `i64` or `i32`; 0 and 1 may have any type. Without documents a row is one. Nothing is attended
//! across documents, and nothing predicted across them but what shifted labels say. Padding begins no document.

mod file;
mod labels;

use std::path::Path;

use safetensors::SafeTensors;

use super::data::{IGNORED, TokenBatch, read_bytes};
use crate::error::Result;
use crate::files::unreadable;

pub use file::TOKENS;
use file::{ATTENTION_MASK, INPUT_IDS, LABELS, LOSS_MASK, TensorFile, place};
pub use labels::LabelMeaning;

/// The content of a file of token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFile {
    /// Its documents, row after row, padding included; labels are those of the next token.
    pub batch: TokenBatch,
    /// Rows, and tokens of each.
    pub shape: [usize; 2],
    /// What its labels mean, where it has any.
    pub labels: Option<LabelMeaning>,
}

/// Reads the safetensors file `path` for a model with token ids `0..vocab`. Without `labels` each token has to predict
/// the next one of its document. `asked` says what labels mean; else they must say it themselves.
///
/// # Errors
/// A file that cannot be read or is not whole; a tensor that is missing, not known, or has another type or shape; ids
/// or labels outside the vocabulary; documents, positions or padding that contradict each other; labels whose meaning
/// is not plain. Each is named, with row and column.
pub fn read_tokens(path: &Path, vocab: usize, asked: Option<LabelMeaning>) -> Result<TokenFile> {
    let bytes = read_bytes(path)?;
    let tensors = SafeTensors::deserialize(&bytes)
        .map_err(|error| unreadable(path, format!("it is no safetensors file ({error})")))?;
    let file = TensorFile { path, tensors };
    file.check_names()?;
    let name = if file.has(TOKENS) { TOKENS } else { INPUT_IDS };
    let view = file.tensors.tensor(name).map_err(|_| {
        let names = file.names().join(", ");
        file.wrong(format!("there is no tensor \"{TOKENS}\" or \"{INPUT_IDS}\"; found: {names}"))
    })?;
    let [rows, seq] = match *view.shape() {
        [rows, seq] if rows > 0 && seq > 0 => [rows, seq],
        ref shape => {
            let message = format!("tensor \"{name}\" has shape {shape:?}, expected [batch, seq] with neither 0");
            return Err(file.wrong(message));
        }
    };
    let shape = [rows, seq];
    let tokens = file.whole_numbers(name, view)?;
    let kept = file.flags(ATTENTION_MASK, shape)?.unwrap_or_else(|| vec![true; tokens.len()]);
    let documents = file.documents(shape, &kept)?;
    let found = file.shaped(LABELS, shape)?;
    file.check_ids(name, &tokens, &documents, vocab, |_| true)?;

    // Padding is no label.
    let targets: Vec<i64> = tokens.iter().zip(&kept).map(|(&id, &kept)| if kept { id } else { IGNORED }).collect();
    let (mut labels, meaning) = match found {
        None if asked.is_some() => {
            return Err(file.wrong(format!("there is no tensor \"{LABELS}\" for --labels: leave the option out")));
        }
        None => (documents.ahead(&targets, IGNORED), None),
        Some(found) => {
            let counts = |token: usize| found[token] != IGNORED;
            file.check_ids(LABELS, &found, &documents, vocab, counts)?;
            if let Some(token) = (0..found.len()).find(|&token| counts(token) && !kept[token]) {
                let at = place(&documents, token);
                return Err(file.wrong(format!(
                    "\"{LABELS}\" has {} at {at}, which is padding by \"{ATTENTION_MASK}\": set it to {IGNORED}",
                    found[token]
                )));
            }
            let meaning = asked.map_or_else(|| labels::meaning(&targets, &found, &documents), Ok);
            let meaning = meaning.map_err(|reason| file.wrong(reason))?;
            (meaning.ahead(&found, &documents), Some(meaning))
        }
    };
    if let Some(weights) = file.flags(LOSS_MASK, shape)? {
        labels.iter_mut().zip(weights).filter(|(_, counts)| !counts).for_each(|(label, _)| *label = IGNORED);
    }
    Ok(TokenFile { batch: TokenBatch { tokens, labels, lengths: documents.lengths() }, shape, labels: meaning })
}

#[cfg(test)]
mod tests;
