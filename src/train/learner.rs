//! A GPT that learns: the model, its optimizer state and the handler of one rank.

use std::borrow::Cow;
use std::sync::Arc;

use crate::comm::{Collectives, Communicator};
use crate::error::{Result, SupportError};
use crate::handler::CpHandler;
use crate::layout::Layout;
use crate::model::inputs::Inputs;
use crate::model::{Config, GptModel, Gradients, Master, Moments, ParameterList, mtp};
use crate::ops::Ops;
use crate::ops::optimizer::AdamwStep;
use crate::order::{Grouped, Placement, TokenOrder};
use crate::plan::schedule::{MicroBatch, Scheduler};
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

/// Cuts batches into micro-batches whose documents have ranks of their own.
struct Cutter<H: CpStrategy, L: Layout> {
    scheduler: Scheduler,
    table: TableOf<H, L>,
}

/// Where the tokens of a micro-batch are, on so many ranks: [`MicroBatch::table`], for orders that have it.
type TableOf<H, L> =
    fn(&MicroBatch, &<L as Layout>::Batch, usize) -> Result<<<H as CpStrategy>::Order as TokenOrder>::Table>;

/// Sequences that run at once, and where their tokens are.
type Part<'a, H, L> = (Cow<'a, TokenBatch>, Arc<Placement<<H as CpStrategy>::Order, L>>);

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
    cutter: Option<Cutter<H, L>>,
    /// Micro-batches since the last update.
    micro_batches: usize,
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
            cutter: None,
            micro_batches: 0,
        })
    }

    /// Cuts every batch into the scheduler's micro-batches ([`crate::plan::schedule`]): each document on ranks of its
    /// own, none of which gets more tokens at once than it may. Every rank passes a scheduler of the same limit, and
    /// finds the same without communication. Losses and gradients are those of the whole batch.
    pub fn with_schedule(mut self, scheduler: &Scheduler) -> Self
    where
        H: CpStrategy<Order = Grouped>,
    {
        self.cutter = Some(Cutter { scheduler: scheduler.clone(), table: MicroBatch::table::<L::Batch> });
        self
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

    /// What of a batch runs at once, one after another: all of it, or what the scheduler says. Each sequence is a
    /// document of its own under a packed layout.
    fn parts<'a>(&self, batch: &'a TokenBatch) -> Result<Vec<Part<'a, H, L>>> {
        let Some(Cutter { scheduler, table }) = &self.cutter else {
            let shape = Arc::new(L::batch_of(&batch.lengths)?);
            let placement = self.handler.place_for(shape, &self.model.mask_weights())?;
            return Ok(vec![(Cow::Borrowed(batch), placement)]);
        };
        let ranks = self.handler.ranks();
        let part = |micro: &MicroBatch| {
            let part = batch.select(micro.documents());
            let shape = Arc::new(L::batch_of(&part.lengths)?);
            let table = table(micro, &shape, ranks)?;
            Ok((Cow::Owned(part), self.handler.place_with(shape, table)?))
        };
        scheduler.schedule(&batch.lengths, ranks)?.micro_batches.iter().map(part).collect()
    }

    fn inputs(&self, (batch, placement): &Part<H, L>) -> Result<Inputs<H, L, D>> {
        Inputs::placed(&self.handler, self.model.device(), placement, &batch.tokens, &batch.labels)
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
        self.micro_batches += 1;
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

    fn cuts_steps(&self) -> bool {
        self.cutter.is_some()
    }

    fn micro_batches(&self) -> usize {
        self.micro_batches
    }

    fn accumulate_depths(&mut self, batch: &TokenBatch, labels_in_step: &[usize]) -> Result<Vec<f64>> {
        let mut sums = vec![0.0; labels_in_step.len()];
        for part in self.parts(batch)? {
            let inputs = self.inputs(&part)?;
            let losses = self.accumulate_inputs(&inputs, &mtp::scales(labels_in_step))?;
            sums.iter_mut().zip(losses).for_each(|(sum, loss)| *sum += loss);
        }
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
        self.micro_batches = 0;
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
        let mut sum = 0.0;
        for part in self.parts(batch)? {
            let inputs = self.inputs(&part)?;
            let activations = self.model.forward(&self.handler, &inputs.tokens)?;
            sum += self.model.loss_sum(&activations, &inputs.labels, &inputs.weights)?;
        }
        self.global(sum)
    }

    fn any(&mut self, flag: bool) -> Result<bool> {
        Ok(self.global(f64::from(u8::from(flag)))? > 0.0)
    }
}
