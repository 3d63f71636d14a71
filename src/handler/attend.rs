//! Attention through the handler: the output, and what it takes to go back.

use std::fmt;
use std::sync::Arc;

use crate::attention::{AttentionPlan, AttentionSaved};
use crate::comm::Communicator;
use crate::error::Result;
use crate::handler::{CpHandler, ElemShard};
use crate::kernel::{Flash, KernelOn, kernel_object};
use crate::layout::Layout;
use crate::ops::Attends;
use crate::ops::attention::AttentionShape;
use crate::order::{Shard, TokenOrder};
use crate::strategy::{CpStrategy, Supports};
use crate::tensor::{Element, Storage};

/// A shard that attention keeps for the backward pass: one that is given away, or shared.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an operand of attention over order `{O}` and layout `{L}`: pass a shard of the handler's order, or an `Arc` of one",
    label = "not a shard of this order, layout and element type"
)]
pub trait Operand<O: TokenOrder, L: Layout, T, S> {
    /// The shard, shared.
    fn shared(self) -> Arc<Shard<O, L, T, S>>;
}

impl<O: TokenOrder, L: Layout, T: Element, S: Storage> Operand<O, L, T, S> for Shard<O, L, T, S> {
    fn shared(self) -> Arc<Shard<O, L, T, S>> {
        Arc::new(self)
    }
}

impl<O: TokenOrder, L: Layout, T: Element, S: Storage> Operand<O, L, T, S> for Arc<Shard<O, L, T, S>> {
    fn shared(self) -> Arc<Shard<O, L, T, S>> {
        self
    }
}

impl<O: TokenOrder, L: Layout, T: Element, S: Storage> Operand<O, L, T, S> for &Arc<Shard<O, L, T, S>> {
    fn shared(self) -> Arc<Shard<O, L, T, S>> {
        self.clone()
    }
}

/// What a forward pass of attention leaves besides its operands, whatever strategy, layout and kernel.
#[derive(Clone, Debug)]
pub struct DynCoreAttention<D: Attends> {
    pub(super) shape: AttentionShape,
    /// Hash of the plan.
    pub(super) plan: u64,
    pub(super) saved: AttentionSaved<D>,
}

impl<D: Attends> DynCoreAttention<D> {
    /// Output and log-sum-exp as the kernel left them.
    pub fn saved(&self) -> &AttentionSaved<D> {
        &self.saved
    }
}

/// What a forward pass of attention leaves, operands and plan included: all that its backward pass needs. Copies share
/// it.
pub struct Attended<H: CpStrategy, L: Layout, D: Attends> {
    plan: AttentionPlan<H::Order, L>,
    qkv: [Arc<ElemShard<H, L, D>>; 3],
    core: Arc<DynCoreAttention<D>>,
}

impl<H: CpStrategy, L: Layout, D: Attends> Attended<H, L, D> {
    /// Gradients of queries, keys and values from `dout [rows, q_heads * v_dim]`, that of the output.
    ///
    /// # Errors
    /// A handler of another strategy or rank than the forward pass had, a gradient of another placement or width, and
    /// failures of other ranks.
    pub fn backward<C: Communicator<D::Storage>>(
        &self,
        handler: &CpHandler<H, L, D, C>,
        dout: &ElemShard<H, L, D>,
    ) -> Result<[ElemShard<H, L, D>; 3]> {
        let (plan, placement, keys) = (self.plan.rank_plan(), self.plan.placement(), self.plan.keys());
        let [q, k, v] = &self.qkv;
        let operands = [q.data(), k.data(), v.data()];
        let [dq, dk, dv] = handler.by_ref().core_attn_backward(plan, operands, &self.core, dout.data())?;
        Ok([Shard::typed(dq, placement)?, Shard::typed(dk, keys)?, Shard::typed(dv, keys)?])
    }

    /// Queries, keys and values.
    pub fn operands(&self) -> &[Arc<ElemShard<H, L, D>>; 3] {
        &self.qkv
    }

    /// Output and log-sum-exp as the kernel left them.
    pub fn saved(&self) -> &AttentionSaved<D> {
        &self.core.saved
    }
}

impl<H: CpStrategy, L: Layout, D: Attends> Clone for Attended<H, L, D> {
    fn clone(&self) -> Self {
        Attended { plan: self.plan.clone(), qkv: self.qkv.clone(), core: self.core.clone() }
    }
}

impl<H: CpStrategy, L: Layout, D: Attends> fmt::Debug for Attended<H, L, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Attended { plan, qkv, core } = self;
        let placement = plan.placement().to_string();
        f.debug_struct("Attended").field("placement", &placement).field("qkv", qkv).field("core", core).finish()
    }
}

impl<H: CpStrategy, L: Layout, D: Attends, C: Communicator<D::Storage>> CpHandler<H, L, D, C> {
    /// Attention of this rank's queries to the keys of all ranks, and what its backward pass needs.
    ///
    /// `q [rows, q_heads * qk_dim]`, `k [rows, kv_heads * qk_dim]`, `v [rows, kv_heads * v_dim]`, each given away or in
    /// an `Arc`: nothing is copied to be kept. Gives `[rows, q_heads * v_dim]`, 0 for padding and for queries that
    /// attend nothing. Every rank makes the same calls in the same order, also where it has nothing to send: what ranks
    /// exchange later says what they attended before.
    ///
    /// ```
    /// use std::sync::Arc;
    /// use context_parallel::{comm::threads, degree::Runtime, handler::CpHandler, mask::Mask, order::Full};
    /// use context_parallel::layout::{Packed, Thd};
    /// use context_parallel::ops::attention::AttentionShape;
    /// use context_parallel::strategy::Ring;
    /// use context_parallel::tensor::Cpu;
    ///
    /// let shape = AttentionShape { q_heads: 2, kv_heads: 2, qk_dim: 4, v_dim: 4, scale: 0.5 };
    /// threads::run(2, |comm| {
    ///     let handler = CpHandler::<Ring, Thd>::new(Ring::new(Runtime(2)), Cpu::new(1), comm)?;
    ///     let batch = Arc::new(Packed::from_lengths(&[9])?);
    ///     let placement = handler.place(batch.clone())?;
    ///     let x = handler.dispatch(&placement, &Full::from_batch_first(&[0.5; 9 * 8], 8, batch)?)?;
    ///     let (plan, x) = (handler.plan(&placement, &Mask::Causal)?, Arc::new(x));
    ///     let (out, attended) = handler.attend(&plan, &shape, &x, &x, &x)?;
    ///     let [dq, dk, dv] = attended.backward(&handler, &out)?;
    ///     assert_eq!([dq, dk, dv].map(|gradient| gradient.matrix().cols()), [8, 8, 8]);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), context_parallel::error::Error>(())
    /// ```
    ///
    /// # Errors
    /// A plan of another strategy or rank, shards of another placement than the plan's, shapes that the device does not
    /// compute, widths that do not fit the shape, heads that cannot be shared out, keys that the kernel does not take,
    /// ranks that attend under other plans, and failures of other ranks.
    #[doc(alias = "core_attn")]
    #[allow(clippy::type_complexity)]
    pub fn attend(
        &self,
        plan: &AttentionPlan<H::Order, L>,
        shape: &AttentionShape,
        q: impl Operand<H::Order, L, D::Elem, D::Storage>,
        k: impl Operand<H::Order, L, D::Elem, D::Storage>,
        v: impl Operand<H::Order, L, D::Elem, D::Storage>,
    ) -> Result<(ElemShard<H, L, D>, Attended<H, L, D>)>
    where
        H: Supports<L, Flash>,
    {
        self.attend_with::<Flash>(plan, shape, q, k, v)
    }

    /// [`CpHandler::attend`] with another kernel than [`Flash`].
    ///
    /// # Errors
    /// Those of `attend`.
    #[allow(clippy::type_complexity)]
    pub fn attend_with<K: KernelOn<D>>(
        &self,
        plan: &AttentionPlan<H::Order, L>,
        shape: &AttentionShape,
        q: impl Operand<H::Order, L, D::Elem, D::Storage>,
        k: impl Operand<H::Order, L, D::Elem, D::Storage>,
        v: impl Operand<H::Order, L, D::Elem, D::Storage>,
    ) -> Result<(ElemShard<H, L, D>, Attended<H, L, D>)>
    where
        H: Supports<L, K>,
    {
        let (q, k, v) = (q.shared(), k.shared(), v.shared());
        let operands = [q.data(), k.data(), v.data()];
        let (out, core) = self.by_ref().core_attn(kernel_object::<K, D>(), plan.rank_plan(), shape, operands)?;
        let attended = Attended { plan: plan.clone(), qkv: [q, k, v], core: Arc::new(core) };
        Ok((Shard::typed(out, plan.placement())?, attended))
    }
}
