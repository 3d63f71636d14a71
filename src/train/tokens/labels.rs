//! What the labels of a file mean: Hugging Face and Megatron write them one position apart.

use super::IGNORED;
use crate::order::RowDocuments;

/// At which token a label is predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelMeaning {
    /// The label at `t` is the token at `t`, predicted at `t - 1`: the model shifts. As in Hugging Face.
    Unshifted,
    /// The label at `t` is predicted at `t`: it was shifted before. As in Megatron.
    Shifted,
}

impl LabelMeaning {
    /// The label that is predicted at each token, of labels with this meaning. A shifted one is the user's word, also
    /// at the end of a document: a token that ends one and begins the next is the right label there.
    pub(super) fn ahead(self, labels: &[i64], documents: &RowDocuments) -> Vec<i64> {
        match self {
            LabelMeaning::Unshifted => documents.ahead(labels, IGNORED),
            LabelMeaning::Shifted => labels.to_vec(),
        }
    }
}

/// What labels mean, where the tokens (-100 at padding) say it: those that count are the tokens at their own places, or
/// those after them.
///
/// # Errors
/// In words, if they are neither, or both and it makes a difference.
pub(super) fn meaning(tokens: &[i64], labels: &[i64], documents: &RowDocuments) -> Result<LabelMeaning, String> {
    let ahead = documents.ahead(tokens, IGNORED);
    let counted = || (0..labels.len()).filter(|&token| labels[token] != IGNORED);
    let moved = counted().find(|&token| labels[token] != tokens[token]);
    // The last token of a document has a label that the file does not hold otherwise: it proves nothing.
    let mut inside = counted().filter(|&token| ahead[token] != IGNORED).peekable();
    let is_shifted = inside.peek().is_some() && inside.all(|token| labels[token] == ahead[token]);
    let fix = "say with --labels whether they are those of the tokens at their own places (unshifted, as Hugging Face \
               has them) or of the tokens after them (shifted, as Megatron has them)";
    match (moved, is_shifted) {
        (None, false) => Ok(LabelMeaning::Unshifted),
        (Some(_), true) => Ok(LabelMeaning::Shifted),
        (Some(token), false) => {
            let (row, column) = documents.place(token);
            Err(format!(
                "\"labels\" are neither the tokens nor the tokens after them: row {row}, column {column} has label {}, \
                 token {}; {fix}",
                labels[token], tokens[token]
            ))
        }
        (None, true) => {
            let of = |meaning: LabelMeaning| meaning.ahead(labels, documents);
            match of(LabelMeaning::Unshifted) == of(LabelMeaning::Shifted) {
                true => Ok(LabelMeaning::Unshifted),
                false => Err(format!("\"labels\" are both the tokens and the tokens after them; {fix}")),
            }
        }
    }
}
