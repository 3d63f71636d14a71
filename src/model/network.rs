//! The GPT without the types of strategy and layout: blocks of attention and MLP over a shard, forward and backward.
//! Compiled once per device.

use std::sync::{Arc, Mutex, PoisonError};

use crate::attention::RankPlan;
use crate::error::{ModelError, Result};
use crate::handler::{HandlerRef, RotaryTable};
use crate::kernel::DynKernel;
use crate::mask::Mask;
use crate::model::Config;
use crate::model::block::{Block, BlockActivations};
use crate::model::inputs::InputsRef;
use crate::model::layer::Layer;
use crate::model::mirrored::DynMirrored;
use crate::model::parameters::{Gradients, LayerIds, Master, ParameterId, Parameters};
use crate::ops::Ops;
use crate::ops::attention::AttentionShape;
use crate::order::DynPlacement;
use crate::rope::Rope;
use crate::tensor::{AccMatrix, ElemMatrix, ElemRef, Matrix};

/// A [`GptModel`](crate::model::GptModel) whose strategy and layout are those of the handler that it is run with.
pub struct DynModel<D: Ops> {
    device: D,
    config: Config,
    parameters: Parameters<D>,
    /// The output layer `[hidden, vocab]` where it is tied: the embedding table, transposed.
    tied: Option<ElemMatrix<D>>,
    rope: Rope,
    /// Mask of each layer.
    masks: Vec<Mask>,
    shape: AttentionShape,
    recompute: bool,
    kernel: &'static dyn DynKernel<D>,
    /// What the last backward pass has emptied.
    spare: Mutex<Layers<D>>,
}

/// What a forward pass leaves of each layer: lists that backward passes hand back to the model, so that the next
/// forward pass needs no others.
#[derive(Clone, Debug)]
struct Layers<D: Ops> {
    /// Layers with the same mask share one.
    plans: Vec<Arc<RankPlan>>,
    blocks: Vec<BlockActivations<D>>,
}

impl<D: Ops> Default for Layers<D> {
    fn default() -> Self {
        Layers { plans: Vec::new(), blocks: Vec::new() }
    }
}

/// What one forward pass leaves for the backward pass.
#[derive(Debug)]
pub struct DynActivations<D: Ops> {
    placement: Arc<DynPlacement>,
    tokens: Matrix<i64, D::Storage>,
    rotary: Arc<RotaryTable<D>>,
    layers: Layers<D>,
    /// Output of the last block.
    pub(super) last: ElemMatrix<D>,
    /// What the depths of multi-token prediction add to the gradient of `last`.
    pub(super) dlast: Option<ElemMatrix<D>>,
    reciprocal: AccMatrix<D>,
    hidden: ElemMatrix<D>,
}

impl<D: Ops> Clone for DynActivations<D> {
    fn clone(&self) -> Self {
        DynActivations {
            placement: self.placement.clone(),
            tokens: self.tokens.clone(),
            rotary: self.rotary.clone(),
            layers: self.layers.clone(),
            last: self.last.clone(),
            dlast: self.dlast.clone(),
            reciprocal: self.reciprocal.clone(),
            hidden: self.hidden.clone(),
        }
    }
}

impl<D: Ops> DynActivations<D> {
    /// Features after the final norm, `[rows, hidden]`; what the output layer sees.
    pub fn hidden(&self) -> &ElemMatrix<D> {
        &self.hidden
    }

    /// Where the tokens are.
    pub fn placement(&self) -> &Arc<DynPlacement> {
        &self.placement
    }

    /// Cosines and sines for the tokens.
    pub(super) fn rotary(&self) -> &RotaryTable<D> {
        &self.rotary
    }

    /// The attention plan of each layer.
    pub fn plans(&self) -> &[Arc<RankPlan>] {
        &self.layers.plans
    }
}

impl<D: Ops> DynModel<D> {
    /// A model with these weights.
    ///
    /// # Errors
    /// If the configuration does not hold together, or the device does not compute its attention.
    pub fn from_parameters(
        device: D,
        config: &Config,
        parameters: Parameters<D>,
        kernel: &'static dyn DynKernel<D>,
    ) -> Result<Self> {
        config.check()?;
        let window = |window: &Option<usize>| window.map_or(Ok(Mask::Causal), Mask::sliding);
        let shape = AttentionShape {
            q_heads: config.heads,
            kv_heads: config.kv_heads,
            qk_dim: config.head_dim,
            v_dim: config.head_dim,
            scale: 1.0 / (config.head_dim as f64).sqrt(),
        };
        kernel.supports(&device, &shape)?;
        let mut model = DynModel {
            device,
            config: config.clone(),
            tied: None,
            rope: Rope::new(config.rope.clone())?,
            masks: config.windows.iter().map(window).collect::<Result<_, _>>()?,
            shape,
            recompute: false,
            parameters,
            kernel,
            spare: Mutex::default(),
        };
        model.refresh_tied();
        Ok(model)
    }

    /// A model whose weights are `master` rounded to the storage type.
    ///
    /// # Errors
    /// If the configuration does not hold together.
    pub fn from_master(
        device: D,
        config: &Config,
        master: &Master<D>,
        kernel: &'static dyn DynKernel<D>,
    ) -> Result<Self> {
        let parameters = master.working(&device);
        Self::from_parameters(device, config, parameters, kernel)
    }

    /// Whether the backward pass computes the inside of each block again, instead of keeping it: one forward pass
    /// more, about a tenth of the memory.
    pub fn with_recompute(mut self, recompute: bool) -> Self {
        self.recompute = recompute;
        self
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The weights.
    pub fn parameters(&self) -> &Parameters<D> {
        &self.parameters
    }

    /// Head counts and sizes of the attention calls.
    pub fn attention_shape(&self) -> &AttentionShape {
        &self.shape
    }

    /// The mask of each layer.
    pub fn masks(&self) -> &[Mask] {
        &self.masks
    }

    /// The masks without repetition, each with the number of layers that use it: what a placement is made for.
    pub fn mask_weights(&self) -> Vec<(Mask, u64)> {
        let mut weights: Vec<(Mask, u64)> = Vec::new();
        for mask in &self.masks {
            match weights.iter_mut().find(|(other, _)| other == mask) {
                Some((_, layers)) => *layers += 1,
                None => weights.push((mask.clone(), 1)),
            }
        }
        weights
    }

    /// Gradients of zero.
    pub fn zero_gradients(&self) -> Gradients<D> {
        Gradients::<D>::zeros(&self.device, self.parameters.list())
    }

    /// Takes over changed master weights.
    pub fn update(&mut self, master: &Master<D>) {
        self.update_with(|device, working| master.refresh(device, working));
    }

    /// Lets `change` write the weights.
    pub(crate) fn update_with(&mut self, change: impl FnOnce(&D, &mut Parameters<D>)) {
        change(&self.device, &mut self.parameters);
        self.refresh_tied();
    }

    fn refresh_tied(&mut self) {
        if self.parameters.list().head.is_some() {
            return;
        }
        let table = self.parameters.view(self.parameters.list().embedding);
        let tied = self.tied.get_or_insert_with(|| self.device.matrix(table.cols(), table.rows()));
        self.device.transpose(table, tied.view_mut());
    }

    /// The output layer, `[hidden, vocab]`.
    pub(super) fn head(&self) -> ElemRef<'_, D> {
        match (&self.tied, self.parameters.list().head) {
            (None, Some(head)) => self.parameters.view(head),
            (Some(tied), _) => tied.view(),
            (None, None) => unreachable!("a model without an output layer of its own has a tied one"),
        }
    }

    /// A block that runs on the tokens of a plan.
    pub(super) fn block<'a>(
        &'a self,
        ids: &'a LayerIds,
        handler: HandlerRef<'a, D>,
        plan: &'a RankPlan,
        rotary: &'a RotaryTable<D>,
    ) -> Block<'a, D> {
        let layer = Layer { device: &self.device, config: &self.config, ids, parameters: &self.parameters };
        Block { layer, handler, plan, rotary, kernel: self.kernel, shape: &self.shape, recompute: self.recompute }
    }

    /// Runs the blocks on this rank's tokens `[rows, 1]`.
    ///
    /// # Errors
    /// Heads that the handler's ranks cannot share out, ids outside the vocabulary, and failures of other ranks.
    pub fn forward(
        &self,
        handler: HandlerRef<'_, D>,
        tokens: &DynMirrored<i64, D::Storage>,
    ) -> Result<DynActivations<D>> {
        handler.strategy().heads_per_rank(self.shape.q_heads)?;
        self.check_tokens(tokens)?;
        let placement = tokens.placement().clone();
        let rotary = handler.rotary(&self.rope, &placement)?;
        let mut layers = std::mem::take(&mut *self.spare.lock().unwrap_or_else(PoisonError::into_inner));
        for mask in &self.masks {
            layers.plans.push(handler.plan(&placement, mask)?);
        }
        let (list, tokens) = (self.parameters.list(), tokens.matrix());
        let mut x = self.device.matrix(tokens.rows(), self.config.hidden_size);
        self.device.embed(self.parameters.view(list.embedding), tokens.view(), x.view_mut());
        for (layer, plan) in list.layers.iter().zip(&layers.plans) {
            let (y, block) = self.block(layer, handler, plan, &rotary).forward(x)?;
            layers.blocks.push(block);
            x = y;
        }
        let (hidden, reciprocal) = self.norm(x.view(), list.norm);
        let tokens = Matrix::new(self.device.duplicate(tokens.buffer()), tokens.rows(), 1);
        Ok(DynActivations { placement, tokens, rotary, layers, last: x, dlast: None, reciprocal, hidden })
    }

    /// Adds to `gradients` what comes through the blocks and the embedding, from the gradient of
    /// [`DynActivations::hidden`] and from what [`DynModel::mtp_backward`] left, if it was called. Gradients are this
    /// rank's summand; they are not yet summed over ranks.
    pub fn backward(
        &self,
        handler: HandlerRef<'_, D>,
        mut activations: DynActivations<D>,
        dhidden: &ElemMatrix<D>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let list = self.parameters.list();
        let (has, layers) = (activations.layers.blocks.len(), list.layers.len());
        if has != layers {
            return Err(ModelError::OtherModel { activations: has, layers }.into());
        }
        let (last, reciprocal, dlast) = (&activations.last, &activations.reciprocal, activations.dlast.take());
        let mut dx = self.final_norm_backward(list.norm, last, reciprocal, dhidden, dlast, gradients);
        let Layers { plans, blocks } = &mut activations.layers;
        let parts = list.layers.iter().zip(&*plans).zip(blocks.drain(..));
        for ((layer, plan), block) in parts.rev() {
            self.block(layer, handler, plan, &activations.rotary).backward(block, &mut dx, gradients)?;
        }
        plans.clear();
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = activations.layers;
        let padding = self.config.pad_token_id.map(|id| id as i64);
        let table = gradients.view_mut(list.embedding);
        self.device.embed_backward(activations.tokens.view(), dx.view(), padding, table);
        Ok(())
    }

    /// A norm of rows, and its reciprocal root mean squares.
    pub(super) fn norm(&self, x: ElemRef<'_, D>, weight: ParameterId) -> (ElemMatrix<D>, AccMatrix<D>) {
        let (mut y, mut reciprocal) = (self.device.matrix(x.rows(), x.cols()), self.device.matrix(x.rows(), 1));
        let (weight, eps) = (self.parameters.view(weight), self.config.rms_norm_eps);
        self.device.rms_norm(x, weight, 1, eps, y.view_mut(), reciprocal.view_mut());
        (y, reciprocal)
    }

    /// The gradient of the input `x` of a norm before the output layer: what comes through the norm, and `dx` if
    /// something else uses `x` too.
    pub(super) fn final_norm_backward(
        &self,
        norm: ParameterId,
        x: &ElemMatrix<D>,
        reciprocal: &AccMatrix<D>,
        dy: &ElemMatrix<D>,
        dx: Option<ElemMatrix<D>>,
        gradients: &mut Gradients<D>,
    ) -> ElemMatrix<D> {
        let accumulate = dx.is_some();
        let mut dx = dx.unwrap_or_else(|| self.device.matrix(x.rows(), x.cols()));
        let (x, dy, reciprocal) = (x.view(), dy.view(), reciprocal.view());
        let (weight, dweight) = (self.parameters.view(norm), gradients.view_mut(norm));
        self.device.rms_norm_backward(x, weight, reciprocal, dy, dx.view_mut(), accumulate, dweight);
        dx
    }

    /// Refuses what the forward pass and the loss would refuse of a batch.
    pub(crate) fn check_inputs(&self, inputs: InputsRef<'_, D::Storage>) -> Result<()> {
        self.check_tokens(inputs.tokens)?;
        self.check_labels(inputs.tokens.placement(), inputs.labels, inputs.weights)
    }

    pub(super) fn check_tokens(&self, tokens: &DynMirrored<i64, D::Storage>) -> Result<()> {
        let vocab = self.config.vocab_size;
        let ids = tokens.values(&self.device)?;
        let Some(row) = ids.iter().position(|id| !(0..vocab as i64).contains(id)) else { return Ok(()) };
        let placement = tokens.placement();
        let local = (0..ids.len()).find(|&local| placement.row_of(placement.rank(), local) == row).unwrap_or(row);
        let token = placement.token_of(placement.rank(), local);
        let sequence = placement.batch().document_of(token);
        let position = token - placement.batch().document(sequence).start;
        Err(ModelError::Token { token: ids[row], sequence, position, vocab }.into())
    }
}
