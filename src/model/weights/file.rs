//! One safetensors file of weights: its header read and checked, its tensors' bytes, and what they are as numbers.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::error::{Error, ModelError, Result};
use crate::files::{self, unreadable};
use crate::tensor::Float;

/// Longest header that is read, as in the safetensors crate.
const LONGEST_HEADER: u64 = 100_000_000;

/// One safetensors file, its header read.
pub(super) struct WeightFile {
    pub(super) path: PathBuf,
    file: File,
    /// Where the tensors' bytes begin.
    data: u64,
}

impl WeightFile {
    /// Reads the header and checks that the file is as long as it says.
    pub(super) fn open(path: PathBuf) -> Result<(WeightFile, Metadata)> {
        let mut file = files::open(&path)?;
        let length = file.metadata().map_err(|e| unreadable(&path, e))?.len();
        let mut prefix = [0; 8];
        if length < 8 {
            return Err(invalid(&path, format!("it has {length} bytes; it is truncated")));
        }
        file.read_exact(&mut prefix).map_err(|e| unreadable(&path, e))?;
        let header_length = u64::from_le_bytes(prefix);
        if header_length > LONGEST_HEADER {
            return Err(invalid(&path, format!("its header would have {header_length} bytes")));
        }
        if header_length > length - 8 {
            return Err(invalid(
                &path,
                format!("its header has {header_length} bytes but only {} follow; it is truncated", length - 8),
            ));
        }
        let mut header = vec![0; header_length as usize];
        file.read_exact(&mut header).map_err(|e| unreadable(&path, e))?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| invalid(&path, e))?;
        let data = 8 + header_length;
        let expected = data.saturating_add(metadata.data_len() as u64);
        if expected != length {
            let what = if length < expected { "; it is truncated" } else { "" };
            return Err(invalid(&path, format!("its header describes {expected} bytes, the file has {length}{what}")));
        }
        Ok((WeightFile { path, file, data }, metadata))
    }

    /// The bytes of a tensor from `range.start` to `range.end`.
    pub(super) fn bytes(&mut self, info: &TensorInfo, range: Range<usize>) -> Result<Vec<u8>> {
        let mut bytes = vec![0; range.len()];
        self.file
            .seek(SeekFrom::Start(self.data + (info.data_offsets.0 + range.start) as u64))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|e| unreadable(&self.path, e))?;
        Ok(bytes)
    }
}

pub(super) fn invalid(path: &Path, reason: impl std::fmt::Display) -> Error {
    ModelError::Weights(format!(
        "{} is not a valid safetensors file: {reason}; copy or download it again",
        path.display()
    ))
    .into()
}

/// Converts the bytes of a tensor whose type [`is_float`], and appends them.
pub(super) fn decode<T: Float>(bytes: &[u8], dtype: Dtype, values: &mut Vec<T>) {
    fn each<const N: usize, T: Float>(bytes: &[u8], values: &mut Vec<T>, read: impl Fn([u8; N]) -> f64) {
        values.extend(bytes.as_chunks::<N>().0.iter().map(|&element| T::from_f64(read(element))));
    }
    match dtype {
        Dtype::F64 => each(bytes, values, f64::from_le_bytes),
        Dtype::BF16 => each(bytes, values, |b| bf16::from_le_bytes(b).to_f64()),
        Dtype::F16 => each(bytes, values, |b| f16::from_le_bytes(b).to_f64()),
        _ => each(bytes, values, |b| f32::from_le_bytes(b) as f64),
    }
}

pub(super) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::BF16 | Dtype::F16)
}
