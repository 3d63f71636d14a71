//! Token ids from a safetensors file.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};

use super::data::{TokenBatch, read_bytes};
use crate::error::{DataError, ModelError, Result};

/// Name of the tensor that holds the ids.
pub const TOKENS: &str = "tokens";

/// Reads `tokens` `[batch, seq]` (`i64`) from the safetensors file `path`; each token has to predict the next one of
/// its row.
///
/// Fails if the file cannot be read or is not whole, or if the tensor is missing or has another type or shape.
pub fn read_tokens(path: &Path) -> Result<TokenBatch> {
    let bytes = read_bytes(path)?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| DataError::Read { path: path.display().to_string(), reason: error.to_string() })?;
    let refuse = |message: String| Err(ModelError::Weights(format!("{}: {message}", path.display())).into());
    let Ok(tensor) = file.tensor(TOKENS) else {
        let mut names = file.names();
        names.sort_unstable();
        return refuse(format!("there is no tensor \"{TOKENS}\"; found: {}", names.join(", ")));
    };
    if tensor.dtype() != Dtype::I64 {
        return refuse(format!("tensor \"{TOKENS}\" has type {:?}, expected I64", tensor.dtype()));
    }
    match *tensor.shape() {
        [batch, seq] if batch > 0 && seq > 0 => {
            let (ids, _) = tensor.data().as_chunks::<8>();
            Ok(TokenBatch::next_token(ids.iter().map(|id| i64::from_le_bytes(*id)).collect(), batch, seq))
        }
        ref shape => refuse(format!("tensor \"{TOKENS}\" has shape {shape:?}, expected [batch, seq] with neither 0")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::data::IGNORED;
    use safetensors::tensor::TensorView;

    fn write(name: &str, dtype: Dtype, shape: &[usize], data: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.safetensors");
        let view = TensorView::new(dtype, shape.to_vec(), data).unwrap();
        std::fs::write(&path, safetensors::serialize([(name, view)], None).unwrap()).unwrap();
        (folder, path)
    }

    #[test]
    fn reads_rows_of_ids() {
        let data: Vec<u8> = [5i64, 6, 7, -1, 8, 9].iter().flat_map(|id| id.to_le_bytes()).collect();
        let (_folder, path) = write("tokens", Dtype::I64, &[2, 3], &data);
        let batch = read_tokens(&path).unwrap();
        assert_eq!(batch.lengths, [3, 3]);
        assert_eq!(batch.tokens, [5, 6, 7, -1, 8, 9]);
        assert_eq!(batch.labels, [6, 7, IGNORED, 8, 9, IGNORED]);
    }

    #[test]
    fn says_what_is_wrong_with_a_file() {
        let data = [0u8; 48];
        for (name, dtype, shape, expected) in [
            ("ids", Dtype::I64, &[2, 3][..], "no tensor \"tokens\"; found: ids"),
            ("tokens", Dtype::F64, &[2, 3][..], "type F64, expected I64"),
            ("tokens", Dtype::I64, &[6][..], "shape [6], expected [batch, seq]"),
            ("tokens", Dtype::I64, &[1, 2, 3][..], "shape [1, 2, 3]"),
        ] {
            let (_folder, path) = write(name, dtype, shape, &data);
            let error = read_tokens(&path).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(expected), "{error}");
        }
        let (_folder, path) = write("tokens", Dtype::I64, &[0, 3], &[]);
        assert!(read_tokens(&path).unwrap_err().to_string().contains("shape [0, 3]"));
        let (_folder, path) = write("tokens", Dtype::I64, &[2, 3], &data);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        let error = read_tokens(&path).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("tokens.safetensors"), "truncated: {error}");
    }
}
