//! A handler without its types: what model and learner are compiled for, once per device.

use std::ops::Deref;
use std::sync::Arc;

use crate::attention::{self, QkvGradients, RankPlan};
use crate::comm::{Communicator, DynComm, Operation, Sum, reduce_in};
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
use crate::tensor::{Buffer, Device, ElemRef, Real};

/// A shard of `D`'s storage type.
pub type DynElemShard<D> = DynShard<<D as Device>::Elem, <D as Device>::Storage>;

/// A [`CpHandler`](crate::handler::CpHandler) whose strategy and layout are values: it owns what a [`HandlerRef`]
/// borrows.
///
/// What the types of `CpHandler` refuse when a program is compiled is refused here when it runs, or, where an order of
/// a foreign shard would have shown, by the comparison of placements.
pub struct UntypedHandler<D: Device> {
    core: HandlerCore,
    device: D,
    comm: DynComm<D::Storage>,
}

impl<D: Device> UntypedHandler<D> {
    /// A handler for this rank of `comm`, which computes on `device`.
    ///
    /// # Errors
    /// Those of [`CpHandler::new`](crate::handler::CpHandler::new).
    pub fn new(
        strategy: Arc<dyn DynStrategy>,
        layout: LayoutKind,
        device: D,
        comm: DynComm<D::Storage>,
    ) -> Result<Self> {
        Ok(UntypedHandler { core: HandlerCore::new(strategy, layout, comm.rank(), comm.size())?, device, comm })
    }

    /// [`CpHandler::with_gradient_wire`](crate::handler::CpHandler::with_gradient_wire).
    pub fn with_gradient_wire(mut self, wire: Wire) -> Self {
        self.core.set_gradient_wire(wire);
        self
    }

    /// The handler as every operation takes it.
    pub fn by_ref(&self) -> HandlerRef<'_, D> {
        HandlerRef { core: &self.core, device: &self.device, comm: &*self.comm }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The communicator.
    pub fn comm(&self) -> &dyn Communicator<D::Storage> {
        &*self.comm
    }
}

impl<D: Device> Deref for UntypedHandler<D> {
    type Target = HandlerCore;

    fn deref(&self) -> &HandlerCore {
        &self.core
    }
}

/// A handler of any types, with its device and its communicator. Dereferences to what needs neither.
pub struct HandlerRef<'a, D: Device> {
    pub(super) core: &'a HandlerCore,
    pub(super) device: &'a D,
    pub(super) comm: &'a dyn Communicator<D::Storage>,
}

impl<D: Device> Clone for HandlerRef<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for HandlerRef<'_, D> {}

impl<D: Device> Deref for HandlerRef<'_, D> {
    type Target = HandlerCore;

    fn deref(&self) -> &HandlerCore {
        self.core
    }
}

impl<'a, D: Device> HandlerRef<'a, D> {
    /// The device.
    pub fn device(self) -> &'a D {
        self.device
    }

    /// The communicator.
    pub fn comm(self) -> &'a dyn Communicator<D::Storage> {
        self.comm
    }

    /// The same handler on another device whose memory is of the same kind, such as one of another storage type.
    pub fn on<E: Device<Storage = D::Storage>>(self, device: &'a E) -> HandlerRef<'a, E> {
        HandlerRef { core: self.core, device, comm: self.comm }
    }

    /// The sums of some numbers over ranks, in rank order, in one operation.
    ///
    /// # Errors
    /// [`CommError::Disagree`](crate::error::CommError::Disagree) if ranks attended under other plans before, and
    /// failures of other ranks.
    pub fn sum(self, values: &[f64]) -> Result<Vec<f64>> {
        let mut sums = self.device.upload(values);
        self.all_reduce("sum", &mut sums)?;
        self.device.read(&sums)
    }

    /// Replaces `values` by their sum over ranks, in rank order.
    ///
    /// # Errors
    /// Those of [`HandlerRef::sum`].
    pub(crate) fn all_reduce<T: Real>(self, name: &'static str, values: &mut Buffer<T, D::Storage>) -> Result<()> {
        self.all_reduce_in(Sum::Ranks, name, values)
    }

    /// The same in an order that every rank chooses alike.
    ///
    /// # Errors
    /// Those of [`HandlerRef::sum`].
    pub(crate) fn all_reduce_in<T: Real>(
        self,
        sum: Sum,
        name: &'static str,
        values: &mut Buffer<T, D::Storage>,
    ) -> Result<()> {
        reduce_in(self.comm, sum, Operation::under(name, self.core.digest(())), values)
    }

    /// [`CpHandler::attend`](crate::handler::CpHandler::attend) with operands that are borrowed: the backward call
    /// takes them again. Queries, keys and values may be columns of one matrix.
    ///
    /// # Errors
    /// Those of `CpHandler::attend`.
    pub fn core_attn<'q>(
        self,
        kernel: &'static dyn DynKernel<D>,
        plan: &RankPlan,
        shape: &AttentionShape,
        qkv: [impl Into<DynShardRef<'q, D::Elem, D::Storage>>; 3],
    ) -> Result<(DynElemShard<D>, DynCoreAttention<D>)>
    where
        D: Attends,
    {
        let qkv = self.core.operands::<D>(plan, shape, qkv.map(Into::into))?;
        kernel.supports(self.device, shape)?;
        let (out, saved) = attention::forward(self.device, self.comm, kernel, plan, shape, qkv)?;
        self.core.attends(plan);
        let out = DynShard::new(out, plan.placement().clone())?;
        Ok((out, DynCoreAttention { shape: *shape, plan: plan.hash(), saved }))
    }

    /// Gradients of queries, keys and values, from that of the output; operands and plan as in the forward call.
    ///
    /// # Errors
    /// Another plan than the forward pass had, and those of
    /// [`Attended::backward`](crate::handler::Attended::backward).
    pub fn core_attn_backward<'q>(
        self,
        plan: &RankPlan,
        qkv: [impl Into<DynShardRef<'q, D::Elem, D::Storage>>; 3],
        forward: &DynCoreAttention<D>,
        dout: &DynElemShard<D>,
    ) -> Result<[DynElemShard<D>; 3]>
    where
        D: Attends,
    {
        let (qkv, dout) = self.gradient_operands(plan, qkv.map(Into::into), forward, dout)?;
        let (shape, saved) = (&forward.shape, &forward.saved);
        let gradients = attention::backward_apart(self.device, self.comm, plan, shape, qkv, saved, dout)?;
        let [dq, dk, dv] = gradients;
        let dq = DynShard::new(dq, plan.placement().clone());
        let [dk, dv] = [dk, dv].map(|gradient| DynShard::new(gradient, plan.keys().clone()));
        Ok([dq?, dk?, dv?])
    }

    /// The same into memory that is given, whose rows are those of the plan's placement.
    ///
    /// # Errors
    /// Those of [`HandlerRef::core_attn_backward`], and memory of another shape.
    pub fn core_attn_backward_into<'q>(
        self,
        plan: &RankPlan,
        qkv: [impl Into<DynShardRef<'q, D::Elem, D::Storage>>; 3],
        forward: &DynCoreAttention<D>,
        dout: &DynElemShard<D>,
        gradients: QkvGradients<'_, D>,
    ) -> Result<()>
    where
        D: Attends,
    {
        let (qkv, dout) = self.gradient_operands(plan, qkv.map(Into::into), forward, dout)?;
        let (shape, saved) = (&forward.shape, &forward.saved);
        gradients.expect(shape, plan.placement(), plan.keys())?;
        attention::backward(self.device, self.comm, plan, shape, qkv, saved, dout, gradients)
    }

    /// What a backward pass reads, if it belongs together.
    #[allow(clippy::type_complexity)]
    fn gradient_operands<'q>(
        self,
        plan: &RankPlan,
        qkv: [DynShardRef<'q, D::Elem, D::Storage>; 3],
        forward: &DynCoreAttention<D>,
        dout: &'q DynElemShard<D>,
    ) -> Result<([ElemRef<'q, D>; 3], ElemRef<'q, D>)>
    where
        D: Attends,
    {
        expect_plan(forward.plan, plan)?;
        let qkv = self.core.operands::<D>(plan, &forward.shape, qkv)?;
        plan.placement().expect_same("the plan", dout.placement(), "the output gradient")?;
        expect_features("the output gradient", forward.shape.out_width(), dout.matrix().cols())?;
        Ok((qkv, dout.matrix().view()))
    }
}
