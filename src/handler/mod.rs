//! The handler: everything that a model needs to know about context parallelism, behind one type.
//!
//! [`CpHandler`] stands between a model and a strategy. The model asks it to cut batches ([`CpHandler::dispatch`],
//! [`CpHandler::get_batch_on_this_cp_rank`]), to rotate queries and keys by their positions, to roll labels, and to
//! attend; it never sees ranks, chunks or messages. Every operation has its adjoint.

mod attend;
mod bundle;
mod cache;
mod core;
mod host;
mod movement;
mod object;
mod planning;
mod roll;
mod rotary;

pub use self::core::HandlerCore;
pub use attend::{Attended, DynCoreAttention, Operand};
pub use bundle::{AttendedOf, ContextParallel, CpHandlerOf, FullOf, PlacementOf, PlanOf, ShardOf};
pub use host::{DynHandler, HostAttended, HostGradient, HostMut, HostOperand, HostRef};
pub use movement::{FullGradient, LocalBatch, Partial, Replicated, WholeBatch};
pub use object::{DynElemShard, HandlerRef, UntypedHandler};
pub use roll::{DynRoll, DynRollable, Roll, Rollable};
pub use rotary::{Rotary, RotaryTable};

use std::marker::PhantomData;
use std::sync::Arc;

use crate::comm::Communicator;
use crate::comm::threads::ThreadComm;
use crate::error::{PlacementError, Result};
use crate::layout::{Batch, Layout};
use crate::mask::Mask;
use crate::order::{DealOf, DynPlacement, Placement, Shard, TokenOrder};
use crate::plan::Wire;
use crate::strategy::{CpStrategy, object};
use crate::tensor::{Cpu, Device};

/// The label that does not count, as in PyTorch.
pub const IGNORED: i64 = -100;

/// A shard of `D`'s storage type in the order of strategy `H`.
pub type ElemShard<H, L, D> = Shard<<H as CpStrategy>::Order, L, <D as Device>::Elem, <D as Device>::Storage>;

/// One rank's handler for strategy `H` and layout `L`, on device `D` and over communicator `C`.
///
/// `CpHandler::<Ring, Thd>::new(..)` is for `Cpu<f32>` and ranks that are threads; `CpHandler::<Ring, Thd, _,
/// _>::new(..)` takes any device and communicator. It lives as long as the model does; placements and plans come and go
/// with batches and are kept in a small cache. It can be shared between threads, which have to agree on an order of
/// calls that is the same on every rank. Its types decide what compiles; what it does is done by its [`HandlerCore`],
/// which has none.
#[doc(alias = "ContextParallelHandler")]
#[doc(alias = "DefaultContextParallelHandler")]
pub struct CpHandler<H: CpStrategy, L: Layout, D = Cpu<f32>, C = ThreadComm> {
    strategy: H,
    core: HandlerCore,
    device: D,
    comm: C,
    layout: PhantomData<L>,
}

impl<H: CpStrategy, L: Layout, D: Device, C: Communicator<D::Storage>> CpHandler<H, L, D, C> {
    /// A handler for this rank of `comm`, which computes on `device`.
    ///
    /// # Errors
    /// If the strategy's degree is not the number of ranks, its grid is not one of so many ranks or differs from its
    /// type over who exchanges heads, or a setting of the strategy is out of its bounds.
    pub fn new(strategy: H, device: D, comm: C) -> Result<Self> {
        let core = HandlerCore::new(object(strategy.clone()), L::KIND, comm.rank(), comm.size())?;
        Ok(CpHandler { strategy, core, device, comm, layout: PhantomData })
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

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// The communicator.
    pub fn comm(&self) -> &C {
        &self.comm
    }

    /// The handler without its types, its device and its communicator.
    pub fn core(&self) -> &HandlerCore {
        &self.core
    }

    /// The handler without its types.
    pub fn by_ref(&self) -> HandlerRef<'_, D> {
        HandlerRef { core: &self.core, device: &self.device, comm: &self.comm }
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
}

fn expect_batch(placement: &DynPlacement, batch: &dyn Batch) -> Result<()> {
    let own = &**placement.batch();
    if std::ptr::addr_eq(own, batch) || own.same_documents(batch) {
        return Ok(());
    }
    let (left, right) = (own.describe(), batch.describe());
    Err(PlacementError::Mismatch { left_name: "the placement", left, right_name: "the tensor", right }.into())
}
