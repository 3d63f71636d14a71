//! One bound for code that works with any handler.

use std::sync::Arc;

use crate::attention::AttentionPlan;
use crate::comm::Communicator;
use crate::handler::{Attended, CpHandler};
use crate::kernel::Flash;
use crate::layout::Layout;
use crate::ops::Ops;
use crate::order::{Full, Placement, Shard};
use crate::strategy::{CpStrategy, Supports};
use crate::tensor::Device;

/// A handler of any strategy, layout, device and communicator: what a function has to ask for, in one bound.
///
/// Every [`CpHandler`] is one whose strategy works with its layout and [`Flash`]. [`ContextParallel::handler`] gives
/// the handler with all that it can do; [`ShardOf`], [`PlacementOf`], [`PlanOf`], .. name what goes in and comes out.
///
/// ```
/// use std::sync::Arc;
/// use context_parallel::comm::threads;
/// use context_parallel::degree::Runtime;
/// use context_parallel::error::Result;
/// use context_parallel::handler::{ContextParallel, CpHandler, PlanOf, ShardOf};
/// use context_parallel::layout::{Packed, Thd};
/// use context_parallel::mask::Mask;
/// use context_parallel::ops::attention::AttentionShape;
/// use context_parallel::order::Full;
/// use context_parallel::strategy::Ulysses;
/// use context_parallel::tensor::Cpu;
///
/// /// Attention of tokens to themselves, and the gradient if that of the output is the output.
/// fn attend_self<P: ContextParallel>(cp: &P, plan: &PlanOf<P>, x: ShardOf<P>) -> Result<ShardOf<P>> {
///     let (handler, x) = (cp.handler(), Arc::new(x));
///     let shape = AttentionShape { q_heads: 2, kv_heads: 2, qk_dim: 4, v_dim: 4, scale: 0.5 };
///     let (out, attended) = handler.attend(plan, &shape, &x, &x, &x)?;
///     let [dq, _, _] = attended.backward(handler, &out)?;
///     Ok(dq)
/// }
///
/// threads::run(2, |comm| {
///     let handler = CpHandler::<Ulysses, Thd>::new(Ulysses::new(Runtime(2)), Cpu::new(1), comm)?;
///     let batch = Arc::new(Packed::from_lengths(&[7])?);
///     let placement = handler.place(batch.clone())?;
///     let x = handler.dispatch(&placement, &Full::from_batch_first(&[0.5; 7 * 8], 8, batch)?)?;
///     let plan = handler.plan(&placement, &Mask::Causal)?;
///     attend_self(&handler, &plan, x).map(drop)
/// })?;
/// # Ok::<(), context_parallel::error::Error>(())
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler whose strategy works with its layout and `Flash`",
    note = "every `CpHandler` is one; `Magi` and `Dynamic` work with layout `Thd`"
)]
pub trait ContextParallel {
    /// How sequences are split.
    type Strategy: Supports<Self::Layout, Flash>;
    /// How rows lie in memory.
    type Layout: Layout;
    /// What computes.
    type Device: Ops;
    /// What ranks talk through.
    type Comm: Communicator<<Self::Device as Device>::Storage>;

    /// The handler.
    fn handler(&self) -> &CpHandlerOf<Self>;
}

impl<H, L, D, C> ContextParallel for CpHandler<H, L, D, C>
where
    H: Supports<L, Flash>,
    L: Layout,
    D: Ops,
    C: Communicator<D::Storage>,
{
    type Strategy = H;
    type Layout = L;
    type Device = D;
    type Comm = C;

    fn handler(&self) -> &Self {
        self
    }
}

/// The handler that `P` is.
pub type CpHandlerOf<P> = CpHandler<
    <P as ContextParallel>::Strategy,
    <P as ContextParallel>::Layout,
    <P as ContextParallel>::Device,
    <P as ContextParallel>::Comm,
>;

type OrderOf<P> = <<P as ContextParallel>::Strategy as CpStrategy>::Order;
type StorageOf<P> = <<P as ContextParallel>::Device as Device>::Storage;
type ElemOf<P> = <<P as ContextParallel>::Device as Device>::Elem;

/// One rank's rows, of the device's storage type if nothing is said.
pub type ShardOf<P, T = ElemOf<P>> = Shard<OrderOf<P>, <P as ContextParallel>::Layout, T, StorageOf<P>>;
/// Whole sequences, of the device's storage type if nothing is said.
pub type FullOf<P, T = ElemOf<P>> = Full<<P as ContextParallel>::Layout, T, StorageOf<P>>;
/// Where the tokens of a batch are.
pub type PlacementOf<P> = Arc<Placement<OrderOf<P>, <P as ContextParallel>::Layout>>;
/// How a rank attends under one mask.
pub type PlanOf<P> = AttentionPlan<OrderOf<P>, <P as ContextParallel>::Layout>;
/// What a forward pass of attention leaves.
pub type AttendedOf<P> =
    Attended<<P as ContextParallel>::Strategy, <P as ContextParallel>::Layout, <P as ContextParallel>::Device>;
