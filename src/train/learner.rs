//! A GPT that learns: the model, its optimizer state and the handler of one rank.

use std::sync::Arc;

use crate::comm::{Collectives, Communicator};
use crate::error::{Result, SupportError};
use crate::handler::CpHandler;
use crate::layout::Layout;
use crate::model::inputs::Inputs;
use crate::model::{Config, GptModel, Gradients, Master, Moments, ParameterList, mtp};
use crate::ops::Ops;
use crate::ops::optimizer::AdamwStep;
use crate::strategy::{CpStrategy, Kernel, Supports};
use crate::tensor::{AccMatrix, Buffer, Device, Storage};
use crate::train::data::TokenBatch;
use crate::train::trainer::Learner;

/// AdamW's constants and the bound on the gradient's norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwOptions {
    /// Decay of the mean.
    pub beta1: f64,
    /// Decay of the mean square.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub eps: f64,
    /// Decoupled decay, of parameters with two or more dimensions.
    pub weight_decay: f64,
    /// The gradient is scaled down to this norm; 0 for no bound.
    pub clip: f64,
}

impl Default for AdamwOptions {
    /// The constants of GPT-3 (Brown et al. 2020).
    fn default() -> Self {
        AdamwOptions { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, clip: 1.0 }
    }
}

/// One rank's model in training.
///
/// Master weights, gradients and optimizer state are held in the accumulation type, on every rank alike; what is
/// split over ranks is the sequence. Gradients are summed over ranks once per step, in rank order, so every rank
/// makes the same step to the last bit.
pub struct GptLearner<H: CpStrategy, L: Layout, K, D: Device, C> {
    model: GptModel<H, L, K, D>,
    handler: CpHandler<H, L, C>,
    options: AdamwOptions,
    master: Master<D>,
    mean: Moments<D>,
    square: Moments<D>,
    gradients: Gradients<D>,
    step: u64,
}

impl<H, L, K, D, C> GptLearner<H, L, K, D, C>
where
    H: Supports<L, K>,
    L: Layout,
    K: Kernel,
    D: Ops,
    C: Communicator<D::Storage>,
{
    /// A learner that starts from `master`.
    ///
    /// # Errors
    /// What [`GptModel::from_master`] refuses, and heads that the handler's ranks cannot share out.
    pub fn new(
        device: D,
        config: &Config,
        master: Master<D>,
        handler: CpHandler<H, L, C>,
        options: AdamwOptions,
        recompute: bool,
    ) -> Result<Self> {
        handler.strategy().heads_per_rank(config.heads)?;
        let list: Arc<ParameterList> = master.list().clone();
        let model = GptModel::from_master(device.clone(), config, &master)?.with_recompute(recompute);
        let moments = || Moments::<D>::zeros(&device, &list);
        Ok(GptLearner {
            mean: moments(),
            square: moments(),
            gradients: model.zero_gradients(),
            model,
            handler,
            options,
            master,
            step: 0,
        })
    }

    /// The model.
    pub fn model(&self) -> &GptModel<H, L, K, D> {
        &self.model
    }

    /// The handler.
    pub fn handler(&self) -> &CpHandler<H, L, C> {
        &self.handler
    }

    /// The weights, in the accumulation type.
    pub fn master(&self) -> &Master<D> {
        &self.master
    }

    /// The gradient as it was accumulated so far on this rank.
    pub fn gradients(&self) -> &Gradients<D> {
        &self.gradients
    }

    /// Sums the accumulated gradient over ranks, in rank order; once per step.
    pub fn reduce_gradients(&mut self) -> Result<()> {
        if self.handler.ranks() == 1 {
            return Ok(());
        }
        let device = self.model.device();
        let mut flat: Buffer<D::Acc, D::Storage> = device.empty(self.gradients.list().elements());
        let mut at = 0;
        for value in self.gradients.values() {
            D::Storage::write(&mut flat, at, value.buffer());
            at += value.buffer().len();
        }
        self.handler.comm().all_reduce(&mut flat)?;
        at = 0;
        for value in self.gradients.values_mut() {
            let len = value.buffer().len();
            let part = D::Storage::part(&flat, at..at + len);
            D::Storage::write(value.buffer_mut(), 0, &part);
            at += len;
        }
        Ok(())
    }

    /// Inputs of `[B, S]` ids, each sequence a document of its own under a packed layout.
    fn inputs(&self, batch: &TokenBatch) -> Result<Inputs<H, L, D>> {
        let shape = Arc::new(L::batch_of(&vec![batch.seq; batch.batch])?);
        let placement = self.handler.place_for(shape, &self.model.mask_weights())?;
        Inputs::placed(&self.handler, self.model.device(), &placement, &batch.tokens, &batch.labels)
    }

    /// Forward and backward of a batch: adds the gradient of the sum of `scale * sum of the losses` of this rank's
    /// labels over the main loss and each depth of multi-token prediction, and returns the sums of the losses, in
    /// this order. Nothing is summed over ranks yet.
    ///
    /// # Errors
    /// If there is not a scale for each loss; what the model returns.
    pub fn accumulate_inputs(&mut self, inputs: &Inputs<H, L, D>, scales: &[f64]) -> Result<Vec<f64>> {
        let (model, handler, gradients) = (&self.model, &self.handler, &mut self.gradients);
        let (depth, given) = (model.config().mtp_depth, scales.len());
        if given != depth + 1 {
            return Err(SupportError::Numbers(format!(
                "the model predicts {depth} tokens beyond the next one, which makes {} losses, but counts or scales \
                 are given for {given}: pass one for each, such as those of `TokenBatch::counted_by_depth({depth})`",
                depth + 1
            ))
            .into());
        }
        let mut activations = model.forward(handler, &inputs.tokens)?;
        let (labels, weights) = (&inputs.labels, &inputs.weights);
        let (sum, dhidden) = model.loss_backward(&activations, labels, weights, scales[0], gradients)?;
        let mut sums = vec![sum];
        if depth > 0 {
            sums.extend(model.mtp_backward(handler, &mut activations, inputs, &scales[1..], gradients)?);
        }
        model.backward(handler, activations, &dhidden, gradients)?;
        Ok(sums)
    }

    /// The sum of `value` over ranks.
    fn global(&self, value: f64) -> Result<f64> {
        global_sum(self.model.device(), self.handler.comm(), value)
    }
}

/// The sum of one number over ranks, in rank order.
pub fn global_sum<D: Device, C: Communicator<D::Storage> + ?Sized>(device: &D, comm: &C, value: f64) -> Result<f64> {
    Ok(global_sums(device, comm, &[value])?[0])
}

/// The sums of some numbers over ranks, in rank order, in one operation.
fn global_sums<D: Device, C: Communicator<D::Storage> + ?Sized>(
    device: &D,
    comm: &C,
    values: &[f64],
) -> Result<Vec<f64>> {
    let mut sums = device.upload(values);
    comm.all_reduce(&mut sums)?;
    Ok(device.download(&sums))
}

impl<H, L, K, D, C> Learner for GptLearner<H, L, K, D, C>
where
    H: Supports<L, K>,
    L: Layout,
    K: Kernel,
    D: Ops,
    C: Communicator<D::Storage>,
{
    fn mtp_depth(&self) -> usize {
        self.model.config().mtp_depth
    }

    fn accumulate_depths(&mut self, batch: &TokenBatch, labels_in_step: &[usize]) -> Result<Vec<f64>> {
        let inputs = self.inputs(batch)?;
        let sums = self.accumulate_inputs(&inputs, &mtp::scales(labels_in_step))?;
        global_sums(self.model.device(), self.handler.comm(), &sums)
    }

    fn update(&mut self, lr: f64) -> Result<f64> {
        self.reduce_gradients()?;
        let device = self.model.device().clone();
        let squares = |value: &AccMatrix<D>| device.sum_of_squares(value.buffer());
        let norm = self.gradients.values().iter().map(squares).sum::<f64>().sqrt();
        let AdamwOptions { beta1, beta2, eps, weight_decay, clip } = self.options;
        // PyTorch's `clip_grad_norm_`.
        let gradient_scale = if clip > 0.0 { (clip / (norm + 1e-6)).min(1.0) } else { 1.0 };
        self.step += 1;
        let list = self.gradients.list().clone();
        for (id, spec) in list.iter() {
            let weight_decay = if spec.decays() { weight_decay } else { 0.0 };
            let step = AdamwStep { lr, beta1, beta2, eps, weight_decay, step: self.step, gradient_scale };
            let (mean, square) = (&mut self.mean[id], &mut self.square[id]);
            device.adamw(&step, &self.gradients[id], &mut self.master[id], mean, square);
            device.clear(self.gradients[id].buffer_mut());
        }
        self.model.update(&self.master);
        device.seal();
        Ok(norm)
    }

    fn evaluate(&mut self, batch: &TokenBatch) -> Result<f64> {
        let inputs = self.inputs(batch)?;
        let activations = self.model.forward(&self.handler, &inputs.tokens)?;
        let sum = self.model.loss_sum(&activations, &inputs.labels, &inputs.weights)?;
        self.global(sum)
    }

    fn any(&mut self, flag: bool) -> Result<bool> {
        Ok(self.global(f64::from(u8::from(flag)))? > 0.0)
    }
}
