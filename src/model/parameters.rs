//! The parameters of a model: their fixed order, names, shapes in files and in memory, and sets of tensors over them.
//!
//! Files hold linear layers as `[out, in]`, memory holds them as `[in, out]`, which is what
//! [`crate::ops::matmul`] multiplies with. Vectors are `[n]` in files and `[1, n]` in memory; the embedding is
//! `[vocab, hidden]` in both. In memory all parameters are in one buffer, and layers that read the same (queries, keys
//! and values; gate and up) are columns of one matrix.

use std::ops::Index;
use std::sync::Arc;

use super::config::Config;

mod builder;
mod places;
mod set;

use builder::Builder;
use places::Places;
pub use places::StoredId;
pub use set::{
    GradientRole, Gradients, Master, MasterRole, MomentRole, Moments, ParameterSet, Parameters, WorkingRole,
};

/// What a parameter is for, which decides its layout, its initial values and whether weight decay applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The table of token embeddings, `[vocab, hidden]`.
    Embedding,
    /// A linear layer, `[out, in]` in files.
    Linear,
    /// A linear layer whose result is added to the residual stream (`o_proj`, `down_proj`), `[out, in]` in files.
    ResidualLinear,
    /// The bias of a linear layer, `[out]`.
    Bias,
    /// The weight of an RMSNorm, `[n]`.
    Norm,
}

/// One parameter.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ParameterSpec {
    /// Hugging Face's name.
    pub name: String,
    /// Shape in files.
    pub shape: Vec<usize>,
    /// What it is for.
    pub kind: Kind,
}

impl ParameterSpec {
    /// Number of elements.
    pub fn len(&self) -> usize {
        // Of a valid configuration it never saturates.
        self.shape.iter().fold(1, |len, &size| len.saturating_mul(size))
    }

    /// Whether it has no elements; no parameter of a valid configuration is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows and columns in memory.
    pub fn memory_shape(&self) -> (usize, usize) {
        match (self.is_transposed(), self.shape.as_slice()) {
            (true, &[out, inner]) => (inner, out),
            (false, &[rows, cols]) => (rows, cols),
            _ => (1, self.len()),
        }
    }

    /// Whether weight decay applies: to parameters of two or more dimensions.
    pub fn decays(&self) -> bool {
        self.shape.len() >= 2
    }

    /// From the order of elements in files to the order in memory.
    ///
    /// # Panics
    /// If `file` has another number of elements.
    pub fn to_memory<T: Copy>(&self, file: &[T]) -> Vec<T> {
        let (rows, cols) = self.memory_shape();
        self.reorder(file, cols, rows)
    }

    /// From the order of elements in memory to the order in files.
    ///
    /// # Panics
    /// If `memory` has another number of elements.
    pub fn to_file<T: Copy>(&self, memory: &[T]) -> Vec<T> {
        let (rows, cols) = self.memory_shape();
        self.reorder(memory, rows, cols)
    }

    fn is_transposed(&self) -> bool {
        matches!(self.kind, Kind::Linear | Kind::ResidualLinear)
    }

    /// Transposes `[rows, cols]` if the two orders differ.
    fn reorder<T: Copy>(&self, values: &[T], rows: usize, cols: usize) -> Vec<T> {
        assert_eq!(values.len(), self.len(), "{} has {} elements", self.name, self.len());
        match self.is_transposed() {
            true => (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect(),
            false => values.to_vec(),
        }
    }
}

/// Which parameter of a [`ParameterList`]; index of a [`ParameterSet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParameterId(pub(crate) usize);

impl ParameterId {
    /// Its place in the list.
    pub fn index(self) -> usize {
        self.0
    }
}

/// A linear layer's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearIds {
    /// The weight.
    pub weight: ParameterId,
    /// The bias, where the family has one.
    pub bias: Option<ParameterId>,
}

/// Linear layers of one input, side by side in one matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JoinedIds {
    /// The weights, `[in, sum of the outputs]`.
    pub weight: StoredId,
    /// The biases, `[1, sum of the outputs]`, if every layer has one. If only some have, each is apart.
    pub bias: Option<StoredId>,
}

/// The parameters of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerIds {
    /// Norm before attention.
    pub input_norm: ParameterId,
    /// Query projection.
    pub query: LinearIds,
    /// Key projection.
    pub key: LinearIds,
    /// Value projection.
    pub value: LinearIds,
    /// These three side by side.
    pub qkv: JoinedIds,
    /// Norms of the features of each query and each key head.
    pub head_norms: Option<(ParameterId, ParameterId)>,
    /// Output projection of attention.
    pub output: LinearIds,
    /// Norm before the MLP.
    pub mlp_norm: ParameterId,
    /// Gate projection, the one that SiLU is applied to.
    pub gate: LinearIds,
    /// Up projection.
    pub up: LinearIds,
    /// These two side by side.
    pub gate_up: JoinedIds,
    /// Down projection.
    pub down: LinearIds,
}

/// The parameters of one depth of multi-token prediction. Depth `k` from 0 of a model of `n` blocks is in files as the
/// block `model.layers.{n + k}.`, with `hnorm.weight`, `enorm.weight`, `eh_proj.weight` and `shared_head.norm.weight`
/// beside the block's own names, as in DeepSeek-V3; embedding and output layer are the model's and not written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MtpIds {
    /// Norm of the output of the depth before, `[hidden]`.
    pub hidden_norm: ParameterId,
    /// Norm of the embedding of a token further on, `[hidden]`.
    pub embedding_norm: ParameterId,
    /// From both, the embedding first, to the block's input: `[hidden, 2 hidden]` in files, without bias.
    pub projection: LinearIds,
    /// The block.
    pub layer: LayerIds,
    /// Norm before the output layer, which is the model's.
    pub norm: ParameterId,
}

/// The parameters of a configuration, in a fixed order: embedding, blocks from the first to the last, final norm,
/// output layer, depths of multi-token prediction. So the parameters of a model without these are the first ones of
/// the same model with them. Shared by all sets over it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterList {
    specs: Vec<ParameterSpec>,
    places: Places,
    /// The embedding table.
    pub embedding: ParameterId,
    /// Per block.
    pub layers: Vec<LayerIds>,
    /// The norm after the last block.
    pub norm: ParameterId,
    /// The output layer; none where it is tied to the embedding.
    pub head: Option<ParameterId>,
    /// Per depth of multi-token prediction.
    pub mtp: Vec<MtpIds>,
}

impl ParameterList {
    /// The parameters of `config`.
    pub fn new(config: &Config) -> Arc<Self> {
        let table = || vec![config.vocab_size, config.hidden_size];
        let mut builder = Builder::default();
        let embedding = builder.add("model.embed_tokens.weight".into(), table(), Kind::Embedding);
        let layers = (0..config.layers).map(|layer| builder.layer(config, &format!("model.layers.{layer}"))).collect();
        let norm = builder.norm("model.norm".into(), config.hidden_size);
        let head = (!config.tie_word_embeddings).then(|| builder.add("lm_head.weight".into(), table(), Kind::Linear));
        let mtp = (0..config.mtp_depth).map(|depth| builder.mtp(config, depth)).collect();
        let (specs, places) = builder.into_parts();
        Arc::new(ParameterList { specs, places, embedding, layers, norm, head, mtp })
    }

    /// Number of parameters (tensors).
    pub fn len(&self) -> usize {
        self.specs.len()
    }

    /// Whether there are none; a model always has some.
    pub fn is_empty(&self) -> bool {
        self.specs.is_empty()
    }

    /// Number of elements of all parameters.
    pub fn elements(&self) -> usize {
        self.places.elements()
    }

    /// Number of elements that weight decay applies to; in memory they are the first ones.
    pub fn decayed(&self) -> usize {
        self.places.decayed()
    }

    /// Handles, in order.
    pub fn ids(&self) -> impl Iterator<Item = ParameterId> + use<> {
        (0..self.specs.len()).map(ParameterId)
    }

    /// Handles with what they stand for, in order.
    pub fn iter(&self) -> impl Iterator<Item = (ParameterId, &ParameterSpec)> {
        self.specs.iter().enumerate().map(|(index, spec)| (ParameterId(index), spec))
    }

    /// The handle of a name.
    pub fn find(&self, name: &str) -> Option<ParameterId> {
        self.specs.iter().position(|spec| spec.name == name).map(ParameterId)
    }
}

impl Index<ParameterId> for ParameterList {
    type Output = ParameterSpec;
    fn index(&self, id: ParameterId) -> &ParameterSpec {
        &self.specs[id.0]
    }
}

#[cfg(test)]
mod tests;
