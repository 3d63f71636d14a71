//! The file of logits: written batch by batch beside its place, then put there.

use std::io::Write;
use std::path::Path;

use context_parallel::error::{DataError, Result};
use context_parallel::files::AtomicFile;
use context_parallel::order::place_in_rows;
use serde_json::json;

use super::super::args;

/// A safetensors file with `logits` `[B, S, V]` of `f32`, under way.
pub struct LogitsFile {
    file: AtomicFile,
    shape: [usize; 3],
    /// How many are written.
    written: usize,
}

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
        let mut logits = LogitsFile { file: AtomicFile::create(path)?, shape, written: 0 };
        logits.write(&(header.len() as u64).to_le_bytes())?;
        logits.write(header.as_bytes())?;
        Ok(logits)
    }

    /// The next logits, row-major. Fails at one that is not finite: nothing can be done with a file that has it.
    pub fn append(&mut self, logits: impl Iterator<Item = f32>) -> Result<()> {
        let [_, seq, vocab] = self.shape;
        for value in logits {
            if !value.is_finite() {
                let (row, column) = place_in_rows(self.written / vocab, seq);
                return Err(DataError::Logits { row, column, value }.into());
            }
            self.written += 1;
            self.write(&value.to_le_bytes())?;
        }
        Ok(())
    }

    /// Puts the whole file in its place.
    pub fn finish(self) -> Result<()> {
        self.file.place()
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| {
            DataError::Write { path: self.file.path().display().to_string(), reason: error.to_string() }.into()
        })
    }
}
