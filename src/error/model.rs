//! Errors of models, data and files.

use thiserror::Error;

/// What can be wrong with a model.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum ModelError {
    /// A token outside the vocabulary.
    #[error(
        "token {token} at sequence or document {sequence}, position {position}: the vocabulary has ids 0..{vocab}, use \
         ids of the model's own tokenizer, or a model with a larger vocabulary"
    )]
    Token {
        /// The id.
        token: i64,
        /// Sequence or document.
        sequence: usize,
        /// Position in it.
        position: usize,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A label outside the vocabulary.
    #[error("label {label}: the vocabulary has ids 0..{vocab}, and -100 for a label that does not count")]
    Label {
        /// The label.
        label: i64,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// A backward pass with what another model's forward pass left.
    #[error(
        "activations of {activations} layers for a model of {layers}: pass what this model's own forward pass left"
    )]
    OtherModel {
        /// Layers of the model that left the activations.
        activations: usize,
        /// Layers of this model.
        layers: usize,
    },
    /// A configuration that cannot be used.
    #[error("{0}")]
    Config(String),
    /// Weights that cannot be used.
    #[error("{0}")]
    Weights(String),
}

/// What can be wrong with data and files.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum DataError {
    /// A file that cannot be read.
    #[error("cannot read {path}: {reason}; check the path, and that the file is whole and may be read")]
    Read {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// A pointer of Git LFS in the place of the file that it stands for.
    #[error(
        "{path} is not the file itself but a pointer that Git LFS leaves in its place: run `git lfs pull` in its \
         folder, or download the file"
    )]
    LfsPointer {
        /// The file.
        path: String,
    },
    /// A file that cannot be written.
    #[error("cannot write {path}: {reason}")]
    Write {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// Data that cannot be used.
    #[error("{0}")]
    Unusable(String),
    /// Logits that are not finite numbers.
    #[error(
        "the logits of row {row}, column {column} are not finite ({value}): check the weights, or use a --dtype with a \
         larger range (bf16, f32)"
    )]
    Logits {
        /// The row of the input.
        row: usize,
        /// The token in it.
        column: usize,
        /// One of them.
        value: f32,
    },
    /// Training in which something is no longer a finite number. No step was made with it, and nothing is kept of it.
    #[error(
        "the run diverged at step {step}: {what} is {value}; use a smaller --lr, a longer --warmup or a smaller --clip"
    )]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// What is not finite.
        what: &'static str,
        /// What it is.
        value: f64,
    },
}

impl DataError {
    /// Refuses what is not finite.
    ///
    /// # Errors
    /// [`DataError::Diverged`].
    pub(crate) fn check_finite(step: u64, what: &'static str, value: f64) -> Result<(), DataError> {
        if value.is_finite() { Ok(()) } else { Err(DataError::Diverged { step, what, value }) }
    }
}
