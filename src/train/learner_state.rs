//! What training changes: master weights, optimizer state and gradients. Compiled once per device.

use std::borrow::Cow;
use std::sync::Arc;

use crate::comm::Sum;
use crate::error::{DataError, Result, SupportError};
use crate::handler::HandlerRef;
use crate::model::inputs::{DynInputs, InputsRef};
use crate::model::{DynModel, Gradients, Master, Moments, mtp};
use crate::ops::Ops;
use crate::ops::optimizer::{AdamwOptions, AdamwState, StepNumbers};
use crate::order::{DealOf, DynPlacement, Grouped};
use crate::solve::schedule::{MicroBatch, Scheduler};
use crate::tensor::{Device, Matrix, MatrixMut, Recording};
use crate::train::data::TokenBatch;

/// Sequences that run at once, and where their tokens are.
type PlacedBatch<'a> = (Cow<'a, TokenBatch>, Arc<DynPlacement>);

/// What a learner has besides its model and its handler.
pub(super) struct LearnerState<D: Device> {
    options: AdamwOptions,
    master: Master<D>,
    mean: Moments<D>,
    square: Moments<D>,
    gradients: Gradients<D>,
    step: u64,
    /// In which order gradients are summed over ranks.
    sum: Sum,
    /// Cuts batches into micro-batches whose documents have ranks of their own.
    scheduler: Option<Scheduler>,
    /// Micro-batches since the last update.
    micro_batches: usize,
    /// Sums of the losses of the batch that was accumulated last.
    sums: Vec<f64>,
    /// The latest micro-batch, on a device that records.
    repeated: Option<Repeated<D>>,
}

/// A micro-batch whose passes come again with other tokens.
struct Repeated<D: Device> {
    inputs: DynInputs<D>,
    scales: Vec<f64>,
    /// Of its losses, `[1, losses]`.
    sums: Matrix<f64, D::Storage>,
    recording: Recording,
}

impl<D: Device> Repeated<D> {
    fn is_of(&self, placement: &Arc<DynPlacement>, scales: &[f64]) -> bool {
        Arc::ptr_eq(self.inputs.tokens.placement(), placement) && self.scales == scales
    }
}

impl<D: Ops> LearnerState<D> {
    /// At the start, for a model made from `master`.
    pub(super) fn new(model: &DynModel<D>, master: Master<D>) -> Self {
        let list = master.list().clone();
        let moments = || Moments::<D>::zeros(model.device(), &list);
        LearnerState {
            options: AdamwOptions::default(),
            mean: moments(),
            square: moments(),
            gradients: model.zero_gradients(),
            master,
            step: 0,
            sum: Sum::default(),
            scheduler: None,
            micro_batches: 0,
            sums: Vec::new(),
            repeated: None,
        }
    }

    pub(super) fn set_options(&mut self, options: AdamwOptions) {
        self.options = options;
    }

    /// Batches are cut into the scheduler's micro-batches from now on; their order is [`Grouped`].
    pub(super) fn set_scheduler(&mut self, scheduler: &Scheduler) {
        self.scheduler = Some(scheduler.clone());
    }

    pub(super) fn cuts_steps(&self) -> bool {
        self.scheduler.is_some()
    }

    pub(super) fn micro_batches(&self) -> usize {
        self.micro_batches
    }

    pub(super) fn master(&self) -> &Master<D> {
        &self.master
    }

    pub(super) fn gradients(&self) -> &Gradients<D> {
        &self.gradients
    }

    /// Gradients are summed in this order from now on.
    pub(super) fn set_sum(&mut self, sum: Sum) {
        self.sum = sum;
    }

    /// Sums the accumulated gradient over ranks.
    pub(super) fn reduce_gradients(&mut self, handler: HandlerRef<'_, D>) -> Result<()> {
        handler.all_reduce_in(self.sum, "gradients", self.gradients.flat_mut())
    }

    /// What of a batch runs at once, one after another: all of it, or what the scheduler says. Each sequence is a
    /// document of its own under a packed layout.
    fn parts<'a>(
        &self,
        handler: HandlerRef<'_, D>,
        model: &DynModel<D>,
        batch: &'a TokenBatch,
    ) -> Result<Vec<PlacedBatch<'a>>> {
        let Some(scheduler) = &self.scheduler else {
            let shape = handler.layout().batch_of(&batch.lengths)?;
            return Ok(vec![(Cow::Borrowed(batch), handler.place_for(shape, &model.mask_weights())?)]);
        };
        let ranks = handler.ranks();
        let part = |micro: &MicroBatch| {
            let part = batch.select(micro.documents());
            let shape = handler.layout().batch_of(&part.lengths)?;
            let deal = Arc::new(DealOf::<Grouped>(micro.table(&*shape, ranks)?));
            Ok((Cow::Owned(part), handler.place_with(shape, deal)?))
        };
        scheduler.schedule(&batch.lengths, ranks)?.micro_batches.iter().map(part).collect()
    }

    /// Forward and backward of a batch; the sums of its losses.
    pub(super) fn accumulate_inputs(
        &mut self,
        handler: HandlerRef<'_, D>,
        model: &DynModel<D>,
        inputs: InputsRef<'_, D::Storage>,
        scales: &[f64],
    ) -> Result<&[f64]> {
        // Its memory is needed here.
        self.repeated = None;
        let mut sums = model.device().zero_matrix(1, scales.len());
        self.add_inputs(handler, model, inputs, scales, sums.view_mut())?;
        self.micro_batches += 1;
        self.sums.resize(scales.len(), 0.0);
        model.device().read_into(&sums, &mut self.sums)?;
        Ok(&self.sums)
    }

    /// The same, with sums `[1, losses]` on the device that are added to.
    fn add_inputs(
        &mut self,
        handler: HandlerRef<'_, D>,
        model: &DynModel<D>,
        inputs: InputsRef<'_, D::Storage>,
        scales: &[f64],
        mut sums: MatrixMut<'_, f64, D::Storage>,
    ) -> Result<()> {
        let (depth, given, gradients) = (model.config().mtp_depth, scales.len(), &mut self.gradients);
        if given != depth + 1 {
            return Err(SupportError::Numbers(format!(
                "the model predicts {depth} tokens beyond the next one, which makes {} losses, but counts or scales \
                 are given for {given}: pass one for each, such as those of `TokenBatch::counted_by_depth({depth})`",
                depth + 1
            ))
            .into());
        }
        let mut activations = model.forward(handler, inputs.tokens)?;
        let (labels, weights) = (inputs.labels, inputs.weights);
        let sum = sums.reborrow().column_range(0..1);
        let dhidden = model.add_loss_backward(&activations, labels, weights, scales[0], gradients, sum)?;
        if depth > 0 {
            let sums = sums.column_range(1..given);
            model.add_mtp_backward(handler, &mut activations, inputs, &scales[1..], gradients, sums)?;
        }
        model.backward(handler, activations, &dhidden, gradients)
    }

    /// [`LearnerState::add_inputs`] of tokens and labels on a device that records, where nothing is exchanged: passes
    /// that come again with the same shapes and scales are asked for at once.
    fn repeat_inputs(
        &mut self,
        handler: HandlerRef<'_, D>,
        model: &DynModel<D>,
        (batch, placement): PlacedBatch<'_>,
        scales: &[f64],
    ) -> Result<Vec<f64>> {
        let device = model.device();
        let mut repeated = match self.repeated.take().filter(|repeated| repeated.is_of(&placement, scales)) {
            Some(mut repeated) => {
                repeated.inputs.rewrite(handler, &batch.tokens, &batch.labels)?;
                repeated
            }
            None => Repeated {
                inputs: DynInputs::placed(handler, &placement, &batch.tokens, &batch.labels)?,
                scales: scales.to_vec(),
                sums: device.matrix(1, scales.len()),
                recording: Recording::default(),
            },
        };
        device.write(&vec![0.0; scales.len()], repeated.sums.view_mut());
        // What the passes would find out, should they not run.
        model.check_inputs(repeated.inputs.by_ref())?;
        let (inputs, sums) = (repeated.inputs.by_ref(), repeated.sums.view_mut());
        device.repeat(&mut repeated.recording, || self.add_inputs(handler, model, inputs, scales, sums))?;
        self.micro_batches += 1;
        let sums = device.read(&repeated.sums)?;
        self.repeated = Some(repeated);
        Ok(sums)
    }

    /// Forward and backward of a part of a step; the sums of its losses over ranks.
    pub(super) fn accumulate_depths(
        &mut self,
        handler: HandlerRef<'_, D>,
        model: &DynModel<D>,
        batch: &TokenBatch,
        labels_in_step: &[usize],
    ) -> Result<Vec<f64>> {
        let (device, scales) = (model.device(), mtp::scales(labels_in_step));
        let mut parts = self.parts(handler, model, batch)?;
        if device.records() && handler.ranks() == 1 && parts.len() == 1 {
            return self.repeat_inputs(handler, model, parts.remove(0), &scales);
        }
        // Its memory is needed here.
        self.repeated = None;
        let mut sums = device.zero_matrix(1, scales.len());
        for (part, placement) in parts {
            let inputs = DynInputs::placed(handler, &placement, &part.tokens, &part.labels)?;
            self.add_inputs(handler, model, inputs.by_ref(), &scales, sums.view_mut())?;
            self.micro_batches += 1;
        }
        handler.all_reduce("sum", sums.buffer_mut())?;
        device.read(&sums)
    }

    /// One step of AdamW with the accumulated gradient; its norm before clipping. All ranks have the same gradient by
    /// then, so that all of them fail or none.
    pub(super) fn update(&mut self, handler: HandlerRef<'_, D>, model: &mut DynModel<D>, lr: f64) -> Result<f64> {
        let device = model.device().clone();
        self.reduce_gradients(handler)?;
        let numbers = StepNumbers { lr, step: (self.step + 1) as f64, ..StepNumbers::default() };
        let mut numbers = device.upload(&numbers.to_array());
        device.sum_of_squares(self.gradients.flat(), &mut numbers);
        let decayed = self.master.list().decayed();
        model.update_with(|device, working| {
            let state = AdamwState {
                gradient: self.gradients.flat_mut(),
                weights: self.master.flat_mut(),
                mean: self.mean.flat_mut(),
                square: self.square.flat_mut(),
                working: working.flat_mut(),
            };
            device.adamw(&self.options, decayed, &mut numbers, state);
        });
        let mut found = [0.0; StepNumbers::LEN];
        device.read_into(&numbers, &mut found)?;
        let norm = found[StepNumbers::GRADIENT].sqrt();
        // Where it is not finite, the optimizer has changed nothing.
        DataError::check_finite(self.step + 1, DataError::GRADIENT, norm)?;
        self.step += 1;
        self.micro_batches = 0;
        // A rate that is too large for the type of the weights does what no gradient shows.
        DataError::check_finite(self.step, "the norm of the weights", found[StepNumbers::WEIGHTS].sqrt())?;
        device.seal();
        Ok(norm)
    }

    /// The sum over ranks of the losses of a batch.
    pub(super) fn evaluate(
        &mut self,
        handler: HandlerRef<'_, D>,
        model: &DynModel<D>,
        batch: &TokenBatch,
    ) -> Result<f64> {
        let device = model.device();
        // Its memory is needed here.
        self.repeated = None;
        let mut sum = device.zero_matrix(1, 1);
        for (part, placement) in self.parts(handler, model, batch)? {
            let inputs = DynInputs::placed(handler, &placement, &part.tokens, &part.labels)?;
            let activations = model.forward(handler, &inputs.tokens)?;
            model.add_loss_sum(&activations, &inputs.labels, &inputs.weights, sum.view_mut())?;
        }
        handler.all_reduce("sum", sum.buffer_mut())?;
        Ok(device.read(&sum)?[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comm::{Communicator, threads};
    use crate::degree::Runtime;
    use crate::handler::CpHandler;
    use crate::layout::Thd;
    use crate::model::inputs::Inputs;
    use crate::model::{Config, ParameterList, Sizes, init};
    use crate::strategy::Ring;
    use crate::tensor::Cpu;
    use crate::train::learner::GptLearner;
    use crate::train::trainer::Learner;

    #[test]
    fn a_step_that_is_not_finite_changes_no_weight_on_any_rank() {
        let sizes = Sizes { vocab_size: 16, hidden_size: 8, intermediate_size: 8, layers: 1, heads: 2, kv_heads: 2 };
        let config = Config::llama(sizes).unwrap();
        let batch = TokenBatch::next_token((0..8).collect(), 1, 8);
        // Of the loss, which only the rank that has label 7 sees, and of the rate, which all see.
        for (scale, lr, what) in [(f64::NAN, 1e-3, "the norm of the gradient"), (0.1, 1e300, "the norm of the weights")]
        {
            let found = threads::run(2, |comm| {
                let rank = comm.rank();
                let device = Cpu::<f32>::new(1);
                let handler = CpHandler::<Ring, Thd>::new(Ring::new(Runtime(2)), device.clone(), comm)?;
                let weights = init::fresh(&device, &config, &ParameterList::new(&config), 0)?;
                let mut learner = GptLearner::<Ring, Thd>::new(&config, weights, handler)?;
                let values = |learner: &GptLearner<Ring, Thd>| learner.master().flat().to_vec();
                let before = values(&learner);
                let shape = Arc::new(crate::layout::Packed::from_lengths(&batch.lengths)?);
                let inputs = Inputs::new(learner.handler(), shape, &batch.tokens, &batch.labels)?;
                learner.accumulate_inputs(&inputs, &[if rank == 1 { scale } else { 0.1 }])?;
                let error = learner.update(lr).unwrap_err();
                Ok((error, lr > 1.0 || before == values(&learner)))
            });
            for (error, is_kept) in found.unwrap() {
                let crate::error::Error::Data(DataError::Diverged { step: 1, what: found, .. }) = error else {
                    panic!("{error}")
                };
                assert_eq!((found, is_kept), (what, true));
            }
        }
    }
}
