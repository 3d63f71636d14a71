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
    /// Training in which something is no longer a finite number. Nothing is kept of that step; where it is the loss or
    /// the gradient, the weights are those of the step before.
    #[error("the run diverged at step {step}: {what} is {value}; {}", advice(*step, what))]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// What is not finite.
        what: &'static str,
        /// What it is.
        value: f64,
    },
}

/// What to do where `what` is not finite.
fn advice(step: u64, what: &str) -> &'static str {
    match (step, what) {
        // No weight was changed yet.
        (1, DataError::LOSS | DataError::GRADIENT) => {
            "training had not begun, so the weights that it starts from or config.json may be broken: check both"
        }
        _ => "use a smaller --lr, a longer --warmup or a smaller --clip",
    }
}

impl DataError {
    /// What is not finite, before a step changes the weights.
    pub(crate) const LOSS: &str = "the loss";
    /// The same.
    pub(crate) const GRADIENT: &str = "the norm of the gradient";

    /// Refuses what is not finite.
    ///
    /// # Errors
    /// [`DataError::Diverged`].
    pub(crate) fn check_finite(step: u64, what: &'static str, value: f64) -> Result<(), DataError> {
        if value.is_finite() { Ok(()) } else { Err(DataError::Diverged { step, what, value }) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_not_to_blame_before_the_first_step() {
        let message = |step, what| DataError::check_finite(step, what, f64::NAN).unwrap_err().to_string();
        for what in [DataError::LOSS, DataError::GRADIENT] {
            let first = message(1, what);
            assert!(first.contains("weights") && first.contains("config.json") && !first.contains("--lr"), "{first}");
            assert!(message(2, what).contains("--lr"));
        }
        for what in ["the norm of the weights", "the held-out loss"] {
            assert!(message(1, what).contains("--lr"));
        }
    }
}
