//! The handler: everything that a model needs to know about context parallelism, behind one type.
//!
//! [`CpHandler`] stands between a model and a strategy. The model asks it to cut batches ([`CpHandler::dispatch`],
//! [`CpHandler::get_batch_on_this_cp_rank`]), to rotate queries and keys by their positions, to roll labels, and to
//! attend; it never sees ranks, chunks or messages. Every operation has its adjoint.

mod cache;
mod core;
mod movement;
mod object;
mod roll;
mod rotary;

pub use self::core::HandlerCore;
pub use movement::{FullGradient, LocalBatch, Partial, Replicated, WholeBatch};
pub use object::{DynElemShard, DynHandler, HandlerRef};
pub use roll::{DynRoll, DynRollable, Roll, Rollable};
pub use rotary::{Rotary, RotaryTable};

use std::marker::PhantomData;
use std::sync::Arc;

use crate::attention::{AttentionPlan, AttentionSaved};
use crate::comm::Communicator;
use crate::error::{PlacementError, Result};
use crate::kernel::{Kernel, KernelOn, kernel_object};
use crate::layout::{Batch, Layout};
use crate::mask::Mask;
use crate::ops::Attends;
use crate::ops::attention::AttentionShape;
use crate::order::{DealOf, DynPlacement, Placement, Shard, TokenOrder};
use crate::plan::Wire;
use crate::strategy::{CpStrategy, Supports, object};
use crate::tensor::{Device, Storage};

/// A shard of `D`'s storage type in the order of strategy `H`.
pub type ElemShard<H, L, D> = Shard<<H as CpStrategy>::Order, L, <D as Device>::Elem, <D as Device>::Storage>;

/// One rank's handler for strategy `H` and layout `L` over communicator `C`.
///
/// It lives as long as the model does; placements and plans come and go with batches and are kept in a small cache.
/// Its types decide what compiles; what it does is done by its [`HandlerCore`], which has none.
pub struct CpHandler<H: CpStrategy, L: Layout, C> {
    strategy: H,
    core: HandlerCore,
    comm: C,
    layout: PhantomData<L>,
}

/// What the backward pass of [`CpHandler::core_attn`] needs.
pub struct CoreAttention<D: Attends, K: Kernel> {
    data: DynCoreAttention<D>,
    kernel: PhantomData<K>,
}

impl<D: Attends, K: Kernel> CoreAttention<D, K> {
    /// Output and log-sum-exp as the kernel left them.
    pub fn saved(&self) -> &AttentionSaved<D> {
        &self.data.saved
    }
}

/// A [`CoreAttention`] of any kernel.
pub struct DynCoreAttention<D: Attends> {
    shape: AttentionShape,
    /// Hash of the plan.
    plan: u64,
    saved: AttentionSaved<D>,
}

impl<H: CpStrategy, L: Layout, C> CpHandler<H, L, C> {
    /// A handler for this rank of `comm`.
    ///
    /// # Errors
    /// If the strategy's degree is not the number of ranks, its grid is not one of so many ranks or differs from its type
    /// over who exchanges heads, or a setting of the strategy is out of its bounds.
    pub fn new<S: Storage>(strategy: H, comm: C) -> Result<Self>
    where
        C: Communicator<S>,
    {
        let core = HandlerCore::new(object(strategy.clone()), L::KIND, comm.rank(), comm.size())?;
        Ok(CpHandler { strategy, core, comm, layout: PhantomData })
    }

    /// In what numbers gradients of keys and values travel in attention. Every rank must use the same.
    pub fn with_gradient_wire(mut self, wire: Wire) -> Self {
        self.core.set_gradient_wire(wire);
        self
    }

    /// The strategy.
    pub fn strategy(&self) -> &H {
        &self.strategy
    }

    /// The communicator.
    pub fn comm(&self) -> &C {
        &self.comm
    }

    /// The handler without its types and its communicator.
    pub fn core(&self) -> &HandlerCore {
        &self.core
    }

    /// The handler without its types.
    pub fn by_ref<S: Storage>(&self) -> HandlerRef<'_, S>
    where
        C: Communicator<S>,
    {
        HandlerRef { core: &self.core, comm: &self.comm }
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.core.rank()
    }

    /// Number of ranks that share a sequence.
    pub fn ranks(&self) -> usize {
        self.core.ranks()
    }

    /// Deals a batch out to the ranks. The same batch gives the same placement. Orders that depend on what is attended
    /// take the mask to be causal; see [`CpHandler::place_for`].
    ///
    /// # Errors
    /// If the batch cannot be dealt out.
    pub fn place(&self, batch: impl Into<Arc<L::Batch>>) -> Result<Arc<Placement<H::Order, L>>> {
        self.place_for(batch, &[(Mask::Causal, 1)])
    }

    /// Deals a batch out to the ranks, for a model whose layers attend under `masks`, each with the number of layers
    /// that use it. Any other mask works with the placement too.
    ///
    /// # Errors
    /// If a mask does not fit the batch, or the batch cannot be dealt out.
    pub fn place_for(
        &self,
        batch: impl Into<Arc<L::Batch>>,
        masks: &[(Mask, u64)],
    ) -> Result<Arc<Placement<H::Order, L>>> {
        Placement::typed(self.core.place_for(batch.into(), masks)?)
    }

    /// Deals a batch out with a table of its own, for orders that are data: [`crate::order::Dealt`]. Every rank must
    /// pass the same.
    ///
    /// # Errors
    /// If the table deals out another number of ranks or tokens.
    pub fn place_with(
        &self,
        batch: impl Into<Arc<L::Batch>>,
        table: <H::Order as TokenOrder>::Table,
    ) -> Result<Arc<Placement<H::Order, L>>> {
        Placement::typed(self.core.place_with(batch.into(), Arc::new(DealOf::<H::Order>(table)))?)
    }

    /// How this rank attends under `mask`: one plan per mask serves all layers with that mask. Every message of attention
    /// carries its hash, so that ranks with other plans are told.
    ///
    /// # Errors
    /// If the placement is not this handler's, or the mask does not fit the batch.
    pub fn plan(
        &self,
        placement: &Arc<Placement<H::Order, L>>,
        mask: &Mask,
    ) -> Result<Arc<AttentionPlan<H::Order, L>>> {
        Ok(Arc::new(AttentionPlan::typed([placement, placement], self.core.plan(placement.data(), mask)?)))
    }

    /// How queries attend under `mask` where keys are placed apart from them: new tokens, and what ranks hold of those
    /// before them. Queries and keys are batches of as many documents; each document's last valid query is at the position
    /// of its last valid key ([`Mask::lower_onto`]). Attention takes queries of the one placement, keys and values of the
    /// other. Not kept: every call makes a plan.
    ///
    /// # Errors
    /// If a placement is not this handler's, the mask does not fit the batches, or the ranks exchange heads.
    pub fn plan_between(
        &self,
        queries: &Arc<Placement<H::Order, L>>,
        keys: &Arc<Placement<H::Order, L>>,
        mask: &Mask,
    ) -> Result<Arc<AttentionPlan<H::Order, L>>> {
        let rank_plan = self.core.plan_between(queries.data(), keys.data(), mask)?;
        Ok(Arc::new(AttentionPlan::typed([queries, keys], rank_plan)))
    }

    /// Attention of this rank's queries to the keys of all ranks.
    ///
    /// `q [rows, q_heads * qk_dim]`, `k [rows, kv_heads * qk_dim]`, `v [rows, kv_heads * v_dim]`; returns
    /// `[rows, q_heads * v_dim]`, 0 for padding and for queries that attend nothing. Every rank makes the same calls in the
    /// same order, also where it has nothing to send: what ranks exchange later says what they attended before.
    ///
    /// # Errors
    /// A plan of another strategy or rank, shards of another placement than the plan's, shapes that cannot be computed,
    /// widths that do not fit the shape, heads that cannot be shared out, keys that the kernel does not take, ranks that
    /// attend under other plans, and failures of other ranks.
    #[allow(clippy::too_many_arguments, clippy::type_complexity)]
    pub fn core_attn<K, D>(
        &self,
        device: &D,
        plan: &AttentionPlan<H::Order, L>,
        shape: &AttentionShape,
        q: &ElemShard<H, L, D>,
        k: &ElemShard<H, L, D>,
        v: &ElemShard<H, L, D>,
    ) -> Result<(ElemShard<H, L, D>, CoreAttention<D, K>)>
    where
        H: Supports<L, K>,
        K: KernelOn<D>,
        D: Attends,
        C: Communicator<D::Storage>,
    {
        let (kernel, qkv) = (kernel_object::<K, D>(), [q.data(), k.data(), v.data()]);
        let (out, data) = self.by_ref().core_attn(device, kernel, plan.rank_plan(), shape, qkv)?;
        Ok((Shard::typed(out, plan.placement())?, CoreAttention { data, kernel: PhantomData }))
    }

    /// Gradients of queries, keys and values from `dout [rows, q_heads * v_dim]`; operands and plan as in the forward
    /// call.
    ///
    /// # Errors
    /// Another plan than the forward pass had, shards of another placement, widths that do not fit the shape, and
    /// failures of other ranks.
    #[allow(clippy::too_many_arguments)]
    pub fn core_attn_backward<K, D>(
        &self,
        device: &D,
        plan: &AttentionPlan<H::Order, L>,
        q: &ElemShard<H, L, D>,
        k: &ElemShard<H, L, D>,
        v: &ElemShard<H, L, D>,
        forward: &CoreAttention<D, K>,
        dout: &ElemShard<H, L, D>,
    ) -> Result<[ElemShard<H, L, D>; 3]>
    where
        H: Supports<L, K>,
        K: KernelOn<D>,
        D: Attends,
        C: Communicator<D::Storage>,
    {
        let (plan_data, qkv) = (plan.rank_plan(), [q.data(), k.data(), v.data()]);
        let [dq, dk, dv] = self.by_ref().core_attn_backward(device, plan_data, qkv, &forward.data, dout.data())?;
        Ok([Shard::typed(dq, plan.placement())?, Shard::typed(dk, plan.keys())?, Shard::typed(dv, plan.keys())?])
    }
}

fn expect_batch(placement: &DynPlacement, batch: &dyn Batch) -> Result<()> {
    let own = &**placement.batch();
    if std::ptr::addr_eq(own, batch) || own.same_documents(batch) {
        return Ok(());
    }
    let (left, right) = (own.describe(), batch.describe());
    Err(PlacementError::Mismatch { left_name: "the placement", left, right_name: "the tensor", right }.into())
}
