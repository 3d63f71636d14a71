//! Reads safetensors files whole: tensors by name with their shapes, and the JSON that golden files carry.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use context_parallel::tensor::DType;
use half::{bf16, f16};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// A tensor in host memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Element type in the file.
    pub dtype: DType,
    bytes: Vec<u8>,
}

/// A file.
#[derive(Clone, Debug)]
pub struct File {
    /// Where it was read.
    pub path: PathBuf,
    /// The JSON under `meta` in the file's metadata; null if there is none.
    pub meta: Value,
    tensors: BTreeMap<String, Tensor>,
}

impl File {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<File, String> {
        let wrong = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
        let bytes = fs::read(path).map_err(|error| wrong(&error))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| wrong(&error))?;
        let meta = match header.metadata().as_ref().and_then(|metadata| metadata.get("meta")) {
            Some(text) => serde_json::from_str(text).map_err(|error| wrong(&error))?,
            None => Value::Null,
        };
        let mut tensors = BTreeMap::new();
        for (name, view) in SafeTensors::deserialize(&bytes).map_err(|error| wrong(&error))?.tensors() {
            let dtype = match view.dtype() {
                Dtype::F32 => DType::F32,
                Dtype::F64 => DType::F64,
                Dtype::BF16 => DType::Bf16,
                Dtype::F16 => DType::F16,
                Dtype::I64 => DType::I64,
                Dtype::I32 => DType::I32,
                Dtype::U8 | Dtype::BOOL => DType::U8,
                other => return Err(wrong(&format!("{name} is {other:?}, which no golden file uses"))),
            };
            tensors.insert(name, Tensor { shape: view.shape().to_vec(), dtype, bytes: view.data().to_vec() });
        }
        Ok(File { path: path.to_path_buf(), meta, tensors })
    }

    /// The tensor with this name.
    pub fn tensor(&self, name: &str) -> Result<&Tensor, String> {
        self.tensors.get(name).ok_or_else(|| format!("{} has no tensor {name}", self.path.display()))
    }

    /// Tensors whose names begin with `prefix`, by the rest of their names.
    pub fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a Tensor)> + 'a {
        self.tensors.iter().filter_map(move |(name, tensor)| Some((name.strip_prefix(prefix)?, tensor)))
    }

    /// A whole number of the metadata.
    pub fn number(&self, key: &str) -> Result<usize, String> {
        let number = self.meta[key].as_u64().ok_or_else(|| format!("{}: no number `{key}`", self.path.display()))?;
        Ok(number as usize)
    }
}

impl Tensor {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    fn map<const N: usize, T>(&self, from: impl Fn([u8; N]) -> T) -> Vec<T> {
        self.bytes.chunks_exact(N).map(|bytes| from(bytes.try_into().unwrap_or([0; N]))).collect()
    }

    /// The values; exact for every type (whole numbers below 2^53).
    pub fn f64s(&self) -> Vec<f64> {
        match self.dtype {
            DType::F64 => self.map(f64::from_le_bytes),
            DType::F32 => self.map(|bytes| f64::from(f32::from_le_bytes(bytes))),
            DType::Bf16 => self.map(|bytes| bf16::from_le_bytes(bytes).to_f64()),
            DType::F16 => self.map(|bytes| f16::from_le_bytes(bytes).to_f64()),
            DType::I64 => self.map(|bytes| i64::from_le_bytes(bytes) as f64),
            DType::I32 => self.map(|bytes| f64::from(i32::from_le_bytes(bytes))),
            DType::U8 => self.map(|[byte]| f64::from(byte)),
        }
    }

    /// The values of a tensor of whole numbers.
    pub fn i64s(&self) -> Result<Vec<i64>, String> {
        match self.dtype {
            DType::I64 => Ok(self.map(i64::from_le_bytes)),
            DType::I32 => Ok(self.map(|bytes| i64::from(i32::from_le_bytes(bytes)))),
            DType::U8 => Ok(self.map(|[byte]| i64::from(byte))),
            other => Err(format!("whole numbers were expected, found {other}")),
        }
    }
}
