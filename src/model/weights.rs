//! Weights in safetensors files, as Hugging Face lays them out: one `model.safetensors`, or shards with a
//! `model.safetensors.index.json`.
//!
//! Elements may be `f64`, `f32`, `bf16` or `f16` in the file, whatever the model holds them as; they are converted
//! with one rounding. Tensors are read one at a time, so loading needs little more memory than the model.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Value, json};

use super::config::{self, Config};
use super::parameters::{Master, ParameterList, ParameterSet, ParameterSpec, Parameters};
use crate::error::{DataError, Error, ModelError, Result};
use crate::files::{AtomicFile, unwritable};
use crate::tensor::{DType, Device, Float};

/// The file that holds all tensors.
const SINGLE: &str = "model.safetensors";
/// The file that says which shard holds which tensor.
const INDEX: &str = "model.safetensors.index.json";
/// Tensor of the output layer.
const HEAD: &str = "lm_head.weight";
/// Tensor of the embedding.
const EMBEDDING: &str = "model.embed_tokens.weight";
/// Longest header that is read, as in the safetensors crate.
const LONGEST_HEADER: u64 = 100_000_000;

/// Reads the weights in `folder` for training.
///
/// # Errors
/// A file that is missing, truncated or invalid (named); a tensor that is missing, of another shape, or not floating
/// point (named, with what was expected); a tensor that the configuration has no use for. Stored rotary frequencies
/// are skipped, and so is `lm_head.weight` of a tied model where it equals the embedding.
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
    let mut files = TensorFiles::open(folder)?;
    for (_, spec) in list.iter() {
        files.check(spec)?;
    }
    files.refuse_unexpected(list)?;
    ParameterSet::from_host(device, list, |_, spec| files.values(&spec.name))
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
    // "torch_dtype" is the older name; where a file has it, it must not keep saying something else.
    map.insert("dtype".into(), json!(torch));
    if let Some(older) = map.get_mut("torch_dtype") {
        *older = json!(torch);
    }

    std::fs::create_dir_all(folder).map_err(|e| unwritable(folder, &e))?;
    let header = header(weights.list(), file_dtype)?;
    let file = |name: &str, fill: &dyn Fn(&mut AtomicFile) -> std::io::Result<()>| {
        let mut file = AtomicFile::create(&folder.join(name))?;
        fill(&mut file).map_err(|e| unwritable(file.path(), &e))?;
        Ok::<_, Error>(file)
    };
    let config = file("config.json", &|out| out.write_all(config::text(&map).as_bytes()))?;
    let tensors = file(SINGLE, &|out| {
        out.write_all(&(header.len() as u64).to_le_bytes())?;
        out.write_all(&header)?;
        let mut bytes = Vec::new();
        for spec in by_name(weights.list()) {
            let Some(id) = weights.list().find(&spec.name) else { continue };
            bytes.clear();
            encode(&weights.to_host(device, id), file_dtype, &mut bytes);
            out.write_all(&bytes)?;
        }
        Ok(())
    })?;
    AtomicFile::place_all([tensors, config])
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

/// Converts the bytes of a tensor whose type [`is_float`].
fn decode<T: Float>(bytes: &[u8], dtype: Dtype) -> Vec<T> {
    fn each<const N: usize, T: Float>(bytes: &[u8], read: impl Fn([u8; N]) -> f64) -> Vec<T> {
        bytes.as_chunks::<N>().0.iter().map(|&element| T::from_f64(read(element))).collect()
    }
    match dtype {
        Dtype::F64 => each(bytes, f64::from_le_bytes),
        Dtype::BF16 => each(bytes, |b| bf16::from_le_bytes(b).to_f64()),
        Dtype::F16 => each(bytes, |b| f16::from_le_bytes(b).to_f64()),
        _ => each(bytes, |b| f32::from_le_bytes(b) as f64),
    }
}

fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F64 | Dtype::F32 | Dtype::BF16 | Dtype::F16)
}

fn read_error(path: &Path, reason: impl ToString) -> Error {
    DataError::Read { path: path.display().to_string(), reason: reason.to_string() }.into()
}

fn invalid(path: &Path, reason: impl std::fmt::Display) -> Error {
    ModelError::Weights(format!(
        "{} is not a valid safetensors file: {reason}; copy or download it again",
        path.display()
    ))
    .into()
}

/// One safetensors file, its header read.
struct Shard {
    path: PathBuf,
    file: File,
    /// Where the tensors' bytes begin.
    data: u64,
}

impl Shard {
    /// Reads the header and checks that the file is as long as it says.
    fn open(path: PathBuf) -> Result<(Shard, Metadata)> {
        let mut file = File::open(&path).map_err(|e| read_error(&path, e))?;
        let length = file.metadata().map_err(|e| read_error(&path, e))?.len();
        let mut prefix = [0; 8];
        if length < 8 {
            return Err(invalid(&path, format!("it has {length} bytes; it is truncated")));
        }
        file.read_exact(&mut prefix).map_err(|e| read_error(&path, e))?;
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
        file.read_exact(&mut header).map_err(|e| read_error(&path, e))?;
        let metadata: Metadata = serde_json::from_slice(&header).map_err(|e| invalid(&path, e))?;
        let data = 8 + header_length;
        let expected = data.saturating_add(metadata.data_len() as u64);
        if expected != length {
            let what = if length < expected { "; it is truncated" } else { "" };
            return Err(invalid(&path, format!("its header describes {expected} bytes, the file has {length}{what}")));
        }
        Ok((Shard { path, file, data }, metadata))
    }

    fn bytes(&mut self, info: &TensorInfo) -> Result<Vec<u8>> {
        let (start, end) = info.data_offsets;
        let mut bytes = vec![0; end - start];
        self.file
            .seek(SeekFrom::Start(self.data + start as u64))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|e| read_error(&self.path, e))?;
        Ok(bytes)
    }
}

/// All tensors of a folder.
struct TensorFiles {
    shards: Vec<Shard>,
    /// By name: shard and place in it. Sorted, so that messages do not change from run to run.
    tensors: BTreeMap<String, (usize, TensorInfo)>,
    /// What to call the place in messages.
    place: PathBuf,
}

impl TensorFiles {
    fn open(folder: &Path) -> Result<Self> {
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        if single.exists() {
            let mut files = TensorFiles { shards: Vec::new(), tensors: BTreeMap::new(), place: single.clone() };
            files.add(single)?;
            return Ok(files);
        }
        if !index.exists() {
            return Err(read_error(&single, format!("no such file, and no {INDEX} beside it")));
        }
        Self::open_index(folder, index)
    }

    fn open_index(folder: &Path, index: PathBuf) -> Result<Self> {
        let wrong = |reason: String| -> Error {
            ModelError::Weights(format!("{} is not a valid index: {reason}", index.display())).into()
        };
        let text = std::fs::read_to_string(&index).map_err(|e| read_error(&index, e))?;
        let value: Value = serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?;
        let map = value.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| wrong("it has no \"weight_map\" object".into()))?;

        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in map {
            // A bare name only: an index must not point outside its folder.
            let bare = |file: &&str| Path::new(file).file_name().is_some_and(|name| name == *file);
            let file = file.as_str().filter(bare);
            let file =
                file.ok_or_else(|| wrong(format!("\"{tensor}\" is not mapped to a file name: {}", map[tensor])))?;
            shards.entry(file).or_default().push(tensor);
        }
        let mut files = TensorFiles { shards: Vec::new(), tensors: BTreeMap::new(), place: index.clone() };
        for (file, tensors) in shards {
            files.add(folder.join(file))?;
            let current = files.shards.len() - 1;
            let absent = |name: &&&str| files.tensors.get(**name).is_none_or(|(shard, _)| *shard != current);
            if let Some(name) = tensors.iter().find(absent) {
                return Err(wrong(format!("it says that {name} is in {file}, which does not hold it")));
            }
        }
        Ok(files)
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let (shard, metadata) = Shard::open(path)?;
        for (name, info) in metadata.tensors() {
            if let Some((other, _)) = self.tensors.insert(name.clone(), (self.shards.len(), info.clone())) {
                let other = &self.shards[other].path;
                return Err(invalid(&shard.path, format!("it holds {name}, which {} holds too", other.display())));
            }
        }
        self.shards.push(shard);
        Ok(())
    }

    fn check(&self, spec: &ParameterSpec) -> Result<()> {
        let place = self.place.display();
        let Some((_, info)) = self.tensors.get(&spec.name) else {
            return Err(ModelError::Weights(format!(
                "{place} has no tensor {}: config.json asks for one of shape {:?}",
                spec.name, spec.shape
            ))
            .into());
        };
        if info.shape != spec.shape {
            return Err(ModelError::Weights(format!(
                "{place}: tensor {} has shape {:?}, expected {:?} from config.json",
                spec.name, info.shape, spec.shape
            ))
            .into());
        }
        if !is_float(info.dtype) {
            return Err(ModelError::Weights(format!(
                "{place}: tensor {} has dtype {:?}, expected F32, BF16, F16 or F64",
                spec.name, info.dtype
            ))
            .into());
        }
        Ok(())
    }

    /// Refuses tensors that no parameter takes, except those that transformers skips without a change of numbers.
    fn refuse_unexpected(&mut self, list: &ParameterList) -> Result<()> {
        let taken: std::collections::HashSet<&str> = list.iter().map(|(_, spec)| spec.name.as_str()).collect();
        let skipped = |name: &str| name.ends_with("rotary_emb.inv_freq");
        let mut rest: Vec<String> =
            self.tensors.keys().filter(|name| !taken.contains(name.as_str()) && !skipped(name)).cloned().collect();
        if let Some(at) = rest.iter().position(|name| name == HEAD && list.head.is_none()) {
            if !self.equal(HEAD, EMBEDDING)? {
                return Err(ModelError::Weights(format!(
                    "{}: {HEAD} differs from {EMBEDDING}, but config.json ties them: set tie_word_embeddings to false, \
                     or remove {HEAD}",
                    self.place.display()
                ))
                .into());
            }
            rest.remove(at);
        }
        if rest.is_empty() {
            return Ok(());
        }
        let shown = rest.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
        let more = rest.len().saturating_sub(4);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Err(ModelError::Weights(format!(
            "{} has tensors that config.json has no use for: {shown}{more}; the two are not of the same model",
            self.place.display()
        ))
        .into())
    }

    /// Whether two tensors hold the same numbers.
    fn equal(&mut self, first: &str, second: &str) -> Result<bool> {
        let info = |name: &str| self.tensors.get(name).map(|(_, info)| info);
        let comparable = info(first)
            .zip(info(second))
            .is_some_and(|(a, b)| a.shape == b.shape && is_float(a.dtype) && is_float(b.dtype));
        Ok(comparable && self.values::<f64>(first)? == self.values::<f64>(second)?)
    }

    /// The elements of a tensor that was checked.
    fn values<T: Float>(&mut self, name: &str) -> Result<Vec<T>> {
        let missing = || ModelError::Weights(format!("{} has no tensor {name}", self.place.display()));
        let (shard, info) = self.tensors.get(name).ok_or_else(missing)?;
        let bytes = self.shards[*shard].bytes(info)?;
        Ok(decode(&bytes, info.dtype))
    }
}

#[cfg(test)]
mod tests;
