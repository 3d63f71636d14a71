//! Names of tensors as other programs write them, translated to those of parameters.

use std::path::Path;

use super::tensor::{EMBEDDING, HEAD, StoredTensor, StoredTensors};
use crate::error::{ModelError, Result};
use crate::model::parameters::ParameterList;

/// Parts of names that stand for wrappers of PyTorch: data parallelism, compilation, sharding, recomputation.
const WRAPPERS: [&str; 4] = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// What every name but the output layer's begins with.
const MODEL: &str = "model.";

/// What the names of tensors begin with after that.
const INNER: [&str; 4] = ["embed_tokens.", "layers.", "mtp.", "norm."];
/// Every model has this tensor once.
const ANCHOR: &str = "layers.0.input_layernorm.weight";

/// Translates all names, and says what was done in a sentence each. Names that need nothing stay as they are.
///
/// # Errors
/// Two tensors of one name.
pub(super) fn translated(
    tensors: StoredTensors,
    list: &ParameterList,
    place: &Path,
) -> Result<(StoredTensors, Vec<String>)> {
    let mut notes = Vec::new();
    let mut note = |what: &str| notes.push(format!("{}: {what}", place.display()));
    let mut all = renamed(tensors, place, |name, _| {
        let parts = name.split('.').filter(|part| !WRAPPERS.contains(part));
        parts.collect::<Vec<_>>().join(".")
    })?;
    if all.changed {
        note("names of tensors are read without the parts that PyTorch's wrappers add, such as \"module.\"");
    }
    if let Some(front) = front(&all.tensors).filter(|front| front != MODEL) {
        all = renamed(all.tensors, place, |name, _| in_place_of(&front, name))?;
        note(&match front.as_str() {
            "" => format!("names of tensors are read with \"{MODEL}\" in front of them"),
            _ => format!("names of tensors are read with \"{MODEL}\" in place of \"{front}\""),
        });
    }
    if !list.mtp.is_empty() {
        all = renamed(all.tensors, place, |name, tensor| match mtp(name, list.layers.len()) {
            Some(newer) => {
                // The halves of this matrix were in the other order when the names were others.
                tensor.halves_swapped = newer.ends_with(".eh_proj.weight");
                newer
            }
            None => name.into(),
        })?;
        if all.changed {
            note("tensors of multi-token prediction have older names, which are read as today's");
        }
    }
    if list.head.is_none()
        && !all.tensors.contains_key(EMBEDDING)
        && let Some(head) = all.tensors.remove(HEAD)
    {
        all.tensors.insert(EMBEDDING.into(), head);
        note("the embedding is read from lm_head.weight, which config.json ties to it");
    }
    Ok((all.tensors, notes))
}

/// What the names of the model's inner tensors begin with, if they all can only begin with one thing.
fn front(tensors: &StoredTensors) -> Option<String> {
    fn front_of(name: &str) -> Option<&str> {
        name.strip_suffix(ANCHOR).filter(|front| front.is_empty() || front.ends_with('.'))
    }
    let mut fronts = tensors.keys().filter_map(|name| front_of(name));
    let first = fronts.next()?;
    fronts.next().is_none().then(|| first.into())
}

/// The name of one of them with [`MODEL`] in place of `front`. That of the output layer may have a part of it or
/// nothing in front.
fn in_place_of(front: &str, name: &str) -> String {
    if name.strip_suffix(HEAD).is_some_and(|outer| front.starts_with(outer)) {
        return HEAD.into();
    }
    let inner = name.strip_prefix(front).filter(|inner| INNER.iter().any(|start| inner.starts_with(start)));
    inner.map_or(name.into(), |inner| format!("{MODEL}{inner}"))
}

struct Renamed {
    tensors: StoredTensors,
    changed: bool,
}

fn renamed(
    tensors: StoredTensors,
    place: &Path,
    mut rename: impl FnMut(&str, &mut StoredTensor) -> String,
) -> Result<Renamed> {
    let mut all = Renamed { tensors: StoredTensors::new(), changed: false };
    for (name, mut tensor) in tensors {
        let newer = rename(&name, &mut tensor);
        all.changed |= newer != name;
        if all.tensors.insert(newer.clone(), tensor).is_some() {
            return Err(ModelError::Weights(format!(
                "{} holds {newer} by two names, one of them {name}: remove one",
                place.display()
            ))
            .into());
        }
    }
    Ok(all)
}

/// Today's name of a tensor of multi-token prediction, `model.mtp.{k}.` in earlier versions of this program.
fn mtp(name: &str, layers: usize) -> Option<String> {
    let (depth, part) = name.strip_prefix("model.mtp.")?.split_once('.')?;
    let part = match part {
        "hidden_norm.weight" => "hnorm.weight",
        "embedding_norm.weight" => "enorm.weight",
        "norm.weight" => "shared_head.norm.weight",
        part => part,
    };
    Some(format!("model.layers.{}.{part}", layers.checked_add(depth.parse().ok()?)?))
}
