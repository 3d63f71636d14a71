//! Attention over host memory.

use std::sync::Arc;

use crate::attention::RankPlan;
use crate::error::Result;
use crate::handler::host::memory::Held;
use crate::handler::host::{DynHandler, HostOperand, HostRef, held_shard};
use crate::handler::{DynCoreAttention, HandlerRef};
use crate::ops::attention::AttentionShape;
use crate::order::DynShard;
use crate::tensor::{Cpu, Float, Matrix};

impl DynHandler {
    /// Attention of this rank's queries to the keys of all ranks:
    /// [`CpHandler::attend`](crate::handler::CpHandler::attend) over plain rows.
    ///
    /// # Errors
    /// Those of `CpHandler::attend`, with the operand's name.
    #[doc(alias = "core_attn")]
    pub fn attend<'a, T: Float>(
        &self,
        plan: &Arc<RankPlan>,
        shape: &AttentionShape,
        q: impl Into<HostOperand<'a, T>>,
        k: impl Into<HostOperand<'a, T>>,
        v: impl Into<HostOperand<'a, T>>,
    ) -> Result<(Matrix<T>, HostAttended<'a, T>)> {
        let held = |operand, what, placement| held_shard(operand, what, placement).map(Arc::new);
        let (queries, keys) = (plan.placement(), plan.keys());
        let qkv = [held(q.into(), "queries", queries)?, held(k.into(), "keys", keys)?, held(v.into(), "values", keys)?];
        let operands = qkv.each_ref().map(|shard| &***shard);
        let device = self.handler.device().storing();
        let (out, core) = self.on(&device).core_attn(self.kernel.object(), plan, shape, operands)?;
        Ok((out.into_matrix(), HostAttended { plan: plan.clone(), qkv, core: Arc::new(core) }))
    }

    fn on<'a, T: Float>(&'a self, device: &'a Cpu<T>) -> HandlerRef<'a, Cpu<T>> {
        self.handler.by_ref().on(device)
    }
}

/// What [`DynHandler::attend`] leaves: all that its backward pass needs. Copies share it.
#[derive(Clone, Debug)]
pub struct HostAttended<'a, T: Float> {
    plan: Arc<RankPlan>,
    qkv: [Arc<Held<'a, DynShard<T>>>; 3],
    core: Arc<DynCoreAttention<Cpu<T>>>,
}

impl<T: Float> HostAttended<'_, T> {
    /// Gradients of queries, keys and values from `dout [rows, q_heads * v_dim]`, that of the output.
    ///
    /// # Errors
    /// A handler of another strategy or rank than the forward pass had, a gradient of another shape than the output,
    /// and failures of other ranks.
    pub fn backward<'d>(&self, handler: &DynHandler, dout: impl Into<HostRef<'d, T>>) -> Result<[Matrix<T>; 3]> {
        let dout = held_shard(dout.into().into(), "the output gradient", self.plan.placement())?;
        let operands = self.qkv.each_ref().map(|shard| &***shard);
        let device = handler.handler.device().storing();
        let gradients = handler.on(&device).core_attn_backward(&self.plan, operands, &self.core, &dout)?;
        Ok(gradients.map(DynShard::into_matrix))
    }
}
