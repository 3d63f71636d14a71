//! The file of logits: written batch by batch beside its place, then renamed.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use context_parallel::error::{DataError, Result};
use context_parallel::train::run_folder::part_of;
use serde_json::json;

use super::super::args;

/// A safetensors file with `logits` `[B, S, V]` of `f32`, under way.
pub struct LogitsFile {
    path: PathBuf,
    file: BufWriter<File>,
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
        let file = File::create(part_of(path)).map_err(|error| unwritable(path, &error))?;
        let mut logits = LogitsFile { path: path.to_path_buf(), file: BufWriter::with_capacity(1 << 20, file) };
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
    pub fn finish(mut self) -> Result<()> {
        let whole = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        let placed = whole.and_then(|()| std::fs::rename(part_of(&self.path), &self.path));
        placed.map_err(|error| unwritable(&self.path, &error))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| unwritable(&self.path, &error))
    }
}

impl Drop for LogitsFile {
    /// Leaves nothing half-written behind; after a rename there is nothing to remove.
    fn drop(&mut self) {
        let _ = std::fs::remove_file(part_of(&self.path));
    }
}

fn unwritable(path: &Path, error: &std::io::Error) -> context_parallel::error::Error {
    DataError::Write { path: path.display().to_string(), reason: error.to_string() }.into()
}
