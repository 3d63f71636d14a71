//! The tensors in the safetensors files of a folder: found, and checked against parameters by their headers.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::file::{WeightFile, decode, invalid, is_float};
use super::names;
use super::tensor::{EMBEDDING, HEAD, SINGLE, StoredTensor, StoredTensors};
use crate::error::{Error, ModelError, Result};
use crate::files::{self, unreadable};
use crate::model::parameters::{ParameterList, ParameterSpec};
use crate::tensor::Float;

/// The file that says which shard holds which tensor.
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Elements that are read at a time: their bytes are in memory beside what they become.
const BLOCK: usize = 1 << 18;
/// Elements that are compared at a time.
const COMPARED: usize = 1 << 18;

/// All tensors of a folder.
pub(super) struct TensorFiles {
    shards: Vec<WeightFile>,
    tensors: StoredTensors,
    /// What to call the place in messages.
    place: PathBuf,
}

impl TensorFiles {
    /// The files of a folder whose headers go with these parameters, and what was done to names.
    pub fn checked(folder: &Path, list: &ParameterList) -> Result<(Self, Vec<String>)> {
        let mut files = Self::open(folder)?;
        let (tensors, notes) = names::translated(std::mem::take(&mut files.tensors), list, &files.place)?;
        files.tensors = tensors;
        files.check_blocks(list)?;
        for (_, spec) in list.iter() {
            files.check(spec)?;
        }
        files.refuse_unexpected(list)?;
        Ok((files, notes))
    }

    fn open(folder: &Path) -> Result<Self> {
        let (single, index) = (folder.join(SINGLE), folder.join(INDEX));
        if single.exists() {
            let mut files = TensorFiles { shards: Vec::new(), tensors: BTreeMap::new(), place: single.clone() };
            files.add(single)?;
            return Ok(files);
        }
        if !index.exists() {
            if let Some(file) = pickled(folder) {
                return Err(ModelError::Weights(format!(
                    "{} holds weights as PyTorch pickles them, which is not read: convert them to safetensors, as \
                     transformers does when it loads the model and saves it again by save_pretrained",
                    file.display()
                ))
                .into());
            }
            return Err(unreadable(&single, format!("no such file, and no {INDEX} beside it")));
        }
        Self::open_index(folder, index)
    }

    fn open_index(folder: &Path, index: PathBuf) -> Result<Self> {
        let wrong = |reason: String| -> Error {
            ModelError::Weights(format!("{} is not a valid index: {reason}", index.display())).into()
        };
        let text = files::read_text(&index)?;
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
            let absent = |name: &&&str| files.tensors.get(**name).is_none_or(|tensor| tensor.shard != current);
            if let Some(name) = tensors.iter().find(absent) {
                return Err(wrong(format!("it says that {name} is in {file}, which does not hold it")));
            }
        }
        Ok(files)
    }

    fn add(&mut self, path: PathBuf) -> Result<()> {
        let (shard, metadata) = WeightFile::open(path)?;
        for (name, info) in metadata.tensors() {
            let tensor = StoredTensor { shard: self.shards.len(), info: info.clone(), halves_swapped: false };
            if let Some(other) = self.tensors.insert(name.clone(), tensor) {
                let other = &self.shards[other.shard].path;
                return Err(invalid(&shard.path, format!("it holds {name}, which {} holds too", other.display())));
            }
        }
        self.shards.push(shard);
        Ok(())
    }

    /// Refuses another number of blocks, which is what is wrong where many tensors are missing or left over.
    fn check_blocks(&self, list: &ParameterList) -> Result<()> {
        let index =
            |name: &str| name.strip_prefix("model.layers.")?.strip_suffix(".input_layernorm.weight")?.parse().ok();
        let last: Option<usize> = self.tensors.keys().filter_map(|name| index(name)).max();
        let (layers, depth) = (list.layers.len(), list.mtp.len());
        match last {
            Some(last) if last != layers + depth - 1 => Err(self.refuse(format!(
                "has {} blocks, config.json asks for {layers} (num_hidden_layers) and {depth} \
                 (num_nextn_predict_layers): correct config.json, or use the weights that it belongs to",
                last.saturating_add(1)
            ))),
            _ => Ok(()),
        }
    }

    fn check(&self, spec: &ParameterSpec) -> Result<()> {
        let ParameterSpec { name, shape, .. } = spec;
        let Some(StoredTensor { info, .. }) = self.tensors.get(name) else { return Err(self.missing(spec)) };
        if !is_float(info.dtype) {
            // Before the shape, which packing changes too.
            return Err(self.refuse(format!(
                "holds tensor {name} of dtype {:?}, expected F32, BF16, F16 or F64: quantised weights are not \
                 supported, dequantise the checkpoint first",
                info.dtype
            )));
        }
        if info.shape != *shape {
            return Err(self.refuse(format!(
                "holds tensor {name} of shape {:?}, expected {shape:?} from config.json: correct config.json, or use \
                 the weights that it belongs to",
                info.shape
            )));
        }
        Ok(())
    }

    fn missing(&self, ParameterSpec { name, shape, .. }: &ParameterSpec) -> Error {
        let stem = name.strip_suffix("weight").unwrap_or(name);
        let is_quantised =
            ["qweight", "weight_packed"].iter().any(|part| self.tensors.contains_key(&format!("{stem}{part}")));
        let fix = match name.as_str() {
            HEAD => {
                "if the output layer is the embedding, set tie_word_embeddings to true in config.json; if not, the \
                 output layer was left out when the file was written: write it again with it"
            }
            _ if is_quantised => "quantised weights are not supported, dequantise the checkpoint first",
            _ => "correct config.json, or use the weights that it belongs to",
        };
        self.refuse(format!("has no tensor {name}: config.json asks for one of shape {shape:?}; {fix}"))
    }

    fn refuse(&self, what: String) -> Error {
        ModelError::Weights(format!("{} {what}", self.place.display())).into()
    }

    /// Refuses tensors that no parameter takes, except copies, and those that transformers skips without a change of
    /// numbers.
    fn refuse_unexpected(&self, list: &ParameterList) -> Result<()> {
        let taken: HashSet<&str> = list.iter().map(|(_, spec)| spec.name.as_str()).collect();
        let copies = copies(list);
        let known = |name: &str| {
            taken.contains(name) || name.ends_with("rotary_emb.inv_freq") || copies.iter().any(|(copy, _)| copy == name)
        };
        let rest: Vec<&str> = self.tensors.keys().map(String::as_str).filter(|name| !known(name)).collect();
        if rest.is_empty() {
            return Ok(());
        }
        let shown = rest.iter().take(4).copied().collect::<Vec<_>>().join(", ");
        let more = rest.len().saturating_sub(4);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Err(self.refuse(format!(
            "has tensors that config.json has no use for: {shown}{more}; the two are not of the same model"
        )))
    }

    /// Refuses copies that differ from what they should be copies of.
    pub fn check_copies(&mut self, list: &ParameterList) -> Result<()> {
        for (copy, of) in copies(list) {
            if self.tensors.contains_key(&copy) && !self.equal(&copy, of)? {
                let fix = match copy.as_str() {
                    HEAD => format!("config.json ties them: set tie_word_embeddings to false, or remove {HEAD}"),
                    _ => "multi-token prediction shares it with the model: remove one of them".to_string(),
                };
                return Err(self.refuse(format!("holds {copy}, which differs from {of}, but {fix}")));
            }
        }
        Ok(())
    }

    /// Whether two tensors hold the same numbers.
    fn equal(&mut self, first: &str, second: &str) -> Result<bool> {
        let info = |name: &str| self.tensors.get(name).map(|tensor| &tensor.info);
        let Some((a, b)) = info(first).zip(info(second)) else { return Ok(false) };
        if a.shape != b.shape || !is_float(a.dtype) || !is_float(b.dtype) {
            return Ok(false);
        }
        // The safetensors crate has checked the product.
        let elements: usize = a.shape.iter().product();
        for start in (0..elements).step_by(COMPARED) {
            let range = start..elements.min(start + COMPARED);
            if self.elements::<f64>(first, range.clone())? != self.elements::<f64>(second, range)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// All elements of a tensor that was checked.
    pub fn values<T: Float>(&mut self, spec: &ParameterSpec) -> Result<Vec<T>> {
        let mut values = self.elements(&spec.name, 0..spec.len())?;
        if self.tensors.get(&spec.name).is_some_and(|tensor| tensor.halves_swapped)
            && let [_, columns] = spec.shape[..]
        {
            values.chunks_mut(columns).for_each(|row| row.rotate_left(columns / 2));
        }
        Ok(values)
    }

    /// Some elements of a tensor, in the file's order.
    fn elements<T: Float>(&mut self, name: &str, range: Range<usize>) -> Result<Vec<T>> {
        let Some(StoredTensor { shard, info, .. }) = self.tensors.get(name) else {
            return Err(self.refuse(format!("has no tensor {name}")));
        };
        let size = info.dtype.bitsize() / 8;
        let mut values = Vec::with_capacity(range.len());
        for start in range.clone().step_by(BLOCK) {
            let end = range.end.min(start + BLOCK);
            let bytes = self.shards[*shard].bytes(info, start * size..end * size)?;
            decode(&bytes, info.dtype, &mut values);
        }
        Ok(values)
    }
}

/// A file of weights in PyTorch's own format, the first by name.
fn pickled(folder: &Path) -> Option<PathBuf> {
    let is_one = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("pytorch_model") && name.ends_with(".bin")
    };
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).filter(is_one).min()
}

/// Tensors that a file may hold again, and what they are copies of.
fn copies(list: &ParameterList) -> Vec<(String, &'static str)> {
    let head = if list.head.is_some() { HEAD } else { EMBEDDING };
    let depth = |index| {
        let block = format!("model.layers.{}", list.layers.len() + index);
        [(format!("{block}.embed_tokens.weight"), EMBEDDING), (format!("{block}.shared_head.head.weight"), head)]
    };
    let tied = list.head.is_none().then(|| (HEAD.to_string(), EMBEDDING));
    tied.into_iter().chain((0..list.mtp.len()).flat_map(depth)).collect()
}
