//! Weights in safetensors files, as Hugging Face lays them out: one `model.safetensors`, or shards with a
//! `model.safetensors.index.json`.
//!
//! Elements may be `f64`, `f32`, `bf16` or `f16` in the file, whatever the model holds them as; they are converted
//! with one rounding. Tensors are read one at a time and in blocks, so loading needs the memory of the model and of
//! one more copy of its largest tensor. `files.rs` finds and checks them, `names.rs` translates the names that other
//! programs write.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;

use super::config::{self, Config};
use super::parameters::{Master, ParameterList, ParameterSet, ParameterSpec, Parameters};
use crate::error::{ModelError, Result};
use crate::files::{AtomicFile, unwritable};
use crate::tensor::{DType, Device, Float};

mod file;
mod files;
mod names;
mod tensor;

use files::TensorFiles;
use tensor::SINGLE;

/// Checks what the headers of the weights in `folder` say against the parameters of a configuration; no tensor is read.
/// What was done to names to find them is a sentence each.
///
/// # Errors
/// Those of [`load_master`], but for tensors that should be equal.
pub fn check(folder: &Path, list: &ParameterList) -> Result<Vec<String>> {
    TensorFiles::checked(folder, list).map(|(_, notes)| notes)
}

/// Reads the weights in `folder` for training.
///
/// Names under `module.` or `_orig_mod.`, names without `model.`, and the older names of multi-token prediction
/// (`model.mtp.{k}.`) are translated; [`check`] says so.
///
/// # Errors
/// A file that is missing, truncated or invalid (named); another number of blocks; a tensor that is missing, of another
/// shape, or not floating point (named, with what was expected); a tensor that the configuration has no use for. Stored
/// rotary frequencies are skipped, and so are copies of the embedding and of the output layer where they are equal to
/// them: `lm_head.weight` of a tied model, and those of multi-token prediction.
pub fn load_master<D: Device>(device: &D, folder: &Path, list: &Arc<ParameterList>) -> Result<Master<D>> {
    read(device, folder, list)
}

/// Reads the weights in `folder` for running the model only; see [`load_master`].
pub fn load<D: Device>(device: &D, folder: &Path, list: &Arc<ParameterList>) -> Result<Parameters<D>> {
    read(device, folder, list)
}

fn read<R, T: Float, D: Device>(
    device: &D,
    folder: &Path,
    list: &Arc<ParameterList>,
) -> Result<ParameterSet<R, T, D::Storage>> {
    let (mut files, _) = TensorFiles::checked(folder, list)?;
    files.check_copies(list)?;
    ParameterSet::from_host(device, list, |_, spec| files.values(spec))
}

/// Writes `config.json` and `model.safetensors` into `folder` (made if missing), elements as `dtype`.
///
/// Both are put in place once both are complete ([`crate::files`]), so that an interrupted save leaves what was there
/// before.
///
/// # Errors
/// A `dtype` that is not floating point; a configuration that its family cannot express; a folder or file that cannot
/// be written.
pub fn save<R, T: Float, D: Device>(
    device: &D,
    folder: &Path,
    config: &Config,
    weights: &ParameterSet<R, T, D::Storage>,
    dtype: DType,
) -> Result<()> {
    let (file_dtype, torch) = file_dtype(dtype)?;
    let mut map = config.to_map()?;
    // Versions of transformers before 4.56 know the second name only.
    for key in ["dtype", "torch_dtype"] {
        map.insert(key.into(), json!(torch));
    }

    std::fs::create_dir_all(folder).map_err(|e| unwritable(folder, &e))?;
    let header = header(weights.list(), file_dtype)?;
    let write = |file: &mut AtomicFile, bytes: &[u8]| file.write_all(bytes).map_err(|e| unwritable(file.path(), &e));
    let mut config_file = AtomicFile::create(&folder.join("config.json"))?;
    write(&mut config_file, config::text(&map).as_bytes())?;
    let mut tensors = AtomicFile::create(&folder.join(SINGLE))?;
    write(&mut tensors, &(header.len() as u64).to_le_bytes())?;
    write(&mut tensors, &header)?;
    let mut bytes = Vec::new();
    for spec in by_name(weights.list()) {
        let Some(id) = weights.list().find(&spec.name) else { continue };
        bytes.clear();
        encode(&weights.to_host(device, id)?, file_dtype, &mut bytes);
        write(&mut tensors, &bytes)?;
    }
    AtomicFile::place_all([tensors, config_file])
}

fn by_name(list: &ParameterList) -> Vec<&ParameterSpec> {
    let mut specs: Vec<_> = list.iter().map(|(_, spec)| spec).collect();
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    specs
}

/// The header of a safetensors file: offsets of all tensors, sorted by name, padded with spaces to 8 bytes.
fn header(list: &ParameterList, dtype: Dtype) -> Result<Vec<u8>> {
    let mut end = 0;
    let info = |spec: &ParameterSpec| {
        let start = end;
        end += spec.len() * dtype.bitsize() / 8;
        (spec.name.clone(), TensorInfo { dtype, shape: spec.shape.clone(), data_offsets: (start, end) })
    };
    let tensors = by_name(list).into_iter().map(info).collect();
    let about = HashMap::from([("format".to_string(), "pt".to_string())]);
    let wrong = |e: String| ModelError::Weights(format!("the weights do not fit a safetensors file: {e}"));
    let metadata = Metadata::new(Some(about), tensors).map_err(|e| wrong(e.to_string()))?;
    let mut bytes = serde_json::to_vec(&metadata).map_err(|e| wrong(e.to_string()))?;
    bytes.resize(bytes.len().next_multiple_of(8), b' ');
    Ok(bytes)
}

fn file_dtype(dtype: DType) -> Result<(Dtype, &'static str)> {
    match dtype {
        DType::F64 => Ok((Dtype::F64, "float64")),
        DType::F32 => Ok((Dtype::F32, "float32")),
        DType::Bf16 => Ok((Dtype::BF16, "bfloat16")),
        DType::F16 => Ok((Dtype::F16, "float16")),
        _ => {
            Err(ModelError::Weights(format!("weights cannot be written as {dtype}: use f32, bf16, f16 or f64")).into())
        }
    }
}

fn encode<T: Float>(values: &[T], dtype: Dtype, bytes: &mut Vec<u8>) {
    let wide = values.iter().map(|value| value.to_f64());
    match dtype {
        Dtype::F64 => wide.for_each(|x| bytes.extend(x.to_le_bytes())),
        Dtype::BF16 => wide.for_each(|x| bytes.extend(bf16::from_f64(x).to_le_bytes())),
        Dtype::F16 => wide.for_each(|x| bytes.extend(f16::from_f64(x).to_le_bytes())),
        _ => wide.for_each(|x| bytes.extend((x as f32).to_le_bytes())),
    }
}

#[cfg(test)]
mod tests;
