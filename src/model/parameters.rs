//! The parameters of a model: their fixed order, names, shapes in files and in memory, and sets of tensors over them.
//!
//! Files hold linear layers as `[out, in]`, memory holds them as `[in, out]`, which is what
//! [`crate::ops::matmul`] multiplies with. Vectors are `[n]` in files and `[1, n]` in memory; the embedding is
//! `[vocab, hidden]` in both.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Index, IndexMut};
use std::sync::Arc;

use super::config::Config;
use crate::error::{ModelError, Result};
use crate::ops::rows::Rows;
use crate::tensor::{Device, Element, Matrix, Storage};

mod builder;

use builder::Builder;

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
        Arc::new(ParameterList { specs: builder.into_specs(), embedding, layers, norm, head, mtp })
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
        self.specs.iter().fold(0, |sum, spec| sum.saturating_add(spec.len()))
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

/// Role of a [`ParameterSet`]: the copy that forward and backward read, in the storage type.
#[derive(Clone, Copy, Debug)]
pub enum WorkingRole {}
/// Role of a [`ParameterSet`]: the weights that the optimizer updates, in the accumulation type.
#[derive(Clone, Copy, Debug)]
pub enum MasterRole {}
/// Role of a [`ParameterSet`]: gradients, in the accumulation type.
#[derive(Clone, Copy, Debug)]
pub enum GradientRole {}
/// Role of a [`ParameterSet`]: running means of the optimizer, in the accumulation type.
#[derive(Clone, Copy, Debug)]
pub enum MomentRole {}

/// The working copy of the weights.
pub type Parameters<D> = ParameterSet<WorkingRole, <D as Device>::Elem, <D as Device>::Storage>;
/// The weights that the optimizer updates.
pub type Master<D> = ParameterSet<MasterRole, <D as Device>::Acc, <D as Device>::Storage>;
/// Gradients.
pub type Gradients<D> = ParameterSet<GradientRole, <D as Device>::Acc, <D as Device>::Storage>;
/// Running means of gradients or of their squares.
pub type Moments<D> = ParameterSet<MomentRole, <D as Device>::Acc, <D as Device>::Storage>;

/// One matrix per parameter of a list, in its memory shape. `R` says what the set is for, so that gradients cannot
/// be passed for weights.
pub struct ParameterSet<R, T, S> {
    list: Arc<ParameterList>,
    values: Vec<Matrix<T, S>>,
    role: PhantomData<fn() -> R>,
}

impl<R, T: Element, S: Storage> ParameterSet<R, T, S> {
    /// Every element zero.
    pub fn zeros<D: Device<Storage = S>>(device: &D, list: &Arc<ParameterList>) -> Self {
        let zero = |(_, spec): (_, &ParameterSpec)| {
            let (rows, cols) = spec.memory_shape();
            device.zero_matrix(rows, cols)
        };
        ParameterSet { values: list.iter().map(zero).collect(), list: list.clone(), role: PhantomData }
    }

    /// From host memory in file order: `values(id, spec)` gives each parameter's elements, `[out, in]` for linear
    /// layers. Parameters are asked for in the list's order.
    pub fn from_host<D: Device<Storage = S>>(
        device: &D,
        list: &Arc<ParameterList>,
        mut values: impl FnMut(ParameterId, &ParameterSpec) -> Result<Vec<T>>,
    ) -> Result<Self> {
        let matrix = |(id, spec): (ParameterId, &ParameterSpec)| {
            let host = values(id, spec)?;
            if host.len() != spec.len() {
                return Err(ModelError::Weights(format!(
                    "{}: {} elements, expected {} for shape {:?}",
                    spec.name,
                    host.len(),
                    spec.len(),
                    spec.shape
                ))
                .into());
            }
            let (rows, cols) = spec.memory_shape();
            // One copy beside the parameter at any time: the first is gone before the last is made.
            let memory = spec.to_memory(&host);
            drop(host);
            Ok(Matrix::new(device.upload(&memory), rows, cols))
        };
        let values = list.iter().map(matrix).collect::<Result<_>>()?;
        Ok(ParameterSet { values, list: list.clone(), role: PhantomData })
    }

    /// One parameter in host memory, in file order.
    pub fn to_host<D: Device<Storage = S>>(&self, device: &D, id: ParameterId) -> Vec<T> {
        self.list[id].to_file(&device.download(self[id].buffer()))
    }

    /// The list that this is a set over.
    pub fn list(&self) -> &Arc<ParameterList> {
        &self.list
    }

    /// The matrices, in the list's order.
    pub fn values(&self) -> &[Matrix<T, S>] {
        &self.values
    }

    /// The matrices, in the list's order.
    pub fn values_mut(&mut self) -> &mut [Matrix<T, S>] {
        &mut self.values
    }

    /// Two different parameters at once, such as the weight and the bias of a linear layer.
    ///
    /// # Panics
    /// If they are the same.
    pub fn pair_mut(&mut self, first: ParameterId, second: ParameterId) -> (&mut Matrix<T, S>, &mut Matrix<T, S>) {
        assert_ne!(first, second, "a parameter cannot be borrowed twice");
        let (low, high) = (first.0.min(second.0), first.0.max(second.0));
        let (left, right) = self.values.split_at_mut(high);
        match first.0 < second.0 {
            true => (&mut left[low], &mut right[0]),
            false => (&mut right[0], &mut left[low]),
        }
    }

    /// A copy.
    pub fn duplicate<D: Device<Storage = S>>(&self, device: &D) -> Self {
        let copy = |m: &Matrix<T, S>| Matrix::new(device.duplicate(m.buffer()), m.rows(), m.cols());
        ParameterSet { list: self.list.clone(), values: self.values.iter().map(copy).collect(), role: PhantomData }
    }
}

impl<T: Element, S: Storage> ParameterSet<MasterRole, T, S> {
    /// The working copy: every weight rounded to the storage type.
    pub fn working<D: Rows + Device<Acc = T, Storage = S>>(&self, device: &D) -> Parameters<D> {
        let values = self.values.iter().map(|value| device.to_elem_matrix(value)).collect();
        ParameterSet { list: self.list.clone(), values, role: PhantomData }
    }

    /// Brings a working copy up to date, after an optimizer step.
    pub fn refresh<D: Rows + Device<Acc = T, Storage = S>>(&self, device: &D, working: &mut Parameters<D>) {
        for (target, value) in working.values.iter_mut().zip(&self.values) {
            *target = device.to_elem_matrix(value);
        }
    }
}

impl<R, T, S> Index<ParameterId> for ParameterSet<R, T, S> {
    type Output = Matrix<T, S>;
    fn index(&self, id: ParameterId) -> &Matrix<T, S> {
        &self.values[id.0]
    }
}

impl<R, T, S> IndexMut<ParameterId> for ParameterSet<R, T, S> {
    fn index_mut(&mut self, id: ParameterId) -> &mut Matrix<T, S> {
        &mut self.values[id.0]
    }
}

impl<R, T: Element, S> fmt::Debug for ParameterSet<R, T, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ParameterSet<{}>[{} parameters]", T::DTYPE, self.values.len())
    }
}

#[cfg(test)]
mod tests;
