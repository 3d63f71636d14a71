//! What is said of options that cannot be taken.

use context_parallel::error::SupportError;
use context_parallel::tensor::DType;

use super::names::{DTYPES, known};

/// Numbers that do not go together.
pub fn numbers(message: String) -> context_parallel::error::Error {
    SupportError::Numbers(message).into()
}

/// Something that this version does not have, and what to use instead.
pub fn not_available(what: impl Into<String>, instead: impl Into<String>) -> context_parallel::error::Error {
    SupportError::NotAvailable { what: what.into(), instead: instead.into() }.into()
}

/// Documents of something that has none.
pub fn no_documents() -> context_parallel::error::Error {
    numbers("--document-separator is for a text, which the recall task is not: leave it out, or use --data FILE".into())
}

/// A storage type that is not computed with there.
pub fn no_dtype(dtype: DType) -> context_parallel::error::Error {
    not_available(format!("--dtype {dtype}"), format!("choose one of {}, with --device cpu", known(DTYPES)))
}
