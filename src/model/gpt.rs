//! The GPT as a type: strategy, layout, kernel, device and architecture say what compiles; [`DynModel`] computes.

use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;

use crate::attention::RankPlan;
use crate::comm::Communicator;
use crate::error::Result;
use crate::handler::CpHandler;
use crate::heads::HeadExchange;
use crate::kernel::{Flash, Kernel, KernelOn, kernel_object};
use crate::layout::Layout;
use crate::mask::Mask;
use crate::model::architecture::{Architecture, FromConfig, HeadsFit};
use crate::model::inputs::Inputs;
use crate::model::mirrored::Mirrored;
use crate::model::network::{DynActivations, DynModel};
use crate::model::parameters::{Gradients, Master, ParameterList, Parameters};
use crate::model::{Config, init, weights};
use crate::ops::Ops;
use crate::ops::attention::AttentionShape;
use crate::order::Placement;
use crate::strategy::{CpStrategy, Supports};
use crate::tensor::{Cpu, Device, ElemMatrix};

/// A GPT for strategy `H`, layout `L`, attention kernel `K`, device (with storage type) `D` and architecture `A`.
///
/// `GptModel::<Ring, Thd>::new(..)` uses `Flash` on `Cpu<f32>`. A combination that is not in the support table does
/// not compile. The model does not hold the communicator: [`CpHandler`] does, and is passed to each call.
pub struct GptModel<H, L, K = Flash, D: Ops = Cpu<f32>, A = FromConfig> {
    data: DynModel<D>,
    types: PhantomData<(H, L, K, A)>,
}

/// What one forward pass leaves for the backward pass.
#[derive(Clone, Debug)]
pub struct Activations<H: CpStrategy, L: Layout, K: Kernel, D: Ops> {
    data: DynActivations<D>,
    placement: Arc<Placement<H::Order, L>>,
    kernel: PhantomData<K>,
}

impl<H: CpStrategy, L: Layout, K: Kernel, D: Ops> Activations<H, L, K, D> {
    /// Features after the final norm, `[rows, hidden]`; what the output layer sees.
    pub fn hidden(&self) -> &ElemMatrix<D> {
        self.data.hidden()
    }

    /// Where the tokens are.
    pub fn placement(&self) -> &Arc<Placement<H::Order, L>> {
        &self.placement
    }

    /// The attention plan of each layer; layers with the same mask share it.
    pub fn plans(&self) -> &[Arc<RankPlan>] {
        self.data.plans()
    }
}

impl<H, L, K, D, A> GptModel<H, L, K, D, A>
where
    K: KernelOn<D>,
    D: Ops,
{
    /// A model with fresh weights; the same for every strategy, layout and number of ranks.
    ///
    /// # Errors
    /// If the configuration does not fit the architecture `A`, has query heads that a degree which the type of `H` says
    /// does not divide, or has heads that the device does not compute.
    pub fn new(device: D, config: &Config, seed: u64) -> Result<Self>
    where
        H: Supports<L, K>,
        L: Layout,
        A: Architecture + HeadsFit<H>,
    {
        Self::check(config)?;
        let master = init::fresh(&device, config, &ParameterList::new(config), seed)?;
        Self::from_master(device, config, &master)
    }

    /// A model with the weights of a Hugging Face folder (`config.json` and safetensors).
    ///
    /// # Errors
    /// What cannot be read, and those of [`GptModel::new`].
    pub fn load(device: D, folder: &Path) -> Result<Self>
    where
        H: Supports<L, K>,
        L: Layout,
        A: Architecture + HeadsFit<H>,
    {
        let config = Config::read(folder)?;
        Self::check(&config)?;
        let parameters = weights::load(&device, folder, &ParameterList::new(&config))?;
        Self::from_parameters(device, &config, parameters)
    }

    /// A model whose weights are `master` rounded to the storage type.
    ///
    /// # Errors
    /// Those of [`GptModel::new`].
    pub fn from_master(device: D, config: &Config, master: &Master<D>) -> Result<Self>
    where
        H: Supports<L, K>,
        L: Layout,
        A: Architecture + HeadsFit<H>,
    {
        Self::check(config)?;
        Ok(Self::of(DynModel::from_master(device, config, master, kernel_object::<K, D>())?))
    }

    /// A model with these weights.
    ///
    /// # Errors
    /// Those of [`GptModel::new`].
    pub fn from_parameters(device: D, config: &Config, parameters: Parameters<D>) -> Result<Self>
    where
        H: Supports<L, K>,
        L: Layout,
        A: Architecture + HeadsFit<H>,
    {
        Self::check(config)?;
        Ok(Self::of(DynModel::from_parameters(device, config, parameters, kernel_object::<K, D>())?))
    }

    fn of(data: DynModel<D>) -> Self {
        GptModel { data, types: PhantomData }
    }

    /// Refuses a configuration that does not go with the model's types.
    fn check(config: &Config) -> Result<()>
    where
        H: CpStrategy,
        A: Architecture,
    {
        config.check()?;
        A::check(config)?;
        if let Some(ranks) = H::Heads::RANKS {
            H::Heads::heads_per_rank(H::NAME, config.heads, ranks)?;
        }
        Ok(())
    }

    /// Whether the backward pass computes the inside of each block again, instead of keeping it: one forward pass
    /// more, about a tenth of the memory.
    pub fn with_recompute(self, recompute: bool) -> Self {
        Self::of(self.data.with_recompute(recompute))
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        self.data.config()
    }

    /// The device.
    pub fn device(&self) -> &D {
        self.data.device()
    }

    /// The weights.
    pub fn parameters(&self) -> &Parameters<D> {
        self.data.parameters()
    }

    /// Head counts and sizes of the attention calls.
    pub fn attention_shape(&self) -> &AttentionShape {
        self.data.attention_shape()
    }

    /// The mask of each layer.
    pub fn masks(&self) -> &[Mask] {
        self.data.masks()
    }

    /// The masks without repetition, each with the number of layers that use it: what a placement is made for.
    pub fn mask_weights(&self) -> Vec<(Mask, u64)> {
        self.data.mask_weights()
    }

    /// Gradients of zero.
    pub fn zero_gradients(&self) -> Gradients<D> {
        self.data.zero_gradients()
    }

    /// Takes over changed master weights.
    pub fn update(&mut self, master: &Master<D>) {
        self.data.update(master);
    }

    /// The model without the types of strategy and layout.
    pub fn data(&self) -> &DynModel<D> {
        &self.data
    }

    /// The model without the types of strategy and layout.
    pub fn data_mut(&mut self) -> &mut DynModel<D> {
        &mut self.data
    }
}

/// Rows of the order of strategy `H` on device `D`.
type MirroredOf<H, L, T, D> = Mirrored<<H as CpStrategy>::Order, L, T, <D as Device>::Storage>;

impl<H, L, K, D, A> GptModel<H, L, K, D, A>
where
    H: Supports<L, K>,
    L: Layout,
    K: KernelOn<D>,
    D: Ops,
{
    /// Runs the blocks on this rank's tokens `[rows, 1]`.
    ///
    /// # Errors
    /// Heads that the handler's ranks cannot share out, ids outside the vocabulary, and failures of other ranks.
    pub fn forward<C: Communicator<D::Storage>>(
        &self,
        handler: &CpHandler<H, L, D, C>,
        tokens: &MirroredOf<H, L, i64, D>,
    ) -> Result<Activations<H, L, K, D>> {
        let data = self.data.forward(handler.by_ref(), tokens.data())?;
        Ok(Activations { data, placement: tokens.placement().clone(), kernel: PhantomData })
    }

    /// Adds to `gradients` what comes through the blocks and the embedding, from the gradient of
    /// [`Activations::hidden`] and from what [`GptModel::mtp_backward`] left, if it was called. Gradients are this
    /// rank's summand; they are not yet summed over ranks.
    ///
    /// # Errors
    /// Activations of a model with another number of layers, and failures of other ranks.
    pub fn backward<C: Communicator<D::Storage>>(
        &self,
        handler: &CpHandler<H, L, D, C>,
        activations: Activations<H, L, K, D>,
        dhidden: &ElemMatrix<D>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        self.data.backward(handler.by_ref(), activations.data, dhidden, gradients)
    }

    /// Logits of this rank's rows, `[rows, vocab]`.
    pub fn logits(&self, activations: &Activations<H, L, K, D>) -> ElemMatrix<D> {
        self.data.logits(&activations.data)
    }

    /// The sum over this rank's rows of `weight * -log softmax(logits)[label]`, in nats. `labels` and `weights` are
    /// `[rows, 1]`; a label whose weight is 0 may be anything.
    ///
    /// # Errors
    /// Shards of another placement, or a label that counts and is outside the vocabulary.
    pub fn loss_sum(
        &self,
        activations: &Activations<H, L, K, D>,
        labels: &MirroredOf<H, L, i64, D>,
        weights: &MirroredOf<H, L, f32, D>,
    ) -> Result<f64> {
        self.data.loss_sum(&activations.data, labels.data(), weights.data())
    }

    /// The same sum, with the gradient of `scale * sum`: that of [`Activations::hidden`] is returned, that of the
    /// output layer is added to `gradients`.
    ///
    /// # Errors
    /// Those of [`GptModel::loss_sum`].
    pub fn loss_backward(
        &self,
        activations: &Activations<H, L, K, D>,
        labels: &MirroredOf<H, L, i64, D>,
        weights: &MirroredOf<H, L, f32, D>,
        scale: f64,
        gradients: &mut Gradients<D>,
    ) -> Result<(f64, ElemMatrix<D>)> {
        self.data.loss_backward(&activations.data, labels.data(), weights.data(), scale, gradients)
    }

    /// Logits of each depth of multi-token prediction for this rank's rows, `[rows, vocab]`: depth `k` (from 1)
    /// predicts the label `k` rows further. Rows without such a label hold numbers that mean nothing.
    ///
    /// # Errors
    /// Inputs of another placement than the activations, ids outside the vocabulary, failures of other ranks.
    pub fn mtp_logits<C: Communicator<D::Storage>>(
        &self,
        handler: &CpHandler<H, L, D, C>,
        activations: &Activations<H, L, K, D>,
        inputs: &Inputs<H, L, D>,
    ) -> Result<Vec<ElemMatrix<D>>> {
        self.data.mtp_logits(handler.by_ref(), &activations.data, inputs.by_ref())
    }

    /// Of each depth, the sum of the losses of this rank's rows, in nats.
    ///
    /// # Errors
    /// Those of [`GptModel::mtp_logits`] and [`GptModel::loss_sum`].
    pub fn mtp_loss_sums<C: Communicator<D::Storage>>(
        &self,
        handler: &CpHandler<H, L, D, C>,
        activations: &Activations<H, L, K, D>,
        inputs: &Inputs<H, L, D>,
    ) -> Result<Vec<f64>> {
        self.data.mtp_loss_sums(handler.by_ref(), &activations.data, inputs.by_ref())
    }

    /// The same sums, with the gradient of `sum over k of scales[k - 1] * sum_k`. What goes to the weights of the
    /// depths, the output layer and the embedding is added to `gradients`; what goes to the last main block is left
    /// in `activations`, for [`GptModel::backward`].
    ///
    /// # Errors
    /// Those of [`GptModel::mtp_loss_sums`].
    ///
    /// # Panics
    /// If there is not a scale for each depth.
    pub fn mtp_backward<C: Communicator<D::Storage>>(
        &self,
        handler: &CpHandler<H, L, D, C>,
        activations: &mut Activations<H, L, K, D>,
        inputs: &Inputs<H, L, D>,
        scales: &[f64],
        gradients: &mut Gradients<D>,
    ) -> Result<Vec<f64>> {
        self.data.mtp_backward(handler.by_ref(), &mut activations.data, inputs.by_ref(), scales, gradients)
    }
}
