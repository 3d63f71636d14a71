//! A GPT that learns: the model, its optimizer state and the handler of one rank.

use crate::comm::threads::ThreadComm;
use crate::comm::{Collectives, Communicator, Sum};
use crate::error::{Result, SupportError};
use crate::handler::{CpHandler, UntypedHandler};
use crate::kernel::{DynKernel, Flash, KernelOn};
use crate::layout::Layout;
use crate::model::architecture::{Architecture, FromConfig, HeadsFit};
use crate::model::inputs::{DynInputs, Inputs};
use crate::model::{Config, DynModel, GptModel, Gradients, Master};
use crate::ops::Ops;
pub use crate::ops::optimizer::AdamwOptions;
use crate::order::{Grouped, TokenOrder};
use crate::solve::schedule::Scheduler;
use crate::strategy::{CpStrategy, Supports};
use crate::tensor::{Cpu, Device};
use crate::train::data::TokenBatch;
use crate::train::learner_state::LearnerState;
use crate::train::trainer::Learner;

/// One rank's model in training.
///
/// Master weights, gradients and optimizer state are held in the accumulation type, on every rank alike; what is
/// split over ranks is the sequence. Gradients are summed over ranks once per step, in rank order, so every rank
/// makes the same step to the last bit.
///
/// `GptLearner::<Ring, Thd>::new(..)` trains a `GptModel<Ring, Thd>` on ranks that are threads; fixed heads are the
/// last parameter.
pub struct GptLearner<H: CpStrategy, L: Layout, K = Flash, D: Ops = Cpu<f32>, C = ThreadComm, A = FromConfig> {
    model: GptModel<H, L, K, D, A>,
    handler: CpHandler<H, L, D, C>,
    state: LearnerState<D>,
}

impl<H, L, K, D, C, A> GptLearner<H, L, K, D, C, A>
where
    H: Supports<L, K>,
    L: Layout,
    K: KernelOn<D>,
    D: Ops,
    C: Communicator<D::Storage>,
{
    /// A learner that starts from `master`, on the handler's device.
    ///
    /// # Errors
    /// What [`GptModel::from_master`] refuses, and heads that the handler's ranks cannot share out.
    pub fn new(config: &Config, master: Master<D>, handler: CpHandler<H, L, D, C>) -> Result<Self>
    where
        A: Architecture + HeadsFit<H>,
    {
        handler.strategy().heads_per_rank(config.heads)?;
        let model = GptModel::from_master(handler.device().clone(), config, &master)?;
        Ok(GptLearner { state: LearnerState::new(model.data(), master), model, handler })
    }

    /// Trains with other constants than the default's.
    pub fn with_options(mut self, options: AdamwOptions) -> Self {
        self.state.set_options(options);
        self
    }

    /// Sums gradients over ranks in another order than that of the ranks, which gives the same bits with every engine:
    /// [`Sum::Engine`] is faster where the engine has a sum of its own. Every rank passes the same.
    pub fn with_gradient_sum(mut self, sum: Sum) -> Self {
        self.state.set_sum(sum);
        self
    }

    /// [`GptModel::with_recompute`].
    pub fn with_recompute(mut self, recompute: bool) -> Self {
        self.model = self.model.with_recompute(recompute);
        self
    }

    /// Cuts every batch into the scheduler's micro-batches ([`crate::solve::schedule`]): each document on ranks of its
    /// own, none of which gets more tokens at once than it may. Every rank passes a scheduler of the same limit, and
    /// finds the same without communication. Losses and gradients are those of the whole batch.
    pub fn with_schedule(mut self, scheduler: &Scheduler) -> Self
    where
        H: CpStrategy<Order = Grouped>,
    {
        self.state.set_scheduler(scheduler);
        self
    }

    /// The model.
    pub fn model(&self) -> &GptModel<H, L, K, D, A> {
        &self.model
    }

    /// The handler.
    pub fn handler(&self) -> &CpHandler<H, L, D, C> {
        &self.handler
    }

    /// The weights, in the accumulation type.
    pub fn master(&self) -> &Master<D> {
        self.state.master()
    }

    /// The gradient as it was accumulated so far on this rank.
    pub fn gradients(&self) -> &Gradients<D> {
        self.state.gradients()
    }

    /// Sums the accumulated gradient over ranks, in rank order; once per step.
    ///
    /// # Errors
    /// Failures of other ranks.
    pub fn reduce_gradients(&mut self) -> Result<()> {
        self.state.reduce_gradients(self.handler.by_ref())
    }

    /// Forward and backward of a batch: adds the gradient of the sum of `scale * sum of the losses` of this rank's
    /// labels over the main loss and each depth of multi-token prediction, and returns the sums of the losses, in
    /// this order. Nothing is summed over ranks yet.
    ///
    /// # Errors
    /// If there is not a scale for each loss; what the model returns.
    pub fn accumulate_inputs(&mut self, inputs: &Inputs<H, L, D>, scales: &[f64]) -> Result<&[f64]> {
        self.state.accumulate_inputs(self.handler.by_ref(), self.model.data(), inputs.by_ref(), scales)
    }
}

/// A [`GptLearner`] whose strategy, layout and kernel are chosen at run time.
pub struct DynLearner<D: Ops> {
    model: DynModel<D>,
    handler: UntypedHandler<D>,
    state: LearnerState<D>,
}

impl<D: Ops> DynLearner<D> {
    /// A learner that starts from `master`, on the handler's device.
    ///
    /// # Errors
    /// A configuration that does not hold together, and heads that the handler's ranks cannot share out.
    pub fn new(
        config: &Config,
        master: Master<D>,
        handler: UntypedHandler<D>,
        kernel: &'static dyn DynKernel<D>,
    ) -> Result<Self> {
        handler.strategy().heads_per_rank(config.heads)?;
        let model = DynModel::from_master(handler.device().clone(), config, &master, kernel)?;
        Ok(DynLearner { state: LearnerState::new(&model, master), model, handler })
    }

    /// [`GptLearner::with_options`].
    pub fn with_options(mut self, options: AdamwOptions) -> Self {
        self.state.set_options(options);
        self
    }

    /// [`GptLearner::with_gradient_sum`].
    pub fn with_gradient_sum(mut self, sum: Sum) -> Self {
        self.state.set_sum(sum);
        self
    }

    /// [`GptModel::with_recompute`].
    pub fn with_recompute(mut self, recompute: bool) -> Self {
        self.model = self.model.with_recompute(recompute);
        self
    }

    /// [`GptLearner::with_schedule`].
    ///
    /// # Errors
    /// A strategy that does not deal documents out to groups of ranks.
    pub fn with_schedule(mut self, scheduler: &Scheduler) -> Result<Self> {
        let (strategy, order) = (self.handler.strategy().name(), self.handler.strategy().order());
        if order != Grouped::NAME {
            return Err(SupportError::Numbers(format!(
                "micro-batches of documents with ranks of their own are for dynamic, not for {strategy}: leave the \
                 scheduler out"
            ))
            .into());
        }
        self.state.set_scheduler(scheduler);
        Ok(self)
    }

    /// The model.
    pub fn model(&self) -> &DynModel<D> {
        &self.model
    }

    /// The handler.
    pub fn handler(&self) -> &UntypedHandler<D> {
        &self.handler
    }

    /// The weights, in the accumulation type.
    pub fn master(&self) -> &Master<D> {
        self.state.master()
    }

    /// The gradient as it was accumulated so far on this rank.
    pub fn gradients(&self) -> &Gradients<D> {
        self.state.gradients()
    }

    /// [`GptLearner::reduce_gradients`].
    ///
    /// # Errors
    /// Failures of other ranks.
    pub fn reduce_gradients(&mut self) -> Result<()> {
        self.state.reduce_gradients(self.handler.by_ref())
    }

    /// [`GptLearner::accumulate_inputs`].
    ///
    /// # Errors
    /// If there is not a scale for each loss; what the model returns.
    pub fn accumulate_inputs(&mut self, inputs: &DynInputs<D>, scales: &[f64]) -> Result<&[f64]> {
        self.state.accumulate_inputs(self.handler.by_ref(), &self.model, inputs.by_ref(), scales)
    }
}

/// What the loop needs, from the three parts of a learner: `$model` and `$model_mut` give the model without its types.
macro_rules! learner_of_parts {
    ($model:expr, $model_mut:expr) => {
        fn mtp_depth(&self) -> usize {
            self.model.config().mtp_depth
        }

        fn cuts_steps(&self) -> bool {
            self.state.cuts_steps()
        }

        fn micro_batches(&self) -> usize {
            self.state.micro_batches()
        }

        fn accumulate_depths(&mut self, batch: &TokenBatch, labels_in_step: &[usize]) -> Result<Vec<f64>> {
            self.state.accumulate_depths(self.handler.by_ref(), $model(&self.model), batch, labels_in_step)
        }

        fn update(&mut self, lr: f64) -> Result<f64> {
            self.state.update(self.handler.by_ref(), $model_mut(&mut self.model), lr)
        }

        fn evaluate(&mut self, batch: &TokenBatch) -> Result<f64> {
            self.state.evaluate(self.handler.by_ref(), $model(&self.model), batch)
        }

        fn any(&mut self, flag: bool) -> Result<bool> {
            let flags = f64::from(u8::from(flag));
            Ok(global_sum(self.model.device(), self.handler.by_ref().comm(), flags)? > 0.0)
        }
    };
}

impl<H, L, K, D, C, A> Learner for GptLearner<H, L, K, D, C, A>
where
    H: Supports<L, K>,
    L: Layout,
    K: KernelOn<D>,
    D: Ops,
    C: Communicator<D::Storage>,
{
    learner_of_parts!(GptModel::data, GptModel::data_mut);
}

impl<D: Ops> Learner for DynLearner<D> {
    learner_of_parts!(|model| model, |model| model);
}

/// The sum of one number over ranks, in rank order, whatever they have attended.
pub fn global_sum<D: Device, C: Communicator<D::Storage> + ?Sized>(device: &D, comm: &C, value: f64) -> Result<f64> {
    let mut sums = device.upload(&[value]);
    comm.all_reduce(&mut sums)?;
    Ok(device.read(&sums)?[0])
}
