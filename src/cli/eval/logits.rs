//! The file of logits: written batch by batch beside its place, then put there.

use std::io::Write;
use std::path::Path;

use context_parallel::error::{DataError, Result};
use context_parallel::files::AtomicFile;
use serde_json::json;

use super::super::args;

/// A safetensors file with `logits` `[B, S, V]` of `f32`, under way.
pub struct LogitsFile(AtomicFile);

impl LogitsFile {
    /// Begins the file; nothing is at `path` yet, or what was there before.
    pub fn create(path: &Path, shape: [usize; 3]) -> Result<Self> {
        let elements = shape.iter().try_fold(size_of::<f32>(), |bytes, &size| bytes.checked_mul(size));
        let Some(bytes) = elements else {
            return Err(args::numbers(format!("logits of shape {shape:?} do not fit a file: use fewer tokens")));
        };
        let header = json!({ "logits": { "dtype": "F32", "shape": shape, "data_offsets": [0, bytes] } }).to_string();
        // The data begins at a multiple of 8.
        let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
        let mut logits = LogitsFile(AtomicFile::create(path)?);
        logits.write(&(header.len() as u64).to_le_bytes())?;
        logits.write(header.as_bytes())?;
        Ok(logits)
    }

    /// The next logits, row-major.
    pub fn append(&mut self, logits: impl Iterator<Item = f32>) -> Result<()> {
        for value in logits {
            self.write(&value.to_le_bytes())?;
        }
        Ok(())
    }

    /// Puts the whole file in its place.
    pub fn finish(self) -> Result<()> {
        self.0.place()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes).map_err(|error| {
            DataError::Write { path: self.0.path().display().to_string(), reason: error.to_string() }.into()
        })
    }
}
