//! The handler: everything that a model needs to know about context parallelism, behind one type.
//!
//! [`CpHandler`] stands between a model and a strategy. The model asks it to cut batches ([`CpHandler::dispatch`],
//! [`CpHandler::get_batch_on_this_cp_rank`]), to rotate queries and keys by their positions, to roll labels, and to
//! attend; it never sees ranks, chunks or messages. Every operation has its adjoint.

mod cache;
mod movement;
mod roll;
mod rotary;

pub use movement::{FullGradient, LocalBatch, Partial, Replicated, WholeBatch};
pub use roll::{Roll, Rollable};
pub use rotary::Rotary;

use std::marker::PhantomData;
use std::sync::Arc;

use crate::comm::Communicator;
use crate::error::{LayoutError, PlacementError, PlanError, Result, SupportError};
use crate::handler::cache::Cache;
use crate::layout::{Batch, Layout};
use crate::mask::Mask;
use crate::ops::Ops;
use crate::ops::attention::AttentionShape;
use crate::order::{Placement, Shard, TokenOrder};
use crate::plan::Wire;
use crate::strategy::executor::{AttentionPlan, AttentionSaved, Execute};
use crate::strategy::{CpStrategy, HeadExchange, Kernel, Supports};
use crate::tensor::{Device, ElemMatrix, Storage};

/// A shard of `D`'s storage type in the order of strategy `H`.
pub type ElemShard<H, L, D> = Shard<<H as CpStrategy>::Order, L, <D as Device>::Elem, <D as Device>::Storage>;

/// One rank's handler for strategy `H` and layout `L` over communicator `C`.
///
/// It lives as long as the model does; placements and plans come and go with batches and are kept in a small cache.
pub struct CpHandler<H: CpStrategy, L: Layout, C> {
    comm: C,
    cache: Cache<H, L>,
    layout: PhantomData<L>,
}

/// What the backward pass of [`CpHandler::core_attn`] needs.
pub struct CoreAttention<D: Device, K: Kernel> {
    shape: AttentionShape,
    /// Hash of the plan.
    plan: u64,
    saved: AttentionSaved<D, K>,
}

impl<D: Device, K: Kernel> CoreAttention<D, K> {
    /// Output and log-sum-exp as the kernel left them.
    pub fn saved(&self) -> &AttentionSaved<D, K> {
        &self.saved
    }
}

impl<H: CpStrategy, L: Layout, C> CpHandler<H, L, C> {
    /// A handler for this rank of `comm`.
    ///
    /// # Errors
    /// If the strategy's degree is not the number of ranks, or its type and its grid differ over who exchanges heads.
    pub fn new<S: Storage>(strategy: H, comm: C) -> Result<Self>
    where
        C: Communicator<S>,
    {
        let (degree, size) = (strategy.degree(), comm.size());
        if degree == 0 {
            return Err(PlacementError::ZeroDegree.into());
        }
        if degree != size {
            return Err(PlacementError::Degree { strategy: H::NAME, degree, size }.into());
        }
        let inner = strategy.grid().inner;
        if let Some(ranks) = H::Heads::RANKS.filter(|&ranks| ranks != inner) {
            return Err(SupportError::Numbers(format!(
                "{} exchanges heads over {ranks} ranks by its type and over {inner} by its grid: use the same number",
                H::NAME
            ))
            .into());
        }
        Ok(CpHandler { cache: Cache::new(strategy, comm.rank(), size), comm, layout: PhantomData })
    }

    /// Whether the first rank rehearses every new plan of all ranks before it is used ([`crate::plan::check`]), which is
    /// the default. An exchange that leaves something out on purpose passes no check.
    pub fn with_plan_checks(mut self, checks: bool) -> Self {
        self.cache.checks = checks;
        self
    }

    /// In what numbers gradients of keys and values travel in attention. Every rank must use the same.
    pub fn with_gradient_wire(mut self, wire: Wire) -> Self {
        self.cache.wire = wire;
        self
    }

    /// The strategy.
    pub fn strategy(&self) -> &H {
        self.cache.strategy()
    }

    /// The communicator.
    pub fn comm(&self) -> &C {
        &self.comm
    }

    /// This rank.
    pub fn rank(&self) -> usize {
        self.cache.rank()
    }

    /// Number of ranks that share a sequence.
    pub fn ranks(&self) -> usize {
        self.cache.ranks()
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
        self.cache.placement(batch.into(), masks)
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
        Placement::with_table(batch.into(), self.strategy().grid(), self.rank(), table)
    }

    /// How this rank attends under `mask`: one plan per mask serves all layers with that mask. Its hash is compared over
    /// ranks when it is first used.
    ///
    /// # Errors
    /// If the mask does not fit the batch, or the plans of all ranks do not fit together.
    pub fn plan(
        &self,
        placement: &Arc<Placement<H::Order, L>>,
        mask: &Mask,
    ) -> Result<Arc<AttentionPlan<H::Order, L>>> {
        self.cache.plan(placement, mask)
    }

    /// Attention of this rank's queries to the keys of all ranks.
    ///
    /// `q [rows, q_heads * qk_dim]`, `k [rows, kv_heads * qk_dim]`, `v [rows, kv_heads * v_dim]`; returns
    /// `[rows, q_heads * v_dim]`, 0 for padding and for queries that attend nothing.
    ///
    /// # Errors
    /// Shards of another placement than the plan's, widths that do not fit the shape, heads that cannot be shared
    /// out, and failures of other ranks.
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
        K: Kernel,
        D: Ops,
        C: Communicator<D::Storage>,
    {
        let qkv = self.operands::<D>(plan, shape, q, k, v)?;
        plan.agree(device, &self.comm)?;
        let (out, saved) = H::Executor::forward(device, &self.comm, plan.rank_plan(), shape, qkv)?;
        let out = Shard::new(out, plan.placement().clone())?;
        Ok((out, CoreAttention { shape: *shape, plan: plan.hash(), saved }))
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
        K: Kernel,
        D: Ops,
        C: Communicator<D::Storage>,
    {
        let shape = &forward.shape;
        if plan.hash() != forward.plan {
            return Err(PlanError::OtherPlan { forward: forward.plan, backward: plan.hash() }.into());
        }
        let qkv = self.operands::<D>(plan, shape, q, k, v)?;
        plan.placement().expect_same("the plan", dout.placement(), "the output gradient")?;
        expect_features("the output gradient", shape.out_width(), dout.matrix().cols())?;
        let gradients =
            H::Executor::backward(device, &self.comm, plan.rank_plan(), shape, qkv, &forward.saved, dout.matrix())?;
        let [dq, dk, dv] = gradients.map(|gradient| Shard::new(gradient, plan.placement().clone()));
        Ok([dq?, dk?, dv?])
    }

    #[allow(clippy::type_complexity)]
    fn operands<'a, D: Device>(
        &self,
        plan: &AttentionPlan<H::Order, L>,
        shape: &AttentionShape,
        q: &'a ElemShard<H, L, D>,
        k: &'a ElemShard<H, L, D>,
        v: &'a ElemShard<H, L, D>,
    ) -> Result<[&'a ElemMatrix<D>; 3]> {
        if shape.kv_heads == 0 || !shape.q_heads.is_multiple_of(shape.kv_heads) {
            let (q_heads, kv_heads) = (shape.q_heads, shape.kv_heads);
            return Err(SupportError::Numbers(format!(
                "{q_heads} query heads do not share {kv_heads} key/value heads evenly: use a multiple"
            ))
            .into());
        }
        self.strategy().heads_per_rank(shape.q_heads)?;
        let widths = [shape.q_width(), shape.k_width(), shape.v_width()];
        for ((name, shard), width) in [("queries", q), ("keys", k), ("values", v)].into_iter().zip(widths) {
            plan.placement().expect_same("the plan", shard.placement(), name)?;
            expect_features(name, width, shard.matrix().cols())?;
        }
        Ok([q.matrix(), k.matrix(), v.matrix()])
    }
}

fn expect_features(what: &'static str, expected: usize, found: usize) -> Result<()> {
    match expected == found {
        true => Ok(()),
        false => Err(LayoutError::Features { what, expected, found }.into()),
    }
}

fn expect_batch<O: TokenOrder, L: Layout>(placement: &Placement<O, L>, batch: &Arc<L::Batch>) -> Result<()> {
    if Arc::ptr_eq(placement.batch(), batch) || placement.batch() == batch {
        return Ok(());
    }
    let describe = |batch: &L::Batch| format!("{} documents of {} tokens in all", batch.documents(), batch.tokens());
    let (left, right) = (describe(placement.batch()), describe(batch));
    Err(PlacementError::Mismatch { left_name: "the placement", left, right_name: "the tensor", right }.into())
}
