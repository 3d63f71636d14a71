//! Tensors of files, by name.

use std::collections::BTreeMap;

use safetensors::tensor::TensorInfo;

/// The file that holds all tensors.
pub(super) const SINGLE: &str = "model.safetensors";
/// Tensor of the output layer.
pub(super) const HEAD: &str = "lm_head.weight";
/// Tensor of the embedding.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";

/// One tensor.
pub(super) struct StoredTensor {
    /// Which file holds it.
    pub shard: usize,
    /// Type, shape and where it lies.
    pub info: TensorInfo,
    /// Whether the two halves of every row change places when it is read.
    pub halves_swapped: bool,
}

/// By name, in an order that does not change from run to run.
pub(super) type StoredTensors = BTreeMap<String, StoredTensor>;
