//! A handler without its types: what model, learner and program are compiled for, once per device.

use std::ops::Deref;
use std::sync::Arc;

use crate::attention::{self, QkvGradients, RankPlan};
use crate::comm::{Communicator, Operation, reduce};
use crate::error::Result;
use crate::handler::DynCoreAttention;
use crate::handler::core::{HandlerCore, expect_features, expect_plan};
use crate::kernel::DynKernel;
use crate::layout::LayoutKind;
use crate::ops::Attends;
use crate::ops::attention::AttentionShape;
use crate::order::{DynShard, DynShardRef};
use crate::plan::Wire;
use crate::strategy::DynStrategy;
use crate::tensor::{Buffer, Device, ElemRef, Host, Real, Storage};

/// A shard of `D`'s storage type.
pub type DynElemShard<D> = DynShard<<D as Device>::Elem, <D as Device>::Storage>;

/// A [`CpHandler`](crate::handler::CpHandler) whose strategy and layout are chosen at run time.
///
/// What the types of `CpHandler` refuse when a program is compiled is refused here when it runs, or, where an order of
/// a foreign shard would have shown, by the comparison of placements.
pub struct DynHandler<S: Storage = Host> {
    core: HandlerCore,
    comm: Box<dyn Communicator<S>>,
}

impl<S: Storage> DynHandler<S> {
    /// A handler for this rank of `comm`.
    ///
    /// # Errors
    /// Those of [`CpHandler::new`](crate::handler::CpHandler::new).
    pub fn new(strategy: Arc<dyn DynStrategy>, layout: LayoutKind, comm: Box<dyn Communicator<S>>) -> Result<Self> {
        Ok(DynHandler { core: HandlerCore::new(strategy, layout, comm.rank(), comm.size())?, comm })
    }

    /// [`CpHandler::with_gradient_wire`](crate::handler::CpHandler::with_gradient_wire).
    pub fn with_gradient_wire(mut self, wire: Wire) -> Self {
        self.core.set_gradient_wire(wire);
        self
    }

    /// The handler as every operation takes it.
    pub fn by_ref(&self) -> HandlerRef<'_, S> {
        HandlerRef { core: &self.core, comm: &*self.comm }
    }

    /// The communicator.
    pub fn comm(&self) -> &dyn Communicator<S> {
        &*self.comm
    }
}

impl<S: Storage> Deref for DynHandler<S> {
    type Target = HandlerCore;

    fn deref(&self) -> &HandlerCore {
        &self.core
    }
}

/// A handler of any types, and its communicator. Dereferences to what needs no communication.
pub struct HandlerRef<'a, S> {
    pub(super) core: &'a HandlerCore,
    pub(super) comm: &'a dyn Communicator<S>,
}

impl<S> Clone for HandlerRef<'_, S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for HandlerRef<'_, S> {}

impl<S> Deref for HandlerRef<'_, S> {
    type Target = HandlerCore;

    fn deref(&self) -> &HandlerCore {
        self.core
    }
}

impl<'a, S: Storage> HandlerRef<'a, S> {
    /// The communicator.
    pub fn comm(self) -> &'a dyn Communicator<S> {
        self.comm
    }

    /// The sums of some numbers over ranks, in rank order, in one operation.
    ///
    /// # Errors
    /// [`CommError::Disagree`](crate::error::CommError::Disagree) if ranks attended under other plans before, and
    /// failures of other ranks.
    pub fn sum<D: Device<Storage = S>>(self, device: &D, values: &[f64]) -> Result<Vec<f64>> {
        let mut sums = device.upload(values);
        self.all_reduce("sum", &mut sums)?;
        device.read(&sums)
    }

    /// Replaces `values` by their sum over ranks, in rank order.
    ///
    /// # Errors
    /// Those of [`HandlerRef::sum`].
    pub(crate) fn all_reduce<T: Real>(self, name: &'static str, values: &mut Buffer<T, S>) -> Result<()> {
        reduce(self.comm, Operation::under(name, self.core.digest(())), values)
    }

    /// [`CpHandler::core_attn`](crate::handler::CpHandler::core_attn). Queries, keys and values may be columns of one matrix.
    ///
    /// # Errors
    /// Those of `CpHandler::core_attn`.
    pub fn core_attn<'q, D: Attends<Storage = S>>(
        self,
        device: &D,
        kernel: &'static dyn DynKernel<D>,
        plan: &RankPlan,
        shape: &AttentionShape,
        qkv: [impl Into<DynShardRef<'q, D::Elem, S>>; 3],
    ) -> Result<(DynElemShard<D>, DynCoreAttention<D>)> {
        let qkv = self.core.operands::<D>(plan, shape, qkv.map(Into::into))?;
        let (out, saved) = attention::forward(device, self.comm, kernel, plan, shape, qkv)?;
        self.core.attends(plan);
        let out = DynShard::new(out, plan.placement().clone())?;
        Ok((out, DynCoreAttention { shape: *shape, plan: plan.hash(), saved }))
    }

    /// [`CpHandler::core_attn_backward`](crate::handler::CpHandler::core_attn_backward).
    ///
    /// # Errors
    /// Those of `CpHandler::core_attn_backward`.
    pub fn core_attn_backward<'q, D: Attends<Storage = S>>(
        self,
        device: &D,
        plan: &RankPlan,
        qkv: [impl Into<DynShardRef<'q, D::Elem, S>>; 3],
        forward: &DynCoreAttention<D>,
        dout: &DynElemShard<D>,
    ) -> Result<[DynElemShard<D>; 3]> {
        let (qkv, dout) = self.gradient_operands(plan, qkv.map(Into::into), forward, dout)?;
        let (shape, saved) = (&forward.shape, &forward.saved);
        let gradients = attention::backward_apart(device, self.comm, plan, shape, qkv, saved, dout)?;
        let [dq, dk, dv] = gradients;
        let dq = DynShard::new(dq, plan.placement().clone());
        let [dk, dv] = [dk, dv].map(|gradient| DynShard::new(gradient, plan.keys().clone()));
        Ok([dq?, dk?, dv?])
    }

    /// The same into memory that is given, whose rows are those of the plan's placement.
    ///
    /// # Errors
    /// Those of `CpHandler::core_attn_backward`, and memory of another shape.
    pub fn core_attn_backward_into<'q, D: Attends<Storage = S>>(
        self,
        device: &D,
        plan: &RankPlan,
        qkv: [impl Into<DynShardRef<'q, D::Elem, S>>; 3],
        forward: &DynCoreAttention<D>,
        dout: &DynElemShard<D>,
        gradients: QkvGradients<'_, D>,
    ) -> Result<()> {
        let (qkv, dout) = self.gradient_operands(plan, qkv.map(Into::into), forward, dout)?;
        let (shape, saved) = (&forward.shape, &forward.saved);
        gradients.expect(shape, plan.placement(), plan.keys())?;
        attention::backward(device, self.comm, plan, shape, qkv, saved, dout, gradients)
    }

    /// What a backward pass reads, if it belongs together.
    #[allow(clippy::type_complexity)]
    fn gradient_operands<'q, D: Attends<Storage = S>>(
        self,
        plan: &RankPlan,
        qkv: [DynShardRef<'q, D::Elem, S>; 3],
        forward: &DynCoreAttention<D>,
        dout: &'q DynElemShard<D>,
    ) -> Result<([ElemRef<'q, D>; 3], ElemRef<'q, D>)> {
        expect_plan(forward.plan, plan)?;
        let qkv = self.core.operands::<D>(plan, &forward.shape, qkv)?;
        plan.placement().expect_same("the plan", dout.placement(), "the output gradient")?;
        expect_features("the output gradient", forward.shape.out_width(), dout.matrix().cols())?;
        Ok((qkv, dout.matrix().view()))
    }
}
