//! Batches: their documents, one after another, whatever the layout.

use std::any::Any;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::ops::Range;

/// One sequence of a dense batch or one document of a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Document {
    /// Index of its first token in the batch.
    pub start: usize,
    /// Rows that it occupies, padding at its end included.
    pub stored: usize,
    /// Tokens that count; the rest is padding.
    pub valid: usize,
}

impl Document {
    /// The tokens that it occupies.
    pub fn stored_range(&self) -> Range<usize> {
        self.start..self.start + self.stored
    }

    /// The tokens that count.
    pub fn valid_range(&self) -> Range<usize> {
        self.start..self.start + self.valid
    }
}

/// The shape of a batch: its documents, one after another. Whatever its layout, code reads it as `&dyn Batch`.
pub trait Batch: Any + fmt::Debug + Send + Sync {
    /// Number of sequences or documents.
    fn documents(&self) -> usize;

    /// The document with this index.
    fn document(&self, index: usize) -> Document;

    /// Index of the document that holds `token`.
    ///
    /// # Panics
    /// If the batch has no such token.
    fn document_of(&self, token: usize) -> usize;

    /// Rows in all, padding included.
    fn tokens(&self) -> usize;

    /// The sequence length, if every document has the same and all of it is valid.
    fn uniform(&self) -> Option<usize>;

    /// The longest stored length; what rotary tables must cover.
    fn longest(&self) -> usize {
        (0..self.documents()).map(|i| self.document(i).stored).max().unwrap_or(0)
    }

    /// Tokens that are not padding.
    fn valid_tokens(&self) -> usize {
        (0..self.documents()).map(|i| self.document(i).valid).sum()
    }
}

impl dyn Batch {
    /// Whether both have the same documents, and both or neither are dense.
    pub fn same_documents(&self, other: &dyn Batch) -> bool {
        let sizes = |batch: &dyn Batch| (batch.documents(), batch.tokens(), batch.uniform());
        sizes(self) == sizes(other) && (0..self.documents()).all(|index| self.document(index) == other.document(index))
    }

    /// Documents and tokens, in words.
    pub fn describe(&self) -> String {
        format!("{} documents of {} tokens in all", self.documents(), self.tokens())
    }
}

impl Hash for dyn Batch {
    fn hash<X: Hasher>(&self, state: &mut X) {
        (self.documents(), self.uniform()).hash(state);
        if self.uniform().is_none() {
            (0..self.documents()).for_each(|index| self.document(index).hash(state));
        }
    }
}
